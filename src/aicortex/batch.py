"""Prompts from a file, answers into a file: read and checked, appended one by one, gone on with after any end.

A file of prompts has one JSON object a line, or one prompt a line. A file of answers has one JSON object a line, each
written in one piece once its answer is whole: whatever ends the process leaves at most a torn last line, which the
next run removes. An answer belongs to its prompt by `id`, else by `index`, and carries the `digest` of what was asked,
so that answers to other prompts are never taken for these. The model that is asked where a prompt names none is not
part of it: it stands in the answers, and must stay the same.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeAlias

import msgspec

from aicortex._core.ollama import full_name
from aicortex.job import Outcome, check_parts
from aicortex.request import checked
from aicortex.settings import models_meant

JSON_NAMES, TEXT_NAMES = (".jsonl", ".ndjson"), (".txt", ".text")
MARK = b"\xef\xbb\xbf"  # that a text is UTF-8
BEGINNING = b'{"index":'  # of every line of answers
DIGEST_DIGITS = 16
LOCK_PLACE = 1 << 62  # the byte that is locked on Windows, where nobody writes
ADVICE = "write to another file, or move this one away"
OPTIONS = "--system, --temperature, --max-tokens, --seed"
Key: TypeAlias = "str | int | tuple[int]"  # an id, or a place among the prompts
Shared = Mapping[str, Any]  # Any: the arguments of `chat` for all prompts


class Line(msgspec.Struct, frozen=True, gc=False):
    """One prompt of a file: `number` is its line from 1, `index` its place among the prompts from 0."""

    number: int
    index: int
    id: str | int | None
    digest: str
    text: str
    is_json: bool
    has_model: bool

    @property
    def key(self) -> Key:
        """What tells it from the others."""
        return (self.index,) if self.id is None else self.id

    @property
    def prompt(self) -> dict[str, Any]:  # Any: JSON
        """The prompt as `stream_many` takes it."""
        return msgspec.json.decode(self.text, type=dict[str, Any]) if self.is_json else {"prompt": self.text}


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answer as it stands in the file; `attempts` counts how many it took, `timings` are seconds."""

    index: int
    digest: str
    text: str
    model: str
    server: str
    finish_reason: str
    usage: dict[str, int]
    timings: dict[str, float]
    attempts: int
    id: str | int | None = None
    thinking: str = ""
    tool_calls: Sequence[dict[str, Any]] = ()  # Any: JSON of the model's making

    @classmethod
    def of(cls, line: Line, outcome: Outcome) -> Record:
        """Return the record of a prompt's whole answer."""
        result = outcome.result
        assert result is not None  # only whole answers are written
        return cls(
            index=line.index,
            digest=line.digest,
            id=line.id,
            text=result.text,
            thinking=result.thinking,
            tool_calls=outcome.tool_calls,
            model=result.model,
            server=result.server,
            finish_reason=result.finish_reason,
            usage=result.usage,
            timings={name: round(value, 4) for name, value in result.timings.items()},
            attempts=len(result.attempts),
        )


def read_prompts(name: str, rows: Iterable[bytes], shared: Shared) -> list[Line]:
    """Return the prompts of a file; `shared` are the arguments of `chat` that shape all answers, without the model.

    A name that ends in .jsonl or .ndjson stands for JSON objects, .txt for prompts as they are; of any other the first
    character decides: "{" begins JSON. Blank lines are left out. Raises ValueError that names file and line.
    """
    is_json = name.endswith(JSON_NAMES) if name.endswith(JSON_NAMES + TEXT_NAMES) else None
    found: list[Line] = []
    known: dict[str | int, int] = {}
    for number, row in enumerate(rows, 1):
        try:
            text = _decoded(row.removeprefix(MARK) if number == 1 else row)
            if not text.strip():
                continue
            if is_json is None:
                is_json = text.lstrip().startswith("{")
            line = _line(number, len(found), text, shared, is_json=is_json)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}:{number}: {error}") from None
        if line.id is not None and known.setdefault(line.id, number) != number:
            raise ValueError(f"{name}:{number}: the id {line.id!r} is that of line {known[line.id]} too")
        found.append(line)
    return found


def _decoded(row: bytes) -> str:
    try:
        return row.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte 0x{row[error.start]:02x})") from None


def _line(number: int, index: int, row: str, shared: Shared, *, is_json: bool) -> Line:
    request = _request(row) if is_json else {"prompt": row}
    identity = request.pop("id", None)
    if isinstance(identity, bool) or not isinstance(identity, str | int | None):
        raise ValueError("an id is a text or a whole number")
    if "servers" in request:
        raise ValueError("a file of prompts names no servers: the call does")
    check_parts(request)
    asked = {"prompt": None, **shared, **request}
    checked(**{name: value for name, value in asked.items() if name != "images"})  # they are read when they are sent
    whole = msgspec.json.encode({**shared, **request}, order="deterministic")
    digest = hashlib.sha256(whole).hexdigest()[:DIGEST_DIGITS]
    return Line(number, index, identity, digest, row, is_json, has_model=request.get("model") is not None)


