"""Types that msgspec does not know, to and from JSON: models of pydantic where the program has loaded it, and paths."""

from __future__ import annotations

import sys
from os import PathLike, fspath
from pathlib import PurePath
from typing import Any

Schema = dict[str, Any]  # Any: JSON


def is_model(kind: object) -> bool:
    """Whether a type is a model or a dataclass of pydantic."""
    return "pydantic" in sys.modules and isinstance(kind, type) and hasattr(kind, "__pydantic_validator__")


def schema_of(kind: type) -> Schema:
    """Return the JSON schema of such a type; raises NotImplementedError for others."""
    if is_model(kind):
        return dict(adapter(kind).json_schema())
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return {"type": "string", "format": "path"}
    raise NotImplementedError


def read(kind: Any, value: object) -> object:  # Any: a type that `schema_of` knows
    """Return what a value of JSON stands for; raises ValueError with words."""
    if not is_model(kind):
        return kind(value)
    try:
        return adapter(kind).validate_python(value)
    except sys.modules["pydantic"].ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        words = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ") for fault in faults)
        raise ValueError("; ".join(words)) from error


def value_of(value: object) -> object:
    """Return a value of such a type as JSON; raises TypeError for others."""
    if is_model(type(value)):
        return adapter(type(value)).dump_python(value, mode="json")
    if isinstance(value, PathLike):
        return fspath(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def adapter(kind: object) -> Any:  # Any: pydantic need not be installed
    """Return what pydantic reads and writes a type with."""
    return sys.modules["pydantic"].TypeAdapter(kind)
