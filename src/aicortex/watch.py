"""What one answer tells the board of its servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import time
from typing import TYPE_CHECKING

import msgspec

from aicortex._core.faults import FIRST_TOKEN
from aicortex.board import LEFT, Board, News
from aicortex.in_flight import Claim

if TYPE_CHECKING:
    from aicortex._core.failover import Attempt
    from aicortex._core.result import Result

MANY_TOKENS = 8  # from which on the time between tokens is an average of anything


class Watch:
    """Tells the board what becomes of one answer's attempts.

    `models` maps the labels of its servers to the model's name there, `conversation` stands for one, `claim` counts
    the first server as busy until a connection to it does. `look` is the label of a server that failed before, if the
    answer looks how it is; `resting` those of servers that are better left alone.
    """

    __slots__ = ("_board", "_conversation", "_models", "_told", "claim", "look", "resting")

    def __init__(
        self,
        board: Board,
        models: Mapping[str, str],
        conversation: int | None,
        claim: Claim | None,
        *,
        look: str = "",
        resting: frozenset[str] = frozenset(),
    ) -> None:
        self._board = board
        self._models = models
        self._conversation = conversation
        self._told = 0
        self.claim = claim
        self.look = look
        self.resting = resting

    def tell(self, attempts: Sequence[Attempt], result: Result | None) -> None:
        """Post the attempts that are new; never blocks."""
        for attempt in attempts[self._told :]:
            news = News(attempt.server, self._models[attempt.server], _kind(attempt), time(), attempt.seconds)
            if attempt.kind == "ok" and result is not None:
                news = _measured(news, attempt, result)
                if self._conversation is not None:
                    self._board.meet(self._conversation, attempt.server)
            elif attempt.retry_after is not None:
                news = msgspec.structs.replace(news, retry_after=attempt.retry_after)
            self._board.post(news)
        if len(attempts) > self._told:
            self.leave()
        self._told = len(attempts)

    def leave(self) -> None:
        """Post that nobody looks any more how a server is, if somebody did."""
        if self.look:
            self._board.post(News(self.look, self._models[self.look], LEFT, time()))
            self.look = ""

    def pardon(self, attempts: Sequence[Attempt]) -> None:
        """Leave out the attempts that are new: what failed says nothing about the server."""
        self.leave()
        self._told = len(attempts)

    def answering(self, label: str) -> None:
        """Post that the server that was looked at has begun to answer: others need not wait for the end to use it."""
        self.look = ""
        self._board.post(News(label, self._models[label], "answering", time()))

    def may_wait(self, attempts: Sequence[Attempt]) -> bool:
        """Whether `over` may have to wait for another process."""
        return self._board.may_wait(has_failed=len(attempts) > 1)

    def over(self, attempts: Sequence[Attempt]) -> None:
        """Share what the board knows, and correct what the registry says of servers that do not have the model."""
        for attempt in attempts:
            if attempt.kind == "model_not_found":
                from aicortex.planning import forget

                forget(attempt.server)
                self._board.forget(attempt.server, self._models[attempt.server])
        self._board.share()


def _kind(attempt: Attempt) -> str:
    """Return the kind of an attempt as far as it concerns the server's health."""
    if attempt.kind == "timeout" and attempt.first_token is None and attempt.phase == FIRST_TOKEN:
        return "first_token_timeout"  # it had as long as the caller gave it
    is_refusal = attempt.status is not None and 400 <= attempt.status < 499 and attempt.status != 404
    return "rejected" if attempt.kind == "bad_response" and is_refusal else attempt.kind


def _measured(news: News, attempt: Attempt, result: Result) -> News:
    """Add what a whole answer was like; one that several servers made says little about the last one's first token.

    What a server says of itself counts as far as it can be true. Readers may be slow, so the gap between tokens is the
    server's own where it says so.
    """
    turn = result.turns[-1]  # the one of this attempt
    tokens, pace = turn["completion_tokens"], max(turn["tokens_per_second"], 0.0)
    first, loading = attempt.first_token, turn["load"]
    if first is None or attempt.rung:
        return msgspec.structs.replace(news, gap=1 / pace if pace else 0.0, pace=pace)
    seen = (attempt.seconds - first) / (tokens - 1) if tokens >= MANY_TOKENS else 0.0
    waited = first - loading if 0 < loading < first else first
    return msgspec.structs.replace(news, first_token=waited, gap=1 / pace if pace else max(seen, 0.0), pace=pace)
