"""What the parsers of all commands are made of: the frame of a command, its usual options, and types of arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


LONGEST_NAME = 14  # "completion", as far to the right as it stands


class Parser(argparse.ArgumentParser):
    """A parser that does not keep quiet about an output which cannot be written."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file is not None and file is sys.stdout:
            file.write(message)  # argparse itself suppresses the OSError
        else:
            super()._print_message(message, file)


@dataclass(frozen=True)
class Command:
    """One command: how it is called, what it does in a few words, its examples, its options, and those below it."""

    name: str
    usage: str
    summary: str
    examples: str
    add: Callable[[argparse.ArgumentParser], None]
    commands: tuple[Command, ...] = ()


class Layout(argparse.RawDescriptionHelpFormatter):
    """Lays out a help, with room for the longest command's name beside its summary."""

    def __init__(self, prog: str, width: int | None = None) -> None:
        super().__init__(prog, width=width, max_help_position=28)
        self._action_max_length = LONGEST_NAME  # argparse forgets that names of commands are indented

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Name an option's value once, as Python does since 3.13: `-o, --output FILE`."""
        if len(action.option_strings) < 2 or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def layout(columns: int | None) -> partial[Layout]:
    """Return what lays out a help that is `columns` wide, by default as the terminal."""
    return partial(Layout, width=columns)


def add_commands(parser: argparse.ArgumentParser, commands: Sequence[Command], columns: int | None, dest: str) -> None:
    """Add the parsers of these commands, and of those below them, to the one they belong to."""
    found = parser.add_subparsers(dest=dest, metavar="COMMAND", required=dest == "command", title="commands")
    for command in commands:
        prog = f"{parser.prog} {command.name}"
        one = found.add_parser(
            command.name,
            prog=prog,
            usage=f"{prog} {command.usage}",
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=command.examples,
            formatter_class=layout(columns),
            allow_abbrev=False,
        )
        one.set_defaults(parser=one)
        command.add(one)
        if command.commands:
            add_commands(one, command.commands, columns, "action")


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add `--server`."""
    words = "a server to use: its name, or host, host:port or URL; several may be given, best first"
    parser.add_argument("--server", metavar="ADDRESS", action="append", help=words)


def add_json(parser: argparse.ArgumentParser, words: str) -> None:
    """Add `--json`, which below another command leaves alone what that one was told."""
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=words)


def add_names(parser: argparse.ArgumentParser, words: str) -> None:
    """Add the names of servers as arguments, none of which is needed."""
    parser.add_argument("names", metavar="NAME", nargs="*", help=words)


def decimal(text: str) -> float:
    """Return a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def whole(text: str) -> int:
    """Return a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def count(text: str) -> int:
    """Return a whole number from 1 on."""
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few: it is a number from 1 on")
    return number


def port(text: str) -> int:
    """Return a port, 0 for any free one."""
    number = whole(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"{number} is no port: it is a number from 0 to 65535")
    return number


def seconds(text: str) -> float:
    """Return a time above 0."""
    number = decimal(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: it is a number of seconds above 0")
    return number


def header(text: str) -> tuple[str, str]:
    """Return both sides of NAME=REFERENCE; the error repeats neither."""
    try:
        return pair(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError("write NAME=env:VARIABLE or NAME=keyring:SERVICE/USER") from None


def pair(text: str) -> tuple[str, str]:
    """Return both sides of NAME=VALUE; the error repeats neither, because a secret may have been put there."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise argparse.ArgumentTypeError("write NAME=VALUE")
    return name.strip(), value
