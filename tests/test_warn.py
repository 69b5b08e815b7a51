"""Whose line a warning points at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from aicortex import AllServersFailedError, achat, chat
from aicortex.testing import FakeServer

INSIDE = "from aicortex.warn import warn\ndef give(words):\n    deeper(words)\ndef deeper(words):\n    warn(words)\n"


def test_a_warning_points_at_the_line_outside_the_package() -> None:
    """However deep inside the package it is given, the user's own line is named."""
    module: dict[str, Callable[[str], None]] = {"__name__": "aicortex.inside"}  # type: ignore[dict-item]
    exec(INSIDE, module)
    with pytest.warns(RuntimeWarning, match="careful") as caught:
        module["give"]("careful")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("is_async", [False, True])
def test_a_dead_ollama_host_points_at_the_call(is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both colours the warning names the line that asked."""
    with FakeServer() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
    monkeypatch.setattr("aicortex.embedded.is_available", lambda: False)

    async def main() -> None:
        await achat("Hi")

    with pytest.warns(RuntimeWarning, match="does not answer") as caught, pytest.raises(AllServersFailedError):
        asyncio.run(main()) if is_async else chat("Hi")
    assert caught[0].filename == __file__
