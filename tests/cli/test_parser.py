"""The help of the commands, and the page of the docs that is made of it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import aicortex
from aicortex.cli.parser import SESSIONS, parse_arguments
from aicortex.cli.servers_parser import ACTIONS
from cli.running import Ended, here, run

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = ("chat", "sessions", "models", "servers", "refresh", "bench", "doctor", "embedded", "completion")


def test_docs_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/cli.md is what `python docs/generate_cli.py` writes."""
    monkeypatch.setenv("NO_COLOR", "1")  # which the script sets too: it must not outlive this test
    reference = runpy.run_path(str(DOCS / "generate_cli.py"))["reference"]
    assert (DOCS / "cli.md").read_text("utf-8") == reference()


@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS,
        *(f"servers {action.name}" for action in ACTIONS),
        *(f"sessions {action.name}" for action in SESSIONS.commands),
    ],
)
def test_help(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command explains itself, with examples and its exit statuses, in lines that fit a terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    ended = here(capsys, *command.split(), "--help")
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


def test_nothing_prints_the_help() -> None:
    """`aicortex` alone is a usage error that shows the whole help."""
    ended = run(COLUMNS="80")
    assert ended == Ended(2, "", run("--help", COLUMNS="80").out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hi"], "there is no command 'hi'; did you mean: aicortex chat \"hi\"?"),
        (["Why", "blue?", "--seed", "1"], 'did you mean: aicortex chat "Why blue?"?'),
        (["in $"], "did you mean: aicortex chat 'in $'?"),
        (["word " * 99], 'word ..."?'),
        (["modles"], "did you mean: aicortex models?"),
        (["docter"], "did you mean: aicortex doctor?"),
        (["ask", "bob@example.org"], 'did you mean: aicortex chat "ask bob@example.org"?'),
        (["http://me:hidden@desk"], 'did you mean: aicortex chat "http://…@desk"?'),
        (["servers", "ad", "desk"], "there is no command 'servers ad'; did you mean: aicortex servers add?"),
        (["servers", "rm", "foo"], "did you mean: aicortex servers remove?"),
        (["servers", "ls"], "did you mean: aicortex servers list?"),
        (["servers", "update", "good"], "did you mean: aicortex servers set?"),
        (["servers", "show", "good"], "did you mean: aicortex servers check?"),
        (["servers", "zebra"], "there are list, add, set, remove, check, drain, export, import"),
        (["servers", "localhost"], "did you mean: aicortex servers add localhost?"),
        (["servers", "desk:11434"], "did you mean: aicortex servers add desk:11434?"),
        (["servers", "https://me:hidden@desk"], "did you mean: aicortex servers add https://…@desk?"),
        (["sessions", "rm", "novel"], "there is no command 'sessions rm'; did you mean: aicortex sessions remove?"),
        (["sessions", "novel"], "did you mean: aicortex sessions show novel?"),
        (["session"], "did you mean: aicortex sessions?"),
        (["--verbose", "chat"], "unrecognized arguments: --verbose; did you mean --version?"),
    ],
)
def test_no_such_command(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown command is a usage error that says what was probably meant."""
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(arguments)
    said = capsys.readouterr().err
    assert said.startswith("usage: aicortex [--help] [--version] COMMAND ...\naicortex: error: ")
    assert said.endswith(words + "\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat", "--modle", "x", "hi"], "unrecognized arguments: --modle; did you mean --model?"),
        (["chat", "hi", "--sede=3", "--timout"], "--sede --timout; did you mean --seed and --timeout?"),
        (["chat", "hi", "--colour"], "unrecognized arguments: --colour"),
        (["embedded", "llama"], "unrecognized arguments: llama"),
        (["bench", "--round", "3"], "unrecognized arguments: --round; did you mean --rounds?"),
    ],
)
def test_no_such_option(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown option is told with the usage of its command, and with the option that looks like it."""
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(arguments)
    said = capsys.readouterr().err
    assert said.startswith(f"usage: aicortex {arguments[0]} [options]")
    assert said.endswith(words + "\n")
