"""Embedded engines as processes that can be killed, stopped and overrun, each behind a relay."""

from __future__ import annotations

import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from json import dumps, loads
from threading import Thread
from typing import Any

from aicortex.embedded.engine import SLOTS
from aicortex.embedded.settings import Settings
from aicortex.embedded.slots import QUEUE_LIMIT
from aicortex.embedded.weights import SMOLLM2, ensure_weights
from aicortex.testing import Relay

MODEL = "chaos:latest"
START_SECONDS = 60.0
ENDLESS = {"temperature": 0, "repeat_penalty": 1.0}  # with these it counts until its context is full
CHILD = "import sys; from aicortex.embedded.child import main; main(sys.argv[1])"


class Engine:
    """One embedded engine as a process, behind a relay whose address stays while processes come and go."""

    def __init__(self) -> None:
        self._settings = Settings(str(ensure_weights()), MODEL, SMOLLM2.sha256, "127.0.0.1", 0, 1, None, os.getpid())
        self._crowd: list[socket.socket] = []
        self._starting: Thread | None = None
        self._start()
        self.relay = Relay(f"127.0.0.1:{self._settings.port}")
        self.relay.start()

    @property
    def is_ready(self) -> bool:
        """Whether no start is under way."""
        return self._starting is None or not self._starting.is_alive()

    def kill(self) -> None:
        """End the process with SIGKILL; another one starts in the background, on the same port."""
        self._end()
        self._starting = Thread(target=self._start, daemon=True)
        self._starting.start()

    def pause(self) -> None:
        """Freeze the process with SIGSTOP: its port still takes connections."""
        self._process.send_signal(signal.SIGSTOP)

    def fill(self) -> None:
        """Occupy every slot and every place in the queue, until `heal`; the next request gets 503."""
        self._wait_ready()
        body = dumps({"model": MODEL, "raw": True, "prompt": "1, 2, 3, 4, 5,", "options": ENDLESS}).encode()
        request = b"POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        for _ in range(SLOTS + QUEUE_LIMIT + 1):
            self._crowd.append(socket.create_connection(("127.0.0.1", self._settings.port), START_SECONDS))
            self._crowd[-1].sendall(request)
        while ready := select.select(self._crowd, [], [], START_SECONDS)[0]:
            if any(b" 503 " in each.recv(4096) for each in ready):
                return
        raise RuntimeError("the queue of the engine could not be filled")

    def render(self, prompt: str) -> str:
        """Return a user's question as the model reads it."""
        body = {"messages": [{"role": "user", "content": prompt}], "_debug_render_only": True}
        return str(self._post("/api/chat", body)["_debug_info"]["rendered_template"])

    def go_on(self, text: str, *, max_tokens: int) -> str:
        """Return what the model says behind exactly this text."""
        options = {"temperature": 0, "num_predict": max_tokens}
        return str(self._post("/api/generate", {"prompt": text, "raw": True, "options": options})["response"])

    def heal(self) -> None:
        """Take every fault back; a process that was killed may still be starting."""
        self.relay.restore()
        if self.is_ready:
            self._process.send_signal(signal.SIGCONT)
        while self._crowd:
            self._crowd.pop().close()

    def stop(self) -> None:
        """End process and relay."""
        self.heal()
        self._end()
        self.relay.stop()

    def _start(self) -> None:
        command = [sys.executable, "-c", CHILD, self._settings.to_json()]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None  # asked for in the line above
        with self._process.stdout as stdout:
            told = loads(stdout.readline() or b'{"error": "it ended"}')
        if "error" in told:
            raise RuntimeError(f"an engine could not be started: {told['error']}")
        self._settings = Settings(**{**vars(self._settings), "port": told["port"]})

    def _end(self) -> None:
        self._wait_ready()
        self._process.kill()
        with self._process:  # which closes its input and waits
            pass

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
        connection = http.client.HTTPConnection("127.0.0.1", self._settings.port, timeout=START_SECONDS)
        with closing(connection):
            connection.request("POST", path, dumps({"model": MODEL, "stream": False, **body}))
            return dict(loads(connection.getresponse().read()))

    def _wait_ready(self) -> None:
        if self._starting is not None:
            self._starting.join(START_SECONDS)


class Fleet:
    """The engines, found by the addresses of their relays."""

    def __init__(self, engines: Iterable[Engine]) -> None:
        self.engines = {engine.relay.url: engine for engine in engines}

    @property
    def ready(self) -> list[Engine]:
        """Those that are not starting."""
        return [engine for engine in self.engines.values() if engine.is_ready]

    def heal(self) -> None:
        """Take every fault back and wait until no more than one engine is still starting."""
        for engine in self.engines.values():
            engine.heal()
        while len(self.ready) < len(self.engines) - 1:
            time.sleep(0.05)


@contextmanager
def running(count: int = 3) -> Iterator[Fleet]:
    """Start engines; end all of them on the way out."""
    with ExitStack() as stack:
        engines = []
        for _ in range(count):
            engines.append(Engine())
            stack.callback(engines[-1].stop)
        yield Fleet(engines)
