"""An answer over several turns, driven by hand: calls come, run once whatever breaks, and the model goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex._core.answer import Answer
from aicortex._core.failover import Deadlines, Failure, Wait
from aicortex._core.http import Response
from aicortex._core.question import Question
from aicortex._core.result import Result
from aicortex._core.server import Server
from aicortex._core.state import Connect
from aicortex._core.turns import UNANSWERED, Asked, Returned, Run
from aicortex.errors import (
    AllServersFailedError,
    RequestRejectedError,
    StreamCancelledError,
    StreamInterruptedError,
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n"
USER = {"role": "user", "content": "How warm is it?"}
RESET = Failure("reset", "", "the connection was reset")
BLUE = Returned("ok", {"sky": "blue"}, '{"sky":"blue"}', {"city": "Paris"}, 0.5)


def line(content: str = "", **more: Any) -> bytes:
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    return json.dumps({"model": "m", "message": message, "done": False, **more}).encode() + b"\n"


def done(**more: Any) -> bytes:
    counts = {"prompt_eval_count": 7, "eval_count": 3, "eval_duration": 1_000_000_000, "load_duration": 500_000_000}
    return line(**{"done": True, "done_reason": "stop", **counts, **more})


def called(*calls: str | tuple[str, dict[str, Any]], id: str | None = None) -> bytes:
    """Return a chunk with calls, as Ollama sends them."""
    named = [(call, {}) if isinstance(call, str) else call for call in calls]
    ids = {} if id is None else {"id": id}
    return line(
        message={"tool_calls": [{**ids, "function": {"name": name, "arguments": given}} for name, given in named]}
    )


def begun(servers: int = 2, steps: int = 5, *, resume: bool = True, options: Any = None, **limits: Any) -> Answer:
    fleet = [Server(f"s{number}:1") for number in range(servers)]
    question = Question("m", [USER], options=options or {}, tools=[{"type": "function"}])
    return Answer(fleet, question, deadlines=Deadlines(**limits), now=10.0, wall=1000.0, steps=steps, resume=resume)


def connect(answer: Answer, now: float = 11.0) -> tuple[int, Response, Any]:
    """Open the connection that is due; return the server's number, its response, and what it is asked."""
    step = answer.next_step(now, since=now)
    assert isinstance(step, Connect)
    response = Response()
    answer.connected(step, response, now)
    return step.server, response, json.loads(step.request.body or b"{}")


def feed(answer: Answer, response: Response, *pieces: bytes, now: float = 11.0) -> None:
    for piece in pieces:
        response.take([piece])
        answer.received(now, response)


def run(answer: Answer, now: float = 12.0) -> Run:
    step = answer.next_step(now, since=now)
    assert isinstance(step, Run)
    return step


def calling(*calls: str | tuple[str, dict[str, Any]], text: str = "", **more: Any) -> Answer:
    """Return an answer whose first server has made these calls and is done."""
    answer = begun(**more)
    _, response, _ = connect(answer)
    feed(answer, response, HEAD + (line(text) if text else b"") + called(*calls) + done())
    return answer


def kinds(answer: Answer) -> list[str]:
    return [event.type if event.type != "meta" else (event.meta or {})["kind"] for event in answer.log]


def text(answer: Answer) -> str:
    return "".join(event.content or "" for event in answer.log if event.type == "token")


def result_of(answer: Answer) -> Result:
    assert isinstance(answer.outcome, Result)
    return answer.outcome


def test_one_stream_over_two_turns() -> None:
    """Call and result stand between the tokens of the turns; there is one start, one end, one count of tokens."""
    answer = calling(("look", {"city": "Paris"}), text="Let me see.")
    assert kinds(answer) == ["start", "connected", "token", "tool_call"]
    assert run(answer).calls == (Asked(0, "look", {"city": "Paris"}),)
    answer.returned(0, BLUE, 12.5)
    server, response, body = connect(answer, 13.0)
    feed(answer, response, HEAD + line("Blue") + line(".") + done(), now=14.0)
    assert kinds(answer)[3:] == ["tool_call", "tool_result", "token", "connected", "token", "token", "stats", "end"]
    assert [event.index for event in answer.log if event.type == "token"] == [0, 1, 2, 3]
    assert text(answer) == "Let me see.\n\nBlue." == result_of(answer).text
    assert server == 0
    assert body["messages"] == [
        USER,
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [{"function": {"name": "look", "arguments": {"city": "Paris"}}}],
        },
        {"role": "tool", "tool_name": "look", "content": '{"sky":"blue"}'},
    ]
    assert list(result_of(answer).messages) == [*body["messages"][1:], {"role": "assistant", "content": "Blue."}]
    assert answer.messages == list(result_of(answer).messages)


