"""Errands: decisions that are written once, and what a blocking caller makes of the questions in them."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from aicortex.errands import Errand, Steps, run


def sums(numbers: list[int]) -> Steps[int]:
    """Add up numbers, each of which is an errand."""
    total = 0
    for number in numbers:
        total += yield Errand(("number", number), partial(int, number))
    return total


@pytest.mark.parametrize("numbers", [[], [1], [1, 2, 3]])
def test_what_an_errand_gives_goes_back_to_who_wants_it(numbers: list[int]) -> None:
    """Steps may have no errand, one or many; what they return is the decision."""
    assert run(sums(numbers)) == sum(numbers)


def test_an_errand_is_done_where_it_comes_up() -> None:
    """The blocking front end needs no thread, and does nothing before it is wanted."""
    done: list[str] = []

    def steps() -> Steps[None]:
        done.append("before")
        where = yield Errand("where", threading.current_thread)
        assert where is threading.current_thread()
        done.append("after")

    waiting = steps()
    assert done == []
    run(waiting)
    assert done == ["before", "after"]


def test_what_an_errand_raises_ends_the_decision() -> None:
    """No later step sees it, and no later errand is done."""
    asked: list[str] = []

    def fail() -> None:
        raise OSError("no network")

    def steps() -> Steps[None]:
        yield Errand("first", fail)
        yield Errand("second", lambda: asked.append("second"))

    with pytest.raises(OSError, match="no network"):
        run(steps())
    assert asked == []


def test_steps_of_steps() -> None:
    """A decision may be part of another one."""

    def twice() -> Steps[int]:
        first = yield from sums([1, 2])
        second = yield from sums([3])
        return first * second

    assert run(twice()) == 9
