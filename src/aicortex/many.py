"""`stream_many` and `astream_many`: many prompts at once, as many as the servers have room for.

    for outcome in stream_many(["Name a river.", "Name a lake."]):
        print(outcome.index, outcome.text or outcome.error)

Prompts are taken as they are needed, outcomes given as they come. Both are thin: a `Job` on an event loop asks and
collects; one of them has it on the caller's loop, the other on a loop in one thread of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from contextlib import aclosing, suppress
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import TYPE_CHECKING

from aicortex.job import Job, Order, Outcome, Progress, count_prompts, prepared

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from aicortex.job import Prompt, Prompts
    from aicortex.request import ChatArguments

GLANCE_SECONDS = 1.0  # how long a wait may keep Ctrl-C from being seen, where a lock does
CLOSE_SECONDS = 5.0  # how long is waited for the thread; the servers are free long before


def stream_many(
    prompts: Iterable[Prompt],
    *,
    ordered: bool = True,
    per_server: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    **arguments: Unpack[ChatArguments],
) -> Generator[Outcome, None, None]:
    """Ask many prompts at once and yield what became of each; it takes every argument of `chat` but `stream`.

    A prompt is a text, or a mapping with `prompt` or `messages` or both, an `id` of your own and any argument of
    `chat`, which goes before the one given for all. `prompts` may be endless: they are taken in the thread that
    iterates, four times as many as the servers can answer at once, so that a slow reader holds everything up and
    nothing piles up.
    Outcomes come in the order of the prompts, or with `ordered=False` as soon as they are there.

    Each server gets at most `per_server` prompts at a time: by default its registered `slots`, else 4. Whichever has
    room gets the next one, so that the fast do more; of several that have room, the one that `routing` puts first.
    A server that fails gets none until it is well; what it was answering goes on at others. While no server is well,
    prompts wait up to 30 s, then they fail until one is.

    `progress` is called with a `Progress` before each outcome, in the thread that iterates. Closing or dropping the
    iterator, and an exception out of the loop, cancel what is under way. What fails for one prompt is in its `.error`;
    raised are ValueError and TypeError for wrong arguments (at once), what `chat` raises when the model or the servers
    are wrong for all (at the first step), and an exception of `prompts` itself, after the outcomes of those taken.
    """
    if isinstance(prompts, AsyncIterable):
        raise TypeError("stream_many() takes no asynchronous iterable: write 'async for … in astream_many(…)'")
    order = Order(count_prompts(prompts), ordered=ordered, progress=progress)
    return blocking(iter(prompts), order, prepared("stream_many", per_server, arguments))


def astream_many(
    prompts: Prompts,
    *,
    ordered: bool = True,
    per_server: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    **arguments: Unpack[ChatArguments],
) -> AsyncGenerator[Outcome, None]:
    """Do what `stream_many` does, on the running event loop; `prompts` may be asynchronous.

    Ordinary iterables are taken on the loop, so they must not wait. Leaving an `async for` early does not close an
    asynchronous generator at once: `async with contextlib.aclosing(…)` does, and so does the end of the task.
    """
    order = Order(count_prompts(prompts), ordered=ordered, progress=progress)
    return _asynchronous(prompts, order, prepared("astream_many", per_server, arguments))


async def _asynchronous(prompts: Prompts, order: Order, make: Callable[[], Job]) -> AsyncGenerator[Outcome, None]:
    job, news, room = make(), asyncio.Event(), asyncio.Event()
    faults: list[BaseException] = []

    def deliver(what: Outcome | BaseException) -> None:
        faults.append(what) if isinstance(what, BaseException) else order.put(what)
        news.set()

    job.deliver = deliver
    feeder = asyncio.ensure_future(_feed(prompts, order, job, room))
    feeder.add_done_callback(lambda _: news.set())
    try:
        while not feeder.done() or order.ahead:
            news.clear()
            if faults:
                break
            if order.is_ready:
                outcome = order.give(job.servers)
                room.set()
                yield outcome
            else:
                await news.wait()
        for fault in faults:
            raise fault
        await feeder
    finally:
        feeder.cancel()
        await asyncio.gather(feeder, return_exceptions=True)
        await job.close()


async def _feed(prompts: Prompts, order: Order, job: Job, room: asyncio.Event) -> None:
    """Give the job as many prompts as there is room for, until there are no more."""
    await job.open()
    async with aclosing(_each(prompts)) as items:
        async for item in items:
            job.add(order.taken, item)
            order.taken += 1
            while order.ahead >= job.width:
                room.clear()
                await room.wait()


async def _each(prompts: Prompts) -> AsyncGenerator[Prompt, None]:
    if isinstance(prompts, AsyncIterable):
        async for item in prompts:
            yield item
    else:
        for item in prompts:
            yield item


def blocking(prompts: Iterator[Prompt], order: Order, make: Callable[[], Job]) -> Generator[Outcome, None, None]:
    """Yield what becomes of the prompts, asked by a job in a thread of its own."""
    worker, fault = Worker(make), None
    try:
        width = worker.open()
        is_over = False
        while not is_over or order.ahead:
            worker.collect(order)
            while not is_over and order.ahead < width:
                try:
                    worker.add(order.taken, next(prompts))
                    order.taken += 1
                except StopIteration:
                    is_over = True
                except Exception as error:  # the caller's own: raised when what was taken before is there
                    fault, is_over = error, True
                worker.collect(order)
                if order.is_ready:
                    break
            if order.is_ready:
                yield order.give(worker.servers)
            elif order.ahead:
                worker.wait(order)
        if fault is not None:
            raise fault
    finally:
        worker.close()


class Worker:
    """A job on an event loop in a thread of its own."""

    def __init__(self, make: Callable[[], Job]) -> None:
        self._job = make()
        self._came: SimpleQueue[Outcome | BaseException | None] = SimpleQueue()  # None once the servers are found
        self._job.deliver = self._came.put
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._work())
        self._thread = Thread(target=self._run, name="aicortex", daemon=True)

    def open(self) -> int:
        """Find the servers and return how many prompts to take ahead; raises what is wrong for all prompts."""
        self._thread.start()
        self._next()
        return self._job.width

    @property
    def servers(self) -> dict[str, int]:
        """How many answers are under way at each server."""
        return self._job.servers

    def add(self, index: int, item: object) -> None:
        """Ask a prompt."""
        self._loop.call_soon_threadsafe(self._job.add, index, item)

    def collect(self, order: Order) -> None:
        """Put what has come in order."""
        while not self._came.empty():
            self.wait(order)

    def wait(self, order: Order) -> None:
        """Wait until something comes, and put it in order."""
        outcome = self._next()
        if outcome is not None:
            order.put(outcome)

    def close(self) -> None:
        """Cancel what is under way, and wait until the servers are left."""
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._task.cancel)
        if self._thread.ident and current_thread() is not self._thread:  # a finaliser may run there
            self._thread.join(CLOSE_SECONDS)

    def _next(self) -> Outcome | None:
        while True:
            try:
                came = self._came.get(timeout=GLANCE_SECONDS)
            except Empty:
                continue
            if isinstance(came, BaseException):
                raise came
            return came

    async def _work(self) -> None:
        try:
            await self._job.open()
            self._came.put(None)
            await asyncio.get_running_loop().create_future()  # until it is cancelled
        except Exception as error:  # raised by whoever waits for the servers
            self._came.put(error)
        finally:
            await self._job.close()

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
