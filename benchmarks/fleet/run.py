"""One scenario under one strategy, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import msgspec

from benchmarks.fleet.clients import Process, Reader, Tally, World
from benchmarks.fleet.hosts import Host
from benchmarks.fleet.scenario import Scenario
from benchmarks.fleet.timeline import Timeline


class Outcome(msgspec.Struct, frozen=True):
    """What a strategy was worth.

    `p50` and `p99` are seconds to the first token as readers saw them, over failovers; a request that nobody answered
    counts as for ever. `failed` is the share of attempts that failed, `shares` the share of attempts that went to each
    server with a role of its own.
    """

    strategy: str
    requests: int
    unanswered: int
    p50: float
    p99: float
    failed: float
    shares: dict[str, float]


def simulate(scenario: Scenario, strategy: str, seed: int) -> Outcome:
    """Run a scenario; the same arguments give the same outcome."""
    timeline = Timeline()
    hosts = [Host(number, traits, timeline) for number, traits in enumerate(scenario.servers)]
    world = World(timeline, hosts, strategy, Tally([0] * len(hosts), [0] * len(hosts)))
    random = Random(f"{seed} {strategy}")
    processes = [Process(world, Random(random.random())) for _ in range(scenario.plan.processes)]
    for arrival in scenario.arrivals:
        timeline.at(arrival.when, Reader(processes[arrival.process], arrival).start)
    timeline.run()
    return _outcome(scenario, strategy, world.tally)


def _outcome(scenario: Scenario, strategy: str, tally: Tally) -> Outcome:
    attempts = sum(tally.attempts)
    numbered = {traits.role: number for number, traits in enumerate(scenario.servers)}
    roles = {role: numbered[role] for role in scenario.plan.roles}
    waits = sorted(tally.first_tokens) + [float("inf")] * tally.unanswered
    return Outcome(
        strategy,
        tally.requests,
        tally.unanswered,
        quantile(waits, 0.5),
        quantile(waits, 0.99),
        sum(tally.failed) / attempts,
        {role: tally.attempts[number] / attempts for role, number in roles.items()},
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which this share of the values lies; they are in order."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
