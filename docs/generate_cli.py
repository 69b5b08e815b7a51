"""Write docs/cli.md from the help of the commands: `python docs/generate_cli.py`."""

from __future__ import annotations

import os
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from pathlib import Path

from aicortex.cli.interactive import HELP
from aicortex.cli.parser import build_parser

COLUMNS = 100
PAGE = Path(__file__).with_name("cli.md")
INTRODUCTION = """\
# The command line

Answers and lists go to standard output, everything else to standard error. On a terminal answers are rendered as
Markdown while they come; a pipe gets the tokens as they are, at once. After a second of silence a terminal says what
is waited for, in the middle of an answer too: on a line below it, which vanishes when the answer goes on. Colours
follow `NO_COLOR`, and a terminal that cannot move its cursor (`TERM=dumb`) gets plain text. Output is UTF-8 wherever
the locale allows.

| exit status | meaning |
|---|---|
| 0 | the answer is whole, the list complete, nothing is wrong |
| 1 | a server's fault, no server has the model, or a problem was found; a broken answer shows what came |
| 2 | wrong arguments |
| 130 | stopped with Ctrl-C, on the server too |
| 141 | whoever read the output has gone, as in `aicortex chat … \\| head -1` |
"""
CONVERSATION = """\
## Conversations

`aicortex chat` without a prompt, on a terminal, opens a conversation:

```text
{help}
```

An answer that was stopped or failed leaves the conversation as it was.
"""


def reference() -> str:
    """Return the page."""
    os.environ["NO_COLOR"] = "1"  # newer versions of argparse colour their help
    sections = _sections(build_parser(COLUMNS))
    return "\n".join([INTRODUCTION, *sections, CONVERSATION.format(help=HELP)])


def _sections(parser: ArgumentParser, heading: str = "##") -> Iterator[str]:
    """Yield the section of a command, and those of the commands below it."""
    yield f"{heading} `{parser.prog}`\n\n```text\n{parser.format_help().rstrip()}\n```\n"
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for command in action.choices.values():
                yield from _sections(command, "##" if parser.prog == "aicortex" else "###")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8", newline="\n")
