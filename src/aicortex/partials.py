"""The value of a JSON answer while it grows, for `Stream.partials()` and `AsyncStream.partials()`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aicortex._core.growing import Growing
from aicortex.errors import OutputValidationError
from aicortex.events import StreamEvent

if TYPE_CHECKING:  # each colour brings its own; `asyncio` is not loaded for the other
    from aicortex.astream import AsyncStream
    from aicortex.stream import Stream


class Partials:
    """One reader's growing value of a stream: iterating gives it each time that tokens have changed it.

    It is the same list or dictionary every time, which goes on growing: copy what you keep. Tokens that are already
    there are taken together. The last value is the whole one. Reading raises as iterating the stream does, and
    OutputValidationError, with the text so far, as soon as the text can be no JSON. After an interrupt it reads on.
    """

    __slots__ = ("_cursor", "_growth")

    def __init__(self, stream: Stream) -> None:
        self._cursor = iter(stream)
        self._growth = Growth(stream.events)

    def __iter__(self) -> Partials:
        return self

    def __next__(self) -> Any:  # Any: JSON
        growth = self._growth
        while not growth.take():
            self._cursor._position = growth.taken
            try:
                next(self._cursor)
            except StopIteration:
                if growth.end():
                    break
                raise
        return growth.value


class AsyncPartials:
    """As `Partials`, for `async for`; a read that was cancelled can be taken up again."""

    __slots__ = ("_cursor", "_growth")

    def __init__(self, stream: AsyncStream) -> None:
        self._cursor = aiter(stream)
        self._growth = Growth(stream.events)

    def __aiter__(self) -> AsyncPartials:
        return self

    if not TYPE_CHECKING:  # a type checker would take it for what it refuses

        def __iter__(self) -> None:
            raise TypeError("these are the partials of an AsyncStream: write 'async for', not 'for'")

    async def __anext__(self) -> Any:  # Any: JSON
        growth = self._growth
        while not growth.take():
            self._cursor._position = growth.taken
            try:
                await self._cursor.__anext__()
            except StopAsyncIteration:
                if growth.end():
                    break
                raise
        return growth.value


class Growth:
    """The value that the first `taken` events of a log stand for.

    An interrupt may come anywhere. What it leaves behind is either as before, or begun and not `_is_sound`: then the
    log is read again from its start, into a new value.
    """

    __slots__ = ("_growing", "_is_sound", "_log", "taken")

    def __init__(self, log: Sequence[StreamEvent]) -> None:
        self._log = log
        self._begin()

    def _begin(self) -> None:
        self._growing = Growing()
        self.taken = 0
        self._is_sound = True

    @property
    def value(self) -> Any:  # Any: JSON
        """The value so far."""
        return self._growing.value

    def take(self) -> bool:
        """Take every event that is there; returns whether that has changed the value."""
        if not self._is_sound:
            self._begin()
        log, end = self._log, len(self._log)
        is_changed = False
        self._is_sound = self.taken == end
        try:
            for position in range(self.taken, end):
                event = log[position]
                if event.type == "token" and self._growing.feed(event.content or ""):
                    is_changed = True
        except ValueError as error:
            raise self._no_json(error) from error
        self.taken = end
        self._is_sound = True
        return is_changed

    def end(self) -> bool:
        """Take the end of the log; returns whether that has changed the value."""
        try:
            return self._growing.finish()
        except ValueError as error:
            raise self._no_json(error) from error

    def _no_json(self, error: ValueError) -> OutputValidationError:
        text = "".join(event.content or "" for event in self._log if event.type == "token")
        return OutputValidationError(f"the answer is no JSON: {error}", text=text, reason=f"It is no JSON: {error}")
