"""Blocking connections over real sockets: names and hosts that do not answer, and how a read is woken."""

from __future__ import annotations

import threading
from time import perf_counter

import pytest
from tests.peers import deaf_port

from aicortex import Server
from aicortex._core.failover import AttemptFailed
from aicortex._sync.connection import Connection
from aicortex.testing import FakeServer, Hang


@pytest.mark.usefixtures("hanging_resolver")
def test_a_resolver_that_hangs() -> None:
    """The system's resolver has no deadline of its own; ours holds."""
    with pytest.raises(AttemptFailed, match="not resolved in time"):
        Connection(Server("box.example"), due=perf_counter() + 0.2, opening=[])


def test_a_host_that_does_not_answer() -> None:
    """A connection that does not open within its deadline is given up."""
    with deaf_port() as port, pytest.raises(AttemptFailed) as caught:
        Connection(Server(f"127.0.0.1:{port}"), due=perf_counter() + 0.2, opening=[])
    assert caught.value.failure.kind == "connect_timeout"


def test_waking_a_blocked_receive() -> None:
    """wake() from another thread ends a receive that waits for bytes."""
    with FakeServer(Hang()) as fake:
        server = Server(fake.url)
        connection = Connection(server, due=perf_counter() + 5, opening=[])
        body = b'{"model":"fake:latest","messages":[{"role":"user","content":"x"}]}'
        response = connection.send("POST", "/api/chat", server, body, due=perf_counter() + 5)
        timer = threading.Timer(0.05, connection.wake)
        timer.start()
        connection.receive(30.0)
        timer.join()
        assert response.eof
        connection.close()
