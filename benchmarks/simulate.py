"""Simulated streams by the million: `python -m benchmarks.simulate`. A seed that fails prints itself and replays."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from multiprocessing import get_context

from benchmarks.simulation.drive import Run, run

BATCH = 1000  # seeds that one process runs between two reports
SHOWN = 20  # violations that are printed in full


def run_batch(seeds: range) -> tuple[Counter[str], list[Run]]:
    """Run some seeds; return how often each ending came and the runs that violated an invariant."""
    endings: Counter[str] = Counter()
    bad = []
    for seed in seeds:
        found = run(seed)
        endings[found.ending] += 1
        if found.violation:
            bad.append(found)
    return endings, bad


def table_of(endings: Counter[str]) -> str:
    """Return how the runs ended as a Markdown table."""
    total = max(sum(endings.values()), 1)
    rows = [f"| {name} | {count} | {100 * count / total:.2f} % |" for name, count in sorted(endings.items())]
    return "\n".join(["| ending | runs | share |", "|---|--:|--:|", *rows])


def show(seed: int) -> int:
    """Replay one seed with its trace; return the exit status."""
    trace: list[str] = []
    try:
        found = run(seed, trace)
    finally:
        print("\n".join(trace))
    print(f"\nseed {seed}: {found.ending}")
    if found.violation:
        print(found.violation)
    return int(bool(found.violation))


def run_all(batches: Iterable[tuple[Counter[str], list[Run]]], seeds: int) -> int:
    """Collect all batches, showing progress; print what they came to and return the exit status."""
    endings: Counter[str] = Counter()
    bad: list[Run] = []
    begun = time.perf_counter()
    for part, violations in batches:
        endings += part
        bad += violations
        done, seconds = sum(endings.values()), time.perf_counter() - begun
        sys.stderr.write(f"\r{done} of {seeds} seeds, {done / seconds:.0f} a second, {len(bad)} violations")
        sys.stderr.flush()
    sys.stderr.write("\n")
    for found in bad[:SHOWN]:
        print(f"seed {found.seed}: {found.violation}\n  python -m benchmarks.simulate --seed {found.seed}\n")
    seconds = time.perf_counter() - begun
    print(table_of(endings))
    print(f"\n{seeds} seeds in {seconds:.1f} s, {seeds / seconds:.0f} a second, {len(bad)} violations")
    return int(bool(bad))


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def main() -> int:
    """Read the arguments and simulate."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__)
    parser.add_argument("--seeds", type=_count, default=1_000_000, metavar="N", help="how many seeds (1000000)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed (0)")
    parser.add_argument("--jobs", type=_count, default=os.cpu_count() or 1, metavar="N", help="processes (one a core)")
    parser.add_argument("--seed", type=int, metavar="SEED", help="replay this one alone and print its trace")
    options = parser.parse_args()
    if options.seed is not None:
        return show(options.seed)
    end = options.first + options.seeds
    batches = [range(first, min(first + BATCH, end)) for first in range(options.first, end, BATCH)]
    if options.jobs == 1:
        return run_all(map(run_batch, batches), options.seeds)
    with get_context("spawn").Pool(options.jobs) as pool:
        return run_all(pool.imap(run_batch, batches), options.seeds)


if __name__ == "__main__":
    sys.exit(main())
