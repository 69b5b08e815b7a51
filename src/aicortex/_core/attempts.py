"""How attempts end: with a failure and the next step, by moving on, or because the answer is cancelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from msgspec.structs import asdict, replace

from aicortex._core import faults
from aicortex._core.failover import Attempt, Deadlines, Failover, Failure
from aicortex._core.journal import Journal
from aicortex._core.ladder import ASK_ANSWER, Ladder, Memory
from aicortex._core.question import Question
from aicortex._core.result import error_of
from aicortex._core.seam import Delivered
from aicortex._core.server import Server
from aicortex._core.state import Connect, Progress, State, Try, without
from aicortex._core.thought import FRESH
from aicortex._core.turns import REPORTED, Turns, Usage
from aicortex.errors import StreamCancelledError
from aicortex.events import StreamEvent

LATE_SECONDS = 0.1  # after which a reader no longer knows when the first token came
PACE_SECONDS = 5.0  # of waiting, between two looks at the pace
MOVED = "it was left by move()"
RUNG_KINDS = frozenset({"rejected", "denied", "bad_response", "diverged"})  # another rung may still work at this server


class Attempts(Journal):
    """The part of an answer that knows its servers and what became of them."""

    __slots__ = ("_question", "_reasons", "_resume", "_servers", "_since", "steady")

    def __init__(
        self,
        servers: Sequence[Server],
        question: Question,
        *,
        deadlines: Deadlines,
        now: float,
        wall: float,
        digests: Sequence[str],
        names: Sequence[str],
        reasons: Sequence[str],
        memory: Memory,
        resume: bool,
        steps: int,
        note: Mapping[str, Any],  # Any: JSON
    ) -> None:
        ladder = Ladder(question, tuple(digests), memory, tuple(names))
        failover = Failover(tuple(range(len(servers))), deadlines, now, now)
        start = StreamEvent("start", "", meta={"model": question.model, **note}, timestamp=wall)
        super().__init__(
            State(failover, ladder, now, turns=Turns(steps) if steps else REPORTED), start, zero=wall - now
        )
        self._servers = servers
        self._question = question
        self._reasons = reasons
        self._resume = resume
        self._since = now
        self.steady = False

    def _fail(
        self, failed: Try | Connect, failure: Failure, events: list[StreamEvent], progress: Progress, now: float
    ) -> None:
        """End an attempt; an error event follows, and the next step or the end."""
        self.steady = False
        state = self._state
        seen = [*self.log, *events]
        ladder, gained = self._left(failed, seen, shown=progress.shown)
        pending = None
        if failed.rung and failure.kind in RUNG_KINDS and not gained:
            ladder = ladder.without(failed.server, failed.rung)
            step = ladder.step(failed.server)
            pending = None if step is None else Connect.of(failed.server, step)
        if failure.kind == "rejected" and progress.shown:  # another server took the same request
            failure = replace(failure, kind="cannot_continue")
        failover = state.failover
        if pending is None:
            failover = failover.record(failed.server, failure, now, gained=gained)
        if progress.shown:
            failover = self._resuming(failover, ladder)
            pending = pending if self._resume else None
        rival = state.rival if isinstance(failed, Try) and not progress.shown else None
        if rival is not None:
            failover = replace(failover, over=state.failover.over)  # it may take what this one rejected
        turns, partial = state.turns, state.turns.text + ladder.delivered.text
        if ladder.delivered.calls and turns.runs and self._resume and failure.kind != "timeout":
            turns, pending = turns.over(ladder.delivered, Usage.broken(ladder.delivered.chunks), ""), None
        goes_on = bool(turns.pending or rival or pending) or failover.next_step(now) is not None
        attempt, event = self._told(failed, failure, now, length=len(partial), will_retry=goes_on)
        events.append(event)
        attempts = (*state.attempts, attempt)
        after = State(failover, ladder, now, len(seen) + 1, rival, (), pending, attempts=attempts, turns=turns)
        if not goes_on:
            hint = self._hint(state.failover, ladder, failed.server) if progress.shown else ""
            outcome = error_of(attempts, partial, shown=self._is_shown(progress), hint=hint)
            after = replace(after, outcome=outcome)
        if rival is not None:
            progress = Progress(progress.index, progress.shown, thought=FRESH)
        self._commit(events, after, progress)

    def _is_shown(self, progress: Progress) -> bool:
        """Whether the reader was given anything, in this turn or in those before."""
        return progress.shown or bool(self._state.turns.usages)

    def _hint(self, failover: Failover, ladder: Ladder, server: int) -> str:
        """Say why servers that are left cannot go on, if there are any."""
        if not self._resume:
            return "resume is off, so that no other server was asked to go on"
        others = {*failover.untried, *(turn.server for turn in failover.turns)} - {server}
        if failover.over or self._question.is_repeatable or not any(map(ladder.same_weights, others)):
            return ""
        return "with temperature=0 or a seed another server could generate the answer again and go on exactly"

    def _fail_beside(self, failed: Try | Connect, failure: Failure, now: float) -> None:
        """Give up a second server; the first one goes on."""
        state = self._state
        attempt, event = self._told(failed, failure, now, length=0, will_retry=True)
        failover = state.failover.record(failed.server, failure, now)
        current = None if state.current is None else replace(state.current, is_hedged=True)
        after = replace(
            state,
            current=current,
            failover=replace(failover, over=state.failover.over),  # the first one took the same request
            beside=without(state.beside, ASK_ANSWER),
            attempts=(*state.attempts, attempt),
        )
        self._commit([event], after, self._progress)

    def _told(
        self, failed: Try | Connect, failure: Failure, now: float, *, length: int, will_retry: bool
    ) -> tuple[Attempt, StreamEvent]:
        """Return a failed attempt and the event that tells of it; `length` characters were delivered before."""
        server = self._servers[failed.server]
        began, status = self._state.began, failure.status
        if isinstance(failed, Try):
            began = failed.began
            if status is None and failed.response.started:
                status = failed.response.status
        attempt = Attempt(
            server=server.label,
            kind=failure.kind,
            # a connection does not know how far the answer was
            phase=failure.phase or (faults.STREAM if self._progress.shown else faults.FIRST_TOKEN),
            message=server.redact(failure.message),
            delivered=length,
            will_retry=will_retry,
            seconds=now - began,
            status=status,
            rung=failed.rung,
            why=self._why(failed.server),
            first_token=self._first_token(failed, self.log),
            retry_after=failure.retry_after,
        )
        meta = asdict(attempt)
        del meta["message"]
        return attempt, self._event("error", now, f"{attempt.server}: {attempt.message}", meta)

    def _why(self, server: int) -> str:
        return self._reasons[server] if self._reasons else ""

    def _first_token(self, over: Try | Connect, seen: Sequence[StreamEvent]) -> float | None:
        """Return how long an attempt took to give the first piece of the answer, if it gave any and somebody waited."""
        if not isinstance(over, Try) or over.is_unheard or (self._progress.heard is None and self._comes_late(over)):
            return None
        first = next(filter(_is_content, islice(seen, self._state.mark, None)), None)
        return None if first is None or first.timestamp is None else max(first.timestamp - self._zero - over.began, 0.0)

    def _comes_late(self, current: Try) -> bool:
        """Whether the reader began to wait when the first piece may have been there already."""
        return self._since > current.sent + LATE_SECONDS

    def _prospect(self, current: Try) -> tuple[Ladder, Failover]:
        """Return ladder and walk as they are once the attempt under way is over."""
        state, shown = self._state, self._progress.shown
        ladder, _ = self._left(current, self.log, shown=shown)
        return ladder, self._resuming(state.failover, ladder) if shown else state.failover

    def _left(self, over: Try | Connect, seen: Sequence[StreamEvent], *, shown: bool) -> tuple[Ladder, int]:
        """Return the ladder as an attempt leaves it behind, and how many chunks it delivered."""
        state = self._state
        delivered = Delivered.of(islice(seen, state.turns.begun, None)) if shown else Delivered()
        gained = sum(map(_is_content, seen[state.mark :])) if isinstance(over, Try) else 0
        if gained:
            return state.ladder.broke(over.server, delivered, over.rung), gained
        return replace(state.ladder, delivered=delivered), 0

    def _resuming(self, failover: Failover, ladder: Ladder) -> Failover:
        """Return the walk over those that can go on with what was delivered."""
        failover = failover.preferring(ladder.order(range(len(self._servers))))
        return failover if self._resume else replace(failover, over=True)

    def move(self, now: float) -> bool:
        """Leave the server that is answering and go on at another one; returns False when no other one can."""
        self._recover()
        current = self._state.current
        if current is None or not self.may_move(now):
            return False
        ladder, failover = self._prospect(current)
        state, label = self._state, self._servers[current.server].label
        length, seconds = len(state.turns.text + ladder.delivered.text), now - current.began
        phase = faults.STREAM if self._progress.shown else faults.FIRST_TOKEN
        status = current.response.status if current.response.started else None
        left = Attempt(
            label, "moved", phase, MOVED, length, True, seconds, status, current.rung, self._why(current.server)
        )
        event = self._event("meta", now, "", {"kind": "moved", "server": label})
        attempts = (*state.attempts, left)
        failover = replace(failover.later(current.server, now), waiting=now)
        after = State(failover, ladder, now, len(self.log) + 1, attempts=attempts, turns=state.turns)
        self.steady = False
        self._commit([event], after, Progress(self._progress.index, self._progress.shown))
        return True

    def may_move(self, now: float) -> bool:
        """Whether another server can take over at once from the one that is answering."""
        current = self._state.current
        if current is None:
            return False
        _, failover = self._prospect(current)
        found = failover.later(current.server, now).next_step(now)
        return isinstance(found, int) and found != current.server

    def _paced(self, before: Progress, after: Progress, count: int, now: float) -> Progress:
        """Count tokens, those of a thought too, against the time that the reader waited for them."""
        counted, waited = before.counted, before.waited
        if before.heard is None or waited >= PACE_SECONDS:
            return after
        if after.heard != before.heard:  # not a part of a line
            counted += count
            waited += max(now - max(self._since, before.heard), 0.0)
        return replace(after, counted=counted, waited=waited)

    def _look_at_pace(self, current: Try, now: float) -> None:
        """Leave a server that has become slow, if another one can go on."""
        progress, pace = self._progress, self._state.failover.deadlines.pace
        if pace is None or progress.waited < PACE_SECONDS:
            return
        found = progress.counted / progress.waited
        if found < pace and self.may_move(now):
            words = f"slow: {found:.1f} tokens/s where {pace:g} are wanted"
            self._fail(current, Failure("slow", faults.STREAM, words), [], progress, now)

    def cancel(self) -> None:
        """End the answer because its reader wants no more of it; without effect when it is over."""
        self._recover()
        self.steady = False
        if self._state.outcome is None:
            partial = Delivered.of(self.log).text
            words = f"the stream was cancelled after {len(partial)} characters"
            error = StreamCancelledError(words, partial=partial)
            after = replace(self._state, current=None, beside=(), pending=None, outcome=error)
            self._commit([], after, self._progress)


def _is_content(event: StreamEvent) -> bool:
    return event.type in ("token", "tool_call") or (event.type == "meta" and (event.meta or {})["kind"] == "thinking")
