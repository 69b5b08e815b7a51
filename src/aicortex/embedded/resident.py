"""The model in memory: loaded when somebody needs it, freed when nobody has for its keep_alive."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Thread

from aicortex.embedded.api import ApiError
from aicortex.embedded.engine import Engine
from aicortex.errors import EmbeddedEngineError

KEEP_ALIVE = 300.0  # seconds, Ollama's default
_LONGEST_WAIT = 86400.0  # seconds; the system refuses to wait for centuries, and a keep_alive may ask for them


class Resident:
    """Owns the engine; `load` makes a new one."""

    def __init__(self, load: Callable[[], Engine]):
        self._load = load
        self._engine: Engine | None = None
        self._users = 0
        self._keep_alive = KEEP_ALIVE
        self._expires = math.inf  # on the monotonic clock; meaningful while loaded and unused
        self._changed = Condition()
        Thread(target=self._expire, name="keep-alive", daemon=True).start()

    @contextmanager
    def engine(self, keep_alive: float | None) -> Iterator[Engine]:
        """Lend the engine for the block, loading it first when need be.

        Afterwards it stays for `keep_alive` seconds; None means the default, infinity for ever, 0 that it is freed when
        its last user leaves. Raise ApiError.
        """
        with self._changed:
            if self._engine is None:
                try:
                    self._engine = self._load()
                except EmbeddedEngineError as exc:
                    raise ApiError(500, str(exc)) from exc
            engine = self._engine
            self._users += 1
        try:
            yield engine
        finally:
            with self._changed:
                self._users -= 1
                self._keep_alive = KEEP_ALIVE if keep_alive is None else keep_alive
                self._expires = time.monotonic() + self._keep_alive
                self._free_expired()
                self._changed.notify_all()

    def unload(self) -> None:
        """Free the engine now, unless it is in use: then the keep_alive of its users counts."""
        with self._changed:
            self._expires = -math.inf
            self._free_expired()

    def expires_in(self) -> float | None:
        """Return the seconds until the engine is freed, counted from now while it is in use; None when not loaded."""
        with self._changed:
            if self._engine is None:
                return None
            return self._keep_alive if self._users else max(0.0, self._expires - time.monotonic())

    def _free_expired(self) -> None:
        if self._engine is not None and not self._users and self._expires <= time.monotonic():
            self._engine.close()
            self._engine = None

    def _expire(self) -> None:
        with self._changed:
            while True:
                self._free_expired()
                # Expired but in use: the last user's leaving notifies.
                idle = self._engine is not None and not self._users and self._expires < math.inf
                left = max(0.0, self._expires - time.monotonic())
                self._changed.wait(min(left, _LONGEST_WAIT) if idle else None)
