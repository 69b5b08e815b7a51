"""What drives the core with blocking connections: one answer under way."""

from __future__ import annotations

import os
import socket
from _thread import allocate_lock  # `threading` takes 1 ms to import and is not needed for this
from collections.abc import Callable, Sequence
from time import perf_counter, time
from typing import TYPE_CHECKING

from aicortex._core.answer import Answer
from aicortex._core.failover import AttemptFailed, Deadlines, Failure, Wait
from aicortex._core.hedging import Budget
from aicortex._core.http import Response
from aicortex._core.ladder import Memory
from aicortex._core.question import Question
from aicortex._core.result import Result
from aicortex._core.server import EMBEDDED, Server
from aicortex._core.state import Connect, Read
from aicortex._core.waiting import GLANCE_SECONDS, Hedge
from aicortex._sync.connection import Connection, end_waits, wait_for_any
from aicortex._sync.pool import POOL, reach
from aicortex.in_flight import Claim, count

if TYPE_CHECKING:
    from aicortex.watch import Watch

BUDGET = Budget()  # of this process, for asking a second server
MEMORY: Memory = {}  # what this process has learned about kinds of servers
AT_ONCE = 0.001  # seconds to read what is there
BESIDE_SECONDS = 0.25  # to connect beside an attempt: nobody reads meanwhile


class Link:
    """A connection with the request that is under way on it."""

    __slots__ = ("claim", "connection", "number", "place")

    def __init__(self, number: int, server: Server, place: Server, connection: Connection) -> None:
        self.number = number
        self.place = place  # where the connection leads to
        self.connection = connection
        self.claim = Claim(server.label)


def is_idle(server: Server) -> bool:
    """Whether this process asks nothing of a server; the embedded engine would first have to be started."""
    return server.scheme != EMBEDDED and count(server.label) == 0


