"""docs/integrations.md: other clients ask the fleet's servers, each in a process of its own, and nobody else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from aicortex.testing import FakeServer, Raw

PAGE = (Path(__file__).parents[1] / "docs" / "integrations.md").read_text("utf-8")
LIMIT = 60.0  # seconds

# Runs a program that may speak to this machine alone: telemetry, and what is fetched at an import, ends it.
GUARD = """
import os, runpy, sys

def look(event, arguments):
    if event == "socket.connect":
        place = arguments[1]
    elif event == "socket.getaddrinfo":
        place = arguments
    else:
        return
    if isinstance(place, tuple) and place[0] not in ("127.0.0.1", "localhost", "::1", None):
        os.write(2, f"{event}: {place}".encode())
        os._exit(9)

sys.addaudithook(look)
runpy.run_path(sys.argv[1], {}, "__main__")
"""


def examples(language: str, heading: str) -> list[str]:
    """Return the examples in a language under a heading of the page."""
    section = PAGE.split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def run(command: list[str], url: str, folder: Path) -> str:
    """Run a program whose fleet is this server; return what it prints."""
    known = {**os.environ, "AICORTEX_SERVERS": url, "LLM_USER_PATH": str(folder), "HOME": str(folder)}
    known["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{known['PATH']}"  # where `llm` is
    done = subprocess.run(
        command, env=known, cwd=folder, timeout=LIMIT, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_example(code: str, url: str, folder: Path) -> str:
    """Run an example in Python."""
    path = folder / "example.py"
    path.write_text(code, "utf-8")
    return run([sys.executable, "-c", GUARD, str(path)], url, folder)


@pytest.mark.parametrize("heading", ["LangChain", "LlamaIndex", "llm"])
def test_clients_of_ollama(heading: str, short_server: FakeServer, tmp_path: Path) -> None:
    """They stream an answer from the server that was chosen, here the embedded engine."""
    (code,) = examples("python", heading)
    assert len(run_example(code, short_server.url, tmp_path).split()) > 10
    (asked,) = [request.json for request in short_server.requests if request.path == "/api/chat"]
    assert (asked["model"], asked["stream"]) == ("llama3.2:3b", True)


def test_llm_in_the_shell(short_server: FakeServer, tmp_path: Path) -> None:
    """The command line of `llm` finds the fleet's server by a variable."""
    (code,) = examples("bash", "llm")
    assert len(run(["bash", "-ec", code], short_server.url, tmp_path).split()) > 10


def spoken(*pieces: str) -> Raw:
    """Return an answer in OpenAI's words, as Ollama gives them under /v1."""
    chunks = [
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "llama3.2:3b",
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": piece}, "finish_reason": None}],
        }
        for piece in pieces
    ]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    return Raw((head + body).encode())


def test_clients_of_openai(tmp_path: Path) -> None:
    """They stream from /v1 of the server that was chosen."""
    (code,) = examples("python", "OpenAI")
    paths = {"/v1/chat/completions": spoken("Rivers", " flow.")}
    with FakeServer(models=["llama3.2:3b"], paths=paths) as server:
        assert run_example(code, server.url, tmp_path) == "Rivers flow."
        assert server.requests[-1].json["stream"] is True


def test_the_embedded_engine_has_no_v1(embedded_server: str) -> None:
    """The page says so."""
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{embedded_server}/v1/models", timeout=LIMIT)


def test_every_example_is_run() -> None:
    """The tests above know all code of the page."""
    assert len(re.findall(r"^```", PAGE, re.MULTILINE)) == 2 * 5


def test_the_guard_sees_who_leaves(tmp_path: Path) -> None:
    """A program that looks for anybody else's name is ended."""
    with pytest.raises(AssertionError, match="far\\.example"):
        run_example("import urllib.request; urllib.request.urlopen('http://far.example/')", "", tmp_path)
