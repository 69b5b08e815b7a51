"""What one seed means: a fleet, a question, deadlines, and when the reader interferes."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

import msgspec

from aicortex._core.failover import Deadlines
from aicortex._core.question import Question
from aicortex._core.server import Server
from benchmarks.simulation.hosts import LIES, Host, Service
from benchmarks.simulation.weights import Weights

SERVERS = tuple(Server(f"s{number}:1") for number in range(5))
SHAPES = ("prose",) * 9 + ("wide", "wide", "code", "code", "loop", "short", "empty", "spaces", "spaces")
BEFORE = ("refused", "unreachable", "connect_timeout", "tls", "send", "stale")
REFUSALS = ("401", "403", "404", "429", "429+3", "499", "500", "502", "503", "503", "503+1", "html")
STREAMED = ("eof", "eof", "eof", "reset", "reset", "hang", "hang", "garbage", "error", "error")
OTHERS = ("silent", "closed", "headers", "more", "trickle")
FAULTS = (*BEFORE, *REFUSALS, *STREAMED * 4, *OTHERS)
TEMPLATES = ("chatml", "chatml", "chatml", "prefill", "prefill", "prefill", "trims", "trims", "opens")
REFUSED = ("raw", "raw", "render", "version", "prefill", "ps")  # by a proxy that lets only some requests through
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
ASKED = [{"role": "user", "content": "Q"}]
PICTURED = [{"role": "user", "content": "Q", "images": ["aGVsbG8="]}]
FOREVER = 1e9
LOAD_SECONDS = 280.0  # the longest load, a little shorter than the core's patience
Option = TypeVar("Option")


class Scenario(msgspec.Struct):
    """The drawing of one seed.

    `cancel_at` and `move_at` count the front end's steps, `pauses` are seconds by step, `reads_ahead` says that a
    steady stream is read without asking for each step. `healthy` servers never fail, `fleeting` ones once, with this
    fault; `is_plain` is a question that any server can go on with, `is_loop` an answer whose continuation may look
    like an echo.
    """

    seed: int
    random: Random
    hosts: list[Host]
    service: Service
    question: Question
    deadlines: Deadlines
    resume: bool
    hedge_after: float | None
    cancel_at: int
    move_at: tuple[int, ...]
    pauses: dict[int, float]
    healthy: frozenset[int]
    fleeting: dict[int, str]
    is_plain: bool
    is_loop: bool
    reads_ahead: bool

    @property
    def digests(self) -> tuple[str, ...]:
        """What is known of each server's weights."""
        return tuple(host.digest for host in self.hosts)


def draw(seed: int) -> Scenario:
    """Return the scenario of a seed."""
    random = Random(seed)
    chance = random.random
    shape = pick(SHAPES, random)
    thinks, calls = chance() < 0.08, 1 + int(3 * chance()) if chance() < 0.05 else 0
    deadlines = _deadlines(random)
    weights = [Weights(random, shape=shape, thinks=thinks)]
    count = 1 + int(5 * chance())
    if count > 1 and chance() < 0.3:
        weights.append(Weights(random, shape=shape, thinks=thinks))
    hosts = _hosts(weights, random, count=count, deadlines=deadlines)
    question = _question(weights[0], random, thinks=thinks, calls=calls)
    healthy = frozenset(host.number for host in hosts if host.is_healthy)
    fleeting = {host.number: host.faults[0] for host in hosts if len(host.faults) == 1 and host.is_sound}
    moves = tuple(int(25 * chance()) for _ in range(1 + int(2 * chance()))) if chance() < 0.1 else ()
    return Scenario(
        seed=seed,
        random=random,
        hosts=hosts,
        service=Service(question, random, calls=calls, thinks=thinks),
        question=question,
        deadlines=deadlines,
        resume=chance() < 0.9,
        hedge_after=pick((0.0, 0.05, 0.5, 3.0), random) if chance() < 0.12 else None,
        cancel_at=int(40 * chance()) if chance() < 0.05 else -1,
        move_at=moves,
        pauses={int(30 * chance()): 60 * chance() ** 3} if chance() < 0.1 else {},
        healthy=healthy,
        fleeting=fleeting,
        is_plain=not (thinks or calls or question.format or question.has_images),
        is_loop=shape == "loop",
        reads_ahead=chance() < 0.5,
    )


