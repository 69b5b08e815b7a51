"""What a function tells about itself: its words, and its parameters as a JSON schema."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pydantic
import pytest

from aicortex.functions import Tool
from aicortex.signatures import called, documented, innermost, kinds_of, parameters_of, signature_of, title_of


class Unit(enum.Enum):
    """How warmth is measured."""

    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


@dataclass
class Place:
    """A place on Earth."""

    latitude: float
    longitude: float = 0.0


@dataclass
class Trip:
    stops: list[Place]


class Corner(TypedDict):
    x: int


class Span(NamedTuple):
    first: int
    last: int


class Node(msgspec.Struct):
    value: int
    children: list[Node] = []


class Person(pydantic.BaseModel):
    name: str


class Family(pydantic.BaseModel):
    members: list[Person]


class Folder(pydantic.BaseModel):
    folders: list[Folder] = []


@dataclass
class Tricky:
    """Its fields are named like keywords of JSON schemas."""

    properties: int
    required: Unit
    enum: str = "x"


PLACE = {
    "title": "Place",
    "description": "A place on Earth.",
    "type": "object",
    "properties": {"latitude": {"type": "number"}, "longitude": {"type": "number", "default": 0.0}},
    "required": ["latitude"],
}


def schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the JSON schema of a function's parameters."""
    name = title_of(function)
    signature = signature_of(function, name)
    return parameters_of(kinds_of(function, signature, name), signature, documented(function)[1], name)


