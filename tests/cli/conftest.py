"""A fake server for each test of the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aicortex.testing import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(models=("llama3.2:3b", "qwen3:8b"), answer="Black holes form when stars die.") as server:
        yield server
