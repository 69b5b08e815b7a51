"""One answer, driven by hand: no socket, no clock, every interruption."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest

from aicortex._core import joint
from aicortex._core.answer import Answer
from aicortex._core.failover import PART_CHUNKS, Deadlines, Failure, Wait
from aicortex._core.hedging import Budget
from aicortex._core.http import Response
from aicortex._core.ladder import ASK_ANSWER, ASK_RENDER, ASK_VERSION, Memory
from aicortex._core.question import LOADED, VERSION, Question
from aicortex._core.result import Result
from aicortex._core.seam import PREFILL, RAW, REPLAY, RESTART
from aicortex._core.server import Server
from aicortex._core.state import ASK_ALIVE, ASK_LOADED, Connect, Read
from aicortex._core.turns import Returned, Run
from aicortex._core.waiting import GLANCE_SECONDS, Hedge
from aicortex.errors import (
    AllServersFailedError,
    RequestRejectedError,
    StreamCancelledError,
    StreamInterruptedError,
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n"
USER = {"role": "user", "content": "What is a black hole?"}
PROMPT = "<|user|>What is a black hole?<|assistant|>"
RESET = Failure("reset", "", "the connection was reset")
FAILED = b'HTTP/1.1 500 X\r\n\r\n{"error":"no memory"}'


def line(content: str = "", **more: Any) -> bytes:
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    return json.dumps({"model": "m", "message": message, "done": False, **more}).encode() + b"\n"


def done(content: str = "", **more: Any) -> bytes:
    return line(content, **{"done": True, "done_reason": "stop", "prompt_eval_count": 7, "eval_count": 3, **more})


def raw(content: str = "", **more: Any) -> bytes:
    """Return a line of /api/generate."""
    return json.dumps({"model": "m", "response": content, "done": False, **more}).encode() + b"\n"


def raw_done(**more: Any) -> bytes:
    return raw(**{"done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 3, **more})


def whole(body: Any, status: int = 200) -> bytes:
    """Return a response with a length."""
    data = json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(data), data)


VERSIONED = whole({"version": "0.30.0"})


def rendered(prompt: str = PROMPT) -> bytes:
    return whole({"model": "m", "_debug_info": {"rendered_template": prompt}})


def begun(servers: int = 2, options: dict[str, Any] | None = None, **more: Any) -> Answer:
    fleet = [Server(f"s{number}:1", api_key=f"key-{number}") for number in range(servers)]
    names = ("resume", "hedge", "digests", "memory", "steps")
    chosen = {name: more.pop(name) for name in names if name in more}
    question = Question("m", [USER], options=options or {})
    return Answer(fleet, question, deadlines=Deadlines(**more), now=10.0, wall=1000.0, **chosen)


def due(answer: Answer, now: float = 11.0, since: float | None = None) -> Connect:
    """Return the connection that is due, for a reader who has waited `since` then."""
    step = answer.next_step(now, since=now if since is None else since)
    assert isinstance(step, Connect)
    return step


def connect(answer: Answer, now: float = 10.0, since: float | None = None) -> Response:
    step = due(answer, now, since)
    response = Response()
    answer.connected(step, response, now)
    return response


def feed(answer: Answer, response: Response, *pieces: bytes, now: float = 11.0) -> None:
    for piece in pieces:
        response.take([piece])
        answer.received(now, response)


def shape(answer: Answer) -> list[tuple[str, str | None, int | None]]:
    return [(e.type if e.type != "meta" else (e.meta or {})["kind"], e.content, e.index) for e in answer.log]


def kinds(answer: Answer) -> list[str]:
    return [row[0] for row in shape(answer)]


def text(answer: Answer) -> str:
    return "".join(event.content or "" for event in answer.log if event.type == "token")


def told(answer: Answer, kind: str) -> list[dict[str, Any]]:
    """Return the details of all events of a type, or of a kind of `meta`."""
    return [event.meta or {} for event in answer.log if kind in (event.type, (event.meta or {}).get("kind"))]


def broken(*tokens: str, calls: bool = False, **more: Any) -> Answer:
    """Return an answer whose first server delivered some tokens, and perhaps a tool call, and broke."""
    answer = begun(**more)
    called = line(message={"tool_calls": [{"function": {"name": "add", "arguments": {}}}]}) if calls else b""
    feed(answer, connect(answer), HEAD + b"".join(map(line, tokens or ("Black", " holes"))) + called, b"")
    return answer


def to_raw(answer: Answer, now: float = 11.0) -> Response:
    """Go through the preparations of a raw request; return its response."""
    for reply in (VERSIONED, rendered()):
        feed(answer, connect(answer, now), reply, now=now)
    assert due(answer, now).rung == RAW
    return connect(answer, now)


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
    feed(answer, connect(answer), HEAD + line("") + line("a") + line("", message={"content": None}))
    assert shape(answer)[2:] == [("token", "a", 0)]


@pytest.mark.parametrize(
    "bad", [b"{}\n", b'{"done":false}\n', b'{"message":{}}\n', b'{"message":{"role":"assistant"}}\n']
)
def test_a_line_that_says_nothing_is_damaged(bad: bytes) -> None:
    """Its token would be lost: the text before it stays, and the next server goes on."""
    answer = begun()
    feed(answer, connect(answer), HEAD + line("Black") + bad + line(" holes"))
    assert (text(answer), told(answer, "error")[0]["kind"]) == ("Black", "bad_response")
    feed(answer, to_raw(answer), HEAD + raw(" holes") + raw_done())
    assert text(answer) == "Black holes"


def test_a_clean_end_without_done_is_no_end() -> None:
    """Only done: true completes an answer; a clean EOF after text interrupts it where it may not go on."""
    answer = broken(resume=False)
    error = answer.outcome
    assert isinstance(error, StreamInterruptedError)
    assert error.partial == "Black holes"
    assert [attempt.kind for attempt in error.attempts] == ["truncated"]
    assert "http://s0:1" in str(error)
    assert "stream" in str(error)
    assert answer.log[-1].type == "error"
    assert (answer.log[-1].meta or {})["delivered"] == 11
    assert (answer.log[-1].meta or {})["will_retry"] is False
    assert answer.next_step(12.0, since=12.0) is None


def test_a_clean_end_without_done_is_gone_on_with() -> None:
    """Else the next server is asked to go on where the text stopped, and the reader sees one answer."""
    answer = broken()
    assert (answer.outcome, told(answer, "error")[0]["will_retry"]) == (None, True)
    feed(answer, to_raw(answer), HEAD + raw(" are") + raw(" dense.") + raw_done())
    tokens = [row for row in shape(answer) if row[0] == "token"]
    assert tokens == [("token", piece, index) for index, piece in enumerate(["Black", " holes", " are", " dense."])]
    assert kinds(answer)[4:] == ["error", "connected", "resumed", "token", "token", "stats", "end"]
    assert answer.outcome.text == "Black holes are dense."  # type: ignore[union-attr]
    assert [(each.kind, each.rung) for each in answer.outcome.attempts] == [("truncated", ""), ("ok", RAW)]  # type: ignore[union-attr]


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
    answer = begun(resume=False)
    connect(answer)
    answer.timed_out(130.0)
    answer.failed(due(answer, 130.0), RESET, 130.0)
    assert told(answer, "error")[0]["kind"] == "first_token_timeout"
    feed(answer, connect(answer, now=130.0), HEAD + line("a"), now=131.0)
    answer.timed_out(161.0)
    assert told(answer, "error")[1]["kind"] == "stalled"
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


@pytest.mark.parametrize(
    ("after", "status"),
    [(HEAD + line("a"), 200), (HEAD + line("a") + b"<html>\n", 200), (HEAD + b'{"error":"x"}\n', 200), (b"", None)],
)
def test_the_status_of_a_stream_that_breaks(after: bytes, status: int | None) -> None:
    """It was begun with 200, whatever ended it; a connection that broke without a reply has none."""
    answer = begun(resume=False)
    response = connect(answer)
    feed(answer, response, *([after] if after else []))
    answer.failed(response, RESET, 12.0)
    assert [error["status"] for error in told(answer, "error")] == [status]
    stalling = begun(resume=False)
    feed(stalling, connect(stalling), HEAD + line("a"))
    stalling.timed_out(41.0)
    assert [(error["kind"], error["status"]) for error in told(stalling, "error")] == [("stalled", 200)]


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


# going on with a broken answer


def test_a_connection_that_breaks_is_told() -> None:
    """Whether it could not be opened or broke while bytes came, the failure is that of the attempt."""
    answer = begun(servers=3)
    answer.failed(due(answer), Failure("refused", "connect", "refused"), 11.0)
    response = connect(answer)
    feed(answer, response, HEAD + line("Black"))
    answer.failed(response, RESET, 12.0)
    assert [(error["kind"], error["phase"]) for error in told(answer, "error")] == [
        ("refused", "connect"),
        ("reset", "stream"),
    ]
    assert (due(answer).server, due(answer).request) == (2, VERSION)


def test_a_failure_of_a_forgotten_response_is_no_news() -> None:
    """A connection that was let go may break and speak as it likes."""
    answer = begun()
    old = connect(answer)
    feed(answer, old, HEAD, b"")
    feed(answer, connect(answer), HEAD + line("a"))
    log = list(answer.log)
    answer.failed(old, RESET, 12.0)
    answer.received(12.0, old)
    assert answer.log == log
    assert answer.reading[0] is not old


def test_every_cut_of_an_answer_that_is_gone_on_with() -> None:
    """However the bytes behind the seam are cut, the tokens are the same, each with its number."""
    body = HEAD + raw(" very") + raw(" massive") + raw_done()
    for cut in range(1, len(body)):
        answer = broken("It", " is", " very", " very")
        feed(answer, to_raw(answer), body[:cut], body[cut:])
        tokens = [row for row in shape(answer) if row[0] == "token"]
        assert tokens[4:] == [("token", " very", 4), ("token", " massive", 5)]
        assert kinds(answer)[-2:] == ["stats", "end"]


def test_nothing_is_shown_before_it_is_proven() -> None:
    """Words that may be an echo are held, and `resumed` comes with the first of them that is shown."""
    answer = broken("It", " is", " very", " very")
    response = to_raw(answer)
    feed(answer, response, HEAD + raw(" very"))
    assert kinds(answer)[-2:] == ["error", "connected"]
    feed(answer, response, raw(" massive"))
    assert kinds(answer)[-3:] == ["resumed", "token", "token"]
    assert told(answer, "resumed") == [
        {"kind": "resumed", "server": "http://s1:1", "rung": RAW, "same_weights": None, "delivered": 15}
    ]


def test_held_words_come_out_when_the_server_is_done() -> None:
    """The end of the reply proves what was in doubt."""
    answer = broken("It", " is", " very")
    feed(answer, to_raw(answer), HEAD + raw(" is") + raw_done())
    assert text(answer) == "It is very is"
    assert isinstance(answer.outcome, Result)


def test_held_words_are_lost_with_their_server() -> None:
    """What was never shown is no part of the answer when the connection breaks: the next one says it."""
    answer = broken("It", " is", " very", " very", servers=3)
    response = to_raw(answer)
    feed(answer, response, HEAD + raw(" very"))
    answer.failed(response, RESET, 12.0)
    assert (text(answer), told(answer, "resumed")) == ("It is very very", [])
    assert due(answer).server == 2
    feed(answer, to_raw(answer), HEAD + raw(" massive") + raw_done())
    assert text(answer) == "It is very very massive"


def test_a_damaged_line_behind_a_seam() -> None:
    """What came before it counts, and what comes behind it does not."""
    answer = broken("It", " is", servers=3)
    feed(answer, to_raw(answer), HEAD + raw(" very") + b'{"done":false}\n' + raw(" massive"))
    assert (text(answer), told(answer, "error")[-1]["kind"]) == ("It is very", "bad_response")
    assert due(answer).server == 2


def test_an_error_behind_a_seam() -> None:
    """The runner may die at once: nothing was proven, and the next server is asked."""
    answer = broken("It", " is", " very", " very", servers=3)
    feed(answer, to_raw(answer), HEAD + raw(" very") + b'{"error":"the runner died"}\n')
    assert (text(answer), told(answer, "error")[-1]["kind"]) == ("It is very very", "error")
    assert (told(answer, "resumed"), due(answer).server) == ([], 2)


def test_an_echo_leads_to_the_next_rung() -> None:
    """None of it is shown; the same server is asked by prefill, and then the next server."""
    answer = broken("Black", " holes", " are", " very", servers=3)
    feed(answer, to_raw(answer), HEAD + raw("Black holes are very massive"))
    assert (told(answer, "error")[-1]["kind"], told(answer, "error")[-1]["rung"]) == ("diverged", RAW)
    step = due(answer)
    assert (step.server, step.task, step.rung) == (1, ASK_RENDER, PREFILL)
    feed(answer, connect(answer), rendered(PROMPT + "Black holes are very"))
    assert due(answer).rung == PREFILL
    feed(answer, connect(answer), HEAD + line("Sure, here is the rest"))
    assert told(answer, "error")[-1]["rung"] == PREFILL
    assert (due(answer).server, text(answer)) == (2, "Black holes are very")


def test_a_prefilled_answer_goes_on() -> None:
    """Its reply is a chat's, and its tokens are counted on."""
    answer = broken("Black", " holes")
    feed(answer, connect(answer), VERSIONED)
    feed(answer, connect(answer), rendered(PROMPT + "<think>"))
    feed(answer, connect(answer), rendered(PROMPT + "Black holes"))
    feed(answer, connect(answer), HEAD + line(" are") + done(" dense.", prompt_eval_count=9))
    assert text(answer) == "Black holes are dense."
    assert answer.outcome.usage == {"prompt_tokens": 7, "completion_tokens": 5}  # type: ignore[union-attr]


