"""The servers of a simulated fleet: what each does with a request, honestly or not."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec

from aicortex._core.question import Question, Request
from benchmarks.simulation import wire
from benchmarks.simulation.exchange import Exchange, Truth
from benchmarks.simulation.weights import CALLS, Weights

OPENINGS = {
    "chatml": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
    "opens": "<|user|>\nQ<|assistant|>\n<think>\n",
}
PROMPTS = ("[INST] Q [/INST]", *OPENINGS.values())
PREAMBLES = (
    "Sure, here is the continuation:\n\n",
    "Certainly! Continuing where I left off: ",
    "Here's the rest: ",
)
GLUE = ".!?:;,"  # or a letter: behind these a message that begins without a space cannot be the text's own next word
LIES = ("echo", "tail", "preamble", "reworded", "anew")
decode = msgspec.json.decode


class Host(msgspec.Struct):
    """One server. Times are virtual seconds; `dead` lists the intervals in which nothing listens there.

    `faults` are used up, one a request; `lie` is told in place of every honest continuation, `refuses` maps a kind of
    request to the status it gets, `strips` names a field that a proxy takes out of requests.
    """

    number: int
    weights: Weights
    digest: str
    template: str
    version: str = "0.33.0"
    faults: list[str] = []
    dead: tuple[tuple[float, float], ...] = ()
    lie: str = ""
    refuses: dict[str, int] = {}
    strips: str = ""
    latency: float = 0.01
    first_delay: float = 0.1
    pace: float = 0.05
    loaded_at: float = 0.0
    is_slow: bool = False  # whether its pauses may be longer than the deadlines
    group: int = 1
    chunked: bool = True
    holds_stops: bool = True
    asked: int = 0

    @property
    def is_healthy(self) -> bool:
        """Whether nothing goes wrong at this server, ever."""
        return not self.faults and self.is_sound

    @property
    def is_sound(self) -> bool:
        """Whether nothing goes wrong at this server beside its faults."""
        harms = self.dead or self.lie or self.refuses or self.strips or self.is_slow
        return not harms and self.version != "0.11.4" and self.template != "opens"

    def is_dead(self, now: float) -> bool:
        """Whether nothing listens there at this time."""
        return any(begin <= now < end for begin, end in self.dead)

    def next_fault(self, now: float) -> str:
        """Return what goes wrong with the next request, "" for nothing."""
        self.asked += 1
        if self.is_dead(now):
            return "refused"
        return self.faults.pop(0) if self.faults else ""

    def rendered(self, text: str, thinking: str) -> str:
        """Return the prompt as this server's template makes it, with the beginning of an answer if there is one."""
        thought = f"<think>{thinking}</think>" if thinking else ""
        if self.template in OPENINGS:
            opening = OPENINGS[self.template]
            return f"{opening}{thought}{text}<|im_end|>\n<|im_start|>assistant\n" if text else opening
        return PROMPTS[0] + thought + (text.strip() if self.template == "trims" else text)


