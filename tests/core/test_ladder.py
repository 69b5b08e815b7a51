"""The requests that lead to an answer, server by server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from aicortex._core.failover import Failure
from aicortex._core.http import Response
from aicortex._core.ladder import ASK_ANSWER, ASK_RENDER, ASK_VERSION, FIRST, Ladder, Memory, Step
from aicortex._core.question import VERSION, Question
from aicortex._core.seam import PREFILL, RAW, REPLAY, RESTART, Delivered

USER = {"role": "user", "content": "What is a black hole?"}
PROMPT = "<|user|>What is a black hole?<|assistant|>"
TEXT = "Black holes are"
QUESTION = Question("m", [USER])
GREEDY = Question("m", [USER], options={"temperature": 0})
PICTURED = Question("m", [{**USER, "images": ["iVB"]}])
DELIVERED = Delivered(TEXT, chunks=3)


def response(status: int = 200, body: Any = None, *, is_whole: bool = True) -> Response:
    """Return a response with this body, as JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    size = len(data) if is_whole else len(data) + 1
    found = Response()
    found.take([b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, size, data)])
    return found


def versioned(version: str = "0.30.0") -> Response:
    return response(200, {"version": version})


def rendered(prompt: str) -> Response:
    """Return the reply of a server that knows the flag."""
    return response(200, {"model": "m", "_debug_info": {"rendered_template": prompt}})


def generated() -> Response:
    """Return the reply of a server that does not know the flag and generates."""
    return response(200, {"model": "m", "message": {"role": "assistant", "content": "A"}, "done": True})


def broken(question: Question = QUESTION, *digests: str, delivered: Delivered = DELIVERED, **more: Any) -> Ladder:
    """Return the ladder after server 0 delivered a part and broke."""
    digests = digests or ("d", "d", "d")
    return Ladder(question, digests, more.pop("memory", {}), **more).broke(0, delivered)


def learn(ladder: Ladder, step: Step | None, reply: Response, server: int = 1) -> tuple[Ladder, Any]:
    """Tell the ladder what a server replied to its own step."""
    assert step is not None
    return ladder.learned(server, step.task, step.rung, reply)


def prepared(ladder: Ladder, server: int = 1, version: str = "0.30.0") -> tuple[Ladder, Any]:
    """Return the ladder and the step behind the version of a server."""
    step = ladder.step(server)
    assert step == Step(VERSION, ASK_VERSION, step.rung if step else "")
    return learn(ladder, step, versioned(version), server)


def test_at_first_the_question_is_asked() -> None:
    """Before anything is delivered there is one request, for every server."""
    ladder = Ladder(QUESTION, ("", ""), {})
    assert [ladder.step(server) for server in (0, 1)] == [Step(QUESTION.chat(), ASK_ANSWER, FIRST)] * 2
    assert ladder.order(range(2)) == {0: 0, 1: 0}


def test_the_walk_at_a_modern_server() -> None:
    """Version, the rendered prompt, and then the raw request behind it."""
    ladder, step = prepared(broken())
    assert step == Step(QUESTION.render(), ASK_RENDER, RAW)
    ladder, step = learn(ladder, step, rendered(PROMPT))
    assert step == Step(QUESTION.raw(PROMPT + TEXT, spent=3), ASK_ANSWER, RAW)
    assert ladder.ways(1) == [RAW, PREFILL]


def test_the_version_is_asked_once_per_server() -> None:
    """What a server is does not change within an answer."""
    ladder, _ = prepared(broken())
    assert ladder.step(1) == Step(QUESTION.render(), ASK_RENDER, RAW)
    assert ladder.step(2) == Step(VERSION, ASK_VERSION, RAW)


@pytest.mark.parametrize("body", [b"no JSON", b"[]", b'{"version":1}', b"{}"])
def test_a_version_that_cannot_be_read_is_unknown(body: bytes) -> None:
    """Something in front of the server may answer in its place; the walk goes on without memory."""
    ladder, step = learn(broken(), Step(VERSION, ASK_VERSION, RAW), response(200, body))
    assert ladder.versions == {1: ""}
    assert step == Step(QUESTION.render(), ASK_RENDER, RAW)


