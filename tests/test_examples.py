"""The programs in examples/ do what their first lines say, with scripted servers and with the embedded engine."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
import tkinter
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from aicortex.testing import Answer, Close, FakeServer, Stall, Status

EXAMPLES = Path(__file__).parents[1] / "examples"
TEXT = "The quick brown fox jumps over the lazy dog."  # what a FakeServer answers
LIMIT = 60.0  # seconds


def start(name: str, *arguments: str, server: FakeServer) -> subprocess.Popen[str]:
    """Start an example whose servers are this one."""
    known = {**os.environ, "AICORTEX_SERVERS": server.url, "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=known,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def run(name: str, *arguments: str, server: FakeServer) -> tuple[int, str, str]:
    """Run an example to its end; return exit status, stdout and stderr."""
    with start(name, *arguments, server=server) as process:
        out, err = process.communicate(timeout=LIMIT)
        return process.returncode, out, err


def test_file_writer_with_the_embedded_engine(tmp_path: Path, short_server: FakeServer) -> None:
    """The file holds a real answer, and the program says where it came from."""
    path = tmp_path / "essay.txt"
    status, out, err = run("file_writer.py", "Write an essay on rivers.", str(path), server=short_server)
    text = path.read_text("utf-8")
    assert (status, err) == (0, "")
    assert len(text.split()) > 10
    assert out == f"{path}: {len(text)} characters from llama3.2:3b at {short_server.url}\n"


def test_file_writer_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that breaks off leaves its beginning in the file, and the exit status says so."""
    monkeypatch.setenv("AICORTEX_RESUME", "never")
    path = tmp_path / "essay.txt"
    with FakeServer(Answer(TEXT).then(Close(), after_tokens=3)) as server:
        status, out, err = run("file_writer.py", "Hi", str(path), server=server)
    assert (status, out) == (1, "")
    assert path.read_text("utf-8") == "The quick brown"
    assert f"{path} is not the whole answer: Stream interrupted after 15 characters" in err


def test_file_writer_continued(tmp_path: Path) -> None:
    """An answer that breaks off and goes on, here at the same server a second later, is whole in the file."""
    path = tmp_path / "essay.txt"
    with FakeServer(Answer(TEXT).then(Close(), after_tokens=3)) as server:
        status, _, err = run("file_writer.py", "Hi", str(path), server=server)
    assert (status, path.read_text("utf-8")) == (0, TEXT)
    assert err.startswith(f"warning: {server.url}: ")


def test_progress_counter() -> None:
    """The answer goes to stdout; stderr counts its tokens, every fiftieth where it is no terminal."""
    with FakeServer(answer=Answer(["x"] * 120)) as server:
        status, out, err = run("progress_counter.py", "Hi", server=server)
    assert (status, out) == (0, "x" * 120 + "\n")
    counts = [line.split(" tokens, ")[0] for line in err.splitlines()]
    assert counts == ["50", "100", "120"]


def test_progress_counter_without_an_answer() -> None:
    """When no server answers, nothing goes to stdout and stderr says why."""
    with FakeServer(Status(500)) as server:
        status, out, err = run("progress_counter.py", "Hi", server=server)
    assert (status, out) == (1, "")
    assert "All servers failed: " in err


def test_typewriter() -> None:
    """The whole answer is printed."""
    with FakeServer() as server:
        assert run("typewriter.py", "--delay", "0.001", "Hi", server=server) == (0, TEXT + "\n", "")


def test_typewriter_interrupted() -> None:
    """Ctrl-C ends the program without a traceback, and the server stops generating."""
    with (
        FakeServer(Answer(TEXT).then(Stall(), after_tokens=2)) as server,
        start("typewriter.py", "Hi", server=server) as process,
    ):
        assert process.stdout is not None  # asked for in start()
        assert process.stdout.read(9) == "The quick"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=LIMIT) == ("\n", "")
        assert process.returncode == 130
        assert server.wait_for_disconnect()


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeServer]:
    """The server behind the web server; the tests script it."""
    with FakeServer() as server:
        yield server


@pytest.fixture(scope="module")
def site(ollama: FakeServer) -> Iterator[str]:
    """Host and port of the running web server."""
    with start("websocket_server.py", "--port", "0", server=ollama) as process:
        assert process.stderr is not None  # asked for in start()
        line = next(line for line in process.stderr if "running on http://" in line)
        yield line.split("http://")[1].split()[0]
        process.terminate()
        process.communicate(timeout=LIMIT)


def open_chat(site: str) -> ClientConnection:
    return connect(f"ws://{site}/ws/chat", origin=Origin(f"http://{site}"), open_timeout=LIMIT)


def read(client: ClientConnection) -> dict[str, Any]:  # Any: JSON
    message: dict[str, Any] = json.loads(client.recv(timeout=LIMIT))
    return message


def read_answer(client: ClientConnection) -> tuple[str, dict[str, Any]]:
    """Return the text of an answer and the message that ends it."""
    text = ""
    while (message := read(client))["type"] == "token":
        text += message["content"]
    return text, message


