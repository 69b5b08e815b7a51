"""`aicortex servers` and the commands below it, as argparse knows them."""

from __future__ import annotations

import argparse

from aicortex.cli.arguments import Command, add_json, add_names, add_server, decimal, header, pair, whole

SERVERS_EXAMPLES = """\
examples:
  aicortex servers
  aicortex servers add desk:11434 --name desk
  AICORTEX_SERVERS=desk:11434,rack:11434 aicortex servers
  aicortex servers --json | jq -r '.[] | select(.answers).url'

'aicortex servers COMMAND --help' says more about a command.
exit status: 0 at least one server answered, 1 none did, 2 wrong arguments"""

LIST_EXAMPLES = """\
examples:
  aicortex servers list
  aicortex servers list --server desk:11434

exit status: 0 at least one server answered, 1 none did, 2 wrong arguments"""

ADD_EXAMPLES = """\
examples:
  aicortex servers add desk:11434 --name desk
  aicortex servers add rack:11434 --location eu/lab --label gpu=4090 --slots 4
  aicortex servers add https://ai.example --api-key env:AI_KEY
  aicortex servers add gate --header X-Team=keyring:aicortex/team
  aicortex servers add http://ollama.default.svc:11434 --expand

Keys and passwords are not stored: name the variable or the entry of the keyring
that has them. A server that does not answer is added all the same.
exit status: 0 added, 1 failed, 2 wrong arguments"""

SET_EXAMPLES = """\
examples:
  aicortex servers set desk --api-key env:DESK_KEY
  aicortex servers set rack:11434 --name rack --slots 4
  aicortex servers set desk --api-key '' --ca-file ''

What is not named stays as it is, '' takes something away. Labels and headers
that are named are all that it has then.
exit status: 0 done, 1 failed, 2 wrong arguments"""

REMOVE_EXAMPLES = """\
examples:
  aicortex servers remove desk
  aicortex servers remove rack:11434 http://old:11434

exit status: 0 removed, 1 failed, 2 wrong arguments"""

CHECK_EXAMPLES = """\
examples:
  aicortex servers check
  aicortex servers check desk rack
  aicortex servers check > /dev/null || echo "look after the servers"

exit status: 0 all answer, 1 one does not, 2 wrong arguments"""

DRAIN_EXAMPLES = """\
examples:
  aicortex servers drain desk
  aicortex servers drain desk rack
  aicortex servers drain desk --off

New requests go to the other servers; answers that have begun are finished.
exit status: 0 done, 1 failed, 2 wrong arguments"""

EXPORT_EXAMPLES = """\
examples:
  aicortex servers export
  aicortex servers export aicortex.toml

Keys and passwords are not in it, only the names of what has them.
exit status: 0 written, 1 failed, 2 wrong arguments"""

IMPORT_EXAMPLES = """\
examples:
  aicortex servers import fleet.toml --dry-run
  ssh desk aicortex servers export | aicortex servers import -

exit status: 0 done, 1 failed, 2 wrong arguments"""

LIST_JSON = (
    "write a JSON array of objects: url, name, location, source (the file that names it, or registry), draining, "
    "answers, version, round_trip (seconds), models (how many), loaded (names of those in memory), error (why it does "
    "not answer); null is unknown"
)


def _add_list(parser: argparse.ArgumentParser) -> None:
    words = "a server to list: its name, or host, host:port or URL; several may be given"
    parser.add_argument("--server", metavar="ADDRESS", action="append", default=argparse.SUPPRESS, help=words)
    add_json(parser, LIST_JSON)


def _add_servers(parser: argparse.ArgumentParser) -> None:
    add_server(parser)
    add_json(parser, LIST_JSON)


def _add_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="ADDRESS", help="where it is, as host, host:port or URL")
    _add_fields(parser)
    words = (
        "write a JSON object: added (the server as aicortex.toml has it), servers (url, version, models, error of each)"
    )
    add_json(parser, words)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("title", metavar="NAME|ADDRESS", help="the server, by name or address")
    _add_fields(parser)
    for action in parser._actions:
        if action.option_strings and action.dest != "help":  # what is not given stays as it is
            action.default = argparse.SUPPRESS
            action.help = str(action.help).partition(" (default")[0]
    words = "look at its certificate again, after --no-verify"
    parser.add_argument("--verify", dest="no_verify", action="store_false", default=argparse.SUPPRESS, help=words)
    add_json(parser, "write a JSON object: url, name, action (changed or same), changes (old and new value)")


