"""What surrounds the answer: encodings and notes."""

from __future__ import annotations

import os

import pytest

from aicortex.cli.terminal import decoded, recovered
from aicortex.testing import (
    Answer,
    FakeServer,
)
from cli.running import (
    Terminal,
    last_message,
    run,
)


@pytest.mark.parametrize(
    ("locale", "encoding", "shown"),
    [
        ({"LANG": "C.UTF-8"}, "utf-8", "naïve 🦊"),
        ({"LC_ALL": "C"}, "utf-8", "naïve 🦊"),
        ({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "utf-8", "naïve 🦊"),
        ({"PYTHONIOENCODING": "latin-1"}, "latin-1", "naïve ?"),
        ({"PYTHONIOENCODING": "ascii"}, "ascii", "na?ve ?"),
    ],
)
def test_encodings(server: FakeServer, locale: dict[str, str], encoding: str, shown: str) -> None:
    """Output is UTF-8 unless the user chose another encoding, and then "?" stands for what it cannot express."""
    server.script(Answer("naïve 🦊"))
    ended = run("chat", "Où ?", "--server", server.url, encoding=encoding, **locale)
    assert (ended.status, ended.out) == (0, shown + "\n")
    assert last_message(server) == "Où ?"


def test_notes_are_broken_between_words() -> None:
    """A note fits the terminal; a pipe gets it as one line."""
    with Terminal("chat", "Hi", "--server", "127.0.0.1:1", columns=40) as terminal:
        assert terminal.end() == 1
        lines = terminal.text().splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) < 40
    joined = " ".join(line.strip() for line in lines)
    assert joined == run("chat", "Hi", "--server", "127.0.0.1:1").err.strip()


@pytest.mark.parametrize("data", [b"caf\xc3\xa9", b"\xef\xbb\xbfcaf\xc3\xa9"])
def test_decoded(data: bytes) -> None:
    """UTF-8 is read with and without its mark."""
    assert decoded(data) == "café"


def test_recovered() -> None:
    """An argument that Python could not decode is UTF-8 all the same, or an error."""
    assert recovered("café") == "café"
    assert recovered(os.fsdecode(b"caf\xc3") + "\udca9") == "café"
    with pytest.raises(ValueError, match="not UTF-8"):
        recovered("caf\udce9")
