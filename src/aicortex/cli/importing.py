"""`aicortex servers import`: servers from TOML or JSON, what is new added and what is there changed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from aicortex.cli.roster import BUSY, full_title
from aicortex.cli.table import counted, print_json, print_line
from aicortex.cli.terminal import decoded, note
from aicortex.cli.waiting import Waiting
from aicortex.fleet import registered
from aicortex.registry.config import read_text
from aicortex.registry.entries import ServerEntry
from aicortex.registry.store import Registry
from aicortex.registry.transfer import import_text

ADDED, CHANGED, SAME, KEPT = "added", "changed", "same", "kept"


@dataclass(frozen=True)
class Step:
    """What is done with one server: `before` is the entry that is there already."""

    action: str
    entry: ServerEntry
    before: ServerEntry | None = None

    @property
    def changes(self) -> dict[str, list[Any]]:  # Any: the fields of ServerEntry
        """The fields that change: old and new value by the name in TOML."""
        if self.before is None or self.action != CHANGED:
            return {}
        fields = msgspec.structs.fields(ServerEntry)
        pairs = {each.encode_name: [getattr(self.before, each.name), getattr(self.entry, each.name)] for each in fields}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and name != "source"}

    def __str__(self) -> str:
        title = full_title(self.entry)
        if self.action == CHANGED:
            told = ", ".join(f"{name} {_shown(old)} -> {_shown(new)}" for name, (old, new) in self.changes.items())
            return f"changed {title} ({told})"
        if self.action == KEPT and self.before is not None:
            return f"kept {title}, which stands in {self.before.source}"
        return f"{self.action} {title}" if self.action == ADDED else f"{title} is as it was"


def run(options: argparse.Namespace) -> int:
    """Take servers from a file and return 0; raises ValueError before anything is done, and RegistryError."""
    entries = _entries(options.file)
    steps = plan(entries, registered())
    if not options.dry_run:
        _carry_out(steps)
    if options.json:
        print_json([row_of(step) for step in steps])
        return 0
    for step in steps:
        is_planned = options.dry_run and step.action in (ADDED, CHANGED)
        print_line(f"would be {step}" if is_planned else str(step))
    if not steps:
        note("there are no servers in it")
    if options.dry_run:
        note(f"nothing was done: {counted(sum(step.action in (ADDED, CHANGED) for step in steps), 'change')} in all")
    return 0


def plan(entries: Sequence[ServerEntry], known: Sequence[ServerEntry]) -> list[Step]:
    """Return what is to be done; raises ValueError when a name would be that of two servers."""
    before = {entry.url: entry for entry in known}
    steps = [_step(entry, before.get(entry.url)) for entry in entries]
    after = {**before, **{step.entry.url: step.entry for step in steps if step.action != KEPT}}
    owners: dict[str, str] = {}
    for url, entry in after.items():
        if entry.name and owners.setdefault(entry.name, url) != url:
            raise ValueError(f"the name {entry.name} would be that of {owners[entry.name]} and of {url}")
    return steps


def row_of(step: Step) -> dict[str, object]:
    """Return a step as JSON has it."""
    return {"url": step.entry.url, "name": step.entry.name, "action": step.action, "changes": step.changes}


def _step(entry: ServerEntry, before: ServerEntry | None) -> Step:
    if before is None:
        return Step(ADDED, entry)
    if before.source:
        return Step(KEPT, entry, before)
    return Step(SAME if entry == before else CHANGED, entry, before)


def _carry_out(steps: Sequence[Step]) -> None:
    renamed = [step for step in steps if "name" in step.changes]
    with Waiting() as waiting, Registry() as registry:
        waiting.begin(BUSY)
        for step in renamed:  # two may change names with each other
            registry.change(step.entry.url, name="")
        for step in steps:
            if step.action == CHANGED:
                fields = {name: getattr(step.entry, name) for name in ServerEntry.__struct_fields__ if name != "url"}
                registry.change(step.entry.url, **fields)
        for step in steps:
            if step.action == ADDED:
                registry.add(step.entry)


def _entries(name: str) -> list[ServerEntry]:
    if name == "-":
        return import_text(_as_toml(decoded(sys.stdin.buffer.read())))
    text = read_text(name)
    try:
        return import_text(_as_toml(text), folder=os.path.dirname(os.path.abspath(name)))
    except ValueError as error:
        raise ValueError(f"{name}{str(error).removeprefix('the text')}") from None


def _as_toml(text: str) -> str:
    """Return what `export --json` wrote as TOML, and other text as it is; raises ValueError for what only looks so."""
    start = text.lstrip("\ufeff \t\r\n")[:1]
    if start not in ("{", "["):
        return text
    import tomli_w

    try:
        told = msgspec.json.decode(text.removeprefix("\ufeff"))
        return tomli_w.dumps({"servers": told} if isinstance(told, list) else told)
    except (msgspec.DecodeError, TypeError) as error:
        if start == "[":  # TOML's tables begin so too
            return text
        raise ValueError(f"the text is no JSON as 'servers export --json' writes it ({error})") from None


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode()