def _add_fields(parser: argparse.ArgumentParser) -> None:
    """Add what there is to say of a server."""
    parser.add_argument("--name", metavar="NAME", default="", help="a short name for it")
    words = "where it is, from the large to the small: eu/office; for the routing nearest"
    parser.add_argument("--location", metavar="PLACE", default="", help=words)
    parser.add_argument("--organization", metavar="WHO", default="", help="whose it is")
    words = "something to remember of it, such as gpu=4090; several may be given"
    parser.add_argument("--label", metavar="KEY=VALUE", type=pair, action="append", default=[], help=words)
    words = "its share of the work next to others (default: %(default)g)"
    parser.add_argument("--weight", metavar="W", type=decimal, default=1.0, help=words)
    words = "lower is asked first with the routing priority (default: %(default)s)"
    parser.add_argument("--priority", metavar="N", type=whole, default=0, help=words)
    words = "how many answers it makes at once, its OLLAMA_NUM_PARALLEL (default: %(default)s)"
    parser.add_argument("--slots", metavar="N", type=whole, default=1, help=words)
    _add_access(parser)
    words = (
        "whether its name stands for one server per address that it resolves to, as that of a headless service; by "
        "default it does when there are several IPv4 addresses"
    )
    parser.add_argument("--expand", action=argparse.BooleanOptionalAction, help=words)


def _add_access(parser: argparse.ArgumentParser) -> None:
    """Add what is needed to get in."""
    words = "where its key is: env:VARIABLE or keyring:SERVICE/USER; it is sent as a bearer token"
    parser.add_argument("--api-key", metavar="REFERENCE", default="", help=words)
    words = "a header to send, whose value is in env:VARIABLE or keyring:SERVICE/USER; several may be given"
    parser.add_argument("--header", metavar="NAME=REFERENCE", type=header, action="append", default=[], help=words)
    words = "a PEM file with the authority that signed its certificate"
    parser.add_argument("--ca-file", metavar="FILE", help=words)
    words = "a PEM file with a certificate to show it, and its key"
    parser.add_argument("--client-cert", metavar="FILE", help=words)
    parser.add_argument("--no-verify", action="store_true", help="accept whatever certificate it has")


def _add_remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="the servers, by name or address")
    add_json(parser, "write a JSON object: removed (the servers as aicortex.toml has them)")


def _add_check(parser: argparse.ArgumentParser) -> None:
    add_names(parser, "servers to check, by name or address; by default all in use")
    words = (
        "write a JSON array of objects: url, name, answers, version, round_trip_ms, breakers (model, state, kind, "
        "seconds left of those that are not closed), draining, stale_since (Unix time since which the registry knows "
        "nothing new of it), error; null is unknown"
    )
    add_json(parser, words)


def _add_drain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="the servers, by name or address")
    parser.add_argument("--off", action="store_true", help="let them take requests again")
    add_json(parser, "write a JSON array of objects: url, name, draining")


def _add_export(parser: argparse.ArgumentParser) -> None:
    words = "a new file to write; by default standard output"
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help=words)
    add_json(parser, "write JSON with the same content instead of TOML")


def _add_import(parser: argparse.ArgumentParser) -> None:
    words = "a file as aicortex.toml, or as 'servers export' writes it, with --json too; '-' is standard input"
    parser.add_argument("file", metavar="FILE", help=words)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    words = "write a JSON array of objects: url, name, action (added, changed, same, kept), changes (old and new value)"
    add_json(parser, words)


ACTIONS = (
    Command("list", "[options]", "list the servers and how they are", LIST_EXAMPLES, _add_list),
    Command("add", "[options] ADDRESS", "add a server, and see what it has", ADD_EXAMPLES, _add_add),
    Command("set", "[options] NAME|ADDRESS", "change something about a server", SET_EXAMPLES, _add_set),
    Command(
        "remove", "[options] NAME ...", "forget servers and all that is known of them", REMOVE_EXAMPLES, _add_remove
    ),
    Command("check", "[options] [NAME ...]", "see whether servers answer", CHECK_EXAMPLES, _add_check),
    Command("drain", "[options] NAME ...", "keep new requests away from servers", DRAIN_EXAMPLES, _add_drain),
    Command("export", "[options] [FILE]", "write the servers as TOML", EXPORT_EXAMPLES, _add_export),
    Command("import", "[options] FILE", "take servers from TOML or JSON", IMPORT_EXAMPLES, _add_import),
)
SERVERS = Command(
    "servers",
    "[options] [COMMAND ...]",
    "list, add, remove and check servers",
    SERVERS_EXAMPLES,
    _add_servers,
    ACTIONS,
)
