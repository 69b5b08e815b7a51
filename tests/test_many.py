"""`stream_many` and `astream_many`."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from aicortex import AllServersFailedError, ModelNotFoundError, StreamInterruptedError, dispatch
from aicortex.job import AHEAD, Outcome, Progress
from aicortex.many import astream_many, stream_many
from aicortex.registry.credentials import entry_of
from aicortex.registry.store import Registry
from aicortex.testing import Answer, Exchange, FakeServer, Hang, Reply, Reset, Status

Many = Callable[..., Iterator[Outcome]]
PATIENCE = 30.0  # seconds until a test gives up; only failing tests wait that long


class Looped:
    """The outcomes of `astream_many` on a loop in a thread, for a reader that blocks."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._outcomes = astream_many(*arguments, **more)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="Looped")
        self._thread.start()

    def __iter__(self) -> Looped:
        return self

    def __next__(self) -> Outcome:
        outcome = self._run(self._next())
        if outcome is None:
            raise StopIteration
        return outcome

    async def _next(self) -> Outcome | None:
        return await anext(self._outcomes, None)

    def _run(self, work: Coroutine[Any, Any, Outcome | None]) -> Outcome | None:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def close(self) -> None:
        if not self._loop.is_closed():
            self._run(self._outcomes.aclose())
            self._run(self._loop.shutdown_asyncgens())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE)
            self._loop.close()


@pytest.fixture(params=["sync", "async"])
def many(request: pytest.FixtureRequest) -> Iterator[Many]:
    """Either function; what it returns is closed at the end of the test."""
    opened: list[Any] = []

    def call(*arguments: Any, **more: Any) -> Iterator[Outcome]:
        opened.append((stream_many if request.param == "sync" else Looped)(*arguments, **more))
        return opened[-1]

    yield call
    for one in opened:
        one.close()


@dataclass(frozen=True)
class Held(Reply):
    """An answer that begins when the gate is opened, or only that to one question; notes how many are under way."""

    only: str = ""
    gate: threading.Event = field(default_factory=threading.Event)
    peaks: list[int] = field(default_factory=list)

    def play(self, exchange: Exchange) -> None:
        self.peaks.append(exchange.server.active)
        if not self.only or self.only in exchange.request.json["messages"][-1]["content"]:
            assert self.gate.wait(PATIENCE)
        Answer("one two three").play(exchange)


def chats(server: FakeServer) -> list[Any]:
    """Return the bodies of the questions that a server was asked."""
    return [request.json for request in server.requests if request.path == "/api/chat"]


def questions(number: int) -> list[str]:
    return [f"question {index}" for index in range(number)]


def test_outcomes_come_in_the_order_of_the_prompts(many: Many) -> None:
    """Each prompt has one outcome, whose index is its place, and a whole answer has text and result."""
    with FakeServer(answer="one") as one, FakeServer(answer="two") as two:
        outcomes = list(many(questions(40), servers=[one.url, two.url]))
        assert [outcome.index for outcome in outcomes] == list(range(40))
        assert {outcome.text for outcome in outcomes} == {"one", "two"}
        assert all(outcome.result.text == outcome.text and outcome.error is None for outcome in outcomes)
        asked = [body["messages"][-1]["content"] for body in chats(one) + chats(two)]
        assert sorted(asked) == sorted(questions(40))


def test_outcomes_may_come_as_they_are_there(many: Many) -> None:
    """With `ordered=False` a slow answer keeps nobody waiting."""
    held = Held()
    with FakeServer(held, answer="quick") as server:
        outcomes = many(questions(6), servers=server.url, ordered=False)
        first = [next(outcomes).index for _ in range(5)]
        held.gate.set()
        assert sorted([*first, next(outcomes).index]) == list(range(6))
        assert next(outcomes, None) is None


