"""Conversations in the registry's file: whole turns, in the order in which they were written."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from multiprocessing import get_context

import msgspec
import pytest

from aicortex._core.health import Health
from aicortex.errors import RegistryError
from aicortex.registry import sessions, tables
from aicortex.registry.entries import Snapshot
from aicortex.registry.sessions import COLUMNS, Kept, Summary, Turn
from aicortex.registry.store import Registry

FULL = Turn(
    ({"role": "user", "content": "Wie heißt du? 🦊"}, {"role": "assistant", "content": "", "tool_calls": [{"a": 1}]}),
    *("1f", "fake:latest", "http://desk:11434", {"prompt_tokens": 7, "completion_tokens": 2}, 9, 4, 1, True, 12.5),
)


def turn(words: str, **fields: object) -> Turn:
    """Return a turn of a question and its answer, whose id are the same words."""
    messages = ({"role": "user", "content": words}, {"role": "assistant", "content": words.upper()})
    return msgspec.structs.replace(Turn(messages, words), **fields)


def questions(registry: Registry, name: str) -> list[str]:
    """Return what was asked in a conversation."""
    kept = sessions.read(registry, name)
    return [] if kept is None else [each.messages[0]["content"] for each in kept.turns]


def test_a_turn_comes_back_as_it_went(registry: Registry) -> None:
    """Every field of a turn is kept."""
    sessions.add(registry, "novel", FULL, "Be brief.")
    assert sessions.read(registry, "novel") == Kept("Be brief.", (FULL,))


def test_columns_are_those_of_this_version(registry: Registry) -> None:
    """The files of users have these columns: others need a way from here to there."""
    sessions.add(registry, "novel", FULL)
    with closing(sqlite3.connect(registry.path)) as connection:
        found = {
            table: " ".join(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))
            for table in ("sessions", "turns")
        }
    assert found == {
        "sessions": "name system created_at used_at",
        "turns": "session number messages id model server usage context turns_before left_out is_partial at",
    }
    assert found["turns"] == f"session number {' '.join(COLUMNS)}"


def test_reading_creates_nothing(registry: Registry) -> None:
    """Where there is no file there is no conversation, and none is made."""
    assert sessions.read(registry, "novel") is None
    assert sessions.summaries(registry) == []
    sessions.reset(registry, "novel")
    with pytest.raises(ValueError, match="there is no session 'novel'; none is stored"):
        sessions.remove(registry, "novel")
    assert not os.path.exists(os.path.dirname(registry.path))


def test_a_file_without_conversations_gets_them(registry: Registry) -> None:
    """A registry of servers alone has no conversations until one is written; the rest stays as it is."""
    registry.write_health({("http://desk:11434", ""): Health()})
    assert sessions.read(registry, "novel") is None
    assert sessions.summaries(registry) == []
    sessions.reset(registry, "novel")
    sessions.add(registry, "novel", turn("one"))
    assert questions(registry, "novel") == ["one"]
    assert registry.read_health() == {("http://desk:11434", ""): Health()}


def test_a_file_with_conversations_is_a_registry(registry: Registry) -> None:
    """The first conversation makes a registry without servers, of the same version."""
    sessions.add(registry, "novel", turn("one"))
    assert registry.snapshot() == Snapshot()
    with closing(sqlite3.connect(registry.path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (tables.SCHEMA_VERSION,)


def test_turns_are_in_the_order_of_their_writing(registry: Registry) -> None:
    """Each conversation numbers its own turns from 1 on."""
    for name, words in (("a", "one"), ("b", "first"), ("a", "two"), ("a", "three")):
        sessions.add(registry, name, turn(words))
    assert (questions(registry, "a"), questions(registry, "b")) == (["one", "two", "three"], ["first"])
    with closing(sqlite3.connect(registry.path)) as connection:
        rows = connection.execute("SELECT number FROM turns WHERE session = 'a'").fetchall()
    assert rows == [(1,), (2,), (3,)]


def test_a_turn_is_written_once(registry: Registry) -> None:
    """A turn that is told again because an interrupt came the first time is there once; another session may have it."""
    for name in ("a", "a", "b"):
        sessions.add(registry, name, turn("one"))
    assert (questions(registry, "a"), questions(registry, "b")) == (["one"], ["one"])


def test_the_system_stays_until_another_is_given(registry: Registry) -> None:
    """A turn without words of the system leaves those that are there."""
    told = []
    for words, system in (("one", None), ("two", "Be brief."), ("three", None), ("four", "Be long.")):
        sessions.add(registry, "novel", turn(words), system)
        kept = sessions.read(registry, "novel")
        told.append(kept.system if kept else "")
    assert told == [None, "Be brief.", "Be brief.", "Be long."]


def test_reset(registry: Registry) -> None:
    """The turns of one conversation go, its system's words stay, and it goes on from 1."""
    sessions.add(registry, "a", turn("one"), "Be brief.")
    sessions.add(registry, "b", turn("one"))
    sessions.reset(registry, "a")
    assert sessions.read(registry, "a") == Kept("Be brief.")
    assert questions(registry, "b") == ["one"]
    sessions.add(registry, "a", turn("one"))
    assert questions(registry, "a") == ["one"]