def _request(row: str) -> dict[str, Any]:  # Any: JSON
    try:
        found = msgspec.json.decode(row)
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("is no JSON object with 'prompt' or 'messages'")
    return found


class Known(msgspec.Struct, frozen=True, gc=False):
    """What is remembered of an answer that is in the file."""

    index: int
    digest: str
    model: str
    id: str | int | None = None

    @property
    def key(self) -> Key:
        """Which prompt it answers."""
        return (self.index,) if self.id is None else self.id


class Answers:
    """The file of answers, open and locked until `close`, to append to.

    Opening it removes a torn last line, and closing it the file, if that is new and empty. Raises BlockingIOError when
    another run has it open, ValueError for what is no file of answers, and OSError.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._is_new = not os.path.lexists(path)
        self._known: dict[Key, tuple[int, Known]] = {}  # and their lines
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise ValueError(f"{path} is no file: answers are kept in one to go on with")
            _lock(self._file, path)
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def missing(self, name: str, lines: Iterable[Line]) -> list[Line]:
        """Return the prompts of the file `name` that are not answered yet.

        Raises ValueError that names both lines when an answer is not one to these prompts.
        """
        left: list[Line] = []
        others = dict(self._known)
        for line in lines:
            number, known = others.pop(line.key, (0, None))
            if known is None:
                left.append(line)
            elif line.digest != known.digest:
                asks = f"something else than {name}:{line.number} asks now, or with other options ({OPTIONS})"
                raise ValueError(f"{self.path}:{number}: answers {asks}; {ADVICE}")
        for number, known in others.values():
            said = f"the prompt {known.index}" if known.id is None else f"the id {known.id!r}"
            raise ValueError(f"{self.path}:{number}: answers {said}, which {name} does not have; {ADVICE}")
        return left

    def model(self, lines: Iterable[Line], wanted: str | None) -> str | None:
        """Return the model for prompts that name none: `wanted`, else the one that answered those that are answered.

        Raises ValueError that names the line of an answer that another model gave; an alias stands for all of its own.
        """
        meant = {full_name(name) for name in models_meant(wanted)} if wanted else set[str]()
        for line in lines:
            number, known = self._known.get(line.key, (0, None))
            if known is None or line.has_model:
                continue
            if wanted is None:
                wanted, meant = known.model, {full_name(known.model)}
            elif full_name(known.model) not in meant:
                says = f"is an answer of {known.model}, and {wanted} is the model to ask"
                raise ValueError(f"{self.path}:{number}: {says}; go on with --model {known.model}, or {ADVICE}")
        return wanted

    def add(self, record: Record) -> None:
        """Append an answer; raises OSError when the disk is full, which leaves a torn line for the next run."""
        data = msgspec.json.encode(record) + b"\n"
        self._is_new = False
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise OSError(error.errno, f"{self.path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Let go of the file."""
        if self._is_new:
            with suppress(OSError):  # Windows removes no file that is open
                os.unlink(self.path)
        os.close(self._file)

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        size = 0
        for number, row in enumerate(_rows(self._file), 1):
            is_torn = not row.endswith(b"\n")
            if row.isspace() and not is_torn:
                size += len(row)
                continue
            try:
                known = msgspec.json.decode(row, type=Known)
            except ValueError:
                if is_torn and (row.startswith(BEGINNING) or BEGINNING.startswith(row)):
                    os.ftruncate(self._file, size)
                    return
                raise ValueError(f"{self.path}:{number}: is no answer of a batch; {ADVICE}") from None
            if known.key in self._known:
                raise ValueError(
                    f"{self.path}:{number}: answers the same as line {self._known[known.key][0]}; {ADVICE}"
                )
            self._known[known.key] = number, known
            size += len(row)
            if is_torn:
                os.write(self._file, b"\n")


def _rows(file: int) -> Iterator[bytes]:
    with open(file, "rb", closefd=False) as reader:
        reader.seek(0)
        yield from reader


def _lock(file: int, path: str) -> None:
    """Keep every other run from the file as long as it is open; the system ends that with the process."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file, LOCK_PLACE, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(file).st_nlink:  # a run that wrote nothing has just removed it
                raise BlockingIOError
    except (BlockingIOError, PermissionError):
        raise BlockingIOError(f"another run is writing to {path}: wait for it, or stop it") from None
