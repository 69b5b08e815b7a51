"""The programs in examples/ do what their first lines say, with scripted servers and with the embedded engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aicortex.testing import Answer, Close, FakeServer, Stall, Status

EXAMPLES = Path(__file__).parents[1] / "examples"
TEXT = "The quick brown fox jumps over the lazy dog."  # what a FakeServer answers
LIMIT = 60.0  # seconds


def start(name: str, *arguments: str, server: FakeServer, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Start an example whose servers are this one."""
    known = {**os.environ, "AICORTEX_SERVERS": server.url, "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=known,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def run(name: str, *arguments: str, server: FakeServer, typed: str | None = None) -> tuple[int, str, str]:
    """Run an example to its end, with what somebody types; return exit status, stdout and stderr."""
    stdin = subprocess.DEVNULL if typed is None else subprocess.PIPE
    with start(name, *arguments, server=server, stdin=stdin) as process:
        out, err = process.communicate(typed, timeout=LIMIT)
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


def test_notes_assistant(tmp_path: Path) -> None:
    """The model reads what it likes, writes what it is allowed to, and stays in its folder."""
    (tmp_path / "garden.txt").write_text("Water the tomatoes.", "utf-8")
    replies = [
        Answer("", tool_calls=[("list_notes", {}), ("read_note", {"name": "garden"}), ("read_note", {"name": "../x"})]),
        Answer("Water them."),
        Answer("", tool_calls=[("write_note", {"name": "plan", "text": "Rest."})]),
        Answer("It is there."),
        Answer("", tool_calls=[("write_note", {"name": "garden", "text": ""})]),
        Answer("Then not."),
    ]
    typed = "What is to do?\n\nNote a plan.\ny\nClear the garden.\nn\n"
    with FakeServer(*replies) as server:
        status, out, err = run("notes_assistant.py", str(tmp_path), "--name", "notes", server=server, typed=typed)
        told = [message["content"] for message in server.requests[-1].option("messages") if message["role"] == "tool"]
    assert (status, err) == (0, "")
    for line in ("[list_notes]", "Water them.", "[exception: Error: ValueError: the name of a note", "Then not."):
        assert line in out
    assert "[denied: " in out
    assert told[:2] == ['["garden"]', "Water the tomatoes."]
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["garden.txt", "plan.txt"]
    assert (tmp_path / "garden.txt").read_text("utf-8") == "Water the tomatoes."


def test_extract() -> None:
    """What the text holds comes out as JSON, and how far it is on standard error."""
    with FakeServer(Answer('{"people": [{"name": "Anna", "age": 34, "town": "Bergen"}]}')) as server:
        status, out, err = run("extract.py", server=server, typed="Anna (34) lives in Bergen.")
        asked = server.requests[-1].option("messages")
    assert status == 0
    assert json.loads(out) == {"people": [{"name": "Anna", "age": 34, "town": "Bergen"}]}
    assert err.endswith("1: Anna\n")
    assert asked[-1]["content"].endswith("Anna (34) lives in Bergen.")


def test_extract_of_what_is_no_json() -> None:
    """An answer of another form is told, and nothing is written."""
    with FakeServer(answer="I see Anna.") as server:
        status, out, err = run("extract.py", "Anna", server=server)
    assert (status, out) == (1, "")
    assert "no JSON" in err
