"""What a model can do, as its server says: "completion", "tools", "vision", "thinking"."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import msgspec

from aicortex._core.failover import AttemptFailed
from aicortex._core.ollama import full_name
from aicortex._core.server import Server
from aicortex.errands import Errand, Steps
from aicortex.fleet import ASK_SECONDS, FRESH_SECONDS, has_registry, knowledge

VISION = "vision"
_known: dict[tuple[Server, str], tuple[float, tuple[str, ...]]] = {}  # when each was asked, and what it said


def checking(model: str, server: Server) -> Steps[tuple[str, ...]]:
    """Decide what a model of a server can do; () where that is not known.

    What a refresh wrote into the registry is believed. Otherwise the server is asked (`POST /api/show`, 2 s at most),
    and what it says, or that it does not, holds for a minute. Servers before Ollama 0.6.4 say nothing.
    """
    name = full_name(model)
    recorded = _recorded(server).get(name, ())
    if recorded:
        return recorded
    asked_at, said = _known.get((server, name), (-FRESH_SECONDS, ()))
    if perf_counter() - asked_at < FRESH_SECONDS:
        return said
    told: tuple[str, ...] = yield Errand(("show", server, name), lambda: _ask(server, name))
    _known[server, name] = (perf_counter(), told)
    return told


def having(ability: str, servers: Sequence[Server]) -> list[str]:
    """Return the names of the models of these servers that are known to have an ability; nobody is asked."""
    known = [(server, name, said) for (server, name), (_, said) in list(_known.items())]
    known += [(server, name, said) for server in servers for name, said in _recorded(server).items()]
    return sorted({name for server, name, said in known if server in servers and ability in said})


def _recorded(server: Server) -> dict[str, tuple[str, ...]]:
    """Return what the registry knows of a server's models."""
    if not has_registry():
        return {}
    return {entry.name: entry.capabilities for entry in knowledge(is_needed=False).models.get(server.label, ())}


def _ask(server: Server, name: str) -> tuple[str, ...]:
    from aicortex._sync.pool import located
    from aicortex.tools.asking import ask_json
    from aicortex.tools.fetching import Shown

    body = msgspec.json.encode({"model": name})
    try:
        place = located(server)  # the embedded engine takes its time to start, which is not the server's
        return ask_json(place, "/api/show", Shown, body=body, due=perf_counter() + ASK_SECONDS).capabilities or ()
    except AttemptFailed:
        return ()
