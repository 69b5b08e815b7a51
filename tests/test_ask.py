"""The arguments of chat and achat: what is sent, and what is refused before anything is."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from tests.colours import Chat

from aicortex import ModelNotFoundError, RequestRejectedError, StreamInterruptedError
from aicortex.testing import Answer, Close, FakeServer, Hang, Status, split_tokens

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}}


def sent(chat: Chat, prompt: str | None = "Hi", **arguments: Any) -> dict[str, Any]:
    with FakeServer(answer="Hello.") as server:
        assert chat(prompt, servers=server.url, **arguments) == "Hello."
        body = server.requests[-1].json
    assert isinstance(body, dict)
    return body


def test_the_least_that_is_sent(chat: Chat) -> None:
    """A prompt alone sends model, message and stream, and no option nobody asked for."""
    expected = {"model": "fake:latest", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    assert sent(chat) == expected


def test_everything_that_can_be_sent(chat: Chat) -> None:
    """Each argument lands where Ollama looks for it."""
    body = sent(
        chat,
        "And now?",
        model="fake",
        messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
        system="Be brief.",
        think="low",
        temperature=0,
        top_p=0.5,
        max_tokens=7,
        stop="END",
        seed=3,
        options={"num_ctx": 2048, "seed": 1},
        keep_alive="5m",
    )
    assert [(message["role"], message["content"]) for message in body["messages"]] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("user", "And now?"),
    ]
    assert body["options"] == {
        "num_ctx": 2048,
        "temperature": 0,
        "top_p": 0.5,
        "num_predict": 7,
        "stop": ["END"],
        "seed": 3,
    }
    assert (body["model"], body["think"], body["keep_alive"]) == ("fake", "low", "5m")


@pytest.mark.parametrize("shape", ["json", SCHEMA])
def test_tools_and_format_are_passed_through(chat: Chat, shape: str | dict[str, Any]) -> None:
    """Schemas reach the server as they are, and an empty list of tools is none."""
    with FakeServer(answer='{"answer": "Hello."}') as server:
        assert chat("Hi", servers=server.url, tools=(TOOL,), format=shape) == {"answer": "Hello."}
        body = server.requests[-1].json
    assert isinstance(body, dict)
    assert (body["tools"], body["format"]) == ([TOOL], shape)
    assert "tools" not in sent(chat, tools=[])


def test_what_is_the_clients_own_is_not_sent(chat: Chat) -> None:
    """How to go on, when to ask a second server and how slow is too slow are nothing a server needs to know."""
    body = sent(chat, resume="continue", hedge_after=5, min_tokens_per_second=0.5)
    assert set(body) == {"model", "messages", "stream"}


def test_images_go_with_the_last_user_message(chat: Chat, tmp_path: Path) -> None:
    """Paths, bytes and data URLs all become base64."""
    file = tmp_path / "dot.png"
    file.write_bytes(PNG)
    encoded = base64.b64encode(PNG).decode()
    body = sent(chat, images=[file, str(file), PNG, f"data:image/png;base64,{encoded}"])
    assert body["messages"][0]["images"] == [encoded] * 4


def test_the_callers_messages_are_not_changed(chat: Chat) -> None:
    """What the caller passed is read and never written."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Look"}]
    sent(chat, None, messages=messages, images=[PNG])
    assert messages == [{"role": "user", "content": "Look"}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": None}, "nothing is asked"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": 3}, "prompt must be text"),
        ({"prompt": "\ud800"}, "surrogates"),
        ({"system": ""}, "system is empty"),
        ({"messages": [{"role": "robot"}]}, "messages[0]"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "", "x": object()}]}, "no JSON"),
        ({"images": "x.png"}, "images is a list"),
        ({"images": ["/does/not/exist.png"]}, "cannot be read"),
        ({"images": [b""]}, "between 1 byte"),
        ({"images": ["data:image/png,xx"]}, "data URL"),
        ({"model": " "}, "model must be"),
        ({"think": "hard"}, "think must be"),
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"top_p": 1.5}, "top_p must be at most 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": 1.5}, "whole number"),
        ({"max_tokens": True}, "max_tokens must be a number"),
        ({"max_tokens": 10**400}, "max_tokens must be a number"),
        ({"temperature": 10**400}, "temperature must be a number"),
        ({"seed": -(10**400)}, "seed must be a number"),
        ({"timeout": 10**400}, "timeout must be a number"),
        ({"keep_alive": 10**400}, "keep_alive must be a number"),
        ({"stop": ""}, "stop must be"),
        ({"stop": []}, "stop must be"),
        ({"stop": 5}, "stop must be"),
        ({"stop": [5]}, "stop must be"),
        ({"stop": b"END"}, "stop must be"),
        ({"options": "fast"}, "options must be"),
        ({"options": {"x": object()}}, "no JSON"),
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"first_token_timeout": None}, "first_token_timeout must be a number"),
        ({"connect_timeout": -1}, "connect_timeout must be more than 0"),
        ({"stall_timeout": float("inf")}, "stall_timeout must be a number"),
        ({"servers": []}, "servers is empty"),
        ({"servers": [""]}, "servers is empty"),
        ({"resume": "always"}, "resume must be 'continue' or 'never', not 'always'"),
        ({"resume": True}, "resume must be"),
        ({"hedge_after": -1}, "hedge_after must be at least 0"),
        ({"hedge_after": "soon"}, "hedge_after must be a number"),
        ({"hedge_after": True}, "hedge_after must be a number"),
        ({"hedge_after": 1e10}, "hedge_after must be at most"),
        ({"min_tokens_per_second": -0.1}, "min_tokens_per_second must be at least 0"),
        ({"min_tokens_per_second": float("nan")}, "min_tokens_per_second must be a number"),
        ({"min_tokens_per_second": "few"}, "min_tokens_per_second must be a number"),
        ({"tools": "add"}, "tools is a list"),
        ({"tools": ["add"]}, "tools is a list"),
        ({"tools": 5}, "tools is a list"),
        ({"tools": TOOL}, "tools is a list"),
        ({"tools": [{}]}, "tools is a list"),
        ({"tools": [TOOL, TOOL["function"]]}, "{'type': 'function', 'function': {'name': …"),
        ({"tools": [{"type": "function", "function": "add"}]}, "tools is a list"),
        ({"tools": [{"type": "function", "function": {"parameters": {}}}]}, "tools is a list"),
        ({"tools": [{"type": "function", "function": {"name": 3}}]}, "tools is a list"),
        ({"tools": [{"type": "function", "function": {"name": "add", "parameters": object()}}]}, "must be JSON"),
        ({"format": "yaml"}, "format must be 'json'"),
        ({"format": {}}, "format must be 'json'"),
        ({"format": {"type": object()}}, "format is no JSON"),
        ({"servers": [1]}, "list of addresses"),
        ({"keep_alive": object()}, "keep_alive must be a number"),
        ({"stall_timeout": 1e10}, "stall_timeout must be at most"),
        ({"servers": ["ftp://box"]}, "no server address"),
    ],
)
def test_wrong_arguments_raise_in_chat(chat: Chat, arguments: dict[str, Any], words: str) -> None:
    """C1: a mistake of the caller is a ValueError with what to write, and no request is made."""
    with FakeServer() as server:
        call = {"prompt": "Hi", "servers": [server.url], "stream": True} | arguments
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below, not as a pattern
            chat(call.pop("prompt"), **call)
        assert words in str(caught.value)
        assert server.requests == []


