"""Which servers have a model, and in what order they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from aicortex import settings
from aicortex._core.failover import Failure
from aicortex._core.ollama import full_name
from aicortex._core.server import Server
from aicortex.errands import Errand, Steps, run
from aicortex.errors import ModelNotFoundError
from aicortex.fleet import FRESH_SECONDS, Details, Fleet, Model, catalogue, knowledge, survey

if TYPE_CHECKING:
    from aicortex.board import Seat
    from aicortex.registry.entries import ModelEntry
    from aicortex.watch import Watch

EMBEDDING_FAMILIES = frozenset({"bert", "nomic-bert", "nomic-bert-moe", "gemma-embedding"})  # they cannot chat
_known: dict[Server, tuple[float, tuple[Model, ...] | Failure]] = {}  # when each was asked, and what it said


class Plan(msgspec.Struct, frozen=True):
    """Which model, and which servers in the order in which they are asked; `failures` when none could be asked.

    `reasons` say why a server stands where it stands, `digests` name its weights ("" where it did not say), `names`
    the model there if it is not the same on all. `watch` is told what becomes of the attempts.
    """

    model: str
    servers: list[Server]
    failures: list[Failure] = []
    digests: list[str] = []
    names: list[str] = []
    reasons: list[str] = []
    watch: Watch | None = None


def plan(
    model: str | None, fleet: Fleet, *, routing: str | None = None, opening: tuple[str, bool] = ("", False)
) -> Plan:
    """Choose the model if none is named, and put the servers that have it first, as the routing wants them.

    `opening` stands for the beginning of the conversation, and says whether a server that knows it is better. Raises
    ModelNotFoundError when every server answered and none has the model. Servers that did not answer stand behind
    those that have it, and those that said they have not come last.
    """
    return run(planning(model, fleet, routing=routing, opening=opening))


def planning(
    model: str | None, fleet: Fleet, *, routing: str | None = None, opening: tuple[str, bool] = ("", False)
) -> Steps[Plan]:
    """Decide what `plan` returns."""
    model = model or settings.default_model(fleet.config)
    wanted = settings.models_meant(model, fleet.config) if model else ()
    servers = fleet.servers
    found = yield from _known_or_asked(fleet, wanted)
    lists = {server: models for server, models in found.items() if not isinstance(models, Failure)}
    failures = [outcome for outcome in found.values() if isinstance(outcome, Failure)]
    if model is None:
        model = next((m.name for models in lists.values() for m in models if _can_chat(m)), None)
        wanted = () if model is None else (model,)
    if model is None and not lists:
        return Plan("", list(servers), failures)
    having = {
        server: _as_asked(wanted, known) for server, models in lists.items() if (known := first_of(wanted, models))
    }
    if model is None or (not having and not failures):
        raise not_found(model, lists)
    silent = {server: Model(wanted[0]) for server in servers if server not in lists}
    lacking = {server: Model(wanted[0]) for server in lists if having and server not in having}
    return _routed(model, fleet, having, silent, lacking, routing, opening)


def _routed(
    model: str,
    fleet: Fleet,
    having: dict[Server, Model],
    silent: dict[Server, Model],
    lacking: dict[Server, Model],
    routing: str | None,
    opening: tuple[str, bool],
) -> Plan:
    """Put the servers in order: those that have the model, those that did not say, those that have it not."""
    everyone = {**having, **silent, **lacking}
    order, digests = list(everyone), [known.digest for known in everyone.values()]
    if len(order) == 1 and not fleet.has_registry:
        names = [] if everyone[order[0]].name == model else [everyone[order[0]].name]
        return Plan(model, order, digests=digests, names=names, reasons=["the only server"])
    from aicortex.board import BOARD
    from aicortex.watch import Watch

    strategy = routing or settings.default_routing(fleet.config) or ("order" if fleet.is_ordered else "balanced")
    first = having or silent
    seats = [seat_of(server, known.name, fleet) for server, known in first.items()]
    conversation = hash((model, opening[0])) if opening[0] else None
    choices, claim = BOARD.choose(seats, strategy, conversation=conversation if opening[1] else None)
    chosen = list(first)
    reasons = {chosen[choice.server]: choice.why for choice in choices}
    if having:
        reasons.update(dict.fromkeys(silent, "did not say which models it has"))
    reasons.update(dict.fromkeys(lacking, "says that it does not have the model"))
    there = {server.label: everyone[server].name for server in reasons}  # for health, which goes by label
    resting = frozenset(seats[choice.server].label for choice in choices if choice.is_resting)
    look = seats[choices[0].server].label if choices[0].is_look else ""
    names = [everyone[server].name for server in reasons]
    return Plan(
        model,
        list(reasons),
        digests=[everyone[server].digest for server in reasons],
        names=names if set(names) != {model} else [],
        reasons=list(reasons.values()),
        watch=Watch(BOARD, there, conversation, claim, look=look, resting=resting),
    )


def seat_of(server: Server, model: str, fleet: Fleet) -> Seat:
    """Return a server as the board knows it, with the model's name there."""
    from aicortex.board import Seat, nearness

    entry = fleet.entries.get(server)
    near = nearness(entry.location, settings.location(fleet.config)) if entry else 0
    return Seat(server.label, model, entry, near)


