"""Names that stand for many servers, one for each address that they resolve to, such as a headless service."""

from __future__ import annotations

from collections.abc import Sequence
from socket import AF_INET
from time import perf_counter

from aicortex._core.failover import AttemptFailed
from aicortex._core.server import Server
from aicortex._sync.connection import addresses_of

RESOLVE_SECONDS = 2.0  # how long a name server may take
FRESH_SECONDS = 30.0  # how long its answer is believed, also that there is none
_known: dict[tuple[str, int], tuple[float, tuple[str, ...]]] = {}


def expand(server: Server) -> list[Server]:
    """Return one server for each address of a name, or the server as it is when there is one address or none.

    IPv6 addresses count where there are no others: mostly they are the same machines once more.
    """
    addresses = _addresses(server)
    return [server.at(address) for address in addresses] if len(addresses) > 1 else [server]


def is_fresh(server: Server) -> bool:
    """Whether the addresses of a name are known, so that `expand` asks nobody."""
    known = _known.get((server.host, server.port))
    return known is not None and perf_counter() - known[0] < FRESH_SECONDS


def _addresses(server: Server) -> Sequence[str]:
    key, now = (server.host, server.port), perf_counter()
    known = _known.get(key)
    if known is not None and now - known[0] < FRESH_SECONDS:
        return known[1]
    try:
        found = addresses_of(server.host, server.port, now + RESOLVE_SECONDS)
    except AttemptFailed:
        addresses = known[1] if known is not None else ()  # those of before; else whoever connects tells the failure
        _known[key] = (now, addresses)
        return addresses
    four = [place[0] for family, _, _, _, place in found if family == AF_INET]
    addresses = tuple(dict.fromkeys(four or [place[0] for *_, place in found]))
    _known[key] = (now, tuple(sorted(addresses)))  # name servers answer in changing order
    return _known[key][1]
