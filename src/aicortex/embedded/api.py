"""Ollama's requests, checked and translated: pure functions, no engine, no sockets, no clock.

`parse_chat` and `parse_generate` turn a body into a `Task`. Whatever Ollama would refuse, or this engine
cannot do, is an `ApiError` and never silently ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec

from aicortex.embedded.calls import NO_CALL_BIAS, Call, Function, Message, as_choice, as_text, awaits_words, grammar

VERSION = "0.15.0+aicortex"  # the level of Ollama's API spoken here; valid as semver and as a Python version

_NUMBER = re.compile(r"[0-9]*\.?[0-9]+")
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_JSON_OBJECT = {"type": "object"}  # the schema behind format: "json"

# Option -> (type, engine's name, Ollama's default). Options outside this table are ignored, as Ollama
# ignores them.
_OPTIONS: dict[str, tuple[type, str, float | None]] = {
    "temperature": (float, "temperature", 0.8),
    "top_p": (float, "top_p", 0.9),
    "top_k": (int, "top_k", 40),
    "min_p": (float, "min_p", 0.0),
    "repeat_penalty": (float, "repeat_penalty", 1.0),
    "repeat_last_n": (int, "repeat_last_n", 64),
    "presence_penalty": (float, "presence_penalty", 0.0),
    "frequency_penalty": (float, "frequency_penalty", 0.0),
    "seed": (int, "seed", None),
    "num_predict": (int, "n_predict", -1),
}


class ApiError(Exception):
    """A request that ends in an error reply: an HTTP status and Ollama's `{"error": message}`."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Served:
    """What requests are checked against: the model's name, its control tokens, the context of a slot in tokens.

    `parameters` are the model's own defaults for options.
    """

    name: str
    control_tokens: tuple[str, ...]
    context_length: int
    parameters: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Choice:
    """What precedes the text of a turn with tools: `prompt` and `parameters` let the model choose a call, or none."""

    prompt: list[dict[str, str]]
    parameters: dict[str, Any]  # Any: JSON values
    conversation: tuple[Message, ...]


@dataclass(frozen=True)
class Task:
    """One checked request.

    `messages` is what the template renders; None means that `prompt` goes to the engine as it is.
    `parameters` are the engine's own, `num_ctx` the context in tokens, `keep_alive` seconds (infinity: for
    ever, None: the default). `choice` comes first, where the request has tools.
    """

    kind: Literal["chat", "generate"]
    action: Literal["load", "unload", "render", "run"]
    model: str
    stream: bool
    keep_alive: float | None
    num_ctx: int
    parameters: dict[str, Any]  # Any: JSON values
    messages: list[dict[str, str]] | None = None
    prompt: str = ""
    choice: Choice | None = None


