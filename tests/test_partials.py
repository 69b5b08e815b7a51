"""The growing value of a JSON answer, as readers of a stream see it in both colours."""

from __future__ import annotations

import asyncio
import copy
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.colours import PATIENCE, BlockingStream, Chat, Steps, only_sync

from aicortex import AsyncStream, OutputValidationError, Stream, StreamInterruptedError, achat
from aicortex.partials import Growth
from aicortex.testing import Answer, Close, Exchange, FakeServer, Reply, Stall

ORDER = {"customer": "Ada", "items": [{"name": "bolt", "price": 0.25}, {"name": "nut", "price": 3}], "paid": True}
TOKENS = [json.dumps(ORDER)[start : start + 4] for start in range(0, len(json.dumps(ORDER)), 4)]
Ask = Callable[..., Any]  # a Stream or a BlockingStream, whichever colour


@pytest.fixture
def ask(chat: Chat) -> Ask:
    """Ask a server for a stream, in both colours."""
    return lambda *servers, **more: chat("Which?", stream=True, servers=[server.url for server in servers], **more)


def partials_of(stream: Stream | BlockingStream) -> Iterator[Any]:
    """Return what `partials()` gives, as an iterator that blocks."""
    if isinstance(stream, Stream):
        return stream.partials()
    return Steps(stream._portal, stream._stream.partials())


def copies(partials: Iterator[Any]) -> list[Any]:
    """Read to the end and return a copy of each value."""
    return [copy.deepcopy(value) for value in partials]


@dataclass(frozen=True)
class OneByOne(Reply):
    """An answer that sends a token whenever it is allowed to."""

    tokens: tuple[str, ...]
    permits: threading.Semaphore

    def play(self, exchange: Exchange) -> None:
        for token in self.tokens:
            self.permits.acquire(timeout=PATIENCE)
            exchange.token(content=token)
        exchange.done({"done_reason": "stop"})


def test_the_value_grows_with_the_tokens(ask: Ask) -> None:
    """Each token that changes the value gives it once, the same object, and the end gives none."""
    permits = threading.Semaphore(0)
    steps = [
        ("{", {}),
        ('"a":"', {"a": ""}),
        ("x", {"a": "x"}),
        ("y", {"a": "xy"}),
        ('","b":[1', {"a": "xy", "b": []}),
        (",", {"a": "xy", "b": [1]}),
        ("2]}", {"a": "xy", "b": [1, 2]}),
    ]
    with FakeServer(OneByOne(tuple(token for token, _ in steps), permits)) as server:
        partials = partials_of(ask(server))
        first = None
        for _, expected in steps:
            permits.release()
            value = next(partials)
            first = value if first is None else first
            assert value == expected
            assert value is first
        assert list(partials) == []
        assert list(partials) == []


def test_tokens_that_change_nothing_are_waited_through(ask: Ask) -> None:
    """White space and half a key are no reason to wake the reader."""
    permits = threading.Semaphore(5)
    with FakeServer(OneByOne((" ", "\n", "{", ' "ke', 'y": ', "1", " }"), permits)) as server:
        partials = partials_of(ask(server))
        assert next(partials) == {}
        permits.release(2)
        assert next(partials) == {"key": 1}
        assert list(partials) == []


def test_the_last_value_is_the_whole_one(ask: Ask) -> None:
    """Whatever is taken together, the values end in what the text stands for, and so does a second reading."""
    with FakeServer(Answer(TOKENS)) as server:
        stream = ask(server)
        assert copies(partials_of(stream))[-1] == ORDER
        assert copies(partials_of(stream)) == [ORDER]
        assert json.loads(stream.text()) == ORDER


def test_a_number_alone_comes_with_the_end(ask: Ask) -> None:
    """A number at the top is known when the answer is over, and comes once."""
    with FakeServer(Answer(["1", "2", "3"])) as server:
        assert list(partials_of(ask(server))) == [123]


def test_thinking_is_no_part_of_the_value(ask: Ask) -> None:
    """What the model thinks before its answer does not count."""
    with FakeServer(Answer(TOKENS, thinking="{ maybe [")) as server:
        assert copies(partials_of(ask(server)))[-1] == ORDER


def test_a_fence_around_the_answer_does_not_matter(ask: Ask) -> None:
    """A model that writes Markdown is understood, as `chat` understands it."""
    with FakeServer(Answer(["```", "json", "\n", *TOKENS, "\n``", "`\n"])) as server:
        assert copies(partials_of(ask(server)))[-1] == ORDER


def test_a_failover_is_not_seen(ask: Ask) -> None:
    """The value goes on growing at another server."""
    broken = Answer(TOKENS).then(Close(), after_tokens=9)
    with FakeServer(broken) as first, FakeServer(Answer(TOKENS), continuation="".join(TOKENS[9:])) as second:
        stream = ask(first, second)
        partials = partials_of(stream)
        root = next(partials)
        assert copies(partials)[-1] == root == ORDER
        assert [event.type for event in stream.events].count("error") == 1


