"""The turns of one answer: what the model said in those that are over, and the calls it made in the latest.

    the model's turn ends    calls are run            then
    whole, without calls                              the answer is whole
    whole, with calls        no                       the answer is whole, and whoever asked goes on himself
    whole, with calls        but this was the last    the answer ends: "max_steps"
    whole, with calls        yes                      `Run`, until each call has returned; then the next turn
    broken behind a call     yes                      as if it were whole: calls come whole, and what was called stands

A call that nobody can run returns UNANSWERED: the others' results are delivered, and the answer ends there.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import asdict, replace

from aicortex._core.ollama import Chunk
from aicortex._core.seam import Delivered

SECOND_NS = 1e9
MAX_STEPS = "max_steps"
UNANSWERED = "unanswered"


class Asked(msgspec.Struct, frozen=True):
    """One call that the model made, the `number`th of the stream; Any: JSON of the model's making."""

    number: int
    name: str
    arguments: dict[str, Any]
    id: str | None = None


class Returned(msgspec.Struct, frozen=True):
    """What became of a call: `value` as the tool returned it, `text` as the model is told it.

    `kind` is "ok", "given", "denied", "unknown_tool", "bad_arguments", "exception", "timeout", or UNANSWERED; of an
    exception there is its `traceback`. `arguments` are those it was run with, `seconds` how long that took.
    """

    kind: str
    value: Any = None  # Any: whatever the tool returned
    text: str = ""
    arguments: dict[str, Any] = {}  # Any: JSON
    seconds: float = 0.0
    traceback: str = ""


class Run(msgspec.Struct, frozen=True):
    """Run these calls, as far as they do not run yet, and tell what the first of them returns.

    The time for the whole stream ends at `until`.
    """

    calls: tuple[Asked, ...]
    until: float | None


class Usage(msgspec.Struct, frozen=True):
    """What one turn took: tokens of the prompt and of the answer, seconds to load, to read the prompt, to generate.

    `spent` tokens of the answer were made by attempts that broke off, and were a part of the last one's prompt.
    """

    prompt_tokens: int
    completion_tokens: int
    load: float
    prompt: float
    generation: float
    spent: int = 0

    @classmethod
    def of(cls, final: Chunk, spent: int) -> Usage:
        """Return what the last chunk of a turn says."""
        return cls(
            prompt_tokens=max(final.prompt_eval_count - spent, 0),
            completion_tokens=final.eval_count + spent,
            load=final.load_duration / SECOND_NS,
            prompt=final.prompt_eval_duration / SECOND_NS,
            generation=final.eval_duration / SECOND_NS,
            spent=spent,
        )

    @classmethod
    def broken(cls, chunks: int) -> Usage:
        """Return what is known of a turn whose end nobody told."""
        return cls(0, chunks, 0.0, 0.0, 0.0, spent=chunks)

    @property
    def pace(self) -> float:
        """Tokens per second of the generation, as the server says."""
        return (self.completion_tokens - self.spent) / self.generation if self.generation else 0.0


class Turns(msgspec.Struct, frozen=True):
    """The turns of an answer.

    `most` is how many there may be, 0 where calls are only reported. The latest one began at `begun` of the log; of
    those before there are `text`, `thinking` and `usages`, and the `messages` they added to the conversation. When the
    latest is over, `calls` are what it called, `returned` what has returned of it, in the same order; it is `whole` if
    the server said that it was done, and then for what reason.
    """

    most: int = 0
    begun: int = 1
    text: str = ""
    thinking: str = ""
    messages: tuple[dict[str, Any], ...] = ()  # Any: JSON
    usages: tuple[Usage, ...] = ()
    called: int = 0  # calls of the turns before
    calls: tuple[Asked, ...] = ()
    returned: tuple[Returned, ...] = ()
    whole: str = ""

    @property
    def runs(self) -> bool:
        """Whether calls of the latest turn are run."""
        return len(self.usages) + 1 < self.most

    @property
    def is_last(self) -> bool:
        """Whether calls of the latest turn would be run if more turns were allowed."""
        return self.most > 0 and not self.runs

    @property
    def pending(self) -> tuple[Asked, ...]:
        """The calls that have not returned."""
        return self.calls[len(self.returned) :]

    @property
    def is_answered(self) -> bool:
        """Whether every call has a result, so that the model can go on."""
        return all(each.kind != UNANSWERED for each in self.returned)

    def over(self, said: Delivered, usage: Usage, whole: str) -> Turns:
        """Return the turns with the latest one over."""
        asked = tuple(
            Asked(self.called + number, name or "", arguments or {}, id)
            for number, ((name, arguments), id) in enumerate(zip(said.calls, said.ids, strict=True))
        )
        return replace(
            self,
            text=self.text + said.text,
            thinking=self.thinking + said.thinking,
            messages=(*self.messages, _message(said)),
            usages=(*self.usages, usage),
            called=self.called + len(asked),
            calls=asked,
            returned=(),
            whole=whole,
        )

    def answered(self, returned: Returned) -> Turns:
        """Return the turns after the next call in order has returned."""
        asked = self.calls[len(self.returned)]
        messages = self.messages
        if returned.kind != UNANSWERED:
            told = {"role": "tool", "tool_name": asked.name, "content": returned.text}
            messages = (*messages, told if asked.id is None else {**told, "tool_call_id": asked.id})
        return replace(self, messages=messages, returned=(*self.returned, returned))

    def next(self, begun: int) -> Turns:
        """Return the turns with a new one, which begins at this place of the log."""
        return replace(self, begun=begun, calls=(), returned=(), whole="")


REPORTED = Turns()  # of every answer whose calls are only reported: a thousand of them are one


def _message(said: Delivered) -> dict[str, Any]:  # Any: JSON
    message: dict[str, Any] = {"role": "assistant", "content": said.text}
    if said.thinking:
        message["thinking"] = said.thinking
    if said.calls:
        message["tool_calls"] = [
            {"function": {"name": name, "arguments": arguments}, **({} if id is None else {"id": id})}
            for (name, arguments), id in zip(said.calls, said.ids, strict=True)
        ]
    return message


def totals(usages: tuple[Usage, ...]) -> tuple[dict[str, int], dict[str, float]]:
    """Return the tokens of all turns, and the server's seconds with the pace of them together."""
    seconds = sum(usage.generation for usage in usages)
    made = sum(usage.completion_tokens - usage.spent for usage in usages)
    tokens = {
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
    }
    timings = {
        "load": sum(usage.load for usage in usages),
        "prompt": sum(usage.prompt for usage in usages),
        "generation": seconds,
        "tokens_per_second": made / seconds if seconds else 0.0,
    }
    return tokens, timings


def told(usages: tuple[Usage, ...]) -> tuple[dict[str, float], ...]:
    """Return what each turn took, as users see it."""
    shown = []
    for usage in usages:
        each = asdict(usage)
        del each["spent"]
        shown.append({**each, "tokens_per_second": usage.pace})
    return tuple(shown)
