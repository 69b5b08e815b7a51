"""`chat`: check the arguments, choose the servers, send the request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

from aicortex._core.failover import Deadlines
from aicortex._core.question import Question
from aicortex._sync.client import Exchange
from aicortex.fleet import find_fleet
from aicortex.planning import plan
from aicortex.request import (
    check_deadlines,
    check_model,
    check_resume,
    check_routing,
    check_session,
    check_shape,
    collect_messages,
    collect_options,
    opening_of,
)
from aicortex.settings import resumes_by_default
from aicortex.stream import Stream

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    from aicortex._core.server import Server
    from aicortex.request import Format, Image, MessageDict, Options, Routing, Tool

    class ChatArguments(TypedDict, total=False):
        """The keyword arguments of `chat`, for type checkers."""

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
        tools: Sequence[Tool] | None
        format: Format | None
        keep_alive: str | float | None
        servers: Sequence[str | Server] | str | Server | None
        routing: Routing | None
        session: str | None
        resume: Literal["continue", "never"] | None
        hedge_after: float | None
        timeout: float | None
        first_token_timeout: float
        connect_timeout: float
        stall_timeout: float
        min_tokens_per_second: float | None


@overload
def chat(prompt: str | None = None, *, stream: Literal[True], **arguments: Unpack[ChatArguments]) -> Stream: ...
@overload
def chat(prompt: str | None = None, *, stream: Literal[False] = False, **arguments: Unpack[ChatArguments]) -> str: ...
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
    tools: Sequence[Tool] | None = None,
    format: Format | None = None,
    keep_alive: str | float | None = None,
    servers: Sequence[str | Server] | str | Server | None = None,
    routing: Routing | None = None,
    session: str | None = None,
    resume: Literal["continue", "never"] | None = None,
    hedge_after: float | None = None,
    timeout: float | None = None,
    first_token_timeout: float = 120.0,
    connect_timeout: float = 5.0,
    stall_timeout: float = 30.0,
    min_tokens_per_second: float | None = None,
) -> Stream | str:
    """Ask a model and return its answer: as text, or with `stream=True` as a `Stream` of events.

    What is asked is `messages` (dictionaries with `role` and `content`, oldest first) followed by `prompt` as the
    user's message; `system` goes in front, `images` (paths, bytes or data URLs) belong to the last user message.
    `think` asks a thinking model to think, or not to. `temperature`, `top_p`, `max_tokens`, `stop` and `seed` are
    what Ollama calls temperature, top_p, num_predict, stop and seed; `options` takes any other of its options.
    `tools` are JSON schemas of functions, whose calls are events and are not run; `format` is "json" or a JSON schema
    that binds the answer. `keep_alive` is how long the server keeps the model in memory ("5m", seconds, 0, -1).

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

    Raises ValueError or TypeError for wrong arguments, ModelNotFoundError (a ValueError, with close matches) when no
    server has the model, CredentialError (a ValueError) when no registered server's key is to be had, and RegistryError
    when the registry is needed and cannot be read. What servers do wrong shows in the stream: see `Stream`. Without
    `stream=True` it is raised here: AllServersFailedError, StreamInterruptedError, RequestRejectedError.
    """
    asked = collect_messages(prompt, messages, system, images)
    chosen = collect_options(options, temperature, top_p, max_tokens, stop, seed)
    limits = Deadlines(connect_timeout, first_token_timeout, stall_timeout, timeout, min_tokens_per_second)
    check_deadlines(limits, hedge_after)
    check_model(model, think, keep_alive)
    check_shape(tools, format)
    if routing is not None:
        check_routing(routing)
    check_session(session)
    fleet = find_fleet(servers)
    resumes = check_resume(resume) if resume is not None else resumes_by_default(fleet.config)
    route = plan(model, fleet, routing=routing, opening=opening_of(asked, session))
    question = Question(route.model, asked, think, chosen, keep_alive, [*tools] if tools else None, format)
    exchange = Exchange(
        route.servers,
        question,
        deadlines=limits,
        digests=route.digests,
        names=route.names,
        reasons=route.reasons,
        resume=resumes,
        hedge_after=hedge_after,
        watch=route.watch,
    )
    if route.failures:
        exchange.refuse(route.failures)
    exchange.start()
    answer = Stream(exchange)
    if stream:
        return answer
    with answer:
        return answer.text()
