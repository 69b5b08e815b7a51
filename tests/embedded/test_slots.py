"""Who may generate now."""

from threading import Event, Thread

import pytest

from aicortex.embedded.api import ApiError
from aicortex.embedded.slots import ClientGoneError, Slots


def test_those_who_wait_are_served_in_order(until):
    """With one slot the queue is first come, first served."""
    slots, order = Slots(1), []

    def work(number):
        with slots.taken(lambda: False):
            order.append(number)

    with slots.taken(lambda: False):
        threads = []
        for number in range(5):
            threads.append(Thread(target=work, args=(number,)))
            threads[-1].start()
            until(lambda: len(slots._queue) == len(threads))
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_full_queue_is_a_503():
    """Beyond the limit a request is refused in Ollama's words, and fits again later."""
    slots = Slots(1, queue_limit=0)
    with slots.taken(lambda: False):
        with pytest.raises(ApiError) as caught, slots.taken(lambda: False):
            pass
        assert (caught.value.status, caught.value.message) == (
            503,
            "server busy, please try again.  maximum pending requests exceeded",
        )
    with slots.taken(lambda: False):
        pass


def test_a_client_that_leaves_the_queue_blocks_nobody():
    """Who is gone while waiting loses the place, and the slot comes free for the next."""
    slots, gone, seen = Slots(1), Event(), []

    def leave():
        try:
            with slots.taken(gone.is_set):
                seen.append("taken")
        except ClientGoneError:
            seen.append("gone")

    with slots.taken(lambda: False):
        thread = Thread(target=leave)
        thread.start()
        gone.set()
        thread.join()
    assert seen == ["gone"]
    with slots.taken(lambda: False):
        pass


def test_a_slot_given_while_leaving_is_passed_on():
    """Who is called at the moment of leaving hands the slot back."""
    slots = Slots(1)
    with slots.taken(lambda: False):
        turn = slots._enter()
    assert turn.is_set()
    slots._leave(turn)
    with slots.taken(lambda: False):
        pass
