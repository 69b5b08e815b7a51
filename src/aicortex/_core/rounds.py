"""How the turns of an answer end: with the whole answer, or with calls, and then with another turn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

from msgspec.structs import asdict, replace

from aicortex._core import faults
from aicortex._core.attempts import Attempts
from aicortex._core.failover import Attempt, Failover, Turn
from aicortex._core.ladder import Ladder
from aicortex._core.ollama import Chunk, Message
from aicortex._core.result import Result, error_of, result_of
from aicortex._core.seam import PREFILL, RAW, Delivered
from aicortex._core.state import Progress, State, Try
from aicortex._core.turns import MAX_STEPS, UNANSWERED, Asked, Returned, Turns, Usage
from aicortex.events import StreamEvent

PARAGRAPH = "\n\n"
ERRORS = frozenset({"unknown_tool", "bad_arguments", "exception", "timeout", "denied"})  # of a call
REFUSALS = frozenset({"denied", "model_not_found"})  # a server that said so says it again


class Rounds(Attempts):
    """The part of an answer that knows what the model called and what came of it."""

    __slots__ = ()

    def _take_rare(self, message: Message, events: list[StreamEvent], index: int, stamp: float) -> int:
        """Append the events of a message that may hold more than content; returns the next token's index."""
        if message.thinking:
            events.append(StreamEvent("meta", message.thinking, meta={"kind": "thinking"}, timestamp=stamp))
        if message.content:
            events.append(StreamEvent("token", message.content, index, timestamp=stamp))
            index += 1
        for number, call in enumerate(message.tool_calls or (), self._call_number(events) if message.tool_calls else 0):
            meta: dict[str, Any] = {"call": number}
            if call.id not in (None, ""):
                meta["id"] = str(call.id)
            name, arguments = call.function.name, call.function.given
            events.append(StreamEvent("tool_call", None, None, name, arguments, None, meta, stamp))
        return index

    def _call_number(self, events: Sequence[StreamEvent]) -> int:
        """Return the number of a call behind these events, which the log does not have yet."""
        turns = self._state.turns
        seen = chain(islice(self.log, turns.begun, None), events)
        return turns.called + sum(event.type == "tool_call" for event in seen)

    def _finish(self, current: Try, final: Chunk, events: list[StreamEvent], progress: Progress, now: float) -> None:
        """End the turn: the server said that it is done, or a stop string of the caller stands across a seam.

        That ends the answer, unless the model called tools that are run.
        """
        self.steady = False
        state, seen = self._state, [*self.log, *events]
        said = Delivered.of(islice(seen, state.turns.begun, None))
        label, seconds = self._servers[current.server].label, now - current.began
        why, first = self._why(current.server), self._first_token(current, seen)
        length = len(state.turns.text + said.text)
        done = Attempt(label, "ok", faults.STREAM, "", length, False, seconds, 200, current.rung, why, first)
        spent = state.ladder.delivered.chunks if current.rung in (RAW, PREFILL) else 0
        if self._question.is_full(spent):
            final = replace(final, eval_count=0)  # its one token was not delivered
        reason = final.done_reason or "stop"
        if said.calls and state.turns.is_last:
            reason = MAX_STEPS
        runs = state.turns.runs
        turns = state.turns.over(said, Usage.of(final, spent), reason)
        ladder = replace(state.ladder, origin=current.server)
        after = replace(
            state, current=None, beside=(), attempts=(*state.attempts, done), turns=turns, ladder=ladder, began=now
        )
        if turns.calls and runs:
            self._commit(events, after, progress)
        else:
            self._end(events, after, progress, now)

    def _end(self, events: list[StreamEvent], state: State, progress: Progress, now: float) -> None:
        """End the answer, which is whole in this state."""
        server = state.ladder.origin
        assert server is not None  # the one that ended it
        result = result_of(
            [*self.log, *events],
            state.turns,
            reason=state.turns.whole,
            model=state.ladder.asked(server).model,
            attempts=state.attempts,
            end=now + self._zero,
        )
        stats = {"kind": "stats", "server": result.server, "usage": result.usage, "timings": result.timings}
        meta = {name: getattr(result, name) for name in ("finish_reason", "usage", "timings", "model", "server")}
        meta["attempts"] = [asdict(attempt) for attempt in state.attempts]
        events += [self._event("meta", now, "", stats), self._event("end", now, "", meta)]
        self._commit(events, replace(state, outcome=result), progress)

    def returned(self, number: int, returned: Returned, now: float) -> None:
        """Take note of what the first call that has not returned came to; behind the last one the model goes on."""
        self._recover()
        state = self._state
        asked = next(iter(state.turns.pending), None)
        if state.outcome is not None or asked is None or asked.number != number:
            return  # it is over, or an interrupt came after this was told
        turns = state.turns.answered(returned)
        events = []
        if returned.kind != UNANSWERED:
            events.append(_result_event(asked, returned, now + self._zero))
        if turns.pending:
            self._commit(events, replace(state, turns=turns), self._progress)
        elif turns.is_answered:
            self._next_turn(events, turns, now)
        elif turns.whole:
            self._end(events, replace(state, turns=turns), self._progress, now)
        else:  # nobody said that it was all, and a call in it is the caller's own to answer
            error = error_of(state.attempts, turns.text, shown=True)
            self._commit(events, replace(state, turns=turns, outcome=error), self._progress)

    @property
    def messages(self) -> list[dict[str, Any]]:  # Any: JSON
        """What the conversation has gained so far; a turn that is under way counts by its text, without its calls."""
        turns = self._state.turns
        if isinstance(self._state.outcome, Result):
            return list(turns.messages)
        gained = list(turns.messages)
        if turns.pending or not turns.is_answered:
            first = next(n for n in range(len(gained) - 1, -1, -1) if gained[n]["role"] == "assistant")
            gained[first:] = [{"role": "assistant", "content": gained[first]["content"]}]
        elif not turns.calls:
            said = Delivered.of(islice(self.log, turns.begun, None))
            gained.append({"role": "assistant", "content": said.text})
        return gained if gained[-1]["content"] or gained[-1]["role"] == "tool" else gained[:-1]

    def _next_turn(self, events: list[StreamEvent], turns: Turns, now: float) -> None:
        """Ask the model to go on with what its calls returned; whoever answered last is asked first."""
        state, before, failover = self._state, self._state.ladder, self._state.failover
        index = self._progress.index
        if turns.text and not turns.text[-1].isspace():  # what the model says next is a paragraph of its own
            events.append(StreamEvent("token", PARAGRAPH, index, timestamp=now + self._zero))
            index += 1
            turns = replace(turns, text=turns.text + PARAGRAPH)
        begun = len(self.log) + len(events)
        question = self._question.behind(turns.messages)
        ladder = Ladder(question, before.digests, before.memory, before.names, versions=before.versions)
        order = self._order()
        # whoever answered may be restarting when it fails now, as in the middle of a text, and is asked once more
        walk = Failover(order, failover.deadlines, failover.started, now, turns=(Turn(now, order[0], 1),))
        after = State(walk, ladder, now, begun, attempts=state.attempts, turns=turns.next(begun))
        self._commit(events, after, Progress(index))

    def _order(self) -> tuple[int, ...]:
        """Return the servers for another turn: the last that answered, those that did not fail, the others."""
        latest = {attempt.server: attempt.kind for attempt in self._state.attempts}
        last = next((each.server for each in reversed(self._state.attempts) if each.kind == "ok"), "")
        ranks = {"": 1, "ok": 1, "outpaced": 1, "diverged": 1, "cannot_continue": 1}

        def rank(number: int) -> int:
            label = self._servers[number].label
            kind = latest.get(label, "")
            return 0 if label == last and kind == "ok" else ranks.get(kind, 3 if kind in REFUSALS else 2)

        numbers = sorted(range(len(self._servers)), key=rank)
        return tuple(number for number in numbers if rank(number) < 3) or tuple(numbers)


def _result_event(asked: Asked, returned: Returned, timestamp: float) -> StreamEvent:
    meta: dict[str, Any] = {"call": asked.number, "kind": returned.kind, "seconds": returned.seconds}  # Any: JSON
    if asked.id is not None:
        meta["id"] = asked.id
    if returned.kind in ERRORS:
        meta["message"] = returned.text
    if returned.traceback:
        meta["traceback"] = returned.traceback
    used, value = returned.arguments, returned.value
    return StreamEvent("tool_result", None, None, asked.name, used, value, meta, timestamp)
