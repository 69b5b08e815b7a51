"""Thoughts inside of the text, cut at every place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex._core.ollama import Chunk, Function, Message, ToolCall
from aicortex._core.thought import Thought

DONE = Chunk(Message(""), done=True)


def split(chunks: Sequence[Chunk], *, at_once: bool = False) -> tuple[str, str]:
    """Return thought and answer that these chunks come to, given one by one or all together."""
    thinking, content = "", ""
    thought: Thought | None = Thought()
    for part in [list(chunks)] if at_once else [[chunk] for chunk in chunks]:
        if thought is not None:
            part, thought = thought.split(part)
        for chunk in part:
            assert not content or not (chunk.message and chunk.message.thinking)
            thinking += (chunk.message and chunk.message.thinking) or ""
            content += (chunk.message and chunk.message.content) or ""
    return thinking, content


def pieces(text: str, *cuts: int) -> list[Chunk]:
    places = [0, *sorted(cuts), len(text)]
    return [Chunk(Message(text[a:b])) for a, b in pairwise(places)]


TEXTS = [
    ("<think>Hm, rivers.</think>The Nile.", "Hm, rivers.", "The Nile."),
    ("<think>\nHm,\nrivers.\n</think>\n\nThe Nile.\n", "Hm,\nrivers.", "The Nile.\n"),
    ("\n <think>Hm.</think> The Nile.", "Hm.", "The Nile."),
    ("<think>\n\n</think>\n\nThe Nile.", "", "The Nile."),
    ("<think></think>", "", ""),
    ("<think>Hm, and then it was cut", "Hm, and then it was cut", ""),
    ("<think>1 < 2 </thin ice</think>Yes", "1 < 2 </thin ice", "Yes"),
    ("The tag <think> opens a thought</think>.", "", "The tag <think> opens a thought</think>."),
    ("<thought>Hm</thought>", "", "<thought>Hm</thought>"),
    ("<th", "", "<th"),
    (" \n", "", " \n"),
    ("", "", ""),
]


@pytest.mark.parametrize(("text", "thinking", "content"), TEXTS)
def test_every_cut(text: str, thinking: str, content: str) -> None:
    """What is thought and what is answer does not depend on where the chunks were cut, or on how they came."""
    for a in range(len(text) + 1):
        for b in range(a, len(text) + 1):
            assert split([*pieces(text, a, b), DONE]) == (thinking, content)
    assert split([*pieces(text, *range(1, len(text))), DONE]) == (thinking, content)
    assert split([*pieces(text, *range(1, len(text))), DONE], at_once=True) == (thinking, content)
    assert split([Chunk(Message(text), done=True)]) == (thinking, content)
    assert split([*pieces(text), Chunk(done=True)]) == (thinking, content)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "think", ">", " ", "\n", "a", "b "]), max_size=12))
def test_nothing_is_lost(parts: list[str]) -> None:
    """Every character but the tags and the white space around them is in the thought or in the answer."""
    text = "".join(parts)
    whole = split([Chunk(Message(text), done=True)])
    assert split([*(Chunk(Message(part)) for part in parts), DONE]) == whole
    if not text.lstrip().startswith("<think>"):
        assert whole == ("", text)
    else:
        inner = text.lstrip().removeprefix("<think>")
        thinking, _, content = inner.partition("</think>")
        assert whole == (thinking.strip(), content.lstrip())


def test_a_server_that_tells_thoughts_itself() -> None:
    """Its thoughts stay what they are, and its text is not looked at any more."""
    chunks = [Chunk(Message("", "Hm")), Chunk(Message("<think>is a tag")), DONE]
    assert split(chunks) == ("Hm", "<think>is a tag")


def test_a_call_releases_what_is_held() -> None:
    """White space before a call is told with it."""
    called = Message("", None, [ToolCall(Function("add"))])
    (first, second), thought = Thought().split([Chunk(Message("\n")), Chunk(called)])
    assert first.message == Message("")
    assert second.message == Message("\n", None, called.tool_calls)
    assert thought is None


def test_errors_and_senseless_lines_stay() -> None:
    """What is no message is left for others to judge."""
    chunks = [Chunk(error="it broke"), Chunk(Message()), Chunk()]
    assert Thought().split(chunks) == (chunks, Thought())
