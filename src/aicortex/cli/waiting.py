"""The sign of life while nothing comes: what is waited for, on a terminal, after about a second of silence."""

from __future__ import annotations

import sys
from contextlib import suppress
from itertools import cycle
from threading import Event, Lock, Thread
from time import perf_counter
from typing import TYPE_CHECKING

from aicortex.cli.terminal import is_dumb, printable, width

if TYPE_CHECKING:
    from aicortex.cli.screens import Screen

QUIET_SECONDS = 1.0  # how long nothing may come before the terminal says what is waited for
FRAME_SECONDS = 0.1
FRAMES = "|/-\\"  # in every character set
CLEAR_LINE = "\r\x1b[K"


class Waiting:
    """Says what is waited for: on a line of stderr, or from `go_below` on below the answer on a screen.

    One thread watches from `begin` to `stop`; what comes meanwhile costs it nothing but a look at the clock. Leaving
    the `with` block stops it too.
    """

    def __init__(self) -> None:
        self._words = ""
        self._heard = 0.0  # when something came, on perf_counter()
        self._screen: Screen | None = None
        self._over: Event | None = None
        self._lock = Lock()
        self._is_on_line = False

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def begin(self, words: str) -> None:
        """Say from now on, or soon, that this is waited for."""
        self._words = printable(words)
        if self._over is None and sys.stderr.isatty():
            self._over = Event()
            self._heard = perf_counter()
            Thread(target=self._watch, args=(self._over,), daemon=True).start()

    def heard(self) -> None:
        """Take note that something came: another second may be quiet. The screen that shows it removes the words."""
        self._heard = perf_counter()

    def go_below(self, screen: Screen) -> None:
        """Say the words below this screen's answer from now on, if it has a place for them."""
        self.stop()
        self._screen = screen

    def stop(self) -> None:
        """Say nothing more until the next `begin`; the words on stderr are removed, those of a screen by the screen."""
        over = self._over
        if over is None:
            return
        self._over = None
        over.set()
        with self._lock:
            if self._is_on_line:
                self._is_on_line = False
                _write("\n" if is_dumb() else CLEAR_LINE)

    def _watch(self, over: Event) -> None:
        frames = cycle(FRAMES)
        pause = QUIET_SECONDS
        while not over.wait(pause):
            with self._lock:
                if over.is_set():
                    return
                pause = self._heard + QUIET_SECONDS - perf_counter()
                if pause > 0:
                    continue
                pause = FRAME_SECONDS
                with suppress(OSError):  # the reading thread meets the same error and tells it
                    self._say(next(frames))
                if is_dumb():
                    return

    def _say(self, frame: str) -> None:
        if self._screen is not None:
            self._screen.say(f"{frame} {self._words}"[: width()])
            return
        self._is_on_line = True
        _write(self._words[: width()] if is_dumb() else CLEAR_LINE + f"{frame} {self._words}"[: width()])


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
