"""Turn a text into data, and watch it grow.

    python examples/extract.py "Anna (34) lives in Bergen, Tom (29) in Oslo. Both play the violin."
    python examples/extract.py < report.txt

While the model writes, standard error says how far it is; what it found is written to standard output as JSON.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import msgspec

from aicortex import AICortexError, chat


@dataclass
class Person:
    """Somebody whom the text names."""

    name: str
    age: int | None = None
    town: str | None = None


@dataclass
class People:
    """Everybody whom the text names."""

    people: list[Person]


def extract(text: str) -> People:
    """Return the people of a text; raises AICortexError."""
    prompt = f"List every person in this text:\n\n{text}"
    with chat(prompt, format=People, temperature=0, max_tokens=1000, stream=True) as stream:
        for partial in stream.partials():
            found = partial.get("people", [])
            names = ", ".join(str(person["name"]) for person in found if "name" in person)
            print(f"\r{len(found)}: {names:.70}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        people: People = stream.object()  # raises OutputValidationError for what is none
        return people


def main() -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description="Find the people in a text.")
    parser.add_argument("text", nargs="?", help="by default standard input")
    options = parser.parse_args()
    try:
        people = extract(options.text or sys.stdin.read())
    except AICortexError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    print(msgspec.json.format(msgspec.json.encode(people), indent=2).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
