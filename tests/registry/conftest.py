"""A registry of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aicortex.registry.store import Registry


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a registry may be; neither the file nor its folder is there."""
    return str(tmp_path / "data" / "registry.db")


@pytest.fixture
def registry(path: str) -> Iterator[Registry]:
    """A registry without a file."""
    with Registry(path) as opened:
        yield opened
