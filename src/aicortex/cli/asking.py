"""One question: ask it, show the answer as it comes, and say on stderr what the reader should know about it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aicortex.ask import chat
from aicortex.cli.screens import Screen, choose_screen
from aicortex.cli.terminal import Waiting, note
from aicortex.fleet import find_servers

if TYPE_CHECKING:
    from aicortex import Result, Server, Stream, StreamEvent
    from aicortex.request import MessageDict


@dataclass(frozen=True)
class Manner:
    """How to ask and how to show the answer: the options of `aicortex chat`."""

    model: str | None
    servers: list[str] | None
    system: str | None
    temperature: float | None
    max_tokens: int | None
    seed: int | None
    timeout: float | None
    resume: Literal["continue", "never"] | None
    json: bool
    plain: bool
    stats: bool

    @classmethod
    def of(cls, options: argparse.Namespace) -> Manner:
        """Return what the command line says."""
        return cls(
            model=options.model,
            servers=options.server,
            system=options.system,
            temperature=options.temperature,
            max_tokens=options.max_tokens,
            seed=options.seed,
            timeout=options.timeout,
            resume=options.resume,
            json=options.json,
            plain=options.plain,
            stats=options.stats,
        )


def ask(prompt: str, manner: Manner, *, history: Sequence[MessageDict] = ()) -> Result:
    """Ask and show the answer; raises as `chat` and its stream do, when what came has been shown.

    A KeyboardInterrupt ends the generation on the server and passes on.
    """
    with Waiting() as waiting:
        waiting.begin("looking for a server")
        servers = find_servers(manner.servers)
        if any(server.scheme == "embedded" for server in servers):
            waiting.stop()  # the engine says itself what it fetches and starts
        with _open(prompt, manner, history, servers) as stream:
            screen = choose_screen(json=manner.json, plain=manner.plain)
            later: list[str] = []
            try:
                _follow(stream, screen, waiting, later)
            finally:
                waiting.stop()
                screen.finish()
                for words in later:
                    note(words)
            result = stream.result
    _comment(result, stats=manner.stats)
    return result


def _open(prompt: str, manner: Manner, history: Sequence[MessageDict], servers: Sequence[Server]) -> Stream:
    return chat(
        prompt,
        messages=history,
        stream=True,
        model=manner.model,
        servers=servers,
        system=manner.system,
        temperature=manner.temperature,
        max_tokens=manner.max_tokens,
        seed=manner.seed,
        timeout=manner.timeout,
        resume=manner.resume,
    )


def _follow(stream: Stream, screen: Screen, waiting: Waiting, later: list[str]) -> None:
    """Show every event of a stream; refresh whenever nothing more has come.

    What is to be said about servers while the answer stands half written on the terminal is kept for `later`.
    """
    failed: StreamEvent | None = None
    for count, event in enumerate(stream, 1):
        meta = event.meta or {}
        if event.type == "token":
            waiting.stop()
        elif event.type == "error" and meta["delivered"]:
            if meta["will_retry"]:  # the last failure is reported as what ended the answer
                later.append(f"server {meta['server']} failed after {meta['delivered']} characters ({_reason(event)})")
        elif meta.get("kind") == "resumed":
            later.append(f"server {meta['server']} went on with the answer")
        elif (event.type == "error" or meta.get("kind") == "connected") and not later:
            waiting.stop()
            if failed:
                next_one = "it again" if meta["server"] == (failed.meta or {})["server"] else meta["server"]
                note(f"server {(failed.meta or {})['server']} failed ({_reason(failed)}), asking {next_one}")
            failed = event if event.type == "error" and meta["will_retry"] else None
            waiting.begin(f"waiting for {meta['server']}" if failed is None else "looking for another server")
        elif meta.get("kind") == "loading":
            waiting.begin(f"{meta['server']} is loading the model")
        elif meta.get("kind") == "thinking":
            waiting.begin("thinking")
        screen.show(event)
        if count == len(stream.events):
            screen.refresh()


def _reason(failed: StreamEvent) -> str:
    return (failed.content or "").removeprefix(f"{(failed.meta or {})['server']}: ")


def _comment(result: Result, *, stats: bool) -> None:
    if not result.text:
        note("the model answered nothing")
    if result.finish_reason == "length":
        note(f"the answer ends at its limit of {_tokens(result)}")
    if stats:
        note(stats_line(result))


def _tokens(result: Result) -> str:
    count = result.usage["completion_tokens"]
    return f"{count} token" if count == 1 else f"{count} tokens"


def stats_line(result: Result) -> str:
    """Return what `--stats` says about an answer."""
    timings = result.timings
    speed = timings["tokens_per_second"]
    parts = [
        f"first token {timings['first_token']:.2f} s",
        f"{speed:.1f} tokens/s" if speed else "tokens/s unknown",
        f"{_tokens(result)} in {timings['total']:.2f} s",
        f"{result.model} on {result.server}",
    ]
    if len(result.attempts) > 1:
        parts.append(f"{len(result.attempts)} attempts")
    return ", ".join(parts)
