"""Which server next: the table of the protocol, with times as plain numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex._core.failover import BUSY_TRIES, Connect, Deadlines, Failover, Failure, GiveUp, Wait

NEXT_KINDS = [
    *("refused", "unreachable", "connect_timeout", "tls", "proxy", "reset", "closed", "bad_response", "engine"),
    *("denied", "model_not_found", "server_error", "error", "first_token_timeout", "stalled", "truncated"),
]


def walk(count: int = 3, **limits: float) -> Failover:
    return Failover(tuple(range(count)), Deadlines(**limits), 0.0)


def failure(kind: str, retry_after: float | None = None) -> Failure:
    return Failure(kind, "first token", "words", retry_after=retry_after)


@pytest.mark.parametrize("kind", NEXT_KINDS)
def test_every_untried_server_is_tried_once(kind: str) -> None:
    """A server's own fault moves to the next untried server, in order, and then ends."""
    state = walk()
    for number in range(3):
        assert state.next_step(1.0, delivered=False) == Connect(number)
        state = state.record(number, failure(kind), 1.0)
    assert state.next_step(1.0, delivered=False) == GiveUp()


@pytest.mark.parametrize("kind", ["rejected", "timeout"])
def test_the_callers_fault_ends_at_once(kind: str) -> None:
    """What every server would refuse is asked of one."""
    assert walk().record(0, failure(kind), 1.0).next_step(1.0, delivered=False) == GiveUp()


def test_after_something_was_delivered_no_server_is_asked_again() -> None:
    """Another server would begin the answer a second time."""
    assert walk().record(0, failure("reset"), 1.0).next_step(1.0, delivered=True) == GiveUp()


def test_busy_servers_are_asked_again_after_all_others() -> None:
    """A busy server comes back after the untried ones, twice as late each time, and not for ever."""
    state = walk(2)
    state = state.record(0, failure("busy"), 0.0)
    assert state.next_step(5.0, delivered=False) == Connect(1)
    state = state.record(1, failure("refused"), 0.0)
    now, waits = 0.0, []
    while isinstance(step := state.next_step(now, delivered=False), Wait):
        waits.append(step.until - now)
        now = step.until
        assert state.next_step(now, delivered=False) == Connect(0)
        state = state.record(0, failure("busy"), now)
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert len(waits) == BUSY_TRIES - 1
    assert step == GiveUp()


def test_retry_after_is_honoured() -> None:
    """The server's own word on when to come back goes before ours."""
    state = walk(1).record(0, failure("busy", retry_after=7.0), 2.0)
    assert state.next_step(2.0, delivered=False) == Wait(9.0)


@pytest.mark.parametrize("limits", [{"first_token": 60.0}, {"total": 60.0}])
def test_a_busy_server_that_wants_more_time_than_there_is_is_given_up(limits: dict[str, float]) -> None:
    """Retry-After beyond the deadline is no reason to wait."""
    state = walk(1, **limits).record(0, failure("busy", retry_after=61.0), 0.0)
    assert state.next_step(0.0, delivered=False) == GiveUp()


def test_the_total_deadline_ends_everything() -> None:
    """When the caller's time is up, no further server is asked."""
    assert walk(total=10.0).next_step(10.0, delivered=False) == GiveUp()
    assert walk(total=10.0).next_step(9.9, delivered=False) == Connect(0)


def test_deadlines_are_clipped_by_the_total() -> None:
    """No single wait outlasts the whole."""
    free, bound = walk(), walk(total=4.0)
    assert (free.connect_due(1.0), free.first_token_due(1.0), free.chunk_due(1.0)) == (6.0, 121.0, 31.0)
    assert (bound.connect_due(1.0), bound.first_token_due(1.0), bound.chunk_due(1.0)) == (4.0, 4.0, 4.0)


@given(st.integers(1, 6), st.lists(st.sampled_from([*NEXT_KINDS, "busy"]), max_size=60))
def test_any_history_ends(count: int, kinds: list[str]) -> None:
    """Whatever fails, each server is tried, none more than five times, and the walk ends within its patience."""
    state, now = walk(count), 0.0
    tried = [0] * count
    history = iter(kinds)
    while not isinstance(step := state.next_step(now, delivered=False), GiveUp):
        if isinstance(step, Wait):
            assert step.until > now
            now = step.until
            continue
        tried[step.server] += 1
        state = state.record(step.server, failure(next(history, "refused")), now)
    assert all(1 <= times <= BUSY_TRIES for times in tried)
    assert now <= 120.0
