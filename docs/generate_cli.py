"""Write docs/cli.md from the help of the commands: `python docs/generate_cli.py`."""

from __future__ import annotations

import os
from argparse import ArgumentParser, _SubParsersAction
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
| 0 | the answer is whole, the list complete |
| 1 | a server's fault, or no server has the model; a broken answer shows what came |
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
    parser = build_parser(COLUMNS)
    commands = next(action for action in parser._actions if isinstance(action, _SubParsersAction)).choices
    sections = [_section(parser), *map(_section, commands.values())]
    return "\n".join([INTRODUCTION, *sections, CONVERSATION.format(help=HELP)])


def _section(parser: ArgumentParser) -> str:
    return f"## `{parser.prog}`\n\n```text\n{parser.format_help().rstrip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8", newline="\n")
