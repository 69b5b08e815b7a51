"""Formats of structured answers: what is sent for them, what is read by them, and what is said of faults."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import re
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import pydantic
import pytest
from typing_extensions import NotRequired, TypedDict

from aicortex import OutputValidationError
from aicortex.shapes import MAX_REASON, Shape, unfenced
from aicortex.testing import FakeServer


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Item(msgspec.Struct):
    name: str
    price: Annotated[float, msgspec.Meta(gt=0)]
    tags: set[str] = set()


class Node(msgspec.Struct):
    value: int
    children: list[Node] = []


class Point(NamedTuple):
    x: int
    y: float


class Options(TypedDict):
    size: int
    note: NotRequired[str]


@dataclasses.dataclass
class Order:
    items: list[Item]
    color: Color
    kind: Literal["new", "used"] | None = None
    place: Point | None = None


class Cat(msgspec.Struct, tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag="dog"):
    tricks: list[str]


class Part(pydantic.BaseModel):
    name: str
    count: Annotated[int, pydantic.Field(gt=0)] = 1
    inner: list[Part] = []


class Machine(pydantic.BaseModel):
    parts: list[Part]


@pydantic.dataclasses.dataclass
class Screw:
    length: Annotated[int, pydantic.Field(gt=0)]


@dataclasses.dataclass
class Delivery:
    machine: Machine
    spare: Part | None = None


@dataclasses.dataclass
class Unknown:
    thing: Missing  # type: ignore[name-defined]  # noqa: F821


class Opaque:
    """Nothing that JSON can express."""


ITEM = {"name": "bolt", "price": 0.5}
PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def deep(levels: int) -> dict[str, Any]:
    """Return a schema of lists in lists."""
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def reason_of(format: object, text: str) -> str:
    """Return what is said of an answer that does not fit."""
    with pytest.raises(OutputValidationError) as caught:
        Shape.of(format).read(text)
    assert caught.value.text == text
    assert str(caught.value) == f"the answer is not what format={Shape.of(format).name} asks for: {caught.value.reason}"
    return caught.value.reason


@pytest.mark.parametrize(
    ("format", "text", "expected"),
    [
        ("json", '{"a": [1, null]}', {"a": [1, None]}),
        (PERSON, '{"age": 3, "name": "Ada"}', {"age": 3, "name": "Ada"}),
        (MappingProxyType(PERSON), '{"age": 3}', {"age": 3}),
        (Item, json.dumps(ITEM), Item("bolt", 0.5)),
        (list[Item], json.dumps([ITEM]), [Item("bolt", 0.5)]),
        (Node, '{"value": 1, "children": [{"value": 2}]}', Node(1, [Node(2)])),
        (Point, "[1, 2.5]", Point(1, 2.5)),
        (tuple[int, str], '[1, "x"]', (1, "x")),
        (Options, '{"size": 1}', {"size": 1}),
        (Color, '"blue"', Color.BLUE),
        (Literal["a", "b"], '"b"', "b"),
        (Cat | Dog, '{"type": "dog", "tricks": ["sit"]}', Dog(["sit"])),
        (Item | None, "null", None),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (set[int], "[1, 1]", {1}),
        (datetime.date, '"2026-11-23"', datetime.date(2026, 11, 23)),
        (int, " 12\n", 12),
        (str, '"x"', "x"),
        (Order, json.dumps({"items": [ITEM], "color": "red", "place": [1, 2]}),
         Order([Item("bolt", 0.5)], Color.RED, None, Point(1, 2.0))),
        (Machine, '{"parts": [{"name": "a"}]}', Machine(parts=[Part(name="a")])),
        (list[Part], '[{"name": "a", "inner": [{"name": "b"}]}]', [Part(name="a", inner=[Part(name="b")])]),
        (Part | None, "null", None),
        (Screw, '{"length": 3}', Screw(3)),
        (Delivery, '{"machine": {"parts": [{"name": "a"}]}}', Delivery(Machine(parts=[Part(name="a")]))),
    ],
)  # fmt: skip
def test_answers_become_objects(format: object, text: str, expected: object) -> None:
    """An answer that fits is returned as the object that the format names, also inside one Markdown fence."""
    shape = Shape.of(format)
    assert (found := shape.read(text)) == expected
    assert type(found) is type(expected)
    assert shape.read(f"```json\n{text}\n```\n") == expected


@pytest.mark.parametrize("kind", [Item, Node, Order, Point, Color, Cat | Dog, list[Node], Machine, Delivery, Part])
def test_schemas_are_whole(kind: Any) -> None:
    """The top of a type's schema is the thing itself, all references lead to `$defs`, and it goes into JSON."""
    schema = Shape.of(kind).schema
    assert isinstance(schema, dict)
    assert "$ref" not in schema
    assert Shape.of(schema).schema == schema  # which looks up every reference
    assert json.loads(json.dumps(schema)) == schema


