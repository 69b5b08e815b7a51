"""Runs the command line as users do: as a process of its own, with pipes or on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aicortex.cli import main
from aicortex.testing import FakeServer

SOURCE = str(Path(__file__).parents[2] / "src")
COMMAND = [sys.executable, "-m", "aicortex"]
PATIENCE = 30.0  # seconds until a test gives up; only failing tests wait that long
# Variables of the machine that would change what the command does; the test's own registry stays.
FOREIGN = re.compile(
    r"AICORTEX_(?!DATA_DIR)|OLLAMA_|LC_|LANG|PYTHON|TERM|COLUMNS|LINES|NO_COLOR|.*_proxy", re.IGNORECASE
)


@dataclass(frozen=True)
class Ended:
    """What a process left behind."""

    status: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """Return an environment that is the same on every machine, and `more`."""
    kept = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    return {**kept, "PYTHONPATH": SOURCE, "LANG": "C.UTF-8", "TERM": "xterm-256color", **more}


def start(*arguments: str | bytes, **more: str) -> subprocess.Popen[bytes]:
    """Start a command with nothing to read and pipes for what it writes; `more` is further environment."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        bufsize=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**more),
    )


def read_until(process: subprocess.Popen[bytes], end: bytes) -> bytes:
    """Read what a process writes up to these bytes."""
    assert process.stdout
    data = b""
    while not data.endswith(end):
        byte = process.stdout.read(1)
        assert byte, f"the output ended with {data!r}"
        data += byte
    return data


def finish(process: subprocess.Popen[bytes]) -> Ended:
    """Wait for the end of a process and read the rest of what it writes."""
    out, err = process.communicate(timeout=PATIENCE)
    return Ended(process.returncode, out.decode(), err.decode())


def run(*arguments: str | bytes, text: bytes = b"", encoding: str = "utf-8", **more: str) -> Ended:
    """Run a command to its end; `text` is its standard input, `encoding` its output's."""
    process = subprocess.run(
        [*COMMAND, *arguments],
        input=text,
        capture_output=True,
        env=environment(**more),
        timeout=PATIENCE,
        check=False,
    )
    return Ended(process.returncode, process.stdout.decode(encoding), process.stderr.decode(encoding))


def here(capsys: pytest.CaptureFixture[str], *arguments: str) -> Ended:
    """Run a command to its end in this process, which takes no time to start."""
    capsys.readouterr()
    status = main(arguments)
    out, err = capsys.readouterr()
    return Ended(status, out, err)


def asked(server: FakeServer) -> dict[str, Any]:
    """Return the body of the last chat request."""
    body = next(request.json for request in reversed(server.requests) if request.path == "/api/chat")
    assert isinstance(body, dict)
    return body


def last_message(server: FakeServer) -> str:
    """Return what was asked last."""
    return str(asked(server)["messages"][-1]["content"])


class Terminal:
    """A command on a terminal of its own, and a reader that interprets what it draws."""

    def __init__(
        self,
        *arguments: str,
        columns: int = 80,
        rows: int = 24,
        folder: str | Path = ".",
        more: Mapping[str, str] | None = None,
    ) -> None:
        self._master, slave = pty.openpty()
        self.resize(columns, rows)
        self.raw = ""
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env=environment(**(more or {})),
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    def resize(self, columns: int, rows: int) -> None:
        """Give the terminal another size."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.columns, self.rows = columns, rows

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.type("\x03")

    def interrupt_prompt(self) -> None:
        """Press Ctrl-C at a prompt, once the interpreter waits there for the next key.

        An interpreter that has just taken a key may see the signal only with the next one: its readline module calls
        select() without looking whether one came before. Pressing again would leave a second one for the next line.
        """
        stat = Path(f"/proc/{self.process.pid}/stat")
        deadline = time.monotonic() + PATIENCE
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline, "the process does not wait for keys"
        self.interrupt()

    def wait_for(self, words: str, *, count: int = 1) -> None:
        """Read until these words stand on the screen or above it, `count` times."""
        self._read(lambda: self.text().count(words) >= count, words)

    def end(self) -> int:
        """Read until the process ends and return its exit status."""
        self._read(lambda: False, None)
        return self.process.wait(PATIENCE)

    def text(self) -> str:
        """Return what a user sees, with everything that has scrolled away above it."""
        return "\n".join(line.rstrip() for line in draw(self.raw, self.columns, self.rows))

    def _read(self, is_enough: Callable[[], bool], words: str | None) -> None:
        deadline = time.monotonic() + PATIENCE
        while not is_enough():
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._master], [], [], left)[0]:
                raise AssertionError(f"{words!r} did not come; on the screen:\n{self.text()}")
            data = b""
            with suppress(OSError):  # EIO: the process has ended
                data = os.read(self._master, 65536)
            if not data:
                assert words is None, f"{words!r} did not come before the end; on the screen:\n{self.text()}"
                return
            self.raw += data.decode("utf-8", "replace")


def pretend_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, rows: int) -> None:
    """Take stdout and stderr for a terminal; to be called in the test itself, because fixtures have others."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(rows))
    monkeypatch.setenv("TERM", "xterm")
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)


def _take_terminal() -> None:
    """Make standard input the controlling terminal, so that Ctrl-C reaches the process."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


PIECES = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b([=>78D])|(.)", re.DOTALL)


def draw(raw: str, columns: int, rows: int) -> list[str]:
    """Interpret output as a terminal does, and return all its lines: those scrolled away, then the screen.

    Knows what the command line and readline write: movements, erasing, wrapping; colours are left out. The cursor
    cannot reach what has scrolled away. Behind a full row it is as touchy as any terminal: erasing takes the last
    character with it, as in xterm, and a restored cursor stands on that character, as in tmux.
    """
    lines: list[list[str]] = [[]]
    row = column = 0
    saved = (0, 0)
    for number, letter, escape, character in PIECES.findall(raw):
        top = max(len(lines) - rows, 0)
        if letter:
            count = int(number) if number.isdigit() else 1
            if letter == "A":
                row = max(row - count, top)
            elif letter == "B":
                row = min(row + count, top + rows - 1)
            elif letter == "C":
                column += count
            elif letter == "D":
                column = max(column - count, 0)
            elif letter == "K" and number == "2":
                lines[row] = []
            elif letter in "JK" and number in ("", "0"):
                del lines[row][min(column, columns - 1) :]
                if letter == "J":
                    lines[row + 1 :] = [[] for _ in lines[row + 1 :]]
        elif escape == "7":
            saved = (row - top, column)  # on the screen: it does not scroll
        elif escape == "8":
            row, column = top + saved[0], min(saved[1], columns - 1)
        elif escape == "D" or character == "\n":
            row += 1
        elif character == "\r":
            column = 0
        elif character == "\b":
            column = max(column - 1, 0)
        elif character >= " ":
            if column == columns:
                row, column = row + 1, 0
            lines += [[] for _ in range(row + 1 - len(lines))]
            line = lines[row]
            line += " " * (column - len(line))
            line[column : column + 1] = character
            column += 1
        lines += [[] for _ in range(row + 1 - len(lines))]
    return ["".join(line) for line in lines]
