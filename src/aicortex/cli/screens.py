"""Where the events of an answer are shown: as raw text, as JSON, or (in `render`) as Markdown."""

from __future__ import annotations

import sys
from typing import Protocol

from aicortex.cli.terminal import is_dumb, printable
from aicortex.events import StreamEvent


class Screen(Protocol):
    """Shows one answer."""

    def show(self, event: StreamEvent) -> None:
        """Take the next event."""

    def refresh(self) -> None:
        """Let the reader see everything taken: nothing more has come yet."""

    def finish(self) -> None:
        """End the answer, whole or not, with the cursor at the beginning of a line."""


class TextScreen:
    """The text as it comes and one newline at its end; on a terminal without what would steer it."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._last = ""

    def show(self, event: StreamEvent) -> None:
        if event.type == "token" and event.content:
            self._last = event.content
            sys.stdout.write(printable(event.content) if self._is_terminal else event.content)

    def refresh(self) -> None:
        sys.stdout.flush()

    def finish(self) -> None:
        if self._last and not self._last.endswith("\n"):
            sys.stdout.write("\n")
            self._last = "\n"
        sys.stdout.flush()


class JsonScreen:
    """Every event as one line of JSON."""

    def show(self, event: StreamEvent) -> None:
        sys.stdout.write(event.to_json() + "\n")

    def refresh(self) -> None:
        sys.stdout.flush()

    def finish(self) -> None:
        sys.stdout.flush()


def choose_screen(*, json: bool, plain: bool) -> Screen:
    """Return the screen for the next answer; Markdown is rendered on a terminal alone."""
    if json:
        return JsonScreen()
    if plain or not sys.stdout.isatty() or is_dumb():
        return TextScreen()
    from aicortex.cli.render import MarkdownScreen, can_draw

    return MarkdownScreen() if can_draw() else TextScreen()
