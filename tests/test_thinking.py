"""Thoughts of a model, over real connections: told apart from the answer however a server sends them."""

from __future__ import annotations

import pytest
from tests.colours import Chat

from aicortex import Stream
from aicortex.testing import Answer, Close, FakeServer, Hang, Reset

THOUGHT, TEXT = "Rivers are long. The Nile is one.", "The Nile."
APART = Answer(TEXT, thinking=THOUGHT)
WITHIN = Answer(f"<think>\n{THOUGHT}\n</think>\n\n{TEXT}")


def thoughts(stream: Stream) -> list[str]:
    return [event.content or "" for event in stream.events if (event.meta or {}).get("kind") == "thinking"]


@pytest.mark.parametrize("answer", [APART, WITHIN], ids=["apart", "within"])
@pytest.mark.parametrize("think", [None, True, False, "low", "medium", "high"])
def test_thoughts_are_meta_events(chat: Chat, answer: Answer, think: bool | str | None) -> None:
    """They come as they are thought, before the answer; the result has both whole, and the server what was asked."""
    with FakeServer(answer) as server:
        stream = chat("Name a river.", think=think, servers=server.url, stream=True)
        assert stream.text() == TEXT
        body = server.requests[-1].json
    assert isinstance(body, dict)
    assert body.get("think") == think
    assert stream.result.thinking == "".join(thoughts(stream)) == THOUGHT
    assert len(thoughts(stream)) > 3
    kinds = [(event.meta or {}).get("kind", event.type) for event in stream.events]
    assert kinds.index("token") > max(place for place, kind in enumerate(kinds) if kind == "thinking")
    assert [event.index for event in stream.events if event.type == "token"] == list(range(kinds.count("token")))
    assert stream.result.messages == ({"role": "assistant", "content": TEXT, "thinking": THOUGHT},)


@pytest.mark.parametrize("first", [APART, WITHIN], ids=["apart", "within"])
@pytest.mark.parametrize("second", [APART, WITHIN], ids=["apart", "within"])
@pytest.mark.parametrize("seed", [None, 1])
def test_a_break_in_a_thought(chat: Chat, first: Answer, second: Answer, seed: int | None) -> None:
    """With a seed the thought goes on where it broke; else it begins anew, which the events say. No text is lost."""
    with FakeServer(first.then(Reset(), after_tokens=4)) as one, FakeServer(second, models=["fake:latest"]) as two:
        stream = chat("Name a river.", servers=[one.url, two.url], seed=seed, stream=True)
        assert (stream.text(), stream.result.thinking) == (TEXT, THOUGHT)
    resumed = [event.meta or {} for event in stream.events if (event.meta or {}).get("kind") == "resumed"]
    assert [meta["rung"] for meta in resumed] == ["restart" if seed is None else "replay"]
    told = "".join(thoughts(stream))
    assert told.endswith(THOUGHT)
    assert (told == THOUGHT) == (seed is not None)  # else it is told a second time, from its start


@pytest.mark.parametrize("answer", [APART, WITHIN], ids=["apart", "within"])
def test_a_break_behind_a_thought(chat: Chat, answer: Answer) -> None:
    """In the words after a thought a replay goes on exactly, thought and all."""
    with FakeServer(answer.then(Close(), after_tokens=9)) as one, FakeServer(answer) as two:
        stream = chat("Name a river.", servers=[one.url, two.url], temperature=0, stream=True)
        assert (stream.text(), "".join(thoughts(stream))) == (TEXT, THOUGHT)


def test_a_thought_that_is_never_closed(chat: Chat) -> None:
    """A model that only thinks has answered nothing."""
    with FakeServer(Answer("<think>Hm. Rivers…", done_reason="length")) as server:
        stream = chat("Name a river.", servers=server.url, stream=True)
        assert (stream.text(), stream.result.thinking) == ("", "Hm. Rivers…")
        assert stream.result.finish_reason == "length"


def test_thoughts_within_of_a_second_server(chat: Chat) -> None:
    """A second server that was asked beside the first, and speaks first, has its thoughts told apart as well."""
    with FakeServer(Hang()) as one, FakeServer(WITHIN) as two:
        stream = chat("Name a river.", servers=[one.url, two.url], hedge_after=0.01, stream=True)
        assert (stream.text(), stream.result.thinking) == (TEXT, THOUGHT)
