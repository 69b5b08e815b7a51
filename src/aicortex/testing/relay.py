"""A relay between a client and any server, for what befalls a connection on its way.

One thread per relay moves the bytes, and whatever a fault asks for is done in that thread between two events: when the
method returns, it holds. The relay reads no protocol, so it carries TLS as well.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

from aicortex._core.server import EMBEDDED, parse_address

READ_BYTES = 65536  # of one read, and as many may wait for the client before the server is read again
SLICE_SECONDS = 0.02  # a throttled connection moves on so often
UNDER_WAY = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)  # what a connection says that is being opened
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Link:
    """A client's connection and the one to the server behind it."""

    client: socket.socket
    server: socket.socket
    connected: bool = False
    to_server: bytearray = field(default_factory=bytearray)
    to_client: bytearray = field(default_factory=bytearray)
    forwarded: int = 0  # bytes of response that the client got
    not_before: float = 0.0  # of the monotonic clock: when the client may get more
    is_blocked: bool = False  # whether the client must read before it can get more
    server_left: str = ""  # "closed" or "reset"


@dataclass(eq=False)
class _Strike:
    """What befalls one byte of response, once: that behind the first `after_bytes` ones of any connection."""

    kind: str  # "corrupt", "close" or "reset"
    after_bytes: int
    counted_from: dict[_Link, int]

    def distance(self, link: _Link) -> int:
        """Return how many bytes may pass before it strikes here."""
        return self.counted_from.get(link, 0) + self.after_bytes - link.forwarded


