"""What this process knows of how its servers do, shared with others through the registry once there is one.

Streams put what became of their attempts on the board, from any thread, even from a finaliser; whoever chooses a server
next reads it. The registry's file is looked at before each choice and written to at most once a second, or at once
when a server has failed or is well again; where there is no such file, none is made.
"""

from __future__ import annotations

import atexit
import os
from _thread import allocate_lock
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter, time
from typing import TYPE_CHECKING

import msgspec

from aicortex._core.health import UNREACHABLE_KINDS, Health
from aicortex._core.ollama import full_name
from aicortex._core.routing import LOADED_SECONDS, Candidate, Choice, route
from aicortex.errors import RegistryError
from aicortex.in_flight import Claim, count
from aicortex.registry.entries import ModelEntry, ServerEntry, Snapshot
from aicortex.registry.paths import data_path
from aicortex.warn import warn

if TYPE_CHECKING:
    from aicortex.registry.store import Registry

WRITE_SECONDS = 1.0  # at most so often, for what can wait
PATIENCE_SECONDS = 0.1  # how long a stream waits at its end for another process to finish writing
LOCK_SECONDS = 0.25  # how long a choice waits for another thread's
REST_SECONDS = 1.0  # a registry that cannot be used is left alone for so long
CHANCE_BYTES = 7  # as many as a float has room for
FAMILIAR = 4096  # conversations whose server is remembered
EVERYTHING_WELL = Health()
LEFT = "left"  # the request that looked how a server is has ended without finding out


class News(msgspec.Struct, frozen=True):
    """What became of one attempt; seconds, and `at` is Unix time."""

    label: str
    model: str
    kind: str
    at: float
    seconds: float = 0.0
    first_token: float = 0.0
    gap: float = 0.0
    pace: float = 0.0
    retry_after: float | None = None


def draw() -> float:
    """Draw a number from 0 to 1: `random` takes 4 ms to import, and forked processes would draw the same."""
    return int.from_bytes(os.urandom(CHANCE_BYTES), "big") / float(256**CHANCE_BYTES)


class Seat(msgspec.Struct, frozen=True):
    """One server that may be chosen: its label, the model's name there, and what its user said of it."""

    label: str
    model: str
    entry: ServerEntry | None = None
    nearness: int = 0


