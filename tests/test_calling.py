"""Tools that a model calls, over real connections: each runs once, its faults are told, and the reader decides."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from tests.colours import Chat, only_sync

from aicortex import (
    RequestRejectedError,
    Stream,
    StreamCancelledError,
    StreamEvent,
    StreamInterruptedError,
    Tool,
    ToolCall,
    achat,
)
from aicortex.testing import Answer, Close, FakeServer, Raw, Reply, Reset, Status

FINAL = Answer("It is warm.")
NOTE = contextvars.ContextVar("NOTE", default="nothing")


def called(*calls: str | tuple[str, dict[str, Any]], text: str = "") -> Answer:
    return Answer(text, tool_calls=[(call, {}) if isinstance(call, str) else call for call in calls])


def kinds(stream: Stream) -> list[str]:
    return [event.type for event in stream.events if event.type != "meta"]


def results(stream: Stream) -> list[StreamEvent]:
    return [event for event in stream.events if event.type == "tool_result"]


def outcome(event: StreamEvent) -> tuple[str, Any]:
    return (event.meta or {})["kind"], event.tool_result


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(answer=FINAL) as server:
        yield server


class Counter:
    """A tool that counts how often it runs."""

    def __init__(self, result: object = "21 degrees") -> None:
        self.runs = 0
        self._result = result

    def __call__(self) -> object:
        self.runs += 1
        return self._result


def counting(**named: object) -> tuple[list[Tool], dict[str, Counter]]:
    counters = {name: Counter(result) for name, result in named.items()}
    return [Tool(counter, name=name) for name, counter in counters.items()], counters


def test_a_conversation_with_tools(chat: Chat, server: FakeServer) -> None:
    """One stream has the call, its result and the answer; the function gets what its types say."""

    def warmth(city: str, days: int = 1) -> dict[str, Any]:
        """Tell how warm it is."""
        return {"city": city, "days": days + 1}

    server.script(called(("warmth", {"city": "Oslo", "days": "2"})))
    stream = chat("How warm is Oslo?", tools=[warmth], servers=server.url, stream=True)
    assert stream.text() == "It is warm."
    assert kinds(stream) == ["start", "tool_call", "tool_result", *["token"] * 3, "end"]
    assert outcome(results(stream)[0]) == ("ok", {"city": "Oslo", "days": 3})
    first, second = (request.json for request in server.requests if request.path == "/api/chat")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["tools"] == second["tools"] == [Tool(warmth).schema]
    assert second["messages"][-1]["content"] == '{"city":"Oslo","days":3}'
    assert stream.result.messages[-2:] == (second["messages"][-1], {"role": "assistant", "content": "It is warm."})


def test_the_text_of_a_conversation_with_tools(chat: Chat, server: FakeServer) -> None:
    """Without a stream the text comes back, once every tool has run."""
    tools, counters = counting(warmth=21)
    server.script(called("warmth"))
    assert chat("How warm?", tools=tools, servers=server.url) == "It is warm."
    assert counters["warmth"].runs == 1


@only_sync  # a task reads here event by event, too, in tests/aio
def test_a_tool_runs_once_its_call_was_read(chat: Chat, server: FakeServer) -> None:
    """A reader that stops at the call keeps the tool from running; one that reads on has it run."""
    tools, counters = counting(warmth=21)
    server.script(called("warmth"), called("warmth"))
    with chat("How warm?", tools=tools, servers=server.url, stream=True) as stream:
        for event in stream:
            if event.type == "tool_call":
                break
    assert counters["warmth"].runs == 0
    stream = chat("How warm?", tools=tools, servers=server.url, stream=True)
    events = iter(stream)
    while next(events).type != "tool_call":
        pass
    assert counters["warmth"].runs == 0
    assert next(events).type == "tool_result"
    assert counters["warmth"].runs == 1


def test_calls_of_one_turn_run_together(chat: Chat, server: FakeServer) -> None:
    """Each waits for the other here; results come in the order of the calls."""
    both = threading.Barrier(2, timeout=20)
    done = threading.Event()

    def first() -> str:
        both.wait()
        done.wait(20)
        return "one"

    async def second() -> str:
        await asyncio.get_running_loop().run_in_executor(None, both.wait)
        done.set()
        return "two"

    server.script(called("first", "second"))
    stream = chat("Go.", tools=[first, second], servers=server.url, stream=True)
    assert stream.text() == "It is warm."
    assert [event.tool_result for event in results(stream)] == ["one", "two"]


def test_a_function_that_gives_a_coroutine(chat: Chat, server: FakeServer) -> None:
    """What an undecorated look does not show to be asynchronous is awaited all the same."""

    async def later() -> str:
        await asyncio.sleep(0)
        return "awaited"

    server.script(called("now"))
    stream = chat("Go.", tools=[Tool(lambda: later(), name="now")], servers=server.url, stream=True)
    assert stream.text() == "It is warm."
    assert outcome(results(stream)[0]) == ("ok", "awaited")


def test_what_a_tool_may_do_wrong(chat: Chat, server: FakeServer) -> None:
    """An unknown tool, wrong arguments, an exception: the model is told, the event says it, the stream goes on."""

    def warmth(city: str, days: int) -> str:
        raise LookupError(f"no such town: {city}, {days}")

    def leave() -> None:
        raise SystemExit(3)

    asked = [("warmth", {"city": "Xanadu", "days": 1}), ("warmth", {"city": "Oslo", "days": "many"}), "rain", "leave"]
    server.script(called(*asked))
    stream = chat("How warm?", tools=[warmth, leave], servers=server.url, stream=True)
    assert stream.text() == "It is warm."
    raised, wrong, unknown, left = results(stream)
    assert outcome(raised) == ("exception", "Error: LookupError: no such town: Xanadu, 1")
    assert "in warmth" in (raised.meta or {})["traceback"]
    assert outcome(wrong)[0] == "bad_arguments"
    assert "days" in outcome(wrong)[1]
    assert outcome(unknown) == ("unknown_tool", "Error: there is no tool 'rain'; the tools are: warmth, leave")
    assert outcome(left) == ("exception", "Error: SystemExit: 3")
    body = server.requests[-1].json
    assert isinstance(body, dict)
    told = [message["content"] for message in body["messages"] if message["role"] == "tool"]
    assert told == [event.tool_result for event in (raised, wrong, unknown, left)]


def test_a_tool_that_hangs(chat: Chat, server: FakeServer) -> None:
    """It is waited for as long as it may take; the model is told, and what the tool returns later is dropped."""
    release = threading.Event()

    def hang() -> str:
        release.wait(20)
        return "late"

    async def doze() -> None:
        await asyncio.sleep(20)

    server.script(called("hang", "doze", "quick"))
    tools = [hang, doze, Tool(lambda: "quick", name="quick", timeout=30)]
    stream = chat("Go.", tools=tools, tool_timeout=0.05, servers=server.url, stream=True)
    assert stream.text() == "It is warm."
    release.set()
    assert [outcome(event) for event in results(stream)] == [
        ("timeout", "Error: the tool did not return within 0.05 s"),
        ("timeout", "Error: the tool did not return within 0.05 s"),
        ("ok", "quick"),
    ]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_tool_that_cancels_the_stream(chat: Chat, server: FakeServer, is_async: bool) -> None:
    """The reader is told that the stream was cancelled, and no other turn is asked for."""
    opened: list[Any] = []

    def stop() -> str:
        opened[0].cancel()
        return "stopped"

    async def astop() -> str:
        opened[0]._stream.cancel() if hasattr(opened[0], "_stream") else opened[0].cancel()
        return "stopped"

    server.script(called("stop", text="Hm. "))
    tool = Tool(astop if is_async else stop, name="stop")
    opened.append(chat("Go.", tools=[tool], servers=server.url, stream=True))
    with pytest.raises(StreamCancelledError) as caught:
        opened[0].text()
    assert caught.value.partial == "Hm. "
    assert len([request for request in server.requests if request.path == "/api/chat"]) == 1


def test_a_stream_cancelled_while_a_tool_runs(chat: Chat, server: FakeServer) -> None:
    """Whoever waits for the tool wakes up; the tool runs on by itself."""
    begun, release = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        release.wait(20)

    server.script(called("hang"))
    stream = chat("Go.", tools=[hang], servers=server.url, stream=True)
    caught: list[BaseException] = []

    def read() -> None:
        try:
            stream.text()
        except StreamCancelledError as error:
            caught.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(20)
    stream.cancel()
    reader.join(20)
    release.set()
    assert len(caught) == 1
    assert kinds(stream) == ["start", "tool_call"]


def decided(chat: Chat, server: FakeServer, decide: Callable[[ToolCall], Any]) -> tuple[Stream, Counter]:
    counter = Counter()
    tools = [Tool(lambda degrees=0: [counter(), degrees], name="warmth")]
    server.script(called(("warmth", {"degrees": 1})))
    stream = chat("How warm?", tools=tools, on_tool_call=decide, servers=server.url, stream=True)
    assert stream.text() == "It is warm."
    return stream, counter


@pytest.mark.parametrize(
    ("decide", "expected", "runs"),
    [
        (lambda _: None, ("ok", ["21 degrees", 1]), 1),
        (lambda _: True, ("ok", ["21 degrees", 1]), 1),
        (lambda _: False, ("denied", "Error: whoever asked you does not allow this call"), 0),
        (lambda call: call.deny("not today"), ("denied", "Error: not today"), 0),
        (lambda call: call.answer({"from": "cache"}), ("given", {"from": "cache"}), 0),
        (lambda call: call.replace(degrees=call.args["degrees"] + 1), ("ok", ["21 degrees", 2]), 1),
    ],
)
def test_on_tool_call(
    chat: Chat, server: FakeServer, decide: Callable[[ToolCall], Any], expected: tuple[str, Any], runs: int
) -> None:
    """Before a call runs it may be let through, denied, answered, or given other arguments."""
    stream, counter = decided(chat, server, decide)
    assert (outcome(results(stream)[0]), counter.runs) == (expected, runs)


def test_a_tool_that_changes_its_arguments(chat: Chat, server: FakeServer) -> None:
    """What it does to them changes neither the log nor what the model is told that it said."""

    def take(items: Any) -> int:
        items.append("more")
        return len(items)

    server.script(called(("take", {"items": ["one"]})))
    stream = chat("Go.", tools=[take], servers=server.url, stream=True)
    assert stream.text() == "It is warm."
    assert [event.tool_args for event in stream.events if event.tool_args] == [{"items": ["one"]}] * 2
    assert results(stream)[0].tool_result == 2
    assert stream.result.messages[0]["tool_calls"][0]["function"]["arguments"] == {"items": ["one"]}


def test_what_on_tool_call_gets(chat: Chat, server: FakeServer) -> None:
    """It gets name, arguments, number and id of each call in order; what it does to the arguments stays its own."""
    seen: list[ToolCall] = []

    def look(call: ToolCall) -> None:
        seen.append(call)
        call.args["degrees"] = 100

    stream, _ = decided(chat, server, look)
    assert [(call.name, call.number, call.id) for call in seen] == [("warmth", 0, "call_0")]
    assert results(stream)[0].tool_args == {"degrees": 1}


def test_on_tool_call_that_raises(chat: Chat, server: FakeServer) -> None:
    """Its error reaches the reader, nothing has run, and who reads on is asked about that call again."""
    tools, counters = counting(one=1, two=2)
    asked: list[int] = []

    def decide(call: ToolCall) -> None:
        asked.append(call.number)
        if asked == [0, 1]:
            raise KeyError("who knows")

    server.script(called("one", "two"))
    stream = chat("Go.", tools=tools, on_tool_call=decide, servers=server.url, stream=True)
    with pytest.raises(KeyError, match="who knows"):
        stream.text()
    assert [counter.runs for counter in counters.values()] == [0, 0]
    assert stream.text() == "It is warm."
    assert asked == [0, 1, 1]
    assert [counter.runs for counter in counters.values()] == [1, 1]


@pytest.mark.parametrize("said", ["yes", 1, {}])
def test_on_tool_call_that_says_nothing_sensible(chat: Chat, server: FakeServer, said: object) -> None:
    """What is no decision is refused with the words that are one."""
    server.script(called("warmth"))
    with pytest.raises(TypeError, match=r"None, True, False, call.deny\(…\)"):
        chat("Go.", tools=[Tool(Counter(), name="warmth")], on_tool_call=lambda _: said, servers=server.url)


def test_an_asynchronous_on_tool_call(server: FakeServer) -> None:
    """achat waits for it; chat says that it cannot."""

    async def decide(call: ToolCall) -> Any:
        await asyncio.sleep(0)
        return call.answer("given")

    async def main() -> list[StreamEvent]:
        stream = await achat("Go.", tools=[Counter()], on_tool_call=decide, servers=server.url, stream=True)
        await stream.text()
        return [event for event in stream.events if event.type == "tool_result"]

    server.script(called("counter"))
    assert [outcome(event) for event in asyncio.run(main())] == [("given", "given")]


@only_sync  # achat can wait for it
def test_an_asynchronous_on_tool_call_of_chat(chat: Chat, server: FakeServer) -> None:
    """chat says what to write, and no coroutine is left that nobody awaits."""

    async def decide(call: ToolCall) -> None: ...

    server.script(called("warmth"))
    with pytest.raises(TypeError, match="only achat can wait for"):
        chat("Go.", tools=[Tool(Counter(), name="warmth")], on_tool_call=decide, servers=server.url)


def test_schemas_that_on_tool_call_answers(chat: Chat, server: FakeServer) -> None:
    """A tool that is only a schema can be answered by hand; without an answer the stream ends behind the call."""
    schema = {"type": "function", "function": {"name": "ask_user", "parameters": {"type": "object"}}}
    server.script(called("ask_user"))
    given = chat("Go.", tools=[schema], on_tool_call=lambda call: call.answer("yes"), servers=server.url, stream=True)
    assert given.text() == "It is warm."
    server.script(called("ask_user"))
    left = chat("Go.", tools=[schema], on_tool_call=lambda _: None, servers=server.url, stream=True)
    assert left.text() == ""
    assert kinds(left) == ["start", "tool_call", "end"]


def test_the_most_steps(chat: Chat, server: FakeServer) -> None:
    """A model that never stops calling is stopped, and the result says why."""
    tools, counters = counting(warmth=21)
    server.script(*[called("warmth") for _ in range(5)])
    stream = chat("How warm?", tools=tools, max_steps=3, servers=server.url, stream=True)
    assert stream.result.finish_reason == "max_steps"
    assert counters["warmth"].runs == 2
    assert kinds(stream) == ["start", *["tool_call", "tool_result"] * 2, "tool_call", "end"]


def wheres(stream: Stream) -> list[str]:
    """Return the kinds of the attempts, in order."""
    return [attempt.kind for attempt in stream.result.attempts]


@pytest.mark.parametrize("when", ["before", "behind", "between", "after"])
def test_a_server_that_dies(chat: Chat, when: str) -> None:
    """Before a call, behind it, between the turns, in the words after the tools: each tool runs once."""
    tools, counters = counting(warmth=21, rain=3)
    with FakeServer(answer=FINAL) as one, FakeServer(answer=FINAL) as two:
        script: dict[str, tuple[list[Reply], list[Reply]]] = {
            "before": ([called("warmth").then(Close(), after_tokens=0)], [called("warmth"), called("rain")]),
            "behind": ([called("warmth").then(Reset(), after_tokens=1)], [called("rain")]),
            "between": ([called("warmth")], [called("rain")]),
            "after": ([called("warmth"), called("rain"), FINAL.then(Reset(), after_tokens=2)], []),
        }
        mine, theirs = script[when]
        one.script(*mine)
        two.script(*theirs)
        stream = chat("How warm?", tools=tools, servers=[one.url, two.url], seed=1, stream=True)
        for event in stream:
            if when == "between" and event.type == "tool_result" and event.tool_name == "warmth":
                one.refuse()
        assert stream.text() == "It is warm."
        assert [counter.runs for counter in counters.values()] == [1, 1]
        assert [event.tool_name for event in results(stream)] == ["warmth", "rain"]
        assert len([kind for kind in wheres(stream) if kind != "ok"]) == 1
        body = two.requests[-1].json
        assert isinstance(body, dict)
        told = [message["content"] for message in body["messages"] if message["role"] == "tool"]
        assert told == ["21", "3"]


def test_a_reader_that_is_interrupted_by_a_time_limit(server: FakeServer) -> None:
    """A read that is given up leaves the tool running, and the next one gets its result."""
    release = threading.Event()
    _, counters = counting(warmth=21)

    def hang() -> str:
        counters["warmth"]()
        release.wait(20)
        return "late"

    async def main() -> Any:
        server.script(called("hang"))
        stream = await achat("Go.", tools=[hang], servers=server.url, stream=True)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream.text(), 0.2)
        release.set()
        assert await stream.text() == "It is warm."
        return stream

    assert outcome(results(asyncio.run(main()))[0]) == ("ok", "late")
    assert counters["warmth"].runs == 1


def test_context_variables_reach_tools(server: FakeServer) -> None:
    """Threads and tasks see what the reader has set."""

    def plain() -> str:
        return NOTE.get()

    async def task() -> str:
        return NOTE.get()

    async def main() -> Any:
        NOTE.set("read")
        server.script(called("plain", "task"))
        stream = await achat("Go.", tools=[plain, task], servers=server.url, stream=True)
        await stream.text()
        return stream

    assert [event.tool_result for event in results(asyncio.run(main()))] == ["read", "read"]


def test_a_model_without_tools(chat: Chat, server: FakeServer) -> None:
    """The server's own words say that the model cannot call any."""
    server.script(Status(400, {"error": '"fake" does not support tools'}))
    with pytest.raises(RequestRejectedError, match="does not support tools"):
        chat("Go.", tools=[Counter()], servers=server.url)