def test_raw_fails_then_prefill_then_replay() -> None:
    """Each rung that fails at a server leads to the next one there, until none is left."""
    ladder, step = prepared(broken(GREEDY))
    ladder, step = learn(ladder, step, rendered(PROMPT))
    ladder = ladder.without(1, RAW)
    step = ladder.step(1)
    assert step == Step(GREEDY.render(TEXT), ASK_RENDER, PREFILL)
    ladder, step = learn(ladder, step, rendered(PROMPT + TEXT))
    assert step == Step(GREEDY.prefill(TEXT, spent=3), ASK_ANSWER, PREFILL)
    ladder = ladder.without(1, PREFILL)
    assert ladder.step(1) == Step(GREEDY.chat(), ASK_ANSWER, REPLAY)
    ladder = ladder.without(1, REPLAY)
    assert (ladder.step(1), ladder.ways(1)) == (None, [])
    assert ladder.ways(2) == [RAW, PREFILL, REPLAY]


def test_prefill_needs_the_thought_too() -> None:
    """With a thought the prompt must hold it and end with the text."""
    thought = Delivered(TEXT, "Let me see", chunks=6)
    ladder, step = prepared(broken(QUESTION, delivered=thought))
    assert step == Step(QUESTION.render(TEXT, "Let me see"), ASK_RENDER, PREFILL)
    whole = f"{PROMPT}<think>Let me see</think>{TEXT}"
    assert learn(ladder, step, rendered(whole))[1] == Step(
        QUESTION.prefill(TEXT, "Let me see", spent=6), ASK_ANSWER, PREFILL
    )
    assert learn(ladder, step, rendered(PROMPT + TEXT))[1] is None


@pytest.mark.parametrize(
    "prompt", [PROMPT + TEXT + "<|end|>\n<|assistant|>", PROMPT + TEXT + "\n", PROMPT, "", TEXT[:-1]]
)
def test_a_template_that_starts_a_new_turn(prompt: str) -> None:
    """A prompt that does not end with the text is no way on, and that is remembered of the version and weights."""
    memory: Memory = {}
    ladder, step = prepared(broken(PICTURED, memory=memory))
    assert step == Step(PICTURED.render(TEXT), ASK_RENDER, PREFILL)
    ladder, step = learn(ladder, step, rendered(prompt))
    assert step is None
    assert memory == {("0.30.0", "d"): {PREFILL}}
    assert prepared(broken(PICTURED, memory=memory))[1] is None


def test_a_trimmed_text_is_not_held_against_the_template() -> None:
    """A template that strips white space fails this text alone: nothing is remembered."""
    memory: Memory = {}
    spaced = Delivered(TEXT + " ", chunks=3)
    ladder, step = prepared(broken(PICTURED, memory=memory, delivered=spaced))
    assert learn(ladder, step, rendered(PROMPT + TEXT))[1] is None
    assert memory == {}


def test_white_space_alone_is_no_prefill() -> None:
    """Every prompt may end with a newline: that it does proves nothing."""
    ladder, step = prepared(broken(PICTURED, delivered=Delivered("\n", chunks=1)))
    assert learn(ladder, step, rendered(PROMPT + "\n"))[1] is None


def test_a_prompt_that_opens_a_thought() -> None:
    """A raw request would go on inside of the thought, so prefill is tried; another answer may be different."""
    memory: Memory = {}
    ladder, step = prepared(broken(memory=memory))
    ladder, step = learn(ladder, step, rendered(PROMPT + "<think>\n"))
    assert step == Step(QUESTION.render(TEXT), ASK_RENDER, PREFILL)
    assert memory == {}


@pytest.mark.parametrize("version", ["0.11.4", "0.9.10", "0.0.1", "0.11.4-rc1", "0.11.4+7", "0.11"])
def test_an_old_server_cannot_render(version: str) -> None:
    """It does not know the flag and would generate: it is not even asked, and replay is left."""
    assert prepared(broken(GREEDY), version=version)[1] == Step(GREEDY.chat(), ASK_ANSWER, REPLAY)
    assert prepared(broken(), version=version)[1] is None


@pytest.mark.parametrize(
    "version", ["0.11.5", "0.11.5-rc2", "0.30.0", "1.0", "", "dev", "0.x.1", "0.0.0", "0.0.0-dirty"]
)
def test_any_other_server_is_asked_to_render(version: str) -> None:
    """What says nothing of its age may know the flag: its reply will tell."""
    assert prepared(broken(), version=version)[1] == Step(QUESTION.render(), ASK_RENDER, RAW)


