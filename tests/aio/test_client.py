"""The exchange of the asynchronous front end: who drives it, what goes on while nobody does, and what it leaves."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import trustme
import uvloop
from tests.peers import deaf_port

from aicortex import AICortexError, AsyncStream, Server, StreamEvent, achat
from aicortex._aio.client import Exchange
from aicortex._aio.pool import POOLS
from aicortex.fleet import Model
from aicortex.in_flight import CLAIMS
from aicortex.testing import Answer, FakeServer, Hang, Reset

PATIENCE = 10.0  # seconds; only a failing test waits for so long
TEXT = "One task drives, the others follow, and whoever is left goes on."
Run = Callable[..., Any]  # asyncio.run, or what uvloop has in its place


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine on either event loop; whatever the loop complains of fails the test."""
    main = asyncio.run if request.param == "asyncio" else uvloop.run

    def running(coroutine: Any) -> Any:
        complaints: list[Any] = []

        async def watched() -> Any:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            return await coroutine

        found = main(watched(), debug=True)
        assert complaints == []
        return found

    return running


@pytest.fixture(autouse=True)
def _known_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every server have the model, so that the first thing it sees is the question."""
    monkeypatch.setattr("aicortex.planning.catalogue", lambda _: (Model("fake:latest"),))


async def ask(*servers: FakeServer | str | Server, **arguments: Any) -> AsyncStream:
    addresses = [server.url if isinstance(server, FakeServer) else server for server in servers]
    stream: AsyncStream = await achat("Which?", stream=True, model="fake:latest", servers=addresses, **arguments)
    return stream


async def read_all(stream: AsyncStream) -> list[StreamEvent]:
    return [event async for event in stream]


async def kinds(stream: AsyncStream) -> list[str]:
    return [attempt.kind for attempt in (await stream.result()).attempts]


def under_way() -> int:
    return sum(map(len, CLAIMS.values()))


@contextmanager
def gate(server: FakeServer) -> Iterator[tuple[Server, threading.Event, list[int]]]:
    """A secured way to a server that is a plain one, whose handshakes wait for an event; how many there were."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost", "127.0.0.1").configure_cert(tls)
    opens, seen, threads = threading.Event(), list[int](), list[threading.Thread]()

    def serve(accepted: socket.socket) -> None:
        with suppress(OSError), accepted:
            assert opens.wait(PATIENCE)
            with (
                tls.wrap_socket(accepted, server_side=True) as client,
                socket.create_connection(("127.0.0.1", server.port)) as behind,
            ):
                behind.sendall(client.recv(65536))
                while data := behind.recv(65536):
                    client.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                accepted, _ = listener.accept()
                seen.append(1)
                threads.append(threading.Thread(target=serve, args=(accepted,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield Server(f"https://127.0.0.1:{listener.getsockname()[1]}", verify=False), opens, seen
        finally:
            opens.set()
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(PATIENCE)
    server.stop()
    for thread in threads:
        thread.join(PATIENCE)


def test_a_connection_goes_on_while_reads_are_given_up(run: Run) -> None:
    """C12: short time limits around reads do not begin the next server's connection anew each time."""

    async def main(slow: Server, opens: threading.Event, seen: list[int]) -> None:
        stream = await ask(broken, slow)
        cursor, late, events = aiter(stream), 0, list[StreamEvent]()
        while not stream.done or len(events) < len(stream.events):
            try:
                events.append(await asyncio.wait_for(anext(cursor), 0.01))
            except asyncio.TimeoutError:
                late += 1
                if late == 5:
                    opens.set()
        assert await stream.text() == TEXT
        assert events == list(stream.events)
        assert (len(seen), late > 4) == (1, True)

    with FakeServer(Reset()) as broken, FakeServer(answer=TEXT) as server, gate(server) as (slow, opens, seen):
        run(main(slow, opens, seen))


def test_a_large_request_goes_on_while_reads_are_given_up(run: Run) -> None:
    """C12: what was sent of a request is not sent again because somebody would not wait."""

    async def main() -> None:
        prompt = "w" * 30_000_000
        stream = await achat(prompt, stream=True, model="fake:latest", servers=[broken.url, server.url])
        cursor = aiter(stream)
        while not stream.done:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(anext(cursor), 0.01)
        assert await stream.text() == TEXT
        assert server.connections == 1

    with FakeServer(Reset()) as broken, FakeServer(answer=TEXT) as server:
        run(main())


def test_a_stream_is_dropped_while_it_connects(run: Run) -> None:
    """What goes on without a reader ends with its stream, and nothing is left of it."""

    async def main(slow: Server, seen: list[int]) -> None:
        tasks = asyncio.all_tasks()
        stream = await ask(broken, slow)
        while not seen:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stream.text(), 0.01)
        del stream
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert asyncio.all_tasks() == tasks
        assert under_way() == 0
        assert not (await POOLS.of_loop())._open

    with FakeServer(Reset()) as broken, FakeServer() as server, gate(server) as (slow, _, seen):
        run(main(slow, seen))


def test_moving_while_a_second_server_is_connected(run: Run) -> None:
    """move() counts from where the answer is, whatever is being tried beside it."""

    async def main() -> None:
        stream = await ask(one, f"127.0.0.1:{port}", three, hedge_after=0.05)
        reading = asyncio.create_task(stream.text())
        await asyncio.to_thread(one.wait_until, lambda: one.active == 1)
        while not (stream._exchange._step and len(asyncio.all_tasks()) > 2):
            await asyncio.sleep(0.001)
        assert stream.move()
        assert await asyncio.wait_for(reading, PATIENCE) == TEXT
        assert (await kinds(stream))[-1] == "ok"
        assert "moved" in await kinds(stream)

    with deaf_port() as port, FakeServer(Hang()) as one, FakeServer(answer=TEXT) as three:
        run(main())


def test_an_old_timer_does_not_end_a_new_wait(run: Run) -> None:
    """The time limit of a read that is over has nothing to say about the connection that is made next."""

    async def main() -> None:
        stream = await ask(one, f"127.0.0.1:{port}", stall_timeout=0.3, connect_timeout=0.6)
        with pytest.raises(AICortexError, match="could not be opened in time"):
            await stream.text()

    with deaf_port() as port, FakeServer(Answer(TEXT, delay=0.01).then(Reset(), after_tokens=5)) as one:
        run(main())


@pytest.mark.parametrize("end", ["whole", "broken", "cancelled"])
def test_a_stream_that_is_over_leaves_no_timer(run: Run, end: str) -> None:
    """Its log is not kept until a deadline passes that nobody waits for any more."""

    async def main() -> None:
        stream = await ask(server, resume="never")
        await anext(aiter(stream.tokens()))
        if end == "cancelled":
            await stream.__aexit__(None, None, None)
        with suppress(RuntimeError):
            await stream.text()
        assert stream.done
        assert stream._exchange._timer is None

    with FakeServer(
        Answer(TEXT).then(Reset(), after_tokens=5) if end == "broken" else Answer(TEXT, delay=0.001)
    ) as server:
        run(main())


def exchanges() -> list[Exchange]:
    """Return all that this process has; other tests may have left some."""
    return [each for each in gc.get_objects() if type(each) is Exchange]


def test_reads_that_were_given_up_leave_nothing_at_their_task(run: Run) -> None:
    """A task that reads one stream after the other, with time limits, does not keep what it has read."""

    async def main() -> None:
        me = asyncio.current_task()
        assert me is not None
        before = exchanges()
        for _ in range(3):
            stream = await ask(server)
            cursor, late = aiter(stream), 0
            while not stream.done:
                timer = asyncio.get_running_loop().call_later(0.002, me.cancel)
                try:
                    await anext(cursor)
                except asyncio.CancelledError:
                    late += 1
                except StopAsyncIteration:
                    break
                finally:
                    timer.cancel()
            assert late > 3
            del stream, cursor
        await asyncio.sleep(0.01)
        gc.collect()
        assert not [each for each in exchanges() if not any(each is known for known in before)]

    with FakeServer(answer=Answer(TEXT, delay=0.005)) as server:
        run(main())


def test_who_reads_by_time_limits_is_a_reader(run: Run) -> None:
    """Another reader's cancellation does not end the stream of one that calls wait_for around each read."""

    async def main() -> None:
        stream = await ask(server)
        cursor, seen = aiter(stream), list[StreamEvent]()
        other = asyncio.create_task(read_all(stream))
        while True:
            try:
                seen.append(await asyncio.wait_for(anext(cursor), PATIENCE))
            except StopAsyncIteration:
                break
            if len(seen) == 4:
                other.cancel()
        assert seen == list(stream.events)
        assert server.cancelled == 0

    with FakeServer(answer=Answer(TEXT, delay=0.005)) as server:
        run(main())


def test_who_goes_on_with_anothers_iterator_is_a_reader(run: Run) -> None:
    """A task may begin to read and hand its iterator on."""

    async def main() -> None:
        stream = await ask(server)
        cursor = aiter(stream)

        async def begin() -> StreamEvent:
            return await anext(cursor)

        async def go_on() -> list[StreamEvent]:
            return [event async for event in cursor]

        first = await asyncio.create_task(begin())
        going_on, other = asyncio.create_task(go_on()), asyncio.create_task(read_all(stream))
        while len(stream.events) < 4:
            await asyncio.sleep(0.001)
        other.cancel()
        assert [first, *await going_on] == list(stream.events)

    with FakeServer(answer=Answer(TEXT, delay=0.005)) as server:
        run(main())


def test_a_default_for_the_end_changes_nothing(run: Run) -> None:
    """C12: wait_for around `anext(iterator, None)` leaves the stream as it is, too."""

    async def main() -> None:
        words, told = aiter((await ask(server)).tokens()), list[str]()
        while True:
            with suppress(asyncio.TimeoutError):
                word = await asyncio.wait_for(anext(words, None), 0.02)
                if word is None:
                    break
                told.append(word)
        assert "".join(told) == TEXT

    with FakeServer(answer=Answer(TEXT, first_delay=0.1)) as server:
        run(main())


@pytest.mark.parametrize("when", range(12))
def test_the_driving_task_is_cancelled_and_another_goes_on(run: Run, when: int) -> None:
    """Whenever the task that moves the answer on is cancelled, a follower takes its place and misses nothing."""

    async def main() -> None:
        stream = await ask(broken, server)
        tasks = [asyncio.create_task(read_all(stream)) for _ in range(3)]
        for _ in range(when * 3):
            await asyncio.sleep(0)
        tasks[0].cancel()
        for _ in range(when):
            await asyncio.sleep(0)
        tasks[1].cancel()
        assert await asyncio.wait_for(tasks[2], PATIENCE) == list(stream.events)
        assert await stream.text() == TEXT

    with FakeServer(Answer(TEXT).then(Reset(), after_tokens=3)) as broken, FakeServer(answer=TEXT) as server:
        run(main())


def test_cancelled_anywhere_nothing_is_left(run: Run) -> None:
    """After a task was cancelled at every place of a call, no task, connection or claim of it is there any more."""

    async def work(servers: list[str]) -> None:
        async for _ in await ask(*servers, hedge_after=0.001, connect_timeout=0.2):
            pass

    async def main() -> None:
        gc.collect()
        before, pool = asyncio.all_tasks(), await POOLS.of_loop()
        for rounds in range(40):
            task = asyncio.create_task(work([one.url, f"127.0.0.1:{port}", two.url]))
            for _ in range(rounds):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            del task
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert under_way() == 0
        assert asyncio.all_tasks() == before
        assert len(pool._open) == sum(map(len, pool._idle.values()))

    slow = Answer(TEXT, delay=0.001)
    with deaf_port() as port, FakeServer(answer=slow, continuation=slow) as one, FakeServer(answer=slow) as two:
        gc.disable()  # what is in a cycle counts as left
        try:
            run(main())
        finally:
            gc.enable()


def test_a_second_server_that_takes_no_request_holds_up_nobody(run: Run) -> None:
    """While a large question is stuck on its way to a second server, the first one's answer is read."""

    async def main() -> None:
        servers = [server.url, f"127.0.0.1:{stuck.getsockname()[1]}"]
        stream = await achat("w" * 30_000_000, stream=True, model="fake:latest", servers=servers, hedge_after=0.05)
        assert await asyncio.wait_for(stream.text(), PATIENCE) == TEXT

    with FakeServer(Answer(TEXT, first_delay=0.5)) as server, socket.create_server(("127.0.0.1", 0)) as stuck:
        run(main())


def test_cancel_before_the_next_server_is_asked(run: Run) -> None:
    """cancel() from a thread ends a wait for a connection, and the reader is told at once."""

    async def main(slow: Server, seen: list[int]) -> None:
        stream = await ask(broken, slow)
        reading = asyncio.create_task(stream.text())
        while not seen:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(stream.cancel)
        with pytest.raises(AICortexError, match="cancelled"):
            await asyncio.wait_for(reading, PATIENCE)
        assert under_way() == 0

    with FakeServer(Reset()) as broken, FakeServer() as server, gate(server) as (slow, _, seen):
        run(main(slow, seen))


def test_a_kept_connection_that_breaks_is_tried_once_more(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may close a connection at the moment in which the next request is sent on it."""

    async def ready(_: object) -> bool:
        return True

    async def main() -> None:
        assert await (await ask(server)).text() == TEXT
        server.stop()
        server.start()
        stream = await ask(server)
        assert await stream.text() == TEXT
        assert server.connections == 2

    monkeypatch.setattr("aicortex._aio.connection.Connection.is_ready", ready)
    with FakeServer(answer=TEXT) as server:
        run(main())


@pytest.mark.parametrize("how", ["task", "gather", "iterator"])
def test_a_cancelled_task_that_is_a_read_itself_frees_the_server(run: Run, how: str) -> None:
    """Who cancels a task that is `stream.text()` has cancelled the answer, whoever else holds the stream."""

    async def main() -> None:
        stream = await ask(server)
        cursor = aiter(stream)
        if how == "task":
            reading: asyncio.Future[Any] = asyncio.create_task(stream.text())
        elif how == "gather":
            reading = asyncio.gather(stream.text(), stream.result())
        else:
            reading = asyncio.ensure_future(read_all(stream))
        while stream.text_so_far == "":
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        await asyncio.get_running_loop().run_in_executor(None, server.wait_for_disconnect, 5)
        assert server.cancelled == 1
        assert stream.done
        del cursor

    with FakeServer(Answer(TEXT).then(Hang(), after_tokens=3)) as server:
        run(main())


def test_a_time_limit_around_a_coroutine_of_ones_own_leaves_the_stream(run: Run) -> None:
    """`wait_for` is a time limit on every Python, whatever it is put around."""

    async def main() -> None:
        stream = await ask(server)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(read_all(stream), 0.05)
        await asyncio.sleep(0.01)
        assert not stream.done
        assert await stream.text() == TEXT

    with FakeServer(Answer(TEXT, delay=0.02)) as server:
        run(main())
