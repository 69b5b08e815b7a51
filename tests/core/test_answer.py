"""One answer, driven by hand: no socket, no clock, every interruption."""

from __future__ import annotations

import json
import sys
from types import FrameType
from typing import Any

import pytest

from aicortex._core.answer import Answer, Read
from aicortex._core.failover import Connect, Deadlines, Wait
from aicortex._core.http import Response
from aicortex._core.result import Result
from aicortex._core.server import Server
from aicortex.errors import (
    AllServersFailedError,
    RequestRejectedError,
    StreamCancelledError,
    StreamInterruptedError,
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n"


def line(content: str = "", **more: Any) -> bytes:
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    return json.dumps({"model": "m", "message": message, "done": False, **more}).encode() + b"\n"


def done(content: str = "", **more: Any) -> bytes:
    return line(content, **{"done": True, "done_reason": "stop", "prompt_eval_count": 7, "eval_count": 3, **more})


def begun(servers: int = 2, **limits: float) -> Answer:
    fleet = [Server(f"s{number}:1", api_key=f"key-{number}") for number in range(servers)]
    return Answer(fleet, model="m", deadlines=Deadlines(**limits), now=10.0, wall=1000.0)


def connect(answer: Answer, now: float = 10.0) -> Response:
    step = answer.next_step(now, since=now)
    assert isinstance(step, Connect)
    response = Response()
    answer.connected(step.server, response, now)
    return response


def feed(answer: Answer, response: Response, *pieces: bytes, now: float = 11.0) -> None:
    for piece in pieces:
        response.take([piece])
        answer.received(now)


def shape(answer: Answer) -> list[tuple[str, str | None, int | None]]:
    return [(e.type if e.type != "meta" else (e.meta or {})["kind"], e.content, e.index) for e in answer.log]


WHOLE = HEAD + line("Black") + line(" holes") + done()
WHOLE_SHAPE = [
    ("start", "", None),
    ("connected", "", None),
    ("token", "Black", 0),
    ("token", " holes", 1),
    ("stats", "", None),
    ("end", "", None),
]


def test_a_whole_answer() -> None:
    """Start first, tokens numbered from 0, the end last and only after done."""
    answer = begun()
    feed(answer, connect(answer), WHOLE)
    assert shape(answer) == WHOLE_SHAPE
    assert isinstance(answer.outcome, Result)
    assert answer.next_step(12.0, since=12.0) is None
    meta = answer.log[-1].meta or {}
    assert meta["usage"] == {"prompt_tokens": 7, "completion_tokens": 3}
    assert (meta["finish_reason"], meta["model"], meta["server"]) == ("stop", "m", "http://s0:1")
    assert [attempt["kind"] for attempt in meta["attempts"]] == ["ok"]


def test_the_same_events_wherever_the_bytes_are_cut() -> None:
    """Cut in two at every place, and byte by byte, the events are the same."""
    for cut in range(1, len(WHOLE)):
        answer = begun()
        feed(answer, connect(answer), WHOLE[:cut], WHOLE[cut:])
        assert shape(answer) == WHOLE_SHAPE
    answer = begun()
    feed(answer, connect(answer), *(WHOLE[i : i + 1] for i in range(len(WHOLE))))
    assert shape(answer) == WHOLE_SHAPE


def test_timestamps_never_go_back() -> None:
    """The wall clock is read once; after that only monotonic differences count."""
    answer = begun()
    response = connect(answer, now=10.5)
    feed(answer, response, HEAD + line("a"), now=11.0)
    feed(answer, response, done("b"), now=12.5)
    assert [event.timestamp for event in answer.log] == [1000.0, 1000.5, 1001.0, 1002.5, 1002.5, 1002.5]
    assert answer.outcome.timings["first_token"] == 1.0  # type: ignore[union-attr]


def test_the_done_chunk_may_carry_everything() -> None:
    """Content, thinking and tool calls of the last chunk come before the end (protocol: Framing)."""
    answer = begun()
    calls = [{"function": {"name": "add", "arguments": {"a": 1}}}]
    last = done("x", message={"thinking": "hm", "tool_calls": calls})
    feed(answer, connect(answer), HEAD + last)
    assert [kind for kind, _, _ in shape(answer)[2:]] == ["thinking", "token", "tool_call", "stats", "end"]
    call = answer.log[4]
    assert (call.tool_name, call.tool_args) == ("add", {"a": 1})
    assert answer.outcome.thinking == "hm"  # type: ignore[union-attr]


def test_empty_chunks_are_no_tokens() -> None:
    """A token has text; chunks without any are skipped and do not count."""
    answer = begun()
    feed(
        answer, connect(answer), HEAD + line("") + line("a") + b'{"done":false}\n' + line("", message={"content": None})
    )
    assert shape(answer)[2:] == [("token", "a", 0)]


def test_a_clean_end_without_done_is_no_end() -> None:
    """Only done: true completes an answer; a clean EOF after text interrupts it."""
    answer = begun()
    feed(answer, connect(answer), HEAD + line("Black") + line(" holes"), b"")
    error = answer.outcome
    assert isinstance(error, StreamInterruptedError)
    assert error.partial == "Black holes"
    assert [attempt.kind for attempt in error.attempts] == ["truncated"]
    assert "http://s0:1" in str(error)
    assert "stream" in str(error)
    assert answer.log[-1].type == "error"
    assert (answer.log[-1].meta or {})["delivered"] == 11
    assert (answer.log[-1].meta or {})["will_retry"] is False


def test_nothing_after_done_counts() -> None:
    """What follows the done chunk is not part of the answer."""
    answer = begun()
    feed(answer, connect(answer), WHOLE + line("more") + b"garbage\n")
    assert shape(answer) == WHOLE_SHAPE


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"", "closed"),
        (b"SSH-2.0-x\r\n", "bad_response"),
        (HEAD, "truncated"),
        (HEAD + b'{"error":"out of memory"}\n', "error"),
        (HEAD + b"<html></html>\n", "bad_response"),
        (HEAD.replace(b"x-ndjson", b"html") + b"<html>", "bad_response"),
        (b"HTTP/1.1 401 X\r\n\r\n", "denied"),
        (b"HTTP/1.1 403 X\r\n\r\n", "denied"),
        (b'HTTP/1.1 404 X\r\n\r\n{"error":"model \'m\' not found"}', "model_not_found"),
        (b"HTTP/1.1 404 X\r\n\r\n404 page not found", "bad_response"),
        (b"HTTP/1.1 429 X\r\n\r\n", "busy"),
        (b"HTTP/1.1 499 X\r\n\r\n", "server_error"),
        (b"HTTP/1.1 500 X\r\n\r\n{}", "server_error"),
        (b"HTTP/1.1 502 X\r\n\r\n<html>", "server_error"),
        (b"HTTP/1.1 503 X\r\n\r\n", "busy"),
        (b"HTTP/1.1 302 X\r\nLocation: http://else/\r\n\r\n", "bad_response"),
        (b"HTTP/1.1 204 X\r\n\r\n", "bad_response"),
        (b"HTTP/1.1 418 X\r\n\r\n", "bad_response"),
    ],
)
def test_a_failure_before_the_first_token_moves_on(reply: bytes, kind: str) -> None:
    """Each row of the protocol's table is one error event with its kind, and the next server gives the whole answer."""
    answer = begun()
    feed(answer, connect(answer), *([reply] if reply else []), b"")
    event = answer.log[-1]
    assert (event.type, (event.meta or {})["kind"], (event.meta or {})["will_retry"]) == ("error", kind, True)
    assert (event.content or "").startswith("http://s0:1: ")
    feed(answer, connect(answer), WHOLE)
    assert [row for row in shape(answer) if row[0] in ("token", "end")] == [WHOLE_SHAPE[i] for i in (2, 3, 5)]
    assert [attempt.kind for attempt in answer.outcome.attempts] == [kind, "ok"]  # type: ignore[union-attr]


