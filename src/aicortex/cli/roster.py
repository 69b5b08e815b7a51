"""`aicortex servers remove`, `drain` and `export`: what is done with servers that are registered."""

from __future__ import annotations

import argparse
import sys

import msgspec

from aicortex.cli.known import own_entry
from aicortex.cli.table import print_json, print_line
from aicortex.cli.terminal import note
from aicortex.cli.waiting import Waiting
from aicortex.fleet import registered
from aicortex.registry.entries import ServerEntry
from aicortex.registry.store import Registry
from aicortex.settings import configuration

BUSY = "waiting for another process to finish writing"


def run_remove(options: argparse.Namespace) -> int:
    """Remove servers, all or none, and return 0; raises ValueError for one that is unknown or stands in a file."""
    entries = {entry.url: entry for entry in (own_entry(title, "remove it") for title in options.names)}
    with Waiting() as waiting, Registry() as registry:
        waiting.begin(BUSY)
        for url in entries:
            registry.remove(url)
    if options.json:
        print_json({"removed": [told(entry) for entry in entries.values()]})
        return 0
    for entry in entries.values():
        print_line(f"removed {full_title(entry)}")
    return 0


def run_drain(options: argparse.Namespace) -> int:
    """Keep new requests away from servers, or let them in again, and return 0; raises ValueError as `run_remove`."""
    advice = f"write draining = {'false' if options.off else 'true'}"
    urls = dict.fromkeys(own_entry(title, advice).url for title in options.names)
    with Waiting() as waiting, Registry() as registry:
        waiting.begin(BUSY)
        entries = [registry.change(url, is_draining=not options.off) for url in urls]
    if options.json:
        print_json([{"url": entry.url, "name": entry.name, "draining": entry.is_draining} for entry in entries])
    else:
        words = "takes requests again" if options.off else "is draining: new requests go to the other servers"
        for entry in entries:
            print_line(f"{entry.title} {words}")
    if not options.off and all(other.is_draining for other in registered()):
        note("every server is draining now: requests go to them all the same")
    return 0


def run_export(options: argparse.Namespace) -> int:
    """Write all servers, and the aliases, as TOML and return 0; raises ValueError for a file that cannot be made."""
    from aicortex.registry.transfer import export_entries

    config = configuration()
    text = export_entries(registered(), config.aliases if config else None)
    if options.json:
        text = msgspec.json.format(msgspec.json.encode(msgspec.toml.decode(text)), indent=2).decode() + "\n"
    if options.file == "-":
        sys.stdout.write(text)
        return 0
    try:
        with open(options.file, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{options.file} exists already: name another file") from None
    except OSError as error:
        raise ValueError(f"{options.file} cannot be written: {error.strerror}") from None
    note(f"written to {options.file}")
    return 0


def told(entry: ServerEntry) -> dict[str, object]:
    """Return an entry as `aicortex.toml` has it, whole."""
    fields = {field.encode_name: getattr(entry, field.name) for field in msgspec.structs.fields(ServerEntry)}
    return {key: value for key, value in fields.items() if key != "source"}


def full_title(entry: ServerEntry) -> str:
    """Return the name, if there is one, and the address."""
    return f"{entry.name}: {entry.url}" if entry.name else entry.url
