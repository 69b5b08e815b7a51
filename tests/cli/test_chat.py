"""`aicortex chat` with one prompt: what it asks, what it writes where, and how it ends."""

from __future__ import annotations

import os
import subprocess

import pytest

from aicortex.testing import (
    Answer,
    FakeServer,
    Hang,
)
from cli.running import (
    COMMAND,
    PATIENCE,
    Ended,
    asked,
    environment,
    last_message,
    run,
)

TEXT = "Black holes form when stars die."


def test_answers_and_nothing_else_on_stdout(server: FakeServer) -> None:
    """A prompt gives the answer and one newline on stdout, nothing on stderr, and status 0."""
    assert run("chat", "How?", "--server", server.url) == Ended(0, TEXT + "\n", "")
    assert asked(server)["messages"] == [{"role": "user", "content": "How?"}]


def test_options_reach_the_server(server: FakeServer) -> None:
    """Model, system, temperature, max tokens and seed are sent as Ollama names them."""
    options = ["--model", "qwen3:8b", "--system", "Be brief.", "--temperature", "0.5", "--max-tokens", "9"]
    assert run("chat", "--server", server.url, *options, "--seed", "7", "Hi").status == 0
    body = asked(server)
    assert body["model"] == "qwen3:8b"
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert body["options"] == {"temperature": 0.5, "num_predict": 9, "seed": 7}


def test_deadlines_reach_the_stream(server: FakeServer) -> None:
    """A server that is silent for `--stall-timeout` has failed; after `--hedge-after` a second one is asked."""
    server.script(Answer(TEXT).then(Hang(), after_tokens=1))
    ended = run("chat", "Hi", "--server", server.url, "--stall-timeout", "0.2", "--resume", "never")
    assert (ended.status, ended.out) == (1, "Black\n")
    assert "nothing came for 0.2 s" in ended.err
    server.script(Hang())
    with FakeServer(models=["llama3.2:3b"], answer=TEXT) as other:
        ended = run("chat", "Hi", "--server", server.url, "--server", other.url, "--hedge-after", "0.1")
        assert (ended.out, asked(other)["messages"][-1]["content"]) == (TEXT + "\n", "Hi")


def test_words_without_quotes_are_one_prompt(server: FakeServer) -> None:
    """Several words are joined with spaces."""
    run("chat", "--server", server.url, "Why", "is", "it", "blue?")
    assert last_message(server) == "Why is it blue?"


@pytest.mark.parametrize(
    ("arguments", "text", "prompt"),
    [
        ([], b"How?\n", "How?"),
        (["-"], b"How?\n", "How?"),
        (["Translate."], b"Bonjour\n\nle monde\n", "Translate.\n\nBonjour\n\nle monde"),
        (["Translate.", "-"], b"Bonjour", "Translate.\n\nBonjour"),
        (["How?"], b" \n", "How?"),
        ([], b"\xef\xbb\xbfHow?\r\n", "How?"),
        ([], "Где? 🦊".encode(), "Где? 🦊"),
    ],
)
def test_prompt_from_a_pipe(server: FakeServer, arguments: list[str], text: bytes, prompt: str) -> None:
    """A pipe gives the prompt, or the text which the argument is an instruction for."""
    assert run("chat", "--server", server.url, *arguments, text=text).status == 0
    assert last_message(server) == prompt


@pytest.mark.parametrize(
    ("arguments", "text", "words"),
    [
        ([], b"", "nothing is asked"),
        (["-"], b"\n", "nothing is asked"),
        ([" "], b"text", "the prompt is empty"),
        ([], b"caf\xe9", "not UTF-8 (byte 3 is 0xe9)"),
        ([b"caf\xe9"], b"", "not UTF-8"),
        (["Hi", "--temperature", "-1"], b"", "temperature must be at least 0"),
        (["Hi", "--temperature", "warm"], b"", "argument --temperature: 'warm' is not a number"),
        (["Hi", "--max-tokens", "0"], b"", "max_tokens must be at least 1"),
        (["Hi", "--max-tokens", "many"], b"", "argument --max-tokens: 'many' is not a whole number"),
        (["Hi", "--seed", "1.5"], b"", "argument --seed: '1.5' is not a whole number"),
        (["Hi", "--timeout", "0"], b"", "timeout must be more than 0 seconds"),
        (["Hi", "--stall-timeout", "0"], b"", "stall_timeout must be"),
        (["Hi", "--hedge-after", "soon"], b"", "argument --hedge-after: 'soon' is not a number"),
        (["Hi", "--timeout", "nan"], b"", "timeout must be a number"),
        (["Hi", "--system", ""], b"", "system is empty"),
        (["Hi", "--model", ""], b"", "model must be a model's name"),
        (["Hi", "--server", "http://a b"], b"", "no server address"),
        (["Hi", "--server", ""], b"", "servers is empty"),
        (["Hi", "--server"], b"", "expected one argument"),
        (["Hi", "--colour"], b"", "unrecognized arguments: --colour"),
    ],
)
def test_wrong_arguments(server: FakeServer, arguments: list[str | bytes], text: bytes, words: str) -> None:
    """A wrong argument is named on stderr, with status 2 and without a request."""
    ended = run("chat", *arguments, text=text, AICORTEX_SERVERS=server.url)
    assert (ended.status, ended.out) == (2, "")
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert [request for request in server.requests if request.path == "/api/chat"] == []


def test_no_prompt_and_no_terminal_for_the_answer(server: FakeServer) -> None:
    """Without a prompt and with stdout in a pipe, a terminal as stdin opens no conversation: status 2."""
    master, slave = os.openpty()
    process = subprocess.run(
        [*COMMAND, "chat", "--server", server.url],
        stdin=slave,
        capture_output=True,
        env=environment(),
        timeout=PATIENCE,
        check=False,
    )
    os.close(master)
    os.close(slave)
    assert (process.returncode, process.stdout) == (2, b"")
    assert process.stderr.startswith(b"aicortex: error: nothing is asked: give a prompt")
