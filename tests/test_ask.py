"""The arguments of chat: what is sent, and what is refused before anything is."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from aicortex import ModelNotFoundError, RequestRejectedError, StreamInterruptedError, chat
from aicortex.testing import Answer, Close, FakeServer, Status

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def sent(prompt: str | None = "Hi", **arguments: Any) -> dict[str, Any]:
    with FakeServer(answer="Hello.") as server:
        assert chat(prompt, servers=server.url, **arguments) == "Hello."
        body = server.requests[-1].json
    assert isinstance(body, dict)
    return body


def test_the_least_that_is_sent() -> None:
    """A prompt alone sends model, message and stream, and no option nobody asked for."""
    expected = {"model": "fake:latest", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    assert sent() == expected


def test_everything_that_can_be_sent() -> None:
    """Each argument lands where Ollama looks for it."""
    body = sent(
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


def test_images_go_with_the_last_user_message(tmp_path: Path) -> None:
    """Paths, bytes and data URLs all become base64."""
    file = tmp_path / "dot.png"
    file.write_bytes(PNG)
    encoded = base64.b64encode(PNG).decode()
    body = sent(images=[file, str(file), PNG, f"data:image/png;base64,{encoded}"])
    assert body["messages"][0]["images"] == [encoded] * 4


def test_the_callers_messages_are_not_changed() -> None:
    """What the caller passed is read and never written."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Look"}]
    sent(None, messages=messages, images=[PNG])
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
        ({"stop": ""}, "stop must be"),
        ({"stop": []}, "stop must be"),
        ({"options": "fast"}, "options must be"),
        ({"options": {"x": object()}}, "no JSON"),
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"first_token_timeout": None}, "first_token_timeout must be a number"),
        ({"connect_timeout": -1}, "connect_timeout must be more than 0"),
        ({"stall_timeout": float("inf")}, "stall_timeout must be a number"),
        ({"servers": []}, "servers is empty"),
        ({"servers": [""]}, "servers is empty"),
        ({"servers": [1]}, "list of addresses"),
        ({"keep_alive": object()}, "keep_alive must be a number"),
        ({"stall_timeout": 1e10}, "stall_timeout must be at most"),
        ({"servers": ["ftp://box"]}, "no server address"),
    ],
)
def test_wrong_arguments_raise_in_chat(arguments: dict[str, Any], words: str) -> None:
    """C1: a mistake of the caller is a ValueError with what to write, and no request is made."""
    with FakeServer() as server:
        call = {"prompt": "Hi", "servers": [server.url], "stream": True} | arguments
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below, not as a pattern
            chat(call.pop("prompt"), **call)
        assert words in str(caught.value)
        assert server.requests == []


def test_unknown_arguments_raise() -> None:
    """A misspelt argument is not ignored."""
    with pytest.raises(TypeError, match="temprature"):
        chat("Hi", temprature=0.5)  # type: ignore[call-overload]


def test_an_unknown_model_raises_in_chat_with_close_matches() -> None:
    """C1: ModelNotFoundError is a ValueError of chat itself and names what looks like it."""
    with FakeServer(models=("llama3.2:3b", "qwen3:8b")) as server:
        with pytest.raises(ModelNotFoundError, match=r"did you mean 'llama3\.2:3b'") as caught:
            chat("Hi", model="lama3.2:3b", stream=True, servers=[server.url])
        assert not any(request.path == "/api/chat" for request in server.requests)
    assert isinstance(caught.value, ValueError)
    assert (caught.value.model, caught.value.matches) == ("lama3.2:3b", ["llama3.2:3b"])
    assert caught.value.available == ["llama3.2:3b", "qwen3:8b"]


def test_a_fleet_without_models_says_what_to_do() -> None:
    """A fresh Ollama has nothing to answer with."""
    with FakeServer(models=()) as server, pytest.raises(ModelNotFoundError, match="ollama pull"):
        chat("Hi", servers=[server.url])


def test_without_stream_errors_are_raised_by_chat() -> None:
    """The plain call raises what the stream would."""
    with FakeServer(Answer("one two three").then(Close(), after_tokens=2)) as server:
        with pytest.raises(StreamInterruptedError) as caught:
            chat("Hi", servers=[server.url])
        assert caught.value.partial == "one two"
    with (
        FakeServer(Status(400, {"error": '"fake" does not support tools'})) as server,
        pytest.raises(RequestRejectedError, match="does not support tools"),
    ):
        chat("Hi", servers=[server.url])
