"""How many requests may be made twice because the first one is late."""

from __future__ import annotations

RATIO = 0.1  # extra requests per request, in the long run
AT_FIRST = 3.0  # extra requests before there was any other
AT_MOST = 10.0  # extra requests that may be saved up


class Budget:
    """What is left for asking a second server: each request pays a little in, each extra one takes one out."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = AT_FIRST

    @property
    def allows(self) -> bool:
        """Whether an extra request may be made."""
        return self.left >= 1.0

    def earn(self) -> None:
        """Count a request."""
        self.left = min(self.left + RATIO, AT_MOST)

    def spend(self) -> None:
        """Count an extra request."""
        self.left -= 1.0
