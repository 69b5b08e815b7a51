"""Server-sent events and WebSockets: what a page gets, how an answer ends for it, and that leaving stops the answer."""

from __future__ import annotations

import asyncio
import functools
import gc
import http.client
import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from aicortex import AsyncStream, StreamEvent, achat, chat
from aicortex.testing import Answer, Close, FakeServer, Hang, Loading, Reply, Stall, Status
from aicortex.web import failed_event, sse_failure, sse_response, stream_to_websocket

TEXT = "The quick brown fox jumps over the lazy dog."  # what a FakeServer answers
STALLING = Answer(TEXT).then(Stall(), after_tokens=2)
DOCS = (Path(__file__).parents[1] / "docs" / "web.md").read_text("utf-8")
LIMIT = 30.0  # seconds
Test = Callable[..., Awaitable[None]]


def in_loop(test: Test) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:  # Any: as pytest hands them over
        asyncio.run(asyncio.wait_for(test(**fixtures), LIMIT))

    return run


async def ask(*servers: FakeServer, **arguments: Any) -> AsyncStream:
    return await achat("Hi", stream=True, servers=[server.url for server in servers], **arguments)


async def has_left(server: FakeServer, times: int = 1) -> bool:
    """Wait until the client of this model's server has left so many answers; it has a second for that."""
    return await asyncio.to_thread(server.wait_for_disconnect, 1.0, count=times)


