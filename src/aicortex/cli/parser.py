"""The commands and their options, as argparse knows them; `--help` and docs/cli.md come from here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import aicortex

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

COMMANDS = ("chat", "models", "servers", "embedded")
EXIT_STATUS = "exit status: 0 whole, 1 failed, 2 wrong arguments, 130 interrupted"

MAIN_EXAMPLES = """\
examples:
  aicortex chat "Why is the sky blue?"
  git diff | aicortex chat "Write a commit message for this."
  aicortex chat
  aicortex servers

servers: those named with --server, else AICORTEX_SERVERS, else the Ollama at
OLLAMA_HOST or on this machine, else the embedded engine.
'aicortex COMMAND --help' says more about a command."""

CHAT_EXAMPLES = f"""\
examples:
  aicortex chat "Why is the sky blue?"
  aicortex chat --model llama3.2:3b --temperature 0 --seed 7 "Name a colour."
  aicortex chat "Summarise this." < report.txt
  aicortex chat - < question.txt
  aicortex chat --server desk:11434 --server rack:11434 --stats "Tell a story."
  aicortex chat --json "Hello" | jq -j 'select(.type == "token").content'
  aicortex chat

Ctrl-C stops the answer, on the server too.
{EXIT_STATUS}"""

MODELS_EXAMPLES = """\
examples:
  aicortex models
  aicortex models --server desk:11434 --server rack:11434
  aicortex models --json | jq -r '.[].model'

exit status: 0 at least one server answered, 1 none did, 2 wrong arguments"""

SERVERS_EXAMPLES = """\
examples:
  aicortex servers
  AICORTEX_SERVERS=desk:11434,rack:11434 aicortex servers
  aicortex servers --json | jq -r '.[] | select(.answers).url'

exit status: 0 at least one server answered, 1 none did, 2 wrong arguments"""

EMBEDDED_EXAMPLES = """\
examples:
  aicortex embedded
  aicortex embedded --port 11500 --name llama3.2:3b
  OLLAMA_HOST=127.0.0.1:11500 ollama list

