"""Work that blocks, done in a thread so that the event loop goes on: name servers, questions about models, the engine.

Each piece of work has a thread of its own that nobody waits for at the end of the loop: the system's resolver, for
one, knows no deadline. Those who want the same at the same moment share one.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future, get_running_loop, shield
from collections.abc import Callable, Hashable
from functools import partial
from threading import Thread
from typing import Any, TypeVar

from aicortex.errands import Steps

T = TypeVar("T")
Key = tuple[AbstractEventLoop, Hashable]
_under_way: dict[Key, Future[Any]] = {}  # Any: whatever the work gives


async def run(steps: Steps[T]) -> T:
    """Have each errand done where it comes up, and return what was decided."""
    given = None
    try:
        while True:
            errand = steps.send(given)
            given = await do(errand.key, errand.work)
    except StopIteration as end:
        decided: T = end.value
        return decided


async def do(key: Hashable, work: Callable[[], T]) -> T:
    """Return what some work gives, or raise what it raises; who asks with the same key meanwhile gets the same.

    A caller that is cancelled leaves the work to the others, or to nobody.
    """
    loop = get_running_loop()
    mine = (loop, key)
    shared: Future[T] | None = _under_way.get(mine)
    if shared is None:
        shared = loop.create_future()
        Thread(target=_work, args=(mine, shared, work), daemon=True).start()
        _under_way[mine] = shared
    return await shield(shared)


def _work(key: Key, shared: Future[T], work: Callable[[], T]) -> None:
    """Do some work in this thread, and have its loop tell what came of it."""
    try:
        given = work()
        tell = partial(shared.set_result, given)
    except BaseException as error:  # whoever waits for it raises it
        tell = partial(_blame, shared, error)
    try:
        key[0].call_soon_threadsafe(_finish, key, tell)
    except RuntimeError:  # the loop was closed meanwhile: nobody waits
        _under_way.pop(key, None)


def _finish(key: Key, tell: Callable[[], None]) -> None:
    _under_way.pop(key, None)
    tell()


def _blame(shared: Future[T], error: BaseException) -> None:
    shared.set_exception(error)
    shared.exception()  # seen, even if everybody who waited has gone