class Reader:
    """The far end of a connection, as an ASGI server shows it: reads as fast as it likes, says things, and leaves."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.reads = asyncio.Event()  # cleared: it is slow, and `send` waits
        self.reads.set()
        self.says: asyncio.Queue[Message] = asyncio.Queue()
        self.error: OSError | None = None  # what sending to it raises
        self.waiting = self.waited = 0  # how many sends wait for it now, and how many did at most
        self._news = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.waiting += 1
        self.waited = max(self.waited, self.waiting)
        await self.reads.wait()
        self.waiting -= 1
        if self.error is not None:
            raise self.error
        self.got.append(message)
        self._news.set()

    async def until(self, claim: Callable[[], bool]) -> None:
        """Wait until what it got makes the claim true."""
        while not claim():
            self._news.clear()
            await self._news.wait()


class Page(Reader):
    """A page that reads one response of server-sent events."""

    def __init__(self) -> None:
        super().__init__()
        self.says.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    def load(self, response: Response, *, method: str = "GET") -> asyncio.Task[None]:
        scope = {"type": "http", "method": method, "asgi": {"version": "3.0", "spec_version": "2.4"}}
        return asyncio.create_task(response(scope, self.says.get, self.send))

    def leave(self) -> None:
        self.says.put_nowait({"type": "http.disconnect"})

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.got)

    @property
    def events(self) -> list[tuple[str, str, Message]]:
        """Name, id and data of each event."""
        return parse(self.body)

    @property
    def text(self) -> str:
        return "".join(data["content"] for name, _, data in self.events if name == "token")


def parse(body: bytes) -> list[tuple[str, str, Message]]:
    """Read server-sent events as the HTML standard says; the first line that is none of ours fails."""
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in re.split("\r\n|\r|\n", block) if not line.startswith(":"))
        if fields:
            found.append((fields.pop("event"), fields.pop("id", ""), json.loads(fields.pop("data"))))
            assert not fields
    return found


async def load(response: Response) -> Page:
    """Read a response to its end."""
    page = Page()
    await page.load(response)
    return page


def test_importing_the_package_does_not_load_starlette() -> None:
    """Only aicortex.web needs Starlette."""
    code = "import sys, aicortex; aicortex.achat; sys.exit('starlette' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@in_loop
async def test_each_event_is_sent() -> None:
    """Each event of the stream comes with its type as name and its JSON as data, under ids that no other has."""
    with FakeServer() as server:
        stream = await ask(server)
        page = await load(sse_response(stream))
    assert [(name, data) for name, _, data in page.events] == [
        (event.type, json.loads(event.to_json())) for event in stream.events
    ]
    assert page.events[-1][0] == "end"
    assert len({ids for _, ids, _ in page.events}) == len(stream.events)
    assert page.got[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


@in_loop
async def test_headers() -> None:
    """Nothing on the way may keep the events or hold them back."""
    with FakeServer() as server:
        response = sse_response(await ask(server))
    headers = {**response.headers}
    assert headers == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
    }


@in_loop
async def test_lines_in_a_token() -> None:
    """Whatever breaks lines in a text stays inside of its event."""
    text = "a\nb\r\nc\rd\n\ndata: e\n\nevent: end\n\n\u2028\x85\x00 f"
    with FakeServer(answer=text) as server:
        page = await load(sse_response(await ask(server)))
    assert page.text == text
    assert [name for name, _, _ in page.events].count("end") == 1


@in_loop
async def test_a_server_that_failed() -> None:
    """A failure behind which the answer goes on has a name that EventSource does not use itself."""
    with FakeServer(Answer(TEXT).then(Close(), after_tokens=3)) as one, FakeServer() as two:
        page = await load(sse_response(await ask(one, two)))
    assert page.text == TEXT
    told = [data for name, _, data in page.events if name == "server_failed"]
    assert [(data["type"], data["meta"]["server"]) for data in told] == [("error", one.url)]
    assert "error" not in [name for name, _, _ in page.events]


@pytest.mark.parametrize(
    ("reply", "error", "partial"),
    [
        (Answer(TEXT).then(Close(), after_tokens=3), "StreamInterruptedError", "The quick brown"),
        (Status(500), "AllServersFailedError", ""),
        (Status(400, '{"error": "no such thing"}'), "RequestRejectedError", ""),
    ],
)
@in_loop
async def test_an_answer_that_failed(reply: Reply, error: str, partial: str) -> None:
    """The last event says that the answer is not whole, why, and what there is of it."""
    with FakeServer(reply) as server:
        stream = await ask(server, resume="never")
        page = await load(sse_response(stream))
        with pytest.raises((RuntimeError, ValueError)) as caught:
            await stream.text()
    name, event_id, data = page.events[-1]
    assert (name, data["type"], data["content"]) == ("failed", "failed", str(caught.value))
    assert data["meta"] == {"error": error, "partial": partial}
    assert event_id not in [ids for _, ids, _ in page.events[:-1]]
    assert page.got[-1]["more_body"] is False


@in_loop
async def test_an_answer_that_was_stopped() -> None:
    """Who stops the stream elsewhere ends the page's answer, and the page is told."""
    with FakeServer(STALLING) as server:
        stream, page = await ask(server), Page()
        loading = page.load(sse_response(stream))
        await page.until(lambda: page.text == "The quick")
        stream.cancel()
        await loading
    assert page.events[-1][2]["meta"] == {"error": "StreamCancelledError", "partial": "The quick"}


@in_loop
async def test_a_question_that_could_not_be_asked() -> None:
    """What `achat` raises is shown to the page as an event like any other end."""
    page = await load(sse_failure(ValueError("prompt is empty")))
    assert [(name, data["content"], data["meta"]["error"]) for name, _, data in page.events] == [
        ("failed", "prompt is empty", "ValueError")
    ]


def test_failed_event() -> None:
    """The event has the shape of all events."""
    assert failed_event(ValueError("no")) == StreamEvent("failed", "no", meta={"error": "ValueError", "partial": ""})


@in_loop
async def test_comments_in_silence() -> None:
    """While a model is silent comments keep the connection alive, and the stream is not disturbed by them."""
    with FakeServer(Loading(Answer(TEXT))) as server:
        page = Page()
        loading = page.load(sse_response(await ask(server), keep_alive=0.02))
        await page.until(lambda: page.body.count(b": keep-alive\n\n") == 3)
        server.finish_loading()
        await loading
    assert page.text == TEXT


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
@in_loop
async def test_a_silence_that_is_none(seconds: float) -> None:
    """A wrong time between comments is refused."""
    with FakeServer() as server:
        stream = await ask(server)
        with pytest.raises(ValueError, match="linger"):
            sse_response(await ask(server), linger=-1)
        with pytest.raises(ValueError, match="keep_alive"):
            sse_response(stream, keep_alive=seconds)


