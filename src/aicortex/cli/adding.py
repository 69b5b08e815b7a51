"""`aicortex servers add`: a new server, and a first look at it."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from aicortex._core.server import Server
from aicortex._sync.names import expand
from aicortex.cli import INTERRUPTED
from aicortex.cli.roster import full_title, told
from aicortex.cli.table import counted, print_json, print_line
from aicortex.cli.terminal import note
from aicortex.cli.waiting import Waiting
from aicortex.errors import CredentialError
from aicortex.fleet import find_servers, registered
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import ServerEntry
from aicortex.registry.store import Registry
from aicortex.tools import refresh

Row = dict[str, Any]  # Any: JSON


def run(options: argparse.Namespace) -> int:
    """Add a server, ask it what it has, and return 0, even if it does not answer.

    Raises ValueError for wrong arguments, and RegistryError.
    """
    entry = _entry(options)
    _check_taken(entry)
    with Waiting() as waiting, Registry() as registry:
        waiting.begin(f"asking {entry.url}")
        addresses = _addresses(entry)
        if options.expand is None and len(addresses) > 1:
            entry = msgspec.structs.replace(entry, expand=True)
        registry.add(entry)
        try:
            servers = find_servers(entry.url)
            refresh(servers, registry=registry)
            rows = _rows(servers, registry)
        except CredentialError as error:
            rows = [{"url": entry.url, "version": None, "models": None, "error": str(error)}]
        except KeyboardInterrupt:
            waiting.stop()
            note(f"added {full_title(entry)}; stopped while asking what it has")
            return INTERRUPTED
    if options.json:
        print_json({"added": told(entry), "servers": rows})
        return 0
    print_line(f"added {full_title(entry)}")
    if entry.expand:
        note(_expansion(entry, addresses, said=options.expand is not None))
    for row in rows:
        _tell(row, entry)
    return 0


def _entry(options: argparse.Namespace) -> ServerEntry:
    return entry_of(
        options.address,
        name=options.name,
        location=options.location,
        organization=options.organization,
        labels=dict(options.label),
        weight=options.weight,
        priority=options.priority,
        slots=options.slots,
        api_key=options.api_key,
        headers=dict(options.header),
        verify=not options.no_verify,
        ca_file=options.ca_file,
        client_cert=options.client_cert,
        expand=bool(options.expand),
    )


def _check_taken(entry: ServerEntry) -> None:
    """Refuse what is there already; the entry of a configuration file would go before the new one."""
    for other in registered():
        if not other.source and other.url == entry.url:
            also = f", as {other.name}" if other.name else ""
            way = f"change it with 'aicortex servers set {other.title} …'"
            raise ValueError(f"the server {entry.url} is there already{also}; {way}")
        if other.source and other.url == entry.url:
            raise ValueError(f"the server {other.title} stands in {other.source}: change it there")
        if other.source and entry.name and other.name == entry.name:
            raise ValueError(f"the name {entry.name} is that of {other.url} in {other.source}: choose another")


def _addresses(entry: ServerEntry) -> list[str]:
    """Return the IPv4 addresses that a server's name stands for, if they are several; its secrets are not needed."""
    return [server.address for server in expand(Server(entry.url)) if server.address and ":" not in server.address]


def _expansion(entry: ServerEntry, addresses: list[str], *, said: bool) -> str:
    if len(addresses) < 2:
        return f"{entry.title} stands for one server per address; now it has one at most"
    words = f"{entry.title} stands for {len(addresses)} servers, one per address: {', '.join(addresses)}"
    return words if said else f"{words} (with --no-expand it is one)"


def _rows(servers: list[Server], registry: Registry) -> list[Row]:
    """Return what the registry knows now of servers."""
    snapshot = registry.snapshot()
    found = []
    for server in servers:
        condition = snapshot.conditions[server.label]
        models = None if condition.is_stale else [model.name for model in snapshot.models.get(server.label, ())]
        row = {"url": server.label, "version": condition.version or None, "models": models}
        found.append({**row, "error": condition.error or None})
    return found


def _tell(row: Row, entry: ServerEntry) -> None:
    place = f"{row['url']}: " if row["url"] != entry.url else ""
    if row["error"]:
        advice = "it is added all the same; 'aicortex doctor' says more"
        note(f"{row['url']}: {row['error']}; {advice}")
        return
    models = row["models"]
    version = f"Ollama {row['version']}, " if row["version"] else ""
    print_line(f"{place}{version}{counted(len(models), 'model')}{': ' if models else ''}{', '.join(models)}")
