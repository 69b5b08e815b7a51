"""What a process knows of its servers, and what it shares."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter, time

import pytest

from aicortex import AllServersFailedError, Attempt, chat
from aicortex._core.health import Health
from aicortex.board import BOARD, Board, News, Seat, Watch, draw, nearness
from aicortex.in_flight import count
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import Condition, Measurement, ModelEntry, Observation
from aicortex.registry.paths import data_path
from aicortex.registry.store import Registry
from aicortex.testing import Answer, FakeServer, Hang, Status

URL = "http://desk:11434"
OTHER = "http://rack:11434"


@pytest.fixture
def registry() -> Registry:
    """A registry with two servers."""
    store = Registry()
    store.add(entry_of(URL, name="desk"))
    store.add(entry_of(OTHER, name="rack"))
    return store


def news(kind: str, label: str = URL, at: float = 0.0, **more: float) -> News:
    return News(label, "m", kind, at, **more)


def test_chance_is_between_0_and_1() -> None:
    """Draws are numbers from 0 to 1, and differ."""
    drawn = {draw() for _ in range(100)}
    assert len(drawn) == 100
    assert all(0 <= number < 1 for number in drawn)


@pytest.mark.parametrize(
    ("place", "here", "parts"),
    [("eu/office", "eu/office", 2), ("eu/office/2", "eu/office", 2), ("EU/x", "eu/y", 1), ("us", "eu", 0), ("", "", 0)],
)
def test_nearness(place: str, here: str, parts: int) -> None:
    """Places are as near as the parts that they have in common from the left."""
    assert nearness(place, here) == parts


def test_a_failure_to_connect_is_the_servers_and_another_one_the_models() -> None:
    """A refused connection counts for all models, an error of one model for that one."""
    board = Board()
    board.post(news("refused"))
    board.post(news("server_error", OTHER))
    failures = {key: health.failures for key, health in board.healths().items()}
    assert failures == {(URL, ""): 1, (OTHER, "m:latest"): 1}


def test_an_answer_ends_both_failures() -> None:
    """What answers is well again, the server and the model on it."""
    board = Board()
    for kind in ("refused", "server_error", "ok"):
        board.post(news(kind, first_token=0.5, pace=20.0))
    healths = board.healths()
    assert [health.failures for health in healths.values()] == [0, 0]
    assert healths[URL, "m:latest"].first_token == 0.5


def test_the_first_choice_counts_at_once() -> None:
    """A server that was chosen is busy from then on, so that the next thread takes another one."""
    seats = [Seat(URL, "m"), Seat(OTHER, "m")]
    choices, claim = BOARD.choose(seats, "fastest")
    assert count(seats[choices[0].server].label) == 1
    others, _ = BOARD.choose(seats, "fastest")
    assert others[0].server != choices[0].server
    del claim
    assert count(seats[choices[0].server].label) == 0


def test_ranking_changes_nothing() -> None:
    """Who only asks which server is best takes no turn and claims nothing."""
    seats = [Seat(URL, "m"), Seat(OTHER, "m")]
    assert len({BOARD.rank(seats, "round_robin")[0].server for _ in range(3)}) == 1
    assert count(URL) == 0


def test_turns_are_taken() -> None:
    """Each choice moves `round_robin` on."""
    seats = [Seat(URL, "m"), Seat(OTHER, "m")]
    turns = [BOARD.choose(seats, "round_robin")[0][0].server for _ in range(4)]
    assert turns in ([0, 1, 0, 1], [1, 0, 1, 0])  # beginning anywhere, so that many processes do not go in step


def test_each_model_has_turns_of_its_own() -> None:
    """Two models asked in turn go over all servers, both of them."""
    found: dict[str, set[int]] = {"m": set(), "n": set()}
    for model in "mnmn":
        found[model].add(BOARD.choose([Seat(URL, model), Seat(OTHER, model)], "round_robin")[0][0].server)
    assert found == {"m": {0, 1}, "n": {0, 1}}


def test_without_a_registry_none_is_made() -> None:
    """What servers do stays in the process until there is a registry."""
    BOARD.post(news("refused"))
    BOARD.share()
    assert not os.path.exists(data_path())


def test_what_one_process_learns_another_one_knows(registry: Registry) -> None:
    """Healths go through the registry's file: a second board, as of another process, reads them at once."""
    BOARD.post(news("refused"))
    BOARD.share()
    other = Board()
    assert other.healths()[URL, ""].failures == 1
    BOARD.post(news("ok"))
    BOARD.share()
    assert other.healths()[URL, ""].failures == 0
    other.close()
    registry.close()


