"""`aicortex doctor`: look at everything that can be wrong, and say in plain words what is and what to do."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from time import time
from typing import TYPE_CHECKING

from aicortex import settings
from aicortex._core.failover import AttemptFailed, Failure
from aicortex._core.server import EMBEDDED, Server
from aicortex.cli import machine_diagnosis, server_diagnosis
from aicortex.cli.finding import OK, PROBLEM, WARNING, Finding, says_disk_is_full
from aicortex.cli.table import counted, print_json, print_line, span_words
from aicortex.cli.waiting import Waiting
from aicortex.errors import AICortexError, CredentialError
from aicortex.fleet import Model, catalogue

if TYPE_CHECKING:
    from aicortex.fleet import Fleet
    from aicortex.registry.entries import Snapshot

AT_ONCE = 32  # servers examined at a time
INDENT = len(f"{PROBLEM}  ")


class Examined:
    """One server, what was found there and which models it has, None if it did not say."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.findings: list[Finding] = []
        self.models: tuple[Model, ...] | None = None


def run(options: argparse.Namespace) -> int:
    """Print what was found and return 0 when nothing is a problem, else 1; raises ValueError for what is no address."""
    with Waiting() as waiting:
        waiting.begin("looking at everything")
        findings = list(examine(options.addresses, options.model))
    if options.json:
        print_json(findings)
    else:
        for finding in findings:
            print_line(str(finding), indent=INDENT)
        print(_summary(findings))
    return 1 if any(finding.mark == PROBLEM for finding in findings) else 0


def examine(addresses: Sequence[str], model: str | None) -> Iterator[Finding]:
    """Yield everything that is found, of this machine first."""
    now = time()
    yield from machine_diagnosis.examine_clock(now)
    yield from machine_diagnosis.examine_configuration()
    yield from machine_diagnosis.examine_registry(now)
    yield from machine_diagnosis.examine_disks()
    yield from _guarded("credentials", machine_diagnosis.examine_credentials)
    fleet, said = _fleet(addresses)
    yield from said
    servers = [*_skipped(fleet, addresses), *fleet.servers] if fleet is not None else []
    yield from machine_diagnosis.examine_engine([server.label for server in servers])
    examined = _examined(servers)
    for one in examined:
        yield from one.findings
    yield from _guarded("models", lambda: examine_model(model, examined))
    yield from _guarded("aliases", lambda: examine_aliases(examined))
    if fleet is not None:
        yield from _guarded("servers", lambda: examine_past(fleet))


