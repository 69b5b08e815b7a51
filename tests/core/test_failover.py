"""Which server next: the table of the protocol, with times as plain numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex._core.failover import BROKEN_TRIES, BUSY_TRIES, Deadlines, Failover, Failure, Turn, Wait

LASTING = ["denied", "model_not_found", "diverged", "cannot_continue"]
NEXT_KINDS = [
    *("refused", "unreachable", "connect_timeout", "tls", "proxy", "reset", "closed", "bad_response", "engine"),
    *("server_error", "error", "first_token_timeout", "stalled", "truncated", "slow"),
    *LASTING,
]


def walk(count: int = 3, **limits: float) -> Failover:
    return Failover(tuple(range(count)), Deadlines(**limits), 0.0, 0.0)


def failure(kind: str, retry_after: float | None = None, *, stale: bool = False) -> Failure:
    return Failure(kind, "first token", "words", retry_after=retry_after, stale=stale)


@pytest.mark.parametrize("kind", NEXT_KINDS)
def test_every_untried_server_is_tried_once(kind: str) -> None:
    """A server's own fault moves to the next untried server, in order, and then ends."""
    state = walk()
    for number in range(3):
        assert state.next_step(1.0) == number
        state = state.record(number, failure(kind), 1.0)
    assert state.next_step(1.0) is None


@pytest.mark.parametrize("kind", ["rejected", "timeout"])
def test_the_callers_fault_ends_at_once(kind: str) -> None:
    """What every server would refuse is asked of one."""
    assert walk().record(0, failure(kind), 1.0).next_step(1.0) is None


def test_an_answer_that_is_over_stays_over() -> None:
    """Whatever is told of other servers afterwards, nobody is asked again."""
    state = walk().record(0, failure("rejected"), 1.0).record(1, failure("busy"), 1.0)
    assert state.next_step(5.0) is None


def test_busy_servers_are_asked_again_after_all_others() -> None:
    """A busy server comes back after the untried ones, twice as late each time, and not for ever."""
    state = walk(2)
    state = state.record(0, failure("busy"), 0.0)
    assert state.next_step(5.0) == 1
    state = state.record(1, failure("refused"), 0.0)
    now, waits = 0.0, []
    while isinstance(step := state.next_step(now), Wait):
        waits.append(step.until - now)
        now = step.until
        assert state.next_step(now) == 0
        state = state.record(0, failure("busy"), now)
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert len(waits) == BUSY_TRIES - 1
    assert step is None


@pytest.mark.parametrize("kind", ["reset", "closed", "stalled", "truncated", "error", "slow"])
def test_a_server_that_broke_in_mid_answer_is_asked_again(kind: str) -> None:
    """It may be restarting: it comes back behind the untried ones, twice as late each time, and not for ever."""
    state = walk(2).record(0, failure(kind), 0.0, gave=True)
    assert state.next_step(0.0) == 1
    state = state.record(1, failure("refused"), 0.0)
    now, waits = 0.0, []
    while isinstance(step := state.next_step(now), Wait):
        waits.append(step.until - now)
        now = step.until
        state = state.record(0, failure("refused"), now)
    assert waits == [1.0, 2.0, 4.0]
    assert len(waits) == BROKEN_TRIES - 1
    assert step is None


def test_a_server_that_never_gave_anything_is_not_asked_again() -> None:
    """Only who was answering may be restarting; a refused connection says that nobody is there."""
    state = walk(1).record(0, failure("refused"), 0.0)
    assert (state.turns, state.next_step(0.0)) == ((), None)


@pytest.mark.parametrize("kind", LASTING)
def test_what_is_no_better_later_is_not_asked_again(kind: str) -> None:
    """A server that came back and cannot go on, or denies, is left for good."""
    state = walk(1).record(0, failure("reset"), 0.0, gave=True)
    assert state.record(0, failure(kind), 1.0).next_step(1.0) is None


def test_the_next_token_is_waited_for_from_the_last_one() -> None:
    """Patience begins anew with each part of the answer that was delivered, and not with each failure."""
    state = walk(1, first_token=10.0).record(0, failure("reset"), 100.0, gave=True)
    assert state.patience_ends == 110.0
    later = state.record(0, failure("refused"), 101.0)
    assert (later.patience_ends, later.next_step(101.0)) == (110.0, Wait(103.0))
    assert later.record(0, failure("busy", 8.0), 103.0).next_step(103.0) is None


