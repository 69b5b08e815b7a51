"""The requests of one answer that are under way, and what both front ends do when the answer has moved on.

A front end opens connections, sends, reads and waits in its own way; here is what it does around that: whose failure it
was, which connections are kept for the next request, what the board is told.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from time import perf_counter, time
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from msgspec.structs import replace

from aicortex._core.answer import Answer
from aicortex._core.failover import Failure
from aicortex._core.hedging import Budget
from aicortex._core.http import Response
from aicortex._core.ladder import Memory
from aicortex._core.result import Result
from aicortex._core.server import EMBEDDED, Server
from aicortex._core.state import Connect
from aicortex._core.waiting import Hedge
from aicortex.in_flight import Claim, count

if TYPE_CHECKING:
    from aicortex.planning import Plan
    from aicortex.request import Call

BUDGET = Budget()  # of this process, for asking a second server
MEMORY: Memory = {}  # what this process has learned about kinds of servers
NEVER_HEDGE = Hedge(BUDGET)
BESIDE_SECONDS = 0.25  # to connect beside an attempt: nobody reads meanwhile


class Wire(Protocol):
    """A connection, as far as it matters here."""

    response: Response
    reused: bool

    def close(self) -> None:
        """Close the connection; a server that was generating stops."""


W = TypeVar("W", bound=Wire)
W_contra = TypeVar("W_contra", bound=Wire, contravariant=True)


class Keeper(Protocol[W_contra]):
    """A pool of connections, as far as it matters here."""

    def release(self, server: Server, connection: W_contra) -> None:
        """Keep a connection whose response is over, or close it."""


class Link(Generic[W]):
    """A connection with the request that is under way on it."""

    __slots__ = ("claim", "connection", "number", "place")

    def __init__(self, number: int, server: Server, place: Server, connection: W) -> None:
        self.number = number
        self.place = place  # where the connection leads to
        self.connection = connection
        self.claim = Claim(server.label)


def is_idle(server: Server) -> bool:
    """Whether this process asks nothing of a server; the embedded engine would first have to be started."""
    return server.scheme != EMBEDDED and count(server.label) == 0


class Links(Generic[W]):
    """An answer and the requests under way for it."""

    __slots__ = (
        "_fed",
        "_is_cancelled",
        "_is_moving",
        "_is_woken",
        "_links",
        "_over",
        "_pid",
        "_pool",
        "_servers",
        "_stale",
        "_stall",
        "_telling",
        "_toolbox",
        "_watch",
        "answer",
        "shape",
    )

    def __init__(self, call: Call, route: Plan, pool: Keeper[W]) -> None:
        BUDGET.earn()
        self._servers = servers = route.servers
        self._watch = watch = route.watch
        resting = watch.resting if watch is not None else frozenset()

        def may_be_asked(number: int) -> bool:
            return is_idle(servers[number]) and servers[number].label not in resting

        self.answer = Answer(
            servers,
            replace(call.question, model=route.model),
            deadlines=call.deadlines,
            now=perf_counter(),
            wall=time(),
            digests=route.digests,
            names=route.names,
            reasons=route.reasons,
            memory=MEMORY,
            resume=call.resume is not False,
            steps=call.max_steps if call.toolbox is not None else 0,
            note=call.note,
            hedge=NEVER_HEDGE if call.hedge_after is None else Hedge(BUDGET, call.hedge_after, may_be_asked),
        )
        self._pool = pool
        self._stall = call.deadlines.stall
        self._pid = os.getpid()
        self._links: list[Link[W]] = []  # the one that leads to the answer first
        self._stale: frozenset[int] = frozenset()  # servers whose kept connection broke: the next one is new
        self._toolbox = call.toolbox
        self._over = call.over
        self._telling = None if call.over is None else allocate_lock()
        self.shape = call.shape
        self._fed: Link[W] | None = None  # whose response may hold what the answer was not yet told
        self._is_cancelled = False
        self._is_moving = False
        self._is_woken = False  # whether what was read may be the doing of cancel() or move()
        for number, failure in enumerate(route.failures):  # none of them could even be asked
            self.answer.failed(Connect(number, call.question.chat()), failure, perf_counter())

    def _connect_due(self, step: Connect) -> float:
        """When a connection must be open that is begun now."""
        now = perf_counter()
        due = self.answer.failover.connect_due(now)
        return min(due, now + BESIDE_SECONDS) if step.beside else due

    def _send_due(self, step: Connect) -> float:
        """When a request must have been taken that is sent now."""
        return self._connect_due(step) if step.beside else self.answer.failover.first_token_due(perf_counter())

    def _linked(self, step: Connect, place: Server, connection: W) -> Link[W]:
        """Take note of an open connection; it counts as a request of its own from now on."""
        link = Link(step.server, self._servers[step.server], place, connection)
        self._links.append(link)
        self._drop_claim()
        return link

    @property
    def owes(self) -> bool:
        """Whether the answer has ended, and whoever keeps the conversation does not know of it yet."""
        return self._over is not None and self.answer.outcome is not None

    def _tell_over(self) -> None:
        """Tell whoever keeps the conversation how the answer ended; again if an interrupt came before it was done."""
        if self._telling is None:
            return
        with self._telling:
            over, outcome = self._over, self.answer.outcome
            if over is not None and outcome is not None:
                over(outcome, self.answer.messages)
                self._over = None

    def _drop_claim(self) -> None:
        if self._watch is not None:
            self._watch.claim = None  # of whoever chose the server: a link has its own

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

    def _taken(self, link: Link[W]) -> None:
        """Tell the answer what its connection was fed."""
        response = link.connection.response
        if response.eof and self._is_stale(link):
            self._failed(response, link, Failure("closed", "", "closed the connection without a reply"))
        else:
            self.answer.received(perf_counter(), response)

    def _failed(self, what: Connect | Response, link: Link[W] | None, failure: Failure) -> None:
        if self._is_cancelled:
            return
        if link is not None and self._is_stale(link):
            self._stale |= {link.number}
            failure = Failure(failure.kind, failure.phase, failure.message, stale=True)
        self.answer.failed(what, failure, perf_counter())
        if failure.stale and self._watch is not None:
            self._watch.pardon(self.answer.attempts)

    def _is_stale(self, link: Link[W]) -> bool:
        """Whether a connection that broke without a reply says little about the server, which is then asked once more.

        A server may have closed a kept connection before it saw the request, and an embedded engine that was killed is
        started again.
        """
        response = link.connection.response
        if response.heads or response.head_bytes or link.number in self._stale:
            return False
        return link.connection.reused or self._servers[link.number].scheme == EMBEDDED

    def _let_go(self, link: Link[W]) -> None:
        """Give a finished connection back, or close an unfinished one, which makes the server stop generating."""
        self._links.remove(link)
        if self._fed is link:
            self._fed = None
        connection = link.connection
        response = connection.response
        is_done = response is self.answer.spare or response.reusable
        if is_done and not self._is_woken:  # cancel() or move() may be about to shut it down
            response.body.clear()
            self._pool.release(link.place, connection)
        else:
            connection.close()
