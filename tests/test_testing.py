"""The fake server shows on the wire what its script says, with h11 as the judge of the framing."""

from __future__ import annotations

import dataclasses
import doctest
import errno
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import h11
import pytest
import trustme

import aicortex.testing
from aicortex.testing import (
    Answer,
    Close,
    Exchange,
    FakeServer,
    Garbage,
    Hang,
    InBandError,
    Loading,
    ManualClock,
    Raw,
    Refuse,
    Reply,
    Request,
    Reset,
    Stall,
    Status,
    split_tokens,
)
from aicortex.testing.exchange import Connection

TEXT = "one two three four five six seven"
BUSY = "server busy, please try again.  maximum pending requests exceeded"


@dataclasses.dataclass
class Seen:
    """What a client got: `end` is whole, reset, broken (FIN inside a response), not HTTP or silent."""

    status: int | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    chunks: list[bytes] = dataclasses.field(default_factory=list)
    end: str = "silent"

    @property
    def records(self) -> list[Any]:
        return [json.loads(chunk) for chunk in self.chunks]

    @property
    def text(self) -> str:
        return "".join(record.get("message", {}).get("content", "") for record in self.records)


def encode(path: str = "/api/chat", **body: Any) -> bytes:
    content = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "Hi"}]} | body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: fake\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def connect(server: FakeServer) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=10)


def observe(client: socket.socket, request: bytes, *, chunks: float = float("inf")) -> Seen:
    """Send `request`, return what comes until the response ends or has so many chunks (0: the headers)."""
    client.sendall(request)
    judge, seen, pieces = h11.Connection(h11.CLIENT), Seen(), b""
    judge.send(h11.Request(method="POST", target="/", headers=[("Host", "fake")]))
    judge.send(h11.EndOfMessage())
    try:
        while seen.status is None or len(seen.chunks) < chunks:
            event = judge.next_event()
            if event is h11.NEED_DATA:
                judge.receive_data(client.recv(65536))
            elif isinstance(event, h11.Response):
                seen.status = event.status_code
                seen.headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                pieces += event.data
                if event.chunk_end or not seen.headers.get("transfer-encoding"):
                    seen.chunks.append(pieces)
                    pieces = b""
            else:
                seen.end = "whole" if isinstance(event, h11.EndOfMessage) else "broken"
                return seen
    except ConnectionResetError:
        seen.end = "reset"
    except h11.RemoteProtocolError:
        seen.end = "not HTTP" if seen.status is None and judge.trailing_data[0] else "broken"
    return seen


def ask(server: FakeServer, path: str = "/api/chat", **body: Any) -> Seen:
    with closing(connect(server)) as client:
        return observe(client, encode(path, **body))


def get(server: FakeServer, path: str, **headers: str) -> tuple[int, bytes]:
    client = http.client.HTTPConnection(server.host, server.port, timeout=10)
    with closing(client):
        client.request("GET", path, headers=headers)
        response = client.getresponse()
        return response.status, response.read()


def render(server: FakeServer, *messages: dict[str, str]) -> str:
    seen = ask(server, messages=list(messages), _debug_render_only=True, stream=False)
    rendered = seen.records[0]["_debug_info"]["rendered_template"]
    assert isinstance(rendered, str)
    return rendered


