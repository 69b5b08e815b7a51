"""What `servers` and the commands below it take."""

from __future__ import annotations

from typing import Any

import pytest

from aicortex.cli import ACTIONS as HOMES
from aicortex.cli.parser import parse_arguments
from aicortex.cli.servers_parser import ACTIONS


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("servers", {"action": None, "server": None, "json": False}),
        ("servers --server desk --json", {"action": None, "server": ["desk"], "json": True}),
        ("servers list", {"action": "list", "server": None, "json": False}),
        ("servers --server desk list", {"action": "list", "server": ["desk"]}),
        ("servers list --server desk --json", {"action": "list", "server": ["desk"], "json": True}),
        ("servers add desk", {"address": "desk", "name": "", "label": [], "weight": 1.0, "slots": 1, "expand": None}),
        ("servers add desk --expand --no-verify", {"expand": True, "no_verify": True}),
        ("servers add desk --no-expand --label a=b", {"expand": False, "label": [("a", "b")]}),
        ("servers remove a b", {"names": ["a", "b"]}),
        ("servers check", {"names": []}),
        ("servers drain a b --off", {"names": ["a", "b"], "off": True}),
        ("servers export", {"file": "-"}),
        ("servers import x.toml --dry-run", {"file": "x.toml", "dry_run": True}),
    ],
)
def test_options(line: str, expected: dict[str, Any]) -> None:
    """Each option has its value or its default."""
    told = vars(parse_arguments(line.split()))
    assert {name: told[name] for name in expected} == expected


def test_lists_do_not_grow() -> None:
    """What one line says is not said by the next."""
    for _ in range(2):
        assert parse_arguments(["servers", "add", "desk", "--label", "a=b"]).label == [("a", "b")]


def test_every_command_has_a_home() -> None:
    """Each command that can be parsed can be carried out."""
    assert [action.name for action in ACTIONS] == ["list", "add", "set", "remove", "check", "drain", "export", "import"]
    assert set(HOMES["servers"]) == {action.name for action in ACTIONS}
