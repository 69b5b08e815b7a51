"""What stands between a server that goes on and the reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex._core.joint import AGAIN, HELD, REPEATS
from aicortex._core.ollama import Function, Message, ToolCall
from aicortex._core.question import Question
from aicortex._core.seam import (
    DIFFERS,
    PREFILL,
    RAW,
    REPLAY,
    RESTART,
    Delivered,
    Seam,
    raw_prompt,
    ways_on,
)
from aicortex.events import StreamEvent

TEXT = "Black holes are very massive"
DELIVERED = Delivered(TEXT, chunks=5)
GREEDY = {"temperature": 0}


def says(*contents: str) -> list[Message]:
    return [Message(content) for content in contents]


def thinks(*thoughts: str) -> list[Message]:
    return [Message("", thought) for thought in thoughts]


def calls(*names: str) -> Message:
    return Message("", None, [ToolCall(Function(name, {"of": name})) for name in names])


def taken(seam: Seam, reads: Iterable[Sequence[Message]], *, final: bool = True) -> tuple[list[Message], str]:
    """Feed reads as they come, the last of them as the end; return what was delivered and what ended it.

    What is delivered behind the seam is all that came in later reads.
    """
    ready: list[Message] = []
    current: Seam | None = seam
    parts = list(reads)
    for number, messages in enumerate(parts):
        if current is None:
            ready += messages
            continue
        verdict = current.take(messages, final=final and number == len(parts) - 1)
        if verdict.stopped:
            return ready, "stopped"
        if verdict.fault:
            assert not verdict.ready
            return ready, verdict.fault
        ready += verdict.ready
        current = verdict.seam
    return ready, "" if current is None else "held"


def one_by_one(messages: Sequence[Message]) -> list[list[Message]]:
    return [[message] for message in messages]


def contents(messages: Iterable[Message]) -> list[str | None]:
    return [message.content for message in messages]


# what was delivered


def event(kind: str, content: str = "", **meta: Any) -> StreamEvent:
    return StreamEvent("meta", content, meta={"kind": kind, **meta})


def test_what_was_delivered() -> None:
    """Text, thought and tool calls are what the events say, and each event of them is one chunk."""
    events = [
        StreamEvent("start", ""),
        event("connected"),
        event("thinking", "h"),
        event("thinking", "m"),
        StreamEvent("token", "Black", 0),
        StreamEvent("token", " holes", 1),
        StreamEvent("tool_call", tool_name="add", tool_args={"a": 1}),
        StreamEvent("error", "it broke", meta={"kind": "reset"}),
    ]
    assert Delivered.of(events) == Delivered("Black holes", "hm", (("add", {"a": 1}),), 5, (None,))


def test_a_thought_begun_again_counts_from_there() -> None:
    """After a restart the reader has the second thought; a seam of another kind takes nothing back."""
    first = [event("thinking", "one"), event("thinking", " two")]
    again = [event("resumed", rung=RESTART), event("thinking", "uno")]
    other = [event("resumed", rung=REPLAY), event("thinking", " three")]
    assert Delivered.of([*first, *again]) == Delivered("", "uno", (), 1)
    assert Delivered.of([*first, *other]) == Delivered("", "one two three", (), 3)


@pytest.mark.parametrize(
    ("events", "is_some"),
    [
        ([], False),
        ([StreamEvent("start", ""), event("connected"), StreamEvent("error", "x", meta={"kind": "reset"})], False),
        ([event("thinking", "hm")], True),
        ([StreamEvent("token", "a", 0)], True),
        ([StreamEvent("tool_call", tool_name="add", tool_args={})], True),
        ([event("thinking", "hm"), event("resumed", rung=RESTART)], False),
    ],
)
def test_whether_anything_was_delivered(events: list[StreamEvent], is_some: bool) -> None:
    """Only what the model said counts."""
    assert bool(Delivered.of(events)) is is_some


# the ways on

TEXT_ONLY = Delivered("Black", chunks=1)
THOUGHT = Delivered("", "hm", chunks=1)
BOTH = Delivered("Black", "hm", chunks=2)
CALLED = Delivered("", "", (("add", {}),), 1)
ALL = Delivered("Black", "", (("add", {}),), 2)


@pytest.mark.parametrize(
    ("delivered", "fields", "same", "ways"),
    [
        (TEXT_ONLY, {}, True, (RAW, PREFILL)),
        (TEXT_ONLY, {}, None, (RAW, PREFILL)),
        (TEXT_ONLY, {}, False, (RAW, PREFILL)),
        (TEXT_ONLY, {"options": GREEDY}, True, (RAW, PREFILL, REPLAY)),
        (TEXT_ONLY, {"options": {"seed": 7}}, True, (RAW, PREFILL, REPLAY)),
        (TEXT_ONLY, {"options": GREEDY}, None, (RAW, PREFILL)),
        (TEXT_ONLY, {"options": GREEDY}, False, (RAW, PREFILL)),
        (TEXT_ONLY, {"think": False}, True, (RAW, PREFILL)),
        (TEXT_ONLY, {"think": True}, True, (PREFILL,)),
        (TEXT_ONLY, {"think": "high"}, True, (PREFILL,)),
        (TEXT_ONLY, {"tools": [{"type": "function"}]}, True, (PREFILL,)),
        (TEXT_ONLY, {"tools": []}, True, (RAW, PREFILL)),
        (TEXT_ONLY, {"messages": [{"role": "user", "content": "", "images": ["iVB"]}]}, True, (PREFILL,)),
        (TEXT_ONLY, {"format": "json"}, True, ()),
        (TEXT_ONLY, {"format": {"type": "object"}, "options": GREEDY}, True, (REPLAY,)),
        (TEXT_ONLY, {"format": {"type": "object"}, "options": GREEDY}, None, ()),
        (BOTH, {}, True, (PREFILL,)),
        (BOTH, {"options": GREEDY}, True, (PREFILL, REPLAY)),
        (THOUGHT, {}, True, (RESTART,)),
        (THOUGHT, {"options": GREEDY}, True, (REPLAY, RESTART)),
        (THOUGHT, {"options": GREEDY}, False, (RESTART,)),
        (THOUGHT, {"format": "json"}, False, (RESTART,)),
        (CALLED, {}, True, ()),
        (CALLED, {"options": GREEDY}, True, (REPLAY,)),
        (CALLED, {"options": GREEDY}, None, ()),
        (ALL, {}, True, ()),
        (ALL, {"options": GREEDY}, True, (REPLAY,)),
    ],
)
def test_the_ways_on(delivered: Delivered, fields: dict[str, Any], same: bool | None, ways: tuple[str, ...]) -> None:
    """Each row of the table at the top of the module, with its conditions."""
    question = Question("m", **{"messages": [], **fields})
    assert ways_on(question, delivered, same_weights=same) == ways


@pytest.mark.parametrize(
    ("rendered", "text", "prompt"),
    [
        ("<|user|>Hi<|assistant|>", "Black", "<|user|>Hi<|assistant|>Black"),
        ("<|assistant|><think>", "Black", None),
        ("<|assistant|><think>\n", "Black", None),
        ("<|assistant|><think>\n", "hm</think>Black", "<|assistant|><think>\nhm</think>Black"),
        ("<|assistant|><think>\n\n</think>\n\n", "Black", "<|assistant|><think>\n\n</think>\n\nBlack"),
        ("Tell me of <think>.<|assistant|>", "Black", "Tell me of <think>.<|assistant|>Black"),
        ("", "Black", "Black"),
    ],
)
def test_the_prompt_of_a_raw_request(rendered: str, text: str, prompt: str | None) -> None:
    """The text stands right behind the rendered prompt, except inside of a thought that it does not close."""
    assert raw_prompt(rendered, text) == prompt


# raw and prefill


def test_a_continuation_is_released_chunk_by_chunk() -> None:
    """What was held comes out as the messages that came, in order and unchanged."""
    messages = says(" obj", "ects", " in space", ".")
    for reads in ([messages], one_by_one(messages), [messages[:2], messages[2:]]):
        assert taken(Seam(DELIVERED), reads) == (messages, "")


def test_what_cannot_be_told_yet_is_held() -> None:
    """Words that the answer ends with are held until the next one tells."""
    seam = Seam(Delivered("It is very very", chunks=3))
    first = seam.take(says(" very"), final=False)
    assert (first.ready, first.fault, first.stopped) == ((), "", False)
    assert first.seam is not None
    assert contents(first.seam.held) == [" very"]
    second = first.seam.take(says(" massive"), final=False)
    assert (contents(second.ready), second.seam) == ([" very", " massive"], None)


def test_an_echo_is_refused_before_any_of_it_is_shown() -> None:
    """The echo's own first words never reach the reader."""
    echo = says("Black", " holes", " are", " very", " massive", " objects")
    for reads in ([echo], one_by_one(echo)):
        ready, fault = taken(Seam(Delivered(TEXT + ".", chunks=6)), reads, final=False)
        assert (ready, bool(fault)) == ([], True)
    tail = says("very", " massive", " objects")
    for reads in ([tail], one_by_one(tail)):
        assert taken(Seam(DELIVERED), reads, final=False) == ([], REPEATS)


