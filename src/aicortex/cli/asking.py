"""One question: ask it, show the answer as it comes, and say on stderr what the reader should know about it."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from aicortex._core.server import EMBEDDED
from aicortex.ask import chat
from aicortex.cli.screens import Screen, choose_screen
from aicortex.cli.table import counted
from aicortex.cli.terminal import note
from aicortex.cli.waiting import Waiting
from aicortex.fleet import find_fleet

if TYPE_CHECKING:
    from aicortex import Result, Server, Stream, StreamEvent
    from aicortex.request import Routing
    from aicortex.session import Session


@dataclass(frozen=True)
class Manner:
    """How to ask and how to show the answer: the options of `aicortex chat`."""

    model: str | None
    servers: list[str] | None
    system: str | None
    temperature: float | None
    max_tokens: int | None
    seed: int | None
    hedge_after: float | None
    stall_timeout: float
    timeout: float | None
    resume: Literal["continue", "never"] | None
    routing: Routing | None
    session: str | None
    images: list[str] | None
    think: bool | Literal["low", "medium", "high"] | None
    format: Literal["json"] | dict[str, Any] | None  # Any: JSON
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
            hedge_after=options.hedge_after,
            stall_timeout=options.stall_timeout,
            timeout=options.timeout,
            resume=options.resume,
            routing=options.routing,
            session=options.session,
            images=options.image,
            think={"on": True, "off": False}.get(options.think, options.think),
            format=None if options.format is None else read_format(options.format),
            json=options.json,
            plain=options.plain,
            stats=options.stats,
        )


def read_format(name: str) -> Literal["json"] | dict[str, Any]:  # Any: JSON
    """Return what `--format` says: "json", or the schema in a file; raises ValueError."""
    if name == "json":
        return "json"
    try:
        with open(name, "rb") as file:
            schema = msgspec.json.decode(file.read())
    except OSError as error:
        raise ValueError(f"--format: {name} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--format: {name} is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise ValueError(f"--format: {name} is no JSON schema, which is an object")
    return schema


def ask(prompt: str, manner: Manner, session: Session | None = None) -> Result:
    """Ask, in a conversation if there is one, and show the answer.

    Raises as `chat` and its stream do, when what came has been shown. A KeyboardInterrupt ends the generation on the
    server and passes on.
    """
    with Waiting() as waiting:
        waiting.begin("looking for a server")
        servers, has_engine = _chosen(manner)
        if has_engine:
            waiting.stop()  # the engine says itself what it fetches and starts
        with _open(prompt, manner, session, servers) as stream:
            screen = choose_screen(json=manner.json, plain=manner.plain)
            if manner.json and sys.stdout.isatty():
                waiting.go_below(screen)  # there are lines before the first text
            reporter = Reporter(waiting, screen, has_engine=has_engine)
            try:
                _follow(stream, screen, reporter)
            finally:
                waiting.stop()
                screen.finish()
                reporter.finish()
            result = stream.result
            if manner.format is not None:
                stream.object()  # raises what is wrong with it
    _comment(result, (stream.events[0].meta or {}).get("trimmed_turns", 0), stats=manner.stats)
    return result


def _chosen(manner: Manner) -> tuple[Sequence[str | Server] | None, bool]:
    """Return the servers to ask `chat` for, and whether the embedded engine is among them.

    A server that is the only one was found by asking around, which is not done twice; of others `chat` itself must
    know whether they were named here, and in what order.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "left out: ")  # `chat` says it
        fleet = find_fleet(manner.servers)
    has_engine = any(server.scheme == EMBEDDED for server in fleet.servers)
    is_certain = len(fleet.servers) == 1 and not fleet.entries
    return fleet.servers if is_certain else manner.servers, has_engine


def _open(prompt: str, manner: Manner, session: Session | None, servers: Sequence[str | Server] | None) -> Stream:
    asking = chat if session is None else session.chat
    return asking(
        prompt,
        stream=True,
        model=manner.model,
        servers=servers,
        system=manner.system,
        temperature=manner.temperature,
        max_tokens=manner.max_tokens,
        seed=manner.seed,
        hedge_after=manner.hedge_after,
        stall_timeout=manner.stall_timeout,
        timeout=manner.timeout,
        resume=manner.resume,
        routing=manner.routing,
        images=manner.images,
        think=manner.think,
        format=manner.format,
    )