def complete(server: FakeServer, prompt: str, **body: Any) -> tuple[str, dict[str, Any]]:
    """Return the text and the last record of a raw request."""
    records = ask(server, "/api/generate", raw=True, prompt=prompt, **body).records
    return "".join(record["response"] for record in records), records[-1]


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the context of a server and one that trusts it."""
    authority = trustme.CA()
    context, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(trusting)
    return context, trusting


def read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def is_silent(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        client.recv(1)
    except BlockingIOError:
        return True
    return False


@pytest.fixture(autouse=True)
def _no_thread_survives() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("FakeServer")] == []


def test_an_answer_is_one_token_per_chunk_and_a_done_record_with_usage() -> None:
    """An answer comes as NDJSON, one object per HTTP chunk, and only the last one is done."""
    with FakeServer(Answer(TEXT)) as server:
        seen = ask(server)
    assert (seen.status, seen.end, seen.headers["content-type"]) == (200, "whole", "application/x-ndjson")
    assert [record["message"]["content"] for record in seen.records] == [*split_tokens(TEXT), ""]
    assert [record["done"] for record in seen.records] == [False] * 7 + [True]
    assert (seen.records[-1]["done_reason"], seen.records[-1]["eval_count"]) == ("stop", 7)
    assert all(chunk.count(b"\n") == 1 and chunk.endswith(b"\n") for chunk in seen.chunks)


def test_the_parts_of_an_answer_come_in_ollamas_shapes() -> None:
    """Thinking precedes the text, tool calls come whole, and the done record may carry text."""
    answer = Answer(["Let me", " see"], thinking="Hm hm", tool_calls=[("look", {"at": "sky"})], done_content=".")
    with FakeServer(answer) as server:
        messages = [record["message"] for record in ask(server).records]
        flat = ask(server, "/api/generate", prompt="Hi").records
    assert [message.get("thinking") for message in messages[:2]] == ["Hm", " hm"]
    assert [message["content"] for message in messages[2:]] == ["Let me", " see", "", "."]
    assert messages[4]["tool_calls"] == [
        {"id": "call_0", "function": {"index": 0, "name": "look", "arguments": {"at": "sky"}}}
    ]
    assert "".join(record["response"] for record in flat) == "The quick brown fox jumps over the lazy dog."


def test_without_streaming_the_answer_is_one_object() -> None:
    """`"stream": false` gets the whole answer as one JSON object with a length."""
    with FakeServer(
        Answer(TEXT, thinking="Hm", done_content="!"), Answer(TEXT).then(Reset(), after_tokens=5)
    ) as server:
        seen, cut = ask(server, stream=False), ask(server, stream=False)
    assert seen.headers["content-length"] == str(len(seen.chunks[0]))
    assert seen.records[0]["message"] == {"role": "assistant", "content": TEXT + "!", "thinking": "Hm"}
    assert seen.records[0]["done"] is True
    assert (cut.status, cut.end) == (None, "reset")


@pytest.mark.parametrize("split", [[1], [2, 3, 5, 7], [65536]])
def test_any_slicing_of_the_writes_leaves_the_stream_the_same(split: list[int]) -> None:
    """Where the writes cut the bytes does not change what they say."""
    with FakeServer(Answer(TEXT, split=split)) as server:
        seen = ask(server)
    assert (seen.text, seen.end) == (TEXT, "whole")


def test_writes_have_the_sizes_of_the_split() -> None:
    """Each slice is a write of its own, and the rest goes out at the end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # datagrams keep the borders of writes
    request = Request("GET", "/", {}, b"", None, 0.0)
    with ours, theirs:
        exchange = Exchange(FakeServer(), Connection(ours), request)
        Raw(b"abcdefghi", split=[3, 1]).play(exchange)
        exchange.flush()
        assert [theirs.recv(9) for _ in range(4)] == [b"abc", b"d", b"efg", b"h"]
        assert theirs.recv(9) == b"i"


ERRORS: list[tuple[Reply, int, Any]] = [
    (Status(404), 404, {"error": "model 'fake' not found"}),
    (Status(429, headers={"Retry-After": "3"}), 429, {"error": "too many requests"}),
    (Status(500), 500, {"error": "internal server error"}),
    (Status(503), 503, {"error": BUSY}),
    (Status(400, {"error": "no"}), 400, {"error": "no"}),
    (InBandError("out of memory"), 200, {"error": "out of memory"}),
]


@pytest.mark.parametrize(("fault", "status", "body"), ERRORS)
def test_an_error_before_the_headers_is_a_response_of_its_own(fault: Reply, status: int, body: Any) -> None:
    """An error before the headers comes with its status, and the connection goes on."""
    with FakeServer(fault, Answer(TEXT)) as server, closing(connect(server)) as client:
        seen = observe(client, encode())
        assert (seen.status, seen.records, seen.end) == (status, [body], "whole")
        assert observe(client, encode()).text == TEXT
        assert server.connections == 1
    assert seen.headers.get("retry-after") == ("3" if status == 429 else None)


@pytest.mark.parametrize("tokens", [0, 5])
@pytest.mark.parametrize(("fault", "_status", "body"), ERRORS)
def test_an_error_after_the_headers_is_the_last_line(fault: Reply, _status: int, body: Any, tokens: int) -> None:
    """An error after the headers is a line of the stream, after the tokens and without a done record."""
    with FakeServer(Answer(TEXT).then(fault, after_tokens=tokens)) as server:
        seen = ask(server)
    assert (seen.status, seen.end, len(seen.records)) == (200, "whole", tokens + 1)
    assert (seen.records[-1], seen.text) == (body, "".join(split_tokens(TEXT)[:tokens]))


