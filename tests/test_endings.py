"""The words for how an answer ended."""

from __future__ import annotations

import pytest

from aicortex import AllServersFailedError, Result, StreamCancelledError
from aicortex.endings import mark_of, summary_of


def result(reason: str = "stop", count: int = 2, speed: float = 19.6) -> Result:
    usage = {"prompt_tokens": 7, "completion_tokens": count}
    return Result("text", "", reason, usage, {"tokens_per_second": speed}, "fake:latest", "http://desk:11434", ())


@pytest.mark.parametrize(
    ("outcome", "has_text", "mark"),
    [
        (result(), True, ""),
        (result(), False, "The model answered nothing."),
        (result("length"), True, "This is not the whole answer: it ends at its limit of 2 tokens."),
        (result("length", count=1), True, "This is not the whole answer: it ends at its limit of 1 token."),
        (StreamCancelledError("…"), True, "This is not the whole answer: it was cancelled."),
        (StreamCancelledError("…"), False, "There is no answer: it was cancelled."),
        (AllServersFailedError("All servers failed"), False, "There is no answer. All servers failed"),
        (KeyError("key"), True, "This is not the whole answer. 'key'"),
    ],
)
def test_mark(outcome: Result | Exception, has_text: bool, mark: str) -> None:
    """Only what is whole has no mark."""
    assert mark_of(outcome, has_text=has_text) == mark


def test_summary() -> None:
    """Who answered, how much and how fast; a speed that no server told is left out."""
    assert summary_of(result()) == "fake:latest at http://desk:11434 · 2 tokens · 20 tokens/s"
    assert summary_of(result(speed=0.0)) == "fake:latest at http://desk:11434 · 2 tokens"