@pytest.mark.parametrize("reply", [generated(), response(200, {}), response(200, {"_debug_info": {}})])
def test_a_render_without_a_prompt(reply: Response) -> None:
    """Something in front of the server dropped the flag: no exact way on here, and nothing is remembered of others."""
    memory: Memory = {}
    ladder, step = prepared(broken(GREEDY, memory=memory))
    ladder, step = learn(ladder, step, reply)
    assert step == Step(GREEDY.chat(), ASK_ANSWER, REPLAY)
    assert memory == {}
    ladder, step = prepared(broken(memory=memory))
    assert learn(ladder, step, reply)[1] is None


@pytest.mark.parametrize(("version", "digest"), [("", "d"), ("0.30.0", ""), ("", "")])
def test_nothing_is_remembered_of_unknown_servers(version: str, digest: str) -> None:
    """Without version or weights nobody knows which other servers it would hold for."""
    memory: Memory = {}
    ladder, step = prepared(broken(PICTURED, "d", digest, memory=memory), version=version)
    ladder, step = learn(ladder, step, rendered(PROMPT))
    assert (step, memory) == (None, {})


def test_what_is_remembered_holds_for_its_kind() -> None:
    """For the same version with the same weights, in later answers; not for another version or other weights."""
    memory: Memory = {("0.30.0", "d"): {PREFILL}}
    assert prepared(broken(PICTURED, memory=memory))[1] is None
    asked = Step(PICTURED.render(TEXT), ASK_RENDER, PREFILL)
    assert prepared(broken(PICTURED, memory=memory), version="0.31.0")[1] == asked
    assert prepared(broken(PICTURED, "d", "e", memory=memory))[1] == asked
    assert prepared(broken(memory=memory))[1] == Step(QUESTION.render(), ASK_RENDER, RAW)


def test_a_render_that_is_no_json() -> None:
    """A page where the prompt should be is a failure of the server, and nothing is remembered."""
    memory: Memory = {}
    ladder, step = prepared(broken(memory=memory))
    same, failure = learn(ladder, step, response(200, b"<html>"))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.phase) == ("bad_response", "resume")
    assert (same, memory) == (ladder, {})


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": "unknown field"}, "rejected"),
        (413, b"<html>", "bad_response"),
        (401, b"", "denied"),
        (403, b"", "denied"),
        (404, b"404 page not found", "bad_response"),
        (405, b"", "bad_response"),
        (418, b"", "bad_response"),
        (302, b"", "bad_response"),
    ],
)
def test_a_proxy_that_refuses_to_render(status: int, body: Any, kind: str) -> None:
    """Whoever refuses the flag may pass a plain question: replay is left, else the refusal is the reason to leave."""
    memory: Memory = {}
    ladder, step = prepared(broken(GREEDY, memory=memory))
    ladder, step = learn(ladder, step, response(status, body))
    assert step == Step(GREEDY.chat(), ASK_ANSWER, REPLAY)
    assert memory == {}
    ladder, step = prepared(broken(memory=memory))
    ladder, failure = learn(ladder, step, response(status, body))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.phase, failure.status) == (kind, "resume", status)
    assert (ladder.ways(1), memory) == ([], {})


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (503, {"error": "server busy"}, "busy"),
        (429, b"", "busy"),
        (500, {"error": "out of memory"}, "server_error"),
        (502, b"<html>", "server_error"),
        (404, {"error": "model 'm' not found"}, "model_not_found"),
    ],
)
def test_a_server_in_trouble_keeps_its_rungs(status: int, body: Any, kind: str) -> None:
    """Busy or broken says nothing about rendering: it is a failure of the attempt, and the rungs stay for later."""
    ladder, step = prepared(broken())
    same, failure = learn(ladder, step, response(status, body))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.phase, failure.status) == (kind, "resume", status)
    assert same == ladder


@pytest.mark.parametrize("step", [Step(VERSION, ASK_VERSION, RAW), Step(QUESTION.render(), ASK_RENDER, RAW)])
def test_a_preparation_that_breaks(step: Step) -> None:
    """Half a reply proves nothing, and no reply either."""
    ladder = broken()
    same, failure = learn(ladder, step, response(200, b'{"version":"0.3', is_whole=False))
    assert (same, failure.kind, failure.phase) == (ladder, "truncated", "resume")
    nothing = Response()
    nothing.take([b""])
    assert learn(ladder, step, nothing)[1].kind == "closed"


