"""A server that paces a thousand answers at once on one core: one thread, one epoll, rendered bytes.

A stream's turn comes every 20 ms, on an absolute schedule; the turns of all streams are spread evenly over the ticks
of one millisecond, so that 50,000 tokens a second are fifty writes a tick. A crowd begins when all its streams are
there, or when no more come: a client that connects fewer at once is not waited for, and its later streams begin as
they come.

The server writes down when each token was written and when it was due, and how much CPU time it has used, and hands
that out as doubles: `/written/MODEL`, `/due/MODEL` and `/cpu/MODEL`. Run as `python -m benchmarks.crowd.server
MODEL...` it prints its port and lives until its standard input ends.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from array import array
from socket import IPPROTO_TCP, TCP_NODELAY, create_server, socket

from benchmarks.crowd.script import RATE, Script, number_of
from benchmarks.replay import ANSWER_HEAD, documents_of, json_response

TICK = 0.001  # seconds
TURNS = round(1 / RATE / TICK)  # ticks from one token of a stream to its next
NO_MORE = 2.0  # seconds without another stream after which a crowd begins as it is
CPU_TICKS = 100  # ticks from one note of the CPU time to the next
IDLE = 0.5  # seconds between two looks while nothing is to be sent


class Stream:
    """One answer on its way: which one, what its connection takes, the next token, and bytes that it would not take."""

    __slots__ = ("number", "position", "rest", "send", "slot")

    def __init__(self, connection: socket, number: int, tokens: int) -> None:
        self.send = connection.send
        self.number = number
        self.position = 0
        self.slot = number * tokens
        self.rest = b""


class Crowd:
    """All streams of one model: those that wait for the beginning, those that run, and what is noted of each token."""

    def __init__(self, model: str) -> None:
        self.script = script = Script(model)
        self.waiting: list[Stream] = []
        self.turns: list[list[Stream]] = [[] for _ in range(TURNS)]
        self.running = 0
        self.latest = 0.0  # when the latest stream came
        self.written = array("d", [0.0]) * (script.streams * script.tokens)
        self.due = array("d", self.written)
        self.cpu = array("d")  # moment, CPU seconds until then, moment, …

    def admit(self, stream: Stream) -> None:
        """Take in one more stream; the crowd's next tick may begin it."""
        self.waiting.append(stream)
        self.latest = time.perf_counter()

    def begin(self) -> None:
        """Begin the streams that wait, if all are there, no more come, or the others run already."""
        everyone = len(self.waiting) == self.script.streams
        if not (self.running or everyone or time.perf_counter() - self.latest > NO_MORE):
            return
        for stream in self.waiting:
            self.turns[stream.number % TURNS].append(stream)
        self.running += len(self.waiting)
        self.waiting = []

    def tick(self, count: int, due: float) -> None:
        """Send one token of each stream whose turn is tick number `count`, which was due at this moment."""
        turn = count % TURNS
        streams = self.turns[turn]
        if count % CPU_TICKS == 0:
            self.cpu.extend((time.perf_counter(), time.process_time()))
        alive = [self._advance(stream, due) for stream in streams]
        if not all(alive):
            self.turns[turn] = [stream for stream, lives in zip(streams, alive, strict=True) if lives]
            self.running -= len(streams) - len(self.turns[turn])

    def _advance(self, stream: Stream, due: float) -> bool:
        """Send the next token of a stream, or its end; return whether anything is left to send."""
        script, position = self.script, stream.position
        if position < script.tokens:
            slot = stream.slot + position
            self.due[slot] = due
            self.written[slot] = time.perf_counter()
            data = script.chunks[stream.number + position]
            if position == 0:
                data = ANSWER_HEAD + data
        else:
            data = script.last if position == script.tokens else b""
        stream.position = position + 1
        if stream.rest:
            data = stream.rest + data
        try:
            sent = stream.send(data)
        except BlockingIOError:  # a client that does not read gets the bytes in a later turn
            sent = 0
        except OSError:
            return False  # it left
        stream.rest = data[sent:]
        return position < script.tokens or bool(stream.rest)


class Server:
    """The server: connections, what was read of their requests, and the crowds."""

    def __init__(self, models: list[str]) -> None:
        """Render the crowds of `models` and listen on a free loopback port."""
        self.crowds = {model: Crowd(model) for model in models}
        self.documents = documents_of(models)
        self.listener = create_server(("127.0.0.1", 0), backlog=4096)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.connections: dict[int, tuple[socket, bytearray]] = {}
        self.poller = select.epoll()
        self.poller.register(self.listener, select.EPOLLIN)
        self.poller.register(sys.stdin, select.EPOLLIN)

    def serve(self) -> None:
        """Answer until standard input ends."""
        count, start = 0, time.perf_counter()
        while True:
            busy = any(crowd.running for crowd in self.crowds.values())
            waiting = any(crowd.waiting for crowd in self.crowds.values())
            if busy and (ahead := start + count * TICK - time.perf_counter()) > 0:
                time.sleep(ahead)
            if not self._look(0 if busy else TICK if waiting else IDLE):
                return
            if not busy:  # the schedule begins with the crowd
                count, start = 0, time.perf_counter()
            for crowd in self.crowds.values():
                if crowd.waiting:
                    crowd.begin()
                if crowd.running:
                    crowd.tick(count, start + count * TICK)
            count += 1

    def _look(self, seconds: float) -> bool:
        """Take what comes within `seconds`; return False when standard input has ended."""
        for descriptor, _ in self.poller.poll(seconds):
            if descriptor == self.listener.fileno():
                self._accept()
            elif descriptor in self.connections:
                self._receive(descriptor)
            elif not os.read(descriptor, 4096):
                return False
        return True

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            self.connections[connection.fileno()] = connection, bytearray()
            self.poller.register(connection, select.EPOLLIN)

    def _receive(self, descriptor: int) -> None:
        connection, request = self.connections[descriptor]
        try:
            data = connection.recv(65536)
        except OSError:
            data = b""
        if not data:  # its stream, if it has one, ends at its next turn
            self.poller.unregister(descriptor)
            del self.connections[descriptor]
            connection.close()
            return
        request += data
        head, separator, body = bytes(request).partition(b"\r\n\r\n")
        if separator and len(body) == _length_of(head):
            request.clear()
            self._answer(connection, head.split(b" ")[1].decode(), body)

    def _answer(self, connection: socket, path: str, body: bytes) -> None:
        if path == "/api/chat":
            chat = json.loads(body)
            crowd = self.crowds[chat["model"]]
            crowd.admit(Stream(connection, number_of(chat["messages"][-1]["content"]), crowd.script.tokens))
            return
        column, _, model = path.removeprefix("/").partition("/")
        if model in self.crowds:
            data = getattr(self.crowds[model], column).tobytes()
            reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data
        else:
            missing = json_response("404 Not Found", {"error": f"{path} is not replayed"})
            reply = self.documents.get(path, missing)
        connection.setblocking(True)
        connection.sendall(reply)
        connection.setblocking(False)


def _length_of(head: bytes) -> int:
    """Return the Content-Length of a request's head."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def main() -> None:
    """Serve the models named on the command line until standard input ends."""
    server = Server(sys.argv[1:])
    print(server.port, flush=True)
    server.serve()


if __name__ == "__main__":
    main()
