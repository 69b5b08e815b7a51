"""One question: failover, faults, Ctrl-C and what stderr says about the answer."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from aicortex.registry.credentials import entry_of
from aicortex.registry.store import Registry
from aicortex.testing import (
    Answer,
    Close,
    FakeServer,
    Garbage,
    Hang,
    InBandError,
    Refuse,
    Reply,
    Reset,
    Status,
)
from cli.running import PATIENCE, Ended, asked, finish, read_until, run, start

TEXT = "Black holes form when stars die."
DEAD = "127.0.0.1:1"  # nothing listens on port 1


def test_ctrl_c_stops_the_answer_on_the_server(server: FakeServer) -> None:
    """Ctrl-C cancels the generation, ends the line, says so on stderr and gives status 130."""
    server.script(Answer("one two three").then(Hang(), after_tokens=2))
    process = start("chat", "Hi", "--server", server.url)
    read_until(process, b"one two")
    process.send_signal(signal.SIGINT)
    assert finish(process) == Ended(130, "\n", "aicortex: stopped\n")
    assert server.wait_for_disconnect()


def test_ctrl_c_before_the_first_token(server: FakeServer) -> None:
    """Ctrl-C while nothing has come yet cancels too, and leaves stdout empty."""
    server.script(Hang())
    process = start("chat", "Hi", "--server", server.url)
    assert server.wait_until(lambda: server.active == 1, PATIENCE)
    process.send_signal(signal.SIGINT)
    assert finish(process) == Ended(130, "", "aicortex: stopped\n")
    assert server.wait_for_disconnect()


def test_failover_is_told(server: FakeServer) -> None:
    """A server that fails before the first token is named in one line of stderr, with its successor."""
    with FakeServer(InBandError("no memory"), models=("llama3.2:3b",)) as broken:
        ended = run("chat", "Hi", "--server", broken.url, "--server", server.url, "--model", "llama3.2:3b")
        said = f"aicortex: server {broken.url} failed (no memory), asking {server.url}\n"
    assert ended == Ended(0, TEXT + "\n", said)


def test_every_failover_is_told(server: FakeServer) -> None:
    """Two failures give two lines."""
    models = ("llama3.2:3b",)
    with FakeServer(Status(500), models=models) as first, FakeServer(InBandError(), models=models) as second:
        servers = [word for each in (first, second, server) for word in ("--server", each.url)]
        ended = run("chat", "Hi", "--model", "llama3.2:3b", *servers)
        lines = ended.err.splitlines()
        assert (ended.status, ended.out, len(lines)) == (0, TEXT + "\n", 2)
        assert lines[0].endswith(f", asking {second.url}")
        assert lines[1].startswith(f"aicortex: server {second.url} failed (")


def test_busy_server_is_asked_again(server: FakeServer) -> None:
    """A busy server that is the only one is asked again, and stderr says so."""
    server.script(Status(503, headers={"Retry-After": "0"}))
    ended = run("chat", "Hi", "--server", server.url)
    assert (ended.status, ended.out) == (0, TEXT + "\n")
    assert ended.err.endswith("), asking it again\n")


def test_cut_answer(server: FakeServer) -> None:
    """An answer that breaks off shows what came, says on stderr that it is incomplete, and gives status 1."""
    server.script(Answer("one two three").then(Close(), after_tokens=2))
    ended = run("chat", "Hi", "--server", server.url, "--resume", "never")
    assert (ended.status, ended.out) == (1, "one two\n")
    assert ended.err.startswith("aicortex: error: the answer is incomplete: Stream interrupted after 7 characters")
    assert ended.err.count("\n") == 1


def test_continued_answer(server: FakeServer) -> None:
    """An answer that breaks off and goes on elsewhere is whole on stdout; stderr says afterwards who did what."""
    server.script(Answer("one two three").then(Close(), after_tokens=2))
    with FakeServer(models=["llama3.2:3b"], answer="one two three") as other:
        ended = run("chat", "Hi", "--server", server.url, "--server", other.url)
    assert (ended.status, ended.out) == (0, "one two three\n")
    first, second = ended.err.splitlines()
    assert first.startswith(f"aicortex: server {server.url} failed after 7 characters (")
    assert second == f"aicortex: server {other.url} went on with the answer"


@pytest.mark.parametrize(
    "reply",
    [InBandError(), Garbage(), Reset(), Close(), Refuse(), Status(500), Status(400), Status.html()],
)
def test_servers_faults(server: FakeServer, reply: Reply) -> None:
    """Whatever a server does wrong is told in plain lines on stderr, the last one an error that names it: status 1."""
    server.paths["/api/chat"] = reply
    ended = run("chat", "Hi", "--server", server.url)
    *notes, error = ended.err.splitlines()
    assert (ended.status, ended.out) == (1, "")
    assert [line for line in notes if not line.startswith("aicortex: ")] == []
    assert error.startswith("aicortex: error: ")
    assert server.url in error


def test_no_server_at_all() -> None:
    """A server that does not listen is an error with status 1."""
    ended = run("chat", "Hi", "--server", DEAD)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("aicortex: error: All servers failed: http://127.0.0.1:1 (connect): refused")


def test_model_nobody_has(server: FakeServer) -> None:
    """A model that no server has is an error with close matches and status 1."""
    ended = run("chat", "Hi", "--server", server.url, "--model", "llama3.2:1b")
    assert (ended.status, ended.out) == (1, "")
    assert "model 'llama3.2:1b' not found" in ended.err
    assert "did you mean 'llama3.2:3b'?" in ended.err


def test_timeout(server: FakeServer) -> None:
    """An answer that is not whole in time shows what came and gives status 1."""
    server.script(Answer("one two three").then(Hang(), after_tokens=2))
    ended = run("chat", "Hi", "--server", server.url, "--timeout", "0.3")
    assert (ended.status, ended.out) == (1, "one two\n")
    assert "not whole within 0.3 s" in ended.err


def test_stats(server: FakeServer) -> None:
    """`--stats` adds a line on stderr: first token, speed, tokens, model, server, and why that server."""
    ended = run("chat", "Hi", "--stats", "--server", server.url)
    assert (ended.status, ended.out) == (0, TEXT + "\n")
    assert ended.err.startswith("aicortex: first token 0.0")
    assert ended.err.endswith(f" s, llama3.2:3b on {server.url}; chosen: the only server\n")
    assert ", 100.0 tokens/s, 6 tokens in " in ended.err


def test_stats_of_a_failover(server: FakeServer) -> None:
    """`--stats` says how many attempts it took."""
    with FakeServer(Status(500), models=("llama3.2:3b",)) as broken:
        servers = ["--server", broken.url, "--server", server.url]
        ended = run("chat", "Hi", "--stats", *servers, "--model", "llama3.2:3b")
    assert ", 2 attempts; chosen: order: number 2 of " in ended.err


def test_server_without_counters(server: FakeServer) -> None:
    """`--stats` does not invent a speed which the server did not measure."""
    server.script(Answer("Hello", eval_count=0))
    assert ", tokens/s unknown, 0 tokens in " in run("chat", "Hi", "--stats", "--server", server.url).err


def test_empty_answer(server: FakeServer) -> None:
    """An answer without a token is said to be empty; it is whole all the same."""
    server.script(Answer(""))
    ended = run("chat", "Hi", "--server", server.url)
    assert ended == Ended(0, "", "aicortex: the model answered nothing\n")


def test_limit_is_told(server: FakeServer) -> None:
    """An answer that ends at its limit says so on stderr."""
    server.script(Answer("one two", done_reason="length"))
    ended = run("chat", "Hi", "--server", server.url, "--max-tokens", "2")
    assert ended == Ended(0, "one two\n", "aicortex: the answer ends at its limit of 2 tokens\n")


def test_one_token_is_not_tokens(server: FakeServer) -> None:
    """A single token is told in the singular."""
    server.script(Answer("one", done_reason="length"))
    ended = run("chat", "Hi", "--server", server.url, "--max-tokens", "1", "--stats")
    assert "aicortex: the answer ends at its limit of 1 token\n" in ended.err
    assert ", 1 token in " in ended.err


def test_local_server_that_does_not_answer() -> None:
    """A named local server that is not there is told in one line, not as Python's warning."""
    ended = run("chat", "Hi", "--model", "nobody-has-this", OLLAMA_HOST=DEAD)
    assert ended.status == 1
    assert ended.err.startswith("aicortex: OLLAMA_HOST: http://127.0.0.1:1 does not answer")
    assert ended.err.count("\n") == 2


