"""One answer: from the first request to the last event, over as many servers as it takes.

A front end moves bytes and tells the answer what happened; the answer keeps the log and says what to do next.

    next_step            the front end does            and then tells
    Connect(server, …)   open a connection, send       connected(…) or failed(…)
    Read(until)          feed a response               received(…), failed(…) or timed_out(…)
    Wait(until)          nothing                       nothing
    Run(calls, until)    run what the model called     returned(…), call by call
    None                 nothing: `outcome` is set

After each call the front end lets go of the connections whose response is not in `reading` any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from aicortex._core import faults
from aicortex._core.failover import Attempt, Deadlines, Failover, Failure, Wait
from aicortex._core.hedging import Budget
from aicortex._core.http import Response
from aicortex._core.ladder import ASK_ANSWER, Memory, Step
from aicortex._core.ollama import MAX_LINE_BYTES, SENSELESS, Chunk, decode_lines, decode_rest, error_text
from aicortex._core.question import Question
from aicortex._core.result import Result, error_of
from aicortex._core.seam import PREFILL, RAW, REPLAY, RESTART, Delivered, Seam
from aicortex._core.server import Server
from aicortex._core.state import Connect, Progress, Read, Try
from aicortex._core.thought import FRESH
from aicortex._core.turns import Run
from aicortex._core.waiting import Hedge, Waiting, beside, next_due
from aicortex.errors import AICortexError
from aicortex.events import StreamEvent

NO_ANSWERS = ("load", "unload")  # reasons of a reply that only moved the model (protocol: "Framing")


class Answer(Waiting):
    """The state machine of one answer; pure, so every method is given the time.

    `servers` are in order of preference, `reasons` say why; `digests` name their weights ("" where unknown), `names`
    the model on each if it is not the question's on all. `resume` says whether an answer that broke off is continued.
    `steps` is how many turns the model may take where its calls are run, 0 where they are only reported; `note` is
    what the first event says besides.
    `log` holds the events and only grows. `steady` says that only the silence between chunks counts: the front end may
    read on without asking for the next step. `spare` is the reply that said it was done, before its framing ended.
    """

    __slots__ = ("_is_open", "spare")

    def __init__(
        self,
        servers: Sequence[Server],
        question: Question,
        *,
        deadlines: Deadlines,
        now: float,
        wall: float,
        digests: Sequence[str] = (),
        names: Sequence[str] = (),
        reasons: Sequence[str] = (),
        memory: Memory | None = None,
        resume: bool = True,
        hedge: Hedge | None = None,
        steps: int = 0,
        note: Mapping[str, Any] = MappingProxyType({}),  # Any: JSON
    ) -> None:
        super().__init__(
            servers,
            question,
            deadlines=deadlines,
            now=now,
            wall=wall,
            digests=digests or [""] * len(servers),
            names=names,
            reasons=reasons,
            memory={} if memory is None else memory,
            resume=resume,
            steps=steps,
            note=note,
        )
        self._hedge = Hedge(Budget()) if hedge is None else hedge
        # with a deadline for the whole each read has another time, and the pace is looked at between reads
        self._is_open = deadlines.total is None and deadlines.pace is None
        self.spare: Response | None = None

    @property
    def outcome(self) -> Result | AICortexError | None:
        """How the answer ended, or None while it runs."""
        return self._state.outcome

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The attempts that are over."""
        return self._state.attempts

    @property
    def failover(self) -> Failover:
        """Where the walk over the servers stands."""
        return self._state.failover

    @property
    def reading(self) -> tuple[Response, ...]:
        """The responses that are still wanted, the one that leads to the answer first."""
        state = self._state
        first = () if state.current is None else (state.current.response,)
        return (*first, *(other.response for other in state.beside))

    def next_step(self, now: float, *, since: float) -> Connect | Read | Wait | Run | None:
        """Decide what the front end does next; `since` is when it began to wait for the next event."""
        if self._staged is not None:
            self._recover()
        state = self._state
        if state.outcome is not None:
            return None
        self._since = since
        current = state.current
        if current is None:
            return self._next_attempt(now)
        heard = self._progress.heard
        if heard is None and not _is_refusal(current.response):
            if state.failover.is_late(now):
                return Read(now)
            aside = beside(state, current, self._hedge, now, since)
            return aside or Read(next_due(state, current, self._hedge, now, since))
        return Read(state.failover.chunk_due(since if heard is None else max(since, heard)))

    def _next_attempt(self, now: float) -> Connect | Wait | Run | None:
        state = self._state
        if state.turns.pending and not state.failover.is_late(now):
            return Run(state.turns.pending, state.failover.ends)
        if state.pending is not None and not state.failover.is_late(now):
            return state.pending
        failover = state.failover
        if self._progress.shown:  # another answer may have learned meanwhile what some servers cannot do
            failover = failover.among(state.ladder.order(range(len(self._servers))))
        found = failover.next_step(now)
        step = state.ladder.step(found) if isinstance(found, int) else None
        if isinstance(found, int) and step is not None:
            return Connect.of(found, step)
        if state.pending is not None:  # the time was up before it could be asked
            self._fail(state.pending, self._timeout(), [], self._progress, now)
            return None
        if isinstance(found, Wait):
            return found
        hint = self._timeout().message if failover.is_late(now) else ""
        partial = Delivered.of(self.log).text
        outcome = error_of(state.attempts, partial, shown=self._is_shown(self._progress), hint=hint)
        self._commit([], replace(state, pending=None, outcome=outcome), self._progress)
        return None

    def connected(self, step: Connect, response: Response, now: float) -> None:
        """Take note that the request was sent to a server, whose reply this response will be."""
        state = self._state
        if step.beside:
            self._connected_beside(step, response, now)
            return
        new = Try(step.server, response, now, step.task, step.rung, state.began)
        events: list[StreamEvent] = []
        seam = None
        if step.task == ASK_ANSWER:
            events.append(self._event("meta", now, "", self._connection_meta(step)))
            if step.rung == RESTART:
                events.append(self._resumed(new, now))
            elif step.rung:
                delivered, is_full = state.ladder.delivered, self._question.is_full(state.ladder.delivered.chunks)
                seam = Seam(delivered, self._question.stops, compares=step.rung == REPLAY, is_full=is_full)
        mark = len(self.log) + len(events)
        after = replace(state, mark=mark, current=new, pending=None, wants=(), is_alive=False)
        thought = None if step.rung in (RAW, PREFILL) else FRESH  # those go on with the text
        self._commit(events, after, Progress(self._progress.index, self._progress.shown, seam=seam, thought=thought))

    def received(self, now: float, response: Response | None = None) -> None:
        """Turn what was fed to a response, or to that of the current attempt, into events."""
        if self._staged is not None:
            self._recover()
        current = self._state.current
        if response is not None and (current is None or response is not current.response):
            if not self._received_beside(response, now):
                return
            current = self._state.current
        if current is None:
            return
        response = current.response
        before = self._progress
        if before.heard is None and (current.task != ASK_ANSWER or not response.started or response.status != 200):
            self._take_head(current, now)
            return
        chunks, lines, fault = decode_lines(before.lines, response.body)
        ended = response.eof or response.fault is not None or (response.tails > 0 and response.complete)
        if ended and fault is None:
            rest, fault = decode_rest(lines, response.body)
            chunks += rest
        thought = before.thought
        if thought is not None:
            chunks, thought = thought.split(chunks)
        if before.seam is not None:
            heard = now if chunks else before.heard
            after = Progress(before.index, before.shown, heard, lines, before.seam, thought=thought)
            self._take_behind_seam(current, chunks, after, ended=ended, fault=fault, now=now)
            return
        stamp = now + self._zero
        index = before.index
        events: list[StreamEvent] = []
        for chunk in chunks:
            message = chunk.message
            if chunk.done or chunk.error is not None:
                self._take_last(current, chunk, events, Progress(index, before.shown or bool(events), now, lines), now)
                return
            if message is None:
                if chunk.response:
                    events.append(StreamEvent("token", chunk.response, index, None, None, None, None, stamp))
                    index += 1
            elif message.thinking or message.tool_calls:
                index = self._take_rare(message, events, index, stamp)
            elif message.content:
                events.append(StreamEvent("token", message.content, index, None, None, None, None, stamp))
                index += 1
                continue
            if chunk.is_empty:
                fault = SENSELESS
                break
        progress = Progress(index, before.shown or bool(events), now if chunks else before.heard, lines)
        if thought is not None:
            progress = replace(progress, thought=thought)
        if ended or fault is not None:
            self._end_early(current, fault, events, progress, now)
            return
        if self._is_open and before.heard is not None:
            self._commit(events, self._state, progress)
        else:
            self._commit_first(current, events, before, progress, now)
        response.drop_pieces(lines.start)

    def _commit_first(
        self, current: Try, events: list[StreamEvent], before: Progress, progress: Progress, now: float
    ) -> None:
        """Take what came first, which ends the waiting for others, or what came on a stream whose pace counts."""
        state = self._state
        if progress.heard is not None and state.beside:
            state = replace(state, beside=(), wants=())
        if before.heard is None and progress.heard is not None:
            current.response.drop_headers()
            if self._comes_late(current):
                state = replace(state, current=replace(current, is_unheard=True))
        self._commit(events, state, self._paced(before, progress, len(events), now))
        self.steady = self._is_open and progress.heard is not None
        if not self.steady:
            self._look_at_pace(current, now)

    def _take_last(self, current: Try, chunk: Chunk, events: list[StreamEvent], progress: Progress, now: float) -> None:
        """Take the chunk that ends the attempt: done, or an error in the stream."""
        if chunk.error is not None:
            phase = faults.STREAM if progress.shown else faults.FIRST_TOKEN
            failure = Failure("error", phase, error_text(chunk.error), current.response.status)
            self._fail(current, failure, events, progress, now)
            return
        if chunk.done_reason in NO_ANSWERS:
            self._end_early(current, f"the server said {chunk.done_reason!r} and did not answer", events, progress, now)
            return
        message = chunk.spoken
        if message is not None:
            self._take_rare(message, events, progress.index, now + self._zero)
        self.spare = current.response
        self._finish(current, chunk, events, progress, now)

    def _take_behind_seam(
        self, current: Try, chunks: list[Chunk], after: Progress, *, ended: bool, fault: str | None, now: float
    ) -> None:
        """Take what a server says that goes on with the answer: nothing of it is delivered before it is proven."""
        seam = after.seam
        assert seam is not None  # that is when this is called
        if any(chunk.is_empty for chunk in chunks):
            chunks, fault = list(takewhile(lambda chunk: not chunk.is_empty, chunks)), SENSELESS
        last = next((chunk for chunk in chunks if chunk.done or chunk.error is not None), None)
        taken = chunks if last is None else chunks[: chunks.index(last) + 1]
        messages = [message for message in (chunk.spoken for chunk in taken) if message is not None]
        verdict = seam.take(messages, final=last is not None and last.error is None)
        if verdict.fault:
            failure = Failure("diverged", faults.RESUME, verdict.fault, current.response.status)
            self._fail(current, failure, [], replace(after, seam=None), now)
            return
        events = [self._resumed(current, now)] if verdict.seam is None else []
        index = after.index
        for message in verdict.ready:
            index = self._take_rare(message, events, index, now + self._zero)
        progress = replace(after, index=index, seam=verdict.seam)
        if verdict.stopped:
            self._finish(current, Chunk(done=True, done_reason="stop"), events, progress, now)
        elif last is not None:
            self._take_last(current, replace(last, message=None, response=None), events, progress, now)
        elif ended or fault is not None:
            self._end_early(current, fault, events, progress, now)
        else:
            self._commit(events, replace(self._state, beside=(), wants=()), progress)
            self.steady = self._is_open and verdict.seam is None and progress.heard is not None

    def _resumed(self, current: Try, now: float) -> StreamEvent:
        ladder = self._state.ladder
        meta = {
            "kind": "resumed",
            "server": self._servers[current.server].label,
            "rung": current.rung,
            "same_weights": ladder.same_weights(current.server),
            "delivered": len(ladder.delivered.text),
        }
        return self._event("meta", now, "", meta)

    def _take_head(self, current: Try, now: float) -> None:
        """Look at a reply that is no answer: without a status yet, an error, or a preparation of the answer."""
        response = current.response
        is_answer = current.task == ASK_ANSWER
        if not response.started:
            if response.ended:
                failure = faults.of_end(response, phase=faults.FIRST_TOKEN if is_answer else faults.RESUME)
                self._fail(current, failure, [], self._progress, now)
            return
        limit = faults.MAX_ERROR_BYTES if response.status != 200 else MAX_LINE_BYTES
        if not response.ended and sum(map(len, response.body)) <= limit:
            return
        if is_answer:
            self._fail(current, faults.of_status(response), [], self._progress, now)
        else:
            self._take_preparation(current, now)

    def _take_preparation(self, current: Try, now: float) -> None:
        state = self._state
        ladder, found = state.ladder.learned(current.server, current.task, current.rung, current.response)
        if isinstance(found, Step):
            pending = Connect.of(current.server, found)
            after = replace(state, ladder=ladder, current=None, beside=(), wants=(), pending=pending)
            self._commit([], after, self._progress)
            return
        if found is None:
            words = "has no exact way to go on with the answer"
            if ladder.same_weights(current.server) and not self._question.is_repeatable:
                words += ": with temperature=0 or a seed it could generate it again"
            found = Failure("cannot_continue", faults.RESUME, words)
        self._commit([], replace(state, ladder=ladder), self._progress)
        self._fail(current, found, [], self._progress, now)

    def _end_early(
        self, current: Try, fault: str | None, events: list[StreamEvent], progress: Progress, now: float
    ) -> None:
        """Take the end of a stream that did not say it was done."""
        phase = faults.STREAM if progress.shown else faults.FIRST_TOKEN
        response = current.response
        failure = faults.of_content(response, fault, phase=phase) if fault else faults.of_end(response, phase=phase)
        self._fail(current, failure, events, progress, now)

    def timed_out(self, now: float) -> None:
        """Take note that what the last step waited for did not come in time."""
        self._recover()
        state = self._state
        current = state.current
        if current is None:
            return
        if state.failover.is_late(now):
            self._fail(current, self._timeout(), [], self._progress, now)
        elif self._progress.heard is not None:
            stall = state.failover.deadlines.stall
            failure = Failure("stalled", faults.STREAM, f"stalled: nothing came for {stall:g} s")
            self._fail(current, failure, [], self._progress, now)
        elif _is_refusal(current.response):
            self._fail(current, faults.of_status(current.response), [], self._progress, now)
        else:
            self._overdue(state, current, now)

    def _timeout(self) -> Failure:
        return Failure("timeout", "", f"the answer was not whole within {self._state.failover.deadlines.total:g} s")

    def failed(self, what: Connect | Response, failure: Failure, now: float) -> None:
        """Take note that a connection could not be opened, or broke while this response was coming."""
        self._recover()
        state = self._state
        current = state.current
        other = next((each for each in state.beside if each.response is what), None)
        if isinstance(what, Connect):
            if not what.beside:
                self._fail(what, failure, [], self._progress, now)
            elif what.task == ASK_ANSWER:
                self._fail_beside(what, failure, now)
            elif current is not None:  # a server that takes no question does not load
                self._fail(current, self._late_failure(), [], self._progress, now)
        elif other is not None and other.task == ASK_ANSWER:
            self._fail_beside(other, failure, now)
        elif current is not None and (other is not None or current.response is what):
            self._fail(current, failure if other is None else self._late_failure(), [], self._progress, now)


def _is_refusal(response: Response) -> bool:
    return response.started and response.status != 200
