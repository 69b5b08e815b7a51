"""Servers to and from TOML text, as it stands in `aicortex.toml`, so that a team can hand its fleet on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from aicortex.registry.config import parse
from aicortex.registry.entries import ServerEntry


def export_entries(entries: Iterable[ServerEntry], aliases: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return a configuration with these servers and aliases as TOML; what is as by default is left out.

    Credentials stand in it as in the entries: as references, which whoever reads it must have the secrets for.
    """
    import tomli_w

    told: dict[str, Any] = {}  # Any: TOML
    if aliases:
        told["aliases"] = {alias: names[0] if len(names) == 1 else list(names) for alias, names in aliases.items()}
    told["servers"] = [_told(entry) for entry in entries]
    return tomli_w.dumps(told)


def import_text(text: str, *, folder: str | None = None) -> list[ServerEntry]:
    """Return the servers of a configuration, checked; what else it says is checked too, and left out.

    Relative paths in it are relative to the folder, by default the working directory. Raises ValueError that names
    the key.
    """
    config = parse(text.removeprefix("\ufeff"), "the text", folder=folder or os.getcwd())
    return [msgspec.structs.replace(entry, source="") for entry in config.servers]


def _told(entry: ServerEntry) -> dict[str, Any]:  # Any: TOML
    usual = ServerEntry(entry.url, source=entry.source)
    fields = msgspec.structs.fields(ServerEntry)
    said = {field.encode_name: getattr(entry, field.name) for field in fields if _differs(entry, usual, field.name)}
    return {"url": entry.url, **said}


def _differs(entry: ServerEntry, usual: ServerEntry, name: str) -> bool:
    return bool(getattr(entry, name) != getattr(usual, name))