ENDS = [
    (Garbage(), "not HTTP", "whole", 1),
    (Reset(), "reset", "reset", 0),
    (Close(), "broken", "whole", 0),
    (Close(last_chunk=False), "broken", "broken", 0),
    (Refuse(), "reset", "reset", 0),
    (Raw(b"zzz\r\n"), "not HTTP", "broken", 0),
    (Status.html(), "whole", "whole", 1),
]


@pytest.mark.parametrize(("fault", "before", "after", "more"), ENDS)
@pytest.mark.parametrize("tokens", [None, 0, 5])
def test_every_fault_ends_the_stream_its_own_way(
    fault: Reply, before: str, after: str, more: int, tokens: int | None
) -> None:
    """A fault ends the connection as it says, in each phase, and nothing is lost that was sent before it."""
    reply = fault if tokens is None else Answer(TEXT).then(fault, after_tokens=tokens)
    with FakeServer(reply) as server:
        seen = ask(server)
        assert server.wait_until(lambda: server.active == 0)
        assert server.cancelled == 0
    if tokens is None:
        assert seen.end == before
        return
    assert (seen.status, seen.end, len(seen.chunks)) == (200, after, tokens + more)
    assert all(b'"done":false' in chunk for chunk in seen.chunks[:tokens])


@pytest.mark.parametrize("tokens", [None, 0, 5])
def test_silence_lasts_until_the_client_leaves(tokens: int | None) -> None:
    """A hang or stall sends nothing more, and the server learns at once that the client has left."""
    reply = Hang() if tokens is None else Answer(TEXT).then(Stall(), after_tokens=tokens)
    with FakeServer(reply) as server:
        with closing(connect(server)) as client:
            if tokens is None:
                client.sendall(encode())
            else:
                assert len(observe(client, encode(), chunks=tokens).chunks) == tokens
            assert server.wait_until(lambda: server.active == 1)
            assert is_silent(client)
            assert server.cancelled == 0
        assert server.wait_for_disconnect()
        assert (server.active, server.cancelled) == (0, 1)


def test_a_client_that_leaves_in_the_middle_of_a_stream_is_noticed() -> None:
    """Leaving between two tokens counts as cancelled; reading to the end does not."""
    endless = Answer(["x"] * 200_000)
    with FakeServer(Answer(TEXT), endless, Answer(TEXT, delay=600)) as server:
        assert ask(server).end == "whole"
        for count in (1, 2):
            with closing(connect(server)) as client:
                assert len(observe(client, encode(), chunks=1).chunks) == 1
            assert server.wait_for_disconnect(count=count)
        assert (server.cancelled, server.active) == (2, 0)


def test_leaving_behind_the_done_record_is_no_cancel() -> None:
    """Whoever has the whole answer may leave without it counting as cancelled."""
    with FakeServer(Answer(TEXT).then(Hang(), after_bytes=1_000_000)) as server:
        assert ask(server).end == "whole"
        assert server.wait_until(lambda: server.active == 0)
        assert server.cancelled == 0


def test_waiting_reports_what_does_not_happen() -> None:
    """A wait for a cancel that never comes returns False."""
    with FakeServer() as server:
        assert not server.wait_for_disconnect(timeout=0.01)


def test_a_cut_without_a_place_replaces_the_done_record() -> None:
    """Without a number the fault comes behind the last token."""
    with FakeServer(Answer(TEXT).then(Close())) as server:
        seen = ask(server)
    assert (seen.text, seen.end, seen.records[-1]["done"]) == (TEXT, "whole", False)


@pytest.mark.parametrize("size", [0, 1, 100, 300])
def test_a_cut_at_a_byte_sends_exactly_so_many(size: int) -> None:
    """`after_bytes` counts from the first byte of the status line."""
    cut = Answer(TEXT).then(Close(last_chunk=False), after_bytes=size)
    with FakeServer(cut) as server, closing(connect(server)) as client:
        client.sendall(encode())
        assert len(read_all(client)) == size


def test_raw_bytes_arrive_as_given_and_may_keep_the_connection() -> None:
    """`Raw` writes a response by hand; kept open, the connection takes the next request."""
    raw = b"HTTP/1.1 418 \r\nContent-Length: 2\r\n\r\nhi"
    with (
        FakeServer(Raw(raw, keep_open=True, split=[1]), Raw(raw)) as server,
        closing(connect(server)) as client,
    ):
        assert observe(client, encode()).chunks[-1].endswith(b"i")
        client.sendall(encode())
        assert read_all(client) == raw