It listens on this machine only, until Ctrl-C.
exit status: 0 ended with Ctrl-C, 1 failed, 2 wrong arguments"""


class Parser(argparse.ArgumentParser):
    """A parser that does not keep quiet about an output which cannot be written."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file is not None and file is sys.stdout:
            file.write(message)  # argparse itself suppresses the OSError
        else:
            super()._print_message(message, file)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what a command line says; raises SystemExit when that is wrong, or was about the help.

    The mistakes that newcomers make are answered with what they probably meant.
    """
    parser = build_parser()
    if not arguments:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    if arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        parser.error(f"there is no command {_short(arguments[0])!r}; did you mean: {_meant(arguments)}?")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        command: argparse.ArgumentParser = options.parser if arguments[0] in COMMANDS else parser
        command.error(_unrecognized(unknown, command._option_string_actions))
    return options


def _short(text: str) -> str:
    from textwrap import shorten

    return shorten(text, 60, placeholder=" ...")


def _meant(arguments: Sequence[str]) -> str:
    """Return the command which somebody meant who misspelled its name, or began with the prompt."""
    from difflib import get_close_matches
    from itertools import takewhile
    from shlex import quote

    similar = get_close_matches(arguments[0].lower(), COMMANDS, n=1, cutoff=0.8)  # a prompt's first word is seldom so
    if similar:
        return f"aicortex {similar[0]}"
    prompt = _short(" ".join(takewhile(lambda word: not word.startswith("-"), arguments)))
    needs_care = any(character in prompt for character in '"$`\\!')
    return f"aicortex chat {quote(prompt)}" if needs_care else f'aicortex chat "{prompt}"'


def _unrecognized(unknown: Sequence[str], known: Iterable[str]) -> str:
    from difflib import get_close_matches

    options = [word for word in unknown if word.startswith("-")]  # what follows a wrong one is its value, or the prompt
    words = f"unrecognized arguments: {' '.join(options or unknown)}"
    names = [option.partition("=")[0] for option in options]
    similar = [match for name in names for match in get_close_matches(name, known, n=1)]
    return f"{words}; did you mean {' and '.join(similar)}?" if similar else words


def build_parser(columns: int | None = None) -> argparse.ArgumentParser:
    """Return the parser of the whole command line; its help is `columns` wide, by default as the terminal."""
    layout = partial(argparse.RawDescriptionHelpFormatter, width=columns, max_help_position=28)
    parser = Parser(
        prog="aicortex",
        usage="aicortex [--help] [--version] COMMAND ...",
        description="Stream answers from the Ollama servers you own.",
        epilog=MAIN_EXAMPLES,
        formatter_class=layout,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"aicortex {aicortex.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    for name, options, summary, examples, add in (
        ("chat", "[options] [PROMPT ...]", "ask a model, or talk with it", CHAT_EXAMPLES, _add_chat),
        ("models", "[options]", "list the models the servers have", MODELS_EXAMPLES, _add_models),
        ("servers", "[options]", "list the servers and how they are", SERVERS_EXAMPLES, _add_servers),
        ("embedded", "[options]", "run the embedded engine as an Ollama server", EMBEDDED_EXAMPLES, _add_embedded),
    ):
        command = commands.add_parser(
            name,
            prog=f"aicortex {name}",
            usage=f"aicortex {name} {options}",
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=examples,
            formatter_class=layout,
            allow_abbrev=False,
        )
        command.set_defaults(parser=command)
        add(command)
    return parser


def _add_chat(parser: argparse.ArgumentParser) -> None:
    words = (
        "what to ask; '-' reads it from standard input. What comes through a pipe is added to the prompt, "
        "after an empty line. Without a prompt a terminal opens a conversation"
    )
    parser.add_argument("prompt", metavar="PROMPT", nargs="*", help=words)
    words = "the model to ask; by default AICORTEX_MODEL, or else one that the servers have"
    parser.add_argument("--model", metavar="NAME", help=words)
    _add_server(parser)
    parser.add_argument("--system", metavar="TEXT", help="instructions that go before the conversation")
    parser.add_argument("--temperature", metavar="T", type=_decimal, help="0 for the likeliest words, 1 for variety")
    parser.add_argument("--max-tokens", metavar="N", type=_whole, help="end the answer after so many tokens")
    parser.add_argument(
        "--seed", metavar="N", type=_whole, help="draw the same chances again: the same server repeats its answer"
    )
    words = (
        "when the first token is so late, ask a second idle server as well; the first to speak gives the answer "
        "(by default never)"
    )
    parser.add_argument("--hedge-after", metavar="SECONDS", type=_decimal, help=words)
    words = "how long a server may be silent in the middle of the answer before it has failed (default: %(default)g)"
    parser.add_argument("--stall-timeout", metavar="SECONDS", type=_decimal, default=30.0, help=words)
    words = "how long the whole answer may take; the start of the embedded engine and its one download do not count"
    parser.add_argument("--timeout", metavar="SECONDS", type=_decimal, help=words)
    words = "whether another server goes on with an answer that breaks off; by default AICORTEX_RESUME, or else it does"
    parser.add_argument("--resume", choices=["continue", "never"], help=words)
    parser.add_argument("--json", action="store_true", help="write the events of the stream, one JSON object a line")
    words = "write the answer as it is; without this a terminal shows Markdown rendered"
    parser.add_argument("--plain", "--no-markdown", action="store_true", help=words)
    words = "add on stderr: time to the first token, tokens per second, server"
    parser.add_argument("--stats", action="store_true", help=words)


def _add_server(parser: argparse.ArgumentParser) -> None:
    words = "a server to use, as host, host:port or URL; several may be given, best first"
    parser.add_argument("--server", metavar="ADDRESS", action="append", help=words)


def _add_models(parser: argparse.ArgumentParser) -> None:
    _add_server(parser)
    words = (
        "write a JSON array of objects: model, digest, size (bytes), parameter_size, quantization, urls (of the "
        "servers that have it), loaded_on (of those that have it in memory)"
    )
    parser.add_argument("--json", action="store_true", help=words)


def _add_servers(parser: argparse.ArgumentParser) -> None:
    _add_server(parser)
    words = (
        "write a JSON array of objects: url, answers, version, round_trip (seconds), models (how many), loaded "
        "(names of those in memory), error (why it does not answer); null is unknown"
    )
    parser.add_argument("--json", action="store_true", help=words)


def _add_embedded(parser: argparse.ArgumentParser) -> None:
    words = "the port on 127.0.0.1; 0 picks a free one (default: %(default)s)"
    parser.add_argument("--port", metavar="N", type=_port, default=11434, help=words)
    parser.add_argument("--name", metavar="MODEL", help="offer its model under another name, such as llama3.2:3b")


def _decimal(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _port(text: str) -> int:
    port = _whole(text)
    if not 0 <= port < 65536:
        raise argparse.ArgumentTypeError(f"{port} is no port: it is a number from 0 to 65535")
    return port
