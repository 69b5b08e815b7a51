"""Functions as tools: what a model is shown, its arguments as those of a call, and what it is told of the result."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timezone
from decimal import Decimal
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from unittest.mock import MagicMock
from uuid import UUID

import msgspec
import pydantic
import pytest

from aicortex.functions import ArgumentsError, Tool, collect, result_text
from aicortex.testing import Answer, FakeServer, Status


class Unit(enum.Enum):
    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


class Colour(str, enum.Enum):
    RED = "red"


@dataclass
class Place:
    latitude: float
    longitude: float = 0.0

    def __post_init__(self) -> None:
        if self.latitude > 90:
            raise ValueError("latitude is 90 at most")
        if self.latitude < -90:
            raise LookupError


class Person(pydantic.BaseModel):
    name: str
    age: int = 0


def weather(city: str, days: int = 1, *, unit: Unit = Unit.CELSIUS) -> str:
    """Tell the weather.

    Args:
        city: A city of Europe.
    """
    return f"{city} {days} {unit.value}"


async def wait(seconds: float) -> None: ...


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
}
GIVEN = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": SCHEMA}}


def called(tool: Tool, **arguments: Any) -> Any:
    """Return what the function returns when a model calls it."""
    bound = tool.bind(arguments)
    assert tool.function is not None
    return tool.function(*bound.args, **bound.kwargs)


def test_a_function_is_a_tool() -> None:
    """Name, description and parameters are the function's own."""
    tool = Tool(weather)
    assert tool.schema == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tell the weather.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "A city of Europe."},
                    "days": {"type": "integer", "default": 1},
                    "unit": {
                        "type": "string",
                        "title": "Unit",
                        "enum": ["celsius", "fahrenheit"],
                        "default": "celsius",
                    },
                },
                "required": ["city"],
            },
        },
    }
    assert (tool.name, tool.function, tool.timeout, tool.is_async) == ("weather", weather, None, False)
    assert repr(tool) == "<Tool weather(city, days, unit)>"


def test_a_tool_may_say_more() -> None:
    """What is given goes before what the function tells."""
    tool = Tool(weather, name="look-outside", description="Look.", timeout=2.5)
    assert (tool.name, tool.description, tool.timeout) == ("look-outside", "Look.", 2.5)
    assert "description" not in Tool(weather, description="").schema["function"]


class Lamp:
    async def switch(self) -> None: ...

    async def __call__(self) -> None: ...


@pytest.mark.parametrize("function", [wait, partial(wait, 1.0), Lamp().switch, Lamp(), partial(Lamp())])
def test_asynchronous_functions(function: Callable[..., Any]) -> None:
    """A tool knows whether calling it gives a coroutine."""
    assert Tool(function).is_async


def test_calls() -> None:
    """Arguments go to where the function wants them; what is left out has its default."""
    tool = Tool(weather)
    assert called(tool, city="Rome") == "Rome 1 celsius"
    assert called(tool, unit="fahrenheit", days=2, city="Rome") == "Rome 2 fahrenheit"
    assert tool.bind({"days": "2", "city": "Rome"}).arguments == {"city": "Rome", "days": 2}


