"""`chat` and `achat`: check the arguments, choose the servers, send the request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from msgspec.structs import replace

from aicortex._core.result import Result
from aicortex._sync.client import Exchange
from aicortex._sync.pool import POOL
from aicortex.errands import Steps, run
from aicortex.errors import OutputValidationError
from aicortex.fleet import Fleet, finding
from aicortex.planning import Plan, planning
from aicortex.request import Call, check_names, checked, opening_of
from aicortex.settings import resumes_by_default
from aicortex.stream import Stream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from aicortex._aio.pool import Pools
    from aicortex._sync.pool import Pool
    from aicortex.astream import AsyncStream
    from aicortex.calling import OnToolCall
    from aicortex.images import Image
    from aicortex.request import (
        AnyTool,
        Arguments,
        ChatArguments,
        Format,
        MessageDict,
        Options,
        Over,
        Routing,
        Servers,
    )

T = TypeVar("T")


@overload
def chat(prompt: str | None = None, *, stream: Literal[True], **arguments: Unpack[ChatArguments]) -> Stream: ...
@overload
def chat(
    prompt: str | None = None, *, format: type[T], stream: Literal[False] = False, **arguments: Unpack[Arguments]
) -> T: ...
@overload
def chat(
    prompt: str | None = None,
    *,
    format: Literal["json"] | Mapping[str, Any],  # Any: JSON
    stream: Literal[False] = False,
    **arguments: Unpack[Arguments],
) -> Any: ...  # Any: JSON
@overload
def chat(
    prompt: str | None = None, *, format: None = None, stream: Literal[False] = False, **arguments: Unpack[Arguments]
) -> str: ...
@overload
def chat(prompt: str | None = None, *, stream: bool, **arguments: Unpack[ChatArguments]) -> Any: ...  # Any: as above
def chat(
    prompt: str | None = None,
    *,
    model: str | None = None,
    stream: bool = False,
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
) -> Stream | Any:  # Any: text, or what `format` wants
    """Ask a model and return its answer: as text, or with `stream=True` as a `Stream` of events.

    What is asked is `messages` (dictionaries with `role` and `content`, oldest first) followed by `prompt` as the
    user's message; `system` goes in front, `images` (paths, bytes or data URLs) belong to the last user message.
    `think` asks a thinking model to think, or not to. `temperature`, `top_p`, `max_tokens`, `stop` and `seed` are
    what Ollama calls temperature, top_p, num_predict, stop and seed; `options` takes any other of its options.
    `keep_alive` is how long the server keeps the model in memory ("5m", seconds, 0, -1).

    `tools` are functions that the model may call, `Tool` objects, or JSON schemas of functions, whose calls are only
    events. A call runs once its `tool_call` event was read, for `tool_timeout` seconds at most, and never twice;
    `on_tool_call` is asked before, and may deny it, change its arguments or answer it (see `ToolCall`). The model goes
    on with what they returned, for `max_steps` turns at most. `format` binds the answer: "json", a JSON schema, or a
    type (dataclass, msgspec.Struct, TypedDict, pydantic model, list[…] …), of which an object is returned. An answer
    that is none is asked for once more, with what was wrong; with `stream=True` see `Stream.object`.

    `servers` are addresses, names from the registry or `Server` objects, best first; without them AICORTEX_SERVERS, the
    registry with the configuration files, the local Ollama and the embedded engine are looked at, in this order.
    `routing` says which one is asked first: "balanced" (the default for servers that the call does not name),
    "fastest", "nearest", "priority", "round_robin", "random" or "order" (the default for `servers`). What belongs to
    one conversation goes to the same server where that is well, because it has the beginning in its cache: it is told
    by its first messages, or by the name of its `session`. Without `model` AICORTEX_MODEL is used, or else a model
    they have.
    A server that fails is followed by the next one, which goes on with the answer where it stopped; with
    `resume="never"` (or AICORTEX_RESUME) an answer that broke off after text was delivered ends in
    StreamInterruptedError. With `hedge_after` seconds a second idle server is asked as well when the first token is
    late, and the first to speak gives the answer.

    Deadlines are seconds: `connect_timeout` for a connection, `first_token_timeout` for the first token (a server that
    is loading the model is waited for longer, up to 300 s), `stall_timeout` for silence between chunks, `timeout` for
    the whole answer. A server that stays below `min_tokens_per_second` is left if another one can go on. Asking the
    servers which models they have (2 s at most) and starting the embedded engine do not count.

    Raises OutputValidationError (with the text) when also the second answer is not what `format` asks for.
    Raises ValueError or TypeError for wrong arguments, ModelNotFoundError (a ValueError, with close matches) when no
    server has the model, CredentialError (a ValueError) when no registered server's key is to be had, and RegistryError
    when the registry is needed and cannot be read. What servers do wrong shows in the stream: see `Stream`. Without
    `stream=True` it is raised here: AllServersFailedError, StreamInterruptedError, RequestRejectedError.
    """
    call = checked(
        prompt,
        model=model,
        messages=messages,
        system=system,
        images=images,
        think=think,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        stop=stop,
        seed=seed,
        options=options,
        tools=tools,
        on_tool_call=on_tool_call,
        max_steps=max_steps,
        tool_timeout=tool_timeout,
        format=format,
        keep_alive=keep_alive,
        servers=servers,
        routing=routing,
        session=session,
        resume=resume,
        hedge_after=hedge_after,
        timeout=timeout,
        first_token_timeout=first_token_timeout,
        connect_timeout=connect_timeout,
        stall_timeout=stall_timeout,
        min_tokens_per_second=min_tokens_per_second,
    )
    return answer(call, stream=stream)


def answer(call: Call, *, stream: bool, pool: Pool = POOL) -> Stream | Any:  # Any: text, or what `format` wants
    """Send the request of a call, and return its stream, its text, or the object that its format wants."""
    if stream:
        return _opened(call, pool)
    if call.shape is None:
        with _opened(call, pool) as opened:
            return opened.text()
    first = replace(call, over=_unless_whole(call.over))
    with _opened(first, pool) as opened:
        result = opened.result
    found, again = validated(first, result)
    if again is not None:
        with _opened(again, pool) as opened:
            result = opened.result
        found = _read_at_last(call, result)
    if call.over is not None:
        call.over(result, list(result.messages))
    return found


def _unless_whole(over: Over | None) -> Over | None:
    """Return what is told of an answer that fails; one that is whole is first to be looked at."""
    if over is None:
        return None
    tell = over
    return lambda outcome, gained: None if isinstance(outcome, Result) else tell(outcome, gained)


def _read_at_last(call: Call, result: Result) -> Any:  # Any: what `format` wants
    """Return the object that the second answer stands for; who keeps the conversation is told if it is none."""
    assert call.shape is not None  # that is when this is called
    try:
        return call.shape.read(result.text)
    except OutputValidationError as error:
        if call.over is not None:
            call.over(error, list(result.messages))
        raise


def _opened(call: Call, pool: Pool) -> Stream:
    call, route = run(deciding(call))
    exchange = Exchange(call, route, pool)
    exchange.start()
    return Stream(exchange)


def validated(call: Call, result: Result) -> tuple[Any, Call | None]:  # Any: what `format` wants
    """Return the object that an answer stands for, or the call that asks for it once more.

    Raises OutputValidationError for an answer that calls tools: whoever asked is to go on with what they return.
    """
    assert call.shape is not None  # that is when this is called
    try:
        return call.shape.read(result.text), None
    except OutputValidationError as error:
        if "tool_calls" in result.messages[-1]:
            raise
        complaint = {"role": "user", "content": call.shape.complaint(error)}
        return None, replace(call, question=call.question.behind([*result.messages, complaint]))


def deciding(call: Call) -> Steps[tuple[Call, Plan]]:
    """Decide which servers are asked, in what order, and what is left open by the call."""
    fleet = yield from finding(call.servers)
    resume = resumes_by_default(fleet.config) if call.resume is None else call.resume
    question = call.question
    opening = opening_of(question.messages, call.session)
    route = yield from planning(question.model, fleet, routing=call.routing, opening=opening)
    if question.has_images and route.servers:
        yield from _checking_sight(route, fleet)
    return replace(call, resume=resume), route


def _checking_sight(route: Plan, fleet: Fleet) -> Steps[None]:
    """Raise ValueError for a model that is known not to see images."""
    from aicortex.abilities import VISION, checking, having
    from aicortex.images import check_sight

    name = route.names[0] if route.names else route.model
    abilities = yield from checking(name, route.servers[0])
    check_sight(name, abilities, having(VISION, fleet.servers))


@overload
async def achat(
    prompt: str | None = None, *, stream: Literal[True], **arguments: Unpack[ChatArguments]
) -> AsyncStream: ...
@overload
async def achat(
    prompt: str | None = None, *, format: type[T], stream: Literal[False] = False, **arguments: Unpack[Arguments]
) -> T: ...
@overload
async def achat(
    prompt: str | None = None,
    *,
    format: Literal["json"] | Mapping[str, Any],  # Any: JSON
    stream: Literal[False] = False,
    **arguments: Unpack[Arguments],
) -> Any: ...  # Any: JSON
@overload
async def achat(
    prompt: str | None = None, *, format: None = None, stream: Literal[False] = False, **arguments: Unpack[Arguments]
) -> str: ...
@overload
async def achat(prompt: str | None = None, *, stream: bool, **arguments: Unpack[ChatArguments]) -> Any: ...  # Any: JSON
async def achat(
    prompt: str | None = None, *, stream: bool = False, **arguments: Unpack[ChatArguments]
) -> AsyncStream | Any:  # Any: text, or what `format` wants
    """Ask a model from asyncio: as `chat`, with the same arguments, errors and promises.

    `await achat(prompt)` gives the text, `await achat(prompt, stream=True)` an `AsyncStream`, once the request is sent.
    Nothing of it blocks the event loop, and no stream has a thread.
    """
    check_names("achat", arguments)
    return await aanswer(await achecked(prompt, arguments), stream=stream)


async def achecked(prompt: str | None, arguments: Mapping[str, Any]) -> Call:  # Any: the arguments of `chat`
    """Check the arguments of a call; pictures are read and encoded aside of the event loop."""
    if not arguments.get("images"):
        return checked(prompt, **arguments)
    from aicortex._aio import aside

    return await aside.do(object(), lambda: checked(prompt, **arguments))


async def aanswer(
    call: Call, *, stream: bool, pools: Pools | None = None
) -> AsyncStream | Any:  # Any: text, or what `format` wants
    """Send the request of a call, and return its stream, its text, or the object that its format wants."""
    if stream:
        return await _aopened(call, pools)
    if call.shape is None:
        async with await _aopened(call, pools) as opened:
            return await opened.text()
    from aicortex._aio import aside

    first = replace(call, over=_unless_whole(call.over))
    async with await _aopened(first, pools) as opened:
        result = await opened.result()
    found, again = validated(first, result)
    if again is not None:
        async with await _aopened(again, pools) as opened:
            result = await opened.result()
        found = await aside.do(object(), lambda: _read_at_last(call, result))
    if (over := call.over) is not None:
        await aside.do(object(), lambda: over(result, list(result.messages)))
    return found


async def _aopened(call: Call, pools: Pools | None) -> AsyncStream:
    from aicortex._aio import aside  # asyncio takes 30 ms to import
    from aicortex._aio.client import Exchange
    from aicortex._aio.pool import POOLS
    from aicortex.astream import AsyncStream

    call, route = await aside.run(deciding(call))
    exchange = Exchange(call, route, await (pools or POOLS).of_loop())
    await exchange.start()
    return AsyncStream(exchange)
