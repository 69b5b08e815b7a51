"""What the parsers of all commands are made of."""

from __future__ import annotations

import argparse

import pytest

from aicortex.cli.arguments import Command, Parser, add_commands, add_json, count, decimal, layout, pair, port, whole


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (decimal, "1.5", 1.5),
        (whole, "-3", -3),
        (count, "1", 1),
        (port, "0", 0),
        (pair, "gpu=a=b", ("gpu", "a=b")),
        (pair, " X-Team = env:TEAM", ("X-Team", " env:TEAM")),
    ],
)
def test_types(kind: type, text: str, value: object) -> None:
    """Arguments become values."""
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (decimal, "warm", "'warm' is not a number"),
        (whole, "1.5", "'1.5' is not a whole number"),
        (count, "0", "0 is too few"),
        (port, "65536", "65536 is no port"),
        (pair, "sk-verysecret", "write NAME=VALUE"),
        (pair, "=sk-verysecret", "write NAME=VALUE"),
    ],
)
def test_wrong_values(kind: type, text: str, words: str) -> None:
    """What is no such value is told; where a secret may stand it is not repeated."""
    with pytest.raises(argparse.ArgumentTypeError, match=words) as caught:
        kind(text)
    assert "verysecret" not in str(caught.value)


def test_commands_below_commands() -> None:
    """A command may have others below it; `--json` counts before and behind their names."""
    below = Command("below", "", "do less", "examples: none", lambda parser: add_json(parser, "as JSON"))
    above = Command("above", "", "do more", "examples: none", lambda parser: add_json(parser, "as JSON"), (below,))
    parser = Parser(prog="it", formatter_class=layout(80))
    add_commands(parser, [above], 80, "command")
    for arguments, is_json in (("above --json below", True), ("above below --json", True), ("above below", False)):
        options = parser.parse_args(arguments.split(), argparse.Namespace(json=False, action=None))
        assert (options.command, options.action, options.json) == ("above", "below", is_json)
    assert options.parser.format_help().startswith("usage: it above below")
