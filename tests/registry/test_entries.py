"""The value types."""

from __future__ import annotations

import pytest

from aicortex.registry.entries import Condition, ServerEntry, Snapshot


@pytest.mark.parametrize(("name", "title"), [("desk", "desk"), ("", "http://desk:11434")])
def test_a_title_is_the_name_or_the_address(name: str, title: str) -> None:
    """A server is called by its name if it has one."""
    assert ServerEntry("http://desk:11434", name).title == title


@pytest.mark.parametrize(("error", "is_stale"), [("", False), ("refused", True)])
def test_what_is_known_of_a_silent_server_is_stale(error: str, is_stale: bool) -> None:
    """A condition with an error is of a server that did not answer."""
    assert Condition("http://desk:11434", 1.0, error=error).is_stale is is_stale


def test_values_cannot_be_changed() -> None:
    """What was read stays as of its moment."""
    with pytest.raises(AttributeError):
        Snapshot().servers = ()  # type: ignore[misc]  # that is the test
