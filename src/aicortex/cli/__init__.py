"""The command line: `aicortex chat | batch | sessions | models | servers | refresh | bench | doctor | …`.

    0    the answer is whole, the list complete, nothing wrong
    1    a server's fault, no server has the model, or a problem was found
    2    wrong arguments
    130  interrupted with Ctrl-C
    141  whoever read the output has gone, as in `aicortex chat … | head -1`

Answers and lists go to stdout, everything else to stderr. No module of this package loads rich before a terminal
wants something drawn.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from aicortex.cli.terminal import note, prepare_streams, recovered, report

if TYPE_CHECKING:
    import argparse

FAILED = 1
USAGE = 2
INTERRUPTED = 130
READER_GONE = 141

ACTIONS = {  # the commands below others
    "servers": {
        "list": ("servers", "run"),
        "check": ("servers", "run_check"),
        "add": ("adding", "run"),
        "set": ("changing", "run"),
        "remove": ("roster", "run_remove"),
        "drain": ("roster", "run_drain"),
        "export": ("roster", "run_export"),
        "import": ("importing", "run"),
    },
    "sessions": {
        "list": ("sessions", "run"),
        "show": ("sessions", "run_show"),
        "remove": ("sessions", "run_remove"),
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default this process's own, and return its exit status."""
    has_output = sys.stdout is not None
    prepare_streams()
    if not has_output:
        note("error: standard output is closed")
        return FAILED
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        note("stopped")
        return INTERRUPTED
    except BrokenPipeError:
        _abandon_output()
        return READER_GONE
    except OSError as error:
        _abandon_output()
        note(f"error: input or output failed: {error.strerror or error}")
        return FAILED


def _run(arguments: Sequence[str]) -> int:
    """Parse and carry out one command; every error a user can cause ends here in one line."""
    from aicortex.cli.parser import parse_arguments
    from aicortex.errors import AICortexError

    try:
        options = parse_arguments([recovered(argument) for argument in arguments])
        return _command(options)(options)
    except SystemExit as end:  # argparse has said what there is to say
        return end.code if isinstance(end.code, int) else USAGE
    except AICortexError as error:
        report(error)
        return FAILED
    except ValueError as error:
        report(error)
        return USAGE


def _command(options: argparse.Namespace) -> Callable[[argparse.Namespace], int]:
    """Return what carries out a command: `run` of the module named after it, or what the table above says."""
    from importlib import import_module

    actions = ACTIONS.get(options.command, {})
    home, function = actions.get(options.action or "list", (options.command, "run"))
    found: Callable[[argparse.Namespace], int] = getattr(import_module(f"aicortex.cli.{home}"), function)
    return found


def _abandon_output() -> None:
    """Lead what is still buffered nowhere, so that the interpreter does not fail again when it flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _show_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001 - the signature of warnings.showwarning
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    note(str(message))