def test_the_time_of_the_stream_is_up_while_a_tool_runs(chat: Chat, server: FakeServer) -> None:
    """A tool is not waited for beyond the caller's own deadline for the whole."""
    release = threading.Event()
    server.script(called("hang", text="Hm. "))
    tool = Tool(lambda: release.wait(20), name="hang")
    with pytest.raises(StreamInterruptedError, match=r"not whole within 0\.3 s") as caught:
        chat("Go.", tools=[tool], timeout=0.3, servers=server.url)
    release.set()
    assert caught.value.partial == "Hm. "


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"max_steps": 1.5}, "max_steps must be a whole number"),
        ({"tool_timeout": 0}, "tool_timeout must be"),
        ({"on_tool_call": "ask"}, "on_tool_call must be a function"),
        ({"format": "json"}, "cannot be asked for at once"),
    ],
)
def test_wrong_arguments(chat: Chat, server: FakeServer, arguments: dict[str, Any], words: str) -> None:
    """What makes no sense is refused before anything is asked."""
    with pytest.raises(ValueError, match=words):
        chat("Go.", tools=[Counter()], servers=server.url, **arguments)
    assert not server.requests


def test_words_that_no_encoding_can_express(chat: Chat, server: FakeServer) -> None:
    """Half of a character in an error or a refusal is written as an escape, and the conversation goes on."""

    def fail() -> None:
        raise ValueError("file \udce4.txt")

    server.script(called("fail", "other"))
    stream = chat(
        "Go.",
        tools=[fail, Tool(Counter(), name="other")],
        on_tool_call=lambda call: call.deny("\udce4") if call.name == "other" else None,
        servers=server.url,
        stream=True,
    )
    assert stream.text() == "It is warm."
    assert [(event.meta or {})["kind"] for event in results(stream)] == ["exception", "denied"]


