"""All steps, one behind the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter, time

import msgspec

from aicortex._core.failover import Failure
from aicortex._core.server import Server
from aicortex.fleet import find_servers, fleet_of, registered
from aicortex.network import CONNECT
from aicortex.registry.entries import ModelEntry, Snapshot
from aicortex.registry.store import Registry
from aicortex.tools import measuring
from aicortex.tools.applying import Report, apply
from aicortex.tools.asking import Progress, Tell, check_deadline
from aicortex.tools.checking import Checked
from aicortex.tools.fetching import Fetched, fetch
from aicortex.tools.resolving import Resolution, resolve

WRITE_SECONDS = 0.5  # of the deadline, or a tenth of it, for resolving and applying


def refresh(
    servers: Sequence[str | Server] | str | Server | None = None,
    *,
    registry: Registry | None = None,
    measure: bool = False,
    deadline: float = 5.0,
    tell: Tell | None = None,
) -> Report:
    """Ask the servers what they have, write it into the registry, and return what has changed.

    Without `servers` those of the registry and of the configuration files are asked, and one whose credentials are
    missing counts as unreachable. Servers that do not answer keep what was known of them. It takes `deadline` seconds
    at most; with `measure` one model of each server is measured too, which takes a minute more at most. `tell` is
    called with `Progress` values, in this thread, for a display. Raises ValueError for what is no address or no
    deadline, and RegistryError when the registry cannot be read or written.
    """
    check_deadline(deadline)
    began = perf_counter()
    store = Registry() if registry is None else registry
    try:
        known = store.snapshot()
        targets, refused = named_servers(known) if servers is None else (find_servers(servers), {})
        left = deadline - min(WRITE_SECONDS, deadline / 10) - (perf_counter() - began)
        fetched = fetch(targets, known=known, deadline=max(left, 0.1), tell=tell) if targets else {}
        fetched.update(refused)
        resolution = resolve(fetched, known)
        if measure:
            apply(resolution, store)  # measuring takes long: whoever interrupts it keeps the rest
            measured = measuring.measure(_listed(fetched, resolution), tell=tell)
            resolution = resolve(fetched, known, measured)
        report = _applied(resolution, store, tell)
    finally:
        if registry is None:
            store.close()
    return msgspec.structs.replace(report, seconds=perf_counter() - began)


def named_servers(known: Snapshot) -> tuple[list[Server], dict[Server, Fetched]]:
    """Return the servers of the registry and of the configuration files, and those that lack their credentials."""
    fleet = fleet_of(registered(known.servers))
    refused: dict[Server, Fetched] = {}
    for url, reason in fleet.refused.items():
        failure = Failure("denied", CONNECT, reason)
        refused[Server(url)] = Fetched(Checked(time(), failure=failure), failure=failure)
    return fleet.servers, refused


def _listed(fetched: Mapping[Server, Fetched], resolution: Resolution) -> dict[Server, tuple[ModelEntry, ...]]:
    """Return what the servers that answered have, with all that is known of it."""
    pairs = zip(fetched, resolution.observations, strict=True)
    return {server: observation.models for server, observation in pairs if observation.models is not None}


def _applied(resolution: Resolution, registry: Registry, tell: Tell | None) -> Report:
    total = len(resolution.observations)
    if tell is not None:
        tell(Progress("apply", "", 0, total, 0))  # it waits for other processes that write
    report = apply(resolution, registry)
    if tell is not None:
        tell(Progress("apply", "", total, total, 0))
    return report
