"""`aicortex embedded`: the embedded engine as a server of its own, in the foreground."""

from __future__ import annotations

import argparse


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C and return the exit status; raises EmbeddedEngineError when the engine cannot run here."""
    from aicortex.embedded import serve

    return serve("127.0.0.1", options.port, options.name)
