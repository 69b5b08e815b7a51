"""Structured answers, over real connections: objects instead of text, and what happens when they are none."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from tests.colours import Chat

from aicortex import Client, OutputValidationError, Result, StreamInterruptedError, stream_many
from aicortex.ask import aanswer, answer
from aicortex.request import checked
from aicortex.testing import Answer, Close, FakeServer, Reply


@dataclass
class River:
    name: str
    length: int


NILE = River("Nile", 6650)
GOOD = '{"name": "Nile", "length": 6650}'
BAD = '{"name": "Nile", "length": "long"}'
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@pytest.mark.parametrize(
    ("format", "expected"),
    [(River, NILE), (SCHEMA, msgspec.json.decode(GOOD)), ("json", msgspec.json.decode(GOOD))],
)
def test_an_object_instead_of_text(chat: Chat, format: Any, expected: object) -> None:
    """The schema binds the answer at the server, and the object comes back, or from the stream when it is whole."""
    with FakeServer(answer=GOOD) as server:
        assert chat("Name a river.", format=format, servers=server.url) == expected
        body = server.requests[-1].json
        stream = chat("Name a river.", format=format, servers=server.url, stream=True)
        assert stream.text() == GOOD
        assert stream.object() == expected
    assert isinstance(body, dict)
    assert body["format"] == (format if format is not River else body["format"])
    assert format is not River or set(body["format"]["properties"]) == {"name", "length"}


def test_an_answer_that_does_not_validate_is_asked_for_once_more(chat: Chat) -> None:
    """The model sees its answer and what is wrong with it; what it says then is returned."""
    with FakeServer(Answer(BAD), Answer(GOOD)) as server:
        assert chat("Name a river.", format=River, servers=server.url) == NILE
        first, second = (request.json for request in server.requests if request.path == "/api/chat")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert second["messages"][:2] == [*first["messages"], {"role": "assistant", "content": BAD}]
    assert second["messages"][2]["role"] == "user"
    assert "length" in second["messages"][2]["content"]
    assert second["format"] == first["format"]


def test_twice_is_enough(chat: Chat) -> None:
    """An answer that does not validate the second time is an error with its text and the reason."""
    with FakeServer(answer=BAD) as server:
        with pytest.raises(OutputValidationError, match="length") as caught:
            chat("Name a river.", format=River, servers=server.url)
        assert len([request for request in server.requests if request.path == "/api/chat"]) == 2
    assert caught.value.text == BAD
    assert "$.length" in caught.value.reason


def test_a_stream_is_not_asked_again(chat: Chat) -> None:
    """What was shown cannot be taken back: the text stays, and the object is an error with it."""
    with FakeServer(answer=BAD) as server:
        stream = chat("Name a river.", format=River, servers=server.url, stream=True)
        assert stream.text() == BAD
        with pytest.raises(OutputValidationError) as caught:
            stream.object()
        assert len([request for request in server.requests if request.path == "/api/chat"]) == 1
    assert caught.value.text == BAD


def test_a_stream_without_a_format(chat: Chat) -> None:
    """A stream that was not asked for an object says what to write."""
    with FakeServer(answer=GOOD) as server:
        stream = chat("Name a river.", servers=server.url, stream=True)
        with pytest.raises(ValueError, match="format="):
            stream.object()


def test_a_broken_answer_is_no_object(chat: Chat) -> None:
    """What broke off is not validated, and not asked for again: its own error is raised."""
    with (
        FakeServer(answer=Answer(GOOD).then(Close(), after_tokens=2)) as server,
        pytest.raises(StreamInterruptedError),
    ):
        chat("Name a river.", format=River, servers=server.url)


def test_a_client_with_a_format() -> None:
    """A format can be the client's own, and a call may want text all the same."""
    with FakeServer(answer=GOOD) as server, Client(servers=server.url, format=River) as client:
        assert client.chat("Name a river.") == NILE
        assert client.chat("Name a river.", format=None) == GOOD


def test_many_objects() -> None:
    """Each outcome has its object; one that is asked for twice in vain has the error."""
    with FakeServer(Answer(BAD), Answer(GOOD), answer=BAD) as server:
        good, bad = stream_many(["one", "two"], format=River, servers=server.url, per_server=1)
    assert (good.object, good.text, good.error) == (NILE, GOOD, None)
    assert isinstance(bad.error, OutputValidationError)
    assert (bad.object, bad.text) == (None, None)


TOLD = list[tuple[object, list[dict[str, Any]]]]  # Any: JSON


@pytest.mark.parametrize(
    ("replies", "outcome", "gained"),
    [
        ([Answer(GOOD)], GOOD, GOOD),
        ([Answer(BAD), Answer(GOOD)], GOOD, GOOD),
        ([Answer(BAD), Answer(BAD)], OutputValidationError, BAD),
        ([Answer(GOOD).then(Close(), after_tokens=1)], StreamInterruptedError, GOOD.split(" ")[0]),
    ],
)
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_who_keeps_the_conversation_is_told_once(replies: list[Reply], outcome: Any, gained: str, colour: str) -> None:
    """That is when the answer has been looked at, or has failed, with what it added."""
    told: TOLD = []
    with FakeServer(*replies) as server:
        call = checked("Name a river.", format=River, servers=server.url)
        call = msgspec.structs.replace(call, over=lambda *over: told.append(over))
        with suppress(OutputValidationError, StreamInterruptedError):
            if colour == "sync":
                answer(call, stream=False)
            else:
                asyncio.run(aanswer(call, stream=False))
    ((how, messages),) = told
    assert (how.text if isinstance(how, Result) else type(how)) == outcome
    assert [message["content"] for message in messages] == [gained]


def test_calls_in_place_of_an_object(chat: Chat) -> None:
    """A model that calls a tool which is only reported has not answered, and is not asked again."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    with FakeServer(answer=Answer("", tool_calls=[("look", {})])) as server:
        with pytest.raises(OutputValidationError):
            chat("Name a river.", format=River, tools=[tool], servers=server.url)
        assert len([request for request in server.requests if request.path == "/api/chat"]) == 1
