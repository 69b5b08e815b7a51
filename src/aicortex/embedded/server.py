"""Ollama's HTTP API on a loopback port: one thread per connection, NDJSON streams in chunks.

It takes no key, so it listens on loopback only and answers nobody who comes under another name: a web page
that points its own host name at 127.0.0.1, or posts from its own origin, gets 403 with an empty body, as
from Ollama.
"""

from __future__ import annotations

import ipaddress
import selectors
import socket
import socketserver
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import msgspec

from aicortex.embedded.answering import Model, answer
from aicortex.embedded.api import VERSION, ApiError, Task, parse_chat, parse_generate, parse_show
from aicortex.embedded.slots import ClientGoneError

_BODY_LIMIT = 32 << 20  # bytes of a request
_LENGTH_DIGITS = 16  # of a Content-Length that means anything


class ApiServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves one model on `host`:`port`; port 0 picks one. Raise OSError when the port is taken."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    allow_reuse_address = hasattr(socket, "SO_REUSEPORT")  # on Windows it would share a port that is taken

    def __init__(self, host: str, port: int, model: Model):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.model = model
        self._lock = Lock()
        self._active = 0
        self._last_used = time.monotonic()
        super().__init__((host, port), Handler)

    @property
    def port(self) -> int:
        """Return the port it listens on."""
        return int(self.server_address[1])

    def idle_seconds(self) -> float:
        """Return how long nobody has asked for anything; 0 while a request is being answered."""
        with self._lock:
            return 0.0 if self._active else time.monotonic() - self._last_used

    def touch(self, change: int = 0) -> None:
        """Note that somebody wants this server; `change` is +1 when a request begins and -1 when it ends."""
        with self._lock:
            self._active += change
            self._last_used = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "aicortex", ""
    timeout = 600.0  # seconds a client may send nothing between requests, or read nothing of an answer
    disable_nagle_algorithm = True  # a token must not wait for the acknowledgement of the one before
    server: ApiServer

    def do_GET(self) -> None:
        """Answer the questions that change nothing."""
        self._handled(self._get)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Answer chat, generate and show."""
        self._handled(self._post)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Refuse what has no `do_` method, or is no HTTP, with JSON instead of the standard library's page."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            with suppress(ApiError, ClientGoneError, OSError):
                self._body()  # closing with unread bytes would reset the connection under the reply
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, "method not allowed"
        self.close_connection = True
        self._tell(ApiError(code, message or HTTPStatus(code).phrase.lower()))

    def log_message(self, format: str, *args: Any) -> None:  # Any: the signature of the standard library
        """Log nothing: a request is the user's own business."""

    def _handled(self, route: Callable[[], None]) -> None:
        self.server.touch(+1)
        try:
            route()
        except ApiError as exc:
            self._tell(exc)
        except (ClientGoneError, OSError):
            self.close_connection = True
        finally:
            self.server.touch(-1)

    def _tell(self, error: ApiError) -> None:
        try:
            self._send_json(error.status, {"error": error.message})
        except OSError:
            self.close_connection = True

    def _get(self) -> None:
        path = urlsplit(self.path).path
        if self._is_foreign():
            self._send(403, b"")
        elif path == "/":
            self._send(200, b"Ollama is running", "text/plain; charset=utf-8")
        elif path == "/api/version":
            self._send_json(200, {"version": VERSION})
        elif path == "/api/tags":
            self._send_json(200, self.server.model.tags())
        elif path == "/api/ps":
            self._send_json(200, self.server.model.running())
        else:
            self._send(404, b"404 page not found", "text/plain")

    def _post(self) -> None:
        path, model = urlsplit(self.path).path, self.server.model
        body = self._body()
        if self._is_foreign():
            self._send(403, b"")
        elif path == "/api/chat":
            self._answer(parse_chat(body, model.served))
        elif path == "/api/generate":
            self._answer(parse_generate(body, model.served))
        elif path == "/api/show":
            parse_show(body, model.served)
            self._send_json(200, model.show())
        else:
            self._send(404, b"404 page not found", "text/plain")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "0" if "Transfer-Encoding" not in self.headers else "")
        if not (length.isascii() and length.isdigit() and len(length) < _LENGTH_DIGITS):
            self.close_connection = True  # where the next request begins cannot be known
            raise ApiError(411, "the request needs a Content-Length")
        if int(length) > _BODY_LIMIT:
            self.close_connection = True
            raise ApiError(413, "http: request body too large")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ClientGoneError
        return body

    def _answer(self, task: Task) -> None:
        out = _Stream(self) if task.stream and task.action == "run" else _Whole(self)
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            try:
                answer(self.server.model, task, out.send, lambda: _is_gone(self.connection, selector))
            except ApiError as exc:
                out.fail(exc)
                return
            except (ClientGoneError, OSError):
                raise
            except Exception as exc:  # whatever the engine does, the client is told
                out.fail(ApiError(500, f"{type(exc).__name__}: {exc}"))
                raise
        out.finish()

    def _is_foreign(self) -> bool:
        """Tell whether the request names another host than this machine, or comes from another site's page."""
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if host is not None and not _is_own(f"//{host}"):
            return True
        return origin is not None and not _is_own(origin)

    def _send_json(self, status: int, reply: dict[str, Any]) -> None:
        self._send(status, msgspec.json.encode(reply), "application/json; charset=utf-8")

    def _send(self, status: int, body: bytes, content_type: str = "") -> None:
        self.send_response(status)
        if content_type:
            self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Stream:
    """A reply of one JSON line per object. Its headers go out with the first, so that an early failure has a status."""

    def __init__(self, handler: Handler):
        self._handler = handler
        self._begun = False
        self._in_chunks = (
            handler.request_version != "HTTP/1.0"
        )  # to an older client the end of the connection is the end

    def send(self, reply: dict[str, Any]) -> None:
        if not self._begun:
            self._begun = True
            self._handler.send_response(200)
            self._handler.send_header("Content-Type", "application/x-ndjson")
            if self._in_chunks:
                self._handler.send_header("Transfer-Encoding", "chunked")
            else:
                self._handler.close_connection = True
            self._handler.end_headers()
        line = msgspec.json.encode(reply) + b"\n"
        self._handler.wfile.write(b"%x\r\n%b\r\n" % (len(line), line) if self._in_chunks else line)

    def fail(self, error: ApiError) -> None:
        if not self._begun:
            raise error
        self.send({"error": error.message})
        self.finish()

    def finish(self) -> None:
        if self._in_chunks:
            self._handler.wfile.write(b"0\r\n\r\n")


class _Whole:
    """A reply of one JSON object: the last one, with the text of all."""

    def __init__(self, handler: Handler):
        self._handler = handler
        self._texts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._last: dict[str, Any] = {}

    def send(self, reply: dict[str, Any]) -> None:
        if "message" in reply:
            self._texts.append(reply["message"]["content"])
            self._calls += reply["message"].get("tool_calls", [])
        elif "response" in reply:
            self._texts.append(reply["response"])
        self._last = reply

    def fail(self, error: ApiError) -> None:
        raise error

    def finish(self) -> None:
        text = "".join(self._texts)
        if "message" in self._last:
            self._last["message"]["content"] = text
            if self._calls:
                self._last["message"]["tool_calls"] = self._calls
        elif "response" in self._last:
            self._last["response"] = text
        self._handler._send_json(200, self._last)


def _is_gone(connection: socket.socket, selector: selectors.BaseSelector) -> bool:
    """Tell whether the client closed its side. Data waiting there is a request sent ahead."""
    if not selector.select(0):
        return False
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True


def _is_own(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
