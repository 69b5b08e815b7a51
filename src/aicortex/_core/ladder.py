"""Which requests lead to an answer, server by server: the first one, or those that go on with what broke off.

    task      request                                 its reply
    answer    /api/chat, or /api/generate with raw    the stream that the reader gets
    version   /api/version                            what this version and these weights are known not to do
    render    /api/chat with `_debug_render_only`     the prompt, on which the next request rests

A rung that a server has failed on is not tried there again; the next one is, and then the next server.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import TypeAlias

import msgspec

from aicortex._core import faults
from aicortex._core.failover import Failure
from aicortex._core.http import Response
from aicortex._core.ollama import BAD_JSON, Rendered, version_of
from aicortex._core.question import VERSION, Question, Request
from aicortex._core.seam import PREFILL, RAW, RESTART, Delivered, raw_prompt, ways_on

ASK_ANSWER = "answer"
ASK_VERSION = "version"
ASK_RENDER = "render"
RENDERS_SINCE = (0, 11, 5)  # the first version that knows `_debug_render_only` (protocol: "Continuing a broken answer")
FIRST = ""  # the rung of an attempt before anything was delivered
PASSING = frozenset({"busy", "server_error", "model_not_found"})  # refusals that say nothing about a rung
Memory: TypeAlias = dict[tuple[str, str], set[str]]  # by version and digest: the rungs that never work there


class Step(msgspec.Struct, frozen=True):
    """A request, what its reply is wanted for, and the rung it belongs to."""

    request: Request
    task: str = ASK_ANSWER
    rung: str = FIRST


class Ladder(msgspec.Struct, frozen=True):
    """How far the servers have come with an answer; a value, so each change returns the next one.

    `digests` name the weights of each server, "" where unknown, `names` the model where it is another one than the
    question's. `memory` is shared between answers. `origin` is the
    server whose weights the text came from, `mixed` says that others had a part in it.
    """

    question: Question
    digests: tuple[str, ...]
    memory: Memory
    names: tuple[str, ...] = ()
    delivered: Delivered = Delivered()
    origin: int | None = None
    mixed: bool = False
    versions: Mapping[int, str] = {}
    failed: frozenset[tuple[int, str]] = frozenset()

    def same_weights(self, server: int) -> bool | None:
        """Whether a server has the weights the text came from; None when that is not known."""
        if self.origin is None or server == self.origin:
            return not self.mixed
        mine, theirs = self.digests[server], self.digests[self.origin]
        if mine and theirs:
            return mine == theirs and not self.mixed
        return None

    def asked(self, server: int) -> Question:
        """Return the question as this server is asked it: it may have the model under another name."""
        return msgspec.structs.replace(self.question, model=self.names[server]) if self.names else self.question

    def ways(self, server: int) -> list[str]:
        """Return the rungs left at a server, best first."""
        if not self.delivered:
            return [FIRST]
        version = self.versions.get(server, "")
        known: Container[str] = self.memory.get((version, self.digests[server]), ())
        if _is_before(version, RENDERS_SINCE):
            known = (RAW, PREFILL)
        return [
            way
            for way in ways_on(self.question, self.delivered, same_weights=self.same_weights(server))
            if (server, way) not in self.failed and way not in known
        ]

    def step(self, server: int) -> Step | None:
        """Return what to ask a server next, or None when it cannot go on."""
        ways = self.ways(server)
        if not ways:
            return None
        rung = ways[0]
        if rung not in (RAW, PREFILL):
            return Step(self.asked(server).chat(), rung=rung)
        if server not in self.versions:
            return Step(VERSION, ASK_VERSION, rung)
        if rung == RAW:
            return Step(self.asked(server).render(), ASK_RENDER, rung)
        begun = self.delivered
        return Step(self.asked(server).render(begun.text, begun.thinking), ASK_RENDER, rung)

    def order(self, servers: Iterable[int]) -> dict[int, int]:
        """Return the servers that can go on, with a rank: the same weights first, then unknown ones, then others."""
        ranks = {True: 0, None: 1, False: 2}
        return {server: ranks[self.same_weights(server)] for server in servers if self.ways(server)}

    def broke(self, server: int, delivered: Delivered, rung: str = FIRST) -> Ladder:
        """Return the ladder after a server delivered a part and broke; after a restart the part is all its own."""
        if self.origin is None or rung == RESTART:
            return msgspec.structs.replace(self, delivered=delivered, origin=server)
        mixed = self.mixed or self.same_weights(server) is not True
        return msgspec.structs.replace(self, delivered=delivered, mixed=mixed)

    def without(self, server: int, *rungs: str, for_ever: bool = False) -> Ladder:
        """Return the ladder without these rungs at a server; `for_ever` remembers it of all like this one."""
        kind = (self.versions.get(server, ""), self.digests[server])
        if for_ever and all(kind):
            self.memory.setdefault(kind, set()).update(rungs)
        failed = self.failed | {(server, rung) for rung in rungs}
        return msgspec.structs.replace(self, failed=failed)

    def learned(self, server: int, task: str, rung: str, response: Response) -> tuple[Ladder, Step | Failure | None]:
        """Return the ladder and the next step after a preparation was answered, or the failure that it was."""
        if not response.complete:
            return self, faults.of_end(response, phase=faults.RESUME)
        if task == ASK_VERSION:
            versions = {**self.versions, server: version_of(b"".join(response.body))}
            ladder = msgspec.structs.replace(self, versions=versions)
            return ladder, ladder.step(server)
        if response.status != 200:
            failure = msgspec.structs.replace(faults.of_status(response), phase=faults.RESUME)
            if failure.kind in PASSING:
                return self, failure
            ladder = self.without(server, RAW, PREFILL)
            return ladder, ladder.step(server) or failure
        try:
            reply = msgspec.json.decode(b"".join(response.body), type=Rendered)
        except BAD_JSON as error:
            return self, faults.of_content(response, f"the reply is not JSON ({error})", phase=faults.RESUME)
        return self._rendered(server, rung, reply)

    def _rendered(self, server: int, rung: str, reply: Rendered) -> tuple[Ladder, Step | None]:
        delivered, question = self.delivered, self.asked(server)
        prompt = None if reply.debug is None else reply.debug.rendered_template
        if prompt is None:  # something in front of it dropped the flag
            ladder = self.without(server, RAW, PREFILL)
            return ladder, ladder.step(server)
        if rung == RAW:
            whole = raw_prompt(prompt, delivered.text)
            if whole is not None:
                return self, Step(question.raw(whole, spent=delivered.chunks), rung=RAW)
            ladder = self.without(server, RAW)
        else:
            text = delivered.text
            if text.strip() and prompt.endswith(text) and delivered.thinking.strip() in prompt:
                begun = question.prefill(text, delivered.thinking, spent=delivered.chunks)
                return self, Step(begun, rung=PREFILL)
            starts_anew = not prompt.endswith(text.strip())  # else only white space was trimmed this time
            ladder = self.without(server, PREFILL, for_ever=starts_anew)
        return ladder, ladder.step(server)


def _is_before(version: str, first: tuple[int, ...]) -> bool:
    """Whether a version is known to be older; what stands behind its numbers does not count."""
    numbers = version.partition("-")[0].partition("+")[0].split(".")
    is_release = all(map(str.isdigit, numbers)) and any(map(int, numbers))  # a server of one's own build says 0.0.0
    return is_release and tuple(map(int, numbers)) < first
