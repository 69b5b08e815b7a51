"""What surrounds the answer: encodings, and notes on stderr."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

from aicortex.errors import StreamInterruptedError

# What a model or a server writes must not steer the terminal: no control characters but tab and newline.
CONTROLS: dict[int, str | None] = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
CONTROLS[13] = None  # of "\r\n" the newline is enough


def prepare_streams() -> None:
    """Make stdin, stdout and stderr safe to use.

    They speak UTF-8 where the locale is C or POSIX, and on Windows, whose code pages name no user's choice; another
    encoding was chosen by the locale or by PYTHONIOENCODING and stays, with "?" for what it cannot express. Missing
    ones (`>&-`) become empty.
    """
    chosen = bool(os.environ.get("PYTHONIOENCODING"))
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for the process's life
        elif isinstance(stream, TextIOWrapper):  # tests may put something else in its place
            free = not chosen and (sys.platform == "win32" or _is_ascii(stream.encoding))
            errors = "surrogateescape" if mode == "r" else "replace"
            stream.reconfigure(encoding="utf-8" if free else stream.encoding, errors=errors)


def _is_ascii(encoding: str) -> bool:
    return encoding.lower().replace("_", "-") in ("ascii", "us-ascii", "ansi-x3.4-1968", "646")


def recovered(argument: str) -> str:
    """Return an argument as it was typed, when Python could not decode its bytes; raises ValueError when nobody can."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(argument).decode()
        except UnicodeError:
            raise ValueError(f"the argument {argument!r} is not UTF-8") from None
    return argument


def decoded(data: bytes) -> str:
    """Return text from a pipe or a file: UTF-8, or else what the locale says; raises ValueError."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        try:
            return data.decode(sys.stdin.encoding)
        except UnicodeDecodeError:
            words = f"the text from standard input is not UTF-8 (byte {error.start} is 0x{data[error.start]:02x})"
            raise ValueError(words) from None


def printable(text: str) -> str:
    """Return foreign text without what would steer a terminal."""
    return text.translate(CONTROLS)


def note(words: str) -> None:
    """Say something on stderr: one line, which only a terminal breaks, between words."""
    line = " ".join(f"aicortex: {printable(words)}".split())
    print(fitted(line) if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


def fitted(line: str, *, indent: int = 2) -> str:
    """Return a line broken between words where the terminal ends; what it goes on with is indented."""
    from textwrap import fill

    return fill(line, width(), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def report(error: Exception) -> None:
    """Say on stderr what went wrong."""
    is_part = isinstance(error, StreamInterruptedError)
    note(f"error: the answer is incomplete: {error}" if is_part else f"error: {error}")


def is_dumb() -> bool:
    """Whether the terminal understands no movements of the cursor."""
    return sys.platform != "win32" and os.environ.get("TERM", "") in ("", "dumb", "unknown")


def width() -> int:
    """Return the columns of the terminal, less one: a full last column behaves differently everywhere."""
    from shutil import get_terminal_size

    return max(get_terminal_size().columns - 1, 10)
