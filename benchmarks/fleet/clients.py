"""Processes that ask: each walks over the servers as the library does, and knows its own requests and shared health."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import msgspec

from aicortex._core.failover import Deadlines, Failover, Failure, Wait
from aicortex._core.health import CLOSED, HALF_OPEN, UNREACHABLE_KINDS, Health
from aicortex._core.routing import STRATEGIES, Candidate, Choice, route
from benchmarks.fleet.hosts import USUAL, Host, Job
from benchmarks.fleet.scenario import Arrival
from benchmarks.fleet.timeline import Timeline

SHARE_SECONDS = 1.0  # within which a process writes down what it has seen
MODEL = "m"
PLAIN_RANDOM, PLAIN_ROUND_ROBIN = "plain random", "plain round robin"  # what clients do that know nothing of health
DEADLINES = Deadlines()
Key = tuple[int, str]


class Tally(msgspec.Struct):
    """What came of a run.

    `first_tokens` are seconds from the question to its first token, over all failovers, one for each request that was
    answered; `attempts` and `failed` count by server.
    """

    attempts: list[int]
    failed: list[int]
    requests: int = 0
    unanswered: int = 0
    first_tokens: list[float] = []


class World(msgspec.Struct):
    """What all processes of a run have in common: the servers, and the health that is written down."""

    timeline: Timeline
    hosts: list[Host]
    strategy: str
    tally: Tally
    rows: dict[Key, Health] = {}


class Process:
    """One client: its own requests under way, and what it has seen but not yet written down."""

    def __init__(self, world: World, random: Random) -> None:
        self.world = world
        self.under_way = [0] * len(world.hosts)
        self._random = random
        self._turn = random.randrange(1000)
        self._unwritten: dict[Key, Health] = {}

    def order(self) -> list[Choice]:
        """Return which servers to ask."""
        world = self.world
        numbers = list(range(len(world.hosts)))
        self._turn += 1
        if world.strategy in STRATEGIES:
            candidates = [self._candidate(host) for host in world.hosts]
            now, chance = world.timeline.now, self._random.random
            return route(candidates, world.strategy, now=now, chance=chance, turn=self._turn)
        if world.strategy == PLAIN_RANDOM:
            self._random.shuffle(numbers)
        else:
            start = self._turn % len(numbers)
            numbers = numbers[start:] + numbers[:start]
        return [Choice(number, "") for number in numbers]

    def health(self, server: int, model: str) -> Health:
        """Return what this process knows."""
        key = server, model
        return self._unwritten.get(key) or self.world.rows.get(key) or Health()

    def note(self, server: int, model: str, health: Health) -> None:
        """Remember the health, and write it down: at once when it opens or closes, else within a second."""
        before = self.health(server, model)
        if (before.failures, before.looked) != (health.failures, health.looked):
            self._unwritten.pop((server, model), None)
            self.world.rows[server, model] = health
            return
        if not self._unwritten:
            self.world.timeline.at(self.world.timeline.now + SHARE_SECONDS, self._write)
        self._unwritten[server, model] = health

    def looks(self, server: int) -> None:
        """Note that a request finds out how a server is."""
        now = self.world.timeline.now
        for model in ("", MODEL):
            health = self.health(server, model)
            if health.state(now) == HALF_OPEN:
                self.note(server, model, health.looked_at(now))

    def answering(self, server: int) -> None:
        """Note that a server that was looked at has begun to answer."""
        now = self.world.timeline.now
        for model in ("", MODEL):
            health = self.health(server, model)
            if health.failures:
                self.note(server, model, health.answering(now))

    def failed(self, server: int, kind: str, seconds: float) -> None:
        """Note a failure, where it belongs."""
        now = self.world.timeline.now
        model = "" if kind in UNREACHABLE_KINDS else MODEL
        if model:
            self._reached(server)
        health = self.health(server, model)
        self.note(server, model, health.failed_with(kind, now, seconds=seconds, chance=self._random.random()))

    def succeeded(self, server: int, *, first_token: float, gap: float, pace: float) -> None:
        """Note an answer."""
        self._reached(server)
        now = self.world.timeline.now
        health = self.health(server, MODEL).succeeded(now, first_token=first_token, gap=gap, pace=pace)
        self.note(server, MODEL, health)

    def _reached(self, server: int) -> None:
        health, now = self.health(server, ""), self.world.timeline.now
        if health.state(now) != CLOSED:
            self.note(server, "", health.succeeded(now))

    def _write(self) -> None:
        self.world.rows.update(self._unwritten)
        self._unwritten.clear()

    def _candidate(self, host: Host) -> Candidate:
        number, traits = host.number, host.traits
        return Candidate(
            str(number),
            self.health(number, ""),
            self.health(number, MODEL),
            under_way=self.under_way[number],
            slots=traits.slots,
            priority=0 if traits.role == USUAL and traits.pace > 50 else 1,
            round_trip=traits.round_trip,
            nearness=number % 2,
        )


class Reader:
    """One request on its walk."""

    def __init__(self, process: Process, arrival: Arrival) -> None:
        self._process = process
        self._arrival = arrival
        self._order: Sequence[Choice] = ()
        self._failover = Failover((), DEADLINES, 0.0, 0.0)
        self._job: Job | None = None
        self._given = 0  # tokens
        self._is_known = False

    def start(self) -> None:
        """Ask."""
        now = self._process.world.timeline.now
        self._process.world.tally.requests += 1
        self._order = self._process.order()
        self._failover = Failover(tuple(choice.server for choice in self._order), DEADLINES, now, now)
        self._go_on()

    def _go_on(self) -> None:
        world = self._process.world
        step = self._failover.next_step(world.timeline.now)
        if step is None:
            world.tally.unanswered += 1
        elif isinstance(step, Wait):
            world.timeline.at(step.until, self._go_on)
        else:
            self._ask(step)

    def _ask(self, server: int) -> None:
        process, timeline = self._process, self._process.world.timeline
        process.world.tally.attempts[server] += 1
        process.under_way[server] += 1
        if any(choice.is_look for choice in self._order if choice.server == server):
            process.looks(server)
        tokens = max(self._arrival.tokens - self._given, 1)
        job = self._job = Job(self, server, self._arrival.prompt, tokens, timeline.now)
        host = process.world.hosts[server]
        timeline.at(timeline.now + host.traits.round_trip, lambda: self._arrive(host, job))

    def _arrive(self, host: Host, job: Job) -> None:
        kind = host.take(job)
        if kind:
            self.broke(job, kind)
            return
        timeline = self._process.world.timeline
        timeline.at(self._failover.first_token_due(job.sent), lambda: self._grow_impatient(host, job))

    def _grow_impatient(self, host: Host, job: Job) -> None:
        if self._job is job and job.first_at > self._process.world.timeline.now:
            host.leave(job)
            self.broke(job, "first_token_timeout")

    def spoke(self, job: Job) -> None:
        """Hear the first token of an attempt."""
        if not self._given:
            tally, asked = self._process.world.tally, self._arrival.when
            tally.first_tokens.append(job.first_at - asked)
            self._given = 1
        self._process.answering(job.server)

    def finished(self, job: Job) -> None:
        """Hear the last token."""
        process = self._process
        process.under_way[job.server] -= 1
        seconds = job.ends_at - job.first_at
        gap = seconds / job.tokens
        first_token = job.first_at - job.sent - job.load
        process.succeeded(job.server, first_token=first_token, gap=gap, pace=1 / gap)

    def broke(self, job: Job, kind: str) -> None:
        """Go on elsewhere after a failure."""
        process, now = self._process, self._process.world.timeline.now
        self._job = None
        process.world.tally.failed[job.server] += 1
        process.under_way[job.server] -= 1
        process.failed(job.server, kind, now - job.sent)
        gained = (
            0 if job.first_at > now else int((now - job.first_at) * process.world.hosts[job.server].traits.pace) + 1
        )
        self._given += gained
        self._failover = self._failover.record(job.server, Failure(kind, "", ""), now, gained=gained)
        self._go_on()
