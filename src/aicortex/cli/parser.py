"""The commands and their options, as argparse knows them; `--help` and docs/cli.md come from here."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence

import aicortex
from aicortex._core.routing import STRATEGIES
from aicortex.cli.arguments import (
    Command,
    Parser,
    add_commands,
    add_json,
    add_server,
    count,
    decimal,
    layout,
    port,
    whole,
)
from aicortex.cli.fleet_parser import BENCH, DOCTOR, MODELS, REFRESH
from aicortex.cli.servers_parser import SERVERS

PASSWORD = re.compile(r"://[^\s/@]+@")  # user info in a URL, which is never repeated
SYNONYMS = {  # what commands of `servers` are called elsewhere
    **dict.fromkeys(("rm", "delete", "del"), "remove"),
    "ls": "list",
    **dict.fromkeys(("update", "edit", "change", "modify"), "set"),
    **dict.fromkeys(("show", "status"), "check"),
}
SHELLS = ("bash", "zsh", "fish")
EXIT_STATUS = "exit status: 0 whole, 1 failed, 2 wrong arguments, 130 interrupted"

MAIN_EXAMPLES = """\
examples:
  aicortex chat "Why is the sky blue?"
  git diff | aicortex chat "Write a commit message for this."
  aicortex chat
  aicortex servers add desk:11434
  aicortex doctor

servers: those named with --server, else AICORTEX_SERVERS, else those added with
'aicortex servers add' or named in aicortex.toml, else the Ollama at OLLAMA_HOST
or on this machine, else the embedded engine.
'aicortex COMMAND --help' says more about a command."""

THINK = ("on", "off", "low", "medium", "high")
CHAT_EXAMPLES = f"""\
examples:
  aicortex chat "Why is the sky blue?"
  aicortex chat --model llama3.2:3b --temperature 0 --seed 7 "Name a colour."
  aicortex chat "Summarise this." < report.txt
  aicortex chat - < question.txt
  aicortex chat --server desk:11434 --server rack:11434 --stats "Tell a story."
  aicortex chat --session novel "Tell the next chapter."
  aicortex chat --image photo.jpg "What is this?"
  aicortex chat --format invoice.schema.json "Read this." < invoice.txt
  aicortex chat --json "Hello" | jq -j 'select(.type == "token").content'
  aicortex chat

Ctrl-C stops the answer, on the server too.
{EXIT_STATUS}"""

BATCH_EXAMPLES = """\
examples:
  aicortex batch prompts.jsonl -o answers.jsonl
  aicortex batch prompts.txt -o answers.jsonl --model llama3.2:3b --per-server 8
  seq 9 | sed 's/$/ squared?/' | aicortex batch - -o answers.jsonl
  jq -s 'sort_by(.index)[].text' answers.jsonl

prompts.jsonl has one object a line: "prompt" or "messages", an "id" of your own
if you like, and any argument of chat, such as "temperature", for this prompt.
Answers are appended as they come. After Ctrl-C, a crash or failures the same
command asks only for what is missing.
exit status: 0 all answered, 1 some failed, 2 wrong arguments, 130 interrupted"""

SESSIONS_EXAMPLES = """\
examples:
  aicortex sessions
  aicortex sessions show novel
  aicortex sessions --json | jq -r '.[].name'

'aicortex chat --session NAME' begins a conversation and goes on with it.
'aicortex sessions COMMAND --help' says more about a command.
exit status: 0 done, 1 failed, 2 wrong arguments"""

LIST_EXAMPLES = """\
examples:
  aicortex sessions list

exit status: 0 done, 1 failed, 2 wrong arguments"""

SHOW_EXAMPLES = """\
examples:
  aicortex sessions show novel
  aicortex sessions show novel > novel.md
  aicortex sessions show novel --json | jq '.turns[].usage'

exit status: 0 done, 1 failed, 2 wrong arguments"""

REMOVE_EXAMPLES = """\
examples:
  aicortex sessions remove novel letters

exit status: 0 removed, 1 failed, 2 wrong arguments"""

EMBEDDED_EXAMPLES = """\
examples:
  aicortex embedded
  aicortex embedded --port 11500 --name llama3.2:3b
  OLLAMA_HOST=127.0.0.1:11500 ollama list

It listens on this machine only, until Ctrl-C.
exit status: 0 ended with Ctrl-C, 1 failed, 2 wrong arguments"""

COMPLETION_EXAMPLES = """\
examples:
  aicortex completion bash > ~/.local/share/bash-completion/completions/aicortex
  aicortex completion zsh > ~/.zfunc/_aicortex  # a folder of your fpath
  aicortex completion fish > ~/.config/fish/completions/aicortex.fish

exit status: 0 printed, 2 wrong arguments"""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what a command line says; raises SystemExit when that is wrong, or was about the help.

    The mistakes that newcomers make are answered with what they probably meant.
    """
    parser = build_parser()
    if not arguments:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    if arguments[0] not in NAMES and not arguments[0].startswith("-"):
        parser.error(f"there is no command {_short(arguments[0])!r}; did you mean: {_meant(arguments)}?")
    _check_action(parser, arguments)
    options, unknown = parser.parse_known_args(arguments, argparse.Namespace(json=False, action=None))
    if unknown:
        command: argparse.ArgumentParser = options.parser if arguments[0] in NAMES else parser
        command.error(_unrecognized(unknown, command._option_string_actions))
    return options


