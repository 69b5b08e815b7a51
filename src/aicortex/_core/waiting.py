"""What happens while a first token is awaited: when it is due, and what may be asked beside it.

A late first token may mean that the model is being loaded, and leaving aborts the load (protocol: "Errors before the
stream"). So a server whose token is due is asked two things at once before it is given up:

    /api/version   answers at once on a server that lives
    /api/ps        answers at once, unless a model is being loaded

Alive and silent on the second: it is waited for as long again, and once more when the load is over. Besides, after
some seconds a second idle server may be asked the question itself; the first to speak gives the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from aicortex._core import faults
from aicortex._core.failover import Attempt, Failure
from aicortex._core.hedging import Budget
from aicortex._core.http import Response
from aicortex._core.ladder import ASK_ANSWER, ASK_VERSION
from aicortex._core.ollama import SENSELESS, Lines, decode_lines, error_text
from aicortex._core.question import LOADED, VERSION
from aicortex._core.rounds import Rounds
from aicortex._core.state import ASK_ALIVE, ASK_LOADED, Connect, Progress, State, Try, without
from aicortex._core.thought import FRESH

GLANCE_SECONDS = 0.05  # a reader that comes late looks so long at what is there
PROBE_SECONDS = 1.0  # how long a server may take to say whether it is alive, or still loads
LOAD_SECONDS = 300.0  # how long a load is waited for: Ollama gives one up after five minutes itself
AT_ONCE = 0.25  # seconds within which a server that loads nothing answers
PROBES = (ASK_LOADED, ASK_ALIVE)


class Hedge(msgspec.Struct, frozen=True):
    """Whether and when a second server is asked: `after` so many seconds, within the budget, and only an idle one."""

    budget: Budget
    after: float | None = None
    is_idle: Callable[[int], bool] = lambda _: True

    def due(self, state: State, current: Try, since: float) -> float | None:
        """Return when the second server is asked, None for never; what came while nobody read is looked at first."""
        is_first = not state.ladder.delivered and current.task == ASK_ANSWER and not current.is_hedged
        if self.after is None or not is_first or not self.budget.allows:
            return None
        return max(current.sent + self.after, since + GLANCE_SECONDS)

    def server(self, state: State, current: Try) -> int | None:
        """Return the second server, if one is idle."""
        others = (number for number in state.failover.untried if number != current.server)
        return next(filter(self.is_idle, others), None)


def beside(state: State, current: Try, hedge: Hedge, now: float, since: float) -> Connect | None:
    """Return what to ask now beside the current attempt, if anything."""
    if state.wants:
        request = LOADED if state.wants[0] == ASK_LOADED else VERSION
        return Connect(current.server, request, state.wants[0], beside=True)
    hedged = hedge.due(state, current, since)
    if hedged is None or now < hedged:
        return None
    number = hedge.server(state, current)
    return None if number is None else Connect(number, state.ladder.asked(number).chat(), beside=True)


def next_due(state: State, current: Try, hedge: Hedge, now: float, since: float) -> float:
    """Return when the next of all that is under way is due."""
    waited_for = state.beside if is_probed(state) else (current, *state.beside)
    dues = [due_of(state, each) for each in waited_for]
    hedged = hedge.due(state, current, since)
    if hedged is not None and now < hedged:
        dues.append(hedged)
    return min(dues) if state.failover.ends is None else min(*dues, state.failover.ends)


def due_of(state: State, each: Try) -> float:
    """Return when a reply must have begun, or for a probe be here."""
    if each.task in PROBES:
        return each.sent + PROBE_SECONDS
    if each.task == ASK_VERSION:
        return each.sent + state.failover.deadlines.connect
    return state.failover.first_token_due(each.sent + each.patience)


def is_probed(state: State) -> bool:
    """Whether the server is being asked if it still loads."""
    return bool(state.wants) or any(each.task in PROBES for each in state.beside)


def may_load(state: State, current: Try) -> bool:
    """Whether a server whose first token is due may still be loading the model."""
    if current.is_loaded or current.task == ASK_VERSION:
        return False
    return state.failover.deadlines.first_token + current.patience < LOAD_SECONDS


def has_loaded(current: Try, probe: Try, now: float) -> bool:
    """Whether an answer to /api/ps means that a load has just come to its end."""
    return current.patience > 0 or now - probe.sent > AT_ONCE


def is_loading(state: State, now: float) -> bool | None:
    """Whether the probes show that the server still loads, once it is clear."""
    asked = next((each for each in state.beside if each.task == ASK_LOADED), None)
    if asked is None:
        return None if state.wants else False
    return state.is_alive if now >= due_of(state, asked) else None


class Waiting(Rounds):
    """The part of an answer that waits for its first token."""

    __slots__ = ("_hedge",)
    _hedge: Hedge

    def _connection_meta(self, step: Connect) -> dict[str, Any]:  # Any: JSON
        model = self._state.ladder.asked(step.server).model
        return {"kind": "connected", "server": self._servers[step.server].label, "model": model}

    def _connected_beside(self, step: Connect, response: Response, now: float) -> None:
        state = self._state
        new = Try(step.server, response, now, step.task, began=now)
        after = replace(state, beside=(*state.beside, new))
        if step.task != ASK_ANSWER:
            self._commit([], replace(after, wants=state.wants[1:]), self._progress)
            return
        self._hedge.budget.spend()
        event = self._event("meta", now, "", {**self._connection_meta(step), "hedge": True})
        current = None if state.current is None else replace(state.current, is_hedged=True)
        self._commit([event], replace(after, current=current), self._progress)

    def _overdue(self, state: State, current: Try, now: float) -> None:
        """Decide about a first token that is late: it may be that the model is being loaded."""
        rival = state.rival
        if rival is not None and now >= due_of(state, rival):
            self._fail_beside(rival, self._late_failure(), now)
        elif is_probed(state):
            loading = is_loading(state, now)
            if loading:
                self._wait_for_load(state, current, now)
            elif loading is not None:
                self._fail(current, self._late_failure(), [], self._progress, now)
        elif now < due_of(state, current):
            return  # it was time to ask a second server, not to leave this one
        elif may_load(state, current):
            self._commit([], replace(state, wants=PROBES, is_alive=False), self._progress)
        else:
            self._fail(current, self._late_failure(), [], self._progress, now)

    def _wait_for_load(self, state: State, current: Try, now: float) -> None:
        """Be patient with a server that lives and loads: leaving would abort the load."""
        patient = replace(current, patience=now - current.sent)
        event = self._event("meta", now, "", {"kind": "loading", "server": self._servers[current.server].label})
        after = replace(state, current=patient, beside=without(state.beside, *PROBES), wants=(), is_alive=False)
        self._commit([event], after, self._progress)

    def _late_failure(self) -> Failure:
        current, deadlines = self._state.current, self._state.failover.deadlines
        if current is not None and current.task == ASK_VERSION:
            words = f"did not say its version within {deadlines.connect:g} s"
            return Failure("first_token_timeout", faults.RESUME, words)
        return Failure("first_token_timeout", faults.FIRST_TOKEN, f"no first token within {deadlines.first_token:g} s")

    def _received_beside(self, response: Response, now: float) -> bool:
        """Look at what a second server, or a probe, said; returns whether it is the answer's beginning."""
        state = self._state
        other = next((each for each in state.beside if each.response is response), None)
        current = state.current
        if other is None or current is None:
            return False
        if other.task not in PROBES:
            return self._received_rival(state, current, other, now)
        if response.ended:
            if other.task == ASK_LOADED and response.complete and has_loaded(current, other, now):
                self._wait_for_load(state, replace(current, is_loaded=True), now)
            elif other.task == ASK_LOADED or not response.complete or response.status >= 500:
                self._fail(current, self._late_failure(), [], self._progress, now)
            else:
                self._commit(
                    [], replace(state, beside=without(state.beside, other.task), is_alive=True), self._progress
                )
        return False

    def _received_rival(self, state: State, current: Try, rival: Try, now: float) -> bool:
        """Look whether the second server speaks, or has failed."""
        response = rival.response
        if not response.started or response.status != 200:
            if response.ended:
                failure = faults.of_end(response, phase=faults.FIRST_TOKEN)
                self._fail_beside(rival, faults.of_status(response) if response.started else failure, now)
            return False
        chunks, _, fault = decode_lines(Lines(), response.body)
        if chunks and chunks[0].error is None and not chunks[0].is_empty:
            self._promote(state, current, rival, now)
            return True
        if chunks and chunks[0].error is not None:
            said = Failure("error", faults.FIRST_TOKEN, error_text(chunks[0].error), response.status)
            self._fail_beside(rival, said, now)
        elif chunks or fault is not None or response.ended:
            fault = SENSELESS if chunks else fault
            phase = faults.FIRST_TOKEN
            failure = faults.of_content(response, fault, phase=phase) if fault else faults.of_end(response, phase=phase)
            self._fail_beside(rival, failure, now)
        return False

    def _promote(self, state: State, slower: Try, faster: Try, now: float) -> None:
        """Go on with the second server, which spoke first; the other one is left."""
        label, seconds = self._servers[slower.server].label, now - slower.began
        words, why = "another server spoke first", self._why(slower.server)
        lost = Attempt(label, "outpaced", faults.FIRST_TOKEN, words, 0, False, seconds, why=why)
        after = replace(
            state,
            failover=state.failover.later(slower.server, now),
            current=faster,
            mark=len(self.log),
            beside=(),
            wants=(),
            attempts=(*state.attempts, lost),
        )
        self._commit([], after, Progress(self._progress.index, self._progress.shown, thought=FRESH))
