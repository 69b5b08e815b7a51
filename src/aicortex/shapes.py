"""What a structured answer must look like: from `format=` to the schema that is sent and the object that comes back."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import msgspec

from aicortex.errors import OutputValidationError
from aicortex.foreign import adapter, is_model

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError as SchemaFault
    from referencing import Registry, Resource, Specification

Schema = dict[str, Any]  # Any: JSON
Reader = Callable[[str], object]
JSON = "json"
MAX_REASON = 500  # characters: a fault may quote a whole answer, and the model is to read it
MAX_QUOTED_SCHEMA = 8000  # characters: a longer one would take the room of the answer
FORMATS = {
    "date",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "time",
    "uuid",
}  # that the engine follows
TYPES = "a dataclass, msgspec.Struct, TypedDict, NamedTuple, enum, pydantic model or list[…] of one"
_PLACED = re.compile(r"(.*) - at `(key` in `)?\$(.*)`", re.DOTALL)  # what msgspec's words end with
_FENCED = re.compile(r"\s*```(?:json|JSON)?[ \t]*\r?\n(.*)```\s*", re.DOTALL)


class Shape:
    """The form of a structured answer.

    `schema` is what goes to the server as Ollama's `format`: "json" or a JSON schema. `name` is how errors call it.
    """

    __slots__ = ("_read", "name", "schema")

    def __init__(self, name: str, schema: str | Schema, read: Reader) -> None:
        self.name = name
        self.schema = schema
        self._read = read

    @classmethod
    def of(cls, format: object) -> Shape:
        """Return the shape that `format` asks for: "json", a JSON schema as a dictionary, or a type.

        Types are read by msgspec, pydantic models by pydantic. Raises ValueError for a schema that is none, one that
        refers to what is not in it, and a type that JSON cannot express.
        """
        if isinstance(format, str) and format == JSON:
            return cls(JSON, JSON, _parsed)
        if isinstance(format, Mapping) and format:
            return _of_schema({**format})
        if format is None or isinstance(format, str | Mapping):
            raise ValueError(f"format must be 'json', a JSON schema that is not empty, or a type: {TYPES}")
        return _of_model(format) if _has_model(format) else _of_type(format)

    def read(self, text: str) -> Any:  # Any: the caller's type, or JSON
        """Return the object that the whole answer stands for; one Markdown fence around it is taken off.

        Raises OutputValidationError, with the text and what is wrong with it.
        """
        try:
            return self._read(unfenced(text))
        except (ValueError, RecursionError) as error:
            reason = _shortened(_reason(error))
            message = f"the answer is not what format={self.name} asks for: {reason}"
            raise OutputValidationError(message, text=text, reason=reason) from error

    def complaint(self, error: OutputValidationError) -> str:
        """Return what the model is told when it is asked once more.

        The schema is repeated: a server that does not know `format` has never shown it to the model.
        """
        wanted = ""
        if isinstance(self.schema, dict):
            quoted = json.dumps(self.schema, ensure_ascii=False)
            if len(quoted) <= MAX_QUOTED_SCHEMA:
                wanted = f" It must match this JSON schema: {quoted}"
        return f"That answer cannot be used. {error.reason}.{wanted} Answer again with JSON only: no other text."

    def __repr__(self) -> str:
        return f"<Shape {self.name}>"


class Misfit(ValueError):
    """A value is not what is wanted; `place` is where, as `.items[3].price`, "" for the value itself."""

    def __init__(self, place: str, words: str) -> None:
        super().__init__(words)
        self.place = place


def unfenced(text: str) -> str:
    """Return what stands inside the one Markdown fence around a text, or the text if there is none."""
    fenced = _FENCED.fullmatch(text)
    return fenced.group(1) if fenced else text


def _parsed(text: str) -> Any:  # Any: JSON
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _reason(error: BaseException) -> str:
    """Return where and why an answer was refused, as `$.items[3].price: expected a number`."""
    if isinstance(error, RecursionError):
        return "It is nested too deeply"
    if isinstance(error, Misfit):
        return f"${error.place}: {error}"
    return f"It is no JSON: {error}"


def _shortened(reason: str) -> str:
    if len(reason) <= MAX_REASON:
        return reason
    return f"{reason[: MAX_REASON // 2]} … {reason[-MAX_REASON // 2 :]}"


def _path(steps: Sequence[object]) -> str:
    """Return the place of a value inside another one, `.items[3].price`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)