def test_never_more_than_the_bound_is_held() -> None:
    """A text that stays in doubt is decided at the bound, whatever it is."""
    long = "Black holes bend light, and all that comes near them, even time itself and the space around it, is bent."
    seam: Seam | None = Seam(Delivered(long + "\n", chunks=20))
    held, letters = 0, iter(long)
    while seam is not None:
        verdict = seam.take(says(next(letters)), final=False)
        seam, held = verdict.seam, held + 1
    assert (held <= HELD, verdict.fault) == (True, AGAIN)


def test_the_end_decides() -> None:
    """When the server is done, what is held is delivered or refused."""
    seam = Seam(Delivered("It is very", chunks=3))
    held = seam.take(says(" is"), final=False).seam or seam
    assert contents(held.take([], final=True).ready) == [" is"]
    echo = Seam(Delivered(TEXT + "\n", chunks=6)).take(says("Black holes are"), final=False).seam or seam
    assert echo.take([], final=True).fault == AGAIN


def test_a_server_that_has_nothing_to_add_is_sound() -> None:
    """The answer may have been whole already."""
    assert taken(Seam(DELIVERED), [[]]) == ([], "")
    assert taken(Seam(DELIVERED), [says("")]) == (says(""), "")


def test_a_new_thought_is_no_continuation() -> None:
    """A server that thinks again has begun again; its text would be another answer's."""
    ready, fault = taken(Seam(DELIVERED), [thinks("The user"), says(" objects")])
    assert ready == []
    assert "think" in fault