class Board:
    """The healths of servers, by label and model ("" for the server itself), and who knows which conversation."""

    def __init__(self) -> None:
        self._lock = allocate_lock()  # never taken by what a finaliser may call: `post` and `meet`
        self._news: deque[News] = deque()
        self._healths: dict[tuple[str, str], Health] = {}
        self._unwritten: dict[tuple[str, str], Health] = {}
        self._familiar: dict[int, tuple[str, float]] = {}
        self._turns: dict[str, int] = {}  # by model
        self._registry: Registry | None = None
        self._version = -1
        self._written = -WRITE_SECONDS
        self._rests_until = 0.0
        self._is_urgent = False
        self._is_warned = False
        self._snapshot = Snapshot()
        self._entries: dict[tuple[str, str], ModelEntry] = {}  # models of the snapshot, by server and name

    @contextmanager
    def _entered(self) -> Iterator[bool]:
        """Hold the lock, and yield whether that was possible.

        A signal handler that asks a model may have interrupted the thread that holds it; what it does then has to do
        with what is known.
        """
        is_held = self._lock.acquire(timeout=LOCK_SECONDS)
        try:
            yield is_held
        finally:
            if is_held:
                self._lock.release()

    def knowledge(self, *, is_needed: bool = True) -> Snapshot:
        """Return what the registry knows now, nothing where there is none.

        Raises RegistryError when it cannot be read, or warns if it is not needed.
        """
        with self._entered() as is_held:
            if is_held and is_needed:
                self._look()
            elif is_held:
                self._look_or_warn()
            return self._snapshot

    def healths(self) -> dict[tuple[str, str], Health]:
        """Return the healths that are known, by label and model."""
        with self._entered() as is_held:
            if is_held:
                self._look_or_warn()
                self._absorb()
            return dict(self._healths)

    def post(self, news: News) -> None:
        """Take note of an attempt; never blocks, from any thread and from finalisers."""
        self._news.append(news)

    def meet(self, conversation: int, label: str) -> None:
        """Take note that a server has a conversation in its cache; never blocks."""
        if len(self._familiar) >= FAMILIAR:
            self._familiar.clear()
        self._familiar[conversation] = (label, time())

    def choose(
        self, seats: Sequence[Seat], strategy: str, *, conversation: int | None = None
    ) -> tuple[list[Choice], Claim]:
        """Return the order in which to ask, and a claim on the first: it counts as busy from now on."""
        with self._entered() as is_held:
            if is_held:
                self._look_or_warn()
                self._absorb()
            choices = self._ranked(seats, strategy, conversation)
            self._turns[seats[0].model] = self._turn(seats) + 1
            first = seats[choices[0].server]
            if is_held and choices[0].is_look:
                self._mark_looked(first, time())
            return choices, Claim(first.label)

    def rank(self, seats: Sequence[Seat], strategy: str) -> list[Choice]:
        """Return the order in which a request would ask, and change nothing."""
        with self._entered() as is_held:
            if is_held:
                self._look_or_warn()
                self._absorb()
            return self._ranked(seats, strategy, None)

    def _turn(self, seats: Sequence[Seat]) -> int:
        """Return how many requests for this model there were, beginning anywhere."""
        return self._turns.setdefault(seats[0].model, int(draw() * 1000))

    def _ranked(self, seats: Sequence[Seat], strategy: str, conversation: int | None) -> list[Choice]:
        now = time()
        label, met = ("", 0.0) if conversation is None else self._familiar.get(conversation, ("", 0.0))
        familiar = next((number for number, seat in enumerate(seats) if seat.label == label), None)
        return route(
            [self._candidate(seat) for seat in seats],
            strategy,
            now=now,
            chance=draw,
            turn=self._turn(seats),
            familiar=familiar if now - met < LOADED_SECONDS else None,
        )

    def may_wait(self, *, has_failed: bool) -> bool:
        """Whether `share` may have to wait for another process that writes to the registry."""
        if self._registry is None:
            return False
        return has_failed or self._is_urgent or perf_counter() - self._written >= WRITE_SECONDS

    def share(self) -> None:
        """Write what is new to the registry, if there is one and it is time; called at the end of a stream."""
        if not self._lock.acquire(blocking=False):
            return  # whoever holds it, or the next one, writes
        try:
            self._absorb()
            is_time = perf_counter() - self._written >= WRITE_SECONDS
            if self._unwritten and (is_time or self._is_urgent):
                self._write()
        finally:
            self._lock.release()

    def forget(self, label: str, model: str) -> None:
        """Take a model off a server's list in the registry: the server says that it does not have it."""
        name = full_name(model)
        with self._entered() as is_held:
            if not is_held:
                return
            self._look_or_warn()
            models = self._snapshot.models
            if label in models:
                left = tuple(entry for entry in models[label] if entry.name != name)
                self._snapshot = msgspec.structs.replace(self._snapshot, models={**models, label: left})
            self._entries.pop((label, name), None)
            try:
                if self._registry is not None:
                    self._registry.forget(label, name)
            except RegistryError as error:
                self._warn(error)

    def close(self) -> None:
        """Write what is still to be written and let go of the registry's file."""
        with self._entered() as is_held:
            if not is_held:
                return
            self._absorb()
            if self._unwritten:
                self._write()
            if self._registry is not None:
                self._registry.close()
                self._registry = None

    def forked(self) -> None:
        """Begin anew in a child process: another thread of the parent may have held the lock."""
        self._lock = allocate_lock()
        self._news.clear()  # these are the parent's to tell
        self._unwritten.clear()

    def _look(self) -> None:
        """See what other processes have written since the last time."""
        path = data_path()
        if self._registry is not None and self._registry.path != path:
            self._registry.close()
            self._registry, self._snapshot, self._entries = None, Snapshot(), {}
        if self._registry is None:
            if not os.path.exists(path):
                return
            from aicortex.registry.store import Registry

            self._registry, self._version = Registry(path, patience=PATIENCE_SECONDS), -1
        version = self._registry.version()
        if version != self._version:
            self._snapshot = self._registry.snapshot()
            models = self._snapshot.models.items()
            self._entries = {(url, entry.name): entry for url, entries in models for entry in entries}
            for key, health in self._registry.read_health().items():
                ours = self._unwritten.get(key)
                if ours is None or ours.changed < health.changed:
                    self._healths[key] = health
                    self._unwritten.pop(key, None)
            self._version = version

    def _look_or_warn(self) -> None:
        if perf_counter() < self._rests_until:
            return
        try:
            self._look()
        except RegistryError as error:  # the servers are named elsewhere: a stream does not need the file
            self._warn(error)

    def _write(self) -> None:
        try:
            self._look()
            if self._registry is not None:
                self._registry.write_health(self._unwritten)
            self._unwritten = {}
        except RegistryError as error:
            self._warn(error)
        self._written = perf_counter()
        self._is_urgent = False

    def _warn(self, error: RegistryError) -> None:
        self._rests_until = perf_counter() + REST_SECONDS
        if self._is_warned:
            return
        self._is_warned = True
        warn(f"the registry is not used: {error}")

    def _absorb(self) -> None:
        """Turn news into healths."""
        while self._news:
            news = self._news.popleft()
            of_server, of_model = (news.label, ""), (news.label, full_name(news.model))
            if news.kind in ("ok", "answering"):
                for key in (of_server, of_model):
                    self._put(key, self._well(key, news))
            elif news.kind == LEFT:
                for key in (of_server, of_model):
                    if self._healths.get(key, EVERYTHING_WELL).looked:
                        self._put(key, self._healths[key].left_alone(news.at))
            else:
                key = of_server if news.kind in UNREACHABLE_KINDS else of_model
                reached = self._healths.get(of_server, EVERYTHING_WELL)
                if key == of_model and (reached.failures or reached.looked):  # whatever it said, it is there
                    self._put(of_server, reached.answering(news.at))
                health = self._healths.get(key, EVERYTHING_WELL)
                after = health.failed_with(
                    news.kind, news.at, seconds=news.seconds, chance=draw(), retry_after=news.retry_after
                )
                self._put(key, after)

    def _well(self, key: tuple[str, str], news: News) -> Health:
        health = self._healths.get(key, EVERYTHING_WELL)
        if news.kind == "answering":
            return health.answering(news.at)
        if key[1]:
            return health.succeeded(news.at, first_token=news.first_token, gap=news.gap, pace=news.pace)
        return health.succeeded(news.at)

    def _put(self, key: tuple[str, str], health: Health) -> None:
        before = self._healths.get(key, EVERYTHING_WELL)
        self._is_urgent = self._is_urgent or before.failures != health.failures
        self._healths[key] = self._unwritten[key] = health

    def _mark_looked(self, seat: Seat, now: float) -> None:
        for key in ((seat.label, ""), (seat.label, full_name(seat.model))):
            health = self._healths.get(key)
            if health is not None and health.failures:
                self._put(key, health.looked_at(now))
        self._write()  # at once: no other process is to look as well

    def _candidate(self, seat: Seat) -> Candidate:
        snapshot, name = self._snapshot, full_name(seat.model)
        condition = snapshot.conditions.get(seat.label)
        known = self._entries.get((seat.label, name))
        entry = seat.entry
        return Candidate(
            label=seat.label,
            server=self._healths.get((seat.label, ""), EVERYTHING_WELL),
            model=self._measured(seat.label, name),
            under_way=count(seat.label),
            slots=entry.slots if entry else 1,
            weight=entry.weight if entry else 1.0,
            priority=entry.priority if entry else 0,
            loaded_until=known.loaded_until if known else 0.0,
            round_trip=condition.round_trip_ms / 1000 if condition else 0.0,
            nearness=seat.nearness,
            is_draining=entry is not None and entry.is_draining,
        )

    def _measured(self, label: str, model: str) -> Health:
        """Return the health of a model on a server, beginning with what a refresh has measured."""
        health = self._healths.get((label, model), EVERYTHING_WELL)
        found = self._snapshot.measurements.get((label, model))
        if found is None or found.error or found.at <= health.measured:
            return health
        first, pace = found.first_token_ms / 1000, found.tokens_per_second
        return msgspec.structs.replace(health, first_token=first, pace=pace, measured=found.at)


def nearness(place: str, here: str) -> int:
    """Return how many parts two places have in common, from the left: "eu/office/2" and "eu/office" have two."""
    found = 0
    for one, other in zip(place.lower().split("/"), here.lower().split("/"), strict=False):
        if not one or one != other:
            break
        found += 1
    return found


BOARD = Board()
atexit.register(BOARD.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=BOARD.forked)