def test_what_a_result_event_says() -> None:
    """A result has the tool's value, the arguments that were used, and how it ended, by the number of its call."""
    answer = begun()
    feed(answer, connect(answer)[1], HEAD + called("look", id="call_7") + done())
    event = answer.log[-1]
    assert (event.type, event.tool_name, event.tool_args, event.meta) == (
        "tool_call", "look", {}, {"call": 0, "id": "call_7"},
    )  # fmt: skip
    answer.returned(0, Returned("exception", "Error: no", "Error: no", {"a": 1}, 0.25, "Traceback…"), 12.0)
    event = answer.log[-1]
    assert (event.type, event.tool_name, event.tool_args, event.tool_result) == (
        "tool_result", "look", {"a": 1}, "Error: no",
    )  # fmt: skip
    assert event.meta == {
        "call": 0,
        "kind": "exception",
        "seconds": 0.25,
        "id": "call_7",
        "message": "Error: no",
        "traceback": "Traceback…",
    }
    _, _, body = connect(answer, 13.0)
    assert body["messages"][-1] == {
        "role": "tool",
        "tool_name": "look",
        "content": "Error: no",
        "tool_call_id": "call_7",
    }
    assert body["messages"][-2]["tool_calls"][0]["id"] == "call_7"


def test_results_go_back_in_call_order() -> None:
    """The first call that has not returned is the one that may; what others tell, or tell again, changes nothing."""
    answer = calling("one", "two")
    first = Returned("ok", 1, "1")
    answer.returned(1, Returned("ok", 2, "2"), 12.0)
    assert [each.number for each in run(answer).calls] == [0, 1]
    answer.returned(0, first, 12.0)
    answer.returned(0, first, 12.0)
    assert [each.number for each in run(answer).calls] == [1]
    answer.returned(1, Returned("ok", 2, "2"), 12.0)
    answer.returned(1, Returned("ok", 2, "2"), 12.0)
    _, _, body = connect(answer, 13.0)
    assert [message["content"] for message in body["messages"][2:]] == ["1", "2"]
    assert [event.tool_result for event in answer.log if event.type == "tool_result"] == [1, 2]


def test_tokens_and_seconds_of_all_turns_count() -> None:
    """Usage and timings are those of all turns; each turn's own are told too, the last one's for the context."""
    answer = calling("look")
    answer.returned(0, BLUE, 12.0)
    _, response, _ = connect(answer, 12.0)
    last = done(prompt_eval_count=20, eval_count=5, eval_duration=3_000_000_000, load_duration=0)
    feed(answer, response, HEAD + line("Blue.") + last, now=13.0)
    result = result_of(answer)
    assert result.usage == {"prompt_tokens": 27, "completion_tokens": 8}
    assert (result.timings["generation"], result.timings["load"], result.timings["tokens_per_second"]) == (4, 0.5, 2)
    assert [(turn["prompt_tokens"], turn["completion_tokens"]) for turn in result.turns] == [(7, 3), (20, 5)]
    assert [attempt.kind for attempt in result.attempts] == ["ok", "ok"]


def test_thoughts_of_each_turn() -> None:
    """The thought of a turn goes back with its calls, and the result has those of all turns."""
    answer = begun()
    feed(answer, connect(answer)[1], HEAD + line(message={"thinking": "Hm."}) + called("look") + done())
    answer.returned(0, BLUE, 12.0)
    _, response, body = connect(answer, 12.0)
    assert body["messages"][1]["thinking"] == "Hm."
    feed(answer, response, HEAD + line(message={"thinking": "So."}) + line("Blue.") + done())
    assert (result_of(answer).thinking, result_of(answer).text) == ("Hm.So.", "Blue.")


