"""`aicortex servers` and `aicortex servers check`: which servers there are and how they do."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping
from time import time
from typing import TYPE_CHECKING, Any

from aicortex.catalogue import list_servers
from aicortex.cli.known import fleet_of
from aicortex.cli.table import milliseconds, print_json, print_table, span_words, tell_unreachable
from aicortex.cli.waiting import Waiting
from aicortex.fleet import registered

if TYPE_CHECKING:
    from aicortex._core.health import Health
    from aicortex._core.server import Server
    from aicortex.fleet import Fleet
    from aicortex.registry.entries import Condition
    from aicortex.tools import Checked

Row = dict[str, Any]  # Any: JSON
Healths = Mapping[tuple[str, str], "Health"]
REGISTRY = "registry"
CHECK_SECONDS = 5.0


def run(options: argparse.Namespace) -> int:
    """Print the servers and return 0 when at least one answered, else 1."""
    with Waiting() as waiting, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "left out: ")  # the list has them
        waiting.begin("asking the servers")
        found = list_servers(servers=options.server)
    listed = {row["url"] for row in found}
    refused = [_refused(url) for url in found.unreachable if url not in listed]
    rows = [{**row, "error": found.unreachable.get(row["url"])} for row in (*found, *refused)]
    if options.json:
        print_json(rows)
    else:
        header = ["NAME", "SERVER", "STATUS", "VERSION", "ROUND TRIP", "MODELS", "LOADED", "FROM"]
        has_files = any(row["source"] not in ("", REGISTRY) for row in rows)
        cells = [[*_cells(row, listed), row["source"] if has_files else ""] for row in rows]
        print_table(header, cells, optional=["NAME", "VERSION", "FROM"], shorter=_shorter(header, cells))
    tell_unreachable(found.unreachable)
    return 0 if any(row["answers"] for row in rows) else 1


def _refused(url: str) -> Row:
    """Return the row of a server that is not asked, because what it must be sent is missing."""
    entry = next(entry for entry in registered() if entry.url == url)
    told = {"url": url, "name": entry.name, "location": entry.location, "source": entry.source or REGISTRY}
    unknown = dict.fromkeys(("version", "round_trip", "models", "loaded"))
    return {**told, "draining": entry.is_draining, "answers": False, **unknown}


def _cells(row: Row, asked: set[str]) -> list[str]:
    if not row["answers"]:
        status = "no answer" if row["url"] in asked else "not asked"
        return [row["name"], row["url"], status, "", "", "", ""]
    round_trip = row["round_trip"]
    return [
        row["name"],
        row["url"],
        "draining" if row["draining"] else "ok",
        row["version"] or "",
        milliseconds(None if round_trip is None else round_trip * 1000),
        str(row["models"]),
        ", ".join(row["loaded"] or ()),
    ]


def _shorter(header: list[str], cells: list[list[str]]) -> Iterator[list[list[str]]]:
    """Yield rows that take less room: one loaded model and how many more, then no http://, then no versions."""
    server, version, loaded = (header.index(name) for name in ("SERVER", "VERSION", "LOADED"))
    cells = [list(row) for row in cells]
    for row in cells:
        first, *others = row[loaded].split(", ")
        row[loaded] = f"{first} +{len(others)}" if others else first
    yield cells
    for row in cells:
        row[server] = row[server].removeprefix("http://")
    yield cells
    for row in cells:
        row[version] = ""
    yield cells


def run_check(options: argparse.Namespace) -> int:
    """Print whether servers answer, and return 0 when all do, else 1."""
    from aicortex.board import BOARD
    from aicortex.tools import check

    with Waiting() as waiting, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "left out: ")
        waiting.begin("asking the servers")
        fleet = fleet_of(options.names)
        checked = check(fleet.servers, deadline=CHECK_SECONDS)
    healths, conditions = BOARD.healths(), BOARD.knowledge().conditions
    rows = [
        _checked_row(server, found, fleet, healths, conditions.get(server.label)) for server, found in checked.items()
    ]
    rows += [_refused_check(url, reason) for url, reason in fleet.refused.items()]
    if options.json:
        print_json(rows)
    else:
        header = ["NAME", "SERVER", "STATUS", "VERSION", "ROUND TRIP", "BREAKER", "LAST SEEN"]
        print_table(header, [_checked_cells(row) for row in rows], optional=["NAME", "LAST SEEN"])
    tell_unreachable({row["url"]: row["error"] for row in rows if row["error"]})
    return 0 if all(row["answers"] for row in rows) else 1


def _checked_row(server: Server, found: Checked, fleet: Fleet, healths: Healths, known: Condition | None) -> Row:
    entry = fleet.entries.get(server)
    return {
        "url": server.label,
        "name": entry.name if entry else "",
        "answers": found.failure is None,
        "version": found.version or None,
        "round_trip_ms": found.round_trip_ms or None,
        "breakers": _breakers(server.label, healths, time()),
        "draining": entry is not None and entry.is_draining,
        "stale_since": known.seen_at if known is not None and known.is_stale else None,
        "error": None if found.failure is None else found.failure.message,
    }


def _refused_check(url: str, reason: str) -> Row:
    row = _refused(url)
    unknown = {"version": None, "round_trip_ms": None, "stale_since": None}
    told = {key: row[key] for key in ("url", "name", "answers", "draining")}
    return {**told, **unknown, "breakers": [], "error": reason}


def _breakers(label: str, healths: Healths, now: float) -> list[Row]:
    """Return what is not well at a server: itself (model "") and models of it."""
    found = [(model, health) for (url, model), health in sorted(healths.items()) if url == label]
    return [
        {"model": model, "state": state, "kind": health.kind, "seconds": max(round(health.until - now, 1), 0.0)}
        for model, health in found
        if (state := health.state(now)) != "closed"
    ]


def _checked_cells(row: Row) -> list[str]:
    status = "no answer" if not row["answers"] else "draining" if row["draining"] else "ok"
    since = row["stale_since"]
    stale = "" if since is None else f"{span_words(time() - since)} ago" if since else "never"
    breakers = "; ".join(map(_breaker_words, row["breakers"])) or "closed"
    trip = milliseconds(row["round_trip_ms"])
    return [row["name"], row["url"], status, row["version"] or "", trip, breakers, stale]


def _breaker_words(breaker: Row) -> str:
    left = f" for {span_words(breaker['seconds'])}" if breaker["seconds"] else ""
    return " ".join(filter(None, [breaker["model"], breaker["state"], f"({breaker['kind']}){left}"]))
