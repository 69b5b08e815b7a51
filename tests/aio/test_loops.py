"""Streams and event loops: how loops, programs and forked processes end, and what streams cost that nobody reads."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.tasks import FIVE, STALLING, TEXT, Run, ask, read_all, read_five, until

from aicortex import AsyncStream, achat, chat
from aicortex.testing import Answer, Exchange, FakeServer, Reply, split_tokens


@pytest.mark.parametrize("state", ["unread", "read a little", "read by a task"])
def test_a_loop_may_end_while_a_stream_is_open(run: Run, state: str) -> None:
    """asyncio.run returns: the server is free, nothing warns, and what came can still be looked at."""

    async def main() -> AsyncStream:
        stream = await ask(server)
        assert await until(server, lambda: server.active == 1)
        if state == "read a little":
            await read_five(stream)
        elif state == "read by a task":
            tasks.append(asyncio.create_task(read_all(stream)))
            await read_five(stream)
        return stream

    tasks: list[asyncio.Task[Any]] = []
    with FakeServer(STALLING) as server:
        stream = run(main())
        assert server.wait_for_disconnect(1)
    assert stream.text_so_far == ("" if state == "unread" else FIVE)
    stream.cancel()
    stream.cancel()
    assert stream.done
    tasks.clear()
    del stream
    gc.collect()  # a connection that was left open warns now, which fails the test


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # asyncio's own, to whoever closes loops in this way
def test_a_loop_that_was_closed_without_a_word() -> None:
    """Who closes a loop by hand may still cancel and drop what is open on it."""

    async def main() -> AsyncStream:
        stream = await ask(server)
        await read_five(stream)
        return stream

    with FakeServer(STALLING) as server:
        loop = asyncio.new_event_loop()
        stream = loop.run_until_complete(main())
        loop.close()
        stream.cancel()
        assert stream.text_so_far == FIVE
        del stream
        gc.collect()
        assert server.wait_for_disconnect(1)


def test_a_stream_belongs_to_its_loop(run: Run) -> None:
    """Reading on in another loop is an error that says so; what is whole can be read anywhere."""

    async def begin(is_whole: bool) -> AsyncStream:
        stream = await ask(server)
        if is_whole:
            await stream.text()
        else:
            await read_five(stream)
        return stream

    async def elsewhere(stream: AsyncStream) -> str:
        return await stream.text()

    async def main() -> None:
        stream = await begin(is_whole=False)
        with pytest.raises(RuntimeError, match="event loop"):
            await asyncio.to_thread(run, elsewhere(stream))
        assert not stream.done
        stream.cancel()

    with FakeServer(Answer(TEXT), STALLING) as server:
        assert run(elsewhere(run(begin(is_whole=True)))) == TEXT
        run(main())


def own_threads() -> list[str]:
    """Return the threads of this process that are not the server's."""
    return sorted(thread.name for thread in threading.enumerate() if not thread.name.startswith("FakeServer"))


def test_a_hundred_streams_need_no_thread(run: Run) -> None:
    """Streams that run side by side are whole, and no thread is there while they do."""
    before = own_threads()

    async def read() -> str:
        stream = await achat("Which?", stream=True, model="fake:latest", servers=server.url)
        words = []
        async for word in stream.tokens():
            words.append(word)
            assert own_threads() == before
            most.append(server.active)
        return "".join(words)

    async def main() -> None:
        assert await asyncio.gather(*[read() for _ in range(100)]) == [TEXT] * 100

    most: list[int] = []
    with FakeServer(answer=Answer(TEXT, first_delay=0.3, delay=0.005)) as server:
        run(main())
    assert max(most) > 50


def test_a_kept_connection_is_used_again_in_its_loop_alone(run: Run) -> None:
    """Answers of one loop that come one after the other need one connection, and the next loop begins with none."""

    async def main() -> None:
        for _ in range(20):
            assert await achat("Which?", servers=server.url) == TEXT
            # the end of the body comes behind the last chunk
            assert await asyncio.to_thread(server.wait_until, lambda: server.active == 0)

    with FakeServer(answer=TEXT) as server:
        assert chat("Which?", servers=server.url) == TEXT  # so that it is known which models there are
        assert server.connections == 1
        for loops in (1, 2):
            run(main())
            assert server.connections == 1 + loops


