"""The first step: which servers are alive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter, time

import msgspec

from aicortex._core.failover import AttemptFailed, Failure
from aicortex._core.server import EMBEDDED, Server
from aicortex.fleet import catalogue, find_servers
from aicortex.tools.asking import Tally, Tell, ask_all, ask_json, check_deadline, late


class Checked(msgspec.Struct, frozen=True):
    """Whether a server is alive, as of the Unix time `at`.

    `version` is what it says of itself, `round_trip_ms` what a request took over an open connection; both are unknown
    ("" and 0) of the embedded engine, which is not started for this. `failure`, with its `kind` and `message`, says why
    it did not answer, None when it did.
    """

    at: float
    version: str = ""
    round_trip_ms: float = 0.0
    failure: Failure | None = None


class Version(msgspec.Struct, frozen=True):
    """The reply of `GET /api/version`."""

    version: str


def check(
    servers: Sequence[str | Server] | str | Server, *, deadline: float = 5.0, tell: Tell | None = None
) -> dict[Server, Checked]:
    """Ask all servers at once whether they are alive, and return what each said, in their order.

    They are asked for `/api/version`, which Ollama answers whatever else it is doing. It takes `deadline` seconds at
    most; whoever has not answered by then has failed. `tell` is called with `Progress` values, in this thread. Raises
    ValueError for what is no address or no deadline.
    """
    check_deadline(deadline)
    asked = find_servers(servers)
    tally = Tally("check", len(asked), tell)
    found: dict[Server, Checked] = {}

    def ask(server: Server, due: float) -> Iterator[Checked]:
        yield check_one(server, due)

    for server, checked in ask_all(asked, ask, seconds=deadline):
        found[server] = checked
        tally.count(server, failed=checked.failure is not None)
    for server in asked:
        if server not in found:
            found[server] = Checked(time(), failure=late(deadline))
            tally.count(server, failed=True)
    return {server: found[server] for server in asked}


def check_one(server: Server, due: float) -> Checked:
    """Return whether one server is alive, by the time `due` of `perf_counter`."""
    try:
        if server.scheme == EMBEDDED:
            catalogue(server)
            return Checked(time())
        said = ask_json(server, "/api/version", Version, due=due)
        began = perf_counter()  # the second time the connection is open: that is what later requests take
        ask_json(server, "/api/version", Version, due=due)
        round_trip_ms = (perf_counter() - began) * 1000
    except AttemptFailed as error:
        return Checked(time(), failure=error.failure)
    return Checked(time(), server.redact(said.version), round_trip_ms)
