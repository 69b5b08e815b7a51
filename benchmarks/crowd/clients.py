"""The asynchronous clients side by side, each written as its own documentation advises, all doing the same work.

`OPEN[name](url)` is an asynchronous context manager of a function that asks for one answer: `ask(model, prompt, take)`
calls `take` with the text of each token as soon as the client has it. The bare protocols are the floor: they look at no
token, and call `take` with the bytes as they come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, TypeAlias

from benchmarks.clients import LAST_CHUNK

Take: TypeAlias = Callable[[Any], object]  # Any: bytes for the bare protocols, str for others
Ask: TypeAlias = Callable[[str, str, Take], Coroutine[Any, Any, None]]  # Any: as every coroutine has them

DISTRIBUTIONS = {
    "bare": (),
    "buffered": (),
    "aiohttp": ("aiohttp", "msgspec"),
    "aicortex": ("aicortex",),
    "ollama": ("ollama",),
    "litellm": ("litellm",),
}


class Counter(asyncio.Protocol):
    """Hands the bytes of one response after the other to `take`, without looking at anything but their end."""

    def __init__(self) -> None:
        self._take: Take = len
        self._tail = b""  # the last chunk may arrive in two pieces
        self._ended: asyncio.Future[None]

    def begin(self, take: Take) -> asyncio.Future[None]:
        """Return what is done when the next response is over; its bytes go to `take`."""
        self._take, self._tail = take, b""
        self._ended = asyncio.get_running_loop().create_future()
        return self._ended

    def data_received(self, data: bytes) -> None:
        self._take(data)
        end = data if len(data) >= len(LAST_CHUNK) else self._tail + data
        if end.endswith(LAST_CHUNK):
            self._ended.set_result(None)
        self._tail = end[-len(LAST_CHUNK) :]


class BufferedCounter(Counter, asyncio.BufferedProtocol):
    """The same on a buffer that all connections share: asyncio allocates 256 kB for each read of a plain `Protocol`."""

    shared = bytearray(65536)

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 (the name is asyncio's)
        return self.shared

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(memoryview(self.shared)[:nbytes]))


@asynccontextmanager
async def open_bare(url: str, protocol: type[Counter] = Counter) -> AsyncIterator[Ask]:
    """Count bytes in a protocol of asyncio's; connections are used again."""
    host, _, port = url.removeprefix("http://").partition(":")
    idle: list[tuple[asyncio.Transport, Counter]] = []
    every: list[asyncio.Transport] = []

    async def ask(model: str, prompt: str, take: Take) -> None:
        body = f'{{"model":"{model}","messages":[{{"role":"user","content":"{prompt}"}}],"stream":true}}'
        head = f"POST /api/chat HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        if not idle:
            idle.append(await asyncio.get_running_loop().create_connection(protocol, host, int(port)))
            every.append(idle[-1][0])
        transport, counter = idle.pop()
        ended = counter.begin(take)
        transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        await ended
        idle.append((transport, counter))

    try:
        yield ask
    finally:
        for transport in every:
            transport.abort()


@asynccontextmanager
async def open_aiohttp(url: str) -> AsyncIterator[Ask]:
    """Read with the usual general client and the fastest JSON decoder, line by line, from a pool without a limit."""
    import aiohttp
    import msgspec

    message = msgspec.defstruct("Message", [("content", str)])
    chunk_type: Any = msgspec.defstruct("Chunk", [("message", message), ("done", bool)])  # Any: made at run time
    decode = msgspec.json.Decoder(chunk_type).decode

    async def ask(model: str, prompt: str, take: Take) -> None:
        request = {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": True}
        async with session.post(f"{url}/api/chat", json=request) as response:
            rest = b""
            async for data in response.content.iter_any():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    chunk = decode(line)
                    if not chunk.done:
                        take(chunk.message.content)

    unlimited = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=unlimited) as session:
        yield ask


@asynccontextmanager
async def open_aicortex(url: str) -> AsyncIterator[Ask]:
    """Read with AI Cortex, the whole contract on: events, log, cursor, failover armed."""
    from aicortex import achat

    async def ask(model: str, prompt: str, take: Take) -> None:
        stream = await achat(prompt, stream=True, model=model, servers=[url])
        async for event in stream:
            if event.type == "token":
                take(event.content)

    yield ask


@asynccontextmanager
async def open_ollama(url: str) -> AsyncIterator[Ask]:
    """Read with Ollama's official client."""
    from ollama import AsyncClient

    async def ask(model: str, prompt: str, take: Take) -> None:
        async for chunk in await client.chat(model, [{"role": "user", "content": prompt}], stream=True):
            if not chunk.done:
                take(chunk.message.content)

    async with AsyncClient(url) as client:
        yield ask


@asynccontextmanager
async def open_litellm(url: str) -> AsyncIterator[Ask]:
    """Read with LiteLLM through its provider for the same `/api/chat`."""
    from litellm import acompletion

    async def ask(model: str, prompt: str, take: Take) -> None:
        messages = [{"role": "user", "content": prompt}]
        chunks = await acompletion(f"ollama_chat/{model}", messages=messages, stream=True, api_base=url)
        async for chunk in chunks:
            if text := chunk.choices[0].delta.content:
                take(text)

    yield ask


OPEN: dict[str, Callable[[str], AbstractAsyncContextManager[Ask]]] = {
    "bare": open_bare,
    "buffered": partial(open_bare, protocol=BufferedCounter),
    "aiohttp": open_aiohttp,
    "aicortex": open_aicortex,
    "ollama": open_ollama,
    "litellm": open_litellm,
}
