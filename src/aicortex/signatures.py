"""What a function tells about itself: its name, its words, and its parameters as a JSON schema."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, Optional, get_type_hints

import msgspec

from aicortex import foreign

Schema = dict[str, Any]  # Any: JSON
REFERENCE = "#/$defs/"
DATA = ("default", "enum", "const", "examples", "required")  # keys of a schema that hold no schemas
MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


# --- functions -------------------------------------------------------------------------------------------------------


def check_function(function: Callable[..., Any]) -> None:  # Any: whatever it takes and returns
    """Refuse what gives no result when it is called; raises ValueError."""
    if isinstance(function, type):
        raise ValueError(f"{function.__name__} is a class: give a function that returns one")
    inner = innermost(function)
    for made in (inner, called(inner)):
        if inspect.isgeneratorfunction(made) or inspect.isasyncgenfunction(made):
            raise ValueError(f"{title_of(function)}() yields, but a model is told one result: return a list")


def innermost(function: Any) -> Any:  # Any: a callable of any kind
    """Return what partial objects were made of."""
    while isinstance(function, partial):
        function = function.func
    return function


def called(function: object) -> Any:  # Any: as above
    """Return the method that is run when an object is called."""
    return getattr(type(function), "__call__", None)  # noqa: B004  # not to know whether it is there


def _is_plain(function: object) -> bool:
    """Whether it has a name of its own, and is no object with a method `__call__`."""
    return hasattr(function, "__name__")


def title_of(function: object) -> str:
    """Return the name of a function, or of the class of an object that can be called."""
    inner = innermost(function)
    return str(inner.__name__) if _is_plain(inner) else type(inner).__name__


def documented(function: object) -> tuple[str, dict[str, str]]:
    """Return the description of a function, and those of its parameters."""
    inner = innermost(function)
    text = inspect.getdoc(inner if _is_plain(inner) else called(inner)) or inspect.getdoc(inner) or ""
    if "\n" not in text and ":" not in text:
        return text.strip(), {}
    import docstring_parser

    try:
        parsed = docstring_parser.parse(text)
    except docstring_parser.ParseError:
        return text.strip(), {}
    told = {
        name.strip(" *"): parameter.description.strip()
        for parameter in parsed.params
        if parameter.description
        for name in parameter.arg_name.split(",")  # NumPy's style has one text for several
    }
    return (parsed.description or "").strip(), told


def _inspected(function: Callable[..., Any], name: str) -> inspect.Signature:  # Any: as above
    try:
        return inspect.signature(function)
    except (TypeError, ValueError, NameError) as error:
        raise ValueError(f"the parameters of {name}() cannot be seen: {error}; write a function around it") from error


def signature_of(function: Callable[..., Any], name: str) -> inspect.Signature:  # Any: as above
    """Return the signature of a function, each of whose parameters has a name; raises ValueError."""
    signature = _inspected(function, name)
    for parameter in signature.parameters.values():
        if parameter.kind in MANY:
            raise ValueError(
                f"{name}() takes {str(parameter).partition(':')[0]}, which a model cannot be told: "
                "name its parameters, or write Tool(…, parameters={…}) with a JSON schema"
            )
    return signature


def signature_for(function: Callable[..., Any], parameters: Schema, name: str) -> inspect.Signature:  # Any: as above
    """Return the signature of a function that is to be called with the properties of a schema."""
    signature = _inspected(function, name)
    try:
        signature.bind(**dict.fromkeys(parameters.get("properties") or {}))
    except TypeError as error:
        raise ValueError(f"{name}() cannot be called with the properties of its parameters: {error}") from error
    return signature


# --- types -----------------------------------------------------------------------------------------------------------


def kinds_of(function: object, signature: inspect.Signature, name: str) -> dict[str, Any]:  # Any: types of all kinds
    """Return the type of each parameter; those that a partial object was given by name are its own business."""
    given = function.keywords if isinstance(function, partial) else {}
    parameters = {title: parameter for title, parameter in signature.parameters.items() if title not in given}
    hints = {title: parameter.annotation for title, parameter in parameters.items()}
    inner = innermost(function)
    home = inspect.unwrap(inner if _is_plain(inner) else called(inner))
    try:
        known = get_type_hints(
            SimpleNamespace(__annotations__=hints), getattr(home, "__globals__", {}), include_extras=True
        )
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise ValueError(
            f"the type hints of {name}() cannot be read: {error}; define the types outside of functions and of "
            "'if TYPE_CHECKING', or write Tool(…, parameters={…}) with a JSON schema"
        ) from error
    return {title: _kind(known[title], parameter.default) for title, parameter in parameters.items()}


def _kind(hint: Any, default: object) -> Any:  # Any: types of all kinds
    if hint is inspect.Parameter.empty or hint is object:
        return Any
    return Optional[hint] if default is None else hint  # noqa: UP045  # `|` knows fewer kinds of types


def parameters_of(kinds: Mapping[str, Any], signature: inspect.Signature, told: Mapping[str, str], name: str) -> Schema:
    """Return the JSON schema of an object that has the parameters as its properties."""
    properties: Schema = {}
    recursive: Schema = {}
    for title, kind in kinds.items():
        try:
            (schema,), inside = msgspec.json.schema_components(
                [kind], schema_hook=foreign.schema_of, ref_template=REFERENCE + "{name}"
            )
        except (TypeError, ValueError, NameError, NotImplementedError) as error:
            words = f"the type of {title!r} in {name}() has no JSON schema: {str(error).splitlines()[-1]}"
            raise ValueError(f"{words}; write Tool(…, parameters={{…}}) with one") from error
        if title in told:
            schema.setdefault("description", told[title])
        default = signature.parameters[title].default
        if default is not None and default is not inspect.Parameter.empty:
            with suppress(TypeError, ValueError, RecursionError):  # then only Python knows it
                schema["default"] = msgspec.to_builtins(default, enc_hook=foreign.value_of)
        flat = _flat(schema, inside, recursive)
        properties[title] = _without_null(flat) if default is None else flat
    required = [title for title in kinds if signature.parameters[title].default is inspect.Parameter.empty]
    schema = {"type": "object", "properties": properties, "required": required}
    return {**schema, "$defs": recursive} if recursive else schema


def _flat(schema: Any, known: Schema, recursive: Schema, within: tuple[str, ...] = ()) -> Any:  # Any: JSON
    """Return a schema with the types it refers to written out; those that contain themselves become `recursive`."""
    if isinstance(schema, list):
        return [_flat(item, known, recursive, within) for item in schema]
    if not isinstance(schema, dict):
        return schema
    known = {**known, **schema.get("$defs", {})}
    name = schema.get("$ref", "").removeprefix(REFERENCE)
    flat = {key: _part(key, value, known, recursive, within) for key, value in schema.items() if key != "$defs"}
    if name in within:
        if name not in recursive:
            recursive[name] = {}  # it is not asked for twice
            recursive[name] = _flat(known[name], known, recursive, (name,))
        return flat
    if name in known:
        flat.pop("$ref")
        return {**_flat(known[name], known, recursive, (*within, name)), **flat}
    kinds = {str: "string", int: "integer"}
    if len(types := {type(value) for value in schema.get("enum", ())}) == 1 and "type" not in flat:
        (kind,) = types
        return {"type": kinds[kind], **flat} if kind in kinds else flat
    return flat


def _without_null(schema: Schema) -> Schema:
    """Return a schema without null among its kinds: who means None leaves the argument out, which templates can say."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        return {**kinds[0], **{key: value for key, value in schema.items() if key != "anyOf"}}
    return {**schema, "anyOf": kinds} if kinds else schema


def _part(key: str, value: Any, known: Schema, recursive: Schema, within: tuple[str, ...]) -> Any:  # Any: JSON
    if key in DATA:
        return value
    if key == "properties":
        return {name: _flat(inner, known, recursive, within) for name, inner in value.items()}
    return _flat(value, known, recursive, within)
