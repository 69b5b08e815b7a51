"""Replies as timed bytes, in Ollama's shape and out of it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import msgspec

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CLOSING = HEAD + b"Connection: close\r\n\r\n"
DONE_ENDS = b'"eval_duration":1000}'  # no text can hold this, for in a text the quotes are escaped
LAST_CHUNK = b"0\r\n\r\n"
HTML = b"HTTP/1.1 %d X\r\nContent-Type: text/html\r\nContent-Length: 26\r\n\r\n<html>502 gateway</html>\r\n"
ERRORS = {
    400: b'{"error":"invalid option provided"}',
    401: b'{"error":"unauthorized"}',
    403: b"",
    404: b'{"error":"model \'m\' not found"}',
    405: b"405 method not allowed",
    429: b'{"error":"too many requests"}',
    499: b'{"error":"client closed request"}',
    500: b'{"error":"{\\"error\\":{\\"message\\":\\"llama runner died\\"}}"}',
    502: b"Bad Gateway",
    503: b'{"error":"server busy, please try again.  maximum pending requests exceeded"}',
}
BUFFERED_SECONDS = 0.9  # how long a proxy may hold text back without becoming too late for the shortest deadlines
GARBAGE = (b"\xff\xfe\x00garbage\r\n", b"SSH-2.0-OpenSSH_9\r\n", b"<html>504</html>\n", b"}{\n", b"null\n", b"[1]\n")
encode = msgspec.json.encode

Arrival = tuple[float, bytes]  # when, in virtual seconds, and what


def chat_line(text: str, *, field: str = "content") -> bytes:
    """Return one chunk of /api/chat that carries text or, in another field, thinking."""
    content = b"" if field == "content" else b'"content":"",'
    return b'{"model":"m","message":{"role":"assistant",%s"%s":%s},"done":false}\n' % (
        content,
        field.encode(),
        encode(text),
    )


def call_line(name: str, arguments: dict[str, object]) -> bytes:
    """Return one chunk of /api/chat that carries a whole tool call."""
    call = {"id": "c", "function": {"index": 0, "name": name, "arguments": arguments}}
    return b'{"model":"m","message":{"role":"assistant","content":"","tool_calls":[%s]},"done":false}\n' % encode(call)


def generate_line(text: str) -> bytes:
    """Return one chunk of /api/generate."""
    return b'{"model":"m","response":%s,"done":false}\n' % encode(text)


def done_line(path: str, text: str, *, reason: str, count: int) -> bytes:
    """Return the chunk that ends an answer; it may carry text."""
    held = b'"response":%s' if path == "/api/generate" else b'"message":{"role":"assistant","content":%s}'
    counts = b'"done_reason":"%s","prompt_eval_count":7,"eval_count":%d,' % (reason.encode(), count)
    return b'{"model":"m",%s,"done":true,%s%s\n' % (held % encode(text), counts, DONE_ENDS)


def json_reply(value: object, *, status: int = 200) -> bytes:
    """Return a whole reply with a JSON body."""
    return plain_reply(encode(value), status=status)


def plain_reply(body: bytes, *, status: int, more: bytes = b"") -> bytes:
    """Return a whole reply with this body."""
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n"
    return head % (status, more, len(body)) + body


def error_reply(status: int, *, retry_after: int | None = None) -> bytes:
    """Return the reply with which Ollama, or what stands before it, refuses a request."""
    more = b"" if retry_after is None else b"Retry-After: %d\r\n" % retry_after
    return plain_reply(ERRORS[status], status=status, more=more)


def stream(lines: Sequence[tuple[float, bytes]], *, chunked: bool) -> list[Arrival]:
    """Return a streamed reply: the headers travel with the first chunk, as Ollama sends them."""
    if not chunked:
        return [(lines[0][0], CLOSING + lines[0][1]), *lines[1:]]
    arrivals = [(at, b"%x\r\n%s\r\n" % (len(line), line)) for at, line in lines]
    arrivals[0] = (arrivals[0][0], CHUNKED + arrivals[0][1])
    at, last = arrivals[-1]
    arrivals[-1] = (at, last + LAST_CHUNK)
    return arrivals


def error_line(*, chunked: bool, first: bool) -> bytes:
    """Return the line that ends a stream with an error, and the head where nothing was sent before."""
    line = b'{"error":"an error was encountered while running the model"}\n'
    if not chunked:
        return (CLOSING if first else b"") + line
    return (CHUNKED if first else b"") + b"%x\r\n%s\r\n%s" % (len(line), line, LAST_CHUNK)


def cut(arrivals: list[Arrival], random: Random) -> list[Arrival]:
    """Return the beginning of a reply, broken off at any byte: inside the head, a chunk's frame, a character."""
    place = int(random.random() * len(arrivals))
    at, data = arrivals[place]
    keep = int(random.random() * len(data))
    return [*arrivals[:place], (at, data[:keep])] if keep else arrivals[:place]


def scatter(arrivals: list[Arrival], random: Random) -> list[Arrival]:
    """Return the same bytes cut into pieces anew: at random places, merged, or byte by byte for a while."""
    manner = random.random()
    if manner < 0.5 or not arrivals:
        return arrivals
    if manner < 0.6 and arrivals[-1][0] - arrivals[0][0] < BUFFERED_SECONDS:  # a proxy that buffers
        return [(arrivals[-1][0], b"".join([data for _, data in arrivals]))]
    if manner < 0.62:
        place = int(random.random() * len(arrivals))
        at, data = arrivals[place]
        single = [(at, data[i : i + 1]) for i in range(len(data))]
        return [*arrivals[:place], *single, *arrivals[place + 1 :]]
    pieces: list[Arrival] = []
    for at, data in arrivals:
        keep = int(random.random() * len(data) * 2)  # half of the pieces stay whole
        if 0 < keep < len(data):
            pieces += [(at, data[:keep]), (at, data[keep:])]
        else:
            pieces.append((at, data))
    return pieces
