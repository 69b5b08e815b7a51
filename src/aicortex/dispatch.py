"""Which server gets the next of many prompts: as many at a time as it has room for, and none while it is not well.

    a server …                      gets
    has the model and has room      the next prompt; of several the one that the routing puts first
    is full                         none until one of its answers ends
    failed an answer                none until it has said again which models it has, and its pause is over (`health`)
    does not say which models       none; it is asked again every second
    says that it lacks the model    none; it is asked again every minute

While no server is well, prompts wait `PATIENCE_SECONDS` from the last whole answer on; then they are asked all the
same, as many as one server takes, and fail with what each server did. Where no server was there to begin with, nothing
is waited for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import TypeAlias

import msgspec

from aicortex import settings
from aicortex._aio import aside
from aicortex._core.failover import Failure
from aicortex._core.health import BROKEN_KINDS
from aicortex._core.routing import Choice
from aicortex._core.server import Server
from aicortex.board import BOARD
from aicortex.errors import AICortexError
from aicortex.fleet import GRACE_SECONDS, Fleet, catalogue, finding, outcome_of
from aicortex.planning import EMBEDDING_FAMILIES, first_of, forget, planning, seat_of

ROOM = 4  # answers at a time of a server of which nothing is registered
TICK_SECONDS = 0.25  # how late it may be noticed that a pause is over
FAILED_SECONDS = 1.0  # between two questions to a server that does not answer
LACKING_SECONDS = 60.0  # between two questions to one that does not have the model
FLEET_SECONDS = 5.0  # between two looks at the registry
PATIENCE_SECONDS = 30.0  # how long the whole fleet may be away: as long as a server takes to restart
DOUBTFUL = BROKEN_KINDS | {"denied", "model_not_found"}  # failures after which a server is asked what it has
Servers = tuple[str | Server, ...] | None
Rooms: TypeAlias = "int | Mapping[str, int] | None"  # how many answers at a time of each server, or of those labels


class Wish(msgspec.Struct, frozen=True):
    """What a prompt wants of the fleet: the arguments of `chat` that choose a server."""

    model: str | None = None
    servers: Servers = None
    routing: str | None = None


class Seat:
    """A place at a server for one answer, which may move to others; `servers` are those to ask, best first."""

    __slots__ = ("_crew", "_dispatcher", "label", "servers")

    def __init__(self, dispatcher: Dispatcher, crew: Crew, servers: Sequence[Server], label: str) -> None:
        self._dispatcher = dispatcher
        self._crew = crew
        self.servers = list(servers)
        self.label = label
        dispatcher.count(label, 1)

    @property
    def model(self) -> str | None:
        """The model to ask for; None while no server has said what it has."""
        return self._crew.model

    def move(self, label: str) -> None:
        """Take note that the answer comes from this server now."""
        if label != self.label:
            self._dispatcher.count(label, 1)
            self._dispatcher.count(self.label, -1)
            self.label = label

    def fail(self, label: str, kind: str) -> None:
        """Take note that this server failed."""
        if kind in DOUBTFUL:
            self._crew.doubt(label)
        if label == self.label:
            self.move("")

    def leave(self, *, well: bool) -> None:
        """Give the place back; `well` if the answer is whole."""
        self._dispatcher.end(self.label, well=well)


class Crew:
    """The servers that a wish can be given to, and which of them have the model."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.model = wish.model
        self.fleet = Fleet([])
        self.names: dict[Server, str] = {}  # the model's name at those that have it
        self._due: dict[Server, float] = {}  # when the others are asked again
        self._silent: set[Server] = set()
        self._asking: dict[Server, asyncio.Task[None]] = {}
        self._fleet_due = 0.0

    async def open(self) -> None:
        """Find the servers and the model; raises as `chat` does when no server has it."""
        await self._find()
        route = await aside.run(planning(self.wish.model, self.fleet, routing="order"))
        if route.watch is not None:
            route.watch.leave()
        self.model = route.model or None
        self.ask()
        try:
            while self._asking and not self.ranked(None)[1]:
                await asyncio.wait(self._asking.values(), return_when=asyncio.FIRST_COMPLETED)
            if self._asking:
                await asyncio.wait(self._asking.values(), timeout=GRACE_SECONDS)
        except asyncio.CancelledError:
            self.close()
            raise

    async def keep(self) -> None:
        """Look at what is due."""
        if self.fleet.has_registry and monotonic() >= self._fleet_due:
            with suppress(AICortexError, ValueError):  # what was found before will do: prompts are under way
                await self._find()
        self.ask()

    async def _find(self) -> None:
        self.fleet = await aside.run(finding(self.wish.servers))
        self._fleet_due = monotonic() + FLEET_SECONDS
        for server in self.fleet.servers:
            if server not in self.names:
                self._due.setdefault(server, 0.0)
        for gone in {*self.names, *self._due}.difference(self.fleet.servers):
            self.names.pop(gone, None)
            self._due.pop(gone, None)

    def ask(self) -> None:
        """Begin to ask those that are due which models they have."""
        now = monotonic()
        for server in [server for server, due in self._due.items() if due <= now and server not in self._asking]:
            self._asking[server] = asyncio.create_task(self._ask(server))

    async def _ask(self, server: Server) -> None:
        try:
            said = await aside.do(("catalogue", server), lambda: outcome_of(server, catalogue))
        finally:
            del self._asking[server]
        if server not in self._due:
            return
        self._due[server] = monotonic() + (FAILED_SECONDS if isinstance(said, Failure) else LACKING_SECONDS)
        if isinstance(said, Failure):
            self._silent.add(server)
            return
        if server in self._silent:
            self._silent.remove(server)
            forget(server.label)  # that it did not answer
        if self.model is None:
            self.model = next((known.name for known in said if known.details.family not in EMBEDDING_FAMILIES), None)
        wanted = settings.models_meant(self.model, self.fleet.config) if self.model else ()
        known = first_of(wanted, said)
        if known is not None:
            self.names[server] = known.name
            del self._due[server]

    def doubt(self, label: str) -> None:
        """Give a server that failed nothing more until it has said what it has."""
        for server in [server for server in self.names if server.label == label]:
            del self.names[server]
            self._due[server] = 0.0

    def ranked(self, rooms: Rooms) -> tuple[list[Server], list[int]]:
        """Return all servers, best first, and of those that are well, which stand first, how many answers they take."""
        having = [server for server in self.fleet.servers if server in self.names]
        choices: list[Choice] = []
        if having:
            strategy = self.wish.routing or settings.default_routing(self.fleet.config) or "balanced"
            choices = BOARD.rank([seat_of(server, self.names[server], self.fleet) for server in having], strategy)
        order = [having[choice.server] for choice in choices]
        free = [
            1 if choice.is_look else self.room(having[choice.server], rooms)
            for choice in choices
            if not choice.is_resting
        ]
        return [*order, *(server for server in self.fleet.servers if server not in self.names)], free

    def room(self, server: Server, rooms: Rooms) -> int:
        """Return how many answers a server makes at a time."""
        entry = self.fleet.entries.get(server)
        usual: int = entry.slots if entry is not None else ROOM
        return rooms.get(server.label, usual) if isinstance(rooms, Mapping) else rooms or usual

    def close(self) -> list[asyncio.Task[None]]:
        """Ask nobody any more, and return what is about to end."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        return tasks


class Dispatcher:
    """Gives each of many prompts a seat at a server."""

    def __init__(self, wish: Wish, rooms: Rooms) -> None:
        self._rooms = rooms
        self._common = Crew(wish)
        self._crews = {wish: self._common}
        self._taken: dict[str, int] = {}
        self._waiting: deque[tuple[Crew, asyncio.Future[Seat]]] = deque()
        self._well_until = 0.0
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Find the servers; raises as `chat` does when there are none or the model is nowhere."""
        await self._common.open()
        if self._common.ranked(None)[1]:
            self._well_until = monotonic() + PATIENCE_SECONDS
        self._keeper = asyncio.create_task(self._keep())

    @property
    def capacity(self) -> int:
        """How many answers all servers make at a time."""
        crew = self._common
        return max(sum(crew.room(server, self._rooms) for server in crew.fleet.servers), 1)

    @property
    def taken(self) -> dict[str, int]:
        """How many answers are under way at each server that is busy, by label."""
        return {label: count for label, count in self._taken.copy().items() if label and count}

    async def take(self, wish: Wish) -> Seat:
        """Wait for a server that has room and return a seat there; raises as `chat` does for a wrong wish."""
        crew = self._crews.get(wish)
        if crew is None:
            opened = Crew(wish)
            await opened.open()
            crew = self._crews.setdefault(wish, opened)
            if crew is not opened:  # another prompt with the same wish was faster
                opened.close()
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((crew, future))
        self._fill()
        try:
            seat: Seat = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                future.result().leave(well=False)
            raise
        return seat

    def count(self, label: str, change: int) -> None:
        """Take note that a server has more or fewer answers under way."""
        self._taken[label] = self._taken.get(label, 0) + change
        if change < 0:
            self._fill()

    def end(self, label: str, *, well: bool) -> None:
        """Take note that an answer has ended there."""
        if well:
            self._well_until = monotonic() + PATIENCE_SECONDS
        self.count(label, -1)

    async def close(self) -> None:
        """Give no more seats."""
        ending = [task for crew in self._crews.values() for task in crew.close()]
        if self._keeper is not None:
            self._keeper.cancel()
            ending.append(self._keeper)
        await asyncio.gather(*ending, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            used = {id(crew) for crew, _ in self._waiting}
            for crew in list(self._crews.values()):
                if crew is self._common or id(crew) in used:
                    await crew.keep()
            self._fill()

    def _fill(self) -> None:
        """Give seats to those who wait, in order, as far as there is room."""
        waiting, self._waiting = self._waiting, deque()
        full: set[int] = set()
        for crew, future in waiting:
            if future.done():
                continue
            seat = None if id(crew) in full else self._seat(crew)
            if seat is None:
                full.add(id(crew))
                self._waiting.append((crew, future))
            else:
                future.set_result(seat)

    def _seat(self, crew: Crew) -> Seat | None:
        order, rooms = crew.ranked(self._rooms)
        for place, room in enumerate(rooms):
            server = order[place]
            if self._taken.get(server.label, 0) < room:
                return Seat(self, crew, [server, *order[:place], *order[place + 1 :]], server.label)
        is_away = not rooms and monotonic() >= self._well_until
        if is_away and sum(self._taken.values()) < crew.room(order[0], self._rooms):
            return Seat(self, crew, order, "")
        return None
