"""Tools and real engines that are killed: each tool runs once, and the answer is whole."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from benchmarks.tools import MOMENTS, Trial, run_all, table_of


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_each_tool_runs_once_whatever_is_killed(weights_path: Path) -> None:
    """Before the first call, between the calls and in the answer the engine that answers is killed, in one stream.

    What the small model calls may differ between machines; the benchmark says whether it called both.
    """
    assert weights_path.exists()
    *_, worst = MOMENTS
    (trial,) = run_all([worst])
    assert trial.killed >= 1
    assert len(trial.ran) == len(set(trial.ran))
    assert (bool(trial.text), trial.error) == (True, "")


def test_the_table() -> None:
    """A trial is well when each tool ran once and the answer is whole; the table says what was not."""
    good = Trial("never", ["get_weather Berlin", "get_time Berlin"], 0, "Sunny.")
    twice = Trial("in the answer", [*good.ran, "get_time Berlin"], 1, "Sunny.")
    broken = Trial("before the call", [], 1, "", "All servers failed")
    assert [trial.is_well for trial in (good, twice, broken)] == [True, False, False]
    assert table_of([broken]).splitlines()[-1] == "| before the call | 1 |  | All servers failed |"
