"""What the user sees while the weights are fetched."""

import os
import re
import subprocess
import sys

import pytest

from aicortex.embedded.progress import shown


def test_a_given_function_hears_it_alone(capsys):
    """Who reports himself sees nothing on the terminal."""
    heard = []
    with shown(lambda *numbers: heard.append(numbers), 10, again=True) as report:
        report(5, 10)
    assert heard == [(5, 10)]
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_there_are_two_lines(capsys):
    """A log gets one line before and one after, on stderr."""
    with shown(None, 92_900_000, again=False) as report:
        report(5, 10)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "aicortex: fetching the embedded model's weights, 92.9 MB, once",
        "aicortex: the weights are here",
    ]


def on_terminal(columns, end=""):
    """Return what a terminal of so many columns gets, and the lines that are left on it."""
    script = (
        "from aicortex.embedded.progress import shown\n"
        "with shown(None, 92_900_000, again=False) as report:\n"
        f"    report(50_000_000, 92_900_000); {end}\n"
    )
    master, slave = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(columns)}
    subprocess.run([sys.executable, "-c", script], stderr=slave, check=not end, env=environment)
    os.close(slave)
    text = os.read(master, 65536).decode()
    os.close(master)
    plain = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", text)
    return [line.rpartition("\r")[2] for line in plain.replace("\r\n", "\n").strip().split("\n")]


needs_terminal = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a POSIX thing")


@needs_terminal
@pytest.mark.parametrize("columns", [30, 40, 74, 75, 80, 200])
def test_a_terminal_gets_a_bar(columns):
    """On a terminal of any width one line says what is fetched and how far it is, and leaves room for ^C."""
    lines = on_terminal(columns)
    assert len(lines) == 1
    assert lines[0].startswith("Fetching the embedded model's weights" if columns >= 75 else "Weights")
    assert "50.0/92.9 MB" in lines[0]
    assert len(lines[0]) <= columns - 3
    assert ("━" in lines[0] and "-:--:--" in lines[0]) == (columns >= 75)


@needs_terminal
def test_an_interrupted_bar_stands_once():
    """Ctrl-C leaves the line as it was, once."""
    assert sum("50.0/92.9 MB" in line for line in on_terminal(40, end="raise KeyboardInterrupt")) == 1
