"""The stream a reader holds: contract C1 to C12 in both colours, over real sockets."""

from __future__ import annotations

import gc
import os
import random
import signal
import ssl
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pytest
import trustme
from tests.colours import Ask, Chat, only_sync

from aicortex import AllServersFailedError, Stream, StreamCancelledError, StreamEvent, StreamInterruptedError, chat
from aicortex.testing import (
    Answer,
    Close,
    Exchange,
    FakeServer,
    Hang,
    InBandError,
    Reply,
    Reset,
    Stall,
    Status,
    split_tokens,
)

TEXT = "Seven planets have rings or moons, and two have neither of them at all."
STALLING = Answer(TEXT).then(Stall(), after_tokens=5)
FIVE = "".join(split_tokens(TEXT)[:5])


@pytest.fixture
def ask(chat: Chat) -> Ask:
    """Ask the given servers, in this order."""

    def asking(*servers: FakeServer, **arguments: Any) -> Stream:
        return chat("Which?", stream=True, servers=[server.url for server in servers], **arguments)

    return asking


def press_control_c(seconds: float) -> threading.Timer:
    """Send SIGINT to the main thread after a while, as a terminal does."""
    main = threading.main_thread().ident
    assert main is not None
    return threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGINT))


def test_start_comes_first_and_before_chat_returns(ask: Ask) -> None:
    """C1, C2: chat sends the request and returns with the start event stamped (C2)."""
    with FakeServer(Hang()) as server:
        stream = ask(server)
        assert server.wait_until(lambda: bool(server.requests))
        assert [event.type for event in stream.events][:1] == ["start"]
        assert stream.events[0].content == ""
        stream.cancel()


def test_server_failures_do_not_raise_in_chat(ask: Ask) -> None:
    """C1: a dead fleet raises from reading, every time, and never from chat."""
    with FakeServer() as server:
        server.refuse()
        stream = ask(server, model="fake:latest")
    for _ in range(2):
        with pytest.raises(AllServersFailedError, match=r"^All servers failed: .*nothing listens there"):
            list(stream)
        with pytest.raises(RuntimeError):
            stream.text()
    assert stream.text_so_far == ""
    assert stream.done


def test_cursors_replay_and_then_go_on(ask: Ask) -> None:
    """C10: each iterator begins at the start event, and text() disturbs none of them."""
    with FakeServer(answer=TEXT) as server:
        stream = ask(server)
        running = iter(stream)
        first = list(islice(running, 4))
        assert stream.text() == TEXT
        rest = list(running)
    assert first + rest == list(stream) == list(stream.events)
    assert next(running, None) is None
    assert "".join(stream.tokens()) == TEXT == stream.result.text


def test_two_threads_see_everything_in_order(ask: Ask) -> None:
    """C10: readers in two threads each see every event, in order."""
    with FakeServer(Answer("word" + " word" * 499)) as server:
        stream = ask(server)
        seen: list[list[StreamEvent]] = [[], []]
        readers = [threading.Thread(target=mine.extend, args=(stream,)) for mine in seen]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    assert seen[0] == seen[1] == list(stream.events)
    assert [event.index for event in seen[0] if event.type == "token"] == list(range(500))


def test_text_so_far_never_blocks(ask: Ask) -> None:
    """text_so_far gives what came and does not wait for a stalled server."""
    with FakeServer(STALLING) as server, ask(server) as stream:
        for event in stream:
            if event.index == 4:
                break
        assert stream.text_so_far == FIVE
        assert not stream.done


def test_break_alone_does_not_cancel(ask: Ask) -> None:
    """C11: a stream that was left by break can be read on."""
    with FakeServer(Answer(TEXT, delay=0.001)) as server:
        stream = ask(server)
        for event in stream:
            if event.type == "token":
                break
        assert stream.text() == TEXT
        assert server.cancelled == 0


def test_leaving_a_with_block_cancels(ask: Ask) -> None:
    """C11: the server notices that the reader left the block."""
    with FakeServer(STALLING) as server:
        with ask(server) as stream:
            next(stream.tokens())
        assert server.wait_for_disconnect(1)
        with pytest.raises(StreamCancelledError) as caught:
            stream.text()
    assert caught.value.partial == FIVE[: len(caught.value.partial)] != ""


