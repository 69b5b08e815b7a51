"""Every request body, as decoded JSON."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex._core.question import LOADED, VERSION, Question, Request

USER = {"role": "user", "content": "What is a black hole?"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
FULL = Question(
    "m:1b",
    [USER],
    think=False,
    options={"temperature": 0, "num_predict": 100, "stop": ["\n\n"]},
    keep_alive=0,
    tools=[TOOL],
    format={"type": "object"},
)
PLAIN = Question("m:1b", [USER])


def body(request: Request) -> Any:
    assert request.method == "POST"
    return msgspec.json.decode(request.body)


def test_probes_have_no_body() -> None:
    """Version and loaded models are asked for by GET."""
    assert Request("GET", "/api/version") == VERSION
    assert Request("GET", "/api/ps") == LOADED


def test_a_plain_chat_says_no_more_than_it_must() -> None:
    """What the caller left out is not sent, so that the server's own defaults hold."""
    request = PLAIN.chat()
    assert (request.method, request.path) == ("POST", "/api/chat")
    assert request.body == (
        b'{"model":"m:1b","messages":[{"role":"user","content":"What is a black hole?"}],"stream":true}'
    )


def test_a_full_chat_passes_everything_on() -> None:
    """Each field goes out as it came in; `think` false and `keep_alive` 0 are values and not gaps."""
    assert body(FULL.chat()) == {
        "model": "m:1b",
        "messages": [USER],
        "think": False,
        "options": {"temperature": 0, "num_predict": 100, "stop": ["\n\n"]},
        "keep_alive": 0,
        "tools": [TOOL],
        "format": {"type": "object"},
        "stream": True,
    }


def test_rendering_costs_one_token_at_most() -> None:
    """A server that does not know the flag generates one token, unstreamed; the model's stay is not its business."""
    chat = body(FULL.chat())
    assert chat.pop("keep_alive") == 0
    assert FULL.render().path == "/api/chat"
    assert body(FULL.render()) == {
        **chat,
        "options": {**chat["options"], "num_predict": 1},
        "stream": False,
        "_debug_render_only": True,
    }
    assert body(PLAIN.render())["options"] == {"num_predict": 1}


def test_rendering_with_the_beginning_of_the_answer() -> None:
    """The beginning of the answer is the last message, with the thought that led to it."""
    assert body(PLAIN.render("Black"))["messages"] == [USER, {"role": "assistant", "content": "Black"}]
    assert body(PLAIN.render("Black", "hm"))["messages"] == [
        USER,
        {"role": "assistant", "content": "Black", "thinking": "hm"},
    ]


def test_raw_is_the_prompt_alone() -> None:
    """A raw request has no conversation, no template, no thinking and no tools, and keeps options and `keep_alive`."""
    request = FULL.raw("<|user|>What?<|assistant|>Black", spent=30)
    assert request.path == "/api/generate"
    assert body(request) == {
        "model": "m:1b",
        "prompt": "<|user|>What?<|assistant|>Black",
        "raw": True,
        "think": False,
        "options": {"temperature": 0, "num_predict": 70, "stop": ["\n\n"]},
        "keep_alive": 0,
        "stream": True,
    }
    assert body(PLAIN.raw("p", spent=3)) == {
        "model": "m:1b",
        "prompt": "p",
        "raw": True,
        "think": False,
        "stream": True,
    }


def test_prefill_is_the_chat_with_one_message_more() -> None:
    """The beginning of the answer is the last message, and its tokens are taken off the limit."""
    request = FULL.prefill("Black", spent=30)
    assert request.path == "/api/chat"
    assert body(request) == {
        **body(FULL.chat()),
        "messages": [USER, {"role": "assistant", "content": "Black"}],
        "options": {"temperature": 0, "num_predict": 70, "stop": ["\n\n"]},
    }
    assert body(PLAIN.prefill("Black", "hm", spent=1)) == {
        "model": "m:1b",
        "messages": [USER, {"role": "assistant", "content": "Black", "thinking": "hm"}],
        "stream": True,
    }


def test_an_answer_the_caller_began_is_lengthened() -> None:
    """Two neighbours of one role would be merged with a blank line, so the caller's own beginning goes on."""
    begun = {"role": "assistant", "content": "Black", "name": "kept"}
    question = Question("m", [USER, begun])
    assert body(question.prefill(" holes", "hm", spent=1))["messages"] == [
        USER,
        {"role": "assistant", "content": "Black holes", "thinking": "hm", "name": "kept"},
    ]
    assert question.messages == [USER, begun]
    assert body(question.chat())["messages"] == [USER, begun]