@in_loop
async def test_no_comment_while_events_come() -> None:
    """What is not silent needs no comments."""
    with FakeServer() as server:
        page = await load(sse_response(await ask(server)))
    assert b": keep-alive" not in page.body


@in_loop
async def test_a_reader_that_comes_back() -> None:
    """The id of any event leads to the events behind it, from the log and then live."""
    with FakeServer(Answer(TEXT).then(Stall(), after_tokens=5)) as server, FakeServer() as other:
        stream = await ask(server, other, stall_timeout=0.2)
        whole = (await load(sse_response(stream))).events
        assert whole[-1][0] == "end"
        for had, (_, event_id, _) in enumerate(whole[:-1], 1):
            assert (await load(sse_response(stream, last_event_id=event_id))).events == whole[had:]


@in_loop
async def test_a_reader_that_has_had_all() -> None:
    """EventSource comes back by itself when a response ends; 204 is what tells it to stay away."""
    with FakeServer() as server, FakeServer(Answer(TEXT).then(Close(), after_tokens=3)) as broken:
        for stream in await ask(server), await ask(broken, resume="never"):
            last = (await load(sse_response(stream))).events[-1][1]
            response = sse_response(stream, last_event_id=last)
            assert (response.status_code, (await load(response)).body) == (204, b"")


@in_loop
async def test_an_answer_that_failed_is_not_whole_for_who_comes_back() -> None:
    """Who missed only the last word gets it."""
    with FakeServer(Answer(TEXT).then(Close(), after_tokens=3)) as server:
        stream = await ask(server, resume="never")
        *_, before, last = (await load(sse_response(stream))).events
        assert (await load(sse_response(stream, last_event_id=before[1]))).events == [last]


@in_loop
async def test_ids_of_another_answer() -> None:
    """A question that a page's EventSource repeats by itself is not answered again, and never mixed with another."""
    with FakeServer(answer=STALLING) as server, FakeServer() as other:
        first = (await load(sse_response(await ask(other)))).events
        name, _, number = first[-1][1].partition("-")
        for wrong in [*(event_id for _, event_id, _ in first), name, number, "-", "x-1"]:
            response = sse_response(await ask(server), last_event_id=wrong)
            assert response.status_code == 204
        del response
        assert await has_left(server, times=len(first) + 4)


@in_loop
async def test_an_id_that_was_not_given_yet() -> None:
    """Nobody can be ahead of the stream."""
    with FakeServer(STALLING) as server:
        stream, page = await ask(server), Page()
        loading = page.load(sse_response(stream))
        await page.until(lambda: page.text == "The quick")
        name = page.events[0][1].partition("-")[0]
        for ahead in str(len(stream.events) + 1), "9" * 5000, "²", "-1", "":
            assert sse_response(stream, last_event_id=f"{name}-{ahead}").status_code == 204
        stream.cancel()
        await loading


@in_loop
async def test_an_empty_id_is_none() -> None:
    """A reader that has had nothing gets everything."""
    with FakeServer() as server:
        assert (await load(sse_response(await ask(server), last_event_id=""))).text == TEXT


@pytest.mark.parametrize("reply", [Hang(), STALLING])
@in_loop
async def test_a_reader_that_leaves_in_silence(reply: Reply) -> None:
    """A reader that is gone stops the answer, before the first token and behind it, without anything being sent."""
    with FakeServer(reply) as server:
        stream, page = await ask(server), Page()
        loading = page.load(sse_response(stream))
        await page.until(lambda: b"connected" in page.body)
        page.leave()
        assert await has_left(server)
        await loading
        assert stream.done
    assert all(message.get("more_body", True) for message in page.got)


