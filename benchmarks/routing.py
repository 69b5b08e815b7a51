"""What each strategy of routing is worth, in virtual time: `python -m benchmarks.routing`.

Of 10 and of 50 servers of unequal speed one is ten times slower, one is up and down, and one says 503 at once. Four
processes ask them for half of what they can answer. The `plain` strategies know nothing of health, as usual clients.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from multiprocessing import get_context
from statistics import median

import msgspec

from aicortex._core.routing import BALANCED, FASTEST, NEAREST, PRIORITY, RANDOM, ROUND_ROBIN
from benchmarks.fleet.clients import PLAIN_RANDOM, PLAIN_ROUND_ROBIN
from benchmarks.fleet.hosts import HANGING, RETURNING
from benchmarks.fleet.run import Outcome, simulate
from benchmarks.fleet.scenario import MAIN, Plan, draw

STRATEGIES = (BALANCED, FASTEST, PRIORITY, NEAREST, ROUND_ROBIN, RANDOM, PLAIN_ROUND_ROBIN, PLAIN_RANDOM)
Case = tuple[str, Plan, str, int]


def run_case(case: Case) -> tuple[str, Outcome]:
    """Run one scenario under one strategy; return the scenario's name and the outcome."""
    name, plan, strategy, seed = case
    return name, simulate(draw(plan, seed), strategy, seed)


def cases_of(fleets: Sequence[int], minutes: float, seeds: Sequence[int], *, others: bool) -> list[Case]:
    """Return what is to be run; `others` are further troubles, each with 10 servers."""
    plans = {f"{servers} servers": Plan(servers, minutes) for servers in fleets}
    if others:
        plans["10 servers, one more hangs"] = Plan(10, minutes, (*MAIN, HANGING))
        plans["10 servers, one more is away for ten minutes"] = Plan(10, minutes, (*MAIN, RETURNING))
        plans["10 servers at 2 %, models load 10 s after five idle minutes"] = Plan(10, minutes, cold=10.0, load=0.02)
        plans["10 servers at 80 %"] = Plan(10, minutes, load=0.8)
    return [(name, plan, strategy, seed) for name, plan in plans.items() for strategy in STRATEGIES for seed in seeds]


def table_of(outcomes: Sequence[Outcome]) -> str:
    """Return one row for each strategy, the median over the seeds, as a Markdown table."""
    roles = list(outcomes[0].shares)
    header = ["strategy", "requests", "unanswered", "p50 s", "p99 s", "failed %", *(f"to {role} %" for role in roles)]
    lines = [f"| {' | '.join(header)} |", "|---|" + "--:|" * (len(header) - 1)]
    for strategy in dict.fromkeys(outcome.strategy for outcome in outcomes):
        found = [outcome for outcome in outcomes if outcome.strategy == strategy]
        cells = [strategy, f"{median(o.requests for o in found):.0f}", f"{median(o.unanswered for o in found):.0f}"]
        cells += [f"{median(o.p50 for o in found):.2f}", f"{median(o.p99 for o in found):.2f}"]
        cells.append(f"{100 * median(o.failed for o in found):.2f}")
        cells += [f"{100 * median(o.shares[role] for o in found):.2f}" for role in roles]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def collect(found: Iterable[tuple[str, Outcome]], total: int) -> dict[str, list[Outcome]]:
    """Return the outcomes by scenario, showing progress."""
    outcomes: dict[str, list[Outcome]] = {}
    for done, (name, outcome) in enumerate(found, 1):
        outcomes.setdefault(name, []).append(outcome)
        sys.stderr.write(f"\r{done} of {total} runs")
        sys.stderr.flush()
    sys.stderr.write("\n")
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, simulate and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing", description=__doc__)
    parser.add_argument("--servers", type=int, nargs="+", default=[10, 50], metavar="N", help="sizes of fleets (10 50)")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="M", help="virtual minutes (30)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many seeds, from 0 on (5)")
    parser.add_argument("--seed", type=int, metavar="S", help="this seed alone")
    parser.add_argument("--no-others", action="store_true", help="leave out the further troubles")
    parser.add_argument("--json", action="store_true", help="write every outcome as JSON")
    options = parser.parse_args(arguments)
    if min(options.servers) <= len(MAIN) or options.minutes <= 0 or options.seeds < 1:
        parser.error(f"--servers must be more than {len(MAIN)}, --minutes and --seeds more than 0")
    seeds = range(options.seeds) if options.seed is None else [options.seed]
    cases = cases_of(options.servers, options.minutes, seeds, others=not options.no_others)
    with get_context("spawn").Pool() as pool:
        outcomes = collect(pool.imap(run_case, cases), len(cases))
    if options.json:
        print(msgspec.json.encode(outcomes).decode())
        return 0
    for name, found in outcomes.items():
        print(f"\n{name}, {options.minutes:g} minutes, median of {len(seeds)} seeds\n\n{table_of(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
