"""`aicortex chat`: one answer, or a conversation when a terminal names no prompt."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aicortex.cli.asking import Manner, ask
from aicortex.cli.terminal import decoded, note

if TYPE_CHECKING:
    from aicortex.session import Session


def run(options: argparse.Namespace) -> int:
    """Ask and return 0 when the answer is whole; raises ValueError for wrong arguments, and what `chat` raises."""
    manner = Manner.of(options)
    prompt = read_prompt(options.prompt)
    if prompt is not None:
        ask(prompt, manner, _session(manner))
        return 0
    if manner.json:
        raise ValueError("a conversation has no JSON: give a prompt")
    for option, value in (("--image", manner.images), ("--format", manner.format)):
        if value is not None:
            raise ValueError(f"{option} belongs to a prompt: give one")
    if not sys.stdout.isatty():
        raise ValueError("nothing is asked: give a prompt, or text on standard input")
    from aicortex.cli.interactive import converse

    return converse(manner)


def _session(manner: Manner) -> Session | None:
    """Return the conversation that the command line names, if it does, and say on a terminal how long it is."""
    if manner.session is None:
        return None
    from aicortex.session import Session

    session = Session(manner.session)
    if sys.stderr.isatty():
        from aicortex.cli.sessions import length_words

        note(length_words(session))
    return session


def read_prompt(words: Sequence[str]) -> str | None:
    """Return what is asked, from the arguments, standard input or both; None when a terminal names nothing.

    Raises ValueError when there is nothing, or nothing that can be read.
    """
    instruction = " ".join(word for word in words if word != "-")
    if words and not instruction.strip() and "-" not in words:
        raise ValueError("the prompt is empty")
    is_terminal = sys.stdin.isatty()
    if is_terminal and "-" not in words:
        return instruction or None
    text = decoded(sys.stdin.buffer.read()).rstrip("\r\n")
    parts = [part for part in (instruction, text) if part.strip()]
    if not parts:
        raise ValueError("nothing is asked: standard input is empty, and there is no prompt")
    return "\n\n".join(parts)
