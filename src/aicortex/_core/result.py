"""What an answer comes to: its result when it is whole, or the error that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from aicortex._core.failover import Attempt
from aicortex._core.turns import Turns, told, totals
from aicortex.errors import AICortexError, AllServersFailedError, RequestRejectedError, StreamInterruptedError
from aicortex.events import StreamEvent


class Result(msgspec.Struct, frozen=True):
    """A whole answer.

    `usage` counts `prompt_tokens` and `completion_tokens`. `timings` are seconds: `first_token` and `total` as the
    reader saw them, `load`, `prompt` and `generation` as the server says, and `tokens_per_second` of the generation.
    `finish_reason` is "stop", "length" or "max_steps". `attempts` lists every try, that which finished it last.

    `messages` is what the answer adds to the conversation, ready to be sent again: the assistant's messages, and
    between them the results of the tools it called. `turns` says of each turn of the model what it took, in the words
    of `usage` and `timings`; prompt and completion tokens of the last one are the size of the conversation now.
    """

    text: str
    thinking: str
    finish_reason: str
    usage: dict[str, int]
    timings: dict[str, float]
    model: str
    server: str
    attempts: tuple[Attempt, ...]
    messages: tuple[dict[str, Any], ...] = ()  # Any: JSON
    turns: tuple[dict[str, float], ...] = ()


def result_of(
    events: Sequence[StreamEvent], turns: Turns, *, reason: str, model: str, attempts: tuple[Attempt, ...], end: float
) -> Result:
    """Return the result of an answer whose events these are, and whose turns are over; the last attempt finished it."""
    usage, timings = totals(turns.usages)
    return Result(
        text=turns.text,
        thinking=turns.thinking,
        finish_reason=reason,
        usage=usage,
        timings={**_waited(events, end=end), **timings},
        model=model,
        server=attempts[-1].server,
        attempts=attempts,
        messages=turns.messages,
        turns=told(turns.usages),
    )


def _waited(events: Sequence[StreamEvent], *, end: float) -> dict[str, float]:
    start = events[0].timestamp or end
    first = next((event.timestamp for event in events if event.type == "token"), None)
    return {"first_token": (first or end) - start, "total": end - start}


def error_of(attempts: Sequence[Attempt], partial: str = "", *, shown: bool = False, hint: str = "") -> AICortexError:
    """Return the error that ends an answer which no server will finish; `shown` if anything of it was delivered.

    `hint` says what else there is to know.
    """
    if not attempts:
        return AllServersFailedError("All servers failed: the time was up before any could be asked")
    last = attempts[-1]
    where = _told(last)
    if last.kind == "rejected":
        words = f"the request was refused by {where}"
        return RequestRejectedError(words, server=last.server, status=last.status, partial=partial)
    latest: dict[str, Attempt] = {}  # a server may have been asked several times
    for attempt in attempts:
        says_less = attempt.kind in ("diverged", "cannot_continue")  # than what broke the answer there
        if attempt.kind != "ok" and (not says_less or attempt.server not in latest):
            latest[attempt.server] = attempt
    each = "; ".join(map(_told, latest.values()))
    each = f"{each} ({hint})" if each and hint else each or hint
    if shown:
        words = f"Stream interrupted after {last.delivered} characters: {each}"
        return StreamInterruptedError(words, attempts=attempts, partial=partial)
    return AllServersFailedError(f"All servers failed: {each}", attempts=attempts)


def _told(attempt: Attempt) -> str:
    return f"{attempt.server} ({attempt.phase}): {attempt.message}"
