"""What the servers of a fleet said a moment ago, together with what is known of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from time import time
from typing import Any, TypeVar

from aicortex import settings
from aicortex._core.failover import Failure
from aicortex._core.health import BUSY, CLOSED, Health
from aicortex._core.ollama import full_name
from aicortex._core.server import EMBEDDED, Server
from aicortex.board import BOARD
from aicortex.errors import AllServersFailedError
from aicortex.fleet import Fleet, Model, ask_models, catalogue, survey
from aicortex.planning import first_of, model_of
from aicortex.registry.entries import ModelEntry, Snapshot

T = TypeVar("T")
Row = dict[str, Any]  # Any: JSON


class FleetList(list[T]):
    """A list that also says who did not answer: `unreachable` maps a server to its reason."""

    def __init__(self, items: Iterable[T] = (), unreachable: dict[str, str] | None = None) -> None:
        super().__init__(items)
        self.unreachable = unreachable or {}


class Census:
    """What the servers of a fleet said a moment ago, and what is known of those that did not.

    `lists` has the models of each server, `failures` why it did not say, in which case the models are those that the
    registry remembers. Raises AllServersFailedError when nobody answered and nothing is remembered.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.snapshot: Snapshot = BOARD.knowledge(is_needed=False)
        self.healths = BOARD.healths()
        self.lists: dict[Server, tuple[Model, ...]] = {}
        self.failures: dict[Server, Failure] = {}
        for server, said in survey(fleet.servers, catalogue).items():
            if isinstance(said, Failure):
                self.failures[server] = said
                self.lists[server] = tuple(map(model_of, self.snapshot.models.get(server.label, ())))
            else:
                self.lists[server] = said

    @property
    def unreachable(self) -> dict[str, str]:
        """Who did not answer, and why."""
        reasons = {server.label: failure.message for server, failure in self.failures.items()}
        return {**reasons, **self.fleet.refused}

    @property
    def answered(self) -> dict[Server, tuple[Model, ...]]:
        """The models of the servers that answered; raises AllServersFailedError when there is none."""
        found = {server: models for server, models in self.lists.items() if server not in self.failures}
        if not found:
            each = "; ".join(f"{label}: {reason}" for label, reason in self.unreachable.items())
            raise AllServersFailedError(f"All servers failed: {each}")
        return found

    def having(self, model: str) -> dict[Server, Model]:
        """Return who has a model, or what its name stands for; those that did not answer come last."""
        wanted = settings.models_meant(model, self.fleet.config)
        order = sorted(self.lists, key=lambda server: server in self.failures)
        return {server: known for server in order if (known := first_of(wanted, self.lists[server])) is not None}

    def rows(self, having: Sequence[tuple[Server, Model]]) -> list[Row]:
        """Return one row for each model of a server."""
        asked = list(dict.fromkeys(server for server, _ in having if server not in self.failures))
        loaded = survey(asked, _loaded_names) if asked else {}
        return [self._row(server, model, loaded.get(server)) for server, model in having]

    def entry(self, server: Server, model: Model) -> ModelEntry:
        """Return what the registry knows of a model, by its digest if not by its server."""
        known = self.snapshot.models.get(server.label, ())
        entry = next((each for each in known if each.name == full_name(model.name)), None)
        if entry is None and model.digest:
            everywhere = (each for entries in self.snapshot.models.values() for each in entries)
            entry = next((each for each in everywhere if each.digest == model.digest), None)
        return entry or ModelEntry(model.name, family=model.details.family)

    def families(self, server: Server, model: Model) -> set[str]:
        """Return the families that a model belongs to, in small letters."""
        known = self.entry(server, model)
        return {name.lower() for name in (model.details.family, known.family, *known.families) if name}

    def _row(self, server: Server, model: Model, loaded: frozenset[str] | Failure | None) -> Row:
        told, known = self.fleet.entries.get(server), self.entry(server, model)
        names = loaded if isinstance(loaded, frozenset) else frozenset()
        return {
            "url": server.label,
            "name": told.name if told else "",
            "location": told.location if told else "",
            "organization": told.organization if told else "",
            "labels": dict(told.labels) if told else {},
            "model": model.name,
            "digest": model.digest,
            "size": model.size,
            "family": model.details.family,
            "parameter_size": model.details.parameter_size,
            "quantization": model.details.quantization_level,
            "context_length": known.context_length or None,
            "capabilities": list(known.capabilities),
            "loaded": full_name(model.name) in names,
            "status": self._status(server, model),
            "performance": self._performance(server, model),
        }

    def _status(self, server: Server, model: Model) -> str:
        if server in self.failures:
            return "stale"
        told = self.fleet.entries.get(server)
        if told is not None and told.is_draining:
            return "draining"
        healths = [self.healths.get((server.label, name), Health()) for name in ("", full_name(model.name))]
        states = {health.state(time()) for health in healths}
        if states == {CLOSED}:
            return "ok"
        return "busy" if BUSY in states else "failing"

    def _performance(self, server: Server, model: Model) -> Row:
        health = self.healths.get((server.label, full_name(model.name)), Health())
        tested = self.snapshot.measurements.get((server.label, full_name(model.name)))
        first, pace, at = health.first_token * 1000, health.pace, health.answered
        if tested is not None and not tested.error and tested.at > at:
            first, pace, at = tested.first_token_ms, tested.tokens_per_second, tested.at
        return {
            "tokens_per_second": round(pace, 1) if pace else None,
            "ttft_ms": round(first, 1) if first else None,
            "last_tested": datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="seconds") if at else None,
        }


def _loaded_names(server: Server) -> frozenset[str]:
    if server.scheme == EMBEDDED:
        return frozenset()
    return frozenset(full_name(model.name) for model in ask_models(server, "/api/ps"))
