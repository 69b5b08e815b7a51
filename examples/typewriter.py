"""Print an answer one character at a time, at an even pace, however unevenly its tokens come.

    python examples/typewriter.py "Describe the Milky Way in one paragraph."
    python examples/typewriter.py --delay 0.05 "Write a haiku."

Ctrl-C stops the answer, on the server too.
"""

from __future__ import annotations

import argparse
import sys
import time

from aicortex import AICortexError, chat


def type_answer(prompt: str, delay: float) -> None:
    """Print the answer to `prompt` with `delay` seconds between characters; raises AICortexError."""
    with chat(prompt, stream=True) as stream:  # leaving the block, by Ctrl-C too, stops the server
        for text in stream.tokens():
            for character in text:
                print(character, end="", flush=True)
                time.sleep(delay)
    print()


def main() -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description="Print an answer one character at a time.")
    parser.add_argument("prompt")
    parser.add_argument("--delay", type=float, default=0.01, metavar="SECONDS", help="per character (%(default)s)")
    options = parser.parse_args()
    try:
        type_answer(options.prompt, options.delay)
    except AICortexError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
