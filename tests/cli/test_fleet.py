"""`aicortex models` and `aicortex servers`, on terminals and in pipes."""

from __future__ import annotations

import json
import re

import pytest

from aicortex.cli.fleet import size_words
from aicortex.testing import FakeServer, Hang, Status
from cli.running import Terminal, run

DEAD = "http://127.0.0.1:1"
REFUSED = f"aicortex: {DEAD}: refused the connection: nothing listens there\n"


def test_models_in_columns(server: FakeServer) -> None:
    """Each model has a line: name, parameters, quantization, size and servers."""
    ended = run("models", "--server", server.url)
    assert (ended.status, ended.err) == (0, "")
    header, *rows = [line.split("  ") for line in ended.out.splitlines()]
    assert [word.strip() for word in header if word] == ["MODEL", "PARAMETERS", "QUANTIZATION", "SIZE", "SERVERS"]
    assert [[word.strip() for word in row if word.strip()] for row in rows] == [
        ["llama3.2:3b", "1B", "Q4_K_M", "1.0 GB", server.url],
        ["qwen3:8b", "1B", "Q4_K_M", "1.0 GB", server.url],
    ]


def test_models_of_several_servers(server: FakeServer) -> None:
    """A model of two servers is one row; the same name with other weights is another; the silent are named."""
    with FakeServer(models={"llama3.2:3b": "other"}) as other, FakeServer(models=("qwen3:8b",)) as same:
        urls = [server.url, other.url, same.url]
        servers = [word for url in (*urls, DEAD) for word in ("--server", url)]
        ended = run("models", "--json", *servers)
    found = [(row["model"], row["urls"], row["loaded_on"]) for row in json.loads(ended.out)]
    assert (ended.status, ended.err) == (0, REFUSED)
    assert found == [
        ("llama3.2:3b", [urls[0]], [urls[0]]),
        ("qwen3:8b", [urls[0], urls[2]], [urls[0], urls[2]]),
        ("llama3.2:3b", [urls[1]], [urls[1]]),
    ]


def test_models_without_a_server() -> None:
    """When no server answers, the status is 1 and stderr says why."""
    ended = run("models", "--server", DEAD)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == f"aicortex: error: All servers failed: {DEAD}: refused the connection: nothing listens there\n"


def test_servers_in_columns(server: FakeServer) -> None:
    """Each server has a line; one that does not answer is named on stderr with the reason."""
    ended = run("servers", "--server", server.url, "--server", DEAD)
    lines = ended.out.splitlines()
    assert (ended.status, ended.err, len(lines)) == (0, REFUSED, 3)
    assert lines[0].split("  ")[0] == "SERVER"
    assert lines[1].startswith(f"{server.url}  ok ")
    assert re.search(r" 0\.33\.0 +[0-9.]+ ms +2 +llama3\.2:3b, qwen3:8b$", lines[1])
    assert lines[2].split("  ")[0] == DEAD
    assert lines[2].endswith("  no answer")


def test_servers_as_json(server: FakeServer) -> None:
    """`--json` has every key for every server, null where nothing is known; the environment names servers too."""
    ended = run("servers", "--json", AICORTEX_SERVERS=f"{server.url},{DEAD}")
    alive, dead = json.loads(ended.out)
    assert 0 < alive.pop("round_trip") < 5
    names = ["llama3.2:3b", "qwen3:8b"]
    expected = {"url": server.url, "answers": True, "version": "0.33.0", "models": 2, "loaded": names, "error": None}
    assert alive == expected
    assert dead == {
        "url": DEAD,
        "answers": False,
        "version": None,
        "round_trip": None,
        "models": None,
        "loaded": None,
        "error": "refused the connection: nothing listens there",
    }


def test_servers_none_of_which_answers() -> None:
    """When no server answers, the list is printed all the same and the status is 1."""
    ended = run("servers", "--json", "--server", DEAD)
    assert (ended.status, ended.err) == (1, REFUSED)
    assert [row["answers"] for row in json.loads(ended.out)] == [False]


def test_server_that_knows_less(server: FakeServer) -> None:
    """A server without /api/ps and with another /api/version still answers."""
    server.paths = {"/api/ps": Status(404), "/api/version": Status(200, "<html>")}
    ended = run("servers", "--json", "--server", server.url)
    (row,) = json.loads(ended.out)
    assert (ended.status, row["answers"], row["loaded"], row["version"]) == (0, True, None, None)


def test_servers_that_hang(server: FakeServer) -> None:
    """A server that never answers does not keep the others from being listed."""
    with FakeServer(everything=Hang()) as silent:
        ended = run("servers", "--server", silent.url, "--server", server.url)
        assert ended.err == f"aicortex: {silent.url}: did not answer in time\n"
    assert ended.status == 0


def test_embedded_engine_is_listed() -> None:
    """Without any server the embedded engine is listed, and not started for that."""
    ended = run("servers", "--json", OLLAMA_HOST="127.0.0.1:1")
    (row,) = json.loads(ended.out)
    assert (row["url"], row["version"], ended.status) == ("embedded", None, 0 if row["answers"] else 1)


def test_narrow_terminal(server: FakeServer) -> None:
    """A terminal too narrow for the columns gets a paragraph for each row, no line of it wider than the terminal."""
    with Terminal("models", "--server", server.url, columns=40) as terminal:
        assert terminal.end() == 0
        lines = terminal.text().splitlines()
    assert lines[:3] == ["llama3.2:3b", "  parameters: 1B", "  quantization: Q4_K_M"]
    assert max(map(len, lines)) <= 40


def test_wide_terminal(server: FakeServer) -> None:
    """A terminal wide enough gets the columns of a pipe."""
    with Terminal("models", "--server", server.url, columns=120) as terminal:
        assert terminal.end() == 0
        assert terminal.text().rstrip("\n") == run("models", "--server", server.url).out.rstrip("\n")


def test_names_do_not_steer_the_terminal() -> None:
    """A model's name cannot move the cursor; a pipe gets it as it is."""
    with FakeServer(models=("evil\x1b[2J",)) as server:
        with Terminal("models", "--server", server.url, columns=120) as terminal:
            assert terminal.end() == 0
            assert "evil\ufffd[2J" in terminal.text()
        assert "evil\x1b[2J" in run("models", "--server", server.url).out


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, ""),
        (512, "512 B"),
        (98_362_432, "98 MB"),
        (2_019_393_189, "2.0 GB"),
        (4.1e12, "4.1 TB"),
        (9e15, "9000.0 TB"),
    ],
)
def test_sizes(size_bytes: float, words: str) -> None:
    """Sizes are written in powers of 1000."""
    assert size_words(size_bytes) == words
