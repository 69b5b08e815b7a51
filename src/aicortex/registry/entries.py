"""What the registry holds: values, as they stand in its file and in `aicortex.toml`."""

from __future__ import annotations

import msgspec


class ServerEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One server that the user named, without any secret.

    `url` is its label: scheme, host, port and path. `api_key` and the values of `headers` are references to secrets,
    `env:VARIABLE` or `keyring:SERVICE/USER`, never the secrets. `weight` is its share of the work next to others
    (more than 0), `priority` orders them for `routing="priority"`: lower goes first. `slots` is how many answers it
    makes at once (`OLLAMA_NUM_PARALLEL`). `expand` says that the name stands for one server per address it resolves
    to. `is_draining` keeps new requests away. `source` is the file it comes from, "" for the registry itself; it is
    not stored.
    """

    url: str
    name: str = ""
    location: str = ""
    organization: str = ""
    labels: dict[str, str] = {}
    weight: float = 1.0
    priority: int = 0
    slots: int = 1
    api_key: str = ""
    headers: dict[str, str] = {}
    verify: bool = True
    ca_file: str | None = None
    client_cert: str | None = None
    expand: bool = False
    is_draining: bool = msgspec.field(default=False, name="draining")
    source: str = ""

    @property
    def title(self) -> str:
        """The name if it has one, else the URL."""
        return self.name or self.url


class ModelEntry(msgspec.Struct, frozen=True):
    """One model of one server, as `/api/tags` and `/api/show` describe it.

    `name` is full (`llama3.2:latest`), `size` bytes on disk, `context_length` tokens (0 where unknown),
    `capabilities` such as "completion", "tools", "vision", "thinking" (empty where unknown). `loaded_until` is the
    Unix time until which `/api/ps` promised it in memory, 0 when it was not there.
    """

    name: str
    digest: str = ""
    size: int = 0
    family: str = ""
    families: tuple[str, ...] = ()
    parameter_size: str = ""
    quantization: str = ""
    context_length: int = 0
    capabilities: tuple[str, ...] = ()
    loaded_until: float = 0.0


class Condition(msgspec.Struct, frozen=True):
    """How a server was found at the last refresh.

    `checked_at` is the Unix time of that, `seen_at` of the last time that it answered (0: never); `round_trip_ms` is
    what `/api/version` took then. `error` says why it did not answer, "" when it did: what is known of a server with
    an error is from `seen_at`, and stale.
    """

    url: str
    checked_at: float
    seen_at: float = 0.0
    version: str = ""
    round_trip_ms: float = 0.0
    error: str = ""

    @property
    def is_stale(self) -> bool:
        """Whether the server did not answer when it was last asked."""
        return bool(self.error)


class Measurement(msgspec.Struct, frozen=True):
    """One short generation: what a model of a server was measured to do at this Unix time; `error` says why it failed.

    `first_token_ms` is the time to the first token without loading the model, `load_ms` what loading took.
    """

    url: str
    model: str
    at: float
    first_token_ms: float = 0.0
    tokens_per_second: float = 0.0
    load_ms: float = 0.0
    error: str = ""


class Snapshot(msgspec.Struct, frozen=True):
    """Everything the registry knows, as of one moment.

    `servers` are in the order in which they were added. `conditions` and `models` are by URL, `measurements` (the
    newest of each) by URL and model. URLs may be of servers that are named elsewhere, such as in `aicortex.toml`, or of
    one address of a name that stands for many.
    """

    servers: tuple[ServerEntry, ...] = ()
    conditions: dict[str, Condition] = {}
    models: dict[str, tuple[ModelEntry, ...]] = {}
    measurements: dict[tuple[str, str], Measurement] = {}


class Observation(msgspec.Struct, frozen=True):
    """What a refresh found out about one server; `models` is None when it did not say, and those known stay."""

    condition: Condition
    models: tuple[ModelEntry, ...] | None = None
    measurements: tuple[Measurement, ...] = ()