def test_registered_servers_are_routed(server: FakeServer) -> None:
    """Without --server the strategy decides among all in use, and `--stats` says why it chose."""
    with FakeServer(models=["llama3.2:3b"], answer=TEXT) as other, Registry() as registry:
        registry.add(entry_of(server.url, name="desk", priority=2))
        registry.add(entry_of(other.url, name="rack", priority=1))
        ended = run("chat", "Hi", "--stats", "--model", "llama3.2:3b", "--routing", "priority")
        assert f"on {other.url}; chosen: priority: 1" in ended.err
        assert "; chosen: balanced: " in run("chat", "Hi", "--stats", "--model", "llama3.2:3b").err
        ended = run("chat", "Hi", "--stats", "--server", "desk", "--server", "rack", "--model", "llama3.2:3b")
        assert f"on {server.url}; chosen: order: number 1" in ended.err


def test_server_without_its_key(server: FakeServer) -> None:
    """A registered server whose key is missing is left out, which is said once."""
    with Registry() as registry:
        registry.add(entry_of(server.url))
        registry.add(entry_of(DEAD, api_key="env:NO_SUCH_KEY"))
    ended = run("chat", "Hi")
    assert (ended.status, ended.out) == (0, TEXT + "\n")
    assert ended.err.count("NO_SUCH_KEY") == 1


