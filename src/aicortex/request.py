"""From what the caller passes to what Ollama takes; every mistake gets a ValueError that says what to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import msgspec

from aicortex._core.failover import Deadlines
from aicortex._core.question import Question

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    from aicortex._core.result import Result
    from aicortex._core.server import Server
    from aicortex.calling import OnToolCall, Toolbox
    from aicortex.errors import AICortexError
    from aicortex.functions import Tool
    from aicortex.images import Image
    from aicortex.shapes import Shape

    class Arguments(TypedDict, total=False):
        """The keyword arguments of `chat` without `format`, on which it depends what it returns; for type checkers."""

        model: str | None
        messages: Sequence[MessageDict] | None
        system: str | None
        images: Sequence[Image] | None
        think: bool | Literal["low", "medium", "high"] | None
        temperature: float | None
        top_p: float | None
        max_tokens: int | None
        stop: str | Sequence[str] | None
        seed: int | None
        options: Options | None
        tools: Sequence[AnyTool] | None
        on_tool_call: OnToolCall | None
        max_steps: int
        tool_timeout: float | None
        keep_alive: str | float | None
        servers: Servers
        routing: Routing | None
        session: str | None
        resume: Literal["continue", "never"] | None
        hedge_after: float | None
        timeout: float | None
        first_token_timeout: float
        connect_timeout: float
        stall_timeout: float
        min_tokens_per_second: float | None

    class ChatArguments(Arguments, total=False):
        """The keyword arguments of `chat`, for type checkers."""

        format: Format | None


MessageDict: TypeAlias = Mapping[str, Any]  # Any: JSON of the caller's making
Options: TypeAlias = Mapping[str, Any]  # Any: whatever the server's runner takes
AnyTool: TypeAlias = "Callable[..., Any] | Tool | Mapping[str, Any]"  # Any: any function, or a JSON schema
Format: TypeAlias = "Literal['json'] | Mapping[str, Any] | type[Any]"  # Any: a JSON schema, or whatever fits one
Routing: TypeAlias = Literal["balanced", "fastest", "nearest", "priority", "round_robin", "random", "order"]
Over: TypeAlias = "Callable[[Result | AICortexError, list[dict[str, Any]]], None]"  # Any: JSON
Servers: TypeAlias = "Sequence[str | Server] | str | Server | None"
ROLES = ("system", "user", "assistant", "tool")
RESUME = ("continue", "never")
THINK = (None, True, False, "low", "medium", "high")
LONGEST_SECONDS = 1_000_000  # eleven days; the system's own timers overflow somewhere above
OPENING_CHARACTERS = 2000  # a prompt that begins alike for so long is worth a server that has evaluated it before
TOOLS_AND_FORMAT = (
    "tools that are run and a format cannot be asked for at once: the format would bind the calls too. Let the model "
    "use its tools first, and ask for the format in a second call: in a Session, or with result.messages"
)


class Call(msgspec.Struct, frozen=True):
    """What a call of `chat` asks, checked; the question's model is "" where the call names none.

    `resume` says whether an answer that broke off is continued, None for as configured. `shape` is what the answer is
    validated against. `over` is told once how the answer ended, and what the conversation has gained by it, before the
    reader gets the last event; it may block. `note` is what the stream's first event says besides.
    """

    question: Question
    deadlines: Deadlines
    servers: Servers = None
    routing: str | None = None
    session: str | None = None
    resume: bool | None = None
    hedge_after: float | None = None
    toolbox: Toolbox | None = None  # if any call can be run
    max_steps: int = 0
    shape: Shape | None = None
    over: Over | None = None
    note: dict[str, Any] = {}  # Any: JSON


def checked(
    prompt: str | None,
    *,
    model: str | None = None,
    messages: Sequence[MessageDict] | None = None,
    system: str | None = None,
    images: Sequence[Image] | None = None,
    think: bool | Literal["low", "medium", "high"] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    max_tokens: int | None = None,
    stop: str | Sequence[str] | None = None,
    seed: int | None = None,
    options: Options | None = None,
    tools: Sequence[AnyTool] | None = None,
    on_tool_call: OnToolCall | None = None,
    max_steps: int = 10,
    tool_timeout: float | None = 60.0,
    format: Format | None = None,
    keep_alive: str | float | None = None,
    servers: Servers = None,
    routing: Routing | None = None,
    session: str | None = None,
    resume: Literal["continue", "never"] | None = None,
    hedge_after: float | None = None,
    timeout: float | None = None,
    first_token_timeout: float = 120.0,
    connect_timeout: float = 5.0,
    stall_timeout: float = 30.0,
    min_tokens_per_second: float | None = None,
) -> Call:
    """Return the arguments of `chat` as a call; raises ValueError and TypeError."""
    asked = collect_messages(prompt, messages, system, images)
    chosen = collect_options(options, temperature, top_p, max_tokens, stop, seed)
    limits = Deadlines(connect_timeout, first_token_timeout, stall_timeout, timeout, min_tokens_per_second)
    check_deadlines(limits, hedge_after)
    check_model(model, think, keep_alive)
    found = collect_tools(tools)
    toolbox = collect_toolbox(found, on_tool_call, max_steps, tool_timeout)
    shape = collect_shape(format)
    if shape is not None and toolbox is not None:
        raise ValueError(TOOLS_AND_FORMAT)
    if routing is not None:
        check_routing(routing)
    check_session(session)
    schemas = [tool.schema for tool in found.values()] or None
    question = Question(model or "", asked, think, chosen, keep_alive, schemas, None if shape is None else shape.schema)
    resumes = check_resume(resume) if resume is not None else None
    return Call(question, limits, servers, routing, session, resumes, hedge_after, toolbox, max_steps, shape)


def check_names(function: str, arguments: Mapping[str, object]) -> None:
    """Raise TypeError, with the name that may be meant, for what is no argument of `chat`."""
    known = checked.__kwdefaults__ or {}
    if "stream" in arguments:
        raise TypeError(f"{function}() takes no 'stream': that belongs to a call of chat or achat")
    for name in arguments:
        if name not in known:
            from difflib import get_close_matches

            meant = "".join(f"; did you mean {match!r}?" for match in get_close_matches(name, known, n=1))
            raise TypeError(f"{function}() has no argument {name!r}{meant}")


def collect_messages(
    prompt: str | None,
    messages: Sequence[MessageDict] | None,
    system: str | None,
    images: Sequence[Image] | None,
) -> list[dict[str, Any]]:  # Any: JSON
    """Return the conversation to send, oldest message first."""
    if prompt is None and not messages:
        raise ValueError("nothing is asked: give a prompt, or messages")
    asked = [_message(index, message) for index, message in enumerate(messages or ())]
    if system is not None:
        asked.insert(0, {"role": "system", "content": _text("system", system)})
    if prompt is not None:
        asked.append({"role": "user", "content": _text("prompt", prompt)})
    if images:
        from aicortex.images import all_encoded

        target = next((message for message in reversed(asked) if message["role"] == "user"), None)
        if target is None:
            raise ValueError("images belong to a user's message: give a prompt")
        target["images"] = [*target.get("images", ()), *all_encoded(images)]
    return asked


def opening_of(messages: Sequence[MessageDict], session: str | None) -> tuple[str, bool]:
    """Return what stands for a conversation, and whether a server that knows it is better than another.

    That is the name of its session, or else how it begins: up to the user's first message, 2000 characters at most. A
    short question that begins nothing gains little from a server's cache.
    """
    if session is not None:
        return f"session {session}", True
    parts: list[str] = []
    for message in messages:
        parts.append(f"{message['role']} {message.get('content') or ''}"[:OPENING_CHARACTERS])
        if message["role"] == "user":
            break
    opening = "\n".join(parts)[:OPENING_CHARACTERS]
    goes_on = any(message["role"] == "assistant" for message in messages)
    return opening, goes_on or len(opening) >= OPENING_CHARACTERS


def _text(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{name} is empty")
    if not _is_encodable(value):
        raise ValueError(f"{name} has lone surrogates, which no encoding can express: decode its source as UTF-8")
    return value


def _is_encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _message(index: int, message: MessageDict) -> dict[str, Any]:  # Any: JSON
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        roles = ", ".join(map(repr, ROLES))
        raise ValueError(f"messages[{index}] must be a dictionary whose 'role' is one of {roles}")
    content = message.get("content", "")
    if not isinstance(content, str) or not _is_encodable(content):
        raise ValueError(f"messages[{index}]['content'] must be text")
    try:
        return cast(dict[str, Any], msgspec.json.decode(msgspec.json.encode(dict(message))))
    except (TypeError, ValueError) as error:
        raise ValueError(f"messages[{index}] is no JSON: {error}") from error


def collect_options(
    options: Options | None,
    temperature: float | None,
    top_p: float | None,
    max_tokens: int | None,
    stop: str | Sequence[str] | None,
    seed: int | None,
) -> dict[str, Any]:  # Any: JSON
    """Return Ollama's `options`; the named arguments go before the same ones in `options`."""
    if options is not None and not isinstance(options, Mapping):
        raise ValueError("options must be a dictionary of Ollama's options, such as {'num_ctx': 8192}")
    stops = [stop] if isinstance(stop, str) else stop
    if stops is not None and (
        not isinstance(stops, Sequence) or not all(isinstance(s, str) and s for s in stops) or not stops
    ):
        raise ValueError("stop must be a text, or a list of texts, none of them empty")
    named = {
        "temperature": _number("temperature", temperature, at_least=0),
        "top_p": _number("top_p", top_p, at_least=0, at_most=1),
        "num_predict": _whole("max_tokens", max_tokens, at_least=1),
        "stop": None if stops is None else list(stops),
        "seed": _whole("seed", seed),
    }
    chosen = {**(options or {}), **{name: value for name, value in named.items() if value is not None}}
    try:
        msgspec.json.encode(chosen)
    except (TypeError, ValueError) as error:
        raise ValueError(f"options are no JSON: {error}") from error
    return chosen


