"""The table of faults and phases, with three servers on real sockets: never a wrong text, never a wrong end."""

from __future__ import annotations

import pytest
from tests.colours import Chat

from aicortex import AllServersFailedError, StreamEvent, StreamInterruptedError
from aicortex.testing import (
    Answer,
    Close,
    FakeServer,
    Garbage,
    Hang,
    InBandError,
    Refuse,
    Reply,
    Reset,
    Status,
    split_tokens,
)

TEXT = "Black holes form when very massive stars collapse under gravity at the end of their long and bright lives."
THOUGHT = "They ask about stars, so gravity it is."
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
HTML = Status.html(code=502)
FAULTS: dict[str, tuple[Reply, set[str]]] = {
    "refused": (Refuse(), {"refused", "reset"}),
    "hang": (Hang(), {"first_token_timeout", "stalled"}),
    "404": (Status(404, {"error": "model 'fake:latest' not found"}), {"model_not_found"}),
    "429": (Status(429, {"error": "too many"}, headers={"Retry-After": "60"}), {"busy"}),
    "500": (Status(500, {"error": "llama runner process has terminated"}), {"server_error"}),
    "503": (Status(503, {"error": "server busy, please try again.  maximum pending requests exceeded"}), {"busy"}),
    "html": (HTML, {"server_error", "bad_response"}),
    "garbage": (Garbage(), {"bad_response"}),
    "in-band": (InBandError("an error was encountered while running the model"), {"error"}),
    "reset": (Reset(), {"reset"}),
    "clean eof": (Close(), {"truncated", "closed"}),
    "bare eof": (Close(last_chunk=False), {"truncated", "closed"}),
}
STATUSES = {"404", "429", "500", "503", "html"}  # after the headers they are an error line of the stream
PHASES = {"before headers": None, "before the first token": 0}
KEYS = {"server", "kind", "phase", "delivered", "will_retry", "seconds", "status", "rung"}  # C6
KEYS |= {"why", "first_token", "retry_after"}


def broken(fault: Reply, after: int | None) -> Reply:
    return fault if after is None else Answer(TEXT).then(fault, after_tokens=after)


def check(events: list[StreamEvent], text: str) -> None:
    """Check what holds of every stream, whole or not."""
    assert [event.type for event in events].count("start") == 1
    assert events[0].type == "start"
    tokens = [event for event in events if event.type == "token"]
    assert [event.index for event in tokens] == list(range(len(tokens)))
    assert TEXT.startswith("".join(event.content or "" for event in tokens))
    assert "".join(event.content or "" for event in tokens) == text
    stamps = [event.timestamp or 0 for event in events]
    assert stamps == sorted(stamps)


@pytest.mark.parametrize("phase", ["before headers", "before the first token"])
@pytest.mark.parametrize("fault", FAULTS)
def test_before_the_first_token_the_answer_is_whole(chat: Chat, fault: str, phase: str) -> None:
    """Two of three servers fail in any way: the third gives the whole answer, once, and both failures are told."""
    reply, kinds = FAULTS[fault]
    bad = broken(reply, PHASES[phase])
    with (
        FakeServer(bad, answer=TEXT) as one,
        FakeServer(bad, answer=TEXT) as two,
        FakeServer(answer=TEXT) as three,
    ):
        stream = chat("How?", stream=True, servers=[one.url, two.url, three.url], first_token_timeout=0.3)
        events = list(stream)
    check(events, TEXT)
    assert [event.type for event in events].count("end") == 1
    assert events[-1].type == "end"
    errors = [event for event in events if event.type == "error"]
    expected = kinds | ({"error"} if phase != "before headers" and fault in STATUSES else set())
    assert [(event.meta or {})["server"] for event in errors] == [one.url, two.url]
    for event in errors:
        meta = event.meta or {}
        assert meta["kind"] in expected
        assert (meta["delivered"], meta["will_retry"]) == (0, True)
        assert (event.content or "").startswith(meta["server"])
    assert stream.result.server == three.url
    assert stream.text() == TEXT


