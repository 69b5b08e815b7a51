"""The stream that tasks read: as `stream.Stream`, for asyncio."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from aicortex._aio import aside
from aicortex._aio.client import Exchange
from aicortex._core.result import Result
from aicortex.errors import AICortexError
from aicortex.events import StreamEvent
from aicortex.stream import NO_FORMAT

if TYPE_CHECKING:
    import os

    from aicortex.partials import AsyncPartials
    from aicortex.recording import AsyncRecording

WRITE_ASYNC = "this belongs to an AsyncStream: write 'async for', not 'for'"


class AsyncStream:
    """The events of one answer, as they come, for `async for`.

    Iterating gives every event from the first one on, then waits for the next; each `aiter()` is a cursor of its own,
    and several tasks may read one stream. Reading raises as with a `Stream`. Leaving an `async with` block, `cancel()`,
    or dropping the last reference stops the generation on the server; so does a task that ends because it was cancelled
    while it read, unless another task reads too. A time limit around one read leaves the stream as it is.
    """

    __slots__ = ("__weakref__", "_exchange")

    def __init__(self, exchange: Exchange | AsyncRecording) -> None:
        self._exchange = exchange

    @classmethod
    async def load(cls, path: str | os.PathLike[str]) -> AsyncStream:
        """Return a stream that was saved, by `Stream.save` or here; raises as `Stream.load`."""
        from aicortex import recording

        found = await aside.do(object(), lambda: recording.read(path))
        return cls(recording.AsyncRecording(found.answer))

    async def save(self, path: str | os.PathLike[str]) -> None:
        """Read to the end, and write every event and how it ended into a file, as `Stream.save`."""
        from aicortex import recording

        outcome = await self._ended()
        await aside.do(object(), lambda: recording.write(path, self.events, outcome))

    def __aiter__(self) -> AsyncCursor:
        return AsyncCursor(self)

    def tokens(self) -> AsyncTokens:
        """Return an asynchronous iterator over the text of each token, from the first one on."""
        return AsyncTokens(self)

    def partials(self) -> AsyncPartials:
        """Return an asynchronous iterator over the value of an answer in JSON while it grows, as `Stream.partials`."""
        from aicortex.partials import AsyncPartials

        return AsyncPartials(self)

    async def text(self) -> str:
        """Read to the end and return the whole text; raises as iterating does."""
        return (await self.result()).text

    async def result(self) -> Result:
        """Read to the end and return text, thinking, finish reason, usage, timings, model, server and attempts."""
        outcome = await self._ended()
        if isinstance(outcome, Result):
            return outcome
        raise outcome.with_traceback(None)

    async def _ended(self) -> Result | AICortexError:
        exchange = self._exchange
        while (outcome := exchange.answer.outcome) is None or exchange.owes:
            await exchange.pump(len(exchange.answer.log))
        return outcome

    async def object(self) -> Any:  # Any: what `format` asked for
        """Read to the end and return the object that the answer stands for; raises as `Stream.object` does."""
        shape = self._exchange.shape
        if shape is None:
            raise ValueError(NO_FORMAT)
        return shape.read(await self.text())

    @property
    def text_so_far(self) -> str:
        """The text received so far; never waits and never raises."""
        return "".join(event.content or "" for event in self.events if event.type == "token")

    @property
    def events(self) -> Sequence[StreamEvent]:
        """Every event so far, oldest first: the live log, to look at and not to change."""
        return self._exchange.answer.log

    @property
    def done(self) -> bool:
        """Whether nothing more will come: the answer is whole, failed or cancelled."""
        return self._exchange.is_over

    def move(self) -> bool:
        """Leave the server that is answering and go on at another one, as if it had failed.

        Returns False, and changes nothing, when no other server can take over. Only for the loop's own thread.
        """
        return self._exchange.move()

    def cancel(self) -> None:
        """Stop the answer, from any thread; the server stops generating, and waiting readers wake up."""
        self._exchange.cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exchange.leave()
        await self._exchange.tell_over()

    def __del__(self) -> None:
        exchange = getattr(self, "_exchange", None)
        if exchange is not None:
            exchange.cancel()

    def __repr__(self) -> str:
        state = "done" if self.done else "running"
        return f"<AsyncStream {state}, {len(self.events)} events>"

    def _ipython_display_(self) -> None:
        """Show the answer as it comes, where a notebook has the stream as the last expression of a cell."""
        from aicortex.notebook import ashow

        ashow(self)

    if not TYPE_CHECKING:  # a type checker would take them for what they refuse

        def __iter__(self) -> NoReturn:
            raise TypeError(WRITE_ASYNC)

        def __enter__(self) -> NoReturn:
            raise TypeError("this is an AsyncStream: write 'async with', not 'with'")

        def __exit__(self, *_: object) -> None:
            """Make `with` get as far as `__enter__`, which says what to write."""


class AsyncCursor:
    """One reader's place in a stream."""

    __slots__ = ("_exchange", "_log", "_position", "_stream")

    def __init__(self, stream: AsyncStream) -> None:
        self._stream = stream  # so that a loop keeps its stream alive
        self._exchange = stream._exchange
        self._log = stream._exchange.answer.log
        self._position = 0

    def __aiter__(self) -> AsyncCursor:
        return self

    if not TYPE_CHECKING:

        def __iter__(self) -> NoReturn:
            raise TypeError(WRITE_ASYNC)

    async def __anext__(self) -> StreamEvent:
        while (position := self._position) == len(self._log):
            if not await self._exchange.pump(position):
                outcome = self._exchange.answer.outcome
                if isinstance(outcome, BaseException):
                    raise outcome.with_traceback(None)
                raise StopAsyncIteration
        if position == len(self._log) - 1 and self._exchange.owes:  # it may be the end
            await self._exchange.tell_over()
        self._position = position + 1
        return self._log[position]


class AsyncTokens:
    """One reader's place among the tokens of a stream; no generator, which a cancelled read would end."""

    __slots__ = ("_cursor",)

    def __init__(self, stream: AsyncStream) -> None:
        self._cursor = AsyncCursor(stream)

    def __aiter__(self) -> AsyncTokens:
        return self

    if not TYPE_CHECKING:

        def __iter__(self) -> NoReturn:
            raise TypeError(WRITE_ASYNC)

    async def __anext__(self) -> str:
        while True:
            event = await self._cursor.__anext__()
            if event.type == "token":
                return event.content or ""
