"""`python -m benchmarks.schemas`: fifty JSON schemas, each bound to a streamed answer of the embedded engine.

Every schema is asked with `chat(prompt, format=schema, stream=True)` and judged by `jsonschema`. Strings and arrays
have bounds, and the questions of the recursive schemas say where these end: a small model may fill what is unbounded
until its token limit, and half an answer is no object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jsonschema

from aicortex import chat
from benchmarks.report import aligned

Schema = dict[str, Any]  # Any: JSON
AT_ONCE = 2  # half of the engine's slots: it computes with one thread, and so do the checks

TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": 40}
INTEGER: Schema = {"type": "integer", "minimum": 0, "maximum": 9999}
NUMBER: Schema = {"type": "number", "minimum": 0, "maximum": 9999}
BOOLEAN: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
COLOURS = ["red", "green", "blue"]


def record(*optional: str, **properties: Schema) -> Schema:
    """Return the schema of an object with these properties and no others; all but the `optional` are required."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def text(**limits: Any) -> Schema:  # Any: JSON
    """Return the schema of a string."""
    return {"type": "string", **limits}


def array(items: Schema, least: int = 1, most: int = 4) -> Schema:
    """Return the schema of an array with a number of items between two bounds."""
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def defined(schema: Schema, **definitions: Schema) -> Schema:
    """Return the schema with definitions it can refer to."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "$defs": definitions}


def ref(name: str) -> Schema:
    """Return a reference to a definition."""
    return {"$ref": f"#/$defs/{name}"}


PERSON = "Tom Baker is 42 years old, 1.8 m tall, lives in Leeds, likes chess and rowing, and is a doctor."
SHOP = "An order of 3 apples for 1.20 euros each and 2 loaves of bread for 2.50 euros each."
FAMILY = "Anna is the mother of Ben. Ben has no children."
LIST = "A linked list of the numbers 1, 2 and 3; the next of the last is null."
MEETING = "The meeting begins on 24 March 2027 at 9:30; write to anna@example.org."

SCHEMAS: dict[str, tuple[str, Schema]] = {
    "object": (PERSON, record(name=TEXT, age=INTEGER)),
    "every simple type": (PERSON, record(name=TEXT, age=INTEGER, height=NUMBER, doctor=BOOLEAN, title=NULL)),
    "nested objects": (PERSON, record(person=record(name=TEXT, home=record(city=TEXT)), age=INTEGER)),
    "five levels": ("Count to one.", record(a=record(b=record(c=record(d=record(e=INTEGER)))))),
    "optional properties": (PERSON, record("age", "city", name=TEXT, age=INTEGER, city=TEXT)),
    "nothing required": (PERSON, record("name", "job", name=TEXT, job=TEXT)),
    "no properties": ("Say nothing.", record()),
    "further properties": (PERSON, {"type": "object", "properties": {"name": TEXT}, "required": ["name", "age"],
                                    "additionalProperties": INTEGER, "maxProperties": 3}),
    "map of integers": (SHOP, {"type": "object", "additionalProperties": INTEGER, "maxProperties": 3}),
    "map of objects": (SHOP, {"type": "object", "additionalProperties": record(price=NUMBER), "maxProperties": 2}),
    "pattern properties": ("Values x1 = 5 and x2 = 7.", {"type": "object", "patternProperties": {"^x[0-9]$": INTEGER},
                                                       "additionalProperties": False, "maxProperties": 2}),
    "at least two properties": (PERSON, {**record("name", "age", "city", name=TEXT, age=INTEGER, city=TEXT),
                                         "minProperties": 1}),
    "unicode keys": (PERSON, record(имя=TEXT, 年齢=INTEGER, größe=NUMBER)),
    "odd keys": (PERSON, record(**{"full name": TEXT, 'a"quote': BOOLEAN, "back\\slash": INTEGER, "": NULL})),
    "twenty properties": ("Numbers.", record(**{f"value_{number}": INTEGER for number in range(20)})),
    "array of strings": (PERSON, array(TEXT)),
    "exactly five": ("The first five square numbers.", array(INTEGER, 5, 5)),
    "empty array allowed": ("No numbers at all.", array(INTEGER, 0, 3)),
    "array of objects": (SHOP, record(items=array(record(name=TEXT, count=INTEGER, price=NUMBER)))),
    "matrix": ("A matrix of two by two numbers.", array(array(INTEGER, 2, 2), 2, 2)),
    "tuple": (PERSON, {"type": "array", "prefixItems": [TEXT, INTEGER, BOOLEAN], "items": False, "minItems": 3}),
    "open tuple": (PERSON, {"type": "array", "prefixItems": [TEXT], "items": INTEGER, "minItems": 2, "maxItems": 4}),
    "array of either": ("One, 2, three.", array({"anyOf": [INTEGER, TEXT]}, 2, 3)),
    "enum": ("What colour is the sky?", {"enum": COLOURS}),
    "enum of a string type": ("What colour is grass?", record(colour=text(enum=COLOURS))),
    "enum of mixed values": ("Choose.", record(value={"enum": [1, "one", None, True, [1], {"one": 1}]})),
    "const": (PERSON, record(kind={"const": "person"}, name=TEXT)),
    "const object": ("Repeat the version.", record(version={"const": {"major": 1, "minor": [0, 2]}})),
    "string": ("What is the capital of France?", text(minLength=1, maxLength=30)),
    "length of a string": ("A code of eight letters.", record(code=text(minLength=8, maxLength=8))),
    "pattern": ("An identifier.", record(id=text(pattern="^[A-Z]{3}-[0-9]{4}$"))),
    "pattern with alternatives": ("The time now.", text(pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$")),
    "date and time": (MEETING, record(
        day=text(format="date"), begins=text(format="date-time"), at=text(format="time"))),
    "email": (MEETING, record(email=text(format="email", maxLength=40))),
    "uuid and address": ("A server.", record(id=text(format="uuid"), address=text(format="ipv4"))),
    "unicode text": ("Write hello in Japanese.", record(text=text(minLength=2, maxLength=12))),
    "bounded integer": (PERSON, record(age={"type": "integer", "minimum": 18, "maximum": 65})),
    "exclusive bounds": ("A number.", record(x={"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 3})),
    "bounded number": ("A probability.", record(p={"type": "number", "minimum": 0, "maximum": 1})),
    "multiple": ("A multiple of five.", record(n={"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 500})),
    "boolean": ("Is the sky blue?", BOOLEAN),
    "integer": ("How many days has a week?", INTEGER),
    "string or null": (PERSON, record(name=TEXT, spouse={"type": ["string", "null"], "maxLength": 20})),
    "anyOf": (PERSON, record(contact={"anyOf": [record(phone=INTEGER), record(city=TEXT)]})),
    "oneOf with a tag": ("A circle of radius 2.", {"oneOf": [record(kind={"const": "circle"}, radius=NUMBER),
                                                            record(kind={"const": "square"}, side=NUMBER)]}),
    "allOf": (PERSON, {"allOf": [{"type": "object", "properties": {"name": TEXT}, "required": ["name"]},
                                 {"type": "object", "properties": {"age": INTEGER}, "required": ["age"]}],
                       "maxProperties": 2}),
    "references": (SHOP, defined(record(first=ref("item"), second=ref("item")), item=record(name=TEXT, price=NUMBER))),
    "recursive tree": (FAMILY, defined(ref("person"), person=record(name=TEXT, children=array(ref("person"), 0, 2)))),
    "linked list": (LIST, defined(ref("node"), node=record(
        value=INTEGER, next={"anyOf": [ref("node"), NULL]}))),
    "everything": (PERSON + " " + MEETING, defined(
        record("note", person=ref("person"), day=text(format="date"), tags=array(ref("tag"), 1, 3), note=ref("note")),
        person=record(name=TEXT, age={"type": "integer", "minimum": 0, "maximum": 130}), tag={"enum": ["work", "home"]},
        note={"anyOf": [TEXT, NULL]})),
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What became of one schema: the text, what is wrong with it (empty: valid), events, tokens and seconds."""

    name: str
    text: str
    fault: str
    token_events: int
    tokens: int
    seconds: float


