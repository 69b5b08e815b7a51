"""The help of the commands, and the page of the docs that is made of it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import aicortex
from cli.running import Ended, run

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = ("chat", "models", "servers", "embedded")


def test_docs_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/cli.md is what `python docs/generate_cli.py` writes."""
    monkeypatch.setenv("NO_COLOR", "1")  # which the script sets too: it must not outlive this test
    reference = runpy.run_path(str(DOCS / "generate_cli.py"))["reference"]
    assert (DOCS / "cli.md").read_text("utf-8") == reference()


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    """Each command explains itself, with examples and its exit statuses, in lines that fit a terminal."""
    ended = run(command, "--help", COLUMNS="80")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(f"usage: aicortex {command} ")
    assert f"\nexamples:\n  aicortex {command}" in ended.out
    assert "\nexit status: 0 " in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


def test_help_of_all() -> None:
    """`aicortex --help` names every command."""
    ended = run("--help", COLUMNS="80")
    assert ended.status == 0
    assert [command for command in COMMANDS if f"    {command} " in ended.out] == list(COMMANDS)
    assert max(map(len, ended.out.splitlines())) <= 80


def test_version() -> None:
    """`--version` prints name and version."""
    assert run("--version") == Ended(0, f"aicortex {aicortex.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "required: COMMAND"), (["talk"], "invalid choice: 'talk'"), (["--verbose", "chat"], "--verbose")],
)
def test_no_such_command(arguments: list[str], words: str) -> None:
    """A missing or unknown command is a usage error."""
    ended = run(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert words in ended.err