def only(kind: Any) -> dict[str, Any]:
    """Return the schema of a parameter of this type."""

    def function(value: Any) -> None: ...

    function.__annotations__["value"] = kind
    found: dict[str, Any] = schema(function)["properties"]["value"]
    return found


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (str, {"type": "string"}),
        ("int", {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Literal["a", 1], {"enum": [1, "a"]}),
        (Unit, {"type": "string", "title": "Unit", "description": Unit.__doc__, "enum": ["celsius", "fahrenheit"]}),
        (Size, {"type": "integer", "title": "Size", "enum": [1, 2]}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (Annotated[int, msgspec.Meta(ge=1, description="how many")],
         {"type": "integer", "minimum": 1, "description": "how many"}),
        (date, {"type": "string", "format": "date"}),
        (Path, {"type": "string", "format": "path"}),
        (Any, {}),
        (object, {}),
        (Place, PLACE),
        (list[Place], {"type": "array", "items": PLACE}),
        (Trip, {"title": "Trip", "type": "object", "properties": {"stops": {"type": "array", "items": PLACE}},
                "required": ["stops"]}),
        (Corner, {"title": "Corner", "type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}),
        (Span, {"title": "Span", "type": "array", "prefixItems": [{"type": "integer"}, {"type": "integer"}],
                "minItems": 2, "maxItems": 2}),
    ],
)  # fmt: skip
def test_the_schema_of_a_type(kind: Any, expected: dict[str, Any]) -> None:
    """Types become JSON schemas without references, because Ollama drops those."""
    found = only(kind)
    if kind == Literal["a", 1]:
        found["enum"].sort(key=str)
    assert found == expected


def test_a_model_of_pydantic() -> None:
    """A model has the schema that pydantic makes, with the models inside it written out."""
    inside = {"title": "Person", "type": "object", "required": ["name"],
              "properties": {"name": {"title": "Name", "type": "string"}}}  # fmt: skip
    assert only(Person) == inside
    assert only(list[Family])["items"]["properties"]["members"] == {
        "title": "Members",
        "type": "array",
        "items": inside,
    }


@pytest.mark.parametrize(("kind", "name", "children"), [(Node, "Node", "children"), (Folder, "Folder", "folders")])
def test_a_type_that_contains_itself(kind: type, name: str, children: str) -> None:
    """A recursive type is written out once, and goes on in `$defs`."""

    def function(tree: Any) -> None: ...

    function.__annotations__["tree"] = kind
    found = schema(function)
    top, again = found["properties"]["tree"], found["$defs"][name]
    assert top["properties"][children]["items"] == again["properties"][children]["items"] == {"$ref": f"#/$defs/{name}"}
    assert top == again


def test_fields_named_like_keywords_are_fields() -> None:
    """Only the keywords of a schema are taken for such, not what is named like them."""
    found = only(Tricky)
    assert set(found["properties"]) == {"properties", "required", "enum"}
    assert found["properties"]["required"]["enum"] == ["celsius", "fahrenheit"]
    assert found["required"] == ["properties", "required"]


def test_defaults() -> None:
    """What has a default is not required; a default that JSON knows is shown, and None is shown by leaving out null."""

    def function(
        city: str,
        days: int = 3,
        unit: Unit = Unit.CELSIUS,
        place: Place | None = None,
        near: Place | int | None = None,
        home: Place = Place(1.0),  # noqa: B008  # nobody changes it
        person: Person = Person(name="Ann"),  # noqa: B008
        folder: Path = Path("a"),
        options: dict[str, Any] = {"enum": ["a"]},  # noqa: B006  # as above
        other: Any = field,
        count: int = None,  # type: ignore[assignment]  # noqa: RUF013  # many write so
    ) -> None: ...

    found = schema(function)
    defaults = {name: part["default"] for name, part in found["properties"].items() if "default" in part}
    assert found["required"] == ["city"]
    assert found["properties"]["place"] == PLACE
    assert found["properties"]["near"] == {"anyOf": [PLACE, {"type": "integer"}]}
    assert found["properties"]["count"] == {"type": "integer"}
    assert defaults == {
        "days": 3,
        "unit": "celsius",
        "home": {"latitude": 1.0, "longitude": 0.0},
        "person": {"name": "Ann"},
        "folder": "a",
        "options": {"enum": ["a"]},
    }


GOOGLE = """Tell the weather.

    It looks out of the window.

    Args:
        city: The city,
            with its country.
        unit (str): How warmth is measured.

    Returns:
        Words.
    """
NUMPY = """Tell the weather.

    It looks out of the window.

    Parameters
    ----------
    city : str
        The city,
        with its country.
    unit : str
        How warmth is measured.

    Returns
    -------
    str
        Words.
    """
REST = """Tell the weather.

    It looks out of the window.

    :param city: The city,
        with its country.
    :param str unit: How warmth is measured.
    :returns: Words.
    """


@pytest.mark.parametrize("words", [GOOGLE, NUMPY, REST], ids=["google", "numpy", "rest"])
def test_docstrings(words: str) -> None:
    """Descriptions come from the docstring, whatever its style."""

    def weather(city: str, unit: Annotated[str, msgspec.Meta(description="C or F")] = "C") -> None: ...

    weather.__doc__ = words
    description, told = documented(weather)
    assert description == "Tell the weather.\n\nIt looks out of the window."
    assert told == {"city": "The city,\nwith its country.", "unit": "How warmth is measured."}
    properties = schema(weather)["properties"]
    assert properties["city"]["description"] == "The city,\nwith its country."
    assert properties["unit"]["description"] == "C or F"  # what stands at the parameter goes before the docstring


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (None, ""),
        ("Add.", "Add."),
        ("Add: a sum.", "Add: a sum."),
        ("Add.\n\n    >>> add(1)\n    2", "Add.\n\n>>> add(1)\n2"),
        ("Add.\n\n:param", "Add.\n\n:param"),
    ],
)
def test_other_docstrings(words: str | None, expected: str) -> None:
    """A docstring without parameters is the description as it is, and so is one that cannot be parsed."""

    def add() -> None: ...

    add.__doc__ = words
    assert documented(add) == (expected, {})


def test_one_text_for_several_parameters() -> None:
    """NumPy's style describes parameters together."""

    def add(a: int, b: int) -> None:
        """Add.

        Parameters
        ----------
        a, b : int
            What is added.
        """

    assert documented(add)[1] == {"a": "What is added.", "b": "What is added."}


