"""The asynchronous stream where tasks and their cancellation come in; what both colours do is tested for both."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from time import time
from typing import Any

import pytest
import trustme
from tests.peers import deaf_port
from tests.tasks import FIVE, STALLING, TEXT, Run, ask, cancel, is_freed, read_all, read_five, said, until

from aicortex import AsyncStream, Server, StreamCancelledError, StreamEvent, achat, chat
from aicortex.fleet import Model
from aicortex.testing import Answer, Exchange, FakeServer, Hang, Reply, Reset, Stall, split_tokens


@pytest.mark.parametrize("reply", [Hang(), Answer(TEXT).then(Stall(), after_tokens=0), STALLING])
def test_cancelling_the_task_that_reads_cancels_the_generation(run: Run, reply: Reply) -> None:
    """C11: a task that is cancelled while it reads leaves no server busy, even while the stream is still held."""

    async def main() -> None:
        stream = await ask(server)
        task = asyncio.create_task(read_all(stream))
        assert await until(server, lambda: server.active == 1)
        await cancel(task)
        assert await is_freed(server)
        assert stream.done
        with pytest.raises(StreamCancelledError):
            await stream.text()

    with FakeServer(reply) as server:
        run(main())


@pytest.mark.parametrize("reply", [Hang(), STALLING])
def test_cancelling_a_plain_call_cancels_the_generation(run: Run, reply: Reply) -> None:
    """Without a stream to read on, the server is free once the task that asks is cancelled."""

    async def main() -> None:
        task = asyncio.create_task(achat("Which?", servers=[server.url]))
        assert await until(server, lambda: server.active == 1)
        await cancel(task)
        assert await is_freed(server)

    with FakeServer(reply) as server:
        run(main())


def test_cancelling_a_call_that_still_looks_for_a_server(run: Run) -> None:
    """A task may be cancelled while it asks which models there are, before there is a stream."""

    async def main() -> None:
        task = asyncio.create_task(ask(server))
        assert await until(server, lambda: len(server.requests) == 1)
        await cancel(task)

    with FakeServer(everything=Hang()) as server:
        run(main())


def test_cancelling_a_call_that_still_connects(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task may be cancelled while a connection is being made, and nothing of it stays open."""
    monkeypatch.setattr("aicortex.fleet.catalogue", lambda _: (Model("m"),))

    async def main() -> None:
        servers = f"127.0.0.1:{port}"
        task = asyncio.create_task(achat("Which?", stream=True, model="m", servers=servers, connect_timeout=60))
        asyncio.get_running_loop().call_later(0.2, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    with deaf_port() as port:
        run(main())
        gc.collect()  # a socket that was left open warns now, which fails the test


def test_a_task_that_is_cancelled_between_two_tokens_drops_its_stream(run: Run) -> None:
    """C11: it did not read just then, but nobody else holds the stream."""

    async def read_and_wait() -> None:
        async for event in await ask(server):
            if event.index == 4:
                is_waiting.set()
                await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(read_and_wait())
        await is_waiting.wait()
        await cancel(task)
        assert await is_freed(server)

    is_waiting = asyncio.Event()
    with FakeServer(STALLING) as server:
        run(main())


def test_a_read_that_took_too_long_can_be_repeated(run: Run) -> None:
    """C12: wait_for around one read leaves the stream intact, and the same iterator reads on."""

    async def main() -> None:
        stream = await ask(server)
        cursor, seen = aiter(stream), []
        with pytest.raises(asyncio.TimeoutError):
            seen += [await asyncio.wait_for(anext(cursor), 0.1) for _ in range(5)]
        seen = list(stream.events)
        assert stream.text_so_far == ""
        assert not stream.done
        seen += [event async for event in cursor]
        assert said(seen) == TEXT
        assert seen == list(stream.events)
        assert server.cancelled == 0

    with FakeServer(Answer(TEXT, first_delay=0.3)) as server:
        run(main())


def test_tokens_can_be_read_on_after_a_read_that_took_too_long(run: Run) -> None:
    """C12: tokens() is no generator that a cancelled read would end in silence."""

    async def main() -> None:
        words = aiter((await ask(server)).tokens())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(words), 0.1)
        assert "".join([word async for word in words]) == TEXT

    with FakeServer(Answer(TEXT, first_delay=0.3)) as server:
        run(main())