# --- JSON schemas ----------------------------------------------------------------------------------------------------


def _of_schema(schema: Schema) -> Shape:
    from jsonschema.exceptions import SchemaError, best_match
    from jsonschema.validators import Draft202012Validator, validator_for

    if not isinstance(dialect := schema.get("$schema", ""), str):
        raise ValueError(f"format is no JSON schema: $.$schema must be the address of a draft, not {dialect!r}")
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"format is no JSON: {error}") from error
    try:
        kind.check_schema(schema)
        registry = _local(schema, kind.check_schema)
    except SchemaError as error:
        raise ValueError(f"format is no JSON schema: ${_path(error.path)}: {_shortened(error.message)}") from error
    except RecursionError as error:
        raise ValueError("format is nested too deeply") from error
    validator = kind(schema, registry=registry)

    def read(text: str) -> object:
        value = _parsed(text)
        fault = best_match(validator.iter_errors(value))
        if fault is not None:
            raise Misfit(_path(fault.absolute_path), fault.message)
        return value

    title = schema.get("title")
    return Shape(title if isinstance(title, str) and title else "a schema", schema, read)


def _local(schema: Schema, check: Callable[[Any], None]) -> Registry[Any]:  # Any: JSON
    """Return what a schema may refer to: itself and the standard ones; nothing is ever fetched."""
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]  # it has no types
    from referencing.jsonschema import DRAFT202012, specification_with

    specification = specification_with(schema.get("$schema", ""), default=DRAFT202012)
    resource = specification.create_resource(schema)
    registry: Registry[Any] = REGISTRY.with_resource(resource.id() or "", resource)
    _References(specification, check).follow(resource, registry.resolver_with_root(resource))
    return registry


class _References:
    """The references of a schema, looked up: what they lead to must be there, and must be a schema."""

    def __init__(self, specification: Specification[Any], check: Callable[[Any], None]) -> None:  # Any: JSON
        self._specification = specification
        self._check = check
        self._seen: set[int] = set()

    def follow(self, resource: Resource[Any], resolver: Any) -> None:  # Any: referencing's resolver has no public name
        from referencing.exceptions import Unresolvable

        schema = resource.contents
        if not isinstance(schema, dict) or id(schema) in self._seen:
            return
        self._seen.add(id(schema))
        for keyword in ("$ref", "$dynamicRef"):
            if isinstance(reference := schema.get(keyword), str):
                try:
                    found = resolver.lookup(reference)
                except Unresolvable as error:
                    words = f"format refers to {reference!r}, which is not in it: put it under '$defs'"
                    raise ValueError(f"{words}; nothing is fetched") from error
                self._check(found.contents)
                self.follow(self._specification.create_resource(found.contents), found.resolver)
        for inner in resource.subresources():
            self.follow(inner, resolver.in_subresource(inner))


# --- types -----------------------------------------------------------------------------------------------------------


def _of_type(kind: Any) -> Shape:  # Any: a type, or what only a type checker calls one
    name = _name(kind)
    try:
        decoder = msgspec.json.Decoder(kind, dec_hook=_decode_model)
        (top,), known = msgspec.json.schema_components(
            (kind,), schema_hook=_model_schema, ref_template="#/$defs/{name}"
        )
    except (TypeError, NameError, ValueError, RecursionError) as error:
        raise ValueError(_refusal(name, str(error).rpartition("\n")[2])) from error  # after advice for hooks
    schema = _inlined({**top, "$defs": known})
    if not schema:
        raise ValueError(f"format={name} asks for nothing in particular: write 'json', or a type: {TYPES}")

    def read(text: str) -> object:
        try:
            return decoder.decode(text)
        except msgspec.ValidationError as error:
            raise _misfit(error, schema, text) from error

    return Shape(name, schema, read)


def _name(kind: object) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else _shortened(repr(kind))


def _refusal(name: str, words: str) -> str:
    return f"format={name} cannot be asked for: {words}; a format is 'json', a JSON schema, or a type: {TYPES}"