def test_a_refusing_server_comes_back_on_its_port() -> None:
    """Refused connections get ECONNREFUSED, from the beginning too, until the server starts again."""
    with FakeServer(everything=Refuse()) as server:
        port = server.port
        with pytest.raises(ConnectionRefusedError):
            connect(server)
        server.everything = None
        server.start()
        assert ask(server).end == "whole"
        server.refuse()
        with pytest.raises(OSError, match="refused") as refused:
            connect(server)
        assert (refused.value.errno, server.port) == (errno.ECONNREFUSED, port)
        with closing(socket.socket()) as thief, pytest.raises(OSError, match="in use"):
            thief.bind((server.host, port))


def test_a_refusal_resets_other_streams_and_is_no_cancel() -> None:
    """The death of the server ends the streams of other clients with RST."""
    with FakeServer(Hang(), Refuse()) as server, closing(connect(server)) as other:
        other.sendall(encode())
        assert server.wait_until(lambda: server.active == 1)
        assert ask(server).end == "reset"
        with pytest.raises(ConnectionResetError):
            other.recv(1)
        assert server.wait_until(lambda: server.active == 0)
        assert server.cancelled == 0


def test_stop_ends_hangs_and_idle_connections() -> None:
    """Stopping closes whatever is open, is no cancel, and the port can be had again."""
    server = FakeServer(Hang(), Answer(["x" * 65536] * 1000))
    server.start()
    with closing(connect(server)) as idle, closing(connect(server)) as hung, closing(connect(server)) as full:
        hung.sendall(encode())
        assert server.wait_until(lambda: server.active == 1)
        full.sendall(encode())
        assert server.wait_until(lambda: server.active == 2 and server.connections == 3)
        server.stop()
        assert (idle.recv(1), hung.recv(1)) == (b"", b"")
    assert (server.cancelled, server.active) == (0, 0)
    server.start()
    assert ask(server).text == "The quick brown fox jumps over the lazy dog."
    server.stop()


def test_the_catalogue_tells_the_truth_and_uses_up_no_reply() -> None:
    """Everything but generation is answered from `models`, whatever the script says."""
    with FakeServer(Status(500), models={"a:1b": "d1", "b:latest": "d2"}, version="0.1.2") as server:
        assert get(server, "/") == (200, b"Ollama is running")
        assert json.loads(get(server, "/api/version")[1]) == {"version": "0.1.2"}
        tags, loaded = (json.loads(get(server, path)[1])["models"] for path in ("/api/tags", "/api/ps"))
        assert [(m["name"], m["digest"]) for m in tags] == [
            ("a:1b", "d1"),
            ("b:latest", "d2"),
        ]
        assert [m["model"] for m in loaded] == ["a:1b", "b:latest"]
        assert "completion" in ask(server, "/api/show", model="a:1b").records[0]["capabilities"]
        assert ask(server, model="a").records == [{"error": "model 'a' not found"}]
        assert ask(server, model="b", messages=[]).records[0]["done_reason"] == "load"
        assert ask(server, "/api/generate", model="b", keep_alive=0).records[0]["done_reason"] == "unload"
        assert get(server, "/nothing")[0] == 404
        assert ask(server, model="b").status == 500


def test_the_catalogue_can_misbehave_too() -> None:
    """`paths` and `everything` overrule the truth, and can change while the server runs."""
    with FakeServer(paths={"/api/ps": Status(500)}) as server:
        assert (get(server, "/api/ps")[0], get(server, "/api/tags")[0]) == (500, 200)
        server.everything = Status.html(200)
        assert get(server, "/api/version")[1].startswith(b"<html>")
        server.everything = None
        server.script(Status(503))
        assert (ask(server).status, ask(server).status) == (503, 200)


def test_required_headers_are_demanded_from_everyone() -> None:
    """Without the required header every path says 401."""
    with FakeServer(require={"Authorization": "Bearer k"}) as server:
        assert (get(server, "/api/tags")[0], ask(server).status) == (401, 401)
        assert get(server, "/api/tags", Authorization="Bearer k")[0] == 200


