"""`aicortex embedded`: the embedded engine as a server of its own, in the foreground."""

from __future__ import annotations

import argparse

import msgspec


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C and return the exit status; raises EmbeddedEngineError when the engine cannot run here."""
    from aicortex.embedded import serve

    if not options.json:
        return serve("127.0.0.1", options.port, options.name)
    return serve("127.0.0.1", options.port, options.name, announce=_announce)


def _announce(url: str, model: str) -> None:
    print(msgspec.json.encode({"url": url, "model": model}).decode(), flush=True)
