"""`aicortex embedded`: the engine as a server in the foreground."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from cli.running import Ended, finish, read_until, run, start


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "argument --port: 70000 is no port: it is a number from 0 to 65535"),
        (["--port", "http"], "argument --port: 'http' is not a whole number"),
        (["--port"], "expected one argument"),
    ],
)
def test_wrong_arguments(arguments: list[str], words: str) -> None:
    """A wrong port is named, with status 2."""
    ended = run("embedded", *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert words in ended.err


def test_serves_under_another_name(weights_path: Path) -> None:
    """It serves the model under the name asked for, until Ctrl-C ends it with status 0."""
    folder = str(weights_path.parent)
    process = start("embedded", "--port", "0", "--name", "llama3.2:3b", AICORTEX_CACHE_DIR=folder)
    assert read_until(process, b" at ") == b"Serving llama3.2:3b at "
    url = read_until(process, b" ").decode().strip()
    listed = run("models", "--server", url)
    assert (listed.status, listed.out.splitlines()[1].split()[0]) == (0, "llama3.2:3b")
    process.send_signal(signal.SIGINT)
    assert finish(process).status == 0


def test_json(weights_path: Path) -> None:
    """`--json` says where it listens, as one line."""
    folder = str(weights_path.parent)
    process = start("embedded", "--port", "0", "--json", AICORTEX_CACHE_DIR=folder)
    told = json.loads(read_until(process, b"\n"))
    assert (set(told), told["model"]) == ({"url", "model"}, "smollm2:135m")
    listed = run("models", "--server", told["url"])
    assert (listed.status, listed.out.splitlines()[1].split()[0]) == (0, "smollm2:135m")
    process.send_signal(signal.SIGINT)
    assert finish(process) == Ended(0, "", "")


def test_port_that_is_taken(weights_path: Path) -> None:
    """A port that somebody listens on is an error with status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run("embedded", "--port", port, AICORTEX_CACHE_DIR=str(weights_path.parent))
    assert (ended.status, ended.err.startswith("aicortex: error: ")) == (1, True)
    assert port in ended.err