def test_websocket_page(site: str) -> None:
    """The page at / knows where to connect."""
    with urllib.request.urlopen(f"http://{site}/", timeout=LIMIT) as reply:
        assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
        assert '"/ws/chat"' in reply.read().decode()


def test_websocket_answers(site: str) -> None:
    """Each prompt gets its tokens and an end."""
    with open_chat(site) as client:
        for _ in range(2):
            client.send("Hi")
            assert read_answer(client) == (TEXT, {"type": "end", "content": ""})


def test_websocket_serves_others_meanwhile(site: str, ollama: FakeServer) -> None:
    """While one client waits for its next token another gets a whole answer; leaving stops the generation."""
    ollama.script(Answer(TEXT).then(Stall(), after_tokens=1))
    left = ollama.cancelled
    with open_chat(site) as waiting, open_chat(site) as other:
        waiting.send("Hi")
        assert read(waiting) == {"type": "token", "content": "The"}
        other.send("Hi")
        assert read_answer(other)[0] == TEXT
        assert ollama.cancelled == left
    assert ollama.wait_for_disconnect(count=left + 1)


def test_websocket_new_prompt_stops_the_answer(site: str, ollama: FakeServer) -> None:
    """A prompt in the middle of an answer stops that answer on the server and gets its own."""
    ollama.script(Answer(TEXT).then(Stall(), after_tokens=1))
    left = ollama.cancelled
    with open_chat(site) as client:
        client.send("Hi")
        read(client)
        client.send("Something else")
        assert read_answer(client)[0] == TEXT
        assert ollama.wait_for_disconnect(count=left + 1)


def test_websocket_tells_what_failed(site: str, ollama: FakeServer) -> None:
    """A server's failure and an empty prompt are told, and the connection goes on."""
    ollama.script(Status(500))
    with open_chat(site) as client:
        client.send("Hi")
        assert read(client)["type"] == "error"
        failed = read(client)
        assert failed["type"] == "failed"
        assert failed["content"].startswith("All servers failed: ")
        client.send(" ")
        assert read(client) == {"type": "failed", "content": "prompt is empty"}
        client.send("Hi")
        assert read_answer(client)[0] == TEXT


def test_websocket_refuses_other_pages(site: str) -> None:
    """A page of another origin gets no connection."""
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://{site}/ws/chat", origin=Origin("http://elsewhere.example"))


@pytest.fixture
def window(display: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:  # Any: the class is in a script
    """The window of the Tkinter example, without its main loop."""
    monkeypatch.setenv("DISPLAY", display)
    made = runpy.run_path(str(EXAMPLES / "tkinter_chat.py"))["ChatWindow"](tkinter.Tk())
    yield made
    made.close()


def pump(window: Any, claim: Callable[[], bool]) -> None:  # Any: the class is in a script
    """Let the window live until a claim about it holds."""
    due = time.monotonic() + LIMIT
    while not claim():
        assert time.monotonic() < due, window.status.get()
        window.root.tk.dooneevent(0)


def shown(window: Any) -> str:  # Any: the class is in a script
    text: str = window.conversation.get("1.0", "end").strip()
    return text


def ask(window: Any, question: str) -> None:  # Any: the class is in a script
    window.prompt.insert(0, question)
    window.send_button.invoke()


def test_tkinter_chat(window: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Question and answer appear, and the next question brings the turn before it."""
    with FakeServer() as server:
        monkeypatch.setenv("AICORTEX_SERVERS", server.url)
        ask(window, "What jumps?")
        pump(window, lambda: window.reader is None)
        assert shown(window) == f"What jumps?\n{TEXT}"
        assert window.status.get() == f"fake:latest at {server.url}, 100 tokens/s"
        ask(window, "Over what?")
        pump(window, lambda: window.reader is None)
        roles = [message["role"] for message in server.requests[-1].json["messages"]]
        assert roles == ["user", "assistant", "user"]


def test_tkinter_cancel(window: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer appears as it comes; Cancel stops it on the server, and half an answer is not kept."""
    with FakeServer(Answer(TEXT).then(Stall(), after_tokens=2)) as server:
        monkeypatch.setenv("AICORTEX_SERVERS", server.url)
        ask(window, "What jumps?")
        pump(window, lambda: shown(window).endswith("The quick"))
        window.cancel_button.invoke()
        pump(window, lambda: window.reader is None)
        assert server.wait_for_disconnect()
        assert window.status.get() == "cancelled"
        assert window.messages == []


def test_tkinter_failure(window: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server did wrong stands in the conversation and in the last line."""
    with FakeServer(Status(500)) as server:
        monkeypatch.setenv("AICORTEX_SERVERS", server.url)
        ask(window, "What jumps?")
        pump(window, lambda: window.reader is None)
        assert f"[{server.url}: HTTP 500" in shown(window)
        assert window.status.get().startswith("All servers failed: ")


def test_tkinter_with_the_embedded_engine(
    window: Any, short_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real answer fills the window."""
    monkeypatch.setenv("AICORTEX_SERVERS", short_server.url)
    ask(window, "Explain recursion with a simple analogy.")
    pump(window, lambda: window.reader is None)
    assert len(shown(window).split()) > 20
