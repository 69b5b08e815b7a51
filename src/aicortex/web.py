"""Streams on their way to a browser, for Starlette and FastAPI: server-sent events and WebSockets.

    @app.get("/chat")
    async def answer(prompt: str) -> Response:
        return sse_response(await achat(prompt, stream=True))

Both ways keep the terms of a stream to the last metre: a page is told how an answer ended, and a reader that is gone
stops the generation on the server, also while the model is silent. Needs Starlette, which nothing else here loads.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from aicortex.astream import AsyncStream
from aicortex.errors import AICortexError
from aicortex.events import StreamEvent

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send
    from starlette.websockets import WebSocket


FAILED = "failed"  # the type of an event that is in no stream: `failed_event`
COMMENT = b": keep-alive\n\n"  # a line that begins with a colon is skipped by every reader (HTML standard, 9.2.6)
HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold events back until it has a page full of them
}
# EventSource calls what listens to "error" when the connection breaks, too: a server's failure needs another name.
NAMES = {"error": "server_failed"}


def failed_event(error: Exception) -> StreamEvent:
    """Return the last word on an answer that is not whole, as an event of the type `failed`.

    `content` is the message; `meta` has the class's name as `error` and the text delivered before as `partial`. Streams
    have no such event: it stands for what reading them raises, where an exception cannot go.
    """
    meta = {"error": type(error).__name__, "partial": getattr(error, "partial", "")}
    return StreamEvent(FAILED, str(error), meta=meta)


async def stream_to_websocket(stream: AsyncStream, websocket: WebSocket) -> str | None:
    """Send a stream's events over an accepted WebSocket as they come, each as a text message of JSON.

    The last message is the event `end`, or `failed` (see `failed_event`) for an answer that broke off or was stopped.
    A message that arrives meanwhile stops the answer, on the model's server too, and is returned, so that a page
    can send its next prompt at any time; None means that the answer was over first. Raises WebSocketDisconnect when
    the client leaves. However this ends, the stream is over.
    """
    events = aiter(_checked(stream))
    incoming = asyncio.ensure_future(_message(websocket))
    incoming.add_done_callback(lambda _: stream.cancel())
    try:
        async for event in events:
            await websocket.send_text(event.to_json())
    except AICortexError as error:
        if not incoming.done() or incoming.exception() is None:  # else nobody is there to be told
            await websocket.send_text(failed_event(error).to_json())
    finally:
        incoming.cancel()  # which stops the stream too; without effect on a message that has just come: it is not lost
        await asyncio.wait([incoming])
    return None if incoming.cancelled() else incoming.result()


async def _message(websocket: WebSocket) -> str:
    """Return the next message, one of bytes as the text that it is; `receive_text` knows no other than of text."""
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000), message.get("reason"))
    text: str | None = message.get("text")
    return bytes(message["bytes"]).decode("utf-8", "replace") if text is None else text


def sse_response(
    stream: AsyncStream, *, last_event_id: str | None = None, keep_alive: float = 15.0, linger: float = 0.0
) -> Response:
    """Return a response that sends a stream's events as server-sent events, as they come.

    Each has its type as name (`error` is called `server_failed`: EventSource has an "error" of its own), its JSON as
    data, and an id. The last one is `end`, or `failed` (see `failed_event`) for an answer that broke off; the page
    must close its EventSource then. After `keep_alive` seconds of silence a comment is sent, so that nothing on the
    way takes the connection for dead. When the last reader of the stream has left, it is cancelled: at once, or if no
    other response reads it within `linger` seconds.

    With `last_event_id`, the request's header `Last-Event-ID`, the events behind that one are sent. If there are none
    because the reader has had them all, or because the id is not of this stream, the response is 204, upon which
    EventSource does not come back: it never has the same question answered again by itself.

    Raises ValueError for a `keep_alive` that is not above 0 or a `linger` below it, and TypeError for what is no
    AsyncStream.
    """
    if not keep_alive > 0:
        raise ValueError(f"keep_alive must be seconds above 0, not {keep_alive!r}")
    if not linger >= 0:
        raise ValueError(f"linger must be seconds from 0 on, not {linger!r}")
    position = 0
    _checked(stream)
    if last_event_id:
        position = _find(stream, last_event_id)
        if position < 0:
            return Response(status_code=204)
    return _EventStream(stream, position, keep_alive, linger)


def sse_failure(error: Exception) -> Response:
    """Return a response that is one server-sent event, `failed`, for a question that could not be asked.

    It has the status 200, because EventSource does not show a page the body of any other.
    """
    return Response(_frame(failed_event(error)), headers=HEADERS, media_type=_EventStream.media_type)


def _checked(stream: AsyncStream) -> AsyncStream:
    if not isinstance(stream, AsyncStream):
        raise TypeError(
            f"give what 'await achat(…, stream=True)' returns, an AsyncStream, not a {type(stream).__name__}"
        )
    return stream


def _name(stream: AsyncStream) -> str:
    """What the ids of a stream begin with, unlike those of any other: when it began."""
    return f"{int((stream.events[0].timestamp or 0) * 1e6):x}"


def _find(stream: AsyncStream, event_id: str) -> int:
    """Return how many of the stream's events a reader has had, -1 if no more of them can follow."""
    name, _, number = event_id.partition("-")
    log = stream.events
    if name != _name(stream) or not number.isdecimal() or len(number) > 9:
        return -1
    is_over = stream.done
    had, last = int(number), len(log) + (is_over and log[-1].type != "end")  # `failed` is in no log, and comes behind
    if had > last or (is_over and had == last):
        return -1
    return had