def test_each_server_has_only_so_many_at_a_time(many: Many) -> None:
    """A server gets its registered slots, 4 where nothing is registered, or `per_server`."""
    for arguments, most in (({}, 4), ({"per_server": 2}, 2), ({"slots": 3}, 3)):
        held = Held()
        held.gate.set()
        with FakeServer(*[held] * 30) as server:
            if slots := arguments.pop("slots", None):
                with Registry() as registry:
                    registry.add(entry_of(server.url, slots=slots))
            assert len(list(many(questions(30), servers=server.url, **arguments))) == 30
            assert max(held.peaks) <= most


def test_whoever_is_free_gets_the_next_prompt(many: Many) -> None:
    """While one server is at its first answer the other does all the rest."""
    held = Held()
    with FakeServer(*[held] * 20) as slow, FakeServer() as fast:
        outcomes = many(questions(20), servers=[slow.url, fast.url], per_server=1, ordered=False)
        first = [next(outcomes) for _ in range(19)]
        assert {outcome.result.server for outcome in first} == {fast.url}
        held.gate.set()
        assert next(outcomes).result.server == slow.url
        assert (len(chats(slow)), len(chats(fast))) == (1, 19)


@pytest.mark.parametrize("ordered", [True, False])
def test_prompts_are_taken_as_they_are_needed(many: Many, ordered: bool) -> None:
    """Endless prompts are no more ahead of a slow reader than four times what the servers can do at once."""
    taken = count()
    with FakeServer() as server:
        outcomes = many((f"question {next(taken)}" for _ in count()), servers=server.url, per_server=2, ordered=ordered)
        assert [next(outcomes).error for _ in range(20)] == [None] * 20
        assert next(taken) <= 20 + 2 * AHEAD


def test_a_slow_answer_in_front_bounds_what_waits_behind_it(many: Many) -> None:
    """With the first answer missing, no more than the prompts taken ahead are asked."""
    held = Held("question 0")
    with FakeServer(*[held] * 100) as server:
        outcomes = many(questions(100), servers=server.url, per_server=2)
        opener = threading.Thread(
            target=lambda: server.wait_until(lambda: len(chats(server)) == 2 * AHEAD) and held.gate.set()
        )
        opener.start()
        assert next(outcomes).index == 0
        opener.join()
        assert len(chats(server)) <= 2 * AHEAD + 1  # the next one may have taken the place of the first already


def test_what_fails_for_one_prompt_is_its_own(many: Many) -> None:
    """Wrong prompts and unanswered ones come with their error in their place; the others are answered."""
    prompts = [
        "good",
        {"id": "a", "prompt": ""},
        {"id": "b", "prompt": "Why?", "temprature": 1},
        {"prompt": "Why?", "model": "nowhere"},
        7,
        {"prompt": "Why?", "max_tokens": 0},
        {"id": "c"},
        {"prompt": "Why?", "servers": []},
        {"id": "d", "messages": [{"role": "user", "content": "Why?"}]},
    ]
    with FakeServer(answer="yes") as server:
        outcomes = list(many(prompts, servers=server.url))
    assert [outcome.text for outcome in outcomes] == ["yes", *[None] * 7, "yes"]
    assert [outcome.id for outcome in outcomes] == [None, "a", "b", None, None, None, "c", None, "d"]
    assert "temprature" in str(outcomes[2].error)
    assert isinstance(outcomes[3].error, ModelNotFoundError)
    assert all(isinstance(outcome.error, ValueError) for outcome in outcomes[1:-1])


def test_servers_failures_are_outcomes(many: Many) -> None:
    """A refused prompt and a broken answer are errors of that prompt; the partial text is with the error."""
    broken = Answer("Black holes form").then(Hang(), after_tokens=2)
    with FakeServer(Status(400, {"error": "no"}), broken) as server:
        refused, interrupted, well = many(
            questions(3), servers=server.url, per_server=1, stall_timeout=0.5, resume="never"
        )
    assert (refused.text, "no" in str(refused.error)) == (None, True)
    assert isinstance(interrupted.error, StreamInterruptedError)
    assert interrupted.error.partial == "Black holes"
    assert well.error is None


