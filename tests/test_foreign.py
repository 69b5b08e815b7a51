"""Types that msgspec does not know, to and from JSON."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePosixPath

import pydantic
import pytest
from pydantic.dataclasses import dataclass

from aicortex import foreign


class Person(pydantic.BaseModel):
    name: str
    age: int = 0


@dataclass
class Pair:
    first: int
    second: int


def test_models() -> None:
    """Models and dataclasses of pydantic have a schema, are validated, and become JSON again."""
    assert foreign.schema_of(Person)["required"] == ["name"]
    assert foreign.schema_of(Pair)["required"] == ["first", "second"]
    assert foreign.read(Person, {"name": "Ann", "age": "7"}) == Person(name="Ann", age=7)
    assert foreign.read(Pair, {"first": 1, "second": "2"}) == Pair(1, 2)
    assert foreign.value_of(Person(name="Ann")) == {"name": "Ann", "age": 0}


def test_what_a_model_refuses() -> None:
    """Every fault is told with its place, without pydantic's addresses."""
    with pytest.raises(ValueError, match=r"^name: Field required; age: Input should be a valid integer") as caught:
        foreign.read(Person, {"age": "x"})
    assert "http" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^Input should be a valid dictionary"):
        foreign.read(Person, 5)


def test_paths() -> None:
    """Paths are texts."""
    assert foreign.schema_of(Path) == {"type": "string", "format": "path"}
    assert foreign.read(PurePosixPath, "a/b") == PurePosixPath("a/b")
    assert foreign.value_of(PurePosixPath("a/b")) == "a/b"


def test_others() -> None:
    """Any other type is left to those who know it."""
    with pytest.raises(NotImplementedError):
        foreign.schema_of(complex)
    with pytest.raises(TypeError, match="complex is no JSON"):
        foreign.value_of(1j)
    assert not foreign.is_model(list[Person])


def test_pydantic_is_not_loaded() -> None:
    """A program without pydantic does not pay for it."""
    code = (
        "import sys; from aicortex.functions import Tool, result_text; from pathlib import Path\n"
        "def read(path: Path): 'Read.'\n"
        "assert Tool(read).bind({'path': 'a'}).args == (Path('a'),); assert result_text(Path('a')) == '\"a\"'\n"
        "assert not {'pydantic', 'jsonschema', 'docstring_parser', 'asyncio', 'ssl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
