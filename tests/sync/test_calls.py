"""Calls in threads: a reader that is interrupted, and what is found of it by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass

import pytest

from aicortex import Tool, chat
from aicortex._core.turns import Asked, Returned, Run
from aicortex._sync.calls import Calls
from aicortex.calling import Toolbox
from aicortex.functions import collect
from aicortex.testing import Answer, Exchange, FakeServer, Reply

STORM = """
import random, signal, sys
from aicortex import chat

reading, hits, runs = False, 0, []

def interrupt(*_):
    global reading, hits
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.003))
    if reading:
        reading, hits = False, hits + 1
        raise KeyboardInterrupt

def tool(number: int) -> int:
    runs.append(number)
    return number

stream = chat("x", stream=True, servers=[sys.argv[1]], tools=[tool], max_steps=1000)
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.0001)
while not stream.done:
    try:
        reading = True
        stream.text()
    except KeyboardInterrupt:
        pass
reading = False
signal.setitimer(signal.ITIMER_REAL, 0)
results = [event.tool_result for event in stream if event.type == "tool_result"]
print(hits > 5, sorted(runs) == list(range(300)), results == list(range(300)))
"""


@dataclass(frozen=True)
class Calling(Reply):
    """Three calls a turn, counted on from the results in the history: a request that broke is sent again."""

    turns: int

    def play(self, exchange: Exchange) -> None:
        returned = sum(message["role"] == "tool" for message in exchange.request.option("messages"))
        calls = [("tool", {"number": returned + n}) for n in range(3)]
        (Answer("Done.") if returned == 3 * self.turns else Answer("", tool_calls=calls)).play(exchange)


def test_a_storm_of_interrupts_runs_each_tool_once() -> None:
    """A KeyboardInterrupt every few milliseconds, wherever it falls, neither loses a call nor runs one twice."""
    with FakeServer(paths={"/api/chat": Calling(100)}) as server:
        command = [sys.executable, "-c", STORM, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.split(), done.stderr) == (["True"] * 3, "")


def test_an_interrupted_wait_for_a_tool() -> None:
    """Ctrl-C while a tool runs leaves it running, and the next reader gets what it returns (C12)."""
    runs: list[int] = []
    release = threading.Event()

    def tool() -> str:
        runs.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        release.wait(20)
        return "late"

    with FakeServer(Answer("", tool_calls=[("tool", {})]), answer="Done.") as server:
        stream = chat("Go.", tools=[tool], servers=server.url, stream=True)
        with pytest.raises(KeyboardInterrupt):
            stream.text()
        release.set()
        assert stream.text() == "Done."
    assert [event.tool_result for event in stream.events if event.type == "tool_result"] == ["late"]
    assert runs == [1]


def test_no_thread_is_waited_for_at_the_end_of_a_program() -> None:
    """A tool that hangs does not keep a program from ending."""
    code = (
        "import sys, threading; from aicortex import chat\n"
        "def hang(): threading.Event().wait()\n"
        "print(chat('x', servers=[sys.argv[1]], tools=[hang], tool_timeout=0.05))"
    )
    with FakeServer(Answer("", tool_calls=[("hang", {})]), answer="Done.") as server:
        command = [sys.executable, "-c", code, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("Done.\n", "", 0)


def test_what_is_over_does_not_begin() -> None:
    """A stream that is cancelled while it is decided about its calls runs none of them."""
    runs: list[int] = []
    is_over: list[int] = []
    toolbox = Toolbox(collect([Tool(lambda: runs.append(1), name="tool")]), lambda _: is_over.append(1), None)
    asked = (Asked(0, "tool", {}), Asked(1, "tool", {}))
    assert Calls(toolbox).wait(Run(asked, None), lambda: bool(is_over)) is None
    assert (runs, is_over) == ([], [1])


def test_without_a_time_limit() -> None:
    """With no limit of its own and none of the stream a tool is waited for until it returns."""
    calls = Calls(Toolbox(collect([Tool(lambda: "here", name="tool")]), None, None))
    found = calls.wait(Run((Asked(3, "tool", {}),), None), lambda: False)
    assert found is not None
    number, returned = found
    assert (number, returned) == (3, Returned("ok", "here", "here", {}, returned.seconds))


def test_a_debugger_sees_tools() -> None:
    """What traces the threads of a program traces the tools that run in ours."""
    seen: list[str] = []

    def tool() -> str:
        return "here"

    before = threading.gettrace()
    threading.settrace(lambda frame, *_: seen.append(frame.f_code.co_name))
    try:
        calls = Calls(Toolbox(collect([tool]), None, None))
        assert calls.wait(Run((Asked(0, "tool", {}),), None), lambda: False) is not None
    finally:
        threading.settrace(before)  # type: ignore[arg-type]
    assert "tool" in seen
