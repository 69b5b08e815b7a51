"""`aicortex servers set`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from aicortex.fleet import registered
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import ServerEntry
from aicortex.registry.store import Registry
from cli.running import here

SECRET = "sk-verysecret"


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with Registry() as registry:
        registry.add(entry_of("desk:11434", name="desk", weight=2.0, labels={"gpu": "3090"}, verify=False))
        registry.add(entry_of("rack:11434", name="rack"))
        yield


def desk() -> ServerEntry:
    return registered()[0]


def test_only_what_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """What is named changes, and is shown; everything else stays, and saying the same again changes nothing."""
    before = desk()
    ended = here(capsys, "servers", "set", "desk:11434", "--slots", "4", "--api-key", "env:DESK_KEY")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == 'changed desk: http://desk:11434 (slots 1 -> 4, api_key "" -> "env:DESK_KEY")\n'
    assert (desk().slots, desk().api_key) == (4, "env:DESK_KEY")
    assert (desk().weight, desk().labels, desk().verify) == (before.weight, before.labels, before.verify)
    ended = here(capsys, "servers", "set", "desk", "--slots", "4", "--json")
    same = {"url": "http://desk:11434", "name": "desk", "action": "same", "changes": {}}
    assert json.loads(ended.out) == same


def test_all_options(capsys: pytest.CaptureFixture[str]) -> None:
    """Every option of `add` is a field, and '' takes something away."""
    options = [
        *("--name", "new", "--location", "eu/lab", "--organization", "lab", "--label", "rack=1", "--weight", "3"),
        *("--priority", "-1", "--slots", "2", "--header", "X-Key=env:KEY", "--ca-file", "lab.pem"),
        *("--client-cert", "own.pem", "--expand", "--verify"),
    ]
    assert here(capsys, "servers", "set", "desk", *options).status == 0
    assert desk() == ServerEntry(
        "http://desk:11434",
        name="new",
        location="eu/lab",
        organization="lab",
        labels={"rack": "1"},
        weight=3.0,
        priority=-1,
        slots=2,
        headers={"X-Key": "env:KEY"},
        ca_file=str(Path("lab.pem").absolute()),
        client_cert=str(Path("own.pem").absolute()),
        expand=True,
    )
    away = ["--ca-file", "", "--client-cert", "", "--location", "", "--no-expand", "--no-verify"]
    assert here(capsys, "servers", "set", "new", *away).status == 0
    now = desk()
    assert (now.ca_file, now.client_cert, now.location, now.expand, now.verify) == (None, None, "", False, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["desk"], "nothing is to be changed"),
        (["desk", "--name", ""], "--name is empty"),
        (["desk", "--name", "rack"], "the name rack is that of http://rack:11434"),
        (["desk", "--api-key", SECRET], "a secret is named, not stored"),
        (["desk", "--header", SECRET], "argument --header: write NAME=env:VARIABLE"),
        (["desk", "--slots", "0"], "slots must be from 1"),
        (["dsk", "--slots", "2"], "did you mean desk?"),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    """What cannot be is named, with status 2, and nothing is changed; what may be a secret is not repeated."""
    before = registered()
    ended = here(capsys, "servers", "set", *arguments)
    assert (ended.status, ended.out, words in ended.err) == (2, "", True)
    assert SECRET not in ended.err
    assert registered() == before


def test_server_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A server of a file is changed in that file, which is named."""
    file = tmp_path / "aicortex.toml"
    file.write_text('[[servers]]\nurl = "lab:11434"\nname = "lab"\n', "utf-8")
    monkeypatch.setenv("AICORTEX_CONFIG", str(file))
    ended = here(capsys, "servers", "set", "lab", "--slots", "2")
    assert (ended.status, f"the server lab stands in {file}: change it there" in ended.err) == (2, True)