@in_loop
async def test_a_reader_that_shows_by_an_error_that_it_left() -> None:
    """A server that raises where the reader is gone, as ASGI has it since 2.4, is understood."""
    with FakeServer(STALLING) as server:
        page = Page()
        page.error = ConnectionResetError()
        await page.load(sse_response(await ask(server)))  # the headers
        assert await has_left(server)
    with FakeServer(STALLING) as server:
        page = Page()
        loading = page.load(sse_response(await ask(server), keep_alive=0.05))  # else nothing more may be to be sent
        await page.until(lambda: len(page.got) > 1)
        page.error = ConnectionResetError()
        await loading
        assert await has_left(server)


@pytest.mark.parametrize("is_slow", [False, True])
@in_loop
async def test_a_handler_that_is_cancelled(is_slow: bool) -> None:
    """The end of the handler's task, as at a shutdown, is the end of the answer, whatever it is waiting for."""
    with FakeServer(STALLING) as server:
        stream, page = await ask(server), Page()
        loading = page.load(sse_response(stream))
        await page.until(lambda: page.text.startswith("" if is_slow else "The quick"))
        if is_slow:
            page.reads.clear()
            await asyncio.wait([loading], timeout=0.1)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert await has_left(server)
        assert stream.done


@in_loop
async def test_a_request_for_the_headers_alone() -> None:
    """HEAD gets no answer generated."""
    with FakeServer(STALLING) as server:
        stream, page = await ask(server), Page()
        await page.load(sse_response(stream), method="HEAD")
        assert await has_left(server)
        assert stream.done
    assert page.body == b""


@in_loop
async def test_a_response_that_is_never_sent() -> None:
    """A response that is thrown away takes its answer with it."""
    with FakeServer(STALLING) as server:
        response = sse_response(await ask(server))
        del response
        assert await has_left(server)


@in_loop
async def test_lingering() -> None:
    """A reader that lost its connection finds its answer, which went on meanwhile; then it is over."""
    with FakeServer(Answer(TEXT).then(Stall(), after_tokens=5)) as server:
        stream, first, second = await ask(server), Page(), Page()
        leaving = first.load(sse_response(stream, linger=LIMIT))
        await first.until(lambda: bool(first.text))
        first.leave()
        await second.until(lambda: True)
        coming = second.load(sse_response(stream, linger=0.05, last_event_id=first.events[-1][1]))
        await second.until(lambda: first.text + second.text == "The quick brown fox jumps")
        assert not stream.done
        second.leave()
        assert await has_left(server)
        await asyncio.gather(leaving, coming)


@in_loop
async def test_lingering_begins_anew() -> None:
    """Each reader that leaves may be away as long as the first one."""
    with FakeServer(STALLING) as server:
        stream, pages = await ask(server), [Page(), Page()]
        tasks = []
        for page, linger in zip(pages, (0.1, LIMIT), strict=True):
            tasks.append(page.load(sse_response(stream, linger=linger)))
            await page.until(lambda page=page: page.text == "The quick")  # type: ignore[misc]
            page.leave()
            await asyncio.wait(tasks[-1:], timeout=0.01)
        await asyncio.wait(tasks, timeout=0.3)
        assert not stream.done
        stream.cancel()
        await asyncio.gather(*tasks)


@in_loop
async def test_several_readers() -> None:
    """An answer that several read goes on until the last of them has left."""
    with FakeServer(STALLING) as server:
        stream, one, two = await ask(server), Page(), Page()
        tasks = [page.load(sse_response(stream)) for page in (one, two)]
        await one.until(lambda: one.text == "The quick")
        await two.until(lambda: two.text == "The quick")
        one.leave()
        await asyncio.wait(tasks, timeout=0.1)
        assert not stream.done
        two.leave()
        assert await has_left(server)
        await asyncio.gather(*tasks)


@in_loop
async def test_a_slow_reader() -> None:
    """Nothing is read ahead for a page that reads slowly, no comment overtakes an event, and nothing is lost."""
    with FakeServer(Answer("word " * 5000)) as server:
        stream, page = await ask(server), Page()
        page.reads.clear()
        loading = page.load(sse_response(stream, keep_alive=0.01))
        await asyncio.wait([loading], timeout=0.1)
        assert (page.got, len(stream.events) < 5000) == ([], True)
        page.reads.set()
        await loading
    assert (page.text, page.waited) == ("word " * 5000, 1)


