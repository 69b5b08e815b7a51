"""`aicortex completion`: a script that lets a shell complete commands, options, files and, in bash, servers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from aicortex.cli.parser import build_parser

# The names that are registered, of letters alone that no shell takes for something else: compgen expands its words.
SERVER_NAMES = r"""
_aicortex_servers() {
  local names
  names=$(aicortex servers export --json 2>/dev/null | sed -n 's/^ *"name": "\([[:alnum:]_-]*\)",*$/\1/p')
  compgen -W "$names" -- "$1"
}"""
SERVER_PLACES = ("names", "title", "server", "addresses")


def run(options: argparse.Namespace) -> int:
    """Print the script and return 0."""
    import shtab

    parser = build_parser()
    for action in _actions(parser):
        if str(action.metavar).startswith("FILE"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
        elif action.dest in SERVER_PLACES:
            action.complete = {"bash": "_aicortex_servers"}  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=options.shell, preamble=SERVER_NAMES if options.shell == "bash" else ""))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield what a parser takes, and those below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from _actions(one)
