"""The exchange of the blocking front end: threads that meet in it, and several connections at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import pytest

from aicortex import Server, Stream, chat
from aicortex._core.http import Response
from aicortex._sync.client import Exchange
from aicortex._sync.connection import Connection, wait_for_any
from aicortex.testing import Answer, FakeServer, Hang, Loading, Request

TEXT = "Tides rise because the moon pulls the water on its side of the Earth more than the Earth itself."


def ask(*servers: FakeServer, **arguments: Any) -> Stream:
    addresses = [Server(server.url, verify=False) for server in servers]
    return chat("Why?", stream=True, model="fake:latest", servers=addresses, **arguments)


def posted(server: FakeServer) -> list[Request]:
    return [request for request in server.requests if request.method == "POST"]


def kinds(stream: Stream) -> list[tuple[str, str]]:
    return [(attempt.server, attempt.kind) for attempt in stream.result.attempts]


@pytest.fixture
def hold_move(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let `move` wake nobody before this is set: the thread it runs in is held up, as a system may do at any place."""
    may_wake, wake = threading.Event(), Exchange._with_lock

    def late(self: Exchange, work: Callable[[], None], responses: Sequence[Response] | None) -> None:
        assert responses is None or may_wake.wait(5)
        wake(self, work, responses)

    monkeypatch.setattr(Exchange, "_with_lock", late)
    return may_wake


def test_move_does_not_wake_the_next_server(hold_move: threading.Event) -> None:
    """The reader is at the next server before `move` comes to wake it: that server's connection is left alone."""
    with (
        FakeServer(Answer(TEXT, delay=0.01), answer=TEXT) as one,
        FakeServer(continuation=Loading(Answer(TEXT))) as two,
    ):
        stream = ask(one, two)
        moved: list[bool] = []
        mover = threading.Thread(target=lambda: moved.append(stream.move()))
        has_gone_on = threading.Event()

        def read() -> None:
            for event in stream:
                if event.index == 2:
                    mover.start()
                if event.type == "meta" and event.meta and event.meta["server"] == two.url:
                    has_gone_on.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert has_gone_on.wait(5)
        assert two.wait_until(lambda: two.loading == 1)
        two.continuation = Answer(TEXT)  # if it is asked again
        while not stream._exchange._lock.locked():  # until the reader waits for what that server says
            assert reader.is_alive()
        hold_move.set()
        mover.join(5)
        two.finish_loading()
        reader.join(5)
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "moved"), (two.url, "ok")]
        assert (moved, two.cancelled, len(posted(one))) == ([True], 0, 1)


def test_one_move_moves_once(hold_move: threading.Event) -> None:
    """When the reader has left the server already, and reads nothing just now, `move` does not leave the next one."""
    paced = Answer(TEXT, delay=0.005)
    with FakeServer(paced, answer=TEXT) as one, FakeServer(continuation=paced) as two:
        stream = ask(one, two)
        mover = threading.Thread(target=stream.move)
        for event in stream:
            if event.index == 2:
                mover.start()
            if event.type == "meta" and event.meta and event.meta["kind"] == "resumed":
                hold_move.set()
                mover.join(5)
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "moved"), (two.url, "ok")]


def test_waiting_for_two_connections() -> None:
    """The first connection with something to read is named, or none when the time is up."""
    body = b'{"model":"fake:latest","messages":[{"role":"user","content":"x"}]}'
    with FakeServer(Hang()) as one, FakeServer(Loading(Answer(TEXT))) as two:
        connections = []
        for fake in (one, two):
            server = Server(fake.url)
            connection = Connection(server, due=perf_counter() + 5, opening=[])
            connection.send("POST", "/api/chat", server, body, due=perf_counter() + 5)
            connections.append(connection)
        assert wait_for_any(connections, 0.05) is None
        assert two.wait_until(lambda: two.loading == 1)
        two.finish_loading()
        assert wait_for_any(connections, 5) == 1
        connections[1].receive(5)
        assert connections[1].response.status == 200
        for connection in connections:
            connection.close()
