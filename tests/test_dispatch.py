"""Which server gets the next of many prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from aicortex import ModelNotFoundError, dispatch
from aicortex.dispatch import Dispatcher, Seat, Wish
from aicortex.registry.credentials import entry_of
from aicortex.registry.store import Registry
from aicortex.testing import FakeServer, Hang, Status

PATIENCE = 30.0  # seconds until a test gives up; only failing tests wait that long


def run(wish: Wish, work: Callable[[Dispatcher], Awaitable[None]], per_server: int | None = 1) -> None:
    """Open a dispatcher and do something with it."""

    async def main() -> None:
        dispatcher = Dispatcher(wish, per_server)
        try:
            await dispatcher.open()
            await asyncio.wait_for(work(dispatcher), PATIENCE)
        finally:
            await dispatcher.close()

    asyncio.run(main())


async def waits(dispatcher: Dispatcher, wish: Wish) -> bool:
    """Whether there is no seat for a prompt now."""
    task = asyncio.ensure_future(dispatcher.take(wish))
    done, _ = await asyncio.wait([task], timeout=0.05)
    task.cancel()
    with suppress(asyncio.CancelledError):
        (await task).leave(well=True)
    return not done


def test_a_seat_is_free_when_it_is_left_or_moved() -> None:
    """Who moves to another server makes room at the first one, and none at the other."""
    with FakeServer() as one, FakeServer() as two:
        wish = Wish(servers=(one.url, two.url), routing="order")

        async def work(dispatcher: Dispatcher) -> None:
            first: Seat = await dispatcher.take(wish)
            assert [server.label for server in first.servers] == [one.url, two.url]
            first.move(two.url)
            assert dispatcher.taken == {two.url: 1}
            second = await dispatcher.take(wish)
            assert (second.label, await waits(dispatcher, wish)) == (one.url, True)
            first.leave(well=True)
            third = await dispatcher.take(wish)
            assert (third.label, dispatcher.taken) == (two.url, {one.url: 1, two.url: 1})

        run(wish, work)


def test_only_those_that_have_the_model_get_prompts() -> None:
    """A server without the model, one that does not answer and one that is drained are the last in every seat."""
    lacking, silent = FakeServer(models=["other"]), FakeServer(paths={"/api/tags": Hang()})
    with lacking, silent, FakeServer() as drained, FakeServer() as good:
        with Registry() as registry:
            for server in (lacking, silent, drained, good):
                registry.add(entry_of(server.url, is_draining=server is drained))
        wish = Wish("fake")

        async def work(dispatcher: Dispatcher) -> None:
            assert dispatcher.capacity == 4
            seat = await dispatcher.take(wish)
            assert (seat.label, seat.model) == (good.url, "fake")
            assert {server.label for server in seat.servers[-2:]} <= {lacking.url, silent.url, drained.url}
            assert await waits(dispatcher, wish)

        run(wish, work)


def test_a_server_that_failed_gets_nothing_until_it_is_well() -> None:
    """It is asked what it has before it is given a prompt; a refused request is not its fault."""
    with FakeServer() as one, FakeServer() as two:
        wish = Wish("fake", (one.url, two.url), "order")

        async def work(dispatcher: Dispatcher) -> None:
            seat = await dispatcher.take(wish)
            seat.fail(one.url, "rejected")
            assert seat.label == ""
            again = await dispatcher.take(wish)
            assert again.label == one.url
            one.refuse()
            again.fail(one.url, "refused")
            assert (await dispatcher.take(wish)).label == two.url
            assert await waits(dispatcher, wish)
            one.start()
            assert (await dispatcher.take(wish)).label == one.url

        run(wish, work)


def test_nobody_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts wait for a fleet that has answered before; one that never did is asked as far as one server takes."""
    with FakeServer() as server:
        server.refuse()
        wish = Wish("fake", (server.url,))

        async def work(dispatcher: Dispatcher) -> None:
            seat = await dispatcher.take(wish)
            assert (seat.label, await waits(dispatcher, wish)) == ("", True)
            seat.leave(well=True)
            assert await waits(dispatcher, wish)
            monkeypatch.setattr(dispatch, "PATIENCE_SECONDS", 0.0)
            dispatcher.count("", 1)
            dispatcher.end("", well=True)
            assert (await dispatcher.take(wish)).label == ""

        run(wish, work)


def test_servers_that_are_added_meanwhile_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry is looked at now and then."""
    monkeypatch.setattr(dispatch, "FLEET_SECONDS", 0.0)
    with FakeServer() as one, FakeServer() as two, Registry() as registry:
        registry.add(entry_of(one.url))
        wish = Wish()

        async def work(dispatcher: Dispatcher) -> None:
            assert (await dispatcher.take(wish)).label == one.url
            registry.add(entry_of(two.url))
            assert (await dispatcher.take(wish)).label == two.url
            registry.remove(one.url)

        run(wish, work)


def test_a_wish_of_one_prompt() -> None:
    """A prompt that names another model or server shares the room of all; one that nobody can grant raises."""
    with FakeServer(models=["one", "two"]) as server, FakeServer(everything=Status(500)):
        wish, other = Wish("one", (server.url,)), Wish("two", (server.url,))

        async def work(dispatcher: Dispatcher) -> None:
            seat = await dispatcher.take(other)
            assert (seat.model, await waits(dispatcher, wish)) == ("two", True)
            with pytest.raises(ModelNotFoundError):
                await dispatcher.take(Wish("three", (server.url,)))

        run(wish, work)
