"""How many requests this process has under way at each server, for whoever chooses one; of both front ends."""

from __future__ import annotations

import os
from _weakref import ref  # `weakref` takes 1 ms to import


class Claim:
    """A request that is under way at a server, or about to be: it counts while somebody holds it."""

    __slots__ = ("__weakref__",)

    def __init__(self, label: str) -> None:
        claims = CLAIMS.setdefault(label, [])
        claims.append(ref(self, claims.remove))


CLAIMS: dict[str, list[ref[Claim]]] = {}  # by the server's label
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=CLAIMS.clear)  # those are the parent's requests


def count(label: str) -> int:
    """Return how many requests are under way at a server."""
    return len(CLAIMS.get(label, ()))