def test_what_can_wait_is_written_together(registry: Registry) -> None:
    """An answer that changes no breaker is written a second later, or at the end of the process."""
    for _ in range(3):
        BOARD.post(news("ok"))
        BOARD.share()
    assert registry.read_health()[URL, ""].requests == 1
    BOARD.close()
    assert registry.read_health()[URL, ""].requests == 3
    registry.close()


def test_a_look_is_told_to_the_others_before_it_is_taken(registry: Registry) -> None:
    """While one process looks how a server is, another one's request does not."""
    seats = [Seat(URL, "m"), Seat(OTHER, "m")]
    BOARD.post(news("refused", at=1.0))
    choices, _ = BOARD.choose(seats, "balanced")
    assert (choices[0].server, choices[0].is_look) == (0, True)
    other = Board()
    assert [choice.server for choice in other.choose(seats, "balanced")[0]] == [1, 0]
    other.close()
    registry.close()


def test_a_measurement_counts_until_streams_know_better(registry: Registry) -> None:
    """What a refresh measured makes a server first choice; a newer stream's first token takes its place."""
    at = 2e9  # later than anything else here
    registry.apply(
        Observation(Condition(url, at), (ModelEntry("m:latest"),), (Measurement(url, "m:latest", at, first, 50.0),))
        for url, first in ((URL, 900.0), (OTHER, 100.0))
    )
    seats = [Seat(URL, "m"), Seat(OTHER, "m")]
    assert BOARD.rank(seats, "fastest")[0].server == 1
    BOARD.post(news("ok", OTHER, at=at + 1, first_token=60.0))
    assert BOARD.rank(seats, "fastest")[0].server == 0
    registry.close()


def test_conversations_go_where_they_are_known() -> None:
    """A conversation's next question goes to the server that answered the last one, whoever is faster."""
    with FakeServer(answer="one") as one, FakeServer(answer="two") as two:
        asked = {"servers": [one.url, two.url], "model": "fake", "routing": "balanced", "session": "s"}
        stream = chat("1?", stream=True, **asked)  # type: ignore[call-overload]
        first = stream.result.attempts[0].server
        for _ in range(5):
            attempt = chat("2?", stream=True, **asked).result.attempts[0]  # type: ignore[call-overload]
            assert (attempt.server, attempt.why) == (first, "affinity: it has the conversation in its cache")


def test_attempts_say_why_their_server_was_chosen() -> None:
    """The trace of decisions stands in the attempts: the strategy, and what became of the first choice."""
    with FakeServer(Status(500)) as one, FakeServer(answer="two") as two:
        stream = chat("Hi", model="fake", servers=[one.url, two.url], stream=True)
        assert [(attempt.kind, attempt.why) for attempt in stream.result.attempts] == [
            ("server_error", "order: number 1 of those that have the model"),
            ("ok", "order: number 2 of those that have the model"),
        ]
        again = chat("Hi", model="fake", servers=[one.url, two.url], stream=True)
        assert [attempt.server for attempt in again.result.attempts] == [two.url]


