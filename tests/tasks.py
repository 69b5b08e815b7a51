"""What tasks do with a stream: ask, read, be cancelled, and wait for what a server sees of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from aicortex import AsyncStream, StreamEvent, achat
from aicortex.testing import Answer, FakeServer, Stall, split_tokens

TEXT = "Seven planets have rings or moons, and two have neither of them at all."
STALLING = Answer(TEXT).then(Stall(), after_tokens=5)
FIVE = "".join(split_tokens(TEXT)[:5])
Run = Callable[..., Any]  # asyncio.run, or what uvloop has in its place


async def ask(*servers: FakeServer, **arguments: Any) -> AsyncStream:
    return await achat("Which?", stream=True, servers=[server.url for server in servers], **arguments)


async def until(server: FakeServer, claim: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait until a claim about a server holds, while the event loop goes on."""
    return await asyncio.to_thread(server.wait_until, claim, seconds)


async def is_freed(server: FakeServer) -> bool:
    """Whether the server sees within a second that nobody wants its answer any more."""
    return await asyncio.to_thread(server.wait_for_disconnect, 1)


async def read_five(stream: AsyncStream) -> AsyncIterator[str]:
    """Read the five tokens of STALLING, and return the iterator that did it."""
    words = aiter(stream.tokens())
    assert "".join([await anext(words) for _ in range(5)]) == FIVE
    return words


async def read_all(
    stream: AsyncStream, seen: list[StreamEvent] | None = None, has_five: asyncio.Event | None = None
) -> list[StreamEvent]:
    """Read a stream to its end; `seen` has what came so far."""
    seen = [] if seen is None else seen
    async for event in stream:
        seen.append(event)
        if event.index == 4 and has_five is not None:
            has_five.set()
    return seen


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end, which must be that of a cancelled one."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


def said(events: list[StreamEvent]) -> str:
    return "".join(event.content or "" for event in events if event.type == "token")