def test_when_every_server_failed() -> None:
    """The error names every server, its phase and its reason."""
    answer = begun()
    for _ in range(2):
        feed(answer, connect(answer), b'HTTP/1.1 500 X\r\n\r\n{"error":"no memory"}', b"")
    error = answer.outcome
    assert isinstance(error, AllServersFailedError)
    assert not isinstance(error, StreamInterruptedError)
    assert str(error).startswith("All servers failed: http://s0:1 (first token): HTTP 500: no memory; http://s1:1")
    assert [attempt.will_retry for attempt in error.attempts] == [True, False]


def test_a_server_that_echoes_the_key_gives_nothing_away() -> None:
    """A key that a server puts into its error shows nowhere."""
    answer = begun(servers=1)
    feed(answer, connect(answer), b'HTTP/1.1 401 X\r\n\r\n{"error":"key-0 is unknown"}', b"")
    assert "*** is unknown" in str(answer.outcome)
    assert "key-0" not in f"{answer.outcome!r} {answer.log} {answer.outcome.attempts}"  # type: ignore[union-attr]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_wrong_request_is_asked_once(status: int) -> None:
    """What is the caller's fault is a ValueError and goes to no other server."""
    answer = begun()
    feed(answer, connect(answer), b'HTTP/1.1 %d X\r\n\r\n{"error":"does not support tools"}' % status, b"")
    error = answer.outcome
    assert isinstance(error, RequestRejectedError)
    assert isinstance(error, ValueError)
    assert (error.status, error.server) == (status, "http://s0:1")


