"""One connection of the fake server, and one request on it being answered.

`Connection` reads requests and notices when the client leaves; `Exchange` writes one response and knows how
far it has come, so that a reply can be cut at a token or a byte.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import formatdate
from functools import cached_property
from http.client import responses
from itertools import cycle
from typing import TYPE_CHECKING, Any

import msgspec

from aicortex.testing.generation import Generation, read_generation

if TYPE_CHECKING:
    from aicortex.testing.server import FakeServer


JSON_TYPE = "application/json; charset=utf-8"


class ClientGone(Exception):
    """The client closed the connection while its request was being answered."""


class CutReached(Exception):
    """The response has come to the place where its script cuts it."""


@dataclass(frozen=True)
class Request:
    """One request as the server received it.

    `headers` have lower-case names. `json` is the decoded body, or None where the body is empty or not JSON;
    `body` is always the raw bytes. `at` is `time.monotonic()` of the moment the request was complete, in
    seconds.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    json: Any  # Any: whatever JSON the client sent
    at: float

    @property
    def model(self) -> str:
        """The model the body names, or `""`."""
        return str(self.option("model") or self.option("name") or "")

    def option(self, name: str, default: Any = None) -> Any:  # Any: a JSON value
        """Return one top-level field of the JSON body, or `default` where it is absent."""
        return self.json.get(name, default) if isinstance(self.json, dict) else default


