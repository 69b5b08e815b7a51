"""`python -m benchmarks`: measure every client beside the others in one run, and print what it cost.

Each measurement is a fresh process on a core of its own, the replay server has another, and the clients take
turns within every repeat, so that a slow moment of the machine strikes all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import clients, measure, replay, report

STARTS_PER_REPEAT = 3
CHILD_TIMEOUT = 600.0  # seconds; a client that hangs ends the run
SOURCES = [str(replay.ROOT), str(replay.ROOT / "src")]  # the checkout is measured, installed or not
CHILD = f"import sys; sys.path[:0] = {SOURCES!r}; from %s import main; main()"


class Run:
    """One run: what it measures, against which server, and the samples so far."""

    def __init__(self, url: str, names: list[str], *, models: dict[str, str], home: str) -> None:
        """Measure the clients `names` at `url`.

        `models` names the answers to `flood` and `paced` measurements; `home` is an empty directory that
        stands for the user's.
        """
        self.url = url
        self.samples: report.Samples = {name: {column: [] for column in report.COLUMNS} for name in names}
        self.models = models
        self.environment = child_environment(home)

    def repeat(self, title: str) -> None:
        """Take every measurement of every client once more."""
        for kind in ("start", "warm", "flood", "paced"):
            for name in self.samples:
                print(f"{title}: {kind} {report.LABELS[name]}", file=sys.stderr, flush=True)
                self._measure(kind, name)

    def start_once(self) -> None:
        """Start every client once unmeasured: bytecode gets compiled, files come into memory."""
        for name in self.samples:
            self._child("start", name)

    def _measure(self, kind: str, name: str) -> None:
        columns = self.samples[name]
        if kind == "start":
            for _ in range(STARTS_PER_REPEAT):
                begun = time.perf_counter()
                result = self._child(kind, name)
                columns["import_ms"].append(result["import"] * 1e3)
                columns["start_first_token_ms"].append((result["first_token_at"] - begun) * 1e3)
        elif kind == "warm":
            columns["warm_first_token_ms"] += [wait * 1e3 for wait in self._child(kind, name)["waits"]]
        else:
            result = self._child(kind, name)
            tokens = len(replay.Answer(self.models[kind]).texts)
            columns[f"{kind}_cpu_us"].append(result["cpu"] / tokens * 1e6)
            if kind == "flood":
                columns["flood_wall_us"].append(result["wall"] / tokens * 1e6)

    def _child(self, kind: str, name: str) -> dict[str, Any]:  # Any: numbers and lists of them
        """Run one measurement in a fresh process; raise RuntimeError if it fails or loses text."""
        model = self.models.get(kind, measure.FIRST_TOKEN_MODEL)
        result = run_child("benchmarks.measure", [kind, name, self.url, model], self.environment)
        require_whole(name, model, result["size"])
        return result


def run_child(module: str, arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:  # Any: as above
    """Run `main` of a module in a fresh process; return the JSON it prints last, or raise RuntimeError."""
    command = [sys.executable, "-I", "-c", CHILD % module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=CHILD_TIMEOUT)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def require_whole(name: str, model: str, size: int) -> None:
    """Raise RuntimeError unless `size` is what the client `name` must have read of the answer of `model`."""
    answer = replay.Answer(model)
    expected = answer.size_bytes if name in clients.FLOORS else sum(map(len, answer.texts))
    if size != expected:
        raise RuntimeError(f"{name} read {size} of the {expected} of {model}")


def child_environment(home: str) -> dict[str, str]:
    """Return this environment without proxies and configuration, and without a fetch at LiteLLM's import."""
    configuration = ("AICORTEX_", "OLLAMA_", "LITELLM_", "XDG_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith(configuration)
    }
    return kept | {"HOME": home, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def is_installed(distributions: Iterable[str]) -> bool:
    """Tell whether the packages of a client can be imported here."""
    return all(find_spec(distribution) is not None for distribution in distributions)


def pin(core: int) -> None:
    """Keep this process and those it starts from now on to one core, where the system can do that."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, {core})


def cores() -> list[int]:
    """Return the cores this process may use, in order; `[0]` where the system does not say."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return [0]


def describe_machine(distributions: Iterable[str]) -> str:
    """Return one line: Python, system, cores and the versions of the clients' packages."""
    versions = []
    for distribution in distributions:
        try:
            versions.append(f"{distribution} {version(distribution)}")
        except PackageNotFoundError:
            versions.append(f"{distribution} from the checkout")
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return "; ".join([f"Python {platform.python_version()} on {system}", *versions])


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line; exit with a message if they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
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
    if min(options.tokens, options.paced_seconds, options.repeat) <= 0:
        parser.error("--tokens, --paced-seconds and --repeat must be positive")
    return options


def names_among(known: Iterable[str], text: str) -> list[str]:
    """Return the known names that `text` lists, in the order of the known; raise ArgumentTypeError for any other."""
    names, every = text.split(","), list(known)
    if unknown := [name for name in names if name not in every]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(every)}")
    return [name for name in every if name in names]


def measure_all(options: argparse.Namespace, names: list[str]) -> report.Samples:
    """Measure the clients `names` as the options say, with progress on standard error; return the samples."""
    paced_tokens = max(1, round(options.paced_seconds / replay.PACE))
    models = {"flood": f"flood-{options.tokens}:latest", "paced": f"paced-{paced_tokens}:latest"}
    replayed = {*models.values(), measure.WARM_UP_MODEL, measure.FIRST_TOKEN_MODEL}
    available = cores()
    pin(available[0])
    with TemporaryDirectory() as home, replay.running(sorted(replayed)) as url:
        pin(available[-1])
        run = Run(url, names, models=models, home=home)
        run.start_once()
        for count in range(1, options.repeat + 1):
            run.repeat(f"{count} of {options.repeat}")
    return run.samples


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line asks for and print the report; return the exit status."""
    options = parse_arguments(arguments)
    sys.path[:0] = SOURCES
    names = [name for name in options.only if is_installed(clients.DISTRIBUTIONS[name])]
    machine = describe_machine(package for name in names for package in clients.DISTRIBUTIONS[name])
    samples = measure_all(options, names)
    if options.json:
        print(json.dumps({"machine": machine, "samples": samples}, indent=1))
    else:
        not_installed = [name for name in options.only if name not in names]
        print(f"{machine}\n\n{report.render(samples, not_installed)}")
    return 1 if options.check and report.is_missed(samples) else 0


if __name__ == "__main__":
    sys.exit(main())