def test_calls_that_are_only_reported() -> None:
    """Without anything that runs them calls end the answer, as they always did."""
    answer = calling("look", steps=0)
    assert kinds(answer) == ["start", "connected", "tool_call", "stats", "end"]
    assert result_of(answer).finish_reason == "stop"
    assert result_of(answer).messages[-1]["tool_calls"] == [{"function": {"name": "look", "arguments": {}}}]


def test_a_call_that_nobody_answers() -> None:
    """The others' results are delivered, and the answer ends there for the caller to go on himself."""
    answer = calling("look", "theirs")
    answer.returned(0, BLUE, 12.0)
    answer.returned(1, Returned(UNANSWERED), 12.0)
    assert kinds(answer) == ["start", "connected", "tool_call", "tool_call", "tool_result", "stats", "end"]
    assert [message["role"] for message in result_of(answer).messages] == ["assistant", "tool"]


def test_the_last_step() -> None:
    """In the last turn that is allowed calls are reported and not run, and the end says so."""
    answer = calling("look", steps=2)
    answer.returned(0, BLUE, 12.0)
    feed(answer, connect(answer, 12.0)[1], HEAD + called("look") + done())
    assert kinds(answer)[-3:] == ["tool_call", "stats", "end"]
    assert result_of(answer).finish_reason == "max_steps"
    assert (answer.log[-1].meta or {})["finish_reason"] == "max_steps"
    only = calling("look", steps=1)
    assert result_of(only).finish_reason == "max_steps"


def test_an_answer_without_calls_in_the_last_step() -> None:
    """The last turn may well end the answer as any other."""
    answer = begun(steps=1)
    feed(answer, connect(answer)[1], HEAD + line("Blue.") + done())
    assert result_of(answer).finish_reason == "stop"


def test_a_break_behind_a_call() -> None:
    """A call that was delivered stands: it runs, and another server goes on with it and its result."""
    answer = begun()
    first, response, _ = connect(answer)
    feed(answer, response, HEAD + line("Let me see. ") + called("look"))
    answer.failed(response, RESET, 11.5)
    assert kinds(answer)[-2:] == ["tool_call", "error"]
    assert (answer.log[-1].meta or {})["will_retry"] is True
    assert [each.name for each in run(answer).calls] == ["look"]
    answer.returned(0, BLUE, 12.0)
    second, response, body = connect(answer, 12.0)
    assert (first, second) == (0, 1)
    assert body["messages"][1]["content"] == "Let me see. "
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "tool"]
    feed(answer, response, HEAD + line("Blue.") + done())
    assert result_of(answer).text == "Let me see. Blue."
    assert result_of(answer).usage == {"prompt_tokens": 7, "completion_tokens": 5}


@pytest.mark.parametrize("way", ["resume", "reported", "last"])
def test_a_break_behind_a_call_that_does_not_run(way: str) -> None:
    """Where calls do not run, or nothing is to go on, it is an honest break."""
    more = {"resume": {"resume": False}, "reported": {"steps": 0}, "last": {"steps": 1}}[way]
    answer = begun(servers=1, **more)
    _, response, _ = connect(answer)
    feed(answer, response, HEAD + line("Hm.") + called("look"))
    answer.failed(response, RESET, 11.5)
    answer.next_step(100.0, since=100.0)
    assert isinstance(answer.outcome, StreamInterruptedError)
    assert answer.messages == [{"role": "assistant", "content": "Hm."}]


def test_an_unanswered_call_of_a_broken_turn() -> None:
    """Nobody said that the turn was whole, so it does not end as one."""
    answer = begun()
    _, response, _ = connect(answer)
    feed(answer, response, HEAD + called("theirs"))
    answer.failed(response, RESET, 11.5)
    answer.returned(0, Returned(UNANSWERED), 12.0)
    assert isinstance(answer.outcome, StreamInterruptedError)
    assert "the connection was reset" in str(answer.outcome)


