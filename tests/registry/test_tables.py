"""Rows and values."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import msgspec
import pytest

from aicortex._core.health import Health
from aicortex.registry import tables
from aicortex.registry.entries import Condition, Measurement, ModelEntry, ServerEntry

FULL = ServerEntry(
    "http://desk:11434",
    *("desk", "eu/office", "lab", {"gpu": "4090"}, 2.5, -3, 4, "env:KEY", {"X-Team": "keyring:a/b"}, False),
    *("/ca.pem", "/me.pem", True, True),
)
MODEL = ModelEntry("a:latest", "d" * 64, 10**12, "llama", ("llama", "x"), "3.2B", "Q4_K_M", 131072, ("tools",), 1.5)


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """A database with our tables, in memory."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        for statement in tables.schema():
            opened.execute(statement)
        yield opened


def columns(connection: sqlite3.Connection, table: str) -> str:
    return " ".join(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))


def test_columns_are_those_of_this_version(connection: sqlite3.Connection) -> None:
    """The files of users have these columns: others need another SCHEMA_VERSION and a way from here to there."""
    assert tables.SCHEMA_VERSION == 1
    assert columns(connection, "servers") == (
        "id url name location organization labels weight priority slots api_key headers verify ca_file client_cert "
        "expand is_draining"
    )
    assert columns(connection, "conditions") == "url checked_at seen_at version round_trip_ms error"
    assert columns(connection, "models") == (
        "id url name digest size family families parameter_size quantization context_length capabilities loaded_until"
    )
    assert columns(connection, "measurements") == "url model at first_token_ms tokens_per_second load_ms error"
    assert columns(connection, "health") == f"url model {' '.join(Health.__struct_fields__)} written_at"


def test_columns_have_types_to_query(connection: sqlite3.Connection) -> None:
    """Numbers are numbers, and what may be missing may be NULL."""
    (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'servers'").fetchone()
    for column in ("weight REAL NOT NULL", "slots INTEGER NOT NULL", "verify INTEGER NOT NULL", "ca_file TEXT,"):
        assert column in sql
    (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'models'").fetchone()
    for column in ("size INTEGER NOT NULL", "families TEXT NOT NULL", "loaded_until REAL NOT NULL"):
        assert column in sql


@pytest.mark.parametrize("entry", [FULL, ServerEntry("http://box:11434")])
def test_servers_come_back_as_they_went(entry: ServerEntry, connection: sqlite3.Connection) -> None:
    """Every field of an entry is kept, except the file it came from."""
    from_file = msgspec.structs.replace(entry, source="/x/aicortex.toml")
    connection.execute(tables.insert("servers", tables.SERVER), tables.cells_of(from_file, tables.SERVER))
    assert tables.servers_of(connection.execute(tables.ALL_SERVERS)) == (entry,)


def test_models_come_back_as_they_went(connection: sqlite3.Connection) -> None:
    """Every field of a model is kept, by address, in the order in which a server listed them."""
    models = (MODEL, ModelEntry("0:first"))
    rows = [("u", *tables.cells_of(model, tables.MODEL)) for model in models]
    connection.executemany(tables.insert("models", ("url", *tables.MODEL)), rows)
    assert tables.models_of(connection.execute(tables.ALL_MODELS)) == {"u": models}


def test_the_newest_measurement_is_read(connection: sqlite3.Connection) -> None:
    """Of several measurements of one model all columns come from the newest."""
    kept = [Measurement("u", "m", at, at * 10, at * 20, at * 30, f"e{at}") for at in (1.0, 3.0, 2.0)]
    other = Measurement("u", "n", 0.5)
    rows = [tables.cells_of(measurement, tables.MEASUREMENT) for measurement in (*kept, other)]
    connection.executemany(tables.insert("measurements", tables.MEASUREMENT), rows)
    assert [Measurement(*row) for row in connection.execute(tables.NEWEST)] == [kept[1], other]


def test_a_second_row_takes_the_place_of_the_first(connection: sqlite3.Connection) -> None:
    """What is known of an address is what was found last; a server of the user's is never overwritten."""
    for version in ("0.5", "0.6"):
        condition = Condition("u", 1.0, 1.0, version)
        connection.execute(tables.insert("conditions", tables.CONDITION), tables.cells_of(condition, tables.CONDITION))
    assert [row[3] for row in connection.execute(tables.ALL_CONDITIONS)] == ["0.6"]
    add = tables.insert("servers", tables.SERVER), tables.cells_of(FULL, tables.SERVER)
    connection.execute(*add)
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(*add)


@pytest.mark.parametrize(("size", "kept"), [(2**63 - 1, 2**63 - 1), (10**30, 2**63 - 1), (-(10**30), 1 - 2**63)])
def test_absurd_sizes_are_cut(size: int, kept: int) -> None:
    """A server that claims more bytes than an integer of SQLite holds does not break a refresh."""
    assert tables.cells_of(ModelEntry("m", size=size), ("name", "size")) == ("m", kept)
