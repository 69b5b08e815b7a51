"""How an answer ended, in words for those who look at it: in a notebook, in a window."""

from __future__ import annotations

from aicortex._core.result import Result
from aicortex.errors import StreamCancelledError

Ending = Result | Exception


def mark_of(outcome: Ending, *, has_text: bool) -> str:
    """Return why what is shown is not the whole answer; `""` when it is."""
    if isinstance(outcome, Result):
        if outcome.finish_reason == "length":
            return f"This is not the whole answer: it ends at its limit of {_tokens_of(outcome)}."
        return "" if has_text else "The model answered nothing."
    known = "This is not the whole answer" if has_text else "There is no answer"
    return f"{known}: it was cancelled." if isinstance(outcome, StreamCancelledError) else f"{known}. {outcome}"


def summary_of(result: Result) -> str:
    """Return who answered, how much and how fast, on one line."""
    speed = result.timings["tokens_per_second"]
    words = f"{result.model} at {result.server} · {_tokens_of(result)}"
    return f"{words} · {speed:.0f} tokens/s" if speed else words


def _tokens_of(result: Result) -> str:
    count = result.usage["completion_tokens"]
    return f"{count} token" if count == 1 else f"{count} tokens"
