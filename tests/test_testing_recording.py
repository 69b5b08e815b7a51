"""What a real server said is said again: the same bytes in the same pieces, to the same requests, with the same end."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec
import pytest
from tests.colours import Chat
from tests.peers import deaf_port

from aicortex import AllServersFailedError, chat
from aicortex.recording import write_lines
from aicortex.testing import (
    Answer,
    Close,
    Exchange,
    FakeServer,
    Raw,
    Recorded,
    Relay,
    Reply,
    Reset,
    Stall,
    record,
    replay,
)

TEXT = "Seven planets have rings or moons."
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\x00\xff\n"
HEARD = {"closed": "closed", "cut": "closed", "reset": "reset"}  # by the client
SECRETS = b"Authorization: Bearer s3cret\r\nCookie: id=s3cret\r\nX-Gate: s3cret\r\n"


@pytest.fixture(autouse=True)
def _no_thread_survives() -> Iterator[None]:
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if name.startswith(("Relay", "FakeServer"))] == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "planets.jsonl"


class Pieces(Reply):
    """Exactly these bytes, and each piece goes out when the relay in front has passed on the one before."""

    def __init__(self, *pieces: bytes, end: Reply | None = None) -> None:
        self.pieces = pieces
        self.end = end
        self.relay: Relay | None = None

    def play(self, exchange: Exchange) -> None:
        assert self.relay is not None
        for piece in self.pieces:
            due = self.relay.response_bytes + len(piece)
            exchange.send(piece)
            self.relay.wait_until(partial(self._has_passed, due))
        if self.end is not None:
            self.end.play(exchange)

    def _has_passed(self, due: int) -> bool:
        assert self.relay is not None
        return self.relay.response_bytes == due


def request_of(body: bytes, path: bytes = b"/api/chat", headers: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: fake\r\n%sContent-Length: %d\r\n\r\n%s" % (path, headers, len(body), body)


def connect(server: FakeServer | Relay) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=10)


def read(client: socket.socket, last: bytes = b"") -> tuple[bytes, str]:
    """Return all bytes, and how it ended: "closed", "reset" or, when these are the last ones, perhaps "silent"."""
    data = b""
    try:
        while True:
            client.settimeout(0.1 if data.endswith(last) else 10)
            piece = client.recv(65536)
            if not piece:
                return data, "closed"
            data += piece
    except ConnectionResetError:
        return data, "reset"
    except TimeoutError:
        return data, "silent"


def said(server: FakeServer | Relay, request: bytes, last: bytes = b"") -> tuple[bytes, str]:
    with closing(connect(server)) as client:
        client.sendall(request)
        return read(client, last)


def lines_of(path: Path) -> list[Recorded]:
    return [msgspec.json.decode(line, type=Recorded) for line in path.read_bytes().splitlines()[1:-1]]


@pytest.mark.parametrize(
    ("pieces", "end", "ended"),
    [
        ([WHOLE[:20], WHOLE[20:]], None, "kept"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE], None, "kept"),
        ([b"HTTP/1.1 200 OK\r\n\r\n", b"no", b"length"], Close(), "closed"),
        ([WHOLE], Close(), "closed"),
        ([WHOLE[:30], WHOLE[30:-1]], Close(), "cut"),
        ([WHOLE[:-1]], Reset(), "reset"),
        ([b"\x16\x03", b"garbage"], Reset(), "reset"),
        ([WHOLE[:30], WHOLE[30:-1]], Stall(), "left"),
        ([], Close(), "cut"),
        ([], Reset(), "reset"),
        ([], Stall(), "left"),
    ],
)
def test_each_end_is_recorded_and_comes_again(pieces: list[bytes], end: Reply | None, ended: str, path: Path) -> None:
    """Bytes, pieces and end are the same when the server answers, in the file, and when it is replayed."""
    reply, request, whole = Pieces(*pieces, end=end), request_of(b'{"model": "fake"}'), b"".join(pieces)
    with FakeServer(everything=reply) as server, record(server.url, path) as reply.relay:
        expected = said(reply.relay, request, whole)
    (exchange,) = lines_of(path)
    assert exchange.ended == ended
    assert [piece for _, piece in exchange.response] == pieces
    assert sorted(exchange.response) == exchange.response
    with replay(path) as server:
        assert said(server, request, whole) == expected == (whole, HEARD.get(ended, "silent"))


@pytest.mark.parametrize("fault", [None, Reset(), Close(last_chunk=False)])
def test_an_answer_comes_again(fault: Reply | None, path: Path, chat: Chat) -> None:
    """What `chat` makes of a real server it makes of the recording: the same tokens, and the same failures."""
    reply = Answer(TEXT) if fault is None else Answer(TEXT).then(fault, after_tokens=3)
    with FakeServer(answer=TEXT) as other:
        with FakeServer(reply) as real, record(real.url, path) as recorder:
            first = chat("Which?", stream=True, servers=[recorder.url, other.url])
            assert first.text() == TEXT
        with replay(path) as server:
            again = chat("Which?", stream=True, servers=[server.url, other.url])
            assert again.text() == TEXT
    assert [request.body for request in server.requests] == [request.body for request in real.requests]
    assert list(again.tokens()) == list(first.tokens())
    kinds = [attempt.kind for attempt in first.result.attempts]
    assert [attempt.kind for attempt in again.result.attempts] == kinds
    assert (kinds == ["ok"]) == (fault is None)


def test_equal_requests_get_their_responses_in_order(path: Path) -> None:
    """The first gets the first response, and after the last one it comes again; others keep their own."""
    with FakeServer(*map(Answer, ("one", "two", "three"))) as real, record(real.url, path) as recorder:
        recorded = [chat(prompt, servers=[recorder.url]) for prompt in ("a", "b", "a")]
    assert recorded == ["one", "two", "three"]
    with replay(path) as server:
        assert [chat(prompt, servers=[server.url]) for prompt in ("b", "a", "b", "a", "a")] == [
            "two",
            "one",
            "two",
            "three",
            "three",
        ]


def test_a_body_is_compared_as_json(path: Path) -> None:
    """Space and order of a body do not matter; what is no JSON is the same when its bytes are."""
    with FakeServer(everything=Raw(WHOLE)) as real, record(real.url, path) as recorder:
        for body in (b'{"model": "fake", "n": 1}', b"\xff\x00", b""):
            assert said(recorder, request_of(body))[0] == WHOLE
    with replay(path) as server:
        for body in (b'{"n":1.0,"model":"fake"}', b"\xff\x00", b""):
            assert said(server, request_of(body))[0] == WHOLE
        for body in (b'{"model": "fake", "n": 2}', b"\xff\x01", b"null"):
            assert b" 500 " in said(server, request_of(body), b"}")[0]


def test_an_unknown_request_is_named(path: Path) -> None:
    """What has no recording gets 500, in words that the error of `chat` has too."""
    with FakeServer(answer=TEXT) as real, record(real.url, path) as recorder:
        chat("Which?", servers=[recorder.url])
    with replay(path) as server:
        with pytest.raises(AllServersFailedError, match=r'has no recording of POST /api/chat \{.*"Who\?"'):
            chat("Who?", servers=[server.url])
        assert chat("Which?", servers=[server.url]) == TEXT


class Small(Reply):
    """A small response, without its body where the method says so."""

    def play(self, exchange: Exchange) -> None:
        exchange.send(WHOLE[:-3] if exchange.request.method == "HEAD" else WHOLE)


def test_one_connection_carries_many_requests(path: Path) -> None:
    """A kept connection is one in the replay too; chunked requests, queries and HEAD are no hindrance."""
    chunked = b"POST /api/chat?a=1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    requests = [request_of(b"{}", b"/api/show"), chunked, b"HEAD / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]

    def conversation(server: FakeServer | Relay) -> list[bytes]:
        replies = []
        with closing(connect(server)) as client:
            for request in requests:
                client.sendall(request)
                replies.append(client.recv(100))
        return replies

    with FakeServer(everything=Small()) as real, record(real.url, path) as recorder:
        expected = conversation(recorder)
    assert expected == [WHOLE, WHOLE, WHOLE[:-3], WHOLE]
    assert [exchange.ended for exchange in lines_of(path)] == ["kept"] * 4
    with replay(path) as server:
        assert conversation(server) == expected
        assert server.connections == real.connections == 1


def test_requests_reach_the_server_byte_by_byte(path: Path) -> None:
    """What the client sends is what the server gets, its secrets too."""
    got: list[bytes] = []
    request = request_of(b"\x00\xff", b"/ollama/api/chat", SECRETS)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with record(address, path) as recorder, closing(connect(recorder)) as client:
            client.sendall(request)
            with closing(listener.accept()[0]) as server:
                while b"".join(got) != request:
                    got.append(server.recv(65536))


def test_no_secret_is_in_the_file(path: Path) -> None:
    """Of the headers only those are kept that never hold one; the file has mode 0600."""
    with FakeServer(everything=Raw(WHOLE)) as real:
        address = real.url.replace("//", "//user:s3cret@")
        with record(address, path) as recorder:
            assert recorder.url == f"http://user:s3cret@127.0.0.1:{recorder.port}"
            said(recorder, request_of(b'"prompt"', headers=SECRETS + b"Content-Type: text/plain\r\n"))
        assert real.requests[0].headers["x-gate"] == "s3cret"
    assert b"s3cret" not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert lines_of(path)[0].headers == {"content-type": "text/plain", "content-length": "8"}


def test_a_path_in_front_is_left_out(path: Path) -> None:
    """What was recorded below a path is replayed without it."""
    with FakeServer(everything=Raw(WHOLE)) as real, record(real.url + "/ollama/", path) as recorder:
        assert recorder.url.endswith("/ollama")
        said(recorder, request_of(b"{}", b"/ollama/api/chat"))
    assert real.requests[0].path == "/ollama/api/chat"
    with replay(path) as server:
        assert said(server, request_of(b"{}"))[0] == WHOLE


def test_pauses_are_played_when_asked_for(path: Path) -> None:
    """With a pace the pieces come as late as they did, times the pace; without one they come at once."""
    exchange = Recorded("POST", "/api/chat", json={}, response=[(0.0, WHOLE[:9]), (3600.0, WHOLE[9:])], ended="kept")
    write_lines(path, "exchanges", map(msgspec.json.encode, (exchange, {"exchanges": 1})))
    with replay(path) as at_once, replay(path, pace=1e-6) as soon, replay(path, pace=1.0) as later:
        assert said(at_once, request_of(b"{}"), WHOLE)[0] == said(soon, request_of(b"{}"), WHOLE)[0] == WHOLE
        assert said(later, request_of(b"{}"), WHOLE[:9]) == (WHOLE[:9], "silent")
    with pytest.raises(ValueError, match="a pace is 0"):
        replay(path, pace=-1)


def test_a_client_that_leaves_is_seen(path: Path) -> None:
    """A cancelled answer is recorded as far as it came, and its replay is cancelled too."""
    with FakeServer(Answer(TEXT).then(Stall(), after_tokens=2)) as real, record(real.url, path) as recorder:
        with chat("Which?", stream=True, servers=[recorder.url]) as stream:
            next(stream.tokens())
        assert real.wait_for_disconnect()
    assert lines_of(path)[-1].ended == "left"
    with replay(path) as server:
        with chat("Which?", stream=True, servers=[server.url]) as stream:
            next(stream.tokens())
        assert server.wait_for_disconnect()


def test_faults_of_the_relay_are_not_recorded(path: Path) -> None:
    """The file has what the server said, also where the relay broke it."""
    with FakeServer(everything=Raw(WHOLE)) as real, record(real.url, path) as recorder:
        recorder.corrupt(after_bytes=3)
        assert said(recorder, request_of(b"{}"))[0] != WHOLE
    assert lines_of(path)[0].response[0][1] == WHOLE


def test_a_server_that_is_not_there(path: Path) -> None:
    """A client of a recorder without a server is reset, and a recording of nothing can be replayed."""
    with FakeServer() as gone:
        gone.refuse()
        with record(gone.url, path) as recorder, pytest.raises(AllServersFailedError, match="reset"):
            chat("Which?", servers=[recorder.url])
    with replay(path) as server:
        assert b" 500 " in said(server, request_of(b"{}"), b"}")[0]


def test_a_server_that_goes_while_it_is_reached(path: Path) -> None:
    """A request that was heard before the server refused the connection is recorded with its reset."""
    with deaf_port() as port:
        recorder = record(f"127.0.0.1:{port}", path)
        recorder.start()
        client = connect(recorder)
        client.sendall(request_of(b"{}"))
        assert recorder.wait_until(lambda: len(recorder.exchanges) == 1)
    with closing(client):
        assert read(client, b"more") == (b"", "reset")
    recorder.stop()
    assert [exchange.ended for exchange in lines_of(path)] == ["reset"]


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    """https, what is no address and a folder that is not there are told before anything is recorded."""
    with pytest.raises(ValueError, match="https hides"):
        record("https://127.0.0.1:1", tmp_path / "a")
    with pytest.raises(ValueError, match="address"):
        record("ftp://host", tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="no folder"):
        record("127.0.0.1:1", tmp_path / "b" / "a")


def test_a_recorder_that_did_not_run_writes_nothing(path: Path) -> None:
    """Stopping it, also twice, leaves the file as it is."""
    with FakeServer(everything=Raw(WHOLE)) as real:
        recorder = record(real.url, path)
        recorder.stop()
        assert not path.exists()
        with recorder:
            said(recorder, request_of(b"{}"))
        path.unlink()
        recorder.stop()
        assert not path.exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"aicortex": "stream", "version": 1, "saved": 1.0}\n', "is not a recording made by aicortex.testing.record"),
        (b'{"aicortex": "exchanges", "version": 2}\n', "update AI Cortex"),
        (b'{"aicortex": "exchanges", "version": 1}\n', "is cut"),
        (b'{"aicortex": "exchanges", "version": 1}\n{"method": 1}\n{"exchanges": 1}\n', "is damaged: line 2"),
    ],
)
def test_a_broken_file_says_what_it_is(line: bytes, message: str, path: Path) -> None:
    """Another file, a newer one, one that is cut and one that is damaged are told apart."""
    path.write_bytes(line)
    with pytest.raises(ValueError, match=message):
        replay(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        replay(path)


def test_the_embedded_engine_comes_again(path: Path, embedded_server: str) -> None:
    """A real engine's answer is the same from its recording, token by token, with its counts."""
    asked = {"options": {"num_predict": 12, "seed": 7}, "stream": True}
    with record(embedded_server, path) as recorder:
        first = chat("Name a planet.", servers=[recorder.url], **asked)
        expected = first.result
    with replay(path) as server:
        again = chat("Name a planet.", servers=[server.url], **asked)
        assert again.text() == expected.text != ""
    assert list(again.tokens()) == list(first.tokens())
    assert again.result.usage == expected.usage
    assert again.result.timings["generation"] == expected.timings["generation"] > 0


def test_the_example_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/testing.md works as written, and the table has every way in which an exchange ends."""
    page = (Path(__file__).parents[1] / "docs" / "testing.md").read_text(encoding="utf-8")
    section = page.split("\n## Record and replay\n")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(section.split("```python\n")[1].split("```")[0], "docs/testing.md", "exec"), {})
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == ["ended", "kept", "closed", "cut", "reset", "left"]
