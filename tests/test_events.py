"""The event: a dataclass in every respect, without its import."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import typing

import msgspec
import pytest

from aicortex import StreamEvent

EVENT = StreamEvent("meta", "é", 3, "add", {"a": [1]}, None, {"kind": "stats"}, 1.5)
NAMES = ["type", "content", "index", "tool_name", "tool_args", "tool_result", "meta", "timestamp"]


def test_it_is_a_dataclass() -> None:
    """What dataclasses offers works on the class and on its objects."""
    assert dataclasses.is_dataclass(StreamEvent)
    assert dataclasses.is_dataclass(EVENT)
    assert [field.name for field in dataclasses.fields(StreamEvent)] == NAMES
    assert dataclasses.asdict(EVENT) == EVENT.to_dict()
    assert dataclasses.replace(EVENT, content="x") == StreamEvent(*("meta", "x", *dataclasses.astuple(EVENT)[2:]))
    assert typing.get_type_hints(StreamEvent)["index"] == int | None
    assert msgspec.json.decode(EVENT.to_json(), type=StreamEvent) == EVENT
    match EVENT:
        case StreamEvent("meta", text):
            assert text == "é"


def test_everything_but_the_type_may_be_left_out() -> None:
    """The other seven fields are None unless given."""
    assert dataclasses.astuple(StreamEvent("start")) == ("start", *[None] * 7)


def test_equality_and_repr() -> None:
    """Events are equal when all fields are, unhashable, and show all fields."""
    assert copy.deepcopy(EVENT) == EVENT != dataclasses.replace(EVENT, index=4)
    assert EVENT != "meta"
    with pytest.raises(TypeError, match="unhashable"):
        hash(EVENT)
    assert repr(StreamEvent("token", "a", 0)).startswith("StreamEvent(type='token', content='a', index=0, tool_name=")


def test_events_travel() -> None:
    """Events are picklable and become dictionaries and JSON, with what they hold copied."""
    assert pickle.loads(pickle.dumps(EVENT)) == EVENT
    as_dict = EVENT.to_dict()
    as_dict["tool_args"]["a"].append(2)
    assert EVENT.tool_args == {"a": [1]}
    assert list(as_dict) == NAMES
    assert '"content":"é","index":3' in EVENT.to_json()
    assert "<object object" in StreamEvent("tool_result", tool_result=object()).to_json()


def test_results_that_json_cannot_express() -> None:
    """They appear as their `repr`, also where that is half of a character, or they hold themselves."""
    endless: list[object] = []
    endless.append(endless)
    for result, shown in [
        ({1, 2}, [1, 2]),
        (endless, "[[...]]"),
        ("\udce4", "'\\udce4'"),
        (object, "<class 'object'>"),
    ]:
        line = StreamEvent("tool_result", tool_name="add", tool_result=result).to_json()
        assert msgspec.json.decode(line)["tool_result"] == shown