class Service:
    """What all servers of a run share: the question, chance, and whether decoding is greedy."""

    def __init__(self, question: Question, random: Random, *, calls: int, thinks: bool) -> None:
        options = question.options
        self._random = random
        self._stops = question.stops
        self._greedy = options.get("temperature") == 0
        self._seeded = question.is_repeatable
        self._calls = CALLS[:calls]
        self._thinks = thinks
        self._forbidden = {"prefill"} if question.format is not None else set()
        if question.format is not None or question.tools or question.has_images or thinks:
            self._forbidden.add("raw")

    def answer(self, host: Host, request: Request, fault: str, now: float) -> Exchange:
        """Return the exchange that a request to a host becomes, its bytes timed from now."""
        body: dict[str, Any] = decode(request.body) if request.body else {}  # Any: JSON
        exchange = Exchange(host.number, kind_of(request, body), now)
        if host.strips in body:
            del body[host.strips]
        self._read_given(host, body, exchange)
        status = host.refuses.get(exchange.kind)
        if status is not None:
            exchange.replies(now, wire.error_reply(status))
        elif fault and fault[0].isdigit():
            code, _, wait = fault.partition("+")
            exchange.replies(now + host.latency, wire.error_reply(int(code), retry_after=int(wait) if wait else None))
        elif fault == "html":
            exchange.replies(now + host.latency, wire.HTML % 502)
        else:
            self._serve(host, body, exchange)
        exchange.spoil(fault, self._random, chunked=host.chunked)
        exchange.arrivals = wire.scatter(exchange.arrivals, self._random)
        return exchange

    def _read_given(self, host: Host, body: dict[str, Any], exchange: Exchange) -> None:
        """Find the beginning of the answer in a request, and what is wrong with asking like this."""
        if exchange.kind in self._forbidden:
            exchange.fault = f"{exchange.kind} cannot carry what the question has: tools, images, a format or thinking"
        if exchange.kind == "raw":
            exchange.given = text_of_prompt(body["prompt"], exchange)
        elif exchange.kind == "prefill":
            exchange.given = body["messages"][-1]["content"]
            if host.template in OPENINGS:
                exchange.fault = "prefill was asked of a template that begins a new turn"

    def _serve(self, host: Host, body: dict[str, Any], exchange: Exchange) -> None:
        now, kind = exchange.sent, exchange.kind
        if kind == "version":
            exchange.replies(now + host.latency, wire.json_reply({"version": host.version}))
        elif kind == "ps":
            exchange.replies(max(now + host.latency, host.loaded_at), wire.json_reply({"models": [{"name": "m"}]}))
        elif kind == "render" and host.version != "0.11.4" and "_debug_render_only" in body:
            last = body["messages"][-1]
            begun = last if last["role"] == "assistant" else {}
            prompt = host.rendered(begun.get("content", ""), begun.get("thinking", ""))
            found = {"model": "m", "_debug_info": {"rendered_template": prompt, "image_count": 0}}
            exchange.replies(max(now + host.latency, host.loaded_at), wire.json_reply(found))
        elif kind == "render":
            said = {"model": "m", "message": {"role": "assistant", "content": "Well"}, "done": True}
            exchange.replies(max(now, host.loaded_at) + host.first_delay, wire.json_reply(said))
        else:
            self._generate(host, body, exchange)

    def _generate(self, host: Host, body: dict[str, Any], exchange: Exchange) -> None:
        """Stream an answer, or the rest of one."""
        kind, weights = exchange.kind, host.weights
        given = exchange.given
        thinking = weights.thinking if self._thinks and kind == "chat" else []
        before = str(body["messages"][-1].get("thinking", "")) if kind == "prefill" else ""
        if self._greedy:
            tokens = weights.rest(given)
        elif kind == "chat" and self._seeded:
            tokens = weights.tokens
        else:
            tokens = weights.sample()
        limit = body.get("options", {}).get("num_predict")
        tokens, thinking, reason = limited(tokens, thinking, limit)
        said = emitted(tokens, self._stops, holds_back=host.holds_stops)
        calls = self._calls if kind == "chat" and reason == "stop" and said == tokens else ()
        reason = reason if said == tokens else "stop"
        place = seam_stop(given, "".join(said), self._stops)
        text = given + "".join(said) if place is None else given
        exchange.truth = Truth(text, before + "".join(thinking), calls, place is not None)
        if given:
            said = self._distorted(host, given, said, exchange)
        lines = self._lines(host, said, thinking, exchange, calls=calls, reason=reason)
        exchange.arrivals = wire.stream(lines, chunked=host.chunked)
        exchange.ending = "keep" if host.chunked else "eof"

    def _distorted(self, host: Host, given: str, tokens: list[str], exchange: Exchange) -> list[str]:
        """Return what a server says that does not go on with what it was given, though it was asked to."""
        lie = host.lie
        if host.strips == "raw" and exchange.kind == "raw":
            lie = lie or "anew"
        words = given.split(" ")
        if not lie or len(words) < 4 or len(given) < 24 or len(set(words)) < len(words):
            return tokens  # one could not tell a lie from a text that goes on like this, as one that repeats itself may
        whole = "".join(tokens)
        if lie == "echo":
            return [given.strip(), *tokens]
        if lie == "tail":
            return [last_words(given), *tokens] if not whole[:1].isalnum() else tokens
        if not (given[-1].isalnum() or given[-1] in GLUE):
            return tokens  # behind white space a message of its own is a paragraph like others
        if lie == "preamble":
            return [PREAMBLES[len(words) % 3], *tokens]
        exchange.truth = None
        return host.weights.other(given) if lie == "reworded" else host.weights.anew()

    def _lines(
        self,
        host: Host,
        tokens: Sequence[str],
        thinking: Sequence[str],
        exchange: Exchange,
        *,
        calls: Sequence[tuple[str, dict[str, Any]]],  # Any: JSON
        reason: str,
    ) -> list[tuple[float, bytes]]:
        at = max(exchange.sent, host.loaded_at) + host.first_delay
        pace, group = host.pace, host.group
        to_line = wire.generate_line if exchange.kind == "raw" else wire.chat_line
        path = "/api/generate" if exchange.kind == "raw" else "/api/chat"
        lines = []
        for thought in thinking:
            lines.append((at, wire.chat_line(thought, field="thinking")))
            at += pace
        last = ""
        if host.group > 1:
            tokens = ["".join(tokens[i : i + group]) for i in range(0, len(tokens), group)]
            last = tokens[-1] if tokens and not calls and self._random.random() < 0.3 else ""
        for token in tokens[:-1] if last else tokens:
            lines.append((at, to_line(token)))
            at += pace
        for call in calls:
            lines.append((at, wire.call_line(*call)))
            at += pace
        lines.append((at, wire.done_line(path, last, reason=reason, count=len(tokens))))
        return lines