def test_a_tool_call_ends_the_text() -> None:
    """Behind a call no more text is waited for: what was held is judged and the call delivered."""
    verdict = Seam(Delivered("It is very", chunks=3)).take([*says(" is"), calls("add")], final=False)
    assert (verdict.ready, verdict.seam) == ((*says(" is"), calls("add")), None)
    alone = Seam(DELIVERED).take([calls("add")], final=False)
    assert (alone.ready, alone.seam) == ((calls("add"),), None)


def test_nothing_is_added_to_a_full_answer() -> None:
    """One more token was asked for to hear that it is done: it is dropped, whatever it is."""
    seam = Seam(DELIVERED, is_full=True)
    first = seam.take(says("Sure"), final=False)
    assert (first.ready, first.seam, first.fault) == ((), seam, "")
    last = seam.take([*says(" objects"), calls("add")], final=True)
    assert (last.ready, last.seam, last.fault, last.stopped) == ((), None, "", False)


# stop strings across the seam

STOPS = ["END", "\n\n", "</answer>", "aab"]


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_string_is_seen_wherever_the_seam_cuts_it(stop: str) -> None:
    """Its beginning was delivered and its end comes: the answer is over, and nothing of the rest is shown."""
    for cut in range(1, len(stop)):
        rest = list(stop[cut:])
        seam = Seam(Delivered("A text" + stop[:cut], chunks=2), (stop,))
        for reads in ([says(stop[cut:] + " more")], one_by_one(says(*rest, " more")), [says(*rest)]):
            assert taken(seam, reads, final=False) == ([], "stopped")


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_string_that_does_not_complete(stop: str) -> None:
    """Its beginning alone stops nothing: what was held goes out in whole."""
    for cut in range(1, len(stop)):
        for size in range(1, len(stop) - cut):
            seam = Seam(Delivered("A text" + stop[:cut], chunks=2), (stop,))
            messages = [*says(*stop[cut : cut + size]), *says("~ and more of it")]
            assert taken(seam, one_by_one(messages), final=False) == (messages, "")