@in_loop
async def test_a_slow_reader_that_leaves() -> None:
    """A page that stopped reading and leaves stops the answer too."""
    with FakeServer(STALLING) as server:
        page = Page()
        loading = page.load(sse_response(await ask(server)))
        await page.until(lambda: bool(page.got))
        page.reads.clear()
        page.leave()
        assert await has_left(server)
        page.reads.set()
        await loading


@in_loop
async def test_background_tasks_of_the_response() -> None:
    """What is to be done behind a response is done."""
    done: list[str] = []
    with FakeServer() as server:
        response = sse_response(await ask(server))
        response.background = BackgroundTask(done.append, "done")
        await load(response)
    assert done == ["done"]


@in_loop
async def test_a_synchronous_stream() -> None:
    """What is no AsyncStream is refused at once, not in the middle of a response."""
    with FakeServer() as server:
        stream = chat("Hi", stream=True, servers=[server.url])
        with pytest.raises(TypeError):
            sse_response(stream)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await stream_to_websocket(stream, Socket().websocket)  # type: ignore[arg-type]


class Socket(Reader):
    """A page at the far end of a WebSocket."""

    def __init__(self) -> None:
        super().__init__()
        self.websocket = WebSocket({"type": "websocket", "headers": []}, self.says.get, self.send)
        self.websocket.client_state = self.websocket.application_state = WebSocketState.CONNECTED

    def say(self, text: str) -> None:
        self.says.put_nowait({"type": "websocket.receive", "text": text})

    def leave(self) -> None:
        self.says.put_nowait({"type": "websocket.disconnect", "code": 1001, "reason": ""})

    def watch(self, stream: AsyncStream) -> asyncio.Task[str | None]:
        return asyncio.create_task(stream_to_websocket(stream, self.websocket))

    @property
    def events(self) -> list[Message]:
        return [json.loads(message["text"]) for message in self.got]

    @property
    def text(self) -> str:
        return "".join(event["content"] for event in self.events if event["type"] == "token")


@in_loop
async def test_each_event_is_a_message() -> None:
    """Each event comes as JSON, `end` last, and None says that the answer was over before the page said anything."""
    with FakeServer() as server:
        stream, socket = await ask(server), Socket()
        assert await socket.watch(stream) is None
    assert socket.events == [json.loads(event.to_json()) for event in stream.events]


@in_loop
async def test_a_failed_answer_as_messages() -> None:
    """The last message says that the answer is not whole."""
    with FakeServer(Answer(TEXT).then(Close(), after_tokens=3)) as server:
        socket = Socket()
        assert await socket.watch(await ask(server, resume="never")) is None
    assert socket.events[-1]["type"] == "failed"
    assert socket.events[-1]["meta"] == {"error": "StreamInterruptedError", "partial": "The quick brown"}


@pytest.mark.parametrize("reply", [Hang(), STALLING])
@in_loop
async def test_a_message_stops_the_answer(reply: Reply) -> None:
    """What the page says meanwhile ends the answer on the model's server, is told as its end, and is returned."""
    with FakeServer(reply) as server:
        socket = Socket()
        watching = socket.watch(await ask(server))
        await socket.until(lambda: len(socket.got) > 1)
        socket.say("Something else")
        assert await has_left(server)
        assert await watching == "Something else"
    assert socket.events[-1]["meta"]["error"] == "StreamCancelledError"


@in_loop
async def test_a_message_of_bytes_stops_the_answer() -> None:
    """Whatever kind of message the page sends, it is one: it ends the answer and is returned as text."""
    with FakeServer(STALLING) as server:
        socket = Socket()
        watching = socket.watch(await ask(server))
        await socket.until(lambda: len(socket.got) > 1)
        socket.says.put_nowait({"type": "websocket.receive", "bytes": "Später".encode()})
        assert await watching == "Später"
        assert await has_left(server)


