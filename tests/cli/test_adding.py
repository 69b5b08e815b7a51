"""`aicortex servers add`."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from aicortex._sync import names
from aicortex.fleet import registered
from aicortex.registry.paths import data_path
from aicortex.registry.store import Registry
from aicortex.testing import FakeServer, Hang
from cli.running import PATIENCE, finish, here, start

DEAD = "http://127.0.0.1:1"
SECRET = "sk-verysecret"


def test_says_what_it_found(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A server is added, asked at once, and everything it has is known from then on."""
    ended = here(capsys, "servers", "add", f"127.0.0.1:{server.port}", "--name", "desk")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == f"added desk: {server.url}\nOllama 0.33.0, 2 models: llama3.2:3b, qwen3:8b\n"
    with Registry() as registry:
        snapshot = registry.snapshot()
    assert [model.name for model in snapshot.models[server.url]] == ["llama3.2:3b", "qwen3:8b"]


def test_all_options(server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option is a field of the entry; the server gets the key and the header, the file only their names."""
    monkeypatch.setenv("DESK_KEY", SECRET)
    monkeypatch.setenv("TEAM", "blue-team")
    options = [
        *("--name", "desk", "--location", "eu/office", "--organization", "lab", "--label", "gpu=4090"),
        *("--label", "rack=a=b", "--weight", "2", "--priority", "-1", "--slots", "4", "--api-key", "env:DESK_KEY"),
        *("--header", "X-Team=env:TEAM", "--no-verify", "--ca-file", "lab.pem", "--no-expand"),
    ]
    ended = here(capsys, "servers", "add", server.url, *options, "--json")
    told = json.loads(ended.out)
    assert ended.status == 0
    assert told["added"] == {
        "url": server.url,
        "name": "desk",
        "location": "eu/office",
        "organization": "lab",
        "labels": {"gpu": "4090", "rack": "a=b"},
        "weight": 2.0,
        "priority": -1,
        "slots": 4,
        "api_key": "env:DESK_KEY",
        "headers": {"X-Team": "env:TEAM"},
        "verify": False,
        "ca_file": str(Path("lab.pem").absolute()),
        "client_cert": None,
        "expand": False,
        "draining": False,
    }
    models = ["llama3.2:3b", "qwen3:8b"]
    assert told["servers"] == [{"url": server.url, "version": "0.33.0", "models": models, "error": None}]
    headers = server.requests[-1].headers
    assert (headers["authorization"], headers["x-team"]) == (f"Bearer {SECRET}", "blue-team")
    kept = b"".join(path.read_bytes() for path in Path(data_path()).parent.iterdir())
    assert b"env:DESK_KEY" in kept
    assert SECRET not in ended.out + ended.err
    assert SECRET.encode() not in kept


def test_silent_server(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that does not answer is added all the same, with a note."""
    ended = here(capsys, "servers", "add", DEAD)
    assert (ended.status, ended.out) == (0, f"added {DEAD}\n")
    assert ended.err.startswith(f"aicortex: {DEAD}: refused the connection: nothing listens there; it is added all the")
    assert [entry.url for entry in registered()] == [DEAD]


def test_key_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """A server whose variable is not set is added all the same, with a note that names the variable."""
    ended = here(capsys, "servers", "add", DEAD, "--api-key", "env:NO_SUCH_KEY")
    assert (ended.status, ended.out) == (0, f"added {DEAD}\n")
    assert "the variable NO_SUCH_KEY is not set" in ended.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["desk", "--api-key", SECRET], "api_key: a secret is named, not stored: write env:VARIABLE or keyring:"),
        (["desk", "--header", f"X-Key={SECRET}"], "headers: X-Key: a secret is named, not stored"),
        (["desk", "--header", SECRET], "argument --header: write NAME=env:VARIABLE"),
        (["desk", f"--apikey={SECRET}"], "unrecognized arguments: --apikey; did you mean --api-key?"),
        ([f"http://me:{SECRET}@desk"], "credentials are not stored"),
        (["http://a b"], "no server address"),
        (["desk", "--name", "http://x"], "name must be letters"),
        (["desk", "--weight", "0"], "weight must be more than 0"),
        (["desk", "--slots", "0"], "slots must be from 1"),
        (["desk", "--slots", "many"], "argument --slots: 'many' is not a whole number"),
        (["desk", "--label", "gpu"], "argument --label: write NAME=VALUE"),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    """What cannot be is named, with status 2, and nothing is added; what may be a secret is not repeated."""
    ended = here(capsys, "servers", "add", *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert words in ended.err
    assert SECRET not in ended.err
    assert not Path(data_path()).exists()


def test_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An address or a name that is taken is an error; one that a file has names the file."""
    file = tmp_path / "aicortex.toml"
    file.write_text('[[servers]]\nurl = "lab:11434"\nname = "lab"\n', "utf-8")
    monkeypatch.setenv("AICORTEX_CONFIG", str(file))
    assert here(capsys, "servers", "add", DEAD, "--name", "desk").status == 0
    for arguments, words in (
        ([DEAD], f"{DEAD} is there already, as desk; change it with 'aicortex servers set desk …'"),
        (["127.0.0.1:2", "--name", "desk"], f"the name desk is that of {DEAD}: choose another"),
        (["lab"], f"the server lab stands in {file}: change it there"),
        (["127.0.0.1:2", "--name", "lab"], f"the name lab is that of http://lab:11434 in {file}"),
    ):
        ended = here(capsys, "servers", "add", *arguments)
        assert (ended.status, words in ended.err) == (2, True)


@pytest.fixture
def _many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the name pool.test stand for two addresses, at the first of which a fake server listens."""
    usual = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *arguments: object, **options: object) -> object:
        if host != "pool.test":
            return usual(host, port, *arguments, **options)  # type: ignore[arg-type]
        if options.get("flags"):  # only a literal would do
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{last}", port)) for last in (1, 77)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    names._known.clear()