class Relay:
    """A port on loopback that leads to `server`, a URL or `host:port`, and can break what passes through.

    Use as a context manager, or call `start` and `stop`; give `url` to the client. The server need not be there yet:
    a connection that finds none is reset. When the client leaves, the connection to the server is closed at once; when
    the server leaves, the client gets what is left and then FIN or RST, as the server sent. Raises
    ValueError for what is no address.

    `cut()` breaks the connections open at that moment. `cut(after_bytes=…)` and `corrupt` strike once, at the first
    connection that comes so far. `stall`, `delay`, `throttle` and `refuse` hold for all connections, open and new,
    until `restore`.

    `connections` counts those accepted, `active` those now open, `request_bytes` and `response_bytes` what was
    forwarded to the server and to clients.
    """

    def __init__(self, server: str) -> None:
        if not isinstance(server, str):
            raise ValueError(f"a relay leads to a server's URL, not to {server!r}")
        scheme, _, host, port, path = parse_address(server)
        if scheme == EMBEDDED:
            raise ValueError("the embedded engine has no address before it runs: serve it on a port")
        self.connections = 0
        self.active = 0
        self.request_bytes = 0
        self.response_bytes = 0
        self.host = "127.0.0.1"
        self.port = 0
        self._scheme, self._path, self._target = scheme, path, (host, port)
        self._changed = threading.Condition(threading.RLock())
        self._actions: deque[tuple[Callable[[], object], threading.Event]] = deque()
        self._thread: threading.Thread | None = None
        self._links: list[_Link] = []
        self._forget_faults()

    @property
    def url(self) -> str:
        """The address to give to the client, with the server's scheme and path; known once the relay has started."""
        return f"{self._scheme}://{self.host}:{self.port}{self._path}"

    def start(self) -> None:
        """Listen, on the same port as before if it has been started before. Raise OSError for an unknown host."""
        host, port = self._target
        # A server on this machine mostly listens on IPv4 alone, while `localhost` may mean ::1 first.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self._place = min(found, key=lambda each: each[0] != socket.AF_INET)
        self._selector = selectors.DefaultSelector()
        wakeable, self._waker = socket.socketpair()
        self._selector.register(wakeable, READ)
        self._listener = self._bind()
        self._listen()
        self._thread = threading.Thread(target=self._run, args=(wakeable,), name=f"Relay {self.port}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close every connection, free the port and wait for the thread to end."""
        if self._thread is not None:
            self._waker.close()
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Relay:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def cut(self, *, reset: bool = True, after_bytes: int | None = None) -> None:
        """Break connections, with RST, or with FIN if not `reset`; the server sees its client leave.

        At once and all that are open; or, with `after_bytes`, the first one to get more bytes of response than that,
        counted from now on, and none afterwards.
        """
        if after_bytes is not None:
            self._arm("reset" if reset else "close", after_bytes)
            return
        self._do(lambda: self._end_all(reset=reset))

    def corrupt(self, *, after_bytes: int = 0) -> None:
        """Flip all bits of one byte of response: on the first connection to get more than `after_bytes` from now on.

        One byte, because in UTF-8 a single flipped one never makes sense, while two may be another character.
        """
        self._arm("corrupt", after_bytes)

    def stall(self) -> None:
        """Forward nothing more to clients, not even the end of a connection; what they send still goes through."""
        self._do(lambda: setattr(self, "_stalled", True))

    def delay(self, seconds: float) -> None:
        """Forward each piece of response so much later; what comes meanwhile goes with it."""
        if seconds < 0:
            raise ValueError(f"a delay is at least 0 seconds, not {seconds}")
        self._do(lambda: setattr(self, "_delay", seconds))

    def throttle(self, bytes_per_second: float) -> None:
        """Forward responses no faster than this, each connection for itself."""
        if bytes_per_second <= 0:
            raise ValueError(
                f"a rate is more than 0 bytes per second, not {bytes_per_second}: stall() forwards nothing"
            )
        self._do(lambda: setattr(self, "_rate", bytes_per_second))

    def refuse(self) -> None:
        """Refuse new connections; open ones live on, the port stays reserved."""
        self._do(self._stop_listening)

    def restore(self) -> None:
        """Take every fault back: what was held is forwarded, strikes that have not happened are forgotten."""
        self._do(self._heal)

    def wait_until(self, claim: Callable[[], bool], timeout: float = 5.0) -> bool:
        """Wait until `claim()` holds, at most `timeout` seconds; return whether it does.

        It is asked again whenever `connections`, `active`, `request_bytes` or `response_bytes` change.
        """
        with self._changed:
            return self._changed.wait_for(claim, timeout)

    def _arm(self, kind: str, after_bytes: int) -> None:
        def arm() -> None:
            self._strikes.append(_Strike(kind, after_bytes, {link: link.forwarded for link in self._links}))

        self._do(arm)

    def _do(self, action: Callable[[], object]) -> None:
        """Let the relay's thread act; return when it has. Raise RuntimeError when the relay is not running."""
        if self._thread is None:
            raise RuntimeError("the relay is not running: start it, or use it in a with block")
        done = threading.Event()
        self._actions.append((action, done))
        self._waker.send(b"!")
        done.wait()

    # Everything below runs in the relay's thread, or before it starts.

    def _forget_faults(self) -> None:
        self._stalled = False
        self._delay = 0.0
        self._rate = float("inf")
        self._strikes: list[_Strike] = []

    def _heal(self) -> None:
        self._forget_faults()
        for link in self._links:
            link.not_before = 0.0
        if self._listener not in self._selector.get_map():
            self._listen()

    def _bind(self) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if os.name != "nt":  # on Windows the option would let another process take the port over
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        return listener

    def _listen(self) -> None:
        self._listener.listen(128)
        self._selector.register(self._listener, READ)

    def _stop_listening(self) -> None:
        if self._listener in self._selector.get_map():
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = self._bind()

    def _run(self, wakeable: socket.socket) -> None:
        woken = True
        while woken:
            ready = self._selector.select(self._pause())
            with self._changed:
                for key, events in ready:
                    if key.fileobj is wakeable:
                        woken = bool(wakeable.recv(READ_BYTES))
                    elif key.fileobj is self._listener:
                        self._accept()
                    elif key.data in self._links:  # an event before may have ended it
                        self._hear(key.data, key.fileobj is key.data.client, events)
                self._act()
                for link in list(self._links):
                    self._move(link)
                self._changed.notify_all()
        self._end_all(reset=False)
        self._selector.close()
        self._listener.close()
        wakeable.close()

    def _pause(self) -> float | None:
        """Return the seconds until a held piece is due; None when there is none."""
        due = [link.not_before for link in self._links if link.to_client and not link.is_blocked]
        return max(0.0, min(due) - time.monotonic()) if due and not self._stalled else None

    def _act(self) -> None:
        while self._actions:
            action, done = self._actions.popleft()
            action()
            done.set()

    def _accept(self) -> None:
        with suppress(OSError):  # the client has left already
            client, _ = self._listener.accept()
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            family, kind, protocol, _, address = self._place
            server = socket.socket(family, kind, protocol)
            server.setblocking(False)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server)
            self._links.append(link)
            self.connections += 1
            self.active += 1
            if server.connect_ex(address) not in UNDER_WAY:
                self._end(link, reset=True)

    def _hear(self, link: _Link, from_client: bool, events: int) -> None:
        """Take what one side of a link sent, or its leaving."""
        if from_client and events & READ:
            data, left = _receive(link.client)
            link.to_server += data  # without a limit: only who reads on sees the client leave
            if left:
                self._end(link)
        elif not from_client and not link.connected:
            link.connected = not link.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not link.connected:
                self._end(link, reset=True)
        elif not from_client and events & READ:
            data, link.server_left = _receive(link.server)
            if not link.to_client:
                link.not_before = max(link.not_before, time.monotonic() + self._delay)
            link.to_client += data

    def _move(self, link: _Link) -> None:
        """Send on what may be sent on, and see to what must be waited for."""
        if link.connected and link.to_server:
            sent = _send(link.server, link.to_server)
            self.request_bytes += max(0, sent)
            del link.to_server[: sent if sent >= 0 else None]  # why it does not take more, reading will tell
        self._forward(link, time.monotonic())
        if link.server_left and not link.to_client and not self._stalled:
            self._end(link, reset=link.server_left == "reset")
        if link in self._links:
            self._await(link)

    def _forward(self, link: _Link, now: float) -> None:
        link.is_blocked = False
        while link.to_client and not self._stalled and now >= link.not_before:
            strike = min(self._strikes, key=lambda each: each.distance(link), default=None)
            distance = strike.distance(link) if strike else READ_BYTES
            if strike and distance == 0:
                self._strikes.remove(strike)
                if strike.kind != "corrupt":
                    self._end(link, reset=strike.kind == "reset")
                    return
                link.to_client[0] ^= 0xFF
                continue
            size = int(min(len(link.to_client), distance, max(1, self._rate * SLICE_SECONDS)))
            sent = _send(link.client, link.to_client[:size])
            if sent <= 0:
                link.is_blocked = True  # it does not read now, or has left, which reading will tell
                return
            link.forwarded += sent
            self.response_bytes += sent
            link.not_before = now + sent / self._rate
            del link.to_client[:sent]

    def _await(self, link: _Link) -> None:
        self._watch(link, link.client, READ | (WRITE if link.is_blocked else 0))
        wants_more = link.connected and not link.server_left and len(link.to_client) < READ_BYTES
        has_more = link.to_server or not link.connected
        self._watch(link, link.server, (READ if wants_more else 0) | (WRITE if has_more else 0))

    def _watch(self, link: _Link, sock: socket.socket, events: int) -> None:
        """Let the selector report these events of a socket."""
        known = self._selector.get_map().get(sock)
        if known and events:
            self._selector.modify(sock, events, link)
        elif known:
            self._selector.unregister(sock)
        elif events:
            self._selector.register(sock, events, link)

    def _end_all(self, *, reset: bool) -> None:
        for link in list(self._links):
            self._end(link, reset=reset)

    def _end(self, link: _Link, *, reset: bool = False) -> None:
        """Close both connections of a link, the client's with RST if `reset`."""
        self._links.remove(link)
        self.active -= 1
        if reset:
            link.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        for sock in (link.client, link.server):
            self._watch(link, sock, 0)
            sock.close()


def _receive(sock: socket.socket) -> tuple[bytes, str]:
    """Read once; return the bytes, and "closed" or "reset" when the peer has left."""
    try:
        data = sock.recv(READ_BYTES)
    except BlockingIOError:
        return b"", ""
    except OSError:
        return b"", "reset"
    return data, "" if data else "closed"


def _send(sock: socket.socket, data: bytearray) -> int:
    """Send what the socket takes; return how many bytes, -1 when it takes none any more."""
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0
    except OSError:
        return -1