class Connection:
    """The server's end of one connection, which only its own thread uses, except for `interrupt`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._received = bytearray()
        self._resets_on_close = False
        self.interrupted = False

    def handshake(self) -> None:
        """Complete the TLS handshake, where the server speaks TLS."""
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.do_handshake()

    def read_request(self) -> Request:
        """Return the next request. Raise `ClientGone` at the end, `ValueError` if it is not HTTP."""
        line, *fields = self._take_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        method, target, _version = line.split(" ")
        pairs = (field.partition(":") for field in fields)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = self._take_chunks()
        else:
            body = self._take(int(headers.get("content-length", "0")))
        try:
            json = msgspec.json.decode(body) if body else None
        except msgspec.DecodeError:
            json = None
        path = "/" + target.partition("://")[2].partition("/")[2] if "://" in target else target
        return Request(method, path.partition("?")[0], headers, body, json, time.monotonic())

    def wait(self, seconds: float | None) -> None:
        """Wait for `seconds` (None: for ever), but raise `ClientGone` as soon as the client closes."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            self._socket.settimeout(None if deadline is None else max(0.0, deadline - time.monotonic()))
            try:
                self._receive()
            except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
                return

    def wait_for(self, bell: socket.socket, seconds: float | None) -> None:
        """Wait until `bell` is readable, `seconds` at most, but raise `ClientGone` as for `wait`."""
        deadline = None if seconds is None else time.monotonic() + seconds
        self._socket.settimeout(0.0)
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(bell, selectors.EVENT_READ)
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not any(key.fileobj is self._socket for key, _ in selector.select(left)):
                    return
                with suppress(BlockingIOError, ssl.SSLWantReadError):
                    self._receive()

    def write(self, data: bytes) -> None:
        """Send all of `data` in one write. Raise `ClientGone` if nobody is there to take it."""
        self._socket.settimeout(None)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ClientGone from error

    def reset_on_close(self) -> None:
        """Make `close` send RST instead of FIN."""
        self._resets_on_close = True

    def interrupt(self, *, reset: bool) -> None:
        """End what the connection's thread waits for, from another thread, with RST or with FIN."""
        self.interrupted = True
        self._resets_on_close = self._resets_on_close or reset
        # On the class: SSLSocket.shutdown would drop the TLS state under the feet of the other thread.
        # It fails only where the client has closed already.
        with suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RD if reset else socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection, with FIN or as `reset_on_close` says."""
        if self._resets_on_close:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def _receive(self) -> None:
        """Read once; what comes while a request is being answered belongs to the next one."""
        try:
            data = self._socket.recv(65536)
        except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
            raise
        except OSError as error:
            raise ClientGone from error
        if not data:
            raise ClientGone
        self._received += data

    def _take(self, size: int) -> bytes:
        self._socket.settimeout(None)
        while len(self._received) < size:
            self._receive()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _take_until(self, end: bytes) -> bytes:
        self._socket.settimeout(None)
        while end not in self._received:
            self._receive()
        return self._take(self._received.index(end) + len(end))[: -len(end)]

    def _take_chunks(self) -> bytes:
        chunks = []
        while size := int(self._take_until(b"\r\n").partition(b";")[0], 16):
            chunks.append(self._take(size))
            self._take(2)
        while self._take_until(b"\r\n"):  # trailers, up to the empty line
            pass
        return b"".join(chunks)


class Exchange:
    """One request being answered: what `Reply.play` gets, also in replies of your own.

    `request` is what the client sent and `server` the `FakeServer`. `streams` says whether the client asked
    for a stream (Ollama streams unless told `"stream": false`), `headers_sent` whether a status line has gone
    out, `finished` whether the whole answer has, `is_loading` whether the model is still being loaded. Every
    method that writes or waits ends the reply when the client has left.
    """

    def __init__(self, server: FakeServer, connection: Connection, request: Request) -> None:
        self.server = server
        self.request = request
        self.streams = request.option("stream", True) is not False
        self.headers_sent = False
        self.finished = False
        self.is_loading = False
        self.keeps_open = request.headers.get("connection", "").lower() != "close"
        self._connection = connection
        self._tokens = 0
        self._token_limit: float | None = None
        self._byte_limit: int | None = None
        self._unsent = bytearray()
        self._sizes: Iterator[int] | None = None
        self._next_size = 0
        self._collected: dict[str, Any] = {}  # Any: JSON values

    @cached_property
    def generation(self) -> Generation:
        """What the request asks for, with `prompt`, the rendered text, and `delivered`, the answer's part of it."""
        return read_generation(self.request, self.server.template)

    def cut_at(self, *, tokens: float | None, size_bytes: int | None) -> None:
        """Raise `CutReached` after so many more tokens or bytes from now on; None lifts the limit."""
        self._token_limit = None if tokens is None else self._tokens + tokens
        self._byte_limit = size_bytes

    def slice_into(self, sizes: Sequence[int]) -> None:
        """Send from now on in writes of these sizes in bytes, over and over, whatever they cut or join."""
        self._sizes = cycle(sizes)
        self._next_size = next(self._sizes)

    def pause(self, seconds: float | None) -> None:
        """Wait for `seconds`, or None for as long as the client stays."""
        if seconds != 0.0:
            self.flush()
        self._connection.wait(seconds)

    def load(self, seconds: float | None) -> None:
        """Load the model, for `seconds` or, with None, until `FakeServer.finish_loading`. Nothing is sent."""
        self.is_loading = True
        with self.server.load() as finished:
            self._connection.wait_for(finished, seconds)
        self.is_loading = False

    def start_stream(self) -> None:
        """Send the headers of a stream alone, unless they are out. Ollama sends them with the first chunk."""
        self.send(self._stream_head())

    def token(self, **parts: Any) -> None:  # Any: JSON values
        """Send one chunk with `content=`, `thinking=` or `tool_calls=`, or keep it if nothing is streamed."""
        self._stop_at_limit(self._tokens)
        self._tokens += 1
        if self.streams:
            self.chunk(msgspec.json.encode(self._record(parts) | {"done": False}) + b"\n")
            return
        for name, part in parts.items():
            self._collected[name] = self._collected[name] + part if name in self._collected else part

    def done(self, final: Mapping[str, Any], *, content: str = "") -> None:  # Any: JSON values
        """Send the `done` record with the fields of `final`, and end the response."""
        if self._token_limit is not None:
            self._stop_at_limit(self._token_limit)
        if self.streams:
            record = self._record({"content": content}) | {"done": True, **final}
            self.chunk(msgspec.json.encode(record) + b"\n")
            self.flush()
            self.finished = True
            self.end_stream()
            return
        self._collected["content"] = self._collected.get("content", "") + content
        self.respond(200, msgspec.json.encode(self._record(self._collected) | {"done": True, **final}))
        self.flush()
        self.finished = True

    def chunk(self, data: bytes) -> None:
        """Send `data` as one HTTP chunk, after the headers if they are not out yet."""
        self.send(self._stream_head() + b"%x\r\n%s\r\n" % (len(data), data))

    def end_stream(self) -> None:
        """Send the last chunk of HTTP's framing, which says nothing about whether the answer is whole."""
        self.send(self._stream_head() + b"0\r\n\r\n")

    def respond(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = JSON_TYPE,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a whole response with Content-Length."""
        fields = {"Content-Type": content_type, "Content-Length": str(len(body)), **(headers or {})}
        self.send(self._head(status, fields) + body)

    def send(self, data: bytes) -> None:
        """Send exact bytes, up to the limit of the cut."""
        if self._byte_limit is not None:
            data, cut = data[: self._byte_limit], len(data) >= self._byte_limit
            self._byte_limit -= len(data)
        else:
            cut = False
        self._unsent += data
        self._write_slices()
        if cut:
            self.flush()
            raise CutReached

    def flush(self) -> None:
        """Send what still waits for a slice to fill."""
        if self._unsent:
            self._connection.write(bytes(self._unsent))
            self._unsent.clear()

    def reset(self) -> None:
        """End the connection with RST when the reply is over."""
        self.keeps_open = False
        self._connection.reset_on_close()

    def _write_slices(self) -> None:
        if self._sizes is None:
            self.flush()
            return
        while len(self._unsent) >= self._next_size:
            self._connection.write(bytes(self._unsent[: self._next_size]))
            del self._unsent[: self._next_size]
            self._next_size = next(self._sizes)

    def _stop_at_limit(self, tokens: float) -> None:
        if self._token_limit is None or tokens < self._token_limit:
            return
        if self.streams:
            self.start_stream()
        self.flush()
        raise CutReached

    def _record(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Return one chunk in the shape of the endpoint: a message for /api/chat, flat for /api/generate."""
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
        record: dict[str, Any] = {"model": self.request.model, "created_at": now}
        if self.request.path == "/api/chat":
            return record | {"message": {"role": "assistant", "content": "", **parts}}
        others = {name: part for name, part in parts.items() if name != "content"}
        return record | {"response": parts.get("content", ""), **others}

    def _stream_head(self) -> bytes:
        if self.headers_sent:
            return b""
        return self._head(200, {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"})

    def _head(self, status: int, fields: Mapping[str, str]) -> bytes:
        self.headers_sent = True
        fields = {"Date": formatdate(usegmt=True), **fields}
        if not self.keeps_open:
            fields = {**fields, "Connection": "close"}
        status_line = f"HTTP/1.1 {status} {responses.get(status, '')}"
        lines = [status_line, *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1")
