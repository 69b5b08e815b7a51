"""`python -m benchmarks.crowd`: a thousand streams in one process, and one stream alone, client beside client.

Each measurement is a fresh process on a core of its own, the replay servers have another, and the clients take turns
within every repeat, on asyncio and on uvloop, so that a slow moment of the machine strikes all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from tempfile import TemporaryDirectory

from benchmarks import replay
from benchmarks.__main__ import (
    SOURCES,
    child_environment,
    cores,
    describe_machine,
    is_installed,
    names_among,
    pin,
    require_whole,
    run_child,
)
from benchmarks.crowd import clients, report
from benchmarks.crowd.measure import WARM_UP_CROWD
from benchmarks.crowd.script import RATE
from benchmarks.measure import WARM_UP_MODEL

NOT_IN_CROWDS = ("litellm",)  # a thousand of its streams at 50 tokens a second would need ten cores
ATTEMPTS = 3  # for a crowd whose server kept its schedule: other processes may have had its core
OTHER_FILES = 200  # open files of a process besides its streams


class Run:
    """One run: which clients, against which servers, and the samples so far."""

    def __init__(self, rows: list[tuple[str, str]], urls: dict[str, str], models: dict[str, str], home: str) -> None:
        """Measure each (client, loop) of `rows`.

        `urls` and `models` name server and answer of the measurements `crowd`, `flood` and `paced`; `home` is an empty
        directory that stands for the user's.
        """
        self.rows, self.urls, self.models = rows, urls, models
        self.samples: report.Samples = {report.row_of(*row): {} for row in rows}
        self.reasons: dict[str, dict[str, int]] = {}
        self.environment = child_environment(home)

    def repeat(self, title: str) -> None:
        """Take every measurement of every client once more."""
        for kind in self.models:
            for client, loop in self.rows:
                if kind == "crowd" and client in NOT_IN_CROWDS:
                    continue
                print(f"{title}: {kind} {report.label(report.row_of(client, loop))}", file=sys.stderr, flush=True)
                self._measure(kind, client, loop)

    def _measure(self, kind: str, client: str, loop: str) -> None:
        model, row = self.models[kind], report.row_of(client, loop)
        arguments = [kind, client, loop, self.urls[kind], model]
        result = run_child("benchmarks.crowd.measure", arguments, self.environment)
        for _ in range(ATTEMPTS - 1):
            if result.get("late_p99_ms", 0.0) <= report.LATE_MS:
                break
            result = run_child("benchmarks.crowd.measure", arguments, self.environment)
        if kind == "crowd":
            if reasons := result.pop("reasons"):
                self.reasons[row] = dict(Counter(self.reasons.get(row, {})) + Counter(reasons))
            measured = result
        else:
            require_whole(client, model, result["size"])
            tokens = len(replay.Answer(model).texts)
            measured = {f"{kind}_{column}_us": result[column] / tokens * 1e6 for column in ("cpu", "wall")}
        for column, value in measured.items():
            self.samples[row].setdefault(column, []).append(value)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line; exit with a message if they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description=__doc__)
    parser.add_argument("--streams", type=int, default=1000, help="streams of a crowd (1000)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each of them, at 50 tokens/s (10)")
    parser.add_argument("--tokens", type=int, default=20_000, help="tokens of a flooded answer (20000)")
    parser.add_argument("--paced-seconds", type=float, default=4.0, help="length of a paced answer (4)")
    parser.add_argument("--repeat", type=int, default=3, help="times everything is measured (3)")
    parser.add_argument(
        "--only",
        type=partial(names_among, clients.OPEN),
        default=list(clients.OPEN),
        metavar="CLIENT,CLIENT",
        help=f"clients to measure, of {', '.join(clients.OPEN)}",
    )
    parser.add_argument("--json", action="store_true", help="print all samples as JSON instead of tables")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a target is missed")
    options = parser.parse_args(arguments)
    if min(options.streams, options.seconds, options.tokens, options.paced_seconds, options.repeat) <= 0:
        parser.error("--streams, --seconds, --tokens, --paced-seconds and --repeat must be positive")
    return options


def allow_files(streams: int) -> None:
    """Let this process and its children open a file for each stream; exit with a message where that is forbidden."""
    from resource import RLIMIT_NOFILE, getrlimit, setrlimit

    needed = streams + OTHER_FILES
    soft, hard = getrlimit(RLIMIT_NOFILE)
    if hard != -1 and hard < needed:
        sys.exit(f"{streams} streams need {needed} open files, and this system allows {hard}; see `ulimit -Hn`")
    if soft != -1 and soft < needed:
        setrlimit(RLIMIT_NOFILE, (needed, hard))


def measure_all(options: argparse.Namespace, rows: list[tuple[str, str]]) -> Run:
    """Measure the rows as the options say, with progress on standard error; return the run."""
    paced_tokens = max(1, round(options.paced_seconds / replay.PACE))
    models = {
        "crowd": f"crowd-{options.streams}-{max(1, round(options.seconds * RATE))}:latest",
        "flood": f"flood-{options.tokens}:latest",
        "paced": f"paced-{paced_tokens}:latest",
    }
    available = cores()
    pin(available[0])
    with ExitStack() as stack:
        home = stack.enter_context(TemporaryDirectory())
        crowd = stack.enter_context(replay.running([WARM_UP_CROWD, models["crowd"]], "benchmarks.crowd.server"))
        single = stack.enter_context(replay.running([WARM_UP_MODEL, models["flood"], models["paced"]]))
        pin(available[-1])
        run = Run(rows, {"crowd": crowd, "flood": single, "paced": single}, models, home)
        for count in range(1, options.repeat + 1):
            run.repeat(f"{count} of {options.repeat}")
    return run


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line asks for and print the report; return the exit status."""
    if sys.platform != "linux":
        sys.exit("this benchmark needs Linux: its server waits in epoll, and memory is read in /proc")
    options = parse_arguments(arguments)
    allow_files(options.streams)
    sys.path[:0] = SOURCES
    names = [name for name in options.only if is_installed(clients.DISTRIBUTIONS[name])]
    not_installed = [name for name in options.only if name not in names]
    loops = [loop for loop in report.LOOPS if find_spec(loop)]
    not_installed += [loop for loop in report.LOOPS if loop not in loops]
    machine = describe_machine([package for name in names for package in clients.DISTRIBUTIONS[name]] + loops[1:])
    run = measure_all(options, [(name, loop) for name in names for loop in loops])
    if options.json:
        print(json.dumps({"machine": machine, "samples": run.samples, "reasons": run.reasons}, indent=1))
    else:
        print(f"{machine}\n\n{report.render(run.samples, run.reasons, not_installed)}")
    return 1 if options.check and report.is_missed(run.samples) else 0


if __name__ == "__main__":
    sys.exit(main())
