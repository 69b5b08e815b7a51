"""The last lines on the screen, which may still change."""

from __future__ import annotations

import re
import sys
from shutil import get_terminal_size

STYLES = re.compile(r"\x1b\[[0-9;]*m")


def plain(line: str) -> str:
    """Return a line without its colours."""
    return STYLES.sub("", line)


class Tail:
    """Lines at the end of the screen, drawn again with as few changes as possible.

    The cursor stands behind the last of them. Lines may contain colours, but no line is wider than the terminal.
    """

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._columns = 0
        self._is_behind_text = False  # kept lines end where the cursor stands

    def draw(self, lines: list[str], *, keeps_shape: bool = True) -> bool:
        """Show these lines in place of those shown, and return whether that was done.

        What has left the screen at its top cannot be changed. A table, which is laid out anew with every row
        (`keeps_shape=False`), is therefore not drawn while it is higher than the screen.
        """
        size = get_terminal_size()
        if size.columns != self._columns:
            self._abandon()  # the terminal has broken the lines in other places
            self._columns = size.columns
        reach = max(size.lines - 1, 1)  # one row less than there are: a `Sign` may have scrolled by one
        if not keeps_shape and len(lines) > reach:
            return False
        gone = max(len(self._shown) - reach, 0)
        if list(map(plain, lines[:gone])) != list(map(plain, self._shown[:gone])):
            self._abandon()  # rather twice on the screen than not at all
            gone = 0
        self._write(lines, max(self._common(lines), gone))
        return True

    def keep(self, count: int) -> None:
        """Let the first lines stay as they are for ever."""
        self._shown = self._shown[count:]
        self._is_behind_text = not self._shown

    def end(self) -> None:
        """Keep everything and begin a new line."""
        self._abandon()
        if self._is_behind_text:
            sys.stdout.write("\n")
            self._is_behind_text = False
        sys.stdout.flush()

    def _abandon(self) -> None:
        if self._shown:
            self.keep(len(self._shown))

    def _common(self, lines: list[str]) -> int:
        """Return how many lines at the beginning are shown already."""
        count = 0
        for new, old in zip(lines, self._shown, strict=False):
            if new != old:
                break
            count += 1
        return count

    def _write(self, lines: list[str], common: int) -> None:
        shown = self._shown
        if common == len(lines) and common < len(shown):
            common = max(common - 1, 0)  # the cursor must end behind a line
        fresh = "\n".join(lines[common:])
        if common == len(shown):
            break_needed = bool(shown) or self._is_behind_text
            text = ("\n" if break_needed else "") + fresh if lines[common:] else ""
            self._is_behind_text = self._is_behind_text and not lines
        elif common == len(shown) - 1 and fresh.startswith(shown[-1]):
            text = fresh[len(shown[-1]) :]
        else:
            up = len(shown) - 1 - common
            text = "\r" + (f"\x1b[{up}A" if up else "") + "\x1b[J" + fresh
        self._shown = lines  # first: a Ctrl-C falls behind what it answers, and nothing is to come twice
        sys.stdout.write(text)
        sys.stdout.flush()
