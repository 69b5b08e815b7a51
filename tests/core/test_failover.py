"""Which server next: the table of the protocol, with times as plain numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex._core.failover import (
    BROKEN_TRIES,
    BUSY_TRIES,
    LASTING_KINDS,
    PART_CHUNKS,
    Deadlines,
    Failover,
    Failure,
    Turn,
    Wait,
)

NEXT_KINDS = [
    *("refused", "unreachable", "connect_timeout", "tls", "proxy", "reset", "closed", "bad_response", "engine"),
    *("server_error", "error", "first_token_timeout", "stalled", "truncated", "slow"),
    *sorted(LASTING_KINDS),
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
    state = walk(2).record(0, failure(kind), 0.0, gained=1)
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


@pytest.mark.parametrize("gained", [1, PART_CHUNKS - 1])
def test_crumbs_do_not_buy_tries(gained: int) -> None:
    """A server that breaks again and again after a few chunks is given up, however often it gave some."""
    state, now = walk(1), 0.0
    for tries in range(1, BROKEN_TRIES):
        state = state.record(0, failure("reset"), now, gained=gained)
        assert state.turns == (Turn(now + 2.0 ** (tries - 1), 0, tries),)
        now = state.turns[0].when
    assert state.record(0, failure("reset"), now, gained=gained).next_step(now) is None


def test_a_part_worth_the_name_buys_all_tries() -> None:
    """A server that goes on for a while each time is asked again each time, a second later and without end."""
    state, now = walk(1), 0.0
    for _ in range(10 * BROKEN_TRIES):
        state = state.record(0, failure("reset"), now, gained=PART_CHUNKS)
        assert state.turns == (Turn(now + 1.0, 0, 1),)
        now = state.turns[0].when
    state = state.record(0, failure("refused"), now).record(0, failure("refused"), now + 2.0)
    assert state.turns[0].tries == BROKEN_TRIES - 1
    assert state.record(0, failure("reset"), now + 6.0, gained=PART_CHUNKS).turns == (Turn(now + 7.0, 0, 1),)


def test_a_server_that_never_gave_anything_is_not_asked_again() -> None:
    """Only who was answering may be restarting; a refused connection says that nobody is there."""
    state = walk(1).record(0, failure("refused"), 0.0)
    assert (state.turns, state.next_step(0.0)) == ((), None)


@pytest.mark.parametrize("kind", sorted(LASTING_KINDS))
def test_what_is_no_better_later_is_not_asked_again(kind: str) -> None:
    """A server that came back and cannot go on, or denies, is left for good."""
    state = walk(1).record(0, failure("reset"), 0.0, gained=1)
    assert state.record(0, failure(kind), 1.0).next_step(1.0) is None


def test_the_next_token_is_waited_for_from_the_last_one() -> None:
    """Patience begins anew with each part of the answer that was delivered, and not with each failure."""
    state = walk(1, first_token=10.0).record(0, failure("reset"), 100.0, gained=1)
    assert state.patience_ends == 110.0
    later = state.record(0, failure("refused"), 101.0)
    assert (later.patience_ends, later.next_step(101.0)) == (110.0, Wait(103.0))
    assert later.record(0, failure("busy", 8.0), 103.0).next_step(103.0) is None


def test_turns_are_soonest_first() -> None:
    """Of several servers that come back the first one ready is asked, whichever failed last."""
    state = walk(3).record(2, failure("busy", 7.0), 0.0).record(0, failure("busy"), 0.0)
    state = state.record(1, failure("reset"), 2.0, gained=1)
    assert state.turns == (Turn(1.0, 0, 1), Turn(3.0, 1, 1), Turn(7.0, 2, 1))
    assert state.next_step(0.5) == Wait(1.0)
    assert state.next_step(9.0) == 0


def test_a_connection_that_was_closed_while_kept_is_tried_once_more() -> None:
    """Perhaps the server never saw the request: it comes back behind the untried ones, once."""
    state = walk(2).record(0, failure("closed", stale=True), 0.0)
    assert state.untried == (1, 0)
    assert state.record(1, failure("refused"), 0.0).record(0, failure("closed"), 0.0).next_step(0.0) is None


def test_a_server_left_on_purpose_is_asked_later() -> None:
    """Behind the untried ones and those that have been ready for longer, and then without a pause."""
    state = walk(3).record(0, failure("busy"), 0.0)
    left = state.later(1, 5.0)
    assert (left.untried, left.turns) == ((2,), (Turn(1.0, 0, 1), Turn(5.0, 1, 0)))
    assert left.record(2, failure("refused"), 5.0).next_step(5.0) == 0
    assert walk(1).later(0, 5.0).next_step(5.0) == 0
    sooner = state.later(1, 0.5)
    assert sooner.turns == (Turn(0.5, 1, 0), Turn(1.0, 0, 1))


def test_leaving_a_server_forgives_it_nothing() -> None:
    """It has one turn, which says how often it was asked."""
    state = walk(1).record(0, failure("reset"), 0.0, gained=1).record(0, failure("reset"), 1.0, gained=1)
    assert state.later(0, 9.0).turns == (Turn(9.0, 0, 2),)


def test_among() -> None:
    """Only these servers stay, in the order they had, and of the turns theirs."""
    state = walk(5).record(3, failure("busy"), 0.0).record(4, failure("busy"), 0.0)
    found = state.among({0, 2, 4})
    assert (found.untried, [turn.server for turn in found.turns]) == ((0, 2), [4])
    assert state.among(range(5)) == state


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
    st.lists(st.tuples(st.sampled_from([*NEXT_KINDS, "busy"]), st.sampled_from([0, 1, 15, 16, 99])), max_size=60),
)
def test_any_history_ends(count: int, history: list[tuple[str, int]]) -> None:
    """Each server is tried, none more than five times for a part worth the name, and the walk ends in its patience."""
    state, now, last_word = walk(count), 0.0, 0.0
    tried, rewarded = [0] * count, [0] * count
    kinds = iter(history)
    while (step := state.next_step(now)) is not None:
        if isinstance(step, Wait):
            assert step.until > now
            now = step.until
            continue
        tried[step] += 1
        kind, gained = next(kinds, ("refused", 0))
        state = state.record(step, failure(kind), now, gained=gained)
        last_word = now if gained else last_word
        rewarded[step] += gained >= PART_CHUNKS
    assert all(1 <= times <= BUSY_TRIES * (1 + parts) for times, parts in zip(tried, rewarded, strict=True))
    assert now <= last_word + 120.0