def test_the_beginning_of_a_stop_string_is_released_at_the_end() -> None:
    """A server that is done has no more of it to say."""
    seam = Seam(Delivered("A text E", chunks=2), ("END",))
    assert taken(seam, [says("N")], final=False)[1] == "held"
    assert taken(seam, [says("N"), []]) == (says("N"), "")


def test_the_one_of_many_stop_strings_that_comes_first() -> None:
    """Each of them is looked at."""
    seam = Seam(Delivered("A text <", chunks=2), ("STOP", "<|end|>", "</s>"))
    assert taken(seam, one_by_one(says("/", "s", ">", " more")), final=False) == ([], "stopped")
    assert taken(seam, one_by_one(says("b", ">", " more")), final=False) == (says("b", ">", " more"), "")


def test_a_whole_stop_string_behind_the_seam_is_the_servers_affair() -> None:
    """A server never sends the stop string it was given; text that looks like one comes from elsewhere."""
    assert taken(Seam(DELIVERED, ("END",)), [says(" THE END")]) == (says(" THE END"), "")


# replay


def replay(delivered: Delivered) -> Seam:
    return Seam(delivered, compares=True)


def test_a_replay_delivers_what_lies_behind() -> None:
    """What comes again is swallowed, and a chunk across the end of it gives its remainder."""
    whole = TEXT + " objects."
    for cut in range(len(whole) + 1):
        reads = [says(*filter(None, (whole[:cut], whole[cut:])))]
        for parts in (reads, one_by_one(reads[0])):
            ready, end = taken(replay(DELIVERED), parts)
            assert ("".join(message.content or "" for message in ready), end) == (" objects.", "")


@given(st.text(max_size=40), st.text(max_size=40), st.lists(st.integers(0, 80), max_size=10))
def test_a_replay_cut_anywhere(begun: str, rest: str, places: list[int]) -> None:
    """Any text, in any pieces, gives what lies behind what was delivered."""
    whole = begun + rest
    ends = sorted({min(place, len(whole)) for place in places} | {len(whole)})
    pieces = says(*(whole[a:b] for a, b in zip([0, *ends], ends, strict=False)))
    for reads in ([pieces], one_by_one(pieces)):
        ready, end = taken(replay(Delivered(begun, chunks=1)), reads)
        assert ("".join(message.content or "" for message in ready), end) == (rest, "")


def test_a_replay_is_told_at_its_end_exactly() -> None:
    """When just what was delivered has come again, the seam is proven although nothing new is there."""
    assert taken(replay(DELIVERED), [says(TEXT)], final=False) == ([], "")
    assert taken(replay(DELIVERED), [says(TEXT[:-1])], final=False) == ([], "held")


@pytest.mark.parametrize("place", [0, 5, len(TEXT) - 1])
def test_a_replay_that_differs_is_refused(place: int) -> None:
    """At the first other character, wherever it is and however it was cut."""
    other = TEXT[:place] + "#" + TEXT[place + 1 :] + " objects"
    for reads in ([says(other)], one_by_one(says(*other)), [says(*other)]):
        assert taken(replay(DELIVERED), reads) == ([], DIFFERS)


