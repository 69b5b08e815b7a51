"""Peers that are no Ollama: proxies, and ports where nobody answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def proxy(status: bytes = b"200 Connection established") -> Iterator[tuple[int, list[bytes]]]:
    """A proxy that tunnels CONNECT to the named port on loopback and forwards absolute-form requests there."""
    heads: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []
    clients: list[socket.socket] = []

    def pipe(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):  # either side may be gone first
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def serve(client: socket.socket) -> None:
        with client:
            head = client.recv(65536)
            heads.append(head)
            target = head.split(b" ")[1].removeprefix(b"http://").split(b"/")[0]
            if head.startswith(b"CONNECT") and not status.startswith(b"200"):
                client.sendall(b"HTTP/1.1 " + status + b"\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", int(target.rpartition(b":")[2]))) as server:
                if head.startswith(b"CONNECT"):
                    client.sendall(b"HTTP/1.1 " + status + b"\r\n\r\n")
                else:
                    server.sendall(head)
                back = threading.Thread(target=pipe, args=(server, client))
                back.start()
                pipe(client, server)
                back.join()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            clients.append(client)
            threads.append(threading.Thread(target=serve, args=(client,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listener.getsockname()[1], heads
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for client in clients:  # connections through the proxy may be kept for a next request
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port whose backlog is full: connections to it neither open nor fail."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()[1]
        for filler in fillers:
            filler.close()
