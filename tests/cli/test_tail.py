"""The last lines of the screen change with as few characters as possible, and never what has scrolled away."""

from __future__ import annotations

import pytest

from aicortex.cli.tail import Tail, plain
from cli.running import draw


@pytest.fixture(autouse=True)
def _size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "4")


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines on a terminal of 4 rows since the last call."""
    return draw(capsys.readouterr().out.replace("\n", "\r\n"), 20, 4)


def test_growing_line_writes_what_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    """A line that grows is continued, not written again."""
    tail = Tail()
    for line in ("one", "one two", "one two three"):
        tail.draw([line])
    tail.draw(["one two three", "four"])
    assert capsys.readouterr().out == "one two three\nfour"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["a", "b", "c"], ["a", "x", "c"]),
        (["a", "b", "c"], ["a"]),
        (["a", "b"], ["a", "b", "c"]),
        (["abc"], ["ab"]),
        ([], ["a"]),
        (["a"], ["a"]),
    ],
)
def test_changes(capsys: pytest.CaptureFixture[str], before: list[str], after: list[str]) -> None:
    """Whatever was shown, the new lines are what stands there, and the cursor is behind them."""
    tail = Tail()
    tail.draw(before)
    tail.draw(after)
    tail.draw([*after, "last"])
    tail.end()
    assert [line for line in shown(capsys) if line] == [*after, "last"]


def test_kept_lines_stay(capsys: pytest.CaptureFixture[str]) -> None:
    """What is kept is not touched again, and what follows begins on a new line."""
    tail = Tail()
    tail.draw(["a", "b"])
    tail.keep(1)
    tail.draw(["x"])
    tail.keep(1)
    tail.draw(["y"])
    tail.end()
    assert shown(capsys) == ["a", "x", "y", ""]


def test_colours_that_scrolled_away_stay(capsys: pytest.CaptureFixture[str]) -> None:
    """Another colour of lines above the screen is let be; what can be reached is drawn."""
    lines = [f"line {number}" for number in range(8)]
    tail = Tail()
    tail.draw(lines)
    tail.draw([f"\x1b[1m{line}\x1b[0m" for line in lines])
    tail.end()
    assert shown(capsys) == [*lines, ""]


def test_text_that_scrolled_away_is_written_again(capsys: pytest.CaptureFixture[str]) -> None:
    """When other words belong above the screen, everything is written again: rather twice than not at all."""
    tail = Tail()
    tail.draw(["a", "b", "c", "d", "e"])
    tail.draw(["x", "b", "c", "d", "e"])
    tail.end()
    assert shown(capsys) == ["a", "b", "c", "d", "e", "x", "b", "c", "d", "e", ""]


def test_table_waits_until_it_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """What changes its shape is not drawn while it is higher than the screen."""
    tail = Tail()
    assert tail.draw(["a", "b"], keeps_shape=False)
    assert not tail.draw(["a ", "b ", "c ", "d "], keeps_shape=False)
    assert tail.draw(["a  ", "b  ", "c  ", "d  "])
    tail.end()
    assert shown(capsys) == ["a  ", "b  ", "c  ", "d  ", ""]


def test_resized_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that the terminal has broken anew are left alone, and those that may change written again below."""
    tail = Tail()
    tail.draw(["a", "b"])
    monkeypatch.setenv("COLUMNS", "10")
    tail.draw(["a", "c"])
    tail.end()
    assert shown(capsys) == ["a", "b", "a", "c", ""]


def test_plain() -> None:
    """Colours are no part of the text."""
    assert plain("\x1b[1;31mred\x1b[0m") == "red"
