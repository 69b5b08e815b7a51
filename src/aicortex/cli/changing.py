"""`aicortex servers set`: something else about a server that is registered."""

from __future__ import annotations

import argparse
from typing import Any

from aicortex.cli.importing import CHANGED, SAME, Step, row_of
from aicortex.cli.known import own_entry
from aicortex.cli.roster import BUSY
from aicortex.cli.table import print_json, print_line
from aicortex.cli.waiting import Waiting
from aicortex.registry.store import Registry

FILES = ("ca_file", "client_cert")
FIELDS = ("name", "location", "organization", "weight", "priority", "slots", "api_key", "expand")


def run(options: argparse.Namespace) -> int:
    """Change what is named and return 0; raises ValueError for wrong arguments, and RegistryError."""
    fields = _fields(vars(options))
    if not fields:
        raise ValueError("nothing is to be changed: say what, such as --slots 4")
    before = own_entry(options.title, "change it")
    with Waiting() as waiting, Registry() as registry:
        waiting.begin(BUSY)
        entry = registry.change(before.url, **fields)
    step = Step(SAME if entry == before else CHANGED, entry, before)
    if options.json:
        print_json(row_of(step))
    else:
        print_line(str(step))
    return 0


def _fields(told: dict[str, Any]) -> dict[str, Any]:  # Any: the fields of ServerEntry, which the registry checks
    """Return the fields that the options name; an option that was not given is not there."""
    if told.get("name") == "":
        raise ValueError("--name is empty: a server that has a name keeps one")
    fields = {field: told[field] for field in FIELDS if field in told}
    fields |= {field: told[field] or None for field in FILES if field in told}
    fields |= {f"{field}s": dict(told[field]) for field in ("label", "header") if field in told}
    return {**fields, "verify": not told["no_verify"]} if "no_verify" in told else fields
