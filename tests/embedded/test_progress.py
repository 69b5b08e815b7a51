"""What the user sees while the weights are fetched."""

import os
import subprocess
import sys

import pytest

from aicortex.embedded.progress import shown


def test_a_given_function_hears_it_alone(capsys):
    """Who reports himself sees nothing on the terminal."""
    heard = []
    with shown(lambda *numbers: heard.append(numbers), 10) as report:
        report(5, 10)
    assert heard == [(5, 10)]
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_there_are_two_lines(capsys):
    """A log gets one line before and one after, on stderr."""
    with shown(None, 92_900_000) as report:
        report(5, 10)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "aicortex: fetching the embedded model's weights, 92.9 MB, once",
        "aicortex: the weights are here",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a POSIX thing")
def test_a_terminal_gets_a_bar():
    """On a terminal the bar moves to its end."""
    script = (
        "from aicortex.embedded.progress import shown\n"
        "with shown(None, 1000) as report:\n"
        "    report(500, 1000); report(1000, 1000)\n"
    )
    master, slave = os.openpty()
    subprocess.run([sys.executable, "-c", script], stderr=slave, check=True, env=os.environ | {"TERM": "xterm"})
    os.close(slave)
    shown_text = os.read(master, 65536).decode()
    os.close(master)
    assert "Fetching the embedded model's weights" in shown_text
    assert "1.0/1.0 kB" in shown_text
