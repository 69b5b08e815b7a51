"""One request to a simulated server, and the bytes of its reply."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from aicortex._core.http import Response
from benchmarks.simulation import wire
from benchmarks.simulation.wire import Arrival


class Truth(msgspec.Struct, frozen=True):
    """The whole answer as this reply honestly makes it: what was given and its continuation.

    `stops_in_seam` says that it ends at a stop string that began in what was given, which only the client can know.
    """

    text: str
    thinking: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()  # Any: JSON
    stops_in_seam: bool = False


class Exchange:
    """A request of some `kind`, sent to a server at a time, and its reply.

    `arrivals` are the bytes to come, `ending` is what follows them: "keep" (nothing, the connection stays open), "hang"
    (nothing, though more is due), "eof" or "reset". `truth` is None where no honest continuation is in it; `fault`
    says what was wrong with the request.
    """

    __slots__ = (
        "arrivals",
        "ending",
        "fault",
        "given",
        "kind",
        "position",
        "response",
        "sent",
        "server",
        "spoiled",
        "truth",
    )

    def __init__(self, server: int, kind: str, sent: float) -> None:
        self.server = server
        self.kind = kind
        self.sent = sent
        self.response = Response()
        self.arrivals: list[Arrival] = []
        self.position = 0
        self.ending = "keep"
        self.truth: Truth | None = None
        self.given = ""
        self.fault = ""
        self.spoiled = ""

    @property
    def next_at(self) -> float | None:
        """When something can be read next: bytes, or the end of the connection."""
        if self.position < len(self.arrivals):
            return self.arrivals[self.position][0]
        if self.ending in ("eof", "reset"):
            return self._last_at
        return None

    @property
    def said_done(self) -> bool:
        """Whether the reader was given the whole line that says done."""
        return wire.DONE_ENDS in b"".join([data for _, data in self.arrivals[: self.position]])

    def replies(self, at: float, data: bytes) -> None:
        """Answer with these bytes at once."""
        self.arrivals = [(at, data)]

    def spoil(self, fault: str, random: Random, *, chunked: bool) -> None:
        """Let something go wrong with the reply, at any byte of it."""
        self.spoiled = fault
        if fault in ("eof", "reset", "hang", "garbage"):
            self.arrivals = wire.cut(self.arrivals, random)
            self.ending = "eof" if fault == "garbage" else fault
            if fault == "garbage":
                self.arrivals.append((self._last_at, wire.GARBAGE[int(random.random() * len(wire.GARBAGE))]))
        elif fault == "error":
            self.arrivals = self.arrivals[: int(random.random() * len(self.arrivals))]
            self.arrivals.append((self._last_at, wire.error_line(chunked=chunked, first=not self.arrivals)))
            self.ending = "keep" if chunked else "eof"
        elif fault in ("silent", "closed", "stale"):
            self.arrivals = []
            self.ending = "hang" if fault == "silent" else "eof"
        elif fault == "headers":
            self.arrivals = [(self.sent, wire.CHUNKED)]
            self.ending = "eof" if random.random() < 0.5 else "hang"
        elif fault == "more":
            self.arrivals = [*self.arrivals, (self.arrivals[-1][0], b'{"message":{"content":" more"},"done":false}\n')]
        elif fault == "trickle":
            self.arrivals = [(at + 0.3 * number, data) for number, (at, data) in enumerate(self.arrivals)]

    @property
    def _last_at(self) -> float:
        return self.arrivals[-1][0] if self.arrivals else self.sent
