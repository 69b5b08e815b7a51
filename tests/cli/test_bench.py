"""`aicortex bench`: what it measures, how it sorts and what it keeps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aicortex.cli.bench import Score, score
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import Measurement
from aicortex.registry.paths import data_path
from aicortex.registry.store import Registry
from aicortex.testing import FakeServer, Status
from cli.running import here

DEAD = "http://127.0.0.1:1"


def register(url: str, **fields: object) -> None:
    with Registry() as registry:
        registry.add(entry_of(url, **fields))


def measured(url: str, first: float, pace: float, load: float = 0.0, error: str = "") -> Measurement:
    return Measurement(url, "m", 0.0, first, pace, load, error)


def test_medians() -> None:
    """Rounds come to their medians and the longest load; what failed is counted and said."""
    rounds = [measured("a", 10, 50, 900), measured("a", 30, 52), measured("a", 11, 40), measured("a", 0, 0, 0, "busy")]
    assert score(rounds, {"a": "desk"}) == [Score("a", "desk", "m", 11, 50, 900, 3, ("busy",))]


def test_order() -> None:
    """The best is who gives a hundred tokens first; who gave none comes last."""
    rounds = [measured("silent", 0, 0, 0, "busy"), measured("late", 5000, 90), measured("soon", 10, 30)]
    rounds += [measured("quick", 10, 90), measured("mute", 10, 0)]
    assert [each.url for each in score(rounds, {})] == ["quick", "soon", "late", "mute", "silent"]


def test_columns(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """One model of each server is measured, in rounds, and all is kept; the silent are named."""
    register(server.url, name="desk")
    register(DEAD)
    ended = here(capsys, "bench", "--rounds", "2")
    assert ended.status == 0
    header, row = ended.out.splitlines()
    assert re.split(" {2,}", header) == ["SERVER", "MODEL", "FIRST TOKEN", "TOKENS/S", "LOAD"]
    assert re.fullmatch(r"desk +llama3\.2:3b +[0-9.]+ ms +[0-9.]+ +[0-9.]+ ms", row)
    assert f"aicortex: {DEAD}: refused the connection" in ended.err
    with Registry() as registry:
        snapshot = registry.snapshot()
    assert snapshot.measurements[server.url, "llama3.2:3b"].tokens_per_second > 0
    assert [model.name for model in snapshot.models[server.url]] == ["llama3.2:3b", "qwen3:8b"]


def test_all_as_json(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`--all` measures each model of the servers that are named; the keys are those of the help."""
    ended = here(capsys, "bench", server.url, "--all", "--rounds", "1", "--json")
    rows = json.loads(ended.out)
    assert sorted((row["model"], row["rounds"]) for row in rows) == [("llama3.2:3b", 1), ("qwen3:8b", 1)]
    said = " ".join(here(capsys, "bench", "--help").out.split())
    assert [key for key in rows[0] if key not in said] == []
    assert not Path(data_path()).exists()  # where there is no registry none is made


def test_one_model(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`--model` is measured where it is; a model that nobody has is an error with those like it."""
    register(server.url)
    with FakeServer(models=("smollm2:135m",)) as other:
        register(other.url)
        rows = json.loads(here(capsys, "bench", "--model", "qwen3:8b", "--rounds", "1", "--json").out)
        assert [(row["url"], row["model"]) for row in rows] == [(server.url, "qwen3:8b")]
        ended = here(capsys, "bench", "--model", "qwen3:7b")
        assert (ended.status, "did you mean 'qwen3:8b'" in ended.err) == (1, True)


def test_rounds_that_fail(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A round that fails is counted and said; when all fail the status is 1."""
    register(server.url, name="desk")
    server.script(Status(500, {"error": "out of memory"}))
    ended = here(capsys, "bench", "--rounds", "2")
    assert (ended.status, ended.out.splitlines()[1].endswith("  1 of 2")) == (0, True)
    assert "aicortex: desk: llama3.2:3b: HTTP 500: out of memory\n" in ended.err
    server.paths["/api/chat"] = Status(500, {"error": "out of memory"})
    assert here(capsys, "bench", "--rounds", "1").status == 1


def test_nothing_to_measure(capsys: pytest.CaptureFixture[str]) -> None:
    """Servers without models, and servers that do not answer, end with status 1 and a reason."""
    with FakeServer(models=()) as empty:
        ended = here(capsys, "bench", empty.url)
        assert (ended.status, "no model that can chat" in ended.err) == (1, True)
    ended = here(capsys, "bench", DEAD)
    assert (ended.status, f"error: All servers failed: {DEAD}: refused" in ended.err) == (1, True)


def test_wrong_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    """No round at all is a usage error."""
    ended = here(capsys, "bench", "--rounds", "0")
    assert (ended.status, "argument --rounds: 0 is too few" in ended.err) == (2, True)


def test_plot(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--plot` draws a file, and measures nothing where it could not."""
    file = tmp_path / "fleet.png"
    ended = here(capsys, "bench", server.url, "--rounds", "1", "--plot", str(file))
    assert (ended.status, ended.err.splitlines()[-1]) == (0, f"aicortex: drawn into {file}")
    assert file.read_bytes().startswith(b"\x89PNG")
    asked = len(server.requests)
    assert here(capsys, "bench", server.url, "--plot", "fleet.jpeg").status == 2
    assert len(server.requests) == asked
