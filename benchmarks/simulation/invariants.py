"""What must hold of every stream, looked at after every step (contract C1 to C12)."""

from __future__ import annotations

from typing import Any

from aicortex._core.answer import Answer
from aicortex._core.result import Result
from aicortex._core.state import Connect
from aicortex.errors import (
    AllServersFailedError,
    RequestRejectedError,
    StreamCancelledError,
    StreamInterruptedError,
)
from aicortex.events import StreamEvent
from benchmarks.simulation.exchange import Exchange, Truth
from benchmarks.simulation.scenario import SERVERS, STREAMED, Scenario

ERROR_KEYS = {"server", "kind", "delivered", "will_retry"}
NO_FAILURES = ("ok", "outpaced", "moved")  # of attempts: nothing went wrong in them
RUNGS = {"raw", "prefill", "replay", "restart"}
BUSY = ("429", "503", "503+1")
BUSY_SECONDS = 2.0  # after which a busy server of these is asked again, at the latest
LABELS = {server.label: number for number, server in enumerate(SERVERS)}


class Violation(Exception):
    """What did not hold."""


def require(holds: bool, words: str) -> None:
    """Raise Violation unless something holds."""
    if not holds:
        raise Violation(words)


class Witness:
    """Reads the log as it grows and compares it with what the servers truly said."""

    def __init__(self, scenario: Scenario, answer: Answer, *, wall: float) -> None:
        self.answer = answer
        self.text = ""
        self.rungs: list[str] = []
        self.errors: list[dict[str, Any]] = []  # Any: JSON
        self._has_begun = False
        self._scenario = scenario
        self._wall = wall
        self._seen = 0
        self._last: StreamEvent | None = None
        self._stamp = wall
        self._index = 0
        self._thinking = ""
        self._calls: list[tuple[str | None, dict[str, Any] | None]] = []  # Any: JSON
        self._pieces = 0  # events that carry a part of the answer
        self._end: StreamEvent | None = None
        self._givers: set[int] = set()  # servers that gave a part of the answer
        self._busy: dict[int, float] = {}  # when a server said so
        self._given_up: dict[int, float] = {}  # when a server's first token was not waited for any longer

    @property
    def is_shown(self) -> bool:
        """Whether the reader has any part of the answer."""
        return self._pieces > 0

    def look(self, now: float, exchange: Exchange | None = None) -> None:
        """Read what was appended to the log after this exchange was fed, or after any other step."""
        log = self.answer.log
        seen = self._seen
        if seen and log[seen - 1] is not self._last:
            raise Violation("the log was changed, not appended to")
        if len(log) == seen:
            return
        pieces = self._pieces
        for event in log[seen:]:
            self._see(event, now)
        self._seen, self._last = len(log), log[-1]
        if self._pieces > pieces:
            require(exchange is not None, "a part of the answer came from no server")
            assert exchange is not None
            self._givers.add(exchange.server)
            self._compare(exchange)

    def allow(self, step: Connect) -> None:
        """Require that a request may be made at all."""
        scenario = self._scenario
        if step.beside:
            return
        rejected = scenario.hedge_after is None and any(error["kind"] == "rejected" for error in self.errors)
        require(not rejected, "another request, though the question was rejected")
        require(scenario.resume or not self.is_shown, "it goes on, though it must not resume")
        if step.rung == "replay":
            weights = scenario.hosts[step.server].weights
            same = all(scenario.hosts[giver].weights is weights for giver in self._givers)
            require(same and scenario.question.is_repeatable, "a replay that cannot be the same")

    def _see(self, event: StreamEvent, now: float) -> None:
        kind, stamp = event.type, event.timestamp or 0.0
        if self._end is not None or (kind == "start") != (not self._has_begun):
            raise Violation(f"{kind} before start, after end or twice")
        if not self._stamp <= stamp <= self._wall + now + 1e-6:
            raise Violation(f"timestamp {stamp} of {kind} after {self._stamp}, at {self._wall + now}")
        self._stamp, self._has_begun = stamp, True
        if kind == "token":
            if not event.content or event.index != self._index:
                raise Violation(f"token {event.index} {event.content!r}, not {self._index}")
            self._index += 1
            self._pieces += 1
            self.text += event.content
            return
        meta = event.meta or {}
        if kind == "start":
            require(event.content == "", "start has text")
        elif kind == "end":
            require(event.content == "", "end has text")
            self._end = event
        elif kind == "error":
            self._see_error(event, meta)
        elif kind == "tool_call":
            self._pieces += 1
            self._calls.append((event.tool_name, event.tool_args))
        elif kind == "meta":
            self._see_meta(event, meta)
        else:
            raise Violation(f"an event of type {kind}")

    def _see_error(self, event: StreamEvent, meta: dict[str, Any]) -> None:  # Any: JSON
        require(meta.keys() >= ERROR_KEYS and bool(event.content), f"an error event without {ERROR_KEYS - meta.keys()}")
        require(meta["server"] in LABELS, f"error of {meta['server']}")
        require(meta["delivered"] == len(self.text), f"delivered {meta['delivered']}, not {len(self.text)}")
        require(not self.errors or self.errors[-1]["will_retry"], "an error after the one that said it was the last")
        self.errors.append(meta)
        number, at = LABELS[meta["server"]], self._stamp - self._wall
        if meta["kind"] == "first_token_timeout":
            self._given_up[number] = at
        elif meta["kind"] == "busy":
            self._busy[number] = at

    def _see_meta(self, event: StreamEvent, meta: dict[str, Any]) -> None:  # Any: JSON
        kind = meta["kind"]
        if kind == "thinking":
            self._pieces += 1
            self._thinking += event.content or ""
        elif kind == "resumed":
            require(meta["rung"] in RUNGS, f"resumed by {meta['rung']}")
            require(meta["delivered"] == len(self.text), f"resumed at {meta['delivered']}, not {len(self.text)}")
            self.rungs.append(meta["rung"])
            self._check_weights(meta)
            if meta["rung"] == "restart":
                require(not self.text and not self._calls, "a restart after text")
                self._thinking = ""
                self._givers.clear()

    def _check_weights(self, meta: dict[str, Any]) -> None:  # Any: JSON
        number = LABELS[meta["server"]]
        hosts = self._scenario.hosts
        if meta["same_weights"]:
            same = all(hosts[giver].weights is hosts[number].weights for giver in self._givers)
            require(same, "said to be of the same weights")

    def _compare(self, exchange: Exchange) -> None:
        """Require that what the reader has is the beginning of what this server truly says."""
        truth = exchange.truth
        if truth is None:
            said = self.text[len(exchange.given) :]
            raise Violation(f"text of a reply that does not go on: {said!r} after {exchange.given!r}")
        if not self._is_beginning(truth):
            raise Violation(
                f"the text is no beginning of the truth:\n  text  {self.text!r}\n  truth {truth.text!r}\n"
                f"  thinking {self._thinking!r} of {truth.thinking!r}, calls {self._calls} of {truth.calls}"
            )

    def _is_beginning(self, truth: Truth) -> bool:
        if self._calls != list(truth.calls[: len(self._calls)]):
            return False
        thinks_on = not self.text and not self._calls
        has_thought = truth.thinking.startswith(self._thinking) if thinks_on else truth.thinking == self._thinking
        return has_thought and truth.text.startswith(self.text)

    def finish(self, now: float, exchanges: list[Exchange], *, cancelled: bool) -> None:
        """Look at the outcome."""
        answer = self.answer
        outcome = answer.outcome
        length = len(answer.log)
        for exchange in exchanges[-2:]:
            answer.received(now, exchange.response)
        answer.timed_out(now)
        answer.cancel()
        require(len(answer.log) == length, "the log grew after the outcome")
        require(not answer.move(now + 1.0), "moved after the end")
        require(answer.next_step(now + 1.0, since=now) is None, "a step after the outcome")
        require(answer.outcome is outcome and not answer.reading, "something is left after the outcome")
        self.look(now)
        if isinstance(outcome, Result):
            self._finish_whole(outcome, exchanges)
        else:
            self._finish_broken(outcome, cancelled=cancelled)

    def _finish_whole(self, result: Result, exchanges: list[Exchange]) -> None:
        require(self._end is not None, "a result without end")
        require(result.text == self.text, "the result's text is not what was delivered")
        failed = [attempt for attempt in result.attempts if attempt.kind not in NO_FAILURES]
        require(len(failed) == len(self.errors), f"{len(failed)} failed attempts, {len(self.errors)} error events")
        require(result.finish_reason in ("stop", "length"), f"finish_reason {result.finish_reason}")
        require(result.attempts[-1].kind == "ok", "the last attempt of a result is not ok")
        require(all(error["will_retry"] for error in self.errors), "an error said that nothing follows")
        limit = self._scenario.question.limit
        if limit is not None and self._scenario.is_plain and all(host.group == 1 for host in self._scenario.hosts):
            require(self._pieces <= limit, f"{self._pieces} tokens, though {limit} were wanted")
        done = any(self._is_all(exchange) for exchange in exchanges)
        require(done, f"an end without done, or not of the whole answer: {self.text!r}")

    def _is_all(self, exchange: Exchange) -> bool:
        truth, limit = exchange.truth, self._scenario.question.limit
        if limit is not None and self._pieces >= limit and exchange.given == self.text:
            return exchange.said_done  # it could only say that it is done, and with one token more than was wanted
        if truth is None or truth.text != self.text or not self._is_beginning(truth):
            return False
        return truth.stops_in_seam or (exchange.said_done and len(self._calls) == len(truth.calls))

    def _finish_broken(self, error: object, *, cancelled: bool) -> None:
        require(self._end is None, "an end without a result")
        require(cancelled == isinstance(error, StreamCancelledError), f"cancelled: {cancelled}, outcome {error!r}")
        if isinstance(error, StreamCancelledError):
            require(error.partial == self.text, "partial is not what was delivered")
        elif isinstance(error, RequestRejectedError):
            require(error.partial == self.text, "partial is not what was delivered")
            require(any(host.refuses.get("chat") == 400 for host in self._scenario.hosts), "no server rejected it")
        else:
            require(isinstance(error, AllServersFailedError), f"outcome {error!r}")
            assert isinstance(error, AllServersFailedError)
            self._finish_failed(error)

    def _finish_failed(self, error: AllServersFailedError) -> None:
        is_interrupted = isinstance(error, StreamInterruptedError)
        require(is_interrupted == self.is_shown, f"{type(error).__name__}, though shown is {self.is_shown}")
        if isinstance(error, StreamInterruptedError):
            require(error.partial == self.text, "partial is not what was delivered")
        failed = [attempt for attempt in error.attempts if attempt.kind not in NO_FAILURES]
        require(len(failed) == len(self.errors), "attempts and error events differ in number")
        total = self._scenario.deadlines.total
        if total is None:
            require(bool(self.errors) and not self.errors[-1]["will_retry"], "gave up after it said it would retry")
            self._check_liveness()

    def _check_liveness(self) -> None:
        """Require that nobody gave up while a server stood by that would have finished the answer.

        The honest continuation of a looping text may look like an echo, and a reader's `move` may have left the server.
        """
        scenario = self._scenario
        left = [number for number in scenario.healthy if not self._is_unlucky(number)]
        left += [number for number, fault in scenario.fleeting.items() if self._comes_back(number, fault)]
        if not left or scenario.move_at or scenario.deadlines.pace is not None:
            return
        healthy = min(left)
        require(self.is_shown, f"gave up, though server {healthy} is healthy")
        goes_on = (scenario.is_plain and not scenario.is_loop) or self._can_replay(healthy)
        require(not (scenario.resume and goes_on), f"interrupted, though server {healthy} is healthy")

    def _comes_back(self, number: int, fault: str) -> bool:
        """Whether a server that fails but once must have been asked again: it was busy in time, or gave a part."""
        if self._is_unlucky(number):
            return False
        if fault in BUSY:
            patience = self._scenario.deadlines.first_token
            return number in self._busy and self._busy[number] + BUSY_SECONDS < patience
        return fault in STREAMED and number in self._givers

    def _is_unlucky(self, number: int) -> bool:
        """Whether a server was given up for its load: just when that had ended, or while it was but a second one."""
        loaded = self._scenario.hosts[number].loaded_at
        if not loaded or number not in self._given_up:
            return False
        return self._scenario.hedge_after is not None or -0.01 < self._given_up[number] - loaded < 2.0

    def _can_replay(self, number: int) -> bool:
        """Whether a server must be able to repeat what was delivered, whatever the question holds."""
        question, hosts = self._scenario.question, self._scenario.hosts
        weights = hosts[number].weights
        is_same = all(hosts[giver].weights is weights and hosts[giver].digest for giver in self._givers | {number})
        is_exact = question.options.get("temperature") == 0 or not {"raw", "prefill"} & set(self.rungs)
        return question.is_repeatable and is_same and is_exact and not question.stops