def test_a_replay_shows_what_lies_behind() -> None:
    """The same weights say the whole answer again; what the reader has is swallowed."""
    answer = broken("Black", " holes", options={"temperature": 0}, digests=("d", "d"))
    for reply in (VERSIONED, rendered("<think>"), rendered("nothing")):
        feed(answer, connect(answer), reply)
    assert due(answer).rung == REPLAY
    response = connect(answer)
    feed(answer, response, HEAD + line("Bla"), line("ck hol"))
    assert kinds(answer)[-1] == "connected"
    feed(answer, response, line("es are"), line(" dense"), done())
    assert [row for row in shape(answer) if row[0] == "token"][2:] == [("token", " are", 2), ("token", " dense", 3)]
    assert told(answer, "resumed")[0]["same_weights"] is True
    assert answer.outcome.usage == {"prompt_tokens": 7, "completion_tokens": 3}  # type: ignore[union-attr]


def test_a_replay_that_differs_goes_to_the_next_server() -> None:
    """Of another answer nothing is shown."""
    memory: Memory = {("0.30.0", "d"): {RAW, PREFILL}}
    answer = broken(options={"temperature": 0}, digests=("d", "d", "d"), servers=3, memory=memory)
    feed(answer, connect(answer), VERSIONED)
    assert due(answer).rung == REPLAY
    feed(answer, connect(answer), HEAD + line("Black") + line(" stars"))
    assert told(answer, "error")[-1]["kind"] == "diverged"
    assert (due(answer).server, text(answer)) == (2, "Black holes")


