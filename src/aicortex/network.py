"""What both front ends do alike about the network: the way to a server, TLS, and what a broken connection means.

Every error of the operating system becomes an `AttemptFailed` with words from here.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aicortex._core.failover import AttemptFailed, Failure
from aicortex._core.http import encode_request
from aicortex._core.server import Server
from aicortex.settings import proxy_for

if TYPE_CHECKING:
    import ssl

CONNECT = "connect"
SEND = "send"
END_SECONDS = 0.005  # how long the end of a body is waited for whose last chunk is here
MAX_TUNNEL_HEAD = 65536  # bytes of what a proxy may say about the way through


def proxy_to(server: Server) -> Server | None:
    """Return the proxy to use for a server, if any; raises AttemptFailed."""
    try:
        return proxy_for(server)
    except ValueError as error:
        raise AttemptFailed(Failure("proxy", CONNECT, str(error))) from error


def proxy_headers(proxy: Server) -> list[tuple[str, str]]:
    """Return the headers that a proxy wants to see."""
    return [(f"Proxy-{name}", value) for name, value in proxy.headers if name == "Authorization"]


def head_of(proxy: Server | None, server: Server) -> tuple[str, list[tuple[str, str]]]:
    """Return what a request needs for its way: a prefix of its target, and headers."""
    if proxy is None or server.scheme == "https":
        return "", []
    return f"http://{server.netloc}", proxy_headers(proxy)


def tunnel_request(proxy: Server, server: Server) -> bytes:
    """Return what asks a proxy for a way through to a server; it answers with a head and nothing else."""
    return encode_request("CONNECT", server.netloc, [("Host", server.netloc), *proxy_headers(proxy)])


def check_tunnel(proxy: Server, head: bytes) -> None:
    """Raise AttemptFailed if the head with which a proxy answered refuses the way through."""
    status = head.split(b"\r\n", 1)[0].decode("latin-1")
    if status.split(" ")[1:2] != ["200"]:
        raise AttemptFailed(Failure("proxy", CONNECT, f"the proxy {proxy.label} refuses the way through: {status!r}"))


def encode(method: str, path: str, server: Server, body: bytes, way: tuple[str, list[tuple[str, str]]]) -> bytes:
    """Return a request to a server as bytes; `way` is what `head_of` returns."""
    prefix, extra = way
    headers = [("Host", server.netloc), ("Accept", "application/x-ndjson, application/json"), *extra]
    return encode_request(method, prefix + server.path + path, [*headers, *server.headers], body)


def prepare(found: socket.socket) -> None:
    """Set what a connection for streams wants: small requests at once, and notice of hosts that went away."""
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def numeric_addresses(host: str, port: int) -> list[Any] | None:  # Any: what getaddrinfo gives
    """Return the addresses of a host that is one already, None for a name, which takes time to resolve."""
    with suppress(OSError, UnicodeError):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return None


def unresolved(host: str, error: Exception | None) -> AttemptFailed:
    """Return the failure of a name that cannot be resolved, or without an error was not in time."""
    if error is None:
        return AttemptFailed(Failure("connect_timeout", CONNECT, f"the name {host} was not resolved in time"))
    return AttemptFailed(Failure("unreachable", CONNECT, f"the name {host} cannot be resolved ({error})"))


def tls_context(server: Server) -> ssl.SSLContext:
    """Return what secures connections to a server, one for all of its kind; raises AttemptFailed."""
    files = tuple(file for file in (server.ca_file, server.client_cert) if file)
    try:
        states = tuple((os.stat(file).st_mtime_ns, os.stat(file).st_ino) for file in files)
    except OSError:
        states = ()  # whoever loads it says what is wrong
    return _new_context((server.ca_file, server.client_cert, server.verify, states))


@lru_cache(maxsize=64)  # a context takes 25 ms to make
def _new_context(kind: tuple[str | None, str | None, bool, tuple[tuple[int, int], ...]]) -> ssl.SSLContext:
    """Return a new context; the states at the end tell files from those that have taken their place."""
    ca_file, client_cert, verify, _ = kind
    import ssl  # 20 ms to import: only for https

    context = ssl.create_default_context()
    for file, load in ((ca_file, context.load_verify_locations), (client_cert, context.load_cert_chain)):
        try:
            if file:
                load(file)
        except OSError as error:
            words = f"the certificate file {file} cannot be used ({error.strerror or error})"
            raise AttemptFailed(Failure("tls", CONNECT, words)) from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def handshake_timeout() -> AttemptFailed:
    """Return the failure of a TLS handshake that did not end."""
    words = "the TLS handshake did not end in time: does this port speak https?"
    return AttemptFailed(Failure("tls", CONNECT, words))


def is_tls_error(error: Exception) -> bool:
    """Whether an error is TLS's own."""
    ssl = sys.modules.get("ssl")
    return ssl is not None and isinstance(error, ssl.SSLError)


def failure_of(error: Exception, phase: str) -> Failure:
    """Say in plain words what an operating system's error means; the phase "" is whichever the answer is in."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, ConnectionRefusedError):
        return Failure("refused", phase, "refused the connection: nothing listens there")
    if isinstance(error, TimeoutError):
        return Failure("connect_timeout", phase, "does not answer: the connection could not be opened in time")
    if is_tls_error(error):
        return Failure("tls", phase, f"no secure connection ({words})")
    if isinstance(error, ConnectionError):
        return Failure("reset", phase, f"broke the connection ({words})")
    return Failure("unreachable" if phase == CONNECT else "reset", phase, f"cannot be reached ({words})")
