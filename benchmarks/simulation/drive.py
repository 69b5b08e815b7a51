"""The front end in virtual time: carries out what the core decides, without a socket, a thread or a clock."""

from __future__ import annotations

import msgspec

from aicortex._core.answer import Answer
from aicortex._core.failover import Failure, Wait
from aicortex._core.hedging import Budget
from aicortex._core.http import Response
from aicortex._core.result import Result
from aicortex._core.state import Connect, Read
from aicortex._core.waiting import Hedge
from aicortex.errors import AllServersFailedError, RequestRejectedError, StreamCancelledError
from benchmarks.simulation.exchange import Exchange
from benchmarks.simulation.invariants import Violation, Witness, require
from benchmarks.simulation.scenario import BEFORE, SERVERS, Scenario, draw

WALL = 1_700_000_000.0
LATE_SECONDS = 0.05  # as in the blocking front end: what came while nobody read is still taken
MAX_STEPS = 600  # without the reads that found something
MAX_REQUESTS = 150
MAX_SECONDS = 4 * 3600.0
CONNECTING = {
    "refused": Failure("refused", "connect", "refused the connection: nothing listens there"),
    "unreachable": Failure("unreachable", "connect", "cannot be reached (no route to host)"),
    "connect_timeout": Failure("connect_timeout", "connect", "does not answer: could not be opened in time"),
    "tls": Failure("tls", "connect", "no secure connection (bad certificate)"),
    "send": Failure("reset", "send", "broke the connection (broken pipe)"),
}
RESET = Failure("reset", "", "broke the connection (connection reset by peer)")
STALE = Failure("closed", "", "closed the connection without a reply", stale=True)


class Run(msgspec.Struct, frozen=True):
    """How the run of a seed ended: a row of the table of outcomes, and what did not hold, if anything."""

    seed: int
    ending: str
    violation: str = ""


def run(seed: int, trace: list[str] | None = None) -> Run:
    """Run one seed; with a list, a readable trace is appended to it."""
    drive = Drive(draw(seed), trace)
    try:
        drive.run()
    except Violation as violation:
        return Run(seed, "violation", str(violation))
    except Exception as error:
        if trace is not None:
            raise
        return Run(seed, "violation", f"the core raised {error!r}")
    return Run(seed, drive.ending())