def test_requests_are_recorded_in_order() -> None:
    """The record has method, path, headers, JSON, bytes and time of each request, chunked or not."""
    with FakeServer() as server:
        get(server, "/api/tags?x=1", **{"X-Who": "me"})
        client = http.client.HTTPConnection(server.host, server.port, timeout=10)
        with closing(client):
            client.request(
                "POST",
                "/api/chat",
                iter([b'{"model": ', b'"fake"}']),
                encode_chunked=True,
                headers={"Transfer-Encoding": "chunked"},
            )
            assert client.getresponse().read().endswith(b'"done_reason":"load"}')
        first, second = server.requests
    assert (first.method, first.path, first.headers["x-who"], first.json) == ("GET", "/api/tags", "me", None)
    assert (second.method, second.body, second.json) == ("POST", b'{"model": "fake"}', {"model": "fake"})
    assert first.at <= second.at


def test_a_rendered_prompt_is_continued_where_it_stops() -> None:
    """Rendering shows the template, and a raw prompt that ends with a piece of the answer gets its rest."""
    with FakeServer(answer=TEXT) as server:
        debug = ask(server, _debug_render_only=True, stream=False).records[0]["_debug_info"]
        assert debug == {"rendered_template": "<|user|>Hi\n<|assistant|>", "image_count": 0}
        for delivered, rest in [
            ("one tw", "o three four five six seven"),
            ("", TEXT),
            ("else", TEXT),
            (TEXT, ""),
        ]:
            prompt = debug["rendered_template"] + delivered
            records = ask(server, "/api/generate", raw=True, prompt=prompt).records
            assert "".join(record["response"] for record in records) == rest


USER = {"role": "user", "content": "Hi"}
BEGUN = {"role": "assistant", "content": "one tw"}
REST = "o three four five six seven"


@pytest.mark.parametrize(
    ("template", "rendered", "said"),
    [
        ("chatml", "<|user|>Hi\n<|assistant|>one tw\n<|assistant|>", TEXT),
        ("prefill", "<|user|>Hi\n<|assistant|>one tw", REST),
    ],
)
def test_the_template_decides_whether_a_begun_answer_goes_on(template: str, rendered: str, said: str) -> None:
    """A last message of the assistant is closed or left open, and the answer is a new one or the rest."""
    with FakeServer(answer=TEXT, template=template) as server:
        assert render(server, USER, BEGUN) == rendered
        assert render(server, USER) + "one tw" == "<|user|>Hi\n<|assistant|>one tw"
        assert ask(server, messages=[USER, BEGUN]).text == said
        assert ask(server, messages=[USER, BEGUN | {"content": "else"}]).text == TEXT
        assert ask(server, messages=[USER, BEGUN, USER]).text == TEXT


@pytest.mark.parametrize(
    ("messages", "lines"),
    [
        (
            [USER, {"role": "assistant", "content": "A", "thinking": "T"}, USER],
            "<|assistant|><think>T</think>A\n<|user|>Hi",
        ),
        ([USER, {"role": "assistant", "content": None}, USER], "<|assistant|>\n<|user|>Hi"),
        ([USER, USER], "\n\nHi"),
        ([USER, {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}], "<|tool|>1\n<|tool|>2"),
    ],
)
@pytest.mark.parametrize("template", ["chatml", "prefill"])
def test_a_conversation_is_rendered_line_by_line(messages: list[Any], lines: str, template: str) -> None:
    """Thinking precedes its content, and neighbours of one role are merged unless they are of tools."""
    separator = "" if lines.startswith("\n") else "\n"
    with FakeServer(template=template) as server:
        assert render(server, *messages) == f"<|user|>Hi{separator}{lines}\n<|assistant|>"


def test_an_unknown_template_is_refused() -> None:
    """A template that does not exist raises before the server starts."""
    with pytest.raises(ValueError, match="only chatml, prefill"):
        FakeServer(template="llama")


def test_thinking_is_not_repeated_behind_a_begun_answer() -> None:
    """A continuation goes on behind the thinking, by raw prompt and by message, and never thinks again."""
    begun = BEGUN | {"thinking": "Hm hm"}
    with FakeServer(answer=Answer(TEXT, thinking="Hm hm"), template="prefill") as server:
        rendered = render(server, USER, begun)
        assert rendered == "<|user|>Hi\n<|assistant|><think>Hm hm</think>one tw"
        assert complete(server, rendered)[0] == REST
        assert complete(server, "<|assistant|><think>Hm")[0] == TEXT
        messages = [record["message"] for record in ask(server, messages=[USER, begun]).records]
        whole = [record["message"] for record in ask(server).records]
    assert ("".join(message["content"] for message in messages), "thinking" in messages[0]) == (REST, False)
    assert [message.get("thinking") for message in whole[:3]] == ["Hm", " hm", None]


