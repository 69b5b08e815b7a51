"""The breaker of a server, and its statistics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex._core.health import (
    BROKEN_KINDS,
    BUSY,
    CLOSED,
    HALF_OPEN,
    JITTER,
    LONGEST_PAUSE,
    LONGEST_REST,
    LOOK_SECONDS,
    MEMORY_SECONDS,
    OPEN,
    SHARE,
    Health,
)

NOW = 1_000_000.0


def failing(
    times: int, kind: str = "refused", seconds: float = 0.0, *, now: float = NOW, chance: float = 0.0
) -> Health:
    health = Health()
    for _ in range(times):
        health = health.failed_with(kind, now, seconds=seconds, chance=chance)
    return health


def test_it_opens_half_opens_and_closes() -> None:
    """A failure opens it for a second; then one may look; an answer closes it."""
    health = failing(1)
    assert [health.state(NOW + later) for later in (0.0, 0.9, 1.0)] == [OPEN, OPEN, HALF_OPEN]
    assert health.succeeded(NOW + 2).state(NOW + 2) == CLOSED


def test_each_pause_is_twice_as_long_up_to_two_minutes() -> None:
    """1, 2, 4 … 64, then 120 seconds for ever."""
    pauses = [failing(times).until - NOW for times in range(1, 12)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, *[LONGEST_PAUSE] * 4]


def test_a_pause_is_not_shorter_than_the_failure_took() -> None:
    """A server that kept its reader waiting for 30 s is not tried again before 30 s have gone by."""
    assert failing(1, "stalled", 30.0).until == NOW + 30.0


@given(chance=st.floats(0, 1), times=st.integers(1, 30))
def test_chance_makes_a_pause_longer_by_a_fifth_at_most(chance: float, times: int) -> None:
    """So that many processes do not come back at once, and none before its time."""
    least = failing(times).until - NOW
    assert least <= failing(times, chance=chance).until - NOW <= least * (1 + JITTER) + 1e-6


@pytest.mark.parametrize(
    "kind", ["rejected", "denied", "model_not_found", "moved", "outpaced", "timeout", "diverged", "slow"]
)
def test_what_is_not_the_servers_fault_changes_nothing(kind: str) -> None:
    """A 4xx, a move, a slower rival: the request counts, the breaker stays as it was."""
    health = Health(first_token=0.5, measured=NOW)
    after = health.failed_with(kind, NOW, seconds=3.0, chance=0.5)
    assert (after.state(NOW), after.failures, after.failed, after.requests) == (CLOSED, 0, 0, 1)
    assert after.first_token == 0.5


def test_busy_is_not_broken() -> None:
    """A full queue has a state of its own, for as long as the server asks."""
    health = Health().failed_with(BUSY, NOW, seconds=0.0, chance=0.0, retry_after=20.0)
    assert [health.state(NOW + later) for later in (0.0, 19.0, 20.0)] == [BUSY, BUSY, HALF_OPEN]
    assert BUSY not in BROKEN_KINDS
    asking = Health().failed_with(BUSY, NOW, seconds=0.0, chance=1.0, retry_after=1e9)
    assert asking.until == NOW + LONGEST_REST


def test_a_look_that_found_out_nothing_leaves_it_to_the_next() -> None:
    """It failed before, and may be looked at again."""
    health = failing(1).looked_at(NOW + 5).left_alone(NOW + 6)
    assert (health.state(NOW + 6), health.is_looked_at(NOW + 6), health.failures) == (HALF_OPEN, False, 1)


def test_every_change_is_stamped() -> None:
    """So that of what two processes know the newer can be told from the older."""
    health = failing(1, now=NOW)
    after = [health, health.looked_at(NOW), health.left_alone(NOW), health.answering(NOW), health.succeeded(NOW)]
    assert [each.changed for each in after] == [NOW] * 5
    assert health.failed_with("rejected", NOW + 1, seconds=0.0, chance=0.0).changed == NOW + 1


def test_one_looks() -> None:
    """A look keeps others from looking until it has ended, or for as long as a lost one may take."""
    health = failing(1).looked_at(NOW + 5)
    assert health.is_looked_at(NOW + 5 + LOOK_SECONDS - 1)
    assert not health.is_looked_at(NOW + 5 + LOOK_SECONDS)
    assert not health.failed_with("refused", NOW + 6, seconds=0.0, chance=0.0).is_looked_at(NOW + 6)
    assert not health.failed_with("rejected", NOW + 6, seconds=0.0, chance=0.0).is_looked_at(NOW + 6)


def test_an_answer_that_has_begun_closes_it() -> None:
    """Without being counted: that comes at its end."""
    health = failing(3).looked_at(NOW + 9).answering(NOW + 10)
    assert (health.state(NOW + 10), health.requests, health.answered, health.is_looked_at(NOW + 10)) == (
        CLOSED,
        3,
        NOW + 10,
        False,
    )


def test_a_clock_that_was_set_back_does_not_close_a_server_out() -> None:
    """A pause that would be longer than any server may ask for is over."""
    assert failing(9, now=NOW).state(NOW - LONGEST_REST) == HALF_OPEN


def test_the_newest_counts_most_and_the_old_is_forgotten() -> None:
    """Averages move by a share of the difference; after some half-lives the new value takes their place."""
    health = Health().succeeded(NOW, first_token=1.0, gap=0.1, pace=10.0)
    soon = health.succeeded(NOW, first_token=2.0, gap=0.2, pace=20.0)
    assert (soon.first_token, soon.gap, soon.pace) == pytest.approx((1 + SHARE, 0.1 + 0.1 * SHARE, 10 + 10 * SHARE))
    late = health.succeeded(NOW + 10 * MEMORY_SECONDS, first_token=2.0)
    assert late.first_token == pytest.approx(2.0, abs=0.001)
    assert late.pace == 10.0


def test_trust_halves() -> None:
    """What was measured one memory ago is worth half, and nothing is worth nothing."""
    health = Health().succeeded(NOW, first_token=1.0)
    assert [health.trust(NOW + age * MEMORY_SECONDS) for age in (-1, 0, 1, 2)] == [1.0, 1.0, 0.5, 0.25]
    assert Health().trust(NOW) == 0.0


def test_failures_make_it_unreliable_and_answers_reliable_again() -> None:
    """The average of its failures grows with each and shrinks with each answer."""
    once, twice = failing(1), failing(2)
    assert 0 < once.unreliable < twice.unreliable < 1
    assert twice.succeeded(NOW).unreliable < twice.unreliable


KINDS = st.sampled_from([*sorted(BROKEN_KINDS), BUSY, "rejected", "ok", "look", "answering"])


@given(st.lists(st.tuples(KINDS, st.floats(0, 500), st.floats(0, 200), st.floats(0, 1)), max_size=40))
def test_whatever_happens_it_is_asked_again(history: list[tuple[str, float, float, float]]) -> None:
    """No history keeps a server from being asked for longer than the longest pause and a lost look."""
    health, now = Health(), NOW
    for kind, later, seconds, chance in history:
        now += later
        if kind == "ok":
            health = health.succeeded(now, first_token=seconds)
        elif kind == "look":
            health = health.looked_at(now)
        elif kind == "answering":
            health = health.answering(now)
        else:
            health = health.failed_with(kind, now, seconds=seconds, chance=chance)
    now += max(LONGEST_PAUSE * (1 + JITTER), LOOK_SECONDS)
    assert health.state(now) in (CLOSED, HALF_OPEN)
    assert not health.is_looked_at(now)
    assert 0 <= health.unreliable <= 1


def test_one_death_is_one_failure() -> None:
    """Requests that were under way when a server failed do not make its pause longer; one that began later does."""
    first = Health().failed_with("reset", NOW, seconds=5.0, chance=0.0)
    both = first.failed_with("reset", NOW + 0.1, seconds=4.0, chance=0.0)
    assert (both.failures, both.until) == (1, NOW + 5.0)
    again = both.failed_with("refused", NOW + 6.0, seconds=0.0, chance=0.0)
    assert (again.failures, again.until) == (2, NOW + 8.0)
