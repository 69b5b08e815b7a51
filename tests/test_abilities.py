"""What a model can do, as the registry knows it or its server says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aicortex import Server, abilities
from aicortex.abilities import checking, having
from aicortex.errands import run
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import Condition, ModelEntry, Observation
from aicortex.registry.store import Registry
from aicortex.testing import FakeServer, Hang, Refuse, Status

SEEING = {"capabilities": ["completion", "vision"]}


@pytest.fixture(autouse=True)
def _nobody_was_asked() -> Iterator[None]:
    yield
    abilities._known.clear()


def asked(server: FakeServer) -> list[object]:
    """Return which models a server was asked for."""
    assert {request.path for request in server.requests} <= {"/api/show"}
    return [request.option("model") for request in server.requests]


def test_the_server_is_asked_once() -> None:
    """What a server says of a model is remembered, under whatever name it is asked for."""
    with FakeServer(models=("llava", "fake"), capabilities=["completion"]) as server:
        server.paths["/api/show"] = Status(200, SEEING)
        place = Server(server.url)
        assert run(checking("llava", place)) == ("completion", "vision")
        assert run(checking("llava:latest", place)) == ("completion", "vision")
        server.paths.clear()
        assert run(checking("fake", place)) == ("completion",)
        assert asked(server) == ["llava:latest", "fake:latest"]
        assert having("vision", [place]) == ["llava:latest"]
        assert having("vision", []) == []


def test_what_was_said_does_not_hold_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a minute the server is asked again: the model may be another one."""
    with FakeServer() as server:
        place = Server(server.url)
        run(checking("fake", place))
        server.paths["/api/show"] = Status(200, SEEING)
        monkeypatch.setattr(abilities, "FRESH_SECONDS", 0.0)
        assert run(checking("fake", place)) == ("completion", "vision")


def test_the_registry_is_believed() -> None:
    """What a refresh wrote down needs no question; what it did not is asked."""
    with FakeServer(models=("fake", "llava")) as server:
        with Registry() as registry:
            registry.add(entry_of(server.url))
            models = (ModelEntry("llava:latest", capabilities=("completion", "vision")), ModelEntry("fake:latest"))
            registry.apply([Observation(Condition(server.url, 1.0), models)])
        place = Server(server.url)
        assert run(checking("llava", place)) == ("completion", "vision")
        assert having("vision", [place]) == ["llava:latest"]
        assert asked(server) == []
        assert "tools" in run(checking("fake", place))
        assert asked(server) == ["fake:latest"]


@pytest.mark.parametrize(
    "reply",
    [Status(404), Status(500), Status(200, {}), Status(200, {"capabilities": None}), Status(200, "nonsense"), Refuse()],
    ids=str,
)
def test_nothing_is_known(reply: Status | Refuse) -> None:
    """A server that does not say is not asked again at once."""
    with FakeServer() as server:
        server.paths["/api/show"] = reply
        place = Server(server.url)
        assert run(checking("fake", place)) == ()
        assert run(checking("fake", place)) == ()
        assert len(server.requests) == 1


def test_a_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a server longer than its time, and then the model may do anything."""
    monkeypatch.setattr(abilities, "ASK_SECONDS", 0.05)
    with FakeServer() as server:
        server.paths["/api/show"] = Hang()
        assert run(checking("fake", Server(server.url))) == ()
