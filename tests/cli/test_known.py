"""Which server a name on the command line means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from aicortex.cli.known import entry_named, fleet_of, may_be_name, names_by_url, own_entry, way_to_set
from aicortex.registry.credentials import entry_of
from aicortex.registry.store import Registry


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with Registry() as registry:
        registry.add(entry_of("desk:11434", name="desk"))
        registry.add(entry_of("https://rack.example/ollama"))
        yield


@pytest.mark.parametrize("title", ["desk", "desk:11434", "http://desk:11434/", "desk "])
def test_spellings(title: str) -> None:
    """A name or the address in any spelling will do."""
    assert entry_named(title).name == "desk"


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("dsk", "there is no server 'dsk'; did you mean desk?"),
        ("rack.example", "did you mean https://rack.example:443/ollama?"),
        ("zebra", "there is no server 'zebra'; there are desk, https://rack.example:443/ollama"),
        ("http://me:hidden@desk", "there is no server 'desk'; did you mean desk?"),
        ("http://zebra:9", "there is no server 'http://zebra:9'; there are desk"),
        ("http://127.0.0.1:9", "there is no server 'http://127.0.0.1:9'; there are desk"),
        ("", "there is no server ''"),
        ("a b", "there is no server 'a b'"),
    ],
)
def test_unknown(title: str, words: str) -> None:
    """An unknown server is an error that names those like it, without what may be a password."""
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        entry_named(title)
    assert "hidden" not in str(caught.value)


def test_server_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that a file names is found, and not one's own to change."""
    file = tmp_path / "team.toml"
    file.write_text('[[servers]]\nurl = "lab:11434"\nname = "lab"\n', "utf-8")
    monkeypatch.setenv("AICORTEX_CONFIG", str(file))
    assert entry_named("lab").source == str(file)
    with pytest.raises(ValueError, match=f"^the server lab stands in {re.escape(str(file))}: remove it there$"):
        own_entry("lab", "remove it")
    assert own_entry("desk", "remove it").name == "desk"
    assert names_by_url() == {"http://lab:11434": "lab", "http://desk:11434": "desk"}


def test_fleet() -> None:
    """Names, registered addresses and others make a fleet; nothing at all makes that of all."""
    assert [server.label for server in fleet_of(["desk", "other:1"]).servers] == ["http://desk:11434", "http://other:1"]
    assert len(fleet_of([]).servers) == 2
    with pytest.raises(ValueError, match="there is no server 'other'"):
        fleet_of(["other"])


def test_way_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options are given by `set` where a server is registered, in its file, or by `add`."""
    file = tmp_path / "team.toml"
    file.write_text('[[servers]]\nurl = "lab:11434"\n', "utf-8")
    monkeypatch.setenv("AICORTEX_CONFIG", str(file))
    assert way_to_set("http://desk:11434", "--slots 2") == "'aicortex servers set desk --slots 2'"
    assert way_to_set("http://lab:11434", "--slots 2") == f"the same in {file}, instead of --slots 2"
    assert way_to_set("http://new:11434", "--slots 2") == "'aicortex servers add http://new:11434 --slots 2'"
    file.write_text("no TOML", "utf-8")
    assert way_to_set("http://desk:11434", "--slots 2") == "'aicortex servers add http://desk:11434 --slots 2'"


def test_what_may_be_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word may be a name if it is one, or if nobody can say; an address never is."""
    assert [may_be_name(title) for title in ("desk", "zebra", "desk:11434")] == [True, False, False]
    file = tmp_path / "team.toml"
    file.write_text("no TOML", "utf-8")
    monkeypatch.setenv("AICORTEX_CONFIG", str(file))
    assert [may_be_name(title) for title in ("desk", "zebra", "desk:11434")] == [True, True, False]
