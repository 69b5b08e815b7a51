"""A JSON value that grows with its text, in time linear in the length of the text, however that is cut.

    expected          character      then
    begin             `              fence, until the end of the line: value
    begin value       { [ " - 0 t    key or }, value or ], string, string, number, word
    string            " \\            after (key: colon), escape: string
    number word       their end      after
    colon             :              value
    after             , } ]          key or value, after
    after, at the top `              over (only behind a fence)

Arrays and objects are there once they are opened, strings grow character by character, numbers and words are there when
they are complete, and a key is there together with the beginning of its value. So each value on the way is a prefix of
the whole one. What a cut would garble is held back: an escape sequence, and the first half of a surrogate pair.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from msgspec import UNSET

MAX_DEPTH = 200  # arrays and objects inside each other; Python's own parser stops at about 1000
ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
WORDS: dict[str, tuple[str, object]] = {"t": ("rue", True), "f": ("alse", False), "n": ("ull", None)}
ESCAPE_CHARACTERS = 6  # of \u0041; a pair of surrogates has twice as many
MAX_FENCE = 32  # characters of the line that opens a Markdown fence
_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_NUMERIC = re.compile(r"[-+.eE0-9]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?P<fraction>(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)")
_FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\r?")
_HEX = frozenset("0123456789abcdefABCDEF")

Step = Callable[["Growing", str, int], int]


class Growing:
    """The value of a JSON text so far, fed piece by piece.

    One Markdown fence around the text is passed over. `feed` and `finish` raise ValueError, with the position in
    characters from 0, for what can be no JSON; the value stays what it was, and every later call raises the same.
    """

    __slots__ = (
        "_escape",
        "_fault",
        "_fed",
        "_holder",
        "_into",
        "_is_changed",
        "_is_fenced",
        "_is_key",
        "_parts",
        "_rest",
        "_slot",
        "_stack",
        "_step",
        "_word",
    )

    def __init__(self) -> None:
        self._holder: list[Any] = []  # Any: JSON; the whole value is the only item
        self._into: Any = self._holder  # Any: the list or dict under way
        self._slot: Any = -1  # Any: where in it the present value is, a dict's key or the end of a list
        self._stack: list[tuple[Any, Any]] = []  # Any: the lists and dicts around, with their slots
        self._step: Step = Growing._begin
        self._fed = 0  # characters of the pieces before this one
        self._is_changed = False
        self._is_key = False  # whether the string under way is a key
        self._is_fenced = False
        self._parts: list[str] = []  # of what is complete at its end only: a key, a number, the opening of a fence
        self._escape = ""
        self._rest = ""  # what must follow of a word
        self._word: object = None
        self._fault: ValueError | None = None

    @property
    def value(self) -> Any:  # Any: JSON
        """The value so far, msgspec.UNSET before it begins; lists and dicts are the growing ones themselves."""
        return self._holder[0] if self._holder else UNSET

    def feed(self, piece: str) -> bool:
        """Take the next piece of the text; returns whether the value has changed."""
        self._is_changed = False
        position, size = 0, len(piece)
        self._refuse_if_broken()
        while position < size:
            position = self._step(self, piece, position)
        self._fed += size
        return self._is_changed

    def finish(self) -> bool:
        """Take the end of the text; returns whether the value has changed, as a number at the top does only now."""
        self._is_changed = False
        self._refuse_if_broken()
        if self._step is Growing._number and not self._stack:
            self._end_number(0)
        if self._step not in (Growing._after, Growing._over) or self._stack or self._is_fenced:
            raise self._wrong(0, "more" if self._holder else "a value", "the end")
        return self._is_changed

    def _refuse_if_broken(self) -> None:
        if self._fault is not None:
            raise self._fault.with_traceback(None)

    def _wrong(self, position: int, expected: str, found: str) -> ValueError:
        self._fault = ValueError(f"expected {expected}, not {found}, at character {self._fed + position}")
        return self._fault

    # --- steps: each takes what it can of a piece from a position on, and returns where it stopped

    def _begin(self, piece: str, position: int) -> int:
        position = _end_of_space(piece, position)
        if position < len(piece):
            self._step = Growing._fence if piece[position] == "`" else Growing._value
        return position

    def _fence(self, piece: str, position: int) -> int:
        end = piece.find("\n", position)
        line_end = len(piece) if end < 0 else end
        self._parts.append(piece[position:line_end])
        line = "".join(self._parts)
        if end < 0 and len(line) <= MAX_FENCE:
            return line_end
        if end < 0 or not _FENCE.fullmatch(line):
            raise self._wrong(line_end - len(line), "a value", "'`'")
        self._parts.clear()
        self._is_fenced = True
        self._step = Growing._value
        return end + 1

    def _value(self, piece: str, position: int) -> int:
        position = _end_of_space(piece, position)
        if position == len(piece):
            return position
        character = piece[position]
        if character == '"':
            self._put("")
            self._step = Growing._string
        elif character == "{":
            self._open({}, Growing._first_key, position)
        elif character == "[":
            self._open([], Growing._first_item, position)
        elif character in "-0123456789":
            self._step = Growing._number
            return position
        elif character in WORDS:
            self._rest, self._word = WORDS[character]
            self._step = Growing._literal
        else:
            raise self._wrong(position, "a value", repr(character))
        return position + 1

    def _first_item(self, piece: str, position: int) -> int:
        position = _end_of_space(piece, position)
        if position == len(piece):
            return position
        if piece[position] == "]":
            return self._close(position)
        self._step = Growing._value
        return position

    def _first_key(self, piece: str, position: int) -> int:
        position = _end_of_space(piece, position)
        if position < len(piece) and piece[position] == "}":
            return self._close(position)
        return self._key(piece, position)

    def _key(self, piece: str, position: int) -> int:
        position = _end_of_space(piece, position)
        if position == len(piece):
            return position
        if piece[position] != '"':
            raise self._wrong(position, "a key", repr(piece[position]))
        self._is_key = True
        self._step = Growing._string
        return position + 1

    def _colon(self, piece: str, position: int) -> int:
        position = _end_of_space(piece, position)
        if position == len(piece):
            return position
        if piece[position] != ":":
            raise self._wrong(position, "':'", repr(piece[position]))
        self._step = Growing._value
        return position + 1

    def _after(self, piece: str, position: int) -> int:
        position = _end_of_space(piece, position)
        if position == len(piece):
            return position
        character = piece[position]
        if not self._stack:
            return self._leave_fence(character, position)
        is_object = type(self._into) is dict
        if character == ",":
            self._step = Growing._key if is_object else Growing._value
            return position + 1
        if character == ("}" if is_object else "]"):
            return self._close(position)
        raise self._wrong(position, "',' or '}'" if is_object else "',' or ']'", repr(character))

    def _leave_fence(self, character: str, position: int) -> int:
        if character != "`" or not self._is_fenced:
            raise self._wrong(position, "the end", repr(character))
        self._is_fenced = False
        self._rest, self._word = "``", UNSET
        self._step = Growing._literal
        return position + 1

    def _over(self, piece: str, position: int) -> int:
        position = _end_of_space(piece, position)
        if position < len(piece):
            raise self._wrong(position, "the end", repr(piece[position]))
        return position

    def _string(self, piece: str, position: int) -> int:
        end = _PLAIN.match(piece, position).end()  # type: ignore[union-attr]  # it matches the empty text, too
        if end > position:
            self._grow(piece[position:end])
            if end == len(piece):
                return end
        character = piece[end]
        if character == '"':
            self._end_string()
        elif character == "\\":
            self._escape = character
            self._step = Growing._escaped
        else:
            raise self._wrong(end, "a character", f"the control character {character!r}")
        return end + 1

    def _escaped(self, piece: str, position: int) -> int:
        character = piece[position]
        size = len(self._escape) % ESCAPE_CHARACTERS
        if self._escape and not size and character != "\\":  # the first half of a pair stands alone
            self._end_escape(ESCAPE_CHARACTERS)
            return position
        if size == 1 and character in ESCAPES:
            self._end_escape(len(self._escape) - 1)
            self._grow(ESCAPES[character])
            self._step = Growing._string
        elif character == "u" if size == 1 else size == 0 or character in _HEX:
            self._escape += character
            if size == ESCAPE_CHARACTERS - 1:
                self._end_code()
        else:
            raise self._wrong(position, "an escape sequence", repr(self._escape + character))
        return position + 1

    def _number(self, piece: str, position: int) -> int:
        end = _NUMERIC.match(piece, position).end()  # type: ignore[union-attr]  # it matches the empty text, too
        self._parts.append(piece[position:end])
        if end < len(piece):
            self._end_number(end)
        return end

    def _literal(self, piece: str, position: int) -> int:
        if piece[position] != self._rest[0]:
            raise self._wrong(position, repr(self._rest), repr(piece[position]))
        self._rest = self._rest[1:]
        if not self._rest:
            self._end_word()
        return position + 1

    # --- what the steps do to the value

    def _put(self, value: object) -> None:
        if type(self._into) is dict:
            self._into[self._slot] = value
        else:
            self._into.append(value)
        self._is_changed = True

    def _open(self, container: object, first: Step, position: int) -> None:
        if len(self._stack) == MAX_DEPTH:
            raise self._wrong(position, f"at most {MAX_DEPTH} levels", "one more")
        self._put(container)
        self._stack.append((self._into, self._slot))
        self._into, self._slot = container, -1
        self._step = first

    def _close(self, position: int) -> int:
        self._into, self._slot = self._stack.pop()
        self._step = Growing._after
        return position + 1

    def _grow(self, text: str) -> None:
        """Append to the string under way.

        CPython appends in place, and so in linear time, only to a local variable that is the one reference.
        """
        if self._is_key:
            self._parts.append(text)
            return
        into, slot = self._into, self._slot
        grown = into[slot]
        into[slot] = None
        grown += text
        into[slot] = grown
        self._is_changed = True

    def _end_string(self) -> None:
        self._step = Growing._after
        if self._is_key:
            self._is_key = False
            self._slot = "".join(self._parts)
            self._parts.clear()
            self._step = Growing._colon

    def _end_escape(self, size: int) -> None:
        """Let the first characters of an escape sequence stand for themselves: none, or half a pair."""
        if size:
            self._grow(chr(int(self._escape[2:size], 16)))
        self._escape = self._escape[size:]
        if not self._escape:
            self._step = Growing._string

    def _end_code(self) -> None:
        """Take a complete code, which may be half a pair of surrogates, or its second half."""
        code = int(self._escape[-4:], 16)
        if len(self._escape) > ESCAPE_CHARACTERS:
            if 0xDC00 <= code <= 0xDFFF:
                high = int(self._escape[2:ESCAPE_CHARACTERS], 16)
                self._grow(chr(0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00)))
                self._escape = ""
                self._step = Growing._string
                return
            self._end_escape(ESCAPE_CHARACTERS)
        if not 0xD800 <= code <= 0xDBFF:
            self._end_escape(ESCAPE_CHARACTERS)

    def _end_number(self, position: int) -> None:
        text = "".join(self._parts)
        self._parts.clear()
        found = _NUMBER.fullmatch(text)
        if found is None:
            raise self._wrong(position - len(text), "a number", repr(text))
        try:
            self._put(float(text) if found["fraction"] else int(text))
        except ValueError as error:  # Python reads integers of up to 4300 digits
            raise self._wrong(position - len(text), "a number", f"one of {len(text)} digits") from error
        self._step = Growing._after

    def _end_word(self) -> None:
        if self._word is UNSET:  # the fence
            self._step = Growing._over
        else:
            self._put(self._word)
            self._step = Growing._after


def _end_of_space(piece: str, position: int) -> int:
    return _SPACE.match(piece, position).end()  # type: ignore[union-attr]  # it matches the empty text, too
