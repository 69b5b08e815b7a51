"""`aicortex batch`: ask every prompt of a file, and append each answer to another one as it comes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Protocol

from aicortex.batch import Answers, Line, Record, read_prompts
from aicortex.cli.known import names_by_url
from aicortex.cli.table import counted
from aicortex.cli.terminal import is_dumb, note, printable, width
from aicortex.errors import AllServersFailedError
from aicortex.job import Progress
from aicortex.many import stream_many
from aicortex.settings import default_model

SHAPING = ("system", "temperature", "max_tokens", "seed")  # what another answer comes of, besides the model
CARRYING = ("stall_timeout", "timeout", "resume")  # how it is had
MOST_TOLD = 20  # failures that have a line each
LINE_SECONDS = 10.0  # between two lines about the progress, where no bar can be drawn


def run(options: argparse.Namespace) -> int:
    """Ask what is not answered yet, and return 0 when then everything is, else 1.

    Raises ValueError for files and options that are wrong or do not belong together, and what `chat` raises when no
    server has the model. A KeyboardInterrupt passes on when what is whole has been written.
    """
    given = vars(options)
    shared = {name: given[name] for name in SHAPING if given[name] is not None}
    name, lines = _read(options.prompts, shared)
    if not lines:
        raise ValueError(f"there is no prompt in {name}")
    if os.path.exists(options.output) and name == options.prompts and os.path.samefile(name, options.output):
        raise ValueError(f"{name} cannot take the answers to itself: name another file with -o")
    if options.output == "-":
        raise ValueError("answers are kept in a file to go on with, not written to standard output: -o answers.jsonl")
    try:
        answers = Answers(options.output)
    except BlockingIOError as error:
        note(f"error: {error}")
        return 1
    except OSError as error:
        raise ValueError(f"{options.output} cannot be written: {error.strerror}") from None
    with answers:
        missing = answers.missing(name, lines)
        arguments = {**shared, **{name: given[name] for name in CARRYING if given[name] is not None}}
        arguments["model"] = answers.model(lines, default_model() if options.model is None else options.model)
        if options.server:
            arguments["servers"] = options.server
        return Batch(name, lines, missing, answers).ask(options.per_server, arguments)


def _read(path: str, shared: dict[str, Any]) -> tuple[str, list[Line]]:  # Any: arguments of `chat`
    if path == "-":
        return "<stdin>", read_prompts("<stdin>", sys.stdin.buffer, shared)
    try:
        with open(path, "rb") as file:
            return path, read_prompts(path, file, shared)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


class Batch:
    """One run over the prompts that are `missing` of all `lines`."""

    def __init__(self, name: str, lines: Sequence[Line], missing: Sequence[Line], answers: Answers) -> None:
        self._name = name
        self._total = len(lines)
        self._missing = missing
        self._answers = answers
        self._before = self._total - len(missing)
        self._failed = 0
        self._written = 0

    def ask(self, per_server: int | None, arguments: dict[str, Any]) -> int:  # Any: arguments of `chat`
        """Ask, write and tell; return the exit status."""
        if not self._missing:
            note(f"all {counted(self._total, 'prompt')} are answered in {self._answers.path} already")
            return 0
        pace = Pace(self._total, self._before)
        try:
            with choose_display(pace) as display:
                self._ask(per_server, arguments, display)
        except (KeyboardInterrupt, OSError):
            note(f"{self._so_far()}; the same command goes on with the rest")
            raise
        note(f"{self._so_far()}{pace.told()}")
        if self._failed:
            note(f"{self._failed} failed; the same command asks them again")
        return 1 if self._failed else 0

    def _ask(self, per_server: int | None, arguments: dict[str, Any], display: Display) -> None:  # Any: as above
        prompts = (line.prompt for line in self._missing)
        outcomes = stream_many(prompts, ordered=False, per_server=per_server, progress=display.tell, **arguments)
        for outcome in outcomes:
            line = self._missing[outcome.index]
            if outcome.error is None:
                self._answers.add(Record.of(line, outcome))
                self._written += 1
            else:
                self._tell(line, outcome.error)
                if self._is_hopeless(outcome.error):
                    note("no server has answered anything, so the other prompts are not asked")
                    outcomes.close()
                    return

    def _is_hopeless(self, error: Exception) -> bool:
        """Whether asking on is of no use: nothing but failures, as many as are told, and it is the servers."""
        return not self._written and self._failed == MOST_TOLD and isinstance(error, AllServersFailedError)

    def _tell(self, line: Line, error: Exception) -> None:
        self._failed += 1
        if self._failed <= MOST_TOLD:
            note(f"{self._name}:{line.number}: {error}")
        elif self._failed == MOST_TOLD + 1:
            note("more failures are only counted")

    def _so_far(self) -> str:
        return f"{self._before + self._written} of {counted(self._total, 'prompt')} answered in {self._answers.path}"


class Pace:
    """How fast it goes: of this run alone."""

    def __init__(self, total: int, before: int) -> None:
        self.total = total
        self.before = before
        self._names = names_by_url()
        self._start = perf_counter()
        self._last = Progress(0, 0, 0, None, 0, {})

    @property
    def done(self) -> int:
        """How many prompts are done, those of earlier runs too."""
        return self.before + self._last.done

    def tell(self, progress: Progress) -> None:
        """Take note of how far it is."""
        self._last = progress

    def told(self) -> str:
        """Return how fast it was, and how long it took."""
        answered = self._last.done - self._last.failed
        seconds = perf_counter() - self._start
        return f", {answered} now in {_span(seconds)}{self.speed()}" if answered else ""

    def speed(self) -> str:
        """Return answers and tokens per second."""
        seconds = max(perf_counter() - self._start, 1e-3)
        answered = self._last.done - self._last.failed
        rates = _rounded(answered / seconds), _rounded(self._last.tokens / seconds)
        return f", {rates[0]} answers/s, {rates[1]} tokens/s" if answered else ""

    def left(self) -> str:
        """Return how much longer it will take."""
        if not self._last.done:
            return ""
        seconds = (perf_counter() - self._start) / self._last.done * (self.total - self.done)
        return f", {_span(seconds)} left"

    def servers(self) -> str:
        """Return who is at work, and on how many answers, behind a semicolon."""
        busy = sorted(self._last.servers.items())
        titles = (self._names.get(label, label.partition("://")[2] or label) for label, _ in busy)
        words = ", ".join(f"{title} {count}" for title, (_, count) in zip(titles, busy, strict=True))
        return f"; {words}" if words else ""


def _rounded(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _span(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Display(Protocol):
    """Shows how far a batch is until the end of its `with` block."""

    def __enter__(self) -> Display: ...

    def __exit__(self, *_: object) -> None: ...

    def tell(self, progress: Progress) -> None:
        """Show how far it is."""


class Lines:
    """A line on stderr now and then."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._due = perf_counter() + LINE_SECONDS

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tell(self, progress: Progress) -> None:
        """Write a line if it is time."""
        pace = self._pace
        pace.tell(progress)
        if perf_counter() >= self._due:
            self._due = perf_counter() + LINE_SECONDS
            note(f"{pace.done} of {pace.total}{pace.speed()}{pace.left()}{pace.servers()}")


class Bar:
    """A bar on the last line of the terminal, which vanishes at the end."""

    def __init__(self, pace: Pace) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        self._pace = pace
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # what the others leave
        words = TextColumn("{task.description}", markup=False, table_column=rest)
        columns = [BarColumn(width() // 5), MofNCompleteColumn(), words]
        self._bar = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True, expand=True)
        self._task = self._bar.add_task("looking for servers", total=pace.total, completed=pace.before)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tell(self, progress: Progress) -> None:
        """Move the bar."""
        pace = self._pace
        pace.tell(progress)
        failed = f", {progress.failed} failed" if progress.failed else ""
        words = printable(f"{pace.left()}{failed}{pace.speed()}{pace.servers()}".removeprefix(", "))
        self._bar.update(self._task, completed=pace.done, description=words)


def choose_display(pace: Pace) -> Display:
    """Return what shows progress here."""
    if not sys.stderr.isatty() or is_dumb():
        return Lines(pace)
    return Bar(pace)
