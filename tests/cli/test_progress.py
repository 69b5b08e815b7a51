"""How far a refresh is, on terminals and elsewhere."""

from __future__ import annotations

import sys

import pytest

from aicortex.cli.progress import Bars, Lines, choose_display
from aicortex.registry.credentials import entry_of
from aicortex.registry.store import Registry
from aicortex.testing import FakeServer, Hang
from aicortex.tools import Progress
from cli.running import Terminal, pretend_terminal

STEPS = [
    Progress("check", "http://desk:1", 1, 2, 0),
    Progress("fetch", "http://desk:1", 1, 2, 0),
    Progress("fetch", "http://[::1]:1", 2, 2, 1),
    Progress("measure", "http://desk:1", 1, 1, 0),
    Progress("apply", "", 2, 2, 0),
]


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal each server has one line on stderr, and one more for each model that is measured."""
    with choose_display() as display:
        assert isinstance(display, Lines)
        for step in STEPS:
            display.tell(step)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "aicortex: asking what they have: http://desk:1 (1 of 2)",
        "aicortex: asking what they have: http://[::1]:1 failed (2 of 2)",
        "aicortex: measuring: http://desk:1 (1 of 1)",
    ]


def test_lines_of_several_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    """What fails is told of each round."""
    with Lines() as display:
        for number, failed in enumerate((1, 1, 0), 1):
            display.title = f", round {number}"
            display.tell(Progress("measure", "http://desk:1", 1, 1, failed))
    assert capsys.readouterr().err.splitlines() == [
        "aicortex: measuring, round 1: http://desk:1 failed (1 of 1)",
        "aicortex: measuring, round 2: http://desk:1 failed (1 of 1)",
        "aicortex: measuring, round 3: http://desk:1 (1 of 1)",
    ]


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that can move its cursor has bars, another one has lines."""
    pretend_terminal(monkeypatch, 80, 24)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(choose_display(), Bars)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_display(), Lines)


def test_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each step has a bar with what is through, of how many; nothing in a name is markup."""
    pretend_terminal(monkeypatch, 100, 24)
    with choose_display() as display:
        for step in STEPS:
            display.tell(step)
    drawn = capsys.readouterr().err
    for words in ("asking who is there", "asking what they have", "measuring", "writing it down", "2/2", "1 failed"):
        assert words in drawn


@pytest.mark.parametrize("columns", [40, 100])
def test_terminal(server: FakeServer, columns: int) -> None:
    """While a server is silent the terminal shows a bar, which leaves no trace."""
    with FakeServer(everything=Hang()) as silent, Registry() as registry:
        registry.add(entry_of(server.url))
        registry.add(entry_of(silent.url))
        with Terminal("refresh", "--timeout", "1.5", columns=columns) as terminal:
            terminal.wait_for("asking")
            terminal.wait_for("1/2")
            assert terminal.end() == 0
            lines = [line for line in terminal.text().splitlines() if line]
    assert "asking" not in "".join(lines)
    assert max(map(len, lines)) <= columns