def test_a_raw_prompt_gets_nothing_but_text() -> None:
    """Raw requests pass no parser: no chunk has thinking or tool calls, even where the answer begins."""
    with FakeServer(answer=Answer(TEXT, thinking="Hm", tool_calls=[("look", {})])) as server:
        text, last = complete(server, "<|user|>Hi\n<|assistant|>")
    assert (text, last["eval_count"]) == (TEXT, 7)


def test_a_continuation_counts_what_was_delivered_as_prompt() -> None:
    """The prompt's tokens are the question's and the delivered ones, the generated ones only the rest."""
    answer = Answer(["a", "b", "c", " d"], done_content="!", prompt_eval_count=5)
    with FakeServer(answer=answer, template="prefill") as server:
        said = [complete(server, f"<|assistant|>{begun}") for begun in ("", "ab", "abc d", "abc d!", "x y z")]
        chat = ask(server, messages=[USER, BEGUN | {"content": "abc"}]).records[-1]
    counts = [(text, last["prompt_eval_count"], last["eval_count"]) for text, last in said]
    assert counts == [("abc d!", 5, 4), ("c d!", 7, 2), ("!", 9, 0), ("", 9, 0), ("abc d!", 8, 4)]
    assert (chat["prompt_eval_count"], chat["eval_count"]) == (8, 1)


def test_a_continuation_can_be_scripted() -> None:
    """`continuation` answers raw requests and last messages of the assistant, and uses up no reply."""
    with FakeServer(Answer("first"), answer=TEXT, continuation="Sure! one two") as server:
        assert complete(server, "<|assistant|>one")[0] == "Sure! one two"
        assert ask(server, messages=[USER, BEGUN]).text == "Sure! one two"
        server.continuation = Status(500)
        assert ask(server, messages=[USER, BEGUN]).status == 500
        assert render(server, USER, BEGUN).endswith("<|assistant|>")
        server.continuation = None
        assert ask(server).text == "first"
        assert complete(server, "<|assistant|>one")[0] == TEXT.removeprefix("one")


def test_a_reply_of_ones_own_knows_what_was_delivered() -> None:
    """`exchange.generation` has the rendered prompt and the part of the answer in it."""

    class Echo(Reply):
        def play(self, exchange: Exchange) -> None:
            exchange.token(content=exchange.generation.delivered + "|" + exchange.generation.prompt)
            exchange.done({})

    with FakeServer(continuation=Echo()) as server:
        assert complete(server, "<|user|>Hi\n<|assistant|>one")[0] == "one|<|user|>Hi\n<|assistant|>one"


@pytest.mark.parametrize(
    ("version", "renders"),
    [("0.11.4", False), ("0.9.0", False), ("0.11.5", True), ("0.12.0-rc1", True), ("1.0.0", True)],
)
def test_servers_before_0_11_5_generate_instead_of_rendering(version: str, renders: bool) -> None:
    """An old server ignores the flag, generates its answer within the options and keeps its script."""
    with FakeServer(Answer("script"), answer=TEXT, continuation="else", version=version) as server:
        options = {"num_predict": 1}
        [record] = ask(server, messages=[USER, BEGUN], _debug_render_only=True, stream=False, options=options).records
        assert ("_debug_info" in record, record["done"]) == (renders, not renders)
        if not renders:
            assert (record["message"]["content"], record["done_reason"]) == ("one", "length")
        assert ask(server).text == "script"


@pytest.mark.parametrize(
    ("options", "text", "reason", "count"),
    [
        ({"num_predict": 2}, "one two", "length", 2),
        ({"num_predict": 4}, "one two three four", "length", 4),
        ({"num_predict": 5}, "one two three four.", "stop", 4),
        ({"num_predict": -1}, "one two three four.", "stop", 4),
        ({"num_predict": 0, "stop": None}, "one two three four.", "stop", 4),
        ({"stop": ["three"]}, "one two ", "stop", 3),
        ({"stop": ["four", "wo t"]}, "one t", "stop", 2),
        ({"stop": ["one"]}, "", "stop", 0),
        ({"stop": [" two"]}, "one", "stop", 1),
        ({"stop": ["."]}, "one two three four", "stop", 4),
        ({"stop": ["five", ""]}, "one two three four.", "stop", 4),
        ({"stop": ["three"], "num_predict": 2}, "one two", "length", 2),
        ({"stop": ["two"], "num_predict": 2}, "one ", "stop", 2),
        (None, "one two three four.", "stop", 4),
    ],
)
@pytest.mark.parametrize("streams", [True, False])
def test_an_answer_keeps_to_the_options(options: Any, text: str, reason: str, count: int, streams: bool) -> None:
    """`num_predict` ends the answer behind so many tokens, `stop` before the first of its strings."""
    with FakeServer(answer=Answer("one two three four", done_content=".")) as server:
        seen = ask(server, options=options, stream=streams)
    last = seen.records[-1]
    assert (seen.text, last["done_reason"], last["eval_count"]) == (text, reason, count)