@pytest.mark.parametrize("turns", range(12))
@in_loop
async def test_no_message_is_lost_at_the_end(turns: int) -> None:
    """A message that comes about when the answer ends is returned or still there to be received."""
    with FakeServer() as server:
        socket = Socket()
        watching = socket.watch(await ask(server))
        await socket.until(lambda: any((event["meta"] or {}).get("kind") == "stats" for event in socket.events))
        for _ in range(turns):
            await asyncio.sleep(0)
        socket.say("Next")
        assert (await watching or await socket.websocket.receive_text()) == "Next"


@in_loop
async def test_a_chat_over_a_websocket() -> None:
    """The loop of the docs: prompts when the page likes, an empty message to stop, one end to each answer."""
    with FakeServer(STALLING, STALLING, Answer(TEXT)) as server:
        socket = Socket()

        async def converse() -> None:
            prompt = await socket.websocket.receive_text()
            while True:
                message = await stream_to_websocket(await ask(server), socket.websocket)
                prompt = message or await socket.websocket.receive_text()
                assert prompt

        def has_seen(text: str, ends: int) -> bool:
            ended = [event for event in socket.events if event["type"] in ("end", "failed")]
            return (socket.text, len(ended)) == (text, ends)

        conversing = asyncio.create_task(converse())
        two = "The quick"
        for message, *seen in ("First", two, 0), ("", two, 1), ("Second", two * 2, 1), ("Third", two * 2 + TEXT, 3):
            socket.say(message)
            await socket.until(functools.partial(has_seen, *seen))
        socket.leave()
        with pytest.raises(WebSocketDisconnect):
            await conversing
    kinds = [event["type"] for event in socket.events if event["type"] in ("start", "end", "failed")]
    assert kinds == ["start", "failed", "start", "failed", "start", "end"]


@pytest.mark.parametrize("reply", [Hang(), STALLING])
@in_loop
async def test_a_client_that_leaves_in_silence(reply: Reply) -> None:
    """A client that is gone stops the answer while nothing is sent, and the handler is told."""
    with FakeServer(reply) as server:
        socket = Socket()
        watching = socket.watch(await ask(server))
        await socket.until(lambda: len(socket.got) > 1)
        socket.leave()
        assert await has_left(server)
        with pytest.raises(WebSocketDisconnect) as caught:
            await watching
        assert caught.value.code == 1001
    assert socket.events[-1]["type"] != "failed"


@in_loop
async def test_a_client_that_cannot_be_sent_to() -> None:
    """A connection that breaks while something is sent is a client that left."""
    with FakeServer(STALLING) as server:
        socket = Socket()
        socket.error = ConnectionResetError()
        with pytest.raises(WebSocketDisconnect):
            await socket.watch(await ask(server))
        assert await has_left(server)


@in_loop
async def test_a_client_that_leaves_while_it_is_sent_to() -> None:
    """When both ways show it at once, one of them is raised and the other is not left to the loop to complain of."""
    complaints: list[Message] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    with FakeServer(STALLING) as server:
        socket = Socket()
        socket.reads.clear()
        watching = socket.watch(await ask(server))
        await asyncio.sleep(0)
        socket.leave()
        assert await has_left(server)
        socket.error = ConnectionResetError()
        socket.reads.set()
        with pytest.raises(WebSocketDisconnect):
            await watching
    del watching
    gc.collect()
    assert complaints == []


@in_loop
async def test_a_slow_client_that_stops() -> None:
    """A message stops the answer on the model's server even while the client reads nothing."""
    with FakeServer(STALLING) as server:
        socket = Socket()
        socket.reads.clear()
        watching = socket.watch(await ask(server))
        socket.say("Stop")
        assert await has_left(server)
        socket.reads.set()
        assert await watching == "Stop"


@in_loop
async def test_a_websocket_handler_that_is_cancelled() -> None:
    """The end of the handler's task is the end of the answer."""
    with FakeServer(STALLING) as server:
        socket = Socket()
        watching = socket.watch(await ask(server))
        await socket.until(lambda: socket.text == "The quick")
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        assert await has_left(server)


