"""Count the tokens of an answer while it comes, then print it.

    python examples/progress_counter.py "Explain the history of the internet." > answer.txt

The counter goes to stderr, in one line that changes on a terminal and as a line per fifty tokens elsewhere; the answer
goes to stdout, whole or not at all.
"""

from __future__ import annotations

import argparse
import sys

from aicortex import AICortexError, Result, chat


def note(words: str, *, passing: bool = False) -> None:
    """Write a line to stderr, over the passing one before it; only a terminal shows passing ones."""
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end="" if passing else "\n", file=sys.stderr, flush=True)
    elif not passing:
        print(words, file=sys.stderr, flush=True)


def count_tokens(prompt: str) -> Result:
    """Return the whole answer to `prompt`, counting its tokens on stderr; raises AICortexError."""
    stream = chat(prompt, stream=True)
    count, started = 0, 0.0
    for event in stream:
        when = event.timestamp or 0.0
        if event.type == "start":
            started = when
        elif event.type == "token":
            count += 1
            note(f"{count} tokens, {when - started:.1f} s", passing=sys.stderr.isatty() or count % 50 != 0)
        elif event.type == "error":
            note(f"warning: {event.content}")
    return stream.result


def main() -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description="Count the tokens of an answer while it comes.")
    parser.add_argument("prompt")
    try:
        result = count_tokens(parser.parse_args().prompt)
    except AICortexError as error:
        note(str(error))
        return 1
    first, speed = result.timings["first_token"], result.timings["tokens_per_second"]
    note(f"{result.usage['completion_tokens']} tokens, the first after {first:.2f} s, {speed:.1f} tokens/s")
    print(result.text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
