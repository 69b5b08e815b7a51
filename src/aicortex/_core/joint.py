"""Whether a text goes on with another one: the joint between what was delivered and what a second server says.

A server that was asked to continue may begin anew instead. What betrays it, with D delivered and N new:

    the answer again     N is the beginning of D, or begins like it and then differs     AGAIN
    its end again        N begins with the last words of D                               REPEATS
    a fresh turn         N begins like a message: "… very massiveSure, here is …"        STARTS
    none of these        however far N may grow                                          SOUND

Text may repeat itself with good reason: what was said before in the same surroundings is a loop of the model's own.
One word said twice in a row ("had had") is taken for the model's own as well when the second begins with white space,
and so are lines that begin alike. Where the two cannot be told apart, an honest end is better than a wrong text.
"""

from __future__ import annotations

import re

from aicortex._core.seam import HOLD, SOUND

HELD = 64  # characters after a seam that may be looked at before any of them is delivered
FAR = 256  # characters from the end of which a sentence may be said again
CONTEXT = 8  # characters on each side of a joint that make it the same joint as an earlier one
ALIKE = 40  # characters in which two lines may begin alike
AGAIN = "it began the answer anew instead of going on"
REPEATS = "it repeated the end of the answer instead of going on"
STARTS = "it began a message of its own instead of going on"

_PROSE = re.compile(  # two words, the way a sentence begins
    r"([^\W\d_][^\W\d_][\w'\u2019]*|[AI](['\u2019]\w+)?)[,!.:;]?\s+\w"
)
_OPENERS = re.compile(r"(Sure|Certainly|Of course|Absolutely|Continuing|Here is|Here's|Here are)\b")
_STARTERS = re.compile(  # words that begin sentences and no second half of a name
    r"(A|An|And|As|At|Because|But|For|From|He|How|I|If|In|It|My|No|Now|On|One|She|Since|So|Some|That|The|There|These|They"
    r"|This|Those|To|We|What|When|Where|While|Why|With|Yes|You|Your)('\w+)?[,!.:;]?\s+\w"
)
_WORD = re.compile(r"\w+")
_LAST_WORD = re.compile(r"\w+$")
_SENTENCE_END = ".!?:;,"


def judge(before: str, after: str, *, final: bool) -> str:
    """Return SOUND, HOLD, or the reason why `after` does not go on with `before`.

    `final` says that nothing follows that could still change the verdict.
    """
    if not before.strip():
        return SOUND
    final = final or len(after) >= HELD
    if not after.strip():
        return SOUND if final else HOLD
    verdicts = [check(before, after, final=final) for check in (_begins_again, _repeats_end, _starts_fresh)]
    for verdict in verdicts:
        if verdict in (AGAIN, REPEATS) and _is_loop(before, after):
            return SOUND
        if verdict not in (SOUND, HOLD):
            return verdict
    return HOLD if HOLD in verdicts else SOUND


def _begins_again(before: str, after: str, *, final: bool) -> str:
    old, new = before.strip(), after.lstrip()
    common = 0
    for mine, theirs in zip(old, new, strict=False):
        if mine != theirs:
            break
        common += 1
    if common == len(new) < len(old) and not final:
        return HOLD
    words = len(_WORD.findall(old[:common]))
    if common in (len(old), len(new)):
        return AGAIN if words >= 3 else SOUND
    return AGAIN if words >= 3 and (common >= ALIKE or _is_glued(before, after)) else SOUND


def _is_glued(before: str, after: str) -> bool:
    return not before[-1].isspace() and not after[0].isspace()


def _repeats_end(before: str, after: str, *, final: bool) -> str:
    """Look for the longest end of `before` that `after` begins with, in whole words."""
    old, new = before.rstrip(), after.lstrip()
    is_spaced, is_full = after[0].isspace(), len(after) >= HELD
    may_grow = False
    for start in range(max(0, len(old) - FAR), len(old)):
        end = old[start:]
        if start and old[start - 1].isalnum() and end[0].isalnum():
            continue  # in the middle of a word
        words = len(_WORD.findall(end[:HELD]))
        if words < 2 and (is_spaced or sum(map(str.isalnum, end)) < 2):
            continue
        if len(new) <= len(end):
            may_grow = may_grow or (end.startswith(new) and (is_full or not final or len(end) <= HELD))
        elif new.startswith(end) and not (end[-1].isalnum() and new[len(end)].isalnum()):
            return REPEATS
    if not may_grow:
        return SOUND
    if not final:
        return HOLD
    return REPEATS if len(_WORD.findall(new)) >= 2 else SOUND


def _starts_fresh(before: str, after: str, *, final: bool) -> str:
    new, last = after.lstrip(), before.rstrip(" ")[-1:]
    is_glued = _is_glued(before, after)
    is_spaced_before = before[-1] == " " and not after[0].isspace()  # tokens that end in their space
    in_sentence = last.isalnum() or last == ","
    if after[0] == " " and in_sentence and new[0].isupper():
        return _matched(_OPENERS, new, final=final)
    if is_glued and (last.isalnum() or last in _SENTENCE_END) and new[0].isalnum():
        first, again = _WORD.match(new), _WORD.search(before)
        if first is not None and again is not None and first[0] == again[0] and 1 < len(first[0]) < len(new):
            return STARTS
    is_joint = is_glued and (last.isalnum() or last in _SENTENCE_END)
    if new[0].isupper() and (is_joint or (is_spaced_before and in_sentence)):
        first_word = _WORD.match(new)
        has_inner_capital = first_word is not None and first_word[0][1:] != first_word[0][1:].lower()
        is_name = is_joint and (has_inner_capital or _is_name(before.rstrip(_SENTENCE_END)))
        if is_name and not _STARTERS.match(new):
            return _matched(_OPENERS, new, final=final)
        return _matched(_PROSE, new, final=final)
    return SOUND


def _is_name(text: str) -> bool:
    """Whether a text ends in something that may go on with a capital: IncrementalDecoder, State.DETECTING, YouTube."""
    word = _LAST_WORD.search(text)
    return word is not None and (word[0] != word[0].lower() or "_" in word[0])


def _matched(pattern: re.Pattern[str], new: str, *, final: bool) -> str:
    if pattern.match(new):
        return STARTS
    is_open = len(_WORD.findall(new)) < 3
    return HOLD if is_open and not final else SOUND


def _is_loop(before: str, after: str) -> bool:
    """Whether the model has gone on like this once before."""
    return before[-CONTEXT:] + after[:CONTEXT] in before
