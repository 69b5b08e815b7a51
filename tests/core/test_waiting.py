"""What happens while a first token is awaited, with times as plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from aicortex._core.failover import Deadlines, Failover, Failure
from aicortex._core.hedging import Budget
from aicortex._core.http import Response
from aicortex._core.ladder import ASK_ANSWER, ASK_RENDER, ASK_VERSION, RAW, Ladder
from aicortex._core.question import LOADED, VERSION, Question
from aicortex._core.seam import Delivered
from aicortex._core.state import ASK_ALIVE, ASK_LOADED, Connect, State, Try
from aicortex._core.waiting import (
    AT_ONCE,
    GLANCE_SECONDS,
    LOAD_SECONDS,
    PROBE_SECONDS,
    PROBES,
    Hedge,
    beside,
    due_of,
    has_loaded,
    is_loading,
    is_probed,
    may_load,
    next_due,
)

QUESTION = Question("m", [{"role": "user", "content": "hi"}])
NEVER = Hedge(Budget())


def attempt(server: int = 0, sent: float = 10.0, task: str = ASK_ANSWER, **more: Any) -> Try:
    return Try(server, Response(), sent, task, **more)


def state(current: Try | None = None, *others: Try, servers: int = 3, **more: Any) -> State:
    limits = {name: more.pop(name) for name in ("first_token", "connect", "total") if name in more}
    failover = Failover(tuple(range(servers)), Deadlines(**limits), 10.0, 10.0)
    ladder = Ladder(QUESTION, ("",) * servers, {})
    return State(failover, ladder, 10.0, current=current, beside=others, **more)


def hedge(after: float | None = 2.0, is_idle: Callable[[int], bool] = lambda _: True) -> Hedge:
    return Hedge(Budget(), after, is_idle)


# deadlines


def test_when_a_reply_is_due() -> None:
    """An answer or a render has the token's time and its patience, a version that of a connection, a probe its own."""
    now = state(first_token=60.0, connect=5.0)
    assert due_of(now, attempt()) == 70.0
    assert due_of(now, attempt(patience=30.0)) == 100.0
    assert due_of(now, attempt(task=ASK_RENDER)) == 70.0
    assert due_of(now, attempt(task=ASK_VERSION)) == 15.0
    assert {due_of(now, attempt(task=probe)) for probe in PROBES} == {10.0 + PROBE_SECONDS}


def test_what_is_due_next() -> None:
    """The soonest of all that is under way, and of what may be begun."""
    current = attempt()
    assert next_due(state(current), current, NEVER, 10.0, 10.0) == 130.0
    assert next_due(state(current), current, hedge(2.0), 10.0, 10.0) == 12.0
    assert next_due(state(current), current, hedge(2.0), 12.0, 10.0) == 130.0  # nobody was idle when it was time
    assert next_due(state(current), current, hedge(2.0), 20.0, 20.0) == 20.0 + GLANCE_SECONDS
    asked, rival = attempt(is_hedged=True), attempt(1, 20.0)
    assert next_due(state(asked, rival), asked, hedge(2.0), 20.0, 10.0) == 130.0
    assert next_due(state(asked, attempt(1, 5.0)), asked, hedge(2.0), 10.0, 10.0) == 125.0
    assert next_due(state(current, total=50.0), current, NEVER, 10.0, 10.0) == 60.0


def test_while_probes_are_out_the_late_token_is_not_due() -> None:
    """The first token's time is up already; what counts is the probes' answer, and a second server's token."""
    current = attempt()
    probe = attempt(sent=130.0, task=ASK_LOADED)
    assert next_due(state(current, probe), current, NEVER, 130.0, 10.0) == 131.0
    assert next_due(state(current, probe, attempt(1, 10.5)), current, NEVER, 130.0, 10.0) == 130.5


# probes


def test_the_probes_are_asked_one_by_one() -> None:
    """The model's loads first, then the version, both of the server that is late."""
    current = attempt(2)
    wanting = state(current, wants=PROBES)
    assert beside(wanting, current, NEVER, 130.0, 10.0) == Connect(2, LOADED, ASK_LOADED, beside=True)
    second = replace(wanting, wants=PROBES[1:])
    assert beside(second, current, NEVER, 130.0, 10.0) == Connect(2, VERSION, ASK_ALIVE, beside=True)
    assert beside(replace(wanting, wants=()), current, NEVER, 130.0, 10.0) is None


def test_probes_go_before_a_second_server() -> None:
    """They decide whether the first one is left."""
    current = attempt()
    step = beside(state(current, wants=PROBES), current, hedge(2.0), 130.0, 10.0)
    assert step is not None
    assert step.task == ASK_LOADED


def test_whether_a_server_is_being_probed() -> None:
    """From the wish to ask until the last reply; a second server is no probe."""
    current = attempt()
    assert is_probed(state(current, wants=PROBES))
    assert is_probed(state(current, attempt(task=ASK_ALIVE)))
    assert not is_probed(state(current, attempt(1)))
    assert not is_probed(state(current))


def test_whether_it_loads() -> None:
    """Alive, and silent about its models for as long as a probe may take: it loads."""
    current, asked = attempt(), attempt(sent=130.0, task=ASK_LOADED)
    alive = state(current, asked, is_alive=True)
    assert is_loading(alive, 130.9) is None
    assert is_loading(alive, 131.0) is True
    assert is_loading(replace(alive, is_alive=False), 131.0) is False
    assert is_loading(state(current, wants=PROBES), 130.0) is None
    assert is_loading(state(current, attempt(task=ASK_ALIVE)), 130.0) is False