def test_a_stop_string_ends_thinking_and_tools_too() -> None:
    """Thinking counts as tokens but is not searched, and no tool is called behind the stop."""
    answer = Answer("one two", thinking="two", tool_calls=[("look", {})])
    with FakeServer(answer=answer) as server:
        stopped = [record["message"] for record in ask(server, options={"stop": ["two"]}).records]
        thought = [record["message"] for record in ask(server, options={"num_predict": 1}).records]
        whole = [record["message"] for record in ask(server, options={"num_predict": 9}).records]
    assert [(message.get("thinking"), message["content"]) for message in stopped] == [
        ("two", ""),
        (None, "one"),
        (None, " "),
        (None, ""),
    ]
    assert [message.get("thinking") for message in thought] == ["two", None]
    assert [len(message.get("tool_calls", [])) for message in whole] == [0, 0, 0, 1, 0]


def test_a_stop_string_is_looked_for_only_behind_the_seam() -> None:
    """A stop string that spans the seam is not found, as each request knows only what it generates."""
    with FakeServer(answer=TEXT) as server:
        text, last = complete(server, "<|assistant|>one tw", options={"stop": ["two", "five"], "num_predict": 6})
    assert (text, last["done_reason"]) == ("o three four ", "stop")


@pytest.mark.parametrize(
    "body", [{"messages": "Hi"}, {"messages": [{"role": "user", "content": 1}]}, {"options": {"stop": "x"}}]
)
def test_a_field_of_the_wrong_type_is_the_callers_fault(body: dict[str, Any]) -> None:
    """What Ollama cannot decode gets 400 and uses up no reply."""
    with FakeServer(Answer(TEXT)) as server:
        seen = ask(server, **body)
        assert (seen.status, list(seen.records[0])) == (400, ["error"])
        assert ask(server).text == TEXT


GET_PS = b"GET /api/ps HTTP/1.1\r\nHost: fake\r\n\r\n"


def test_a_load_is_silent_and_blocks_the_list_of_loaded_models() -> None:
    """While a model loads its request and /api/ps wait, /api/version does not, until the load is finished."""
    with (
        FakeServer(Loading(Answer(TEXT))) as server,
        closing(connect(server)) as client,
        closing(connect(server)) as asking,
    ):
        client.sendall(encode())
        assert server.wait_until(lambda: server.loading == 1)
        asking.sendall(GET_PS)
        assert server.wait_until(lambda: len(server.requests) == 2)
        assert (get(server, "/api/version")[0], get(server, "/api/tags")[0]) == (200, 200)
        assert (is_silent(client), is_silent(asking)) == (True, True)
        for waiting in (client, asking):
            waiting.settimeout(10)
        server.finish_loading()
        assert observe(client, b"").text == TEXT
        assert [model["name"] for model in observe(asking, b"").records[0]["models"]] == ["fake:latest"]
        assert (server.loading, server.aborted_loads, server.cancelled) == (0, 0, 0)


def test_a_load_can_end_by_itself_and_be_broken_off_like_any_reply() -> None:
    """A load with a time ends when it has passed, and a fault strikes behind it."""
    loading = Loading(Answer(TEXT), seconds=0.01)
    with FakeServer(loading, loading.then(Close(), after_tokens=1)) as server:
        assert (ask(server).text, ask(server).text) == (TEXT, "one")
        assert (server.loading, server.aborted_loads) == (0, 0)