def seams(events: list[StreamEvent]) -> list[tuple[str, str, int]]:
    """Return server, rung and characters delivered before of each place where the answer went on."""
    metas = [event.meta or {} for event in events if event.type == "meta"]
    found = [meta for meta in metas if meta["kind"] == "resumed"]
    assert all(meta["same_weights"] is True for meta in found)
    return [(meta["server"], meta["rung"], meta["delivered"]) for meta in found]


def characters(tokens: int) -> int:
    return len("".join(split_tokens(TEXT)[:tokens]))


def check_whole(events: list[StreamEvent], broke: list[str]) -> None:
    """Check an answer that is whole although these servers broke, in this order."""
    check(events, TEXT)
    assert [event.type for event in events].count("end") == 1
    assert events[-1].type == "end"
    errors = [event for event in events if event.type == "error"]
    metas = [event.meta or {} for event in errors]
    assert list(dict.fromkeys(meta["server"] for meta in metas)) == broke
    for event, meta in zip(errors, metas, strict=True):
        assert set(meta) == KEYS
        assert meta["will_retry"] is True
        assert (event.content or "").startswith(meta["server"])


@pytest.mark.parametrize("again", ["five tokens further", "at once"])
@pytest.mark.parametrize("fault", FAULTS)
def test_after_five_tokens_the_others_go_on(chat: Chat, fault: str, again: str) -> None:
    """Two of three servers break in mid-answer in any way: the answer is whole to the byte, and the seams are told."""
    reply, kinds = FAULTS[fault]
    second = broken(reply, 5 if again != "at once" else None)
    with (
        FakeServer(broken(reply, 5), answer=TEXT) as one,
        FakeServer(continuation=second, answer=TEXT) as two,
        FakeServer(answer=TEXT) as three,
    ):
        limits = {"stall_timeout": 0.3, "first_token_timeout": 0.3}
        stream = chat("How?", stream=True, servers=[one.url, two.url, three.url], **limits)
        events = list(stream)
    check_whole(events, [one.url, two.url])
    errors = [event.meta or {} for event in events if event.type == "error"]
    assert errors[0]["kind"] in kinds | ({"error"} if fault in STATUSES else set())
    assert (errors[0]["phase"], errors[0]["delivered"], errors[0]["rung"]) == ("stream", characters(5), "")
    assert errors[1]["rung"] == "raw"
    expected = [(three.url, "raw", characters(5))]
    if again != "at once":
        expected = [(two.url, "raw", characters(5)), (three.url, "raw", characters(10))]
    assert seams(events) == expected
    assert (stream.result.text, stream.result.server, stream.result.finish_reason) == (TEXT, three.url, "stop")
    assert stream.text() == TEXT


@pytest.mark.parametrize("fault", ["reset", "in-band", "clean eof", "garbage"])
@pytest.mark.parametrize("rung", ["prefill", "replay"])
def test_every_other_way_on_is_as_exact(chat: Chat, rung: str, fault: str) -> None:
    """Where the prompt cannot be continued raw, prefill and replay give the same answer to the byte."""
    reply, _ = FAULTS[fault]
    second = Answer(TEXT).then(reply, after_tokens=3 if rung == "prefill" else 8)
    kind = {"template": "prefill"} if rung == "prefill" else {"version": "0.9.0"}
    asked = {"tools": TOOLS} if rung == "prefill" else {"temperature": 0}
    with (
        FakeServer(broken(reply, 5), answer=TEXT, **kind) as one,  # type: ignore[arg-type]
        FakeServer(second, answer=TEXT, **kind) as two,  # type: ignore[arg-type]
        FakeServer(answer=TEXT, **kind) as three,  # type: ignore[arg-type]
    ):
        stream = chat("How?", stream=True, servers=[one.url, two.url, three.url], **asked)
        events = list(stream)
    check_whole(events, [one.url, two.url])
    assert seams(events) == [(two.url, rung, characters(5)), (three.url, rung, characters(8))]


