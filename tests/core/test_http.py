"""HTTP responses, with h11 as the oracle."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex._core.http import MAX_HEAD_BYTES, Response, encode_request

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"6\r\nhello \r\n5;ext=1\r\nworld\r\n0\r\n\r\n"
)
SIZED = b"HTTP/1.1 404 Not Found\r\ncontent-length: 11\r\nX-A: b\r\n\r\nhello world"
UNTIL_EOF = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello world"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED
ALL = [CHUNKED, SIZED, UNTIL_EOF, INTERIM]


def parsed_by_h11(data: bytes) -> tuple[int, bytes]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    client.receive_data(b"")
    status, body = 0, b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
    return status, body


def fed(*pieces: bytes) -> Response:
    """Return a response fed piece by piece, which is no other than one that is given all pieces at once."""
    response, at_once = Response(), Response()
    for piece in pieces:
        response.take([piece])
    at_once.take_all(pieces)
    assert state_of(at_once) == state_of(response)
    return response


def state_of(response: Response) -> list[object]:
    names = ("status", "headers", "body", "eof", "fault", "heads", "tails", "head_bytes", "ended", "reusable")
    return [getattr(response, name) for name in names]


@pytest.mark.parametrize("data", ALL)
def test_agrees_with_h11_wherever_the_bytes_are_cut(data: bytes) -> None:
    """Cut in two at every place, a response has the status and the body that h11 finds in the whole."""
    expected = parsed_by_h11(data)
    for cut in range(1, len(data)):
        response = fed(data[:cut], data[cut:], b"")
        assert (response.status, b"".join(response.body)) == expected
        assert response.ended
        assert response.fault is None


@pytest.mark.parametrize("data", ALL)
def test_agrees_with_h11_byte_by_byte(data: bytes) -> None:
    """Fed byte by byte, a response is the same."""
    response = fed(*(data[i : i + 1] for i in range(len(data))), b"")
    assert (response.status, b"".join(response.body)) == parsed_by_h11(data)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.data())
def test_any_chunks_cut_anywhere_give_the_same_body(chunks: list[bytes], data: st.DataObject) -> None:
    """However a server chunks and however the wire cuts, the body is the concatenation."""
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    wire += b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    response = fed(*(wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True) if a < b))
    assert b"".join(response.body) == b"".join(chunks)
    assert response.complete
    assert response.reusable


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_random_bytes_never_raise(pieces: list[bytes]) -> None:
    """Whatever comes, a response is a response or has a fault."""
    response = fed(*pieces)
    assert response.started or response.fault is not None or not response.complete


@pytest.mark.parametrize(
    ("data", "reusable"),
    [
        (CHUNKED, True),
        (SIZED, True),
        (SIZED + b"HTTP/1.1 200 OK\r\n\r\n", False),
        (UNTIL_EOF, False),
        (SIZED.replace(b"X-A: b", b"Connection: Close"), False),
        (SIZED.replace(b"HTTP/1.1", b"HTTP/1.0"), False),
        (CHUNKED[:-2], False),
    ],
)
def test_a_connection_is_reused_only_after_exactly_one_whole_response(data: bytes, reusable: bool) -> None:
    """Trailing data, a missing end, HTTP/1.0 and Connection: close rule another request out."""
    assert fed(data).reusable is reusable


def test_an_interim_response_is_not_the_response() -> None:
    """100 Continue alone starts nothing."""
    response = fed(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert not response.started
    assert not response.ended


def test_an_interim_response_before_one_that_comes_in_pieces() -> None:
    """103 Early Hints is no response, and neither is half a head behind it."""
    response = fed(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-")
    assert not response.started
    assert not response.ended
    response.take([b"Length: 2\r\n\r\nab"])
    assert (response.status, response.body, response.complete) == (200, [b"ab"], True)


def test_what_follows_a_whole_response_does_not_take_it_back() -> None:
    """Junk behind a response is a fault of the connection, and the response stands."""
    response = fed(SIZED + b"JUNK")
    assert (response.started, response.status, response.body) == (True, 404, [b"hello world"])
    assert not response.reusable


def test_a_long_body_right_behind_the_head_is_no_long_head() -> None:
    """Only the head is bounded, wherever the first read ends."""
    response = fed(b"HTTP/1.1 200 OK\r\n", b"Content-Length: 80000\r\n\r\n" + b"x" * 80000)
    assert response.fault is None
    assert response.complete


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-OpenSSH\r\n", b"\x16\x03\x01\x02", b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n"]
)
def test_what_is_not_http_is_a_fault(data: bytes) -> None:
    """Another protocol's greeting is named as a fault, not raised."""
    response = fed(data)
    assert response.ended
    assert response.fault is not None


def test_the_body_before_a_fault_is_kept() -> None:
    """A broken chunk size does not take back the chunks before it."""
    response = fed(CHUNKED[:-5] + b"zz\r\n")
    assert response.body == [b"hello ", b"world"]
    assert response.fault is not None


def test_the_head_is_bounded() -> None:
    """A head without an end is refused after 64 KB."""
    response = Response()
    at_once = Response()
    at_once.take_all([b"HTTP/1.1 200 OK\r\n", *[b"X-Filler: " + b"x" * 1000 + b"\r\n"] * 70])
    assert "longer than" in (at_once.fault or "")
    response.take([b"HTTP/1.1 200 OK\r\n"])
    while not response.ended:
        response.take([b"X-Filler: " + b"x" * 1000 + b"\r\n"])
    assert response.head_bytes <= MAX_HEAD_BYTES + 1100
    assert "64 KB" in (response.fault or "")


def test_headers_are_found_in_any_case() -> None:
    """Header names have no case."""
    assert fed(SIZED).header("x-A") == "b"
    assert fed(SIZED).header("missing") == ""


def test_a_request_is_what_h11_accepts() -> None:
    """h11, as a server, reads the same request back."""
    data = encode_request("POST", "/api/chat", [("Host", "box:11434"), ("X-Key", "k")], b'{"a":1}')
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    request = server.next_event()
    body = server.next_event()
    assert isinstance(request, h11.Request)
    assert isinstance(body, h11.Data)
    assert (request.method, request.target, bytes(body.data)) == (b"POST", b"/api/chat", b'{"a":1}')
    assert dict(request.headers)[b"x-key"] == b"k"


def test_dropped_headers_leave_the_connections_fate() -> None:
    """Once the body comes only one header matters: whether the connection may be used again."""
    response = fed(b"HTTP/1.1 200 OK\r\nConnection: Close\r\nDate: now\r\nContent-Length: 2\r\n\r\n")
    response.drop_headers()
    assert (response.header("connection"), response.header("date")) == ("Close", "")
    response.take([b"ab"])
    assert response.complete
    assert not response.reusable
    kept = fed(SIZED)
    kept.drop_headers()
    assert (kept.headers, kept.reusable) == ({}, True)