def test_a_thought_that_broke_off_is_begun_again() -> None:
    """Nothing of the text was there: the question is asked anew, the second thought is the answer's."""
    answer = begun()
    feed(answer, connect(answer), HEAD + line(message={"thinking": "Let me"}), b"")
    assert due(answer).rung == RESTART
    feed(answer, connect(answer), HEAD + line(message={"thinking": "I see"}) + line("Black") + done())
    assert kinds(answer)[2:] == ["thinking", "error", "connected", "resumed", "thinking", "token", "stats", "end"]
    assert told(answer, "resumed")[0]["rung"] == RESTART
    assert (answer.outcome.thinking, answer.outcome.text) == ("I see", "Black")  # type: ignore[union-attr]


def test_a_thought_that_may_not_be_begun_again() -> None:
    """Without resuming, a part of a thought is a part of the answer."""
    answer = begun(resume=False)
    feed(answer, connect(answer), HEAD + line(message={"thinking": "Let me"}), b"")
    assert isinstance(answer.outcome, StreamInterruptedError)


def test_usage_over_a_seam() -> None:
    """The tokens of others were in the last prompt and are counted to the answer."""
    answer = broken("Black", " holes")
    feed(answer, to_raw(answer), HEAD + raw(" are") + raw_done(prompt_eval_count=42, eval_count=10))
    assert answer.outcome.usage == {"prompt_tokens": 40, "completion_tokens": 12}  # type: ignore[union-attr]


def test_what_the_second_server_may_still_say() -> None:
    """The limit is lowered by the tokens that were delivered."""
    answer = broken("Black", " holes", options={"num_predict": 10})
    for reply in (VERSIONED, rendered()):
        feed(answer, connect(answer), reply)
    assert json.loads(due(answer).request.body)["options"] == {"num_predict": 8}


def test_a_break_behind_the_last_token() -> None:
    """With the limit reached only the word that it is done is missing: it is asked for, and its token dropped."""
    answer = broken("Black", " holes", options={"num_predict": 2})
    for reply in (VERSIONED, rendered()):
        feed(answer, connect(answer), reply)
    assert json.loads(due(answer).request.body)["options"] == {"num_predict": 1}
    response = connect(answer)
    feed(answer, response, HEAD + raw(" are"))
    assert kinds(answer)[-1] == "connected"
    feed(answer, response, raw_done(done_reason="length", eval_count=1))
    assert isinstance(answer.outcome, Result)
    assert (answer.outcome.text, answer.outcome.finish_reason) == ("Black holes", "length")
    assert answer.outcome.usage == {"prompt_tokens": 7, "completion_tokens": 2}
    assert kinds(answer)[-3:] == ["resumed", "stats", "end"]


def test_a_break_behind_the_last_token_without_resuming() -> None:
    """Nobody said that it was done, so it is no end."""
    answer = broken("Black", " holes", options={"num_predict": 2}, resume=False)
    assert isinstance(answer.outcome, StreamInterruptedError)
    assert answer.outcome.partial == "Black holes"


def test_a_stop_string_across_the_seam_ends_the_answer() -> None:
    """The second server does not know that it began in the first one's text."""
    answer = broken("One", "\n", options={"stop": "\n\n"})
    response = to_raw(answer)
    feed(answer, response, HEAD + raw("\n") + raw("Two"))
    assert (answer.outcome.text, answer.outcome.finish_reason) == ("One\n", "stop")  # type: ignore[union-attr]
    assert answer.reading == ()


def test_a_refusal_behind_text_is_not_final() -> None:
    """Another server took the question, so its way of being asked is at fault: the next rung, then the next server."""
    answer = broken(servers=3)
    refusal = whole({"error": "raw mode is not allowed"}, status=400)
    feed(answer, to_raw(answer), refusal)
    assert due(answer).rung == PREFILL
    feed(answer, connect(answer), rendered("nothing"))
    assert [error["kind"] for error in told(answer, "error")] == ["truncated", "cannot_continue", "cannot_continue"]
    assert due(answer).server == 2
    feed(answer, to_raw(answer), refusal)
    feed(answer, connect(answer), rendered("nothing"))
    wait = answer.next_step(11.0, since=11.0)
    assert wait == Wait(12.0)  # the first server took the question once and may come back


def test_when_no_server_can_go_on() -> None:
    """The error has the text, and says of each server why."""
    answer = broken()
    feed(answer, connect(answer), VERSIONED)
    feed(answer, connect(answer), rendered("<think>"))
    feed(answer, connect(answer), rendered("nothing"))
    for number in range(4):
        step = answer.next_step(20.0 + 10 * number, since=20.0)
        if step is None:
            break
        assert isinstance(step, Connect)
        answer.failed(step, Failure("refused", "connect", "refused"), 20.0 + 10 * number)
    assert isinstance(answer.outcome, StreamInterruptedError)
    assert answer.outcome.partial == "Black holes"
    words = str(answer.outcome)
    assert words.startswith("Stream interrupted after 11 characters: http://s0:1 (connect): refused; http://s1:1")
    assert "no exact way to go on" in words


HINT = "temperature=0 or a seed"


def test_an_answer_that_may_not_go_on_says_so() -> None:
    """The reader may not know that it was told to end at the first failure."""
    answer = broken(resume=False)
    assert str(answer.outcome).endswith(" (resume is off, so that no other server was asked to go on)")


@pytest.mark.parametrize(
    ("options", "digests", "is_told"),
    [
        ({}, ("d", "d"), True),
        ({"temperature": 0.5}, ("d", "d"), True),
        ({"seed": 1}, ("d", "d"), False),  # it was repeatable
        ({}, ("d", "e"), False),  # other weights repeat nothing
        ({}, ("d", ""), False),
        ({}, ("d",), False),  # there is nobody else
    ],
)
def test_what_would_have_helped_is_told(options: dict[str, Any], digests: tuple[str, ...], is_told: bool) -> None:
    """A sampled answer that cannot go on could have been generated again by the same weights elsewhere."""
    answer = broken(servers=len(digests), digests=digests, options=options, calls=True)
    now = 11.0
    while (step := answer.next_step(now, since=now)) is not None:
        if isinstance(step, Connect):
            answer.failed(step, Failure("refused", "connect", "refused"), now)
        else:
            now = step.until
    assert isinstance(answer.outcome, StreamInterruptedError)
    assert (HINT in str(answer.outcome)) is is_told


