"""A conversation on a terminal, as somebody types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aicortex.testing import Answer, Close, FakeServer, Hang, Status
from cli.running import Terminal

ANSWER = "Black holes form when stars die."


def messages(server: FakeServer) -> Any:  # Any: JSON
    """Return the messages of the last question."""
    return next(r.json["messages"] for r in reversed(server.requests) if r.path == "/api/chat")


def talk(server: FakeServer, *options: str, folder: str | Path = ".") -> Terminal:
    terminal = Terminal("chat", "--server", server.url, *options, columns=160, folder=folder)
    terminal.wait_for(">>>")
    return terminal


def say(terminal: Terminal, line: str, answer: str) -> None:
    """Type a line, and wait for what follows and for the next prompt."""
    prompts = terminal.text().count(">>>")
    seen = terminal.text().count(answer)
    terminal.type(line + "\r")
    terminal.wait_for(answer, count=seen + 1)
    terminal.wait_for(">>>", count=prompts + 1)


def test_history_is_sent(server: FakeServer) -> None:
    """Each question comes with the questions and answers before it, and with the system's words."""
    with talk(server, "--system", "Be brief.") as terminal:
        assert terminal.text().startswith("aicortex 0.1.0: llama3.2:3b. /help shows the commands, Ctrl-D leaves.\n")
        say(terminal, "How?", ANSWER)
        say(terminal, "Why?", ANSWER)
        terminal.type("\x04")
        assert terminal.end() == 0
    assert messages(server) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How?"},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "Why?"},
    ]


def test_ctrl_c_stops_one_answer(server: FakeServer) -> None:
    """Ctrl-C cancels the answer on the server and returns to the prompt; the question is forgotten."""
    server.script(Answer("one two three").then(Hang(), after_tokens=2))
    with talk(server) as terminal:
        terminal.type("Count.\r")
        terminal.wait_for("one two")
        terminal.interrupt()
        terminal.wait_for("stopped: the conversation goes on without this question")
        assert server.wait_for_disconnect()
        terminal.wait_for(">>>", count=2)
        say(terminal, "How?", ANSWER)
        terminal.type("/quit\r")
        assert terminal.end() == 0
    assert messages(server) == [{"role": "user", "content": "How?"}]


def test_failures_leave_the_conversation_as_it_was(server: FakeServer) -> None:
    """A failed and a broken answer are told; neither joins the history."""
    server.script(Status(500), Answer("one two three").then(Close(), after_tokens=2))
    with talk(server) as terminal:
        say(terminal, "First?", "error: All servers failed")
        say(terminal, "Second?", "error: the answer is incomplete")
        say(terminal, "Third?", ANSWER)
    assert messages(server) == [{"role": "user", "content": "Third?"}]


def test_ctrl_c_at_the_prompt(server: FakeServer) -> None:
    """Ctrl-C at the prompt drops the line and says how to leave."""
    with talk(server) as terminal:
        terminal.type("half a line")
        terminal.wait_for("half a line")
        terminal.interrupt_prompt()
        terminal.wait_for("Ctrl-D or /quit leaves")
        terminal.wait_for(">>>", count=2)
        say(terminal, "How?", ANSWER)
    assert messages(server) == [{"role": "user", "content": "How?"}]


def test_lines_that_go_on(server: FakeServer) -> None:
    """A backslash at the end of a line continues it; empty lines ask nothing."""
    with talk(server) as terminal:
        terminal.type("\r   \r")
        terminal.wait_for(">>>", count=3)
        terminal.type("one \\\r")
        terminal.wait_for("\n...")
        say(terminal, "two", ANSWER)
    assert messages(server) == [{"role": "user", "content": "one \ntwo"}]


def test_arrow_up_brings_the_last_line_back(server: FakeServer) -> None:
    """Lines have a history."""
    with talk(server) as terminal:
        say(terminal, "How?", ANSWER)
        say(terminal, "\x1b[A", ANSWER)
    assert [message["content"] for message in messages(server)] == ["How?", ANSWER, "How?"]


def test_help_and_unknown_commands(server: FakeServer) -> None:
    """`/help` lists the commands; an unknown one gets a hint; with a space in front it is a question."""
    with talk(server) as terminal:
        say(terminal, "/help", "/save FILE")
        say(terminal, "/hlep", "/hlep is no command; /help lists them")
        say(terminal, " /etc?", ANSWER)
    assert messages(server)[-1]["content"] == " /etc?"