def test_places_of_arguments() -> None:
    """Arguments that count by place, methods and partial objects are called rightly."""

    def three(a: int, b: int = 2, c: int = 3, /, *, d: int = 4) -> tuple[int, ...]:
        return a, b, c, d

    class Shop:
        def buy(self, item: str) -> str:
            return item

    assert called(Tool(three), a=1, c=5, d=6) == (1, 2, 5, 6)
    assert called(Tool(three), a=1) == (1, 2, 3, 4)
    assert called(Tool(Shop().buy), item="tea") == "tea"
    assert called(Tool(partial(three, 9)), c=1) == (9, 2, 1, 4)
    assert called(Tool(partial(three, d=0)), a=1) == (1, 2, 3, 0)
    assert called(Tool(lambda self, name: (self, name), name="pair"), self=1, name=2) == (1, 2)


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (int, 3, 3),
        (int, "3", 3),
        (int, 3.0, 3),
        (float, 3, 3.0),
        (float, "2.5", 2.5),
        (bool, "true", True),
        (bool, "False", False),
        (str, "3", "3"),
        (Any, {"a": [1]}, {"a": [1]}),
        (Any, "3", "3"),
        (int | str, "3", "3"),
        (int | None, None, None),
        (int | None, "null", None),
        (list[int], [1, "2"], [1, 2]),
        (list[int], "[1, 2]", [1, 2]),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (Place, {"latitude": 1}, Place(1.0)),
        (Place, '{"latitude": "1"}', Place(1.0)),
        (Place | None, '{"latitude": 1}', Place(1.0)),
        (list[Place], [{"latitude": 1}], [Place(1.0)]),
        (Person, {"name": "Ann", "age": "7"}, Person(name="Ann", age=7)),
        (Person, '{"name": "Ann"}', Person(name="Ann")),
        (Unit, "celsius", Unit.CELSIUS),
        (Literal["a", 1], 1, 1),
        (date, "2026-02-03", date(2026, 2, 3)),
        (Path, "a/b", Path("a/b")),
        (UUID, "00000000-0000-0000-0000-000000000001", UUID(int=1)),
        (Decimal, "1.10", Decimal("1.10")),
        (set[int], [1, 1], {1}),
    ],
)
def test_conversions(kind: Any, given: Any, expected: object) -> None:
    """JSON becomes what the type hint says, and texts that stand for it too."""

    def function(value: Any) -> Any:
        return value

    function.__annotations__["value"] = kind
    value = called(Tool(function), value=given)
    assert (value, type(value)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (int, "three", "value: expected int, got str"),
        (int, 3.5, "value: expected int, got float"),
        (int, None, "value: expected int, got null"),
        (str, 3, "value: expected str, got int"),
        (list[int], [1, "x"], "value[1]: expected int, got str"),
        (list[int], "1, 2", "value: expected array, got str"),
        (list[int], "[1, null]", "value[1]: expected int, got null"),
        (list[int], "12", "value: expected array, got str"),
        (Place, {}, "value: object missing required field latitude"),
        (Place, {"latitude": "x"}, "value.latitude: expected float, got str"),
        (Place, {"latitude": 91}, "value: latitude is 90 at most"),
        (Place, {"latitude": -91}, "value: LookupError"),
        (Person, {"age": "x"}, "value: name: Field required; age: Input should be a valid integer"),
        (list[Person], [{}], "value[0]: name: Field required"),
        (Unit, "kelvin", "value: expected one of 'celsius', 'fahrenheit', got 'kelvin'"),
        (Literal[1, 2], "x" * 99, f"value: expected one of 1, 2, got '{'x' * 59}"),
        (Annotated[int, msgspec.Meta(ge=1)], 0, "value: expected int >= 1"),
        (Path, 5, "value: "),
    ],
)  # fmt: skip
def test_what_does_not_fit(kind: Any, given: Any, words: str) -> None:
    """The model is told which argument is wrong, where, and what was expected."""

    def function(value: Any) -> None: ...

    function.__annotations__["value"] = kind
    with pytest.raises(ArgumentsError) as caught:
        Tool(function).bind({"value": given})
    assert str(caught.value).startswith(f"function was not called: {words}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "the argument 'city' is missing"),
        ({"city": "Rome", "day": 1}, "there is no argument 'day'; did you mean 'days'?"),
        ({"city": "Rome", "x": 1}, "there is no argument 'x'; the function takes 'city', 'days', 'unit'"),
        ({"ctiy": 1}, "there is no argument 'ctiy'; did you mean 'city'?; the argument 'city' is missing"),
    ],
)
def test_names_of_arguments(arguments: dict[str, Any], words: str) -> None:
    """The model is told everything that is wrong at once, with the name that it may have meant."""
    with pytest.raises(ArgumentsError) as caught:
        Tool(weather).bind(arguments)
    assert str(caught.value) == f"weather was not called: {words}"


def test_a_function_without_parameters() -> None:
    """A model that gives it something is told that there is nothing to give."""
    tool = Tool(lambda: 5, name="five")
    assert called(tool) == 5
    with pytest.raises(ArgumentsError, match="there is no argument 'x'; the function takes none"):
        tool.bind({"x": 1})