def test_a_prompt_may_have_its_own_arguments(many: Many) -> None:
    """What stands in a mapping goes before what is given for all."""
    prompts = [{"prompt": "1?", "temperature": 0.5, "system": "Be brief."}, {"prompt": "2?", "model": "other"}]
    with FakeServer(models=["fake", "other"]) as server:
        assert [outcome.error for outcome in many(prompts, servers=server.url, model="fake", seed=7)] == [None, None]
        one, two = sorted(chats(server), key=lambda body: body["messages"][-1]["content"])
    assert (one["model"], one["options"], one["messages"][0]["content"]) == (
        "fake",
        {"temperature": 0.5, "seed": 7},
        "Be brief.",
    )
    assert (two["model"], two["options"]) == ("other", {"seed": 7})


def test_calls_of_tools_come_with_the_outcome(many: Many) -> None:
    """An outcome has the calls that the model wants made."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    with FakeServer(answer=Answer("", tool_calls=[("look", {"at": "sky"})])) as server:
        (outcome,) = many(["Look!"], servers=server.url, tools=[tool])
    assert outcome.tool_calls == ({"name": "look", "arguments": {"at": "sky"}},)


@pytest.mark.parametrize("function", [stream_many, astream_many])
def test_wrong_arguments_raise_at_once(function: Callable[..., Any]) -> None:
    """What is wrong for all prompts is said by the call itself."""
    for wrong, words in (
        ({"prompts": "Why?"}, "prompts is an iterable"),
        ({"prompts": {"prompt": "Why?"}}, "prompts is an iterable"),
        ({"prompts": 7}, "prompts is an iterable"),
        ({"temprature": 1}, f"{function.__name__}.. has no argument 'temprature'; did you mean 'temperature'"),
        ({"stream": True}, "has no argument 'stream': answers come whole"),
        ({"messages": []}, "has no argument 'messages': each prompt has its own"),
    ):
        with pytest.raises(TypeError, match=words):
            function(**{"prompts": ["Why?"], **wrong})
    for wrong, words in (
        ({"per_server": 0}, "per_server must be a whole number from 1 on"),
        ({"per_server": {"desk": 2}}, "per_server must be a whole number from 1 on"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"servers": []}, "servers is a list"),
        ({"servers": [7]}, "servers is a list"),
        ({"routing": "best"}, "routing must be one of"),
    ):
        with pytest.raises(ValueError, match=words):
            function(["Why?"], **wrong)


def test_asynchronous_prompts_want_the_other_function() -> None:
    """`stream_many` says what to write for an asynchronous iterable."""

    async def prompts() -> AsyncIterator[str]:
        yield "Why?"

    with pytest.raises(TypeError, match="astream_many"):
        stream_many(prompts())


def test_a_model_that_nobody_has_raises_before_anything_is_asked(many: Many) -> None:
    """The first step raises what `chat` would, and no prompt is taken."""
    prompts = iter(questions(3))
    with FakeServer() as server:
        with pytest.raises(ModelNotFoundError, match="did you mean 'fake:latest'"):
            next(many(prompts, servers=server.url, model="fakes"))
        assert chats(server) == []
    assert next(prompts) == "question 0"
    with pytest.raises(ValueError, match="no server address"):
        next(many(prompts, servers="ftp://desk"))


def test_servers_may_be_an_iterator(many: Many) -> None:
    """They are taken once, for all prompts."""
    with FakeServer() as server:
        outcomes = list(many(questions(3), servers=iter([server.url])))
    assert [outcome.error for outcome in outcomes] == [None] * 3


def test_no_prompts_have_no_outcomes(many: Many) -> None:
    """An empty iterable ends at once."""
    with FakeServer() as server:
        assert list(many([], servers=server.url)) == []


def test_an_answer_goes_on_when_its_server_dies(many: Many) -> None:
    """What one server had begun is finished by the other, which then gets everything."""
    dying = Answer("Black holes form when stars die.").then(Reset(), after_tokens=3)
    with FakeServer(*[dying] * 2) as one, FakeServer(answer="Black holes form when stars die.") as two:

        def prompts() -> Iterator[str]:
            yield from questions(4)
            one.refuse()
            yield from questions(16)

        outcomes = list(many(prompts(), servers=[one.url, two.url], per_server=2))
    assert [outcome.text for outcome in outcomes] == ["Black holes form when stars die."] * 20
    assert sum(len(outcome.result.attempts) > 1 for outcome in outcomes) >= 1


def test_an_answer_that_moved_takes_the_room_of_its_new_server() -> None:
    """While a server goes on with an answer that another one began, it gets no more than it has room for."""
    held = Held()
    broken = Answer("one two three").then(Reset(), after_tokens=1)
    with (
        FakeServer(broken, answer="one two three") as one,
        FakeServer(answer="one two three", continuation=held) as two,
        FakeServer(answer="one two three") as three,
    ):

        def prompts() -> Iterator[str]:
            yield "begins at the first"
            assert two.wait_until(lambda: bool(held.peaks), PATIENCE)
            one.refuse()
            yield from questions(20)

        servers = [one.url, two.url, three.url]
        outcomes = stream_many(prompts(), servers=servers, per_server=1, routing="order", ordered=False)
        quick = [next(outcomes) for _ in range(20)]
        held.gate.set()
        assert len([*outcomes]) == 1
    direct = [outcome.result.server for outcome in quick if len(outcome.result.attempts) == 1]
    assert {*direct} == {three.url}  # one that looked whether the first is back may have moved to the second


def test_a_server_that_comes_back_gets_work_again(many: Many) -> None:
    """A dead server gets no prompt; once it listens again it is noticed and used."""
    with FakeServer() as one, FakeServer(answer=Answer("slow", first_delay=0.02)) as two:
        one.refuse()
        outcomes = many(map("{}?".format, count()), servers=[one.url, two.url], per_server=2)
        assert {next(outcomes).result.server for _ in range(30)} == {two.url}
        one.start()
        limit = time.monotonic() + PATIENCE
        while next(outcomes).result.server != one.url:
            assert time.monotonic() < limit


def test_a_fleet_that_is_away_for_a_moment_loses_little(many: Many) -> None:
    """What was under way fails; the prompts behind it wait until the server is back."""
    with FakeServer() as server:
        outcomes = many(map("{}?".format, count()), servers=server.url, per_server=1, resume="never")
        assert [next(outcomes).error for _ in range(4)] == [None] * 4
        server.refuse()
        failed = next(outcome for outcome in outcomes if outcome.error)
        assert isinstance(failed.error, AllServersFailedError)
        server.start()
        errors = [outcome.error for outcome in islice(outcomes, 30)]
        assert errors[-20:] == [None] * 20


def test_a_fleet_that_is_dead_fails_every_prompt(many: Many, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer before, or when the patience is over, every prompt fails at once with what each server did."""
    monkeypatch.setattr(dispatch, "PATIENCE_SECONDS", 0.0)
    with FakeServer() as server:
        outcomes = many(questions(30), servers=server.url, resume="never")
        assert next(outcomes).error is None
        server.refuse()
        assert all(isinstance(outcome.error, AllServersFailedError) for outcome in list(outcomes)[-8:])
        again = list(many(questions(30), servers=server.url))
    assert len(again) == 30
    assert all(f"{server.url} (connect)" in str(outcome.error) for outcome in again)


