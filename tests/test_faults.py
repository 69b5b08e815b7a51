"""The table of faults and phases, with three servers on real sockets: never a wrong text, never a wrong end."""

from __future__ import annotations

import pytest

from aicortex import AllServersFailedError, StreamEvent, StreamInterruptedError, chat
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

TEXT = "Black holes form when very massive stars collapse under gravity."
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
PHASES = {"before headers": None, "before the first token": 0, "after five tokens": 5}


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
def test_before_the_first_token_the_answer_is_whole(fault: str, phase: str) -> None:
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


@pytest.mark.parametrize("fault", FAULTS)
def test_after_five_tokens_the_stream_is_interrupted(fault: str) -> None:
    """A failure after text was delivered never ends the stream as whole, repeats nothing and names server and phase."""
    reply, kinds = FAULTS[fault]
    with FakeServer(broken(reply, 5), answer=TEXT) as one, FakeServer(answer=TEXT) as two, FakeServer() as three:
        stream = chat("How?", stream=True, servers=[one.url, two.url, three.url], stall_timeout=0.3)
        events = []
        with pytest.raises(StreamInterruptedError) as caught:
            events.extend(stream)
        error = caught.value
    events = list(stream.events)
    partial = "".join(split_tokens(TEXT)[:5])
    check(events, partial)
    assert "end" not in [event.type for event in events]
    assert events[-1].type == "error"
    assert error.partial == partial == stream.text_so_far
    assert [attempt.kind for attempt in error.attempts] == [events[-1].meta["kind"]]  # type: ignore[index]
    assert error.attempts[0].kind in kinds | ({"error"} if fault in STATUSES else set())
    assert one.url in str(error)
    assert "stream" in str(error)
    with pytest.raises(StreamInterruptedError):
        stream.text()


@pytest.mark.parametrize("fault", FAULTS)
def test_when_all_fail_the_error_names_all(fault: str) -> None:
    """With nobody left, AllServersFailedError is raised from iteration, never from chat."""
    reply, _ = FAULTS[fault]
    with FakeServer(reply, reply, reply) as one, FakeServer(reply, reply, reply) as two:
        limits = {"first_token_timeout": 0.3, "connect_timeout": 1.0}
        stream = chat("How?", stream=True, servers=[one.url, two.url], **limits)  # type: ignore[call-overload]
        with pytest.raises(AllServersFailedError, match=r"^All servers failed") as caught:
            list(stream)
    assert {attempt.server for attempt in caught.value.attempts} == {one.url, two.url}
    assert one.url in str(caught.value)
    assert two.url in str(caught.value)
    assert not isinstance(caught.value, StreamInterruptedError)


def test_refused_from_the_beginning() -> None:
    """Servers that are not there at all cost nothing but their error events."""
    with FakeServer(answer=TEXT) as gone, FakeServer(answer=TEXT) as here:
        gone.refuse()
        stream = chat("How?", stream=True, servers=[gone.url, here.url])
        assert stream.text() == TEXT
        # the server that answered which models it has is asked first
        assert stream.result.server == here.url