def test_unknown_arguments_raise(chat: Chat) -> None:
    """A misspelt argument is not ignored."""
    with pytest.raises(TypeError, match="temprature"):
        chat("Hi", temprature=0.5)


def test_an_unknown_model_raises_in_chat_with_close_matches(chat: Chat) -> None:
    """C1: ModelNotFoundError is a ValueError of chat itself and names what looks like it."""
    with FakeServer(models=("llama3.2:3b", "qwen3:8b")) as server:
        with pytest.raises(ModelNotFoundError, match=r"did you mean 'llama3\.2:3b'") as caught:
            chat("Hi", model="lama3.2:3b", stream=True, servers=[server.url])
        assert not any(request.path == "/api/chat" for request in server.requests)
    assert isinstance(caught.value, ValueError)
    assert (caught.value.model, caught.value.matches) == ("lama3.2:3b", ["llama3.2:3b"])
    assert caught.value.available == ["llama3.2:3b", "qwen3:8b"]


def test_a_fleet_without_models_says_what_to_do(chat: Chat) -> None:
    """A fresh Ollama has nothing to answer with."""
    with FakeServer(models=()) as server, pytest.raises(ModelNotFoundError, match="ollama pull"):
        chat("Hi", servers=[server.url])


def test_without_stream_errors_are_raised_by_chat(chat: Chat) -> None:
    """The plain call raises what the stream would."""
    with FakeServer(Answer("one two three").then(Close(), after_tokens=2)) as server:
        with pytest.raises(StreamInterruptedError) as caught:
            chat("Hi", servers=[server.url], resume="never")
        assert caught.value.partial == "one two"
    with (
        FakeServer(Status(400, {"error": '"fake" does not support tools'})) as server,
        pytest.raises(RequestRejectedError, match="does not support tools"),
    ):
        chat("Hi", servers=[server.url])


