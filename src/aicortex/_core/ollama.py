"""What Ollama's wire says: NDJSON chunks from bytes, error bodies in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # the last one: nested too deep
MAX_LINE_BYTES = 8 * 1024 * 1024  # the longest line a server may send (protocol: "Framing")


class Function(msgspec.Struct, frozen=True):
    """The function part of a tool call; Ollama sends arguments as an object, servers like it as a text of one."""

    name: str
    arguments: dict[str, Any] | str | None = None  # Any: JSON of the model's making

    @property
    def given(self) -> dict[str, Any]:  # Any: as above
        """The arguments, none where they are no object."""
        if not isinstance(self.arguments, str):
            return self.arguments or {}
        try:
            value = msgspec.json.decode(self.arguments)
        except BAD_JSON:
            return {}
        return value if isinstance(value, dict) else {}


class ToolCall(msgspec.Struct, frozen=True):
    """One whole tool call; Ollama never sends parts of one, and servers before 0.12 give it no id."""

    function: Function
    id: str | int | None = None


class Message(msgspec.Struct, frozen=True, gc=False):
    """The assistant's delta in one chunk."""

    content: str | msgspec.UnsetType | None = msgspec.UNSET
    thinking: str | None = None
    tool_calls: list[ToolCall] | None = None


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """One line of an answer, `message` from /api/chat and `response` from /api/generate.

    Durations are nanoseconds; counters are absent when zero.
    """

    message: Message | None = None
    response: str | None = None
    done: bool = False
    error: Any = None  # Any: a string, or a nested object from the runner
    done_reason: str | None = None
    load_duration: float = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: float = 0
    eval_count: int = 0
    eval_duration: float = 0

    @property
    def is_empty(self) -> bool:
        """Whether it has nothing that Ollama sends: no chunk at all, or a damaged one whose token would be lost."""
        if self.done or self.error is not None or self.response is not None:
            return False
        message = self.message
        return message is None or (message.content is msgspec.UNSET and not message.thinking and not message.tool_calls)

    @property
    def spoken(self) -> Message | None:
        """What the model says in it, from either endpoint."""
        if self.message is not None or not self.response:
            return self.message
        return Message(self.response)


class DebugInfo(msgspec.Struct, frozen=True):
    """How a prompt looks, as `_debug_render_only` tells it."""

    rendered_template: str | None = None


class Rendered(msgspec.Struct, frozen=True):
    """The reply to `_debug_render_only`; a server that does not know it generates instead."""

    debug: DebugInfo | None = msgspec.field(name="_debug_info", default=None)


SENSELESS = "a line of the reply has neither a message nor an end"
decode_chunk = msgspec.json.Decoder(Chunk).decode


class Lines(msgspec.Struct, frozen=True):
    """How much of a growing list of byte pieces was cut into lines.

    `rest` is the beginning of a line whose newline has not come, `start` the first piece behind it, `scanned` the
    first piece not yet searched for a newline, `pending` the length of the unfinished line in bytes.
    """

    rest: bytes = b""
    start: int = 0
    scanned: int = 0
    pending: int = 0


def decode_lines(lines: Lines, pieces: list[bytes]) -> tuple[list[Chunk], Lines, str | None]:
    """Decode the whole lines among the pieces that `lines` has not seen.

    Returns the chunks, the new position and what was wrong, if anything; the chunks before a bad line are kept.
    Nothing is changed, so a call that was interrupted can be made again; the cost is linear however the bytes were
    cut. Splits on `\\n` only: U+0085, U+2028 and U+2029 may stand inside a JSON string (protocol: "Framing").
    """
    end = len(pieces)
    data = pieces[-1] if end - lines.scanned == 1 else b"".join(pieces[lines.scanned :])
    first = data.find(b"\n")
    if first < 0:
        pending = lines.pending + len(data)
        return [], Lines(lines.rest, lines.start, end, pending), _too_long(pending)
    if lines.pending:
        data = b"".join([lines.rest, *pieces[lines.start : lines.scanned], data])
        whole, rest = _split(data)
    elif first == len(data) - 1:
        whole, rest = [data], b""  # one chunk, as a server flushes it: most reads of a stream that is watched
    else:
        whole, rest = _split(data)
    after = Lines(rest, end, end, len(rest))
    try:
        if len(data) <= MAX_LINE_BYTES:
            return list(map(decode_chunk, whole)), after, None
    except BAD_JSON:
        pass  # the slow way keeps what stands before the fault
    chunks, fault = _decode_until_fault(whole)
    return chunks, after, fault or _too_long(len(rest))


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    *whole, rest = data.split(b"\n")
    return whole, rest


def decode_rest(lines: Lines, pieces: list[bytes]) -> tuple[list[Chunk], str | None]:
    """Decode what is left when the body is over: a last line without a newline, or one that was cut."""
    rest = b"".join([lines.rest, *pieces[lines.start :]])
    chunks, fault = _decode_until_fault([rest])
    was_cut = rest.lstrip().startswith(b"{")
    return chunks, None if was_cut else fault


def _decode_until_fault(lines: list[bytes]) -> tuple[list[Chunk], str | None]:
    chunks: list[Chunk] = []
    for line in lines:
        if not line.strip():
            continue  # a blank line is a heartbeat of some proxies
        if len(line) > MAX_LINE_BYTES:
            return chunks, _too_long(len(line))
        try:
            chunks.append(decode_chunk(line))
        except BAD_JSON as error:
            return chunks, f"the reply is not Ollama's NDJSON ({error}): {excerpt(line)}"
    return chunks, None


def _too_long(pending: int) -> str | None:
    if pending <= MAX_LINE_BYTES:
        return None
    return f"a line of the reply is longer than {MAX_LINE_BYTES // 1024 // 1024} MB"


def excerpt(data: bytes, limit: int = 120) -> str:
    """Return the beginning of some bytes as one printable line."""
    text = " ".join(data[: 4 * limit].decode("utf-8", "replace").split())
    return text if len(text) <= limit else text[:limit] + "…"


def error_text(value: object) -> str:
    """Return the words of an `error` value; a runner's error comes as JSON inside a JSON string."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = msgspec.json.decode(value)
        except BAD_JSON:
            return str(value)
    while isinstance(value, Mapping):
        inner = value.get("error", value.get("message"))
        if inner is None:
            return excerpt(msgspec.json.encode(value))
        value = inner
    return str(value).strip()


def error_of_body(body: bytes) -> str | None:
    """Return what an error reply says, or None when it is not Ollama's JSON."""
    try:
        value = msgspec.json.decode(body)
    except BAD_JSON:
        return None
    if isinstance(value, dict) and "error" in value:
        return error_text(value["error"])
    return None


def version_of(body: bytes) -> str:
    """Return what a reply of `/api/version` says, or an empty string."""
    try:
        return msgspec.json.decode(body, type=dict[str, str]).get("version", "")
    except BAD_JSON:
        return ""


@lru_cache(maxsize=4096)  # a fleet's lists are looked through for each request
def full_name(model: str) -> str:
    """Return a model's name with its tag: without one, Ollama means `:latest`."""
    return model if ":" in model.rsplit("/", 1)[-1] else f"{model}:latest"
