"""What drives the core with blocking connections: the pool, one plain call, and one answer."""

from __future__ import annotations

import os
import socket
from _thread import allocate_lock  # `threading` takes 1 ms to import and is not needed for this
from collections.abc import Callable, Sequence
from time import perf_counter, time

from aicortex._core import faults
from aicortex._core.answer import Answer, Read
from aicortex._core.failover import AttemptFailed, Connect, Deadlines, Failure, Wait
from aicortex._core.http import Response
from aicortex._core.ollama import MAX_LINE_BYTES
from aicortex._core.server import EMBEDDED, Server
from aicortex._sync.connection import CONNECT, Connection, end_waits

LATE_SECONDS = 0.05  # what came while nobody read is still taken, for so long after the time was up
IDLE_PER_SERVER = 8  # connections kept open for the next request


class Pool:
    """Idle connections, newest first."""

    def __init__(self) -> None:
        self._idle: dict[Server, list[Connection]] = {}

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
        if len(idle) < IDLE_PER_SERVER and connection.may_be_kept():
            idle.append(connection)
        else:
            connection.close()

    def clear(self) -> None:
        """Close every idle connection."""
        for idle in list(self._idle.values()):
            for connection in idle:
                connection.close()
            idle.clear()


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
    server: Server, due: Callable[[], float], *, opening: list[socket.socket], fresh: bool = False
) -> tuple[Server, Connection]:
    """Return where a server is and a connection to it; raises AttemptFailed.

    `due` is asked once it is known where the server is: the embedded engine takes its time to start. An engine that
    was killed a moment ago still counts as running but refuses connections; then another one is started.
    """
    place = located(server)
    try:
        return place, POOL.acquire(place, due=due(), opening=opening, fresh=fresh)
    except AttemptFailed as error:
        if server.scheme != EMBEDDED or error.failure.kind != "refused":
            raise
    from aicortex.embedded import discard

    discard(place.port)
    place = located(server)
    return place, POOL.acquire(place, due=due(), opening=opening)


def call(server: Server, method: str, path: str, body: bytes = b"", *, due: float) -> Response:
    """Make one request and return its whole response; raises AttemptFailed."""
    place, connection = reach(server, lambda: due, opening=[])
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
    except BaseException:
        connection.close()
        raise
    if response.fault is not None or not response.started:
        connection.close()
        raise AttemptFailed(faults.of_end(response, phase="reply"))
    POOL.release(place, connection)
    return response


