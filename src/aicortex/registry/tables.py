"""The tables of the registry's file, and how values stand in their rows.

    servers        what the user named, in the order of `id`; credentials only as references
    conditions     how each address was found at the last refresh
    models         what each address has, in the order of `id`
    measurements   what its models were measured to do
    health         how requests went lately; `written_at` is the Unix time at which a process wrote the row
    sessions       the conversations that have a name
    turns          what was said in them: question and answer together, in the order of `number` from 1 on

The last two are made by the first session (see `sessions`): a file without them is of the same version, and programs
that do not know them leave them alone. A field of a value is a column of the same name. Lists and mappings are JSON
text, truth values 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec

from aicortex._core.health import Health
from aicortex.registry.entries import Condition, Measurement, ModelEntry, ServerEntry

Row: TypeAlias = tuple[Any, ...]  # Any: what SQLite gives for the columns asked for
LARGEST = 2**63 - 1  # SQLite's integers end here; a server may claim any size
SCHEMA_VERSION = 1
TYPES = {int: "INTEGER", bool: "INTEGER", float: "REAL"}  # of columns; all others are TEXT
URL = "url TEXT NOT NULL"
BY_URL = ("conditions", "models", "measurements", "health")

SERVER = tuple(name for name in ServerEntry.__struct_fields__ if name != "source")
CONDITION = Condition.__struct_fields__
MODEL = ModelEntry.__struct_fields__
MEASUREMENT = Measurement.__struct_fields__
HEALTH = Health.__struct_fields__
ALL_SERVERS = f"SELECT {', '.join(SERVER)} FROM servers ORDER BY id"
CHANGE = f"UPDATE servers SET {', '.join(f'{name} = ?' for name in SERVER)} WHERE url = ?"
ALL_CONDITIONS = f"SELECT {', '.join(CONDITION)} FROM conditions"
ALL_MODELS = f"SELECT url, {', '.join(MODEL)} FROM models ORDER BY id"
# SQLite takes the other columns from the row of the maximum (its documentation of SELECT, "bare columns")
AT_MOST = ", ".join("max(at)" if name == "at" else name for name in MEASUREMENT)
NEWEST = f"SELECT {AT_MOST} FROM measurements GROUP BY url, model"
EVERYTHING = (ALL_SERVERS, ALL_CONDITIONS, ALL_MODELS, NEWEST)  # but health
ALL_HEALTH = f"SELECT url, model, {', '.join(HEALTH)} FROM health"
_OF_HEALTH = ("url", "model", *HEALTH, "written_at")
# What a process knew long ago must not take the place of what others have found since
WRITE_HEALTH = f"""INSERT INTO health ({", ".join(_OF_HEALTH)}) VALUES ({", ".join("?" for _ in _OF_HEALTH)})
    ON CONFLICT (url, model) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _OF_HEALTH[2:])}
    WHERE excluded.changed >= health.changed OR health.changed > ?"""
TRIM = """DELETE FROM measurements WHERE url = ? AND model = ? AND at < (
    SELECT at FROM measurements WHERE url = ? AND model = ? ORDER BY at DESC LIMIT 1 OFFSET ?)"""
STRANGERS = "SELECT url FROM conditions WHERE checked_at < ? AND url NOT IN (SELECT url FROM servers)"


def schema() -> Iterator[str]:
    """Return the statements that make the tables of `SCHEMA_VERSION`: other columns need another version."""
    yield f"CREATE TABLE servers (id INTEGER PRIMARY KEY, {columns(ServerEntry, SERVER)}, UNIQUE (url))"
    yield "CREATE UNIQUE INDEX server_names ON servers (name) WHERE name != ''"
    yield f"CREATE TABLE conditions ({columns(Condition, CONDITION)}, PRIMARY KEY (url)) WITHOUT ROWID"
    yield f"CREATE TABLE models (id INTEGER PRIMARY KEY, {URL}, {columns(ModelEntry, MODEL)}, UNIQUE (url, name))"
    found = columns(Measurement, MEASUREMENT)
    yield f"CREATE TABLE measurements ({found}, PRIMARY KEY (url, model, at)) WITHOUT ROWID"
    found = f"{URL}, model TEXT NOT NULL, {columns(Health, HEALTH)}, written_at REAL NOT NULL"
    yield f"CREATE TABLE health ({found}, PRIMARY KEY (url, model)) WITHOUT ROWID"
    yield f"PRAGMA user_version = {SCHEMA_VERSION}"


def columns(kind: type[msgspec.Struct], fields: Sequence[str]) -> str:
    """Return the columns that hold these fields of a value, as SQLite wants them declared."""
    found = {field.name: field for field in msgspec.structs.fields(kind)}
    return ", ".join(
        f"{name} {TYPES.get(found[name].type, 'TEXT')}{'' if found[name].default is None else ' NOT NULL'}"
        for name in fields
    )


@lru_cache
def insert(table: str, columns: tuple[str, ...]) -> str:
    """Return the statement that writes a row; one with the same key is replaced, except of a server."""
    places = ", ".join("?" for _ in columns)
    replacing = "INSERT" if table == "servers" else "INSERT OR REPLACE"
    return f"{replacing} INTO {table} ({', '.join(columns)}) VALUES ({places})"


def cells_of(value: msgspec.Struct, fields: Sequence[str]) -> Row:
    """Return these fields of a value as its row has them."""
    return tuple(_cell(getattr(value, field)) for field in fields)


def _cell(value: object) -> object:
    if isinstance(value, dict | tuple):
        return msgspec.json.encode(value).decode()
    return max(-LARGEST, min(value, LARGEST)) if isinstance(value, int) else value


@lru_cache(maxsize=1024)
def _texts(cell: str) -> tuple[str, ...]:
    """Return a JSON list of texts; hundreds of models have the same few."""
    return msgspec.json.decode(cell, type=tuple[str, ...])


def servers_of(rows: Iterable[Row]) -> tuple[ServerEntry, ...]:
    """Return the entries in the rows of `ALL_SERVERS`."""
    return tuple(_server(dict(zip(SERVER, row, strict=True))) for row in rows)


def _server(cells: dict[str, Any]) -> ServerEntry:  # Any: a row's
    for field in ("labels", "headers"):
        cells[field] = msgspec.json.decode(cells[field], type=dict[str, str])
    for field in ("verify", "expand", "is_draining"):
        cells[field] = bool(cells[field])
    return ServerEntry(**cells)


def models_of(rows: Iterable[Row]) -> dict[str, tuple[ModelEntry, ...]]:
    """Return the models in the rows of `ALL_MODELS`, by address."""
    families, capabilities = MODEL.index("families"), MODEL.index("capabilities")
    found: dict[str, list[ModelEntry]] = {}
    for url, *cells in rows:
        cells[families], cells[capabilities] = _texts(cells[families]), _texts(cells[capabilities])
        found.setdefault(url, []).append(ModelEntry(*cells))
    return {url: tuple(models) for url, models in found.items()}
