"""`aicortex servers import`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aicortex.cli.importing import plan
from aicortex.fleet import registered
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import ServerEntry
from aicortex.registry.store import Registry
from cli.running import here, run

TEXT = """
[[servers]]
url = "desk:11434"
name = "desk"
weight = 2.0
[[servers]]
url = "rack:11434"
[[servers]]
url = "new:11434"
name = "new"
ca_file = "lab.pem"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A fleet with a server that is known and changed, one that is known, and a new one."""
    with Registry() as registry:
        registry.add(entry_of("desk:11434", name="desk"))
        registry.add(entry_of("rack:11434"))
    file = tmp_path / "fleet.toml"
    file.write_text(TEXT, "utf-8")
    return file


def known() -> list[tuple[str, str, float]]:
    return [(entry.url, entry.name, entry.weight) for entry in registered()]


def test_import(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is new is added, what is there is changed, and each is said; a second time nothing is to be done."""
    ended = here(capsys, "servers", "import", str(file))
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "changed desk: http://desk:11434 (weight 1.0 -> 2.0)",
        "http://rack:11434 is as it was",
        "added new: http://new:11434",
    ]
    assert known() == [
        ("http://desk:11434", "desk", 2.0),
        ("http://rack:11434", "", 1.0),
        ("http://new:11434", "new", 1.0),
    ]
    assert registered()[2].ca_file == str(file.with_name("lab.pem"))
    again = here(capsys, "servers", "import", str(file))
    assert [line.endswith(" is as it was") for line in again.out.splitlines()] == [True, True, True]


def test_dry_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--dry-run` says what would be done and does nothing."""
    before = known()
    ended = here(capsys, "servers", "import", str(file), "--dry-run")
    assert (ended.status, ended.err) == (0, "aicortex: nothing was done: 2 changes in all\n")
    assert len(ended.out.splitlines()) == 3
    assert known() == before


def test_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` has the action and the changed fields of each server."""
    rows = json.loads(here(capsys, "servers", "import", str(file), "--json").out)
    assert [row["action"] for row in rows] == ["changed", "same", "added"]
    assert rows[0] == {
        "url": "http://desk:11434",
        "name": "desk",
        "action": "changed",
        "changes": {"weight": [1.0, 2.0]},
    }


def test_standard_input() -> None:
    """'-' reads what another machine has exported."""
    ended = run("servers", "import", "-", text=b'[[servers]]\nurl = "desk:11434"\n')
    assert (ended.status, ended.out) == (0, "added http://desk:11434\n")
    exported = run("servers", "export").out.encode()
    assert run("servers", "import", "-", text=exported).out == "http://desk:11434 is as it was\n"


def test_names_that_change_places(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two servers may take each other's names; a name for two is an error before anything is done."""
    with Registry() as registry:
        registry.change("rack:11434", name="rack")
    text = '[[servers]]\nurl = "desk:11434"\nname = "rack"\n[[servers]]\nurl = "rack:11434"\nname = "desk"\n'
    file.write_text(text, "utf-8")
    assert here(capsys, "servers", "import", str(file)).status == 0
    assert [(url, name) for url, name, _ in known()] == [("http://desk:11434", "rack"), ("http://rack:11434", "desk")]
    file.write_text('[[servers]]\nurl = "a:1"\n[[servers]]\nurl = "b:1"\nname = "desk"\n', "utf-8")
    ended = here(capsys, "servers", "import", str(file))
    assert ended.status == 2
    assert "the name desk would be that of http://rack:11434 and of http://b:1" in ended.err
    assert len(known()) == 2


def test_server_of_a_file() -> None:
    """A server that a configuration file names stays as it is there."""
    there = ServerEntry("http://desk:11434", weight=3.0, source="/team/aicortex.toml")
    (step,) = plan([entry_of("desk:11434")], [there])
    assert (step.action, str(step)) == ("kept", "kept http://desk:11434, which stands in /team/aicortex.toml")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"x = ", "is no TOML"),
        (b"\xff", "is no TOML: it is not encoded as UTF-8"),
        (b"[[servers]]\nurl = 'desk'\nnme = 'x'", "unknown key 'nme'; did you mean 'name'?"),
        (b"[[servers]]\nurl = 'desk'\napi_key = 'sk-verysecret'", "servers[0]: api_key: a secret is named"),
    ],
)
def test_wrong_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, words: str) -> None:
    """A file that is wrong is named with what is wrong in it, and nothing is done."""
    file = tmp_path / "wrong.toml"
    file.write_bytes(data)
    ended = here(capsys, "servers", "import", str(file))
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(f"aicortex: error: {file}")
    assert words in ended.err
    assert "verysecret" not in ended.err
    assert registered() == []


def test_missing_and_empty_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there is an error, one without servers is told."""
    ended = here(capsys, "servers", "import", str(tmp_path / "none.toml"))
    assert (ended.status, "cannot be read: No such file or directory" in ended.err) == (2, True)
    (tmp_path / "empty.toml").touch()
    ended = here(capsys, "servers", "import", str(tmp_path / "empty.toml"))
    assert (ended.status, ended.out, ended.err) == (0, "", "aicortex: there are no servers in it\n")


def test_what_export_writes_as_json(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `export --json` wrote is taken too; what merely begins so is not."""
    exported = tmp_path / "fleet.json"
    assert here(capsys, "servers", "import", str(file)).status == 0
    exported.write_text(here(capsys, "servers", "export", "--json").out, "utf-8")
    before = registered()
    assert here(capsys, "servers", "remove", "desk", "new").status == 0
    assert here(capsys, "servers", "import", str(exported)).status == 0
    assert sorted(entry.url for entry in registered()) == sorted(entry.url for entry in before)
    exported.write_text('[{"url": "list:1"}]', "utf-8")
    assert here(capsys, "servers", "import", str(exported)).out == "added http://list:1\n"
    exported.write_text("{no", "utf-8")
    ended = here(capsys, "servers", "import", str(exported))
    assert (ended.status, f"{exported} is no JSON" in ended.err) == (2, True)
