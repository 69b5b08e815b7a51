"""A stream that was saved is the same stream: its events, its text, its end; and a broken file says what it is."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aicortex import (
    AICortexError,
    AsyncStream,
    Attempt,
    Result,
    Stream,
    StreamEvent,
    StreamInterruptedError,
    achat,
    chat,
    errors,
)
from aicortex.recording import read, write
from aicortex.testing import Answer, Close, FakeServer, Status

ATTEMPT = Attempt("http://one:11434", "busy", "first token", "queue full", 3, True, 0.25, status=503, retry_after=1.5)
RESULT = Result(
    text="Ünï\u2028\n",
    thinking="",
    finish_reason="stop",
    usage={"prompt_tokens": 3, "completion_tokens": 4},
    timings={"total": 0.1},
    model="fake:latest",
    server="http://two:11434",
    attempts=(ATTEMPT, msgspec.structs.replace(ATTEMPT, kind="ok", status=None)),
)
EVENTS = [
    StreamEvent("start", "", meta={"model": "fake:latest"}, timestamp=1790000000.125),
    StreamEvent("meta", "Hm", meta={"kind": "thinking"}, timestamp=1790000001.1),
    StreamEvent("error", "queue full", meta={"server": "http://one:11434", "status": 503, "will_retry": True}),
    StreamEvent("tool_call", None, tool_name="add", tool_args={"a": 1, "b": [1.0, None, 2**70]}, meta={"call": 0}),
    StreamEvent("tool_result", None, None, "add", {"a": 1}, {"sum": [3]}, {"call": 0, "kind": "ok", "seconds": 1e-05}),
    StreamEvent("token", "Ünï\u2028\n", 0, timestamp=1790000002.7),
    StreamEvent("end", "", meta={"attempts": [{"server": "http://one:11434"}]}, timestamp=1790000003.0),
]
ERRORS = [
    errors.AICortexError("of no kind"),
    errors.ModelNotFoundError("no such model", model="a", available=["b", "c"], matches=["b"]),
    errors.RequestRejectedError("too long", server="http://one:11434", status=400, partial="Seven"),
    errors.CredentialError("no key"),
    errors.OutputValidationError("no integer", text='{"a": "b"}', reason="at $.a"),
    errors.AllServersFailedError("All servers failed: one", attempts=[ATTEMPT, ATTEMPT]),
    errors.StreamInterruptedError("Stream interrupted", attempts=[ATTEMPT], partial="Ünï"),
    errors.StreamCancelledError("cancelled", partial="Seven"),
    errors.RegistryError("damaged"),
    errors.EmbeddedEngineError("not installed"),
]


@dataclass
class Weather:
    """What a tool may return."""

    degrees: float
    at: datetime


NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answer.jsonl"


def test_a_whole_stream_comes_back(path: Path) -> None:
    """Events, tokens, text and result of a stream with a failover, thoughts and a tool call are equal after loading."""
    answer = Answer("Seven planets have rings.", thinking="Let me see", tool_calls=[("count", {"of": "rings"})])
    with FakeServer(Status(500)) as dying, FakeServer(answer) as good:
        stream = chat("Which?", stream=True, servers=[dying.url, good.url])
        stream.save(path)  # reads to the end
    result = stream.result
    loaded = Stream.load(path)
    assert list(loaded) == list(loaded) == list(stream.events)
    assert loaded.result == result
    assert isinstance(loaded.result.attempts, tuple)
    assert loaded.text() == loaded.text_so_far == "Seven planets have rings."
    assert list(loaded.tokens()) == list(stream.tokens())
    assert {"start", "meta", "error", "token", "tool_call", "end"} == {event.type for event in loaded.events}


def test_a_stream_with_tools_comes_back(path: Path) -> None:
    """Calls, results of tools and the messages of all turns are equal; a dataclass is a dictionary."""

    def look(at: str) -> Weather:
        """Look at a place."""
        assert at == "Rome"
        return Weather(21.5, NOON)

    with FakeServer(Answer("", tool_calls=[("look", {"at": "Rome"})]), answer="Warm.") as server:
        stream = chat("How warm is it?", stream=True, servers=[server.url], tools=[look])
        stream.save(path)
    loaded = Stream.load(path)
    assert loaded.result == stream.result
    assert len(loaded.result.messages) == 3
    (returned,) = (event for event in stream.events if event.type == "tool_result")
    returned.tool_result = {"degrees": 21.5, "at": "2026-06-01T12:00:00Z"}
    assert list(loaded) == list(stream.events)


def test_a_loaded_stream_is_over(path: Path) -> None:
    """It is done, cannot be moved, and cancelling or leaving it changes nothing."""
    write(path, EVENTS, RESULT)
    with Stream.load(path) as loaded:
        assert loaded.done
        assert not loaded.move()
        loaded.cancel()
    assert loaded.result == RESULT
    assert list(loaded) == EVENTS


def test_a_loaded_stream_can_be_saved(path: Path) -> None:
    """A copy made by loading and saving has the same events and the same end."""
    write(path, EVENTS, RESULT)
    copy = path.with_name("copy.jsonl")
    Stream.load(path).save(copy)
    assert copy.read_bytes().splitlines()[1:] == path.read_bytes().splitlines()[1:]


def test_tasks_save_and_load(path: Path) -> None:
    """What one colour saved the other loads; `async for` gives the same events, and the result is the same."""

    async def reading() -> list[StreamEvent]:
        with FakeServer(answer="Seven planets have rings.") as server:
            stream = await achat("Which?", stream=True, servers=[server.url])
            await stream.save(path)
        async with await AsyncStream.load(path) as loaded:
            assert loaded.done
            assert not loaded.move()
            assert [event async for event in loaded] == list(stream.events)
            loaded.cancel()
        assert await loaded.text() == "".join([token async for token in loaded.tokens()]) == await stream.text()
        assert await loaded.result() == await stream.result()
        return list(stream.events)

    assert asyncio.run(reading()) == list(Stream.load(path))


def test_an_answer_that_broke_off_comes_back_with_its_error(path: Path) -> None:
    """What was delivered can be read, and then the same error is raised, each time."""
    with FakeServer(Answer("Seven planets").then(Close(), after_tokens=1)) as server:
        stream = chat("Which?", stream=True, servers=[server.url], resume="never")
        stream.save(path)  # which does not raise
    with pytest.raises(StreamInterruptedError) as caught:
        stream.text()
    loaded = Stream.load(path)
    seen = []
    with pytest.raises(StreamInterruptedError) as again:
        seen.extend(iter(loaded))
    assert loaded.text_so_far == "Seven" == again.value.partial
    assert list(loaded.events) == list(stream.events)
    assert (str(again.value), again.value.attempts) == (str(caught.value), caught.value.attempts)
    with pytest.raises(StreamInterruptedError):
        loaded.text()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_each_error_comes_back(error: AICortexError, path: Path) -> None:
    """Class, message and attributes of every error of the package survive."""
    write(path, EVENTS[:1], error)
    loaded = read(path).answer.outcome
    assert type(loaded) is type(error)
    assert str(loaded) == str(error)
    assert vars(loaded) == vars(error)


def test_every_error_class_is_among_them() -> None:
    """The list above has all classes of errors.py."""
    classes = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AICortexError)}
    assert {type(error) for error in ERRORS} == classes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, 2), [1, 2]),
        (Weather(21.5, NOON), {"degrees": 21.5, "at": "2026-06-01T12:00:00Z"}),
        (ValueError("no"), "ValueError('no')"),
        ({"gone": KeyError("a")}, {"gone": "KeyError('a')"}),
        ({(1, 2): 3}, {"(1, 2)": 3}),
        ("\ud800", r"'\ud800'"),
        (CIRCLE, "[[...]]"),
    ],
    ids=["tuple", "dataclass", "object", "object within", "keys", "surrogate", "circle"],
)
def test_what_json_has_not_comes_back_as_its_repr(value: object, expected: object, path: Path) -> None:
    """A tool's result is what JSON makes of it, and its repr where JSON has nothing for it."""
    event = StreamEvent("tool_result", tool_name="look", tool_args={}, tool_result=value, meta={"call": 0})
    write(path, [event], RESULT)
    (loaded,) = read(path).answer.log
    assert loaded == msgspec.structs.replace(event, tool_result=expected)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=PLAIN)
