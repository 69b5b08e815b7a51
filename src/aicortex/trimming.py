"""How many of the oldest turns of a conversation are left out, so that the rest and the answer have room.

What a server said about the size of the conversation counts for more than any estimate. Not all servers say it: some
count only the part of a prompt that they had not in their cache, and their numbers are not believed.

    a turn's size     what the conversation grew by, where the server counted it before and behind the turn
                      else an estimate by its letters
    everything else   what the last count that is believed has beyond its turns: the system's words, tools, the template

Text is measured in letters: a character is one, and three where a script puts a word into one or two, as Chinese does.
Good tokenizers put 3.5 to 5 letters into a token, of any language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import msgspec

LETTERS_PER_TOKEN = 3  # an estimate is rather too large than too small
MOST_LETTERS_PER_TOKEN = 6  # no conversation has more on the average: who counts less has not counted it all
MESSAGE_LETTERS = 24  # what the template puts around a message
IMAGE_LETTERS = 3000  # about a thousand tokens, whatever its file has
SMALLEST_CONTEXT = 2048  # tokens; no server has less unless it was told to


class Size(msgspec.Struct, frozen=True):
    """How large a turn is, in letters, and what the server counted behind it: see `registry.sessions.Turn`."""

    letters: int
    context: int = 0
    turns_before: int = 0
    left_out: int = 0


class Space(msgspec.Struct, frozen=True):
    """What there is room for: `length` tokens, of which the answer may take `limit`, a quarter if it is not limited.

    `fixed` are the letters of the system's words and the tools, `question` those of the new question.
    """

    length: int
    limit: int | None = None
    fixed: int = 0
    question: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens there is room for before the answer, which gets no more than half of it all."""
        return self.length - min(self.limit or self.length // 4, self.length // 2)


def letters_of(messages: Sequence[Mapping[str, Any]]) -> int:  # Any: JSON
    """Return the size of messages, with what the template puts around them; an image counts as a page of text."""
    total = 0
    for message in messages:
        rest = {key: value for key, value in message.items() if key not in ("role", "content", "images")}
        total += MESSAGE_LETTERS + _letters(message.get("content") or "")
        total += _letters(msgspec.json.encode(rest).decode()) if rest else 0
        total += IMAGE_LETTERS * len(message.get("images") or ())
    return total


def _letters(text: str) -> int:
    """Return the letters of a text: UTF-8 has one byte for ASCII, two for other alphabets, three and four beyond."""
    plain, encoded = len(text.encode("ascii", "ignore")), len(text.encode())
    beyond = (encoded - plain) - 2 * (len(text) - plain)
    return len(text) + 2 * beyond


def tokens_of(letters: int) -> int:
    """Return the tokens that so many letters are, estimated."""
    return -(-letters // LETTERS_PER_TOKEN)


def count_left_out(sizes: Sequence[Size], space: Space) -> int:
    """Return how many of the oldest turns are left out: 0 while all have room, all of them when none has.

    Where turns must be left out, those of the last time stay out and the others in as long as that has room: the server
    has their beginning in its cache. Then so many go that a quarter of the room is free again.
    """
    needed = _needed(sizes, space)
    if needed[0] <= space.tokens:
        return 0
    last = min(sizes[-1].left_out, len(sizes)) if sizes else 0
    if space.tokens / 2 <= needed[last] <= space.tokens:
        return last
    return next((count for count, tokens in enumerate(needed) if tokens <= space.tokens * 3 / 4), len(sizes))


def _needed(sizes: Sequence[Size], space: Space) -> list[int]:
    """Return the tokens of the conversation when none of the turns is left out, the oldest, the oldest two…"""
    counts = _believed(sizes, space.fixed)
    turns = _turns(sizes, counts)
    fixed = tokens_of(space.fixed)
    anchor = max(counts, default=None)
    if anchor is not None:
        beyond = counts[anchor] - sum(turns[sizes[anchor].left_out : anchor + 1])
        fixed = max(beyond, space.fixed // MOST_LETTERS_PER_TOKEN)
    total = fixed + tokens_of(space.question) + sum(turns)
    return [total, *(total - gone for gone in accumulate(turns))]


def _believed(sizes: Sequence[Size], fixed: int) -> dict[int, int]:
    """Return what servers counted, by the turn behind which they did, as far as it may be true.

    A count says nothing where the turn does not follow those that it was asked behind. Where it is less than any text
    has, or the conversation would have grown by less than the turn, or have become smaller, who counts so is not
    believed about the turns before either.
    """
    counts: dict[int, int] = {}
    largest: dict[int, int] = {}  # of those that left out as many
    until = [0, *accumulate(size.letters for size in sizes)]
    for place, size in enumerate(sizes):
        left_out = size.left_out
        if not size.context or size.turns_before != place or left_out > place:
            continue
        least = (fixed + until[place + 1] - until[left_out]) // MOST_LETTERS_PER_TOKEN
        grown = largest.get(left_out, 0) + size.letters // MOST_LETTERS_PER_TOKEN // 2  # thoughts may have gone
        if size.context > max(least, grown):
            counts[place] = largest[left_out] = size.context
        else:
            counts.clear()
            largest.clear()
    return counts


def _turns(sizes: Sequence[Size], counts: Mapping[int, int]) -> list[int]:
    """Return the tokens of each turn."""
    found = []
    for place, size in enumerate(sizes):
        is_counted = place in counts and place - 1 in counts and sizes[place - 1].left_out == size.left_out
        grown = counts[place] - counts[place - 1] if is_counted else tokens_of(size.letters)
        found.append(max(grown, 1))
    return found
