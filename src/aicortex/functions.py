"""Functions as tools: the JSON schema that a model is shown, and its arguments made into those of a call.

    from a function     types by msgspec, descriptions from the docstring; arguments are validated and converted
    from a schema       with a function: arguments are validated with jsonschema and passed as they are
    from a dictionary   shown to the model as it is, never called

Ollama decodes the parameters of a tool into structures of its own and drops what these do not know, `$ref` of a
parameter among it: types inside types are written out where they stand, and only recursive ones stay in `$defs`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from math import inf
from typing import Any

import msgspec

from aicortex import foreign
from aicortex.signatures import (
    Schema,
    called,
    check_function,
    documented,
    innermost,
    kinds_of,
    parameters_of,
    signature_for,
    signature_of,
    title_of,
)

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
WANTED = (
    "tools is a list of functions, Tool objects and JSON schemas: "
    "{'type': 'function', 'function': {'name': …, 'parameters': {…}}}"
)


class ArgumentsError(ValueError):
    """A model's arguments do not fit the function; the message is made for the model to read."""


class Tool:
    """A function that a model may call, with what the model is told about it.

    `name`, `description` and `parameters` (a JSON schema of an object) are taken from the function's name, docstring
    (Google, NumPy or reST style) and type hints, where they are not given. With `parameters` of your own the function
    is called with what they describe, as keywords, validated and not converted. `timeout` is how many seconds one
    call may take, None for the `tool_timeout` of the conversation. `schema` is what the server is sent. `function` is
    None for what was given as a dictionary: such a tool is reported and never called.

    Raises ValueError for a function whose parameters cannot be told to a model, and for a wrong name or schema.
    """

    name: str
    description: str
    parameters: Schema
    schema: Schema
    function: Callable[..., Any] | None  # Any: whatever it takes and returns
    timeout: float | None

    def __init__(
        self,
        function: Callable[..., Any],  # Any: as above
        *,
        name: str | None = None,
        description: str | None = None,
        parameters: Mapping[str, Any] | None = None,  # Any: JSON
        timeout: float | None = None,
    ) -> None:
        if not callable(function):
            raise ValueError(f"Tool takes a function, not {type(function).__name__}")
        check_function(function)
        self.function = function
        self.name = _checked_name(function, name)
        self.timeout = _checked_timeout(self.name, timeout)
        words, told = documented(function)
        self.description = words if description is None else description
        self._kinds: dict[str, Any] = {}  # Any: types, some of which are no classes
        self._validator: Any = None  # Any: jsonschema need not be loaded
        if parameters is None:
            self._signature = signature_of(function, self.name)
            self._kinds = kinds_of(function, self._signature, self.name)
            self.parameters = parameters_of(self._kinds, self._signature, told, self.name)
        else:
            self.parameters = _json(f"parameters of the tool {self.name!r}", parameters)
            self._validator = _validator(self.parameters, self.name)
            self._signature = signature_for(function, self.parameters, self.name)
        said = {"description": self.description} if self.description else {}
        self.schema = {"type": "function", "function": {"name": self.name, **said, "parameters": self.parameters}}

    @classmethod
    def of(cls, value: object) -> Tool:
        """Return a function, a tool or a JSON schema as a tool; raises ValueError for what is none of them."""
        if isinstance(value, Tool):
            return value
        if callable(value):
            return cls(value)
        if not isinstance(value, Mapping):
            raise ValueError(f"{WANTED}; {type(value).__name__} is none")
        described = value.get("function")
        if not isinstance(described, Mapping) or not isinstance(described.get("name"), str) or not described["name"]:
            raise ValueError(WANTED)
        tool = cls.__new__(cls)
        tool.schema = _json(f"the tool {described['name']!r}", value)
        tool.name = described["name"]
        tool.description = str(described.get("description") or "")
        tool.parameters = tool.schema["function"].get("parameters") or {}
        tool.function = tool.timeout = None
        return tool

    @property
    def is_async(self) -> bool:
        """Whether calling the function gives a coroutine."""
        function = innermost(self.function)
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called(function))

    def bind(self, arguments: Mapping[str, Any]) -> inspect.BoundArguments:  # Any: JSON
        """Return a model's arguments as the `args` and `kwargs` of a call of the function, by name in `arguments`.

        Texts that stand for numbers, booleans or JSON are converted where the function wants such. Raises
        ArgumentsError that tells the model everything that is wrong.
        """
        if self._validator is None:
            return _bound(self._signature, self._converted(arguments))
        self._complain(_faults(self._validator, dict(arguments)))
        try:
            return self._signature.bind(**arguments)
        except TypeError as error:  # the function needs more than its schema says
            raise ArgumentsError(f"{self.name} was not called: {error}") from error

    def _converted(self, arguments: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON, then what it stands for
        complaints, values = [], {}
        for name in arguments:
            if name not in self._kinds:
                complaints.append(_unknown(name, self._kinds))
        for name, kind in self._kinds.items():
            if name not in arguments:
                if self._signature.parameters[name].default is inspect.Parameter.empty:
                    complaints.append(f"the argument {name!r} is missing")
                continue
            try:
                values[name] = _convert(arguments[name], kind)
            except Exception as error:  # types of the user's run code of their own
                complaints.append(_complaint(name, arguments[name], error, self.parameters["properties"][name]))
        self._complain(complaints)
        return values

    def _complain(self, complaints: Sequence[str]) -> None:
        if complaints:
            raise ArgumentsError(f"{self.name} was not called: {'; '.join(complaints)}")

    def __repr__(self) -> str:
        return f"<Tool {self.name}({', '.join(self.parameters.get('properties') or ())})>"


def collect(tools: Sequence[object]) -> dict[str, Tool]:
    """Return functions, tools and JSON schemas as tools, by name, in their order.

    Raises ValueError for what is no tool, and for two of one name.
    """
    if isinstance(tools, str | bytes | Mapping | Tool) or not isinstance(tools, Sequence):
        raise ValueError(WANTED)
    found: dict[str, Tool] = {}
    for value in tools:
        tool = Tool.of(value)
        if tool.name in found:
            raise ValueError(f"two tools have the name {tool.name!r}: write Tool(…, name=…) for one of them")
        found[tool.name] = tool
    return found


def result_text(value: object) -> str:
    """Return what a model is told that a function returned: a text as it is, anything else as JSON.

    Dataclasses, structs, pydantic models, dates, sets, NumPy's numbers and arrays have a form in JSON; what has none is
    told as its `repr`. Characters that no encoding can express are escaped.
    """
    if isinstance(value, str) and not isinstance(value, Enum):
        return value.encode("utf-8", "backslashreplace").decode()
    try:
        return msgspec.json.encode(value, enc_hook=_plain).decode()
    except Exception:  # lone surrogates, lists inside themselves, classes of the user's whose own code fails
        return _shown(value).encode("utf-8", "backslashreplace").decode()


def _plain(value: Any) -> object:  # Any: whatever a function may return
    """Return what msgspec does not know as something that it does."""
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value)
    if callable(getattr(type(value), "tolist", None)):  # NumPy's and pandas' values; a mock has any attribute
        return value.tolist()
    try:
        return foreign.value_of(value)
    except TypeError:
        return _shown(value)


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # the class is the user's
        return object.__repr__(value)


