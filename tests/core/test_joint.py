"""Whether a text goes on with another one, fed as servers feed it."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aicortex._core.joint import AGAIN, HELD, REPEATS, STARTS, judge
from aicortex._core.seam import HOLD, SOUND

SENTENCE = "A black hole is a region of space where gravity is so strong that nothing can escape"
REST = " from it, not even light. Anything that comes too near is lost for ever to those who watch."


def fed(before: str, pieces: list[str]) -> tuple[str, str]:
    """Judge pieces as they come, until they are released or refused; return the verdict and what was looked at."""
    after = ""
    for piece in pieces:
        after += piece
        verdict = judge(before, after, final=False)
        if verdict != HOLD:
            return verdict, after
    return judge(before, after, final=True), after


def spellings(after: str) -> list[list[str]]:
    """Return a text cut in every way tokens come: characters, words with their space before or behind, all at once."""
    leading, trailing = re.findall(r"\s*\S+|\s+", after), re.findall(r"\S+\s*|\s+", after)
    halves = [[after[:cut], after[cut:]] for cut in range(1, min(len(after), 80))]
    return [list(after), leading, trailing, [after], *halves]


def verdicts(before: str, after: str) -> set[str]:
    return {fed(before, pieces)[0] for pieces in spellings(after)}


ENDS = ["", ".", ",", " ", ".\n", ".\n\n", "\n"]


@pytest.mark.parametrize("space", ["", " ", "\n", "\n\n"])
@pytest.mark.parametrize("end", ENDS)
def test_the_whole_answer_again_is_seen(end: str, space: str) -> None:
    """A server that says the delivered text from its first word on is caught before any of it is shown."""
    before = SENTENCE + end
    assert verdicts(before, space + before + REST) <= {AGAIN, REPEATS, STARTS}


@pytest.mark.parametrize("before", ["Black holes are", "Black holes are very ", "t0 t1 t2 t3 ", "t0 t1 t2 t3"])
@pytest.mark.parametrize("space", ["", " "])
def test_a_short_answer_again_is_seen(before: str, space: str) -> None:
    """Three words are enough to know it."""
    assert verdicts(before, space + before.strip() + " dense, and so on") <= {AGAIN, REPEATS, STARTS}


@pytest.mark.parametrize("count", [2, 3, 4, 7, 10])
@pytest.mark.parametrize("space", ["", " ", "\n"])
@pytest.mark.parametrize("end", ENDS)
def test_its_last_words_again_are_seen(end: str, space: str, count: int) -> None:
    """A server that takes a run-up from some words back is caught at the latest where the run-up ends."""
    before = SENTENCE + end
    tail = " ".join(SENTENCE.split()[-count:]) + end.rstrip()
    for pieces in spellings(space + tail + REST):
        verdict, seen = fed(before, pieces)
        assert verdict == REPEATS
        assert len(seen) <= len(pieces[0]) or len(seen.strip()) <= len(tail) + max(map(len, pieces))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("t0 t1 t2 t3 t4 ", "t3 t4 t5 t6 "),
        ("t0 t1 t2 t3 t4", " t3 t4 t5 t6"),
        ("t0 t1 t2 t3 t4", "t3 t4 t5 t6"),
        ("t0 t1 t2 t3 t4 ", "t4 t5 t6 "),
        ("t0 t1 t2 t3 t4", "t4 t5 t6"),
        ("nothing can escape", "escape from it"),
    ],
)
def test_run_ups_in_every_tokenisation(before: str, after: str) -> None:
    """Tokens carry their space in front, behind or nowhere; even one word is told when no space can explain it."""
    assert verdicts(before, after) == {REPEATS}


def test_the_last_sentence_again_is_seen_however_long_it_is() -> None:
    """A run-up longer than what may be held is known by its first characters."""
    assert len(SENTENCE) > HELD
    assert verdicts("Stars are bright. " + SENTENCE + ".", " " + SENTENCE + "." + REST) == {REPEATS}
    assert verdicts("Stars are bright. " + SENTENCE, SENTENCE + REST) <= {REPEATS, STARTS}
    assert verdicts("Stars are bright. " + SENTENCE + ".\n\n", SENTENCE + "." + REST) == {REPEATS}


PREAMBLES = [
    "Sure, here is the rest of the answer: from it",
    "Sure! Here's the continuation:\n\nfrom it",
    "Certainly! Continuing where I left off, it",
    "Of course. From it, not even light",
    "Here is the continuation of the text: from",
    "Here's the rest of it: from it",
    "Continuing from where the text ended: from it",
    "Absolutely, let me go on: from it",
    "The text goes on like this: from it",
    "It seems that your text was cut off",
    "I'm sorry, but I cannot continue this text",
    "A black hole, in short, is a very dense thing",
]


@pytest.mark.parametrize("before", [SENTENCE, SENTENCE + ".", "Black holes are very massive", "They do, don't they?"])
@pytest.mark.parametrize("after", PREAMBLES)
def test_a_fresh_message_glued_on_is_seen(before: str, after: str) -> None:
    """A sentence that begins without a space behind the last word was the first of a message."""
    assert verdicts(before, after) <= {STARTS, AGAIN}


@pytest.mark.parametrize("before", ["It was made by Sarah Brown", "It ran on Python.", "The limit is MAX_SIZE"])
@pytest.mark.parametrize("after", PREAMBLES[:10])
def test_a_fresh_message_behind_a_name_is_seen(before: str, after: str) -> None:
    """A name may go on with a capital, but not with the words that messages begin with."""
    assert verdicts(before, after) == {STARTS}


@pytest.mark.parametrize("after", PREAMBLES[:8])
def test_a_polite_opening_in_the_middle_of_a_sentence_is_seen(after: str) -> None:
    """The words with which assistants begin do not go on with a sentence, with a space before them either."""
    for before in (SENTENCE, SENTENCE + ","):
        assert verdicts(before, " " + after) == {STARTS}
        assert verdicts(before + " ", after) == {STARTS}


@pytest.mark.parametrize(
    "after",
    [
        "A black hole is a place where matter is so dense that light stays",
        "Black holes are regions of space from which nothing comes back",
        "Black holes, as they are called, are very dense",
    ],
)
def test_a_reworded_beginning_is_seen(after: str) -> None:
    """A second beginning that soon takes other words is one all the same."""
    assert verdicts("Black holes are a region of space where gravity is so strong that", after) <= {AGAIN, STARTS}
    assert verdicts("Black holes are very", after) <= {AGAIN, STARTS}


def test_a_beginning_alike_for_long_is_the_answer_again() -> None:
    """What begins like the answer for forty characters is the answer begun anew, whatever stands between."""
    other = SENTENCE.replace("strong", "mighty")
    for end in ENDS:
        assert verdicts(SENTENCE + end, "\n\n" + other + REST) <= {AGAIN}


NAMES = [  # tokens end inside of names
    ("To decode bytes piece by piece, Python has Incremental", "Decoder objects in the codecs module."),
    ("which raises NotImplemented", "Error when it is called"),
    ("self._state = ProbingState.", "DETECTING if it is not"),
    ("You can watch it on You", "Tube for free."),
    ("const handler = new XMLHttp", "Request object"),
    ("set MAX_", "Value here to the limit"),
    ("import java.util.Array", "List and so on"),
]
HONEST = [
    *NAMES,
    ("The force of gravi", "ty is weak, but it adds up over long distances."),
    ("un", "believ"),
    ("I ate a bana", "na split, please."),
    ("He said that he had", " had enough of it by then."),
    ("I know that", " that is true."),
    ("He said: Yes, yes", " yes, of course."),
    ("- Install the package\n- Install the", " tool\n- Install the rest"),
    ("- Open the file\n", "- Open the door\n- Open the box\n"),
    ("1. Add the flour and stir\n", "2. Add the eggs and stir\n"),
    ("* Black holes are dense\n", "* Black holes are cold\n"),
    ("Black holes are dense.\n", "Black holes are cold.\n"),
    ("Black holes are dense objects.\n\n", "Black holes are dense stars too.\n"),
    ("| a | b |\n|---|---|\n| yes |", " yes |\n| no | no |\n"),
    ("| yes", " | yes |\n"),
    ("| yes |", " yes |\n"),
    ("function get", 'Name() { return "x"; }'),
    ("    fmt.", 'Println("x")\n'),
    ("const now = new ", "Date();\n"),
    ("class Foo", "Bar(Base):\n    pass\n"),
    ("System.out.", "println(x);\n"),
    ("x = 1\n", "x = 2\nx = 3\n"),
    ("def f():\n    return 1\n\n", "def g():\n    return 1\n\n"),
    ("    if a:\n        }\n", "    }\n}\n"),
    ("黑洞是", "一个空间区域,那里的引力很强。"),
    ("ブラックホール", "は宇宙の天体です。"),
    ("Привет,", " Мир! Как дела?"),
    ("Чёрная ды", "\u0440\u0430 очень плотная."),
    ("I love it 😀", "😀😀 so much."),
    ("👩", "\u200d🚀 is an astronaut."),
    ("First line.", "\nSecond line."),
    ("First line.", "\n\nFirst of all, a second line."),
    ("A list follows:\n", "\n- one\n- two"),
    ("Her name is", " Sarah and she lives here."),
    ("She is called", " Sarah Brown."),
    ("We met in", " Paris and then in Rome."),
    ('He said, "', 'Sure, here you are."'),
    ("She asked,", ' "Where are you?"'),
    ("«", "Где ты?»"),
    ("Pi is 3.", "14159, roughly."),
    ("Pi is 3.14", "159, roughly."),
    ("1, 2, 3,", " 4, 5, 6"),
    ("In", " January 2020 it began."),
    ("The U.", "S. Army is"),
    ("That is, e.", "g. this one."),
    ("A sentence.", " Another sentence begins."),
    ("A sentence. ", "Another sentence begins."),
    ("**Black holes**", ": dense things."),
    ("## ", "The first chapter"),
    ("```python\n", "import os\n"),
    ("To be or not to be,", " that is the question."),
    ("They", "'re here."),
    ("They don", "\u2019t know."),
]


@pytest.mark.parametrize(("before", "after"), HONEST)
def test_an_honest_continuation_is_sound(before: str, after: str) -> None:
    """What goes on is let through, however its bytes were cut."""
    assert verdicts(before, after) == {SOUND}


@pytest.mark.parametrize(("before", "after"), HONEST)
def test_an_honest_text_is_sound_behind_a_long_answer(before: str, after: str) -> None:
    """It stays so when much was said before."""
    assert verdicts("Gravity bends light, and much of it.\n\n" + before, after) == {SOUND}


LOOPS = [
    ("no no no no no no no no no no", " no no no no no no"),
    ("la la la la la la la la la la ", "la la la la la la "),
    ("0, 0, 0, 0, 0, 0, 0, 0, 0,", " 0, 0, 0, 0, 0]"),
    ("Row, row, row your boat. Row, row, row your boat. Row, row, row your boat.", " Row, row, row your boat."),
    ("<li>one</li>\n<li>one</li>\n<li>one</li>\n", "<li>one</li>\n<li>one</li>\n"),
    ("| yes | yes | yes | yes |", " yes | yes | yes |"),
]


@pytest.mark.parametrize(("before", "after"), LOOPS)
def test_a_loop_of_the_models_own_is_sound(before: str, after: str) -> None:
    """What was said before in the same surroundings may be said again."""
    assert {fed(before, pieces)[0] for pieces in [list(after), [after]]} == {SOUND}


def test_a_short_rest_may_have_been_said_before() -> None:
    """The last words of an answer that stood in it elsewhere are its own, unless it ended with them."""
    before = "Gravity bends light. The more mass a body has, and the nearer the light comes to it, the more it"
    assert judge(before, " bends light.", final=True) == SOUND
    assert judge(before, " the more it", final=True) == REPEATS


@pytest.mark.parametrize("before", ["", " ", "\n\n", "\t \n"])
def test_behind_nothing_everything_is_sound(before: str) -> None:
    """White space alone is nothing to go on with."""
    assert judge(before, "Sure, here is", final=False) == SOUND
    assert judge(before, "", final=True) == SOUND


@pytest.mark.parametrize("after", ["", " ", "\n\n", " " * (HELD - 1)])
def test_white_space_says_nothing_yet(after: str) -> None:
    """Until a word comes it is held, and when none comes it is the end."""
    assert judge("Black holes", after, final=False) == HOLD
    assert judge("Black holes", after, final=True) == SOUND


def test_white_space_is_not_held_for_ever() -> None:
    """A wide gap is let through."""
    assert judge("Black holes", " " * HELD, final=False) == SOUND


def test_a_whole_answer_said_again_and_no_more_is_seen() -> None:
    """When the server has said the answer, or its first words, and ends, nothing of it is new."""
    assert judge(SENTENCE, SENTENCE, final=True) == AGAIN
    assert judge(SENTENCE, SENTENCE[:30], final=True) == AGAIN
    assert judge(SENTENCE, "nothing can", final=True) == REPEATS


WORDS = st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=2, max_size=9), min_size=4, max_size=20, unique=True)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {len(text)})
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False) if a < b]


@given(WORDS, st.sampled_from(["", " ", "\n"]), st.lists(st.integers(1, 200), max_size=12))
def test_any_answer_again_cut_anywhere(words: list[str], space: str, places: list[int]) -> None:
    """Random words from the first one on are refused before one of them is shown."""
    before = " ".join(words)
    verdict, _ = fed(before, cut(space + before + " and something new", places))
    assert verdict in (AGAIN, REPEATS, STARTS)


@given(WORDS, st.integers(2, 6), st.sampled_from(["", " ", "\n"]), st.lists(st.integers(1, 200), max_size=12))
def test_any_run_up_cut_anywhere(words: list[str], count: int, space: str, places: list[int]) -> None:
    """Random last words again are refused before one of them is shown."""
    tail = " ".join(words[-count:])
    assume(len(tail) < HELD - 2)
    verdict, _ = fed(" ".join(words), cut(space + tail + " Qqqq!", places))
    assert verdict in (AGAIN, REPEATS, STARTS)


@given(WORDS, st.data(), st.lists(st.integers(1, 200), max_size=12))
def test_any_new_words_cut_anywhere(words: list[str], data: st.DataObject, places: list[int]) -> None:
    """Words that were not said before go on with those that were, between words and inside of one."""
    whole = " ".join(words)
    place = data.draw(st.integers(1, len(whole) - 1))
    before, after = whole[:place], whole[place:]
    again = before.split()[0]
    assume(not after.startswith(tuple(before[-n:] for n in range(1, len(before) + 1))))
    assume(not after.startswith(again))
    assert fed(before, cut(after, places))[0] == SOUND


TEXTS = st.text(st.sampled_from("aAbB1 \n.,|é黑😀'_"), max_size=120) | st.text(max_size=120)


@given(TEXTS, TEXTS, st.lists(st.integers(1, 120), max_size=12))
def test_any_text_is_judged_within_its_bound(before: str, after: str, places: list[int]) -> None:
    """Every text gets a verdict, and none is held for longer than its bound."""
    seen = ""
    for piece in cut(after, places):
        seen += piece
        verdict = judge(before, seen, final=False)
        assert verdict in (SOUND, HOLD, AGAIN, REPEATS, STARTS)
        assert verdict != HOLD or len(seen) < HELD
    assert judge(before, after, final=True) in (SOUND, AGAIN, REPEATS, STARTS)


@given(TEXTS, st.text(st.sampled_from("aAbB1 \n.,|"), min_size=1, max_size=80))
def test_what_is_refused_stays_refused(before: str, after: str) -> None:
    """The end of a reply releases nothing that was refused before it, and refuses nothing that was released."""
    verdict, last = judge(before, after, final=False), judge(before, after, final=True)
    assert verdict == HOLD or (verdict == SOUND) == (last == SOUND)
