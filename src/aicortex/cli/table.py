"""Lists on stdout: columns that fit the terminal, or JSON; and what is told beside them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import msgspec

from aicortex.cli.terminal import fitted, note, printable, width

Rows = Sequence[Sequence[str]]
KILO = 1000.0
UNITS = ("B", "kB", "MB", "GB", "TB")
SPACES = {9: " ", 10: " "}  # instead of tab and newline
SPANS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def print_table(
    header: Sequence[str],
    rows: Rows,
    *,
    optional: Sequence[str] = (),
    shorter: Iterable[Rows] = (),
) -> None:
    """Print columns, or on a terminal too narrow for them one paragraph for each row.

    The columns named in `optional` are left out when nothing stands in them. `shorter` has the same rows in fewer
    words, more and more so: of them a terminal gets the first that fits.
    """
    first = _Columns(header, rows, optional)
    columns: _Columns | None = first
    if sys.stdout.isatty():
        tried = chain([first], (_Columns(header, less, optional) for less in shorter))
        columns = next((one for one in tried if one.width <= width()), None)
    if columns is None:
        _print_paragraphs(first.header, first.rows)
        return
    for row in (columns.header, *columns.rows):
        line = "  ".join(cell.ljust(size) for cell, size in zip(row, columns.widths, strict=True))
        print(line.rstrip())


class _Columns:
    """A table without the optional columns in which nothing stands, and how wide it is."""

    def __init__(self, header: Sequence[str], rows: Rows, optional: Sequence[str]) -> None:
        rows = [[_on_one_line(cell) for cell in row] for row in rows]
        shown = [place for place, name in enumerate(header) if name not in optional or any(row[place] for row in rows)]
        self.header = [header[place] for place in shown]
        self.rows = [[row[place] for place in shown] for row in rows]
        self.widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        self.width = sum(self.widths) + 2 * (len(self.widths) - 1)


def _print_paragraphs(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print each row under the first of its cells in which something stands."""
    from textwrap import fill

    for row in rows:
        first, *others = [(name, cell) for name, cell in zip(header, row, strict=True) if cell]
        print(fill(first[1], width()))
        for name, cell in others:
            words = f"{name.lower()}: {cell}"
            print(fill(words, width(), initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))


def print_line(words: str, *, indent: int = 2) -> None:
    """Print one line, which only a terminal breaks, between words; what it goes on with is indented."""
    line = _on_one_line(words)
    print(fitted(line, indent=indent) if sys.stdout.isatty() else line)


def _on_one_line(words: str) -> str:
    """Return foreign text without what would steer a terminal or begin another line."""
    return printable(words).translate(SPACES)


def print_json(value: object) -> None:
    """Print a value as JSON over several lines."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def tell_unreachable(unreachable: Mapping[str, str]) -> None:
    """Say on stderr who did not answer, and why."""
    for label, reason in unreachable.items():
        note(f"{label}: {reason}")


def size_words(size_bytes: float) -> str:
    """Return a size as `ollama list` writes it, in powers of 1000; nothing when it is unknown."""
    if not size_bytes:
        return ""
    power = 0
    while size_bytes >= KILO and power < len(UNITS) - 1:
        size_bytes /= KILO
        power += 1
    return f"{size_bytes:.{1 if power > 2 else 0}f} {UNITS[power]}"


def span_words(seconds: float) -> str:
    """Return a time in its largest unit: "5 min"."""
    for unit, name in SPANS:
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return "0 s"


def milliseconds(value: float | None) -> str:
    """Return a time in milliseconds; nothing when it is unknown."""
    if value is None:
        return ""
    return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def counted(number: int, thing: str) -> str:
    """Return "1 model", "2 models"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
