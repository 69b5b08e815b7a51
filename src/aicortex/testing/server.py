"""The fake server: listens, decides which reply a request gets, keeps account."""

from __future__ import annotations

import hashlib
import os
import re
import selectors
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from aicortex.testing.exchange import ClientGone, Connection, Exchange, Request
from aicortex.testing.generation import TEMPLATES, Generation, read_generation
from aicortex.testing.replies import Answer, Refuse, Reply, Status

GENERATION_PATHS = ("/api/chat", "/api/generate")
RENDERS_SINCE = (0, 11, 5)  # older servers ignore `_debug_render_only`
MODIFIED_AT = "2026-01-01T00:00:00Z"
DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "1B",
    "quantization_level": "Q4_K_M",
}
SIZE_BYTES = 1_000_000_000
CONTEXT_LENGTH = 8192


class FakeServer:
    """An Ollama server on loopback that does what its script says, in threads of this process.

    `replies` script the successive requests to /api/chat and /api/generate; then every one gets `answer`.
    Requests that Ollama would not generate for use up no reply: those for a model the server lacks (404), with
    a field of the wrong type (400), without messages or prompt (loads the model), with `_debug_render_only`
    (returns the rendered prompt), and those to /api/tags, /api/ps, /api/version, /api/show and /, which are
    answered from `models`.

    A conversation is rendered as lines `<|role|>content`, with `<think>…</think>` before the content where a
    message has thinking, then `<|assistant|>`. `template` says what becomes of a last message of the assistant:
    "chatml" closes it and a new answer begins, "prefill" ends the prompt with its content and the answer goes on
    there. `continuation`, if given, is the reply to every request that asks for the rest of an answer: a `raw`
    one, or one whose last message is the assistant's; such a request then uses up no reply. With a `version`
    before 0.11.5 the server ignores `_debug_render_only`, as Ollama did, and generates `answer`.

    `models` are names, or a mapping of names to digests; by default a digest depends on the name alone.
    `everything` is the reply to every request whatever it asks, `paths` to every request for these paths;
    like `continuation` they are attributes too, and what is set there holds from the next request on. `require`
    names headers without which every request gets 401. `capabilities` are what /api/show says that the models can do.
    `tls` is a server-side context. Use as a context manager,
    or call `start` and `stop`. An unknown `template` raises `ValueError`.

    `requests` lists the requests in the order they came, complete when it lists them; `connections` counts
    those accepted, `active` the generations now being answered, `cancelled` those which the client left
    before their end, `loading` the loads under way (see `Loading`), `aborted_loads` those which the client left.
    """

    def __init__(
        self,
        *replies: Reply,
        models: Sequence[str] | Mapping[str, str] = ("fake:latest",),
        answer: str | Answer = "The quick brown fox jumps over the lazy dog.",
        continuation: str | Reply | None = None,
        template: str = "chatml",
        version: str = "0.33.0",
        tls: ssl.SSLContext | None = None,
        require: Mapping[str, str] | None = None,
        everything: Reply | None = None,
        paths: Mapping[str, Reply] | None = None,
        capabilities: Sequence[str] = ("completion", "tools", "thinking", "vision"),
    ) -> None:
        if template not in TEMPLATES:
            raise ValueError(f"there is no template {template!r}, only {', '.join(TEMPLATES)}")
        self.continuation = Answer(continuation) if isinstance(continuation, str) else continuation
        self.template = template
        self.everything = everything
        self.paths = dict(paths or {})
        self.requests: list[Request] = []
        self.connections = 0
        self.active = 0
        self.cancelled = 0
        self.aborted_loads = 0
        self.host = "127.0.0.1"
        self.port = 0
        self._script = deque(replies)
        self._capabilities = list(capabilities)
        self._answer = Answer(answer) if isinstance(answer, str) else answer
        self._models = dict(models) if isinstance(models, Mapping) else {name: _digest(name) for name in models}
        self._version = version
        self._renders = tuple(map(int, re.findall(r"\d+", version)[:3])) >= RENDERS_SINCE
        self._tls = tls
        self._require = {name.lower(): value for name, value in (require or {}).items()}
        self._changed = threading.Condition(threading.RLock())
        self._listening = threading.Lock()
        self._stopping = False
        self._listener: socket.socket | None = None
        self._waker: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._open: dict[Connection, threading.Thread] = {}
        self._loads: list[socket.socket] = []

    @property
    def url(self) -> str:
        """The address, such as `http://127.0.0.1:40123`; the port is known once the server has started."""
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    @property
    def loading(self) -> int:
        """The number of loads under way."""
        return len(self._loads)

    def start(self) -> None:
        """Listen, on the same port as before if the server has been started before."""
        with self._listening:
            self._stopping = False
            self._listener = self._listener or self._bind()
            self.port = self._listener.getsockname()[1]
            if self._acceptor is None and not isinstance(self.everything, Refuse):
                self._listener.listen(128)
                self._listener.setblocking(False)  # a client may leave between select and accept
                wakeable, self._waker = socket.socketpair()
                self._acceptor = self._spawn(self._accept, self._listener, wakeable)
                self._acceptor.start()

    def refuse(self) -> None:
        """Reset every connection and refuse new ones from now on, until `start`; the port stays reserved."""
        with self._listening:
            self._stop_listening()
            if not self._stopping:
                self._listener = self._bind()
        threads = self._interrupt_all(reset=True)
        if threading.current_thread() not in threads:  # a reply may call this itself, and another one wait for it
            for thread in threads:
                thread.join()

    def stop(self) -> None:
        """Close every connection, free the port and wait for every thread to end."""
        with self._listening:
            self._stopping = True
            self._stop_listening()
        for thread in self._interrupt_all(reset=False):
            thread.join()

    def __enter__(self) -> FakeServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def script(self, *replies: Reply) -> None:
        """Append `replies` to those which wait for the next requests."""
        with self._changed:
            self._script.extend(replies)

    def wait_until(self, claim: Callable[[], bool], timeout: float = 5.0) -> bool:
        """Wait until `claim()` holds, at most `timeout` seconds; return whether it does.

        It is asked again whenever `requests`, `connections` or one of the counts of generations and loads change.
        """
        with self._changed:
            return self._changed.wait_for(claim, timeout)

    def wait_for_disconnect(self, timeout: float = 5.0, *, count: int = 1) -> bool:
        """Wait until clients have left `count` generations before their end; return whether they have."""
        return self.wait_until(lambda: self.cancelled >= count, timeout)

    def finish_loading(self) -> None:
        """End every load now under way: the replies behind them begin, and /api/ps answers again."""
        with self._changed:
            for bell in self._loads:
                bell.send(b"!")

    def wait_for_loads(self) -> None:
        """Wait until no load is under way."""
        with self._changed:
            self._changed.wait_for(lambda: not self._loads)

    @contextmanager
    def load(self) -> Iterator[socket.socket]:
        """Count as loading a model; give a socket that is readable as soon as `finish_loading` is called."""
        finished, bell = socket.socketpair()
        with finished, bell:
            with self._changed:
                self._loads.append(bell)
                self._changed.notify_all()
            try:
                yield finished
            finally:
                with self._changed:
                    self._loads.remove(bell)
                    self._changed.notify_all()

    def _spawn(self, work: Callable[..., None], *args: object) -> threading.Thread:
        return threading.Thread(target=work, args=args, name=f"FakeServer {self.port}", daemon=True)

    def _bind(self) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if os.name != "nt":  # on Windows the option would let another process take the port over
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        return listener

    def _stop_listening(self) -> None:
        if self._acceptor is not None and self._waker is not None:
            self._waker.close()
            self._acceptor.join()
        if self._listener is not None:
            self._listener.close()
        self._acceptor = self._waker = self._listener = None

    def _interrupt_all(self, *, reset: bool) -> list[threading.Thread]:
        with self._changed:
            for connection in self._open:
                connection.interrupt(reset=reset)
            return list(self._open.values())

    def _accept(self, listener: socket.socket, wakeable: socket.socket) -> None:
        with selectors.DefaultSelector() as selector, wakeable:
            selector.register(wakeable, selectors.EVENT_READ)
            selector.register(listener, selectors.EVENT_READ)
            while not any(key.fileobj is wakeable for key, _ in selector.select()):
                with suppress(OSError):  # the client has left already
                    self._serve(listener.accept()[0])

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except OSError:
            sock.close()
            raise
        connection = Connection(sock)
        thread = self._spawn(self._converse, connection)
        with self._changed:
            self.connections += 1
            self._open[connection] = thread
            self._changed.notify_all()
        thread.start()

    def _converse(self, connection: Connection) -> None:
        """Answer the requests of one connection until either side ends it."""
        try:
            connection.handshake()
            while self._respond(connection, connection.read_request()):
                pass
        except (ClientGone, OSError, ValueError):
            pass  # it left, failed the handshake, or did not speak HTTP
        finally:
            with self._changed:
                del self._open[connection]
                connection.close()

    def _respond(self, connection: Connection, request: Request) -> bool:
        """Answer one request; return whether the connection goes on."""
        exchange = Exchange(self, connection, request)
        generates, left = request.path in GENERATION_PATHS, False
        with self._changed:
            self.requests.append(request)
            reply = self._choose(request)
            self.active += generates
            self._changed.notify_all()
        try:
            reply.play(exchange)
            exchange.flush()
        except ClientGone:
            left = True
        finally:
            with self._changed:
                gone = left and not connection.interrupted
                self.active -= generates
                self.cancelled += generates and gone and not exchange.finished
                self.aborted_loads += gone and exchange.is_loading
                self._changed.notify_all()
        return exchange.keeps_open and not left

    def _choose(self, request: Request) -> Reply:
        if self.everything is not None:
            return self.everything
        if any(request.headers.get(name) != value for name, value in self._require.items()):
            return Status(401)
        if request.path in self.paths:
            return self.paths[request.path]
        if request.method == "POST" and request.path in (*GENERATION_PATHS, "/api/show"):
            return self._choose_for_model(request)
        return self._catalogue(request)

    def _choose_for_model(self, request: Request) -> Reply:
        if not isinstance(request.json, dict):
            return Status(400, {"error": "the body is not a JSON object"})
        if _tagged(request.model) not in map(_tagged, self._models):
            return Status(404)
        if request.path == "/api/show":
            return Status(200, _show(self.template) | {"capabilities": self._capabilities})
        try:
            generation = read_generation(request, self.template)
        except ValueError as error:
            return Status(400, {"error": str(error)})
        if request.option("_debug_render_only") and self._renders:
            return Status(200, _rendered(request, generation))
        if not request.option("messages" if request.path == "/api/chat" else "prompt"):
            return Status(200, _loaded(request))
        return self._choose_generation(request, generation)

    def _choose_generation(self, request: Request, generation: Generation) -> Reply:
        if request.option("_debug_render_only"):
            return self._answer
        if generation.continues and self.continuation is not None:
            return self.continuation
        return self._script.popleft() if self._script else self._answer

    def _catalogue(self, request: Request) -> Reply:
        models = [
            {"name": name, "model": name, "digest": digest, "size": SIZE_BYTES, "details": DETAILS}
            for name, digest in self._models.items()
        ]
        if request.method == "GET" and request.path == "/":
            return Status(200, "Ollama is running")
        if request.method == "GET" and request.path == "/api/version":
            return Status(200, {"version": self._version})
        if request.method == "GET" and request.path == "/api/tags":
            return Status(200, {"models": [model | {"modified_at": MODIFIED_AT} for model in models]})
        if request.method == "GET" and request.path == "/api/ps":
            loaded = {"expires_at": "2318-01-01T00:00:00Z", "size_vram": 0, "context_length": CONTEXT_LENGTH}
            return _AfterLoads(Status(200, {"models": [model | loaded for model in models]}))
        return Status(404, "404 page not found")


