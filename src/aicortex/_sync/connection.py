"""One connection to a server, over a blocking socket: connect, send, receive, and be woken by another thread.

Every error of the operating system becomes an `AttemptFailed` here and nowhere else in this front end.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

from aicortex._core.failover import AttemptFailed, Failure
from aicortex._core.http import Response
from aicortex._core.server import Server
from aicortex.network import (
    CONNECT,
    END_SECONDS,
    MAX_TUNNEL_HEAD,
    SEND,
    check_tunnel,
    encode,
    failure_of,
    handshake_timeout,
    head_of,
    is_tls_error,
    numeric_addresses,
    prepare,
    proxy_to,
    tls_context,
    tunnel_request,
    unresolved,
)

READ_SIZE = (65536,)  # bytes of one read, as the sequence that map() walks over
RECORD_SIZE = 16384  # bytes of the longest TLS record


class Connection:
    """A connection that carries one request at a time.

    `receive` is safe against a KeyboardInterrupt at any point: bytes go from the socket through `_inbox` into the
    response by C functions alone, so they are either still in the kernel, in the inbox, or parsed.
    """

    __slots__ = ("_inbox", "_is_tls", "_read", "_socket", "_timeout", "_way", "response", "reused")

    def __init__(self, server: Server, *, due: float, opening: list[socket.socket]) -> None:
        """Connect by the time `due` (of `perf_counter`); raises AttemptFailed.

        Each socket is put into `opening` before it is waited for, so that another thread can end the wait.
        """
        self.response = Response()
        self.reused = False  # whether the connection was kept from another request
        self._inbox: list[bytes | bytearray] = []
        self._timeout = 0.0
        self._socket, self._way = _connect(server, due, opening)
        self._read: Callable[[int], bytes] = self._socket.recv
        self._is_tls = server.scheme == "https"

    def send(self, method: str, path: str, server: Server, body: bytes = b"", *, due: float) -> Response:
        """Send a request and return its response, to be filled by `receive`; raises AttemptFailed."""
        data = encode(method, path, server, body, self._way)
        self.response = Response()
        self._inbox.clear()
        try:
            self._wait_at_most(due - perf_counter())
            self._socket.sendall(data)
        except TimeoutError:
            raise AttemptFailed(
                Failure("stalled", SEND, "does not take the request: its connection is stuck")
            ) from None
        except OSError as error:
            raise AttemptFailed(failure_of(error, SEND)) from error
        return self.response

    def receive(self, seconds: float) -> None:
        """Read once and feed the response, or raise TimeoutError; raises AttemptFailed when the connection breaks."""
        inbox = self._inbox
        if not inbox or self._is_tls:
            if seconds != self._timeout:
                self._wait_at_most(seconds)
            try:
                if self._is_tls:
                    self._read_tls(inbox)
                else:
                    inbox.extend(map(self._read, READ_SIZE))
            except TimeoutError:
                raise
            except OSError as error:
                self._end(error)
                return
        self.response.take(inbox)

    def _read_tls(self, inbox: list[bytes | bytearray]) -> None:
        """Read one TLS record into a buffer of zeros, which outlives an interrupt.

        Python's TLS looks for signals after it has read, and then drops the count but not the bytes. Whatever way the
        call ends, the bytes are in the buffer; neither HTTP nor JSON ends in a zero, so they can be told apart.
        """
        if not inbox:
            inbox.append(bytearray(RECORD_SIZE))
        buffer = inbox[0]
        if buffer[:1] != b"\0":
            inbox[0] = buffer.rstrip(b"\0")
            return
        count = self._socket._sslobj.read(RECORD_SIZE, buffer)  # type: ignore[attr-defined]
        inbox[0] = buffer[:count]

    def _end(self, error: OSError) -> None:
        if is_tls_error(error) and "EOF" in str(error).upper():
            self.response.eof = True  # closed without TLS's own goodbye; whether the answer is whole, the core knows
            return
        raise AttemptFailed(failure_of(error, "")) from error

    def _wait_at_most(self, seconds: float) -> None:
        """Set the socket's timeout; when the time is past, what has come is still taken."""
        self._socket.settimeout(max(seconds, 0.001))
        self._timeout = seconds  # afterwards: an interrupt between the two sets it again

    def is_ready(self) -> bool:
        """Whether another request may be sent: the last response is whole and the server has not hung up."""
        try:
            if not self.response.ended:
                self.receive(END_SECONDS)
            quiet = not select.select([self._socket], [], [], 0)[0]
        except (AttemptFailed, OSError, ValueError):
            return False
        return quiet and self.response.reusable

    def may_be_kept(self) -> bool:
        """Whether the server may take another request once the end of this response has come."""
        response = self.response
        return not response.eof and response.fault is None and "close" not in response.header("connection").lower()

    def fileno(self) -> int:
        """Return the socket's number, to wait for several."""
        return self._socket.fileno()

    def has_pending(self) -> bool:
        """Whether there is something to read that the system does not know of."""
        if not self._is_tls:
            return bool(self._inbox)
        is_filled = bool(self._inbox) and self._inbox[0][:1] != b"\0"
        return is_filled or self._socket.pending() > 0  # type: ignore[attr-defined]

    def wake(self) -> None:
        """Make a `receive` in another thread return at once; the connection is of no use afterwards."""
        end_waits([self._socket])

    def close(self) -> None:
        """Close the connection; a server that was generating stops."""
        self._socket.close()


