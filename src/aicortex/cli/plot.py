"""The plot of `aicortex bench`: a bar for each model of each server, by first token and by tokens per second."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from aicortex.cli.bench import Score

BAR_INCHES, FRAME_INCHES, WIDTH_INCHES = 0.34, 1.3, 11.0
LONGEST_NAME = 48
FIRST_COLOUR, PACE_COLOUR = "#4c72b0", "#dd8452"


def check_plot(path: str) -> None:
    """Raise ValueError when a plot could not be drawn into this file, before anything is measured."""
    if find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'aicortex[plot]'")
    if not path.lower().endswith(".png"):
        raise ValueError(f"--plot draws a file whose name ends in .png, not {path!r}")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ValueError(f"--plot cannot write into {folder}")


def draw_plot(scores: Sequence[Score], path: str) -> None:
    """Draw these scores, best at the top, into a file; raises OSError when that cannot be written."""
    import warnings

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [each for each in scores if each.rounds]
    figure = Figure(figsize=(WIDTH_INCHES, FRAME_INCHES + BAR_INCHES * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    first, pace = figure.subplots(1, 2, sharey=True)
    _draw_bars(first, [each.first_token_ms or 0.0 for each in shown], FIRST_COLOUR)
    _draw_bars(pace, [each.tokens_per_second or 0.0 for each in shown], PACE_COLOUR)
    first.set_title("first token, ms (shorter is better)", fontsize=11)
    pace.set_title("tokens per second (longer is better)", fontsize=11)
    first.set_yticks(range(len(shown)), list(map(_name, shown)), parse_math=False)
    first.set_ylim(len(shown) - 0.4, -0.6)  # the best at the top
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")  # a name in a script that the font does not have
        figure.savefig(path, dpi=130)


def _draw_bars(axes: Axes, values: Sequence[float], colour: str) -> None:
    bars = axes.barh(range(len(values)), values, color=colour, height=0.7)
    labels = [_number(value) if value else "unknown" for value in values]
    axes.bar_label(bars, labels=labels, padding=3, fontsize=9)
    axes.set_xlim(0, max(values) * 1.15 or 1)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _name(score: Score) -> str:
    name = f"{score.title.removeprefix('http://')}  {score.model}"
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
