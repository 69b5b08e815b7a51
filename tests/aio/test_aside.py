"""Work in threads beside the event loop: who gets what it gives, and what is left of it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from tests.tasks import Run

from aicortex._aio import aside
from aicortex.errands import Errand, Steps

PATIENCE = 10.0  # seconds; only a failing test waits for so long


class Work:
    """Something that takes until it is told to go on; it knows how often it was done, and by which threads."""

    def __init__(self, given: object = "done") -> None:
        self._given = given
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.threads: list[threading.Thread] = []

    def __call__(self) -> object:
        self.threads.append(threading.current_thread())
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        if isinstance(self._given, BaseException):
            raise self._given
        return self._given

    async def is_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, PATIENCE)


def test_the_loop_goes_on_meanwhile(run: Run) -> None:
    """What blocks does so in a thread that no one has to wait for at the end."""

    async def main() -> None:
        task = asyncio.create_task(aside.do("key", work))
        await work.is_begun()
        assert not task.done()
        work.go_on.set()
        assert await task == "done"
        assert work.threads[0] is not threading.current_thread()
        assert work.threads[0].daemon

    work = Work()
    run(main())
    assert not aside._under_way


def test_who_wants_the_same_at_that_moment_shares_it(run: Run) -> None:
    """Work of one key is done once for all, and again for who asks later."""

    async def main() -> None:
        tasks = [asyncio.create_task(aside.do("key", work)) for _ in range(20)]
        await work.is_begun()
        work.go_on.set()
        assert await asyncio.gather(*tasks) == ["done"] * 20
        assert len(work.threads) == 1
        assert await aside.do("key", work) == "done"
        assert len(work.threads) == 2

    work = Work()
    run(main())


def test_other_keys_are_other_work(run: Run) -> None:
    """Nobody waits for somebody else's work."""

    async def main() -> None:
        task = asyncio.create_task(aside.do("slow", slow))
        await slow.is_begun()
        assert await aside.do("quick", lambda: "quick") == "quick"
        slow.go_on.set()
        assert await task == "done"

    slow = Work()
    run(main())


def test_loops_share_nothing(run: Run) -> None:
    """Work of another loop may end after that loop has."""

    async def other() -> object:
        return await aside.do("key", lambda: "mine")

    async def main() -> None:
        task = asyncio.create_task(aside.do("key", work))
        await work.is_begun()
        assert await asyncio.to_thread(run, other()) == "mine"
        work.go_on.set()
        assert await task == "done"

    work = Work()
    run(main())


def test_who_gives_up_leaves_the_work_to_the_others(run: Run) -> None:
    """A cancelled caller is cancelled at once; the others get what they wait for."""

    async def main() -> None:
        tasks = [asyncio.create_task(aside.do("key", work)) for _ in range(2)]
        await work.is_begun()
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        work.go_on.set()
        assert await tasks[1] == "done"
        assert len(work.threads) == 1

    work = Work()
    run(main())


def test_an_error_is_everybodys(run: Run) -> None:
    """All who wait for it raise it, and it is forgotten then."""

    async def main() -> None:
        tasks = [asyncio.create_task(aside.do("key", work)) for _ in range(3)]
        await work.is_begun()
        work.go_on.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(error) for error in found] == ["no network"] * 3
        assert await aside.do("key", lambda: "well again") == "well again"

    work = Work(OSError("no network"))
    run(main())


def test_an_error_that_nobody_waits_for_any_more(run: Run) -> None:
    """asyncio has nothing to say about it."""

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        task = asyncio.create_task(aside.do("key", work))
        await work.is_begun()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        work.go_on.set()
        await asyncio.to_thread(work.threads[0].join, PATIENCE)
        await asyncio.sleep(0)

    complaints: list[Any] = []
    work = Work(OSError("no network"))
    run(main())
    assert complaints == []
    assert not aside._under_way


def test_a_loop_that_ends_before_the_work_does(run: Run) -> None:
    """The program does not wait for the thread, and nothing keeps the loop."""

    async def main() -> None:
        task = asyncio.create_task(aside.do("key", work))
        await work.is_begun()
        task.cancel()

    work = Work()
    run(main())
    work.go_on.set()
    work.threads[0].join(PATIENCE)
    assert not aside._under_way


def test_a_thread_that_cannot_be_started(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks when there are threads again does not wait for the one that never was."""

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await aside.do("key", lambda: "done")
        assert await asyncio.wait_for(aside.do("key", lambda: "done"), PATIENCE) == "done"

    run(main())


def test_a_decision_with_questions_in_it(run: Run) -> None:
    """Each errand of a decision is done aside, one after the other, and many may decide the same at once."""

    def steps() -> Steps[list[object]]:
        first = yield Errand("first", lambda: 1)
        second = yield Errand("second", lambda: first + 1)
        return [first, second]

    async def main() -> None:
        assert await asyncio.gather(*[aside.run(steps()) for _ in range(5)]) == [[1, 2]] * 5

    run(main())