def check_model(model: str | None, think: bool | str | None, keep_alive: str | float | None) -> None:
    """Refuse what can be neither a model's name, nor a way to think, nor a time to keep it."""
    if model is not None and (not isinstance(model, str) or not model.strip()):
        raise ValueError("model must be a model's name, such as 'llama3.2:3b'")
    if not any(think is known or (isinstance(think, str) and think == known) for known in THINK):
        raise ValueError("think must be True, False, 'low', 'medium' or 'high'")
    if keep_alive is not None and not isinstance(keep_alive, str):
        _number("keep_alive", keep_alive)


def collect_tools(tools: Sequence[AnyTool] | None) -> dict[str, Tool]:
    """Return the tools of a call by their names."""
    if tools is not None and (isinstance(tools, Mapping) or not isinstance(tools, Sequence)):
        raise ValueError("tools is a list: of functions, Tool objects or JSON schemas of functions")
    if not tools:
        return {}
    from aicortex.functions import collect

    return collect(tools)


def collect_toolbox(
    tools: dict[str, Tool], on_tool_call: OnToolCall | None, max_steps: int, tool_timeout: float | None
) -> Toolbox | None:
    """Return what runs the calls of the model, if any can be run."""
    if on_tool_call is not None and not callable(on_tool_call):
        raise ValueError("on_tool_call must be a function that takes a ToolCall")
    _whole("max_steps", max_steps, at_least=1)
    _number("tool_timeout", tool_timeout, at_least=0.001, at_most=LONGEST_SECONDS)
    if not tools:
        return None
    from aicortex.calling import Toolbox

    toolbox = Toolbox(tools, on_tool_call, tool_timeout)
    return toolbox if toolbox.runs else None


