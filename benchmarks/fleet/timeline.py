"""Virtual time: what is to happen next, in order."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

WALL = 1_700_000_000.0  # Unix time at which every run begins


class Timeline:
    """The moments still to come; what happens may put further ones behind."""

    def __init__(self) -> None:
        self.now = WALL
        self._moments: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, happen: Callable[[], None]) -> None:
        """Let something happen at a time; of two at the same one the first named goes first."""
        heappush(self._moments, (max(when, self.now), self._count, happen))
        self._count += 1

    def run(self) -> None:
        """Go on until nothing is left to happen."""
        while self._moments:
            self.now, _, happen = heappop(self._moments)
            happen()