class _Function(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    description: str = ""
    parameters: dict[str, Any] | None = None  # Any: a JSON schema


class _Tool(msgspec.Struct):
    function: _Function


class _CalledFunction(msgspec.Struct):
    name: str
    arguments: dict[str, Any] = {}  # Any: JSON values


class _ToolCall(msgspec.Struct):
    function: _CalledFunction
    id: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str = ""
    images: list[str] | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_name: str = ""
    tool_call_id: str = ""


class _Request(msgspec.Struct, kw_only=True):
    model: str = ""
    stream: bool | None = None
    format: Any = None  # Any: "json" or a schema
    options: dict[str, Any] | None = None  # Any: checked one by one
    keep_alive: float | str | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    render_only: bool = msgspec.field(name="_debug_render_only", default=False)


class _ChatRequest(_Request, kw_only=True):
    messages: list[_Message] | None = None
    tools: list[_Tool] | None = None


class _GenerateRequest(_Request, kw_only=True):
    prompt: str = ""
    system: str = ""
    suffix: str = ""
    template: str = ""
    context: list[int] | None = None
    images: list[str] | None = None
    raw: bool = False


def parse_chat(body: bytes, served: Served) -> Task:
    """Check the body of `POST /api/chat`. Raise ApiError."""
    request = _decode(body, _ChatRequest)
    messages = request.messages or []
    _check_model(request.model, served)
    _check_abilities(request, vision=any(m.images for m in messages))
    for message in messages:
        if message.role not in ("system", "user", "assistant", "tool"):
            raise ApiError(400, f'invalid role "{message.role}", must be one of system, user, assistant, tool')
    functions = _functions(request.tools or [])
    if functions and request.format:
        raise ApiError(400, f'"{request.model}" does not support tools together with format')
    conversation = _conversation(messages)
    rendered = _escaped(as_text(conversation), served.control_tokens)
    if rendered and rendered[-1] == {"role": "assistant", "content": ""}:
        rendered.pop()  # an empty start of the answer makes the template close the turn: measured, never send one
    options: dict[str, Any] = request.options or {}
    if awaits_words(conversation):
        # With the model's own 1.1 it avoids the words of the results: 2 of 7 answers used them, without 5.
        request.options = {"repeat_penalty": 1.0} | options
    task = _task("chat", request, served, messages=rendered, has_input=bool(rendered))
    if not functions or not rendered or rendered[-1]["role"] == "assistant":  # a text that was begun goes on as text
        return task
    # The model's own penalty keeps it from writing the words of the question, or their function's name, once more.
    bound = {"repeat_penalty": 1.0, "logit_bias": NO_CALL_BIAS, "grammar": grammar(functions)}
    parameters = task.parameters | bound
    if "repeat_penalty" in options:
        parameters["repeat_penalty"] = task.parameters["repeat_penalty"]
    parameters.pop("stop", None)  # which would cut a call in the middle
    prompt = _escaped(as_choice(conversation, functions), served.control_tokens)
    return replace(task, choice=Choice(prompt, parameters, conversation))


def _functions(tools: list[_Tool]) -> list[Function]:
    functions = [Function(t.function.name, t.function.description, t.function.parameters or {}) for t in tools]
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise ApiError(400, "two of the tools have the same name")
    return functions


def _conversation(messages: list[_Message]) -> tuple[Message, ...]:
    """Return the messages, each result with the name of the function it is of."""
    names: dict[str, str] = {}
    conversation = []
    for message in messages:
        calls = tuple(Call(c.function.name, c.function.arguments, c.id) for c in message.tool_calls or ())
        names |= {call.id: call.name for call in calls if call.id}
        tool_name = message.tool_name or names.get(message.tool_call_id, "")
        conversation.append(Message(message.role, message.content, calls, tool_name))
    return tuple(conversation)


def parse_generate(body: bytes, served: Served) -> Task:
    """Check the body of `POST /api/generate`. Raise ApiError."""
    request = _decode(body, _GenerateRequest)
    _check_model(request.model, served)
    _check_abilities(request, insert=request.suffix, vision=request.images)
    if request.raw and (request.system or request.template or request.context):
        raise ApiError(400, "raw mode does not support template, system, or context")
    if request.template:
        raise ApiError(400, f'"{request.model}" does not support another template: send a rendered prompt with raw')
    if request.context:
        raise ApiError(400, f'"{request.model}" does not support context: send the messages to /api/chat')
    if request.raw:
        return _task("generate", request, served, prompt=request.prompt, has_input=bool(request.prompt))
    messages = [("system", request.system), ("user", request.prompt)]
    rendered = _escaped([{"role": role, "content": text} for role, text in messages if text], served.control_tokens)
    return _task("generate", request, served, messages=rendered, has_input=bool(request.prompt))


def parse_show(body: bytes, served: Served) -> None:
    """Check the body of `POST /api/show`, which names the model as `model` or `name`. Raise ApiError."""
    request = _decode(body, dict[str, Any])
    _check_model(str(request.get("model") or request.get("name") or ""), served)


def escape_controls(text: str, control_tokens: Sequence[str]) -> str:
    """Put a zero-width space behind the first character of every control token spelled out in `text`.

    The tokenizer would make a control token of it, and a user could end his own turn and speak as the
    assistant. The space survives in the rendered prompt, so rendering and sending that prompt raw means the
    same as the chat request.
    """
    spelled = [token for token in control_tokens if len(token) > 1 and token in text]
    if not spelled:
        return text
    pattern = "|".join(re.escape(token) for token in sorted(spelled, key=len, reverse=True))
    return re.sub(pattern, lambda match: f"{match[0][0]}\u200b{match[0][1:]}", text)


def _escaped(messages: list[dict[str, str]], control_tokens: Sequence[str]) -> list[dict[str, str]]:
    return [message | {"content": escape_controls(message["content"], control_tokens)} for message in messages]


def same_model(asked: str, served: str) -> bool:
    """Tell whether two names mean one model: a name without a tag means `:latest`, and case does not count."""
    return _with_tag(asked) == _with_tag(served)


def parse_keep_alive(value: float | str | None) -> float | None:
    """Turn Ollama's keep_alive into seconds: a number, `"5m"`, `"1h30m"`; negative means infinity. Raise ApiError."""
    if value is None or value == "":
        return None
    seconds = _seconds(value) if isinstance(value, str) else float(value)
    return math.inf if seconds < 0 else seconds


def _seconds(value: str) -> float:
    sign, text = (-1.0, value[1:]) if value.startswith("-") else (1.0, value)
    if _NUMBER.fullmatch(text):
        return sign * float(text)
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ApiError(400, f'time: invalid duration "{value}"')
    return sign * sum(float(number) * _UNITS[unit] for number, unit in parts)


def _with_tag(name: str) -> str:
    name = name.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _decode(body: bytes, shape: type[Any]) -> Any:  # Any: an instance of `shape`
    if not body:
        raise ApiError(400, "missing request body")
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ApiError(400, str(exc)) from exc


def _check_model(name: str, served: Served) -> None:
    if not name:
        raise ApiError(400, "model is required")
    if not same_model(name, served.name):
        raise ApiError(404, f"model '{name}' not found")


def _check_abilities(request: _Request, **wanted: object) -> None:
    """Refuse, in Ollama's words, what the request wants and this engine lacks."""
    wanted |= {"thinking": request.think, "logprobs": request.logprobs}
    for ability, value in wanted.items():
        if value:
            raise ApiError(400, f'"{request.model}" does not support {ability}')


def _task(
    kind: Literal["chat", "generate"],
    request: _Request,
    served: Served,
    *,
    has_input: bool,
    messages: list[dict[str, str]] | None = None,
    prompt: str = "",
) -> Task:
    keep_alive = parse_keep_alive(request.keep_alive)
    options = dict(served.parameters) | (request.options or {})
    parameters, num_ctx = engine_parameters(options, request.format, served.context_length)
    action: Literal["load", "unload", "render", "run"] = "run"
    if not has_input:
        action = "unload" if keep_alive == 0 else "load"
    elif request.render_only:
        action = "render"
    stream = request.stream is not False
    return Task(kind, action, request.model, stream, keep_alive, num_ctx, parameters, messages, prompt)


def engine_parameters(options: dict[str, Any], format: Any, context_length: int) -> tuple[dict[str, Any], int]:
    """Translate Ollama's options and `format` into the engine's parameters and the context in tokens.

    Ollama's defaults stand for what is not given. Raise ApiError for a wrong type, for a format that is
    neither `"json"` nor a schema, and for a `num_ctx` beyond `context_length`: a larger one cannot be had.
    """
    parameters: dict[str, Any] = {}
    for name, (kind, engine_name, default) in _OPTIONS.items():
        value = _number(name, options.get(name), kind)
        value = default if value is None else value
        if value is not None:
            parameters[engine_name] = value
    if parameters["n_predict"] <= 0:
        parameters["n_predict"] = -1  # until the model stops or the context is full; the engine takes 0 for 1
    if parameters.get("seed", 0) < 0:
        del parameters["seed"]
    stop = options.get("stop")
    if stop is not None:
        if not isinstance(stop, list) or not all(isinstance(item, str) for item in stop):
            raise ApiError(400, 'option "stop" must be of type array of strings')
        parameters["stop"] = [item for item in stop if item]
    schema = _schema(format)
    if schema is not None:
        parameters["json_schema"] = schema
    return parameters, _context(options, context_length)


def _context(options: dict[str, Any], context_length: int) -> int:
    num_ctx = _number("num_ctx", options.get("num_ctx"), int)
    if num_ctx is None or num_ctx <= 0:
        return context_length
    if num_ctx > context_length:
        raise ApiError(400, f"num_ctx {num_ctx} exceeds the context length of this engine, {context_length} tokens")
    return int(num_ctx)


def _number(name: str, value: object, kind: type) -> Any:  # Any: int or float, as `kind` says, or None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        word = "integer" if kind is int else "float32"
        raise ApiError(400, f'option "{name}" must be of type {word}')
    return kind(value)


def _schema(format: Any) -> dict[str, Any] | None:
    if format is None or format == "":
        return None
    if format == "json":
        return _JSON_OBJECT
    if isinstance(format, dict):
        return format
    raise ApiError(400, f'invalid format: {format!r}; expected "json" or a valid JSON Schema object')
