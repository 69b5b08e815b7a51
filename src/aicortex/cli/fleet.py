"""`aicortex models` and `aicortex servers`: what there is to talk with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from aicortex.cli.terminal import note, printable, width
from aicortex.cli.waiting import Waiting
from aicortex.fleet import find_servers, list_models, list_servers

KILO = 1000.0
UNITS = ("B", "kB", "MB", "GB", "TB")


def run_models(options: argparse.Namespace) -> int:
    """Print the models and return 0; raises AllServersFailedError when no server answered."""
    with Waiting() as waiting:
        waiting.begin("asking the servers")
        found = list_models(servers=find_servers(options.server))
    grouped = group_models(found)
    if options.json:
        _print_json(grouped)
    else:
        rows = [
            [row["model"], row["parameter_size"], row["quantization"], size_words(row["size"]), ", ".join(row["urls"])]
            for row in grouped
        ]
        print_table(["MODEL", "PARAMETERS", "QUANTIZATION", "SIZE", "SERVERS"], rows)
    _tell_unreachable(found.unreachable)
    return 0


def run_servers(options: argparse.Namespace) -> int:
    """Print the servers and return 0 when at least one answered, else 1."""
    with Waiting() as waiting:
        waiting.begin("asking the servers")
        found = list_servers(servers=find_servers(options.server))
    if options.json:
        _print_json([{**row, "error": found.unreachable.get(row["url"])} for row in found])
    else:
        header = ["SERVER", "STATUS", "VERSION", "ROUND TRIP", "MODELS", "LOADED"]
        print_table(header, [_server_row(row) for row in found])
    _tell_unreachable(found.unreachable)
    return 0 if any(row["answers"] for row in found) else 1


def group_models(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:  # Any: JSON
    """Return one row for each model; a name that stands for different weights on two servers has two."""
    grouped: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        shared = {key: row[key] for key in ("model", "digest", "size", "parameter_size", "quantization")}
        entry = grouped.setdefault((row["model"], row["digest"]), {**shared, "urls": [], "loaded_on": []})
        entry["urls"].append(row["url"])
        if row["loaded"]:
            entry["loaded_on"].append(row["url"])
    return list(grouped.values())


def size_words(size_bytes: float) -> str:
    """Return a size as `ollama list` writes it, in powers of 1000; nothing when it is unknown."""
    if not size_bytes:
        return ""
    power = 0
    while size_bytes >= KILO and power < len(UNITS) - 1:
        size_bytes /= KILO
        power += 1
    return f"{size_bytes:.{1 if power > 2 else 0}f} {UNITS[power]}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, or on a terminal too narrow for them one paragraph for each row."""
    is_terminal = sys.stdout.isatty()
    if is_terminal:
        rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    if is_terminal and sum(widths) + 2 * (len(widths) - 1) > width():
        _print_paragraphs(header, rows)
        return
    for row in (header, *rows):
        line = "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True))
        print(line.rstrip())


def _print_paragraphs(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from textwrap import fill

    for first, *others in rows:
        print(fill(first, width()))
        for name, cell in zip(header[1:], others, strict=True):
            if cell:
                words = f"{name.lower()}: {cell}"
                print(fill(words, width(), initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))


def _server_row(row: Mapping[str, Any]) -> list[str]:  # Any: JSON
    if not row["answers"]:
        return [row["url"], "no answer", "", "", "", ""]
    round_trip = row["round_trip"]
    return [
        row["url"],
        "ok",
        row["version"] or "",
        "" if round_trip is None else f"{round_trip * 1000:.1f} ms",
        str(row["models"]),
        ", ".join(row["loaded"] or ()),
    ]


def _print_json(rows: list[dict[str, Any]]) -> None:  # Any: JSON
    print(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())


def _tell_unreachable(unreachable: Mapping[str, str]) -> None:
    for label, reason in unreachable.items():
        note(f"{label}: {reason}")
