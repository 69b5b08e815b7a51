"""The asynchronous interface as a thread sees it that blocks, so that one test holds in both colours."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, Generic, TypeVar

import pytest

from aicortex import AsyncStream, Result, Stream, StreamEvent, achat

PATIENCE = 60.0  # seconds until a test gives up; only failing tests wait that long
Value = TypeVar("Value")
Run = Callable[..., Any]  # asyncio.run, or what another event loop has in its place
Chat = Callable[..., Any]  # `chat`, with which a colour is given: a Stream, or what looks like one, or str
Ask = Callable[..., Stream]  # what a module's own `ask` returns is a Stream, or looks like one
only_sync = pytest.mark.parametrize("chat", ["sync"], indirect=True)  # with the reason beside it


class Portal:
    """An event loop in a thread of its own, which runs what other threads wait for.

    The loop begins and ends as in a user's program, by `run`. It is in debug mode: what calls it from a wrong thread
    fails. Whatever it complains of, and each task that outlives its end, is raised by leaving the `with` block.
    """

    def __init__(self, run: Run = asyncio.run) -> None:
        self._run = run
        self._ready = threading.Event()
        self._complaints: list[str] = []
        self._thread = threading.Thread(target=self._host, name="Portal")

    def __enter__(self) -> Portal:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        assert not self._complaints, "\n".join(self._complaints)

    def run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """Run a coroutine as a task of its own; return or raise what it does."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def call(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Call a function in the loop's thread."""

        async def calling() -> Value:
            return function(*arguments)

        return self.run(calling())

    def chat(self, *asked: Any, stream: bool = False, **arguments: Any) -> BlockingStream | str:
        """Ask as `chat` does, by `achat`."""
        if not stream:
            return self.run(achat(*asked, **arguments))
        return BlockingStream(self, self.run(achat(*asked, stream=True, **arguments)))

    def _host(self) -> None:
        self._run(self._serve(), debug=True)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda _, context: self._complaints.append(str(context)))
        self._over = asyncio.Event()
        self._ready.set()
        await self._over.wait()
        ending = asyncio.all_tasks() - {asyncio.current_task()}
        left = (await asyncio.wait(ending, timeout=1))[1] if ending else ()  # what is being cancelled takes a moment
        self._complaints += [f"left behind: {task}" for task in left]


class BlockingStream:
    """An `AsyncStream` with the interface of a `Stream`, for any thread but the loop's own."""

    def __init__(self, portal: Portal, stream: AsyncStream) -> None:
        self._portal = portal
        self._stream = stream

    def __iter__(self) -> Steps[StreamEvent]:
        return Steps(self._portal, aiter(self._stream))

    def tokens(self) -> Steps[str]:
        return Steps(self._portal, aiter(self._stream.tokens()))

    def text(self) -> str:
        return self._portal.run(self._stream.text())

    @property
    def result(self) -> Result:
        return self._portal.run(self._stream.result())

    def object(self) -> Any:
        return self._portal.run(self._stream.object())

    @property
    def text_so_far(self) -> str:
        return self._stream.text_so_far

    @property
    def events(self) -> Sequence[StreamEvent]:
        return self._stream.events

    @property
    def done(self) -> bool:
        return self._stream.done

    def move(self) -> bool:
        return self._portal.call(self._stream.move)

    def cancel(self) -> None:
        """Cancel from the calling thread, and wait until the loop has done its part, which a `Stream` does at once."""
        self._stream.cancel()
        self._portal.call(lambda: None)

    def __repr__(self) -> str:
        return repr(self._stream)

    def __enter__(self) -> BlockingStream:
        self._portal.run(self._stream.__aenter__())
        return self

    def __exit__(self, *left: Any) -> None:
        self._portal.run(self._stream.__aexit__(*left))


class Steps(Iterator[Value], Generic[Value]):
    """An asynchronous iterator, each step of which is a task that the calling thread waits for."""

    def __init__(self, portal: Portal, steps: AsyncIterator[Value]) -> None:
        self._portal = portal
        self._steps = steps

    def __next__(self) -> Value:
        try:
            return self._portal.run(_wait_for(anext(self._steps)))
        except StopAsyncIteration:
            raise StopIteration from None


async def _wait_for(awaitable: Awaitable[Value]) -> Value:
    return await awaitable
