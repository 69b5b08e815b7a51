"""Questions to the network that come up while something is decided, and how each front end waits for them.

What decides is written once, as a generator that yields errands and is sent what they gave:

    blocking front end        does each errand where it is
    asynchronous front end    has it done in a thread, one for all who want the same at that moment

Most decisions need none: what servers said is remembered for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from typing import Any, TypeAlias, TypeVar

import msgspec

T = TypeVar("T")


class Errand(msgspec.Struct, frozen=True):
    """Something that takes time; errands of the same key give the same."""

    key: Hashable
    work: Callable[[], Any]  # Any: whatever the generator that yields it expects


Steps: TypeAlias = Generator[Errand, Any, T]  # Any: as above


def run(steps: Steps[T]) -> T:
    """Do each errand where it comes up, and return what was decided."""
    given = None
    try:
        while True:
            given = steps.send(given).work()
    except StopIteration as end:
        decided: T = end.value
        return decided