def test_json_comes_back_as_it_was(value: object, path: Path) -> None:
    """Whatever JSON can express is the same value of the same types afterwards."""
    event = StreamEvent("tool_result", tool_args={"value": value}, tool_result=value, meta={"value": value})
    write(path, [event], RESULT)
    (loaded,) = read(path).answer.log
    assert loaded == event
    assert repr(loaded) == repr(event)


def test_only_the_owner_may_read_the_file(path: Path) -> None:
    """A recording has mode 0600, whatever the file had that it replaces."""
    path.write_text("old")
    path.chmod(0o644)
    write(path, EVENTS, RESULT)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Stream.load(path).result == RESULT


def test_a_file_is_replaced_whole_or_not_at_all(path: Path) -> None:
    """When writing fails the old file is there as it was, and nothing beside it."""
    write(path, EVENTS, RESULT)
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write(path, [StreamEvent("token", "fine", 0), StreamEvent("token", "\ud800", 1)], RESULT)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_link_stays_a_link(path: Path) -> None:
    """Saving to a symbolic link writes the file it points to."""
    link = path.with_name("latest")
    link.symlink_to(path)
    write(link, EVENTS, RESULT)
    assert link.is_symlink()
    assert Stream.load(path).result == RESULT


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A folder or a device is not replaced by a file, and a missing folder is an OSError."""
    for place in (str(tmp_path), os.devnull):
        with pytest.raises(ValueError, match="is not a file"):
            write(place, EVENTS, RESULT)
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "nowhere" / "answer.jsonl", EVENTS, RESULT)


def test_the_file_is_what_the_docs_say(path: Path) -> None:
    """It is JSON lines: a head, the events as `to_json` has them, the result."""
    write(path, EVENTS, RESULT)
    head, *lines, ending = path.read_text("utf-8").split("\n")[:-1]
    assert msgspec.json.decode(head).keys() == {"aicortex", "version", "saved"}
    assert lines == [event.to_json() for event in EVENTS]
    assert msgspec.json.decode(ending) == {"result": msgspec.json.decode(msgspec.json.encode(RESULT))}


def test_a_cut_file_says_that_it_is_cut(path: Path) -> None:
    """Wherever the end is missing, the message says so; without any of its head it is no recording."""
    write(path, EVENTS, RESULT)
    data = path.read_bytes()
    head = data.index(b"\n") + 1
    for size in range(len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="is cut" if size >= head - 1 else "is not a recording"):
            read(path)
    path.write_bytes(data[:-1])  # an editor may take the last line's end away
    assert Stream.load(path).result == RESULT


@pytest.mark.parametrize("data", [b"", b"\n", b"{}\n", b"[1]\n", b"\xff\x00\n", b'{"aicortex": "fleet"}\n'])
def test_what_is_no_recording_is_refused(data: bytes, path: Path) -> None:
    """A file with another head is not taken for a recording."""
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"answer\.jsonl is not a recording made by stream"):
        read(path)


def test_a_newer_version_is_refused(path: Path) -> None:
    """A recording of a later version asks for an update."""
    path.write_bytes(b'{"aicortex": "stream", "version": 2, "saved": 1.0}\n{"new": true}\n')
    with pytest.raises(ValueError, match=r"of version 2, .* reads version 1: update AI Cortex"):
        read(path)


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (3, b"{"),
        (3, b'{"result": null}'),
        (3, b'{"type": 1}'),
        (9, b'{"result": {"text": 1}}'),
        (9, b"garbage"),
        (9, b'{"error": {"type": "OSError", "message": ""}}'),
        (9, b'{"error": {"type": "TYPE_CHECKING", "message": ""}}'),
        (9, b'{"error": {"type": "AICortexError"}}'),
        (9, b'{"error": {"type": "AICortexError", "message": "", "more": 1}}'),
        (9, b'{"error": {"type": "AllServersFailedError", "message": "", "attempts": [1]}}'),
    ],
)
def test_a_damaged_line_is_named(number: int, line: bytes, path: Path) -> None:
    """A line that is not what belongs there is named by its number."""
    write(path, EVENTS, RESULT)
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = line
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=rf"is damaged: line {number} "):
        read(path)


def test_a_missing_file_is_an_oserror(path: Path) -> None:
    """There is nothing to load where no file is."""
    with pytest.raises(FileNotFoundError, match=r"answer\.jsonl"):
        read(path)


def test_the_example_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/recording.md works as written."""
    page = (Path(__file__).parents[1] / "docs" / "recording.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with FakeServer(answer="They collapse.") as server:
        monkeypatch.setenv("AICORTEX_SERVERS", server.url)
        exec(compile(page.split("```python\n")[1].split("```")[0], "docs/recording.md", "exec"), {})
