"""Connections kept for the next request of an event loop: which ones are used again, and when they are closed."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import pytest
from tests.peers import deaf_port
from tests.tasks import Run

from aicortex import Server
from aicortex._aio.connection import Connection
from aicortex._aio.pool import POOLS, Pool, Pools, reach
from aicortex._core.failover import AttemptFailed
from aicortex._sync.pool import IDLE_PER_SERVER
from aicortex.testing import Close, Exchange, FakeServer, Hang, Reply, Reset, Status

PATIENCE = 10.0  # seconds; only a failing test waits for so long


def due() -> float:
    return perf_counter() + PATIENCE


async def until(claim: Callable[[], bool]) -> None:
    """Let the loop go on until a claim holds."""
    end = due()
    while not claim():
        assert perf_counter() < end
        await asyncio.sleep(0.001)


async def version(pool: Pool, server: FakeServer, path: str = "/api/version", *, fresh: bool = False) -> Connection:
    """Make a plain request, read the reply to its end, and return the connection that was used."""
    place, connection = await reach(pool, Server(server.url), due, fresh=fresh)
    response = await connection.send("GET", path, place, due=due())
    while not response.ended:
        connection.waiter = asyncio.get_running_loop().create_future()
        if not connection.take():
            await asyncio.wait_for(connection.waiter, PATIENCE)
        connection.waiter = None
    pool.release(place, connection)
    return connection


def test_a_kept_connection_serves_again(run: Run) -> None:
    """One connection is enough for requests that come one after the other, and it says that it was kept."""

    async def main() -> None:
        pool = Pool()
        first = await version(pool, server)
        assert not first.reused
        assert await version(pool, server) is first
        assert first.reused
        assert server.connections == 1
        pool.abort()

    with FakeServer() as server:
        run(main())


def test_who_wants_a_new_one_gets_it(run: Run) -> None:
    """After a kept connection broke, the next attempt must not get another of its age."""

    async def main() -> None:
        pool = Pool()
        first = await version(pool, server)
        assert await version(pool, server, fresh=True) is not first
        assert server.connections == 2
        pool.abort()

    with FakeServer() as server:
        run(main())


def test_servers_that_differ_share_no_connection(run: Run) -> None:
    """A connection belongs to an address with its headers: what one user may, another may not."""

    async def main() -> None:
        pool = Pool()
        for key in ("one", "two", "one"):
            _, connection = await reach(pool, Server(server.url, api_key=key), due)
            assert not connection.reused
            connection.close()
        pool.abort()

    with FakeServer() as server:
        run(main())


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_server_that_hung_up_meanwhile(run: Run, how: str) -> None:
    """A kept connection that the server closed is noticed before a request is lost on it."""

    async def main() -> None:
        pool = Pool()
        first = await version(pool, server)
        server.stop() if how == "close" else server.refuse()
        server.start()
        await until(lambda: first._is_lost)
        assert await version(pool, server) is not first
        assert server.connections == 2
        pool.abort()

    with FakeServer() as server:
        run(main())


@dataclass(frozen=True)
class Chatty(Reply):
    """A whole reply, and later more that nobody asked for."""

    more: bytes
    go_on: threading.Event

    def play(self, exchange: Exchange) -> None:
        exchange.respond(200, b'{"version":"0"}')
        exchange.flush()
        assert self.go_on.wait(PATIENCE)
        exchange.send(self.more)
        exchange.flush()


@pytest.mark.parametrize(
    "more", [b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 4", b"junk", b"x" * 600_000]
)
def test_bytes_that_nobody_asked_for(run: Run, more: bytes) -> None:
    """What comes on a kept connection is not taken for the next reply."""

    async def main() -> None:
        pool = Pool()
        first = await version(pool, server)
        go_on.set()
        await until(lambda: bool(first._inbox))
        second = await version(pool, server, "/api/tags")
        assert second is not first
        assert second.response.status == 200
        pool.abort()

    go_on = threading.Event()
    with FakeServer(paths={"/api/version": Chatty(more, go_on)}) as server:
        run(main())


@pytest.mark.parametrize("reply", [Reset(), Close(), Status(200, headers={"Connection": "close"})])
def test_a_connection_that_ended_is_not_kept(run: Run, reply: Reply) -> None:
    """Neither one that broke nor one whose server said that it will close it."""

    async def main() -> None:
        pool = Pool()
        with pytest.raises(AttemptFailed) if isinstance(reply, Reset) else _nothing():
            await version(pool, server)
        await until(lambda: not any(pool._idle.values()))
        pool.abort()

    with FakeServer(paths={"/api/version": reply}) as server:
        run(main())


class _nothing:
    """A block in which nothing is expected."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_only_some_are_kept(run: Run) -> None:
    """More connections than a few wait for nothing but their end."""

    async def main() -> None:
        pool, place = Pool(), Server(server.url)
        found = [(await reach(pool, place, due))[1] for _ in range(IDLE_PER_SERVER + 3)]
        for connection in found:
            pool.release(place, connection)
        assert len(pool._idle[place]) == IDLE_PER_SERVER
        assert await asyncio.to_thread(server.wait_until, lambda: server.connections == IDLE_PER_SERVER + 3)
        await until(lambda: len(pool._open) == IDLE_PER_SERVER)
        pool.abort()
        await until(lambda: not pool._open)

    with FakeServer() as server:
        run(main())