def _guarded(about: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what a look finds; what is wrong with settings or the registry was found before, and ends it."""
    try:
        yield from look()
    except (AICortexError, ValueError):
        yield Finding(WARNING, about, "they could not be looked at", "Mend the problem above first")


def _fleet(addresses: Sequence[str]) -> tuple[Fleet | None, list[Finding]]:
    """Return the servers to examine, and what there was to say when they were found; raises ValueError."""
    from aicortex.cli.known import fleet_of
    from aicortex.fleet import Fleet

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for told in ("left out: ", "OLLAMA_HOST: "):  # of both there is more to say
            warnings.filterwarnings("ignore", told)
        try:
            fleet: Fleet | None = fleet_of(addresses)
        except (AICortexError, ValueError):
            if not addresses:  # why they cannot be found stands above
                return None, []
            fleet = Fleet(list(dict.fromkeys(server for address in addresses for server in _meant(address))))
    return fleet, [Finding(WARNING, "servers", str(warning.message)) for warning in caught]


def _meant(address: str) -> list[Server]:
    """Return the servers that one word means, none if what is wrong with it stands above; raises ValueError."""
    from aicortex.cli.known import fleet_of, may_be_name

    try:
        return fleet_of([address]).servers
    except CredentialError:
        return []
    except (AICortexError, ValueError):
        return [] if may_be_name(address) else [Server(address)]


def _skipped(fleet: Fleet, addresses: Sequence[str]) -> list[Server]:
    """Return the local Ollama if its address was set and the embedded engine stands in for it."""
    is_set = settings.names_local_server() and not addresses and not fleet.entries
    stands_in = [server.scheme for server in fleet.servers] == [EMBEDDED] and not settings.configured_servers()
    return [settings.local_server()] if is_set and stands_in else []


def _examined(servers: Sequence[Server]) -> list[Examined]:
    """Examine all servers at once and return them in their order."""
    from queue import Empty, SimpleQueue
    from threading import Thread

    waiting: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[tuple[int, Examined | Exception]] = SimpleQueue()

    def work() -> None:
        with suppress(Empty):
            while True:
                place = waiting.get_nowait()
                try:
                    done.put((place, examine_server(servers[place])))
                except Exception as error:  # whoever waits for it raises it
                    done.put((place, error))

    for place in range(len(servers)):
        waiting.put(place)
    for _ in range(min(len(servers), AT_ONCE)):  # nobody waits for them after Ctrl-C, as for those of an executor
        Thread(target=work, daemon=True).start()
    found: dict[int, Examined] = {}
    for _ in servers:
        place, outcome = done.get()
        if isinstance(outcome, Exception):
            raise outcome
        found[place] = outcome
    return [found[place] for place in range(len(servers))]


def examine_server(server: Server) -> Examined:
    """Look at one server, from the way to it to the models that it has."""
    found = Examined(server)
    if server.scheme == EMBEDDED:
        found.findings += _examine_models(found)
        return found
    found.findings += server_diagnosis.examine_proxy(server)
    try:
        response, seconds = server_diagnosis.ask_version(server, server_diagnosis.ASK_SECONDS)
    except AttemptFailed as error:
        found.findings.append(server_diagnosis.examine_failure(server, error.failure))
        return found
    verdict = server_diagnosis.examine_reply(server, response, seconds)
    found.findings.append(verdict)
    found.findings += server_diagnosis.examine_clocks(server, response)
    if verdict.mark == OK:
        found.findings += server_diagnosis.examine_version(server, response)
        found.findings += _examine_models(found)
    return found


def _examine_models(found: Examined) -> Iterator[Finding]:
    """Look at which models a server has."""
    server = found.server
    try:
        found.models = catalogue(server)
    except AttemptFailed as error:
        yield _unlisted(server, error.failure)
        return
    if not found.models:
        yield Finding(WARNING, server.label, "it has no models", f"Fetch one: {_pull(server, 'llama3.2')}")
    else:
        yield Finding(OK, server.label, f"it has {counted(len(found.models), 'model')}")


def _unlisted(server: Server, failure: Failure) -> Finding:
    said = failure.message  # `catalogue` has taken the secrets out
    if says_disk_is_full(said):
        remedy = server_diagnosis.full_disk_remedy(server)
        return Finding(PROBLEM, server.label, f"its disk is full: {said}", remedy)
    return Finding(PROBLEM, server.label, f"it does not say which models it has: {said}")


def examine_model(model: str | None, examined: Sequence[Examined]) -> Iterator[Finding]:
    """Look whether the servers have the model that is wanted, if one is."""
    from aicortex.planning import first_of, not_found

    wanted = model or settings.default_model()
    lists = {each.server: each.models for each in examined if each.models is not None}
    if wanted is None or not lists:
        return
    names = settings.models_meant(wanted)
    having = [server.label for server, models in lists.items() if first_of(names, models) is not None]
    lacking = [server for server in lists if server.label not in having]
    if not having:
        missing = not_found(wanted, lists)
        fetch = f"etch it: {_pull(lacking[0], names[0])}"
        remedy = f"Use {missing.matches[0]}, or f{fetch}" if missing.matches else f"F{fetch}"
        yield Finding(PROBLEM, "model", str(missing), remedy)
        return
    yield Finding(OK, "model", f"{wanted!r} is on {', '.join(having)}")
    for server in lacking:
        words = f"it does not have {wanted!r}"
        yield Finding(WARNING, server.label, words, f"Fetch it there: {_pull(server, names[0])}")


def examine_aliases(examined: Sequence[Examined]) -> Iterator[Finding]:
    """Look whether each alias of the configuration stands for a model that a server has."""
    from aicortex.planning import first_of

    config = settings.configuration()
    aliases = config.aliases if config else {}
    lists = [each.models for each in examined if each.models is not None]
    for alias, names in aliases.items():
        if any(first_of(names, models) is not None for models in lists):
            continue
        other = next((name for name in names if name in aliases), None)
        if other is not None:
            words = f"it stands for {other!r}, which is an alias itself"
            yield Finding(WARNING, f"alias {alias}", words, "Write the models there")
        elif lists:
            words = f"no server that answers has {' or '.join(map(repr, names))}"
            yield Finding(WARNING, f"alias {alias}", words, "Correct it, or fetch a model of it")


def _pull(server: Server, model: str) -> str:
    if server.scheme == EMBEDDED:
        return "'aicortex embedded' has its own alone; add a server"
    return f"OLLAMA_HOST={server.label} ollama pull {model}"


def examine_past(fleet: Fleet) -> Iterator[Finding]:
    """Look at what requests and refreshes met lately: pauses after failures, and full disks."""
    from aicortex.board import BOARD

    known = BOARD.knowledge()  # first: it raises where the registry cannot be read
    now, healths = time(), BOARD.healths()
    for server in fleet.servers:
        entry = fleet.entries.get(server)
        if entry is not None and entry.is_draining:
            words = "it is draining: new requests go to the other servers"
            yield Finding(WARNING, server.label, words, f"End that: aicortex servers drain {entry.title} --off")
        for (label, model), health in sorted(healths.items()):
            if label == server.label and health.failures:
                what = model or "it"
                words = f"{what} failed {counted(health.failures, 'time')} in a row, the last time with {health.kind!r}"
                left = max(health.until - now, 0.0)
                rest = f"It is tried again in {span_words(left)}" if left else "The next request tries it again"
                yield Finding(WARNING, server.label, words, rest)
        yield from _full_disks(server, known)


def _full_disks(server: Server, known: Snapshot) -> Iterator[Finding]:
    """Look whether a server said of late that its disk is full, which shows when it loads or fetches a model."""
    said = [one.error for (label, _), one in known.measurements.items() if label == server.label]
    condition = known.conditions.get(server.label)
    for words in [*said, condition.error if condition else ""]:
        if says_disk_is_full(words):
            finding = f"its disk is full: {words}"
            yield Finding(PROBLEM, server.label, finding, server_diagnosis.full_disk_remedy(server))
            return


def _summary(findings: Sequence[Finding]) -> str:
    problems = sum(finding.mark == PROBLEM for finding in findings)
    cautions = sum(finding.mark == WARNING for finding in findings)
    if not problems and not cautions:
        return "nothing is wrong"
    return f"{counted(problems, 'problem')}, {counted(cautions, 'warning')}"
