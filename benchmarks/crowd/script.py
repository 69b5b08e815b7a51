"""What the crowd's server says and its readers expect; pure.

The model's name says everything: `crowd-1000-500:latest` is a crowd of 1,000 streams of 500 tokens each. Stream `n`
says the words `n`, `n + 1`, … of one long list in which no word stands twice, so that at no moment two streams say the
same: a token that is lost, doubled or delivered to another stream is always seen.
"""

from __future__ import annotations

from itertools import accumulate

from benchmarks.replay import ANSWER_HEAD, LAST_CHUNK, TOKENS, done_chunk, token_chunk

RATE = 50  # tokens a second of each stream
PROMPT = "Tell me story number"


class Script:
    """The crowd named `model`: `streams` of so many `tokens` each, the `words`, and the `chunks` that carry them."""

    def __init__(self, model: str) -> None:
        """Render a crowd; raise ValueError if the name is not one of `crowd-STREAMS-TOKENS`."""
        mode, *numbers = model.partition(":")[0].split("-")
        if mode != "crowd" or len(numbers) != 2:
            raise ValueError(f"the crowd's server knows crowd-STREAMS-TOKENS, not {model!r}")
        self.streams, self.tokens = map(int, numbers)
        self.words = [f"{TOKENS[index % len(TOKENS)]}{index}" for index in range(self.streams + self.tokens)]
        self.chunks = [token_chunk(model, index, word) for index, word in enumerate(self.words)]
        self.last = done_chunk(model, self.tokens) + LAST_CHUNK
        self.ends = list(accumulate(map(len, self.chunks), initial=0))

    def size_before(self, number: int, token: int) -> int:
        """Return how many bytes of stream `number` stand before this token of it."""
        return len(ANSWER_HEAD) + self.ends[number + token] - self.ends[number]

    def size_of(self, number: int) -> int:
        """Return how many bytes the whole response to stream `number` has."""
        return self.size_before(number, self.tokens) + len(self.last)


def prompt_of(number: int) -> str:
    """Return the prompt that asks for stream `number`."""
    return f"{PROMPT} {number}"


def number_of(prompt: str) -> int:
    """Return which stream a prompt asks for."""
    return int(prompt.rpartition(" ")[2])
