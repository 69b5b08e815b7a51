"""What growing values cost while a JSON answer of 200 kB streams: `python -m benchmarks.partials`.

AI Cortex takes each token once. The usual way parses the text so far again for each token, with a parser that takes
incomplete texts: its time grows with the square of the length. It is measured at one token of every hundred and
multiplied. `json.loads`, once at the end, is the floor.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

from aicortex.events import StreamEvent
from aicortex.partials import Growth

TOKEN_CHARACTERS = 4
LETTERS = 'etaoin shrdlu, é"\n'
EVERY = 100  # of the tokens, how many are left between two that are parsed again
HEADER = [
    "answer",
    "kB",
    "tokens",
    "values",
    "AI Cortex CPU ms",
    "µs/token",
    "json.loads once ms",
    "jiter each time ms",
]


def prose(source: random.Random, size: int) -> str:
    """Return so many characters, one in ten of which JSON escapes."""
    return "".join(source.choices(LETTERS, k=size))


def nested(source: random.Random, depth: int) -> Any:  # Any: JSON
    """Return a value of lists and objects so deep, with all kinds of scalars."""
    if depth == 0:
        return source.choice([source.random(), source.randrange(10**6), None, True, prose(source, 12)])
    inner = [nested(source, depth - 1) for _ in range(2)]
    return {"title": prose(source, 20), "left": inner[0], "list": [inner[1], 1, False]}


def answers(size: int) -> dict[str, str]:
    """Return JSON texts of about so many characters by name."""
    source = random.Random(7)
    objects = [{"id": number, "name": prose(source, 8), "ok": True} for number in range(size // 49)]
    return {
        "one long string": json.dumps({"text": prose(source, int(size * 0.72))}),
        f"a list of {len(objects):,} objects": json.dumps(objects),
        "deep mixture": json.dumps([nested(source, 5) for _ in range(size // 4400)], indent=1),
    }


def tokens_of(text: str) -> list[StreamEvent]:
    """Return a text as the events of its tokens."""
    starts = range(0, len(text), TOKEN_CHARACTERS)
    return [StreamEvent("token", content=text[start : start + TOKEN_CHARACTERS]) for start in starts]


def grow(tokens: Sequence[StreamEvent]) -> tuple[float, int, Any]:  # Any: JSON
    """Take the tokens one by one as `Stream.partials()` does; return CPU seconds, how many values, and the last."""
    log: list[StreamEvent] = []
    growth, values = Growth(log), 0
    begun = time.process_time()
    for token in tokens:
        log.append(token)
        values += growth.take()
    values += growth.end()
    return time.process_time() - begun, values, growth.value


def parse_again(parse: Callable[[bytes], object], text: str) -> float:
    """Return the CPU seconds of parsing the text so far at each token, measured at some of them."""
    data, spent = text.encode(), 0.0
    step = TOKEN_CHARACTERS * EVERY
    for end in range(step // 2, len(data), step):
        piece = data[:end]
        begun = time.process_time()
        parse(piece)
        spent += time.process_time() - begun
    return spent * EVERY


def incomplete_parser() -> Callable[[bytes], object] | None:
    """Return jiter's parser of incomplete texts, if it is installed."""
    try:
        from jiter import from_json
    except ImportError:
        return None
    return partial(from_json, partial_mode="trailing-strings")


def measure(name: str, text: str, repeat: int) -> list[str]:
    """Return a row of the table."""
    tokens = tokens_of(text)
    runs = [grow(tokens) for _ in range(repeat)]
    floors = []
    for _ in range(repeat):
        begun = time.process_time()
        whole = json.loads(text)
        floors.append(time.process_time() - begun)
    if any(value != whole for _, _, value in runs):
        raise RuntimeError(f"{name}: the last value is not the whole one")
    parse = incomplete_parser()
    seconds = median(seconds for seconds, _, _ in runs)
    again = "not installed" if parse is None else f"{1000 * parse_again(parse, text):,.0f}"
    cells = [name, f"{len(text) / 1000:.0f}", f"{len(tokens):,}", f"{runs[0][1]:,}", f"{1000 * seconds:.0f}"]
    return [*cells, f"{1e6 * seconds / len(tokens):.2f}", f"{1000 * median(floors):.1f}", again]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.partials", description=__doc__)
    parser.add_argument("--size", type=int, default=200_000, metavar="N", help="characters of an answer (200000)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="times everything is measured (5)")
    options = parser.parse_args(arguments)
    if options.size < 10_000 or options.repeat < 1:
        parser.error("--size must be at least 10000, --repeat at least 1")
    print(f"| {' | '.join(HEADER)} |\n|---|{'--:|' * (len(HEADER) - 1)}")
    for name, text in answers(options.size).items():
        print(f"| {' | '.join(measure(name, text, options.repeat))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
