"""`chat`: check the arguments, choose the servers, send the request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

from aicortex._core.failover import Deadlines
from aicortex._core.ollama import chat_body
from aicortex._sync.client import Exchange
from aicortex.fleet import find_servers, plan
from aicortex.request import check_deadlines, check_model, collect_messages, collect_options
from aicortex.stream import Stream

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    from aicortex._core.server import Server
    from aicortex.request import Image, MessageDict, Options

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
        keep_alive: str | float | None
        servers: Sequence[str | Server] | str | Server | None
        timeout: float | None
        first_token_timeout: float
        connect_timeout: float
        stall_timeout: float


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
    keep_alive: str | float | None = None,
    servers: Sequence[str | Server] | str | Server | None = None,
    timeout: float | None = None,
    first_token_timeout: float = 120.0,
    connect_timeout: float = 5.0,
    stall_timeout: float = 30.0,
) -> Stream | str:
    """Ask a model and return its answer: as text, or with `stream=True` as a `Stream` of events.

    What is asked is `messages` (dictionaries with `role` and `content`, oldest first) followed by `prompt` as the
    user's message; `system` goes in front, `images` (paths, bytes or data URLs) belong to the last user message.
    `think` asks a thinking model to think, or not to. `temperature`, `top_p`, `max_tokens`, `stop` and `seed` are
    what Ollama calls temperature, top_p, num_predict, stop and seed; `options` takes any other of its options.
    `keep_alive` is how long the server keeps the model in memory ("5m", seconds, 0, -1).

    `servers` are addresses or `Server` objects, best first; without them AICORTEX_SERVERS, the local Ollama and the
    embedded engine are looked at, in this order. Without `model` AICORTEX_MODEL is used, or else a model they have.
    A server that fails before anything was delivered is followed by the next one.

    Deadlines are seconds: `connect_timeout` for a connection, `first_token_timeout` for the first token (a short one
    aborts the loading of a model), `stall_timeout` for silence between chunks, `timeout` for the whole answer. Asking
    the servers which models they have (2 s at most) and starting the embedded engine do not count.

    Raises ValueError or TypeError for wrong arguments, and ModelNotFoundError (a ValueError, with close matches) when
    no server has the model. What servers do wrong shows in the stream: see `Stream`. Without `stream=True` it is
    raised here: AllServersFailedError, StreamInterruptedError, RequestRejectedError.
    """
    asked = collect_messages(prompt, messages, system, images)
    chosen = collect_options(options, temperature, top_p, max_tokens, stop, seed)
    limits = Deadlines(connect_timeout, first_token_timeout, stall_timeout, timeout)
    check_deadlines(limits)
    check_model(model, think, keep_alive)
    route = plan(model, find_servers(servers))
    body = chat_body(route.model, asked, think=think, options=chosen, keep_alive=keep_alive)
    exchange = Exchange(route.servers, "/api/chat", body, model=route.model, deadlines=limits)
    if route.failures:
        exchange.refuse(route.failures)
    exchange.start()
    answer = Stream(exchange)
    if stream:
        return answer
    with answer:
        return answer.text()
