"""What the model reads about functions, what it may write, and what that means."""

import json

import pytest

from aicortex.embedded.calls import (
    Call,
    Function,
    Message,
    as_choice,
    as_text,
    awaits_words,
    example,
    grammar,
    read_call,
)

WEATHER = Function(
    "get_weather",
    "Get the weather.\nSlow.",
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]},
)
PARIS = Call("get_weather", {"city": "Paris"}, "call_1")
ASKED = [
    Message("system", "Be kind."),
    Message("user", "Is it warm in Paris?"),
    Message("assistant", "", (PARIS,)),
    Message("tool", "21 degrees", tool_name="get_weather"),
]


def test_the_choice_shows_a_call_among_questions_that_need_none():
    """System texts come first, then the examples, then the conversation with calls as the model writes them."""
    contents = [message["content"] for message in as_choice(ASKED, [WEATHER])]
    assert contents[0].startswith("Be kind.\n\nYou are")
    assert contents[1:] == [
        "Hi, how are you?", '{"name": "none"}',
        "Get the weather. city Rome", '{"name": "get_weather", "arguments": {"city": "Rome"}}',
        "Result of get_weather: 42", '{"name": "none"}',
        "Who was Einstein?", '{"name": "none"}',
        "Is it warm in Paris?", '{"name": "get_weather", "arguments": {"city": "Paris"}}',
        "Result of get_weather: 21 degrees",
    ]  # fmt: skip


def test_roles_take_turns_in_the_choice():
    """Two calls are one message and their results another, and a text follows the word that there is no call."""
    turn = [Message("user", "x"), Message("assistant", "", (PARIS, PARIS)), Message("tool", "a"), Message("tool", "b")]
    shown = as_choice([*turn, Message("assistant", "Warm."), Message("user", "y")], [])[-5:]
    assert [message["role"] for message in shown] == ["user", "assistant", "user", "assistant", "user"]
    assert shown[1]["content"] == f"{PARIS.to_json()}\n{PARIS.to_json()}"
    assert shown[2]["content"] == "Result of the function: a\nResult of the function: b"
    assert shown[3]["content"] == '{"name": "none"}\nWarm.'


def test_the_text_has_results_behind_their_question():
    """Calls are left out; the results of several follow each other, behind an example of how they are used."""
    more = [*ASKED, Message("assistant", "", (PARIS,)), Message("tool", "dry", tool_name="is_dry")]
    system, *_, question = as_text(more)
    assert system == {"role": "system", "content": "Be kind."}
    assert question == {
        "role": "user",
        "content": "Is it warm in Paris?\n\nResult of get_weather: 21 degrees\nResult of is_dry: dry",
    }
    assert as_text(ASKED[1:])[0]["content"].startswith("You are a helpful assistant. Answer with the results")


def test_a_conversation_without_calls_is_text_as_it_stands():
    """Nothing is added where no result waits to be used."""
    plain = [Message("system", "S"), Message("user", "U"), Message("assistant", "A")]
    assert as_text(plain) == [{"role": m.role, "content": m.content} for m in plain]
    assert not awaits_words(plain)


def test_an_answer_that_was_begun_stands_behind_the_same_words():
    """A server that goes on with it reads what the one before read, and then what that said."""
    begun = Message("assistant", "It is")
    assert awaits_words([*ASKED, begun]) == awaits_words(ASKED)
    assert as_text([*ASKED, begun]) == [*as_text(ASKED), {"role": "assistant", "content": "It is"}]


def test_words_beside_a_call_are_kept():
    """A result behind words of the assistant begins a message of its own."""
    spoken = [ASKED[1], Message("assistant", "I look.", (PARIS,)), ASKED[3]]
    assert as_text(spoken)[-2:] == [
        {"role": "assistant", "content": "I look."},
        {"role": "user", "content": "Result of get_weather: 21 degrees"},
    ]


def test_the_grammar_closes_parameters_that_are_listed():
    """Arguments are among the parameters, unless the schema says otherwise or is put together of several."""
    either = Function("either", "", {"anyOf": [{"type": "object"}]})
    lines = grammar([WEATHER, either]).splitlines()
    assert lines[:2] == ["%llguidance {}", r'start: "{\"name\": \"none\"}" | call_0 | call_1']
    schemas = [json.loads(line.partition("%json ")[2]) for line in lines if "%json" in line]
    assert [schema.get("additionalProperties") for schema in schemas] == [False, None]
    assert schemas[0]["properties"] == WEATHER.parameters["properties"]


def test_a_choice_is_read():
    """A call has its arguments and the id it is given, none is None, and half a text an error."""
    text = '{"name": "get_weather", "arguments": {"city": "Rome"}}'
    assert read_call(text, ASKED[:2], "call_2") == Call("get_weather", {"city": "Rome"}, "call_2")
    assert read_call('{"name": "none"}', ASKED, "call_2") is None
    with pytest.raises(ValueError, match="Unterminated"):
        read_call(text[:12], ASKED, "call_2")


def test_a_function_is_not_called_twice_for_one_question():
    """A second call of a function is none, whatever its arguments, until the user speaks again."""
    assert read_call(PARIS.to_json(), ASKED, "call_2") is None
    assert read_call('{"name": "get_weather", "arguments": {"city": "21"}}', ASKED, "call_2") is None
    assert read_call('{"name": "get_time", "arguments": {}}', ASKED, "call_2") == Call("get_time", {}, "call_2")
    again = read_call(PARIS.to_json(), [*ASKED, Message("user", "And now?")], "call_2")
    assert again == Call("get_weather", {"city": "Paris"}, "call_2")


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer", "minimum": 7}, 7), ({"type": "number", "maximum": 2}, 2), ({"type": "boolean"}, True),
        ({"type": "null"}, None), ({"enum": ["a", "b"]}, "a"), ({"const": 3}, 3), ({"type": ["string"]}, "Rome"),
        ({"type": "array", "items": {"type": "string"}}, ["Rome"]), ({"format": "date"}, "2026-01-31"), ({}, "Rome"),
        ({"type": "object", "properties": {"b": {"type": "string"}}}, {"b": "Rome"}), (True, "Rome"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 5), ({"$ref": "#/$defs/colour"}, "red"),
        ({"$ref": "#/$defs/missing"}, "Rome"), ({"$ref": "#/$defs/itself"}, "Rome"),
    ],
)  # fmt: skip
def test_examples_follow_their_schema(schema, value):
    """Each kind of value gets one that fits; what cannot be followed gets a text."""
    definitions = {"colour": {"enum": ["red"]}, "itself": {"$ref": "#/$defs/itself"}}
    assert example({"properties": {"a": schema}, "$defs": definitions}) == {"a": value}


def test_an_example_of_a_schema_that_contains_itself_ends():
    """Values are made up to some depth only."""
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
    assert "null" in json.dumps(example({"properties": {"list": {"$ref": "#/$defs/node"}}, "$defs": {"node": node}}))
