"""How a command ends when its output does."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from aicortex.testing import (
    Answer,
    FakeServer,
)
from cli.running import (
    COMMAND,
    PATIENCE,
    environment,
    last_message,
    read_until,
    run,
    start,
)


def test_environment_is_checked_too() -> None:
    """A setting that is no address is named, with status 2."""
    ended = run("chat", "Hi", AICORTEX_SERVERS="http://a:b")
    assert ended.status == 2
    assert ended.err.startswith("aicortex: error: AICORTEX_SERVERS: ")


def test_reader_that_leaves(server: FakeServer) -> None:
    """When nobody reads the output any more, the generation is cancelled, with status 141 and without a word."""
    server.script(Answer(["word "] * 10_000, delay=0.001))
    process = start("chat", "Hi", "--server", server.url)
    assert process.stdout
    assert process.stderr
    read_until(process, b"word")
    process.stdout.close()
    assert process.wait(PATIENCE) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
    assert server.wait_for_disconnect()


def test_full_disk(server: FakeServer, tmp_path: Path) -> None:
    """An output that cannot be written is an error with status 1."""
    with open(tmp_path / "answer", "wb") as full:
        process = subprocess.run(
            [*COMMAND, "chat", "Hi", "--server", server.url],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=PATIENCE,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),  # no file may grow
        )
    assert process.returncode == 1
    assert process.stderr == b"aicortex: error: input or output failed: File too large\n"


@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_help_that_cannot_be_written(buffering: dict[str, str]) -> None:
    """The help is an output like any other: where it cannot be written, the status is 1."""
    process = subprocess.run(
        ["sh", "-c", 'exec "$@" >/dev/full', "sh", *COMMAND, "--help"],
        stderr=subprocess.PIPE,
        env=environment(**buffering),
        timeout=PATIENCE,
        check=False,
    )
    assert process.returncode == 1
    assert process.stderr == b"aicortex: error: input or output failed: No space left on device\n"


def test_closed_output(server: FakeServer) -> None:
    """A process without stdout (`>&-`) asks nothing and ends with an error and status 1."""
    process = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&-', "sh", *COMMAND, "chat", "Hi", "--server", server.url],
        stderr=subprocess.PIPE,
        env=environment(),
        timeout=PATIENCE,
        check=False,
    )
    assert (process.returncode, process.stderr) == (1, b"aicortex: error: standard output is closed\n")
    assert server.requests == []


def test_closed_input_and_notes(server: FakeServer) -> None:
    """A process without stdin and stderr (`<&- 2>&-`) still answers."""
    process = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", *COMMAND, "chat", "Hi", "--server", server.url],
        stdout=subprocess.PIPE,
        env=environment(),
        timeout=PATIENCE,
        check=False,
    )
    assert (process.returncode, process.stdout) == (0, b"Black holes form when stars die.\n")
    assert last_message(server) == "Hi"
