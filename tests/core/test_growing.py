"""A growing JSON value, held against the parser of the standard library."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from aicortex._core.growing import MAX_DEPTH, Growing

TEXTS = st.text(st.characters(codec="utf-8")) | st.sampled_from(["𝄞", '"\\', "\\u0041", "\n\t", "```"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)
JSONS = st.builds(
    json.dumps, VALUES, ensure_ascii=st.booleans(), indent=st.sampled_from([None, 1, "\t"])
)  # both kinds of escapes, and all kinds of white space


def parts_of(text: str, cuts: list[int]) -> list[str]:
    """Return a text cut into pieces of these sizes, and the rest."""
    pieces = []
    for size in cuts:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]


def grown(*pieces: str) -> Any:
    """Return the value of a text that comes in pieces."""
    growing = Growing()
    feed_and_finish(growing, *pieces)
    return growing.value


def feed_and_finish(growing: Growing, *pieces: str) -> None:
    """Feed all pieces and the end."""
    for piece in pieces:
        growing.feed(piece)
    growing.finish()


def is_prefix(part: object, whole: object) -> bool:
    """Whether a value may become another one by growing; the same types are never mixed."""
    if part is UNSET:
        return True
    if type(part) is not type(whole):
        return False
    if isinstance(part, str) and isinstance(whole, str):
        return whole.startswith(part)
    if isinstance(part, list) and isinstance(whole, list):
        pairs = list(zip(part, whole, strict=False))
        return len(part) <= len(whole) and all(map(is_prefix, *zip(*pairs, strict=True))) if pairs else True
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and is_prefix(inner, whole[key]) for key, inner in part.items())
    return part == whole


@given(JSONS, st.lists(st.integers(0, 9), max_size=40))
@settings(deadline=None)
def test_every_cut_ends_in_the_same_value(text: str, cuts: list[int]) -> None:
    """However a JSON text is cut, its value is the one that `json.loads` gives, with the types and the order of it."""
    assert json.dumps(grown(*parts_of(text, cuts))) == json.dumps(json.loads(text))


@given(JSONS)
@settings(deadline=None)
def test_every_prefix_gives_a_prefix(text: str) -> None:
    """After each character the value is a prefix of the whole one, and `feed` tells whether it has changed."""
    whole, growing = json.loads(text), Growing()
    before = json.dumps(None)
    is_begun = False
    for character in text:
        is_changed = growing.feed(character)
        assert is_prefix(growing.value, whole)
        if growing.value is not UNSET:
            after = json.dumps(growing.value)
            assert is_changed == (after != before or not is_begun)
            before, is_begun = after, True
        else:
            assert not is_changed
    growing.finish()
    assert json.dumps(growing.value) == json.dumps(whole)


@given(st.lists(st.sampled_from(["\\ud834", "\\udd1e", "\\u0041", "\\n", "a", "𝄞", "\\uD834", "\\\\", '\\"'])))
@example(["\\ud834", "\\ud834", "\\udd1e"])
@settings(deadline=None)
def test_surrogates_are_joined(codes: list[str]) -> None:
    """Pairs of escaped surrogates become one character, lone ones stay, wherever the text is cut."""
    text = f'["{"".join(codes)}"]'
    whole, growing = json.loads(text), Growing()
    for character in text:
        growing.feed(character)
        assert is_prefix(growing.value, whole)
    assert growing.value == whole == grown(text)


@given(st.text(st.sampled_from('{}[]",:truefalsn01.-+eE\\u d\nx'), max_size=12))
@settings(deadline=None, max_examples=500)
def test_what_is_no_json_is_refused(text: str) -> None:
    """A text is taken exactly when `json.loads` takes it, whole as well as in single characters."""
    try:
        expected = repr(json.loads(text))
    except ValueError:
        expected = "refused"
    for pieces in ([text], list(text)):
        try:
            found = repr(grown(*pieces))
        except ValueError:
            found = "refused"
        assert found == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a value, not the end, at character 0"),
        ("  x", "expected a value, not 'x', at character 2"),
        ("NaN", "expected a value, not 'N', at character 0"),
        ('{"a": 1,}', "expected a key, not '}', at character 8"),
        ('{"a" 1}', "expected ':', not '1', at character 5"),
        ("[1 2]", "expected ',' or ']', not '2', at character 3"),
        ('{"a": 1]', "expected ',' or '}', not ']', at character 7"),
        ("[01]", "expected a number, not '01', at character 1"),
        ("[tru]", "expected 'e', not ']', at character 4"),
        ("[1] x", "expected the end, not 'x', at character 4"),
        ("[1] ```", "expected the end, not '`', at character 4"),
        ('["a\nb"]', "expected a character, not the control character '\\n', at character 3"),
        ('["\\x"]', "expected an escape sequence, not '\\\\x', at character 3"),
        ('["\\u12g4"]', "expected an escape sequence, not '\\\\u12g', at character 6"),
        ('{"a": [1', "expected more, not the end, at character 8"),
        (f"[{'1' * 5000}]", "expected a number, not one of 5000 digits, at character 1"),
        ("```json [1]", "expected a value, not the end, at character 11"),
        ("``\n[1]``", "expected a value, not '`', at character 0"),
        ("```json\n[1]", "expected more, not the end, at character 11"),
        ("```json\n[1]\n``` done", "expected the end, not 'd', at character 16"),
        ("```" + " " * 40, "expected a value, not '`', at character 0"),
        ("```\n[1]\n``", "expected more, not the end, at character 10"),
        ("[" * 201, "expected at most 200 levels, not one more, at character 200"),
    ],
)
def test_errors_have_a_position(text: str, words: str) -> None:
    """What is wrong, and at which character, is said alike however the text is cut; it is said again if asked again."""
    for pieces in ([text], list(text)):
        growing = Growing()
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            feed_and_finish(growing, *pieces)
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            growing.feed("1")
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            growing.finish()


@pytest.mark.parametrize(
    "text",
    ["```json\n[1]\n```", " ```\n[1]```\n", "```JSON \r\n [1] \r\n```  ", "[1]"],
)
def test_a_fence_is_passed_over(text: str) -> None:
    """One Markdown fence around the whole text does not matter."""
    assert grown(text) == grown(*text) == [1]


def test_strings_grow_numbers_and_words_do_not() -> None:
    """Strings and containers are there at once, numbers and words when they are complete, keys with their values."""
    growing, seen = Growing(), []
    for piece in ['{"a', '"', ": ", '"', "x", "\\u00", "e9", '", "b": [', "1", "2", ",", "tru", "e", "]}"]:
        is_changed = growing.feed(piece)
        seen.append(json.dumps(growing.value, ensure_ascii=False) if is_changed else None)
    expected = [{}, None, None, {"a": ""}, {"a": "x"}, None, {"a": "xé"}, {"a": "xé", "b": []}, None, None]
    expected += [{"a": "xé", "b": [12]}, None, {"a": "xé", "b": [12, True]}, None]
    assert [None if text is None else json.loads(text) for text in seen] == expected


def test_a_number_at_the_top_appears_at_the_end() -> None:
    """Only the end of the text says that a number is complete."""
    growing = Growing()
    assert (growing.feed("1"), growing.feed("2"), growing.value) == (False, False, UNSET)
    assert (growing.finish(), growing.value) == (True, 12)


def test_the_same_containers_grow() -> None:
    """The value is one object from beginning to end, and so is each list and dictionary in it."""
    growing = Growing()
    growing.feed('{"a": [')
    root, inner = growing.value, growing.value["a"]
    growing.feed("1, 2]}")
    assert growing.value is root
    assert root["a"] is inner == [1, 2]


def test_the_last_of_equal_keys_wins() -> None:
    """A key that comes twice has its last value, as `json.loads` gives it."""
    assert grown('{"a": 1, "b": 2, "a": "x"}') == {"a": "x", "b": 2}


def test_the_deepest_value_is_read() -> None:
    """Two hundred levels are taken."""
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert grown(text) == json.loads(text)


def test_an_error_leaves_the_value() -> None:
    """What was there before a wrong character stays."""
    growing = Growing()
    growing.feed('{"a": [1, "x')
    with pytest.raises(ValueError, match="control character"):
        growing.feed("y\n")
    assert growing.value == {"a": [1, "xy"]}
