"""`aicortex models`, on terminals and in pipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aicortex.registry.credentials import entry_of
from aicortex.registry.store import Registry
from aicortex.testing import FakeServer
from cli.running import Terminal, here, run

DEAD = "http://127.0.0.1:1"
REFUSED = f"aicortex: {DEAD}: refused the connection: nothing listens there\n"


def test_columns(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Each model has a line: name, parameters, quantization, size and servers."""
    ended = here(capsys, "models", "--server", server.url)
    assert (ended.status, ended.err) == (0, "")
    header, *rows = [line.split("  ") for line in ended.out.splitlines()]
    assert [word.strip() for word in header if word] == ["MODEL", "PARAMETERS", "QUANTIZATION", "SIZE", "SERVERS"]
    assert [[word.strip() for word in row if word.strip()] for row in rows] == [
        ["llama3.2:3b", "1B", "Q4_K_M", "1.0 GB", server.url],
        ["qwen3:8b", "1B", "Q4_K_M", "1.0 GB", server.url],
    ]


def test_several_servers(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of two servers is one row; the same name with other weights is another; the silent are named."""
    with FakeServer(models={"llama3.2:3b": "other"}) as other, FakeServer(models=("qwen3:8b",)) as same:
        urls = [server.url, other.url, same.url]
        servers = [word for url in (*urls, DEAD) for word in ("--server", url)]
        ended = here(capsys, "models", "--json", *servers)
    found = [(row["model"], row["urls"], row["loaded_on"]) for row in json.loads(ended.out)]
    assert (ended.status, ended.err) == (0, REFUSED)
    assert found == [
        ("llama3.2:3b", [urls[0]], [urls[0]]),
        ("qwen3:8b", [urls[0], urls[2]], [urls[0], urls[2]]),
        ("llama3.2:3b", [urls[1]], [urls[1]]),
    ]


def test_json_keys(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` has the keys that the help names."""
    (row, _) = json.loads(here(capsys, "models", "--json", "--server", server.url).out)
    said = " ".join(run("models", "--help").out.split())
    assert [key for key in row if key not in said] == []


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["llama3.2"], ["llama3.2:3b"]),
        (["--search", "QWEN3"], ["qwen3:8b"]),
        (["q4_k_m", "8b"], ["qwen3:8b"]),
        (["--family", "llama"], ["llama3.2:3b", "qwen3:8b"]),
        (["--min-params", "2B"], []),
        (["--max-params", "1B"], ["llama3.2:3b", "qwen3:8b"]),
    ],
)
def test_search(server: FakeServer, capsys: pytest.CaptureFixture[str], options: list[str], names: list[str]) -> None:
    """Words, family and sizes choose among the models."""
    ended = here(capsys, "models", *options, "--json", "--server", server.url)
    assert (ended.status, [row["model"] for row in json.loads(ended.out)]) == (0, names)


def test_nothing_found(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A search without a result says so, and so does a fleet without models."""
    ended = here(capsys, "models", "zebra", "--server", server.url)
    assert (ended.status, ended.out, ended.err) == (0, "", "aicortex: no model is like that\n")
    with FakeServer(models=()) as empty:
        assert "ollama pull" in here(capsys, "models", "--server", empty.url).err


def test_wrong_size(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no number of parameters is named, with status 2."""
    ended = here(capsys, "models", "--min-params", "big", "--server", server.url)
    assert (ended.status, "min_params is a number of parameters" in ended.err) == (2, True)


def test_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    """When no server answers, the status is 1 and stderr says why."""
    ended = here(capsys, "models", "--server", DEAD)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == f"aicortex: error: All servers failed: {DEAD}: refused the connection: nothing listens there\n"


def test_names_of_servers(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A registered server goes by its name."""
    with Registry() as registry:
        registry.add(entry_of(server.url, name="desk"))
    assert [line.split()[-1] for line in here(capsys, "models").out.splitlines()[1:]] == ["desk", "desk"]


def test_narrow_terminal(server: FakeServer) -> None:
    """A terminal too narrow for the columns gets a paragraph for each row, no line of it wider than the terminal."""
    with Terminal("models", "--server", server.url, columns=40) as terminal:
        assert terminal.end() == 0
        lines = terminal.text().splitlines()
    assert lines[:3] == ["llama3.2:3b", "  parameters: 1B", "  quantization: Q4_K_M"]
    assert max(map(len, lines)) <= 40


def test_wide_terminal(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal wide enough gets the columns of a pipe."""
    with Terminal("models", "--server", server.url, columns=120) as terminal:
        assert terminal.end() == 0
        assert terminal.text().rstrip("\n") == here(capsys, "models", "--server", server.url).out.rstrip("\n")


def test_alias(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An alias finds the models that it stands for."""
    file = tmp_path / "aicortex.toml"
    file.write_text("[aliases]\nchat = ['none:1b', 'qwen3:8b']\n", "utf-8")
    monkeypatch.setenv("AICORTEX_CONFIG", str(file))
    ended = here(capsys, "models", "chat", "--server", server.url)
    assert [line.split()[0] for line in ended.out.splitlines()] == ["MODEL", "qwen3:8b"]
