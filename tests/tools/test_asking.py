"""Many servers at once, by a time: what every step that asks stands on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from threading import Event
from time import perf_counter

import pytest

from aicortex import Server
from aicortex._core.failover import AttemptFailed
from aicortex.testing import FakeServer, Status
from aicortex.tools.asking import AT_ONCE, Progress, Tally, ask_all, ask_json

MANY = [Server(f"server-{number}") for number in range(3 * AT_ONCE)]


def test_everything_said_is_heard() -> None:
    """Each server may say several things, and what one says keeps its order."""

    def ask(server: Server, due: float) -> Iterator[tuple[Server, int]]:
        assert due > perf_counter()
        yield from ((server, number) for number in range(3))

    heard = list(ask_all(MANY, ask, seconds=10.0))
    assert all(server == said[0] for server, said in heard)
    for server in MANY:
        assert [number for _, (named, number) in heard if named == server] == [0, 1, 2]


def test_nobody_is_asked() -> None:
    """No server, no thread, no wait."""
    assert list(ask_all([], lambda server, due: [(server, due)], seconds=10.0)) == []


def test_what_is_said_too_late_is_not_heard() -> None:
    """Servers that do not come to an end do not keep the others, nor their caller, waiting."""
    over = Event()

    def ask(server: Server, _: float) -> Iterator[str]:
        yield "begun"
        if server == MANY[0]:
            over.wait(10)
            yield "late"

    began = perf_counter()
    heard = list(ask_all(MANY[:2], ask, seconds=0.3))
    assert perf_counter() - began < 3
    over.set()
    assert sorted(said for _, said in heard) == ["begun", "begun"]


def test_when_the_caller_leaves_nobody_else_is_asked() -> None:
    """Servers that still wait for their turn are left alone."""
    before, go_on, asked = set(threading.enumerate()), Event(), []

    def ask(server: Server, due: float) -> Iterator[float]:
        asked.append(server)
        yield due
        go_on.wait(10)

    heard = ask_all(MANY, ask, seconds=10.0)
    next(heard)
    heard.close()  # type: ignore[attr-defined]
    go_on.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert len(asked) <= AT_ONCE


def test_what_goes_wrong_is_raised() -> None:
    """An error nobody foresaw is not lost in a thread."""

    def ask(_: Server, due: float) -> Iterator[float]:
        yield due
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(ask_all(MANY[:1], ask, seconds=10.0))


def test_a_tally_counts() -> None:
    """What is done of all, and what failed of that, under the server's URL without secrets."""
    told: list[Progress] = []
    tally = Tally("check", 2, told.append)
    tally.count(Server("http://me:secret-12@desk:1"), failed=False)
    tally.count(Server("lab"), failed=True)
    assert told == [
        Progress("check", "http://desk:1", 1, 2, 0),
        Progress("check", "http://lab:11434", 2, 2, 1),
    ]
    Tally("check", 1, None).count(Server("lab"), failed=False)


def test_a_question_and_its_answer() -> None:
    """A GET without a body, a POST with one; what is not of the shape, or an error, is a failure."""
    with FakeServer(paths={"/a": Status(200, {"b": "c"}), "/d": Status(404, {"error": "no"})}) as fake:
        server, due = Server(fake.url), perf_counter() + 5
        assert ask_json(server, "/a", dict[str, str], due=due) == {"b": "c"}
        assert ask_json(server, "/a", dict[str, str], body=b"{}", due=due) == {"b": "c"}
        assert [(request.method, request.body) for request in fake.requests] == [("GET", b""), ("POST", b"{}")]
        with pytest.raises(AttemptFailed, match="/a is not what Ollama answers"):
            ask_json(server, "/a", list[str], due=due)
        with pytest.raises(AttemptFailed, match="HTTP 404: no"):
            ask_json(server, "/d", dict[str, str], due=due)
