"""Many prompts under way at once, on one event loop: what is asked, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sized
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import msgspec

from aicortex._core.result import Result
from aicortex._core.server import Server
from aicortex.ask import aanswer, validated
from aicortex.dispatch import Dispatcher, Rooms, Seat, Wish
from aicortex.errors import AICortexError
from aicortex.events import StreamEvent
from aicortex.request import Call, check_names, checked

if TYPE_CHECKING:
    from aicortex.astream import AsyncStream

Prompt: TypeAlias = "str | Mapping[str, Any]"  # Any: arguments of `chat`
Prompts: TypeAlias = "Iterable[Prompt] | AsyncIterable[Prompt]"
AHEAD = 4  # how many times as many prompts are taken as the servers can answer at once
PARTS = ("prompt", "id", *(checked.__kwdefaults__ or ()))  # what a prompt may have: the arguments of `chat`
NOT_FOR_ALL = {"stream": "answers come whole", "messages": "each prompt has its own"}


class Outcome(msgspec.Struct, frozen=True):
    """What became of one prompt.

    `index` is its place among the prompts, from 0, `id` what it said of itself. A whole answer has its `text`, its
    `result`, the calls of `tools` it made (dictionaries with `name` and `arguments`), and the `object` that its
    `format` asked for. Any other has an `error` and none of these: AllServersFailedError, StreamInterruptedError (with
    `.partial`), OutputValidationError (with `.text`), RequestRejectedError, ModelNotFoundError, or a ValueError or
    TypeError about the prompt itself.
    """

    index: int
    id: Any = None  # Any: the caller's own
    text: str | None = None
    result: Result | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()  # Any: JSON of the model's making
    error: Exception | None = None
    object: Any = None  # Any: whatever `format` asked for


class Progress(msgspec.Struct, frozen=True):
    """How far a job is: prompts `taken`, `done` (`failed` of them) and, if that is known, in all.

    `tokens` counts those of the whole answers, `servers` the answers under way at each server, by its address.
    """

    done: int
    failed: int
    taken: int
    total: int | None
    tokens: int
    servers: dict[str, int]


def count_prompts(prompts: object) -> int | None:
    """Return how many prompts there are, if that is known; raises TypeError for what are none."""
    if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable | AsyncIterable):
        raise TypeError("prompts is an iterable of prompts: write [prompt], or a list, or a generator")
    return len(prompts) if isinstance(prompts, Sized) else None


def check_parts(names: Iterable[object]) -> None:
    """Raise ValueError, with the name that may be meant, for what a prompt does not have."""
    for name in names:
        if name == "stream":
            raise ValueError(f"a prompt has no argument 'stream': {NOT_FOR_ALL['stream']}")
        if name not in PARTS:
            from difflib import get_close_matches

            meant = "".join(f"; did you mean {match!r}?" for match in get_close_matches(str(name), PARTS, n=1))
            raise ValueError(f"a prompt has no argument {name!r}{meant}")


def prepared(name: str, per_server: int | None, arguments: Mapping[str, Any]) -> Callable[[], Job]:
    """Check what is given for all prompts, and return what makes the job."""
    for argument, reason in NOT_FOR_ALL.items():
        if argument in arguments:
            raise TypeError(f"{name}() has no argument {argument!r}: {reason}")
    check_names(name, arguments)
    if per_server is not None and (isinstance(per_server, bool) or not isinstance(per_server, int) or per_server < 1):
        raise ValueError(f"per_server must be a whole number from 1 on, not {per_server!r}")
    checked("a prompt", **arguments)
    return job_maker(per_server, arguments)


def job_maker(rooms: Rooms, arguments: Mapping[str, Any]) -> Callable[[], Job]:
    """Return what makes the job of arguments that are known to be good."""
    wish = _wish(arguments)
    given = {**arguments, "servers": wish.servers}  # which may be iterated once only
    return lambda: Job(Dispatcher(wish, rooms), given)


def _wish(arguments: Mapping[str, Any]) -> Wish:
    servers = arguments.get("servers")
    if servers is not None:
        servers = (servers,) if isinstance(servers, str | Server) else tuple(servers)
        if not servers or not all(servers) or not all(isinstance(server, str | Server) for server in servers):
            raise ValueError("servers is a list of addresses, such as ['desk:11434'], or of Server objects")
    return Wish(arguments.get("model"), servers, arguments.get("routing"))


class Order:
    """The outcomes that wait to be given, and how far everything is."""

    def __init__(self, total: int | None, *, ordered: bool, progress: Callable[[Progress], object] | None) -> None:
        self._total = total
        self._ordered = ordered
        self._progress = progress
        self._ready: dict[int, Outcome] = {}
        self._failed = 0
        self._tokens = 0
        self.taken = 0
        self.given = 0

    @property
    def ahead(self) -> int:
        """How many prompts were taken whose outcome was not given."""
        return self.taken - self.given

    def put(self, outcome: Outcome) -> None:
        """Add what came."""
        self._ready[outcome.index] = outcome

    @property
    def is_ready(self) -> bool:
        """Whether there is an outcome to give."""
        return self.given in self._ready if self._ordered else bool(self._ready)

    def give(self, servers: dict[str, int]) -> Outcome:
        """Return the next outcome, once the progress has been told."""
        index = self.given if self._ordered else next(iter(self._ready))
        outcome = self._ready.pop(index)
        self.given += 1
        self._failed += outcome.error is not None
        self._tokens += outcome.result.usage["completion_tokens"] if outcome.result else 0
        if self._progress is not None:
            self._progress(Progress(self.given, self._failed, self.taken, self._total, self._tokens, servers))
        return outcome


class Job:
    """Asks prompts on the running event loop; each outcome goes to `deliver`, and so does what stops everything."""

    def __init__(self, dispatcher: Dispatcher, arguments: Mapping[str, Any]) -> None:
        self._dispatcher = dispatcher
        self._arguments = arguments
        self._tasks: set[asyncio.Task[None]] = set()
        self.deliver: Callable[[Outcome | BaseException], None] = lambda _: None

    async def open(self) -> None:
        """Find the servers; raises what is wrong for all prompts."""
        await self._dispatcher.open()

    @property
    def width(self) -> int:
        """How many prompts are taken ahead."""
        return AHEAD * self._dispatcher.capacity

    @property
    def servers(self) -> dict[str, int]:
        """How many answers are under way at each server."""
        return self._dispatcher.taken

    def add(self, index: int, item: object) -> None:
        """Ask a prompt as soon as a server has room."""
        task = asyncio.get_running_loop().create_task(self._settle(index, item))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel what is under way, and wait until the servers are left."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._dispatcher.close()

    async def _settle(self, index: int, item: object) -> None:
        identity = item.get("id") if isinstance(item, Mapping) else None
        try:
            outcome: Outcome | BaseException = await self._ask(index, identity, item)
        except (AICortexError, ValueError, TypeError) as error:
            outcome = Outcome(index, identity, error=error)
        except Exception as error:  # not the prompt's fault: whoever reads the outcomes raises it
            outcome = error
        self.deliver(outcome)

    async def _ask(self, index: int, identity: object, item: object) -> Outcome:
        asked = {**self._arguments, **_asked(item)}
        call = checked(**asked)
        seat = await self._dispatcher.take(_wish(asked))
        is_well = False
        try:
            stream = await _read(_seated(call, seat), seat)
            found, again = (None, None) if call.shape is None else validated(call, await stream.result())
            if again is not None and call.shape is not None:
                stream = await _read(_seated(again, seat), seat)
                found = call.shape.read(await stream.text())
            is_well = True
        finally:
            seat.leave(well=is_well)
        result = await stream.result()
        calls = [event for event in stream.events if event.type == "tool_call"]
        made = tuple({"name": call.tool_name, "arguments": call.tool_args} for call in calls)
        return Outcome(index, identity, result.text, result, made, object=found)


async def _read(call: Call, seat: Seat) -> AsyncStream:
    """Return the stream of an answer that is whole."""
    async with cast("AsyncStream", await aanswer(call, stream=True)) as stream:
        async for event in stream:
            _follow(event, seat)
    return stream


def _asked(item: object) -> dict[str, Any]:
    """Return the arguments of `chat` that a prompt brings."""
    if isinstance(item, str):
        return {"prompt": item}
    if not isinstance(item, Mapping):
        raise ValueError(f"a prompt is a text or a mapping with 'prompt' or 'messages', not {type(item).__name__}")
    check_parts(item)
    return {"prompt": None, **{name: value for name, value in item.items() if name != "id"}}


def _seated(call: Call, seat: Seat) -> Call:
    """Return a call for the servers of a seat, in their order."""
    question = call.question
    if not question.model and seat.model:
        question = msgspec.structs.replace(question, model=seat.model)
    return msgspec.structs.replace(call, question=question, servers=seat.servers, routing="order")


def _follow(event: StreamEvent, seat: Seat) -> None:
    """Note where an answer comes from."""
    meta = event.meta or {}
    if event.type == "error":
        seat.fail(meta["server"], meta["kind"])
    elif event.type == "meta" and meta["kind"] == "connected" and not meta.get("hedge"):
        seat.move(meta["server"])