class Exchange:
    """One answer under way: the core's decisions, carried out by whichever thread reads.

    Nothing runs in the background. A reader that wants more than the log holds takes the lock and moves the answer
    on by at least one event; others wait for it.
    """

    def __init__(self, servers: Sequence[Server], path: str, body: bytes, *, model: str, deadlines: Deadlines) -> None:
        self.answer = Answer(servers, model=model, deadlines=deadlines, now=perf_counter(), wall=time())
        self._servers = servers
        self._path = path
        self._body = body
        self._stall = deadlines.stall
        self._lock = allocate_lock()
        self._place: Server | None = None  # where the connection leads to
        self._number = 0
        self._pid = os.getpid()
        self._opening: list[socket.socket] = []  # what a connection in the making waits for
        self._connection: Connection | None = None
        self._stale: set[int] = set()  # servers whose kept connection broke: the next one is new
        self._is_fed = False  # whether the response may hold what the answer was not yet told
        self._is_cancelled = False
        self._pause = allocate_lock()  # held while waiting for a busy server; cancel() lets it go
        self._pause.acquire()

    def start(self) -> None:
        """Send the request to the first server that takes it."""
        with self._lock:
            self._advance(reading=False)

    def refuse(self, failures: Sequence[Failure]) -> None:
        """Record why none of the servers could be asked: one failure each, in their order."""
        with self._lock:
            for number, failure in enumerate(failures):
                self.answer.failed(number, failure, perf_counter())

    def pump(self, position: int) -> bool:
        """Block until the log is longer than `position`; returns False when the answer is over before that."""
        answer = self.answer
        log = answer.log
        with self._lock:
            if answer.steady and len(log) <= position and not self._is_cancelled:
                self._read(self._stall)
            if len(log) <= position:
                self._advance(reading=True)
            elif not answer.steady:
                self._settle()
            return len(log) > position

    def cancel(self) -> None:
        """End the answer from any thread, or from a signal handler; wakes whoever reads."""
        connection = self._connection
        if self._pid != os.getpid():  # a forked child's copy: the answer is the parent's
            if connection is not None:
                connection.close()
            return
        if not self._is_cancelled:
            self._is_cancelled = True
            self._pause.release()
        opening = self._opening.copy()
        self._opening.clear()  # tells the connection in the making to try no further address
        end_waits(opening)
        connection = self._connection
        if connection is not None:
            connection.wake()
        held: list[bool] = []
        try:
            held.extend(map(self._lock.acquire, (False,)))  # no interrupt falls between taking it and knowing it
            if held[0]:
                self._advance(reading=False)
        finally:
            if held and held[0]:
                self._lock.release()

    def _advance(self, *, reading: bool) -> None:
        """Do what the core says until there is an event to read, or without `reading` until a request is sent."""
        answer = self.answer
        log = answer.log
        known = len(log)
        since = now = perf_counter()
        while not (reading and len(log) > known):
            if self._is_cancelled:
                answer.cancel()
            step = answer.next_step(now, since=since)
            if isinstance(step, Read) and reading:
                until = max(step.until, since + LATE_SECONDS)
                if answer.failover.is_late(now) or until <= now:
                    answer.timed_out(now)
                else:
                    self._read(until - now)
            elif isinstance(step, Connect):
                self._connect(step.server)
            elif isinstance(step, Wait) and reading:
                self._pause.acquire(timeout=max(step.until - now, 0.0))
            else:
                break
            now = perf_counter()
        self._settle()

    def _settle(self) -> None:
        """Let go of the connection when no attempt is under way."""
        if self._is_cancelled:
            self.answer.cancel()
        if not self.answer.is_reading:
            self._let_go()

    def _connect(self, number: int) -> None:
        """Open a connection and send the request."""
        self._let_go()
        self._is_fed = False
        answer = self.answer
        try:
            server = self._servers[number]
            place, connection = reach(
                server,
                lambda: answer.failover.connect_due(perf_counter()),
                opening=self._opening,
                fresh=number in self._stale,
            )
            self._place, self._number, self._connection = place, number, connection
            self._opening.clear()
            if self._is_cancelled:
                return
            due = answer.failover.first_token_due(perf_counter())
            response = connection.send("POST", self._path, place, self._body, due=due)
        except AttemptFailed as error:
            self._failed(number, error.failure)
        else:
            answer.connected(number, response, perf_counter())

    def _read(self, seconds: float) -> None:
        """Read once and tell the answer."""
        connection = self._connection
        assert connection is not None  # the core reads only after it connected
        if self._is_fed:  # an interrupt came before the answer was told
            self.answer.received(perf_counter())
            self._is_fed = False
            return
        self._is_fed = True
        try:
            connection.receive(seconds)
            if self._is_cancelled:
                return  # the end that was read is cancel()'s own doing
            if connection.response.eof and self._is_stale(connection):
                self._failed(self._number, Failure("closed", "", "closed the connection without a reply"))
            else:
                self.answer.received(perf_counter())
        except TimeoutError:
            self.answer.timed_out(perf_counter())
        except AttemptFailed as error:
            self._failed(self._number, error.failure)
        self._is_fed = False

    def _failed(self, number: int, failure: Failure) -> None:
        if self._is_cancelled:
            return
        connection = self._connection
        if connection is not None and self._is_stale(connection):
            self._stale.add(number)
            failure = Failure(failure.kind, failure.phase, failure.message, stale=True)
        self.answer.failed(number, failure, perf_counter())

    def _is_stale(self, connection: Connection) -> bool:
        """Whether a connection that broke without a reply says little about the server, which is then asked once more.

        A server may have closed a kept connection before it saw the request, and an embedded engine that was killed is
        started again.
        """
        response = connection.response
        if response.heads or response.head_bytes or self._number in self._stale:
            return False
        return connection.reused or self._servers[self._number].scheme == EMBEDDED

    def _let_go(self) -> None:
        """Give a finished connection back, or close an unfinished one, which makes the server stop generating."""
        connection, self._connection = self._connection, None
        if connection is None or self._place is None:
            return
        if self.answer.is_whole and not self._is_cancelled:  # cancel() may be about to shut it down
            connection.response.body.clear()
            POOL.release(self._place, connection)
        else:
            connection.close()
