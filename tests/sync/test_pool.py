"""Connections kept for the next request, and plain requests over them."""

from __future__ import annotations

from time import perf_counter

import pytest

from aicortex import Server
from aicortex._core.failover import AttemptFailed
from aicortex._sync.connection import Connection
from aicortex._sync.pool import call
from aicortex.testing import FakeServer, Hang


def version(server: FakeServer, seconds: float = 5.0) -> int:
    return call(Server(server.url), "GET", "/api/version", due=perf_counter() + seconds).status


def test_a_kept_connection_that_was_closed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has restarted is not taken for broken, even if its old connection looks as if it were open."""
    monkeypatch.setattr(Connection, "is_ready", lambda _: True)
    with FakeServer() as server:
        assert version(server) == 200
        server.stop()
        server.start()
        assert version(server) == 200
        assert server.connections == 2


def test_a_server_that_is_gone_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kept connection broke with says less than what a new one says."""
    monkeypatch.setattr(Connection, "is_ready", lambda _: True)
    with FakeServer() as server:
        assert version(server) == 200
    with pytest.raises(AttemptFailed, match="nothing listens there"):
        version(server)


def test_a_new_connection_is_not_tried_twice() -> None:
    """What breaks or hangs on it is the server's doing."""
    with FakeServer(paths={"/api/version": Hang()}) as server:
        with pytest.raises(AttemptFailed, match="did not answer in time"):
            version(server, 0.1)
        assert [request.path for request in server.requests] == ["/api/version"]
