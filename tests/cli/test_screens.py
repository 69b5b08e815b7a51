"""What stdout gets: raw text, JSON, or Markdown on a terminal."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest

from aicortex.cli.render import MarkdownScreen
from aicortex.cli.screens import JsonScreen, TextScreen
from aicortex.events import StreamEvent
from aicortex.testing import (
    Answer,
    FakeServer,
    Hang,
    Status,
)
from cli.running import PATIENCE, Terminal, draw, environment, finish, pretend_terminal, read_until, run, start

TEXT = "Black holes form when stars die."


def test_tokens_come_as_they_are_made(server: FakeServer) -> None:
    """The first tokens are there while the server still generates."""
    server.script(Answer("one two three").then(Hang(), after_tokens=2))
    process = start("chat", "Hi", "--server", server.url)
    assert read_until(process, b"two") == b"one two"
    process.send_signal(signal.SIGINT)
    assert finish(process).status == 130


def test_json_is_one_event_a_line(server: FakeServer) -> None:
    """`--json` writes each event as a line of JSON, from start to end."""
    ended = run("chat", "Hi", "--json", "--server", server.url)
    events = [json.loads(line) for line in ended.out.splitlines()]
    assert (ended.status, ended.err) == (0, "")
    assert [events[0]["type"], events[-1]["type"]] == ["start", "end"]
    assert "".join(event["content"] for event in events if event["type"] == "token") == TEXT
    fields = {"type", "content", "index", "tool_name", "tool_args", "tool_result", "meta", "timestamp"}
    assert set(events[0]) == fields


def test_json_of_a_failure(server: FakeServer) -> None:
    """With `--json` an error is an event, a message on stderr and status 1."""
    server.script(Status(500))
    ended = run("chat", "Hi", "--json", "--server", server.url)
    kinds = [json.loads(line)["type"] for line in ended.out.splitlines()]
    assert (ended.status, kinds) == (1, ["start", "meta", "error"])
    assert ended.err.startswith("aicortex: error: All servers failed")


@pytest.mark.parametrize(
    ("answer", "out"), [("Hello\n", "Hello\n"), ("Hello\n\n", "Hello\n\n"), ("\x1b[2J", "\x1b[2J\n")]
)
def test_raw_text(server: FakeServer, answer: str, out: str) -> None:
    """A pipe gets the tokens as they are, and a newline only where there is none."""
    server.script(Answer([answer]))
    assert run("chat", "Hi", "--server", server.url).out == out


def test_pipes_load_no_rich(server: FakeServer) -> None:
    """An answer into a pipe loads neither rich nor asyncio nor ssl."""
    code = (
        "import sys; from aicortex.cli import main; main(sys.argv[1:]);"
        "print(sorted({'rich', 'markdown_it', 'asyncio', 'ssl', 'aicortex.cli.render'} & set(sys.modules)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, "chat", "Hi", "--server", server.url],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        timeout=PATIENCE,
        check=False,
    )
    assert process.stdout.decode() == f"{TEXT}\n[]\n"


MARKDOWN = "Some `code` here\n\n- item"
COLOUR = re.compile(r"\x1b\[([0-9;]*;)?[34][0-7][;m]")


@pytest.mark.parametrize(("more", "has_colours"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_terminal_shows_markdown(server: FakeServer, more: dict[str, str], has_colours: bool) -> None:
    """A terminal shows Markdown rendered, with colours unless NO_COLOR is set."""
    server.script(Answer([MARKDOWN]))
    with Terminal("chat", "Hi", "--server", server.url, more=more) as terminal:
        assert terminal.end() == 0
        assert terminal.text() == "Some code here\n\n • item\n"
        assert bool(COLOUR.search(terminal.raw)) == has_colours


@pytest.mark.parametrize(
    ("options", "more"), [(["--plain"], {}), (["--no-markdown"], {}), ([], {"TERM": "dumb"}), ([], {"TERM": ""})]
)
def test_plain_terminal(server: FakeServer, options: list[str], more: dict[str, str]) -> None:
    """Told to be plain, or dumb, a terminal shows the text as it is."""
    server.script(Answer([MARKDOWN]))
    with Terminal("chat", "Hi", "--server", server.url, *options, more=more) as terminal:
        assert terminal.end() == 0
        assert terminal.raw == "Some `code` here\r\n\r\n- item\r\n"


@pytest.mark.parametrize("options", [[], ["--plain"]])
def test_answers_do_not_steer_the_terminal(server: FakeServer, options: list[str]) -> None:
    """Control characters of an answer are shown and not obeyed."""
    server.script(Answer(["a\x1b[2Jb"]))
    with Terminal("chat", "Hi", "--server", server.url, *options) as terminal:
        assert terminal.end() == 0
        assert terminal.text() == "a\ufffd[2Jb\n"


def test_ctrl_c_on_a_terminal(server: FakeServer) -> None:
    """Ctrl-C leaves what came, says "stopped" on a line of its own and gives status 130."""
    server.script(Answer("one two three").then(Hang(), after_tokens=2))
    with Terminal("chat", "Hi", "--server", server.url) as terminal:
        terminal.wait_for("one two")
        terminal.interrupt()
        assert terminal.end() == 130
        assert terminal.text() == "one two^C\naicortex: stopped\n"
    assert server.wait_for_disconnect()


ROW = "0123456789" * 2


def drawn(raw: str) -> list[str]:
    """Return the lines on a terminal of 20 columns and 5 rows."""
    return draw(raw.replace("\n", "\r\n"), 20, 5)


@pytest.mark.parametrize(
    "tokens",
    [
        [ROW[:-1], "9", "more"],
        [ROW, "more"],
        [ROW, "\n", "more"],
        [ROW, "\n\nmore"],
        [ROW],
        [f"{ROW}\n"],
        ["two\n" * 6],
    ],
)
def test_words_below_the_text_leave_no_trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tokens: list[str]
) -> None:
    """With words below it after each token, in full rows too, a text ends on the screen as it does without them."""
    pretend_terminal(monkeypatch, 20, 5)
    screen = TextScreen()
    raw = ""
    for token in tokens:
        screen.show(StreamEvent("token", token))
        screen.say("| first")
        screen.say("/ then")
        raw += capsys.readouterr().out
        assert drawn(raw)[-1] == "/ then"
    screen.finish()
    raw += capsys.readouterr().out
    plain = "".join(tokens).removesuffix("\n") + "\n"
    assert drawn(raw) == drawn(plain)


def test_no_words_where_a_row_may_be_full(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind an emoji at the end of a row nobody knows where the cursor stands, and it stays there."""
    pretend_terminal(monkeypatch, 20, 5)
    screen = TextScreen()
    screen.show(StreamEvent("token", ROW[:18] + "🦊"))
    screen.say("words")
    assert capsys.readouterr().out == ROW[:18] + "🦊"


def test_words_below_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the words stand below the lines of JSON, and vanish with the next one."""
    pretend_terminal(monkeypatch, 20, 5)
    screen = JsonScreen()
    event = StreamEvent("token", "x")
    screen.show(event)
    screen.say("words")
    assert draw(capsys.readouterr().out.replace("\n", "\r\n"), 400, 5)[1:] == ["words"]
    screen.show(event)
    screen.finish()
    assert capsys.readouterr().out == f"\x1b[J{event.to_json()}\n"


def test_words_below_markdown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Words below a rendering leave no trace, wherever they come: the list is as it is without them."""
    pretend_terminal(monkeypatch, 20, 5)
    raw = {}
    for words in ("", "words"):
        screen = MarkdownScreen()
        for token in ("- one\n", "- t", "wo\n- a longer third item\n\nThe", " end is a *long* line of", " text.\n"):
            screen.show(StreamEvent("token", token))
            screen._rest_until = 0.0
            screen.refresh()
            if words:
                screen.say(words)
        screen.finish()
        raw[words] = drawn(capsys.readouterr().out)
    assert raw["words"] == raw[""]
    assert "words" not in raw["words"]