def ask(name: str, prompt: str, schema: Schema) -> Answer:
    """Ask for an object, streamed, and validate it."""
    began = time.perf_counter()
    stream = chat(prompt, format=schema, stream=True, temperature=0, servers=["embedded"])
    events = sum(event.type == "token" for event in stream)
    seconds = time.perf_counter() - began
    answer = stream.text()
    return Answer(name, answer, fault_of(answer, schema), events, stream.result.usage["completion_tokens"], seconds)


def fault_of(answer: str, schema: Schema) -> str:
    """Return why an answer is not valid, "" when it is."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    try:
        validator.validate(json.loads(answer))
    except json.JSONDecodeError as exc:
        return f"no JSON: {exc}"
    except jsonschema.ValidationError as exc:
        return str(exc.message)
    return ""


def report(answers: Sequence[Answer], seconds: float) -> str:
    """Return the table and the totals."""
    rows = [["schema", "valid", "token events", "tokens", "seconds", "answer, or what is wrong with it"]]
    for each in answers:
        shown = each.fault or " ".join(each.text.split())
        rows.append(
            [each.name, "no" if each.fault else "yes", str(each.token_events), str(each.tokens),
             f"{each.seconds:.2f}", shown[:70]]
        )  # fmt: skip
    valid = sum(not each.fault for each in answers)
    tokens = sum(each.tokens for each in answers)
    return f"{aligned(rows)}\n\n{valid} of {len(answers)} valid, {tokens} tokens, {seconds:.1f} s, {AT_ONCE} at once"


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask all, print the table; return 1 if an answer is not valid."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schemas", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print every answer as a JSON line")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda item: ask(item[0], *item[1]), SCHEMAS.items()))
    if options.json:
        print("\n".join(json.dumps(vars(each), ensure_ascii=False) for each in answers))
    else:
        print(report(answers, time.perf_counter() - began))
    return int(any(each.fault for each in answers))


if __name__ == "__main__":
    sys.exit(main())