def _check_action(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Answer a misspelled command of `servers` or `sessions`, or one that was left out."""
    group = next((group for group in (SERVERS, SESSIONS) if arguments[0] == group.name), None)
    if group is None or len(arguments) < 2 or arguments[1].startswith("-"):
        return
    actions = [action.name for action in group.commands]
    if arguments[1] not in actions:
        word = arguments[1]
        parser.error(f"there is no command {_short(f'{group.name} {word}')!r}; {_hint(group, word, actions)}")


def _hint(group: Command, word: str, actions: Sequence[str]) -> str:
    """Return what somebody probably meant who wrote this in place of a command of `servers` or `sessions`."""
    from difflib import get_close_matches

    synonyms = {word: meant for word, meant in SYNONYMS.items() if meant in actions}
    similar = get_close_matches(word.lower(), [*actions, *synonyms], n=1)
    is_address = word == "localhost" or any(sign in word for sign in ".:/")
    if similar and not is_address:
        return f"did you mean: aicortex {group.name} {synonyms.get(similar[0], similar[0])}?"
    if group is SESSIONS:
        return f"did you mean: aicortex sessions show {_short(word)}?"
    if is_address:
        return f"did you mean: aicortex servers add {_short(word)}?"
    return f"there are {', '.join(actions)}"


def _short(text: str) -> str:
    from textwrap import shorten

    return shorten(PASSWORD.sub("://…@", text), 60, placeholder=" ...")


def _meant(arguments: Sequence[str]) -> str:
    """Return the command which somebody meant who misspelled its name, or began with the prompt."""
    from difflib import get_close_matches
    from itertools import takewhile
    from shlex import quote

    similar = get_close_matches(arguments[0].lower(), NAMES, n=1, cutoff=0.8)  # a prompt's first word is seldom so
    if similar:
        return f"aicortex {similar[0]}"
    prompt = _short(" ".join(takewhile(lambda word: not word.startswith("-"), arguments)))
    needs_care = any(character in prompt for character in '"$`\\!')
    return f"aicortex chat {quote(prompt)}" if needs_care else f'aicortex chat "{prompt}"'


def _unrecognized(unknown: Sequence[str], known: Iterable[str]) -> str:
    """Return what there is to say of arguments that nobody asked for; the values of options may be secrets."""
    from difflib import get_close_matches

    names = [word.partition("=")[0] for word in unknown if word.startswith("-")]  # behind a wrong one is its value
    words = f"unrecognized arguments: {' '.join(names) or _short(' '.join(unknown))}"
    similar = [match for name in names for match in get_close_matches(name, known, n=1)]
    return f"{words}; did you mean {' and '.join(similar)}?" if similar else words


def build_parser(columns: int | None = None) -> argparse.ArgumentParser:
    """Return the parser of the whole command line; its help is `columns` wide, by default as the terminal."""
    parser = Parser(
        prog="aicortex",
        usage="aicortex [--help] [--version] COMMAND ...",
        description="Stream answers from the Ollama servers you own.",
        epilog=MAIN_EXAMPLES,
        formatter_class=layout(columns),
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"aicortex {aicortex.__version__}")
    add_commands(parser, COMMANDS, columns, "command")
    return parser


def _add_chat(parser: argparse.ArgumentParser) -> None:
    words = (
        "what to ask; '-' reads it from standard input. What comes through a pipe is added to the prompt, "
        "after an empty line. Without a prompt a terminal opens a conversation"
    )
    parser.add_argument("prompt", metavar="PROMPT", nargs="*", help=words)
    _add_model(parser)
    _add_choosing(parser)
    words = "go on with the conversation of this name, which is stored; begin it where there is none"
    parser.add_argument("--session", metavar="NAME", help=words)
    _add_shaping(parser)
    words = "a picture that belongs to the prompt (PNG, JPEG, WebP, GIF or BMP); several may be given"
    parser.add_argument("--image", metavar="FILE", action="append", help=words)
    words = "whether a model that can think does, and how hard; by default it does"
    parser.add_argument("--think", choices=THINK, help=words)
    words = "'json', or the file of a JSON schema that the answer must follow; it is checked at the end"
    parser.add_argument("--format", metavar="SCHEMA", help=words)
    words = (
        "when the first token is so late, ask a second idle server as well; the first to speak gives the answer "
        "(by default never)"
    )
    parser.add_argument("--hedge-after", metavar="SECONDS", type=decimal, help=words)
    _add_deadlines(parser)
    add_json(parser, "write the events of the stream, one JSON object a line")
    words = "write the answer as it is; without this a terminal shows Markdown rendered"
    parser.add_argument("--plain", "--no-markdown", action="store_true", help=words)
    words = "add on stderr: time to the first token, tokens per second, server, and why that server"
    parser.add_argument("--stats", action="store_true", help=words)


def _add_batch(parser: argparse.ArgumentParser) -> None:
    words = (
        "a file of JSON objects (.jsonl, .ndjson) or of one prompt a line (.txt); of one with another name, and of "
        "'-', which is standard input, the first character decides: '{' begins JSON"
    )
    parser.add_argument("prompts", metavar="PROMPTS", help=words)
    words = (
        "the file that answers are appended to, one JSON object a line: index (of the prompt, from 0), digest (of what "
        "was asked), text, model, server, finish_reason, usage, timings (seconds), attempts (how many), and where "
        "there is any id, thinking, tool_calls"
    )
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help=words)
    _add_model(parser)
    add_server(parser)
    words = "ask each server so many prompts at a time; by default its registered slots, else 4"
    parser.add_argument("--per-server", metavar="N", type=count, help=words)
    _add_shaping(parser)
    _add_deadlines(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    words = "the model to ask; by default AICORTEX_MODEL, or else one that the servers have"
    parser.add_argument("--model", metavar="NAME", help=words)


def _add_shaping(parser: argparse.ArgumentParser) -> None:
    """Add what the answer is to be like."""
    parser.add_argument("--system", metavar="TEXT", help="instructions that go before the conversation")
    parser.add_argument("--temperature", metavar="T", type=decimal, help="0 for the likeliest words, 1 for variety")
    parser.add_argument("--max-tokens", metavar="N", type=whole, help="end the answer after so many tokens")
    parser.add_argument(
        "--seed", metavar="N", type=whole, help="draw the same chances again: the same server repeats its answer"
    )


def _add_choosing(parser: argparse.ArgumentParser) -> None:
    """Add what says which server is asked."""
    add_server(parser)
    words = (
        f"which server is asked first: {', '.join(STRATEGIES)}; by default AICORTEX_ROUTING, or else balanced, and "
        "order for those named with --server"
    )
    parser.add_argument("--routing", metavar="STRATEGY", choices=STRATEGIES, help=words)


def _add_deadlines(parser: argparse.ArgumentParser) -> None:
    """Add how long things may take, and what follows when they take longer."""
    words = "how long a server may be silent in the middle of the answer before it has failed (default: %(default)g)"
    parser.add_argument("--stall-timeout", metavar="SECONDS", type=decimal, default=30.0, help=words)
    words = "how long the whole answer may take; the start of the embedded engine and its one download do not count"
    parser.add_argument("--timeout", metavar="SECONDS", type=decimal, help=words)
    words = "whether another server goes on with an answer that breaks off; by default AICORTEX_RESUME, or else it does"
    parser.add_argument("--resume", choices=["continue", "never"], help=words)


def _add_sessions(parser: argparse.ArgumentParser) -> None:
    add_json(parser, "write JSON: name, turns (how many), created_at and used_at (Unix seconds), opening")


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the conversation")
    words = (
        "write JSON: name, system, turns, each with messages, model, server, usage, context (tokens), is_partial and "
        "at (Unix seconds)"
    )
    add_json(parser, words)


def _add_remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="a conversation; all go, or none")
    add_json(parser, "write JSON: removed (the names)")


def _add_embedded(parser: argparse.ArgumentParser) -> None:
    words = "the port on 127.0.0.1; 0 picks a free one (default: %(default)s)"
    parser.add_argument("--port", metavar="N", type=port, default=11434, help=words)
    parser.add_argument("--name", metavar="MODEL", help="offer its model under another name, such as llama3.2:3b")
    add_json(parser, "say where it listens as one line of JSON: url, model")


def _add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"one of {', '.join(SHELLS)}")


CHAT = Command("chat", "[options] [PROMPT ...]", "ask a model, or talk with it", CHAT_EXAMPLES, _add_chat)
BATCH = Command("batch", "[options] PROMPTS -o FILE", "ask all prompts of a file", BATCH_EXAMPLES, _add_batch)
SESSIONS = Command(
    "sessions",
    "[options] [COMMAND ...]",
    "list and remove stored conversations",
    SESSIONS_EXAMPLES,
    _add_sessions,
    (
        Command("list", "[options]", "list the conversations that are stored", LIST_EXAMPLES, _add_sessions),
        Command("show", "[options] NAME", "show a conversation, whole", SHOW_EXAMPLES, _add_show),
        Command("remove", "[options] NAME ...", "remove conversations for good", REMOVE_EXAMPLES, _add_remove),
    ),
)
EMBEDDED = Command(
    "embedded", "[options]", "run the embedded engine as an Ollama server", EMBEDDED_EXAMPLES, _add_embedded
)
COMPLETION = Command(
    "completion", "SHELL", "print a script that lets a shell complete commands", COMPLETION_EXAMPLES, _add_completion
)
COMMANDS = (CHAT, BATCH, SESSIONS, MODELS, SERVERS, REFRESH, BENCH, DOCTOR, EMBEDDED, COMPLETION)
NAMES = tuple(command.name for command in COMMANDS)
