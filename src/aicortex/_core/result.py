"""What an answer comes to: its result when it is whole, or the error that ends it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from aicortex._core.failover import Attempt
from aicortex._core.ollama import Chunk
from aicortex._core.seam import Delivered
from aicortex.errors import AICortexError, AllServersFailedError, RequestRejectedError, StreamInterruptedError
from aicortex.events import StreamEvent

SECOND_NS = 1e9


class Result(msgspec.Struct, frozen=True):
    """A whole answer.

    `usage` counts `prompt_tokens` and `completion_tokens`. `timings` are seconds: `first_token` and `total` as the
    reader saw them, `load`, `prompt` and `generation` as the server says, and `tokens_per_second` of the generation.
    `finish_reason` is "stop" or "length". `attempts` lists every try, the successful one last.
    """

    text: str
    thinking: str
    finish_reason: str
    usage: dict[str, int]
    timings: dict[str, float]
    model: str
    server: str
    attempts: tuple[Attempt, ...]


def result_of(
    events: Sequence[StreamEvent],
    whole: Delivered,
    final: Chunk,
    *,
    model: str,
    attempts: tuple[Attempt, ...],
    end: float,
    spent: int,
) -> Result:
    """Return the result of an answer whose events these are, and what they delivered; the last attempt finished it.

    `spent` tokens of the answer were made by other attempts and were a part of the last one's prompt.
    """
    prompt_tokens = max(final.prompt_eval_count - spent, 0)
    return Result(
        text=whole.text,
        thinking=whole.thinking,
        finish_reason=final.done_reason or "stop",
        usage={"prompt_tokens": prompt_tokens, "completion_tokens": final.eval_count + spent},
        timings=_timings(events, final, end=end),
        model=model,
        server=attempts[-1].server,
        attempts=attempts,
    )


def _timings(events: Sequence[StreamEvent], final: Chunk, *, end: float) -> dict[str, float]:
    start = events[0].timestamp or end
    first = next((event.timestamp for event in events if event.type == "token"), None)
    seconds = final.eval_duration / SECOND_NS
    return {
        "first_token": (first or end) - start,
        "total": end - start,
        "load": final.load_duration / SECOND_NS,
        "prompt": final.prompt_eval_duration / SECOND_NS,
        "generation": seconds,
        "tokens_per_second": final.eval_count / seconds if seconds else 0.0,
    }


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
        if not says_less or attempt.server not in latest:
            latest[attempt.server] = attempt
    each = "; ".join(map(_told, latest.values())) + (f" ({hint})" if hint else "")
    if shown:
        words = f"Stream interrupted after {last.delivered} characters: {each}"
        return StreamInterruptedError(words, attempts=attempts, partial=partial)
    return AllServersFailedError(f"All servers failed: {each}", attempts=attempts)


def _told(attempt: Attempt) -> str:
    return f"{attempt.server} ({attempt.phase}): {attempt.message}"
