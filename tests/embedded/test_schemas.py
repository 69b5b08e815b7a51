"""Answers bound by schemas, by the real engine: some of the fifty of `benchmarks/schemas.py`."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from benchmarks.schemas import SCHEMAS, ask, fault_of

from aicortex import RequestRejectedError, chat

SOME = (
    "object", "array of strings", "pattern", "enum of mixed values", "oneOf with a tag", "unicode keys", "tuple",
    "string or null",
)  # fmt: skip


def test_there_are_fifty_different_schemas():
    """No two of the schemas are the same."""
    assert len({str(schema) for _, schema in SCHEMAS.values()}) == len(SCHEMAS) == 50


@pytest.mark.usefixtures("client")
def test_answers_are_valid_and_streamed():
    """Each answer is an object of its schema, in several tokens."""
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda name: ask(name, *SCHEMAS[name]), SOME))
    assert [(each.name, each.fault) for each in answers if each.fault] == []
    assert all(each.token_events > 2 for each in answers)


def test_what_is_not_valid_is_told():
    """The judge knows half an answer, and one of another shape."""
    assert fault_of('{"a": ', {}).startswith("no JSON")
    assert fault_of("1", {"type": "string"}) == "1 is not of type 'string'"


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("schema", [{"not": {"type": "string"}}, {"type": "array", "uniqueItems": True}])
def test_what_the_grammar_cannot_say_is_refused(schema):
    """A keyword that the engine cannot follow is an error, never an answer without it."""
    with pytest.raises(RequestRejectedError, match="cannot follow this JSON schema"):
        chat("Numbers.", format=schema, stream=True, servers=["embedded"]).text()
