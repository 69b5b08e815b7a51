"""The line below an answer, and where the cursor stands behind a text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex.cli.sign import Sign, cursor_behind
from cli.running import draw, pretend_terminal

COLUMNS, ROWS = 20, 4


def shown(capsys: pytest.CaptureFixture[str], before: str, after: str = "") -> list[str]:
    """Return the lines on a terminal on which this was written before the sign, and that after it."""
    raw = before + capsys.readouterr().out + after
    return [line.rstrip() for line in draw(raw.replace("\n", "\r\n"), COLUMNS, ROWS)]


@pytest.mark.parametrize("text", ["", "text", "a\nb\nc\nd\ne", "0123456789012345678"])
def test_shown_and_cleared(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The words stand below the text wherever that ends on the screen, and then as if they had never been there."""
    pretend_terminal(monkeypatch, COLUMNS, ROWS)
    sign = Sign()
    sign.show("| first")
    sign.show("/ then")
    assert shown(capsys, text) == [*text.split("\n"), "/ then"]
    sign.show("/ then")
    sign.clear()
    assert shown(capsys, text, "X\nY") == [*(text + "X").split("\n"), "Y"]


def test_on_an_empty_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cursor stands on an empty row the words need no other one."""
    pretend_terminal(monkeypatch, COLUMNS, ROWS)
    sign = Sign()
    sign.show("| words", row_is_empty=True)
    assert shown(capsys, "text\n") == ["text", "| words"]
    sign.show("| words", row_is_empty=True)
    sign.clear()
    assert shown(capsys, "text\n", "X") == ["text", "X"]


def test_nothing_to_clear(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not shown is not erased: nothing is written for a token."""
    pretend_terminal(monkeypatch, COLUMNS, ROWS)
    sign = Sign()
    sign.show("words")
    sign.clear()
    capsys.readouterr()
    sign.clear()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("LINES", "2")])
def test_impossible(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A terminal without movements, or without rows, gets nothing."""
    pretend_terminal(monkeypatch, COLUMNS, ROWS)
    monkeypatch.setenv(name, value)
    Sign().show("words")
    assert capsys.readouterr().out == ""


def test_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """What is no terminal gets nothing."""
    Sign().show("words")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("", 0),
        ("naïve", 5),
        ("x" * 19, 19),
        ("x" * 20, 20),
        ("x" * 21, 1),
        ("x" * 40, 20),
        ("\tx", 9),
        ("x" * 18 + "\t", 19),
        ("x" * 20 + "\t", None),
        ("e\u0301" * 3, 3),
        ("\u661f" * 10, 20),
        ("x" + "\u661f" * 10, 2),
        ("x" * 19 + "\U0001f98a", None),
        ("x" * 18 + "\U0001f98a", None),
        ("x" * 17 + "\U0001f98a", 19),
        ("x" * 19 + "\u2714\ufe0f", None),
        ("x" * 19 + "\u0915\u093e", None),
    ],
)
def test_cursor_behind(line: str, column: int | None) -> None:
    """The column is counted as terminals wrap, and unknown where they disagree whether a row is full."""
    assert cursor_behind(line, COLUMNS) == column


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["Cc"])), st.integers(1, 50))
def test_cursor_behind_simple_text(line: str, columns: int) -> None:
    """Of characters of one column each, every row but the last is full."""
    assert cursor_behind(line, columns) == (len(line) - 1) % columns + 1 if line else True
