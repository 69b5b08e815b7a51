"""The plot of `aicortex bench`."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from aicortex.cli.bench import Score
from aicortex.cli.plot import check_plot, draw_plot


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of a PNG, in pixels."""
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return width, height


def test_grows_with_the_fleet(tmp_path: Path) -> None:
    """Each row has its own height, so that thirty are as readable as one; odd names and gaps do no harm."""
    names = ["desk", "", "a$b$ \\frac", "rack" * 40, "日本"]
    scores = [
        Score("http://desk:11434", names[number % 5], "m", 80.0 + number, None if number == 3 else 40.0, 0.0, 3)
        for number in range(30)
    ]
    draw_plot(scores, str(tmp_path / "many.png"))
    draw_plot([*scores[:1], Score("http://dead:1", "", "m", errors=("busy",))], str(tmp_path / "one.png"))
    (width, many), (same, one) = size_of(tmp_path / "many.png"), size_of(tmp_path / "one.png")
    assert width == same
    assert (many - one) / 29 > 30


def test_file_that_cannot_be(tmp_path: Path) -> None:
    """A name that is none of a PNG, and a folder that is not there, are errors."""
    with pytest.raises(ValueError, match=r"ends in \.png"):
        check_plot(str(tmp_path / "fleet.jpeg"))
    with pytest.raises(ValueError, match="cannot write into"):
        check_plot(str(tmp_path / "none" / "fleet.png"))
    check_plot(str(tmp_path / "Fleet.PNG"))


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib the error names what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'aicortex\[plot\]'"):
        check_plot("fleet.png")
