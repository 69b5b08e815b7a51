"""Connections kept for the next request, and how to get one to a server.

Connections belong to an event loop, so there is a pool for each. Nobody has to close it: when `asyncio.run` ends, it
ends what asynchronous generators are left, and one of these is the pool's.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from threading import Lock

from aicortex._aio import aside
from aicortex._aio.connection import READ_SIZE, Connection
from aicortex._core.failover import AttemptFailed
from aicortex._core.server import EMBEDDED, Server
from aicortex._sync.pool import IDLE_PER_SERVER, located


class Pool:
    """Idle connections of one event loop, newest first, and a list of those in use."""

    def __init__(self) -> None:
        self._idle: dict[Server, list[Connection]] = {}
        self._buffer = memoryview(bytearray(READ_SIZE))
        self._open: set[Connection] = set()
        self._is_closed = False
        self.guard: AsyncGenerator[None, None] | None = None  # what the loop ends when it ends

    async def _kept(self, server: Server) -> Connection | None:
        """Return a kept connection that is ready for a request, if there is one."""
        idle = self._idle.get(server)
        while idle:
            connection = idle.pop()
            try:
                is_ready = await connection.is_ready()
            except BaseException:
                connection.close()
                raise
            if is_ready:
                connection.reused = True
                return connection
            connection.close()
        return None

    async def acquire(self, server: Server, *, due: float, fresh: bool = False) -> Connection:
        """Return a connection that is ready for a request, kept or new; raises AttemptFailed."""
        found = None if fresh else await self._kept(server)
        if found is not None:
            return found
        return await Connection.open(server, due=due, buffer=self._buffer, among=self._open)

    def release(self, server: Server, connection: Connection) -> None:
        """Keep a connection whose response is over, or close it."""
        idle = self._idle.setdefault(server, [])
        if len(idle) < IDLE_PER_SERVER and connection.may_be_kept() and not self._is_closed:
            idle.append(connection)
        else:
            connection.close()

    def forget(self, connection: Connection) -> None:
        """Keep no reference to a connection whose loop was closed."""
        self._open.discard(connection)

    def close(self) -> None:
        """Close every idle connection, and keep none from now on."""
        self._is_closed = True
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
            idle.clear()

    def abort(self) -> None:
        """Close every connection, also those in use: the loop ends."""
        self.close()
        for connection in list(self._open):
            connection.close()


class Pools:
    """A pool for each event loop that asks; loops may run in several threads."""

    def __init__(self) -> None:
        self._by_loop: dict[AbstractEventLoop, Pool] = {}
        self._lock = Lock()

    async def of_loop(self) -> Pool:
        """Return the pool of the running event loop."""
        loop = get_running_loop()
        pool = self._by_loop.get(loop)
        if pool is None:
            pool = Pool()
            with self._lock:
                ended = [other for other in self._by_loop if other.is_closed()]
                for other in ended:
                    del self._by_loop[other]
                self._by_loop[loop] = pool
            pool.guard = _closed_at_the_end(pool)
            await anext(pool.guard)
        return pool

    def close(self) -> None:
        """Close the idle connections of every loop."""
        with self._lock:
            pools = list(self._by_loop.items())
        for loop, pool in pools:
            with suppress(RuntimeError):  # it was closed, and its connections with it
                loop.call_soon_threadsafe(pool.close)


POOLS = Pools()


async def _closed_at_the_end(pool: Pool) -> AsyncGenerator[None, None]:
    """Wait, once begun, until the loop ends its asynchronous generators."""
    try:
        yield
    finally:
        pool.abort()


async def reach(
    pool: Pool, server: Server, due: Callable[[], float], *, fresh: bool = False
) -> tuple[Server, Connection]:
    """Return where a server is and a connection to it; raises AttemptFailed. See `_sync.pool.reach`."""
    place = await _located(server)
    try:
        return place, await pool.acquire(place, due=due(), fresh=fresh)
    except AttemptFailed as error:
        if server.scheme != EMBEDDED or error.failure.kind != "refused":
            raise
    from aicortex.embedded import discard

    await aside.do(("discard", place.port), lambda: discard(place.port))
    place = await _located(server)
    return place, await pool.acquire(place, due=due())


async def _located(server: Server) -> Server:
    if server.scheme != EMBEDDED:
        return server
    from aicortex.embedded import address_if_running

    found = address_if_running()
    if found is not None:
        return Server(f"{found[0]}:{found[1]}")
    return await aside.do("engine", lambda: located(server))