ANSWER = "One two three four five."
BREAKING = Answer(ANSWER).then(Close(), after_tokens=2)


@pytest.mark.parametrize(
    ("setting", "argument", "goes_on"),
    [
        (None, None, True),
        ("", None, True),
        ("continue", None, True),
        ("never", None, False),
        (" never ", None, False),
        ("NEVER", None, False),
        ("Continue", None, True),
        ("never", "continue", True),
        ("continue", "never", False),
        (None, "never", False),
        ("always", "continue", True),
    ],
)
def test_whether_answers_are_continued(
    chat: Chat, setting: str | None, argument: Any, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AICORTEX_RESUME holds where a call does not say, and the default is to go on."""
    if setting is not None:
        monkeypatch.setenv("AICORTEX_RESUME", setting)
    with FakeServer(BREAKING) as one, FakeServer(answer=ANSWER) as two:
        servers = [one.url, two.url]
        if goes_on:
            assert chat("Hi", servers=servers, resume=argument) == ANSWER
            return
        with pytest.raises(StreamInterruptedError) as caught:
            chat("Hi", servers=servers, resume=argument)
    assert caught.value.partial == "".join(split_tokens(ANSWER)[:2])


def test_a_wrong_setting_is_told_with_its_name(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """C1: a mistake in the environment is a ValueError that names the variable, before any request."""
    monkeypatch.setenv("AICORTEX_RESUME", "always")
    with FakeServer() as server, pytest.raises(ValueError, match=r"^AICORTEX_RESUME: resume must be 'continue' or"):
        chat("Hi", servers=[server.url])
    assert server.requests == []


def test_hedge_after_nothing_asks_two_at_once(chat: Chat) -> None:
    """hedge_after=0 is allowed: the second server is asked as soon as nothing of the first one is there."""
    with FakeServer(Hang()) as one, FakeServer(answer=ANSWER) as two:
        assert chat("Hi", servers=[one.url, two.url], hedge_after=0) == ANSWER
        assert one.wait_for_disconnect(1)


def test_a_model_that_cannot_see(chat: Chat) -> None:
    """An image for a model whose server says that it cannot see is refused, and the question is not asked."""
    with FakeServer(capabilities=["completion"]) as server:
        with pytest.raises(ValueError, match="the model 'fake:latest' cannot see images"):
            chat("What is it?", images=[PNG], servers=server.url)
        assert "/api/chat" not in [request.path for request in server.requests]
    with FakeServer(answer="A dot.", capabilities=[]) as server:
        assert chat("What is it?", images=[PNG], servers=server.url) == "A dot."
