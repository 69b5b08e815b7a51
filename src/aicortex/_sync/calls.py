"""The calls of a stream that run: a thread each, which whoever reads waits for."""

from __future__ import annotations

import sys
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import gettrace
from time import perf_counter

from aicortex._core.turns import Asked, Returned, Run
from aicortex.calling import Toolbox, Work, check_without, decision_of, in_context, tool_call_of, within


class Running:
    """A call in a thread of its own.

    It runs once, whatever interrupts fall where: a second thread that was started for it finds it claimed. No thread
    is waited for at the end of the program: a tool may hang.
    """

    __slots__ = ("_bell", "_claim", "_do", "begun", "is_started", "returned", "work")

    def __init__(self, work: Work, bell: SimpleQueue[None]) -> None:
        self.work = work
        self.begun = 0.0
        self.is_started = False
        self.returned: Returned | None = None
        self._bell = bell
        self._claim = allocate_lock()
        self._do = in_context(work.run)

    def start(self) -> None:
        """Begin, unless it has begun."""
        if not self.is_started:
            self.begun = perf_counter()
            start_new_thread(self._run, ())  # a Thread leaves weak references, whose ends swallow interrupts
            self.is_started = True

    def _run(self) -> None:
        if self._claim.acquire(False):
            if (trace := gettrace()) is not None:  # a debugger's
                sys.settrace(trace)
            self.returned = self._do()
            self._bell.put(None)


class Calls:
    """The calls of one stream, which its reader decides about, starts and waits for."""

    __slots__ = ("_bell", "_known", "_toolbox")

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._known: dict[int, Running | Returned] = {}

    def check_reader(self) -> None:
        """Raise RuntimeError when a tool, or `on_tool_call`, wants to read the stream that waits for it."""
        check_without(self)

    def wake(self) -> None:
        """Have whoever waits look whether the stream goes on; from any thread or a signal handler."""
        self._bell.put(None)

    def wait(self, run: Run, is_over: Callable[[], bool]) -> tuple[int, Returned] | None:
        """Return the number of the first call that has not returned, and what it returns once it does.

        Returns None when the stream is over before that, or its time. Raises what `on_tool_call` raises; no call of
        the turn has begun then, and those decided about are not decided about again.
        """
        for asked in run.calls:
            if is_over():
                return None
            if asked.number not in self._known:
                self._known[asked.number] = within(self, partial(self._decided, asked))
        for asked in run.calls:
            each = self._known[asked.number]
            if isinstance(each, Running) and not is_over():
                each.start()
        return self._awaited(run, is_over)

    def _decided(self, asked: Asked) -> Running | Returned:
        toolbox = self._toolbox
        said = None if toolbox.decide is None else toolbox.decide(tool_call_of(asked))
        work = toolbox.work(asked, decision_of(said))
        return work if isinstance(work, Returned) else Running(work, self._bell)

    def _awaited(self, run: Run, is_over: Callable[[], bool]) -> tuple[int, Returned] | None:
        number = run.calls[0].number
        each = self._known[number]
        while isinstance(each, Running):
            now = perf_counter()
            seconds = each.work.seconds
            due = None if seconds is None else each.begun + seconds
            if is_over() or (run.until is not None and now >= run.until):
                return None
            if each.returned is not None:
                is_late = seconds is not None and each.returned.seconds > seconds  # a call before it took longer still
                return number, each.work.late() if is_late else each.returned
            if due is not None and now >= due:
                return number, each.work.late()
            self._ring(min((time for time in (due, run.until) if time is not None), default=None), now)
        return number, each

    def _ring(self, due: float | None, now: float) -> None:
        """Wait until something has changed, or this time has come."""
        with suppress(Empty):
            self._bell.get(timeout=None if due is None else max(due - now, 0.0))
