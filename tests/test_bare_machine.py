"""A machine without any Ollama: chat starts the embedded engine, survives its death, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from tests.colours import Chat

from aicortex import StreamInterruptedError, embedded, list_model_servers, models

LONG = "Write a long story about a river."
USER = """
from aicortex import chat
stream = chat("Write a long story about a river.", stream=True)
next(stream.tokens())
from aicortex import embedded
print(embedded._running._process.pid, flush=True)
stream.text()
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int, seconds: float = 5.0) -> bool:
    end = monotonic() + seconds
    while is_alive(pid) and monotonic() < end:
        os.sched_yield()
    return not is_alive(pid)


@pytest.fixture(autouse=True)
def _nothing_listens(weights_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights_path.exists()
    monkeypatch.setattr("aicortex.fleet._is_alive", lambda _: False)  # a developer may have an Ollama


def test_chat_answers_and_says_who_did(chat: Chat) -> None:
    """Without any server the embedded engine answers, with its own name for model and server."""
    result = chat("What is the capital of France?", stream=True, temperature=0, max_tokens=40).result
    assert "Paris" in result.text
    assert (result.server, result.model) == ("embedded", embedded.model_name())
    assert models() == [embedded.model_name()]
    assert [row["url"] for row in list_model_servers(embedded.model_name())] == ["embedded"]


def kill_the_engine() -> int:
    assert embedded._running is not None
    pid = embedded._running._process.pid
    os.kill(pid, signal.SIGKILL)
    return pid


def test_the_engine_killed_in_mid_answer(chat: Chat) -> None:
    """kill -9 of the engine: it is started again and goes on, and a greedy answer is the same to the byte."""
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
    uninterrupted = chat(LONG, **asked)
    stream = chat(LONG, stream=True, **asked)
    words = stream.tokens()
    first = [next(words) for _ in range(3)]
    pid = kill_the_engine()
    assert stream.text() == uninterrupted
    assert uninterrupted.startswith("".join(first))
    metas = [event.meta for event in stream.events if event.type == "meta" and event.meta]
    found = [meta for meta in metas if meta["kind"] == "resumed"]
    assert [(meta["server"], meta["rung"], meta["same_weights"]) for meta in found] == [("embedded", "raw", True)]
    assert wait_until_gone(pid)


def test_the_engine_killed_and_nobody_wants_it_to_go_on(chat: Chat) -> None:
    """With resume="never" what came is kept, the error is clear, and the next question is answered."""
    stream = chat(LONG, stream=True, resume="never")
    words = stream.tokens()
    first = [next(words) for _ in range(3)]
    pid = kill_the_engine()
    with pytest.raises(StreamInterruptedError, match=r"^Stream interrupted after \d+ characters: embedded") as caught:
        stream.text()
    assert caught.value.partial.startswith("".join(first))
    assert chat("Say hello.", max_tokens=5)
    assert wait_until_gone(pid)


def test_the_user_killed_in_mid_answer() -> None:
    """kill -9 of the process that started the engine: the engine does not outlive it."""
    with subprocess.Popen([sys.executable, "-c", USER], stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        pid = int(user.stdout.readline())
        assert is_alive(pid)
        user.kill()
    assert wait_until_gone(pid)