@pytest.mark.parametrize(
    ("options", "digest", "is_told"), [({}, "d", True), ({}, "e", False), ({"seed": 1}, "e", False)]
)
def test_a_server_without_a_way_says_what_it_would_have_needed(
    options: dict[str, Any], digest: str, is_told: bool
) -> None:
    """Whoever has the weights could have repeated the answer, had it been repeatable."""
    answer = broken(digests=("d", digest), options=options)
    for reply in (VERSIONED, rendered("<think>"), rendered("nothing")):
        feed(answer, connect(answer), reply)
    error = told(answer, "error")[-1]
    assert (error["kind"], error["phase"]) == ("cannot_continue", "resume")
    assert (HINT in (answer.log[-1].content or "")) is is_told


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, {"error": "set a key"}, "denied"),
        (403, {"error": "set a key"}, "denied"),
        (413, "<html>", "bad_response"),
        (302, "", "bad_response"),
        (400, {"error": "set a key"}, "cannot_continue"),  # another server took the question
    ],
)
def test_a_refusal_of_the_preparation_is_the_reason(status: int, body: Any, kind: str) -> None:
    """A server that has no other way on is told with what it said, and with its status."""
    answer = broken()
    feed(answer, connect(answer), VERSIONED)
    feed(answer, connect(answer), whole(body, status))
    error = told(answer, "error")[-1]
    found = (error["server"], error["kind"], error["phase"], error["status"])
    assert found == ("http://s1:1", kind, "resume", status)
    assert f"HTTP {status}" in (answer.log[-1].content or "")
    assert ("set a key" in (answer.log[-1].content or "")) is isinstance(body, dict)
    assert due(answer, 12.0).server == 0


def test_a_preparation_that_comes_too_late() -> None:
    """The total time is up between two requests: that is told as an attempt with its error event, and is the end."""
    answer = broken(total=5.0)
    feed(answer, connect(answer), VERSIONED, now=12.0)
    assert due(answer, 14.9).task == ASK_RENDER
    assert answer.next_step(15.0, since=15.0) is None
    assert isinstance(answer.outcome, StreamInterruptedError)
    assert [(each.server, each.kind) for each in answer.outcome.attempts] == [
        ("http://s0:1", "truncated"),
        ("http://s1:1", "timeout"),
    ]
    assert [(error["kind"], error["will_retry"]) for error in told(answer, "error")][1:] == [("timeout", False)]
    assert "not whole within 5 s" in str(answer.outcome)
    log = list(answer.log)
    assert answer.next_step(16.0, since=16.0) is None
    assert answer.log == log


def segment(answer: Answer, chunks: int, now: float) -> None:
    """Let the server that is due give so many chunks more, the way it can go on, and break."""
    while (step := due(answer, now)).task != ASK_ANSWER:
        feed(answer, connect(answer, now), VERSIONED if step.task == ASK_VERSION else rendered(), now=now)
    response = connect(answer, now)
    make = raw if step.rung == RAW else line
    feed(answer, response, HEAD + b"".join(make(f" {now:g}-{number}") for number in range(chunks)), now=now)
    answer.failed(response, RESET, now)


def test_a_server_that_makes_progress_is_never_given_up() -> None:
    """A proxy may cut every connection: what counts is that each of them brings a part of the answer."""
    answer, now = begun(servers=1), 10.0
    for number in range(1, 13):
        segment(answer, PART_CHUNKS, now)
        assert answer.outcome is None
        assert answer.next_step(now, since=now) == Wait(now + 1.0)
        assert sum(event.type == "token" for event in answer.log) == number * PART_CHUNKS
        now += 600.0


def test_a_server_that_crumbles_is_given_up() -> None:
    """One that breaks after a few words each time is asked four times, and the text so far is in the error."""
    answer, now = begun(servers=1), 10.0
    for number in range(4):
        segment(answer, 2, now)
        now += 2.0**number
    assert isinstance(answer.outcome, StreamInterruptedError)
    assert len(answer.outcome.partial.split()) == 8


def test_the_fast_way_is_taken_again_behind_a_seam() -> None:
    """Until the seam is proven the core is asked before each read, and after that no more."""
    answer = broken("It", " is", " very", " very")
    assert not answer.steady
    response = to_raw(answer)
    feed(answer, response, HEAD + raw(" very"))
    assert not answer.steady
    feed(answer, response, raw(" massive"))
    assert answer.steady
    feed(answer, response, raw(" indeed"))
    assert answer.steady
    assert text(answer) == "It is very very very massive indeed"
    feed(answer, response, raw_done())
    assert (answer.steady, type(answer.outcome)) == (False, Result)
    timed = broken(total=50.0)  # each of its reads has another time
    feed(timed, to_raw(timed), HEAD + raw(" are") + raw(" dense"))
    assert (text(timed), timed.steady) == ("Black holes are dense", False)


def test_the_only_server_may_come_back() -> None:
    """It broke in mid-answer: it is asked again a little later, and then goes on."""
    answer = broken(servers=1)
    assert answer.next_step(11.0, since=11.0) == Wait(12.0)
    answer.failed(due(answer, 12.0), Failure("refused", "connect", "refused"), 12.0)
    assert answer.next_step(12.0, since=11.0) == Wait(14.0)
    feed(answer, to_raw(answer, 14.0), HEAD + raw(" are") + raw_done(), now=15.0)
    assert text(answer) == "Black holes are"
    assert told(answer, "resumed")[0]["same_weights"] is True


def test_the_same_weights_are_asked_first() -> None:
    """Behind text the order is that of the weights."""
    answer = broken(servers=4, digests=("d", "e", "", "d"))
    order = []
    for _ in range(3):
        step = due(answer)
        order.append(step.server)
        answer.failed(step, Failure("refused", "connect", "refused"), 11.0)
    assert order == [3, 2, 1]


def test_what_was_learned_is_kept_for_later_answers() -> None:
    """A version and weights whose template begins a new turn are not asked for it a second time."""
    memory: Memory = {}
    for expected in ([ASK_VERSION, ASK_RENDER, ASK_RENDER], [ASK_VERSION, ASK_RENDER]):
        answer = broken(digests=("d", "d"), memory=memory)
        steps = []
        while isinstance(step := answer.next_step(11.0, since=11.0), Connect) and step.server == 1:
            steps.append(step.task)
            reply = VERSIONED if step.task == ASK_VERSION else rendered("<think>")
            feed(answer, connect(answer, 11.0), reply)
        assert told(answer, "error")[-1]["kind"] == "cannot_continue"
        assert steps == expected


def test_busy_with_the_preparation() -> None:
    """A server that is busy is asked again later; its ways on are still open."""
    answer = broken()
    feed(answer, connect(answer), VERSIONED)
    feed(answer, connect(answer), whole({"error": "busy"}, status=503))
    assert (told(answer, "error")[-1]["kind"], told(answer, "error")[-1]["phase"]) == ("busy", "resume")
    step = due(answer, 12.0)
    assert step.server == 0 or step.rung == RAW


def test_what_another_answer_learns_meanwhile() -> None:
    """A server that loses its last way on while it is waited for is passed over: the others are asked."""
    memory: Memory = {}
    answer = broken(digests=("", "d"), memory=memory)
    feed(answer, connect(answer), VERSIONED)
    feed(answer, connect(answer), rendered("<think>"))
    feed(answer, connect(answer), whole({"error": "busy"}, status=503), now=10.5)
    memory["0.30.0", "d"] = {PREFILL}
    assert answer.next_step(11.6, since=11.0) == Wait(12.0)
    assert due(answer, 12.0).server == 0


def test_two_seams() -> None:
    """The third server goes on with what both others said."""
    answer = broken("Black", " holes", servers=3)
    response = to_raw(answer)
    feed(answer, response, HEAD + raw(" are") + raw(" very"))
    answer.failed(response, RESET, 12.0)
    feed(answer, connect(answer, 12.0), VERSIONED)
    feed(answer, connect(answer, 12.0), rendered())
    assert json.loads(due(answer, 12.0).request.body)["prompt"] == PROMPT + "Black holes are very"
    feed(answer, connect(answer, 12.0), HEAD + raw(" dense.") + raw_done(prompt_eval_count=11))
    assert text(answer) == "Black holes are very dense."
    assert answer.outcome.usage == {"prompt_tokens": 7, "completion_tokens": 7}  # type: ignore[union-attr]
    assert [index for _, _, index in shape(answer) if index is not None] == [0, 1, 2, 3, 4]


