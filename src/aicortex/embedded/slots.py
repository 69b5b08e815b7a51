"""Who may generate now: as many as the engine has slots; the others wait in order of arrival."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock

from aicortex.embedded.api import ApiError

QUEUE_LIMIT = 64
_GLANCE = 0.2  # seconds between two looks at whether a waiting client is still there


class ClientGoneError(Exception):
    """The client closed its connection: there is nobody to answer."""


class Slots:
    """A queue before `count` slots, at most `queue_limit` long."""

    def __init__(self, count: int, *, queue_limit: int = QUEUE_LIMIT):
        self._lock = Lock()
        self._free = count
        self._queue: deque[Event] = deque()
        self._queue_limit = queue_limit

    @contextmanager
    def taken(self, is_gone: Callable[[], bool]) -> Iterator[None]:
        """Wait for a slot and hold it for the block.

        Raise ApiError 503, in Ollama's words, when the queue is full; ClientGoneError when `is_gone()`
        while waiting.
        """
        turn = self._enter()
        while turn is not None and not turn.wait(_GLANCE):
            if is_gone():
                self._leave(turn)
                raise ClientGoneError
        try:
            yield
        finally:
            self._give()

    def _enter(self) -> Event | None:
        """Take a free slot (None) or a place in the queue (the event that calls it)."""
        with self._lock:
            if self._free:
                self._free -= 1
                return None
            if len(self._queue) >= self._queue_limit:
                raise ApiError(503, "server busy, please try again.  maximum pending requests exceeded")
            turn = Event()
            self._queue.append(turn)
            return turn

    def _leave(self, turn: Event) -> None:
        with self._lock:
            if not turn.is_set():
                self._queue.remove(turn)
                return
        self._give()  # called in the moment of leaving: the slot was already ours

    def _give(self) -> None:
        with self._lock:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._free += 1
