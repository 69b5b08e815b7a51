"""The commands that look at the whole fleet: `models`, `refresh`, `bench` and `doctor`, as argparse knows them."""

from __future__ import annotations

import argparse

from aicortex.cli.arguments import Command, add_json, add_names, add_server, count, seconds

MODELS_EXAMPLES = """\
examples:
  aicortex models
  aicortex models llama --max-params 14B
  aicortex models --family qwen3 --server desk:11434 --server rack:11434
  aicortex models --json | jq -r '.[].model'

exit status: 0 at least one server answered, 1 none did, 2 wrong arguments"""

REFRESH_EXAMPLES = """\
examples:
  aicortex refresh
  aicortex refresh desk rack --measure
  aicortex refresh --json | jq -r '.changes[].kind'

Only the servers that you added or that aicortex.toml names are asked. One that
does not answer keeps what is known of it.
exit status: 0 at least one server answered, 1 none did, 2 wrong arguments"""

BENCH_EXAMPLES = """\
examples:
  aicortex bench
  aicortex bench desk rack --model llama3.2:3b --rounds 5
  aicortex bench --all --plot fleet.png
  aicortex bench --json | jq '.[0]'

Each measurement is an answer of 16 tokens. Best first: by the time that 100
tokens take. What is measured is kept in the registry, if there is one.
exit status: 0 at least one measured, 1 none could be, 2 wrong arguments"""

DOCTOR_EXAMPLES = """\
examples:
  aicortex doctor
  aicortex doctor desk:11434
  aicortex doctor --model llama3.2:3b
  aicortex doctor --json | jq '.[] | select(.mark == "problem")'

Asks the named servers and no others; of their hosts it tries the port 11434
besides the one you gave.
exit status: 0 no problem, 1 a problem, 2 wrong arguments"""


def _add_models(parser: argparse.ArgumentParser) -> None:
    words = "words that name, family, size, quantization and capabilities are searched for: all must be there"
    parser.add_argument("query", metavar="QUERY", nargs="*", help=words)
    parser.add_argument("--family", metavar="NAME", help="only this family, such as llama or qwen3")
    parser.add_argument("--search", metavar="TEXT", help="the same as QUERY")
    words = "at least so many parameters, such as 3B or 500M"
    parser.add_argument("--min-params", metavar="N", help=words)
    parser.add_argument("--max-params", metavar="N", help="at most so many parameters")
    add_server(parser)
    words = (
        "write a JSON array of objects: model, digest, size (bytes), family, families, parameter_size, parameters, "
        "quantization, context_length (tokens), capabilities, urls (of the servers that have it), loaded_on (of those "
        "that have it in memory); null is unknown"
    )
    add_json(parser, words)


def _add_refresh(parser: argparse.ArgumentParser) -> None:
    add_names(parser, "servers to ask, by name or address; by default all")
    words = "also measure one model of each server, which takes a minute more at most"
    parser.add_argument("--measure", action="store_true", help=words)
    words = "how long it may take, without measuring (default: %(default)g)"
    parser.add_argument("--timeout", metavar="SECONDS", type=seconds, default=5.0, help=words)
    words = (
        "write a JSON object: changes (kind, server, model, before, after, unit), servers, answered, models, seconds, "
        "unreachable (reasons by URL), measurements"
    )
    add_json(parser, words)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    add_names(parser, "servers to measure, by name or address; by default all")
    parser.add_argument("--model", metavar="NAME", help="measure this model on every server that has it")
    words = "measure every model, which makes the servers load them all; by default one of each server"
    parser.add_argument("--all", action="store_true", help=words)
    words = "measure so often and show the medians (default: %(default)s)"
    parser.add_argument("--rounds", metavar="N", type=count, default=3, help=words)
    words = "draw the result too; needs pip install 'aicortex[plot]'"
    parser.add_argument("--plot", metavar="FILE.png", help=words)
    words = (
        "write a JSON array of objects: url, name, model, first_token_ms (without loading), tokens_per_second, "
        "load_ms, rounds (how many succeeded), errors; null is unknown"
    )
    add_json(parser, words)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    words = "servers to examine, by name or address; by default all in use"
    parser.add_argument("addresses", metavar="ADDRESS", nargs="*", help=words)
    words = "a model that should be there; by default AICORTEX_MODEL or that of aicortex.toml"
    parser.add_argument("--model", metavar="NAME", help=words)
    words = "write a JSON array of objects: mark (ok, warning, problem), about, finding, remedy"
    add_json(parser, words)


MODELS = Command(
    "models", "[options] [QUERY ...]", "list or search the models the servers have", MODELS_EXAMPLES, _add_models
)
REFRESH = Command(
    "refresh", "[options] [NAME ...]", "ask the servers what they have, and remember it", REFRESH_EXAMPLES, _add_refresh
)
BENCH = Command("bench", "[options] [NAME ...]", "measure how fast the servers are", BENCH_EXAMPLES, _add_bench)
DOCTOR = Command(
    "doctor", "[options] [ADDRESS ...]", "say what is wrong, and what to do about it", DOCTOR_EXAMPLES, _add_doctor
)
