"""What one answer tells the board of its servers."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter, time

import pytest
from tests.colours import Chat

from aicortex import AllServersFailedError, Attempt
from aicortex._core.health import Health
from aicortex.board import BOARD, News, Seat
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import Condition, ModelEntry, Observation
from aicortex.registry.store import Registry
from aicortex.testing import Answer, FakeServer, Hang, Status
from aicortex.watch import Watch

URL = "http://desk:11434"
OTHER = "http://rack:11434"


def news(kind: str, label: str = URL, at: float = 0.0) -> News:
    return News(label, "m", kind, at)


def comes_true(claim: Callable[[], bool]) -> bool:
    """Wait for what the asynchronous front end has done aside of its loop: to write may take time."""
    end = perf_counter() + 5
    while not claim() and perf_counter() < end:
        os.sched_yield()
    return claim()


def test_conversations_go_where_they_are_known(chat: Chat) -> None:
    """A conversation's next question goes to the server that answered the last one, whoever is faster."""
    with FakeServer(answer="one") as one, FakeServer(answer="two") as two:
        asked = {"servers": [one.url, two.url], "model": "fake", "routing": "balanced", "session": "s"}
        stream = chat("1?", stream=True, **asked)
        first = stream.result.attempts[0].server
        for _ in range(5):
            attempt = chat("2?", stream=True, **asked).result.attempts[0]
            assert (attempt.server, attempt.why) == (first, "affinity: it has the conversation in its cache")


def test_attempts_say_why_their_server_was_chosen(chat: Chat) -> None:
    """The trace of decisions stands in the attempts: the strategy, and what became of the first choice."""
    with FakeServer(Status(500)) as one, FakeServer(answer="two") as two:
        stream = chat("Hi", model="fake", servers=[one.url, two.url], stream=True)
        assert [(attempt.kind, attempt.why) for attempt in stream.result.attempts] == [
            ("server_error", "order: number 1 of those that have the model"),
            ("ok", "order: number 2 of those that have the model"),
        ]
        again = chat("Hi", model="fake", servers=[one.url, two.url], stream=True)
        assert [attempt.server for attempt in again.result.attempts] == [two.url]


def test_a_busy_server_is_asked_later_and_is_not_broken(chat: Chat) -> None:
    """A full queue puts a server last for as long as it asked for, with that as the reason."""
    busy = Status(503, {"error": "busy"}, headers={"Retry-After": "30"})
    with FakeServer(busy, answer="one") as one, FakeServer(answer="two") as two:
        stream = chat("Hi", model="fake", servers=[one.url, two.url], stream=True)
        assert [attempt.kind for attempt in stream.result.attempts] == ["busy", "ok"]
        assert stream.result.attempts[0].retry_after == 30.0
        health = BOARD.healths()[one.url, "fake:latest"]
        assert (health.kind, health.failures) == ("busy", 1)
        assert 30 <= health.until - health.measured <= 37


def test_a_model_that_is_not_there_is_struck_from_the_registry(chat: Chat) -> None:
    """A 404 corrects what a refresh wrote, and says nothing against the server."""
    with FakeServer(Status(404, {"error": "model 'fake' not found"})) as one, FakeServer(answer="two") as two:
        with Registry() as registry:
            for server in (one, two):
                registry.add(entry_of(server.url))
            models = (ModelEntry("fake:latest"),)
            registry.apply([Observation(Condition(server.url, 1.0), models) for server in (one, two)])
            assert chat("Hi", model="fake", routing="order") == "two"
            assert comes_true(lambda: registry.snapshot().models == {two.url: models})
        assert BOARD.healths().get((one.url, "fake:latest"), Health()).failures == 0


def test_a_stream_that_answers_ends_the_look_at_its_server(chat: Chat) -> None:
    """Others may use a server that was broken as soon as it answers again, not only at the end of the answer."""
    with FakeServer(Answer("one two three"), answer="one") as one, FakeServer(answer="two") as two:
        BOARD.post(News(one.url, "fake", "refused", 1.0))
        stream = chat("Hi", model="fake", servers=[one.url, two.url], routing="balanced", stream=True)
        events = iter(stream)
        while next(events).type != "token":
            pass
        assert BOARD.healths()[one.url, ""].failures == 0
        assert stream.result.attempts[0].why == "a look whether it is well again after 'refused'"


def test_a_server_that_hangs_is_left_although_only_the_callers_time_was_up(chat: Chat) -> None:
    """The caller's own timeout before any token counts as a first token that was late."""
    with FakeServer(Hang(), answer="bad") as bad, FakeServer(answer="good") as good:
        servers = [bad.url, good.url]
        with pytest.raises(AllServersFailedError):
            chat("Hi", model="fake", servers=servers, timeout=1.0)
        assert BOARD.healths()[bad.url, "fake:latest"].failures == 1
        assert chat("Hi", model="fake", servers=servers, timeout=1.0) == "good"


