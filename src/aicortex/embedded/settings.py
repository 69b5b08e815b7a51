"""What the parent tells the engine's process, as one JSON argument."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Settings:
    """One engine: its file, the name it serves it under, where it listens and how long it stays.

    `digest` is the file's SHA-256 where it is known, `port` 0 means any free one, `idle_seconds` None means
    that it never leaves by itself, `parent` is the process whose end is its own.
    """

    path: str
    name: str
    digest: str
    host: str
    port: int
    threads: int
    idle_seconds: float | None
    parent: int

    def to_json(self) -> str:
        """Return the form `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))
