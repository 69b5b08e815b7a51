"""Stream an answer into a file, each token as it comes.

    python examples/file_writer.py "Write an essay on rivers." essay.txt

Watch it grow with `tail -f essay.txt`. The exit status is 0 when the file holds the whole answer; otherwise it holds
the beginning, and stderr says why.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aicortex import AICortexError, Result, chat


def write_answer(prompt: str, path: Path) -> Result:
    """Stream the answer to `prompt` into a new file; raises AICortexError when the file holds only its beginning."""
    with path.open("w", encoding="utf-8") as file, chat(prompt, stream=True) as stream:
        for event in stream:
            if event.type == "token" and event.content:
                file.write(event.content)
                file.flush()
            elif event.type == "error":
                print(f"warning: {event.content}", file=sys.stderr)
        return stream.result


def main() -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description="Stream an answer into a file.")
    parser.add_argument("prompt")
    parser.add_argument("path", type=Path)
    options = parser.parse_args()
    try:
        result = write_answer(options.prompt, options.path)
    except AICortexError as error:
        print(f"{options.path} is not the whole answer: {error}", file=sys.stderr)
        return 1
    print(f"{options.path}: {len(result.text)} characters from {result.model} at {result.server}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
