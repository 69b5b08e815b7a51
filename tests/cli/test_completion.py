"""`aicortex completion`, in real shells."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from aicortex.registry.credentials import entry_of
from aicortex.registry.store import Registry
from cli.running import PATIENCE, environment, here

SHELLS = ["bash", "zsh", "fish"]


@pytest.mark.parametrize("shell", SHELLS)
def test_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets a script that names commands, those below them, and options."""
    ended = here(capsys, "completion", shell)
    assert (ended.status, ended.err) == (0, "")
    for word in ("servers", "drain", "hedge-after", "balanced"):
        assert word in ended.out


def test_other_shells(capsys: pytest.CaptureFixture[str]) -> None:
    """A shell that is not known is a usage error."""
    ended = here(capsys, "completion", "tcsh")
    assert (ended.status, "invalid choice: 'tcsh'" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("aicortex ser", "aicortex servers "),
        ("aicortex servers dr", "aicortex servers drain "),
        ("aicortex servers add --wei", "aicortex servers add --weight "),
        ("aicortex chat --routing fa", "aicortex chat --routing fastest "),
        ("aicortex servers import fle", "aicortex servers import fleet.toml"),
        ("aicortex servers remove work", "aicortex servers remove workshop "),
        ("aicortex chat --server work", "aicortex chat --server workshop "),
    ],
)
def test_in_bash(typed: str, completed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real bash completes what is typed, at the press of the key."""
    (tmp_path / "fleet.toml").touch()
    with Registry() as registry:
        registry.add(entry_of("desk:11434", name="workshop"))
    command = tmp_path / "aicortex"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m aicortex "$@"\n', "utf-8")
    command.chmod(0o755)
    (tmp_path / "rc").write_text(here(capsys, "completion", "bash").out + "\nPS1='> '\n", "utf-8")
    bash = shutil.which("bash")
    assert bash is not None
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [bash, "--noprofile", "--rcfile", "rc", "-i"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=tmp_path,
        env=environment(TERM="dumb", INPUTRC="/dev/null", PATH=f"{tmp_path}:{os.environ['PATH']}"),
        start_new_session=True,
    )
    os.close(slave)
    try:
        _read_until(master, b"> ")
        os.write(master, typed.encode() + b"\t")
        _read_until(master, completed.encode())
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _read_until(master: int, end: bytes) -> None:
    data = b""
    while end not in data:
        assert select.select([master], [], [], PATIENCE)[0], data
        with suppress(OSError):
            data += os.read(master, 4096)
