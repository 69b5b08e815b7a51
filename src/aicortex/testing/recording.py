"""What a real server said, kept in a file, and a server that says it again.

The file has one line of JSON an exchange, in the order of the requests:

    {"aicortex": "exchanges", "version": 1, "saved": 1790000000.0}
    {"method": "POST", "path": "/api/chat", "headers": {…}, "json": {…},
     "response": [[0.31, "SFRUUC8xLjE…"], …], "ended": "kept"}
    {"exchanges": 1}

`json` is the request's body, `body` (base64) one that is no JSON; each piece of the response has the seconds since the
request and its bytes (base64). `ended` says how it ended:

    kept    the response is whole, and the connection stays open
    closed  the response is whole, and the server closed the connection
    cut     the server closed the connection before the response was whole
    reset   the server reset the connection, or was not there
    left    the client left, or the recording ended, before the response was whole
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from aicortex._core.http import Response
from aicortex._core.server import parse_address
from aicortex.recording import Path, decoded, read_lines, write_lines
from aicortex.testing.exchange import Exchange, Request
from aicortex.testing.relay import Relay, _Link
from aicortex.testing.replies import Reply
from aicortex.testing.server import FakeServer

KIND = "exchanges"
SHOWN = {"accept", "connection", "content-length", "content-type", "transfer-encoding", "user-agent"}  # hold no secrets
EXCERPT = 300  # characters of a request in an error


class Recorded(msgspec.Struct, omit_defaults=True):
    """One request, and what came back."""

    method: str
    path: str
    headers: dict[str, str] = {}
    json: Any = None  # Any: JSON of the client's making
    body: bytes = b""
    response: list[tuple[float, bytes]] = []
    ended: str = "left"

    def answers(self, request: Request) -> bool:
        """Whether this is the same request: method, path, and body as JSON."""
        if (self.method, self.path) != (request.method, request.path) or self.json != request.json:
            return False
        return self.json is not None or self.body == request.body


class Recorder(Relay):
    """A port on loopback that leads to a server, and keeps every exchange: what `record` gives.

    A `Relay` with all its faults; the file has what the server said, before a fault of the relay struck. It is written
    by `stop`, which leaving the `with` block calls, and replaces one of the same name.
    """

    def __init__(self, server: str, path: Path) -> None:
        super().__init__(server)
        scheme, self._userinfo, *_ = parse_address(server)
        if scheme != "http":
            raise ValueError("https hides what is said: record at the server itself, or where its https ends")
        folder = os.path.dirname(os.path.realpath(path))
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"there is no folder {folder} for the recording")
        self.exchanges: list[Recorded] = []
        self._file = path
        self._talks: dict[_Link, _Talk] = {}

    @property
    def url(self) -> str:
        """The address to give to the client, with the server's path and user info; known once it has started."""
        scheme, separator, place = super().url.partition("://")
        return f"{scheme}{separator}{self._userinfo}@{place}" if self._userinfo else scheme + separator + place

    def stop(self) -> None:
        """Close every connection, wait for the thread to end and write the file. Raise OSError when that fails."""
        is_running = self._thread is not None
        super().stop()
        if is_running:
            ending = {KIND: len(self.exchanges)}
            write_lines(self._file, KIND, map(msgspec.json.encode, (*self.exchanges, ending)))

    # Everything below runs in the relay's thread.

    def _hear(self, link: _Link, from_client: bool, events: int) -> None:
        talk = self._talks.setdefault(link, _Talk(self.exchanges, self._path))
        asked, answered = len(link.to_server), len(link.to_client)
        super()._hear(link, from_client, events)
        talk.ask(bytes(link.to_server[asked:]))
        talk.answer(bytes(link.to_client[answered:]))

    def _end(self, link: _Link, *, reset: bool = False) -> None:
        talk = self._talks.pop(link, None)
        if talk is not None:
            is_refused = reset and not link.connected
            talk.end("reset" if is_refused else link.server_left)
        super()._end(link, reset=reset)


