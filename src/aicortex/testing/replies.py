"""What a fake server can do with a request: answer it, or fail in one of many ways.

A reply is a frozen value. One reply may be used for any number of requests.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec

from aicortex.testing.exchange import JSON_TYPE, CutReached, Exchange
from aicortex.testing.generation import Generation

Parts = dict[str, Any]  # Any: the JSON values of one chunk: its content, thinking or tool calls


def split_tokens(text: str) -> list[str]:
    """Cut `text` into words with the white space before them: this server's tokens. Joined they are `text`.

    >>> split_tokens("one two, three")
    ['one', ' two,', ' three']
    """
    return re.findall(r"\s*\S+|\s+", text)


class Reply(ABC):
    """What the server does with one request. Subclass it for a misbehaviour of your own."""

    @abstractmethod
    def play(self, exchange: Exchange) -> None:
        """Answer the request of `exchange`; return when the reply is over."""

    def then(self, fault: Reply, *, after_tokens: int | None = None, after_bytes: int | None = None) -> Cut:
        """Return this reply, broken off by `fault` after so many chunks or bytes.

        Chunks of thinking and tool calls count as tokens. `after_tokens=0` sends the headers alone, and at
        the latest the fault takes the place of the `done` record, as it does without either argument. Bytes
        count from the first one of the status line. When the client asked for no stream, nothing is on the
        wire before the answer is whole, so that a cut at a token comes before the headers, as it would from
        Ollama.
        """
        return Cut(self, fault, after_tokens=after_tokens, after_bytes=after_bytes)


@dataclass(frozen=True)
class Cut(Reply):
    """A reply broken off by a fault: what `Reply.then` returns."""

    reply: Reply
    fault: Reply
    _: KW_ONLY
    after_tokens: int | None = None
    after_bytes: int | None = None

    def play(self, exchange: Exchange) -> None:
        tokens = math.inf if self.after_tokens is None and self.after_bytes is None else self.after_tokens
        exchange.cut_at(tokens=tokens, size_bytes=self.after_bytes)
        try:
            self.reply.play(exchange)
            exchange.flush()
        except CutReached:
            pass
        exchange.cut_at(tokens=None, size_bytes=None)
        self.fault.play(exchange)


@dataclass(frozen=True)
class Answer(Reply):
    """A whole answer, one chunk per token, closed by a `done` record.

    `text` and `thinking` are cut with `split_tokens` unless given as lists of tokens; `tool_calls` are pairs
    of a name and its arguments and follow the text, a chunk each. `done_content` is text that the `done`
    record itself carries, which Ollama may do. `done_reason=None` leaves the reason out.

    `first_delay` and `delay` are the seconds before the first chunk and between chunks; the headers come with
    the first chunk. `split` gives sizes in bytes for the writes to the socket, over and over: `split=[1]`
    sends byte by byte, `split=[65536]` many chunks at once.

    To a prompt that ends with the beginning of the text (a raw one, or a last message of the assistant on a
    server whose template is "prefill") the answer is the rest of the text, without thinking; to any other
    beginning it is the whole text, as from a model that starts over. A raw prompt never gets thinking or tool
    calls. `options` of the request hold: `num_predict` ends the answer with the reason "length" as soon as so
    many chunks are sent, `stop` before the first of its strings in the text which this request generates.

    `prompt_eval_count` is what the `done` record calls the tokens of the question; those of a continued text
    are added to it. `eval_count` is what it calls the generated tokens, by default the number of chunks.
    """

    text: str | Sequence[str] = ""
    _: KW_ONLY
    thinking: str | Sequence[str] = ""
    tool_calls: Sequence[tuple[str, Mapping[str, Any]]] = ()  # Any: JSON of the test's making
    done_reason: str | None = "stop"
    done_content: str = ""
    first_delay: float = 0.0
    delay: float = 0.0
    split: Sequence[int] = ()
    prompt_eval_count: int = 7
    eval_count: int | None = None

    def play(self, exchange: Exchange) -> None:
        if self.split:
            exchange.slice_into(self.split)
        delivered, chunks, last = self._continue(exchange.generation)
        chunks, last, reason = self._limit(chunks, last, exchange.generation)
        exchange.pause(self.first_delay)
        for number, parts in enumerate(chunks):
            if number:
                exchange.pause(self.delay)
            exchange.token(**parts)
        exchange.pause(self.delay)
        exchange.done(self._final(delivered, len(chunks), reason), content=last)

    def _continue(self, generation: Generation) -> tuple[int, list[Parts], str]:
        """Return how many tokens the prompt holds already, the chunks to send, and the text of the last record."""
        tokens, begun = _tokens(self.text), generation.delivered
        size = len("".join(tokens))
        if ("".join(tokens) + self.done_content).startswith(begun):
            seen, tokens = _cut(tokens, len(begun))
            last = self.done_content[max(0, len(begun) - size) :]
        else:
            seen, last = split_tokens(begun), self.done_content
        chunks: list[Parts] = [{"content": token} for token in tokens]
        if not generation.is_raw:
            thinking = _tokens(self.thinking) if generation.begins else []
            calls = [{"tool_calls": [_tool_call(index, *call)]} for index, call in enumerate(self.tool_calls)]
            chunks = [*({"thinking": token} for token in thinking), *chunks, *calls]
        return len(seen), chunks, last

    def _limit(self, chunks: list[Parts], last: str, generation: Generation) -> tuple[list[Parts], str, str | None]:
        """Return the chunks, the text of the last record and the reason for the end that the options leave."""
        reason = self.done_reason
        if generation.num_predict is not None and generation.num_predict <= len(chunks):
            chunks, last, reason = chunks[: generation.num_predict], "", "length"
        text = "".join(chunk.get("content", "") for chunk in chunks)
        ends = [found for stop in generation.stop if stop and (found := (text + last).find(stop)) >= 0]
        if not ends:
            return chunks, last, reason
        return _up_to(chunks, min(ends)), last[: max(0, min(ends) - len(text))], "stop"

    def _final(self, delivered: int, chunks: int, reason: str | None) -> dict[str, Any]:
        generated = chunks if self.eval_count is None else self.eval_count
        return ({} if reason is None else {"done_reason": reason}) | {
            "total_duration": 40_000_000 + 10_000_000 * generated,
            "load_duration": 10_000_000,
            "prompt_eval_count": self.prompt_eval_count + delivered,
            "prompt_eval_duration": 30_000_000,
            "eval_count": generated,
            "eval_duration": 10_000_000 * generated,
        }


@dataclass(frozen=True)
class Loading(Reply):
    """The model is loaded first, then `reply` is played.

    Nothing is sent meanwhile and /api/ps keeps its callers waiting, while /api/version answers at once. The
    load takes `seconds`, or until `FakeServer.finish_loading` is called; a client that leaves aborts it, which
    `FakeServer.aborted_loads` counts.
    """

    reply: Reply
    seconds: float | None = None

    def play(self, exchange: Exchange) -> None:
        exchange.load(self.seconds)
        self.reply.play(exchange)


@dataclass(frozen=True)
class Status(Reply):
    """An HTTP error, or any other status, in Ollama's words unless `body` is given.

    A mapping is sent as JSON, text as `text/plain`; `content_type` overrules both. After the headers of a
    stream no status can be sent any more: then, as from Ollama, the body comes as a line of the stream.
    """

    code: int
    body: Mapping[str, Any] | str | bytes | None = None  # Any: JSON of the test's making
    _: KW_ONLY
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = None

    @classmethod
    def html(cls, code: int = 502) -> Status:
        """Return the page of a proxy whose upstream is down; with code 200, that of a captive portal."""
        page = f"<html><head><title>{code}</title></head><body><h1>{code}</h1></body></html>\n"
        return cls(code, page, content_type="text/html; charset=utf-8")

    def play(self, exchange: Exchange) -> None:
        body, content_type = self._encode(exchange.request.model)
        if exchange.headers_sent:
            exchange.chunk(body + b"\n")
            exchange.end_stream()
            return
        exchange.respond(self.code, body, content_type=content_type, headers=self.headers)

    def _encode(self, model: str) -> tuple[bytes, str]:
        body = self._ollamas_words(model) if self.body is None else self.body
        if isinstance(body, (str, bytes)):
            text = body.encode() if isinstance(body, str) else body
            return text, self.content_type or "text/plain; charset=utf-8"
        return msgspec.json.encode(body), self.content_type or JSON_TYPE

    def _ollamas_words(self, model: str) -> dict[str, str]:
        if self.code == HTTPStatus.NOT_FOUND:
            return {"error": f"model '{model}' not found"}
        if self.code == HTTPStatus.SERVICE_UNAVAILABLE:
            return {"error": "server busy, please try again.  maximum pending requests exceeded"}
        return {"error": HTTPStatus(self.code).phrase.lower()}


@dataclass(frozen=True)
class InBandError(Reply):
    """An error as a line of a stream with status 200, and no `done` record behind it."""

    message: str = "an error was encountered while running the model"

    def play(self, exchange: Exchange) -> None:
        exchange.chunk(msgspec.json.encode({"error": self.message}) + b"\n")
        exchange.end_stream()


@dataclass(frozen=True)
class Garbage(Reply):
    """Bytes that mean nothing: no HTTP before the headers, a chunk that is not JSON after them; then FIN."""

    data: bytes = b"\x00\xff}{ this is no line of NDJSON\n"

    def play(self, exchange: Exchange) -> None:
        if exchange.headers_sent:
            exchange.chunk(self.data)
            exchange.end_stream()
        else:
            exchange.send(self.data)
        exchange.keeps_open = False


@dataclass(frozen=True)
class Raw(Reply):
    """Exactly these bytes in place of a response, written in sizes of `split`; then FIN, unless `keep_open`.

    A connection kept open takes the next request, so that a whole response can be written by hand.
    """

    data: bytes
    _: KW_ONLY
    split: Sequence[int] = ()
    keep_open: bool = False

    def play(self, exchange: Exchange) -> None:
        if self.split:
            exchange.slice_into(self.split)
        exchange.headers_sent = True
        exchange.send(self.data)
        exchange.keeps_open = self.keep_open


@dataclass(frozen=True)
class Hang(Reply):
    """Silence with an open connection, until the client leaves or the server stops."""

    def play(self, exchange: Exchange) -> None:
        exchange.pause(None)


Stall = Hang
"""`Hang` under the name it has in the middle of an answer."""


@dataclass(frozen=True)
class Reset(Reply):
    """RST: the client gets `ECONNRESET`; on Linux, not on every system, behind what was sent before.

    What the client's system has not acknowledged is lost: of many chunks sent at once, those behind the first ten.
    """

    def play(self, exchange: Exchange) -> None:
        exchange.reset()


@dataclass(frozen=True)
class Close(Reply):
    """A clean end without a `done` record: FIN, in a stream behind the last chunk that HTTP demands.

    With `last_chunk=False` the FIN comes alone and HTTP's framing is broken off too.
    """

    last_chunk: bool = True

    def play(self, exchange: Exchange) -> None:
        if exchange.headers_sent and self.last_chunk:
            exchange.end_stream()
        exchange.keeps_open = False


@dataclass(frozen=True)
class Refuse(Reply):
    """The server dies: connections are reset and new ones refused, until `FakeServer.start` is called again.

    With `FakeServer(everything=Refuse())` connections are refused from the beginning.
    """

    def play(self, exchange: Exchange) -> None:
        exchange.reset()
        exchange.server.refuse()


def _tokens(text: str | Sequence[str]) -> list[str]:
    return split_tokens(text) if isinstance(text, str) else list(text)


def _cut(tokens: Sequence[str], size: int) -> tuple[list[str], list[str]]:
    """Return the tokens of the first `size` characters and those behind; a token across the border is in both."""
    before, behind = [], []
    for token in tokens:
        if size > 0:
            before.append(token[:size])
        if size <= 0 or len(token) > size:
            behind.append(token[max(0, size) :])
        size -= len(token)
    return before, behind


def _up_to(chunks: Sequence[Parts], size: int) -> list[Parts]:
    """Return the chunks with the first `size` characters of the text, and all that come before its end."""
    kept: list[Parts] = []
    for chunk in chunks:
        content = chunk.get("content", "")
        if len(content) > size:
            return [*kept, {"content": content[:size]}] if size else kept
        kept.append(chunk)
        size -= len(content)
    return kept


def _tool_call(index: int, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON values
    function = {"index": index, "name": name, "arguments": arguments}
    return {"id": f"call_{index}", "function": function}
