"""NDJSON from bytes, and error bodies in plain words."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex._core import ollama
from aicortex._core.ollama import Chunk, Lines, decode_lines, decode_rest, error_of_body, error_text, full_name


def decode(*pieces: bytes) -> tuple[list[Chunk], str | None]:
    """Feed pieces one after the other, then the end."""
    body: list[bytes] = []
    lines = Lines()
    chunks: list[Chunk] = []
    for piece in pieces:
        body.append(piece)
        found, lines, fault = decode_lines(lines, body)
        chunks += found
        if fault:
            return chunks, fault
    found, fault = decode_rest(lines, body)
    return chunks + found, fault


def line(content: str, **more: Any) -> bytes:
    return json.dumps({"model": "m", "message": {"role": "assistant", "content": content}, **more}).encode() + b"\n"


def contents(chunks: list[Chunk]) -> list[str | None]:
    return [chunk.message.content if chunk.message else None for chunk in chunks]


WHOLE = line("one") + line(" two\u2028three\u0085four") + b"\n" + line("", done=True, eval_count=3).rstrip()


def test_a_stream_is_the_same_wherever_it_is_cut() -> None:
    """Cut in two at every place, and byte by byte, the chunks are the same."""
    expected = decode(WHOLE)
    assert contents(expected[0]) == ["one", " two\u2028three\u0085four", ""]
    for cut in range(len(WHOLE) + 1):
        assert decode(WHOLE[:cut], WHOLE[cut:]) == expected
    assert decode(*(WHOLE[i : i + 1] for i in range(len(WHOLE)))) == expected


def test_line_separators_inside_strings_do_not_split() -> None:
    """U+0085, U+2028 and U+2029 may stand raw in a JSON string (protocol: Framing)."""
    raw = '{"message":{"content":"a\u0085b\u2028c\u2029d"}}\n'.encode()
    assert contents(decode(raw)[0]) == ["a\u0085b\u2028c\u2029d"]


def test_a_last_line_may_lack_its_newline() -> None:
    """One application/json object without a newline is a whole answer."""
    chunks, fault = decode(line("", done=True, done_reason="load").rstrip())
    assert (chunks[0].done, chunks[0].done_reason, fault) == (True, "load", None)


@pytest.mark.parametrize(
    ("data", "spoken"),
    [
        (b'{"message":{"content":"a"}}', ollama.Message("a")),
        (b'{"response":"a"}', ollama.Message("a")),
        (b'{"response":""}', None),
        (b'{"response":"","done":true}', None),
        (b'{"done":true}', None),
        (b'{"message":{"content":"","thinking":"hm"}}', ollama.Message("", "hm")),
    ],
)
def test_both_endpoints_speak(data: bytes, spoken: ollama.Message | None) -> None:
    """/api/chat says it in `message`, /api/generate in `response`."""
    assert ollama.decode_chunk(data).spoken == spoken


@pytest.mark.parametrize(
    ("data", "is_empty"),
    [
        (b"{}", True),
        (b'{"model":"m","done":false}', True),
        (b'{"message":{}}', True),
        (b'{"message":{"role":"assistant"}}', True),
        (b'{"message":null}', True),
        (b'{"message":{"content":""}}', False),  # a parser may stay silent (protocol: "Framing")
        (b'{"message":{"content":null}}', False),
        (b'{"message":{"thinking":"hm"}}', False),
        (b'{"message":{"tool_calls":[{"function":{"name":"add"}}]}}', False),
        (b'{"response":""}', False),
        (b'{"done":true}', False),
        (b'{"error":"x"}', False),
    ],
)
def test_a_line_without_anything(data: bytes, is_empty: bool) -> None:
    """Every line of Ollama's says something, be it an empty text; one that does not was damaged."""
    assert ollama.decode_chunk(data).is_empty is is_empty


def test_a_rendered_prompt() -> None:
    """It stands in the debug part; a server that generated has none."""
    decode = msgspec.json.Decoder(ollama.Rendered).decode
    found = decode(b'{"model":"m","_debug_info":{"rendered_template":"<|user|>hi","image_count":0}}')
    assert found.debug == ollama.DebugInfo("<|user|>hi")
    assert decode(b'{"message":{"content":"A"},"done":true}').debug is None


