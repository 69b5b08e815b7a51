"""Scripted Ollama servers and a manual clock, to test applications without a model and without luck.

A `FakeServer` listens on loopback in threads of this process and speaks Ollama's protocol over real sockets:
NDJSON, one object per chunk, headers together with the first chunk, keep-alive. Its arguments script the
successive requests for text, and every way in which a server can fail is a reply too:

    >>> import http.client, json
    >>> from aicortex.testing import Answer, FakeServer, InBandError
    >>> with FakeServer(Answer("Black holes form").then(InBandError("no memory"), after_tokens=2)) as server:
    ...     client = http.client.HTTPConnection(server.host, server.port)
    ...     client.request("POST", "/api/generate", json.dumps({"model": "fake", "prompt": "How?"}))
    ...     lines = [json.loads(line) for line in client.getresponse()]
    ...     client.close()
    >>> [line.get("response", line.get("error")) for line in lines]
    ['Black', ' holes', 'no memory']
    >>> server.requests[0].json["prompt"]
    'How?'

**Continuing a broken answer.** The server continues as Ollama does: it renders a conversation for
`_debug_render_only`, and to a raw prompt that ends with the beginning of an answer it sends the rest. With
`template="prefill"` a last message of the assistant is continued too, `version="0.11.4"` cannot render, and
`continuation=` is what the server says instead of the rest:

    >>> with FakeServer(answer="Black holes form", continuation="Sure! Black holes form") as server:
    ...     client = http.client.HTTPConnection(server.host, server.port)
    ...     body = {"model": "fake", "prompt": "<|assistant|>Black holes", "raw": True, "stream": False}
    ...     client.request("POST", "/api/generate", json.dumps(body))
    ...     preamble = json.load(client.getresponse())["response"]
    ...     server.continuation = None
    ...     client.request("POST", "/api/generate", json.dumps(body))
    ...     rest = json.load(client.getresponse())["response"]
    ...     client.close()
    >>> preamble, rest
    ('Sure! Black holes form', ' form')

**Where a fault strikes.** A fault alone strikes before the headers: `FakeServer(Reset())`. After an answer
has begun it strikes with `Answer(...).then(fault, after_tokens=n)`, where `after_tokens=0` means that the
headers are sent and nothing else, or with `after_bytes=n`, counted from the first byte of the status line;
without either it strikes in place of the `done` record. `FakeServer(everything=fault)` strikes on every
request, `paths={"/api/ps": fault}` on one path.

**When it has happened.** Nothing needs to sleep: `server.wait_for_disconnect()` returns as soon as a
cancelled generation has reached the server, `server.wait_until(claim)` as soon as any claim about the server
holds. A load of the model, `Loading(reply)`, lasts until `server.finish_loading()`.

**Between client and server.** A `Relay` stands in front of any server, fake or real, and cuts, stalls, delays,
throttles or corrupts what passes.

**A real server, once.** `record(server, path)` is a relay that keeps what a real server said in a file, and
`replay(path)` a server that says it again, byte by byte.
"""

from __future__ import annotations

from aicortex.testing.clock import ManualClock
from aicortex.testing.exchange import Exchange, Request
from aicortex.testing.recording import Recorded, Recorder, record, replay
from aicortex.testing.relay import Relay
from aicortex.testing.replies import (
    Answer,
    Close,
    Cut,
    Garbage,
    Hang,
    InBandError,
    Loading,
    Raw,
    Refuse,
    Reply,
    Reset,
    Stall,
    Status,
    split_tokens,
)
from aicortex.testing.server import FakeServer

__all__ = [
    "Answer",
    "Close",
    "Cut",
    "Exchange",
    "FakeServer",
    "Garbage",
    "Hang",
    "InBandError",
    "Loading",
    "ManualClock",
    "Raw",
    "Recorded",
    "Recorder",
    "Refuse",
    "Relay",
    "Reply",
    "Request",
    "Reset",
    "Stall",
    "Status",
    "record",
    "replay",
    "split_tokens",
]
