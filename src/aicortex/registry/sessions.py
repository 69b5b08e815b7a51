"""The conversations that have a name, in the registry's file: whole turns, each written in one transaction.

Several processes may use one conversation. Each turn is numbered when it is written, so that those of answers that were
under way at once stand one behind the other, in the order in which the answers were whole.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from aicortex.registry import tables

if TYPE_CHECKING:
    from sqlite3 import Connection

    from aicortex.registry.store import Registry

OPENING_CHARACTERS = 200  # of a conversation's first question, for lists


class Turn(msgspec.Struct, frozen=True):
    """A question and all that its answer added to the conversation.

    `messages` begin with the user's and go on with the assistant's and those of tools, ready to be sent again.
    `model` answered, at the address `server`; `usage` counts `prompt_tokens` and `completion_tokens`. `is_partial` says
    that the answer broke off. `at` is the Unix time at which it was over. `id` is unlike that of any other turn, so
    that none is kept twice.

    `context` is how many tokens the conversation had behind this turn, as the server counted them (0 where it did
    not), when `turns_before` turns stood before it and the oldest `left_out` of these were not sent.
    """

    messages: tuple[dict[str, Any], ...]  # Any: JSON
    id: str = ""
    model: str = ""
    server: str = ""
    usage: dict[str, int] = {}
    context: int = 0
    turns_before: int = 0
    left_out: int = 0
    is_partial: bool = False
    at: float = 0.0


class Kept(msgspec.Struct, frozen=True):
    """What is kept of a conversation: the system's words, None without, and its turns, oldest first."""

    system: str | None = None
    turns: tuple[Turn, ...] = ()


class Summary(msgspec.Struct, frozen=True):
    """One conversation in a list: `turns` are counted, `opening` is how its first question begins; Unix times."""

    name: str
    turns: int
    created_at: float
    used_at: float
    opening: str


COLUMNS = Turn.__struct_fields__
SCHEMA = (
    """CREATE TABLE IF NOT EXISTS sessions
    (name TEXT PRIMARY KEY, system TEXT, created_at REAL NOT NULL, used_at REAL NOT NULL)""",
    f"""CREATE TABLE IF NOT EXISTS turns
    (session TEXT NOT NULL, number INTEGER NOT NULL, {tables.columns(Turn, COLUMNS)},
    PRIMARY KEY (session, number), UNIQUE (session, id))""",
)
HAS_SESSIONS = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'turns'"
# `used_at` never goes back, and a session keeps its system's words where nobody says others
USE = """INSERT INTO sessions (name, system, created_at, used_at) VALUES (:name, :system, :now, :now)
    ON CONFLICT (name) DO UPDATE SET
    system = coalesce(excluded.system, system), used_at = max(excluded.used_at, used_at)"""
ADD = f"""INSERT INTO turns (session, number, {", ".join(COLUMNS)})
    SELECT ?, coalesce(max(number), 0) + 1, {", ".join("?" for _ in COLUMNS)} FROM turns WHERE session = ?
    ON CONFLICT (session, id) DO NOTHING"""
TURNS = f"SELECT {', '.join(COLUMNS)} FROM turns WHERE session = ? ORDER BY number"
LIST = """SELECT name, (SELECT count(*) FROM turns WHERE session = name), created_at, used_at,
    (SELECT messages FROM turns WHERE session = name ORDER BY number LIMIT 1)
    FROM sessions ORDER BY used_at DESC, name"""


def read(registry: Registry, name: str) -> Kept | None:
    """Return what is kept of a conversation, as of one moment; None where there is none of this name."""
    with registry.reading() as connection:
        if connection is None or not _has_sessions(connection):
            return None
        row = connection.execute("SELECT system FROM sessions WHERE name = ?", (name,)).fetchone()
        rows = connection.execute(TURNS, (name,)).fetchall()
    return None if row is None else Kept(row[0], _turns_of(rows, registry.path))


def add(registry: Registry, name: str, turn: Turn, system: str | None = None) -> None:
    """Write a turn behind those that are there, unless it is one of them, and the system's words if they are others."""
    with registry.writing() as connection:
        _use(connection, name, system)
        _add(connection, name, turn)


def create(registry: Registry, name: str, kept: Kept) -> None:
    """Write a whole conversation under a new name; raises ValueError when the name is taken."""
    with registry.writing() as connection:
        if _has_sessions(connection) and name in _names(connection):
            raise ValueError(f"there is a session {name!r} already: choose another name, or remove it")
        _use(connection, name, kept.system)
        for turn in kept.turns:
            _add(connection, name, turn)


def reset(registry: Registry, name: str) -> None:
    """Take away the turns of a conversation, if there is one; the system's words stay."""
    if read(registry, name) is not None:
        with registry.writing() as connection:
            connection.execute("DELETE FROM turns WHERE session = ?", (name,))


def remove(registry: Registry, *names: str) -> None:
    """Take away conversations, all or none; raises ValueError, with close matches, for a name that there is not."""
    known = [summary.name for summary in summaries(registry)]
    for name in names:
        if name not in known:
            raise ValueError(unknown(name, known))
    with registry.writing() as connection:
        for name in names:
            connection.execute("DELETE FROM turns WHERE session = ?", (name,))
            connection.execute("DELETE FROM sessions WHERE name = ?", (name,))


def summaries(registry: Registry) -> list[Summary]:
    """Return all conversations, that which was used last first."""
    with registry.reading() as connection:
        if connection is None or not _has_sessions(connection):
            return []
        rows = connection.execute(LIST).fetchall()
    from aicortex.registry.store import understood

    with understood(registry.path):
        return [Summary(name, turns, made, used, _opening(first)) for name, turns, made, used, first in rows]


def unknown(name: str, known: list[str]) -> str:
    """Return the words about a name that no conversation has."""
    from difflib import get_close_matches  # 10 ms to import

    close = get_close_matches(name, known, n=3)
    if close:
        return f"there is no session {name!r}; did you mean {' or '.join(map(repr, close))}?"
    there = f"there are {', '.join(map(repr, known))}" if known else "none is stored"
    return f"there is no session {name!r}; {there}"


def _use(connection: Connection, name: str, system: str | None) -> None:
    for statement in SCHEMA:
        connection.execute(statement)
    connection.execute(USE, {"name": name, "system": system, "now": time.time()})


def _add(connection: Connection, name: str, turn: Turn) -> None:
    connection.execute(ADD, (name, *tables.cells_of(turn, COLUMNS), name))


def _has_sessions(connection: Connection) -> bool:
    return connection.execute(HAS_SESSIONS).fetchone() is not None


def _names(connection: Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM sessions ORDER BY used_at DESC, name")]


def _turns_of(rows: list[tables.Row], path: str) -> tuple[Turn, ...]:
    from aicortex.registry.store import understood  # sqlite3 takes 10 ms to import

    with understood(path):
        return tuple(msgspec.convert(_fields(row), Turn) for row in rows)


def _fields(row: tables.Row) -> dict[str, Any]:  # Any: a row's
    fields = dict(zip(COLUMNS, row, strict=True))
    for name in ("messages", "usage"):
        fields[name] = msgspec.json.decode(fields[name])
    return {**fields, "is_partial": bool(fields["is_partial"])}


def _opening(messages: str | None) -> str:
    """Return how the first question begins, in one line."""
    if messages is None:
        return ""
    first = next(iter(msgspec.json.decode(messages, type=list[dict[str, Any]])), {})
    return " ".join(str(first.get("content", ""))[: 2 * OPENING_CHARACTERS].split())[:OPENING_CHARACTERS]
