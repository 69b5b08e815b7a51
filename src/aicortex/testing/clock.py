"""Time that passes only when a test says so."""

from __future__ import annotations


class ManualClock:
    """A clock to pass wherever a function that returns seconds is taken, such as `time.monotonic`.

    >>> clock = ManualClock()
    >>> clock.advance(2.5)
    >>> clock()
    1002.5
    """

    def __init__(self, start: float = 1_000.0) -> None:
        self._now = start

    def __call__(self) -> float:
        """Return the present time in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass. Raise `ValueError` for a negative number: the clock is monotonic."""
        if seconds < 0:
            raise ValueError(f"a clock cannot go back by {-seconds} s")
        self._now += seconds