@pytest.mark.parametrize("reply", [Hang(), Answer(TEXT).then(Stall(), after_tokens=0), STALLING])
def test_cancel_wakes_a_blocked_reader(ask: Ask, reply: Hang) -> None:
    """C11: cancel() from another thread ends a read that waits, whatever it waits for, and frees the server."""
    with FakeServer(reply) as server:
        stream = ask(server)
        failure: list[BaseException] = []

        def read() -> None:
            try:
                list(stream)
            except StreamCancelledError as error:
                failure.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        assert server.wait_until(lambda: bool(server.requests))
        stream.cancel()
        reader.join(5)
        assert not reader.is_alive()
        assert server.wait_for_disconnect(1)
    assert [type(error) for error in failure] == [StreamCancelledError]


def test_cancel_ends_the_wait_for_a_busy_server(ask: Ask) -> None:
    """C11: a reader that waits until a busy server has time is woken as well."""
    with FakeServer(Status(503, {"error": "server busy"}, headers={"Retry-After": "60"})) as server:
        stream = ask(server)
        timer = threading.Timer(0.1, stream.cancel)
        timer.start()
        with pytest.raises(StreamCancelledError):
            stream.text()
        timer.join()


def test_dropping_the_last_reference_cancels(ask: Ask) -> None:
    """C11: a forgotten stream does not keep a server busy."""
    with FakeServer(STALLING) as server:
        stream = ask(server)
        next(stream.tokens())
        del stream
        gc.collect()
        assert server.wait_for_disconnect(1)


def test_a_cursor_keeps_its_stream_alive(ask: Ask) -> None:
    """A loop over chat(…) itself holds the only reference there is."""
    with FakeServer(answer=TEXT) as server:
        assert "".join(event.content or "" for event in ask(server) if event.type == "token") == TEXT


def test_cancelling_twice_and_after_the_end_is_harmless(ask: Ask) -> None:
    """A whole answer stays whole."""
    with FakeServer(answer=TEXT) as server:
        stream = ask(server)
        assert stream.text() == TEXT
        stream.cancel()
        stream.cancel()
        assert stream.text() == TEXT


def test_cancel_from_a_signal_handler(ask: Ask) -> None:
    """A handler that runs while the same thread reads may cancel without a deadlock."""
    with FakeServer(STALLING) as server:
        stream = ask(server)
        next(stream.tokens())
        previous = signal.signal(signal.SIGUSR1, lambda *_: stream.cancel())
        try:
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            with pytest.raises(StreamCancelledError):
                stream.text()
            timer.join()
        finally:
            signal.signal(signal.SIGUSR1, previous)


@only_sync  # an interrupt ends asyncio.run
def test_keyboard_interrupt_leaves_the_stream_intact(ask: Ask) -> None:
    """C12: after Ctrl-C in a waiting read, the same iterator reads on."""
    with FakeServer(Answer(TEXT, first_delay=0.3)) as server:
        stream = ask(server)
        cursor = iter(stream)
        timer = press_control_c(0.1)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            for _ in cursor:
                pass
        timer.join()
        assert stream.text_so_far == ""
        assert "".join(event.content or "" for event in cursor if event.type == "token") == TEXT


