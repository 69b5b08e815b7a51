"""Which servers there are, and how to ask all of them at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from aicortex import settings
from aicortex._core import faults
from aicortex._core.failover import AttemptFailed, Failure
from aicortex._core.ollama import BAD_JSON
from aicortex._core.server import EMBEDDED, Server
from aicortex._sync.pool import call
from aicortex.errands import Errand, Steps, run
from aicortex.errors import CredentialError
from aicortex.registry.paths import data_path
from aicortex.warn import warn

if TYPE_CHECKING:
    from aicortex.registry.entries import ServerEntry, Snapshot

ASK_SECONDS = 2.0  # how long a server may take to say which models it has
GRACE_SECONDS = 0.25  # how long the others may still take once one server has the model
FRESH_SECONDS = 60.0  # how long a server's list of models is believed
T = TypeVar("T")


class Details(msgspec.Struct, frozen=True):
    """The part of `/api/tags` that says what kind of model it is."""

    family: str = ""
    parameter_size: str = ""
    quantization_level: str = ""


class Model(msgspec.Struct, frozen=True):
    """One model of one server, as `GET /api/tags` lists it; `size` is bytes on disk."""

    name: str
    digest: str = ""
    size: int = 0
    details: Details = Details()


class Tags(msgspec.Struct, frozen=True):
    """The reply of `GET /api/tags` (models on disk) and of `GET /api/ps` (models in memory)."""

    models: list[Model] | None = None


_alive: dict[Server, float] = {}  # when the local Ollama last answered


class Fleet(msgspec.Struct, frozen=True):
    """The servers to choose from, in the order in which they were named.

    `entries` say what the registry or a configuration file has about them. `is_ordered` tells that a call named them,
    best first. `refused` maps those that are left out to the reason. `config` is what the configuration files say, and
    `has_registry` whether there is a registry; both were looked at once.
    """

    servers: list[Server]
    entries: dict[Server, Any] = {}  # Any: of ServerEntry, whose module need not be loaded
    is_ordered: bool = False
    refused: dict[str, str] = {}
    config: Any = None  # Any: of Config, whose module need not be loaded
    has_registry: bool = False


def find_servers(servers: Sequence[str | Server] | str | Server | None = None) -> list[Server]:
    """Return the servers to use, as `find_fleet` finds them."""
    return find_fleet(servers).servers


def find_fleet(servers: Sequence[str | Server] | str | Server | None = None) -> Fleet:
    """Return the servers to use and what is known of them.

    They are those given (an address, a name from the registry, a `Server`), else AICORTEX_SERVERS, else those of the
    registry and the configuration files, else the local Ollama, else the embedded engine. Raises ValueError for what is
    no address, or when all registered ones lack their credentials, and RegistryError.
    """
    return run(finding(servers))


def finding(servers: Sequence[str | Server] | str | Server | None = None) -> Steps[Fleet]:
    """Decide what `find_fleet` returns."""
    config, registry = settings.configuration(), has_registry()
    is_needed = servers is None and not settings.names_servers()
    stored = knowledge(is_needed=is_needed).servers if registry else ()
    found = yield from _found(servers, registered(stored, config=config))
    return msgspec.structs.replace(found, config=config, has_registry=registry)


def _found(servers: Sequence[str | Server] | str | Server | None, entries: Sequence[ServerEntry]) -> Steps[Fleet]:
    if servers is not None:
        given = [servers] if isinstance(servers, str | Server) else list(servers)
        if not all(isinstance(item, str | Server) for item in given):
            raise ValueError("servers is a list of addresses, such as ['desk:11434'], or of Server objects")
        if not given or not all(given):
            raise ValueError("servers is empty: name at least one, or leave it out")
        return _usable((yield from _named(given, entries, is_ordered=True)))
    configured = settings.configured_servers({entry.name for entry in entries if entry.name})
    if configured:
        return _usable((yield from _named(configured, entries)))
    if entries:
        return _usable((yield from _standing_for(entries)))
    local = settings.local_server()
    if (yield from _answers(local)):
        return Fleet([local])
    if settings.names_local_server():
        warn(f"OLLAMA_HOST: {local.label} does not answer; the embedded engine is used instead")
    return Fleet([Server(EMBEDDED)])


def registered(stored: Sequence[ServerEntry] | None = None, *, config: settings.Told = ...) -> list[ServerEntry]:
    """Return the servers of the configuration files and of the registry, or those `stored` in another one.

    Raises ValueError for a wrong file, and RegistryError.
    """
    if config is ...:
        config = settings.configuration()
    told = list(config.servers) if config else []
    if stored is None:
        stored = knowledge().servers if has_registry() else ()
    urls = {entry.url for entry in told}
    return [*told, *(entry for entry in stored if entry.url not in urls)]


def has_registry() -> bool:
    """Whether there is a registry: until a server is added, or a conversation stored, there is none."""
    return os.path.exists(data_path())


def knowledge(*, is_needed: bool = True) -> Snapshot:
    """Return what the registry knows; raises RegistryError, or warns if it is not needed."""
    from aicortex.board import BOARD

    return BOARD.knowledge(is_needed=is_needed)


def _named(given: Sequence[str | Server], entries: Sequence[ServerEntry], *, is_ordered: bool = False) -> Steps[Fleet]:
    """Return servers that were named one by one; a name or an address of the registry brings what it knows."""
    by_title = {title: entry for entry in reversed(entries) for title in (entry.url, entry.name) if title}
    found: dict[Server, Any] = {}
    refused: dict[str, str] = {}
    for item in given:
        server = _parsed(item) if isinstance(item, str) and item not in by_title else item
        entry = by_title.get(server.label if isinstance(server, Server) else server)
        if isinstance(item, Server):  # what the call says of it goes before what is registered
            found[item] = entry
        elif entry is not None:
            _make(entry, found, refused)
        elif isinstance(server, Server):
            found[server] = None
    if any(entry is not None and entry.expand for entry in found.values()):
        found = yield from _expanded(found)
    known = {server: entry for server, entry in found.items() if entry is not None}
    return Fleet(list(found), known, is_ordered, refused)


def _usable(fleet: Fleet) -> Fleet:
    """Return a fleet that has servers, with a warning about those that are left out; raises CredentialError."""
    reasons = "; ".join(fleet.refused.values())
    if not fleet.servers:
        raise CredentialError(reasons)
    if reasons:
        warn(f"left out: {reasons}")
    return fleet


def fleet_of(entries: Sequence[ServerEntry]) -> Fleet:
    """Return the servers that these entries stand for; those whose credentials are missing are `refused`."""
    return run(_standing_for(entries))


def _standing_for(entries: Sequence[ServerEntry]) -> Steps[Fleet]:
    found: dict[Server, Any] = {}
    refused: dict[str, str] = {}
    for entry in entries:
        _make(entry, found, refused)
    if any(entry.expand for entry in found.values()):
        found = yield from _expanded(found)
    return Fleet(list(found), found, refused=refused)


def _make(entry: ServerEntry, found: dict[Server, Any], refused: dict[str, str]) -> None:
    """Add the server of an entry to those found, or to those refused why there is none."""
    try:
        found[_server_of(entry)] = entry
    except CredentialError as error:
        refused[entry.url] = str(error)


_made: dict[str, tuple[ServerEntry, list[str | None], Server]] = {}  # servers by URL, and what they were made of


def _server_of(entry: ServerEntry) -> Server:
    """Return the server of an entry, made anew when its secrets have changed; raises CredentialError."""
    variables = [os.environ.get(text.removeprefix("env:")) for text in (entry.api_key, *entry.headers.values())]
    made = _made.get(entry.url)
    if made is None or made[:2] != (entry, variables):
        from aicortex.registry.credentials import server_of

        made = _made[entry.url] = (entry, variables, server_of(entry))
    return made[2]


def _expanded(entries: dict[Server, Any]) -> Steps[dict[Server, Any]]:
    """Return the servers that each name stands for, all of them resolved at once."""
    from aicortex._sync.names import expand, is_fresh

    names = [server for server, entry in entries.items() if entry is not None and entry.expand]
    if all(map(is_fresh, names)):
        found: dict[Server, list[Server] | Failure] = {server: expand(server) for server in names}
    else:
        found = yield Errand(("names", *names), lambda: survey(names, expand))
    servers: dict[Server, Any] = {}
    for server, entry in entries.items():
        said = found.get(server, [server])
        servers.update(dict.fromkeys([server] if isinstance(said, Failure) else said, entry))
    return servers


@lru_cache(maxsize=256)
def _parsed(address: str) -> Server:
    return Server(address)


def _answers(server: Server) -> Steps[bool]:
    now = perf_counter()
    if now - _alive.get(server, -FRESH_SECONDS) < FRESH_SECONDS / 6:
        return True
    answered: bool = yield Errand(("alive", server), lambda: _is_alive(server))
    if answered:
        _alive[server] = now
    return answered


def _is_alive(server: Server) -> bool:
    try:
        return call(server, "GET", "/api/version", due=perf_counter() + ASK_SECONDS).status in (200, 401, 403)
    except AttemptFailed:
        return False


def catalogue(server: Server) -> tuple[Model, ...]:
    """Return the models a server says it has; raises AttemptFailed."""
    if server.scheme != EMBEDDED:
        return ask_models(server, "/api/tags")
    from aicortex.embedded import NOT_INSTALLED, is_available, model_name

    if not is_available():
        raise AttemptFailed(Failure("engine", "connect", NOT_INSTALLED))
    return (Model(model_name()),)


def ask_models(server: Server, path: str) -> tuple[Model, ...]:
    """Return what `/api/tags` or `/api/ps` of a server lists; raises AttemptFailed."""
    response = call(server, "GET", path, due=perf_counter() + ASK_SECONDS)
    if response.status == 200:
        try:
            return tuple(msgspec.json.decode(server.redact_json(b"".join(response.body)), type=Tags).models or ())
        except BAD_JSON as error:
            failure = Failure("bad_response", "reply", f"{path} is not what Ollama answers ({error})")
    else:
        failure = faults.of_status(response)
    raise AttemptFailed(msgspec.structs.replace(failure, message=server.redact(failure.message)))


def survey(
    servers: Sequence[Server],
    ask: Callable[[Server], T],
    *,
    enough: Callable[[T], bool] = lambda _: False,
    hurried: bool = False,
) -> dict[Server, T | Failure]:
    """Ask all servers at once and return what each said, in their order, or why it did not, within 2 s.

    Once an answer is `enough`, or at once if `hurried`, the others get only a moment more.
    """
    if len(servers) == 1 and not hurried:
        return {servers[0]: outcome_of(servers[0], ask)}
    from queue import Empty, SimpleQueue  # one server, the usual case, needs neither
    from threading import Thread

    answers: SimpleQueue[tuple[Server, T | Failure | Exception]] = SimpleQueue()

    def report(server: Server) -> None:
        try:
            answers.put((server, outcome_of(server, ask)))
        except Exception as error:  # whoever waits for the answer raises it
            answers.put((server, error))

    for server in servers:
        Thread(target=report, args=(server,), daemon=True).start()
    due = perf_counter() + (GRACE_SECONDS if hurried else ASK_SECONDS + GRACE_SECONDS)
    late = Failure("stalled", "reply", f"did not answer within {due - perf_counter():.2g} s")
    found: dict[Server, T | Failure] = dict.fromkeys(servers, late)
    for _ in servers:
        try:
            server, outcome = answers.get(timeout=max(due - perf_counter(), 0.001))
        except Empty:
            break
        if isinstance(outcome, Exception):
            raise outcome
        found[server] = outcome
        if not isinstance(outcome, Failure) and enough(outcome):
            due = min(due, perf_counter() + GRACE_SECONDS)
    return found


def outcome_of(server: Server, ask: Callable[[Server], T]) -> T | Failure:
    """Return what a server says, or why it does not."""
    try:
        return ask(server)
    except AttemptFailed as error:
        return error.failure