def test_two_loops_at_once_share_nothing(run: Run) -> None:
    """Loops in several threads each have their own connections, and every answer is whole."""

    async def main() -> list[str]:
        return await asyncio.gather(*[achat("Which?", servers=server.url) for _ in range(10)])

    found: list[list[str]] = []
    with FakeServer(answer=Answer(TEXT, delay=0.001)) as server:
        threads = [threading.Thread(target=lambda: found.append(run(main()))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [[TEXT] * 10] * 4


ENDS = """
import asyncio, sys
from aicortex import achat

async def main():
    stream = await achat("Which?", stream=True, servers=sys.argv[1])
    words = aiter(stream.tokens())
    for _ in range(5):
        await anext(words)
    print("ready", flush=True)
    await {ending}

asyncio.run(main())
"""


@pytest.mark.parametrize("ending", ["anext(words)", "asyncio.sleep(60)", "stream.text()"])
def test_control_c_ends_a_program_and_frees_the_server(ending: str) -> None:
    """C11: Ctrl-C in asyncio.run shows a KeyboardInterrupt and nothing else, whatever the program waits for."""
    command = [sys.executable, "-W", "error", "-c", ENDS.format(ending=ending)]
    with (
        FakeServer(STALLING) as server,
        subprocess.Popen([*command, server.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program,
    ):
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        program.send_signal(signal.SIGINT)
        assert server.wait_for_disconnect(1)
        _, told = program.communicate(timeout=10)
    assert program.returncode == -signal.SIGINT
    assert told.decode().splitlines()[-1] == "KeyboardInterrupt"
    assert "Warning" not in told.decode()


@pytest.mark.parametrize("ending", ["asyncio.sleep(0)", "stream.__aexit__(None, None, None)"])
def test_a_program_that_ends_says_nothing(ending: str) -> None:
    """A stream that is open or cancelled at the end of the program leaves no word of it on the terminal."""
    command = [sys.executable, "-W", "error", "-c", ENDS.format(ending=ending)]
    with FakeServer(STALLING) as server:
        ended = subprocess.run([*command, server.url], capture_output=True, text=True, timeout=30, check=False)
        assert (ended.stdout, ended.stderr, ended.returncode) == ("ready\n", "", 0)
        assert server.wait_for_disconnect(1)


@pytest.mark.parametrize("how", ["cancel", "drop", "leave"])
def test_a_forked_child_leaves_its_parents_stream_alone(run: Run, how: str) -> None:
    """What the child does with its copy of a stream costs the parent not one token."""

    async def main() -> None:
        streams = [await ask(server, stall_timeout=5)]
        await anext(aiter(streams[0].tokens()))
        child = os.fork()
        if child == 0:
            try:
                if how == "leave":
                    await streams[0].__aexit__(None, None, None)
                elif how == "cancel":
                    streams[0].cancel()
                streams.clear()  # its loop must not run: it would read what is the parent's
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert await streams[0].text() == TEXT

    with FakeServer(Answer(TEXT, delay=0.01)) as server:
        run(main())


@dataclass
class Flood(Reply):
    """A text of many megabytes as fast as the client takes it, and an account of how many bytes were taken."""

    tokens: int
    written: list[int] = field(default_factory=list)

    def play(self, exchange: Exchange) -> None:
        for _ in range(self.tokens):
            exchange.token(content="x" * 10_000)
            exchange.flush()
            self.written.append(10_000)
        exchange.done({"done_reason": "stop"})


def test_a_server_waits_for_a_stream_that_nobody_reads(run: Run) -> None:
    """Back-pressure: no more than some buffers is taken from a server before somebody reads; then it is all there."""

    async def main() -> None:
        stream = await ask(server)
        assert await until(server, lambda: server.active == 1)
        assert not await until(server, lambda: server.active == 0, 0.5)
        assert sum(flood.written) < 20_000_000
        assert stream.text_so_far == ""
        assert len(await stream.text()) == 40_000_000

    flood = Flood(4000)
    with FakeServer(flood) as server:
        run(main())


def test_a_stream_that_nobody_reads_costs_nothing(run: Run) -> None:
    """Nothing runs in the background: an answer that is here already is decoded when somebody reads it."""

    async def main() -> None:
        stream = await ask(server)
        assert await until(server, lambda: server.active == 0 and bool(server.requests[-1].json))
        assert stream.text_so_far == ""
        assert not stream.done
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert await stream.text() == TEXT

    with FakeServer(Answer(TEXT)) as server:
        run(main())


def test_a_late_reader_still_gets_what_came(run: Run) -> None:
    """A deadline that passed while nobody read does not throw away an answer that is here."""

    async def main() -> None:
        stream = await ask(server, first_token_timeout=0.2, stall_timeout=0.2)
        await asyncio.sleep(0.5)  # past both deadlines, on purpose
        assert await stream.text() == TEXT

    with FakeServer(Answer(TEXT)) as server:
        run(main())


def test_one_task_may_read_several_streams_in_turn(run: Run) -> None:
    """Streams that are read a token at a time, by turns, do not wait for one another."""

    async def main() -> None:
        readers = [aiter((await ask(server)).tokens()) for server in (one, two)]
        texts = ["", ""]
        for _ in split_tokens(TEXT):
            for number, reader in enumerate(readers):
                texts[number] += await anext(reader)
        assert texts == [TEXT, TEXT]
        for reader in readers:
            with pytest.raises(StopAsyncIteration):
                await anext(reader)

    with FakeServer(Answer(TEXT, delay=0.002)) as one, FakeServer(Answer(TEXT)) as two:
        run(main())