class Drive:
    """One run: the answer, the connections, and the time."""

    def __init__(self, scenario: Scenario, trace: list[str] | None = None) -> None:
        self.scenario = scenario
        self.now = 0.0
        self.exchanges: list[Exchange] = []
        hedge = Hedge(Budget(), scenario.hedge_after) if scenario.hedge_after is not None else None
        self.answer = Answer(
            SERVERS[: len(scenario.hosts)],
            scenario.question,
            deadlines=scenario.deadlines,
            now=0.0,
            wall=WALL,
            digests=scenario.digests,
            resume=scenario.resume,
            hedge=hedge,
        )
        self.witness = Witness(scenario, self.answer, wall=WALL)
        self._open: dict[int, Exchange] = {}  # by the id of the response
        self._since = 0.0
        self._known = 0  # events that the reader has
        self._trace = trace
        self._is_cancelled = False
        self._moves = 0
        self._tries = 0  # requests for the answer that were not made beside another one
        self._fed = 0  # pieces of bytes
        self._reading: tuple[Response, ...] = ()
        self._free_until = 0.0  # the reader's own pauses are not the answer's fault

    def run(self) -> None:
        """Go on until the answer is over."""
        self._look()
        steps = 0
        scenario = self.scenario
        last = max(scenario.cancel_at, *scenario.move_at, *scenario.pauses, 0)
        while True:
            if steps <= last:
                self._interfere(steps)
            steps += 1
            if not self._step():
                break
            require(steps - self._fed < MAX_STEPS, "it goes on and on without reading anything")
            require(len(self.exchanges) < MAX_REQUESTS, "too many requests")
            require(self.now < MAX_SECONDS, "it goes on for hours")
        ends = self.answer.failover.ends
        slack = max(ends or 0.0, self._free_until) + 2 * LATE_SECONDS
        require(ends is None or self.now <= slack, f"ended at {self.now:.2f}, due at {ends}")
        self.witness.finish(self.now, self.exchanges, cancelled=self._is_cancelled)
        outcome = self.answer.outcome
        if isinstance(outcome, (Result, AllServersFailedError)):
            told = len(outcome.attempts)
            require(told >= self._tries, f"{self._tries} tries, but {told} attempts")

    def ending(self) -> str:
        """Return the row of the table that this run belongs to."""
        outcome, witness = self.answer.outcome, self.witness
        if isinstance(outcome, Result):
            if witness.rungs:
                rungs = set(witness.rungs)
                return f"whole, went on by {rungs.pop()}" if len(rungs) == 1 else "whole, went on by several rungs"
            if self._moves:
                return "whole, moved"
            if len({exchange.server for exchange in self.exchanges}) > 1 and not witness.errors:
                return "whole, hedged"
            return "whole, begun again at another server" if witness.errors else "whole, nothing went wrong"
        if isinstance(outcome, StreamCancelledError):
            return "cancelled"
        if isinstance(outcome, RequestRejectedError):
            return "rejected"
        last = witness.errors[-1]["kind"] if witness.errors else "late"
        if not self.scenario.resume and witness.is_shown:
            return "interrupted, resume is off"
        return f"interrupted: {last}" if witness.is_shown else f"all failed: {last}"

    def _interfere(self, step: int) -> None:
        """Do what the reader does of his own will at this step."""
        scenario = self.scenario
        if step == scenario.cancel_at and self.answer.outcome is None:
            self._tell("reader: cancel()")
            self._is_cancelled = True
            self.answer.cancel()
            self._look()
        if step in scenario.move_at:
            moved = self.answer.move(self.now)
            self._moves += moved
            self._tell(f"reader: move() -> {moved}")
            self._look()
        pause = scenario.pauses.get(step)
        if pause is not None:
            self._tell(f"reader: busy elsewhere for {pause:.2f} s")
            self.now += pause
            self._since = self._free_until = self.now

    def _step(self) -> bool:
        answer = self.answer
        if answer.steady and self.scenario.reads_ahead and self._since == self.now:
            require(len(self._reading) == 1 and not self._is_cancelled, "steady, though more than one reply is read")
            self._read(self.now + self.scenario.deadlines.stall)
            return True
        step = answer.next_step(self.now, since=self._since)
        if step is None:
            self._look()
            return False
        if self._is_cancelled:
            raise Violation(f"{step} after cancel")
        if type(step) is Read:
            self._read(step.until)
        elif type(step) is Connect:
            self._connect(step)
        else:
            assert type(step) is Wait
            require(step.until > self.now, "a wait for what is past")
            self._tell(f"wait until {step.until:.3f}")
            self.now = step.until
        return True

    def _connect(self, step: Connect) -> None:
        require(len(self._open) == 0 or step.beside, "another connection, though one is under way")
        self.witness.allow(step)
        host = self.scenario.hosts[step.server]
        fault = host.next_fault(self.now)
        self._tries += step.task == "answer" and not step.beside
        request = step.request
        if self._trace is not None:
            what = f"{step.task} {step.rung}{' beside' if step.beside else ''} [{fault}]"
            self._tell(f"connect s{step.server} {what}: {request.method} {request.path} {request.body.decode()}")
        if fault in BEFORE and fault != "stale":
            if fault == "connect_timeout":
                self.now = min(self.now + self.scenario.deadlines.connect, self.answer.failover.connect_due(self.now))
            self.answer.failed(step, CONNECTING[fault], self.now)
            self._look()
            return
        self.now += host.latency
        exchange = self.scenario.service.answer(host, request, fault, self.now)
        require(not exchange.fault, exchange.fault)
        if exchange.kind in ("raw", "prefill"):
            same = exchange.given == self.witness.text
            require(same, f"{exchange.kind} was given {exchange.given!r}, not {self.witness.text!r}")
        self.exchanges.append(exchange)
        self._open[id(exchange.response)] = exchange
        self.answer.connected(step, exchange.response, self.now)
        self._look()

    def _read(self, until: float) -> None:
        """Feed what comes first, or say that nothing came in time."""
        answer, now = self.answer, self.now
        due = max(until, self._since + LATE_SECONDS)
        if answer.failover.is_late(now) or due <= now:
            self._time_out(now)
            return
        first: Exchange | None = None
        soonest = due
        for response in self._reading:
            exchange = self._open[id(response)]
            at = exchange.next_at
            if at is not None and (at < soonest or (at == soonest and first is None)):
                first, soonest = exchange, at
        if first is None:
            self._time_out(due)
            return
        self.now = max(now, soonest)
        self._feed(first)

    def _time_out(self, now: float) -> None:
        self.now = now
        self._tell("nothing came in time")
        self.answer.timed_out(now)
        self._look()

    def _feed(self, exchange: Exchange) -> None:
        answer, response = self.answer, exchange.response
        if exchange.position < len(exchange.arrivals):
            data = exchange.arrivals[exchange.position][1]
            exchange.position += 1
            self._fed += 1
        elif exchange.spoiled == "stale":
            self._fail(exchange, STALE)
            return
        elif exchange.ending == "reset":
            self._fail(exchange, RESET)
            return
        else:
            data = b""
        if self._trace is not None:
            self._tell(f"  s{exchange.server} {exchange.kind} {data!r}")
        response.take([data])
        answer.received(self.now, response)
        self._look(exchange)

    def _fail(self, exchange: Exchange, failure: Failure) -> None:
        self._tell(f"  s{exchange.server} {exchange.kind} {failure.kind}")
        self.answer.failed(exchange.response, failure, self.now)
        self._look(exchange)

    def _look(self, exchange: Exchange | None = None) -> None:
        """Look at the log, and let go of the connections that are not wanted any more."""
        answer = self.answer
        if len(answer.log) > self._known:
            if self._trace is not None:
                for event in answer.log[self._known :]:
                    said = event.meta or event.tool_name or ""
                    self._tell(f"      {event.type} {event.content!r} {said}")
            self._known = len(answer.log)
            self.witness.look(self.now, exchange)
            self._since = self.now
        self._reading = reading = answer.reading
        if len(reading) != len(self._open):
            wanted = {id(response) for response in reading}
            require(wanted <= self._open.keys(), "a response that was let go of is wanted again")
            self._open = {key: exchange for key, exchange in self._open.items() if key in wanted}

    def _tell(self, words: str) -> None:
        if self._trace is not None:
            self._trace.append(f"{self.now:9.3f}  {words}")
