"""What every test stands on: a clean environment, the embedded engine as a server of its own, and a display."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
from tests.colours import Chat, Portal

from aicortex.testing import Exchange, FakeServer, Reply

MODEL = "llama3.2:3b"  # the name of the user guide, under which the embedded engine serves here
KEPT = "AICORTEX_CACHE_DIR"  # where the weights are, fetched once per machine
SHORT = {"num_predict": 64, "seed": 7}  # a sampled answer of a tiny model may otherwise go on for thousands of tokens
SERVE = f"from aicortex.embedded import serve; raise SystemExit(serve(port=0, name={MODEL!r}))"


def _is_personal(name: str) -> bool:
    """Tell whether a variable belongs to the developer's own servers and must not reach a test."""
    upper = name.upper()
    return upper != KEPT and (upper.startswith(("AICORTEX_", "OLLAMA_")) or upper.endswith("_PROXY"))


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        for name in filter(_is_personal, list(os.environ)):
            patch.delenv(name)
        yield patch


@pytest.fixture(scope="session")
def _own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("user")


@pytest.fixture(autouse=True)
def _nothing_known_yet(
    _own_folder: Path, _clean_environment: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """Give each test a registry of its own, and forget what earlier tests learned: ports are given out again."""
    name = hashlib.sha1(request.node.nodeid.encode()).hexdigest()[:16]
    _clean_environment.setenv("AICORTEX_DATA_DIR", str(_own_folder / name))  # made by the first write
    _clean_environment.setenv("XDG_CONFIG_HOME", str(_own_folder / "config"))
    yield
    knowing = ("fleet", "planning", "board", "in_flight", "abilities")
    modules = {name: sys.modules.get(f"aicortex.{name}") for name in knowing}
    pool, links = sys.modules.get("aicortex._sync.pool"), sys.modules.get("aicortex.links")
    names = sys.modules.get("aicortex._sync.names")
    if modules["fleet"] is not None:
        modules["fleet"]._alive.clear()
        modules["fleet"]._made.clear()
    if modules["abilities"] is not None:
        modules["abilities"]._known.clear()
    if modules["planning"] is not None:
        modules["planning"]._known.clear()
    if modules["board"] is not None:
        modules["board"].BOARD.close()
        modules["board"].BOARD.__init__()
    if modules["in_flight"] is not None:
        modules["in_flight"].CLAIMS.clear()
    if names is not None:
        names._known.clear()
    if pool is not None:
        pool.POOL.clear()
    if links is not None:
        links.MEMORY.clear()
        links.BUDGET.__init__()


@pytest.fixture(params=["sync", "async"])
def chat(request: pytest.FixtureRequest) -> Iterator[Chat]:
    """`chat`, then `achat` for a thread that blocks: a test that takes this holds in both colours."""
    if request.param == "sync":
        from aicortex import chat

        yield chat
        return
    with Portal() as portal:
        yield portal.chat


@pytest.fixture
def hanging_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every name hang that is not an address: the system's resolver knows no deadline."""
    hang = threading.Event()
    resolve = socket.getaddrinfo

    def slow(host: str, port: int, **more: int) -> object:
        if "flags" not in more:
            hang.wait(30)
        return resolve(host, port, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    yield
    hang.set()


@pytest.fixture(scope="session")
def weights_path(_clean_environment: pytest.MonkeyPatch) -> Path:
    """The model's file, fetched with the developer's own proxies if it is not there yet."""
    from aicortex.embedded.weights import ensure_weights

    taken = os.environ.copy()
    _clean_environment.undo()
    try:
        return ensure_weights()
    finally:
        for name in set(os.environ) - set(taken):
            _clean_environment.delenv(name)


@pytest.fixture(scope="session")
def embedded_server(weights_path: Path) -> Iterator[str]:
    """The URL of the embedded engine, serving as `llama3.2:3b` in a process of its own."""
    assert weights_path.exists()
    with subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            assert process.stdout is not None  # asked for in the line above
            yield process.stdout.readline().split(" at ")[1].split()[0]
        finally:
            process.terminate()


@dataclass(frozen=True)
class ShortAnswer(Reply):
    """What the engine at `url` answers, cut to 64 tokens by the engine itself; everything else as it is."""

    url: str

    def play(self, exchange: Exchange) -> None:
        asked = exchange.request
        body = asked.body
        if asked.path == "/api/chat":
            body = msgspec.json.encode(asked.json | {"options": SHORT | (asked.option("options") or {})})
        place = urlsplit(self.url)
        engine = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
        try:
            engine.request(asked.method, asked.path, body)
            reply = engine.getresponse()
            if asked.path != "/api/chat" or reply.status != 200:
                exchange.respond(reply.status, reply.read())
                return
            for line in reply:
                exchange.chunk(line)
            exchange.finished = True
            exchange.end_stream()
        finally:
            engine.close()


@pytest.fixture
def short_server(embedded_server: str) -> Iterator[FakeServer]:
    """The embedded engine with its answers cut to 64 tokens, and with an account of its requests."""
    with FakeServer(everything=ShortAnswer(embedded_server)) as server:
        yield server


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """The name of an X display that nobody sees; the present one where there is no Xvfb."""
    if shutil.which("Xvfb") is None:
        yield os.environ.get("DISPLAY", "")
        return
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1024x768x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL) as process:
        os.close(writer)
        try:
            with os.fdopen(reader, encoding="utf-8") as numbers:
                yield f":{numbers.readline().strip()}"
        finally:
            process.terminate()
