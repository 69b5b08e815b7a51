"""The fourth step, on demand: how fast the models are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter, time

import msgspec

from aicortex._core.server import Server
from aicortex.ask import chat
from aicortex.errors import AICortexError, AllServersFailedError
from aicortex.events import StreamEvent
from aicortex.planning import EMBEDDING_FAMILIES
from aicortex.registry.entries import Measurement, ModelEntry
from aicortex.stream import Stream
from aicortex.tools.asking import Tally, Tell, ask_all, check_deadline

PROMPT = "Count from one to thirty in words."  # every model says more to it than what is measured
TOKENS = 16


def measure(
    models: Mapping[Server, Sequence[ModelEntry]],
    *,
    every: bool = False,
    deadline: float = 60.0,
    tell: Tell | None = None,
) -> list[Measurement]:
    """Let each server generate a few tokens, and return how fast that was, in the order in which they were done.

    `models` says what each server has. One of them is measured, the one in memory, or else the smallest; with `every`
    each one, which makes the server load them all. Models that only embed are never asked. Servers are measured at
    once, the models of one server one after the other, each by an answer of 16 tokens; it takes `deadline` seconds at
    most. What fails, or is cut short by the deadline, is a measurement with its `error`; what was not begun by then is
    left out. `tell` is called with `Progress` values, in this thread. Raises ValueError for what is no deadline.
    """
    check_deadline(deadline)
    chosen = {server: choose(entries, time(), every=every) for server, entries in models.items()}
    chosen = {server: entries for server, entries in chosen.items() if entries}
    tally = Tally("measure", sum(map(len, chosen.values())), tell)
    begun: list[tuple[Server, str]] = []
    done: dict[tuple[Server, str], Measurement] = {}

    def ask(server: Server, due: float) -> Iterator[Measurement]:
        for entry in chosen[server]:
            if perf_counter() < due:
                begun.append((server, entry.name))
                yield _measured(server, entry, due - perf_counter())

    for server, measurement in ask_all(list(chosen), ask, seconds=deadline):
        done[server, measurement.model] = measurement
        tally.count(server, failed=bool(measurement.error))
    for server, model in begun:
        if (server, model) not in done:
            words = f"was not measured within {deadline:.3g} s"
            done[server, model] = Measurement(server.label, model, time(), error=words)
            tally.count(server, failed=True)
    return list(done.values())


def choose(entries: Sequence[ModelEntry], now: float, *, every: bool) -> list[ModelEntry]:
    """Return the models of one server that are to be measured, those in memory at the Unix time `now` first."""
    able = [entry for entry in entries if _can_chat(entry)]
    able.sort(key=lambda entry: (entry.loaded_until <= now, entry.size or math.inf, entry.name))
    return able if every else able[:1]


def _can_chat(entry: ModelEntry) -> bool:
    if entry.capabilities:
        return "completion" in entry.capabilities
    return entry.family not in EMBEDDING_FAMILIES


def _measured(server: Server, entry: ModelEntry, seconds: float) -> Measurement:
    """Return what one short answer was like."""
    blank = Measurement(server.label, entry.name, time())
    try:
        stream = chat(
            PROMPT,
            system=f"Measured at {blank.at}.",  # a prompt that begins like an earlier one is not evaluated again
            model=entry.name,
            servers=[server],
            stream=True,
            max_tokens=TOKENS,
            temperature=0,
            resume="never",
            think=False if "thinking" in entry.capabilities else None,
            timeout=max(round(seconds, 1), 0.1),  # as its error says it
        )
        with stream:
            return _read(stream, blank)
    except AICortexError as error:
        return msgspec.structs.replace(blank, error=server.redact(_reason(error)))


def _read(stream: Stream, blank: Measurement) -> Measurement:
    """Read the answer to its end; the time to its first token is without that of loading the model."""
    timings = stream.result.timings
    spoken = [event for event in stream.events if event.type == "token" or _is_thinking(event)]
    if not spoken:
        return msgspec.structs.replace(blank, error="the model said nothing")
    waited = (spoken[0].timestamp or 0.0) - (stream.events[0].timestamp or 0.0)
    load = timings["load"] if timings["load"] < waited else 0.0  # else the server's clock is not to be trusted
    return msgspec.structs.replace(
        blank,
        first_token_ms=(waited - load) * 1000,
        tokens_per_second=timings["tokens_per_second"],
        load_ms=load * 1000,
    )


def _is_thinking(event: StreamEvent) -> bool:
    return event.type == "meta" and event.meta is not None and event.meta["kind"] == "thinking"


def _reason(error: AICortexError) -> str:
    """Return why it failed, without the name of the only server."""
    if isinstance(error, AllServersFailedError) and error.attempts:
        return error.attempts[-1].message
    return str(error)