class _Talk:
    """The exchanges of one connection, told from the bytes that go by."""

    def __init__(self, exchanges: list[Recorded], prefix: str) -> None:
        self._exchanges = exchanges
        self._prefix = prefix  # of the server's paths, which one that replays does not have
        self._latest: Recorded | None = None
        self._response = Response()
        self._asked_at = 0.0
        self._is_http = True
        self._parser = HttpRequestParser(self)

    def ask(self, data: bytes) -> None:
        """Take bytes of the client; those that are no HTTP make no exchange."""
        if data and self._is_http:
            try:
                self._parser.feed_data(data)
            except (HttpParserError, HttpParserUpgrade):
                self._is_http = False

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body = b""

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        known = name.decode("latin-1").lower()
        if known in SHOWN:
            self._headers[known] = value.decode("latin-1")

    def on_body(self, piece: bytes) -> None:
        self._body += piece

    def on_message_complete(self) -> None:
        self._asked_at = time.monotonic()
        self._response = Response()
        path = self._target.decode("latin-1").partition("?")[0].removeprefix(self._prefix)
        method = self._parser.get_method().decode()
        self._latest = Recorded(method, path, self._headers, _json_of(self._body), response=[])
        if self._latest.json is None:
            self._latest.body = self._body
        self._exchanges.append(self._latest)

    def answer(self, data: bytes) -> None:
        """Take bytes of the server; those before any request belong to nothing."""
        if data and self._latest is not None:
            self._latest.response.append((round(time.monotonic() - self._asked_at, 6), data))
            self._response.take_all([data])
            self._response.body.clear()
            if self._is_whole(self._latest):
                self._latest.ended = "kept"

    def end(self, server_left: str) -> None:
        """Take note that the connection is over, and whether the server "closed" or "reset" it."""
        if self._latest is None or not server_left:
            return
        self._response.eof = server_left == "closed"
        is_cut = server_left == "closed" and not self._is_whole(self._latest)
        self._latest.ended = "cut" if is_cut else server_left

    def _is_whole(self, exchange: Recorded) -> bool:
        response = self._response
        has_length = response.header("content-length") or response.header("transfer-encoding")
        ends_with_head = exchange.method == "HEAD"
        ends_with_connection = response.eof and not has_length
        return response.complete or (response.started and (ends_with_head or ends_with_connection))


class _Replayed(Reply):
    """What was recorded, to requests that were recorded."""

    def __init__(self, path: Path, exchanges: Sequence[Recorded], pace: float) -> None:
        self._name = os.fspath(path)
        self._exchanges = exchanges
        self._pace = pace
        self._given: set[int] = set()
        self._choosing = threading.Lock()

    def play(self, exchange: Exchange) -> None:
        recorded = self._choose(exchange.request)
        if recorded is None:
            exchange.respond(500, msgspec.json.encode({"error": self._unknown(exchange.request)}))
            return
        began = time.monotonic()
        for seconds, piece in recorded.response:
            exchange.pause(max(0.0, began + seconds * self._pace - time.monotonic()))
            exchange.send(piece)
        exchange.finished = recorded.ended in ("kept", "closed")
        exchange.keeps_open = recorded.ended == "kept"
        if recorded.ended == "reset":
            exchange.reset()
        elif recorded.ended == "left":
            exchange.pause(None)

    def _choose(self, request: Request) -> Recorded | None:
        """Return the next recording of this request; the last one again when it is asked more often than it was."""
        with self._choosing:
            same = [number for number, each in enumerate(self._exchanges) if each.answers(request)]
            if not same:
                return None
            number = next((number for number in same if number not in self._given), same[-1])
            self._given.add(number)
            return self._exchanges[number]

    def _unknown(self, request: Request) -> str:
        body = request.body[:EXCERPT].decode("utf-8", "replace")
        return f"{self._name} has no recording of {request.method} {request.path} {body}".rstrip()


def record(server: str, path: Path) -> Recorder:
    """Return a relay to an Ollama server that writes into a file what is asked and what comes back.

    Use as a context manager and give its `url` to the client. All bytes pass as they are; the file is written when the
    block is left, and replaces one of the same name. It has the requests with their bodies, of their headers only those
    that never hold a secret, and every response byte by byte; only its owner may read it. Raises ValueError for what is
    no address and for https, which cannot be listened to, OSError when there is no folder for the file.
    """
    return Recorder(server, path)


def replay(path: Path, *, pace: float = 0.0) -> FakeServer:
    """Return a server that gives to each request in a file of `record` the recorded bytes, in the recorded pieces.

    Use as a context manager and give its `url` to the client. Requests are the same when method, path and body (as
    JSON) are; equal ones get their responses in the recorded order, and the last one again when they come more often.
    Every other request gets status 500 and an error that names it. A connection ends as it did; where the client had
    left, the server falls silent. With `pace=1.0` the recorded pauses are played, with 0.5 half of each.

    Raises OSError when the file cannot be read, ValueError when it is not one of `record`, is cut or damaged, or was
    made by a newer version, and for a negative pace.
    """
    if pace < 0:
        raise ValueError(f"a pace is 0 (no pauses) or more, not {pace}")
    *lines, _ = read_lines(path, KIND, made_by="aicortex.testing.record(server, path)", endings=(KIND,))
    return FakeServer(everything=_Replayed(path, decoded(path, lines, Recorded), pace))


def _json_of(body: bytes) -> Any:  # Any: JSON of the client's making
    try:
        return msgspec.json.decode(body) if body else None
    except msgspec.DecodeError:
        return None