STORM = """
import random, signal, sys
from aicortex import Server, chat

reading, hits = False, 0

def interrupt(*_):
    global reading, hits
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.004))
    if reading:
        reading, hits = False, hits + 1
        raise KeyboardInterrupt

stream = chat("x", stream=True, model="fake:latest", servers=[Server(sys.argv[1], verify=False)])
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.0001)
while not stream.done:
    try:
        reading = True
        stream.text()
    except KeyboardInterrupt:
        pass
reading = False
signal.setitimer(signal.ITIMER_REAL, 0)
events = list(stream)
tokens = [event for event in events if event.type == "token"]
assert [event.index for event in tokens] == list(range(len(tokens)))
print(hits > 20, len(tokens), "".join(e.content for e in tokens) == stream.text(), events[-1].type)
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_storm_of_interrupts_loses_nothing(scheme: str) -> None:
    """C12: a KeyboardInterrupt every few milliseconds, wherever it falls, costs not one token, also under TLS."""
    tls = None
    if scheme == "https":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("localhost", "127.0.0.1").configure_cert(tls)
    with FakeServer(Answer("tok" + " tok" * 9999), tls=tls) as server:
        command = [sys.executable, "-c", STORM, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.split(), done.stderr) == (["True", "10000", "True", "end"], "")


@only_sync  # as above
def test_tokens_can_be_read_on_after_an_interrupt(ask: Ask) -> None:
    """C12: tokens() is no generator that an interrupt would end in silence."""
    with FakeServer(Answer(TEXT, first_delay=0.3)) as server:
        words = ask(server).tokens()
        timer = press_control_c(0.1)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(words)
        timer.join()
        assert "".join(words) == TEXT


def test_an_interrupted_plain_call_cancels() -> None:
    """Without a stream to read on, Ctrl-C frees the server even while somebody keeps the traceback."""
    with FakeServer(STALLING) as server:
        timer = press_control_c(0.2)
        timer.start()
        with pytest.raises(KeyboardInterrupt) as kept:
            chat("Which?", servers=[server.url])
        timer.join()
        assert server.wait_for_disconnect(1)
    assert kept.value is not None


@dataclass(frozen=True)
class Drip(Reply):
    """One token, then `data` again and again until the client leaves."""

    data: bytes

    def play(self, exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.token(content="Seven")
        while True:
            exchange.chunk(self.data)
            exchange.flush()
            exchange.pause(0.02)


@pytest.mark.parametrize("data", [b"\n", b" "])
def test_heartbeats_are_no_chunks(ask: Ask, data: bytes) -> None:
    """A server that keeps the line warm and says nothing has stalled."""
    with FakeServer(Drip(data)) as server:
        with pytest.raises(StreamInterruptedError, match="stalled") as caught:
            ask(server, stall_timeout=0.3, resume="never").text()
        assert server.wait_for_disconnect(1)
    assert caught.value.partial == "Seven"


def test_the_total_deadline_holds_against_a_server_that_never_stops(ask: Ask) -> None:
    """timeout= ends a stream that keeps coming."""
    chunk = b'{"message":{"role":"assistant","content":" x"},"done":false}\n'
    with FakeServer(Drip(chunk)) as server:
        with pytest.raises(StreamInterruptedError, match=r"not whole within 0\.3 s"):
            ask(server, timeout=0.3).text()
        assert server.wait_for_disconnect(1)


@only_sync  # the parent's loop is in another thread, which the child has not
def test_a_forked_child_leaves_its_parents_stream_alone(ask: Ask) -> None:
    """Leaving a stream in a forked child closes the child's copy and nothing else."""
    with FakeServer(Answer(TEXT, delay=0.01)) as server:
        stream = ask(server)
        next(stream.tokens())
        child = os.fork()
        if child == 0:
            stream.cancel()
            os._exit(0)
        os.waitpid(child, 0)
        assert stream.text() == TEXT


def test_a_kept_connection_is_used_again(ask: Ask) -> None:
    """Answers one after the other need no further connection."""
    with FakeServer(answer=TEXT) as server:
        assert ask(server).text() == TEXT
        before = server.connections
        for _ in range(3):
            assert server.wait_until(lambda: server.active == 0)  # the end of the body comes behind the last chunk
            assert ask(server).text() == TEXT
        assert server.connections == before


@pytest.mark.parametrize("fault", [Reset(), Close(last_chunk=False)])
def test_a_kept_connection_that_breaks_is_asked_anew(ask: Ask, fault: Reset) -> None:
    """A server may close a kept connection just when a request goes out; with no other server, it is asked again."""
    with FakeServer(Answer(TEXT), fault, Answer(TEXT)) as server:
        assert ask(server).text() == TEXT
        stream = ask(server)
        assert stream.text() == TEXT
        assert [attempt.kind for attempt in stream.result.attempts][1:] == ["ok"]  # the first is reset or closed
        assert [event.type for event in stream].count("error") == 1


def test_a_server_that_came_back_is_reached(ask: Ask) -> None:
    """Kept connections to a server that died are not used; its successor on the same port is found."""
    with FakeServer(answer=TEXT) as server:
        assert ask(server).text() == TEXT
        server.refuse()
        server.start()
        assert ask(server).text() == TEXT


def test_the_result(ask: Ask) -> None:
    """The result has text, thinking, reason, usage, timings, model, server and attempts."""
    with FakeServer(Answer(TEXT, thinking="hm", done_reason="length", prompt_eval_count=5, eval_count=9)) as server:
        result = ask(server).result
    assert (result.text, result.thinking, result.finish_reason) == (TEXT, "hm", "length")
    assert result.usage == {"prompt_tokens": 5, "completion_tokens": 9}
    assert (result.model, result.server) == ("fake:latest", server.url)
    assert 0 < result.timings["first_token"] <= result.timings["total"]
    assert [attempt.kind for attempt in result.attempts] == ["ok"]