class Shop:
    """A shop."""

    def buy(self, item: str) -> None:
        """Buy something."""

    @classmethod
    def open(cls, at: int) -> None: ...

    @staticmethod
    def close(at: int) -> None: ...

    def __call__(self, order: str) -> None:
        """Take an order."""


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def around(*args: object, **kwargs: object) -> object:
        return function(*args, **kwargs)

    return around


def greet(name: Unit, greeting: str, *, loud: bool = False) -> None:
    """Greet."""


@pytest.mark.parametrize(
    ("function", "name", "words", "properties"),
    [
        (Shop().buy, "buy", "Buy something.", ["item"]),
        (Shop.open, "open", "", ["at"]),
        (Shop.close, "close", "", ["at"]),
        (Shop(), "Shop", "Take an order.", ["order"]),
        (decorated(greet), "greet", "Greet.", ["name", "greeting", "loud"]),
        (partial(greet, Unit.CELSIUS), "greet", "Greet.", ["greeting", "loud"]),
        (partial(greet, greeting="Hi"), "greet", "Greet.", ["name", "loud"]),
        (partial(Shop(), order="tea"), "Shop", "Take an order.", []),
        (math.hypot, "hypot", None, None),
        (math.gcd, "gcd", None, None),
        (math.degrees, "degrees", "Convert angle x from radians to degrees.", ["x"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_kinds_of_functions(
    function: Callable[..., Any], name: str, words: str | None, properties: list[str] | None
) -> None:
    """Methods, objects that can be called, partial and decorated functions tell what a caller may give."""
    assert title_of(function) == name
    if properties is None:
        with pytest.raises(ValueError, match=rf"{name}\(\)"):
            signature_of(function, name)
        return
    assert documented(function)[0] == words
    assert list(schema(function)["properties"]) == properties


def test_what_is_run() -> None:
    """Partial objects lead to what they were made of, and objects to the method that is run."""
    shop = Shop()
    assert innermost(partial(partial(shop, 1), 2)) is shop
    assert called(shop) is Shop.__call__


def numbers() -> Iterator[int]:
    yield 1


async def later() -> Any:
    yield 1


def any_number(*numbers: int) -> None: ...


def any_names(first: int, **others: int) -> None: ...


def number(value: complex) -> None: ...


def unknown(value: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def wrong(value: math.nothing) -> None: ...  # type: ignore[name-defined]


def either(value: Place | Corner) -> None: ...


def result_elsewhere(value: int) -> Nowhere: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (any_number, r"any_number\(\) takes \*numbers, which a model cannot be told: name its parameters, or write"),
        (any_names, r"any_names\(\) takes \*\*others"),
        (numbers, r"numbers\(\) yields, but a model is told one result: return a list"),
        (later, r"later\(\) yields"),
        (Place, "Place is a class: give a function"),
        (number, r"the type of 'value' in number\(\) has no JSON schema: .*complex.*; write Tool\("),
        (unknown, r"the type hints of unknown\(\) cannot be read: name 'Nowhere' is not defined; define the types"),
        (wrong, r"the type hints of wrong\(\) cannot be read"),
        (either, r"the type of 'value' in either\(\) has no JSON schema: .*more than one dict-like"),
    ],
)
def test_what_cannot_be_told(function: Callable[..., Any], words: str) -> None:
    """A function that a model cannot be told of is refused, with what to write instead."""
    with pytest.raises(ValueError, match=words):
        Tool(function)


def test_a_type_of_a_function() -> None:
    """A type that only the function around it knows cannot be found behind a string, and the error says what to do."""

    class Here(msgspec.Struct):
        x: int

    def local(value: Here) -> None: ...

    with pytest.raises(ValueError, match="'Here' is not defined; define the types outside of functions"):
        Tool(local)


def test_what_a_function_returns_is_its_own_business() -> None:
    """The hint of the result need not be known."""
    assert schema(result_elsewhere)["properties"] == {"value": {"type": "integer"}}