def test_a_server_that_breaks_between_turns() -> None:
    """The next turn is asked of the server that answered last, then of one that did not fail, with call and result."""
    answer = calling("look", servers=3)
    answer.returned(0, BLUE, 12.0)
    step = answer.next_step(12.0, since=12.0)
    assert isinstance(step, Connect)
    answer.failed(step, Failure("refused", "connect", "nothing listens there"), 12.0)
    second, response, body = connect(answer, 12.0)
    assert (step.server, second) == (0, 1)
    assert body["messages"][-1]["role"] == "tool"
    feed(answer, response, HEAD + called("look") + done())
    answer.returned(1, BLUE, 13.0)
    assert connect(answer, 13.0)[0] == 1


def test_the_order_of_servers_in_a_later_turn() -> None:
    """Who answered last comes first, who failed last; who refuses is left out, unless nobody else is there."""
    answer = begun(servers=4)
    for kind in ("denied", "refused"):
        step = answer.next_step(11.0, since=11.0)
        assert isinstance(step, Connect)
        answer.failed(step, Failure(kind, "connect", "no"), 11.0)
    feed(answer, connect(answer)[1], HEAD + called("look") + done())
    answer.returned(0, BLUE, 12.0)
    assert answer.failover.untried == (2, 3, 1)


def test_text_of_a_later_turn_goes_on_elsewhere() -> None:
    """A later turn that breaks is continued by its own text alone, and the error counts that of all turns."""
    answer = calling("look", text="Let me see. ", options={"seed": 1})
    answer.returned(0, BLUE, 12.0)
    _, response, _ = connect(answer, 12.0)
    feed(answer, response, HEAD + line("It is") + line(" very"))
    answer.failed(response, RESET, 12.5)
    assert (answer.log[-1].meta or {})["delivered"] == len("Let me see. It is very")
    asked = []
    for reply in ({"version": "0.30.0"}, {"_debug_info": {"rendered_template": "<user>…<assistant>It is very"}}):
        _, response, body = connect(answer, 13.0)
        data = json.dumps(reply).encode()
        asked.append(body)
        feed(answer, response, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
    _, response, body = connect(answer, 13.0)
    assert asked[1]["messages"] == body["messages"]
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert body["messages"][-1]["content"] == "It is very"
    feed(answer, response, HEAD + line(" blue.") + done(), now=14.0)
    assert result_of(answer).text == "Let me see. It is very blue." == text(answer)
    assert result_of(answer).messages[-1] == {"role": "assistant", "content": "It is very blue."}


def test_no_server_for_a_later_turn() -> None:
    """What was delivered before makes it an interruption, even where the last turn gave nothing."""
    answer = calling("look", servers=1)
    answer.returned(0, BLUE, 12.0)
    step = answer.next_step(12.0, since=12.0)
    assert isinstance(step, Connect)
    answer.failed(step, Failure("denied", "connect", "no entry"), 12.0)
    assert isinstance(answer.outcome, StreamInterruptedError)
    assert str(answer.outcome) == "Stream interrupted after 0 characters: http://s0:1 (connect): no entry"
    assert [message["role"] for message in answer.messages] == ["assistant", "tool"]


def test_the_server_that_answered_may_be_restarting() -> None:
    """Where no other server is left, the one whose calls have run is asked again for some seconds."""
    answer, now = calling("look", servers=1), 12.0
    answer.returned(0, BLUE, now)
    waited = []
    while (step := answer.next_step(now, since=now)) is not None:
        if isinstance(step, Wait):
            waited.append(step.until - now)
            now = step.until
        else:
            assert isinstance(step, Connect)
            answer.failed(step, Failure("refused", "connect", "nothing listens there"), now)
    assert waited == [2.0, 4.0]
    assert isinstance(answer.outcome, StreamInterruptedError)


def test_a_later_turn_that_is_refused() -> None:
    """A request that a server calls wrong is told as that, with the text of all turns."""
    answer = calling("look", text="Hm. ")
    answer.returned(0, BLUE, 12.0)
    _, response, _ = connect(answer, 12.0)
    feed(answer, response, b'HTTP/1.1 400 X\r\nContent-Length: 21\r\n\r\n{"error":"too long" }')
    assert isinstance(answer.outcome, RequestRejectedError)
    assert answer.outcome.partial == "Hm. "


def test_no_server_at_all_is_no_interruption() -> None:
    """Before the first turn gave anything the error is the plain one."""
    answer = begun(servers=1)
    step = answer.next_step(11.0, since=11.0)
    assert isinstance(step, Connect)
    answer.failed(step, Failure("refused", "connect", "nothing listens there"), 11.0)
    assert type(answer.outcome) is AllServersFailedError
    assert answer.messages == []


def test_the_time_for_the_whole_answer_ends_while_tools_run() -> None:
    """Calls are waited for until then, and no longer."""
    answer = calling("look", text="Hm. ", total=5.0)
    assert run(answer, 12.0).until == 15.0
    assert answer.next_step(15.0, since=12.0) is None
    assert isinstance(answer.outcome, StreamInterruptedError)
    assert str(answer.outcome) == "Stream interrupted after 4 characters: the answer was not whole within 5 s"
    assert answer.messages == [{"role": "assistant", "content": "Hm. "}]
    answer.returned(0, BLUE, 16.0)
    assert kinds(answer)[-1] == "tool_call"


def test_the_time_for_the_whole_answer_ends_behind_a_call() -> None:
    """When it is up before the server said that it was done, nothing runs any more, and the event says so."""
    answer = begun(total=5.0)
    feed(answer, connect(answer)[1], HEAD + called("look"))
    answer.timed_out(15.0)
    assert (answer.log[-1].meta or {})["will_retry"] is False
    assert isinstance(answer.outcome, StreamInterruptedError)


def test_cancelled_while_tools_run() -> None:
    """What a tool returns to a stream that was cancelled is dropped."""
    answer = calling("look", text="Hm. ")
    answer.cancel()
    answer.returned(0, BLUE, 12.0)
    assert answer.next_step(12.0, since=12.0) is None
    assert isinstance(answer.outcome, StreamCancelledError)
    assert answer.outcome.partial == "Hm. "


def test_a_begun_answer_is_one_message_with_its_calls() -> None:
    """Where the question ends in the beginning of the answer, what follows joins it: neighbours would be merged."""
    question = Question("m", [USER, {"role": "assistant", "content": "Let me"}])
    answer = Answer([Server("s:1")], question, deadlines=Deadlines(), now=10.0, wall=1000.0, steps=3)
    feed(answer, connect(answer)[1], HEAD + line(" look.") + called("look") + done())
    answer.returned(0, BLUE, 12.0)
    _, _, body = connect(answer, 12.0)
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "tool"]
    assert body["messages"][1]["content"] == "Let me look."
    assert body["messages"][1]["tool_calls"]