def test_create(registry: Registry) -> None:
    """A whole conversation is written at once, and never over another."""
    kept = Kept("Be brief.", (turn("one"), turn("two")))
    sessions.create(registry, "novel", kept)
    with pytest.raises(ValueError, match="there is a session 'novel' already"):
        sessions.create(registry, "novel", Kept())
    sessions.create(registry, "empty", Kept())
    assert sessions.read(registry, "novel") == kept
    assert sessions.read(registry, "empty") == Kept()


def test_remove(registry: Registry) -> None:
    """Conversations go with all their turns; where one is not there, all stay."""
    for name in ("novel", "letters", "code"):
        sessions.add(registry, name, turn("one"))
    with pytest.raises(ValueError, match="there is no session 'novl'; did you mean 'novel'"):
        sessions.remove(registry, "code", "novl")
    with pytest.raises(ValueError, match="there is no session 'x'; there are 'code', 'letters', 'novel'"):
        sessions.remove(registry, "x")
    sessions.remove(registry, "novel", "code")
    assert [summary.name for summary in sessions.summaries(registry)] == ["letters"]
    assert sessions.read(registry, "novel") is None


def test_summaries(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list has each conversation, that which was used last first, with how it began; clocks that go back do not."""
    for now, name, words in ((10.0, "a", "x\n y" * 999), (20.0, "b", "one"), (30.0, "a", "two"), (5.0, "b", "three")):
        monkeypatch.setattr("aicortex.registry.sessions.time.time", lambda now=now: now)
        sessions.add(registry, name, turn(words))
    sessions.create(registry, "new", Kept())
    opening = ("x y" * 99)[:200]
    assert sessions.summaries(registry) == [
        Summary("a", 2, 10.0, 30.0, opening),
        Summary("b", 2, 20.0, 20.0, "one"),
        Summary("new", 0, 5.0, 5.0, ""),
    ]


def test_damaged_turns_are_told(registry: Registry) -> None:
    """Rows that no program of ours has written are a RegistryError that names the file."""
    sessions.add(registry, "novel", turn("one"))
    with closing(sqlite3.connect(registry.path)) as connection, connection:
        connection.execute("UPDATE turns SET messages = '{'")
    for reading in (lambda: sessions.read(registry, "novel"), lambda: sessions.summaries(registry)):
        with pytest.raises(RegistryError, match=r"registry\.db is damaged"):
            reading()


def _write_many(path: str, who: str, count: int) -> None:
    with Registry(path) as registry:
        for number in range(count):
            sessions.add(registry, "novel", turn(f"{who}{number}"))


def test_processes_write_at_once(path: str) -> None:
    """Turns of several processes are all there, whole, each one's in its own order."""
    context = get_context("spawn")
    workers = [context.Process(target=_write_many, args=(path, who, 25)) for who in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    with Registry(path) as registry:
        found = questions(registry, "novel")
    assert sorted(found) == sorted(f"{who}{number}" for who in "ab" for number in range(25))
    for who in "ab":
        assert [words for words in found if words[0] == who] == [f"{who}{number}" for number in range(25)]