class Untold(Exception):
    """An exception that cannot be told."""

    def __str__(self) -> str:
        raise RuntimeError("not even this")


class Unshown:
    """A result that cannot be shown."""

    def __repr__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize("is_async", [False, True])
def test_what_cannot_be_told(chat: Chat, server: FakeServer, is_async: bool) -> None:
    """Exceptions without words, results that cannot be shown, an exit: each is told as an exception."""

    def untold() -> None:
        raise Untold

    def leave() -> None:
        raise SystemExit(3)

    def cancel() -> None:
        raise asyncio.CancelledError

    def later(function: Callable[[], Any]) -> Callable[[], Any]:
        async def call() -> Any:
            return function()

        return call

    functions = {"untold": untold, "unshown": Unshown, "leave": leave, "cancel": cancel}
    tools = [Tool(later(each) if is_async else lambda each=each: each(), name=name) for name, each in functions.items()]
    server.script(called(*functions))
    stream = chat("Go.", tools=tools, tool_timeout=None, servers=server.url, stream=True)
    assert stream.text() == "It is warm."
    assert [outcome(event) for event in results(stream)] == [
        ("exception", "Error: Untold"),
        ("exception", "Error: SystemExit"),
        ("exception", "Error: SystemExit: 3"),
        ("exception", "Error: CancelledError"),
    ]