@dataclass(frozen=True)
class _AfterLoads(Reply):
    """A reply that waits for the model to be loaded, as Ollama's list of loaded models does."""

    reply: Reply

    def play(self, exchange: Exchange) -> None:
        exchange.server.wait_for_loads()
        self.reply.play(exchange)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _tagged(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def _show(template: str) -> dict[str, Any]:  # Any: JSON values
    return {
        "modified_at": MODIFIED_AT,
        "template": TEMPLATES[template],
        "details": DETAILS,
        "model_info": {"general.architecture": "llama", "llama.context_length": CONTEXT_LENGTH},
    }


def _rendered(request: Request, generation: Generation) -> dict[str, Any]:  # Any: JSON values
    debug = {"rendered_template": generation.prompt, "image_count": 0}
    return {"model": request.model, "created_at": MODIFIED_AT, "done": False, "_debug_info": debug}


def _loaded(request: Request) -> dict[str, Any]:  # Any: JSON values
    text: dict[str, Any] = {"message": {"role": "assistant", "content": ""}}
    if request.path == "/api/generate":
        text = {"response": ""}
    reason = "unload" if request.option("keep_alive") == 0 else "load"
    return {"model": request.model, "created_at": MODIFIED_AT, **text, "done": True, "done_reason": reason}
