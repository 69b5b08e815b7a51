"""What drives the core with asyncio: one answer under way."""

from __future__ import annotations

import os
from asyncio import (
    AbstractEventLoop,
    CancelledError,
    Future,
    Task,
    TimerHandle,
    current_task,
    get_running_loop,
)
from threading import Thread
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import ref

from aicortex._aio import aside
from aicortex._aio.connection import Connection
from aicortex._aio.pool import Pool, reach
from aicortex._aio.time_limits import is_time_limit
from aicortex._core.failover import AttemptFailed, Wait
from aicortex._core.state import Connect, Read
from aicortex._core.turns import Run
from aicortex._core.waiting import GLANCE_SECONDS
from aicortex.links import Links

if TYPE_CHECKING:
    from aicortex._aio.calls import Calls
    from aicortex.planning import Plan
    from aicortex.request import Call


class Exchange(Links[Connection]):
    """One answer under way: the core's decisions, carried out by whichever task reads.

    Nothing runs in the background. A task that wants more than the log holds moves the answer on by at least one
    event; others wait for it. Where it waits it may be cancelled: the next one who reads goes on from there.
    """

    __slots__ = (
        "_calls",
        "_due",
        "_followers",
        "_is_driven",
        "_is_read_aside",
        "_loop",
        "_reader",
        "_readers",
        "_step",
        "_timer",
        "_timer_due",
        "_waiter",
    )
    _pool: Pool

    def __init__(self, call: Call, route: Plan, pool: Pool) -> None:
        super().__init__(call, route, pool)
        self._loop: AbstractEventLoop = get_running_loop()
        self._is_driven = False
        self._step: Task[None] | None = None  # what goes on when its reader gives up waiting
        self._calls: Calls | None = None
        self._followers: tuple[Future[None], ...] = ()  # tasks that wait for the one that moves the answer on
        self._readers: tuple[ref[Task[Any]], ...] = ()  # Any: whatever a task returns
        self._is_read_aside = False  # whether `wait_for` read for a task whose name is not known
        self._reader: ref[Task[Any]] | None = None  # the last one of them; Any: as above
        self._waiter: Future[bool] | None = None  # what the driving task waits for
        self._due = 0.0  # until when, at most
        self._timer: TimerHandle | None = None  # which looks whether that is past; one serves many waits
        self._timer_due = 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._is_cancelled or self.answer.outcome is not None

    async def start(self) -> None:
        """Send the request to the first server that takes it."""
        self._is_driven = True
        try:
            await self._advance(reading=False)
        except BaseException:
            self.cancel()
            raise
        finally:
            self._is_driven = False

    async def pump(self, position: int) -> bool:
        """Wait until the log is longer than `position`; returns False when the answer is over before that."""
        answer = self.answer
        log = answer.log
        if self._calls is not None:
            self._calls.check_reader()
        if self._reader is None or self._reader() is not current_task():
            self._join()
        while len(log) <= position:
            if self._is_driven:
                await self._follow()
                continue
            if not answer.steady and answer.outcome is not None:
                break
            self._is_driven = True
            try:
                if answer.steady and not self._is_cancelled and not self._is_moving and not self._take():
                    self._taken_or_late(is_late=not await self._news(self._stall))
                if len(log) <= position:
                    await self._advance(reading=True)
                elif not answer.steady:
                    self._settle()
            except CancelledError:
                self._left_by(current_task())
                raise
            finally:
                self._is_driven = False
                if self._followers:
                    self._wake_followers()
        if not answer.steady and answer.outcome is not None:
            self._stop_timer()
            self._release_readers()
            self._share()
            if self._calls is not None:
                self._calls.cancel()  # those that the time for the whole answer did not wait for
            await self.tell_over()
        return len(log) > position

    async def tell_over(self) -> None:
        """Tell whoever keeps the conversation how the answer ended, if they do not know, aside of the loop."""
        if self.owes:
            await aside.do(self, self._tell_over)

    def _share(self) -> None:
        """Share what the answer has shown of its servers, once; in a thread if that may take its time."""
        watch, self._watch = self._watch, None
        attempts = self.answer.attempts
        if watch is not None and watch.may_wait(attempts):
            Thread(target=watch.over, args=(attempts,)).start()  # no daemon: a program that ends now still tells others
        elif watch is not None:
            watch.over(attempts)

    async def _follow(self) -> None:
        """Wait until the task that moves the answer on has done so, or has given up."""
        future = self._loop.create_future()
        self._followers = (*self._followers, future)
        try:
            await future
        except CancelledError:
            self._left_by(current_task())
            raise

    def _join(self) -> None:
        """Take note that the running task reads, so that another one's end does not end the answer."""
        if self._loop is not get_running_loop() and not self._is_cancelled:
            raise RuntimeError("this AsyncStream belongs to another event loop: read it where achat was awaited")
        task = current_task()
        if task is not None:
            self._reader = ref(task)
            known = [reader() for reader in self._readers]
            alive = [each for each in known if each is not None and each is not task and not each.done()]
            self._is_read_aside |= is_time_limit(task)
            self._readers = (*map(ref, alive), self._reader)

    def _left_by(self, task: Task[Any] | None) -> None:  # Any: whatever the task returns
        """Cancel the answer once a task ends that was cancelled while it read, unless another one reads it too.

        A task that goes on, because it set itself a time limit, leaves the answer as it is.
        """
        if task is not None and not is_time_limit(task):
            task.remove_done_callback(self._reader_ended)  # once is enough
            task.add_done_callback(self._reader_ended)

    def _reader_ended(self, task: Task[Any]) -> None:  # Any: as above
        readers = [reader() for reader in self._readers]
        others = [reader for reader in readers if reader is not None and reader is not task]
        if task.cancelled() and not self._is_read_aside and all(other.done() for other in others):
            self.cancel()

    def _release_readers(self) -> None:
        """Let go of the tasks that read, which may live longer than the answer."""
        for reader in self._readers:
            task = reader()
            if task is not None:
                task.remove_done_callback(self._reader_ended)
        self._readers = ()

    def _wake_followers(self) -> None:
        followers, self._followers = self._followers, ()
        for future in followers:
            _release(future)

    def move(self) -> bool:
        """Go on at another server; returns False when no other one can."""
        if self._is_cancelled or not self.answer.may_move(perf_counter()):
            return False
        if self._is_driven or self._step is not None:
            self._is_moving = True
            self._wake()
        else:
            self._leave()
        return True

    def _leave(self) -> None:
        """Leave the server as `move` wants it; between two steps of the task that moves the answer on."""
        self._is_moving = False
        self.answer.move(perf_counter())
        self._settle()

    def cancel(self) -> None:
        """End the answer, from any thread, a signal handler or a finaliser; wakes whoever reads.

        In a forked child it does nothing: what it has is a copy, and parent and child share what their loops wait with.
        """
        if self._is_cancelled or self._pid != os.getpid():
            return
        self._is_cancelled = True
        try:
            self._loop.call_soon_threadsafe(self.finish)
        except RuntimeError:  # the loop is closed: nobody can close a connection but the garbage collector
            for link in self._links:
                self._pool.forget(link.connection)
            self._links.clear()

    def leave(self) -> None:
        """Cancel the answer, at once where this is its own loop."""
        if self._loop is get_running_loop():
            self.finish()
        else:
            self.cancel()

    def finish(self) -> None:
        """Carry out `cancel`, in the loop's own thread."""
        if self._pid != os.getpid():
            return
        self._is_cancelled = True
        is_ended_here = self.answer.outcome is None
        self._settle()
        self._stop_timer()
        if self._step is not None:
            self._step.cancel()
            self._step = None
            self._drop_claim()
        if self._calls is not None:
            self._calls.cancel()
        self._wake()
        self._wake_followers()
        self._release_readers()
        if is_ended_here and self.owes:
            Thread(target=self._tell_over).start()  # no daemon, as above

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    async def _advance(self, *, reading: bool) -> None:
        """Do what the core says until there is an event to read, or without `reading` until a request is sent."""
        answer = self.answer
        log = answer.log
        known = len(log)
        since = now = perf_counter()
        while not (reading and len(log) > known):
            if self._step is not None:
                await self._done(self._step)
                now = perf_counter()
                continue
            if self._is_cancelled:
                answer.cancel()
            elif self._is_moving:
                self._leave()
            step = answer.next_step(now, since=since)
            self._settle()
            if isinstance(step, Read) and reading:
                until = max(step.until, since + GLANCE_SECONDS)
                if answer.failover.is_late(now) or until <= now:
                    answer.timed_out(now)
                elif not self._take():
                    self._taken_or_late(is_late=not await self._news(until - now))
            elif isinstance(step, Connect):
                self._step = self._loop.create_task(self._connect(step))
                continue
            elif isinstance(step, Run) and reading:
                self._step = self._loop.create_task(self._call(step))
                continue
            elif isinstance(step, Wait) and reading:
                await self._news(step.until - now)
            else:
                break
            now = perf_counter()
        self._settle()

    async def _done(self, task: Task[None]) -> None:
        """Wait until a connection is open or a call has returned; who gives up waiting leaves it to the next reader."""
        done = self._loop.create_future()
        task.add_done_callback(lambda _: _release(done))
        await done
        self._step = None
        if not task.cancelled():
            task.result()  # raises what is a mistake of ours, or of `on_tool_call`
        elif self._calls is not None and not self._is_cancelled:
            raise RuntimeError("on_tool_call was cancelled, so that nobody knows whether the call may run")

    async def _connect(self, step: Connect) -> None:
        """Open a connection and send the request."""
        link = None
        try:
            place, connection = await reach(
                self._pool,
                self._servers[step.server],
                lambda: self._connect_due(step),
                fresh=step.beside or step.server in self._stale,
            )
            link = self._linked(step, place, connection)
            if not self._is_cancelled:
                request = step.request
                response = await connection.send(
                    request.method, request.path, place, request.body, due=self._send_due(step)
                )
        except AttemptFailed as error:
            self._drop_claim()
            self._failed(step, link, error.failure)
            return
        if self._is_cancelled:  # `finish` was here before the link was
            self._settle()
        else:
            self.answer.connected(step, response, perf_counter())

    async def _call(self, run: Run) -> None:
        """Run what the model called, and tell the answer what the first of it returns."""
        if self._calls is None:
            from aicortex._aio.calls import Calls

            assert self._toolbox is not None  # else nothing is to be run
            self._calls = Calls(self._toolbox)
        found = await self._calls.wait(run)
        if found is not None and not self._is_cancelled:
            self.answer.returned(*found, perf_counter())

    def _taken_or_late(self, *, is_late: bool) -> None:
        """Tell the answer what has come, or that nothing came in time; or neither if it is about to be left."""
        if not self._is_cancelled and not self._is_moving and not self._take() and is_late:
            self.answer.timed_out(perf_counter())

    def _take(self) -> bool:
        """Tell the answer what has come on one of its connections; returns whether anything has."""
        for link in self._links:
            connection = link.connection
            if not connection.has_news:
                continue
            response = connection.response
            try:
                connection.take()
            except AttemptFailed as error:
                self._failed(response, link, error.failure)
            else:
                self._taken(link)
            return True
        return False

    def _news(self, seconds: float) -> Future[bool]:
        """Return what is True once something comes or somebody wakes this task, and False when the time is up.

        It is no coroutine: another frame would cost a thousand waiting streams half a megabyte.
        """
        self._waiter = waiter = self._loop.create_future()
        for link in self._links:
            link.connection.waiter = waiter
        self._due = perf_counter() + seconds
        if self._timer is None or self._due < self._timer_due:
            self._set_timer(seconds)
        return waiter

    def _set_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer_due = self._due
        self._timer = self._loop.call_later(max(seconds, 0.0), self._look_at_time)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at_time(self) -> None:
        """End a wait whose time is up; most were over long before, and the timer serves the next one."""
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        left = self._due - perf_counter()
        if left > 0:
            self._set_timer(left)
        else:
            self._waiter.set_result(False)


def _release(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)
