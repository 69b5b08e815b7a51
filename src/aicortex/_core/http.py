"""HTTP/1.1 requests as bytes, and responses from bytes.

The parser is llhttp (httptools). Every callback is a C function on purpose: feeding bytes then runs no Python
bytecode, so a KeyboardInterrupt cannot fall between taking bytes in and keeping them (contract C12).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from operator import length_hint

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

MAX_HEAD_BYTES = 64 * 1024
KEPT_PIECES = 16  # of a body that were decoded and may wait to be dropped
FIRST = (0,)
MANY = range(1 << 30)  # its iterator's `__next__` is a C function that counts its calls, in 100 bytes
exhaust = deque[object](maxlen=0).extend  # runs an iterator of C functions without any Python bytecode between


def encode_request(method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> bytes:
    """Return the bytes of one request with a body of known length."""
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body or method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Sinks:
    """Where the parser puts what it finds."""

    __slots__ = ("on_body", "on_header", "on_headers_complete", "on_message_begin", "on_message_complete")
    on_body: Callable[[bytes], None]
    on_header: Callable[[bytes, bytes], None]
    on_headers_complete: Callable[[], object]
    on_message_begin: Callable[[], object]
    on_message_complete: Callable[[], object]


class Response:
    """One response, parsed as its bytes are fed.

    `body` collects the pieces of the body in order; `heads` and `tails` count every head and every end of a message
    that went by, more than one of each when 100-continue and its kin came first. `fault` says what was not HTTP, after
    everything before it was kept. A body without a length ends with the connection: whoever reads sets `eof`.
    """

    __slots__ = (
        "_begun",
        "_dropped",
        "_heads",
        "_parser",
        "_tails",
        "body",
        "eof",
        "fault",
        "feed",
        "head_bytes",
        "headers",
    )

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.body: list[bytes] = []
        self.fault: str | None = None
        self.eof = False
        self.head_bytes = 0
        self._dropped = 0  # pieces of the body
        self._begun, self._heads, self._tails = iter(MANY), iter(MANY), iter(MANY)
        sinks = Sinks()
        sinks.on_message_begin = self._begun.__next__
        sinks.on_header = self.headers.__setitem__
        sinks.on_headers_complete = self._heads.__next__
        sinks.on_body = self.body.append
        sinks.on_message_complete = self._tails.__next__
        self._parser = HttpResponseParser(sinks)
        self.feed = self._parser.feed_data

    @property
    def heads(self) -> int:
        """How many heads have come whole."""
        return len(MANY) - length_hint(self._heads)

    @property
    def tails(self) -> int:
        """How many messages have ended."""
        return len(MANY) - length_hint(self._tails)

    def take(self, inbox: list[bytes | bytearray]) -> None:
        """Parse the first piece of the inbox and drop it, both or neither; `b""` means that the connection ended."""
        if not inbox[0]:
            self.eof = True
            return
        size = 0 if self.heads else len(inbox[0])
        try:
            exhaust(map(self.feed, map(inbox.pop, FIRST)))
        except (HttpParserError, HttpParserUpgrade) as error:
            self.refuse(error)
        if size:
            self._count_head(size)

    def take_all(self, pieces: Sequence[bytes | bytearray]) -> None:
        """Parse some pieces; `b""` means that the connection ended. As `take`, where no interrupt can fall between."""
        is_counted = not self.heads
        for piece in pieces:
            if not piece:
                self.eof = True
                continue
            try:
                self.feed(piece)
            except (HttpParserError, HttpParserUpgrade) as error:
                self.refuse(error)
            if is_counted:
                self._count_head(len(piece))
                is_counted = not self.heads

    def _count_head(self, size: int) -> None:
        self.head_bytes += size
        if self.head_bytes > MAX_HEAD_BYTES and not self.heads:
            self.fault = f"the response's head is longer than {MAX_HEAD_BYTES // 1024} KB"

    def refuse(self, error: Exception) -> None:
        """Remember that what came is not HTTP."""
        self.fault = f"the reply is not valid HTTP ({error or type(error).__name__})"

    @property
    def started(self) -> bool:
        """Whether a final status and all headers are here (100-continue and its kin do not count)."""
        heads = self.heads
        begins_another = len(MANY) - length_hint(self._begun) > heads and self.fault is None
        return heads > 0 and not begins_another and self.status >= 200

    @property
    def status(self) -> int:
        """The status code of the newest head."""
        code: int = self._parser.get_status_code()
        return code

    @property
    def complete(self) -> bool:
        """Whether the whole body is here by its own framing."""
        return 0 < self.tails == self.heads and self.started

    @property
    def ended(self) -> bool:
        """Whether nothing more can come: complete, broken, or the connection ended."""
        return self.eof or self.fault is not None or self.complete

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request after this one."""
        whole = self.complete and self.heads == 1 and not self.eof and self.fault is None
        return whole and self._parser.get_http_version() == "1.1" and "close" not in self.header("connection").lower()

    def drop_pieces(self, end: int) -> None:
        """Drop the pieces of the body before this one, which were decoded; in place: the parser appends to the list."""
        begin = self._dropped
        if end > begin + KEPT_PIECES:
            self.body[begin:end] = [b""] * (end - begin)
            self._dropped = end

    def drop_headers(self) -> None:
        """Forget the headers once the body is what it should be, but for one that says whether the connection stays."""
        kept = self.header("connection")
        self.headers.clear()
        if kept:
            self.headers[b"connection"] = kept.encode("latin-1")

    def header(self, name: str) -> str:
        """Return a header's value whatever its case, or an empty string."""
        wanted = name.lower().encode()
        for key, value in self.headers.items():
            if key.lower() == wanted:
                return value.decode("latin-1")
        return ""