def test_a_task_that_survives_its_cancellation_reads_on(run: Run) -> None:
    """C12: what asyncio.timeout does around a loop (cancel the task, catch it) leaves the stream intact."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        stream = await ask(server)
        asyncio.get_running_loop().call_later(0.1, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await read_all(stream)
        assert not stream.done
        assert await stream.text() == TEXT
        assert server.cancelled == 0

    with FakeServer(Answer(TEXT, first_delay=0.3)) as server:
        run(main())


def test_a_limit_around_a_whole_loop(run: Run) -> None:
    """wait_for around a loop keeps what came, and leaving the block frees the server."""

    async def main() -> None:
        async with await ask(server) as stream:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(read_all(stream), 0.2)
            assert stream.text_so_far == FIVE
        assert await is_freed(server)

    with FakeServer(STALLING) as server:
        run(main())


@pytest.mark.parametrize("reading", [AsyncStream.text, AsyncStream.result])
def test_a_whole_read_that_took_too_long_can_be_repeated(run: Run, reading: Callable[[AsyncStream], Any]) -> None:
    """C12: a limit around text() or result() leaves the stream intact as well."""

    async def main() -> None:
        stream = await ask(server)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reading(stream), 0.1)
        assert not stream.done
        assert await stream.text() == TEXT
        assert server.cancelled == 0

    with FakeServer(Answer(TEXT, first_delay=0.3)) as server:
        run(main())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_storm_of_cancelled_reads_loses_nothing(run: Run, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """C12: reads given up after at most four milliseconds cost not one token, also while another server takes over."""
    monkeypatch.setattr("aicortex.fleet.catalogue", lambda _: (Model("fake:latest"),))
    chance, text = random.Random(20261123), "tok" + " tok" * 1999
    tls = None
    if scheme == "https":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("localhost", "127.0.0.1").configure_cert(tls)

    async def main() -> None:
        servers = [Server(server.url, verify=False) for server in (one, two)]
        stream = await achat("Which?", stream=True, model="fake:latest", servers=servers)
        cursor, seen, late = aiter(stream), [], 0
        while not stream.done or len(seen) < len(stream.events):
            try:
                seen.append(await asyncio.wait_for(anext(cursor), chance.uniform(0.0001, 0.004)))
            except asyncio.TimeoutError:
                late += 1
        assert said(seen) == text
        assert seen == list(stream.events)
        assert late > 20
        assert [attempt.kind for attempt in (await stream.result()).attempts] == ["reset", "ok"]

    broken = StopAndGo(text).then(Reset(), after_tokens=1000)
    with FakeServer(broken, tls=tls) as one, FakeServer(answer=text, tls=tls) as two:
        run(main())


@dataclass(frozen=True)
class StopAndGo(Reply):
    """A text with a rest of a few milliseconds after every tenth token."""

    text: str

    def play(self, exchange: Exchange) -> None:
        for number, token in enumerate(split_tokens(self.text)):
            exchange.token(content=token)
            if number % 10 == 9:
                exchange.flush()
                exchange.pause(0.006)
        exchange.done({"done_reason": "stop"})


def test_several_tasks_see_everything_in_order(run: Run) -> None:
    """C10: each of three tasks sees every event once, while the stream goes on at another server."""
    text = "word" + " word" * 499

    async def main() -> None:
        stream = await ask(one, two)
        seen = await asyncio.gather(*[read_all(stream) for _ in range(3)], stream.text(), stream.result())
        assert seen[0] == seen[1] == seen[2] == list(stream.events)
        assert said(seen[0]) == text == seen[3] == seen[4].text
        assert [event.index for event in seen[0] if event.type == "token"] == list(range(500))

    with FakeServer(Answer(text).then(Reset(), after_tokens=250)) as one, FakeServer(answer=text) as two:
        run(main())


@pytest.mark.parametrize("who", [0, 1])
def test_one_readers_cancellation_does_not_stop_the_other(run: Run, who: int) -> None:
    """Whoever of two readers is cancelled, the other one reads on, even if it was not the one that waited first."""

    async def main() -> None:
        stream = await ask(server)
        seen: list[list[StreamEvent]] = [[], []]
        tasks = [asyncio.create_task(read_all(stream, mine)) for mine in seen]
        async for event in stream:
            if event.index == 3:
                break
        await cancel(tasks.pop(who))
        await tasks[0]
        assert said(seen[1 - who]) == TEXT == await stream.text()
        assert len(seen[who]) < len(stream.events)
        assert server.cancelled == 0

    with FakeServer(Answer(TEXT, delay=0.02)) as server:
        run(main())


def test_when_all_readers_are_cancelled_the_generation_is(run: Run) -> None:
    """C11: the last reader that is cancelled takes the stream with it."""

    async def main() -> None:
        stream = await ask(server)
        has_five = asyncio.Event()
        tasks = [asyncio.create_task(read_all(stream, has_five=has_five)) for _ in range(2)]
        await has_five.wait()
        await cancel(tasks[0])
        assert not stream.done
        await cancel(tasks[1])
        assert await is_freed(server)
        assert stream.done

    with FakeServer(STALLING) as server:
        run(main())


def test_break_alone_does_not_cancel(run: Run) -> None:
    """C11: a stream that was left by break can be read on, also after a while in which nobody did."""

    async def main() -> None:
        stream = await ask(server)
        async for event in stream:
            if event.type == "token":
                break
        assert await until(server, lambda: server.active == 0)
        gc.collect()
        assert await stream.text() == TEXT
        assert server.cancelled == 0

    with FakeServer(Answer(TEXT, delay=0.005)) as server:
        run(main())


def test_leaving_a_block_by_an_error_cancels(run: Run) -> None:
    """C11: the error goes on as it is, and the server is free."""

    async def fail(stream: AsyncStream) -> None:
        async with stream:
            await read_five(stream)
            raise KeyError("mine")

    async def main() -> None:
        stream = await ask(server)
        with pytest.raises(KeyError, match="mine"):
            await fail(stream)
        assert await is_freed(server)
        with pytest.raises(StreamCancelledError) as caught:
            await stream.text()
        assert caught.value.partial == FIVE

    with FakeServer(STALLING) as server:
        run(main())


def test_cancel_from_another_thread_wakes_every_reader(run: Run) -> None:
    """C11: cancel() needs no event loop around it."""

    async def main() -> None:
        stream = await ask(server)
        tasks = [asyncio.create_task(read_all(stream)) for _ in range(2)]
        await read_five(stream)
        await asyncio.to_thread(stream.cancel)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in found] == [StreamCancelledError] * 2
        assert await is_freed(server)

    with FakeServer(STALLING) as server:
        run(main())


@pytest.mark.parametrize("how", ["signal.signal", "add_signal_handler"])
def test_cancel_from_a_signal_handler(run: Run, how: str) -> None:
    """A handler may cancel, whether the loop calls it or the interpreter does at any place."""

    async def main() -> None:
        stream = await ask(server)
        await read_five(stream)
        if how == "signal.signal":
            signal.signal(signal.SIGUSR1, lambda *_: stream.cancel())
        else:
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, stream.cancel)
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGUSR1)
        with pytest.raises(StreamCancelledError):
            await stream.text()
        assert await is_freed(server)
        if how != "signal.signal":
            asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)

    previous = signal.getsignal(signal.SIGUSR1)
    try:
        with FakeServer(STALLING) as server:
            run(main())
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_move_from_a_signal_handler(run: Run) -> None:
    """A handler of the loop may move the stream, which wakes the reader."""

    async def main() -> None:
        loop, stream = asyncio.get_running_loop(), await ask(one, two)
        await read_five(stream)
        moved: list[bool] = []
        loop.add_signal_handler(signal.SIGUSR1, lambda: moved.append(stream.move()))
        loop.call_later(0.05, os.kill, os.getpid(), signal.SIGUSR1)
        assert await stream.text() == TEXT
        loop.remove_signal_handler(signal.SIGUSR1)
        assert moved == [True]
        assert [attempt.kind for attempt in (await stream.result()).attempts] == ["moved", "ok"]
        assert await is_freed(one)

    with FakeServer(STALLING) as one, FakeServer(answer=TEXT) as two:
        run(main())


@pytest.mark.parametrize("where", ["here", "another thread"])
def test_dropping_the_last_reference_cancels(run: Run, where: str) -> None:
    """C11: a forgotten stream does not keep a server busy, whichever thread forgets it last."""

    async def main() -> None:
        holder = [await ask(server)]
        await read_five(holder[0])
        await asyncio.to_thread(holder.clear) if where != "here" else holder.clear()
        assert await is_freed(server)

    with FakeServer(STALLING) as server:
        run(main())


def test_a_task_keeps_the_stream_that_it_reads(run: Run) -> None:
    """A loop over `await achat(…)` itself holds the only reference there is."""

    async def main() -> None:
        gc.collect()
        assert "".join([word async for word in (await ask(server)).tokens()]) == TEXT
        assert said([event async for event in await ask(server)]) == TEXT

    with FakeServer(answer=Answer(TEXT, delay=0.002)) as server:
        run(main())


@pytest.mark.parametrize("what", ["stream", "tokens", "cursor"])
def test_a_loop_without_async_says_so(run: Run, what: str) -> None:
    """`for` on anything of an AsyncStream is told to be `async for`."""

    async def main() -> None:
        stream = await ask(server)
        source: Any = {"stream": stream, "tokens": stream.tokens(), "cursor": aiter(stream)}[what]
        with pytest.raises(TypeError, match="async for"):
            list(source)

    with FakeServer(answer=TEXT) as server:
        run(main())


def test_a_block_without_async_says_so(run: Run) -> None:
    """`with` on an AsyncStream is told to be `async with`."""

    async def main() -> None:
        stream: Any = await ask(server)
        with pytest.raises(TypeError, match="async with"), stream:
            pass

    with FakeServer(answer=TEXT) as server:
        run(main())


def test_a_blocking_stream_among_tasks_says_so(run: Run) -> None:
    """What `chat` returns is neither awaited nor read with `async`, and says what is right."""

    async def main() -> None:
        stream: Any = chat("Which?", stream=True, servers=[server.url])
        with pytest.raises(TypeError, match="without 'async'"):
            aiter(stream)
        with pytest.raises(TypeError, match="without 'async'"):
            await stream.__aenter__()
        with pytest.raises(TypeError, match="achat"):
            await stream
        stream.cancel()

    with FakeServer(answer=TEXT) as server:
        run(main())


def test_repr_shows_no_text(run: Run) -> None:
    """A stream in a log shows its state and not somebody's answer."""

    async def main() -> None:
        stream = await ask(server)
        assert repr(stream).startswith("<AsyncStream running, ")
        await stream.text()
        assert repr(stream) == f"<AsyncStream done, {len(stream.events)} events>"

    with FakeServer(answer=TEXT) as server:
        run(main())


def test_timestamps_never_go_back(run: Run) -> None:
    """C9: Unix seconds, in order, between the call and the end."""

    async def main() -> None:
        before = time()
        stream = await ask(one, two)
        await stream.text()
        stamps = [event.timestamp or 0 for event in stream.events]
        assert stamps == sorted(stamps)
        assert before - 1 < stamps[0] < stamps[-1] < time() + 1
        first = next(event for event in stream.events if event.type == "token")
        assert (first.timestamp or 0) > stamps[0]

    with FakeServer(Answer(TEXT).then(Reset(), after_tokens=5)) as one, FakeServer(Answer(TEXT, delay=0.002)) as two:
        run(main())
