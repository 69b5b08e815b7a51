"""What drives the core with blocking connections: one answer under way."""

from __future__ import annotations

import os
import socket
from _thread import allocate_lock  # `threading` takes 1 ms to import and is not needed for this
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from aicortex._core.failover import AttemptFailed, Wait
from aicortex._core.http import Response
from aicortex._core.state import Connect, Read
from aicortex._core.turns import Run
from aicortex._core.waiting import GLANCE_SECONDS
from aicortex._sync.connection import Connection, end_waits, wait_for_any
from aicortex._sync.pool import POOL, Pool, reach
from aicortex.links import Link, Links

if TYPE_CHECKING:
    from aicortex._sync.calls import Calls
    from aicortex.planning import Plan
    from aicortex.request import Call

AT_ONCE = 0.001  # seconds to read what is there


class Exchange(Links[Connection]):
    """One answer under way: the core's decisions, carried out by whichever thread reads.

    Nothing runs in the background. A reader that wants more than the log holds takes the lock and moves the answer
    on by at least one event; others wait for it.
    """

    __slots__ = ("_calls", "_lock", "_opening", "_pause")
    _pool: Pool

    def __init__(self, call: Call, route: Plan, pool: Pool = POOL) -> None:
        super().__init__(call, route, pool)
        self._lock = allocate_lock()
        self._opening: list[socket.socket] = []  # what a connection in the making waits for
        self._pause = allocate_lock()  # held while waiting for a busy server; cancel() lets it go
        self._pause.acquire()
        self._calls: Calls | None = None

    def start(self) -> None:
        """Send the request to the first server that takes it."""
        with self._lock:
            self._advance(reading=False)

    def pump(self, position: int) -> bool:
        """Block until the log is longer than `position`; returns False when the answer is over before that."""
        answer = self.answer
        log = answer.log
        if self._calls is not None:
            self._calls.check_reader()
        with self._lock:
            if answer.steady and len(log) <= position and not self._is_woken:
                self._read(self._stall)
            if len(log) <= position:
                self._advance(reading=True)
            elif not answer.steady:
                self._settle()
            if answer.outcome is not None and self._watch is not None:
                self._watch.over(answer.attempts)
                self._watch = None
            if self.owes:
                self._tell_over()
            return len(log) > position

    def move(self) -> bool:
        """Go on at another server, from any thread or a signal handler; returns False when no other one can."""
        left = self.answer.reading  # the reader may have gone on to the next server before it is woken
        if self._is_cancelled or not self.answer.may_move(perf_counter()):
            return False
        self._is_woken = True
        self._is_moving = True
        self._with_lock(self._leave, left)
        return True

    def _leave(self) -> None:
        """Leave the server as `move` wants it, once; whoever holds the lock does that."""
        if not self._is_moving:
            return
        self._is_moving = False
        self.answer.move(perf_counter())
        self._settle()
        self._is_woken = self._is_cancelled

    def cancel(self) -> None:
        """End the answer from any thread, or from a signal handler; wakes whoever reads."""
        if self._pid != os.getpid():  # a forked child's copy: the answer is the parent's
            for link in self._links:
                link.connection.close()
            return
        self._is_woken = True
        if not self._is_cancelled:
            self._is_cancelled = True
            self._pause.release()
        if self._calls is not None:
            self._calls.wake()
        opening = self._opening.copy()
        self._opening.clear()  # tells the connection in the making to try no further address
        end_waits(opening)
        self._with_lock(self._end, None)

    def _end(self) -> None:
        is_ended_here = self.answer.outcome is None
        self._advance(reading=False)
        if is_ended_here and self.owes:
            self._tell_over()

    def _with_lock(self, work: Callable[[], None], responses: Sequence[Response] | None) -> None:
        """Wake whoever reads these responses, or any, who then looks what is wanted; do it here if nobody does."""
        for link in self._links.copy():
            if responses is None or any(link.connection.response is each for each in responses):
                link.connection.wake()
        held: list[bool] = []
        try:
            held.extend(map(self._lock.acquire, (False,)))  # no interrupt falls between taking it and knowing it
            if held[0]:
                work()
        finally:
            if held and held[0]:
                self._lock.release()

    def _advance(self, *, reading: bool) -> None:
        """Do what the core says until there is an event to read, or without `reading` until a request is sent."""
        answer = self.answer
        log = answer.log
        known = len(log)
        since = now = perf_counter()
        while not (reading and len(log) > known):
            if self._is_cancelled:
                answer.cancel()
            elif self._is_moving:
                self._leave()
            step = answer.next_step(now, since=since)
            self._settle()
            if isinstance(step, Read) and reading:
                until = max(step.until, since + GLANCE_SECONDS)
                if answer.failover.is_late(now) or until <= now:
                    answer.timed_out(now)
                else:
                    self._read(until - now)
            elif isinstance(step, Connect):
                self._connect(step)
            elif isinstance(step, Run) and reading:
                self._call(step)
            elif isinstance(step, Wait) and reading:
                self._pause.acquire(timeout=max(step.until - now, 0.0))
            else:
                break
            now = perf_counter()
        self._settle()

    def _connect(self, step: Connect) -> None:
        """Open a connection and send the request."""
        if not step.beside:
            self._fed = None
        link = None
        try:
            place, connection = reach(
                self._servers[step.server],
                lambda: self._connect_due(step),
                opening=self._opening,
                fresh=step.beside or step.server in self._stale,
                pool=self._pool,
            )
            link = self._linked(step, place, connection)
            self._opening.clear()
            if self._is_cancelled:
                return
            request = step.request
            response = connection.send(request.method, request.path, place, request.body, due=self._send_due(step))
        except AttemptFailed as error:
            self._drop_claim()
            self._failed(step, link, error.failure)
        else:
            self.answer.connected(step, response, perf_counter())

    def _call(self, run: Run) -> None:
        """Run what the model called, and tell the answer what the first of it returns."""
        if self._calls is None:
            from aicortex._sync.calls import Calls

            assert self._toolbox is not None  # else nothing is to be run
            self._calls = Calls(self._toolbox)
        found = self._calls.wait(run, lambda: self._is_cancelled)
        if found is not None:
            self.answer.returned(*found, perf_counter())

    def _read(self, seconds: float) -> None:
        """Read once and tell the answer."""
        links = self._links
        is_alone = len(links) == 1
        link: Link[Connection] | None = links[0]
        if self._fed is not None:  # an interrupt came before the answer was told
            link = self._fed
        elif not is_alone:
            link, seconds = self._ready(seconds), AT_ONCE
        if link is None:
            self.answer.timed_out(perf_counter())
            return
        response = link.connection.response
        try:
            if self._fed is None:
                self._fed = link
                link.connection.receive(seconds)
            if self._is_woken:
                return  # the end that was read may be cancel()'s or move()'s own doing
            self._taken(link)
        except TimeoutError:
            if is_alone:  # else it was TLS's own business that made it ready, and the others may have more to say
                self.answer.timed_out(perf_counter())
        except AttemptFailed as error:
            if self._is_woken:
                return
            self._failed(response, link, error.failure)
        self._fed = None

    def _ready(self, seconds: float) -> Link[Connection] | None:
        """Wait for one of several connections to have something to read."""
        number = wait_for_any([link.connection for link in self._links], seconds)
        return None if number is None else self._links[number]
