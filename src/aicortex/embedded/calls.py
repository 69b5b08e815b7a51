"""Calls of functions, by a model that was never taught any: pure functions over messages, grammars and replies.

A turn with tools is two prompts. The *choice* shows the model a call of each function among questions that need none,
then the conversation, and a grammar lets it write nothing but one call, or `{"name": "none"}`. After "none" the answer
is text, from a prompt of its own: the conversation without the examples, each question followed by the results of its
calls. One prompt for both was worse at both: greedy SmolLM2-135M called where nothing fits, or never, and its texts
took over words of the examples. Now it calls the right one of five functions for 20 of 27 questions that one of them
answers, and any for 2 of 16 that none answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

EXAMPLES = 8  # functions shown with an example, about 45 tokens each; calls of further ones are only in the grammar
_CHOOSE = "You are a helpful assistant. Choose the function that answers the question, or none."
_NO_CALL = '{"name": "none"}'
NO_CALL_BIAS = [["none", -3.0]]  # in the logits; without it the second of two calls was seldom made
_GREETING = "Hi, how are you?"
_QUESTION = "Who was Einstein?"  # the last example: with a remark there, questions of knowledge became calls
_RESULT = "42"
_USE_RESULTS = "You are a helpful assistant. Answer with the results of the functions, in one sentence."
_RESULT_USED = [("user", "What colour is the house?\n\nResult of get_colour: red"), ("assistant", "The house is red.")]

# Values for examples. Real words: made-up ones such as "alpha" were copied into real calls.
_TEXTS = ("Rome", "Peter", "music")
_NUMBERS = (5, 90, 31)
_FORMATS = {
    "date": "2026-01-31",
    "time": "07:30:00Z",
    "date-time": "2026-01-31T07:30:00Z",
    "email": "peter@example.org",
    "uri": "https://example.org",
    "uuid": "9f1c2d3e-4b5a-4c6d-8e7f-0a1b2c3d4e5f",
}
_DEEPEST = 4  # levels of an example's values; a schema may contain itself
_LAYOUT = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}  # of json.dumps, for llguidance


@dataclass(frozen=True)
class Function:
    """One function the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)  # Any: JSON


@dataclass(frozen=True)
class Call:
    """One call: the function's name, its arguments, and the id that its result names."""

    name: str
    arguments: dict[str, Any]  # Any: JSON
    id: str = ""

    def to_json(self) -> str:
        """Return the call as the model writes it."""
        return json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)


@dataclass(frozen=True)
class Message:
    """One message of the conversation; `tool_name` is the function whose result a message of the role `tool` is."""

    role: str
    content: str
    calls: tuple[Call, ...] = ()
    tool_name: str = ""


def as_choice(messages: Sequence[Message], functions: Sequence[Function]) -> list[dict[str, str]]:
    """Return the messages that let the model choose a call."""
    system = "\n\n".join([*(message.content for message in messages if message.role == "system"), _CHOOSE])
    pairs = [(_GREETING, _NO_CALL)]
    for function in functions[:EXAMPLES]:
        call = Call(function.name, example(function.parameters))
        pairs.append((_question(function, call), call.to_json()))
        if function is functions[0]:  # behind every one, further calls became rarer, the first ones too
            pairs.append((_result(function.name, _RESULT), _NO_CALL))
    pairs.append((_QUESTION, _NO_CALL))
    rendered = [("system", system)]
    for asked, answered in pairs:
        rendered += [("user", asked), ("assistant", answered)]
    for message in messages:
        rendered += _chosen(message)
    return _merged(rendered)