def test_a_replay_that_ends_too_early_is_refused() -> None:
    """A shorter answer is another one."""
    assert taken(replay(DELIVERED), [says(TEXT[:-1])]) == ([], DIFFERS)
    assert taken(replay(DELIVERED), [[]]) == ([], DIFFERS)


def test_a_replay_compares_the_thought_too() -> None:
    """The thought comes again first, and what is new of it is delivered as a thought."""
    thought = Delivered("", "Let me", chunks=2)
    messages = [*thinks("Let", " me see"), *says("Black")]
    assert taken(replay(thought), [messages]) == ([Message("", " see"), Message("Black")], "")
    assert taken(replay(thought), one_by_one(messages)) == ([Message("", " see"), Message("Black")], "")
    assert taken(replay(thought), [thinks("Let us")]) == ([], DIFFERS)
    both = Delivered("Bla", "Let me", chunks=3)
    assert taken(replay(both), one_by_one([*thinks("Let", " me"), *says("Black")])) == (says("ck"), "")
    assert taken(replay(both), one_by_one([*thinks("Let me see"), *says("Black")])) == ([], DIFFERS)


def test_text_before_the_thought_is_whole_is_refused() -> None:
    """A shorter thought is another one, although the text behind it may be alike."""
    both = Delivered("Black", "Let me see", chunks=3)
    for reads in ([[*thinks("Let me"), *says("Black holes")]], one_by_one([*thinks("Let me"), *says("Black holes")])):
        assert taken(replay(both), reads) == ([], DIFFERS)
    mingled = [*thinks("Let me"), *says("Black"), *thinks(" see"), *says(" holes")]
    assert taken(replay(both), one_by_one(mingled)) == ([], DIFFERS)
    assert taken(replay(Delivered("", "hm", chunks=1)), [[calls("add")]]) == ([], DIFFERS)


def test_one_message_may_hold_the_thoughts_end_and_the_texts_beginning() -> None:
    """A chunk is not always one kind of thing."""
    both = Delivered("Bla", "Let me", chunks=3)
    whole = Message("Black", "Let me", [ToolCall(Function("add", {"of": "add"}))])
    assert taken(replay(both), [[whole]]) == ([Message("ck", None, whole.tool_calls)], "")


def test_a_replay_compares_tool_calls() -> None:
    """Calls that were delivered are not made twice; other names or arguments are another answer."""
    called = Delivered("", "", (("add", {"of": "add"}),), 1)
    assert taken(replay(called), [[calls("add")], [calls("mul")]]) == ([calls("mul")], "")
    assert taken(replay(called), [[calls("add", "mul")]]) == ([calls("mul")], "")
    assert taken(replay(called), [[calls("mul")]]) == ([], DIFFERS)
    assert taken(replay(called), [[Message("", None, [ToolCall(Function("add", {"of": 1}))])]]) == ([], DIFFERS)
    assert taken(replay(called), [[]]) == ([], DIFFERS)
    two = Delivered("", "", (("add", {"of": "add"}), ("mul", {"of": "mul"})), 2)
    assert taken(replay(two), [[calls("add")]], final=False) == ([], "held")
    assert taken(replay(two), one_by_one([calls("add"), calls("mul")])) == ([], "")


@pytest.mark.parametrize(
    ("delivered", "early"),
    [
        (Delivered("Black", "", (("add", {"of": "add"}),), 2), says("Black holes")),
        (Delivered("Black holes", "", (("add", {"of": "add"}),), 2), [*says("Black"), calls("add", "mul")]),
    ],
)
def test_new_things_before_the_old_are_whole_are_refused(delivered: Delivered, early: list[Message]) -> None:
    """Text that goes on where a call was made before, or a new call before the text is whole, is another answer."""
    assert taken(replay(delivered), [early], final=False) == ([], DIFFERS)


def test_a_seam_is_a_value() -> None:
    """Judging changes nothing: an interrupted call can be made again."""
    seam = Seam(DELIVERED)
    assert seam.take(says("Bla"), final=False) == seam.take(says("Bla"), final=False)
    assert seam == Seam(DELIVERED)