def test_a_busy_server_is_asked_later_and_is_not_broken() -> None:
    """A full queue puts a server last for as long as it asked for, with that as the reason."""
    busy = Status(503, {"error": "busy"}, headers={"Retry-After": "30"})
    with FakeServer(busy, answer="one") as one, FakeServer(answer="two") as two:
        stream = chat("Hi", model="fake", servers=[one.url, two.url], stream=True)
        assert [attempt.kind for attempt in stream.result.attempts] == ["busy", "ok"]
        assert stream.result.attempts[0].retry_after == 30.0
        health = BOARD.healths()[one.url, "fake:latest"]
        assert (health.kind, health.failures) == ("busy", 1)
        assert 30 <= health.until - health.measured <= 37


def test_a_model_that_is_not_there_is_struck_from_the_registry() -> None:
    """A 404 corrects what a refresh wrote, and says nothing against the server."""
    with FakeServer(Status(404, {"error": "model 'fake' not found"})) as one, FakeServer(answer="two") as two:
        with Registry() as registry:
            for server in (one, two):
                registry.add(entry_of(server.url))
            models = (ModelEntry("fake:latest"),)
            registry.apply([Observation(Condition(server.url, 1.0), models) for server in (one, two)])
            assert chat("Hi", model="fake", routing="order") == "two"
            assert registry.snapshot().models == {two.url: models}
        assert BOARD.healths().get((one.url, "fake:latest"), Health()).failures == 0


def test_a_stream_that_answers_ends_the_look_at_its_server() -> None:
    """Others may use a server that was broken as soon as it answers again, not only at the end of the answer."""
    with FakeServer(Answer("one two three"), answer="one") as one, FakeServer(answer="two") as two:
        BOARD.post(News(one.url, "fake", "refused", 1.0))
        stream = chat("Hi", model="fake", servers=[one.url, two.url], routing="balanced", stream=True)
        events = iter(stream)
        while next(events).type != "token":
            pass
        assert BOARD.healths()[one.url, ""].failures == 0
        assert stream.result.attempts[0].why == "a look whether it is well again after 'refused'"


def test_a_damaged_registry_does_not_stop_a_stream_that_does_not_need_it() -> None:
    """Servers that the call names are used although the registry cannot be read; a warning says so once."""
    Path(os.environ["AICORTEX_DATA_DIR"]).mkdir()
    Path(data_path()).write_bytes(b"no database at all" * 100)
    with (
        FakeServer(answer="one") as one,
        FakeServer(answer="two") as two,
        pytest.warns(RuntimeWarning, match="registry is not used"),
    ):
        assert chat("Hi", model="fake", servers=[one.url, two.url]) == "one"


KILLED = """
import os, signal
from aicortex import AllServersFailedError, Attempt, chat
stream = chat("Hi", model="fake", stream=True)
stream.text()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_has_told_what_broke(registry: Registry) -> None:
    """A breaker that opened is in the registry before the stream's reader goes on, whatever becomes of the process."""
    with FakeServer(Status(500), answer="one") as one, FakeServer(answer="two") as two:
        for entry in registry.snapshot().servers:
            registry.remove(entry.url)
        for server in (one, two):
            registry.add(entry_of(server.url))
        run = subprocess.run(
            [sys.executable, "-c", KILLED], env={**os.environ, "AICORTEX_ROUTING": "order"}, timeout=60, check=False
        )
        assert run.returncode == -9
        assert registry.read_health()[one.url, "fake:latest"].failures == 1
    registry.close()


def test_a_server_that_hangs_is_left_although_only_the_callers_time_was_up() -> None:
    """The caller's own timeout before any token counts as a first token that was late."""
    with FakeServer(Hang(), answer="bad") as bad, FakeServer(answer="good") as good:
        servers = [bad.url, good.url]
        with pytest.raises(AllServersFailedError):
            chat("Hi", model="fake", servers=servers, timeout=1.0)
        assert BOARD.healths()[bad.url, "fake:latest"].failures == 1
        assert chat("Hi", model="fake", servers=servers, timeout=1.0) == "good"


