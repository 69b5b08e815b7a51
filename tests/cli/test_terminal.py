"""What surrounds the answer: encodings, notes, and the sign of life while nothing comes."""

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


def test_sign_of_life(server: FakeServer) -> None:
    """A terminal is told after a moment what is waited for, and the words vanish with the first token."""
    server.script(Answer("Here.", first_delay=1.5))
    with Terminal("chat", "Hi", "--server", server.url) as terminal:
        terminal.wait_for(f"waiting for {server.url}")
        terminal.wait_for("Here.")
        assert terminal.end() == 0
        assert terminal.text() == "Here.\n"


def test_sign_of_life_on_a_dumb_terminal(server: FakeServer) -> None:
    """A terminal without movements gets the words once, on a line of their own."""
    server.script(Answer("Here.", first_delay=1.5))
    with Terminal("chat", "Hi", "--server", server.url, more={"TERM": "dumb"}) as terminal:
        assert terminal.end() == 0
        assert terminal.raw == f"waiting for {server.url}\r\nHere.\r\n"


def test_sign_of_life_is_cut(server: FakeServer) -> None:
    """The words never take more than one line."""
    server.script(Answer("Here.", first_delay=1.5))
    with Terminal("chat", "Hi", "--server", server.url, columns=20) as terminal:
        terminal.wait_for("waiting for http:")
        assert terminal.end() == 0
        assert terminal.text() == "Here.\n"


def test_thinking_is_a_sign_of_life(server: FakeServer) -> None:
    """While a model thinks, the terminal says so."""
    server.script(Answer("Here.", thinking=["Hm"], delay=1.5))
    with Terminal("chat", "Hi", "--server", server.url) as terminal:
        terminal.wait_for("thinking")
        assert terminal.end() == 0
        assert terminal.text() == "Here.\n"


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