def test_arguments_that_are_nested_deeply(chat: Chat, server: FakeServer) -> None:
    """What is nested too deep for Python is told as wrong, or passed on, and never ends the stream."""
    deep: list[Any] = []
    for _ in range(400):
        deep = [deep]
    server.script(called(("take", {"items": deep})))
    stream = chat("Go.", tools=[Tool(lambda items: len(items), name="take")], servers=server.url, stream=True)
    assert stream.text() == "It is warm."
    assert outcome(results(stream)[0]) == ("ok", 1)


@only_sync  # as a task it is the next test
def test_a_tool_that_reads_its_own_stream(chat: Chat, server: FakeServer) -> None:
    """It would wait for itself: it is told so, and so is an `on_tool_call` that does."""
    opened: list[Any] = []
    tool = Tool(lambda: opened[-1].text(), name="read")
    server.script(called("read"))
    opened.append(chat("Go.", tools=[tool], servers=server.url, stream=True))
    assert opened[0].text() == "It is warm."
    assert "cannot read the stream that waits for it" in outcome(results(opened[0])[0])[1]
    server.script(called("read"))
    opened.append(chat("Go.", tools=[tool], on_tool_call=lambda _: opened[-1].text(), servers=server.url, stream=True))
    with pytest.raises(RuntimeError, match="cannot read the stream"):
        opened[1].text()


