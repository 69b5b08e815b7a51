"""Going on with a broken answer: which ways there are, and whether what comes is really its continuation.

The ways, best first (protocol: "Continuing a broken answer"):

    raw       the prompt as the server renders it, and the text     no thinking, tools, images or format about it
    prefill   the text as the conversation's last message           the rendered prompt ends with it; no format
    replay    the whole answer again, compared with what is there   same weights, and greedy or with a seed
    restart   the whole answer again                                no text was delivered yet, only thinking

A `Seam` stands between such a reply and the reader until nothing can be wrong any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from aicortex._core.ollama import Message
from aicortex._core.question import Question
from aicortex.events import StreamEvent

RAW = "raw"
PREFILL = "prefill"
REPLAY = "replay"
RESTART = "restart"
OPENED, CLOSED = "<think>", "</think>"
SOUND = "sound"
HOLD = "hold"  # not enough is here to tell
STOP = "stop"
DIFFERS = "its answer differs from what was delivered"


class Delivered(msgspec.Struct, frozen=True):
    """What the reader has of an answer; `chunks` is how many it came in, which is how many tokens it has, or fewer."""

    text: str = ""
    thinking: str = ""
    calls: tuple[tuple[str | None, dict[str, Any] | None], ...] = ()  # Any: JSON of the model's making
    chunks: int = 0
    ids: tuple[str | None, ...] = ()  # of the calls, where the server gave any

    @classmethod
    def of(cls, events: Iterable[StreamEvent]) -> Delivered:
        """Return what these events delivered; a thought that was begun again counts from there."""
        texts, thoughts, calls, ids = [], [], [], []
        for event in events:
            if event.type == "token":
                texts.append(event.content or "")
            elif event.type == "tool_call":
                calls.append((event.tool_name, event.tool_args))
                ids.append((event.meta or {}).get("id"))
            elif event.type == "meta" and event.meta:
                if event.meta["kind"] == "thinking":
                    thoughts.append(event.content or "")
                elif event.meta.get("rung") == RESTART:
                    thoughts.clear()
        chunks = len(texts) + len(thoughts) + len(calls)
        return cls("".join(texts), "".join(thoughts), tuple(calls), chunks, tuple(ids))

    def __bool__(self) -> bool:
        return self.chunks > 0


def ways_on(question: Question, delivered: Delivered, *, same_weights: bool | None) -> tuple[str, ...]:
    """Return the ways in which a server with the same weights, others (False) or unknown ones (None) may go on."""
    ways = []
    if delivered.text and not delivered.calls and question.format is None:
        if not (delivered.thinking or question.think or question.tools or question.has_images):
            ways.append(RAW)
        ways.append(PREFILL)
    if question.is_repeatable and same_weights:
        ways.append(REPLAY)
    if not delivered.text and not delivered.calls:
        ways.append(RESTART)
    return tuple(ways)


def raw_prompt(rendered: str, text: str) -> str | None:
    """Return the prompt behind which a raw request goes on with a text, or None when the text does not stand there.

    A template that opens a thought leaves the text inside of it, unless the text closes the thought itself.
    """
    if rendered.rstrip().endswith(OPENED) and CLOSED not in text:
        return None
    return rendered + text


class Verdict(msgspec.Struct, frozen=True):
    """What may be delivered now, and whether the seam goes on, is proven (None), broken (`fault`) or `stopped`."""

    ready: Sequence[Message] = ()
    seam: Seam | None = None
    fault: str = ""
    stopped: bool = False


class Seam(msgspec.Struct, frozen=True):
    """What stands between the reply of a server that goes on and the reader.

    `matched` counts the characters of the text, the thought and the calls that came again, while the reply is
    compared with what was delivered; `held` is what came and may not be delivered yet. Of an answer that `is_full`
    nothing is missing but a server's word that it is done, for which one more token is asked and dropped.
    """

    delivered: Delivered
    stops: tuple[str, ...] = ()
    compares: bool = False
    is_full: bool = False
    matched: tuple[int, int, int] = (0, 0, 0)
    held: tuple[Message, ...] = ()

    def take(self, messages: Sequence[Message], *, final: bool) -> Verdict:
        """Judge what came; `final` says that the server has no more to say."""
        if self.compares:
            return self._compared(messages, final=final)
        if self.is_full:
            return Verdict(seam=None if final else self)
        return self._judged(messages, final=final)

    def _judged(self, messages: Sequence[Message], *, final: bool) -> Verdict:
        from aicortex._core.joint import judge  # `re` takes 5 ms to import, and few answers have a seam

        held = (*self.held, *messages)
        before, after = self.delivered.text, "".join([message.content or "" for message in held])
        if any(message.thinking for message in held):
            return Verdict(fault="it began to think anew instead of going on")
        has_calls = any(message.tool_calls for message in held)
        crossing = _crossing(before, after, self.stops)
        if crossing == STOP:
            return Verdict(stopped=True)
        verdict = HOLD
        if crossing == SOUND or final:
            verdict = judge(before, after, final=final or has_calls)
        if verdict == HOLD:
            return Verdict(seam=Seam(self.delivered, self.stops, held=held))
        return Verdict(held) if verdict == SOUND else Verdict(fault=verdict)

    def _compared(self, messages: Sequence[Message], *, final: bool) -> Verdict:
        delivered = self.delivered
        text, thought, calls = self.matched
        ready: list[Message] = []
        for message in messages:
            new_thought = _behind(delivered.thinking, thought, message.thinking or "")
            new_text = _behind(delivered.text, text, message.content or "")
            new_calls = message.tool_calls or []
            again = [(call.function.name, call.function.given) for call in new_calls]
            due = list(delivered.calls[calls : calls + len(again)])
            if new_thought is None or new_text is None or again[: len(due)] != due:
                return Verdict(fault=DIFFERS)
            thought += len(message.thinking or "")
            text += len(message.content or "")
            calls += len(again)
            if (message.content or again) and thought < len(delivered.thinking):
                return Verdict(fault=DIFFERS)
            if new_thought or new_text or again[len(due) :]:
                ready.append(Message(new_text, new_thought or None, new_calls[len(due) :] or None))
        is_whole = text >= len(delivered.text) and thought >= len(delivered.thinking) and calls >= len(delivered.calls)
        if is_whole:
            return Verdict(ready)
        if final or ready:
            return Verdict(fault=DIFFERS)
        return Verdict(seam=Seam(delivered, self.stops, compares=True, matched=(text, thought, calls)))


def _behind(delivered: str, matched: int, piece: str) -> str | None:
    """Return what of a piece lies behind what was delivered, or None where it differs from it."""
    due = delivered[matched : matched + len(piece)]
    return piece[len(due) :] if piece.startswith(due) else None


def _crossing(before: str, after: str, stops: Sequence[str]) -> str:
    """Tell whether a stop string begins in the one and ends in the other: a server looks only at what it says itself.

    Returns STOP, or HOLD where more may make one of it, or SOUND.
    """
    verdict = SOUND
    for stop in stops:
        for cut in range(1, len(stop)):
            if not before.endswith(stop[:cut]):
                continue
            if after.startswith(stop[cut:]):
                return STOP
            if stop[cut:].startswith(after):
                verdict = HOLD
    return verdict
