"""What the engine says, and what Ollama's clients get to read: pure functions, the clock is an argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aicortex.embedded.api import ApiError, Task
from aicortex.embedded.calls import Call

_REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class EngineChunk:
    """One thing the engine said: text, with the last one why it stopped and its work in counts and milliseconds."""

    text: str
    finish_reason: str | None
    prompt_tokens: int = 0
    prompt_ms: float = 0.0
    tokens: int = 0
    tokens_ms: float = 0.0


def read_chunk(chunk: dict[str, Any]) -> EngineChunk:
    """Read one chunk of the engine's completion. Raise ApiError when it reports an error."""
    if "error" in chunk:
        raise _engine_error(chunk["error"])
    choice = chunk["choices"][0]
    reason = choice["finish_reason"]
    if reason is None:
        return EngineChunk(choice["text"], None)
    usage, timings = chunk["usage"], chunk["timings"]
    return EngineChunk(
        choice["text"], reason, usage["prompt_tokens"], timings["prompt_ms"], timings["predicted_n"],
        timings["predicted_ms"],
    )  # fmt: skip


def _engine_error(error: Any) -> ApiError:  # Any: an object with code, message and type, or plain text
    if not isinstance(error, dict):
        return ApiError(500, str(error))
    if error.get("type") == "exceed_context_size_error":
        return too_long(error.get("n_prompt_tokens", 0), error.get("n_ctx", 0))
    return ApiError(int(error.get("code", 500)), str(error.get("message", "unknown engine error")))


def too_long(prompt_tokens: int, num_ctx: int) -> ApiError:
    """Return the error of a prompt that does not fit; Ollama's words first."""
    return ApiError(400, f"the input length exceeds the context length: {prompt_tokens} tokens, num_ctx is {num_ctx}")


@dataclass
class Reply:
    """Builds the replies to one task; `now` is called for each `created_at`."""

    task: Task
    now: Callable[[], str]
    _held: str = field(default="", init=False)

    def ready_text(self, chunk: EngineChunk) -> str:
        """Return the text that may be shown after `chunk`.

        A token limit can cut a character in two, and the engine then ends with U+FFFD, which the model
        never wrote: a trailing one is held back until the next text proves it real, and dropped at such an
        end.
        """
        text = self._held + chunk.text
        shown = text.rstrip(_REPLACEMENT)
        if chunk.finish_reason == "stop":
            shown = text
        self._held = "" if chunk.finish_reason else text[len(shown) :]
        return shown

    def text(self, content: str) -> dict[str, Any]:
        """Return the object of one piece of text."""
        return self._object(content, done=False)

    def call(self, call: Call) -> dict[str, Any]:
        """Return the object of one call of a function."""
        reply = self._object("", done=False)
        function = {"index": 0, "name": call.name, "arguments": call.arguments}
        reply["message"]["tool_calls"] = [{"id": call.id, "function": function}]
        return reply

    def last(self, reason: str, **metrics: int) -> dict[str, Any]:
        """Return the object that completes the answer; `metrics` are Ollama's counts and nanoseconds."""
        return self._object("", done=True) | {"done_reason": reason} | metrics

    def rendered(self, prompt: str) -> dict[str, Any]:
        """Return the answer to `_debug_render_only`."""
        return {
            "model": self.task.model,
            "created_at": self.now(),
            "_debug_info": {"rendered_template": prompt, "image_count": 0},
        }

    def _object(self, content: str, *, done: bool) -> dict[str, Any]:
        reply: dict[str, Any] = {"model": self.task.model, "created_at": self.now()}
        if self.task.kind == "chat":
            reply["message"] = {"role": "assistant", "content": content}
        else:
            reply["response"] = content
        reply["done"] = done
        return reply