@pytest.mark.parametrize("status", [400, 413])
def test_a_proxys_own_refusal_is_no_fault_of_the_request(status: int) -> None:
    """An HTML page with 400 or 413 comes from something in front of Ollama: the next server may take the request."""
    answer = begun()
    page = b"HTTP/1.1 %d X\r\nContent-Type: text/html\r\n\r\n<html>" % status
    feed(answer, connect(answer), page, b"")
    assert (answer.log[-1].meta or {})["kind"] == "bad_response"
    assert isinstance(answer.next_step(11.0, since=11.0), Connect)


def test_deadlines() -> None:
    """The first token has its own deadline, then each silence has one, from when the reader waits."""
    answer = begun()
    response = connect(answer, now=10.0)
    assert answer.next_step(11.0, since=11.0) == Read(130.0)
    feed(answer, response, HEAD + line("a"), now=12.0)
    assert answer.next_step(50.0, since=50.0) == Read(80.0)
    feed(answer, response, b"\n", now=60.0)  # a heartbeat is no chunk
    assert answer.next_step(60.0, since=50.0) == Read(80.0)
    feed(answer, response, line("b"), now=70.0)
    assert answer.next_step(70.0, since=50.0) == Read(100.0)


def test_a_stall_is_told() -> None:
    """Silence after text is a stall; silence before it is a late first token."""
    answer = begun()
    connect(answer)
    answer.timed_out(130.0)
    assert (answer.log[-1].meta or {})["kind"] == "first_token_timeout"
    feed(answer, connect(answer, now=130.0), HEAD + line("a"), now=131.0)
    answer.timed_out(161.0)
    assert (answer.log[-1].meta or {})["kind"] == "stalled"
    assert isinstance(answer.outcome, StreamInterruptedError)


def test_the_total_deadline_is_told_as_such() -> None:
    """When the whole time is up, that is the reason, and nobody else is asked."""
    answer = begun(total=5.0)
    connect(answer)
    answer.timed_out(15.0)
    assert isinstance(answer.outcome, AllServersFailedError)
    assert [attempt.kind for attempt in answer.outcome.attempts] == ["timeout"]


