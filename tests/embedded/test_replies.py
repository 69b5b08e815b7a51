"""What the engine says, and what clients read."""

import pytest

from aicortex.embedded.api import ApiError, Task
from aicortex.embedded.calls import Call
from aicortex.embedded.replies import EngineChunk, Reply, read_chunk


def reply(kind="chat"):
    """Return a builder whose clock stands still."""
    return Reply(Task(kind, "run", "m", True, None, 4096, {}), lambda: "now")


def test_chat_and_generate_objects_have_ollamas_shapes():
    """Chat carries a message, generate a response, the last one its counts."""
    assert reply().text("hi") == {
        "model": "m", "created_at": "now", "message": {"role": "assistant", "content": "hi"}, "done": False,
    }  # fmt: skip
    assert reply("generate").last("stop", eval_count=3) == {
        "model": "m", "created_at": "now", "response": "", "done": True, "done_reason": "stop", "eval_count": 3,
    }  # fmt: skip
    assert reply().rendered("p")["_debug_info"] == {"rendered_template": "p", "image_count": 0}


def test_a_call_is_a_message_without_text():
    """A call has Ollama's shape: an id, and a function with its index, name and arguments as an object."""
    assert reply().call(Call("add", {"a": 1}, "call_1")) == {
        "model": "m", "created_at": "now", "done": False,
        "message": {"role": "assistant", "content": "", "tool_calls": [
            {"id": "call_1", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}}]},
    }  # fmt: skip


def show(*chunks):
    """Return the texts shown after each chunk."""
    builder = reply()
    return [builder.ready_text(chunk) for chunk in chunks]


def test_a_character_cut_by_the_token_limit_is_not_shown():
    """A trailing U+FFFD at a token limit is dropped."""
    assert show(EngineChunk("a\ufffd", None), EngineChunk("", "length")) == ["a", ""]
    assert show(EngineChunk("a\ufffd\ufffd", "length")) == ["a"]


def test_a_real_replacement_character_is_shown():
    """U+FFFD that other text follows, or that ends a finished answer, is the model's own."""
    assert show(EngineChunk("a\ufffd", None), EngineChunk("b", None)) == ["a", "\ufffdb"]
    assert show(EngineChunk("a\ufffd", None), EngineChunk("", "stop")) == ["a", "\ufffd"]


def test_chunks_are_read():
    """Text chunks have no counts, the last chunk has them."""
    choice = {"text": "x", "finish_reason": None}
    assert read_chunk({"choices": [choice]}) == EngineChunk("x", None)
    last = {
        "choices": [{"text": "", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5},
        "timings": {"prompt_ms": 1.5, "predicted_n": 2, "predicted_ms": 2.5},
    }
    assert read_chunk(last) == EngineChunk("", "stop", 5, 1.5, 2, 2.5)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        ({"code": 400, "message": "bad grammar"}, 400, "bad grammar"),
        ({"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 4}, 400,
         "the input length exceeds the context length: 9 tokens, num_ctx is 4"),
        ("broken", 500, "broken"),
        ({}, 500, "unknown engine error"),
    ],
)  # fmt: skip
def test_engine_errors_are_raised(error, status, words):
    """An error of the engine keeps its status and words; a prompt too long gets Ollama's."""
    with pytest.raises(ApiError) as caught:
        read_chunk({"error": error})
    assert (caught.value.status, caught.value.message) == (status, words)
