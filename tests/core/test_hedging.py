"""The budget for asking twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex._core.hedging import AT_FIRST, AT_MOST, RATIO, Budget


def spent(budget: Budget) -> int:
    """Return how many extra requests a budget allows at once."""
    count = 0
    while budget.allows:
        budget.spend()
        count += 1
    return count


def test_a_few_are_free() -> None:
    """A young fleet may ask twice before it has asked much."""
    assert spent(Budget()) == AT_FIRST


def test_ten_requests_pay_for_one() -> None:
    """In the long run one request in ten is made twice, and no more."""
    budget = Budget()
    spent(budget)
    extra = 0
    for _ in range(1000):
        budget.earn()
        extra += spent(budget)
    assert extra == pytest.approx(1000 * RATIO, abs=1)


def test_no_more_than_ten_are_saved_up() -> None:
    """A long quiet time does not pay for a storm."""
    budget = Budget()
    for _ in range(10_000):
        budget.earn()
    assert spent(budget) == AT_MOST


@given(st.lists(st.booleans(), max_size=300))
def test_any_history_stays_within_the_budget(history: list[bool]) -> None:
    """However requests come, the extra ones are never more than the first few and a tenth, and nothing is owed."""
    budget, requests, extra = Budget(), 0, 0
    for is_late in history:
        budget.earn()
        requests += 1
        if is_late and budget.allows:
            budget.spend()
            extra += 1
        assert budget.left >= 0
    assert extra <= AT_FIRST + RATIO * requests