def test_model(server: FakeServer) -> None:
    """`/model` lists, `/model NAME` switches, a wrong name is told with close matches and changes nothing."""
    with talk(server) as terminal:
        say(terminal, "/model", "* llama3.2:3b\n  qwen3:8b")
        say(terminal, "/model qwen3", "did you mean 'qwen3:8b'?")
        say(terminal, "How?", ANSWER)
        assert server.requests[-1].model == "llama3.2:3b"
        say(terminal, "/model QWEN3:8B", "did you mean 'qwen3:8b'?")
        say(terminal, "/model qwen3:8b", "qwen3:8b answers from now on.")
        say(terminal, "How?", ANSWER)
        assert server.requests[-1].model == "qwen3:8b"
    assert len(messages(server)) == 3


def test_clear(server: FakeServer) -> None:
    """`/clear` forgets the conversation."""
    with talk(server) as terminal:
        say(terminal, "How?", ANSWER)
        say(terminal, "/clear", "The conversation is forgotten.")
        say(terminal, "Why?", ANSWER)
    assert messages(server) == [{"role": "user", "content": "Why?"}]


def test_save_as_json(server: FakeServer, tmp_path: Path) -> None:
    """`/save FILE.json` writes the model and messages that `chat` takes."""
    with talk(server, "--system", "Be brief.", folder=tmp_path) as terminal:
        say(terminal, "Où ?", ANSWER)
        say(terminal, "/save talk.json", "Saved to talk.json.")
    assert json.loads((tmp_path / "talk.json").read_text("utf-8")) == {
        "model": "llama3.2:3b",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Où ?"},
            {"role": "assistant", "content": ANSWER},
        ],
    }


def test_save_as_markdown(server: FakeServer, tmp_path: Path) -> None:
    """`/save FILE` writes Markdown, and overwrites only when told to."""
    path = tmp_path / "talk.md"
    path.write_text("precious", "utf-8")
    with talk(server, folder=tmp_path) as terminal:
        say(terminal, "How?", ANSWER)
        terminal.type("/save talk.md\r")
        terminal.wait_for("talk.md exists. Overwrite it? [y/N]")
        say(terminal, "", "Nothing was written.")
        assert path.read_text("utf-8") == "precious"
        terminal.type("/save talk.md\r")
        terminal.wait_for("[y/N]", count=2)
        say(terminal, "y", "Saved to talk.md.")
    title = "# A conversation with llama3.2:3b"
    assert path.read_text("utf-8") == f"{title}\n\n## User\n\nHow?\n\n## Assistant\n\n{ANSWER}\n"


def test_save_does_not_swallow_what_was_pasted(server: FakeServer, tmp_path: Path) -> None:
    """A line that neither allows nor forbids to overwrite writes nothing, and is the next input."""
    path = tmp_path / "talk.md"
    path.write_text("precious", "utf-8")
    with talk(server, folder=tmp_path) as terminal:
        say(terminal, "How?", ANSWER)
        terminal.type("/save talk.md\rWhy?\r")
        terminal.wait_for("Nothing was written.")
        terminal.wait_for(ANSWER, count=2)
        terminal.wait_for(">>>", count=3)
        assert path.read_text("utf-8") == "precious"
        terminal.type("/save talk.md\r/quit\r")
        assert terminal.end() == 0
    assert messages(server)[-1]["content"] == "Why?"


def test_greeting_on_a_narrow_terminal(server: FakeServer) -> None:
    """The greeting is broken between words."""
    with Terminal("chat", "--server", server.url, columns=42) as terminal:
        terminal.wait_for(">>>")
        greeting = terminal.text().partition(">>>")[0].splitlines()
    assert len(greeting) == 2
    assert " ".join(map(str.strip, greeting)).endswith("/help shows the commands, Ctrl-D leaves.")


def test_save_that_cannot_be(server: FakeServer) -> None:
    """Without a name, a conversation or a folder `/save` says what is wrong and the conversation goes on."""
    with talk(server) as terminal:
        say(terminal, "/save", "error: say where to: /save FILE")
        say(terminal, "/save x.md", "error: there is nothing to save yet")
        say(terminal, "How?", ANSWER)
        say(terminal, "/save /nowhere/at/all", "No such file or directory")


def test_no_model_to_talk_with(server: FakeServer) -> None:
    """A conversation without a server or without the model does not begin: status 1."""
    with Terminal("chat", "--server", "127.0.0.1:1") as terminal:
        assert terminal.end() == 1
        assert "error: All servers failed: http://127.0.0.1:1: refused" in " ".join(terminal.text().split())
    with Terminal("chat", "--server", server.url, "--model", "other") as terminal:
        assert terminal.end() == 1
        assert "error: model 'other' not found" in terminal.text()


def test_json_has_no_conversation(server: FakeServer) -> None:
    """`--json` needs a prompt, on a terminal too."""
    with Terminal("chat", "--json", "--server", server.url) as terminal:
        assert terminal.end() == 2
        assert "error: a conversation has no JSON: give a prompt" in terminal.text()