# --- what is given ---------------------------------------------------------------------------------------------------


def _checked_name(function: object, name: str | None) -> str:
    name = title_of(function) if name is None else name
    if not isinstance(name, str) or not NAME.fullmatch(name):
        allowed = "up to 64 ASCII letters, digits, '_', '-' and '.'"
        raise ValueError(f"{name!r} cannot be the name of a tool: write Tool(…, name=…) with {allowed}")
    return name


def _checked_timeout(name: str, timeout: float | None) -> float | None:
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and 0 < timeout < inf):
        raise ValueError(f"the timeout of the tool {name!r} must be seconds above 0, not {timeout!r:.40}")
    return timeout


# --- arguments -------------------------------------------------------------------------------------------------------


def _bound(signature: inspect.Signature, values: Mapping[str, object]) -> inspect.BoundArguments:
    """Return values by name as arguments; where only places count, those before the last must all be there."""
    arguments = {}
    for name, parameter in signature.parameters.items():
        if name in values:
            arguments[name] = values[name]
        elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            arguments[name] = parameter.default
    return inspect.BoundArguments(signature, arguments)


def _convert(value: Any, kind: Any) -> object:  # Any: JSON, and types of all kinds
    """Return what a value of JSON stands for; models like to write an object or a list as a text."""
    try:
        return msgspec.convert(value, kind, strict=False, dec_hook=foreign.read)
    except msgspec.ValidationError:
        if not isinstance(value, str):
            raise
        try:
            inner = msgspec.json.decode(value)
        except ValueError:
            inner = value
        if not isinstance(inner, dict | list):
            raise
        return msgspec.convert(inner, kind, strict=False, dec_hook=foreign.read)


def _unknown(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    known = list(known)
    meant = get_close_matches(name, known, n=1)
    if meant:
        return f"there is no argument {name!r}; did you mean {meant[0]!r}?"
    return f"there is no argument {name!r}; the function takes {', '.join(map(repr, known)) or 'none'}"


def _complaint(name: str, value: object, error: Exception, schema: Schema) -> str:
    words, _, place = str(error).rpartition(" - at `$")
    if not words:
        words, place = str(error), ""
    if not place and "enum" in schema:
        return f"{name}: expected one of {', '.join(map(repr, schema['enum']))}, got {value!r:.60}"
    place = place.removesuffix("`")
    if not words:
        return f"{name}{place}: {type(error).__name__}"
    return f"{name}{place}: {words[:1].lower()}{words[1:]}".replace("`", "")


# --- schemas ---------------------------------------------------------------------------------------------------------


def _json(what: str, value: Mapping[str, Any]) -> Schema:  # Any: JSON, if it is any
    """Return a copy of a dictionary, of which nobody else knows."""
    try:
        copy: Schema = msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} must be JSON: {error}") from error
    return copy


def _validator(parameters: Schema, name: str) -> Any:  # Any: jsonschema has no types
    from jsonschema import SchemaError, validators
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]  # it has no types

    if parameters.get("type") != "object":
        raise ValueError(
            f"parameters of the tool {name!r} must be the JSON schema of an object: {{'type': 'object', …}}"
        )
    kind = validators.validator_for(parameters, default=validators.Draft202012Validator)
    try:
        kind.check_schema(parameters)
    except SchemaError as error:
        raise ValueError(f"parameters of the tool {name!r} are no JSON schema: {error.message}") from error
    return kind(parameters, registry=REGISTRY)  # nothing is fetched


def _faults(validator: Any, arguments: Schema) -> list[str]:  # Any: as above
    from referencing.exceptions import Unresolvable

    try:
        found = sorted(validator.iter_errors(arguments), key=lambda error: list(map(str, error.absolute_path)))
    except Unresolvable as error:
        return [f"its JSON schema refers to what is not in it: {error}"]
    return [
        f"{error.json_path.removeprefix('$.')}: {error.message}" if error.path else error.message for error in found
    ]
