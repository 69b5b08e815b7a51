"""Which server next, and when to give up: data and decisions, no I/O.

A request walks over its servers. Each failure has a kind, and the kind decides (protocol: "Errors before the stream"):

    kind                                            the request …
    refused unreachable connect_timeout tls proxy   goes to the next server
    reset closed bad_response engine                goes to the next server
    denied model_not_found server_error error       goes to the next server
    first_token_timeout stalled truncated           goes to the next server
    busy                                            goes to the next server and comes back later
    reset closed, on a kept connection              goes to the next server and comes back once
    rejected                                        ends: every server would refuse it
    timeout                                         ends: the caller's own deadline for the whole stream

Once something was delivered, going to another server would need a continuation; without one the stream ends.
"""

from __future__ import annotations

import msgspec

BUSY_TRIES = 5  # a busy server is asked this often at most, 1 + 2 + 4 + 8 s apart unless it names a time itself
FINAL_KINDS = frozenset({"rejected", "timeout"})


class Deadlines(msgspec.Struct, frozen=True):
    """How long to wait, in seconds: for a connection, for the first token, between chunks, for the whole stream."""

    connect: float = 5.0
    first_token: float = 120.0
    stall: float = 30.0
    total: float | None = None


class Failure(msgspec.Struct, frozen=True):
    """What went wrong in one attempt, before anybody decides what follows from it.

    `kind` is a row of the table above, `phase` is "connect", "send", "first token" or "stream" ("" stands for whichever
    of the last two the answer is in), `retry_after` the seconds a busy server asked for. `stale` says that a kept
    connection broke without a reply: perhaps the server closed it before it saw the request.
    """

    kind: str
    phase: str
    message: str
    status: int | None = None
    retry_after: float | None = None
    stale: bool = False


class AttemptFailed(Exception):
    """How a front end reports a failure to whoever drives it; users never see it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Attempt(msgspec.Struct, frozen=True):
    """One try at one server, as users see it in `.attempts`.

    `server` is the URL without secrets; `kind` is "ok" for the attempt that finished the answer; `delivered` counts
    the characters of the whole answer delivered when the attempt ended; `seconds` is how long it took.
    """

    server: str
    kind: str
    phase: str
    message: str
    delivered: int
    will_retry: bool
    seconds: float
    status: int | None = None


class Connect(msgspec.Struct, frozen=True):
    """Open a connection to the server with this number and send the request."""

    server: int


class Wait(msgspec.Struct, frozen=True):
    """Every server left is busy: do nothing until this time."""

    until: float


class GiveUp(msgspec.Struct, frozen=True):
    """No server is left to try, or none would help."""


class Turn(msgspec.Struct, frozen=True):
    """A busy server that may be asked again, and not before `when`; `tries` counts how often it was asked."""

    when: float
    server: int
    tries: int


class Failover(msgspec.Struct, frozen=True):
    """Where a request stands in its walk over numbered servers.

    A value: `record` returns the next one. Times are seconds of any one monotonic clock.
    """

    untried: tuple[int, ...]  # in order of preference
    deadlines: Deadlines
    started: float
    busy: tuple[Turn, ...] = ()  # soonest first
    over: bool = False

    def next_step(self, now: float, *, delivered: bool) -> Connect | Wait | GiveUp:
        """Decide what to do when no attempt is under way."""
        if self.over or delivered or self.is_late(now):
            return GiveUp()
        if self.untried:
            return Connect(self.untried[0])
        if not self.busy or self.busy[0].when >= self.patience_ends:
            return GiveUp()
        turn = self.busy[0]
        return Connect(turn.server) if turn.when <= now else Wait(turn.when)

    def record(self, server: int, failure: Failure, now: float) -> Failover:
        """Return the state after an attempt failed."""
        tries = 1 + sum(turn.tries for turn in self.busy if turn.server == server)
        busy = [turn for turn in self.busy if turn.server != server]
        if failure.kind == "busy" and tries < BUSY_TRIES:
            pause = failure.retry_after if failure.retry_after is not None else float(2 ** (tries - 1))
            busy.append(Turn(now + pause, server, tries))
            busy.sort(key=lambda turn: turn.when)
        untried = tuple(number for number in self.untried if number != server)
        return msgspec.structs.replace(
            self,
            untried=(*untried, server) if failure.stale else untried,
            busy=tuple(busy),
            over=self.over or failure.kind in FINAL_KINDS,
        )

    @property
    def patience_ends(self) -> float:
        """When waiting for busy servers ends: the first token is due then, or the whole stream."""
        due = self.started + self.deadlines.first_token
        return due if self.ends is None else min(due, self.ends)

    @property
    def ends(self) -> float | None:
        """When the whole stream must be over."""
        return None if self.deadlines.total is None else self.started + self.deadlines.total

    def is_late(self, now: float) -> bool:
        """Whether the time for the whole stream is up."""
        return self.ends is not None and now >= self.ends

    def first_token_due(self, sent: float) -> float:
        """When the first chunk of an attempt is due whose request was sent at this time."""
        return self._clip(sent + self.deadlines.first_token)

    def chunk_due(self, since: float) -> float:
        """When the next chunk is due after the reader began to wait for it."""
        deadlines = self.deadlines
        return since + deadlines.stall if deadlines.total is None else self._clip(since + deadlines.stall)

    def connect_due(self, now: float) -> float:
        """When a connection begun now must be open."""
        return self._clip(now + self.deadlines.connect)

    def _clip(self, due: float) -> float:
        total = self.deadlines.total
        return due if total is None else min(due, self.started + total)