def test_the_guides_arithmetic_is_positive(ask: Ask) -> None:
    """First token minus start is more than nothing, always."""
    with FakeServer(answer=TEXT) as server:
        for _ in range(50):
            stream = ask(server)
            stream.text()
            first = next(event for event in stream.events if event.type == "token")
            assert (first.timestamp or 0) > (stream.events[0].timestamp or 0)


@only_sync  # of one colour
def test_async_for_says_what_to_write(ask: Ask) -> None:
    """Colour never depends on context: a synchronous stream says so."""
    with FakeServer(answer=TEXT) as server, pytest.raises(TypeError, match="without 'async'"):
        ask(server).__aiter__()


@only_sync  # a test of the class itself
def test_repr_shows_no_text(ask: Ask) -> None:
    """A stream in a log shows its state and not somebody's answer."""
    with FakeServer(answer=TEXT) as server:
        stream = ask(server)
        stream.text()
    assert repr(stream) == f"<Stream done, {len(stream.events)} events>"


def kinds(stream: Stream) -> list[tuple[str, str]]:
    return [(attempt.server, attempt.kind) for attempt in stream.result.attempts]


def read_five(stream: Stream) -> None:
    words = stream.tokens()
    for _ in range(5):
        next(words)


def test_move_between_tokens(ask: Ask) -> None:
    """move() leaves the server at once, another one goes on, and the text is whole."""
    with FakeServer(STALLING) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two)
        read_five(stream)
        assert stream.move()
        assert one.wait_for_disconnect(1)
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "moved"), (two.url, "ok")]
    found = [event.meta["kind"] for event in stream.events if event.type == "meta" and event.meta]
    assert found == ["connected", "moved", "connected", "resumed", "stats"]
    assert [event.index for event in stream.events if event.type == "token"] == list(range(len(split_tokens(TEXT))))
    assert "error" not in [event.type for event in stream.events]


def test_move_wakes_a_blocked_reader(ask: Ask) -> None:
    """move() from another thread: the reader that waits for a silent server goes on at the next one."""
    with FakeServer(STALLING) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two)
        has_five = threading.Event()
        seen: list[StreamEvent] = []

        def read() -> None:
            for event in stream:
                seen.append(event)
                if event.index == 4:
                    has_five.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert has_five.wait(5)
        assert stream.move()
        reader.join(5)
        assert not reader.is_alive()
        assert one.wait_for_disconnect(1)
        assert stream.text() == TEXT
    assert seen == list(stream.events)


@only_sync  # an asynchronous stream is moved in its loop's thread
def test_move_from_a_signal_handler(ask: Ask) -> None:
    """A handler that runs while the same thread reads may move the stream without a deadlock."""
    with FakeServer(STALLING) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two)
        read_five(stream)
        previous = signal.signal(signal.SIGUSR1, lambda *_: stream.move())
        try:
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            assert stream.text() == TEXT
            timer.join()
        finally:
            signal.signal(signal.SIGUSR1, previous)
        assert kinds(stream) == [(one.url, "moved"), (two.url, "ok")]


@pytest.mark.parametrize("resume", ["continue", "never"])
def test_move_before_the_first_token(ask: Ask, resume: str) -> None:
    """A server that has said nothing yet is left as well, and nothing needs to be continued."""
    with FakeServer(Hang()) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two, resume=resume)
        assert one.wait_until(lambda: one.active == 1)
        assert stream.move()
        assert stream.text() == TEXT
        assert one.wait_for_disconnect(1)
        assert kinds(stream) == [(one.url, "moved"), (two.url, "ok")]


def test_move_and_back(ask: Ask) -> None:
    """The server that was left is the last choice, and still one."""
    stalls_again = Answer(TEXT).then(Stall(), after_tokens=4)
    with FakeServer(STALLING, answer=TEXT) as one, FakeServer(continuation=stalls_again) as two:
        stream = ask(one, two)
        read_five(stream)
        assert stream.move()
        words = stream.tokens()
        for _ in range(7):
            next(words)
        assert stream.move()
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "moved"), (two.url, "moved"), (one.url, "ok")]
        assert two.wait_for_disconnect(1)