@contextmanager
def serve(app: Starlette, **settings: Any) -> Iterator[tuple[str, uvicorn.Server]]:
    """Serve an application in a thread; give where, and the server."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, **settings))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"{host}:{port}", server
    finally:
        server.should_exit = True
        thread.join(LIMIT)


async def answer(request: Request) -> Response:
    """Answer a question at the server that the address names."""
    stream = await achat("Hi", stream=True, servers=[request.query_params["server"]])
    return sse_response(stream, last_event_id=request.headers.get("last-event-id"))


async def converse(websocket: WebSocket) -> None:
    """Answer each message at the server that the address names."""
    await websocket.accept()
    try:
        prompt = await websocket.receive_text()
        while True:
            stream = await achat(prompt, stream=True, servers=[websocket.query_params["server"]])
            prompt = await stream_to_websocket(stream, websocket) or await websocket.receive_text()
    except WebSocketDisconnect:
        return


async def pass_on(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    return await call_next(request)


ROUTES = [Route("/sse", answer), WebSocketRoute("/ws", converse)]
APP = Starlette(routes=[*ROUTES, Mount("/wrapped", BaseHTTPMiddleware(Starlette(routes=ROUTES), dispatch=pass_on))])


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Host and port of a real web server with both ways."""
    with serve(APP) as (place, _):
        yield place


@contextmanager
def get(site: str, server: FakeServer, path: str = "/sse", **headers: str) -> Iterator[http.client.HTTPResponse]:
    """Ask over a real connection; leaving the block closes it."""
    with closing(http.client.HTTPConnection(site, timeout=LIMIT)) as client:
        client.request("GET", f"{path}?server={server.url}", headers=headers)
        with client.getresponse() as reply:
            yield reply


def open_socket(site: str, server: FakeServer, path: str = "/ws") -> ClientConnection:
    return connect(f"ws://{site}{path}?server={server.url}", open_timeout=LIMIT)


def read_until(client: ClientConnection, *types: str) -> list[Message]:
    """Read messages up to the first of one of these types."""
    messages: list[Message] = []
    while not messages or messages[-1]["type"] not in types:
        messages.append(json.loads(client.recv(timeout=LIMIT)))
    return messages


@pytest.mark.parametrize("path", ["/sse", "/wrapped/sse"])
def test_over_a_real_connection(site: str, path: str) -> None:
    """A real server sends the events as they come, to their end, and the same behind a middleware."""
    with FakeServer() as server, get(site, server, path) as reply:
        events = parse(reply.read())
    assert "".join(data["content"] for name, _, data in events if name == "token") == TEXT
    assert events[-1][0] == "end"
    with FakeServer() as server, get(site, server, path, **{"Last-Event-ID": events[-1][1]}) as reply:
        assert reply.status == 204


@pytest.mark.parametrize("path", ["/sse", "/wrapped/sse"])
@pytest.mark.parametrize("reply", [Hang(), STALLING])
def test_leaving_a_real_connection(site: str, path: str, reply: Reply) -> None:
    """Closing the connection frees the model's server within a second, also while it is silent."""
    with FakeServer(reply) as server:
        with get(site, server, path) as response:
            seen = b""
            while (b"connected" if reply == Hang() else b" quick") not in seen:
                seen += response.readline()
        assert server.wait_for_disconnect(timeout=1.0)


@pytest.mark.parametrize("path", ["/ws", "/wrapped/ws"])
@pytest.mark.parametrize("reply", [Hang(), STALLING])
def test_leaving_a_real_websocket(site: str, path: str, reply: Reply) -> None:
    """The same over a WebSocket."""
    with FakeServer(reply) as server:
        with open_socket(site, server, path) as client:
            client.send("Hi")
            read_until(client, "meta" if reply == Hang() else "token")
        assert server.wait_for_disconnect(timeout=1.0)


def test_a_real_conversation(site: str) -> None:
    """A prompt in the middle of an answer stops that one and gets its own."""
    with FakeServer(STALLING) as server, open_socket(site, server) as client:
        client.send("Hi")
        read_until(client, "token")
        client.send("Something else")
        assert read_until(client, "end", "failed")[-1]["meta"]["error"] == "StreamCancelledError"
        assert server.wait_for_disconnect(timeout=1.0)
        messages = read_until(client, "end", "failed")
        assert "".join(message["content"] for message in messages if message["type"] == "token") == TEXT