def pick(options: Sequence[Option], random: Random) -> Option:
    """Return one of several options."""
    return options[int(random.random() * len(options))]


def _deadlines(random: Random) -> Deadlines:
    chance = random.random
    total = 0.2 + 20 * chance() if chance() < 0.12 else None
    pace = 0.5 + 30 * chance() if chance() < 0.05 else None
    times = pick(((5.0, 120.0, 30.0), (1.0, 10.0, 5.0), (1.0, 2.0, 1.0)), random)
    return Deadlines(*times, total, pace)


def _question(weights: Weights, random: Random, *, thinks: bool, calls: int) -> Question:
    chance = random.random
    options: dict[str, Any] = {}  # Any: JSON
    decoding = chance()
    if decoding < 0.6:
        options["temperature"] = 0
    elif decoding < 0.75:
        options["seed"] = 7
    if chance() < 0.12:
        options["num_predict"] = 1 + int(20 * chance())
    if chance() < 0.12:
        options["stop"] = _stops(weights.tokens, random)
    return Question(
        "m",
        PICTURED if chance() < 0.03 else ASKED,
        think=True if thinks and chance() < 0.7 else None,
        options=options,
        tools=TOOLS if calls else None,
        format="json" if chance() < 0.03 else None,
    )


def _stops(tokens: list[str], random: Random) -> list[str]:
    """Return stop strings, most of them somewhere in the answer and across the borders of its tokens."""
    chance = random.random
    if not tokens or chance() < 0.2:
        return ["###"]
    place = len("".join(tokens[: int(chance() * len(tokens))]))
    found = "".join(tokens)[max(place - int(4 * chance()), 0) : place + 1 + int(4 * chance())]
    return [found, "<|im_end|>"]


def _hosts(weights: list[Weights], random: Random, *, count: int, deadlines: Deadlines) -> list[Host]:
    chance = random.random
    templates, known = (pick(TEMPLATES, random), "prefill"), chance()
    hosts = []
    for number in range(count):
        which = len(weights) - 1 if len(weights) > 1 and chance() < 0.4 else 0
        digest = f"sha256:{which}" if known < 0.75 or chance() < known - 0.75 else ""
        host = Host(number, weights[which], digest, templates[which])
        host.latency, host.first_delay, host.pace = 0.05 * chance(), 0.8 * chance(), 0.2 * chance() ** 2
        host.chunked, host.holds_stops = chance() < 0.8, chance() < 0.6
        host.group = 1 if chance() < 0.8 else 1 + int(4 * chance())
        if chance() < 0.7:
            _harm(host, random, deadlines=deadlines)
        hosts.append(host)
    return hosts


def _harm(host: Host, random: Random, *, deadlines: Deadlines) -> None:
    """Give a server its faults."""
    chance = random.random
    if chance() < 0.85:
        host.faults = [pick(FAULTS, random) if chance() < 0.8 else "" for _ in range(1 + int(4 * chance()))]
    if chance() < 0.1:
        begin = 4 * chance()
        host.dead = ((begin, begin + 10 * chance() if chance() < 0.7 else FOREVER),)
    if chance() < 0.3:
        host.lie = pick(LIES, random)
    if chance() < 0.1:
        host.version = "0.11.4"
    if chance() < 0.12:
        host.refuses = {pick(REFUSED, random): pick((403, 404, 405, 500), random)}
    if chance() < 0.06:
        host.strips = pick(("raw", "raw", "_debug_render_only"), random)
    if chance() < 0.06:
        host.loaded_at = min(2.5 * deadlines.first_token, LOAD_SECONDS) * chance()
    if chance() < 0.03:
        host.is_slow, host.pace = True, 2 * deadlines.stall * chance()
    if chance() < 0.01:
        host.refuses = {"chat": 400}
