"""Which servers are alive, asked of real sockets."""

from __future__ import annotations

from time import perf_counter, time

import pytest

from aicortex import Server, embedded
from aicortex.testing import FakeServer, Garbage, Hang, Reply, Status
from aicortex.tools import Progress, check
from aicortex.tools.asking import AT_ONCE
from tools.misbehaving import InTurn, Late, Trickle


def test_a_server_that_answers() -> None:
    """Its version, how long a request takes over an open connection, and when that was."""
    with FakeServer(version="9.8.7") as fake:
        began = time()
        ((server, checked),) = check(fake.url).items()
        assert (server, checked.version, checked.failure) == (Server(fake.url), "9.8.7", None)
        assert 0 < checked.round_trip_ms < 1000
        assert began <= checked.at <= time()
        assert [request.path for request in fake.requests] == ["/api/version"] * 2
        assert fake.connections == 1


def test_the_time_to_connect_is_not_the_round_trip() -> None:
    """A first answer that takes long, as a connection over a long way does, is not what later ones take."""
    version = Status(200, {"version": "1.2.3"})
    with FakeServer(paths={"/api/version": InTurn([Late(version, 1.0), version])}) as fake:
        (checked,) = check(fake.url).values()
    assert checked.failure is None
    assert 0 < checked.round_trip_ms < 1000


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Status(401, {"error": "no"}), "denied", "HTTP 401: no"),
        (Status(403, ""), "denied", "HTTP 403"),
        (Status(404, "404 page not found"), "bad_response", "HTTP 404: 404 page not found"),
        (Status(503), "busy", "HTTP 503: server busy"),
        (Status.html(200), "bad_response", "an HTML page, so this is no Ollama server"),
        (Status(200, {"name": "else"}), "bad_response", "/api/version is not what Ollama answers"),
        (Status(200, [1]), "bad_response", "/api/version is not what Ollama answers"),
        (Garbage(), "bad_response", "not valid HTTP"),
        (Hang(), "stalled", "did not answer"),
        (Trickle(0.01), "stalled", "did not answer"),
    ],
)
def test_servers_that_do_not_answer_say_why(reply: Reply, kind: str, words: str) -> None:
    """Each failure has a kind and a reason in words."""
    with FakeServer(everything=reply) as fake:
        (checked,) = check(fake.url, deadline=0.5).values()
    assert checked.failure is not None
    assert checked.failure.kind == kind
    assert words in checked.failure.message


def test_all_are_asked_at_once() -> None:
    """Thirty silent servers take no longer than one, and the others are known; progress is told of each."""
    told: list[Progress] = []
    silent = [FakeServer(everything=Hang()) for _ in range(30)]
    with FakeServer() as good:
        for fake in silent:
            fake.start()
        began = perf_counter()
        found = check([*(fake.url for fake in silent), good.url], deadline=1.0, tell=told.append)
        assert perf_counter() - began < 3
        for fake in silent:
            fake.stop()
    assert [server.label for server in found] == [*(fake.url for fake in silent), good.url]
    assert [checked.failure is None for checked in found.values()] == [*[False] * 30, True]
    assert told[0] == Progress("check", good.url, 1, 31, 0)
    assert (told[-1].done, told[-1].total, told[-1].failed) == (31, 31, 30)


def test_more_servers_than_threads() -> None:
    """Those that wait for their turn get it, although all before them are silent."""
    with FakeServer(everything=Hang()) as silent, FakeServer() as good:
        many = [Server(silent.url, headers={"X-Number": str(number)}) for number in range(AT_ONCE)]
        found = check([*many, good.url], deadline=3.0)
    assert [checked.failure is None for checked in found.values()] == [*[False] * AT_ONCE, True]


@pytest.mark.usefixtures("hanging_resolver")
def test_a_name_that_is_not_resolved() -> None:
    """The system's resolver has no deadline; the check has."""
    with FakeServer() as good:
        found = check(["box.example", good.url], deadline=0.5)
    assert [checked.failure and checked.failure.kind for checked in found.values()] == ["connect_timeout", None]


def test_a_secret_that_a_server_echoes_is_not_shown() -> None:
    """Neither an error nor a version carries a key."""
    echo, key = Status(401, {"error": "bad key key-1234"}), "key-1234"
    with (
        FakeServer(everything=echo) as one,
        FakeServer(paths={"/api/version": Status(200, {"version": "for key-1234"})}) as two,
    ):
        found = check([Server(one.url, api_key=key), Server(two.url, api_key=key)])
    assert "bad key ***" in repr(found)
    assert key not in repr(found)


def test_the_embedded_engine_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is alive if it is installed."""
    before = embedded._running
    (checked,) = check("embedded").values()
    assert (checked.failure, checked.version) == (None, "")
    monkeypatch.setattr("aicortex.embedded.is_available", lambda: False)
    (checked,) = check("embedded").values()
    assert checked.failure is not None
    assert "not installed" in checked.failure.message
    assert embedded._running is before


@pytest.mark.parametrize("deadline", [0, -1, float("inf"), float("nan"), True, "5"])
def test_deadlines_are_seconds(deadline: float) -> None:
    """What is no time raises, and so does what is no address."""
    with pytest.raises(ValueError, match="deadline must be a number of seconds"):
        check("desk", deadline=deadline)
    with pytest.raises(ValueError, match="no server address"):
        check("ftp://desk")