def _follow(stream: Stream, screen: Screen, reporter: Reporter) -> None:
    """Show every event of a stream; refresh whenever nothing more has come."""
    for count, event in enumerate(stream, 1):
        reporter.tell(event)
        screen.show(event)
        if count == len(stream.events):
            screen.refresh()


class Reporter:
    """Says on the terminal what happens to an answer besides its text.

    What is to be said about servers while the answer stands half written is kept until the end; meanwhile only the
    sign of life tells of it.
    """

    def __init__(self, waiting: Waiting, screen: Screen, *, has_engine: bool) -> None:
        self._waiting = waiting
        self._screen = screen
        self._has_engine = has_engine  # whether the embedded engine may have to say something
        self._server = ""  # asked last
        self._failed: StreamEvent | None = None
        self._is_flowing = False  # the last that came was text
        self._later: list[str] = []

    def tell(self, event: StreamEvent) -> None:
        """Take note of the next event, before it is shown."""
        meta = event.meta or {}
        kind = meta.get("kind")
        if event.type == "token":
            self._waiting.heard()
            if not self._is_flowing:
                self._flow()
        elif event.type == "error" and meta["delivered"]:
            self._tell_break(event)
        elif kind == "resumed":
            self._later.append(f"server {meta['server']} went on with the answer")
        elif kind == "connected" and self._later:
            self._server = meta["server"]
            self._waiting.begin(f"waiting for {self._server} to go on")
        elif (event.type == "error" or kind == "connected") and not self._later:
            self._tell_attempt(event)
        elif kind == "loading":
            self._waiting.begin(f"{meta['server']} is loading the model")
        elif kind == "thinking":
            self._is_flowing = False
            self._waiting.begin("thinking")

    def finish(self) -> None:
        """Say what was kept."""
        for words in self._later:
            note(words)

    def _flow(self) -> None:
        """Text comes: from now on the sign of life belongs below it."""
        self._is_flowing = True
        self._waiting.go_below(self._screen)
        self._waiting.begin(f"waiting for {self._server}")

    def _tell_break(self, event: StreamEvent) -> None:
        """Tell of a server that failed in the middle of the answer."""
        meta = event.meta or {}
        self._is_flowing = False
        if not meta["will_retry"]:  # the last failure is reported as what ended the answer
            return
        self._later.append(f"server {meta['server']} failed after {meta['delivered']} characters ({_reason(event)})")
        if self._has_engine:
            self._waiting.stop()
        else:
            self._waiting.begin("looking for another server")

    def _tell_attempt(self, event: StreamEvent) -> None:
        """Tell of an attempt, or its failure, before any text."""
        meta = event.meta or {}
        self._waiting.stop()
        if self._failed:
            failed = self._failed.meta or {}
            next_one = "it again" if meta["server"] == failed["server"] else meta["server"]
            note(f"server {failed['server']} failed ({_reason(self._failed)}), asking {next_one}")
        self._failed = event if event.type == "error" and meta["will_retry"] else None
        if event.type != "error":
            self._server = f"{self._server} or {meta['server']}" if meta.get("hedge") else meta["server"]
        self._waiting.begin("looking for another server" if self._failed else f"waiting for {self._server}")


def _reason(failed: StreamEvent) -> str:
    return (failed.content or "").removeprefix(f"{(failed.meta or {})['server']}: ")


def _comment(result: Result, left_out: int, *, stats: bool) -> None:
    if left_out:
        note(f"the model was not told the oldest {counted(left_out, 'turn')}: it takes no more")
    if not result.text:
        note("the model answered nothing")
    if result.finish_reason == "length":
        note(f"the answer ends at its limit of {_tokens(result)}")
    if stats:
        note(stats_line(result))


def _tokens(result: Result) -> str:
    return counted(result.usage["completion_tokens"], "token")


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
    why = result.attempts[-1].why
    return ", ".join(parts) + (f"; chosen: {why}" if why else "")