def test_closing_frees_the_servers(many: Many) -> None:
    """Whoever has enough closes the iterator, and every generation ends."""
    with FakeServer(answer=Answer("a b c").then(Hang(), after_tokens=1)) as server:
        server.script(Answer("first"))
        outcomes = many(map("{}?".format, count()), servers=server.url, per_server=3, ordered=False)
        assert next(outcomes).text == "first"
        assert server.wait_until(lambda: server.active == 3)
        outcomes.close()
        assert server.wait_until(lambda: server.active == 0 and server.cancelled == 3)
    assert [thread.name for thread in threading.enumerate() if thread.name == "aicortex"] == []


def test_dropping_the_iterator_frees_the_servers() -> None:
    """A loop that is left, or ends in an exception, leaves nothing running."""
    with FakeServer(Answer("first"), answer=Answer("a b c").then(Hang(), after_tokens=1)) as server:
        with suppress(ZeroDivisionError):
            for _ in stream_many(map("{}?".format, count()), servers=server.url, per_server=3, ordered=False):
                assert server.wait_until(lambda: server.active == 3)
                _ = 1 / 0
        gc.collect()
        assert server.wait_until(lambda: server.active == 0)


def test_a_cancelled_task_frees_the_servers() -> None:
    """The end of a task that reads ends every generation."""

    async def read(url: str) -> None:
        async with aclosing(astream_many(map("{}?".format, count()), servers=url)) as outcomes:
            async for _ in outcomes:
                pass

    async def main(server: FakeServer) -> None:
        task = asyncio.create_task(read(server.url))
        assert await asyncio.to_thread(server.wait_until, lambda: server.active == 4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with FakeServer(answer=Answer("a b c").then(Hang(), after_tokens=1)) as server:
        asyncio.run(main(server))
        assert server.wait_until(lambda: server.active == 0 and server.cancelled == 4)


def test_one_thread_for_all() -> None:
    """However many answers are under way, one thread reads them."""
    held = Held()
    with FakeServer(*[held] * 50) as server:
        before = {thread.name.split()[0] for thread in threading.enumerate()}
        outcomes = stream_many(questions(50), servers=server.url, per_server=50)
        opener = threading.Timer(0, lambda: server.wait_until(lambda: server.active == 50) and held.gate.set())
        opener.name = "FakeServer's opener"
        opener.start()
        next(outcomes)
        names = [thread.name for thread in threading.enumerate()]
        outcomes.close()
        opener.join()
    assert [name for name in names if name.split()[0] not in {*before, "FakeServer", "FakeServer's"}] == ["aicortex"]


def test_an_error_of_the_prompts_comes_after_what_was_taken(many: Many) -> None:
    """An iterable that breaks loses no outcome of the prompts before."""

    def prompts() -> Iterator[str]:
        yield from questions(3)
        raise LookupError("no more")

    seen = []
    with FakeServer() as server, pytest.raises(LookupError, match="no more"):
        seen.extend(outcome.index for outcome in many(prompts(), servers=server.url) if not seen.append(outcome.index))
    assert sorted({*seen}) == [0, 1, 2]


def test_asynchronous_prompts() -> None:
    """`astream_many` takes prompts from an asynchronous generator, and gives outcomes while it waits for more."""

    async def main(url: str) -> list[int]:
        answered = asyncio.Event()

        async def prompts() -> AsyncIterator[str]:
            yield "1?"
            await answered.wait()
            yield "2?"

        seen = []
        async for outcome in astream_many(prompts(), servers=url):
            seen.append(outcome.index)
            answered.set()
        return seen

    with FakeServer() as server:
        assert asyncio.run(main(server.url)) == [0, 1]


def test_progress(many: Many) -> None:
    """Before each outcome it is told how many are done and failed, of how many, and who is at work."""
    told: list[Progress] = []
    with FakeServer(answer="one two") as server:
        list(many(["1?", "", "3?"], servers=server.url, progress=told.append))
        list(many(iter(["1?"]), servers=server.url, progress=told.append))
    assert [(each.done, each.failed, each.total) for each in told] == [(1, 0, 3), (2, 1, 3), (3, 1, 3), (1, 0, None)]
    assert told[2].tokens == 4
    assert all(set(each.servers) <= {server.url} for each in told)


DOCS = (Path(__file__).parents[1] / "docs" / "batch.md").read_text("utf-8")


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL))
def test_the_examples_of_the_docs_run(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each example of docs/batch.md that needs no cluster runs as it stands."""
    exec(compile(code, "docs/batch.md", "exec"), {})
    assert "failed" not in capsys.readouterr().out


def test_every_field_is_documented() -> None:
    """The docs name the fields of an outcome and of a progress, and the arguments."""
    fields = {*Outcome.__struct_fields__, *Progress.__struct_fields__, *stream_many.__kwdefaults__}
    assert {name for name in fields if f"`{name}`" not in DOCS} == set()
