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
    slow diverged cannot_continue                   goes to the next server
    timeout                                         ends: the caller's own deadline for the whole stream

A server that gave a part of the answer and then broke comes back later too, as a busy one does: it may be restarting.
Its tries count anew with each part worth the name.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import msgspec

BUSY_TRIES = 5  # a busy server is asked this often at most, 1 + 2 + 4 + 8 s apart unless it names a time itself
BROKEN_TRIES = 4  # one that broke in the middle: 7 s, in which a service manager has started it again
PART_CHUNKS = 16  # an attempt that gave as much as this is a success, and the tries count anew
FINAL_KINDS = frozenset({"rejected", "timeout"})
LASTING_KINDS = frozenset({"denied", "model_not_found", "diverged", "cannot_continue"})  # no better a little later


class Deadlines(msgspec.Struct, frozen=True):
    """How long to wait, in seconds: for a connection, for the first token, between chunks, for the whole stream.

    `pace` is the number of tokens per second below which a stream moves on, if it can; None for any.
    """

    connect: float = 5.0
    first_token: float = 120.0
    stall: float = 30.0
    total: float | None = None
    pace: float | None = None


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
    the characters of the whole answer delivered when the attempt ended; `seconds` is how long it took. `rung` is how it
    went on with an answer that had broken off: "raw", "prefill", "replay", "restart", or "" when nothing had. `why`
    says why the server was chosen when it was, `first_token` after how many seconds it gave the first piece,
    `retry_after` how many seconds a busy one asked for.
    """

    server: str
    kind: str
    phase: str
    message: str
    delivered: int
    will_retry: bool
    seconds: float
    status: int | None = None
    rung: str = ""
    why: str = ""
    first_token: float | None = None
    retry_after: float | None = None


class Wait(msgspec.Struct, frozen=True):
    """Every server left needs time: do nothing until then."""

    until: float


class Turn(msgspec.Struct, frozen=True):
    """A server that may be asked again, and not before `when`; `tries` counts how often it was asked."""

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
    waiting: float  # since when nothing was delivered
    turns: tuple[Turn, ...] = ()  # soonest first
    over: bool = False

    def next_step(self, now: float) -> int | Wait | None:
        """Return the server to ask when no attempt is under way, or how long to wait, or None to give up."""
        if self.over or self.is_late(now):
            return None
        if self.untried:
            return self.untried[0]
        if not self.turns or self.turns[0].when >= self.patience_ends:
            return None
        turn = self.turns[0]
        return turn.server if turn.when <= now else Wait(turn.when)

    def record(self, server: int, failure: Failure, now: float, *, gained: int = 0) -> Failover:
        """Return the state after an attempt failed; `gained` chunks were delivered by it."""
        gave = gained > 0
        tries = 1 if gained >= PART_CHUNKS else 1 + self._tries(server)
        turns = [turn for turn in self.turns if turn.server != server]
        comes_back = failure.kind == "busy" or gave or (tries > 1 and failure.kind not in LASTING_KINDS)
        if comes_back and tries < (BUSY_TRIES if failure.kind == "busy" else BROKEN_TRIES):
            pause = failure.retry_after if failure.retry_after is not None else float(2 ** (tries - 1))
            turns.append(Turn(now + pause, server, tries))
            turns.sort(key=lambda turn: turn.when)
        untried = tuple(number for number in self.untried if number != server)
        return msgspec.structs.replace(
            self,
            untried=(*untried, server) if failure.stale else untried,
            turns=tuple(turns),
            waiting=now if gave else self.waiting,
            over=self.over or failure.kind in FINAL_KINDS,
        )

    def later(self, server: int, now: float) -> Failover:
        """Return the state in which a server is asked again when no other one is left, or has been waiting longer."""
        untried = tuple(number for number in self.untried if number != server)
        turns = [turn for turn in self.turns if turn.server != server]
        turns.append(Turn(now, server, self._tries(server)))
        turns.sort(key=lambda turn: turn.when)
        return msgspec.structs.replace(self, untried=untried, turns=tuple(turns))

    def among(self, servers: Container[int]) -> Failover:
        """Return the state with these servers only."""
        untried = tuple(number for number in self.untried if number in servers)
        turns = tuple(turn for turn in self.turns if turn.server in servers)
        return msgspec.structs.replace(self, untried=untried, turns=turns)

    def preferring(self, ranks: Mapping[int, int]) -> Failover:
        """Return the state with these servers only, lowest rank first."""
        found = self.among(ranks)
        return msgspec.structs.replace(found, untried=tuple(sorted(found.untried, key=ranks.__getitem__)))

    def _tries(self, server: int) -> int:
        return sum(turn.tries for turn in self.turns if turn.server == server)

    @property
    def patience_ends(self) -> float:
        """When waiting for servers ends: the next token is due then, or the whole stream."""
        due = self.waiting + self.deadlines.first_token
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
