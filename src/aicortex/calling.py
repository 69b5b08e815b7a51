"""What becomes of the calls that a model makes: who decides, what is run with which arguments, what the model is told.

    the call                          what it returns
    denied by `on_tool_call`          "denied"
    answered by `on_tool_call`        "given"
    names no tool                     "unknown_tool"
    to a schema without a function    nothing: whoever asked goes on himself
    does not fit the signature        "bad_arguments"
    runs, and raises                  "exception"
    runs longer than it may           "timeout"
    runs, and returns                 "ok"

Whatever goes wrong is told to the model, which may call again or say so. The front ends contribute threads, tasks and
how to wait.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar, copy_context
from inspect import isawaitable, iscoroutine
from time import perf_counter
from typing import Any, TypeVar

import msgspec

from aicortex._core.turns import UNANSWERED, Asked, Returned
from aicortex.functions import ArgumentsError, Tool, result_text

DENIED = "whoever asked you does not allow this call"


class Decision(msgspec.Struct, frozen=True):
    """What `on_tool_call` says of a call; made by the methods of `ToolCall`."""

    kind: str
    value: Any = None  # Any: what the tool is to have returned


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model made and that has not run yet, as `on_tool_call` gets it.

    `name` and `args` (JSON data) are the model's, `number` counts the calls of the stream from 0, `id` is the server's
    own, if it gave one. `on_tool_call` returns None or True to let the call run, False to deny it, or what one of the
    methods returns.
    """

    name: str
    args: dict[str, Any]  # Any: JSON of the model's making
    number: int
    id: str | None = None

    def deny(self, reason: str | None = None) -> Decision:
        """Do not run it, and tell the model why."""
        return Decision("deny", reason or DENIED)

    def replace(self, **args: Any) -> Decision:  # Any: JSON
        """Run it with these arguments instead of the model's own of the same names."""
        return Decision("replace", {**self.args, **args})

    def answer(self, result: object) -> Decision:
        """Do not run it, and take this for what it returned."""
        return Decision("answer", result)


T = TypeVar("T")
ALLOWED = Decision("replace")
_within: ContextVar[tuple[int, ...]] = ContextVar("_within", default=())  # the calls that this is a part of
OnToolCall = Callable[[ToolCall], Any]  # Any: a Decision, a bool or None, or what gives one of them when it is awaited


class Toolbox(msgspec.Struct, frozen=True):
    """The tools of an answer by their names, who decides about each call, and how many seconds one may take."""

    tools: Mapping[str, Tool]
    decide: OnToolCall | None
    seconds: float | None

    @property
    def runs(self) -> bool:
        """Whether any call can have a result."""
        return self.decide is not None or any(tool.function is not None for tool in self.tools.values())

    def work(self, asked: Asked, decision: Decision) -> Work | Returned:
        """Return what is to be run, or what the call returns without that."""
        if decision.kind == "deny":
            return _refused("denied", str(decision.value), asked.arguments)
        if decision.kind == "answer":
            return _given("given", decision.value, asked.arguments, 0.0)
        arguments = asked.arguments if decision is ALLOWED else decision.value
        tool = self.tools.get(asked.name)
        if tool is None:
            names = ", ".join(self.tools)
            return _refused("unknown_tool", f"there is no tool {asked.name!r}; the tools are: {names}", arguments)
        if tool.function is None:
            return Returned(UNANSWERED)
        try:
            bound = tool.bind(_copied(arguments))  # what the tool does to them does not change the log
        except (ArgumentsError, RecursionError) as error:
            return _refused("bad_arguments", str(error), arguments)
        seconds = tool.timeout if tool.timeout is not None else self.seconds
        call = tool.function
        return Work(asked.number, lambda: call(*bound.args, **bound.kwargs), tool.is_async, arguments, seconds)