@pytest.mark.parametrize("servers", [1, 2])
def test_move_with_nowhere_to_go_changes_nothing(ask: Ask, servers: int) -> None:
    """False where no other server can take over: there is none, or text was shown and resuming is not wanted."""
    with FakeServer(Answer(TEXT, delay=0.005)) as one, FakeServer(answer=TEXT) as two:
        stream = ask(*[one, two][:servers], resume="never")
        read_five(stream)
        before = list(stream.events)
        assert not stream.move()
        assert list(stream.events) == before
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "ok")]


def test_move_is_false_where_the_answer_cannot_be_continued(ask: Ask) -> None:
    """An answer bound by a format and sampled stays where it is."""
    with FakeServer(Answer(TEXT, delay=0.005)) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two, format="json")
        read_five(stream)
        assert not stream.move()
        assert stream.text() == TEXT
        assert kinds(stream) == [(one.url, "ok")]


def test_move_after_the_end(ask: Ask) -> None:
    """A stream that is whole, failed or cancelled has nothing to move."""
    with FakeServer(answer=TEXT) as one, FakeServer(answer=TEXT) as two:
        whole = ask(one, two)
        assert whole.text() == TEXT
        cancelled = ask(one, two)
        cancelled.cancel()
        for stream in (whole, cancelled):
            before = list(stream.events)
            assert not stream.move()
            assert list(stream.events) == before
    assert whole.text() == TEXT


def test_two_threads_see_everything_while_the_stream_goes_on_elsewhere(ask: Ask) -> None:
    """C10: one server breaks, the next one is moved away from, and each of two readers sees every event once."""
    text = "word" + " more" * 399
    breaks = Answer(text).then(Close(), after_tokens=100)
    goes_on = Answer(text, delay=0.0005).then(Stall(), after_tokens=100)
    with FakeServer(breaks) as one, FakeServer(continuation=goes_on) as two, FakeServer(answer=text) as three:
        stream = ask(one, two, three)
        has_more = threading.Event()
        seen: list[list[StreamEvent]] = [[], []]

        def read(mine: list[StreamEvent]) -> None:
            for event in stream:
                mine.append(event)
                if event.index == 150:
                    has_more.set()

        readers = [threading.Thread(target=read, args=(mine,)) for mine in seen]
        for reader in readers:
            reader.start()
        assert has_more.wait(5)
        assert stream.move()
        for reader in readers:
            reader.join(10)
        assert kinds(stream) == [(one.url, "truncated"), (two.url, "moved"), (three.url, "ok")]
    assert seen[0] == seen[1] == list(stream.events)
    assert "".join(event.content or "" for event in seen[0] if event.type == "token") == text


FAULTS = (Reset(), Close(), Stall(), Status(500), InBandError())


def fault_at_random(chance: random.Random) -> Reply:
    answer = Answer(TEXT, first_delay=chance.choice([0, 0.005]), delay=chance.choice([0, 0.001]))
    return answer.then(chance.choice(FAULTS), after_tokens=chance.randrange(10))


def cancel_at_random(ask: Ask, chance: random.Random) -> None:
    """Let three servers fail as it comes, cancel from another thread, and check that all are free again."""
    first, second, third = (fault_at_random(chance) for _ in range(3))
    with (
        FakeServer(first, answer=TEXT) as one,
        FakeServer(continuation=second, answer=TEXT) as two,
        FakeServer(continuation=third, answer=TEXT) as three,
    ):
        limits = {"stall_timeout": 0.05, "first_token_timeout": 0.05, "hedge_after": chance.choice([None, 0.003])}
        stream = ask(one, two, three, **limits)
        timer = threading.Timer(chance.uniform(0, 0.05), stream.cancel)
        timer.start()
        with suppress(StreamCancelledError, StreamInterruptedError, AllServersFailedError):
            stream.text()
        timer.join()
        assert stream.done
        for server in (one, two, three):
            assert server.wait_until(lambda server=server: server.active == 0, 1)  # type: ignore[misc]
        assert TEXT.startswith(stream.text_so_far)


def test_cancel_at_any_moment_frees_every_server(ask: Ask) -> None:
    """C11: whatever goes wrong at the time, nothing is being generated a second after cancel()."""
    chance = random.Random(20261122)
    for _ in range(40):
        cancel_at_random(ask, chance)
