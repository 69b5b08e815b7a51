"""How a socket is connected without blocking the event loop: a name's addresses one after the other, and proxies."""

from __future__ import annotations

import os
import socket
from asyncio import Future, get_running_loop, wait_for
from asyncio import TimeoutError as LateError  # a TimeoutError of its own before Python 3.11
from collections.abc import Awaitable
from contextlib import suppress
from time import perf_counter
from typing import Any, TypeVar

from aicortex._aio import aside
from aicortex._core.failover import AttemptFailed, Failure
from aicortex._core.server import Server
from aicortex.network import (
    CONNECT,
    MAX_TUNNEL_HEAD,
    check_tunnel,
    failure_of,
    numeric_addresses,
    prepare,
    proxy_to,
    tunnel_request,
    unresolved,
)

T = TypeVar("T")


async def open_socket(server: Server, due: float) -> tuple[socket.socket, Server | None]:
    """Return a socket that leads to a server, and the proxy on its way; raises AttemptFailed."""
    proxy = proxy_to(server)
    peer = proxy or server
    found = await _open(peer.address or peer.host, peer.port, due)
    try:
        prepare(found)
        if server.scheme == "https" and proxy is not None:
            await _tunnel(found, proxy, server, due)
    except BaseException:
        found.close()
        raise
    return found, proxy


async def by(what: Awaitable[T], due: float) -> T:
    """Wait for something until `due`; raises LateError."""
    return await wait_for(what, max(due - perf_counter(), 0.001))


async def _addresses(host: str, port: int, due: float) -> list[Any]:  # Any: what getaddrinfo gives
    """Resolve a name by the time `due`; all who ask for it at the same time wait for one thread."""
    numeric = numeric_addresses(host, port)
    if numeric is not None:
        return numeric
    resolve = aside.do(("address", host, port), lambda: list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    try:
        return await by(resolve, due)
    except LateError:
        raise unresolved(host, None) from None
    except (OSError, UnicodeError) as error:
        raise unresolved(host, error) from error


async def _open(host: str, port: int, due: float) -> socket.socket:
    """Connect to the first address of a name that answers; each gets its share of the time."""
    addresses = await _addresses(host, port, due)
    failure = Failure("unreachable", CONNECT, f"the name {host} has no address")
    for left, (family, kind, protocol, _, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        found = socket.socket(family, kind, protocol)
        found.setblocking(False)
        try:
            await _connect(found, address, perf_counter() + (due - perf_counter()) / left)
            return found
        except LateError:
            found.close()
            failure = failure_of(TimeoutError(), CONNECT)
        except OSError as error:
            found.close()
            failure = failure_of(error, CONNECT)
        except BaseException:
            found.close()
            raise
    raise AttemptFailed(failure)


async def _connect(found: socket.socket, address: Any, due: float) -> None:  # Any: as above
    """Connect a socket by the time `due`; raises LateError and OSError.

    `loop.sock_connect` with a time limit takes two tasks more, kilobytes for each of a thousand streams that begin at
    once; it is used where a loop cannot watch a socket (Windows).
    """
    loop, number = get_running_loop(), found.fileno()
    try:
        loop.remove_writer(number)
    except NotImplementedError:
        return await by(loop.sock_connect(found, address), due)
    with suppress(BlockingIOError, InterruptedError):
        return found.connect(address)
    done = loop.create_future()
    timer = loop.call_later(max(due - perf_counter(), 0.001), _fail, done, LateError())
    loop.add_writer(number, _look, found, done)
    try:
        await done
    finally:
        loop.remove_writer(number)  # before the socket is closed: another one may get its number
        timer.cancel()


def _fail(done: Future[None], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)


def _look(found: socket.socket, done: Future[None]) -> None:
    """See what became of a connection that was begun."""
    number = found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        _fail(done, OSError(number, os.strerror(number)))
    elif not done.done():
        done.set_result(None)


async def _tunnel(found: socket.socket, proxy: Server, server: Server, due: float) -> None:
    """Ask a proxy for a way through to the server."""
    loop, head = get_running_loop(), b""
    try:
        await by(loop.sock_sendall(found, tunnel_request(proxy, server)), due)
        while not head.endswith(b"\r\n\r\n") and len(head) < MAX_TUNNEL_HEAD:
            byte = await by(loop.sock_recv(found, 1), due)  # one at a time: what follows the head belongs to TLS
            if not byte:
                break
            if perf_counter() > due:
                raise LateError
            head += byte
    except LateError as error:
        raise AttemptFailed(failure_of(TimeoutError(), CONNECT)) from error
    except OSError as error:
        raise AttemptFailed(failure_of(error, CONNECT)) from error
    check_tunnel(proxy, head)