class Work(msgspec.Struct, frozen=True):
    """A call that runs: what to do, whether that gives something to await, and how many seconds it may take."""

    number: int
    do: Callable[[], Any]  # Any: whatever the tool returns
    is_async: bool
    arguments: dict[str, Any]  # Any: JSON
    seconds: float | None

    def run(self) -> Returned:
        """Run it in this thread, and return what came of it, whatever that is."""
        found = self.begin()
        return found if isinstance(found, Returned) else _run_awaitable(self, found)

    def begin(self) -> Returned | Awaitable[object]:
        """Call the function; return what came of it, or what is still to be awaited."""
        begun = perf_counter()
        try:
            value = self.do()
        except BaseException as error:  # even SystemExit: a tool does not end the program that reads a stream
            return self.failed(error, perf_counter() - begun)
        return value if isawaitable(value) else self.returned(value, perf_counter() - begun)

    async def finish(self, value: Awaitable[object]) -> Returned:
        """Await what the function gave; return what came of it. A cancellation, and an interrupt, go on."""
        begun = perf_counter()
        try:
            return self.returned(await value, perf_counter() - begun)
        except (Exception, SystemExit, GeneratorExit) as error:
            return self.failed(error, perf_counter() - begun)

    def returned(self, value: object, seconds: float) -> Returned:
        """Return what a value comes to."""
        try:
            return _given("ok", value, self.arguments, seconds)
        except BaseException as error:  # of a `repr` that is the tool's own
            return self.failed(error, seconds)

    def failed(self, error: BaseException, seconds: float) -> Returned:
        """Return what an exception comes to."""
        from traceback import format_exception

        try:
            words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            shown = "".join(format_exception(type(error), error, error.__traceback__))
        except BaseException:  # an exception that cannot be told
            words, shown = type(error).__name__, ""
        return _refused("exception", words, self.arguments, seconds, traceback=shown)

    def late(self) -> Returned:
        """Return what it comes to that the time is up."""
        seconds = self.seconds or 0.0
        return _refused("timeout", f"the tool did not return within {seconds:g} s", self.arguments, seconds)


def in_context(work: Callable[[], T]) -> Callable[[], T]:
    """Return what does some work in another thread as this one would, with its context variables."""
    context = copy_context()
    return lambda: context.run(work)


def within(calls: object, do: Callable[[], T]) -> T:
    """Do something as a part of these calls, as is what it begins: it cannot wait for the stream that waits for it.

    That happens in a context of its own, which an interrupt leaves with it.
    """

    def marked() -> T:
        mark(calls)
        return do()

    return copy_context().run(marked)


def mark(calls: object) -> None:
    """Take what runs in this context, from now on, for a part of these calls."""
    _within.set((*_within.get(), id(calls)))


def check_without(calls: object) -> None:
    """Raise RuntimeError in a tool, or an `on_tool_call`, of these calls."""
    if id(calls) in _within.get():
        raise RuntimeError(
            "a tool, or on_tool_call, cannot read the stream that waits for it: use text_so_far or events"
        )


def tool_call_of(asked: Asked) -> ToolCall:
    """Return a call as `on_tool_call` gets it, with arguments of its own."""
    return ToolCall(asked.name, _copied(asked.arguments), asked.number, asked.id)


def decision_of(said: object) -> Decision:
    """Return what `on_tool_call` said; raises TypeError for what says nothing."""
    if said is None or said is True:
        return ALLOWED
    if said is False:
        return Decision("deny", DENIED)
    if isinstance(said, Decision):
        return said
    if iscoroutine(said):
        said.close()
        raise TypeError("on_tool_call is asynchronous, which only achat can wait for: write it with 'def' for chat")
    words = "on_tool_call returns None, True, False, call.deny(…), call.replace(…) or call.answer(…)"
    raise TypeError(f"{words}, not {type(said).__name__}")


def _given(kind: str, value: object, arguments: dict[str, Any], seconds: float) -> Returned:  # Any: JSON
    return Returned(kind, value, result_text(value), arguments, seconds)


def _refused(
    kind: str, words: str, arguments: dict[str, Any], seconds: float = 0.0, *, traceback: str = ""
) -> Returned:  # Any: JSON
    text = result_text(f"Error: {words}")
    return Returned(kind, text, text, arguments, seconds, result_text(traceback))


def _copied(arguments: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    copied: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(arguments))
    return copied


def _run_awaitable(work: Work, value: Awaitable[object]) -> Returned:
    """Await what a tool gives, on an event loop of this thread's own, for as long as it may take."""
    import asyncio

    async def waiting() -> Returned:
        task = asyncio.ensure_future(work.finish(value))
        await asyncio.wait({task}, timeout=work.seconds)
        if not task.done():
            task.cancel()
            return work.late()
        return work.failed(asyncio.CancelledError(), 0.0) if task.cancelled() else task.result()

    return asyncio.run(waiting())