def test_cancelling_between_two_servers() -> None:
    """The text so far is in the error, whatever was being prepared."""
    answer = broken()
    connect(answer)
    answer.cancel()
    assert isinstance(answer.outcome, StreamCancelledError)
    assert (answer.outcome.partial, answer.reading) == ("Black holes", ())
    assert answer.next_step(11.0, since=11.0) is None


# a late first token


def probe(answer: Answer, now: float) -> dict[str, Response]:
    """Send the probes that are due."""
    found = {}
    for _ in range(2):
        step = due(answer, now)
        assert step.beside
        found[step.task] = connect(answer, now)
    return found


def test_a_server_that_loads_is_waited_for() -> None:
    """Alive, and silent about its models: it loads, and is given as long again."""
    answer = begun()
    response = connect(answer)
    answer.timed_out(130.0)
    assert due(answer, 130.0) == Connect(0, LOADED, ASK_LOADED, beside=True)
    probes = probe(answer, 130.0)
    assert list(probes) == [ASK_LOADED, ASK_ALIVE]
    assert answer.reading == (response, *probes.values())
    feed(answer, probes[ASK_ALIVE], VERSIONED, now=130.1)
    assert answer.next_step(130.1, since=10.0) == Read(131.0)
    answer.timed_out(131.0)
    assert told(answer, "loading") == [{"kind": "loading", "server": "http://s0:1"}]
    assert answer.reading == (response,)
    assert answer.next_step(131.0, since=10.0) == Read(251.0)
    feed(answer, response, WHOLE, now=200.0)
    assert isinstance(answer.outcome, Result)
    assert kinds(answer) == ["start", "connected", "loading", "token", "token", "stats", "end"]


def test_a_load_that_ends_gives_the_token_its_time_again() -> None:
    """The probe that had waited is answered: once more as long, and then no more."""
    answer = begun()
    connect(answer)
    answer.timed_out(130.0)
    probes = probe(answer, 130.0)
    feed(answer, probes[ASK_LOADED], whole({"models": []}), now=130.5)
    assert len(told(answer, "loading")) == 1
    assert answer.next_step(130.5, since=10.0) == Read(10.0 + 120.0 + 120.5)
    answer.timed_out(250.5)
    assert told(answer, "error")[0]["kind"] == "first_token_timeout"
    assert due(answer, 250.5).server == 1


def test_a_load_is_not_waited_for_without_end() -> None:
    """After five minutes of loading the server is left."""
    answer = begun()
    connect(answer)
    now, loads = 130.0, 0
    while not told(answer, "error"):
        answer.timed_out(now)
        step = answer.next_step(now, since=10.0)
        if isinstance(step, Connect) and step.beside:
            feed(answer, probe(answer, now)[ASK_ALIVE], VERSIONED, now=now)
            step = answer.next_step(now, since=10.0)
        if isinstance(step, Read):
            now = step.until
        loads += 1
        assert loads < 20
    assert told(answer, "error")[0]["kind"] == "first_token_timeout"
    assert 300.0 <= now - 10.0 <= 600.0


@pytest.mark.parametrize(
    ("task", "reply"),
    [
        (ASK_LOADED, whole({"models": []})),  # at once: it loads nothing, and is late all the same
        (ASK_LOADED, whole({"error": "x"}, status=500)),
        (ASK_ALIVE, whole({"error": "x"}, status=502)),
    ],
)
def test_a_late_server_that_does_not_load_is_left(task: str, reply: bytes) -> None:
    """The answer to a probe decides at once."""
    answer = begun()
    connect(answer)
    answer.timed_out(130.0)
    feed(answer, probe(answer, 130.0)[task], reply, now=130.1)
    assert told(answer, "error")[0]["kind"] == "first_token_timeout"
    assert answer.reading == ()
    assert (due(answer, 130.1).server, told(answer, "loading")) == (1, [])


def test_a_late_server_that_answers_nothing_is_left() -> None:
    """Silent on both: it is not loading but gone."""
    answer = begun()
    connect(answer)
    answer.timed_out(130.0)
    probe(answer, 130.0)
    assert answer.next_step(130.0, since=10.0) == Read(131.0)
    answer.timed_out(131.0)
    assert told(answer, "error")[0]["kind"] == "first_token_timeout"


@pytest.mark.parametrize("is_open", [False, True])
def test_a_probe_that_breaks_decides(is_open: bool) -> None:
    """A server that takes no connection any more does not load."""
    answer = begun()
    connect(answer)
    answer.timed_out(130.0)
    step = due(answer, 130.0)
    what = connect(answer, 130.0) if is_open else step
    answer.failed(what, RESET, 130.5)
    assert [error["kind"] for error in told(answer, "error")] == ["first_token_timeout"]


def test_a_token_while_probes_are_out() -> None:
    """The answer came after all: the probes are let go."""
    answer = begun()
    response = connect(answer)
    answer.timed_out(130.0)
    probes = probe(answer, 130.0)
    feed(answer, response, HEAD + line("Black"), now=130.2)
    assert answer.reading == (response,)
    answer.failed(probes[ASK_LOADED], RESET, 130.3)
    assert (told(answer, "error"), text(answer)) == ([], "Black")


def test_a_version_that_does_not_come_is_no_load() -> None:
    """It waits for no model, so it has the time of a connection and no patience."""
    answer = broken()
    connect(answer, 20.0)
    assert answer.next_step(20.0, since=20.0) == Read(25.0)
    answer.timed_out(25.0)
    assert (told(answer, "error")[-1]["kind"], told(answer, "error")[-1]["phase"]) == ("first_token_timeout", "resume")
    assert "did not say its version within 5 s" in (answer.log[-1].content or "")
    assert answer.reading == ()


def test_a_render_may_wait_for_a_load() -> None:
    """The second server may have to load the model before it renders."""
    answer = broken()
    feed(answer, connect(answer, 20.0), VERSIONED, now=20.0)
    connect(answer, 20.0)
    answer.timed_out(140.0)
    assert due(answer, 140.0).task == ASK_LOADED


# a second server


def hedged(servers: int = 2, *, budget: Budget | None = None, **more: Any) -> tuple[Answer, Response, Response]:
    """Return an answer with two servers under way, and their responses."""
    answer = begun(servers, hedge=Hedge(budget or Budget(), 2.0), **more)
    first = connect(answer)
    assert answer.next_step(10.0, since=10.0) == Read(12.0)
    answer.timed_out(12.0)
    step = due(answer, 12.0, since=10.0)
    assert (step.server, step.task, step.beside) == (1, ASK_ANSWER, True)
    return answer, first, connect(answer, 12.0, since=10.0)


def test_the_second_server_speaks_first() -> None:
    """It gives the answer; the first one is let go and told as outpaced."""
    answer, first, second = hedged()
    assert answer.reading == (first, second)
    assert told(answer, "connected")[1]["hedge"] is True
    feed(answer, second, HEAD + line("Black"), now=13.0)
    assert answer.reading == (second,)
    feed(answer, second, line(" holes") + done(), now=13.0)
    assert text(answer) == "Black holes"
    assert [(each.server, each.kind) for each in answer.outcome.attempts] == [  # type: ignore[union-attr]
        ("http://s0:1", "outpaced"),
        ("http://s1:1", "ok"),
    ]
    assert told(answer, "error") == []


