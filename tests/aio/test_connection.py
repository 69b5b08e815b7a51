"""Asynchronous connections over real sockets: names, hosts and handshakes that do not answer, and what they leave."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import Any

import pytest
import trustme
import uvloop
from tests.peers import deaf_port

from aicortex import Server
from aicortex._aio.connection import MOST_UNREAD, READ_SIZE, Connection
from aicortex._core.failover import AttemptFailed
from aicortex._core.http import Response
from aicortex.testing import FakeServer

PATIENCE = 10.0  # seconds; only a failing test waits for so long
BODY = b'{"model":"fake:latest","messages":[{"role":"user","content":"x"}]}'
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Run = Callable[..., Any]  # asyncio.run, or what uvloop has in its place


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine on either event loop, in debug mode: what calls it from a wrong thread fails."""
    main = asyncio.run if request.param == "asyncio" else uvloop.run

    def running(coroutine: Any) -> Any:
        return main(coroutine, debug=True)

    return running


@pytest.fixture(scope="module")
def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@contextmanager
def peer(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port where each connection is treated as `talk` says, and closed then."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                accepted, _ = listener.accept()
                with accepted:
                    talk(accepted)

    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


async def connected(server: Server, seconds: float = PATIENCE, among: set[Connection] | None = None) -> Connection:
    buffer = memoryview(bytearray(READ_SIZE))
    among = set() if among is None else among
    return await Connection.open(server, due=perf_counter() + seconds, buffer=buffer, among=among)


async def asked(connection: Connection, server: Server, body: bytes = BODY, seconds: float = PATIENCE) -> Response:
    return await connection.send("POST", "/api/chat", server, body, due=perf_counter() + seconds)


async def until(claim: Callable[[], bool]) -> None:
    """Let the loop go on until a claim holds."""
    end = perf_counter() + PATIENCE
    while not claim():
        assert perf_counter() < end
        await asyncio.sleep(0.001)


async def news(connection: Connection) -> None:
    """Wait for something to take."""
    await until(lambda: bool(connection._inbox) or connection._is_lost)


def sockets() -> int:
    """Return how many descriptors of this process are sockets."""
    count = 0
    for number in os.listdir("/dev/fd"):
        with suppress(OSError):  # that of the listing itself
            count += stat.S_ISSOCK(os.fstat(int(number)).st_mode)
    return count


@pytest.mark.usefixtures("hanging_resolver")
def test_a_resolver_that_hangs(run: Run) -> None:
    """The system's resolver has no deadline of its own; ours holds, and the loop ends without it."""

    async def main() -> None:
        with pytest.raises(AttemptFailed, match="not resolved in time"):
            await connected(Server("box.example"), 0.2)

    run(main())


@pytest.mark.parametrize("bad", ["refuses", "cannot be reached", "is silent"])
def test_the_next_address_of_a_name(run: Run, monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    """An address that fails, at once or after a while, costs the next one nothing but its share of the time."""

    async def main() -> None:
        for _ in range(2):  # descriptors are given out again
            connection = await connected(Server(f"box.example:{server.port}"), 0.6)
            connection.close()

    with FakeServer() as server, deaf_port() as deaf, peer(lambda _: None) as closed:
        first = {
            "refuses": ("127.0.0.1", 1),
            "cannot be reached": ("255.255.255.255", closed),  # the system says so without asking the network
            "is silent": ("127.0.0.1", deaf),
        }[bad]
        kinds = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        resolve = socket.getaddrinfo

        def resolved(host: str, *more: Any, **others: Any) -> list[Any]:
            if host != "box.example" or "flags" in others:
                return resolve(host, *more, **others)
            return [(*kinds, first), (*kinds, ("127.0.0.1", server.port))]

        monkeypatch.setattr(socket, "getaddrinfo", resolved)
        run(main())


def test_a_large_request_is_sent_while_the_loop_goes_on(run: Run) -> None:
    """What the system does not take at once is waited for, until the server has it."""

    async def main() -> None:
        server = Server(fake.url)
        connection = await connected(server)
        await asked(connection, server, b'{"model":"' + b"x" * 20_000_000 + b'"}')
        await until(lambda: bool(connection._inbox))
        assert connection.take()
        connection.close()

    with FakeServer() as fake:
        run(main())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_takes_no_request(run: Run, scheme: str, tls: ssl.SSLContext) -> None:
    """A request that is stuck is given up in time; under TLS the first token's deadline does that."""
    is_over = threading.Event()

    def deaf(accepted: socket.socket) -> None:
        if scheme == "https":
            accepted = tls.wrap_socket(accepted, server_side=True)
        with accepted:
            is_over.wait(PATIENCE)

    async def main() -> None:
        server = Server(f"{scheme}://127.0.0.1:{port}", verify=False)
        connection = await connected(server)
        with suppress(AttemptFailed) if scheme == "https" else pytest.raises(AttemptFailed, match="is stuck"):
            await asked(connection, server, b"x" * 20_000_000, seconds=0.2)
        connection.close()
        is_over.set()

    with peer(deaf) as port:
        run(main())


def test_a_server_that_hangs_up_while_it_is_sent_to(run: Run) -> None:
    """Whoever sends is told at once, not when the time is up."""

    def rude(accepted: socket.socket) -> None:
        accepted.recv(10)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def main() -> None:
        server = Server(f"127.0.0.1:{port}")
        connection = await connected(server)
        with pytest.raises(AttemptFailed) as caught:
            await asked(connection, server, b"x" * 20_000_000)
        assert caught.value.failure.kind == "reset"
        connection.close()

    with peer(rude) as port:
        run(main())


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("how", ["reset", "end"])
def test_a_server_that_hangs_up_at_once(run: Run, scheme: str, how: str) -> None:
    """A connection that breaks before anything was said is a failed attempt, at whatever place that is seen."""

    def rude(accepted: socket.socket) -> None:
        if how == "reset":
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def main() -> None:
        server, among = Server(f"{scheme}://127.0.0.1:{port}", verify=False), set[Connection]()
        for _ in range(30):
            with suppress(AttemptFailed):
                connection = await connected(server, among=among)
                with suppress(AttemptFailed):
                    response = await asked(connection, server)
                    while not response.ended:
                        await news(connection)
                        connection.take()
                connection.close()
        await until(lambda: not among)

    with peer(rude) as port:
        run(main())


def test_what_came_before_the_end_is_taken_first(run: Run) -> None:
    """A reply that is whole counts, even if the connection is reset behind it."""

    def hurried(accepted: socket.socket) -> None:
        accepted.recv(65536)
        accepted.sendall(WHOLE)
        go_on.wait(PATIENCE)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def main() -> None:
        server = Server(f"127.0.0.1:{port}")
        connection = await connected(server)
        response = await asked(connection, server)
        await news(connection)
        go_on.set()
        await until(lambda: connection._is_lost)
        assert connection.take()
        assert response.complete
        with pytest.raises(AttemptFailed, match="broke the connection"):
            connection.take()
        assert not connection.take()  # it is told once
        connection.close()

    go_on = threading.Event()
    with peer(hurried) as port:
        run(main())


def test_a_connection_that_is_lost_takes_no_request(run: Run) -> None:
    """It says what it was lost by."""

    async def main() -> None:
        server = Server(f"127.0.0.1:{port}")
        connection = await connected(server)
        await until(lambda: connection._is_lost)
        assert not connection.may_be_kept()
        with pytest.raises(AttemptFailed) as caught:
            await asked(connection, server)
        assert (caught.value.failure.kind, caught.value.failure.phase) == ("reset", "send")

    with peer(lambda _: None) as port:
        run(main())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_waits_for_who_does_not_read(run: Run, scheme: str, tls: ssl.SSLContext) -> None:
    """No more than some buffers are taken before somebody reads, and nothing is lost then."""
    size, is_read = 8_000_000, threading.Event()

    def flood(accepted: socket.socket) -> None:
        with tls.wrap_socket(accepted, server_side=True) if scheme == "https" else accepted as speaking:
            speaking.recv(65536)
            speaking.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(size // 8000):
                speaking.sendall(b"x" * 8000)
            is_read.wait(PATIENCE)

    async def main() -> None:
        server = Server(f"{scheme}://127.0.0.1:{port}", verify=False)
        connection = await connected(server)
        response = await asked(connection, server)
        await until(lambda: connection._is_paused)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert sum(map(len, connection._inbox)) < MOST_UNREAD + 3 * READ_SIZE
        while not response.ended:
            await news(connection)
            connection.take()
        assert sum(map(len, response.body)) == size
        is_read.set()
        connection.close()

    with peer(flood) as port:
        run(main())


# In Python 3.10 asyncio itself leaves a transport behind whose handshake is cancelled.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*_SSLProtocolTransport:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("rounds", [0, 1, 2, 3, 4, 6, 10])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_giving_up_while_a_connection_opens(run: Run, scheme: str, rounds: int, tls: ssl.SSLContext) -> None:
    """Wherever a task is cancelled that opens a connection, no descriptor, task or complaint is left of it."""

    async def main() -> None:
        loop, among = asyncio.get_running_loop(), set[Connection]()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        server = Server(f"{scheme}://127.0.0.1:{fake.port}", verify=False)
        before, tasks = sockets(), asyncio.all_tasks()
        for _ in range(5):
            opening = asyncio.create_task(connected(server, among=among))
            for _ in range(rounds):
                await asyncio.sleep(0)
            opening.cancel()
            with suppress(asyncio.CancelledError):
                (await opening).close()
        await until(lambda: not among and asyncio.all_tasks() == tasks)
        await until(lambda: sockets() <= before)

    complaints: list[Any] = []
    with FakeServer(tls=tls if scheme == "https" else None) as fake:
        run(main())
        gc.collect()  # a socket that was left open warns now, which fails the test
    assert complaints == []


def test_giving_up_a_handshake_that_does_not_go_on(run: Run) -> None:
    """Descriptors are given out again at once, and those who get them have no trouble."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        silent = Server(f"https://127.0.0.1:{port}", verify=False)
        for _ in range(10):
            hanging = [asyncio.create_task(connected(silent)) for _ in range(5)]
            await asyncio.sleep(0.01)
            opening = [asyncio.create_task(connected(Server(fake.url))) for _ in range(5)]
            for task in hanging:
                task.cancel()
            for connection in await asyncio.gather(*opening):
                connection.close()
            await asyncio.gather(*hanging, return_exceptions=True)

    complaints: list[Any] = []
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener, FakeServer() as fake:
        port = listener.getsockname()[1]
        run(main())
        gc.collect()
    assert complaints == []


def test_a_handshake_that_does_not_end(run: Run) -> None:
    """A port that accepts and says nothing is given up in time, whatever asyncio's own limit is."""

    async def main() -> None:
        with pytest.raises(AttemptFailed, match="does this port speak https"):
            await connected(Server(f"https://127.0.0.1:{listener.getsockname()[1]}"), 0.2)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        run(main())


@pytest.mark.parametrize("stage", ["silent", "slow", "endless", "hangs up"])
def test_a_proxy_that_never_lets_through(run: Run, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a proxy fails to give the way through, it is a failed attempt and nothing stays open."""
    is_over = threading.Event()

    def talk(accepted: socket.socket) -> None:
        accepted.recv(65536)
        with suppress(OSError):
            if stage == "silent":
                is_over.wait(PATIENCE)
            while stage == "slow" and not is_over.wait(0.01):
                accepted.sendall(b"H")
            while stage == "endless":
                accepted.sendall(b"x" * 1000)

    async def main() -> None:
        end = perf_counter() + PATIENCE
        with pytest.raises(AttemptFailed) as caught:
            await connected(Server("https://box.example"), 0.3)
        assert perf_counter() < end
        assert caught.value.failure.kind in ("connect_timeout", "proxy")
        is_over.set()

    with peer(talk) as port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        run(main())
        gc.collect()
