"""`aicortex sessions`: the conversations that are stored."""

from __future__ import annotations

import argparse
import sys
from time import time
from typing import TYPE_CHECKING, Any

import msgspec

from aicortex.cli.table import counted, print_json, print_line, print_table, span_words
from aicortex.cli.terminal import note, printable
from aicortex.registry import sessions
from aicortex.registry.store import Registry

if TYPE_CHECKING:
    from aicortex.registry.sessions import Kept, Summary
    from aicortex.session import Session

SHORTER = (60, 40, 20)  # characters of how a conversation begins, where a terminal has no room for more


def run(options: argparse.Namespace) -> int:
    """Print which conversations there are and return 0; raises RegistryError."""
    with Registry() as registry:
        found = sessions.summaries(registry)
    if options.json:
        print_json(found)
    elif found:
        rows = (_rows(found, most) for most in SHORTER)
        print_table(
            ["NAME", "TURNS", "LAST USED", "BEGINS WITH"], _rows(found, sessions.OPENING_CHARACTERS), shorter=rows
        )
    else:
        note("no conversation is stored: 'aicortex chat --session NAME' begins one")
    return 0


def run_show(options: argparse.Namespace) -> int:
    """Print one conversation, whole, and return 0; raises ValueError where there is none of this name."""
    with Registry() as registry:
        kept = sessions.read(registry, options.name)
        if kept is None:
            known = [summary.name for summary in sessions.summaries(registry)]
            raise ValueError(sessions.unknown(options.name, known))
    if options.json:
        print_json({"name": options.name, **msgspec.structs.asdict(kept)})
        return 0
    text = "\n\n".join([f"# {options.name}", *_paragraphs(kept)])
    print(printable(text) if sys.stdout.isatty() else text)
    return 0


def run_remove(options: argparse.Namespace) -> int:
    """Remove conversations, all or none, and return 0; raises ValueError for a name that there is not."""
    names = list(dict.fromkeys(options.names))
    with Registry() as registry:
        sessions.remove(registry, *names)
    if options.json:
        print_json({"removed": names})
        return 0
    for name in names:
        print_line(f"removed {name}")
    return 0


def length_words(session: Session) -> str:
    """Return how long a conversation that has a name is."""
    turns = len(session.turns)
    return f"session {session.name}: {counted(turns, 'turn')} so far" if turns else f"session {session.name} begins"


def paragraph(message: dict[str, Any]) -> str:  # Any: JSON
    """Return a message as Markdown: who says it, and what; of calls their arguments."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    told = [f"`{call['name']}({msgspec.json.encode(call['arguments']).decode()})`" for call in calls]
    images = [counted(len(message["images"]), "image")] if message.get("images") else []
    said = (message.get("content") or "").strip()
    return "\n\n".join([f"## {message['role'].capitalize()}", *images, *filter(None, [said]), *told])


def _paragraphs(kept: Kept) -> list[str]:
    found = [paragraph({"role": "system", "content": kept.system})] if kept.system else []
    for turn in kept.turns:
        found += map(paragraph, turn.messages)
        if turn.is_partial:
            found.append("*The answer broke off here.*")
    return found


def _rows(found: list[Summary], most: int) -> list[list[str]]:
    now = time()
    return [
        [one.name, str(one.turns), f"{span_words(max(now - one.used_at, 0.0))} ago", _shortened(one.opening, most)]
        for one in found
    ]


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