def test_images_and_thinking_reach_the_server(server: FakeServer, tmp_path: Path) -> None:
    """Pictures go with the prompt, and whether to think is said as Ollama wants it."""
    image = tmp_path / "dot.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n and so on")
    for think, sent in (("on", True), ("off", False), ("low", "low")):
        ended = run("chat", "--server", server.url, "--image", str(image), "--think", think, "What is it?")
        assert ended.status == 0
        assert (len(asked(server)["messages"][0]["images"]), asked(server)["think"]) == (1, sent)


def test_a_picture_that_is_none(server: FakeServer, tmp_path: Path) -> None:
    """A file that is no picture is told, and nothing is asked."""
    text = tmp_path / "notes.txt"
    text.write_text("Water the tomatoes.", "utf-8")
    ended = run("chat", "--server", server.url, "--image", str(text), "What is it?")
    assert (ended.status, ended.out) == (2, "")
    assert "is text, which models cannot see" in ended.err


def test_an_answer_that_must_follow_a_schema(tmp_path: Path) -> None:
    """The schema binds the answer at the server, and one that is not what it wants ends in status 1."""
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "required": ["name"]}', "utf-8")
    with FakeServer(Answer('{"name": "Nile"}'), Answer("{}")) as server:
        good = run("chat", "--server", server.url, "--format", str(schema), "A river?")
        assert asked(server)["format"] == {"type": "object", "required": ["name"]}
        bad = run("chat", "--server", server.url, "--format", str(schema), "A river?")
    assert (good.status, good.out, good.err) == (0, '{"name": "Nile"}\n', "")
    assert (bad.status, bad.out) == (1, "{}\n")
    assert "'name' is a required property" in bad.err


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "cannot be read"), ("{", "is no JSON"), ("[]", "is no JSON schema"), ('{"type": "thing"}', "thing")],
)
def test_a_schema_that_is_none(server: FakeServer, tmp_path: Path, text: str | None, words: str) -> None:
    """What is wrong with the file is said before anything is asked."""
    schema = tmp_path / "schema.json"
    if text is not None:
        schema.write_text(text, "utf-8")
    ended = run("chat", "--server", server.url, "--format", str(schema), "A river?")
    assert (ended.status, ended.out) == (2, "")
    assert words in ended.err