def test_a_server_that_refuses_raw_prompts_is_given_the_beginning(chat: Chat) -> None:
    """Where /api/generate is forbidden, the server goes on from the beginning of the answer as its last message."""
    forbidden = {"/api/generate": Status(403)}
    with (
        FakeServer(broken(Reset(), 5), answer=TEXT) as one,
        FakeServer(answer=TEXT, template="prefill", paths=forbidden) as two,
    ):
        stream = chat("How?", stream=True, servers=[one.url, two.url])
        events = list(stream)
    check_whole(events, [one.url, two.url])
    assert seams(events) == [(two.url, "prefill", characters(5))]


@pytest.mark.parametrize("fault", ["reset", "in-band", "clean eof", "garbage"])
def test_an_answer_that_broke_while_thinking_begins_again(chat: Chat, fault: str) -> None:
    """Nothing but thinking was delivered: the next server thinks anew, and only its thinking counts."""
    reply, _ = FAULTS[fault]
    whole = Answer(TEXT, thinking=THOUGHT)
    bad = whole.then(reply, after_tokens=3)
    with FakeServer(bad) as one, FakeServer(bad) as two, FakeServer(whole) as three:
        stream = chat("How?", stream=True, servers=[one.url, two.url, three.url])
        events = list(stream)
    check_whole(events, [one.url, two.url])
    assert seams(events) == [(two.url, "restart", 0), (three.url, "restart", 0)]
    assert stream.result.thinking == THOUGHT


@pytest.mark.parametrize("fault", FAULTS)
def test_without_resuming_the_stream_is_interrupted(chat: Chat, fault: str) -> None:
    """With resume="never" a failure after text was delivered ends the stream, repeats nothing and names the server."""
    reply, kinds = FAULTS[fault]
    with FakeServer(broken(reply, 5), answer=TEXT) as one, FakeServer(answer=TEXT) as two, FakeServer() as three:
        servers = [one.url, two.url, three.url]
        stream = chat("How?", stream=True, servers=servers, stall_timeout=0.3, resume="never")
        with pytest.raises(StreamInterruptedError) as caught:
            list(stream)
        error = caught.value
        assert not [request for request in (*two.requests, *three.requests) if request.method == "POST"]
    events = list(stream.events)
    partial = "".join(split_tokens(TEXT)[:5])
    check(events, partial)
    assert "end" not in [event.type for event in events]
    assert events[-1].type == "error"
    meta = events[-1].meta or {}
    assert (set(meta), meta["will_retry"]) == (KEYS, False)
    assert error.partial == partial == stream.text_so_far
    assert [attempt.kind for attempt in error.attempts] == [meta["kind"]]
    assert error.attempts[0].kind in kinds | ({"error"} if fault in STATUSES else set())
    assert one.url in str(error)
    assert "stream" in str(error)
    assert "resume is off" in str(error)
    assert error.attempts[0].status == 200
    with pytest.raises(StreamInterruptedError):
        stream.text()


@pytest.mark.parametrize("fault", FAULTS)
def test_when_all_fail_the_error_names_all(chat: Chat, fault: str) -> None:
    """With nobody left, AllServersFailedError is raised from iteration, never from chat."""
    reply, _ = FAULTS[fault]
    with FakeServer(reply, reply, reply) as one, FakeServer(reply, reply, reply) as two:
        limits = {"first_token_timeout": 0.3, "connect_timeout": 1.0}
        stream = chat("How?", stream=True, servers=[one.url, two.url], **limits)
        with pytest.raises(AllServersFailedError, match=r"^All servers failed") as caught:
            list(stream)
    assert {attempt.server for attempt in caught.value.attempts} == {one.url, two.url}
    assert one.url in str(caught.value)
    assert two.url in str(caught.value)
    assert not isinstance(caught.value, StreamInterruptedError)


def test_refused_from_the_beginning(chat: Chat) -> None:
    """Servers that are not there at all cost nothing but their error events."""
    with FakeServer(answer=TEXT) as gone, FakeServer(answer=TEXT) as here:
        gone.refuse()
        stream = chat("How?", stream=True, servers=[gone.url, here.url])
        assert stream.text() == TEXT
        # the server that answered which models it has is asked first
        assert stream.result.server == here.url