def _inlined(schema: Schema) -> Schema:
    """Return a schema whose top is the object itself, as older servers need it, with `$defs` beside it.

    Objects take no further properties: the type would drop them, and a model may fill its answer with them.
    """
    definitions: Schema = {}
    schema = _closed(schema, definitions)
    reference = schema.pop("$ref", None)
    if reference is not None:
        name = reference.removeprefix("#/$defs/")
        schema = {**definitions[name], **schema}
        if f'"{reference}"' not in json.dumps([schema, definitions], ensure_ascii=False):
            del definitions[name]
    return {**schema, "$defs": definitions} if definitions else schema


def _closed(schema: Any, definitions: Schema) -> Any:  # Any: JSON
    """Return a copy whose objects take no unknown properties, without what the engine (llguidance) cannot follow.

    The definitions of all levels are moved to one place.
    """
    if not isinstance(schema, dict):
        return schema
    closed: Schema = {}
    for keyword, value in schema.items():
        if keyword == "$defs":
            definitions.update({name: _closed(inner, definitions) for name, inner in value.items()})
        elif keyword == "properties":
            closed[keyword] = {name: _closed(inner, definitions) for name, inner in value.items()}
        elif keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
            closed[keyword] = [_closed(inner, definitions) for inner in value]
        elif keyword in ("items", "additionalProperties"):
            closed[keyword] = _closed(value, definitions)
        else:
            closed[keyword] = value
    if "properties" in closed:
        closed.setdefault("additionalProperties", False)
    if closed.get("format") not in FORMATS:
        closed.pop("format", None)
    closed.pop("uniqueItems", None)  # the engine refuses it; a set is one however often an item comes
    if "prefixItems" in closed and closed.get("items") is False:
        del closed["items"]  # llama.cpp would take it for the schema of the items; `maxItems` says the same
    return closed


def _misfit(error: msgspec.ValidationError, schema: Schema, text: str) -> Misfit:
    """Return msgspec's words, place first; it leaves out what an enum allows."""
    found = _PLACED.fullmatch(str(error))
    words, key, place = found.groups() if found else (str(error), None, "")
    if key:
        return Misfit(place, f"{words} as a key")
    if isinstance(error.__cause__, Misfit):  # a model inside refused its part
        return Misfit(place + error.__cause__.place, str(error.__cause__))
    if words.startswith("Invalid enum value"):
        from jsonschema import Draft202012Validator

        for fault in _every(Draft202012Validator(schema).iter_errors(json.loads(text))):
            if fault.validator == "enum" and _path(fault.absolute_path) == place:
                return Misfit(place, fault.message)
    return Misfit(place, words)


def _every(faults: Iterable[SchemaFault]) -> Iterator[SchemaFault]:
    """Yield faults with those inside the branches of a union."""
    for fault in faults:
        yield fault
        yield from _every(fault.context or ())


# --- pydantic, where the program has imported it ---------------------------------------------------------------------


def _has_model(kind: object) -> bool:
    return is_model(kind) or any(map(_has_model, get_args(kind)))


def _of_model(kind: object) -> Shape:
    name = _name(kind)
    try:
        known = adapter(kind)
        schema = _inlined(known.json_schema())
    except Exception as error:  # pydantic's errors have no common root but this
        raise ValueError(_refusal(name, _shortened(str(error)))) from error

    def read(text: str) -> object:
        return _by_pydantic(known.validate_json, text)

    return Shape(name, schema, read)


def _by_pydantic(validate: Callable[[Any], object], value: object) -> object:
    try:
        return validate(value)
    except sys.modules["pydantic"].ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise ValueError(first["msg"]) from error
        raise Misfit(_path(first["loc"]), first["msg"]) from error


def _model_schema(kind: type) -> Schema:
    """Return the schema of a model inside a type; its definitions bear its name, since others may have the same."""
    if not is_model(kind):
        raise NotImplementedError
    schema: Schema = adapter(kind).json_schema(ref_template=f"#/$defs/{kind.__name__}_{{model}}")
    if "$defs" in schema:
        schema["$defs"] = {f"{kind.__name__}_{name}": inner for name, inner in schema["$defs"].items()}
    return schema


def _decode_model(kind: type, value: object) -> object:
    """Return a model inside a type from what msgspec has parsed."""
    if not is_model(kind):
        raise NotImplementedError
    return _by_pydantic(adapter(kind).validate_python, value)