def test_the_schema_of_a_type_says_what_the_type_says() -> None:
    """Fields come in the order of the type, and none besides them."""
    assert Shape.of(Options).schema == {
        "title": "Options",
        "type": "object",
        "properties": {"size": {"type": "integer"}, "note": {"type": "string"}},
        "required": ["size"],
        "additionalProperties": False,
    }


def test_recursive_types_keep_their_definition() -> None:
    """What refers to itself stands at the top and in `$defs`."""
    schema = Shape.of(Node).schema
    assert isinstance(schema, dict)
    assert schema["properties"] == schema["$defs"]["Node"]["properties"]
    assert schema["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}


def test_models_inside_types_bring_their_definitions() -> None:
    """The definitions of pydantic models bear the names of the models that need them, and stand at the top."""
    schema = Shape.of(Delivery).schema
    assert isinstance(schema, dict)
    assert set(schema["$defs"]) == {"Machine_Part", "Part_Part"}
    assert "$defs" not in json.dumps(schema["properties"]).replace("#/$defs/", "")


def test_engines_get_what_they_can_follow() -> None:
    """Tuples, sets and unknown formats are sent without the keywords that llama.cpp or llguidance stumble over."""
    assert Shape.of(tuple[int, str]).schema == {
        "type": "array", "minItems": 2, "maxItems": 2, "prefixItems": [{"type": "integer"}, {"type": "string"}],
    }  # fmt: skip
    assert Shape.of(set[int]).schema == {"type": "array", "items": {"type": "integer"}}
    assert Shape.of(datetime.date).schema == {"type": "string", "format": "date"}
    assert Shape.of(list[pydantic.AnyUrl | Part]).schema["items"]["anyOf"][0] == {"type": "string", "minLength": 1}


def test_a_schema_is_sent_as_it_is() -> None:
    """Neither a caller's schema nor "json" is changed."""
    schema = {"$ref": "#/$defs/A", "$defs": {"A": {"type": "array", "items": {"$ref": "#/$defs/A"}}}}
    assert Shape.of(schema).schema == schema
    assert Shape.of("json").schema == "json"


@pytest.mark.parametrize(
    ("format", "name"),
    [("json", "json"), (PERSON, "a schema"), ({**PERSON, "title": "Person"}, "Person"), (Item, "Item"),
     (list[int], "list[int]"), (Machine, "Machine")],
)  # fmt: skip
def test_shapes_have_names(format: object, name: str) -> None:
    """Errors call a format by the name of its type or by its title."""
    assert Shape.of(format).name == name
    assert repr(Shape.of(format)) == f"<Shape {name}>"


@pytest.mark.parametrize(
    ("format", "text", "reason"),
    [
        ("json", "Sure! {}", "It is no JSON: Expecting value: line 1 column 1 (char 0)"),
        ("json", "[NaN]", "It is no JSON: NaN is no JSON value"),
        ("json", "[" * 100_000, "It is nested too deeply"),
        ("json", "```json\n[1]\n``` done", "It is no JSON: Expecting value: line 1 column 1 (char 0)"),
        (PERSON, '{"age": "x"}', "$.age: 'x' is not of type 'integer'"),
        (PERSON, "{}", "$: 'age' is a required property"),
        ({"items": PERSON}, '[{"age": 1}, {"age": null}]', "$[1].age: None is not of type 'integer'"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [PERSON]}, "[1]",
         "$[0]: 1 is not of type 'object'"),
        (Item, '{"name": "bolt"', "It is no JSON: Input data was truncated"),
        (Item, '{"name": "bolt"}', "$: Object missing required field `price`"),
        (list[Item], '[{"name": "a", "price": 1}, {"name": "b", "price": -1}]', "$[1].price: Expected `float` > 0.0"),
        (Node, '{"value": 1, "children": [{"value": "x"}]}', "$.children[0].value: Expected `int`, got `str`"),
        (dict[str, int], '{"a": "b"}', "$[...]: Expected `int`, got `str`"),
        (Color, '"green"', "$: 'green' is not one of ['blue', 'red']"),
        (Order, '{"items": [], "color": "green"}', "$.color: 'green' is not one of ['blue', 'red']"),
        (Order, '{"items": [], "color": "red", "kind": "old"}', "$.kind: 'old' is not one of ['new', 'used']"),
        (dict[Color, int], '{"x": 1}', "$: Invalid enum value 'x' as a key"),
        (Machine, '{"parts": [{"name": "a", "count": 0}]}', "$.parts[0].count: Input should be greater than 0"),
        (Machine, "{", "It is no JSON: Invalid JSON: EOF while parsing an object at line 1 column 1"),
        (Screw, '{"length": 0}', "$.length: Input should be greater than 0"),
        (Delivery, '{"machine": {"parts": [{"name": "a", "inner": [{"name": 1}]}]}}',
         "$.machine.parts[0].inner[0].name: Input should be a valid string"),
    ],
)  # fmt: skip
def test_faults_are_named_with_their_place(format: object, text: str, reason: str) -> None:
    """What does not fit is told with its path and with what was expected."""
    assert reason_of(format, text) == reason


