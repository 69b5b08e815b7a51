"""Time limits around a read, as asyncio had them before Python 3.12: a task of their own."""

from __future__ import annotations

import sys
from asyncio import Task, tasks
from typing import Any


def is_time_limit(task: Task[Any]) -> bool:  # Any: whatever the task returns
    """Whether `wait_for` has made a task for what it waits for, as it does before Python 3.12.

    Its end is not that of the task that waits. It is told by what it calls when it is done; Python 3.10 and 3.11, whose
    own business that is, do not change any more.
    """
    if sys.version_info >= (3, 12):
        return False
    release = getattr(tasks, "_release_waiter", None)
    return any(getattr(callback, "func", None) is release for callback, _ in getattr(task, "_callbacks", None) or ())