def test_an_error_status_whose_body_never_ends_counts() -> None:
    """A refusal is known by its status when its body does not come."""
    answer = begun()
    feed(answer, connect(answer), b"HTTP/1.1 503 X\r\nContent-Length: 9\r\n\r\n")
    assert answer.next_step(11.0, since=11.0) == Read(41.0)
    answer.timed_out(41.0)
    assert (answer.log[-1].meta or {})["kind"] == "busy"


def test_a_busy_fleet_is_waited_for() -> None:
    """When every server is busy, the next step is to wait, then to ask again."""
    answer = begun(servers=1)
    feed(answer, connect(answer), b"HTTP/1.1 503 X\r\nRetry-After: 3\r\n\r\n", b"", now=11.0)
    assert answer.next_step(11.0, since=11.0) == Wait(14.0)
    feed(answer, connect(answer, now=14.0), WHOLE, now=14.5)
    assert isinstance(answer.outcome, Result)


def test_when_waiting_takes_too_long() -> None:
    """The total deadline may pass while every server is busy; the error says what they said."""
    answer = begun(servers=1, total=5.0)
    feed(answer, connect(answer), b"HTTP/1.1 503 X\r\n\r\nserver busy", b"", now=11.0)
    assert answer.next_step(15.5, since=11.0) is None
    assert "server busy" in str(answer.outcome)


def test_cancelling() -> None:
    """A cancelled stream ends in its own error with what was delivered; a finished one stays finished."""
    answer = begun()
    feed(answer, connect(answer), HEAD + line("Black"))
    answer.cancel()
    assert isinstance(answer.outcome, StreamCancelledError)
    assert answer.outcome.partial == "Black"
    whole = begun()
    feed(whole, connect(whole), WHOLE)
    whole.cancel()
    assert isinstance(whole.outcome, Result)


def test_decoded_pieces_are_dropped() -> None:
    """A long answer does not keep its raw bytes."""
    answer = begun()
    response = connect(answer)
    feed(answer, response, HEAD)
    for _ in range(3000):
        feed(answer, response, line("x"))
    assert sum(map(len, response.body)) < 2000 * len(line("x"))
    feed(answer, response, done())
    assert answer.outcome.text == "x" * 3000  # type: ignore[union-attr]


def drive(answer: Answer, interrupt_at: int) -> int:
    """Stream over two servers, interrupted once at the given line of the core's code; return the lines that ran.

    It goes on after the interrupt as a front end does: what was fed and not yet told is told first.
    """
    script = {
        0: [b'HTTP/1.1 500 X\r\n\r\n{"error":"x"}', b""],
        1: [HEAD + line("Black") + line(" ho"), line("les"), line(message={"thinking": "t"}) + done("!")],
    }
    count = 0
    response, pieces, is_fed = Response(), list[bytes](), False

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if "_core" not in frame.f_code.co_filename:
            return None
        if event == "line":
            count += 1
            if count == interrupt_at:
                raise KeyboardInterrupt
        return trace

    while answer.outcome is None:
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            step = answer.next_step(10.0, since=10.0)
            if isinstance(step, Connect):
                response, pieces, is_fed = Response(), script[step.server].copy(), False
                answer.connected(step.server, response, 10.0)
            elif isinstance(step, Read):
                if not is_fed:
                    sys.settrace(before)
                    response.take([pieces.pop(0)])
                    is_fed = True
                    sys.settrace(trace)
                answer.received(10.0)
                is_fed = False
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
    return count


def test_an_interrupt_at_any_line_loses_and_doubles_nothing() -> None:
    """A KeyboardInterrupt at every single line of the core leaves a stream that can be read on (C12)."""
    undisturbed = begun()
    lines = drive(undisturbed, interrupt_at=0)
    expected = [row for row in shape(undisturbed) if row[0] != "connected"]
    assert lines > 200
    for place in range(1, lines + 1):
        answer = begun()
        drive(answer, interrupt_at=place)
        # an interrupted connect is made again and told again; everything else is the same
        assert [row for row in shape(answer) if row[0] != "connected"] == expected
        assert isinstance(answer.outcome, Result)
