"""The calls of a stream that run: tasks of its loop, and threads for functions that are not asynchronous."""

from __future__ import annotations

from asyncio import CancelledError, Future, Task, ensure_future, get_running_loop, wait
from collections.abc import Awaitable
from inspect import isawaitable
from time import perf_counter
from typing import Any, TypeVar

from aicortex._aio import aside
from aicortex._core.turns import Asked, Returned, Run
from aicortex.calling import Toolbox, Work, check_without, decision_of, in_context, mark, tool_call_of

T = TypeVar("T")


class Calls:
    """The calls of one stream, which run as tasks from the moment its reader has passed them."""

    __slots__ = ("_decided", "_tasks", "_toolbox")

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox
        self._decided: dict[int, Work | Returned] = {}
        self._tasks: dict[int, Task[Returned]] = {}

    def check_reader(self) -> None:
        """Raise RuntimeError when a tool, or `on_tool_call`, wants to read the stream that waits for it."""
        check_without(self)

    def cancel(self) -> None:
        """Cancel what is asynchronous; a thread runs on, and what it returns is dropped."""
        for task in self._tasks.values():
            task.cancel()

    async def wait(self, run: Run) -> tuple[int, Returned] | None:
        """Return the number of the first call that has not returned, and what it returns once it does.

        Returns None when the time of the stream is over before that. Raises what `on_tool_call` raises; no call of the
        turn has begun then, and those decided about are not decided about again.
        """
        mark(self)  # this task, which is of nothing else, and those that it begins
        for asked in run.calls:
            if asked.number not in self._decided:
                self._decided[asked.number] = await self._decide(asked)
        for asked in run.calls:
            work = self._decided[asked.number]
            if isinstance(work, Work) and asked.number not in self._tasks:
                self._tasks[asked.number] = get_running_loop().create_task(_run(work))
        number = run.calls[0].number
        decided = self._decided[number]
        if isinstance(decided, Returned):
            return number, decided
        task = self._tasks[number]
        await wait({task}, timeout=None if run.until is None else max(run.until - perf_counter(), 0.0))
        return (number, task.result()) if task.done() else None

    async def _decide(self, asked: Asked) -> Work | Returned:
        toolbox = self._toolbox
        said = None if toolbox.decide is None else toolbox.decide(tool_call_of(asked))
        if isawaitable(said):
            said = await said
        return toolbox.work(asked, decision_of(said))


async def _run(work: Work) -> Returned:
    """Run a call, for as long as it may, and return what came of it, whatever that is."""
    begun = perf_counter()
    found: Returned | Awaitable[object] | None = None
    if work.is_async:
        found = work.begin()
    else:
        found = await _within_time(work, aside.do(object(), in_context(work.begin)), work.seconds)
    if found is not None and not isinstance(found, Returned):
        left = None if work.seconds is None else max(begun + work.seconds - perf_counter(), 0.0)
        found = await _within_time(work, work.finish(found), left)
    return work.late() if found is None else found


async def _within_time(work: Work, doing: Awaitable[T], seconds: float | None) -> T | Returned | None:
    """Return what is being done for a call gives, or None if it takes longer; it is cancelled then."""
    task = ensure_future(doing)
    task.add_done_callback(_see)
    try:
        await wait({task}, timeout=seconds)
        if task.cancelled():  # by the tool itself
            return work.failed(CancelledError(), 0.0)
        return task.result() if task.done() else None
    finally:
        task.cancel()


def _see(task: Future[Any]) -> None:  # Any: whatever it gives
    """Look at how a task ended that nobody may wait for any more, so that the loop does not complain."""
    if not task.cancelled():
        task.exception()
