"""Which servers there are, and which models they have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from time import perf_counter
from typing import Any, TypeVar

import msgspec

from aicortex import settings
from aicortex._core import faults
from aicortex._core.failover import AttemptFailed, Failure
from aicortex._core.ollama import BAD_JSON, full_name, version_of
from aicortex._core.server import EMBEDDED, Server
from aicortex._sync.pool import call
from aicortex.errors import AllServersFailedError, ModelNotFoundError

ASK_SECONDS = 2.0  # how long a server may take to say which models it has
GRACE_SECONDS = 0.25  # how long the others may still take once one server has the model
FRESH_SECONDS = 60.0  # how long a server's list of models is believed
EMBEDDING_FAMILIES = frozenset({"bert", "nomic-bert", "nomic-bert-moe", "gemma-embedding"})  # they cannot chat
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


class FleetList(list[T]):
    """A list that also says who did not answer: `unreachable` maps a server to its reason."""

    def __init__(self, items: Iterable[T] = (), unreachable: dict[str, str] | None = None) -> None:
        super().__init__(items)
        self.unreachable = unreachable or {}


_known: dict[Server, tuple[float, tuple[Model, ...] | Failure]] = {}  # when each was asked, and what it said
_alive: dict[Server, float] = {}  # when the local Ollama last answered


def find_servers(servers: Sequence[str | Server] | str | Server | None = None) -> list[Server]:
    """Return the servers to use: those given, else AICORTEX_SERVERS, else the local Ollama, else the embedded engine.

    Raises ValueError for what is no address.
    """
    if servers is not None:
        given = [servers] if isinstance(servers, str | Server) else list(servers)
        if not given or any(not item for item in given):
            raise ValueError("servers is empty: name at least one, or leave it out")
        if not all(isinstance(item, str | Server) for item in given):
            raise ValueError("servers is a list of addresses, such as ['desk:11434'], or of Server objects")
        parsed = [item if isinstance(item, Server) else _parsed(item) for item in given]
        return list(dict.fromkeys(parsed))
    configured = settings.configured_servers()
    if configured:
        return list(dict.fromkeys(configured))
    local = settings.local_server()
    if _answers(local):
        return [local]
    if settings.names_local_server():
        import warnings

        words = f"OLLAMA_HOST: {local.label} does not answer; the embedded engine is used instead"
        warnings.warn(words, RuntimeWarning, stacklevel=3)
    return [Server(EMBEDDED)]


@lru_cache(maxsize=256)
def _parsed(address: str) -> Server:
    return Server(address)


def _answers(server: Server) -> bool:
    now = perf_counter()
    if now - _alive.get(server, -FRESH_SECONDS) < FRESH_SECONDS / 6:
        return True
    try:
        answered = call(server, "GET", "/api/version", due=now + ASK_SECONDS).status in (200, 401, 403)
    except AttemptFailed:
        return False
    if answered:
        _alive[server] = now
    return answered


def catalogue(server: Server) -> tuple[Model, ...]:
    """Return the models a server says it has; raises AttemptFailed."""
    if server.scheme != EMBEDDED:
        return _ask(server, "/api/tags")
    from aicortex.embedded import NOT_INSTALLED, is_available, model_name

    if not is_available():
        raise AttemptFailed(Failure("engine", "connect", NOT_INSTALLED))
    return (Model(model_name()),)


def _ask(server: Server, path: str) -> tuple[Model, ...]:
    response = call(server, "GET", path, due=perf_counter() + ASK_SECONDS)
    if response.status == 200:
        try:
            return tuple(msgspec.json.decode(b"".join(response.body), type=Tags).models or ())
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
        return {servers[0]: _outcome(servers[0], ask)}
    from queue import Empty, SimpleQueue  # one server, the usual case, needs neither
    from threading import Thread

    answers: SimpleQueue[tuple[Server, T | Failure | Exception]] = SimpleQueue()

    def report(server: Server) -> None:
        try:
            answers.put((server, _outcome(server, ask)))
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


def _outcome(server: Server, ask: Callable[[Server], T]) -> T | Failure:
    try:
        return ask(server)
    except AttemptFailed as error:
        return error.failure


class Plan(msgspec.Struct, frozen=True):
    """Which model, and which servers in order of preference; `failures` when no server could be asked for one.

    `digests` name the weights that each server has under this name, "" where it did not say.
    """

    model: str
    servers: list[Server]
    failures: list[Failure] = []
    digests: list[str] = []


def plan(model: str | None, servers: Sequence[Server]) -> Plan:
    """Choose the model if none is named, and put the servers that have it first, in their order.

    Raises ModelNotFoundError when every server answered and none has it. Servers that did not answer stand behind
    those that have it, and those that said they have not come last.
    """
    model = model or settings.default_model()
    found = _known_or_asked(servers, model)
    lists = {server: models for server, models in found.items() if not isinstance(models, Failure)}
    failures = [outcome for outcome in found.values() if isinstance(outcome, Failure)]
    if model is None:
        model = next((m.name for models in lists.values() for m in models if _can_chat(m)), None)
    if model is None and not lists:
        return Plan("", list(servers), failures)
    having = [server for server, models in lists.items() if model is not None and _has(models, model)]
    if model is None or (not having and not failures):
        raise _not_found(model, lists)
    silent = [server for server in servers if server not in lists]
    lacking = [server for server in lists if having and server not in having]
    order = [*having, *silent, *lacking]
    return Plan(model, order, digests=[_digest(lists.get(server, ()), model) for server in order])


def _digest(models: Sequence[Model], name: str) -> str:
    return next((model.digest for model in models if full_name(model.name) == full_name(name)), "")


def _noted(server: Server) -> tuple[Model, ...]:
    """Ask a server and remember what it says, even if nobody waits for it any more."""
    models = catalogue(server)
    _known[server] = (perf_counter(), models)
    return models


def _known_or_asked(servers: Sequence[Server], model: str | None) -> dict[Server, tuple[Model, ...] | Failure]:
    """Return what each server has or why it did not say, asking those of which nothing fresh is known.

    When nobody is known to have the model, all are asked again: it may have been pulled since.
    """
    now = perf_counter()
    fresh = {server: known for server in servers if (known := _known.get(server)) and now - known[0] < FRESH_SECONDS}
    has_it = any(not isinstance(known, Failure) and _has(known, model) for _, known in fresh.values())
    unknown = [server for server in servers if not has_it or server not in fresh]
    if unknown:
        asked = survey(unknown, _noted, enough=lambda models: _has(models, model), hurried=has_it)
        fresh.update({server: (now, outcome) for server, outcome in asked.items()})
        _known.update({server: fresh[server] for server in unknown})
    return {server: fresh[server][1] for server in servers}


def _has(models: Iterable[Model], model: str | None) -> bool:
    """Whether the model is among these; any that can chat will do when none is named."""
    if model is None:
        return any(_can_chat(known) for known in models)
    wanted = full_name(model)
    return any(full_name(known.name) == wanted for known in models)


def _can_chat(model: Model) -> bool:
    return model.details.family not in EMBEDDING_FAMILIES


def _not_found(model: str | None, lists: dict[Server, tuple[Model, ...]]) -> ModelNotFoundError:
    names = list(dict.fromkeys(known.name for models in lists.values() for known in models))
    asked = ", ".join(server.label for server in lists)
    if model is None:
        words = f"no model to use on {asked}: pull one, for example with 'ollama pull llama3.2'"
        return ModelNotFoundError(words, available=names)
    from difflib import get_close_matches

    by_lower = {name.lower(): name for name in names}
    matches = [by_lower[name] for name in get_close_matches(model.lower(), by_lower, n=3, cutoff=0.5)]
    hint = f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""
    has = f"available: {', '.join(names)}" if names else "it has no models at all"
    named = " (from AICORTEX_MODEL)" if model == settings.default_model() else ""
    words = f"model {model!r}{named} not found on {asked}{hint} ({has})"
    return ModelNotFoundError(words, model=model, available=names, matches=matches)


def models(*, servers: Sequence[str | Server] | None = None) -> FleetList[str]:
    """Return the names of the models that the servers have now, each once, in the order of the servers.

    All servers are asked at once and have 2 s; `.unreachable` of the list maps those that did not answer to the
    reason. Raises AllServersFailedError when none answered.
    """
    found = _fresh_survey(find_servers(servers))
    names = dict.fromkeys(model.name for _, listed in _answered(found) for model in listed)
    return FleetList(names, _unreachable(found))


def list_model_servers(model: str, *, servers: Sequence[str | Server] | None = None) -> FleetList[dict[str, Any]]:
    """Return the servers that have a model now, as dictionaries; Any because they are JSON.

    Keys: `url` (without secrets), `model`, `digest`, `size` (bytes), `parameter_size`, `quantization`, `loaded`
    (whether it is in memory). Raises AllServersFailedError when no server answered; a model nobody has gives an
    empty list. `.unreachable` is as in `models`.
    """
    if not isinstance(model, str) or not model.strip():
        raise ValueError("model must be a model's name, such as 'llama3.2:3b'")
    found = _fresh_survey(find_servers(servers))
    having = {s: m for s, listed in _answered(found) for m in listed if full_name(m.name) == full_name(model)}
    loaded = survey(list(having), _loaded_names) if having else {}
    rows = [_row(server, entry, loaded[server]) for server, entry in having.items()]
    return FleetList(rows, _unreachable(found))


def _fresh_survey(servers: Sequence[Server]) -> dict[Server, tuple[Model, ...] | Failure]:
    found = survey(servers, catalogue)
    if all(isinstance(outcome, Failure) for outcome in found.values()):
        each = "; ".join(f"{label}: {reason}" for label, reason in _unreachable(found).items())
        raise AllServersFailedError(f"All servers failed: {each}")
    return found


def _answered(found: dict[Server, tuple[Model, ...] | Failure]) -> list[tuple[Server, tuple[Model, ...]]]:
    return [(server, outcome) for server, outcome in found.items() if not isinstance(outcome, Failure)]


def _unreachable(found: dict[Server, tuple[Model, ...] | Failure]) -> dict[str, str]:
    return {server.label: outcome.message for server, outcome in found.items() if isinstance(outcome, Failure)}


def _loaded_names(server: Server) -> frozenset[str]:
    if server.scheme == EMBEDDED:
        return frozenset()
    return frozenset(full_name(model.name) for model in _ask(server, "/api/ps"))


def _row(server: Server, model: Model, loaded: frozenset[str] | Failure) -> dict[str, Any]:  # Any: JSON
    return {
        "url": server.label,
        "model": model.name,
        "digest": model.digest,
        "size": model.size,
        "parameter_size": model.details.parameter_size,
        "quantization": model.details.quantization_level,
        "loaded": not isinstance(loaded, Failure) and full_name(model.name) in loaded,
    }


def list_models(*, servers: Sequence[str | Server] | None = None) -> FleetList[dict[str, Any]]:
    """Return every model of every server, as dictionaries like those of `list_model_servers`; Any: they are JSON.

    Raises AllServersFailedError when no server answered; `.unreachable` is as in `models`.
    """
    found = _fresh_survey(find_servers(servers))
    answered = dict(_answered(found))
    loaded = survey(list(answered), _loaded_names)
    rows = [_row(server, model, loaded[server]) for server, listed in answered.items() for model in listed]
    return FleetList(rows, _unreachable(found))


def list_servers(*, servers: Sequence[str | Server] | None = None) -> FleetList[dict[str, Any]]:
    """Return the servers in use and how they are, as dictionaries; Any because they are JSON.

    Keys: `url` (without secrets), `answers`, `version`, `round_trip` (seconds for `/api/version` over an open
    connection), `models` (how many), `loaded` (names of those in memory). What a server did not say is None; of the
    embedded engine, which is not started for this, version and round trip. `.unreachable` is as in `models`.
    """
    found = survey(find_servers(servers), _health)
    rows = [
        {"url": server.label, "answers": False, "version": None, "round_trip": None, "models": None, "loaded": None}
        if isinstance(health, Failure)
        else {"url": server.label, "answers": True, **health}
        for server, health in found.items()
    ]
    failures = {server.label: health.message for server, health in found.items() if isinstance(health, Failure)}
    return FleetList(rows, failures)


def _health(server: Server) -> dict[str, Any]:  # Any: JSON
    listed = catalogue(server)
    if server.scheme == EMBEDDED:
        return {"version": None, "round_trip": None, "models": len(listed), "loaded": []}
    began = perf_counter()
    version = _version(server)
    round_trip = perf_counter() - began
    in_memory = _outcome(server, lambda server: _ask(server, "/api/ps"))  # not every server knows this path
    loaded = None if isinstance(in_memory, Failure) else [model.name for model in in_memory]
    return {"version": version, "round_trip": round_trip, "models": len(listed), "loaded": loaded}


def _version(server: Server) -> str | None:
    response = call(server, "GET", "/api/version", due=perf_counter() + ASK_SECONDS)
    return version_of(b"".join(response.body)) or None