def test_an_asynchronous_tool_that_reads_its_own_stream(server: FakeServer) -> None:
    """As above, on the loop."""
    opened: list[Any] = []

    async def read() -> str:
        text: str = await opened[0].text()
        return text

    async def main() -> Any:
        server.script(called("read"))
        opened.append(await achat("Go.", tools=[read], servers=server.url, stream=True))
        assert await opened[0].text() == "It is warm."
        return opened[0]

    assert "cannot read the stream" in outcome(results(asyncio.run(main()))[0])[1]


def test_an_on_tool_call_that_is_cancelled(server: FakeServer) -> None:
    """Nobody knows then whether the call may run: the reader is told, once, and may read on."""
    asked: list[int] = []

    async def decide(call: ToolCall) -> None:
        asked.append(call.number)
        if len(asked) == 1:
            raise asyncio.CancelledError

    async def main() -> str:
        server.script(called("counter"))
        stream = await achat("Go.", tools=[Counter()], on_tool_call=decide, servers=server.url, stream=True)
        with pytest.raises(RuntimeError, match="on_tool_call was cancelled"):
            await stream.text()
        return await stream.text()

    assert asyncio.run(main()) == "It is warm."
    assert asked == [0, 0]


def test_what_a_plain_function_gives_is_awaited_on_the_loop(server: FakeServer) -> None:
    """What belongs to the loop can be awaited there, whoever made it."""
    loops: list[object] = []

    async def later() -> None:
        loops.append(asyncio.get_running_loop())

    async def main() -> object:
        server.script(called("now"))
        await achat("Go.", tools=[Tool(lambda: later(), name="now")], servers=server.url)
        return asyncio.get_running_loop()

    assert [asyncio.run(main())] == loops