def test_who_comes_late_is_told_what_the_first_server_said() -> None:
    """The reader was away for longer than the second server waits: the first one's word is read, nobody is asked."""
    budget = Budget()
    answer = begun(hedge=Hedge(budget, 2.0))
    first = connect(answer)
    assert answer.next_step(50.0, since=50.0) == Read(50.0 + GLANCE_SECONDS)
    feed(answer, first, HEAD + line("Black"), now=50.0)
    assert isinstance(answer.next_step(50.0, since=50.0), Read)
    assert (len(told(answer, "connected")), budget.left) == (1, Budget().left)
    silent = begun(hedge=Hedge(budget, 2.0))
    connect(silent)
    silent.timed_out(50.0 + GLANCE_SECONDS)
    assert due(silent, 50.0 + GLANCE_SECONDS, since=50.0).beside


@pytest.mark.parametrize("is_reached", [False, True])
def test_one_second_server_is_asked_beside_an_attempt(is_reached: bool) -> None:
    """When it fails, the first one is read and nobody else is asked until it fails as well; the next attempt may."""
    answer = begun(4, hedge=Hedge(Budget(), 2.0))
    first = connect(answer)
    answer.timed_out(12.0)
    what = connect(answer, 12.0, since=10.0) if is_reached else due(answer, 12.0, since=10.0)
    answer.failed(what, RESET, 12.5)
    for now in (12.5, 14.5, 60.0):
        assert answer.next_step(now, since=10.0) == Read(130.0)
    feed(answer, first, FAILED, b"", now=61.0)
    connect(answer, 61.0)
    answer.timed_out(63.0)
    assert (due(answer, 63.0, since=61.0).server, due(answer, 63.0, since=61.0).beside) == (3, True)


def test_a_second_server_costs_what_was_saved() -> None:
    """Each one that took the question is paid for, and with nothing left the first one is waited for."""
    budget = Budget()
    for _ in range(3):
        hedged(budget=budget)
    assert not budget.allows
    answer = begun(hedge=Hedge(budget, 2.0))
    connect(answer)
    assert answer.next_step(10.0, since=10.0) == Read(130.0)


def test_a_second_server_that_takes_no_question_costs_nothing() -> None:
    """Nobody had work with it."""
    budget = Budget()
    answer = begun(hedge=Hedge(budget, 2.0))
    connect(answer)
    answer.failed(due(answer, 12.0, since=10.0), Failure("refused", "connect", "refused"), 12.0)
    assert budget.left == Budget().left


def test_the_first_server_speaks_first() -> None:
    """The second one is let go, and nothing of it shows but its connection."""
    answer, first, second = hedged()
    feed(answer, first, HEAD + line("Black"), now=13.0)
    assert answer.reading == (first,)
    feed(answer, second, WHOLE, now=13.0)
    feed(answer, first, line(" holes") + done(), now=13.0)
    assert text(answer) == "Black holes"
    assert [each.kind for each in answer.outcome.attempts] == ["ok"]  # type: ignore[union-attr]


def test_the_second_servers_headers_are_no_word() -> None:
    """Only a body decides; headers alone may come from a proxy."""
    answer, first, second = hedged()
    feed(answer, second, HEAD, now=13.0)
    assert answer.reading == (first, second)


@pytest.mark.parametrize(
    "reply",
    [
        FAILED,
        b"HTTP/1.1 503 X\r\n\r\n",
        HEAD,
        b"nonsense",
        whole({"error": "no such option"}, status=400),
        HEAD + b'{"error":"out of memory"}\n',
        HEAD + b"<html>\n",
        HEAD + b"{}\n",
    ],
)
def test_the_second_server_fails(reply: bytes) -> None:
    """It is told, and the first one goes on as if nothing had been."""
    answer, first, second = hedged()
    feed(answer, second, reply, b"", now=13.0)
    assert len(told(answer, "error")) == 1
    assert (told(answer, "error")[0]["server"], told(answer, "error")[0]["will_retry"]) == ("http://s1:1", True)
    assert answer.reading == (first,)
    feed(answer, first, WHOLE, now=14.0)
    assert text(answer) == "Black holes"


def test_a_second_servers_refusal_is_not_final() -> None:
    """The first one took the same request, so when it fails the third one is asked."""
    answer, first, second = hedged(servers=3)
    feed(answer, second, whole({"error": "no such option"}, status=400), now=13.0)
    feed(answer, first, FAILED, b"", now=14.0)
    assert due(answer, 14.0).server == 2


def test_the_second_server_cannot_be_reached() -> None:
    """The same holds when there is no connection, or when it breaks."""
    answer = begun(hedge=Hedge(Budget(), 2.0))
    first = connect(answer)
    answer.timed_out(12.0)
    answer.failed(due(answer, 12.0, since=10.0), Failure("refused", "connect", "refused"), 12.0)
    assert (answer.reading, told(answer, "error")[0]["kind"]) == ((first,), "refused")
    assert answer.next_step(12.0, since=10.0) == Read(130.0)
    answer, first, second = hedged()
    answer.failed(second, RESET, 13.0)
    assert (answer.reading, told(answer, "error")[0]["kind"]) == ((first,), "reset")


def test_the_first_server_fails() -> None:
    """The second one is there already, and nobody else is asked."""
    answer, first, second = hedged(servers=3)
    feed(answer, first, FAILED, b"", now=13.0)
    assert answer.reading == (second,)
    assert isinstance(answer.next_step(13.0, since=13.0), Read)
    feed(answer, second, WHOLE, now=14.0)
    assert [each.kind for each in answer.outcome.attempts] == ["server_error", "ok"]  # type: ignore[union-attr]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_both_servers_fail(order: tuple[int, int]) -> None:
    """Each is told once, and the third one is asked."""
    answer, *responses = hedged(servers=3)
    for number in order:
        feed(answer, responses[number], FAILED, b"", now=13.0)
    assert [error["server"] for error in told(answer, "error")] == [f"http://s{number}:1" for number in order]
    assert due(answer, 13.0).server == 2
    last, *responses = hedged(servers=2)
    for number in order:
        feed(last, responses[number], FAILED, b"", now=13.0)
    assert last.next_step(13.0, since=13.0) is None
    assert isinstance(last.outcome, AllServersFailedError)
    assert len(last.outcome.attempts) == 2


def test_the_second_server_breaks_in_mid_answer() -> None:
    """Its text is gone on with like any other's."""
    answer, _, second = hedged()
    feed(answer, second, HEAD + line("Black") + line(" holes"), b"", now=13.0)
    assert due(answer, 13.0).server == 0
    feed(answer, to_raw(answer, 13.0), HEAD + raw(" are") + raw_done(), now=14.0)
    assert text(answer) == "Black holes are"


def test_a_second_server_is_late_too() -> None:
    """It has its own first token's time and no probes; the first one stays what it was."""
    answer, first, _ = hedged(servers=3, first_token=60.0)
    assert answer.next_step(12.0, since=10.0) == Read(70.0)
    answer.timed_out(70.0)
    feed(answer, probe(answer, 70.0)[ASK_ALIVE], VERSIONED, now=70.1)
    answer.timed_out(71.0)
    assert answer.next_step(71.0, since=10.0) == Read(72.0)
    answer.timed_out(72.0)
    assert [error["server"] for error in told(answer, "error")] == ["http://s1:1"]
    assert answer.reading == (first,)


# leaving a server on purpose