def test_long_faults_are_cut() -> None:
    """A fault that quotes the whole answer is cut in its middle, so that a model can read it."""
    reason = reason_of(PERSON, json.dumps({"age": "x" * 10_000}))
    assert len(reason) == MAX_REASON + len(" … ")
    assert reason.startswith("$.age: 'xxx")
    assert reason.endswith("is not of type 'integer'")


def test_the_model_is_told_what_was_wrong() -> None:
    """The complaint has the fault, the schema, and what to do; a huge schema is left out."""
    shape = Shape.of(PERSON)
    with pytest.raises(OutputValidationError) as caught:
        shape.read('{"age": "x"}')
    assert shape.complaint(caught.value) == (
        "That answer cannot be used. $.age: 'x' is not of type 'integer'. It must match this JSON schema: "
        f"{json.dumps(PERSON)} Answer again with JSON only: no other text."
    )
    huge = Shape.of({**PERSON, "description": "x" * 10_000})
    short = (
        "That answer cannot be used. $.age: 'x' is not of type 'integer'. Answer again with JSON only: no other text."
    )
    assert huge.complaint(caught.value) == Shape.of("json").complaint(caught.value) == short


@pytest.mark.parametrize(
    ("format", "words"),
    [
        (None, "format must be 'json', a JSON schema that is not empty, or a type: a dataclass"),
        ("yaml", "format must be 'json'"),
        ({}, "format must be 'json'"),
        (Any, "Any asks for nothing in particular: write 'json', or a type"),
        (complex, "format=complex cannot be asked for: type <class 'complex'> is not supported; a format is 'json'"),
        (list[Opaque], "Opaque'> is not supported; a format is 'json', a JSON schema, or a type: a dataclass"),
        (Item | Node, "cannot be asked for: If a type union contains multiple Struct types, all Struct types must be"),
        (Item("x", 1.0), "cannot be asked for: Type 'Item"),
        (Unknown, "format=Unknown cannot be asked for: name 'Missing' is not defined"),
        (list[Part | Opaque], "Opaque'> is not supported|Unable to generate"),
        ({"type": "objekt"}, "format is no JSON schema: $.type: 'objekt' is not valid"),
        ({"properties": {"a": {"minimum": "x"}}}, "format is no JSON schema: $.properties.a.minimum: 'x' is not of"),
        ({"type": "string", "pattern": "["}, "format is no JSON schema: $.pattern: '[' is not a 'regex'"),
        ({"$schema": ["x"]}, "format is no JSON schema: $.$schema must be the address of a draft, not ['x']"),
        ({"$ref": "#/type", "type": "string"}, "format is no JSON schema: $: 'string' is not of type"),
        (deep(900), "format is nested too deeply"),
        (deep(100_000), "format is no JSON: maximum recursion depth exceeded"),
        ({"enum": [{1, 2}]}, "format is no JSON: Object of type set is not JSON serializable"),
        ({"const": float("nan")}, "format is no JSON: Out of range float values"),
        ({"items": {"$ref": "#/$defs/no"}}, "format refers to '#/$defs/no', which is not in it: put it under '$defs'"),
        ({"items": {"$ref": "https://example.com/x.json"}}, "'https://example.com/x.json', which is not in it"),
        ({"$ref": "#/definitions/A", "definitions": {"A": {"$ref": "file:///etc/x"}}}, "'file:///etc/x', which is not"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_refused(format: object, words: str) -> None:
    """A format that is none raises ValueError before anything is sent, and says what to write."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words are compared below, without escapes
        Shape.of(format)
    assert any(each in str(caught.value) for each in words.split("|"))


def test_schemas_may_refer_to_themselves_and_to_the_standard() -> None:
    """References inside a schema, by its own names too, and to the standard schemas are followed without a network."""
    schema = {
        "$id": "https://example.com/tree",
        "type": "object",
        "properties": {"left": {"$ref": "tree"}, "right": {"$ref": "#"}, "schema": {"$ref": "#meta"}},
        "$defs": {"meta": {"$anchor": "meta", "$ref": "https://json-schema.org/draft/2020-12/schema"}},
    }
    shape = Shape.of(schema)
    tree = {"left": {"right": {}}, "schema": {"type": "object"}}
    assert shape.read(json.dumps(tree)) == tree
    assert reason_of(schema, '{"left": {"right": 1}}') == "$.left.right: 1 is not of type 'object'"
    assert (
        reason_of(schema, '{"schema": {"type": 1}}') == "$.schema.type: 1 is not valid under any of the given schemas"
    )


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("[1]", "[1]"),
        ("```json\n[1]\n```", "[1]\n"),
        (" ```\r\n[1]``` \n", "[1]"),
        ('```json\n"```"\n```', '"```"\n'),
        ("Sure: ```json\n[1]\n```", "Sure: ```json\n[1]\n```"),
        ("```python\n[1]\n```", "```python\n[1]\n```"),
    ],
)
def test_one_fence_is_taken_off(text: str, inner: str) -> None:
    """A fence is taken off where it stands around all of the text, and nothing else is."""
    assert unfenced(text) == inner


def test_pydantic_and_jsonschema_are_loaded_by_those_who_use_them() -> None:
    """A type of msgspec's needs neither, and a schema of the caller's does not need pydantic."""
    code = (
        "import sys, dataclasses; from aicortex.shapes import Shape\n"
        "@dataclasses.dataclass\nclass A:\n    x: int\n"
        "assert Shape.of(A).read('{\"x\": 1}') == A(1)\n"
        "print(*{'pydantic', 'jsonschema', 'asyncio'} & set(sys.modules))\n"
        "Shape.of({'type': 'object'})\n"
        "print(*{'pydantic'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_examples_in_the_docs_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The examples of docs/structured.md run one after another as they stand."""
    page = (Path(__file__).parents[1] / "docs" / "structured.md").read_text("utf-8")
    invoice = {"customer": "Ada", "items": [{"name": "bolt", "price": 0.25}], "paid": True}
    names: dict[str, Any] = {}
    with FakeServer(answer=json.dumps(invoice)) as server:
        monkeypatch.setenv("AICORTEX_SERVERS", server.url)
        for code in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
            exec(compile(code, "docs/structured.md", "exec", dont_inherit=True), names)
    assert capsys.readouterr().out.splitlines()[0] == "Ada 0.25"
    assert names["invoice"] == names["Invoice"]("Ada", [names["Item"]("bolt", 0.25)], True)
