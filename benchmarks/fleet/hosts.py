"""Servers as Ollama's are: some slots, a queue that nobody sees, a model that is unloaded when idle; and broken ones.

role        what it does
usual       answers, at its own speed
slow        answers, ten times slower than the middle of the others
flapping    is up and down for 20 to 90 s each; breaks what it was answering, and refuses connections while down
full        says at once that its queue is full (503), always
hanging     takes every request and never answers it
returning   refuses connections for ten minutes, then answers like the fastest
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import msgspec

from benchmarks.fleet.timeline import Timeline

USUAL, SLOW, FLAPPING, FULL, HANGING, RETURNING = "usual", "slow", "flapping", "full", "hanging", "returning"
IDLE_SECONDS = 300.0  # after which Ollama unloads a model by default
NEVER = float("inf")


class Traits(msgspec.Struct, frozen=True):
    """What a server is like: seconds to the first token of a middling prompt, tokens per second of each slot.

    `queue` is how many requests may wait, `round_trip` seconds, `load` what loading the model takes after it was idle
    (0: it is never unloaded), `away` when it is down, as (from, until).
    """

    role: str
    first_token: float
    pace: float
    slots: int
    queue: int
    round_trip: float
    load: float = 0.0
    away: tuple[tuple[float, float], ...] = ()

    def seconds(self, prompt: float, tokens: float) -> float:
        """Return how long an answer keeps a slot."""
        return self.first_token * prompt + tokens / self.pace


class Asker(Protocol):
    """Who waits for an answer."""

    def spoke(self, job: Job) -> None: ...

    def finished(self, job: Job) -> None: ...

    def broke(self, job: Job, kind: str) -> None: ...


class Job:
    """One request at one server: a prompt so many times as long as a middling one, an answer of so many tokens."""

    def __init__(self, asker: Asker, server: int, prompt: float, tokens: int, sent: float) -> None:
        self.asker = asker
        self.server = server
        self.prompt = prompt
        self.tokens = tokens
        self.sent = sent
        self.first_at = NEVER
        self.ends_at = NEVER
        self.load = 0.0  # seconds of its wait in which the model was loaded
        self.is_over = False


class Host:
    """One server at work."""

    def __init__(self, number: int, traits: Traits, timeline: Timeline) -> None:
        self.number = number
        self.traits = traits
        self.is_down = False
        self.queue: deque[Job] = deque()
        self.running: list[Job] = []
        self.ready_at = 0.0  # when its model is in memory
        self._idle_since = 0.0
        self._timeline = timeline
        for since, until in traits.away:
            timeline.at(since, self._go_down)
            timeline.at(until, self._come_up)

    def take(self, job: Job) -> str:
        """Take a request; return "" or the kind of failure that it is at once."""
        traits = self.traits
        if self.is_down:
            return "refused"
        if traits.role == FULL or len(self.queue) >= traits.queue:
            return "busy"
        if traits.role != HANGING:
            self.queue.append(job)
            self._go_on()
        return ""

    def leave(self, job: Job) -> None:
        """Forget a request whose reader has gone."""
        job.is_over = True
        if job in self.running:
            self._free(job)
        elif job in self.queue:
            self.queue.remove(job)

    def _is_cold(self, now: float) -> bool:
        return bool(self.traits.load) and not self.running and now >= self._idle_since + IDLE_SECONDS

    def _go_on(self) -> None:
        traits, now = self.traits, self._timeline.now
        while self.queue and len(self.running) < traits.slots:
            if self._is_cold(now):
                self.ready_at = now + traits.load
            job = self.queue.popleft()
            self.running.append(job)
            begins = max(now, self.ready_at)
            job.load = begins - now
            job.first_at = begins + traits.first_token * job.prompt
            job.ends_at = begins + traits.seconds(job.prompt, job.tokens)
            self._timeline.at(job.first_at, lambda job=job: self._speak(job))  # type: ignore[misc]
            self._timeline.at(job.ends_at, lambda job=job: self._finish(job))  # type: ignore[misc]

    def _speak(self, job: Job) -> None:
        if not job.is_over:
            job.asker.spoke(job)

    def _finish(self, job: Job) -> None:
        if not job.is_over:
            job.is_over = True
            self._free(job)
            job.asker.finished(job)

    def _free(self, job: Job) -> None:
        self.running.remove(job)
        self._idle_since = self._timeline.now
        self._go_on()

    def _go_down(self) -> None:
        self.is_down = True
        lost = [*self.running, *self.queue]
        self.running.clear()
        self.queue.clear()
        for job in lost:
            job.is_over = True
            job.asker.broke(job, "reset")

    def _come_up(self) -> None:
        self.is_down = False
        self._idle_since = self.ready_at = 0.0
