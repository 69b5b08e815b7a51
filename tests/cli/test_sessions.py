"""Stored conversations on the command line: begun, gone on with, listed, shown, removed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from aicortex.registry import sessions
from aicortex.registry.sessions import Turn
from aicortex.registry.store import Registry
from aicortex.session import Session
from aicortex.testing import Answer, FakeServer, Hang
from cli.running import Ended, Terminal, asked, here, pretend_terminal, read_until, start

TEXT = "Black holes form when stars die."
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _nothing_to_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let standard input be empty."""
    with open(os.devnull, encoding="utf-8") as empty:
        monkeypatch.setattr(sys, "stdin", empty)
        yield


def converse(server: FakeServer, *prompts: str, name: str = "novel") -> None:
    """Store a conversation."""
    session = Session(name, servers=[server.url], system="Be brief.")
    for prompt in prompts:
        session.chat(prompt)


def history(name: str = "novel") -> list[Any]:
    """Return what was said in a stored conversation: the texts."""
    return [message["content"] for message in Session(name).history]


def test_prompts_join_a_conversation(server: FakeServer, capsys: Capture) -> None:
    """One prompt after the other goes on where the conversation was; without a terminal nothing is said about it."""
    for prompt in ("How?", "Why?"):
        assert here(capsys, "chat", prompt, "--session", "novel", "--server", server.url) == Ended(0, TEXT + "\n", "")
    assert [message["content"] for message in asked(server)["messages"]] == ["How?", TEXT, "Why?"]
    assert history() == ["How?", TEXT, "Why?", TEXT]


def test_the_system_is_kept(server: FakeServer, capsys: Capture) -> None:
    """What --system says counts for later prompts, until another says otherwise."""
    told = []
    for more in (["--system", "Rhyme."], [], ["--system", "Be brief."]):
        here(capsys, "chat", "How?", "--session", "novel", "--server", server.url, *more)
        told.append(asked(server)["messages"][0]["content"])
    assert told == ["Rhyme.", "Rhyme.", "Be brief."]