def test_turns_are_soonest_first() -> None:
    """Of several servers that come back the first one ready is asked, whichever failed last."""
    state = walk(3).record(2, failure("busy", 7.0), 0.0).record(0, failure("busy"), 0.0)
    state = state.record(1, failure("reset"), 2.0, gave=True)
    assert state.turns == (Turn(1.0, 0, 1), Turn(3.0, 1, 1), Turn(7.0, 2, 1))
    assert state.next_step(0.5) == Wait(1.0)
    assert state.next_step(9.0) == 0


def test_a_connection_that_was_closed_while_kept_is_tried_once_more() -> None:
    """Perhaps the server never saw the request: it comes back behind the untried ones, once."""
    state = walk(2).record(0, failure("closed", stale=True), 0.0)
    assert state.untried == (1, 0)
    assert state.record(1, failure("refused"), 0.0).record(0, failure("closed"), 0.0).next_step(0.0) is None


def test_a_server_left_on_purpose_is_asked_last() -> None:
    """Behind the untried ones, at once and not later."""
    state = walk(3).record(0, failure("busy"), 0.0)
    assert state.last(1).untried == (2, 1)
    assert state.last(0) == Failover((1, 2, 0), Deadlines(), 0.0, 0.0)


def test_preferring() -> None:
    """Only servers that can go on stay, ranked, and those of one rank in their order; it holds for turns as well."""
    state = walk(5).record(3, failure("busy"), 0.0).record(4, failure("busy"), 0.0)
    ranked = state.preferring({0: 2, 1: 1, 2: 1, 4: 0})
    assert ranked.untried == (1, 2, 0)
    assert [turn.server for turn in ranked.turns] == [4]
    assert state.preferring({}).next_step(0.0) is None


def test_retry_after_is_honoured() -> None:
    """The server's own word on when to come back goes before ours."""
    state = walk(1).record(0, failure("busy", retry_after=7.0), 2.0)
    assert state.next_step(2.0) == Wait(9.0)


@pytest.mark.parametrize("limits", [{"first_token": 60.0}, {"total": 60.0}])
def test_a_busy_server_that_wants_more_time_than_there_is_is_given_up(limits: dict[str, float]) -> None:
    """Retry-After beyond the deadline is no reason to wait."""
    state = walk(1, **limits).record(0, failure("busy", retry_after=61.0), 0.0)
    assert state.next_step(0.0) is None


def test_the_total_deadline_ends_everything() -> None:
    """When the caller's time is up, no further server is asked."""
    assert walk(total=10.0).next_step(10.0) is None
    assert walk(total=10.0).next_step(9.9) == 0
    assert [walk(total=10.0).is_late(now) for now in (9.9, 10.0)] == [False, True]
    assert not walk().is_late(1e9)


def test_deadlines_are_clipped_by_the_total() -> None:
    """No single wait outlasts the whole."""
    free, bound = walk(), walk(total=4.0)
    assert (free.connect_due(1.0), free.first_token_due(1.0), free.chunk_due(1.0)) == (6.0, 121.0, 31.0)
    assert (bound.connect_due(1.0), bound.first_token_due(1.0), bound.chunk_due(1.0)) == (4.0, 4.0, 4.0)
    assert (free.ends, bound.ends, free.patience_ends, bound.patience_ends) == (None, 4.0, 120.0, 4.0)


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from([*NEXT_KINDS, "busy"]), st.booleans()), max_size=60),
)
def test_any_history_ends(count: int, history: list[tuple[str, bool]]) -> None:
    """Whatever fails, each server is tried, none more than five times, and the walk ends within its patience."""
    state, now, last_word = walk(count), 0.0, 0.0
    tried = [0] * count
    kinds = iter(history)
    while (step := state.next_step(now)) is not None:
        if isinstance(step, Wait):
            assert step.until > now
            now = step.until
            continue
        tried[step] += 1
        kind, gave = next(kinds, ("refused", False))
        state = state.record(step, failure(kind), now, gave=gave)
        last_word = now if gave else last_word
    assert all(1 <= times <= BUSY_TRIES for times in tried)
    assert now <= last_word + 120.0
