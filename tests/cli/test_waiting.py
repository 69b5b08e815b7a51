"""The sign of life: it comes while nothing else does, before an answer and in its middle, and leaves no trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event, Semaphore, current_thread, main_thread

import pytest

from aicortex.cli import waiting
from aicortex.cli.screens import TextScreen
from aicortex.testing import Answer, Exchange, FakeServer, Hang, Reply
from cli.running import PATIENCE, Terminal, pretend_terminal

HALVES = ["Black holes form", " when stars\ndie."]
TEXT = "".join(HALVES)


@dataclass(frozen=True)
class Held(Reply):
    """An answer in two halves: the second one, and then the end, come when the test says `go`."""

    go: Semaphore = field(default_factory=lambda: Semaphore(0))

    def play(self, exchange: Exchange) -> None:
        for half in HALVES:
            exchange.token(content=half)
            exchange.flush()
            self.go.acquire(timeout=PATIENCE)
        exchange.done({"done_reason": "stop", "eval_count": len(HALVES)})


def test_before_the_answer(server: FakeServer) -> None:
    """A terminal is told after a moment what is waited for, and the words vanish with the first token."""
    server.script(Answer("Here.", first_delay=1.5))
    with Terminal("chat", "Hi", "--server", server.url) as terminal:
        terminal.wait_for(f"waiting for {server.url}")
        terminal.wait_for("Here.")
        assert terminal.end() == 0
        assert terminal.text() == "Here.\n"


def test_dumb_terminal(server: FakeServer) -> None:
    """A terminal without movements gets the words once, on a line of their own."""
    server.script(Answer("Here.", first_delay=1.5))
    with Terminal("chat", "Hi", "--server", server.url, more={"TERM": "dumb"}) as terminal:
        assert terminal.end() == 0
        assert terminal.raw == f"waiting for {server.url}\r\nHere.\r\n"


def test_long_words_are_cut(server: FakeServer) -> None:
    """The words never take more than one line."""
    server.script(Answer("Here.", first_delay=1.5))
    with Terminal("chat", "Hi", "--server", server.url, columns=20) as terminal:
        terminal.wait_for("waiting for http:")
        assert terminal.end() == 0
        assert terminal.text() == "Here.\n"


def test_thinking(server: FakeServer) -> None:
    """While a model thinks, the terminal says so."""
    server.script(Answer("Here.", thinking=["Hm"], delay=1.5))
    with Terminal("chat", "Hi", "--server", server.url) as terminal:
        terminal.wait_for("thinking")
        assert terminal.end() == 0
        assert terminal.text() == "Here.\n"


def test_in_the_middle(server: FakeServer) -> None:
    """In the middle of an answer the words stand below it, at the bottom of the screen too, until more text comes."""
    reply = Held()
    server.script(reply)
    with Terminal("chat", "Hi", "--server", server.url, "--plain", columns=40, rows=3) as terminal:
        terminal.wait_for(f"Black holes form\n| waiting for {server.url}")
        reply.go.release()
        terminal.wait_for("stars")
        assert terminal.text() == TEXT
        terminal.wait_for(f"die.\n| waiting for {server.url}")
        reply.go.release()
        assert terminal.end() == 0
        assert terminal.text() == TEXT + "\n"


def test_what_follows_a_broken_answer(server: FakeServer) -> None:
    """Between two servers the words go with what happens, below rendered Markdown; the notes come after the answer."""
    server.script(Answer(HALVES).then(Hang(), after_tokens=1))
    with FakeServer(Answer(HALVES, first_delay=1.0), models=["llama3.2:3b"]) as other:
        servers = ["--server", server.url, "--server", other.url]
        with Terminal("chat", "Hi", *servers, "--stall-timeout", "1.2", columns=160, rows=5) as terminal:
            terminal.wait_for(f"waiting for {server.url}")
            terminal.wait_for(f"waiting for {other.url} to go on")
            assert terminal.end() == 0
            first, second, *notes = terminal.text().splitlines()
    assert [first, second] == TEXT.split("\n")
    assert [note.split()[3] for note in notes] == ["failed", "went"]


def test_stopped_in_the_middle(server: FakeServer) -> None:
    """Ctrl-C in a conversation removes the words with the answer's end."""
    server.script(Answer(HALVES).then(Hang(), after_tokens=1))
    with Terminal("chat", "--server", server.url, rows=6) as terminal:
        terminal.wait_for(">>>")
        terminal.type("Hi\r")
        terminal.wait_for("| waiting for")
        terminal.interrupt()
        terminal.wait_for(">>>", count=2)
        assert terminal.text().splitlines()[2:] == [
            "Black holes form^C",
            "aicortex: stopped: the conversation goes on without this question",
            ">>>",
        ]


def test_only_silence_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """While something comes often enough nothing is said, and after a silence it is."""
    now, heard, looks, said = [0.0], [0.0], Semaphore(0), Event()

    def look() -> float:
        if current_thread() is main_thread():
            return heard[0]
        looks.release()
        return now[0]

    class Below(TextScreen):
        def say(self, words: str) -> None:
            assert words == "| waiting for desk"
            said.set()

    monkeypatch.setattr(waiting, "perf_counter", look)
    monkeypatch.setattr(waiting, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "FRAME_SECONDS", PATIENCE)
    pretend_terminal(monkeypatch, 40, 5)
    with waiting.Waiting() as sign:
        sign.go_below(Below())
        sign.begin("waiting for desk")
        heard[0] = 5.0
        sign.heard()
        now[0] = 4.9
        for _ in range(4):
            assert looks.acquire(timeout=PATIENCE)
        assert not said.is_set()
        now[0] = 6.0
        assert said.wait(PATIENCE)
