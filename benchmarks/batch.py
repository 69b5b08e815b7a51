"""`python -m benchmarks.batch`: a batch over three embedded servers, one of which is killed, and so is the client.

Half way one server gets SIGKILL, a little later the command itself. The same command is then run again. What must hold:
each prompt is answered once, whatever was killed when.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SOURCE = str(Path(__file__).parents[1] / "src")
SERVERS = 3
SERVER_DIES_AT, CLIENT_DIES_AT = 0.5, 0.7  # of the prompts are answered then
GLANCE_SECONDS = 0.02
LIMIT_SECONDS = 900.0


def environment(folder: Path) -> dict[str, str]:
    """Return this process's environment with a registry of its own and the checkout's source."""
    return {**os.environ, "PYTHONPATH": SOURCE, "AICORTEX_DATA_DIR": str(folder / "data")}


@contextmanager
def embedded(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the embedded engine as a server, which says its URL on stdout."""
    command = [sys.executable, "-m", "aicortex", "embedded", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(folder)) as process:
        try:
            yield process
        finally:
            process.kill()


def url_of(process: subprocess.Popen[bytes]) -> str:
    """Return where a server listens, once it does."""
    assert process.stdout is not None  # asked for by `embedded`
    return str(json.loads(process.stdout.readline())["url"])


def write_prompts(path: Path, number: int, tokens: int) -> None:
    """Write prompts, every other one with an id, each third one twice in the same words."""
    rows: list[dict[str, Any]] = []  # Any: JSON
    for index in range(number):
        row = {"prompt": f"Say something about the number {index - index % 3}.", "max_tokens": tokens}
        rows.append({"id": f"prompt-{index}", **row} if index % 2 else row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def count(path: Path) -> int:
    """Return how many whole lines a file has."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(path: Path, number: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file has so many lines."""
    limit = time.monotonic() + LIMIT_SECONDS
    while count(path) < number:
        if process.poll() is not None or time.monotonic() > limit:
            raise RuntimeError(f"the batch ended early, with status {process.poll()} and {count(path)} answers")
        time.sleep(GLANCE_SECONDS)


def run(number: int, tokens: int = 8) -> dict[str, Any]:  # Any: JSON
    """Run the batch and return what became of it."""
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        servers = [stack.enter_context(embedded(folder)) for _ in range(SERVERS)]
        urls = [url_of(server) for server in servers]
        prompts, answers = folder / "prompts.jsonl", folder / "answers.jsonl"
        write_prompts(prompts, number, tokens)
        command = [sys.executable, "-m", "aicortex", "batch", str(prompts), "-o", str(answers)]
        command += ["--temperature", "0", "--seed", "7", *(word for url in urls for word in ("--server", url))]
        begun = time.perf_counter()
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment(folder)) as client:
            try:
                wait_for(answers, int(number * SERVER_DIES_AT), client)
                servers[-1].kill()
                wait_for(answers, int(number * CLIENT_DIES_AT), client)
            finally:
                client.kill()
        first = count(answers)
        again = subprocess.run(
            command, capture_output=True, text=True, env=environment(folder), timeout=LIMIT_SECONDS, check=False
        )
        seconds = time.perf_counter() - begun
        records = [json.loads(row) for row in answers.read_text("utf-8").splitlines()]
        return {**summary(records, urls), "first": first, "seconds": seconds} | {
            "status": again.returncode,
            "said": again.stderr.strip(),
        }


def summary(records: Sequence[dict[str, Any]], urls: Sequence[str]) -> dict[str, Any]:  # Any: JSON
    """Return how many answers there are, to how many prompts, and from whom."""
    servers = Counter(record["server"] for record in records)
    return {
        "answers": len(records),
        "prompts": len({record["index"] for record in records}),
        "moved": sum(record["attempts"] > 1 for record in records),
        "servers": [servers[url] for url in urls],
        "tokens": sum(record["usage"]["completion_tokens"] for record in records),
    }


def main() -> None:
    """Print what became of the batch."""
    parser = argparse.ArgumentParser(description="A batch that is killed and run again.")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=8)
    options = parser.parse_args()
    print(json.dumps(run(options.prompts, options.tokens), indent=2))


if __name__ == "__main__":
    main()
