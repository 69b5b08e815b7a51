"""One answer: from the first request to the last event, over as many servers as it takes.

A front end moves bytes and tells the answer what happened; the answer keeps the log and says what to do next.

    next_step          the front end does            and then tells
    Connect(server)    open a connection, send       connected(…) or failed(…)
    Read(until)        feed the response             received(…), failed(…) or timed_out(…)
    Wait(until)        nothing                       nothing
    None               nothing: `outcome` is set

Every change of state is one commit: the new state and its events are computed aside, staged in one assignment and
then applied. A KeyboardInterrupt at any point leaves either the old state or a staged commit, which the next call
finishes: nothing is lost and nothing comes twice (contract C12).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from aicortex._core import faults
from aicortex._core.failover import Attempt, Connect, Deadlines, Failover, Failure, GiveUp, Wait
from aicortex._core.http import Response
from aicortex._core.ollama import Chunk, Lines, Message, decode_lines, decode_rest, error_text
from aicortex._core.result import Result, error_of, result_of, text_of
from aicortex._core.server import Server
from aicortex.errors import AICortexError, StreamCancelledError
from aicortex.events import StreamEvent

RELEASED_PIECES = 1024  # decoded pieces of a body that may wait to be dropped


class Read(msgspec.Struct, frozen=True):
    """Feed bytes to the response that is under way; they are due by this time."""

    until: float


class Try(msgspec.Struct, frozen=True):
    """The attempt under way: a request was sent to a server and its response is being read."""

    server: int
    response: Response
    sent: float


class State(msgspec.Struct, frozen=True):
    """What changes with attempts."""

    failover: Failover
    began: float  # when the attempt under way began, or the last one ended
    current: Try | None = None
    attempts: tuple[Attempt, ...] = ()
    outcome: Result | AICortexError | None = None


class Progress(msgspec.Struct, frozen=True):
    """What changes with every read; the token path makes one of these and nothing else."""

    index: int = 0  # of the next token
    shown: bool = False  # whether the reader was given anything of the answer
    heard: float | None = None  # when the newest chunk of the attempt came, if any did
    lines: Lines = Lines()


class Answer:
    """The state machine of one answer; pure, so every method is given the time.

    `servers` are in order of preference. `log` holds the events and only grows. `steady` says that chunks are coming
    and only the silence between them counts: the front end may read on without asking for the next step.
    """

    __slots__ = (
        "_is_open",
        "_model",
        "_progress",
        "_released",
        "_servers",
        "_staged",
        "_state",
        "_zero",
        "log",
        "steady",
    )

    def __init__(self, servers: Sequence[Server], *, model: str, deadlines: Deadlines, now: float, wall: float) -> None:
        self._servers = servers
        self._model = model
        self._zero = wall - now
        self._staged: tuple[int, list[StreamEvent], State, Progress] | None = None
        self._state = State(Failover(tuple(range(len(servers))), deadlines, now), now)
        self._progress = Progress()
        self._released = 0
        self._is_open = deadlines.total is None  # with a deadline for the whole, each read has another time
        self.steady = False
        self.log: list[StreamEvent] = [StreamEvent("start", "", meta={"model": model}, timestamp=wall)]

    @property
    def outcome(self) -> Result | AICortexError | None:
        """How the answer ended, or None while it runs."""
        return self._state.outcome

    @property
    def failover(self) -> Failover:
        """Where the walk over the servers stands."""
        return self._state.failover

    @property
    def is_whole(self) -> bool:
        """Whether the server said that the answer is done."""
        return isinstance(self._state.outcome, Result)

    @property
    def is_reading(self) -> bool:
        """Whether an attempt is under way."""
        return self._state.current is not None

    def next_step(self, now: float, *, since: float) -> Connect | Read | Wait | None:
        """Decide what the front end does next; `since` is when it began to wait for the next event."""
        if self._staged is not None:
            self._recover()
        state = self._state
        if state.outcome is not None:
            return None
        current = state.current
        if current is None:
            step = state.failover.next_step(now, delivered=self._progress.shown)
            if not isinstance(step, GiveUp):
                return step
            self._commit([], msgspec.structs.replace(state, outcome=error_of(state.attempts)), self._progress)
            return None
        if self._progress.heard is None and not _is_refusal(current.response):
            return Read(state.failover.first_token_due(current.sent))
        heard = self._progress.heard
        return Read(state.failover.chunk_due(since if heard is None else max(since, heard)))

    def connected(self, server: int, response: Response, now: float) -> None:
        """Take note that the request was sent to a server, whose reply this response will be."""
        meta = {"kind": "connected", "server": self._servers[server].label, "model": self._model}
        state = msgspec.structs.replace(self._state, current=Try(server, response, now))
        progress = Progress(self._progress.index, self._progress.shown)
        self._released = 0
        self._commit([self._event("meta", now, "", meta)], state, progress)

    def received(self, now: float) -> None:
        """Turn what was fed to the response into events."""
        if self._staged is not None:
            self._recover()
        current = self._state.current
        if current is None:
            return
        response = current.response
        before = self._progress
        if before.heard is None and (not response.started or response.status != 200):
            self._take_head(current, now)
            return
        chunks, lines, fault = decode_lines(before.lines, response.body)
        ended = response.eof or response.fault is not None or (bool(response.tails) and response.complete)
        if ended and fault is None:
            rest, fault = decode_rest(lines, response.body)
            chunks += rest
        stamp = now + self._zero
        index = before.index
        events: list[StreamEvent] = []
        for chunk in chunks:
            message = chunk.message
            if chunk.done or chunk.error is not None:
                self._take_last(current, chunk, events, Progress(index, before.shown or bool(events), now, lines), now)
                return
            if message is None:
                continue
            if message.thinking or message.tool_calls:
                index = self._take_rare(message, events, index, stamp)
            elif message.content:
                events.append(StreamEvent("token", message.content, index, None, None, None, None, stamp))
                index += 1
        progress = Progress(index, before.shown or bool(events), now if chunks else before.heard, lines)
        if ended or fault is not None:
            self.steady = False
            phase = faults.STREAM if progress.shown else faults.FIRST_TOKEN
            failure = faults.of_content(response, fault, phase=phase) if fault else faults.of_end(response, phase=phase)
            self._fail(current.server, failure, events, progress, now)
            return
        self._commit(events, self._state, progress)
        self.steady = self._is_open and progress.heard is not None
        if lines.start > self._released + RELEASED_PIECES:
            self._release(response, lines.start)

    def _take_last(self, current: Try, chunk: Chunk, events: list[StreamEvent], progress: Progress, now: float) -> None:
        """Take the chunk that ends the attempt: done, or an error in the stream."""
        self.steady = False
        if chunk.error is not None:
            phase = faults.STREAM if progress.shown else faults.FIRST_TOKEN
            failure = Failure("error", phase, error_text(chunk.error), current.response.status)
            self._fail(current.server, failure, events, progress, now)
            return
        if chunk.message is not None:
            self._take_rare(chunk.message, events, progress.index, now + self._zero)
        self._finish(current, chunk, events, progress, now)

    def _release(self, response: Response, end: int) -> None:
        """Drop pieces that were decoded, in place because the parser appends to this list."""
        response.body[self._released : end] = [b""] * (end - self._released)
        self._released = end

    def _take_head(self, current: Try, now: float) -> None:
        """Look at a reply that has no status yet, or an error status whose body may still be coming."""
        response = current.response
        if not response.started:
            if response.ended:
                self.failed(current.server, faults.of_end(response, phase=faults.FIRST_TOKEN), now)
        elif response.ended or sum(map(len, response.body)) > faults.MAX_ERROR_BYTES:
            self.failed(current.server, faults.of_status(response), now)

    def _take_rare(self, message: Message, events: list[StreamEvent], index: int, stamp: float) -> int:
        """Append the events of a message that may hold more than content; returns the next token's index."""
        if message.thinking:
            events.append(StreamEvent("meta", message.thinking, meta={"kind": "thinking"}, timestamp=stamp))
        if message.content:
            events.append(StreamEvent("token", message.content, index, timestamp=stamp))
            index += 1
        for call in message.tool_calls or ():
            name, arguments = call.function.name, call.function.arguments
            events.append(StreamEvent("tool_call", None, None, name, arguments, timestamp=stamp))
        return index

    def _finish(self, current: Try, final: Chunk, events: list[StreamEvent], progress: Progress, now: float) -> None:
        """End the answer: the server said that it is done."""
        state = self._state
        seen = [*self.log, *events]
        text = text_of(seen)
        label, seconds = self._servers[current.server].label, now - state.began
        done = Attempt(label, "ok", faults.STREAM, "", len(text), False, seconds, 200)
        attempts = (*state.attempts, done)
        result = result_of(seen, text, final, model=self._model, attempts=attempts, end=now + self._zero)
        stats = {"kind": "stats", "server": label, "usage": result.usage, "timings": result.timings}
        meta = {name: getattr(result, name) for name in ("finish_reason", "usage", "timings", "model", "server")}
        meta["attempts"] = [msgspec.structs.asdict(attempt) for attempt in attempts]
        events += [self._event("meta", now, "", stats), self._event("end", now, "", meta)]
        self._commit(events, msgspec.structs.replace(state, current=None, outcome=result), progress)

    def timed_out(self, now: float) -> None:
        """Take note that what the last step waited for did not come in time."""
        state = self._state
        current = state.current
        if current is None:
            return
        deadlines = state.failover.deadlines
        if state.failover.is_late(now):
            failure = Failure("timeout", "", f"the answer was not whole within {deadlines.total:g} s")
        elif _is_refusal(current.response):
            failure = faults.of_status(current.response)
        elif self._progress.heard is None:
            words = f"no first token within {deadlines.first_token:g} s"
            failure = Failure("first_token_timeout", faults.FIRST_TOKEN, words)
        else:
            failure = Failure("stalled", faults.STREAM, f"stalled: nothing came for {deadlines.stall:g} s")
        self.failed(current.server, failure, now)

    def failed(self, server: int, failure: Failure, now: float) -> None:
        """Take note that the attempt at a server failed; an error event follows, and the next step or the end."""
        self.steady = False
        self._fail(server, failure, [], self._progress, now)

    def _fail(self, server: int, failure: Failure, events: list[StreamEvent], progress: Progress, now: float) -> None:
        state = self._state
        failover = state.failover.record(server, failure, now)
        will_retry = not isinstance(failover.next_step(now, delivered=progress.shown), GiveUp)
        text = text_of([*self.log, *events])
        attempt = Attempt(
            server=self._servers[server].label,
            kind=failure.kind,
            # a connection does not know how far the answer was
            phase=failure.phase or (faults.STREAM if progress.shown else faults.FIRST_TOKEN),
            message=self._servers[server].redact(failure.message),
            delivered=len(text),
            will_retry=will_retry,
            seconds=now - state.began,
            status=failure.status,
        )
        meta = msgspec.structs.asdict(attempt)
        del meta["message"]
        events.append(self._event("error", now, f"{attempt.server}: {attempt.message}", meta))
        after = State(failover, now, None, (*state.attempts, attempt))
        if not will_retry:
            error = error_of(after.attempts, text, shown=progress.shown)
            after = msgspec.structs.replace(after, outcome=error)
        self._commit(events, after, progress)

    def cancel(self) -> None:
        """End the answer because its reader wants no more of it; without effect when it is over."""
        self._recover()
        self.steady = False
        if self._state.outcome is None:
            partial = text_of(self.log)
            words = f"the stream was cancelled after {len(partial)} characters"
            error = StreamCancelledError(words, partial=partial)
            self._commit([], msgspec.structs.replace(self._state, current=None, outcome=error), self._progress)

    def _event(self, kind: str, now: float, content: str, meta: dict[str, Any]) -> StreamEvent:  # Any: JSON
        return StreamEvent(kind, content, meta=meta, timestamp=now + self._zero)

    def _commit(self, events: list[StreamEvent], state: State, progress: Progress) -> None:
        self._staged = (len(self.log), events, state, progress)
        self.log.extend(events)
        self._progress = progress
        self._state = state
        self._staged = None

    def _recover(self) -> None:
        """Finish a commit that was interrupted."""
        if self._staged is None:
            return
        base, events, state, progress = self._staged
        if len(self.log) == base:
            self.log.extend(events)
        self._progress = progress
        self._state = state
        self._staged = None


def _is_refusal(response: Response) -> bool:
    return response.started and response.status != 200
