"""Where the events of an answer are shown: as raw text, as JSON, or (in `render`) as Markdown."""

from __future__ import annotations

import sys
from shutil import get_terminal_size
from threading import Lock
from typing import Protocol

from aicortex.cli.sign import ERASE_BELOW, Sign, cursor_behind
from aicortex.cli.terminal import is_dumb, printable
from aicortex.events import StreamEvent


class Screen(Protocol):
    """Shows one answer."""

    def show(self, event: StreamEvent) -> None:
        """Take the next event."""

    def refresh(self) -> None:
        """Let the reader see everything taken: nothing more has come yet."""

    def say(self, words: str) -> None:
        """Let these words stand below the answer until the next event that shows; from any thread.

        They fit on one row. Without a terminal that can remove them again they are not shown.
        """

    def finish(self) -> None:
        """End the answer, whole or not, with the cursor at the beginning of a line."""


class TextScreen:
    """The text as it comes and one newline at its end; on a terminal without what would steer it."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._written: list[str] = []
        self._sign = Sign()
        self._is_row_begun = False  # behind a full row, for the sign's sake, and nothing stands there yet
        self._lock = Lock()

    def show(self, event: StreamEvent) -> None:
        if event.type != "token" or not event.content:
            return
        text = printable(event.content) if self._is_terminal else event.content
        with self._lock:
            self._written.append(text)
            self._sign.clear()
            if self._is_row_begun:
                self._is_row_begun = False
                text = text.removeprefix("\n")
            sys.stdout.write(text)

    def refresh(self) -> None:
        sys.stdout.flush()

    def say(self, words: str) -> None:
        with self._lock:
            columns = get_terminal_size().columns
            line = "".join(self._written).rpartition("\n")[2]
            cursor = cursor_behind(line, columns)
            if cursor is None or not self._sign.is_possible():
                return
            if cursor == columns and not self._is_row_begun:
                self._is_row_begun = True
                sys.stdout.write(" \b")  # to the beginning of the next row, as the next character would
            self._sign.show(words, row_is_empty=not line or self._is_row_begun)

    def finish(self) -> None:
        with self._lock:
            self._sign.clear()
            if self._is_row_begun:
                sys.stdout.write(f"\r{ERASE_BELOW}")  # there may be a ^C
            elif self._written and not self._written[-1].endswith("\n"):
                sys.stdout.write("\n")
            self._written = []
        sys.stdout.flush()


class JsonScreen:
    """Every event as one line of JSON."""

    def __init__(self) -> None:
        self._sign = Sign()
        self._lock = Lock()

    def show(self, event: StreamEvent) -> None:
        with self._lock:
            self._sign.clear()
            sys.stdout.write(event.to_json() + "\n")

    def refresh(self) -> None:
        sys.stdout.flush()

    def say(self, words: str) -> None:
        with self._lock:
            self._sign.show(words, row_is_empty=True)

    def finish(self) -> None:
        with self._lock:
            self._sign.clear()
        sys.stdout.flush()


def choose_screen(*, json: bool, plain: bool) -> Screen:
    """Return the screen for the next answer; Markdown is rendered on a terminal alone."""
    if json:
        return JsonScreen()
    if plain or not sys.stdout.isatty() or is_dumb():
        return TextScreen()
    from aicortex.cli.render import MarkdownScreen, can_draw

    return MarkdownScreen() if can_draw() else TextScreen()
