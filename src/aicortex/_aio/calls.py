"""The calls of a stream that run: tasks of its loop, and threads for functions that are not asynchronous."""

from __future__ import annotations

from asyncio import Future, Task, ensure_future, get_running_loop, wait
from inspect import isawaitable
from time import perf_counter

from aicortex._aio import aside
from aicortex._core.turns import Asked, Returned, Run
from aicortex.calling import Toolbox, Work, decision_of, in_context, tool_call_of


class Calls:
    """The calls of one stream, which run as tasks from the moment its reader has passed them."""

    __slots__ = ("_decided", "_tasks", "_toolbox")

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox
        self._decided: dict[int, Work | Returned] = {}
        self._tasks: dict[int, Task[Returned]] = {}

    def cancel(self) -> None:
        """Cancel what is asynchronous; a thread runs on, and what it returns is dropped."""
        for task in self._tasks.values():
            task.cancel()

    async def wait(self, run: Run) -> tuple[int, Returned] | None:
        """Return the number of the first call that has not returned, and what it returns once it does.

        Returns None when the time of the stream is over before that. Raises what `on_tool_call` raises; no call of the
        turn has begun then, and those decided about are not decided about again.
        """
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
    if not work.is_async:
        thread = ensure_future(aside.do(object(), in_context(work)))
        try:
            await wait({thread}, timeout=work.seconds)
            return thread.result() if thread.done() else work.late()
        finally:
            thread.cancel()
    begun = perf_counter()
    running = ensure_future(_awaited(work))
    running.add_done_callback(_see)
    try:
        await wait({running}, timeout=work.seconds)
    finally:
        running.cancel()
    if not running.done():
        return work.late()
    try:
        return work.returned(running.result(), perf_counter() - begun)
    except BaseException as error:  # CancelledError too, if the tool has cancelled itself
        return work.failed(error, perf_counter() - begun)


def _see(task: Future[object]) -> None:
    """Look at how a task ended that nobody may wait for any more, so that the loop does not complain."""
    if not task.cancelled():
        task.exception()


async def _awaited(work: Work) -> object:
    return await work.do()
