"""What becomes of many prompts, in order."""

from __future__ import annotations

import re
from typing import cast

import pytest

from aicortex import Result
from aicortex.job import Order, Outcome, Progress, check_parts, count_prompts, prepared


def outcome(index: int, *, error: Exception | None = None) -> Outcome:
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    result = None if error else Result("yes", "", "stop", usage, {}, "llama", "http://desk:1", ())
    return Outcome(index, result=result, error=error)


def test_outcomes_are_given_in_their_order() -> None:
    """What comes early waits for those before it."""
    order = Order(3, ordered=True, progress=None)
    order.taken = 3
    given = []
    for index in (2, 0, 1):
        order.put(outcome(index))
        while order.is_ready:
            given.append((index, order.give({}).index))
    assert given == [(0, 0), (1, 1), (1, 2)]
    assert order.ahead == 0


def test_outcomes_are_given_as_they_come() -> None:
    """Without an order the first to come is the first to be given."""
    order = Order(None, ordered=False, progress=None)
    order.taken = 5
    order.put(outcome(3))
    order.put(outcome(1))
    assert [order.give({}).index for _ in range(2)] == [3, 1]
    assert (order.is_ready, order.ahead) == (False, 3)


def test_progress_is_told_before_each_outcome() -> None:
    """It counts what is given, what failed, and the tokens of whole answers."""
    told: list[Progress] = []
    order = Order(None, ordered=True, progress=told.append)
    order.taken = 2
    order.put(outcome(0, error=ValueError("no")))
    order.put(outcome(1))
    order.give({"http://desk:1": 1})
    order.give({})
    assert told == [Progress(1, 1, 2, None, 0, {"http://desk:1": 1}), Progress(2, 1, 2, None, 2, {})]


def test_how_many_prompts_there_are() -> None:
    """Lists say it, generators do not."""
    assert count_prompts(["1?", "2?"]) == 2
    assert count_prompts(iter(["1?"])) is None


def test_arguments_are_checked_before_anything_runs() -> None:
    """Nothing wrong gets as far as a server."""
    for argument, words in (
        ("prompt", "'prompt'"),
        ("temprature", "'temprature'; did you mean 'temperature'?"),
        ("stream", "'stream': answers come whole"),
        ("messages", "'messages': each prompt has its own"),
    ):
        with pytest.raises(TypeError, match=re.escape(f"stream_many() has no argument {words}")):
            prepared("stream_many", None, {argument: "1?"})
    for per_server in (True, 0, 1.5, {"desk": 2}):
        with pytest.raises(ValueError, match="per_server must be a whole number from 1 on"):
            prepared("stream_many", cast("int", per_server), {})


def test_a_prompt_has_the_arguments_of_chat() -> None:
    """What it does not have is named, with what may be meant; that it does not stream is said as such."""
    check_parts(["prompt", "id", "messages", "temperature", "servers"])
    for name, words in (
        ("promt", "'promt'; did you mean 'prompt'?"),
        ("stream", "'stream': answers come whole"),
        (7, "7"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"a prompt has no argument {words}") + "$"):
            check_parts([name])