def test_moving_in_mid_answer() -> None:
    """The next server goes on, nothing is an error, and the one that was left is asked last."""
    answer = begun()
    response = connect(answer)
    feed(answer, response, HEAD + line("Black") + line(" holes"))
    assert answer.move(12.0) is True
    assert answer.reading == ()
    assert told(answer, "moved") == [{"kind": "moved", "server": "http://s0:1"}]
    feed(answer, to_raw(answer, 12.0), HEAD + raw(" are") + raw_done(), now=13.0)
    assert text(answer) == "Black holes are"
    assert [each.kind for each in answer.outcome.attempts] == ["moved", "ok"]  # type: ignore[union-attr]
    assert told(answer, "error") == []


def test_moving_and_back() -> None:
    """When the other one fails, the one that was left goes on."""
    answer = begun()
    feed(answer, connect(answer), HEAD + line("Black"))
    assert answer.move(12.0)
    answer.failed(due(answer, 12.0), Failure("refused", "connect", "refused"), 12.0)
    assert due(answer, 12.0).server == 0


def test_moving_before_the_first_token() -> None:
    """The next server is asked the question."""
    answer = begun()
    connect(answer)
    assert answer.move(12.0)
    assert (due(answer, 12.0).server, due(answer, 12.0).rung) == (1, "")


def test_moving_to_a_server_that_broke_before() -> None:
    """A server whose turn to be asked again has come is another one to go on at, and not before."""
    answer = broken()
    response = to_raw(answer)
    feed(answer, response, HEAD + raw(" are"))
    assert answer.move(11.9) is False
    assert answer.move(12.0) is True
    assert (due(answer, 12.0).server, due(answer, 12.0).task) == (0, ASK_VERSION)


def test_a_slow_server_is_left_for_one_that_broke_before() -> None:
    """The pace looks for a server to go on at as `move` does."""
    answer = broken(pace=5.0)
    paced(answer, to_raw(answer, 12.0), gap=1.0, count=8, begins=12.0, make=raw)
    assert [error["kind"] for error in told(answer, "error")] == ["truncated", "slow"]
    assert due(answer, 30.0).server == 0


def test_moving_back_and_forth() -> None:
    """The one that has been left for longer is asked first, and none is used up by it."""
    answer = begun()
    feed(answer, connect(answer), HEAD + line("Black"))
    for now in range(12, 30):
        assert answer.move(float(now))
        for _ in range(3):
            step = due(answer, float(now))
            reply = HEAD + raw(f" {now}")
            if step.task != ASK_ANSWER:
                reply = VERSIONED if step.task == ASK_VERSION else rendered()
            feed(answer, connect(answer, float(now)), reply, now=float(now))
            if step.task == ASK_ANSWER:
                break
    places = [meta["server"] for meta in told(answer, "moved")]
    assert places == ["http://s0:1", "http://s1:1"] * 9
    assert told(answer, "error") == []


def test_after_a_move_waiting_begins_anew() -> None:
    """Long after the first token a busy server is waited for when one was left for it, as after a failure."""
    for moves in (True, False):
        answer = begun()
        response = connect(answer)
        feed(answer, response, HEAD + line("Black"), now=11.0)
        feed(answer, response, line(" holes"), now=199.0)
        if moves:
            assert answer.move(200.0)
        else:
            answer.failed(response, RESET, 200.0)
        feed(answer, connect(answer, 200.0), VERSIONED, now=200.0)
        feed(answer, connect(answer, 200.0), whole({"error": "busy"}, status=503), now=200.1)
        step = answer.next_step(200.2, since=200.2)
        if isinstance(step, Connect):
            assert step.server == 0
            answer.failed(step, Failure("refused", "connect", "refused"), 200.2)
            step = answer.next_step(200.2, since=200.2)
        assert isinstance(step, Wait)
        assert answer.outcome is None


def test_when_there_is_nowhere_to_move() -> None:
    """Nothing happens: with one server, without resuming, between servers, and when all is over."""
    alone, strict, over = begun(servers=1), begun(resume=False), begun()
    for answer in (alone, strict):
        feed(answer, connect(answer), HEAD + line("Black"))
    feed(over, connect(over), WHOLE)
    for answer in (alone, strict, over, begun()):
        log = list(answer.log)
        assert answer.move(12.0) is False
        assert answer.log == log


def paced(
    answer: Answer,
    response: Response,
    *,
    gap: float,
    count: int,
    reads_after: float = 0.0,
    begins: float = 11.0,
    piece: int = 4096,
    make: Callable[[str], bytes] = line,
) -> None:
    """Feed tokens with gaps, in pieces of so many bytes, to a reader who comes back so many seconds after each."""
    now = begins
    feed(answer, response, HEAD + make("x"), now=now)
    for _ in range(count):
        since = now + reads_after
        answer.next_step(since, since=since)
        last = now + max(gap, reads_after)
        data = make("x")
        pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
        for number, each in enumerate(pieces, 1):
            now = last - gap * (len(pieces) - number) / len(pieces)
            if response in answer.reading:
                feed(answer, response, each, now=now)
                answer.next_step(now, since=since)


def test_a_slow_server_is_left() -> None:
    """Fewer tokens per second than were asked for, over some seconds of waiting: the next server goes on."""
    answer = begun(pace=5.0)
    paced(answer, connect(answer), gap=1.0, count=8)
    assert [error["kind"] for error in told(answer, "error")] == ["slow"]
    assert text(answer) == "x" * 6
    assert due(answer, 20.0).server == 1


def test_a_server_fast_enough_is_kept() -> None:
    """A quarter of a second a token is four a second."""
    answer = begun(pace=3.9)
    paced(answer, connect(answer), gap=0.25, count=100)
    assert (told(answer, "error"), len(text(answer))) == ([], 101)


def thought(content: str) -> bytes:
    return line(message={"thinking": content})


def called(name: str) -> bytes:
    return line(message={"tool_calls": [{"function": {"name": name, "arguments": {}}}]})


@pytest.mark.parametrize("make", [thought, called])
def test_what_is_no_text_counts_for_the_pace(make: Callable[[str], bytes]) -> None:
    """A thinking server, or one that calls tools, is as fast as it speaks: ten a second are not slow, one is."""
    fast, slow = (begun(pace=5.0, options={"temperature": 0}, digests=("d", "d")) for _ in range(2))
    paced(fast, connect(fast), gap=0.1, count=200, make=make)
    assert (told(fast, "error"), len(fast.log)) == ([], 203)
    paced(slow, connect(slow), gap=1.0, count=8, make=make)
    assert [error["kind"] for error in told(slow, "error")] == ["slow"]
    assert due(slow, 20.0).server == 1


@pytest.mark.parametrize(("pace", "kinds_of"), [(3.9, []), (4.1, ["slow"])])
@pytest.mark.parametrize("piece", [1, 5, 4096])
def test_the_pace_is_that_of_whole_lines(piece: int, pace: float, kinds_of: list[str]) -> None:
    """Four tokens a second are four a second, in however many pieces their lines arrive."""
    answer = begun(pace=pace)
    paced(answer, connect(answer), gap=0.25, count=40, piece=piece)
    assert [error["kind"] for error in told(answer, "error")] == kinds_of


def test_a_slow_server_without_another_is_kept() -> None:
    """A slow answer is better than none."""
    for answer in (begun(servers=1, pace=5.0), begun(pace=5.0, resume=False)):
        paced(answer, connect(answer), gap=1.0, count=20)
        assert (told(answer, "error"), len(text(answer))) == ([], 21)