def test_a_stream_that_was_too_long_for_its_caller_says_nothing_of_the_server() -> None:
    """Where text had come before, the caller's timeout is no late first token."""
    watch = Watch(BOARD, {URL: "m"}, None, None)
    watch.tell([Attempt(URL, "timeout", "stream", "", 9, False, 5.0)], None)
    assert BOARD.healths()[URL, "m:latest"].failures == 0


def test_a_reply_shows_that_a_server_is_there() -> None:
    """A server that refused connections is reached again by whatever it says, even that it is busy."""
    BOARD.post(news("refused", at=time() - 5))
    choices, claim = BOARD.choose([Seat(URL, "m"), Seat(OTHER, "m")], "balanced")
    assert choices[0].is_look
    watch = Watch(BOARD, {URL: "m"}, None, claim, look=URL)
    watch.tell([Attempt(URL, "busy", "first token", "", 0, True, 0.0, 503)], None)
    healths = BOARD.healths()
    assert (healths[URL, ""].failures, healths[URL, "m:latest"].failures) == (0, 1)


@pytest.mark.parametrize("how", ["cancelled", "dropped", "pardoned"])
def test_a_look_that_comes_to_nothing_is_over(how: str) -> None:
    """When its reader leaves, the next request may look."""
    seats = [Seat(URL, "m"), Seat(OTHER, "m")]
    BOARD.post(news("refused", at=time() - 5))
    _, claim = BOARD.choose(seats, "balanced")
    watch = Watch(BOARD, {URL: "m"}, None, claim, look=URL)
    assert not BOARD.rank(seats, "balanced")[0].is_look
    if how == "pardoned":
        watch.pardon([Attempt(URL, "closed", "first token", "", 0, True, 0.0)])
    else:
        watch.leave()
    assert BOARD.rank(seats, "balanced")[0].is_look


def test_leaving_a_stream_ends_its_look(chat: Chat) -> None:
    """`cancel()` before the first token frees the server to be looked at again."""
    with FakeServer(Hang()) as one, FakeServer(answer="two") as two:
        BOARD.post(News(one.url, "fake", "refused", time() - 5))
        stream = chat("Hi", model="fake", servers=[one.url, two.url], routing="balanced", stream=True)
        assert BOARD.healths()[one.url, ""].looked > 0
        stream.cancel()
        assert BOARD.healths()[one.url, ""].looked == 0


def test_a_hedge_says_nothing_of_the_server_that_is_looked_at(chat: Chat) -> None:
    """When the second server speaks first, the one that was looked at has still not answered."""
    with FakeServer(Hang()) as one, FakeServer(Answer("one two three four")) as two:
        BOARD.post(News(one.url, "fake", "server_error", time() - 5))
        servers = [one.url, two.url]
        stream = chat("Hi", model="fake", servers=servers, routing="balanced", hedge_after=0.1, stream=True)
        assert stream.result.server == two.url
        assert BOARD.healths()[one.url, "fake:latest"].failures == 1


def test_a_hedge_asks_nobody_who_rests(chat: Chat) -> None:
    """A server that is being drained gets no second request either."""
    with FakeServer(Answer("one", first_delay=0.5)) as one, FakeServer(answer="two") as two, Registry() as registry:
        registry.add(entry_of(one.url))
        registry.add(entry_of(two.url, is_draining=True))
        assert chat("Hi", model="fake", hedge_after=0.05) == "one"
        assert [request.path for request in two.requests if request.method == "POST"] == []


def test_a_late_reader_is_no_measure(chat: Chat) -> None:
    """What came while nobody was reading has no time to the first token."""
    with FakeServer(Answer("one two three")) as one, FakeServer(answer="two") as two:
        stream = chat("Hi", model="fake", servers=[one.url, two.url], stream=True)
        begun = perf_counter()
        while perf_counter() - begun < 0.2:  # the reader does something else
            one.wait_until(lambda: False, 0.2)
        assert stream.result.attempts[0].first_token is None
        assert BOARD.healths()[one.url, "fake:latest"].first_token == 0.0


def test_what_a_proxy_refuses_is_not_the_servers_fault(chat: Chat) -> None:
    """A 413 without Ollama's JSON is the caller's, as any 4xx."""
    with FakeServer(Status(413, "too large")) as one, FakeServer(answer="two") as two:
        assert chat("Hi", model="fake", servers=[one.url, two.url]) == "two"
        assert BOARD.healths().get((one.url, "fake:latest"), Health()).failures == 0


def test_a_404_is_not_met_twice(chat: Chat) -> None:
    """The process that met it knows it at once, although the registry's file is its own writing."""
    gone = Status(404, {"error": "model 'fake' not found"})
    with FakeServer(gone, gone, answer="one") as one, FakeServer(answer="two") as two, Registry() as registry:
        for server in (one, two):
            registry.add(entry_of(server.url))
        models = (ModelEntry("fake:latest"),)
        registry.apply([Observation(Condition(server.url, 1.0), models) for server in (one, two)])
        assert [chat("Hi", model="fake", routing="order") for _ in range(2)] == ["two", "two"]
        assert sum(request.method == "POST" for request in one.requests) == 1
