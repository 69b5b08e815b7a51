"""`aicortex bench`: how fast the servers are, measured now."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from statistics import median

import msgspec

from aicortex._core.server import Server
from aicortex.cli.known import fleet_of, names_by_url
from aicortex.cli.progress import Display, choose_display
from aicortex.cli.table import milliseconds, print_json, print_table, tell_unreachable
from aicortex.cli.terminal import note
from aicortex.cli.waiting import Waiting
from aicortex.errors import AllServersFailedError
from aicortex.fleet import has_registry, knowledge
from aicortex.planning import first_of, model_of, not_found
from aicortex.registry.entries import Measurement, ModelEntry
from aicortex.registry.store import Registry
from aicortex.settings import models_meant
from aicortex.tools import Fetched, apply, fetch, measure, resolve

ROUND_SECONDS = 60.0  # for each model of the server that has the most: loading a large one takes most of it
TYPICAL_TOKENS = 100  # the best is who gives so many first
Models = Mapping[Server, Sequence[ModelEntry]]


class Score(msgspec.Struct, frozen=True):
    """What one model of one server was measured to do: medians of the rounds that succeeded; None is unknown.

    `load_ms` is the longest, because a model is loaded once. `errors` are the reasons of the rounds that failed.
    """

    url: str
    name: str
    model: str
    first_token_ms: float | None = None
    tokens_per_second: float | None = None
    load_ms: float | None = None
    rounds: int = 0
    errors: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The server's name if it has one, else its URL."""
        return self.name or self.url

    @property
    def seconds(self) -> float:
        """How long `TYPICAL_TOKENS` take, infinite where that is unknown."""
        if self.first_token_ms is None:
            return float("inf")
        pace = self.tokens_per_second
        return self.first_token_ms / 1000 + (TYPICAL_TOKENS / pace if pace else float("1e9"))


def run(options: argparse.Namespace) -> int:
    """Measure, print, and return 0 when anything could be measured, else 1.

    Raises ValueError, ModelNotFoundError, and AllServersFailedError when no server answered.
    """
    if options.plot:
        from aicortex.cli.plot import check_plot

        check_plot(options.plot)
    fleet = fleet_of(options.names)
    with choose_display() as display:
        fetched = fetch(fleet.servers, known=knowledge(), tell=display.tell)
        unreachable = {server.label: found.failure.message for server, found in fetched.items() if found.failure}
        measured = _measure(_models(fetched, options.model), options, display)
    _keep(fetched, measured)
    scores = score(measured, names_by_url())
    if options.json:
        print_json(scores)
    elif scores:
        _show(scores, options.rounds)
    _tell(scores, {**unreachable, **fleet.refused}, measured)
    if options.plot and any(each.rounds for each in scores):
        from aicortex.cli.plot import draw_plot

        with Waiting() as waiting:
            waiting.begin("drawing")
            draw_plot(scores, options.plot)
        note(f"drawn into {options.plot}")
    return 0 if any(each.rounds for each in scores) else 1


def _models(fetched: Mapping[Server, Fetched], model: str | None) -> Models:
    """Return what is to be measured; raises ModelNotFoundError, and AllServersFailedError when nobody answered."""
    models = {server: found.models for server, found in fetched.items() if found.models is not None}
    if not models:
        reasons = (f"{server.label}: {found.failure.message}" for server, found in fetched.items() if found.failure)
        raise AllServersFailedError(f"All servers failed: {'; '.join(reasons)}")
    if model is None:
        return models
    wanted = models_meant(model)
    listed = {server: tuple(map(model_of, entries)) for server, entries in models.items()}
    found = {server: known.name for server, each in listed.items() if (known := first_of(wanted, each))}
    if not found:
        raise not_found(model, listed)
    return {server: [entry for entry in models[server] if entry.name == name] for server, name in found.items()}


def _measure(models: Models, options: argparse.Namespace, display: Display) -> list[Measurement]:
    longest = max(map(len, models.values())) if options.all else 1
    found: list[Measurement] = []
    for number in range(1, options.rounds + 1):
        display.title = f", round {number} of {options.rounds}" if options.rounds > 1 else ""
        found += measure(models, every=options.all, deadline=ROUND_SECONDS * max(longest, 1), tell=display.tell)
    return found


def score(measured: Sequence[Measurement], names: Mapping[str, str]) -> list[Score]:
    """Return what the rounds come to for each model of each server, best first."""
    places = dict.fromkeys((one.url, one.model) for one in measured)
    scores = []
    for url, model in places:
        rounds = [one for one in measured if (one.url, one.model) == (url, model)]
        well = [one for one in rounds if not one.error]
        blank = Score(url, names.get(url, ""), model, errors=tuple(one.error for one in rounds if one.error))
        scores.append(_with_medians(blank, well) if well else blank)
    return sorted(scores, key=lambda each: (each.seconds, each.title, each.model))


def _with_medians(blank: Score, well: Sequence[Measurement]) -> Score:
    paces = [one.tokens_per_second for one in well if one.tokens_per_second]
    return msgspec.structs.replace(
        blank,
        first_token_ms=median(one.first_token_ms for one in well),
        tokens_per_second=median(paces) if paces else None,
        load_ms=max(one.load_ms for one in well),
        rounds=len(well),
    )


def _keep(fetched: Mapping[Server, Fetched], measured: Sequence[Measurement]) -> None:
    """Write everything into the registry, for those who choose a server; where there is none, none is made."""
    if not has_registry():
        return
    with Registry() as registry:
        apply(resolve(fetched, registry.snapshot(), measured), registry)


def _show(scores: Sequence[Score], rounds: int) -> None:
    rows = [
        [
            each.title,
            each.model,
            milliseconds(each.first_token_ms),
            f"{each.tokens_per_second:.1f}" if each.tokens_per_second else "",
            milliseconds(each.load_ms),
            "" if each.rounds == rounds else f"{each.rounds} of {rounds}",
        ]
        for each in scores
    ]
    print_table(["SERVER", "MODEL", "FIRST TOKEN", "TOKENS/S", "LOAD", "MEASURED"], rows, optional=["MEASURED"])


def _tell(scores: Sequence[Score], unreachable: Mapping[str, str], measured: Sequence[Measurement]) -> None:
    """Say what could not be measured."""
    tell_unreachable(unreachable)
    for each in scores:
        if each.errors:
            note(f"{each.title}: {each.model}: {each.errors[-1]}")
    if not measured:
        note("the servers have no model that can chat: 'ollama pull llama3.2' fetches one")