def test_who_may_be_loading() -> None:
    """A server whose load is over has had its time, and a version waits for no model."""
    assert may_load(state(), attempt())
    assert may_load(state(), attempt(task=ASK_RENDER))
    assert not may_load(state(), attempt(is_loaded=True))
    assert not may_load(state(), attempt(task=ASK_VERSION))


@pytest.mark.parametrize(
    ("first_token", "patience", "may"),
    [(120.0, 0.0, True), (120.0, 179.0, True), (120.0, 180.0, False), (299.0, 0.0, True), (300.0, 0.0, False)],
)
def test_a_load_is_waited_for_within_bounds(first_token: float, patience: float, may: bool) -> None:
    """As long as Ollama itself waits for it, and no longer."""
    assert LOAD_SECONDS == 300.0
    assert may_load(state(first_token=first_token), attempt(patience=patience)) is may


def test_whether_a_load_has_just_ended() -> None:
    """A probe that had to wait, or one after a server was found loading, marks the end of a load."""
    probe = attempt(sent=130.0, task=ASK_LOADED)
    assert not has_loaded(attempt(), probe, 130.0 + AT_ONCE / 2)
    assert has_loaded(attempt(), probe, 130.0 + 2 * AT_ONCE)
    assert has_loaded(attempt(patience=120.0), probe, 130.0)


# a second server


def test_a_second_server_is_asked_when_it_is_time() -> None:
    """After so many seconds without a token, the same question, at the first other server."""
    current = attempt()
    now = state(current)
    assert hedge(2.0).due(now, current, 10.0) == 12.0
    assert beside(now, current, hedge(2.0), 11.9, 10.0) is None
    assert beside(now, current, hedge(2.0), 12.0, 10.0) == Connect(1, QUESTION.chat(), beside=True)


def test_who_comes_late_looks_first() -> None:
    """What came while nobody read is taken before a second server is asked, and a moment suffices for that."""
    current = attempt()
    now = state(current)
    assert hedge(2.0).due(now, current, 11.0) == 12.0
    assert hedge(2.0).due(now, current, 50.0) == 50.0 + GLANCE_SECONDS
    assert beside(now, current, hedge(2.0), 50.0, 50.0) is None
    step = Connect(1, QUESTION.chat(), beside=True)
    assert beside(now, current, hedge(2.0), 50.0 + GLANCE_SECONDS, 50.0) == step
    assert hedge(0.0).due(now, current, 10.0) == 10.0 + GLANCE_SECONDS


def test_a_second_server_is_never_asked_without_being_told_to() -> None:
    """It costs another's time, so it is off unless wanted."""
    current = attempt()
    assert NEVER.due(state(current), current, 10.0) is None
    assert beside(state(current), current, NEVER, 1e6, 10.0) is None


def test_only_an_idle_server_is_asked() -> None:
    """One that is answering others would answer all of them later."""
    current = attempt()
    step = beside(state(current), current, hedge(2.0, lambda number: number == 2), 12.0, 10.0)
    assert step == Connect(2, QUESTION.chat(), beside=True)
    assert beside(state(current), current, hedge(2.0, lambda _: False), 12.0, 10.0) is None


def test_no_server_is_asked_twice() -> None:
    """Neither the first one again, nor one that failed before."""
    current = attempt(1)
    failed = state(current)
    failed = replace(failed, failover=failed.failover.record(0, Failure("refused", "connect", ""), 10.0))
    step = beside(failed, current, hedge(2.0), 12.0, 10.0)
    assert step is not None
    assert step.server == 2
    alone = state(attempt(), servers=1)
    assert beside(alone, attempt(), hedge(2.0), 12.0, 10.0) is None


def test_there_are_never_three() -> None:
    """One second server is asked beside an attempt, whether it still runs, has failed, or could not be reached."""
    current = attempt(is_hedged=True)
    assert hedge(2.0).due(state(current, attempt(1)), current, 10.0) is None
    assert hedge(2.0).due(state(current), current, 10.0) is None
    assert beside(state(current), current, hedge(2.0), 100.0, 10.0) is None
    assert next_due(state(current), current, hedge(2.0), 11.0, 10.0) == 130.0


def test_only_a_first_answer_is_asked_twice() -> None:
    """What goes on with an answer is bound to its server, and preparations are no answers."""
    current = attempt()
    resumed = state(current)
    resumed = replace(resumed, ladder=replace(resumed.ladder, delivered=Delivered("Black", chunks=1)))
    assert hedge(2.0).due(resumed, current, 10.0) is None
    assert hedge(2.0).due(state(), attempt(task=ASK_RENDER, rung=RAW), 10.0) is None


def test_the_budget_bounds_second_servers() -> None:
    """When it is spent, the first server is waited for."""
    current, bounded = attempt(), hedge(2.0)
    while bounded.budget.allows:
        assert bounded.due(state(current), current, 10.0) == 12.0
        bounded.budget.spend()
    assert bounded.due(state(current), current, 10.0) is None
    assert beside(state(current), current, bounded, 12.0, 10.0) is None
