"""The stream a reader holds: replayable, thread-safe, and cancelled when nobody wants it any more."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from aicortex._core.result import Result
from aicortex._sync.client import Exchange
from aicortex.errors import AICortexError
from aicortex.events import StreamEvent

if TYPE_CHECKING:
    import os

    from aicortex.partials import Partials
    from aicortex.recording import Recording

NO_FORMAT = "the stream was not asked for a format: write chat(…, format=…, stream=True), or read text()"
WRITE_SYNC = (
    "this is a synchronous Stream: write 'for event in stream', without 'async', "
    "or get an AsyncStream by 'await achat(…, stream=True)'"
)


class Stream:
    """The events of one answer, as they come.

    Iterating gives every event from the first one on, then waits for the next; each `iter()` is a cursor of its own,
    and two threads may read one stream. Reading raises AllServersFailedError when no server answered,
    StreamInterruptedError (with `.partial`) when the answer broke off, RequestRejectedError when a server calls the
    request wrong, StreamCancelledError after `cancel()`. Leaving a `with` block, `cancel()`, or dropping the last
    reference stops the generation on the server; `break` alone does not.
    """

    __slots__ = ("__weakref__", "_exchange")

    def __init__(self, exchange: Exchange | Recording) -> None:
        self._exchange = exchange

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Stream:
        """Return a stream that was saved: the same events, text and result at once, or the same error.

        Raises ValueError for a file that is no saved stream or not whole, and OSError for one that cannot be read.
        """
        from aicortex import recording

        return cls(recording.read(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Read to the end, and write every event and how it ended into a file that only its owner may read.

        An answer that failed is saved with its error, which is not raised here. What was asked is not in the file; a
        tool's result that JSON cannot express is there as its `repr`. Raises OSError.
        """
        from aicortex import recording

        recording.write(path, self.events, self._ended())

    def __iter__(self) -> Cursor:
        return Cursor(self)

    def tokens(self) -> Tokens:
        """Return an iterator over the text of each token, from the first one on."""
        return Tokens(self)

    def partials(self) -> Partials:
        """Return an iterator over the value of an answer in JSON while it grows: another look when tokens changed it.

        Each is the same list or dictionary, which goes on growing: copy what you keep. Raises OutputValidationError as
        soon as the text can be no JSON, and as iterating does.
        """
        from aicortex.partials import Partials

        return Partials(self)

    def text(self) -> str:
        """Read to the end and return the whole text; raises as iterating does."""
        return self.result.text

    @property
    def result(self) -> Result:
        """Read to the end and return text, thinking, finish reason, usage, timings, model, server and attempts."""
        outcome = self._ended()
        if isinstance(outcome, Result):
            return outcome
        raise outcome.with_traceback(None)

    def _ended(self) -> Result | AICortexError:
        exchange = self._exchange
        while (outcome := exchange.answer.outcome) is None or exchange.owes:
            exchange.pump(len(exchange.answer.log))
        return outcome

    def object(self) -> Any:  # Any: what `format` asked for
        """Read to the end and return the object that the answer stands for, as `format` asked for it.

        Raises OutputValidationError (with the text) when the answer is none: it is not asked for again, because what
        was shown cannot be taken back. Raises ValueError where no format was asked for, and as iterating does.
        """
        shape = self._exchange.shape
        if shape is None:
            raise ValueError(NO_FORMAT)
        return shape.read(self.text())

    @property
    def text_so_far(self) -> str:
        """The text received so far; never blocks and never raises."""
        return "".join(event.content or "" for event in self.events if event.type == "token")

    @property
    def events(self) -> Sequence[StreamEvent]:
        """Every event so far, oldest first: the live log, to look at and not to change."""
        return self._exchange.answer.log

    @property
    def done(self) -> bool:
        """Whether nothing more will come: the answer is whole, failed or cancelled."""
        return self._exchange.answer.outcome is not None

    def move(self) -> bool:
        """Leave the server that is answering and go on at another one, as if it had failed; from any thread.

        Returns False, and changes nothing, when no other server can take over.
        """
        return self._exchange.move()

    def cancel(self) -> None:
        """Stop the answer, from any thread; the server stops generating, and blocked readers wake up."""
        self._exchange.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        exchange = getattr(self, "_exchange", None)
        if exchange is not None:
            exchange.cancel()

    def __repr__(self) -> str:
        state = "done" if self.done else "running"
        return f"<Stream {state}, {len(self.events)} events>"

    def _ipython_display_(self) -> None:
        """Show the answer as it comes, where a notebook has the stream as the last expression of a cell."""
        from aicortex.notebook import show

        show(self)

    if not TYPE_CHECKING:  # a type checker would take them for what they refuse

        def __aiter__(self) -> NoReturn:
            raise TypeError(WRITE_SYNC)

        def __aenter__(self) -> NoReturn:
            raise TypeError(WRITE_SYNC)

        def __aexit__(self, *_: object) -> None:
            """Make `async with` get as far as `__aenter__`, which says what to write."""

        def __await__(self) -> NoReturn:
            raise TypeError("a Stream is not awaited: leave out 'await', or write 'await achat(…, stream=True)'")


class Cursor:
    """One reader's place in a stream."""

    __slots__ = ("_exchange", "_log", "_position", "_stream")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream  # so that a loop keeps its stream alive
        self._exchange = stream._exchange
        self._log = stream._exchange.answer.log
        self._position = 0

    def __iter__(self) -> Cursor:
        return self

    def __next__(self) -> StreamEvent:
        position = self._position
        if position == len(self._log) and not self._exchange.pump(position):
            outcome = self._exchange.answer.outcome
            if isinstance(outcome, BaseException):
                raise outcome.with_traceback(None)
            raise StopIteration
        if position == len(self._log) - 1 and self._exchange.owes:  # it may be the end
            self._exchange.pump(position + 1)
        self._position = position + 1
        return self._log[position]


class Tokens:
    """One reader's place among the tokens of a stream; no generator, which an interrupt would end (C12)."""

    __slots__ = ("_cursor",)

    def __init__(self, stream: Stream) -> None:
        self._cursor = Cursor(stream)

    def __iter__(self) -> Tokens:
        return self

    def __next__(self) -> str:
        cursor = self._cursor
        while True:
            position = cursor._position
            try:
                event = next(cursor)
            except BaseException:
                cursor._position = position  # an interrupt may come after the step and before the event is here
                raise
            if event.type == "token":
                return event.content or ""
