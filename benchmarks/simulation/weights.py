"""What a model says: the ground truth against which every delivered text is checked.

Greedy decoding is a function of the weights and of the text so far: whoever holds the same weights goes on with the
same words from any place, whoever holds others goes on with other words. Sampled decoding gives new words each time.
"""

from __future__ import annotations

from random import Random

SYLLABLES = tuple(first + second for first in "bdfgklmnprstv" for second in "aeiou")
MARKS = ("", "", "", "", ",", ".", ";", "!", "\n\n", ":", "-", '"', "?", "…", "\\", "")
LETTERS = "学星黒穴光重力時空質量é🚀👩‍💻ñß日本語\u2028\u2029\x85ж"
SIGNS = ("()", "[0]", " = ", ":\n    ", "\t", "{}", " -> ", "#", "</b>", "&")


def _vocabulary() -> dict[str, tuple[str, ...]]:
    """Return the tokens of each style: so many that two texts hardly ever agree in three of them by chance."""
    pairs = [first + second for first in SYLLABLES for second in SYLLABLES]
    prose = [f" {pair}{MARKS[number % 16]}" for number, pair in enumerate(pairs)]
    size = len(LETTERS)
    wide = [f"{LETTERS[n % size]}{pair[: n % 3]}{LETTERS[n // 7 % size]}" for n, pair in enumerate(pairs)]
    code = [f"{pair}{SIGNS[number % 10]}" for number, pair in enumerate(pairs)]
    bare = [pair.capitalize() for pair in pairs]
    return {"bare": tuple(bare), "prose": tuple(prose), "wide": tuple(wide), "code": tuple(code)}


VOCABULARY = _vocabulary()
CALLS = (("add", {"a": 1, "b": 2}), ("weather", {"city": "Zürich"}), ("add", {"a": 1, "b": 2}))


class Weights:
    """One model. `tokens` is its greedy answer to the prompt of the run, `thinking` what it thinks before."""

    def __init__(self, random: Random, *, shape: str, thinks: bool) -> None:
        """Draw an answer of a shape: a style of VOCABULARY, or `loop`, `short`, `empty`, `spaces`."""
        self._random = random
        self._shape = shape
        self.tokens = self._draw()
        if shape == "prose":
            self.tokens[0] = self._opening()
        self.thinking = self._words("prose", 6) if thinks else []
        self._known = [("".join(self.tokens), self.tokens)]

    @property
    def text(self) -> str:
        """The greedy answer."""
        return self._known[0][0]

    def rest(self, text: str) -> list[str]:
        """Return the tokens that greedy decoding gives behind this text."""
        for full, tokens in self._known:
            if full.startswith(text):
                return behind(tokens, len(text))
        tokens = self._draw()
        self._known.append((text + "".join(tokens), [text, *tokens]))
        return tokens

    def sample(self) -> list[str]:
        """Return tokens as sampling gives them: others each time."""
        return self._draw()

    def other(self, text: str) -> list[str]:
        """Return the text's first four words and then others: the same thing said again in other words."""
        words = text.split(None, 4)
        return [text[: len(text) - len(words[4])].strip() if len(words) > 4 else text, *self._words("prose", 12)]

    def anew(self) -> list[str]:
        """Return a message of its own, as a fresh turn begins."""
        return [self._opening(), *self._words("prose", 12)]

    def _opening(self) -> str:
        """Return the word with which a message begins."""
        return self._words("bare", 1)[0]

    def _draw(self) -> list[str]:
        shape = self._shape
        number = self._random.random()
        if shape == "loop":
            return self._words("prose", 1 + int(3 * number)) * (3 + int(8 * number))
        if shape == "short":
            return self._words("prose", 1 + int(2 * number))
        if shape == "empty":
            return []
        if shape == "spaces":
            middle = self._words("prose", 2 + int(20 * number))
            return ["\n", "  ", *middle, " ", *self._words("prose", 4), "\n\n", " "]
        return self._words(shape, 2 + int((100 if number > 0.9 else 36) * number * number))

    def _words(self, style: str, count: int) -> list[str]:
        vocabulary, chance = VOCABULARY[style], self._random.random
        size = len(vocabulary)
        return [vocabulary[int(chance() * size)] for _ in range(count)]


def behind(tokens: list[str], length: int) -> list[str]:
    """Return the tokens behind so many characters; a token that the place falls into is cut."""
    for number, token in enumerate(tokens):
        if length < len(token):
            return [token[length:], *tokens[number + 1 :]]
        length -= len(token)
    return []