def test_shutdown() -> None:
    """A web server that ends with a time to do so ends the answers that are still coming."""
    with (
        FakeServer(STALLING, STALLING) as server,
        serve(APP, timeout_graceful_shutdown=1) as (place, web),
        get(place, server) as reply,
        open_socket(place, server) as client,
    ):
        client.send("Hi")
        read_until(client, "token")
        while b" quick" not in reply.readline():
            pass
        web.should_exit = True
        assert server.wait_for_disconnect(timeout=LIMIT, count=2)
        with pytest.raises(ConnectionClosed):
            read_until(client, "end", "failed")
        with pytest.raises((http.client.IncompleteRead, OSError)):
            reply.read()


def example(heading: str) -> Starlette:
    """Return the application that stands under a heading of docs/web.md."""
    code = DOCS.split(f"\n## {heading}\n")[1].split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}  # Any: whatever it defines
    exec(code, names)
    app: Starlette = names["app"]
    return app


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """The server that the examples ask."""
    with FakeServer() as server:
        monkeypatch.setenv("AICORTEX_SERVERS", server.url)
        yield server


@pytest.mark.usefixtures("fleet")
def test_the_docs_on_server_sent_events() -> None:
    """The example sends whole answers, and says what is wrong with a question."""
    with serve(example("Server-sent events")) as (place, _):
        for prompt, name, content in ("Hi", "end", ""), ("", "failed", "prompt is empty"):
            with urllib.request.urlopen(f"http://{place}/chat?prompt={prompt}", timeout=LIMIT) as reply:
                last = parse(reply.read())[-1]
            assert (last[0], last[2]["content"]) == (name, content)


def test_the_docs_on_websockets(fleet: FakeServer) -> None:
    """The example answers each prompt, says what is wrong with one, and stops for an empty one."""
    fleet.script(STALLING)
    with serve(example("WebSocket")) as (place, _), connect(f"ws://{place}/ws/chat", open_timeout=LIMIT) as client:
        client.send("Hi")
        read_until(client, "token")
        for message, error in ("", "StreamCancelledError"), (" ", "ValueError"), ("Hi", None):
            client.send(message)
            last = read_until(client, "end", "failed")[-1]
            assert last["meta"].get("error") == error
        assert last["type"] == "end"


def test_the_docs_on_coming_back(fleet: FakeServer) -> None:
    """The example gives a reader that lost its connection the rest, and stops an answer when told so."""
    fleet.script(STALLING)
    with serve(example("Coming back")) as (place, _), closing(http.client.HTTPConnection(place)) as client:

        def request(method: str, path: str, **headers: str) -> http.client.HTTPResponse:
            client.close()
            client.request(method, path, body="Hi" if method == "POST" else None, headers=headers)
            return client.getresponse()

        path = f"/answers/{json.loads(request('POST', '/answers').read())}"
        with request("GET", path) as reply:
            seen = b""
            while b" quick" not in seen:
                seen += reply.readline()
        assert request("DELETE", path).status == 200
        assert fleet.wait_for_disconnect(timeout=LIMIT)
        assert request("GET", path).status == 404
        path = f"/answers/{json.loads(request('POST', '/answers').read())}"
        whole = parse(request("GET", path).read())
        rest = request("GET", path, **{"Last-Event-ID": whole[3][1]})
        assert parse(rest.read()) == whole[4:]


@pytest.mark.parametrize("wrong", ["text", 5])
def test_what_is_no_stream_is_refused(wrong: Any) -> None:
    """The commonest mistake, a forgotten `await`, is told with what to write."""
    with pytest.raises(TypeError, match="await achat"):
        sse_response(wrong)
    with pytest.raises(TypeError, match="await achat"):
        asyncio.run(stream_to_websocket(wrong, None))  # type: ignore[arg-type]