def test_replay_needs_no_preparation() -> None:
    """The whole answer again is a plain question: nothing has to be known of the server."""
    strict = Question("m", [USER], options={"seed": 1}, format="json")
    assert broken(strict).step(1) == Step(strict.chat(), ASK_ANSWER, REPLAY)


def test_a_thought_alone_is_begun_again() -> None:
    """Nothing of the text is there yet: the question is asked anew."""
    assert broken(delivered=Delivered("", "hm", chunks=1)).step(1) == Step(QUESTION.chat(), ASK_ANSWER, RESTART)


def test_the_same_weights_come_first() -> None:
    """Then servers whose weights nobody knows, then other ones; who has no way on is left out."""
    assert broken(QUESTION, "d", "e", "", "d").order(range(4)) == {0: 0, 1: 2, 2: 1, 3: 0}
    assert broken(QUESTION, "", "e", "").order(range(3)) == {0: 0, 1: 1, 2: 1}
    strict = Question("m", [USER], options={"seed": 1}, format="json")
    assert broken(strict, "d", "e", "", "d").order(range(4)) == {0: 0, 3: 0}
    failed = broken().without(1, RAW, PREFILL)
    assert failed.order([1, 2]) == {2: 0}


@pytest.mark.parametrize(
    ("mine", "theirs", "same"),
    [("d", "d", True), ("e", "d", False), ("", "d", None), ("d", "", None), ("", "", None)],
)
def test_the_same_weights(mine: str, theirs: str, same: bool | None) -> None:
    """Two digests that are known tell; the server itself has its own weights whatever they are."""
    ladder = broken(QUESTION, theirs, mine)
    assert (ladder.same_weights(0), ladder.same_weights(1)) == (True, same)


@pytest.mark.parametrize("digest", ["e", ""])
def test_a_text_of_several_weights_is_nobodys(digest: str) -> None:
    """After others, or unknown ones, had a part in it no server can generate it again."""
    ladder = broken(GREEDY, "d", digest, "d")
    assert ladder.ways(2) == [RAW, PREFILL, REPLAY]
    longer = Delivered(TEXT + " very", chunks=4)
    mixed = ladder.broke(1, longer)
    assert (mixed.origin, mixed.mixed, mixed.delivered) == (0, True, longer)
    assert mixed.ways(0) == mixed.ways(2) == [RAW, PREFILL]
    assert [mixed.same_weights(server) for server in (0, 2)] == [False, False]


def test_a_text_of_the_same_weights_stays_theirs() -> None:
    """Servers of one kind may take turns."""
    ladder = broken(GREEDY, "d", "d", "d").broke(1, Delivered(TEXT + " very", chunks=4))
    assert (ladder.origin, ladder.mixed) == (0, False)
    assert ladder.ways(2) == [RAW, PREFILL, REPLAY]


def test_after_a_restart_the_text_is_its_own() -> None:
    """Nothing of the first server's was kept: the weights are those of the one that began again."""
    thought = broken(GREEDY, "d", "e", "e", delivered=Delivered("", "hm", chunks=1))
    ladder = thought.broke(1, DELIVERED, RESTART)
    assert (ladder.origin, ladder.mixed) == (1, False)
    assert [ladder.same_weights(server) for server in range(3)] == [False, True, True]
    assert ladder.ways(2) == [RAW, PREFILL, REPLAY]


def test_the_prompt_that_a_second_seam_rests_on_holds_all_text() -> None:
    """Whatever was delivered by then is behind the prompt, and all its tokens are spent."""
    limited = Question("m", [USER], options={"num_predict": 10})
    ladder = broken(limited).broke(1, Delivered(TEXT + " very", chunks=4))
    ladder, step = prepared(ladder, server=2)
    ladder, step = learn(ladder, step, rendered(PROMPT), server=2)
    assert step.request == limited.raw(PROMPT + TEXT + " very", spent=4)
    assert msgspec.json.decode(step.request.body)["options"] == {"num_predict": 6}


def test_a_ladder_is_a_value() -> None:
    """Each change returns another one, so that an interrupted call can be made again."""
    ladder = broken()
    for change in (ladder.without(1, RAW), ladder.broke(1, DELIVERED), prepared(ladder)[0]):
        assert change is not ladder
    assert ladder == broken()