def last_words(text: str) -> str:
    """Return the last three words of a text as they stand in it."""
    text = text.rstrip()
    return text[len(text.rsplit(None, 3)[0]) :].lstrip()


def kind_of(request: Request, body: dict[str, Any]) -> str:
    """Return what a request is: chat, render, raw, prefill, version or ps."""
    if request.method == "GET":
        return request.path.rpartition("/")[2]
    if request.path == "/api/generate":
        return "raw"
    if "_debug_render_only" in body:
        return "render"
    return "prefill" if body["messages"][-1]["role"] == "assistant" else "chat"


def text_of_prompt(prompt: str, exchange: Exchange) -> str:
    """Return what stands behind the rendered question in a raw prompt."""
    for opening in PROMPTS:
        if prompt.startswith(opening):
            if opening.endswith("<think>\n"):
                exchange.fault = "raw text was put into an open thought"
            return prompt[len(opening) :]
    exchange.fault = f"the raw prompt does not begin with a rendered one: {prompt[:60]!r}"
    return prompt


def limited(tokens: list[str], thinking: list[str], limit: int | None) -> tuple[list[str], list[str], str]:
    """Return what of an answer is within num_predict, and why it ends."""
    if limit is None or len(thinking) + len(tokens) <= limit:
        return tokens, thinking, "stop"
    return tokens[: max(limit - len(thinking), 0)], thinking[:limit], "length"


def emitted(tokens: list[str], stops: Sequence[str], *, holds_back: bool) -> list[str]:
    """Return the tokens that a server lets out before a stop string.

    Ollama holds a token back that may begin one; other servers have let the beginning out when they see the end.
    """
    text = "".join(tokens)
    places = [(place, stop) for stop in stops if (place := text.find(stop)) >= 0]
    if not places:
        return tokens
    first, stop = min(places)
    kept, length = [], 0
    for token in tokens:
        ends = length + len(token)
        if ends >= first + len(stop) or (holds_back and ends > first):
            kept.append(token[: max(first - length, 0)])
            break
        kept.append(token)
        length = ends
    return [token for token in kept if token]


def seam_stop(given: str, text: str, stops: Sequence[str]) -> int | None:
    """Return where a stop string begins that stands across the seam; a server looks only at what it says itself."""
    for stop in stops:
        for size in range(1, len(stop)):
            if given.endswith(stop[:size]) and text.startswith(stop[size:]):
                return len(given) - size
    return None
