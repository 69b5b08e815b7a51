"""What the user sees on stderr while the weights are fetched."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from aicortex.embedded.weights import Report


@contextmanager
def shown(progress: Report | None, total: int) -> Iterator[Report]:
    """Give the block the function to report to: `progress`, else a bar on a terminal, else a line before and after."""
    if progress is not None:
        yield progress
    elif sys.stderr.isatty():
        with _bar(total) as report:
            yield report
    else:
        print(f"aicortex: fetching the embedded model's weights, {total / 1e6:.1f} MB, once", file=sys.stderr)
        yield lambda *_: None
        print("aicortex: the weights are here", file=sys.stderr)


@contextmanager
def _bar(total: int) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("Fetching the embedded model's weights", total=total)
        yield lambda done, _: bar.update(task, completed=done)
