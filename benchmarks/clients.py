"""The clients side by side, each written as its own documentation advises, all doing the same work.

`OPEN[name](url)` returns a function that asks for one answer of a model and reads every token's text. A
reading is (tokens, size, moment of the first token): `size` counts characters and the moment is a
`time.perf_counter()`, which all processes of a machine share. Bare `recv` is the floor: it looks at no token,
and its `size` counts bytes.

This module imports nothing that Python has not loaded already: start-up times are measured through it.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False  # typing itself would show in the start-up time of bare `recv`
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    Reading: TypeAlias = tuple[int, int, float]
    Read: TypeAlias = Callable[[str], Reading]

FLOORS = ("bare", "buffered")  # look at no token, and count bytes: `recv`, and the protocols of benchmarks/crowd
LAST_CHUNK = b"\r\n0\r\n\r\n"
PROMPT = "Explain how black holes form."

IMPORTS = {
    "bare": "import socket",
    "urllib3": "import msgspec, urllib3",
    "aicortex": "from aicortex import chat",
    "ollama": "from ollama import Client",
    "litellm": "from litellm import completion",
}
DISTRIBUTIONS = {
    "bare": (),
    "urllib3": ("urllib3", "msgspec"),
    "aicortex": ("aicortex",),
    "ollama": ("ollama",),
    "litellm": ("litellm",),
}


def read_texts(texts: Iterator[str]) -> Reading:
    """Read all texts of an answer; a generator per client and this loop are what the clients share."""
    size = len(next(texts))
    first_token_at = time.perf_counter()
    tokens = 1
    for text in texts:
        tokens += 1
        size += len(text)
    return tokens, size, first_token_at


def open_bare(url: str) -> Read:
    """Read with `socket.recv` until the last HTTP chunk, without looking at anything in between."""
    import socket

    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(model: str) -> Reading:
        body = f'{{"model":"{model}","messages":[{{"role":"user","content":"{PROMPT}"}}],"stream":true}}'
        head = f"POST /api/chat HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        data = connection.recv(65536)
        first_token_at = time.perf_counter()
        size = len(data)
        while not data.endswith(LAST_CHUNK):
            rest = data[-len(LAST_CHUNK) :]  # the last chunk may arrive in two pieces
            received = connection.recv(65536)
            if not received:
                raise ConnectionError("the replay server closed the connection within an answer")
            size += len(received)
            data = received if len(received) > len(LAST_CHUNK) else rest + received
        return 0, size, first_token_at

    return read


def open_urllib3(url: str) -> Read:
    """Read with the usual general client and the fastest JSON decoder, line by line."""
    import msgspec
    import urllib3

    message = msgspec.defstruct("Message", [("content", str)])
    chunk_type: Any = msgspec.defstruct("Chunk", [("message", message), ("done", bool)])  # Any: made at run time
    decode = msgspec.json.Decoder(chunk_type).decode
    pool = urllib3.PoolManager()

    def texts(model: str) -> Iterator[str]:
        request = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": True}
        response = pool.request("POST", f"{url}/api/chat", json=request, preload_content=False)
        rest = b""
        for data in response.stream(65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                chunk = decode(line)
                if not chunk.done:
                    yield chunk.message.content
        response.release_conn()

    return lambda model: read_texts(texts(model))


def open_aicortex(url: str) -> Read:
    """Read with AI Cortex, the whole contract on: events, log, cursor, failover armed."""
    from aicortex import chat

    def texts(model: str) -> Iterator[str]:
        stream = chat(PROMPT, stream=True, model=model, servers=[url])
        for event in stream:
            if event.type == "token":
                yield event.content or ""

    return lambda model: read_texts(texts(model))


def open_ollama(url: str) -> Read:
    """Read with Ollama's official client."""
    from ollama import Client

    client = Client(url)

    def texts(model: str) -> Iterator[str]:
        for chunk in client.chat(model, [{"role": "user", "content": PROMPT}], stream=True):
            if not chunk.done:
                yield chunk.message.content or ""

    return lambda model: read_texts(texts(model))


def open_litellm(url: str) -> Read:
    """Read with LiteLLM through its provider for the same `/api/chat`."""
    from litellm import completion

    def texts(model: str) -> Iterator[str]:
        messages = [{"role": "user", "content": PROMPT}]
        for chunk in completion(f"ollama_chat/{model}", messages=messages, stream=True, api_base=url):
            if text := chunk.choices[0].delta.content:
                yield text

    return lambda model: read_texts(texts(model))


OPEN: dict[str, Callable[[str], Read]] = {
    "bare": open_bare,
    "urllib3": open_urllib3,
    "aicortex": open_aicortex,
    "ollama": open_ollama,
    "litellm": open_litellm,
}
