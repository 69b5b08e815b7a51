"""`aicortex servers` and `aicortex servers check`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from time import time

import pytest

from aicortex._core.health import Health
from aicortex.registry.credentials import entry_of
from aicortex.registry.store import Registry
from aicortex.testing import FakeServer, Hang, Status
from aicortex.tools import refresh
from cli.running import here, pretend_terminal, run

DEAD = "http://127.0.0.1:1"
REFUSED = f"aicortex: {DEAD}: refused the connection: nothing listens there\n"


def register(url: str, **fields: object) -> None:
    with Registry() as registry:
        registry.add(entry_of(url, **fields))


def test_columns(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Each server has a line; one that does not answer is named on stderr with the reason."""
    ended = here(capsys, "servers", "--server", server.url, "--server", DEAD)
    lines = ended.out.splitlines()
    assert (ended.status, ended.err, len(lines)) == (0, REFUSED, 3)
    assert lines[0].split("  ")[0] == "SERVER"
    assert lines[1].startswith(f"{server.url}  ok ")
    assert re.search(r" 0\.33\.0 +[0-9.]+ ms +2 +llama3\.2:3b, qwen3:8b$", lines[1])
    assert lines[2].split("  ")[0] == DEAD
    assert lines[2].endswith("  no answer")


def test_json() -> None:
    """`--json` has every key for every server, null where nothing is known; the environment names servers too."""
    with FakeServer(models=("llama3.2:3b",)) as server:
        ended = run("servers", "--json", AICORTEX_SERVERS=f"{server.url},{DEAD}")
    alive, dead = json.loads(ended.out)
    told = {"name": "", "location": "", "source": "", "draining": False}
    assert 0 < alive.pop("round_trip") < 5
    names = ["llama3.2:3b"]
    known = {"answers": True, "version": "0.33.0", "models": 1, "loaded": names, "error": None}
    assert alive == {"url": server.url, **told, **known}
    unknown = dict.fromkeys(("version", "round_trip", "models", "loaded"))
    reason = "refused the connection: nothing listens there"
    assert dead == {"url": DEAD, **told, "answers": False, **unknown, "error": reason}


def test_none_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """When no server answers, the list is printed all the same and the status is 1."""
    ended = here(capsys, "servers", "list", "--json", "--server", DEAD)
    assert (ended.status, ended.err) == (1, REFUSED)
    assert [row["answers"] for row in json.loads(ended.out)] == [False]


def test_server_that_knows_less(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A server without /api/ps and with another /api/version still answers."""
    server.paths = {"/api/ps": Status(404), "/api/version": Status(200, "<html>")}
    ended = here(capsys, "servers", "--json", "--server", server.url)
    (row,) = json.loads(ended.out)
    assert (ended.status, row["answers"], row["loaded"], row["version"]) == (0, True, None, None)


def test_server_that_hangs(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that never answers does not keep the others from being listed."""
    with FakeServer(everything=Hang()) as silent:
        ended = here(capsys, "servers", "--server", silent.url, "--server", server.url)
        assert ended.err == f"aicortex: {silent.url}: did not answer in time\n"
    assert ended.status == 0


def test_embedded_engine() -> None:
    """Without any server the embedded engine is listed, and not started for that."""
    ended = run("servers", "--json", OLLAMA_HOST="127.0.0.1:1")
    (row,) = json.loads(ended.out)
    assert (row["url"], row["version"], ended.status) == ("embedded", None, 0 if row["answers"] else 1)


def test_registered(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names and states are shown, and where each comes from as soon as a file names one."""
    register(server.url, name="desk", is_draining=True)
    lines = here(capsys, "servers").out.splitlines()
    assert [line.split()[:3] for line in lines] == [["NAME", "SERVER", "STATUS"], ["desk", server.url, "draining"]]
    file = tmp_path / "aicortex.toml"
    file.write_text(f'[[servers]]\nurl = "{DEAD}"\nname = "file"\n', "utf-8")
    monkeypatch.setenv("AICORTEX_CONFIG", str(file))
    header, first, second = here(capsys, "servers").out.splitlines()
    assert header.split()[-1] == "FROM"
    assert (first.split()[0], first.split()[-1]) == ("file", str(file))
    assert (second.split()[0], second.split()[-1]) == ("desk", "registry")


def test_missing_key(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A server whose key is missing is listed as not asked, with the variable that is not set."""
    register(server.url)
    register(DEAD, name="locked", api_key="env:NO_SUCH_KEY")
    ended = here(capsys, "servers")
    assert ended.status == 0
    assert re.search(rf"^locked +{DEAD} +not asked$", ended.out, re.MULTILINE)
    assert ended.err.count("NO_SUCH_KEY") == 1
    (_, row) = json.loads(here(capsys, "servers", "--json").out)
    assert (row["name"], row["answers"], "NO_SUCH_KEY" in row["error"]) == ("locked", False, True)


def test_check(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` ends with 0 when all servers answer, and with 1 when one does not or is not asked."""
    register(server.url, name="desk")
    ended = here(capsys, "servers", "check")
    assert (ended.status, ended.err) == (0, "")
    assert re.search(rf"^desk +{server.url} +ok +0\.33\.0 +[0-9.]+ ms +closed$", ended.out, re.MULTILINE)
    register(DEAD)
    ended = here(capsys, "servers", "check")
    assert (ended.status, ended.err) == (1, REFUSED)
    assert here(capsys, "servers", "check", "desk").status == 0
    register("http://127.0.0.1:2", api_key="env:NO_SUCH_KEY")
    assert "NO_SUCH_KEY" in here(capsys, "servers", "check").err


def test_check_as_json(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`check --json` says what is not well at a server and its models, and since when the registry's data is stale."""
    register(server.url, name="desk")
    refresh(server.url)
    seen = time()
    server.refuse()
    refresh(server.url)
    with Registry() as registry:
        broken = Health(failures=2, kind="stalled", until=time() + 100)
        registry.write_health({(server.url, ""): broken, (server.url, "qwen3:8b"): Health(failures=1, kind="error")})
    ended = here(capsys, "servers", "check", "--json")
    (row,) = json.loads(ended.out)
    first, second = row.pop("breakers")
    assert 90 < first.pop("seconds") <= 100
    assert first == {"model": "", "state": "open", "kind": "stalled"}
    assert second == {"model": "qwen3:8b", "state": "half-open", "kind": "error", "seconds": 0.0}
    assert abs(row.pop("stale_since") - seen) < 60
    assert row == {
        "url": server.url,
        "name": "desk",
        "answers": False,
        "version": None,
        "round_trip_ms": None,
        "draining": False,
        "error": "refused the connection: nothing listens there",
    }
    out = here(capsys, "servers", "check").out
    assert re.search(r"no answer +open \(stalled\) for 2 min; qwen3:8b half-open \(error\) +\d+ s ago$", out.rstrip())


def test_check_of_an_address(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """An address need not be registered, a name must be."""
    assert here(capsys, "servers", "check", server.url).status == 0
    ended = here(capsys, "servers", "check", "desk")
    assert (ended.status, ended.err) == (2, "aicortex: error: there is no server 'desk'; none is registered\n")


def test_fits_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With ordinary names and two models in memory the table has a line for each server on 80 columns."""
    with FakeServer(models=("llama3.2:3b", "qwen3:8b")) as server:
        register(server.url, name="workshop")
        register("http://127.0.0.1:11", name="attic")
        pretend_terminal(monkeypatch, 80, 24)
        lines = here(capsys, "servers").out.splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) < 80
    assert lines[1].endswith("llama3.2:3b +1")