def as_text(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return the messages that let the model answer in text: each question with the results of its calls behind it."""
    rendered: list[tuple[str, str]] = []
    if awaits_words(messages):
        system = [message.content for message in messages if message.role == "system"]
        rendered = [("system", "\n\n".join(system) or _USE_RESULTS), *_RESULT_USED]
        messages = [message for message in messages if message.role != "system"]
    for message in messages:
        if message.role != "tool":
            if message.content or not message.calls:
                rendered.append((message.role, message.content))
            continue
        result = _result(message.tool_name, message.content)
        if rendered and rendered[-1][0] == "user":
            question = rendered.pop()[1]
            rendered.append(
                ("user", f"{question}\n{result}" if "\nResult of " in question else f"{question}\n\n{result}")
            )
        else:
            rendered.append(("user", result))
    return [{"role": role, "content": content} for role, content in rendered]


def awaits_words(messages: Sequence[Message]) -> bool:
    """Tell whether the conversation ends with the result of a call, or with the beginning of the answer to that."""
    *before, last = messages or [Message("user", "")]
    return last.role == "tool" or (last.role == "assistant" and bool(before) and before[-1].role == "tool")


def grammar(functions: Sequence[Function]) -> str:
    """Return a grammar of one call of one of the functions, or none, in llguidance's dialect of Lark."""
    starts, rules = [json.dumps(_NO_CALL)], []
    for number, function in enumerate(functions):
        head = json.dumps({"name": function.name}, ensure_ascii=False)[:-1] + ', "arguments": '
        schema = _closed(function.parameters) | {"type": "object", "x-guidance": _LAYOUT}
        starts.append(f"call_{number}")
        rules.append(f'call_{number}: {json.dumps(head)} arguments_{number} "}}"')
        rules.append(f"arguments_{number}: %json {json.dumps(schema)}")
    return "\n".join(["%llguidance {}", f"start: {' | '.join(starts)}", *rules])


def _closed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of arguments that are among the parameters, unless it says otherwise."""
    if parameters.keys() & {"$ref", "allOf", "anyOf", "oneOf", "patternProperties"}:
        return dict(parameters)  # what is listed beside these is not all
    return {"additionalProperties": False, **parameters}


def read_call(text: str, messages: Sequence[Message], id: str) -> Call | None:
    """Return the call that the model chose, None when it chose none. Raise ValueError when the text is cut off.

    A function is called once for one question, and its second call is none: after half of the results the model called
    again, with the same arguments or with words of the result.
    """
    chosen = json.loads(text)
    if "arguments" not in chosen:
        return None
    call = Call(chosen["name"], chosen["arguments"], id)
    for message in reversed(messages):
        if message.role == "user":
            break
        if any(made.name == call.name for made in message.calls):
            return None
    return call


def example(schema: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON
    """Return arguments as a call might have them: the required ones, or all where none is said to be."""
    return _Values(schema).members(schema, 0)


def _question(function: Function, call: Call) -> str:
    """Return what somebody says who wants just this call."""
    about = function.description.strip().partition("\n")[0].rstrip(".") or function.name.replace("_", " ")
    words = ", ".join(f"{name} {_words(value)}" for name, value in call.arguments.items())
    return f"{about}. {words}".rstrip()


def _words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _result(name: str, content: str) -> str:
    return f"Result of {name or 'the function'}: {content}"


def _chosen(message: Message) -> list[tuple[str, str]]:
    """Return what the choice shows of one message of the conversation."""
    if message.role == "system":
        return []
    if message.role == "tool":
        return [("user", _result(message.tool_name, message.content))]
    if message.role == "user":
        return [("user", message.content)]
    if message.calls:
        return [("assistant", "\n".join(call.to_json() for call in message.calls))]
    return [("assistant", f"{_NO_CALL}\n{message.content}")]


def _merged(rendered: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Return messages whose roles take turns, as templates want them: the results of two calls are one message."""
    messages: list[dict[str, str]] = []
    for role, content in rendered:
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n{content}"
        else:
            messages.append({"role": role, "content": content})
    return messages


class _Values:
    """Makes up values for schemas, each text and number another one than the last."""

    def __init__(self, root: Mapping[str, Any]):
        self._root = root
        self._texts: Iterator[str] = cycle(_TEXTS)
        self._numbers: Iterator[int] = cycle(_NUMBERS)

    def members(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        """Return an object's members."""
        properties = schema.get("properties") or {}
        return {name: self._value(properties.get(name), depth + 1) for name in schema.get("required") or properties}

    def _value(self, schema: Any, depth: int) -> Any:  # Any: JSON
        schema = self._resolved(schema)
        if depth > _DEEPEST:
            return None
        if "const" in schema or schema.get("enum"):
            return schema["const"] if "const" in schema else schema["enum"][0]
        kind = schema.get("type")
        kind = kind[0] if isinstance(kind, list) and kind else kind
        if kind == "object":
            return self.members(schema, depth)
        if kind == "array":
            return [self._value(schema.get("items"), depth + 1)]
        if kind in ("integer", "number"):
            number = max(next(self._numbers), schema.get("minimum", 0))
            return min(number, schema.get("maximum", number))
        simple = {"boolean": True, "null": None}
        return simple[kind] if kind in simple else _FORMATS.get(schema.get("format", "")) or next(self._texts)

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        """Return the schema behind references and alternatives, an empty one for what cannot be followed."""
        for _ in range(_DEEPEST):
            if not isinstance(schema, dict):
                return {}
            alternatives = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
            if isinstance(schema.get("$ref"), str):
                schema = self._target(schema["$ref"])
            elif alternatives:
                schema = alternatives[0]
            else:
                return schema
        return {}

    def _target(self, reference: str) -> Any:
        target: Any = self._root
        for step in reference.removeprefix("#/").split("/"):
            target = target.get(step) if isinstance(target, Mapping) else None
        return target
