"""`aicortex servers remove`, `drain` and `export`."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from aicortex.fleet import registered
from aicortex.registry.credentials import entry_of
from aicortex.registry.store import Registry
from cli.running import here


@pytest.fixture(autouse=True)
def _registered() -> None:
    with Registry() as registry:
        registry.add(entry_of("desk:11434", name="desk", api_key="env:DESK_KEY", weight=2))
        registry.add(entry_of("rack:11434"))


def titles() -> list[str]:
    return [entry.title for entry in registered()]


def test_remove(capsys: pytest.CaptureFixture[str]) -> None:
    """Servers are removed by name and by address, each once."""
    ended = here(capsys, "servers", "remove", "desk", "rack:11434", "http://desk:11434")
    assert (ended.status, ended.out) == (0, "removed desk: http://desk:11434\nremoved http://rack:11434\n")
    assert titles() == []


def test_remove_all_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    """When one is unknown, none is removed."""
    ended = here(capsys, "servers", "remove", "desk", "rock")
    assert (ended.status, ended.out, "there is no server 'rock'" in ended.err) == (2, "", True)
    assert titles() == ["desk", "http://rack:11434"]


def test_remove_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`remove --json` writes what was removed as it was."""
    (entry,) = json.loads(here(capsys, "servers", "remove", "desk", "--json").out)["removed"]
    assert (entry["url"], entry["api_key"], entry["weight"]) == ("http://desk:11434", "env:DESK_KEY", 2.0)
    assert "source" not in entry


def test_drain(capsys: pytest.CaptureFixture[str]) -> None:
    """A server drains until that is turned off; it is told when no other is left."""
    ended = here(capsys, "servers", "drain", "desk")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == "desk is draining: new requests go to the other servers\n"
    assert [entry.is_draining for entry in registered()] == [True, False]
    ended = here(capsys, "servers", "drain", "rack:11434", "--json")
    assert json.loads(ended.out) == [{"url": "http://rack:11434", "name": "", "draining": True}]
    assert ended.err.startswith("aicortex: every server is draining now")
    assert here(capsys, "servers", "drain", "desk", "--off").out == "desk takes requests again\n"
    assert [entry.is_draining for entry in registered()] == [False, True]
    ended = here(capsys, "servers", "drain", "--off", "rack:11434", "desk")
    assert ended.out == "http://rack:11434 takes requests again\ndesk takes requests again\n"


@pytest.mark.parametrize("action", [["remove", "lab"], ["drain", "lab"], ["drain", "--off", "lab"]])
def test_server_of_a_file(
    action: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that a file names is changed in the file, which is named."""
    file = tmp_path / "aicortex.toml"
    text = '[[servers]]\nurl = "lab:11434"\nname = "lab"\n'
    file.write_text(text, "utf-8")
    monkeypatch.setenv("AICORTEX_CONFIG", str(file))
    ended = here(capsys, "servers", *action)
    assert (ended.status, f"the server lab stands in {file}: " in ended.err) == (2, True)
    assert file.read_text("utf-8") == text


def test_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The servers are written as TOML, to stdout or into a new file, or as JSON; keys are references."""
    monkeypatch.setenv("DESK_KEY", "sk-verysecret")
    text = here(capsys, "servers", "export").out
    told = {"url": "http://desk:11434", "name": "desk", "weight": 2.0, "api_key": "env:DESK_KEY"}
    assert msgspec.toml.decode(text) == {"servers": [told, {"url": "http://rack:11434"}]}
    file = tmp_path / "fleet.toml"
    ended = here(capsys, "servers", "export", str(file))
    assert (ended.status, ended.out, ended.err) == (0, "", f"aicortex: written to {file}\n")
    assert file.read_text("utf-8") == text
    assert json.loads(here(capsys, "servers", "export", "--json").out) == msgspec.toml.decode(text)
    assert "verysecret" not in text


def test_export_into_what_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is there, and one that cannot be made, are errors; nothing is overwritten."""
    file = tmp_path / "fleet.toml"
    file.write_text("mine", "utf-8")
    ended = here(capsys, "servers", "export", str(file))
    assert (ended.status, ended.err) == (2, f"aicortex: error: {file} exists already: name another file\n")
    assert file.read_text("utf-8") == "mine"
    ended = here(capsys, "servers", "export", str(tmp_path / "none" / "fleet.toml"))
    assert (ended.status, "cannot be written: No such file or directory" in ended.err) == (2, True)
