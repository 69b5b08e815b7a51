"""How many requests this process has under way at each server, for whoever chooses one; of both front ends."""

from __future__ import annotations

from _weakref import ref  # `weakref` takes 1 ms to import
from contextlib import suppress


class Claim:
    """A request that is under way at a server, or about to be: it counts while somebody holds it."""

    __slots__ = ("__weakref__",)

    def __init__(self, label: str) -> None:
        CLAIMS.setdefault(label, []).append(ref(self))


CLAIMS: dict[str, list[ref[Claim]]] = {}  # by the server's label; a claim that nobody holds any more is over


def count(label: str) -> int:
    """Return how many requests are under way at a server."""
    claims = CLAIMS.get(label)
    if not claims:
        return 0
    for over in [claim for claim in claims if claim() is None]:
        with suppress(ValueError):  # another thread has removed it
            claims.remove(over)
    return len(claims)
