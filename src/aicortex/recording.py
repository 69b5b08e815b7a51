"""Streams in files: what an answer brought, as JSON lines, to be read again as if it came now.

    {"aicortex": "stream", "version": 1, "saved": 1790000000.0}     the head; seconds of the Unix clock
    {"type": "start", …}                                            each event, as `event.to_json()` has it
    {"type": "token", …}
    {"result": {…}}   or   {"error": {"type": …, "message": …, …}}  how it ended: the result, or the error's attributes

What was asked is not in it. A file is there whole or not at all, and only its owner may read it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from time import time
from typing import Any, TypeAlias, TypeVar

import msgspec

from aicortex import errors
from aicortex._core.failover import Attempt
from aicortex._core.result import Result
from aicortex.errors import AICortexError
from aicortex.events import StreamEvent

KIND = "stream"
VERSION = 1
Path: TypeAlias = "str | os.PathLike[str]"
T = TypeVar("T")


class _Ending(msgspec.Struct, omit_defaults=True):
    """The last line: one of the two."""

    result: Result | None = None
    error: dict[str, Any] | None = None  # Any: the attributes of an error


class Recorded:
    """An answer that is over, as far as a stream looks at it."""

    __slots__ = ("log", "outcome", "steady")

    def __init__(self, log: list[StreamEvent], outcome: Result | AICortexError) -> None:
        self.log = log
        self.outcome = outcome
        self.steady = False


class _Finished:
    """What stands in a stream for an exchange with servers, when nothing is left to do."""

    __slots__ = ("answer",)
    is_over = True
    owes = False
    shape = None  # what was asked is not saved, and the format neither

    def __init__(self, answer: Recorded) -> None:
        self.answer = answer

    def move(self) -> bool:
        """Return False: no server is answering."""
        return False

    def cancel(self) -> None:
        """Leave the answer as it is: it is over."""

    def leave(self) -> None:
        """Leave the answer as it is: it is over."""


class Recording(_Finished):
    """What a `Stream` reads that was saved."""

    __slots__ = ()

    def pump(self, position: int) -> bool:
        """Return whether the log is longer than `position`."""
        return len(self.answer.log) > position


class AsyncRecording(_Finished):
    """What an `AsyncStream` reads that was saved."""

    __slots__ = ()

    async def pump(self, position: int) -> bool:
        """Return whether the log is longer than `position`."""
        return len(self.answer.log) > position

    async def tell_over(self) -> None:
        """Tell nobody: a saved answer belongs to no conversation."""


def write(path: Path, events: Sequence[StreamEvent], outcome: Result | AICortexError) -> None:
    """Save an answer that is over, in place of what the file held before; mode 0600.

    What a tool returned is saved as JSON has it (a tuple as a list, a dataclass as a dictionary), and as its `repr`
    where JSON has nothing for it. Raises OSError when the file cannot be written, ValueError when the path is that of
    something else than a file.
    """
    write_lines(path, KIND, _lines(events, outcome))


def read(path: Path) -> Recording:
    """Return what `write` saved.

    Raises OSError when there is no such file or it cannot be read, ValueError when it is no recording, is cut or
    damaged, or was saved by a newer version.
    """
    *lines, last = read_lines(path, KIND, made_by="stream.save(path)", endings=("result", "error"))
    log = decoded(path, lines, StreamEvent)
    try:
        outcome = _outcome_of(msgspec.json.decode(last, type=_Ending))
    except (LookupError, TypeError, ValueError) as error:
        raise _damaged(path, len(lines) + 2, error) from error
    return Recording(Recorded(log, outcome))


def write_lines(path: Path, kind: str, lines: Iterable[bytes]) -> None:
    """Write a head and these lines of JSON into a file, which is there whole or not at all; raises as `write`."""
    from tempfile import mkstemp

    place = os.path.realpath(path)
    if os.path.exists(place) and not os.path.isfile(place):
        raise ValueError(f"{os.fspath(path)} is not a file: a recording is one")
    number, part = mkstemp(prefix=f".{os.path.basename(place)[:100]}.", dir=os.path.dirname(place))
    try:
        with open(number, "wb") as file:
            head = {"aicortex": kind, "version": VERSION, "saved": time()}
            file.writelines(line + b"\n" for line in (msgspec.json.encode(head), *lines))
            file.flush()
            os.fsync(number)  # a file that is there is whole, even if the machine stops now
        os.replace(part, place)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def read_lines(path: Path, kind: str, *, made_by: str, endings: Sequence[str]) -> list[bytes]:
    """Return the lines of a file that `write_lines` wrote; the last one has one of the `endings` for a key."""
    with open(path, "rb") as file:
        head, *lines = file.read().split(b"\n")
    _check_head(path, head, kind, made_by)
    is_torn = bool(lines) and lines[-1] != b""
    if not is_torn:
        lines = lines[:-1]
    last = None
    try:
        last = msgspec.json.decode(lines[-1]) if lines else None
    except msgspec.DecodeError as error:
        if not is_torn:
            raise _damaged(path, len(lines) + 1, error) from error
    if not isinstance(last, dict) or last.keys().isdisjoint(endings):
        raise ValueError(f"{os.fspath(path)} is cut: its end is missing behind line {len(lines) + 1}; record it again")
    return lines


def decoded(path: Path, lines: Iterable[bytes], kind: type[T]) -> list[T]:
    """Return what stands in the lines behind the head of a file; raises ValueError for one that is damaged."""
    decoder = msgspec.json.Decoder(kind)
    found = []
    for number, line in enumerate(lines, 2):
        try:
            found.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise _damaged(path, number, error) from error
    return found


def _check_head(path: Path, line: bytes, kind: str, made_by: str) -> None:
    try:
        head = msgspec.json.decode(line)
    except msgspec.DecodeError:
        head = None
    if not isinstance(head, dict) or head.get("aicortex") != kind:
        raise ValueError(f"{os.fspath(path)} is not a recording made by {made_by}")
    version = head.get("version")
    if version != VERSION:
        words = f"{os.fspath(path)} is a recording of version {version}, and this AI Cortex reads version {VERSION}"
        raise ValueError(f"{words}: update AI Cortex")


def _lines(events: Sequence[StreamEvent], outcome: Result | AICortexError) -> Iterator[bytes]:
    for event in events:
        yield _json_of(event).encode()
    if isinstance(outcome, Result):
        ending = _Ending(result=outcome)
    else:
        attributes = {name: value for name, value in vars(outcome).items() if not name.startswith("_")}
        ending = _Ending(error={"type": type(outcome).__name__, "message": str(outcome), **attributes})
    yield msgspec.json.encode(ending)


def _json_of(event: StreamEvent) -> str:
    try:
        return event.to_json()
    except (TypeError, ValueError, RecursionError):  # text that is no Unicode, a circle
        return msgspec.structs.replace(event, tool_result=repr(event.tool_result)).to_json()


def _outcome_of(ending: _Ending) -> Result | AICortexError:
    if ending.result is not None:
        return ending.result
    attributes = dict(ending.error or {})
    kind = vars(errors)[attributes.pop("type")]
    if not issubclass(kind, AICortexError):
        raise TypeError(f"{kind.__name__} is no error of a stream")
    if "attempts" in attributes:
        attributes["attempts"] = msgspec.convert(attributes["attempts"], list[Attempt])
    error: AICortexError = kind(attributes.pop("message"), **attributes)
    return error


def _damaged(path: Path, number: int, error: Exception) -> ValueError:
    return ValueError(f"{os.fspath(path)} is damaged: line {number} is not what a recording has there ({error})")
