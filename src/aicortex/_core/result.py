"""What an answer comes to: its result when it is whole, or the error that ends it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from aicortex._core.failover import Attempt
from aicortex._core.ollama import Chunk
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


def text_of(events: Sequence[StreamEvent]) -> str:
    """Return the text of all tokens among the events."""
    return "".join([event.content or "" for event in events if event.type == "token"])


def result_of(
    events: Sequence[StreamEvent], text: str, final: Chunk, *, model: str, attempts: tuple[Attempt, ...], end: float
) -> Result:
    """Return the result of an answer whose events these are; the last attempt is the one that finished it."""
    return Result(
        text=text,
        thinking="".join([event.content or "" for event in events if _is_thinking(event)]),
        finish_reason=final.done_reason or "stop",
        usage={"prompt_tokens": final.prompt_eval_count, "completion_tokens": final.eval_count},
        timings=_timings(events, final, end=end),
        model=model,
        server=attempts[-1].server,
        attempts=attempts,
    )


def _is_thinking(event: StreamEvent) -> bool:
    return event.type == "meta" and event.meta is not None and event.meta["kind"] == "thinking"


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


def error_of(attempts: Sequence[Attempt], partial: str = "", *, shown: bool = False) -> AICortexError:
    """Return the error that ends an answer which no server will finish; `shown` if anything of it was delivered."""
    if not attempts:
        return AllServersFailedError("All servers failed: the time was up before any could be asked")
    last = attempts[-1]
    where = _told(last)
    if last.kind == "rejected":
        words = f"the request was refused by {where}"
        return RequestRejectedError(words, server=last.server, status=last.status, partial=partial)
    if shown:
        words = f"Stream interrupted after {last.delivered} characters by {where}"
        return StreamInterruptedError(words, attempts=attempts, partial=partial)
    latest = {attempt.server: attempt for attempt in attempts}  # a busy server was asked several times
    return AllServersFailedError(f"All servers failed: {'; '.join(map(_told, latest.values()))}", attempts=attempts)


def _told(attempt: Attempt) -> str:
    return f"{attempt.server} ({attempt.phase}): {attempt.message}"
