"""Replies that a server under load, or a broken one, gives to questions about itself."""

from __future__ import annotations

from dataclasses import dataclass

from aicortex.testing import Exchange, FakeServer, Reply

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"


@dataclass(frozen=True)
class Late(Reply):
    """A reply after some seconds."""

    reply: Reply
    seconds: float

    def play(self, exchange: Exchange) -> None:
        exchange.pause(self.seconds)
        self.reply.play(exchange)


@dataclass(frozen=True)
class Behind(Reply):
    """A reply that comes once another server was asked for a path."""

    reply: Reply
    server: FakeServer
    path: str

    def play(self, exchange: Exchange) -> None:
        self.server.wait_until(lambda: any(request.path == self.path for request in self.server.requests))
        self.reply.play(exchange)


@dataclass(frozen=True)
class Trickle(Reply):
    """A reply that comes a byte at a time, so that no single read ever waits long, and never ends in time."""

    seconds: float = 1.0

    def play(self, exchange: Exchange) -> None:
        exchange.headers_sent = True
        exchange.send(HEAD)
        for _ in range(1000):
            exchange.send(b" ")
            exchange.pause(self.seconds)


@dataclass(frozen=True)
class InTurn(Reply):
    """Each of the replies once, then the last one for ever."""

    replies: list[Reply]

    def play(self, exchange: Exchange) -> None:
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        reply.play(exchange)
