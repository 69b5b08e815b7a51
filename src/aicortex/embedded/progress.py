"""What the user sees on stderr while the weights are fetched."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from aicortex.embedded.weights import Report

_WIDE = 75  # columns that hold the words, the numbers and some of the bar
_ECHO = 3  # columns left free: "^C" after a full line would begin another, and the bar would stand twice


@contextmanager
def shown(progress: Report | None, total: int, *, again: bool) -> Iterator[Report]:
    """Give the block the function to report to: `progress`, else a bar on a terminal, else a line before and after.

    `total` is in bytes, `again` tells that there were weights, but damaged ones.
    """
    if progress is not None:
        yield progress
        return
    size = f"{total / 1e6:.1f} MB"
    is_terminal = sys.stderr.isatty()
    if again:
        print(f"aicortex: the cached weights are damaged; fetching them again, {size}", file=sys.stderr)
    elif not is_terminal:
        print(f"aicortex: fetching the embedded model's weights, {size}, once", file=sys.stderr)
    if is_terminal:
        with _bar(total) as report:
            yield report
    else:
        yield lambda *_: None
        print("aicortex: the weights are here", file=sys.stderr)


@contextmanager
def _bar(total: int) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.table import Column

    console = Console(stderr=True)
    is_wide = console.width >= _WIDE
    console.width = max(console.width - _ECHO, 1)
    columns = [TextColumn("{task.description}"), DownloadColumn(table_column=Column(no_wrap=True))]
    if is_wide:
        columns.insert(1, BarColumn())
        columns.append(TransferSpeedColumn(table_column=Column(no_wrap=True)))
        columns.append(TimeRemainingColumn(table_column=Column(no_wrap=True)))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("Fetching the embedded model's weights" if is_wide else "Weights", total=total)
        yield lambda done, _: bar.update(task, completed=done)
