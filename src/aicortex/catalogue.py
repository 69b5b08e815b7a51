"""What models there are, who has them and how well they do: the lists that users ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TypeVar

from aicortex._core.failover import AttemptFailed, Failure
from aicortex._core.ollama import version_of
from aicortex._core.routing import FASTEST
from aicortex._core.server import EMBEDDED, Server
from aicortex._sync.pool import call, located
from aicortex.board import BOARD
from aicortex.census import Census, FleetList, Row
from aicortex.errors import EmbeddedEngineError
from aicortex.fleet import ASK_SECONDS, Fleet, Model, ask_models, catalogue, find_fleet, outcome_of, survey
from aicortex.planning import not_found, seat_of
from aicortex.request import Servers, check_routing

T = TypeVar("T")
SCALES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}  # of parameter sizes, as in "3.2B"
KEYS = ("model", "digest", "size", "family", "parameter_size", "quantization", "context_length", "capabilities")


def models(family: str | None = None, *, servers: Servers = None) -> FleetList[str]:
    """Return the names of the models that the servers have now, each once, in the order of the servers.

    `family` keeps those of one family, such as "llama" or "qwen3". All servers are asked at once and have 2 s;
    `.unreachable` of the list maps those that did not answer to the reason. Raises AllServersFailedError when none
    answered.
    """
    census = Census(find_fleet(servers))
    pairs = [(server, model) for server, listed in census.answered.items() for model in listed]
    wanted = family.strip().lower() if family is not None else None
    names = [model.name for server, model in pairs if wanted is None or wanted in census.families(server, model)]
    return FleetList(dict.fromkeys(names), census.unreachable)


def families(*, servers: Servers = None) -> FleetList[str]:
    """Return the families of the models that the servers have now, by alphabet; asks and raises as `models`."""
    census = Census(find_fleet(servers))
    found = {
        name
        for server, listed in census.answered.items()
        for model in listed
        for name in census.families(server, model)
    }
    return FleetList(sorted(found), census.unreachable)


def search_models(
    query: str = "",
    *,
    family: str | None = None,
    min_params: float | str | None = None,
    max_params: float | str | None = None,
    servers: Servers = None,
) -> FleetList[Row]:
    """Return the models that have all words of the query, as dictionaries like those of `get_model_info`.

    The words are looked for in name, families, size, quantization and capabilities. `min_params` and `max_params` bound
    the number of parameters, as a number or as "3B"; a model whose number nobody knows is left out then. Asks and
    raises as `models`; ValueError for what is no number of parameters.
    """
    if not isinstance(query, str):
        raise ValueError(f"query is words to look for, not {type(query).__name__}")
    least, most = _parameters_asked("min_params", min_params), _parameters_asked("max_params", max_params)
    census = Census(find_fleet(servers))
    pairs = [(server, model) for server, listed in census.answered.items() for model in listed]
    found = []
    for info in _grouped(census, pairs):
        words = " ".join(
            [info["model"], *info["families"], info["parameter_size"], info["quantization"], *info["capabilities"]]
        )
        has_words = all(word in words.lower() for word in query.lower().split())
        is_family = family is None or family.strip().lower() in info["families"]
        if has_words and is_family and _is_between(info["parameters"], least, most):
            found.append(info)
    return FleetList(found, census.unreachable)


def get_model_info(model: str, *, servers: Servers = None) -> Row:
    """Return what is known of a model, as a dictionary; Any because it is JSON.

    Keys: `model`, `digest`, `size` (bytes), `family`, `families`, `parameter_size`, `parameters` (a number, None where
    unknown), `quantization`, `context_length` (tokens, None before a refresh has asked), `capabilities`, `servers`
    (the URLs of those that have these weights), `loaded_on` (of those that have them in memory), `other_digests` (other
    weights that go by this name). Raises ModelNotFoundError, with close matches, and AllServersFailedError.
    """
    _check_name(model)
    census = Census(find_fleet(servers))
    having = _found(census, model)
    first, *others = _grouped(census, list(having.items()))
    return {**first, "other_digests": [other["digest"] for other in others]}


def list_model_servers(model: str, *, servers: Servers = None) -> FleetList[Row]:
    """Return the servers that have a model, as dictionaries; Any because they are JSON.

    Keys: `url` (without secrets), `name`, `location`, `organization`, `labels` (as registered), `model`, `digest`,
    `size` (bytes), `family`, `parameter_size`, `quantization`, `context_length` (tokens, or None), `capabilities`,
    `loaded` (whether it is in memory), `status` and `performance`. The status is "ok", "busy" (its queue is full),
    "failing" (its last answers failed), "draining", or "stale": it did not answer now, and what is said of it was found
    by the last refresh. The performance has `tokens_per_second`, `ttft_ms` (to the first token) and `last_tested`
    (ISO 8601), from its streams and from `aicortex.tools.measure`; None where nothing was measured. Raises
    AllServersFailedError when no server answered; a model nobody has gives an empty list. `.unreachable` is as in
    `models`.
    """
    _check_name(model)
    census = Census(find_fleet(servers))
    having = census.having(model)
    if not any(server in census.failures for server in having):
        _ = census.answered  # raises when nobody answered
    return FleetList(census.rows(list(having.items())), census.unreachable)


async def amodels(family: str | None = None, *, servers: Servers = None) -> FleetList[str]:
    """Return what `models` returns, from asyncio: the servers are asked aside of the event loop."""
    return await _aside(lambda: models(family, servers=servers))


async def alist_model_servers(model: str, *, servers: Servers = None) -> FleetList[Row]:
    """Return what `list_model_servers` returns, from asyncio: the servers are asked aside of the event loop."""
    return await _aside(lambda: list_model_servers(model, servers=servers))


async def _aside(work: Callable[[], T]) -> T:
    from aicortex._aio import aside  # asyncio takes 30 ms to import

    return await aside.do(object(), work)


def get_server_info(model: str, server_url: str | None = None, *, servers: Servers = None) -> Row:
    """Return one server that has a model, as `list_model_servers` does: the one named, or else the fastest.

    `server_url` is an address or a name from the registry. Raises ModelNotFoundError when it does not have the model,
    and AllServersFailedError when it does not answer and nothing is known of it.
    """
    if server_url is None:
        return best_server(model, servers=servers)
    _check_name(model)
    census = Census(find_fleet(server_url))
    return census.rows(list(_found(census, model).items()))[0]


def best_server(model: str, strategy: str = "fastest", *, servers: Servers = None) -> Row:
    """Return the server that a request for a model would be sent to first, as `list_model_servers` does.

    `strategy` is one of `chat`'s routing. Raises ModelNotFoundError, AllServersFailedError, and ValueError for an
    unknown strategy.
    """
    _check_name(model)
    check_routing(strategy)
    server, known, census = _best(model, strategy, servers, is_plain=lambda _: True)
    return census.rows([(server, known)])[0]


def get_llm_params(model: str, *, strategy: str = FASTEST, servers: Servers = None) -> dict[str, str]:
    """Return `model` and `base_url` of the best server for another client, such as LangChain's `ChatOllama(**params)`.

    Servers that want a key, a header or a certificate of their own, which are not in it, come last. The embedded engine
    is started for this. Raises as `best_server`, and EmbeddedEngineError.
    """
    _check_name(model)
    check_routing(strategy)
    server, known, _ = _best(model, strategy, servers, is_plain=_is_plain)
    try:
        return {"model": known.name, "base_url": located(server).label}
    except AttemptFailed as error:  # only of the embedded engine
        raise EmbeddedEngineError(error.failure.message) from error


def list_models(*, servers: Servers = None) -> FleetList[Row]:
    """Return every model of every server, as dictionaries like those of `list_model_servers`.

    Raises AllServersFailedError when no server answered; `.unreachable` is as in `models`.
    """
    census = Census(find_fleet(servers))
    pairs = [(server, model) for server, listed in census.answered.items() for model in listed]
    return FleetList(census.rows(pairs), census.unreachable)


def list_servers(*, servers: Servers = None) -> FleetList[Row]:
    """Return the servers in use and how they are, as dictionaries; Any because they are JSON.

    Keys: `url` (without secrets), `name`, `location`, `source` (the file that names it, "registry", or "" for none),
    `draining`, `answers`, `version`, `round_trip` (seconds for `/api/version` over an open connection), `models` (how
    many), `loaded` (names of those in memory). What a server did not say is None; of the embedded engine, which is not
    started for this, version and round trip. `.unreachable` is as in `models`.
    """
    fleet = find_fleet(servers)
    found = survey(fleet.servers, _health)
    silent: Row = {"answers": False, "version": None, "round_trip": None, "models": None, "loaded": None}
    rows = [
        {**_told(fleet, server), **(silent if isinstance(health, Failure) else {"answers": True, **health})}
        for server, health in found.items()
    ]
    failures = {server.label: health.message for server, health in found.items() if isinstance(health, Failure)}
    return FleetList(rows, {**failures, **fleet.refused})


def _told(fleet: Fleet, server: Server) -> Row:
    told = fleet.entries.get(server)
    return {
        "url": server.label,
        "name": told.name if told else "",
        "location": told.location if told else "",
        "source": (told.source or "registry") if told else "",
        "draining": told.is_draining if told else False,
    }


def _is_plain(server: Server) -> bool:
    """Whether a client can use a server that knows its URL and no more."""
    is_trusted = server.verify and not server.ca_file and not server.client_cert
    return not server.headers and is_trusted and not (server.address and server.scheme == "https")


def _best(
    model: str, strategy: str, servers: Servers, *, is_plain: Callable[[Server], bool]
) -> tuple[Server, Model, Census]:
    census = Census(find_fleet(servers))
    having = _found(census, model)
    alive = [server for server in having if server not in census.failures] or list(having)
    alive = list(filter(is_plain, alive)) or alive
    seats = [seat_of(server, having[server].name, census.fleet) for server in alive]
    server = alive[BOARD.rank(seats, strategy)[0].server]
    return server, having[server], census


def _found(census: Census, model: str) -> dict[Server, Model]:
    """Return who has a model; raises ModelNotFoundError, and AllServersFailedError when nobody could say."""
    having = census.having(model)
    if not having:
        raise not_found(model, census.answered)
    return having


def _grouped(census: Census, pairs: Sequence[tuple[Server, Model]]) -> list[Row]:
    """Return one row for each model; a name that stands for different weights has several."""
    grouped: dict[tuple[str, str], Row] = {}
    for (server, model), row in zip(pairs, census.rows(pairs), strict=True):
        info = grouped.get((model.name, model.digest))
        if info is None:
            keys = (
                "model",
                "digest",
                "size",
                "family",
                "parameter_size",
                "quantization",
                "context_length",
                "capabilities",
            )
            info = {key: row[key] for key in keys}
            info["families"] = sorted(census.families(server, model))
            info["parameters"] = _parameters(row["parameter_size"])
            info.update(servers=[], loaded_on=[])
            grouped[model.name, model.digest] = info
        info["servers"].append(server.label)
        if row["loaded"]:
            info["loaded_on"].append(server.label)
    return list(grouped.values())


def _parameters(size: str) -> float | None:
    """Return how many parameters "3.2B" is, None for what is no such size."""
    text = size.strip().upper()
    scale = SCALES.get(text[-1:])
    try:
        number = float(text[:-1] if scale else text)
    except ValueError:
        return None
    return number * (scale or 1.0)


def _parameters_asked(name: str, value: float | str | None) -> float | None:
    if value is None:
        return None
    found = _parameters(value) if isinstance(value, str) else float(value)
    if found is None or not found >= 0:
        raise ValueError(f"{name} is a number of parameters, such as 3e9 or '3B', not {value!r}")
    return found


def _is_between(number: float | None, least: float | None, most: float | None) -> bool:
    if least is None and most is None:
        return True
    return number is not None and (least or 0.0) <= number <= (float("inf") if most is None else most)


def _check_name(model: str) -> None:
    if not isinstance(model, str) or not model.strip():
        raise ValueError("model must be a model's name, such as 'llama3.2:3b'")


def _health(server: Server) -> Row:
    listed = catalogue(server)
    if server.scheme == EMBEDDED:
        return {"version": None, "round_trip": None, "models": len(listed), "loaded": []}
    began = perf_counter()
    version = _version(server)
    round_trip = perf_counter() - began
    in_memory = outcome_of(server, lambda server: ask_models(server, "/api/ps"))  # not every server knows this path
    loaded = None if isinstance(in_memory, Failure) else [model.name for model in in_memory]
    return {"version": version, "round_trip": round_trip, "models": len(listed), "loaded": loaded}


def _version(server: Server) -> str | None:
    response = call(server, "GET", "/api/version", due=perf_counter() + ASK_SECONDS)
    return version_of(server.redact_json(b"".join(response.body))) or None