def test_a_wrong_character_is_told_at_once(ask: Ask) -> None:
    """What can be no JSON is an error while the answer still comes, with the text so far; and it stays one."""
    answer = Answer(['{"a": 1', ", and", " more"]).then(Stall(), after_tokens=2)
    with FakeServer(answer) as server, ask(server) as stream:
        partials = partials_of(stream)
        for _ in range(2):
            with pytest.raises(
                OutputValidationError, match="no JSON: expected a key, not 'a', at character 9"
            ) as caught:
                copies(partials)
            assert (caught.value.text, stream.done) == ('{"a": 1, and', False)
            assert caught.value.reason == "It is no JSON: expected a key, not 'a', at character 9"


@pytest.mark.parametrize("tokens", [['{"a": ', "[1"], [" "], ["tru"], ["```json\n", "1"]])
def test_an_answer_that_ends_too_soon_is_no_json(ask: Ask, tokens: list[str]) -> None:
    """A text that could go on is an error at its end, every time it is asked for."""
    with FakeServer(Answer(tokens)) as server:
        partials = partials_of(ask(server))
        for _ in range(2):
            with pytest.raises(OutputValidationError, match="not the end, at character") as caught:
                list(partials)
            assert caught.value.text == "".join(tokens)


def test_what_ends_the_stream_ends_the_values(ask: Ask) -> None:
    """When no server can go on, the values so far come first and then the stream's own error."""
    with FakeServer(Answer(TOKENS).then(Close(), after_tokens=9)) as server:
        partials = partials_of(ask(server, resume="never"))
        root = next(partials)
        for _ in range(2):
            with pytest.raises(StreamInterruptedError):
                list(partials)
        assert root["customer"] == "Ada"


def test_two_readers_have_values_of_their_own(ask: Ask) -> None:
    """What one reader does to its value is not seen by another one."""
    with FakeServer(Answer(TOKENS)) as server:
        stream = ask(server)
        [*_, mine] = partials_of(stream)
        mine.clear()
        assert copies(partials_of(stream))[-1] == ORDER


STORM = """
import json, random, signal, sys
from aicortex import chat

reading, hits = False, 0

def interrupt(*_):
    global reading, hits
    if hits < 50:  # an interrupt every few milliseconds for ever would leave no time to read again
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.004))
    if reading:
        reading, hits = False, hits + 1
        raise KeyboardInterrupt

stream = chat("x", stream=True, model="fake:latest", servers=sys.argv[1])
partials, value, is_over = stream.partials(), None, False
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.0001)
while not is_over:
    try:
        reading = True
        for value in partials:
            pass
        reading = False
        is_over = True
    except KeyboardInterrupt:
        pass
signal.setitimer(signal.ITIMER_REAL, 0)
print(hits > 10, value == json.loads(stream.text()), len(value["text"]))
"""


@only_sync  # an interrupt ends asyncio.run
@pytest.mark.usefixtures("chat")
def test_a_storm_of_interrupts_loses_nothing() -> None:
    """C12: wherever an interrupt falls, the values go on, and end in the whole one."""
    words = [f"w{number} " for number in range(10_000)]
    with FakeServer(Answer(['{"text": "', *words, '"}'])) as server:
        command = [sys.executable, "-c", STORM, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.stdout.split(), done.stderr) == (["True", "True", str(len("".join(words)))], "")


def test_an_interrupted_step_begins_again() -> None:
    """A log that was being read when an interrupt came is read again, from its start, into a new value."""

    class Interrupting(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            if len(self) == index + 1 and not interrupts.pop():
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with FakeServer(Answer(TOKENS)) as server:
        from aicortex import chat

        stream = chat("Which?", stream=True, servers=server.url)
        stream.text()
    interrupts = [True, False]
    growth = Growth(Interrupting(stream.events))
    with pytest.raises(KeyboardInterrupt):
        growth.take()
    begun = growth.value
    assert growth.take()
    assert growth.value == ORDER
    assert growth.value is not begun


def test_a_cancelled_read_is_taken_up_again() -> None:
    """A time limit around one read leaves the values as they are."""
    permits = threading.Semaphore(1)

    async def main() -> None:
        stream = await achat("Which?", stream=True, servers=server.url)
        assert isinstance(stream, AsyncStream)
        partials = stream.partials()
        root = await anext(partials)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(partials), 0.02)
        permits.release(2)
        assert [value async for value in partials][-1] is root
        assert root == {"a": 1}

    with FakeServer(OneByOne(('{"a":', "1", "}"), permits)) as server:
        asyncio.run(main())


def test_async_partials_say_how_to_read_them() -> None:
    """A plain `for` over the partials of an AsyncStream is told what to write."""

    async def main() -> None:
        async with await achat("Which?", stream=True, servers=server.url) as stream:
            with pytest.raises(TypeError, match="'async for'"):
                iter(stream.partials())  # type: ignore[call-overload]

    with FakeServer(Answer("{}")) as server:
        asyncio.run(main())
