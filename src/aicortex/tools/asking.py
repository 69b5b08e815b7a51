"""How a step asks many servers: all at once, by a time, telling how far it is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from time import perf_counter
from typing import TypeVar

import msgspec

from aicortex._core import faults
from aicortex._core.failover import AttemptFailed, Failure
from aicortex._core.ollama import BAD_JSON
from aicortex._core.server import Server
from aicortex._sync.pool import call

AT_ONCE = 64  # servers asked at a time: a thread each
LAST_WORDS = 0.25  # seconds, or a tenth of the time, in which what was found in time is still taken
T = TypeVar("T")


class Progress(msgspec.Struct, frozen=True):
    """How far a step is: "check", "fetch", "measure" or "apply".

    `done` of `total` are through, `failed` of those without success; `server` is the URL, without secrets, of the one
    that was through last, "" for what concerns them all. `measure` counts models, the others count servers.
    """

    step: str
    server: str
    done: int
    total: int
    failed: int


Tell = Callable[[Progress], object]


class Tally:
    """Counts what is through in one step, and tells it."""

    def __init__(self, step: str, total: int, tell: Tell | None) -> None:
        self._progress = Progress(step, "", 0, total, 0)
        self._tell = tell

    def count(self, server: Server, *, failed: bool) -> None:
        """Take note that a server, or a model on it, is through."""
        before = self._progress
        self._progress = Progress(before.step, server.label, before.done + 1, before.total, before.failed + failed)
        if self._tell is not None:
            self._tell(self._progress)


def ask_all(
    servers: Sequence[Server], ask: Callable[[Server, float], Iterable[T]], *, seconds: float
) -> Iterator[tuple[Server, T]]:
    """Yield what the servers say, as they say it, until all are through or the time is up.

    `ask` yields what one server says, in a thread that nobody waits for longer; it gets the server and the time (of
    `perf_counter`) by which it should be through. More than `AT_ONCE` servers share the time, so that silent ones leave
    some of it to those behind them. What `ask` raises is raised here.
    """
    due = perf_counter() + seconds
    last = due - min(LAST_WORDS, seconds / 10)
    share = seconds / math.ceil(len(servers) / AT_ONCE) if servers else seconds
    waiting = deque(servers)
    heard: SimpleQueue[tuple[Server, T | Exception | None]] = SimpleQueue()

    def work() -> None:
        while True:
            try:
                server = waiting.popleft()
            except IndexError:
                return
            try:
                for value in ask(server, min(last, perf_counter() + share)):
                    heard.put((server, value))
                heard.put((server, None))
            except Exception as error:  # whoever reads raises it
                heard.put((server, error))

    for _ in servers[:AT_ONCE]:
        Thread(target=work, daemon=True).start()
    left = len(servers)
    try:
        while left:
            server, value = heard.get(timeout=max(due - perf_counter(), 0.001))
            if isinstance(value, Exception):
                raise value
            if value is None:
                left -= 1
            else:
                yield server, value
    except Empty:
        return
    finally:
        waiting.clear()  # nobody listens any more


def ask_json(server: Server, path: str, shape: type[T], *, body: bytes = b"", due: float) -> T:
    """Return the reply to a GET, or with a body to a POST, by the time `due`.

    Raises AttemptFailed, whose message has none of the server's secrets.
    """
    try:
        response = call(server, "POST" if body else "GET", path, body, due=due)
        if response.status == 200:
            return msgspec.json.decode(server.redact_json(b"".join(response.body)), type=shape)
        failure = faults.of_status(response)
    except AttemptFailed as error:
        failure = error.failure
    except BAD_JSON as error:
        words = f"{path} is not what Ollama answers ({error})"
        failure = faults.of_content(response, words, phase="reply")
    raise AttemptFailed(msgspec.structs.replace(failure, message=server.redact(failure.message)))


def late(seconds: float) -> Failure:
    """Return the failure of a server that was not through in time."""
    return Failure("stalled", "reply", f"did not answer within {seconds:.3g} s")


def check_deadline(seconds: float) -> None:
    """Refuse what is no time; raises ValueError."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ValueError(f"deadline must be a number of seconds above 0, not {seconds!r:.40}")
