"""The second step: what the servers have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from threading import Condition
from time import perf_counter, time
from typing import Any

import msgspec

from aicortex._core.failover import AttemptFailed, Failure
from aicortex._core.ollama import full_name
from aicortex._core.routing import LOADED_SECONDS
from aicortex._core.server import EMBEDDED, Server
from aicortex.fleet import catalogue, find_servers
from aicortex.registry.entries import ModelEntry, Snapshot
from aicortex.tools.asking import Tally, Tell, ask_all, ask_json, check_deadline, late
from aicortex.tools.checking import Checked, check_one

LOADED_WAIT = 1.0  # seconds for `/api/ps`, which waits while a model is loaded (protocol: "Errors before the stream")
SHOW_WAIT = 2.0  # seconds for one `/api/show`: other servers may be waiting for what it says
NOTHING = Snapshot()


class Fetched(msgspec.Struct, frozen=True):
    """What one server has, or why it did not say.

    `checked` is what `check` found. `models` is None when the server did not say, and then `failure` says why, with its
    `kind` and `message`. `knows_loaded` is False where it did not say what it has in memory: `loaded_until` of the
    models is 0 then and means nothing.
    """

    checked: Checked
    models: tuple[ModelEntry, ...] | None = None
    knows_loaded: bool = False
    failure: Failure | None = None


class Kind(msgspec.Struct, frozen=True):
    """The part of a listed model that says what kind it is."""

    family: str | None = None
    families: tuple[str, ...] | None = None
    parameter_size: str | None = None
    quantization_level: str | None = None


class Listed(msgspec.Struct, frozen=True):
    """One model of `GET /api/tags` or, with `expires_at`, of `GET /api/ps`."""

    name: str
    digest: str | None = None
    size: int | None = None
    details: Kind | None = None
    expires_at: datetime | None = None


class Listing(msgspec.Struct, frozen=True):
    """The reply of `GET /api/tags` and of `GET /api/ps`."""

    models: tuple[Listed, ...] | None = None


class Shown(msgspec.Struct, frozen=True):
    """The reply of `POST /api/show`; servers before Ollama 0.6.4 say no capabilities."""

    capabilities: tuple[str, ...] | None = None
    model_info: dict[str, Any] | None = None  # Any: JSON of many kinds, of which one number is wanted

    @property
    def context_length(self) -> int:
        """The longest context in tokens, 0 where it is not said."""
        info = self.model_info or {}
        length = info.get(f"{info.get('general.architecture')}.context_length")
        return length if isinstance(length, int) else 0


def fetch(
    servers: Mapping[Server, Checked] | Sequence[str | Server] | str | Server,
    *,
    known: Snapshot = NOTHING,
    deadline: float = 5.0,
    tell: Tell | None = None,
) -> dict[Server, Fetched]:
    """Ask all servers at once what they have, and return what each said, in their order.

    `servers` are checked first, each just before it is asked for more; given as `check` returned them, they are not
    checked again. What they have is asked of `/api/tags`, what is in memory of `/api/ps`. Capabilities and context
    length belong to a digest, whatever its name and server: `/api/show` is asked once for each digest of which `known`
    has no capabilities. It takes `deadline` seconds at most; what is not known of a model by then is left out, to be
    asked the next time. `tell` is called with `Progress` values, in this thread. Raises ValueError for what is no
    address or no deadline.
    """
    check_deadline(deadline)
    checked = dict(servers) if isinstance(servers, Mapping) else {}
    asked = list(checked) or find_servers([*servers] if isinstance(servers, Mapping) else servers)
    checks = Tally("check", len(asked) - len(checked), tell)
    fetches = Tally("fetch", len(asked), tell)
    digests = Digests(model for models in known.models.values() for model in models)
    found: dict[Server, Fetched] = {}

    def ask(server: Server, due: float) -> Iterator[Checked | Fetched]:
        seen = checked.get(server)
        if seen is None:
            seen = check_one(server, due)
            yield seen
        yield fetch_one(server, seen, digests, due)

    for server, said in ask_all(asked, ask, seconds=deadline):
        if isinstance(said, Checked):
            checked[server] = said
            checks.count(server, failed=said.failure is not None)
        else:
            found[server] = said
            fetches.count(server, failed=said.failure is not None)
    for server in asked:
        if server not in checked:
            checked[server] = Checked(time(), failure=late(deadline))
            checks.count(server, failed=True)
        if server not in found:
            found[server] = Fetched(checked[server], failure=checked[server].failure or late(deadline))
            fetches.count(server, failed=True)
    return {server: found[server] for server in asked}


def fetch_one(server: Server, checked: Checked, digests: Digests, due: float) -> Fetched:
    """Return what one server has, by the time `due` of `perf_counter`."""
    if checked.failure is not None:
        return Fetched(checked, failure=checked.failure)
    try:
        if server.scheme == EMBEDDED:
            return Fetched(checked, tuple(ModelEntry(full_name(model.name)) for model in catalogue(server)))
        listed = ask_json(server, "/api/tags", Listing, due=due).models or ()
    except AttemptFailed as error:
        return Fetched(checked, failure=error.failure)
    loaded = _loaded(server, due)
    entries = {full_name(model.name): _entry(model, loaded or {}) for model in listed}
    return Fetched(checked, _completed(server, entries.values(), digests, due), loaded is not None)


def _loaded(server: Server, due: float) -> dict[str, float] | None:
    """Return until when which models are in memory, or None if the server does not say so soon or at all."""
    now = time()
    try:
        listing = ask_json(server, "/api/ps", Listing, due=min(due, perf_counter() + LOADED_WAIT))
    except AttemptFailed:
        return None
    return {
        full_name(model.name): model.expires_at.timestamp() if model.expires_at else now + LOADED_SECONDS
        for model in listing.models or ()
    }


def _entry(model: Listed, loaded: Mapping[str, float]) -> ModelEntry:
    kind = model.details or Kind()
    name = full_name(model.name)
    return ModelEntry(
        name,
        model.digest or "",
        model.size or 0,
        kind.family or "",
        kind.families or (),
        kind.parameter_size or "",
        kind.quantization_level or "",
        loaded_until=loaded.get(name, 0.0),
    )


def _completed(server: Server, entries: Iterable[ModelEntry], digests: Digests, due: float) -> tuple[ModelEntry, ...]:
    """Return the models with what `/api/show` says of them, as far as there is time."""
    is_silent = False

    def show(entry: ModelEntry) -> ModelEntry | None:
        nonlocal is_silent
        left = due - perf_counter()
        if is_silent or left <= 0:
            return None
        body = msgspec.json.encode({"model": entry.name})
        try:
            shown = ask_json(server, "/api/show", Shown, body=body, due=perf_counter() + min(left, SHOW_WAIT))
        except AttemptFailed as error:
            is_silent = error.failure.status is None  # it would keep the others waiting for each of its models
            return None
        return msgspec.structs.replace(
            entry, capabilities=shown.capabilities or (), context_length=shown.context_length
        )

    # First what nobody else is asked for: then a server that hangs makes the others wait for one digest, not for all.
    at_once = [(entry, digests.complete(entry, show, wait=0.0)) for entry in entries]
    return tuple(
        done or digests.complete(entry, show, wait=max(due - perf_counter(), 0.0)) or entry for entry, done in at_once
    )


class Digests:
    """What is known of each digest, for all threads of one fetch: one server at a time is asked for it.

    The others wait for what that one says; if it says nothing, the next of them asks its own server.
    """

    def __init__(self, known: Iterable[ModelEntry]) -> None:
        self._known = {model.digest: model for model in known if model.digest and model.capabilities}
        self._asked: set[str] = set()
        self._changed = Condition()

    def complete(
        self, entry: ModelEntry, show: Callable[[ModelEntry], ModelEntry | None], *, wait: float
    ) -> ModelEntry | None:
        """Return the model with its details, asked for with `show` if nobody has, and without those that it cannot say.

        None means that after `wait` seconds another server is still being asked.
        """
        digest = entry.digest
        if not digest:
            return show(entry) or entry
        with self._changed:
            if not self._changed.wait_for(lambda: digest not in self._asked, wait):
                return None
            known = self._known.get(digest)
            if known is not None:
                return filled(entry, known)
            self._asked.add(digest)
        try:
            known = show(entry)
        finally:
            with self._changed:
                self._asked.discard(digest)
                if known is not None:
                    self._known[digest] = known
                self._changed.notify_all()
        return known or entry


def filled(entry: ModelEntry, other: ModelEntry) -> ModelEntry:
    """Return a model with what was not said of it taken from another one that is the same."""
    return msgspec.structs.replace(
        entry,
        size=entry.size or other.size,
        family=entry.family or other.family,
        families=entry.families or other.families,
        parameter_size=entry.parameter_size or other.parameter_size,
        quantization=entry.quantization or other.quantization,
        context_length=entry.context_length or other.context_length,
        capabilities=entry.capabilities or other.capabilities,
    )
