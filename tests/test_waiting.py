"""Servers that are late, load a model or are slow, in both colours: several connections for one answer."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

import pytest
import trustme
from tests.colours import Ask, Chat
from tests.peers import deaf_port

from aicortex import AllServersFailedError, Server, Stream, StreamCancelledError, links
from aicortex._core.hedging import Budget
from aicortex.in_flight import count
from aicortex.testing import Answer, FakeServer, Hang, InBandError, Loading, Request, Reset, Status

TEXT = "Tides rise because the moon pulls the water on its side of the Earth more than the Earth itself."
LATE = Answer(TEXT, first_delay=0.3)
SOON = 0.05  # seconds until the second server is asked


@pytest.fixture
def ask(chat: Chat) -> Ask:
    """Ask the given servers, in this order."""

    def asking(*servers: FakeServer, **arguments: Any) -> Stream:
        addresses = [Server(server.url, verify=False) for server in servers]
        return chat("Why?", stream=True, model="fake:latest", servers=addresses, **arguments)

    return asking


def posted(server: FakeServer) -> list[Request]:
    return [request for request in server.requests if request.method == "POST"]


def under_way(server: FakeServer) -> int:
    """Return how many requests this process has under way at a server."""
    return count(server.url)


def metas(stream: Stream) -> list[dict[str, Any]]:
    return [event.meta for event in stream.events if event.type == "meta" and event.meta]


def kinds(stream: Stream) -> list[tuple[str, str]]:
    return [(attempt.server, attempt.kind) for attempt in stream.result.attempts]


@contextmanager
def reading(stream: Stream) -> Iterator[list[Exception]]:
    """Read a stream to its end in another thread; what it raises is in the list once the block is left."""
    raised: list[Exception] = []

    def read() -> None:
        try:
            stream.text()
        except RuntimeError as error:
            raised.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    yield raised
    reader.join(10)
    assert not reader.is_alive()


def finish_loading(server: FakeServer) -> None:
    assert server.wait_until(lambda: server.loading == 1)
    server.finish_loading()


def finish_at_the_first_error(stream: Stream, server: FakeServer) -> None:
    """Read a stream to its end; the load of a server is over when the first error is told."""
    is_loading = True
    for event in stream:
        if event.type == "error" and is_loading:
            finish_loading(server)
            is_loading = False


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_second_server_is_faster(ask: Ask, scheme: str) -> None:
    """When the first token is late, an idle server is asked too; it answers, and the first one is let go."""
    tls = None
    if scheme == "https":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("localhost", "127.0.0.1").configure_cert(tls)
    with FakeServer(Hang(), tls=tls) as one, FakeServer(answer=TEXT, tls=tls) as two:
        stream = ask(one, two, hedge_after=SOON)
        assert stream.text() == TEXT
        assert one.wait_for_disconnect(1)
        assert kinds(stream) == [(one.url, "outpaced"), (two.url, "ok")]
    connected = [(meta["server"], meta.get("hedge", False)) for meta in metas(stream) if meta["kind"] == "connected"]
    assert connected == [(one.url, False), (two.url, True)]
    assert "error" not in [event.type for event in stream.events]
    assert stream.result.server == two.url


def test_the_first_server_is_faster_after_all(ask: Ask) -> None:
    """The first server speaks while the second one is silent: it answers, and the second one is let go."""
    with FakeServer(Loading(Answer(TEXT))) as one, FakeServer(Hang()) as two:
        stream = ask(one, two, hedge_after=SOON)
        for event in stream:
            if "hedge" in (event.meta or {}):
                assert two.wait_until(lambda: two.active == 1)
                finish_loading(one)
        assert stream.text() == TEXT
        assert len(posted(two)) == 1
        assert two.wait_for_disconnect(1)
        assert kinds(stream) == [(one.url, "ok")]


def test_who_reads_late_is_told_what_the_first_server_said(ask: Ask) -> None:
    """It has spoken while nobody read: the second server is not asked, and nothing of the budget is spent."""
    with FakeServer(answer=TEXT) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two, hedge_after=0)
        assert one.wait_until(lambda: len(posted(one)) == 1 and one.active == 0)
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "ok")]
        assert posted(two) == []
    assert links.BUDGET.left >= Budget().left


def test_servers_that_cannot_be_reached_hold_nobody_up(chat: Chat, ask: Ask) -> None:
    """One of them is tried beside the first server, for a quarter of a second; the others are not."""
    with ExitStack() as stack:
        one = stack.enter_context(FakeServer(Answer(TEXT), Loading(Answer(TEXT))))
        holes = [f"http://127.0.0.1:{stack.enter_context(deaf_port())}" for _ in range(3)]
        assert ask(one).text() == TEXT  # so that nobody waits for the others to say which models they have
        servers = [one.url, *holes]
        stream = chat("Why?", stream=True, model="fake:latest", servers=servers, hedge_after=SOON, connect_timeout=5)
        began = perf_counter()
        for event in stream:
            if event.type == "error":
                finish_loading(one)
        assert stream.text() == TEXT
        assert perf_counter() - began < 2.0
        assert kinds(stream) == [(holes[0], "connect_timeout"), (one.url, "ok")]


def test_the_second_server_fails_and_the_first_one_goes_on(ask: Ask) -> None:
    """A second server that cannot help costs an error event and nothing else."""
    with FakeServer(Loading(Answer(TEXT))) as one, FakeServer(Status(500)) as two:
        stream = ask(one, two, hedge_after=SOON)
        for event in stream:
            if event.type == "error":
                finish_loading(one)
        assert stream.text() == TEXT
        assert kinds(stream) == [(two.url, "server_error"), (one.url, "ok")]
        assert len(posted(two)) == 1


def test_the_first_server_fails_and_the_second_one_goes_on(ask: Ask) -> None:
    """The request at the second server is not made again when the first one fails meanwhile."""
    with FakeServer(Loading(InBandError())) as one, FakeServer(Loading(Answer(TEXT))) as two:
        stream = ask(one, two, hedge_after=SOON)
        for event in stream:
            if "hedge" in (event.meta or {}):
                finish_loading(one)
            elif event.type == "error":
                finish_loading(two)
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "error"), (two.url, "ok")]
        assert len(posted(two)) == 1


def test_both_fail(ask: Ask) -> None:
    """The error names both servers, and nobody is asked twice."""
    with FakeServer(Loading(InBandError())) as one, FakeServer(Status(500)) as two:
        stream = ask(one, two, hedge_after=SOON)
        with pytest.raises(AllServersFailedError) as caught:
            finish_at_the_first_error(stream, one)
        assert [len(posted(server)) for server in (one, two)] == [1, 1]
    found = [(attempt.server, attempt.kind) for attempt in caught.value.attempts]
    assert found == [(two.url, "server_error"), (one.url, "error")]


def test_both_fail_and_a_third_one_answers(ask: Ask) -> None:
    """Behind two that were asked together comes the next server."""
    with (
        FakeServer(Loading(InBandError())) as one,
        FakeServer(Status(500)) as two,
        FakeServer(answer=TEXT) as three,
    ):
        three_is_busy = ask(three)  # so that it is not asked as the next one beside the first
        stream = ask(one, two, three, hedge_after=SOON)
        finish_at_the_first_error(stream, one)
        assert kinds(stream) == [(two.url, "server_error"), (one.url, "error"), (three.url, "ok")]
        assert three_is_busy.text() == stream.text() == TEXT


def test_a_server_that_is_late_is_no_candidate_for_itself(ask: Ask) -> None:
    """With one server there is nobody else to ask."""
    with FakeServer(LATE) as server:
        assert ask(server, hedge_after=SOON).text() == TEXT
        assert len(posted(server)) == 1


def test_a_busy_server_is_not_asked_too(ask: Ask) -> None:
    """A server on which this process has another answer under way would only be slowed down."""
    with FakeServer(LATE) as one, FakeServer(Hang(), answer=TEXT) as two, ask(two) as other:
        assert two.wait_until(lambda: two.active == 1)
        stream = ask(one, two, hedge_after=SOON)
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "ok")]
        assert len(posted(two)) == 1
        assert not other.done


def test_few_requests_are_made_twice(ask: Ask) -> None:
    """The budget of a process that just started allows three extra requests, not four."""
    with FakeServer(Hang(), Hang(), Hang(), LATE) as one, FakeServer(answer=TEXT) as two:
        answered = []
        for _ in range(4):
            stream = ask(one, two, hedge_after=SOON)
            assert stream.text() == TEXT
            answered.append(stream.result.server)
        assert answered == [two.url, two.url, two.url, one.url]
        assert len(posted(two)) == 3


def test_the_faster_server_breaks_and_the_slower_one_goes_on(ask: Ask) -> None:
    """Whoever was outpaced is not out of the race: it goes on with the answer when the other one breaks."""
    breaking = Answer(TEXT).then(Reset(), after_tokens=5)
    with FakeServer(Hang(), answer=TEXT) as one, FakeServer(breaking) as two:
        stream = ask(one, two, hedge_after=SOON)
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "outpaced"), (two.url, "reset"), (one.url, "ok")]
        assert one.wait_for_disconnect(1)


def test_cancel_while_two_are_asked(ask: Ask) -> None:
    """C11: both servers are free at once, and the reader is woken."""
    with FakeServer(Hang()) as one, FakeServer(Hang()) as two:
        stream = ask(one, two, hedge_after=SOON)
        with reading(stream) as raised:
            assert two.wait_until(lambda: two.active == 1)
            stream.cancel()
            assert one.wait_for_disconnect(1)
            assert two.wait_for_disconnect(1)
        assert [type(error) for error in raised] == [StreamCancelledError]
        assert under_way(one) == under_way(two) == 0


def test_move_while_two_are_asked(ask: Ask) -> None:
    """The reader is woken, and the server that was moved away from is left."""
    with FakeServer(Hang()) as one, FakeServer(Hang(), answer=TEXT) as two:
        stream = ask(one, two, hedge_after=SOON)
        with reading(stream) as raised:
            assert two.wait_until(lambda: two.active == 1)
            assert stream.move()
            assert one.wait_for_disconnect(1)
        assert raised == []
        assert stream.text() == TEXT
        assert stream.result.server == two.url


def test_requests_under_way_are_counted(ask: Ask) -> None:
    """A server counts as busy from the request to the end of the answer, however it ends."""
    with FakeServer(Answer(TEXT), Answer(TEXT), Hang()) as server:
        first, second = ask(server), ask(server)
        assert server.wait_until(lambda: len(posted(server)) == 2)
        assert under_way(server) == 2
        first.text()
        assert under_way(server) == 1
        second.cancel()
        assert under_way(server) == 0
        third = ask(server)
        assert server.wait_until(lambda: len(posted(server)) == 3)
        assert under_way(server) == 1
        del third
        assert server.wait_until(lambda: server.active == 0, 1)
        assert under_way(server) == 0


def test_a_broken_answer_is_under_way_where_it_goes_on(ask: Ask) -> None:
    """The server that broke is idle again, and the one that goes on is busy."""
    goes_on = Answer(TEXT).then(Hang(), after_tokens=10)
    with FakeServer(Answer(TEXT).then(Reset(), after_tokens=3)) as one, FakeServer(continuation=goes_on) as two:
        stream = ask(one, two)
        words = stream.tokens()
        for _ in range(6):
            next(words)
        assert (under_way(one), under_way(two)) == (0, 1)
        stream.cancel()
        assert under_way(two) == 0
        assert two.wait_for_disconnect(1)


def test_a_model_that_is_being_loaded_is_waited_for(ask: Ask) -> None:
    """A first token that is late because the model is being loaded is no reason to leave: that aborts the load."""
    with FakeServer(Loading(Answer(TEXT))) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two, first_token_timeout=0.3)
        for event in stream:
            if event.type == "meta" and event.meta and event.meta["kind"] == "loading":
                assert event.meta["server"] == one.url
                one.finish_loading()
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "ok")]
        assert one.aborted_loads == 0
        assert posted(two) == []
    assert [meta["kind"] for meta in metas(stream)] == ["connected", "loading", "stats"]


def test_a_load_that_ends_while_it_is_looked_at(ask: Ask) -> None:
    """The list of loaded models comes late: the load has just ended, and the first token is waited for once more."""
    with FakeServer(Loading(Answer(TEXT, first_delay=0.1))) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two, first_token_timeout=0.3)
        with reading(stream) as raised:
            assert one.wait_until(lambda: "/api/ps" in [request.path for request in one.requests])
            threading.Event().wait(0.5)  # longer than a server takes that loads nothing, on purpose
            one.finish_loading()
        assert raised == []
        assert kinds(stream) == [(one.url, "ok")]
        assert one.aborted_loads == 0
        assert posted(two) == []


def test_a_server_that_hangs_and_loads_nothing_is_left(ask: Ask) -> None:
    """It lists its loaded models at once, so that its silence is no load."""
    with FakeServer(Hang()) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two, first_token_timeout=0.3)
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "first_token_timeout"), (two.url, "ok")]
        assert one.wait_for_disconnect(1)
        assert "/api/ps" in [request.path for request in one.requests]
    assert "loading" not in [meta["kind"] for meta in metas(stream)]


def test_a_server_that_says_nothing_at_all_is_left(ask: Ask) -> None:
    """One that does not even tell its version is not loading but dead."""
    with FakeServer(Hang()) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two, first_token_timeout=0.3)
        one.everything = Hang()
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "first_token_timeout"), (two.url, "ok")]


def test_cancel_while_a_load_is_looked_at(ask: Ask) -> None:
    """C11: the answer and both questions about the load are let go of."""
    with FakeServer(Loading(Answer(TEXT))) as server:
        stream = ask(server, first_token_timeout=0.3)
        with reading(stream) as raised:
            assert server.wait_until(lambda: "/api/ps" in [request.path for request in server.requests])
            stream.cancel()
            assert server.wait_until(lambda: server.aborted_loads == 1 and server.active == 0, 1)
        assert [type(error) for error in raised] == [StreamCancelledError]


def test_a_slow_stream_moves(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below min_tokens_per_second an answer goes on at another server, without a gap."""
    monkeypatch.setattr("aicortex._core.attempts.PACE_SECONDS", 0.1)
    with FakeServer(Answer(TEXT, delay=0.04)) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two, min_tokens_per_second=1000)
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "slow"), (two.url, "ok")]
        assert one.wait_for_disconnect(1)
    tokens = [event.index for event in stream.events if event.type == "token"]
    assert tokens == list(range(len(tokens)))
    assert [meta["rung"] for meta in metas(stream) if meta["kind"] == "resumed"] == ["raw"]


@pytest.mark.parametrize(("servers", "resume"), [(1, None), (2, "never")])
def test_a_slow_stream_stays_where_nobody_can_go_on(
    ask: Ask, servers: int, resume: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow answer is better than none."""
    monkeypatch.setattr("aicortex._core.attempts.PACE_SECONDS", 0.1)
    with FakeServer(Answer(TEXT, delay=0.02)) as one, FakeServer(answer=TEXT) as two:
        stream = ask(*[one, two][:servers], min_tokens_per_second=1000, resume=resume)
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "ok")]


def test_a_stream_that_is_fast_enough_stays(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps the pace is left alone, whoever else is there."""
    monkeypatch.setattr("aicortex._core.attempts.PACE_SECONDS", 0.1)
    with FakeServer(Answer(TEXT, delay=0.02)) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two, min_tokens_per_second=0.5)
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "ok")]