def test_a_beginning_without_content_is_lengthened_too() -> None:
    """An assistant's last message may have tool calls and no content."""
    calls = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    assert body(Question("m", [USER, calls]).render("Black"))["messages"] == [USER, {**calls, "content": "Black"}]


def test_an_empty_conversation_is_begun() -> None:
    """Ollama loads a model when there are no messages; the beginning of an answer is then the only one."""
    question = Question("m", [])
    assert body(question.chat())["messages"] == []
    assert body(question.render("a"))["messages"] == [{"role": "assistant", "content": "a"}]


@given(
    st.lists(st.sampled_from(["user", "assistant", "system", "tool"]), max_size=6),
    st.text(),
    st.text(),
)
def test_never_a_second_assistant_message(roles: list[str], text: str, thinking: str) -> None:
    """The answer's beginning makes no new neighbours of one role, and what was there stays."""
    messages = [{"role": role, "content": role} for role in roles]
    asked = body(Question("m", messages).prefill(text, thinking, spent=0))["messages"]
    found = [message["role"] for message in asked]
    before, after = (sum(a == b == "assistant" for a, b in pairwise(each)) for each in (roles, found))
    assert after == before
    assert "".join(message["content"] for message in asked) == "".join(roles) + text


@pytest.mark.parametrize(
    ("limit", "spent", "left"),
    [(100, 0, 100), (100, 99, 1), (100, 100, 1), (100, 500, 1), (-1, 5, -1), (-2, 5, -2), (0, 5, 0)],
)
def test_the_limit_is_lowered_by_what_is_spent(limit: int, spent: int, left: int) -> None:
    """At least one token is left, for 0 and less have meanings of their own and pass through."""
    question = Question("m", [USER], options={"num_predict": limit})
    assert body(question.raw("p", spent=spent))["options"] == {"num_predict": left}
    assert body(question.prefill("a", spent=spent))["options"] == {"num_predict": left}
    assert question.options == {"num_predict": limit}


@pytest.mark.parametrize("keep_alive", ["5m", 0, 1.5, -1])
def test_keep_alive_goes_with_every_request_for_text(keep_alive: str | float) -> None:
    """A continuation does not change how long the model stays, and a render before it would unload it too early."""
    question = Question("m", [USER], keep_alive=keep_alive)
    requests = [question.chat(), question.raw("p", spent=1), question.prefill("a", spent=1)]
    assert [body(request)["keep_alive"] for request in requests] == [keep_alive] * 3
    assert ["keep_alive" in body(request) for request in (question.render(), question.render("a"))] == [False, False]


@pytest.mark.parametrize(
    ("options", "is_repeatable"),
    [
        ({}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.1}, False),
        ({"seed": 0}, True),
        ({"seed": 42, "temperature": 1}, True),
        ({"seed": -1}, False),  # Ollama's word for a random one
        ({"seed": None}, False),
    ],
)
def test_what_is_repeatable(options: dict[str, Any], is_repeatable: bool) -> None:
    """Greedy text, and sampled text with a seed, come again; a negative seed is a random one."""
    assert Question("m", [USER], options=options).is_repeatable is is_repeatable


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, None),
        ({"num_predict": 7}, 7),
        ({"num_predict": 0}, None),
        ({"num_predict": -1}, None),
        ({"num_predict": None}, None),
    ],
)
def test_the_limit(options: dict[str, Any], limit: int | None) -> None:
    """Only a positive number bounds the answer."""
    assert Question("m", [USER], options=options).limit == limit


@pytest.mark.parametrize(
    ("options", "spent", "is_full"),
    [({}, 1000, False), ({"num_predict": 7}, 6, False), ({"num_predict": 7}, 7, True), ({"num_predict": -1}, 7, False)],
)
def test_whether_an_answer_is_full(options: dict[str, Any], spent: int, is_full: bool) -> None:
    """From the limit on nothing more of it may come; without a limit it is never full."""
    assert Question("m", [USER], options=options).is_full(spent) is is_full


@pytest.mark.parametrize(
    ("options", "stops"),
    [({}, ()), ({"stop": "\n\n"}, ("\n\n",)), ({"stop": ["a", "b"]}, ("a", "b")), ({"stop": None}, ())],
)
def test_stop_strings(options: dict[str, Any], stops: tuple[str, ...]) -> None:
    """One string or a list of them."""
    assert Question("m", [USER], options=options).stops == stops


def test_pictures_are_seen_anywhere() -> None:
    """A picture in any message counts, an empty list does not."""
    picture = {**USER, "images": ["iVBOR"]}
    assert Question("m", [picture, {"role": "assistant", "content": "A cat."}, USER]).has_images
    assert not Question("m", [USER, {**USER, "images": []}]).has_images