def test_a_cut_last_line_is_no_chunk_and_no_fault() -> None:
    """Half an object means that the stream was cut, which is for the answer to judge."""
    assert decode(line("a") + b'{"message":{"con') == ([Chunk(ollama.Message("a"))], None)


@pytest.mark.parametrize("bad", [b"<html>\n", b"<html>", b'{"message": 3}\n', b"\xff\xfe\n", b'{"message":\n1}\n'])
def test_chunks_before_a_bad_line_are_kept(bad: bytes) -> None:
    """What was good is delivered, and the fault shows what came instead."""
    for pieces in ([line("a") + bad], [line("a"), bad], [line("a") + bad[:3], bad[3:]]):
        chunks, fault = decode(*pieces)
        assert contents(chunks) == ["a"]
        assert fault is not None


def test_two_objects_on_one_line_are_a_fault_however_they_are_cut() -> None:
    """A line is one object: a record cannot hide behind another."""
    data = b'{"message":\n{"content":"x"}} {"done":true}\n'
    assert all(decode(data[:cut], data[cut:])[1] for cut in range(len(data)))


def test_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line over the bound is refused, whole or unfinished, and one below it is not."""
    monkeypatch.setattr(ollama, "MAX_LINE_BYTES", 1000)
    assert decode(line("x" * 900))[1] is None
    big = line("a") + line("x" * 1000)
    for pieces in ([big], [big[:500], big[500:]], [big[i : i + 10] for i in range(0, len(big), 10)]):
        chunks, fault = decode(*pieces)
        assert contents(chunks) == ["a"]
        assert "longer than" in (fault or "")


def test_an_eight_megabyte_line_in_small_pieces_is_decoded_once() -> None:
    """A line just below 8 MB, in pieces of 1 kB, decodes: the pieces are joined once and not again and again."""
    data = line("x" * (8 * 1024 * 1024 - 200))
    chunks, fault = decode(*(data[i : i + 1024] for i in range(0, len(data), 1024)))
    assert fault is None
    assert len(contents(chunks)[0] or "") == 8 * 1024 * 1024 - 200


@given(st.lists(st.text(max_size=20), max_size=10), st.lists(st.integers(0, 2000), max_size=8))
def test_any_texts_cut_anywhere(texts: list[str], cuts: list[int]) -> None:
    """Any texts, however the wire cuts them, come out as they went in."""
    data = b"".join(msgspec.json.encode({"message": {"content": text}}) + b"\n" for text in texts)
    places = sorted(min(cut, len(data)) for cut in cuts)
    pieces = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    chunks, fault = decode(*pieces)
    assert (contents(chunks), fault) == (texts, None)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_random_bytes_give_the_same_in_one_piece_and_in_two(data: bytes, cut: int) -> None:
    """Random bytes never raise, and where they are cut does not matter."""
    once, twice = decode(data), decode(data[:cut], data[cut:])
    assert once[0] == twice[0]
    assert (once[1] is None) == (twice[1] is None)


def test_deep_nesting_is_a_fault() -> None:
    """An object nested a hundred thousand deep is a bad line, not a RecursionError."""
    bomb = b'{"error":' * 100_000 + b"1" + b"}" * 100_000 + b"\n"
    assert decode(bomb)[1] is not None
    assert error_of_body(bomb) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("model not found", "model not found"),
        ('{"error":{"code":500,"message":"out of memory"}}', "out of memory"),
        ({"message": "inner"}, "inner"),
        ('{"error": "x"', '{"error": "x"'),
        ({"code": 1}, '{"code":1}'),
        (7, "7"),
    ],
)
def test_error_values_become_words(value: object, words: str) -> None:
    """An error is a string, or nested JSON from a runner (protocol: Errors before the stream)."""
    assert error_text(value) == words


def test_error_bodies() -> None:
    """A JSON body gives its error; anything else gives None."""
    assert error_of_body(b'{"error":"model \'x\' not found"}') == "model 'x' not found"
    assert [error_of_body(body) for body in (b"", b"<html>", b'"x"', b"[1]", b"{}")] == [None] * 5


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("llama3.2:3b", "llama3.2:3b"),
        ("hf.co/a/b", "hf.co/a/b:latest"),
        ("host:5000/a/b", "host:5000/a/b:latest"),
    ],
)
def test_names_without_a_tag_mean_latest(name: str, full: str) -> None:
    """A colon in the last part of a name is a tag; a port is not."""
    assert full_name(name) == full
