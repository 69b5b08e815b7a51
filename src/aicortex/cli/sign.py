"""A line below an answer that is still being written, which leaves no trace.

The cursor stays behind the answer. The line is on the row below, or on the cursor's own if nothing stands there: it
needs no room behind the text and does not touch it. The row below is made first, which scrolls the screen if the text
stands at its bottom; only then is the cursor's place saved, because a saved place does not scroll. When the line goes,
everything behind the cursor is erased.
"""

from __future__ import annotations

import sys
import unicodedata
from shutil import get_terminal_size

from aicortex.cli.terminal import is_dumb

ERASE_BELOW = "\x1b[J"
MAKE_ROW = "\x1bD\x1b[A"  # down, in the same column, and up again
GO_BELOW, GO_BACK = "\x1b7\x1b[B\r", "\x1b8"
LEAST_ROWS = 3  # on fewer the text would have to leave
TAB = 8
VARIATION_SELECTOR = "\ufe0f"
FIRST_JAMO, LAST_JAMO = "\u1160", "\u11ff"  # vowels and finals of decomposed Hangul
FIRST_PICTOGRAM = "\U0001f000"


class Sign:
    """The line below the text at whose end the cursor stands; that must not be a full row, see `cursor_behind`."""

    def __init__(self) -> None:
        self._is_shown = False

    @staticmethod
    def is_possible() -> bool:
        """Whether stdout is a terminal that can show such a line and remove it again."""
        if not sys.stdout.isatty() or is_dumb() or get_terminal_size().lines < LEAST_ROWS:
            return False
        if sys.platform != "win32":
            return True
        from aicortex.cli.render import can_draw

        return can_draw()

    def show(self, words: str, *, row_is_empty: bool = False) -> None:
        """Let these words, which fit on one row, stand there if that is possible."""
        if not self.is_possible():
            return
        self._is_shown = True
        line = f"{words}\r" if row_is_empty else f"{MAKE_ROW}{GO_BELOW}{words}{GO_BACK}"
        sys.stdout.write(ERASE_BELOW + line)
        sys.stdout.flush()

    def clear(self) -> None:
        """Remove the words, if they are there, before anything else is written."""
        if self._is_shown:
            self._is_shown = False
            sys.stdout.write(ERASE_BELOW)


def cursor_behind(line: str, columns: int) -> int | None:
    """Return the column behind a line that the terminal wraps, from 0; None if nobody but the terminal knows.

    `columns` itself is that of a full row: the terminal begins another one when something follows. Moving its cursor
    then makes some terminals forget that, and tmux is one of them. Inside a row the column may be inexact, because
    terminals do not agree on how wide the rarer characters are; that a row is full or is not, is certain.
    """
    least = most = (0, 0)
    for character in line:
        if character == "\t" and columns in (least[1], most[1]):
            return None
        low, high = _cells(character)
        least, most = _moved(least, character, low, columns), _moved(most, character, high, columns)
    if least == most or (least[0] == most[0] and most[1] < columns):
        return most[1]
    return None


def _moved(place: tuple[int, int], character: str, cells: int, columns: int) -> tuple[int, int]:
    """Return row and column behind a character."""
    row, column = place
    if character == "\t":
        return row, min(column - column % TAB + TAB, columns - 1)
    if column + cells > columns:
        return row + 1, cells
    return row, column + cells


def _cells(character: str) -> tuple[int, int]:
    """Return how wide a character is at least and at most: emoji join, and so do the signs of some scripts."""
    if character < "\u0300":
        return 1, 1
    if character >= FIRST_PICTOGRAM or character == VARIATION_SELECTOR or FIRST_JAMO <= character <= LAST_JAMO:
        return 0, 2
    category = unicodedata.category(character)
    if category == "Mc":
        return 0, 2
    if category in ("Mn", "Me", "Cf"):
        return 0, 0
    return (2, 2) if unicodedata.east_asian_width(character) in "WF" else (1, 1)
