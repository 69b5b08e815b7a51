"""Connections kept for the next request, how to get one to a server, and one plain request over it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from time import perf_counter

from aicortex._core import faults
from aicortex._core.failover import AttemptFailed, Failure
from aicortex._core.http import Response
from aicortex._core.ollama import MAX_LINE_BYTES
from aicortex._core.server import EMBEDDED, Server
from aicortex._sync.connection import Connection
from aicortex.network import CONNECT

IDLE_PER_SERVER = 8  # connections kept open for the next request


class Pool:
    """Idle connections, newest first."""

    def __init__(self) -> None:
        self._idle: dict[Server, list[Connection]] = {}
        self._is_closed = False

    def acquire(self, server: Server, *, due: float, opening: list[socket.socket], fresh: bool = False) -> Connection:
        """Return a connection that is ready for a request, kept or new; raises AttemptFailed."""
        idle = self._idle.setdefault(server, [])
        while idle and not fresh:
            try:
                connection = idle.pop()
            except IndexError:  # another thread was faster
                break
            if connection.is_ready():
                connection.reused = True
                return connection
            connection.close()
        return Connection(server, due=due, opening=opening)

    def release(self, server: Server, connection: Connection) -> None:
        """Keep a connection whose response is over, or close it."""
        idle = self._idle.setdefault(server, [])
        if len(idle) < IDLE_PER_SERVER and connection.may_be_kept() and not self._is_closed:
            idle.append(connection)
        else:
            connection.close()

    def clear(self) -> None:
        """Close every idle connection."""
        for idle in list(self._idle.values()):
            for connection in idle:
                connection.close()
            idle.clear()

    def close(self) -> None:
        """Close every idle connection, and keep none from now on."""
        self._is_closed = True
        self.clear()


POOL = Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.clear)  # parent and child must not speak over one socket


def located(server: Server) -> Server:
    """Return where a server really is: the embedded engine is started when it is first needed."""
    if server.scheme != EMBEDDED:
        return server
    from aicortex.embedded import ensure_running
    from aicortex.errors import EmbeddedEngineError

    try:
        host, port = ensure_running()
    except EmbeddedEngineError as error:
        raise AttemptFailed(Failure("engine", CONNECT, str(error))) from error
    return Server(f"{host}:{port}")


def reach(
    server: Server,
    due: Callable[[], float],
    *,
    opening: list[socket.socket],
    fresh: bool = False,
    pool: Pool = POOL,
) -> tuple[Server, Connection]:
    """Return where a server is and a connection to it; raises AttemptFailed.

    `due` is asked once it is known where the server is: the embedded engine takes its time to start. An engine that
    was killed a moment ago still counts as running but refuses connections; then another one is started.
    """
    place = located(server)
    try:
        return place, pool.acquire(place, due=due(), opening=opening, fresh=fresh)
    except AttemptFailed as error:
        if server.scheme != EMBEDDED or error.failure.kind != "refused":
            raise
    from aicortex.embedded import discard

    discard(place.port)
    place = located(server)
    return place, pool.acquire(place, due=due(), opening=opening)


def call(server: Server, method: str, path: str, body: bytes = b"", *, due: float) -> Response:
    """Make one request and return its whole response; raises AttemptFailed.

    On a kept connection that breaks without a reply it is made once more: the server may have closed it before.
    """
    try:
        return _call(server, method, path, body, due=due)
    except _StaleConnection:
        return _call(server, method, path, body, due=due, fresh=True)


class _StaleConnection(AttemptFailed):
    """A kept connection broke before anything of the reply had come."""


def _call(server: Server, method: str, path: str, body: bytes, *, due: float, fresh: bool = False) -> Response:
    place, connection = reach(server, lambda: due, opening=[], fresh=fresh)
    try:
        response = connection.send(method, path, place, body, due=due)
        while not response.ended:
            left = due - perf_counter()
            if left <= 0:
                raise TimeoutError
            connection.receive(left)
            if sum(map(len, response.body)) > MAX_LINE_BYTES:
                raise AttemptFailed(Failure("bad_response", "reply", "the reply is longer than 8 MB"))
    except TimeoutError:
        connection.close()
        raise AttemptFailed(Failure("stalled", "reply", "did not answer in time")) from None
    except AttemptFailed as error:
        connection.close()
        heard = connection.response
        if connection.reused and not (heard.heads or heard.head_bytes):
            raise _StaleConnection(error.failure) from error
        raise
    except BaseException:
        connection.close()
        raise
    if response.fault is not None or not response.started:
        connection.close()
        failure = faults.of_end(response, phase="reply")
        raise _StaleConnection(failure) if connection.reused and not response.head_bytes else AttemptFailed(failure)
    POOL.release(place, connection)
    return response
