"""What one seed means: the servers, and who asks what when; the same for every strategy, to compare them."""

from __future__ import annotations

from random import Random

import msgspec

from benchmarks.fleet.hosts import FLAPPING, FULL, HANGING, RETURNING, SLOW, USUAL, Traits
from benchmarks.fleet.timeline import WALL

SPREAD = 6.0  # how many times faster the fastest usual server is than the slowest
FIRST_TOKEN = 0.15  # seconds, of the fastest
PACE = 120.0  # tokens per second, of the fastest
SLOWNESS = 10.0  # of the slow server, against the middle of the usual ones
FEWEST, MOST = 20, 400  # tokens of an answer
MEAN = (FEWEST + MOST) / 2
PROMPTS = 2.0  # prompts are up to so many times shorter or longer than a middling one
SLOTS = (1, 2, 3, 4)
QUEUES = (8, 64, 512)  # the last is Ollama's own
FLAP_SECONDS = (20.0, 90.0)
ABSENCE = 600.0
LOAD = 0.5  # share of the fleet's capacity that is asked for
MAIN = (SLOW, FLAPPING, FULL)


class Plan(msgspec.Struct, frozen=True):
    """What a run is of: the special servers among `servers`, who asks, and how long (minutes).

    `load` is the share of the fleet's capacity that is asked for, `processes` how many clients ask, each of which
    knows of its own requests only; `cold` is how many seconds a model takes to load after it was idle, 0 where none is
    ever unloaded.
    """

    servers: int = 10
    minutes: float = 30.0
    roles: tuple[str, ...] = MAIN
    load: float = LOAD
    processes: int = 4
    cold: float = 0.0


class Arrival(msgspec.Struct, frozen=True):
    """One request: when, of which process, how long a prompt (1 is a middling one), how many tokens come back."""

    when: float
    process: int
    prompt: float
    tokens: int


class Scenario(msgspec.Struct, frozen=True):
    """The drawing of one seed."""

    plan: Plan
    servers: tuple[Traits, ...]
    arrivals: tuple[Arrival, ...]


def draw(plan: Plan, seed: int) -> Scenario:
    """Return the scenario of a seed."""
    random = Random(f"{seed} {plan.servers}")
    ends = WALL + plan.minutes * 60
    usual = plan.servers - len(plan.roles)
    slownesses = [SPREAD ** ((number + random.random()) / usual) for number in range(usual)]
    servers = [_traits(USUAL, slowness, random, plan) for slowness in slownesses]
    special = {SLOW: SLOWNESS * sorted(slownesses)[usual // 2], RETURNING: 1.0}
    servers += [_traits(role, special.get(role, SPREAD**0.5), random, plan) for role in plan.roles]
    random.shuffle(servers)
    servers = [_absent(each, random, ends) for each in servers]
    rate = plan.load * sum(map(_capacity, servers))
    return Scenario(plan, tuple(servers), tuple(_arrivals(plan, rate, random, ends)))


def _traits(role: str, slowness: float, random: Random, plan: Plan) -> Traits:
    jitter = PROMPTS ** random.uniform(-0.25, 0.25)  # a server that is fast at prompts need not be so at tokens
    return Traits(
        role,
        first_token=FIRST_TOKEN * slowness * jitter,
        pace=PACE / slowness,
        slots=random.choice(SLOTS),
        queue=random.choice(QUEUES),
        round_trip=0.0005 * 40 ** random.random(),
        load=plan.cold,
    )


def _absent(traits: Traits, random: Random, ends: float) -> Traits:
    away: list[tuple[float, float]] = []
    if traits.role == RETURNING:
        away.append((WALL, WALL + ABSENCE))
    now = WALL
    while traits.role == FLAPPING and now < ends:
        down = now + random.uniform(*FLAP_SECONDS)
        now = down + random.uniform(*FLAP_SECONDS)
        away.append((down, now))
    return msgspec.structs.replace(traits, away=tuple(away))


def _capacity(traits: Traits) -> float:
    """Return how many requests a second a server can answer in the long run."""
    share = {FULL: 0.0, HANGING: 0.0, FLAPPING: 0.5}.get(traits.role, 1.0)
    return share * traits.slots / traits.seconds(1.0, MEAN)


def _arrivals(plan: Plan, rate: float, random: Random, ends: float) -> list[Arrival]:
    arrivals, now = [], WALL
    while (now := now + random.expovariate(rate)) < ends:
        prompt = PROMPTS ** random.uniform(-1, 1)
        arrivals.append(Arrival(now, random.randrange(plan.processes), prompt, random.randint(FEWEST, MOST)))
    return arrivals
