"""How many requests are under way at each server."""

from __future__ import annotations

from aicortex.in_flight import Claim, count


def test_claims_count_while_they_are_held() -> None:
    """A claim counts for its server alone, and no longer once nobody holds it."""
    first, second = Claim("a"), Claim("a")
    assert (count("a"), count("b")) == (2, 0)
    del first
    assert count("a") == 1
    del second
    assert count("a") == 0