@pytest.mark.usefixtures("_many")
def test_name_of_many(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A name with several addresses is taken as many servers, each of which is asked, and that is said."""
    ended = here(capsys, "servers", "add", f"pool.test:{server.port}", "--name", "pool")
    assert ended.status == 0
    assert ended.out.splitlines() == [
        f"added pool: http://pool.test:{server.port}",
        f"{server.url}: Ollama 0.33.0, 2 models: llama3.2:3b, qwen3:8b",
    ]
    expansion, silent = ended.err.splitlines()
    assert "pool stands for 2 servers, one per address: 127.0.0.1, 127.0.0.77 (with --no-expand" in expansion
    assert silent.startswith(f"aicortex: http://127.0.0.77:{server.port}: refused")
    assert [entry.expand for entry in registered()] == [True]


@pytest.mark.usefixtures("_many")
def test_name_of_many_taken_as_one(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """With --no-expand it is one server."""
    ended = here(capsys, "servers", "add", f"pool.test:{server.port}", "--no-expand")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines()[1] == "Ollama 0.33.0, 2 models: llama3.2:3b, qwen3:8b"
    assert [entry.expand for entry in registered()] == [False]


def test_expand_a_name_of_one(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """With --expand a name may stand for many later, which is said."""
    ended = here(capsys, "servers", "add", f"127.0.0.1:{server.port}", "--expand")
    assert (ended.status, "now it has one at most" in ended.err) == (0, True)
    assert [entry.expand for entry in registered()] == [True]


def test_interrupted() -> None:
    """Who presses Ctrl-C while the new server is asked is told that it was added, as it was."""
    with FakeServer(everything=Hang()) as server:
        process = start("servers", "add", server.url, "--name", "desk")
        assert server.wait_until(lambda: bool(server.requests), PATIENCE)
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert (ended.status, ended.out) == (130, "")
    assert ended.err == f"aicortex: added desk: {server.url}; stopped while asking what it has\n"
    assert [entry.name for entry in registered()] == ["desk"]