def test_calls_are_counted_over_the_stream() -> None:
    """Calls have numbers of their own, over all turns and chunks."""
    answer = begun()
    feed(answer, connect(answer)[1], HEAD + called("a") + called("b", "c") + done())
    for number in range(3):
        answer.returned(number, BLUE, 12.0)
    feed(answer, connect(answer, 12.0)[1], HEAD + called("d") + done())
    assert [(event.meta or {})["call"] for event in answer.log if event.type == "tool_call"] == [0, 1, 2, 3]
    assert [each.number for each in run(answer).calls] == [3]


def test_moving_between_turns() -> None:
    """While tools run there is no server to leave."""
    answer = calling("look")
    assert not answer.may_move(12.0)
    assert not answer.move(12.0)


def test_calls_among_the_last_words() -> None:
    """A call in the chunk that says done runs as any other."""
    answer = begun()
    calls = [{"function": {"name": "look", "arguments": {}}}]
    feed(answer, connect(answer)[1], HEAD + done(message={"content": "Hm.", "tool_calls": calls}))
    assert [each.name for each in run(answer).calls] == ["look"]


def test_thinking_in_the_text_of_a_later_turn() -> None:
    """Thoughts inside of the text are taken out in each turn."""
    answer = calling("look")
    answer.returned(0, BLUE, 12.0)
    _, response, _ = connect(answer, 12.0)
    feed(answer, response, HEAD + line("<think>") + line("Hm.") + line("</think>") + line("\n\nBlue.") + done())
    assert (result_of(answer).thinking, result_of(answer).text) == ("Hm.", "Blue.")


