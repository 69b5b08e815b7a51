"""What routing is worth: a fleet of unequal and broken servers in virtual time."""

from __future__ import annotations

import pytest
from benchmarks import routing
from benchmarks.fleet.clients import PLAIN_RANDOM, PLAIN_ROUND_ROBIN
from benchmarks.fleet.hosts import FULL
from benchmarks.fleet.run import Outcome, quantile, simulate
from benchmarks.fleet.scenario import Plan, draw

from aicortex._core.routing import BALANCED, RANDOM, ROUND_ROBIN

RIVALS = (RANDOM, ROUND_ROBIN, PLAIN_RANDOM, PLAIN_ROUND_ROBIN)


@pytest.mark.parametrize(("servers", "minutes", "seed"), [(10, 10.0, 0), (10, 10.0, 1), (10, 10.0, 2), (50, 1.0, 0)])
def test_balanced_is_best_for_those_who_wait_longest(servers: int, minutes: float, seed: int) -> None:
    """Against random and round robin, with and without health, its p99 is the least, and nobody stays unanswered."""
    scenario = draw(Plan(servers, minutes), seed)
    balanced = simulate(scenario, BALANCED, seed)
    assert balanced.unanswered == 0
    for strategy in RIVALS:
        assert balanced.p99 < simulate(scenario, strategy, seed).p99 / 3


@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_refuses_at_once_attracts_nothing(seed: int) -> None:
    """Less than one attempt in a hundred goes to the server that always answers 503."""
    outcome = simulate(draw(Plan(10, 30.0), seed), BALANCED, seed)
    assert 0 < outcome.shares[FULL] < 0.01


def test_a_run_depends_on_its_arguments_alone() -> None:
    """The same seed gives the same outcome, another one another."""
    first, again, other = (simulate(draw(Plan(10, 2.0), seed), BALANCED, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_quantiles() -> None:
    """The middle and the last of a few values."""
    assert (quantile([1.0, 2.0, 3.0], 0.5), quantile([1.0, 2.0, 3.0], 0.99)) == (2.0, 3.0)


def test_the_table_has_the_median_of_the_seeds() -> None:
    """One row for each strategy, in the order in which they were run."""
    outcomes = [
        Outcome(strategy, 100, 0, p50, 10 * p50, 0.01, {"full": 0.002})
        for strategy, p50 in (("balanced", 1.0), ("balanced", 3.0), ("balanced", 2.0), ("random", 5.0))
    ]
    assert routing.table_of(outcomes).splitlines()[2:] == [
        "| balanced | 100 | 0 | 2.00 | 20.00 | 1.00 | 0.20 |",
        "| random | 100 | 0 | 5.00 | 50.00 | 1.00 | 0.20 |",
    ]


def test_all_of_it_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A small run prints a table; wrong numbers are refused in words."""
    assert routing.main(["--servers", "6", "--minutes", "1", "--seed", "3", "--no-others"]) == 0
    assert "6 servers, 1 minutes, median of 1 seeds" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        routing.main(["--servers", "2"])
    assert "--servers must be more than 3" in capsys.readouterr().err
