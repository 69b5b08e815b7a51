"""Where conversations are kept: every shelf behaves alike, and files are whole or say what is wrong."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import msgspec
import pytest

from aicortex.registry.sessions import Kept, Turn
from aicortex.shelf import Memory, Shelf, Stored, load, names, remove, save

ONE = Turn(({"role": "user", "content": "Wie?"}, {"role": "assistant", "content": "So. 🦊"}), "1", "fake", at=1.5)
TWO = msgspec.structs.replace(ONE, id="2", usage={"prompt_tokens": 1}, context=9, turns_before=1, is_partial=True)


@pytest.fixture(params=["memory", "file"])
def shelf(request: pytest.FixtureRequest) -> Shelf:
    return Memory(Kept()) if request.param == "memory" else Stored("novel")


def test_turns_are_kept_in_order(shelf: Shelf) -> None:
    """What was added is there, each turn once, with the last words of the system that were given."""
    assert shelf.read() == Kept()
    shelf.add(ONE, None)
    shelf.add(TWO, "Be brief.")
    shelf.add(TWO, None)
    assert shelf.read() == Kept("Be brief.", (ONE, TWO))


def test_reset(shelf: Shelf) -> None:
    """The turns are forgotten, the system's words are not; what was read before stays as it was."""
    shelf.add(ONE, "Be brief.")
    before = shelf.read()
    shelf.reset()
    assert (before.turns, shelf.read()) == ((ONE,), Kept("Be brief."))
    shelf.add(ONE, None)
    assert shelf.read() == before


def test_memory_begins_with_what_it_is_given() -> None:
    """A conversation in memory may begin with turns of another, which do not change by that."""
    kept = Kept("Be brief.", (ONE,))
    shelf = Memory(kept)
    shelf.add(TWO, None)
    assert (kept.turns, shelf.read()) == ((ONE,), Kept("Be brief.", (ONE, TWO)))


def test_what_is_stored_has_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stored conversations are in the folder that was named when they began, and stay in that one."""
    shelf = Stored("novel")
    assert names() == []
    shelf.create(Kept("Be brief.", (ONE,)))
    assert names() == ["novel"]
    with monkeypatch.context() as patch:
        patch.setenv("AICORTEX_DATA_DIR", str(tmp_path))
        shelf.add(TWO, None)
        assert names() == []
    assert Stored("novel").read() == Kept("Be brief.", (ONE, TWO))
    remove("novel")
    assert names() == []


@pytest.mark.parametrize("kept", [Kept(), Kept("Be brief.", (ONE, TWO))])
def test_a_file_comes_back_as_it_went(kept: Kept, tmp_path: Path) -> None:
    """A file has all of a conversation, as JSON that says what it is, for this user alone."""
    path = tmp_path / "novel.json"
    save(path, Kept())
    save(path, kept)
    assert load(str(path)) == kept
    assert json.loads(path.read_text("utf-8"))["format"] == "aicortex session"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["novel.json"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    """What a link leads to is written, and the link stays."""
    (tmp_path / "link").symlink_to("novel.json")
    save(tmp_path / "link", Kept("Be brief."))
    assert load(tmp_path / "novel.json") == Kept("Be brief.")
    assert (tmp_path / "link").is_symlink()


def test_a_file_that_cannot_be_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure in the middle leaves the file before, and nothing beside it."""
    path = tmp_path / "novel.json"
    save(path, Kept("Be brief."))

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save(path, Kept())
    assert os.listdir(tmp_path) == ["novel.json"]
    assert load(path) == Kept("Be brief.")
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "no" / "novel.json", Kept())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no session that was saved"),
        (b"\xff\xfe", "is no session that was saved"),
        (b"# A conversation", "is no session that was saved"),
        (b"[]", "is no session that was saved"),
        (b'{"format": "aicortex session", "version": "new"}', "is no session that was saved"),
        (b'{"model": "x", "messages": []}', "is no session that was saved: it does not say 'aicortex session'"),
        (b'{"format": "aicortex session", "version": 9}', "is of version 9, and this aicortex knows 1: upgrade"),
        (b'{"format": "aicortex session", "version": 1, "turns": 3}', "is damaged"),
        (b'{"format": "aicortex session", "version": 1, "turns": [{"messages": [1]}]}', "is damaged"),
    ],
)
def test_what_is_no_session_is_told(content: bytes, words: str, tmp_path: Path) -> None:
    """A file that `save` has not written, or a newer one, is a ValueError that names it."""
    path = tmp_path / "novel.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as raised:
        load(path)
    assert "novel.json" in str(raised.value)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.json")