GROUPS = (
    (("Let me", " see."), 2),
    ((), 1),
    (("And",), 3),
    (("It is", " warm", "."), 0),
)  # texts and calls of each turn
ALL_CALLS = sum(calls for _, calls in GROUPS)


def said_next(messages: list[dict[str, Any]]) -> list[bytes]:
    """Return what the model says to a conversation: it goes on with the calls whose results it does not have yet."""
    left = sum(message["role"] == "tool" for message in messages)
    for texts, calls in GROUPS:
        if left < calls or not calls:
            begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
            rest = [] if left else list(texts)
            while begun:
                begun = begun.removeprefix(rest.pop(0))
            return [*map(line, rest), *([called("look")] * (calls - left)), done()]
        left -= calls
    raise AssertionError("more results than calls")


def exchanged(answer: Answer, body: dict[str, Any], response: Response, cut: int | None, *, at_end: bool) -> None:
    """Have a server answer a request, up to a cut after so many chunks, with an end or a reset."""
    if "messages" not in body or body.get("_debug_render_only"):
        begun = (body.get("messages") or [{}])[-1]
        prompt = "<user>" + (begun["content"] if begun.get("role") == "assistant" else "")
        known = {"version": "0.30.0", "_debug_info": {"rendered_template": prompt}}
        data = json.dumps(known).encode()
        feed(answer, response, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
        return
    pieces = said_next(body["messages"])
    for piece in [HEAD, *(pieces if cut is None else pieces[:cut])]:
        if response in answer.reading:
            feed(answer, response, piece)
    if cut is not None and response in answer.reading:
        if at_end:
            feed(answer, response, b"")
        else:
            answer.failed(response, RESET, 11.0)


@given(
    st.lists(st.tuples(st.none() | st.integers(0, 5), st.booleans()), max_size=14),
    st.lists(st.booleans(), max_size=8),
    st.sampled_from([{}, {"seed": 1}, {"temperature": 0}]),
)
def test_whatever_breaks_each_call_runs_once(
    cuts: list[tuple[int | None, bool]], refused: list[bool], options: dict[str, Any]
) -> None:
    """Over all places where servers may break: results once and in order, and one text that is whole or a beginning."""
    fleet = [Server(f"s{number}:1") for number in range(3)]
    question = Question("m", [USER], options=options)
    digests = ["d"] * 3
    answer = Answer(fleet, question, deadlines=Deadlines(), now=0.0, wall=0.0, steps=99, digests=digests)
    now, ran = 0.0, []
    while (step := answer.next_step(now, since=now)) is not None:
        if isinstance(step, Run):
            ran.append(step.calls[0].number)
            answer.returned(ran[-1], Returned("ok", ran[-1], str(ran[-1])), now)
        elif isinstance(step, Connect) and refused and refused.pop():
            answer.failed(step, Failure("refused", "connect", "no"), now)
        elif isinstance(step, Connect):
            response = Response()
            answer.connected(step, response, now)
            cut, at_end = cuts.pop() if cuts else (None, False)
            exchanged(answer, json.loads(step.request.body or b"{}"), response, cut, at_end=at_end)
        else:
            now = step.until
    results = [event.tool_result for event in answer.log if event.type == "tool_result"]
    numbers = [(event.meta or {})["call"] for event in answer.log if event.type == "tool_call"]
    assert ran == results == list(range(len(results)))
    assert numbers == list(range(len(numbers)))
    whole = "Let me see.\n\nAnd\n\nIt is warm."
    assert whole.startswith(text(answer).removesuffix("\n\n"))
    if isinstance(answer.outcome, Result):
        assert (text(answer), len(results)) == (whole, ALL_CALLS)
        assert answer.outcome.text == whole
        roles = [message["role"] for message in answer.outcome.messages]
        assert roles.count("tool") == ALL_CALLS
    else:
        assert isinstance(answer.outcome, AllServersFailedError)
