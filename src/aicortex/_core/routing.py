"""Which server first: a strategy puts those that have the model in order. Pure: time and chance are arguments.

    strategy      the order
    balanced      the better of two that are drawn, by what a request would wait there (below), then the others
    fastest       by what a request would wait there
    nearest       those at the same place first, then by the time that a round trip takes; full ones behind
    priority      by the user's priority; one that is full overflows to the next
    round_robin   each in turn, by weight
    random        drawn, by weight
    order         as they were named

Whatever the strategy, servers that are open, busy or draining stand last, soonest back first. One whose pause is
over is looked at by a single request.

What a request would wait is its first token, the answers before it (requests under way / slots x the seconds of an
answer), a load of the model where it is not in memory, and `FAILURE_SECONDS` for the share of requests that failed: a
server that refuses at once is not fast. Servers are compared by that divided by their weight.

Drawing two and taking the better keeps processes that do not know of each other's requests from running to the same
server (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001). Where servers are unequal, each is
drawn as often as it can answer, slots x weight / seconds of an answer and its load, else two slow ones are drawn too
often (Mukhopadhyay, Karthik, Mazumdar, "Randomized Assignment of Jobs to Servers in Heterogeneous Clusters of Shared
Servers for Low Delay", 2016). The numbers below were chosen in `benchmarks.routing`; p99 is of its first tokens.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import ceil

import msgspec

from aicortex._core.health import BUSY, CLOSED, HALF_OPEN, OPEN, Health

FAILURE_SECONDS = 30.0  # what a failure counts as
LOAD_SECONDS = 5.0  # what loading a model counts as: 10 makes `fastest` queue at the few servers known to be warm
UNKNOWN_SECONDS = 1.0  # what a first token counts as where none was measured
UNKNOWN_GAP = 0.03  # seconds between tokens, the same
LEAST_GAP, LONGEST_GAP = 1e-5, 60.0  # what a server may claim: no answer takes no time, and none for ever
ANSWER_TOKENS = 200.0  # how long an answer is taken to be; only how servers compare depends on it
UNSEEN = 2.0  # what a request under way counts as: other processes have theirs
LOADED_SECONDS = 300.0  # how long Ollama keeps a model in memory by default
FAMILIAR_TIMES, FAMILIAR_SECONDS = 3.0, 1.0  # how much longer a wait is accepted for a conversation in the cache
LOAD_CAP = 1.25  # how many times its share of what is under way a server may have before affinity ends
LOOK_SECONDS = 5.0  # a failure that took longer is not risked again before the server's turn has come

BALANCED, FASTEST, NEAREST, PRIORITY = "balanced", "fastest", "nearest", "priority"
ROUND_ROBIN, RANDOM, ORDER = "round_robin", "random", "order"
STRATEGIES = (BALANCED, FASTEST, NEAREST, PRIORITY, ROUND_ROBIN, RANDOM, ORDER)
DRAINING = "draining"
STICKY = frozenset({BALANCED, FASTEST, NEAREST})  # strategies that yield to affinity
LOOKING = frozenset({BALANCED, FASTEST})  # strategies under which a server that failed would never have its turn again


class Candidate(msgspec.Struct, frozen=True):
    """One server that may be asked, and what is known of it.

    `server` is the health of the server, `model` that of the model on it. `under_way` counts the requests that it is
    answering, out of `slots` at once. `loaded_until` is the Unix time until which the model is known to be in memory,
    `round_trip` seconds (0 where unknown), `nearness` how much of its place is this machine's (higher is nearer).
    """

    label: str
    server: Health = Health()
    model: Health = Health()
    under_way: int = 0
    slots: int = 1
    weight: float = 1.0
    priority: int = 0
    loaded_until: float = 0.0
    round_trip: float = 0.0
    nearness: int = 0
    is_draining: bool = False


class Choice(msgspec.Struct, frozen=True):
    """A server's number, and why it stands where it stands, for `.attempts`.

    `is_look` says that a request there finds out how a server is that failed: no other one is to do the same.
    `is_resting` says that it is better left alone.
    """

    server: int
    why: str
    is_look: bool = False
    is_resting: bool = False


class View(msgspec.Struct, frozen=True):
    """What a candidate comes to at this moment.

    `state` is the worse of its two healths', or "draining"; `wait` is what a request would wait, in seconds; `power`
    grows with the answers that it can make in a second.
    """

    number: int
    candidate: Candidate
    state: str
    wait: float
    power: float

    @property
    def is_resting(self) -> bool:
        """Whether it is better left alone."""
        return self.state != CLOSED and self.state != HALF_OPEN

    @property
    def is_full(self) -> bool:
        """Whether one more request would wait behind others."""
        return self.candidate.under_way >= self.candidate.slots

    @property
    def burden(self) -> float:
        """What servers are compared by: one of twice the weight may keep a request waiting twice as long."""
        return self.wait / self.candidate.weight

    @property
    def back(self) -> float:
        """When it may be asked again."""
        return max(self.candidate.server.until, self.candidate.model.until)


def route(
    candidates: Sequence[Candidate],
    strategy: str,
    *,
    now: float,
    chance: Callable[[], float],
    turn: int = 0,
    familiar: int | None = None,
) -> list[Choice]:
    """Return all servers, best first.

    `now` is Unix time, `chance` draws numbers from 0 to 1, `turn` counts the requests for `round_robin`, `familiar` is
    the server that has seen the conversation before and has it in its cache.
    """
    views = _views(candidates, now)
    awake = [view for view in views if not view.is_resting]
    resting = sorted((view for view in views if view.is_resting), key=lambda view: (view.state == DRAINING, view.back))
    ordered, why = _ordered(awake, strategy, chance, turn)
    choices = [Choice(view.number, why(view), view.state == HALF_OPEN) for view in ordered]
    first = _looked_at(ordered) if strategy in LOOKING else None
    if first is None and strategy in STICKY:
        first = _familiar(awake, familiar)
    if first is not None:
        choices = [first, *(choice for choice in choices if choice.server != first.server)]
    return [*choices, *(Choice(view.number, _rest(view, now), is_resting=True) for view in resting)]


def _views(candidates: Sequence[Candidate], now: float) -> list[View]:
    models = [each.model for each in candidates]
    first_token = _usual([model.first_token for model in models], UNKNOWN_SECONDS)
    gap = _usual([_gap(model) for model in models], UNKNOWN_GAP)
    return [_view(number, each, first_token, gap, now) for number, each in enumerate(candidates)]


def _usual(measured: list[float], unknown: float) -> float:
    """Return the middle of what was measured, for where nothing was."""
    found = sorted(filter(None, measured))
    return found[len(found) // 2] if found else unknown


def _gap(model: Health) -> float:
    """Return the seconds between tokens, 0 where unknown; a short measurement knows only what the server says."""
    gap = model.gap or (1 / model.pace if model.pace else 0.0)
    return min(max(gap, LEAST_GAP), LONGEST_GAP) if gap else 0.0


def _view(number: int, each: Candidate, first_token: float, gap: float, now: float) -> View:
    """Return what a candidate comes to; what was measured long ago counts less than what is usual."""
    model, trust = each.model, each.model.trust(now)
    if model.first_token:
        first_token += trust * (model.first_token - first_token)
    if measured := _gap(model):
        gap += trust * (measured - gap)
    answer = ANSWER_TOKENS * gap
    failing = max(health.unreliable * health.trust(now) for health in (each.server, model))
    is_loaded = now < each.loaded_until or now < model.answered + LOADED_SECONDS
    load = 0.0 if is_loaded else LOAD_SECONDS
    wait = first_token + UNSEEN * each.under_way / each.slots * answer + load + FAILURE_SECONDS * failing
    return View(number, each, _state(each, now), wait, each.slots * each.weight / (answer + load))


def _state(candidate: Candidate, now: float) -> str:
    if candidate.is_draining:
        return DRAINING
    states = {health.state(now) for health in (candidate.server, candidate.model)}
    if HALF_OPEN in states and (candidate.server.is_looked_at(now) or candidate.model.is_looked_at(now)):
        return OPEN
    return next((state for state in (OPEN, BUSY, HALF_OPEN) if state in states), CLOSED)


def _ordered(
    views: list[View], strategy: str, chance: Callable[[], float], turn: int
) -> tuple[list[View], Callable[[View], str]]:
    """Return those that may be asked, best first, and how to say why."""
    by_wait = sorted(views, key=lambda view: view.burden)
    if strategy == BALANCED:
        pair = _two_of(views, chance)
        rest = [view for view in by_wait if view is not pair[0]]
        return [*pair[:1], *rest], lambda view: _balanced_words(view, pair)
    if strategy == FASTEST:
        return by_wait, lambda view: f"fastest: {_seconds(view.wait)} expected"
    if strategy == NEAREST:
        return _overflowing(by_wait, _distance), _nearest_words
    if strategy == PRIORITY:
        return _overflowing(by_wait, lambda view: (view.candidate.priority,)), _priority_words
    if strategy == ROUND_ROBIN:
        return _in_turn(views, turn), lambda _: "round_robin: its turn"
    if strategy == RANDOM:
        draws = {view.number: chance() ** (1 / view.candidate.weight) for view in views}
        return sorted(views, key=lambda view: -draws[view.number]), lambda _: "random: drawn"
    return views, lambda view: f"order: number {view.number + 1} of those that have the model"


def _two_of(views: list[View], chance: Callable[[], float]) -> list[View]:
    """Draw two, each as often as its power says, and return the better one first."""
    left, drawn = list(views), list[View]()
    while left and len(drawn) < 2:
        ends = list(accumulate(view.power for view in left))
        drawn.append(left.pop(min(bisect(ends, chance() * ends[-1]), len(left) - 1)))
    return sorted(drawn, key=lambda view: view.burden)  # of equals the one drawn first, so that none is left out


def _overflowing(by_wait: list[View], rank: Callable[[View], tuple[float, ...]]) -> list[View]:
    """Return those that have a free slot by rank, then the full ones by what a request would wait there."""
    free = [view for view in by_wait if not view.is_full]
    return [*sorted(free, key=rank), *(view for view in by_wait if view.is_full)]


def _distance(view: View) -> tuple[float, ...]:
    return -view.candidate.nearness, view.candidate.round_trip or float("inf")


def _balanced_words(view: View, pair: list[View]) -> str:
    words = f"balanced: {_seconds(view.wait)} expected"
    if view is pair[0] and len(pair) > 1:
        return f"{words}, {pair[1].candidate.label} {_seconds(pair[1].wait)}"
    return words


def _nearest_words(view: View) -> str:
    trip = view.candidate.round_trip
    place = "at this place" if view.candidate.nearness else "elsewhere"
    return f"nearest: {place}" + (f", {trip * 1000:.1f} ms away" if trip else "")


def _priority_words(view: View) -> str:
    each = view.candidate
    words = f"priority: {each.priority}"
    return f"{words}, full ({each.under_way} under way)" if view.is_full else words


def _in_turn(views: list[View], turn: int) -> list[View]:
    """Return the views from the one on whose turn it is; one of twice the weight has two turns in each round.

    The turns of a round are spread as evenly as whole numbers allow.
    """
    if not views:
        return []
    least = min(view.candidate.weight for view in views)
    shares = [round(min(view.candidate.weight / least, 20)) for view in views]
    turns = [((each + 0.5) / share, place) for place, share in enumerate(shares) for each in range(share)]
    turns.sort()
    start = turns[turn % len(turns)][1]
    return [*views[start:], *views[:start]]


def _looked_at(ordered: list[View]) -> Choice | None:
    """Return a server that failed and whose pause is over, unless looking could keep the reader waiting for long."""
    for view in ordered:
        each = view.candidate
        if view.state == HALF_OPEN and max(each.server.cost, each.model.cost) <= LOOK_SECONDS:
            kind = each.server.kind or each.model.kind
            return Choice(view.number, f"a look whether it is well again after {kind!r}", is_look=True)
    return None


def _familiar(awake: list[View], number: int | None) -> Choice | None:
    """Return the server that knows the conversation, unless it is not well, much slower, or has more than its share."""
    view = next((view for view in awake if view.number == number), None)
    if view is None or view.state != CLOSED:
        return None
    if view.wait > FAMILIAR_TIMES * min(each.wait for each in awake) + FAMILIAR_SECONDS:
        return None
    power = sum(each.candidate.slots * each.candidate.weight for each in awake)
    share = view.candidate.slots * view.candidate.weight / power
    total = sum(each.candidate.under_way for each in awake)
    if view.candidate.under_way + 1 > ceil(LOAD_CAP * share * (total + 1)):
        return None
    return Choice(view.number, "affinity: it has the conversation in its cache")


def _rest(view: View, now: float) -> str:
    if view.state == DRAINING:
        return "last: it is being drained"
    each = view.candidate
    kind = each.server.kind or each.model.kind
    if view.back <= now:
        return f"last: another request looks whether it is well again after {kind!r}"
    return f"last: {view.state} after {kind!r} for {_seconds(view.back - now)} more"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"
