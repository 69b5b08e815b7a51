"""How far a refresh is: bars on a terminal that can draw them, elsewhere one line for each server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from aicortex.cli.terminal import is_dumb, note, printable, width

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import TaskID

    from aicortex.tools import Progress

TOLD = ("fetch", "measure")  # the steps of which each server has a line
WIDE = 60  # columns of a terminal that has room for names too
WORDS = {
    "check": "asking who is there",
    "fetch": "asking what they have",
    "measure": "measuring",
    "apply": "writing it down",
}


class Display(Protocol):
    """Shows progress until the end of its `with` block; `title` is added to the words."""

    title: str

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def tell(self, progress: Progress) -> None:
        """Show how far a step is."""


class Lines:
    """One line on stderr for each server of the steps that take long."""

    def __init__(self) -> None:
        self.title = ""
        self._failed: dict[str, int] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._failed.clear()

    def tell(self, progress: Progress) -> None:
        """Write a line."""
        if progress.step not in TOLD:
            return
        has_failed = progress.failed > self._failed.get(progress.step, 0)
        self._failed[progress.step] = progress.failed if progress.done < progress.total else 0
        words = f"{WORDS[progress.step]}{self.title}: {progress.server}{' failed' if has_failed else ''}"
        note(f"{words} ({progress.done} of {progress.total})")


class Bars:
    """A bar for each step, on the last lines of the terminal; they vanish at the end."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        words = TextColumn("{task.description}", markup=False)
        server = TextColumn("{task.fields[server]}", markup=False)
        console = Console(stderr=True, highlight=False)
        is_wide = width() >= WIDE
        columns = [words, BarColumn(20 if is_wide else 5), MofNCompleteColumn(), *([server] if is_wide else [])]
        self.title = ""
        self._bars = Progress(*columns, console=console, transient=True)
        self._tasks: dict[str, TaskID] = {"check": self._bars.add_task(WORDS["check"], total=None, server="")}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def tell(self, progress: Progress) -> None:
        """Move a bar."""
        task = self._tasks.get(progress.step)
        if task is None:
            task = self._tasks[progress.step] = self._bars.add_task(WORDS[progress.step], server="")
        words = f"{progress.failed} failed" if progress.failed else printable(progress.server)
        self._bars.update(
            task,
            description=WORDS[progress.step] + self.title,
            completed=progress.done,
            total=progress.total,
            server=words,
        )


def choose_display() -> Display:
    """Return what shows progress here."""
    if not sys.stderr.isatty() or is_dumb():
        return Lines()
    return Bars()