def collect_shape(format: Format | None) -> Shape | None:
    """Return what the answer is validated against."""
    if format is None:
        return None
    from aicortex.shapes import Shape

    return Shape.of(format)


def check_routing(value: str) -> str:
    """Return a strategy's name; raises ValueError."""
    from aicortex._core.routing import STRATEGIES

    if value not in STRATEGIES:
        raise ValueError(f"routing must be one of {', '.join(STRATEGIES)}, not {value!r}")
    return value


def check_session(value: str | None) -> None:
    """Raise ValueError for what names no session."""
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise ValueError("session must be text that is not empty: whatever names the conversation")


def check_resume(resume: str) -> bool:
    """Return whether a broken answer is continued; refuse what is neither "continue" nor "never"."""
    if resume not in RESUME:
        raise ValueError(f"resume must be 'continue' or 'never', not {resume!r}")
    return resume == "continue"


def check_deadlines(limits: Deadlines, hedge_after: float | None = None) -> None:
    """Refuse deadlines that are not seconds, and a pace that is no number of tokens."""
    if hedge_after is not None:
        _number("hedge_after", hedge_after, at_least=0, at_most=LONGEST_SECONDS)
    if limits.pace is not None:
        _number("min_tokens_per_second", limits.pace, at_least=0)
    _number("connect_timeout", limits.connect, above=0, at_most=LONGEST_SECONDS)
    _number("first_token_timeout", limits.first_token, above=0, at_most=LONGEST_SECONDS)
    _number("stall_timeout", limits.stall, above=0, at_most=LONGEST_SECONDS)
    if limits.total is not None:
        _number("timeout", limits.total, above=0, at_most=LONGEST_SECONDS)


def _number(
    name: str,
    value: float | None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
) -> float | None:
    if value is None and above is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise ValueError(f"{name} must be a number, not {value!r:.40}")
    if at_least is not None and value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, not {value}")
    if at_most is not None and value > at_most:
        raise ValueError(f"{name} must be at most {at_most}, not {value}")
    if above is not None and value <= above:
        raise ValueError(f"{name} must be more than {above} seconds, not {value}")
    return value


def _is_finite(value: float) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _whole(name: str, value: int | None, *, at_least: int | None = None) -> int | None:
    if value is not None and not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    _number(name, value, at_least=at_least)
    return value