class Exchange:
    """One answer under way: the core's decisions, carried out by whichever thread reads.

    Nothing runs in the background. A reader that wants more than the log holds takes the lock and moves the answer
    on by at least one event; others wait for it.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        question: Question,
        *,
        deadlines: Deadlines,
        digests: Sequence[str] = (),
        names: Sequence[str] = (),
        reasons: Sequence[str] = (),
        resume: bool = True,
        hedge_after: float | None = None,
        watch: Watch | None = None,
    ) -> None:
        BUDGET.earn()
        resting = watch.resting if watch is not None else frozenset()
        self.answer = Answer(
            servers,
            question,
            deadlines=deadlines,
            now=perf_counter(),
            wall=time(),
            digests=digests,
            names=names,
            reasons=reasons,
            memory=MEMORY,
            resume=resume,
            hedge=Hedge(
                BUDGET, hedge_after, lambda number: is_idle(servers[number]) and servers[number].label not in resting
            ),
        )
        self._servers = servers
        self._question = question
        self._watch = watch
        self._stall = deadlines.stall
        self._lock = allocate_lock()
        self._pid = os.getpid()
        self._opening: list[socket.socket] = []  # what a connection in the making waits for
        self._links: list[Link] = []  # the one that leads to the answer first
        self._stale: set[int] = set()  # servers whose kept connection broke: the next one is new
        self._fed: Link | None = None  # whose response may hold what the answer was not yet told
        self._is_cancelled = False
        self._is_moving = False
        self._is_woken = False  # whether what was read may be the doing of cancel() or move()
        self._pause = allocate_lock()  # held while waiting for a busy server; cancel() lets it go
        self._pause.acquire()

    def start(self) -> None:
        """Send the request to the first server that takes it."""
        with self._lock:
            self._advance(reading=False)

    def refuse(self, failures: Sequence[Failure]) -> None:
        """Record why none of the servers could be asked: one failure each, in their order."""
        with self._lock:
            for number, failure in enumerate(failures):
                self.answer.failed(Connect(number, self._question.chat()), failure, perf_counter())

    def pump(self, position: int) -> bool:
        """Block until the log is longer than `position`; returns False when the answer is over before that."""
        answer = self.answer
        log = answer.log
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
        opening = self._opening.copy()
        self._opening.clear()  # tells the connection in the making to try no further address
        end_waits(opening)
        self._with_lock(lambda: self._advance(reading=False), None)

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
            elif isinstance(step, Wait) and reading:
                self._pause.acquire(timeout=max(step.until - now, 0.0))
            else:
                break
            now = perf_counter()
        self._settle()

    def _settle(self) -> None:
        """Let go of the connections that are not wanted any more."""
        if self._is_cancelled:
            self.answer.cancel()
        if self._watch is not None:
            outcome = self.answer.outcome
            self._watch.tell(self.answer.attempts, outcome if isinstance(outcome, Result) else None)
            if outcome is not None:
                self._watch.leave()
        reading = self.answer.reading
        for link in self._links.copy():
            if not any(link.connection.response is wanted for wanted in reading):
                self._let_go(link)
        if self._watch is not None and self._watch.look and self.answer.steady and len(self._links) == 1:
            label = self._servers[self._links[0].number].label
            if label == self._watch.look:
                self._watch.answering(label)
        if len(self._links) > 1:
            self._links.sort(key=lambda link: [link.connection.response is wanted for wanted in reading].index(True))

    def _connect(self, step: Connect) -> None:
        """Open a connection and send the request."""
        if not step.beside:
            self._fed = None
        failover, server = self.answer.failover, self._servers[step.server]
        link = None
        try:
            place, connection = reach(
                server,
                lambda: (
                    min(failover.connect_due(now := perf_counter()), now + BESIDE_SECONDS)
                    if step.beside
                    else failover.connect_due(perf_counter())
                ),
                opening=self._opening,
                fresh=step.beside or step.server in self._stale,
            )
            link = Link(step.server, server, place, connection)
            self._links.append(link)
            if self._watch is not None:
                self._watch.claim = None  # the link has its own
            self._opening.clear()
            if self._is_cancelled:
                return
            request, due = step.request, failover.first_token_due(perf_counter())
            response = connection.send(request.method, request.path, place, request.body, due=due)
        except AttemptFailed as error:
            if self._watch is not None:
                self._watch.claim = None
            self._failed(step, link, error.failure)
        else:
            self.answer.connected(step, response, perf_counter())

    def _read(self, seconds: float) -> None:
        """Read once and tell the answer."""
        links = self._links
        is_alone = len(links) == 1
        link: Link | None = links[0]
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
            if response.eof and self._is_stale(link):
                self._failed(response, link, Failure("closed", "", "closed the connection without a reply"))
            else:
                self.answer.received(perf_counter(), response)
        except TimeoutError:
            if is_alone:  # else it was TLS's own business that made it ready, and the others may have more to say
                self.answer.timed_out(perf_counter())
        except AttemptFailed as error:
            if self._is_woken:
                return
            self._failed(response, link, error.failure)
        self._fed = None

    def _ready(self, seconds: float) -> Link | None:
        """Wait for one of several connections to have something to read."""
        number = wait_for_any([link.connection for link in self._links], seconds)
        return None if number is None else self._links[number]

    def _failed(self, what: Connect | Response, link: Link | None, failure: Failure) -> None:
        if self._is_cancelled:
            return
        if link is not None and self._is_stale(link):
            self._stale.add(link.number)
            failure = Failure(failure.kind, failure.phase, failure.message, stale=True)
        self.answer.failed(what, failure, perf_counter())
        if failure.stale and self._watch is not None:
            self._watch.pardon(self.answer.attempts)

    def _is_stale(self, link: Link) -> bool:
        """Whether a connection that broke without a reply says little about the server, which is then asked once more.

        A server may have closed a kept connection before it saw the request, and an embedded engine that was killed is
        started again.
        """
        response = link.connection.response
        if response.heads or response.head_bytes or link.number in self._stale:
            return False
        return link.connection.reused or self._servers[link.number].scheme == EMBEDDED

    def _let_go(self, link: Link) -> None:
        """Give a finished connection back, or close an unfinished one, which makes the server stop generating."""
        self._links.remove(link)
        if self._fed is link:
            self._fed = None
        connection = link.connection
        response = connection.response
        is_done = response is self.answer.spare or response.reusable
        if is_done and not self._is_woken:  # cancel() or move() may be about to shut it down
            response.body.clear()
            POOL.release(link.place, connection)
        else:
            connection.close()
