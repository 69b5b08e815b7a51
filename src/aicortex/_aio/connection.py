"""One connection to a server, as an asyncio protocol: connect, send, and collect what comes until somebody takes it.

Every error of the operating system becomes an `AttemptFailed` here and nowhere else in this front end.
"""

from __future__ import annotations

import socket
from asyncio import (
    BufferedProtocol,
    Future,
    Transport,
    get_running_loop,
    shield,
)
from asyncio import TimeoutError as LateError  # a TimeoutError of its own before Python 3.11
from typing import TYPE_CHECKING, Any, cast

from aicortex._aio.opening import by, open_socket
from aicortex._core.failover import AttemptFailed, Failure
from aicortex._core.http import Response
from aicortex._core.server import Server
from aicortex.network import (
    CONNECT,
    END_SECONDS,
    SEND,
    encode,
    failure_of,
    handshake_timeout,
    head_of,
    is_tls_error,
    tls_context,
)

if TYPE_CHECKING:
    import ssl

READ_SIZE = 65536  # bytes of one read
MOST_UNREAD = 256 * 1024  # bytes that may wait for a reader; the server waits then


class Connection(BufferedProtocol):
    """A connection that carries one request at a time.

    What comes is collected until `take`, and `has_news` says that something has; whoever waits puts a future into
    `waiter`, which is set once. `reused` says whether the connection was kept from another request. All connections of
    a loop read into one `buffer`, for `READ_SIZE` bytes: with a plain Protocol asyncio makes a new one of 256 KB for
    each read, which takes 10 us of 18 at a thousand slow streams.
    """

    __slots__ = (
        "_among",
        "_buffer",
        "_error",
        "_inbox",
        "_is_lost",
        "_is_paused",
        "_sent",
        "_transport",
        "_unread",
        "_way",
        "has_news",
        "response",
        "reused",
        "waiter",
    )

    def __init__(self, buffer: memoryview, among: set[Connection]) -> None:
        self.response = Response()
        self.reused = False
        self.has_news = False
        self._buffer = buffer
        self._among = among
        self.waiter: Future[bool] | None = None
        self._transport: Transport | None = None
        self._way: tuple[str, list[tuple[str, str]]] = ("", [])
        self._inbox: list[bytes | bytearray] = []
        self._unread = 0
        self._is_paused = False
        self._is_lost = False
        self._error: Exception | None = None
        self._sent: Future[None] | None = None  # while a request waits for the server to take it

    @classmethod
    async def open(cls, server: Server, *, due: float, buffer: memoryview, among: set[Connection]) -> Connection:
        """Connect by the time `due` (of `perf_counter`); raises AttemptFailed.

        The connection is in `among` as long as it is open.
        """
        found, proxy = await open_socket(server, due)
        try:
            context = tls_context(server) if server.scheme == "https" else None
        except BaseException:
            found.close()
            raise
        connection = cls(buffer, among)
        connection._way = head_of(proxy, server)
        await connection._attach(found)
        try:
            if context is not None:
                await connection._secure(context, server, due)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _attach(self, found: socket.socket) -> None:
        """Take over a socket.

        That takes two rounds of the loop and cannot hang. uvloop closes the socket twice if it is cancelled there.
        """
        loop = get_running_loop()
        attached = loop.create_task(loop.create_connection(lambda: self, sock=found))
        try:
            await shield(attached)
        except OSError as error:
            raise AttemptFailed(failure_of(error, CONNECT)) from error
        except BaseException:
            attached.add_done_callback(lambda _: self.close())  # not before: the socket is in two hands until then
            raise

    async def _secure(self, context: ssl.SSLContext, server: Server, due: float) -> None:
        """Begin TLS."""
        loop, plain = get_running_loop(), self._transport
        if plain is None or self._is_lost:
            raise AttemptFailed(failure_of(self._error or ConnectionResetError("closed"), CONNECT))
        try:
            secured = await by(loop.start_tls(plain, self, context, server_hostname=server.host), due)
        except LateError as error:
            raise handshake_timeout() from error
        except (OSError, ValueError) as error:
            raise AttemptFailed(failure_of(error, CONNECT)) from error
        if secured is None:  # as typed: where the connection was lost meanwhile
            raise AttemptFailed(failure_of(self._error or ConnectionResetError("closed"), CONNECT))
        self._transport = secured

    async def send(self, method: str, path: str, server: Server, body: bytes = b"", *, due: float) -> Response:
        """Send a request and return its response, to be filled by `take`; raises AttemptFailed."""
        self.response = Response()
        self._drop()
        transport = self._transport
        if transport is None or self._is_lost:
            raise AttemptFailed(failure_of(self._error or ConnectionResetError("closed"), SEND))
        transport.write(encode(method, path, server, body, self._way))
        if _unsent(transport):
            await self._drain(transport, due)
        return self.response

    async def _drain(self, transport: Transport, due: float) -> None:
        """Wait until the system has taken the whole request."""
        self._sent = get_running_loop().create_future()
        transport.set_write_buffer_limits(high=0)
        try:
            if _unsent(transport):
                await by(self._sent, due)
        except LateError:
            words = "does not take the request: its connection is stuck"
            raise AttemptFailed(Failure("stalled", SEND, words)) from None
        except OSError as error:
            raise AttemptFailed(failure_of(error, SEND)) from error
        finally:
            self._sent = None

    def take(self) -> bool:
        """Feed the response with what has come and return whether there was anything.

        Raises AttemptFailed when the connection broke, once everything before that was taken.
        """
        if self._inbox:
            self._feed()
            if self._is_paused:
                self._is_paused = False
                if self._transport is not None:
                    self._transport.resume_reading()
            self.has_news = self._error is not None
            return True
        self.has_news = False
        error, self._error = self._error, None
        if error is None or self.response.eof:
            return False
        if is_tls_error(error) and "EOF" in str(error).upper():
            self.response.eof = True  # closed without TLS's goodbye; whether the answer is whole, the core knows
            return True
        raise AttemptFailed(failure_of(error, "")) from error

    def _feed(self) -> None:
        self.response.take_all(self._inbox)
        self._inbox.clear()
        self._unread = 0

    async def is_ready(self) -> bool:
        """Whether another request may be sent: the last response is whole and the server has not hung up.

        The end of a body often comes in a packet of its own, behind the last chunk: it is waited for.
        """
        self._feed()
        if not self.response.ended:
            loop = get_running_loop()
            self.waiter = waiter = loop.create_future()
            timer = loop.call_later(END_SECONDS, _release, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                self.waiter = None
            self._feed()
        return not self._is_lost and self.response.reusable

    def may_be_kept(self) -> bool:
        """Whether the server may take another request once the end of this response has come."""
        response = self.response
        closes = "close" in response.header("connection").lower()
        is_usable = not self._is_lost and not self._is_paused and not response.eof and response.fault is None
        return is_usable and not closes

    def close(self) -> None:
        """Close the connection at once; a server that was generating stops."""
        self._among.discard(self)
        if self._transport is not None:
            self._transport.abort()
        self._drop()

    def _drop(self) -> None:
        self._inbox.clear()
        self._unread = 0
        self.has_news = False

    def connection_made(self, transport: Any) -> None:  # Any: asyncio's own type here is too wide
        """Keep the transport: asyncio calls this."""
        self._transport = cast(Transport, transport)
        self._among.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio calls it with that
        """Return where to put what comes: asyncio calls this, and then at once `buffer_updated`."""
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        """Collect what has come: asyncio calls this."""
        self._inbox.append(bytes(self._buffer[:count]))
        self.has_news = True
        self._unread += count
        if self._unread > MOST_UNREAD and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(True)

    def eof_received(self) -> None:
        """Take note of the end: asyncio calls this."""
        self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Take note of the end, or of what broke the connection: asyncio calls this."""
        self._end(error)
        self._among.discard(self)
        if self._transport is not None:
            self._transport.abort()  # before Python 3.11 a TLS transport does not know that it is closed
            self._transport = None

    def resume_writing(self) -> None:
        """Go on after a request was taken: asyncio calls this."""
        if self._sent is not None and not self._sent.done():
            self._sent.set_result(None)

    def _end(self, error: Exception | None) -> None:
        if not self._is_lost:
            self._is_lost = self.has_news = True
            self._error = error
            if error is None:
                self._inbox.append(b"")
        if self._sent is not None and not self._sent.done():
            self._sent.set_exception(error or ConnectionResetError("closed by the server"))
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(True)


def _unsent(transport: Transport) -> int:
    """Return how many bytes wait to be sent; before Python 3.11 a TLS transport that was lost does not know."""
    try:
        return transport.get_write_buffer_size()
    except AttributeError:
        return 0


def _release(waiter: Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)
