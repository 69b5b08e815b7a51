"""One measurement of one client, in the fresh process it runs in; prints one line of JSON.

Like `clients`, this module loads nothing before the client does: process start is one of the measurements.
"""

from __future__ import annotations

import sys
import time

from benchmarks.clients import IMPORTS, OPEN

TYPE_CHECKING = False  # see clients.py
if TYPE_CHECKING:
    from benchmarks.clients import Read

WARM_UP_MODEL = "flood-500:latest"
FIRST_TOKEN_MODEL = "paced-1:latest"  # its first token travels alone, as in a real answer
FIRST_TOKEN_REQUESTS = 50
FLOOD_SECONDS = 0.5  # quick clients read several floods, so that a measurement is never a few milliseconds


def start(client: str, url: str) -> dict[str, float]:
    """Import `client` and read one answer; return seconds of the import and the moment of the first token."""
    begun = time.perf_counter()
    exec(IMPORTS[client])
    imported = time.perf_counter()
    _, size, first_token_at = OPEN[client](url)(FIRST_TOKEN_MODEL)
    return {"size": size, "import": imported - begun, "first_token_at": first_token_at}


def warm(read: Read) -> dict[str, float | list[float]]:
    """Return seconds from the call to the first token for each of many requests on a warm connection."""
    waits = []
    for _ in range(FIRST_TOKEN_REQUESTS):
        begun = time.perf_counter()
        _, size, first_token_at = read(FIRST_TOKEN_MODEL)
        waits.append(first_token_at - begun)
    return {"size": size, "waits": waits}


def answers(read: Read, model: str, seconds: float) -> dict[str, float]:
    """Read answers of `model`, one or `seconds` full; return the CPU and wall seconds of one answer."""
    count = 0
    cpu, wall = time.process_time(), time.perf_counter()
    while count == 0 or time.perf_counter() - wall < seconds:
        _, size, _ = read(model)
        count += 1
    spent = time.process_time() - cpu, time.perf_counter() - wall
    return {"size": size, "cpu": spent[0] / count, "wall": spent[1] / count}


def main() -> None:
    """Measure what the arguments say (`start | warm | flood | paced`, client, URL, model) and print it."""
    kind, client, url, model = sys.argv[1:]
    result: object
    if kind == "start":
        result = start(client, url)
    else:
        read = OPEN[client](url)
        read(WARM_UP_MODEL)
        seconds = FLOOD_SECONDS if kind == "flood" else 0
        result = warm(read) if kind == "warm" else answers(read, model, seconds)
    import json  # after the measurement, so that it is no part of it

    print(json.dumps(result))