def test_a_slow_reader_makes_no_slow_server() -> None:
    """Only the time that the reader waited counts."""
    answer = begun(pace=5.0)
    paced(answer, connect(answer), gap=0.0, count=50, reads_after=2.0)
    assert told(answer, "error") == []


# interrupts

Script = Mapping[tuple[int, str, str], Sequence[bytes]]


class Drive:
    """A front end that is interrupted once, at a line of the core's code, and goes on as a real one does.

    `interrupt_at` is a step, from 0, and which one of the lines that it runs, from 1; the steps before it take a tenth
    of the time because they are not traced.

    `script` has the pieces of every reply by server, task and rung; b"" ends a connection, and a reply that has no
    more pieces is silent. What was fed and not yet told is told first.
    """

    def __init__(self, answer: Answer, script: Script, interrupt_at: tuple[int, int] | None = None) -> None:
        self.answer = answer
        self.script = script
        self.interrupt_at = interrupt_at
        self.lines = 0
        self.now = 10.0
        self.since, self.seen = 10.0, 0
        self.left: dict[Response, list[bytes]] = {}
        self.untold: Response | None = None

    def run(self) -> list[int]:
        """Drive the answer to its end; return how many lines of the core each step ran, 0 where it was not traced."""
        counts: list[int] = []
        while self.answer.outcome is None:
            before, self.lines = sys.gettrace(), 0
            if self.interrupt_at is None or self.interrupt_at[0] == len(counts):
                sys.settrace(self._trace)
            with suppress(KeyboardInterrupt):
                try:
                    self._step()
                finally:
                    sys.settrace(before)
            counts.append(self.lines)
        return counts

    def _trace(self, frame: FrameType, *_: object) -> Any:
        name = frame.f_code.co_filename
        return self._trace_line if "_core" in name and not name.endswith("http.py") else None

    def _trace_line(self, _: FrameType, event: str, __: object) -> Any:
        if event == "line":
            self.lines += 1
            if self.interrupt_at is not None and self.lines == self.interrupt_at[1]:
                raise KeyboardInterrupt
        return self._trace_line

    def _step(self) -> None:
        if self.untold is not None:
            self.answer.received(self.now, self.untold)
            self.untold = None
        if len(self.answer.log) != self.seen:  # the reader got what it waited for
            self.since, self.seen = self.now, len(self.answer.log)
        step = self.answer.next_step(self.now, since=self.since)
        if isinstance(step, Connect):
            response = Response()
            self.left[response] = list(self.script[step.server, step.task, step.rung])
            self.answer.connected(step, response, self.now)
        elif isinstance(step, Read):
            self._read(step)
        elif isinstance(step, Run):
            number = step.calls[0].number
            self.answer.returned(number, Returned("ok", number, str(number)), self.now)
        elif isinstance(step, Wait):
            self.now = step.until

    def _read(self, step: Read) -> None:
        speaking = next((each for each in self.answer.reading if self.left[each]), None)
        if speaking is None:
            self.now = max(self.now, step.until)
            self.answer.timed_out(self.now)
        else:
            speaking.take([self.left[speaking].pop(0)])
            self.untold = speaking


FAILING: Script = {
    (0, ASK_ANSWER, ""): [FAILED, b""],
    (1, ASK_ANSWER, ""): [HEAD + line("Black") + line(" ho"), line("les"), line(message={"thinking": "t"}) + done("!")],
}
RESUMING: Script = {  # silent; a rival breaks; raw breaks behind the seam; prefill echoes; replay is whole
    (0, ASK_ANSWER, ""): [],
    (1, ASK_ANSWER, ""): [HEAD + line("a a"), b""],
    (2, ASK_VERSION, RAW): [VERSIONED],
    (2, ASK_RENDER, RAW): [rendered("P")],
    (2, ASK_ANSWER, RAW): [HEAD + raw(" a"), raw(" b"), b""],
    (0, ASK_VERSION, RAW): [VERSIONED],
    (0, ASK_RENDER, RAW): [rendered("P<think>")],
    (0, ASK_RENDER, PREFILL): [rendered("Pa a a b")],
    (0, ASK_ANSWER, PREFILL): [HEAD + line("a a a b")],
    (0, ASK_ANSWER, REPLAY): [HEAD + line("a a"), line(" a b c") + done()],
}
LOADING: Script = {
    (0, ASK_ANSWER, ""): [],
    (0, ASK_LOADED, ""): [],
    (0, ASK_ALIVE, ""): [VERSIONED],
    (1, ASK_ANSWER, ""): [HEAD + line(message={"thinking": "t"}), b""],
    (1, ASK_ANSWER, RESTART): [HEAD + line("a"), done()],
}


CALLS = [{"function": {"name": "look", "arguments": {}}}]
CALLING: Script = {  # a thought inside of the text, two calls, and a break behind them
    (0, ASK_ANSWER, ""): [
        HEAD + line("<thi"),
        line("nk>t</think>Well"),
        line(message={"tool_calls": CALLS * 2}),
        b"",
    ],
    (1, ASK_ANSWER, ""): [HEAD + line("a"), line(" b") + done()],
}


def failing() -> Answer:
    return begun()


def calling() -> Answer:
    return begun(steps=3)


def resuming() -> Answer:
    greedy = {"temperature": 0, "stop": ["#"]}
    return begun(3, greedy, digests=("d", "d", "d"), hedge=Hedge(Budget(), 2.0))


def loading() -> Answer:
    return begun(first_token=200.0)


SCRIPTED = [(failing, FAILING), (resuming, RESUMING), (loading, LOADING), (calling, CALLING)]


@pytest.mark.parametrize(("make", "script"), SCRIPTED)
def test_an_interrupt_at_any_line_loses_and_doubles_nothing(make: Any, script: Script) -> None:
    """A KeyboardInterrupt at every single line of the core leaves a stream that can be read on (C12)."""
    assert joint.HELD  # imported before, for an import is no line of the answer
    undisturbed = make()
    counts = Drive(undisturbed, script).run()
    expected = [row for row in shape(undisturbed) if row[0] != "connected"]
    attempts = [(each.kind, each.rung) for each in undisturbed.outcome.attempts]
    assert sum(counts) > 200
    for place in [(step, line) for step, lines in enumerate(counts) for line in range(1, lines + 1)]:
        answer = make()
        Drive(answer, script, interrupt_at=place).run()
        # an interrupted connect is made again and told again; everything else is the same
        assert [row for row in shape(answer) if row[0] != "connected"] == expected
        assert isinstance(answer.outcome, Result)
        assert [(each.kind, each.rung) for each in answer.outcome.attempts] == attempts


def test_the_interrupted_answers_are_what_they_should_be() -> None:
    """The histories above go over every seam, a second server and a load."""
    resumed, loaded, called = resuming(), loading(), calling()
    Drive(resumed, RESUMING).run()
    Drive(loaded, LOADING).run()
    Drive(called, CALLING).run()
    assert (text(called), told(called, "tool_result")[1]["call"], kinds(called).count("tool_call")) == (
        "Well\n\na b",
        1,
        2,
    )
    assert text(resumed) == "a a a b c"
    assert [meta["rung"] for meta in told(resumed, "resumed")] == [RAW, REPLAY]
    kinds_of = [(each.kind, each.rung) for each in resumed.outcome.attempts]  # type: ignore[union-attr]
    assert kinds_of == [
        ("outpaced", ""),
        ("truncated", ""),
        ("truncated", RAW),
        ("diverged", PREFILL),
        ("ok", REPLAY),
    ]
    assert (text(loaded), len(told(loaded, "loading")), len(told(loaded, "error"))) == ("a", 1, 2)
