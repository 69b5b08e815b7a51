"""The last step: write it down, and say what came of it."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import msgspec

from aicortex.registry.entries import Measurement
from aicortex.registry.store import Registry
from aicortex.tools.resolving import Change, Resolution


class Report(msgspec.Struct, frozen=True):
    """What a refresh came to.

    `changes` is what is not as the registry knew it. `servers` were asked and `answered` did; together those have
    `models` different names. `unreachable` maps the URLs of the others, without secrets, to their reasons.
    `measurements` are there if they were wanted. It took `seconds`.
    """

    changes: tuple[Change, ...] = ()
    servers: int = 0
    answered: int = 0
    models: int = 0
    seconds: float = 0.0
    unreachable: dict[str, str] = {}
    measurements: tuple[Measurement, ...] = ()

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """Return the report as JSON's types."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def apply(resolution: Resolution, registry: Registry) -> Report:
    """Write everything into the registry in one transaction, and return what came of it.

    Whoever reads meanwhile sees all of it or nothing; so does everybody when this process is killed. Raises
    RegistryError.
    """
    began = perf_counter()
    registry.apply(resolution.observations)
    conditions = [observation.condition for observation in resolution.observations]
    stale = [condition for condition in conditions if condition.is_stale]
    return Report(
        changes=resolution.changes,
        servers=len(conditions),
        answered=len(conditions) - len(stale),
        models=len({model.name for observation in resolution.observations for model in observation.models or ()}),
        seconds=perf_counter() - began,
        unreachable={condition.url: condition.error for condition in stale},
        measurements=tuple(one for observation in resolution.observations for one in observation.measurements),
    )