@only_sync  # achat cancels it as a task
def test_an_asynchronous_tool_is_cancelled_when_its_time_is_up(chat: Chat, server: FakeServer) -> None:
    """It has a loop of its own under chat, which ends with its time."""
    ended = threading.Event()

    async def doze() -> None:
        try:
            await asyncio.sleep(20)
        finally:
            ended.set()

    server.script(called("doze"))
    assert chat("Go.", tools=[doze], tool_timeout=0.05, servers=server.url) == "It is warm."
    assert ended.wait(20)


@pytest.mark.parametrize("id", [7, "call_7", None])
def test_ids_and_arguments_as_other_servers_send_them(chat: Chat, server: FakeServer, id: object) -> None:
    """A number as id, arguments in a text, or none at all, are understood."""
    calls = [{"id": id, "function": {"name": "take", "arguments": given}} for given in (None, '{"city": "Oslo"}', "[")]
    record = {"model": "fake:latest", "message": {"role": "assistant", "content": "", "tool_calls": calls}}
    body = msgspec.json.encode({**record, "done": True, "done_reason": "stop"})
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n" % len(body)
    server.script(Raw(head + body))
    stream = chat("Go.", tools=[Tool(lambda city="": city, name="take")], servers=server.url, stream=True)
    assert stream.text() == "It is warm."
    assert [event.tool_result for event in results(stream)] == ["", "Oslo", ""]
    assert (results(stream)[0].meta or {}).get("id") == (None if id is None else str(id))