def first_of(wanted: Sequence[str], models: Sequence[Model]) -> Model | None:
    """Return the first of several names that is among these models, if any is."""
    by_name = {full_name(known.name): known for known in reversed(models)}
    return next((by_name[full_name(name)] for name in wanted if full_name(name) in by_name), None)


def _as_asked(wanted: Sequence[str], known: Model) -> Model:
    """Return a model under the name by which it was asked for, of several."""
    name = next(name for name in wanted if full_name(name) == full_name(known.name))
    return msgspec.structs.replace(known, name=name)


def _noted(server: Server) -> tuple[Model, ...]:
    """Ask a server and remember what it says, even if nobody waits for it any more."""
    models = catalogue(server)
    _known[server] = (perf_counter(), models)
    return models


def forget(label: str) -> None:
    """Forget what a server said it has: it did not have it."""
    for server in list(_known):  # other threads add to it
        if server.label == label:
            _known.pop(server, None)


def _known_or_asked(fleet: Fleet, wanted: Sequence[str]) -> Steps[dict[Server, tuple[Model, ...] | Failure]]:
    """Return what each server has or why it did not say, asking those of which nothing is known.

    What a refresh wrote into the registry is believed until somebody says otherwise. When nobody is known to have the
    model, all are asked again: it may have been pulled since.
    """
    now = perf_counter()
    servers = fleet.servers
    known = _recorded(servers) if fleet.has_registry else {}
    fresh = {server: said for server in servers if (said := _known.get(server)) and now - said[0] < FRESH_SECONDS}
    known.update({server: said[1] for server, said in fresh.items()})
    has_it = any(not isinstance(said, Failure) and _has(said, wanted) for said in known.values())
    unknown = [server for server in servers if not has_it or server not in known]
    if unknown:
        asked: dict[Server, tuple[Model, ...] | Failure] = yield Errand(
            ("models", has_it, *wanted, *unknown),
            lambda: survey(unknown, _noted, enough=lambda models: _has(models, wanted), hurried=has_it),
        )
        known.update(asked)
        _known.update({server: (now, outcome) for server, outcome in asked.items()})
    return {server: known[server] for server in servers}


_listed: tuple[object, dict[str, tuple[Model, ...]]] = ({}, {})  # what a snapshot lists, and the same as models


def _recorded(servers: Sequence[Server]) -> dict[Server, tuple[Model, ...] | Failure]:
    """Return what the registry knows of the servers' models; made once for each state of the registry."""
    global _listed
    models = knowledge(is_needed=False).models
    if _listed[0] is not models:
        _listed = (models, {url: tuple(map(model_of, entries)) for url, entries in models.items()})
    return {server: _listed[1][server.label] for server in servers if server.label in models}


def model_of(entry: ModelEntry) -> Model:
    """Return a model of the registry as a server lists it."""
    return Model(entry.name, entry.digest, entry.size, Details(entry.family, entry.parameter_size, entry.quantization))


def _has(models: Sequence[Model], wanted: Sequence[str]) -> bool:
    """Whether one of these names is among the models; any that can chat will do when there is no name."""
    return first_of(wanted, models) is not None if wanted else any(map(_can_chat, models))


def _can_chat(model: Model) -> bool:
    return model.details.family not in EMBEDDING_FAMILIES


def not_found(model: str | None, lists: dict[Server, tuple[Model, ...]]) -> ModelNotFoundError:
    """Return the error that says who was asked for a model, and what they have."""
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