def _frame(event: StreamEvent, event_id: str = "") -> bytes:
    """Return an event as server-sent; its JSON is one line, whatever lines the text has."""
    head = f"id: {event_id}\n" if event_id else ""
    return f"event: {NAMES.get(event.type, event.type)}\n{head}data: {event.to_json()}\n\n".encode()


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


class _Audience:
    """How many responses read one stream; when the last one leaves, it is cancelled."""

    def __init__(self) -> None:
        self._count = 0
        self._farewell: asyncio.TimerHandle | None = None

    def join(self) -> None:
        self._count += 1
        if self._farewell is not None:
            self._farewell.cancel()

    def leave(self, stream: AsyncStream, linger: float) -> None:
        self._count -= 1
        if self._count > 0:
            return
        if linger > 0:
            self._farewell = asyncio.get_running_loop().call_later(linger, stream.cancel)
        else:
            stream.cancel()


_audiences: WeakKeyDictionary[AsyncStream, _Audience] = WeakKeyDictionary()


class _EventStream(Response):
    """Sends one stream to one reader.

    Starlette's own StreamingResponse looks for a reader that is gone by failing to send, where the server says that it
    speaks ASGI 2.4, and that never happens while a model is silent. So this one listens by itself, always.
    """

    media_type = "text/event-stream"

    def __init__(self, stream: AsyncStream, position: int, keep_alive: float, linger: float) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS)
        self._stream = stream
        self._events = aiter(stream)
        self._position = position  # how many events the reader has
        self._keep_alive = keep_alive
        self._linger = linger
        self._is_gone = False
        self._sending = asyncio.Lock()  # a comment must not overtake an event that waits for a slow reader
        self._due = 0.0  # when a comment is, on the loop's clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; returns when the answer is over, or its reader is gone and the stream cancelled."""
        _audiences.setdefault(self._stream, _Audience()).join()
        watching = asyncio.ensure_future(self._watch(receive))
        filling = asyncio.ensure_future(self._fill_silence(send))
        try:
            head = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await self._send(send, head)
            if scope.get("method") != "HEAD":
                await self._send_events(send)
            await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._leave(linger=0.0)
            filling.cancel()
            watching.cancel()
            await asyncio.gather(filling, watching, return_exceptions=True)
        if self.background is not None:
            await self.background()

    async def _send_events(self, send: Send) -> None:
        """Send what the reader does not have yet; when it is gone, read on for those who may come back."""
        name, position = _name(self._stream), 0
        try:
            async for event in self._events:
                position += 1
                if position > self._position:
                    await self._send(send, _part(_frame(event, f"{name}-{position}")))
        except AICortexError as error:
            await self._send(send, _part(_frame(failed_event(error), f"{name}-{position + 1}")))

    async def _send(self, send: Send, message: Message) -> None:
        async with self._sending:
            if self._is_gone:
                return
            try:
                await send(message)
            except OSError:  # since ASGI 2.4 a server may say so that the reader is gone
                self._leave(self._linger)
            self._due = asyncio.get_running_loop().time() + self._keep_alive

    async def _fill_silence(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + self._keep_alive
        while not self._is_gone:
            await asyncio.sleep(self._due - loop.time())
            if loop.time() >= self._due:
                await self._send(send, _part(COMMENT))

    async def _watch(self, receive: Receive) -> None:
        """Wait until the reader is gone; what it sent before is of no interest."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._leave(self._linger)

    def _leave(self, linger: float) -> None:
        if not self._is_gone:
            self._is_gone = True
            _audiences[self._stream].leave(self._stream, linger)
