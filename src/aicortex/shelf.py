"""Where conversations are kept: in memory, by name in the registry's file, and in files that a user keeps himself."""

from __future__ import annotations

import os
from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Protocol

import msgspec

from aicortex.registry import sessions
from aicortex.registry.paths import data_path
from aicortex.registry.sessions import Kept, Turn

if TYPE_CHECKING:
    from aicortex.registry.store import Registry

FORMAT = "aicortex session"
VERSION = 1  # of the file that `save` writes


class Shelf(Protocol):
    """Where the turns of one conversation are kept; a named one raises RegistryError."""

    def read(self) -> Kept:
        """Return what is kept now."""

    def add(self, turn: Turn, system: str | None) -> None:
        """Keep one more turn, unless it is kept already, and other words of the system if some are given."""

    def reset(self) -> None:
        """Forget the turns; the system's words stay."""


class Memory:
    """Keeps turns as long as this object lives; each change is one step, whatever other threads do meanwhile."""

    def __init__(self, kept: Kept) -> None:
        self._system = kept.system
        self._turns = list(kept.turns)

    def read(self) -> Kept:
        return Kept(self._system, tuple(self._turns))

    def add(self, turn: Turn, system: str | None) -> None:
        self._system = system or self._system
        if all(other.id != turn.id for other in self._turns):
            self._turns.append(deepcopy(turn))  # the reader of the answer has its messages, too

    def reset(self) -> None:
        self._turns = []


class Stored:
    """Keeps turns in the registry's file, which is open only while it is used."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._path = data_path()

    def create(self, kept: Kept) -> None:
        """Begin with what another conversation has; raises ValueError when the name is taken."""
        with _opened(self._path) as registry:
            sessions.create(registry, self._name, kept)

    def read(self) -> Kept:
        with _opened(self._path) as registry:
            return sessions.read(registry, self._name) or Kept()

    def add(self, turn: Turn, system: str | None) -> None:
        with _opened(self._path) as registry:
            sessions.add(registry, self._name, turn, system)

    def reset(self) -> None:
        with _opened(self._path) as registry:
            sessions.reset(registry, self._name)


def names() -> list[str]:
    """Return the names of the conversations in the registry's file, that which was used last first."""
    with _opened(data_path()) as registry:
        return [summary.name for summary in sessions.summaries(registry)]


def remove(name: str) -> None:
    """Take a conversation out of the registry's file; raises ValueError, with close matches, if it is not there."""
    with _opened(data_path()) as registry:
        sessions.remove(registry, name)


def _opened(path: str) -> Registry:
    from aicortex.registry.store import Registry  # sqlite3 takes 10 ms to import

    return Registry(path)


class _Head(msgspec.Struct, frozen=True):
    format: str = ""
    version: int = 0


class _Saved(msgspec.Struct, frozen=True):
    format: str
    version: int
    system: str | None = None
    turns: tuple[Turn, ...] = ()


def save(path: str | os.PathLike[str], kept: Kept) -> None:
    """Write a conversation into a file of this user's alone, whole or not at all; raises OSError."""
    from tempfile import mkstemp

    data = msgspec.json.format(msgspec.json.encode(_Saved(FORMAT, VERSION, kept.system, kept.turns)), indent=1)
    place = os.path.realpath(path)
    handle, made = mkstemp(dir=os.path.dirname(place), prefix=".", suffix=".session")
    try:
        with open(handle, "wb") as file:
            file.write(data + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, place)
    except BaseException:
        with suppress(OSError):
            os.unlink(made)
        raise


def load(path: str | os.PathLike[str]) -> Kept:
    """Return the conversation that `save` wrote; raises OSError, and ValueError for what is none or is newer."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        head = msgspec.json.decode(data, type=_Head)
    except ValueError as error:  # also of text that is not UTF-8
        raise ValueError(f"{os.fspath(path)!r} is no session that was saved: {error}") from error
    if head.format != FORMAT:
        raise ValueError(f"{os.fspath(path)!r} is no session that was saved: it does not say {FORMAT!r} as its format")
    if head.version > VERSION:
        words = f"is of version {head.version}, and this aicortex knows {VERSION}: upgrade aicortex"
        raise ValueError(f"the session in {os.fspath(path)!r} {words}")
    try:
        saved = msgspec.json.decode(data, type=_Saved)
    except ValueError as error:
        raise ValueError(f"the session in {os.fspath(path)!r} is damaged: {error}") from error
    return Kept(saved.system, saved.turns)