def test_what_a_process_has_forgotten_to_write_does_not_undo_what_others_found(registry: Registry) -> None:
    """Of two rows the newer one stays, whoever writes last."""
    now = time()
    for at in (now - 2, now - 1):
        BOARD.post(news("ok", at=at))
        BOARD.share()  # the second one can wait
    registry.write_health({(URL, ""): Health(failures=3, kind="refused", until=now + 60, changed=now)})
    BOARD.close()
    assert registry.read_health()[URL, ""].failures == 3
    assert BOARD.healths()[URL, ""].failures == 3
    registry.close()


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


def test_leaving_a_stream_ends_its_look() -> None:
    """`cancel()` before the first token frees the server to be looked at again."""
    with FakeServer(Hang()) as one, FakeServer(answer="two") as two:
        BOARD.post(News(one.url, "fake", "refused", time() - 5))
        stream = chat("Hi", model="fake", servers=[one.url, two.url], routing="balanced", stream=True)
        assert BOARD.healths()[one.url, ""].looked > 0
        stream.cancel()
        assert BOARD.healths()[one.url, ""].looked == 0


def test_a_hedge_says_nothing_of_the_server_that_is_looked_at() -> None:
    """When the second server speaks first, the one that was looked at has still not answered."""
    with FakeServer(Hang()) as one, FakeServer(Answer("one two three four")) as two:
        BOARD.post(News(one.url, "fake", "server_error", time() - 5))
        servers = [one.url, two.url]
        stream = chat("Hi", model="fake", servers=servers, routing="balanced", hedge_after=0.1, stream=True)
        assert stream.result.server == two.url
        assert BOARD.healths()[one.url, "fake:latest"].failures == 1


def test_a_hedge_asks_nobody_who_rests() -> None:
    """A server that is being drained gets no second request either."""
    with FakeServer(Answer("one", first_delay=0.5)) as one, FakeServer(answer="two") as two, Registry() as registry:
        registry.add(entry_of(one.url))
        registry.add(entry_of(two.url, is_draining=True))
        assert chat("Hi", model="fake", hedge_after=0.05) == "one"
        assert [request.path for request in two.requests if request.method == "POST"] == []


def test_a_late_reader_is_no_measure() -> None:
    """What came while nobody was reading has no time to the first token."""
    with FakeServer(Answer("one two three")) as one, FakeServer(answer="two") as two:
        stream = chat("Hi", model="fake", servers=[one.url, two.url], stream=True)
        begun = perf_counter()
        while perf_counter() - begun < 0.2:  # the reader does something else
            one.wait_until(lambda: False, 0.2)
        assert stream.result.attempts[0].first_token is None
        assert BOARD.healths()[one.url, "fake:latest"].first_token == 0.0


def test_what_a_proxy_refuses_is_not_the_servers_fault() -> None:
    """A 413 without Ollama's JSON is the caller's, as any 4xx."""
    with FakeServer(Status(413, "too large")) as one, FakeServer(answer="two") as two:
        assert chat("Hi", model="fake", servers=[one.url, two.url]) == "two"
        assert BOARD.healths().get((one.url, "fake:latest"), Health()).failures == 0


def test_a_signal_handler_may_ask_while_the_board_is_held() -> None:
    """It does with what is known, and does not wait for the thread that it has interrupted."""
    with FakeServer(answer="one") as one, FakeServer(answer="two") as two, BOARD._entered():
        assert chat("Hi", model="fake", servers=[one.url, two.url]) == "one"


def test_a_404_is_not_met_twice() -> None:
    """The process that met it knows it at once, although the registry's file is its own writing."""
    gone = Status(404, {"error": "model 'fake' not found"})
    with FakeServer(gone, gone, answer="one") as one, FakeServer(answer="two") as two, Registry() as registry:
        for server in (one, two):
            registry.add(entry_of(server.url))
        models = (ModelEntry("fake:latest"),)
        registry.apply([Observation(Condition(server.url, 1.0), models) for server in (one, two)])
        assert [chat("Hi", model="fake", routing="order") for _ in range(2)] == ["two", "two"]
        assert sum(request.method == "POST" for request in one.requests) == 1
