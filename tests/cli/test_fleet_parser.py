"""What `models`, `refresh`, `bench` and `doctor` take."""

from __future__ import annotations

from typing import Any

import pytest

from aicortex.cli.parser import parse_arguments


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("models", {"query": [], "family": None, "server": None, "json": False}),
        ("models a b --min-params 3B", {"query": ["a", "b"], "min_params": "3B"}),
        ("refresh", {"names": [], "measure": False, "timeout": 5.0}),
        ("refresh desk --timeout 2 --json", {"names": ["desk"], "timeout": 2.0, "json": True}),
        ("bench", {"names": [], "rounds": 3, "all": False, "plot": None, "model": None}),
        ("bench desk --all --rounds 5", {"names": ["desk"], "rounds": 5, "all": True}),
        ("doctor", {"addresses": [], "model": None}),
        ("doctor desk:1 rack:1 --model x", {"addresses": ["desk:1", "rack:1"], "model": "x"}),
    ],
)
def test_options(line: str, expected: dict[str, Any]) -> None:
    """Each option has its value or its default."""
    told = vars(parse_arguments(line.split()))
    assert {name: told[name] for name in expected} == expected
