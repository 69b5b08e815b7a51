"""What a request asks the model for: the exact text it is given, and where it has to stop.

A conversation is rendered as lines `<|role|>content`, with `<think>thinking</think>` before the content of a
message that has `thinking`; neighbours of one role are one line, joined by a blank line, except those of tools.
The last line is `<|assistant|>`, where the answer begins. How a conversation is rendered that ends with an
assistant's message is the difference between the templates: "chatml" closes the message and opens a new turn,
"prefill" leaves it open, so that the prompt ends with its content and the model goes on there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from aicortex.testing.exchange import Request

ASSISTANT = "<|assistant|>"
_TURN = "<|{{ .Role }}|>{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}"
TEMPLATES = {  # as /api/show tells them
    "chatml": "{{ range .Messages }}" + _TURN + "\n{{ end }}" + ASSISTANT,
    "prefill": "{{ $new := true }}{{ range $i, $_ := .Messages }}"
    '{{ $new = not (and (eq .Role "assistant") (eq (len (slice $.Messages $i)) 1)) }}'
    + _TURN
    + "{{ if $new }}\n{{ end }}{{ end }}{{ if $new }}"
    + ASSISTANT
    + "{{ end }}",
}


@dataclass(frozen=True)
class Generation:
    """What one request asks to be generated.

    `prompt` is the exact text the model is given. `is_raw` says that it came rendered, `continues` that it may
    hold the beginning of an answer: a raw prompt, or a conversation that ends with an assistant's message.
    `num_predict` is the number of tokens after which to stop, or None; `stop` are the strings before which to
    stop.
    """

    prompt: str
    is_raw: bool = False
    continues: bool = False
    num_predict: int | None = None
    stop: Sequence[str] = ()

    @property
    def begins(self) -> bool:
        """Whether the answer begins anew: the prompt ends where an answer starts."""
        return self.prompt.endswith(ASSISTANT)

    @property
    def delivered(self) -> str:
        """The text of the answer that the prompt holds already, without its thinking."""
        answer = self.prompt.rpartition(ASSISTANT)[2]
        _, closing, content = answer.partition("</think>") if answer.startswith("<think>") else ("", "", "")
        return content if closing else answer


class _Message(msgspec.Struct):
    role: str = ""
    content: str | None = ""
    thinking: str | None = ""


class _Options(msgspec.Struct):
    num_predict: int | None = None
    stop: list[str] | None = None


class _Body(msgspec.Struct):
    messages: list[_Message] | None = None
    prompt: str | None = ""
    raw: bool | None = False
    options: _Options | None = None


def read_generation(request: Request, template: str) -> Generation:
    """Return what `request` asks for. Raise `ValueError` if a field of its body has the wrong type."""
    body = msgspec.convert(request.json if isinstance(request.json, dict) else {}, _Body)
    options = body.options or _Options()
    # To Ollama's runner a limit of 0 or less is none.
    limit = options.num_predict if options.num_predict and options.num_predict > 0 else None
    if request.path == "/api/generate":
        prompt, is_raw = body.prompt or "", bool(body.raw)
        text = prompt if is_raw else _render([_Message("user", prompt)], template)
        return Generation(text, is_raw, is_raw, limit, options.stop or ())
    messages = body.messages or []
    continues = bool(messages) and messages[-1].role == "assistant"
    return Generation(_render(messages, template), False, continues, limit, options.stop or ())


def _render(messages: Sequence[_Message], template: str) -> str:
    turns: list[_Message] = []
    for message in messages:
        if turns and turns[-1].role == message.role != "tool":
            content = f"{turns[-1].content or ''}\n\n{message.content or ''}"
            turns[-1] = msgspec.structs.replace(turns[-1], content=content)
        else:
            turns.append(message)
    lines = [f"<|{turn.role}|>{_thoughts(turn)}{turn.content or ''}" for turn in turns]
    stays_open = template == "prefill" and bool(turns) and turns[-1].role == "assistant"
    return "\n".join(lines if stays_open else [*lines, ASSISTANT])


def _thoughts(message: _Message) -> str:
    return f"<think>{message.thinking}</think>" if message.thinking else ""
