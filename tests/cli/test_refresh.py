"""`aicortex refresh`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aicortex.registry.credentials import entry_of
from aicortex.registry.store import Registry
from aicortex.testing import FakeServer, Hang
from cli.running import here

DEAD = "http://127.0.0.1:1"


def register(url: str, **fields: object) -> None:
    with Registry() as registry:
        registry.add(entry_of(url, **fields))


def test_says_what_has_changed(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The first refresh finds everything new, the second nothing, one with a dead server that it is lost."""
    register(server.url)
    ended = here(capsys, "refresh")
    assert ended.status == 0
    *changes, summary = ended.out.splitlines()
    assert changes == [
        f"{server.url}: answers for the first time",
        f"{server.url}: llama3.2:3b is new",
        f"{server.url}: qwen3:8b is new",
    ]
    assert re.fullmatch(r"1 of 1 server answered, 2 models \(\d\.\d s\)", summary)
    assert "nothing has changed" in here(capsys, "refresh").out
    server.refuse()
    ended = here(capsys, "refresh")
    assert ended.status == 1
    assert "does not answer any more" in ended.out
    assert f"aicortex: {server.url}: refused the connection" in ended.err
    server.start()
    assert "answers again" in here(capsys, "refresh").out


def test_json(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` has the whole report, with the keys that the help names."""
    register(server.url)
    register(DEAD)
    ended = here(capsys, "refresh", "--json")
    report = json.loads(ended.out)
    assert (ended.status, report["servers"], report["answered"], report["models"]) == (0, 2, 1, 2)
    assert list(report["unreachable"]) == [DEAD]
    assert {change["kind"] for change in report["changes"]} == {"new"}
    said = " ".join(here(capsys, "refresh", "--help").out.split())
    assert [key for key in (*report, *report["changes"][0]) if key not in said] == []


def test_named(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the servers that are named are asked; they must be registered."""
    register(server.url, name="desk")
    register(DEAD)
    assert json.loads(here(capsys, "refresh", "desk", "--json").out)["servers"] == 1
    ended = here(capsys, "refresh", "dsk")
    assert (ended.status, "there is no server 'dsk'; did you mean desk?" in ended.err) == (2, True)
    assert here(capsys, "refresh", "127.0.0.1:2").status == 2


def test_measure(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`--measure` shows what was measured too."""
    register(server.url, name="desk")
    ended = here(capsys, "refresh", "--measure")
    assert re.search(r"^SERVER +MODEL +FIRST TOKEN +TOKENS/S\ndesk +llama3\.2:3b +[0-9.]+ ms +\d+", ended.out, re.M)


def test_timeout(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that hangs has failed after `--timeout`, which must be a time."""
    server.everything = Hang()
    register(server.url)
    ended = here(capsys, "refresh", "--timeout", "0.3")
    assert (ended.status, "did not answer" in ended.err) == (1, True)
    ended = here(capsys, "refresh", "--timeout", "0")
    assert (ended.status, "argument --timeout: '0' is no time: it is" in ended.err) == (
        2,
        True,
    )


def test_nothing_registered(capsys: pytest.CaptureFixture[str]) -> None:
    """Without any server the status is 1, and what to do is said."""
    ended = here(capsys, "refresh")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == "aicortex: no server is registered: 'aicortex servers add ADDRESS' adds one\n"


def test_registry_that_is_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged registry ends in one line with what to do."""
    (tmp_path / "registry.db").write_text("not a database at all, " * 50, "utf-8")
    monkeypatch.setenv("AICORTEX_DATA_DIR", str(tmp_path))
    ended = here(capsys, "refresh")
    assert (ended.status, len(ended.err.splitlines())) == (1, 1)
    assert "move the file away" in ended.err
