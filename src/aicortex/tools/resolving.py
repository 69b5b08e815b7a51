"""The third step: what it means, next to what was known. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from aicortex._core.server import Server
from aicortex.registry.entries import Condition, Measurement, ModelEntry, Observation, Snapshot
from aicortex.tools.fetching import Fetched, filled

NEW, GONE, BACK, LOST, MOVED, CHANGED = "new", "gone", "back", "lost", "moved", "changed"
SLOWER, FASTER = "slower", "faster"
# By how much a measurement must differ from the last one to be told. Of 160 measurements of the embedded engine, on two
# cores that were idle or taken twice over, one and the next differed in tokens/s by a factor of up to 1.65, in the
# first token of up to 1.53, and of up to 2.14 where the engine had just been started.
PACE_FACTOR = 2.0
FIRST_TOKEN_FACTOR = 3.0
FELT_MS = 100.0  # a first token by less than this is nothing that anybody feels

_WORDS = {  # for a change of a server, and of a model on it
    (NEW, False): "answers for the first time",
    (BACK, False): "answers again",
    (LOST, False): "does not answer any more: {0.after}",
    (NEW, True): "{0.model} is new",
    (GONE, True): "{0.model} is gone",
    (MOVED, True): "{0.model} is here now, no more on {0.before}",
    (CHANGED, True): "{0.model} has other weights: {0.after:.12}, until now {0.before:.12}",
    (SLOWER, True): "{0.model} is slower: {1}",
    (FASTER, True): "{0.model} is faster: {1}",
}
_MEASURED = {
    "tokens_per_second": "{0.after:.3g} tokens/s, last time {0.before:.3g}",
    "first_token_ms": "first token after {0.after:.0f} ms, last time {0.before:.0f} ms",
}


class Change(msgspec.Struct, frozen=True):
    """One thing that is not as it was known; `str()` says it in plain words.

    `kind` is "new" (a server that never answered before, or a model that it did not have), "gone" (a model), "back" or
    "lost" (a server that answers again, or no more), "moved" (a model that is new here and gone elsewhere, with the
    same digest), "changed" (other weights under the same name), "slower" or "faster" (a model: twice as many tokens/s
    or more, or a first token after three times as long or more).

    `server` is its URL without secrets, `model` a full name, "" where the server itself is meant. `before` and `after`
    are the two digests of "changed", the two servers of "moved", the two numbers of "slower" and "faster", whose `unit`
    is "tokens_per_second" or "first_token_ms"; of "back" and "lost" the reason for which it did not answer.
    """

    kind: str
    server: str
    model: str = ""
    before: str | float = ""
    after: str | float = ""
    unit: str = ""

    def __str__(self) -> str:
        words = _WORDS[self.kind, bool(self.model)]
        return f"{self.server}: {words.format(self, _MEASURED.get(self.unit, '').format(self))}"


class Resolution(msgspec.Struct, frozen=True):
    """What to write into the registry, one observation a server, and what is different from what stands there."""

    observations: tuple[Observation, ...]
    changes: tuple[Change, ...]


def resolve(
    fetched: Mapping[Server, Fetched], snapshot: Snapshot, measurements: Iterable[Measurement] = ()
) -> Resolution:
    """Merge what was fetched, and measured, with what the registry knew.

    The same digest is the same model: what one server says of it holds for all. A server that failed keeps its models
    and the time at which it last answered, and its condition has the reason. Where a server did not say what it has in
    memory, what was known of that stays.
    """
    twins = _twins([*_listed(fetched), *(model for models in snapshot.models.values() for model in models)])
    measured: dict[str, list[Measurement]] = {server.label: [] for server in fetched}
    for measurement in measurements:
        measured[measurement.url].append(measurement)
    observations = [
        Observation(
            _condition(server.label, found, snapshot.conditions.get(server.label)),
            _merged(found, snapshot.models.get(server.label, ()), twins),
            tuple(measured[server.label]),
        )
        for server, found in fetched.items()
    ]
    changes = (
        *_server_changes(observations, snapshot),
        *_model_changes(observations, snapshot),
        *_speed_changes(observations, snapshot),
    )
    return Resolution(tuple(observations), changes)


def _listed(fetched: Mapping[Server, Fetched]) -> Iterator[ModelEntry]:
    for found in fetched.values():
        yield from found.models or ()


def _twins(models: Iterable[ModelEntry]) -> dict[str, ModelEntry]:
    """Return for each digest all that any of its models says."""
    twins: dict[str, ModelEntry] = {}
    for model in models:
        if model.digest:
            twins[model.digest] = filled(twins.get(model.digest, model), model)
    return twins


def _condition(url: str, found: Fetched, before: Condition | None) -> Condition:
    """Return how a server is: as it was, but for the error, if it failed."""
    checked = found.checked
    if found.failure is None:
        return Condition(url, checked.at, checked.at, checked.version, checked.round_trip_ms)
    before = before or Condition(url, checked.at)
    return msgspec.structs.replace(before, checked_at=checked.at, error=found.failure.message)


def _merged(
    found: Fetched, before: Sequence[ModelEntry], twins: Mapping[str, ModelEntry]
) -> tuple[ModelEntry, ...] | None:
    if found.models is None:
        return None
    known = {model.name: model for model in before}
    return tuple(_complete(model, known.get(model.name), twins, found.knows_loaded) for model in found.models)


def _complete(
    model: ModelEntry, known: ModelEntry | None, twins: Mapping[str, ModelEntry], knows_loaded: bool
) -> ModelEntry:
    if model.digest:
        model = filled(model, twins[model.digest])
    elif known is not None and not known.digest:  # by its name alone, for want of better
        model = filled(model, known)
    if knows_loaded or known is None:
        return model
    return msgspec.structs.replace(model, loaded_until=known.loaded_until)


def _server_changes(observations: Iterable[Observation], snapshot: Snapshot) -> Iterator[Change]:
    for observation in observations:
        now = observation.condition
        before = snapshot.conditions.get(now.url, Condition(now.url, 0.0, error="was never asked"))
        if now.is_stale and not before.is_stale:
            yield Change(LOST, now.url, after=now.error)
        elif before.is_stale and not now.is_stale:
            yield Change(BACK, now.url, before=before.error) if before.seen_at else Change(NEW, now.url)


def _model_changes(observations: Iterable[Observation], snapshot: Snapshot) -> Iterator[Change]:
    """Yield what is new, gone, moved or changed at the servers that said what they have."""
    new: list[tuple[str, ModelEntry]] = []
    gone: list[tuple[str, ModelEntry]] = []
    for observation in observations:
        url = observation.condition.url
        before = {model.name: model for model in snapshot.models.get(url, ())}
        now = {model.name: model for model in observation.models or ()}
        if observation.models is None:
            continue
        new += [(url, model) for name, model in now.items() if name not in before]
        gone += [(url, model) for name, model in before.items() if name not in now]
        for name, model in now.items():
            digests = before.get(name, model).digest, model.digest
            if all(digests) and digests[0] != digests[1]:
                yield Change(CHANGED, url, name, *digests)
    for url, model in new:
        origin = _origin(url, model, gone)
        if origin is None:
            yield Change(NEW, url, model.name)
        else:
            gone.remove(origin)
            yield Change(MOVED, url, model.name, origin[0], url)
    for url, model in gone:
        yield Change(GONE, url, model.name)


def _origin(url: str, model: ModelEntry, gone: Sequence[tuple[str, ModelEntry]]) -> tuple[str, ModelEntry] | None:
    """Return from where a new model came, preferring the one that had its name there too."""
    found = [(place, old) for place, old in gone if place != url and old.digest == model.digest != ""]
    found.sort(key=lambda pair: pair[1].name != model.name)
    return found[0] if found else None


def _speed_changes(observations: Iterable[Observation], snapshot: Snapshot) -> Iterator[Change]:
    for observation in observations:
        for now in observation.measurements:
            before = snapshot.measurements.get((now.url, now.model))
            if before is not None:  # one that failed has no numbers to compare
                yield from _compared(before, now)


def _compared(before: Measurement, now: Measurement) -> Iterator[Change]:
    place = (now.url, now.model)
    paces = before.tokens_per_second, now.tokens_per_second
    if all(paces) and max(paces) >= PACE_FACTOR * min(paces):
        yield Change(FASTER if paces[1] > paces[0] else SLOWER, *place, *paces, "tokens_per_second")
    waits = before.first_token_ms, now.first_token_ms
    if all(waits) and max(waits) >= FIRST_TOKEN_FACTOR * min(waits) and max(waits) - min(waits) >= FELT_MS:
        yield Change(SLOWER if waits[1] > waits[0] else FASTER, *place, *waits, "first_token_ms")