def test_a_schema_of_your_own() -> None:
    """Arguments are validated with the schema that is given, and passed as they are, as keywords."""
    tool = Tool(lambda **given: given, name="add", parameters=SCHEMA)
    assert tool.schema["function"]["parameters"] == SCHEMA
    assert called(tool, city="Rome", days=2, more=[1]) == {"city": "Rome", "days": 2, "more": [1]}
    with pytest.raises(ArgumentsError) as caught:
        tool.bind({"days": 0})
    assert str(caught.value) == (
        "add was not called: 'city' is a required property; days: 0 is less than the minimum of 1"
    )


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"type": "array"}, "parameters of the tool 'weather' must be the JSON schema of an object"),
        ({"type": "object", "required": 5}, "parameters of the tool 'weather' are no JSON schema: 5 is not of type"),
        ({"type": "object", "default": object()}, "parameters of the tool 'weather' must be JSON"),
        ({"type": "object", "properties": {"town": {}}}, r"weather\(\) cannot be called with the properties .* 'city'"),
        ({"type": "object", "properties": {"city": {}, "x": {}}}, r"weather\(\) cannot be called .* argument 'x'"),
    ],
)
def test_wrong_schemas(parameters: dict[str, Any], words: str) -> None:
    """A schema that is none, or that does not fit the function, is refused at once."""
    with pytest.raises(ValueError, match=words):
        Tool(weather, parameters=parameters)


def test_a_schema_that_asks_for_less_than_the_function() -> None:
    """The model is told what the function misses."""
    tool = Tool(weather, parameters={"type": "object", "properties": {"city": {}}})
    with pytest.raises(ArgumentsError, match="weather was not called: missing a required argument: 'city'"):
        tool.bind({})


def test_nothing_is_fetched() -> None:
    """A schema that refers to another one makes a call fail, with words, and nobody is asked for it."""
    with FakeServer(everything=Status(200, {})) as server:
        parameters = {"type": "object", "properties": {"city": {"$ref": f"{server.url}/schema.json"}}}
        with pytest.raises(ArgumentsError, match="its JSON schema refers to what is not in it"):
            Tool(weather, parameters=parameters).bind({"city": "Rome"})
        assert server.connections == 0


def test_dictionaries() -> None:
    """A JSON schema goes to the server as it was given, and has no function."""
    tool = Tool.of(GIVEN)
    assert tool.schema == GIVEN
    assert (tool.name, tool.description, tool.parameters) == ("add", "Add.", SCHEMA)
    assert (tool.function, tool.timeout, tool.is_async) == (None, None, False)
    assert tool.schema is not GIVEN
    assert Tool.of({"function": {"name": "any name"}}).parameters == {}


def test_collecting() -> None:
    """Tools of all kinds are found by name, in their order."""
    own = Tool(weather, name="own")
    found = collect([weather, own, GIVEN])
    assert list(found) == ["weather", "own", "add"]
    assert found["own"] is own
    assert collect(()) == {}


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        (weather, "tools is a list of functions, Tool objects and JSON schemas"),
        ("weather", "tools is a list"),
        (GIVEN, "tools is a list"),
        (Tool(weather), "tools is a list"),
        (5, "tools is a list"),
        (["weather"], "tools is a list .*; str is none"),
        ([None], "tools is a list .*; NoneType is none"),
        ([{}], "tools is a list"),
        ([GIVEN["function"]], "tools is a list"),
        ([{"function": {"name": ""}}], "tools is a list"),
        ([{"function": {"name": "add", "parameters": object()}}], "the tool 'add' must be JSON"),
        ([Place], "Place is a class"),
        ([weather, weather], "two tools have the name 'weather'"),
        ([GIVEN, Tool(weather, name="add")], "two tools have the name 'add'"),
        ([lambda x: x], "'<lambda>' cannot be the name of a tool: write Tool"),
    ],
)
def test_what_is_no_list_of_tools(tools: Any, words: str) -> None:
    """What cannot be a tool is refused, with words."""
    with pytest.raises(ValueError, match=words):
        collect(tools)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "größe"}, "cannot be the name"),
        ({"name": ""}, "cannot be the name"),
        ({"name": "a b"}, "cannot be the name"),
        ({"name": "a" * 65}, "up to 64 ASCII letters"),
        ({"name": 5}, "cannot be the name"),
        ({"timeout": 0}, "the timeout of the tool 'weather' must be seconds above 0, not 0"),
        ({"timeout": True}, "must be seconds"),
        ({"timeout": "5"}, "must be seconds"),
        ({"timeout": float("nan")}, "must be seconds"),
        ({"timeout": float("inf")}, "must be seconds"),
    ],
)
def test_wrong_arguments_of_a_tool(arguments: dict[str, Any], words: str) -> None:
    """A name that servers refuse and a timeout that is no time are refused."""
    with pytest.raises(ValueError, match=words):
        Tool(weather, **arguments)