def test_a_closed_pool_keeps_none(run: Run) -> None:
    """Who still has a connection uses it to the end, and then it is closed."""

    async def main() -> None:
        pool, place = Pool(), Server(server.url)
        kept = await version(pool, server)
        _, used = await reach(pool, place, due, fresh=True)
        pool.close()
        await until(lambda: pool._open == {used})
        assert kept not in pool._open
        pool.release(place, used)
        await until(lambda: not pool._open)

    with FakeServer() as server:
        run(main())


def test_every_loop_has_a_pool_of_its_own(run: Run) -> None:
    """It is the same one for all of a loop, another one in the next, and loops that ended are forgotten."""

    async def main() -> Pool:
        pool = await pools.of_loop()
        assert await pools.of_loop() is pool
        return pool

    pools = Pools()
    found = [run(main()) for _ in range(3)]
    assert len(set(found)) == 3
    assert len(pools._by_loop) == 1


def test_the_end_of_a_loop_closes_everything(run: Run) -> None:
    """Nothing warns of what was left open, kept or in use, and the server sees the end of it."""

    async def main() -> None:
        pool, place = await pools.of_loop(), Server(server.url)
        await version(pool, server)
        _, used = await reach(pool, place, due, fresh=True)
        body = b'{"model":"fake:latest","messages":[{"role":"user","content":"x"}]}'
        await used.send("POST", "/api/chat", place, body, due=due())
        assert await asyncio.to_thread(server.wait_until, lambda: server.active == 1)

    pools = Pools()
    with FakeServer(Hang()) as server:
        run(main())
        gc.collect()
        assert server.wait_for_disconnect(1)


def test_pools_are_closed_from_other_threads(run: Run) -> None:
    """Only the loop that has the connections touches them; in debug mode anything else is an error."""

    async def main() -> None:
        pool = await pools.of_loop()
        await version(pool, server)
        await asyncio.to_thread(pools.close)
        await until(lambda: not pool._open)

    pools = Pools()
    with FakeServer() as server:
        run(main(), debug=True)
        pools.close()  # whose loop has ended


def test_loops_of_many_threads_come_and_go(run: Run) -> None:
    """Threads that run one loop after another do not get in each other's way."""

    async def main() -> None:
        await POOLS.of_loop()

    def work() -> None:
        try:
            for _ in range(30):
                run(main())
        except Exception as error:
            errors.append(error)

    errors: list[Exception] = []
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_server_that_cannot_be_reached(run: Run) -> None:
    """The failure says what is wrong, and nothing is kept of the attempt."""

    async def main() -> None:
        pool = Pool()
        with pytest.raises(AttemptFailed) as caught:
            await reach(pool, Server(f"127.0.0.1:{port}"), lambda: perf_counter() + 0.1)
        assert caught.value.failure.kind == "connect_timeout"
        assert not pool._open

    with deaf_port() as port:
        run(main())


def test_the_engine_is_started_once_for_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that need the embedded engine at the same moment wait for one start of it."""

    def start() -> tuple[str, int]:
        starts.append(threading.current_thread())
        assert go_on.wait(PATIENCE)
        return "127.0.0.1", server.port

    async def main() -> None:
        pool = Pool()
        tasks = [asyncio.create_task(reach(pool, Server("embedded"), due)) for _ in range(20)]
        await until(lambda: bool(starts))
        go_on.set()
        found = await asyncio.gather(*tasks)
        assert {place.label for place, _ in found} == {server.url}
        assert len(starts) == 1
        pool.abort()

    starts: list[threading.Thread] = []
    go_on = threading.Event()
    monkeypatch.setattr("aicortex.embedded.ensure_running", start)
    monkeypatch.setattr("aicortex.embedded.address_if_running", lambda: None)
    with FakeServer() as server:
        run(main())


def test_an_engine_that_was_killed_is_started_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that counts as running but refuses connections is given up for another one."""

    async def main() -> None:
        pool = Pool()
        place, connection = await reach(pool, Server("embedded"), due)
        assert place.label == server.url
        assert discarded == [dead]
        connection.close()

    with FakeServer() as gone:
        dead = gone.port
    discarded: list[int] = []
    with FakeServer() as server:
        places = {False: ("127.0.0.1", dead), True: ("127.0.0.1", server.port)}
        monkeypatch.setattr("aicortex.embedded.address_if_running", lambda: places[bool(discarded)])
        monkeypatch.setattr("aicortex.embedded.discard", discarded.append)
        run(main())
