"""Clients: servers, defaults and connections of their own, for programs that ask in more than one way."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, overload

from aicortex._sync.pool import Pool
from aicortex.ask import aanswer, achecked, answer
from aicortex.catalogue import alist_model_servers, amodels, list_model_servers, models
from aicortex.request import check_names, checked

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from aicortex.astream import AsyncStream
    from aicortex.census import FleetList, Row
    from aicortex.request import Arguments, ChatArguments
    from aicortex.stream import Stream

T = TypeVar("T")


class _Defaults:
    """What both clients are told: arguments of `chat` that count for every call which does not say otherwise."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:  # Any: the arguments of `chat`, checked here
        name = type(self).__name__
        check_names(name, arguments)
        if "messages" in arguments or "images" in arguments:
            raise TypeError(f"{name}() takes no messages or images: they belong to a call")
        checked("a prompt", **arguments)
        self._defaults = dict(arguments)
        self._is_closed = False

    def __repr__(self) -> str:
        told = "".join(f", {name}={self._defaults[name]!r}" for name in ("model", "routing") if name in self._defaults)
        state = "closed" if self._is_closed else "open"
        return f"<{type(self).__name__} {state}{told}>"  # addresses may have passwords in them

    def _told(self, arguments: Mapping[str, Any]) -> dict[str, Any]:  # Any: as above
        """Return the arguments of a call together with the defaults."""
        self._check_open()
        check_names("chat", arguments)
        return {**self._defaults, **arguments}

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(f"this {type(self).__name__} is closed: make another one")


class Client(_Defaults):
    """Servers, defaults and connections for calls that belong together.

        with Client(servers=["desk:11434", "rack:11434"], model="llama3.2:3b", temperature=0) as client:
            print(client.chat("Why is the sky blue?"))

    It takes every argument of `chat` that may count for all calls; what a call says goes before it. Threads may share
    one. Closing it closes the connections that it keeps for the next request; streams that are under way go on. What
    is known of servers, and how they do, is shared by all clients of the process. Raises as `chat` for wrong arguments.
    """

    def __init__(self, **defaults: Unpack[ChatArguments]) -> None:
        super().__init__(defaults)
        self._pool = Pool()

    @overload
    def chat(
        self, prompt: str | None = None, *, stream: Literal[True], **arguments: Unpack[ChatArguments]
    ) -> Stream: ...
    @overload
    def chat(
        self,
        prompt: str | None = None,
        *,
        format: type[T],
        stream: Literal[False] = False,
        **arguments: Unpack[Arguments],
    ) -> T: ...
    @overload
    def chat(
        self,
        prompt: str | None = None,
        *,
        format: Literal["json"] | Mapping[str, Any],  # Any: JSON
        stream: Literal[False] = False,
        **arguments: Unpack[Arguments],
    ) -> Any: ...  # Any: JSON
    @overload
    def chat(
        self,
        prompt: str | None = None,
        *,
        format: None = None,
        stream: Literal[False] = False,
        **arguments: Unpack[Arguments],
    ) -> str: ...
    @overload
    def chat(
        self, prompt: str | None = None, *, stream: bool, **arguments: Unpack[ChatArguments]
    ) -> Any: ...  # Any: as above
    def chat(
        self, prompt: str | None = None, *, stream: bool = False, **arguments: Unpack[ChatArguments]
    ) -> Stream | Any:  # Any: text, or what `format` wants
        """Ask a model, as the function `chat` does."""
        return answer(checked(prompt, **self._told(arguments)), stream=stream, pool=self._pool)

    def models(self, family: str | None = None) -> FleetList[str]:
        """Return the names of the models that the servers have now, as the function `models` does."""
        self._check_open()
        return models(family, servers=self._defaults.get("servers"))

    def list_model_servers(self, model: str) -> FleetList[Row]:
        """Return the servers that have a model, as the function `list_model_servers` does."""
        self._check_open()
        return list_model_servers(model, servers=self._defaults.get("servers"))

    def close(self) -> None:
        """Close the connections that are kept; the client is of no use afterwards."""
        self._is_closed = True
        self._pool.close()

    def __enter__(self) -> Client:
        return self

    if not TYPE_CHECKING:  # a type checker would take it for what it refuses

        def __aenter__(self) -> NoReturn:
            raise TypeError("this is a Client: write 'with', without 'async', or use an AsyncClient")

        def __aexit__(self, *_: object) -> None:
            """Make `async with` get as far as `__aenter__`."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_Defaults):
    """A `Client` for asyncio: `await client.chat(…)`, `async with`, `await client.aclose()`.

    It may be used on one event loop after another; each has connections of its own. At the end of a loop nothing is
    left open, whether the client was closed or not.
    """

    def __init__(self, **defaults: Unpack[ChatArguments]) -> None:
        from aicortex._aio.pool import Pools  # asyncio takes 30 ms to import

        super().__init__(defaults)
        self._pools = Pools()

    @overload
    async def chat(
        self, prompt: str | None = None, *, stream: Literal[True], **arguments: Unpack[ChatArguments]
    ) -> AsyncStream: ...
    @overload
    async def chat(
        self,
        prompt: str | None = None,
        *,
        format: type[T],
        stream: Literal[False] = False,
        **arguments: Unpack[Arguments],
    ) -> T: ...
    @overload
    async def chat(
        self,
        prompt: str | None = None,
        *,
        format: Literal["json"] | Mapping[str, Any],  # Any: JSON
        stream: Literal[False] = False,
        **arguments: Unpack[Arguments],
    ) -> Any: ...  # Any: JSON
    @overload
    async def chat(
        self,
        prompt: str | None = None,
        *,
        format: None = None,
        stream: Literal[False] = False,
        **arguments: Unpack[Arguments],
    ) -> str: ...
    @overload
    async def chat(
        self, prompt: str | None = None, *, stream: bool, **arguments: Unpack[ChatArguments]
    ) -> Any: ...  # Any: as above
    async def chat(
        self, prompt: str | None = None, *, stream: bool = False, **arguments: Unpack[ChatArguments]
    ) -> AsyncStream | Any:  # Any: text, or what `format` wants
        """Ask a model, as the function `achat` does."""
        call = await achecked(prompt, self._told(arguments))
        return await aanswer(call, stream=stream, pools=self._pools)

    async def models(self, family: str | None = None) -> FleetList[str]:
        """Return the names of the models that the servers have now, as the function `models` does."""
        self._check_open()
        return await amodels(family, servers=self._defaults.get("servers"))

    async def list_model_servers(self, model: str) -> FleetList[Row]:
        """Return the servers that have a model, as the function `list_model_servers` does."""
        self._check_open()
        return await alist_model_servers(model, servers=self._defaults.get("servers"))

    async def aclose(self) -> None:
        """Close the connections that are kept; the client is of no use afterwards."""
        self._is_closed = True
        self._pools.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    if not TYPE_CHECKING:  # as above

        def __enter__(self) -> NoReturn:
            raise TypeError("this is an AsyncClient: write 'async with', not 'with'")

        def __exit__(self, *_: object) -> None:
            """Make `with` get as far as `__enter__`."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