def test_a_tool_of_nothing() -> None:
    """What cannot be called is no function."""
    with pytest.raises(ValueError, match="Tool takes a function, not dict"):
        Tool(GIVEN)  # type: ignore[arg-type]


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


class Broken:
    """Something of NumPy's manner that fails."""

    def tolist(self) -> list[int]:
        raise RuntimeError("no list")

    def __repr__(self) -> str:
        return "<Broken>"


class Array:
    """Something of NumPy's manner."""

    def tolist(self) -> list[int]:
        return [1, 2]


class Whole(int): ...


LOOP: list[object] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("sunny", "sunny"),
        ("", ""),
        (Colour.RED, '"red"'),
        (None, "null"),
        (True, "true"),
        (3, "3"),
        (10**30, "1" + 30 * "0"),
        (Whole(3), "3"),
        (float("nan"), "null"),
        ([1, "a", None], '[1,"a",null]'),
        ({"a": {1}, 2: (3,)}, '{"a":[1],"2":[3]}'),
        (Place(1.0), '{"latitude":1.0,"longitude":0.0}'),
        ([Person(name="Ann")], '[{"name":"Ann","age":0}]'),
        (datetime(2026, 1, 2, tzinfo=timezone.utc), '"2026-01-02T00:00:00Z"'),
        (date(2026, 1, 2), '"2026-01-02"'),
        (Decimal("1.10"), '"1.10"'),
        ({"path": PurePosixPath("a/b")}, '{"path":"a/b"}'),
        (b"ab", '"YWI="'),
        (Array(), "[1,2]"),
        ([Broken()], "[<Broken>]"),
        ([1j], '["1j"]'),
        (ValueError("no"), "\"ValueError('no')\""),
        ({(1, 2): 3}, '{"(1, 2)":3}'),
        (LOOP, "[[...]]"),
        ("\ud800", "\\ud800"),
        (["\ud800"], r"['\ud800']"),
    ],
)
def test_results(value: object, expected: str) -> None:
    """The model is told a text as it is, anything else as JSON, and what has no form there as Python shows it."""
    assert result_text(value) == expected


def test_a_result_that_cannot_be_shown() -> None:
    """An object whose own words fail is told by its class."""
    assert "Rude object at" in result_text([Rude()])


PAGE = (Path(__file__).parents[1] / "docs" / "tool-calls.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CALLS = [("get_weather", {"city": "Rome"}), ("count_rows", {"country": "Italy"}), ("delete_file", {"path": "../n"})]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_examples_of_the_docs_run(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each example of docs/tool-calls.md runs as it stands, with a model that calls what it is given."""
    call = next((call for call in CALLS if call[0] in BLOCKS[number]), CALLS[0])
    with FakeServer(Answer("", tool_calls=[call]), answer="You need none.") as server:
        monkeypatch.setenv("AICORTEX_SERVERS", server.url)
        exec(compile(BLOCKS[number], "docs/tool-calls.md", "exec"), {})
        told = [request.json["messages"][-1] for request in server.requests if request.path == "/api/chat"]
    shown = capsys.readouterr().out
    if told:
        assert "You need none." in shown
        assert told[-1]["role"] == "tool"
        assert told[-1]["content"].startswith(("It is sunny", '{"city":"Rome"', '{"rows":1}', "Error: paths must not"))
    else:
        assert shown in PAGE


def test_the_text_of_a_mock() -> None:
    """An object that makes its attributes up is not asked for lists without end."""
    assert "Mock" in result_text(MagicMock())