@pytest.mark.parametrize("speaks_tls", [False, True])
def test_leaving_aborts_a_load(speaks_tls: bool) -> None:
    """A client that leaves while the model loads is noticed at once, and the next load is a new one."""
    context, trusting = contexts()
    with FakeServer(Loading(Answer(TEXT)), Answer(TEXT), tls=context if speaks_tls else None) as server:
        plain = connect(server)
        client = trusting.wrap_socket(plain, server_hostname="127.0.0.1") if speaks_tls else plain
        with closing(client):
            client.sendall(encode() + b"more")
            assert server.wait_until(lambda: server.loading == 1)
        assert server.wait_until(lambda: server.aborted_loads == 1)
        assert (server.loading, server.active, server.cancelled) == (0, 0, 1)


def test_stopping_ends_loads_without_counting_them_as_aborted() -> None:
    """A server that stops while a model loads lets nobody wait on."""
    with (
        FakeServer(Loading(Answer(TEXT))) as server,
        closing(connect(server)) as client,
        closing(connect(server)) as asking,
    ):
        client.sendall(encode())
        assert server.wait_until(lambda: server.loading == 1)
        asking.sendall(GET_PS)
        assert server.wait_until(lambda: len(server.requests) == 2)
        server.stop()
        assert read_all(client) == b""
        assert (server.loading, server.aborted_loads, server.cancelled) == (0, 0, 0)


def test_what_a_server_shows_of_a_model_agrees() -> None:
    """/api/tags, /api/ps and /api/show tell the same digest, details and context length of a model."""
    with FakeServer(models={"a:1b": "d1"}, template="prefill") as server:
        [tag], [loaded] = (json.loads(get(server, path)[1])["models"] for path in ("/api/tags", "/api/ps"))
        shown = ask(server, "/api/show", model="a:1b").records[0]
    assert tag == {name: loaded[name] for name in tag if name != "modified_at"} | {"modified_at": shown["modified_at"]}
    assert shown["details"] == loaded["details"]
    assert shown["model_info"]["llama.context_length"] == loaded["context_length"]
    assert ("{{ if $new }}" in shown["template"], loaded["digest"]) == (True, "d1")


def test_tls_carries_the_same_streams() -> None:
    """With a context the server speaks TLS, notices who leaves and survives a failed handshake."""
    context, trusting = contexts()
    with FakeServer(Answer(TEXT), Answer(TEXT).then(Stall(), after_tokens=5), tls=context) as server:
        assert server.url == f"https://127.0.0.1:{server.port}"
        with closing(connect(server)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert server.wait_until(lambda: server.connections == 1)
        with closing(trusting.wrap_socket(connect(server), server_hostname="127.0.0.1")) as client:
            assert observe(client, encode()).text == TEXT
            assert len(observe(client, encode(), chunks=5).chunks) == 5
        assert server.wait_for_disconnect()


def test_a_reply_of_ones_own_has_the_whole_exchange() -> None:
    """A subclass of `Reply` decides from the request and can be cut like any other."""

    class Echo(Reply):
        def play(self, exchange: Exchange) -> None:
            for message in exchange.request.json["messages"]:
                exchange.token(content=message["content"])
            exchange.done({"done_reason": "length"})

    with FakeServer(Echo(), Echo().then(Close(), after_tokens=1)) as server:
        whole, cut = ask(server), ask(server)
    assert (whole.text, whole.records[-1]["done_reason"]) == ("Hi", "length")
    assert (cut.text, len(cut.chunks)) == ("Hi", 1)


@pytest.mark.parametrize("text", ["", " ", "one", " one  two\n\nthree ", "日本 語\u2028x"])
def test_tokens_join_to_their_text(text: str) -> None:
    """Cutting into tokens loses nothing."""
    assert "".join(split_tokens(text)) == text


def test_the_manual_clock_moves_only_by_hand() -> None:
    """The clock stands still until it is advanced, and never goes back."""
    clock = ManualClock(5.0)
    clock.advance(0.5)
    assert (clock(), clock()) == (5.5, 5.5)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-1)


def test_the_examples_of_the_documentation_run() -> None:
    """Every example in the docstrings works as written."""
    for module in (aicortex.testing, aicortex.testing.clock, aicortex.testing.replies):
        results = doctest.testmod(module)
        assert results.failed == 0 < results.attempted


def test_every_public_name_is_documented_and_the_example_runs() -> None:
    """docs/testing.md names all that `aicortex.testing` offers, but for what only subclasses of Reply meet."""
    page = (Path(__file__).parent.parent / "docs" / "testing.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    exec(compile(example, "docs/testing.md", "exec"), {})
    missing = {name for name in aicortex.testing.__all__ if name not in page} - {"Cut", "Exchange", "split_tokens"}
    assert missing == set()
