"""Both event loops for each test of the asynchronous front end."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from tests.tasks import Run


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine as a user's program does, on either event loop."""
    return asyncio.run if request.param == "asyncio" else uvloop.run
