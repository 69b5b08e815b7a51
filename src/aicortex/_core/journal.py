"""The log of an answer and its state, changed together: all or nothing, whenever an interrupt falls."""

from __future__ import annotations

from typing import Any

from aicortex._core.state import Progress, State
from aicortex.events import StreamEvent


class Journal:
    """Events that were told, and the state they led to.

    Every change is one commit: the new state and its events are computed aside, staged in one assignment and then
    applied. A KeyboardInterrupt at any point leaves either the old state or a staged commit, which the next call
    finishes: nothing is lost and nothing comes twice (contract C12).
    """

    __slots__ = ("_progress", "_staged", "_state", "_zero", "log")

    def __init__(self, state: State, start: StreamEvent, *, zero: float) -> None:
        self._zero = zero  # of the wall clock, on the caller's monotonic one
        self._staged: tuple[int, list[StreamEvent], State, Progress] | None = None
        self._state = state
        self._progress = Progress()
        self.log: list[StreamEvent] = [start]

    def _event(self, kind: str, now: float, content: str, meta: dict[str, Any]) -> StreamEvent:  # Any: JSON
        return StreamEvent(kind, content, meta=meta, timestamp=now + self._zero)

    def _commit(self, events: list[StreamEvent], state: State, progress: Progress) -> None:
        self._staged = (len(self.log), events, state, progress)
        self.log.extend(events)
        self._progress = progress
        self._state = state
        self._staged = None

    def _recover(self) -> None:
        """Finish a commit that was interrupted."""
        if self._staged is None:
            return
        base, events, state, progress = self._staged
        if len(self.log) == base:
            self.log.extend(events)
        self._progress = progress
        self._state = state
        self._staged = None
