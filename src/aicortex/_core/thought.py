"""Thoughts inside of the text: what servers send that do not take a model's `<think>` apart from its answer.

    content so far                       what it is
    white space, the beginning of <think>    held, until it is clear
    <think> first                            a thought, up to </think>
    anything else                            the answer, and nothing is looked at any more

White space behind either tag belongs to neither, as where Ollama takes a thought apart itself (thinking/parser.go).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from aicortex._core.ollama import Chunk, Message
from aicortex._core.seam import CLOSED, OPENED


class Thought(msgspec.Struct, frozen=True):
    """How far a text is that may begin with a thought.

    `held` may be a part of a tag, or white space of which it is not known where it belongs. `is_open` says that the
    thought has begun, `is_said` that something of it was delivered.
    """

    held: str = ""
    is_open: bool = False
    is_said: bool = False

    def split(self, chunks: Sequence[Chunk]) -> tuple[list[Chunk], Thought | None]:
        """Return the chunks with thoughts as thoughts, and what to split next ones with: None when it is clear."""
        split: list[Chunk] = []
        thought: Thought | None = self
        for chunk in chunks:
            message = chunk.message or (Message("") if chunk.done else None)
            if thought is not None and message is not None and not chunk.is_empty:
                if message.thinking or message.tool_calls:
                    thought, message = thought._released(message)
                elif message.content or chunk.done:
                    thinking, content, thought = thought._taken(message.content or "", final=chunk.done)
                    message = Message(content, thinking or None)
                chunk = replace(chunk, message=message)
            split.append(chunk)
        return split, thought

    def _released(self, message: Message) -> tuple[Thought | None, Message]:
        """Take a message that has a thought or a call of its own: the server takes them apart itself."""
        if self.is_open:
            return self, message
        return None, replace(message, content=self.held + (message.content or ""))

    def _taken(self, content: str, *, final: bool) -> tuple[str, str, Thought | None]:
        """Return what is thought and what is answer, and what is left to be told apart."""
        text = self.held + content
        if self.is_open:
            return self._taken_open(text, final=final)
        begun = text.lstrip()
        if begun.startswith(OPENED):
            return Thought(is_open=True)._taken_open(begun[len(OPENED) :], final=final)
        if OPENED.startswith(begun) and not final:
            return "", "", Thought(text)
        return "", text, None

    def _taken_open(self, text: str, *, final: bool) -> tuple[str, str, Thought | None]:
        thinking, closed, content = text.partition(CLOSED)
        if not self.is_said:
            thinking = thinking.lstrip()
        if closed:
            content = content.lstrip()
            thinking = thinking.rstrip()
            if content or final:
                return thinking, content, None
            return thinking, "", Thought(CLOSED, is_open=True, is_said=True)
        if final:
            return thinking.rstrip(), "", None
        kept = _kept(thinking)
        said = thinking[: len(thinking) - kept]
        return said, "", Thought(thinking[len(said) :], is_open=True, is_said=self.is_said or bool(said))


FRESH = Thought()  # of every answer that begins: a thousand of them are one


def _kept(text: str) -> int:
    """Return how much of the end of a text may belong to the tag that closes it, or to the white space before that."""
    for length in range(min(len(CLOSED) - 1, len(text)), 0, -1):
        if text.endswith(CLOSED[:length]):
            text = text[:-length]
            return length + len(text) - len(text.rstrip())
    return len(text) - len(text.rstrip())
