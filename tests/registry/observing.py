"""What the tests of the registry write into it, and how they look at it from outside."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from aicortex.registry.entries import Condition, Measurement, ModelEntry, Observation

ROOT = Path(__file__).parents[2]
DESK, RACK = "http://desk:11434", "http://rack:11434"
BEGUN = """
import os, signal, sys
from aicortex._core.health import Health
from aicortex.errors import RegistryError
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import Snapshot
from aicortex.registry.store import Registry
from tests.registry.observing import *

registry = Registry(sys.argv[1])
"""


def observation(url: str, at: float, *names: str, error: str = "") -> Observation:
    """Return what a refresh found at a server: models, each measured once."""
    models = tuple(ModelEntry(name, f"digest {at}", 7, "llama", ("llama",)) for name in names)
    measured = tuple(Measurement(url, name, at, at, at * 2) for name in names)
    return Observation(Condition(url, at, at, "0.5.1", 1.5, error), models, measured)


def run(script: str, *arguments: str) -> str:
    """Run a script in a process of its own, with leaks as errors, and return what it says."""
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", BEGUN + script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def integrity(path: str) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


def before_it() -> list[Observation]:
    """Return what one refresh found."""
    return [observation(DESK, 1.0, "a:1", "b:1"), observation(RACK, 1.0, "a:1")]


def after_it() -> list[Observation]:
    """Return what the next one found: other models of one server, the other silent."""
    return [observation(DESK, 2.0, "b:1", "c:1"), Observation(Condition(RACK, 2.0, 1.0, error="refused"))]