def test_a_terminal_is_told_how_long_it_is(
    server: FakeServer, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal a conversation says on stderr that it begins, or how many turns it has."""
    pretend_terminal(monkeypatch, 80, 24)
    found = []
    for _ in range(3):
        ended = here(capsys, "chat", "How?", "--session", "novel", "--server", server.url, "--plain")
        found.append(next(line for line in ended.err.splitlines() if "session" in line))
    words = ("session novel begins", "session novel: 1 turn so far", "session novel: 2 turns so far")
    assert found == [f"aicortex: {each}" for each in words]


def test_json_joins_too(server: FakeServer, capsys: Capture) -> None:
    """The events of a prompt as JSON are those of the conversation."""
    converse(server, "How?")
    ended = here(capsys, "chat", "Why?", "--session", "novel", "--server", server.url, "--json")
    assert json.loads(ended.out.splitlines()[0])["type"] == "start"
    assert history() == ["How?", TEXT, "Why?", TEXT]


def test_ctrl_c_leaves_whole_turns(server: FakeServer) -> None:
    """A prompt that was interrupted in the middle of its answer leaves the conversation as it was."""
    converse(server, "How?")
    server.script(Answer("one two three").then(Hang(), after_tokens=2))
    process = start("chat", "Count.", "--session", "novel", "--server", server.url)
    read_until(process, b"one two")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"aicortex: stopped\n")
    assert history() == ["How?", TEXT]


def test_turns_without_room_are_told(capsys: Capture) -> None:
    """When the oldest turns are not sent, that is said on stderr."""
    long = Answer("word " * 1000)
    with FakeServer(answer=long) as verbose:
        for number in range(7):
            ended = here(capsys, "chat", f"{number}?", "--session", "novel", "--server", verbose.url)
        left_out = Session("novel").turns[-1].left_out
    assert left_out > 1
    assert ended.err == f"aicortex: the model was not told the oldest {left_out} turns: it takes no more\n"


def test_a_conversation_on_a_terminal_is_stored(server: FakeServer) -> None:
    """Interactive mode goes on with the stored conversation, says how long it is, and /reset forgets it for good."""
    converse(server, "How?")
    with Terminal("chat", "--session", "novel", "--server", server.url, columns=160) as terminal:
        terminal.wait_for(">>>")
        assert "\nsession novel: 1 turn so far\n>>>" in terminal.text()
        terminal.type("Why?\r")
        terminal.wait_for(">>>", count=2)
        assert history() == ["How?", TEXT, "Why?", TEXT]
        terminal.type("/reset\r")
        terminal.wait_for("The conversation is forgotten.")
        assert history() == []
        terminal.type("Who?\r")
        terminal.wait_for(">>>", count=4)
        terminal.type("/quit\r")
        assert terminal.end() == 0
    assert history() == ["Who?", TEXT]


@pytest.mark.parametrize("name", [" ", "two\nlines"])
def test_names_that_are_none(name: str, server: FakeServer, capsys: Capture) -> None:
    """A name that is empty or has several lines is a wrong argument, and nothing is asked."""
    ended = here(capsys, "chat", "How?", "--session", name, "--server", server.url)
    assert (ended.status, ended.out) == (2, "")
    assert "aicortex: error: " in ended.err
    assert server.requests == []


def test_list(server: FakeServer, capsys: Capture) -> None:
    """The list has name, turns, when it was used and how it begins, the last one first."""
    assert here(capsys, "sessions") == Ended(
        0, "", "aicortex: no conversation is stored: 'aicortex chat --session NAME' begins one\n"
    )
    converse(server, "How do black\nholes form?", name="holes")
    converse(server, "One?", "Two?")
    with Registry() as registry:
        holes = next(each for each in sessions.summaries(registry) if each.name == "holes")
        with registry.writing() as connection:
            connection.execute("UPDATE sessions SET used_at = used_at - 7200 WHERE name = 'holes'")
    for action in ([], ["list"]):
        ended = here(capsys, "sessions", *action)
        rows = [line.split(maxsplit=2) for line in ended.out.splitlines()]
        assert rows[0] == ["NAME", "TURNS", "LAST USED  BEGINS WITH"]
        assert rows[1][:2] == ["novel", "2"]
        assert rows[1][2].endswith(" ago    One?")
        assert rows[2] == ["holes", "1", "2 h ago    How do black holes form?"]
    found = json.loads(here(capsys, "sessions", "--json").out)
    assert [list(row) for row in found] == [["name", "turns", "created_at", "used_at", "opening"]] * 2
    assert found[1]["used_at"] == holes.used_at - 7200


def test_list_on_a_narrow_terminal(server: FakeServer, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets as much of how a conversation begins as it has room for."""
    converse(server, "word " * 30)
    pretend_terminal(monkeypatch, 70, 24)
    lines = here(capsys, "sessions").out.splitlines()
    assert lines[1].endswith("word word word word word word word word…")
    assert max(map(len, lines)) < 70


def test_list_as_json_when_there_is_none(capsys: Capture) -> None:
    """No conversation is an empty list."""
    assert here(capsys, "sessions", "--json") == Ended(0, "[]\n", "")


def test_show(server: FakeServer, capsys: Capture) -> None:
    """A conversation is shown as Markdown, whole; as JSON with all that is kept."""
    converse(server, "How?")
    ended = here(capsys, "sessions", "show", "novel")
    assert ended.out == f"# novel\n\n## System\n\nBe brief.\n\n## User\n\nHow?\n\n## Assistant\n\n{TEXT}\n"
    found = json.loads(here(capsys, "sessions", "show", "novel", "--json").out)
    assert (found["name"], found["system"]) == ("novel", "Be brief.")
    assert found["turns"][0]["messages"][1] == {"role": "assistant", "content": TEXT}
    assert found["turns"][0]["server"] == server.url


def test_show_calls_images_and_broken_answers(capsys: Capture) -> None:
    """What is more than text is told in words."""
    calls = [{"function": {"name": "look", "arguments": {"at": "sky"}}}]
    messages = (
        {"role": "user", "content": "What?", "images": ["aGk=", "aGk="]},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_name": "look", "content": "blue"},
        {"role": "assistant", "content": "It is"},
    )
    with Registry() as registry:
        sessions.add(registry, "novel", Turn(messages, "1", is_partial=True))
    parts = ["# novel", "## User", "2 images", "What?", "## Assistant", '`look({"at":"sky"})`', "## Tool", "blue"]
    parts += ["## Assistant", "It is", "*The answer broke off here.*"]
    assert here(capsys, "sessions", "show", "novel").out == "\n\n".join(parts) + "\n"


def test_what_is_shown_does_not_steer_the_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control characters of an answer reach a file and no terminal."""
    with Registry() as registry:
        sessions.add(registry, "novel", Turn(({"role": "user", "content": "a\x1b[2Jb"},), "1"))
    assert "a\x1b[2Jb" in here(capsys, "sessions", "show", "novel").out
    pretend_terminal(monkeypatch, 80, 24)
    assert "a\ufffd[2Jb" in here(capsys, "sessions", "show", "novel").out


def test_remove(server: FakeServer, capsys: Capture) -> None:
    """Conversations are removed, all or none, and a name counts once."""
    for name in ("a", "b", "c", "d"):
        converse(server, "How?", name=name)
    ended = here(capsys, "sessions", "remove", "a", "x")
    assert (ended.status, ended.out) == (2, "")
    assert "there is no session 'x'; there are 'd', 'c', 'b', 'a'" in ended.err
    assert here(capsys, "sessions", "remove", "a", "b", "a") == Ended(0, "removed a\nremoved b\n", "")
    assert json.loads(here(capsys, "sessions", "remove", "c", "--json").out) == {"removed": ["c"]}
    assert Session.names() == ["d"]


def test_a_name_that_there_is_not(server: FakeServer, capsys: Capture) -> None:
    """Showing an unknown conversation names those that look like it, and makes nothing."""
    ended = here(capsys, "sessions", "show", "novel")
    assert ended == Ended(2, "", "aicortex: error: there is no session 'novel'; none is stored\n")
    converse(server, "How?")
    ended = here(capsys, "sessions", "show", "novle")
    assert ended == Ended(2, "", "aicortex: error: there is no session 'novle'; did you mean 'novel'?\n")
