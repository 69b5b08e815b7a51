"""What an answer is in the middle of: values, so that a change of state is one assignment."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from aicortex._core.failover import Attempt, Failover
from aicortex._core.http import Response
from aicortex._core.ladder import ASK_ANSWER, FIRST, Ladder, Step
from aicortex._core.ollama import Lines
from aicortex._core.question import Request
from aicortex._core.result import Result
from aicortex._core.seam import Seam
from aicortex._core.thought import Thought
from aicortex._core.turns import REPORTED, Turns
from aicortex.errors import AICortexError

ASK_LOADED = "loaded"  # /api/ps, which waits while a model is loaded
ASK_ALIVE = "alive"  # /api/version, which never waits


class Connect(msgspec.Struct, frozen=True):
    """Open a connection to the server with this number and send the request.

    `beside` says that another exchange is under way, which goes on.
    """

    server: int
    request: Request
    task: str = ASK_ANSWER
    rung: str = FIRST
    beside: bool = False

    @classmethod
    def of(cls, server: int, step: Step) -> Connect:
        """Return the connection that a step on the ladder needs."""
        return cls(server, step.request, step.task, step.rung)


class Read(msgspec.Struct, frozen=True):
    """Feed bytes to a response that is under way; some are due by this time."""

    until: float


class Try(msgspec.Struct, frozen=True):
    """A request that was sent, and its response.

    `patience` seconds were added to its first token's deadline, the last of them when the model `is_loaded`; it
    `is_hedged` once a second server was asked beside it. `is_unheard` says that its first piece came while nobody read.
    """

    server: int
    response: Response
    sent: float
    task: str = ASK_ANSWER
    rung: str = FIRST
    began: float = 0.0
    patience: float = 0.0
    is_loaded: bool = False
    is_hedged: bool = False
    is_unheard: bool = False


class State(msgspec.Struct, frozen=True):
    """What changes with attempts.

    `current` is the exchange that leads to the answer, `beside` what runs next to it before its first token: a second
    server that may be faster, and questions whether a late one still loads its model (`wants` are those not yet
    sent, `is_alive` the first reply).
    """

    failover: Failover
    ladder: Ladder
    began: float  # when the attempt under way began, or the last one ended
    mark: int = 0  # length of the log when it began
    current: Try | None = None
    beside: tuple[Try, ...] = ()
    pending: Connect | None = None  # what follows at the same server
    wants: tuple[str, ...] = ()
    is_alive: bool = False
    attempts: tuple[Attempt, ...] = ()
    turns: Turns = REPORTED
    outcome: Result | AICortexError | None = None

    @property
    def rival(self) -> Try | None:
        """The second server that was asked because the first one is late."""
        return next((other for other in self.beside if other.task == ASK_ANSWER), None)


class Progress(msgspec.Struct, frozen=True):
    """What changes with every read; the token path makes one of these and nothing else.

    `counted` tokens came in `waited` seconds of waiting, since the pace was last looked at.
    """

    index: int = 0  # of the next token
    shown: bool = False  # whether the reader was given anything of the answer
    heard: float | None = None  # when the newest chunk of the attempt came, if any did
    lines: Lines = Lines()
    seam: Seam | None = None  # what the attempt goes on with, until that is proven
    counted: int = 0
    waited: float = 0.0
    thought: Thought | None = None  # what takes a thought out of the text, until it is clear that there is none left


def without(tries: Iterable[Try], *tasks: str) -> tuple[Try, ...]:
    """Return the tries that are not for one of these tasks."""
    return tuple(each for each in tries if each.task not in tasks)