def end_waits(sockets: list[socket.socket]) -> None:
    """Make other threads that wait for these sockets go on at once."""
    for each in sockets:
        with suppress(OSError):  # closed, or replaced by its secured successor
            socket.socket.shutdown(each, socket.SHUT_RDWR)


def wait_for_any(connections: Sequence[Connection], seconds: float) -> int | None:
    """Return the number of the first connection that has something to read, or None when none has in time."""
    import selectors  # only for answers that wait for two servers at once

    for number, connection in enumerate(connections):
        if connection.has_pending():
            return number
    with selectors.DefaultSelector() as selector:
        for number, connection in enumerate(connections):
            selector.register(connection, selectors.EVENT_READ, number)
        return min((key.data for key, _ in selector.select(max(seconds, 0.001))), default=None)


def _connect(
    server: Server, due: float, opening: list[socket.socket]
) -> tuple[socket.socket, tuple[str, list[tuple[str, str]]]]:
    """Return a connected socket, and what a request through it needs: a prefix of its target, and headers."""
    proxy = proxy_to(server)
    peer = proxy or server
    found = _open(peer.address or peer.host, peer.port, due, opening)
    try:
        prepare(found)
        if server.scheme == "https":
            if proxy:
                _tunnel(found, proxy, server, due)
            found = _secured(found, server, due, opening)
        return found, head_of(proxy, server)
    except BaseException:
        found.close()
        raise


def addresses_of(host: str, port: int, due: float) -> list[Any]:  # Any: what getaddrinfo gives
    """Resolve a name by the time `due`: the system's resolver knows no deadline, so it gets a thread of its own."""
    numeric = numeric_addresses(host, port)
    if numeric is not None:
        return numeric
    from queue import Empty, SimpleQueue
    from threading import Thread

    found: SimpleQueue[list[Any] | Exception] = SimpleQueue()

    def resolve() -> None:
        try:
            found.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            found.put(error)

    Thread(target=resolve, daemon=True).start()
    try:
        answer = found.get(timeout=max(due - perf_counter(), 0.001))
    except Empty:
        raise unresolved(host, None) from None
    if isinstance(answer, Exception):
        raise unresolved(host, answer) from answer
    return answer


def _open(host: str, port: int, due: float, opening: list[socket.socket]) -> socket.socket:
    """Connect to the first address of a name that answers; each gets its share of the time."""
    addresses = addresses_of(host, port, due)
    failure = Failure("unreachable", CONNECT, f"the name {host} has no address")
    for left, (family, kind, protocol, _, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        found = socket.socket(family, kind, protocol)
        opening.append(found)
        try:
            found.settimeout(max((due - perf_counter()) / left, 0.001))
            found.connect(address)
            return found
        except OSError as error:
            found.close()
            failure = failure_of(error, CONNECT)
            if not opening:
                break  # somebody ended the wait
        except BaseException:
            found.close()
            raise
    raise AttemptFailed(failure)


def _tunnel(found: socket.socket, proxy: Server, server: Server, due: float) -> None:
    """Ask a proxy for a way through to the server."""
    head = b""
    try:
        found.settimeout(max(due - perf_counter(), 0.001))
        found.sendall(tunnel_request(proxy, server))
        while not head.endswith(b"\r\n\r\n") and len(head) < MAX_TUNNEL_HEAD:
            found.settimeout(max(due - perf_counter(), 0.001))
            if perf_counter() > due:
                raise TimeoutError
            byte = found.recv(1)  # one at a time: what follows the head belongs to TLS
            if not byte:
                break
            head += byte
    except OSError as error:
        raise AttemptFailed(failure_of(error, CONNECT)) from error
    check_tunnel(proxy, head)


def _secured(found: socket.socket, server: Server, due: float, opening: list[socket.socket]) -> socket.socket:
    context = tls_context(server)
    try:
        secured = context.wrap_socket(found, do_handshake_on_connect=False, server_hostname=server.host)
        opening.append(secured)
        try:
            secured.settimeout(max(due - perf_counter(), 0.001))
            secured.do_handshake()
            return secured
        except BaseException:
            secured.close()
            raise
    except TimeoutError as error:
        raise handshake_timeout() from error
    except (OSError, ValueError) as error:
        raise AttemptFailed(failure_of(error, CONNECT)) from error
