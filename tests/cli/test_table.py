"""Lists on stdout: columns, paragraphs and the words in them."""

from __future__ import annotations

import json

import pytest

from aicortex.cli.table import (
    counted,
    milliseconds,
    print_json,
    print_line,
    print_table,
    size_words,
    span_words,
    tell_unreachable,
)
from cli.running import pretend_terminal

HEADER = ["NAME", "SERVER", "LOADED"]
ROWS = [["desk", "http://desk:11434", "llama3.2:3b, qwen3:8b"], ["", "http://rack:11434", ""]]


def test_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Each row is a line whose columns stand below their heads."""
    print_table(HEADER, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "NAME  SERVER             LOADED",
        "desk  http://desk:11434  llama3.2:3b, qwen3:8b",
        "      http://rack:11434",
    ]


def test_empty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """An optional column in which nothing stands is left out, another one is not."""
    print_table(HEADER, [["", "a", ""]], optional=["NAME"])
    assert capsys.readouterr().out == "SERVER  LOADED\na\n"


@pytest.mark.parametrize("columns", [24, 40])
def test_paragraphs(columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal too narrow gets a paragraph for each row, under the first cell that is not empty."""
    pretend_terminal(monkeypatch, columns, 24)
    print_table(HEADER, ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["desk", "  server:" + (" " if columns == 40 else "\n    ").split("\n")[0] + lines[1][10:]]
    assert lines[-1].strip() == "http://rack:11434"
    assert max(map(len, lines)) < columns


def test_cells_do_not_steer_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a terminal nor a pipe gets control characters, and every row is one line."""
    for _ in range(2):
        print_table(["MODEL"], [["evil\x1b[2J"], ["a\nb\tc"]])
        print_line("x\x1b[2J\ny")
        assert capsys.readouterr().out == "MODEL\nevil\ufffd[2J\na b c\nx\ufffd[2J y\n"
        pretend_terminal(monkeypatch, 80, 24)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON is written over several lines, in any script."""
    print_json([{"name": "Ж"}])
    out = capsys.readouterr().out
    assert json.loads(out) == [{"name": "Ж"}]
    assert len(out.splitlines()) == 5


def test_unreachable(capsys: pytest.CaptureFixture[str]) -> None:
    """Who did not answer is told on stderr."""
    tell_unreachable({"http://desk:1": "refused"})
    assert capsys.readouterr() == ("", "aicortex: http://desk:1: refused\n")


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, ""),
        (512, "512 B"),
        (98_362_432, "98 MB"),
        (2_019_393_189, "2.0 GB"),
        (4.1e12, "4.1 TB"),
        (9e15, "9000.0 TB"),
    ],
)
def test_sizes(size_bytes: float, words: str) -> None:
    """Sizes are written in powers of 1000."""
    assert size_words(size_bytes) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (1, "1 s"), (59, "59 s"), (300, "5 min"), (7200, "2 h"), (400000, "5 d")]
)
def test_spans(seconds: float, words: str) -> None:
    """A time is written in its largest unit."""
    assert span_words(seconds) == words


def test_numbers() -> None:
    """Milliseconds have as many digits as say something; things are counted as people do."""
    assert [milliseconds(value) for value in (None, 0.31, 99.94, 1234.5)] == ["", "0.3 ms", "99.9 ms", "1234 ms"]
    assert (counted(1, "model"), counted(0, "model")) == ("1 model", "0 models")


def test_shorter_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal gets the first rows that fit, the whole ones if none do; a pipe always gets those."""
    shorter = [[["desk", "desk", "one"], ["", "rack", ""]], [["d", "d", "1"], ["", "r", ""]]]
    print_table(HEADER, ROWS, shorter=shorter)
    assert "llama3.2:3b, qwen3:8b" in capsys.readouterr().out
    for columns, last in ((30, "      rack"), (21, "      r"), (10, "  server:")):
        pretend_terminal(monkeypatch, columns, 24)
        print_table(HEADER, ROWS, shorter=shorter)
        assert last in capsys.readouterr().out
