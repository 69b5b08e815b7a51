"""Conversations: what is sent, what is kept, and what a kill leaves of it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from tests.colours import PATIENCE, BlockingStream, Portal

from aicortex.errors import AllServersFailedError, RegistryError, StreamCancelledError, StreamInterruptedError
from aicortex.registry.entries import Condition, ModelEntry, Observation
from aicortex.registry.store import Registry
from aicortex.session import Session
from aicortex.testing import Answer, Close, FakeServer, Hang, Status

ROOT = Path(__file__).parents[1]
Say = Callable[..., Any]  # `Session.chat`, or what looks like it
TEXT = "The quick brown fox jumps over the lazy dog."
CUT = Answer("one two three").then(Close(), after_tokens=2)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as started:
        yield started


@pytest.fixture(params=["chat", "achat"])
def say(request: pytest.FixtureRequest) -> Iterator[Say]:
    """Ask in a session, in both colours."""
    if request.param == "chat":
        yield lambda session, *asked, **arguments: session.chat(*asked, **arguments)
        return
    with Portal() as portal:

        def asking(session: Session, *asked: Any, stream: bool = False, **arguments: Any) -> Any:
            found = portal.run(session.achat(*asked, stream=stream, **arguments))
            return BlockingStream(portal, found) if stream else found

        yield asking


def sent(server: FakeServer) -> list[dict[str, Any]]:
    """Return the messages of the last question."""
    messages: list[dict[str, Any]] = asked(server)["messages"]
    return messages


def asked(server: FakeServer) -> dict[str, Any]:
    return next(request.json for request in reversed(server.requests) if request.path == "/api/chat")


def user(words: str) -> dict[str, str]:
    return {"role": "user", "content": words}


def assistant(words: str = TEXT) -> dict[str, str]:
    return {"role": "assistant", "content": words}


@pytest.mark.parametrize("name", [None, "novel"])
def test_each_question_comes_with_what_was_said(name: str | None, say: Say, server: FakeServer) -> None:
    """The system's words, then every turn, then the question; streamed or not."""
    session = Session(name, system="Be brief.", servers=[server.url])
    assert say(session, "One?") == TEXT
    assert say(session, "Two?", stream=True).text() == TEXT
    assert say(session, "Three?", seed=1) == TEXT
    system = {"role": "system", "content": "Be brief."}
    assert sent(server) == [system, user("One?"), assistant(), user("Two?"), assistant(), user("Three?")]
    assert session.history == [*sent(server)[1:], assistant()]
    assert (session.name, session.system) == (name, "Be brief.")


@pytest.mark.parametrize("name", [None, "novel"])
def test_a_turn_says_what_there_is_to_know(name: str | None, say: Say, server: FakeServer) -> None:
    """A turn has its messages, the model and server that answered, what it took, and the time."""
    session = Session(name, servers=[server.url], model="fake")
    say(session, "One?")
    say(session, "Two?")
    turn = session.turns[1]
    assert turn.messages == (user("Two?"), assistant())
    assert (turn.model, turn.server) == ("fake", server.url)
    assert turn.usage == {"prompt_tokens": 7, "completion_tokens": 9}
    assert (turn.context, turn.turns_before, turn.left_out, turn.is_partial) == (16, 1, 0, False)
    assert session.turns[0].at <= turn.at
    assert len({each.id for each in session.turns}) == 2


def test_what_is_given_out_are_copies(server: FakeServer) -> None:
    """Whoever changes what a session gave him, or the messages of a result, changes nothing of it."""
    session = Session(servers=[server.url])
    result = session.chat("One?", stream=True).result
    result.messages[0]["content"] = "Changed."
    session.history[0]["content"] = session.turns[0].messages[0]["content"] = "Changed?"
    assert session.history == [user("One?"), assistant()]


@pytest.mark.parametrize("name", [None, "novel"])
def test_a_failed_answer_leaves_no_trace(name: str | None, say: Say, server: FakeServer) -> None:
    """Neither an answer that never came nor one that broke off joins, and the next question does without them."""
    session = Session(name, servers=[server.url])
    say(session, "One?")
    server.script(Status(500), CUT)
    with pytest.raises(AllServersFailedError):
        say(session, "Two?", system="Other.")
    with pytest.raises(StreamInterruptedError):
        say(session, "Three?", resume="never")
    assert session.history == [user("One?"), assistant()]
    assert session.system is None


@pytest.mark.parametrize("name", [None, "novel"])
def test_a_cancelled_answer_leaves_no_trace(name: str | None, say: Say, server: FakeServer) -> None:
    """An answer that was cancelled does not join."""
    server.script(Answer("one two three").then(Hang(), after_tokens=2))
    session = Session(name, servers=[server.url])
    stream = say(session, "One?", stream=True)
    assert next(iter(stream.tokens())) == "one"
    stream.cancel()
    with pytest.raises(StreamCancelledError):
        stream.text()
    assert session.turns == ()


@pytest.mark.parametrize("name", [None, "novel"])
def test_a_partial_answer_joins_on_request(name: str | None, say: Say, server: FakeServer) -> None:
    """With keep_partial what came of a broken answer is kept, marked, and sent like any other; nothing is not kept."""
    session = Session(name, servers=[server.url], keep_partial=True)
    server.script(CUT, Status(500))
    with pytest.raises(StreamInterruptedError):
        say(session, "One?", resume="never")
    with pytest.raises(AllServersFailedError):
        say(session, "Two?")
    say(session, "Three?")
    assert sent(server) == [user("One?"), assistant("one two"), user("Three?")]
    assert [turn.is_partial for turn in session.turns] == [True, False]
    assert session.turns[0].usage == {}


def test_a_partial_answer_that_was_cancelled(say: Say, server: FakeServer) -> None:
    """What came before a cancellation is kept on request, too."""
    server.script(Answer("one two three").then(Hang(), after_tokens=2))
    session = Session("novel", servers=[server.url], keep_partial=True)
    stream = say(session, "One?", stream=True)
    tokens = iter(stream.tokens())
    assert [next(tokens), next(tokens)] == ["one", " two"]
    stream.cancel()
    with pytest.raises(StreamCancelledError):
        stream.text()
    thread = Thread(target=wait_for_turn, args=(session,))
    thread.start()
    thread.join(PATIENCE)
    assert session.history == [user("One?"), assistant("one two")]


def wait_for_turn(session: Session) -> None:
    """Look until there is a turn: after a cancellation it is written aside of the event loop."""
    while not session.turns:
        Event().wait(0.01)


def test_calls_without_a_result_are_not_kept(say: Say, server: FakeServer) -> None:
    """Of a broken answer no call is kept that has no result; what was said before it is."""
    called = Answer("Let me see.", tool_calls=[("look", {"at": "sky"})])
    server.script(called.then(Close()), Answer("", tool_calls=[("look", {})]).then(Close()))
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    session = Session(servers=[server.url], keep_partial=True, tools=[tool], resume="never")
    for _ in range(2):
        with pytest.raises((StreamInterruptedError, AllServersFailedError)):
            say(session, "Why?")
    assert session.history == [user("Why?"), assistant("Let me see.")]


def test_a_conversation_with_tools(say: Say, server: FakeServer) -> None:
    """Calls and their results stand in the turn, and go along with the next question."""

    def weather(city: str) -> str:
        return f"rain in {city}"

    server.script(Answer("", tool_calls=[("weather", {"city": "Bonn"})]), Answer("Take an umbrella."))
    session = Session("trip", servers=[server.url], tools=[weather])
    assert say(session, "Umbrella?") == "Take an umbrella."
    say(session, "Sure?")
    question, call, result, last = sent(server)[:4]
    assert (question, last) == (user("Umbrella?"), assistant("Take an umbrella."))
    assert call["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Bonn"}}
    assert (result["role"], result["content"]) == ("tool", "rain in Bonn")
    assert len(session.turns) == 2


def test_a_structured_answer_is_kept_as_its_text(say: Say, server: FakeServer) -> None:
    """With a format the object is returned and the JSON text is kept."""
    server.script(Answer('{"name": "Ada"}'))
    session = Session(servers=[server.url])
    assert say(session, "Who?", format="json") == {"name": "Ada"}
    assert session.history == [user("Who?"), assistant('{"name": "Ada"}')]


def test_the_system_is_stored_and_replaced(server: FakeServer) -> None:
    """The system's words are kept with a named session; others take their place with the next answer that is kept."""
    Session("novel", system="Be brief.", servers=[server.url]).chat("One?")
    again = Session("novel", servers=[server.url])
    assert again.system == "Be brief."
    other = Session("novel", system="Be long.", servers=[server.url])
    assert (other.system, again.system) == ("Be long.", "Be brief.")
    other.chat("Two?")
    assert again.system == "Be long."
    again.chat("Three?", system="Rhyme.")
    assert sent(server)[0] == {"role": "system", "content": "Rhyme."}
    assert other.system == "Rhyme."


def test_defaults_are_not_stored(server: FakeServer) -> None:
    """What a session asks with is its own; a call may say otherwise."""
    Session("novel", servers=[server.url], seed=7, temperature=0).chat("One?", seed=8)
    assert asked(server)["options"] == {"seed": 8, "temperature": 0}
    Session("novel", servers=[server.url]).chat("Two?")
    assert "options" not in asked(server)


def test_the_same_server_is_asked(server: FakeServer) -> None:
    """A conversation goes to the server that has it in its cache, also when its first words are not sent any more."""
    with FakeServer() as other:
        session = Session(servers=[server.url, other.url], routing="balanced", context_length=200)
        results = [session.chat(f"{number}?", stream=True).result for number in range(9)]
    whys = [result.attempts[0].why for result in results]
    assert whys[1:] == ["affinity: it has the conversation in its cache"] * 8
    assert len({turn.left_out for turn in session.turns}) > 2


def test_two_at_once_are_both_kept(say: Say, server: FakeServer) -> None:
    """Answers that are under way at once join in the order of their ends, each whole."""
    session = Session("novel", servers=[server.url])
    first = say(session, "First?", stream=True)
    second = say(session, "Second?", stream=True)
    second.text()
    first.text()
    assert session.history == [user("Second?"), assistant(), user("First?"), assistant()]
    assert [turn.turns_before for turn in session.turns] == [0, 0]


def test_reset(server: FakeServer) -> None:
    """The turns go, the system's words stay; in memory and in the file."""
    for session in (Session(servers=[server.url], system="Be brief."), Session("novel", servers=[server.url])):
        session.chat("One?")
        before = session.system
        session.reset()
        assert (session.turns, session.system) == ((), before)
        session.chat("Two?")
        assert sent(server)[-1:] == sent(server)[-2:][-1:] == [user("Two?")]
        assert len(session.turns) == 1


def test_fork(server: FakeServer) -> None:
    """A fork begins with the same turns and goes its own way, with the same defaults."""
    server.script(Answer(TEXT), CUT)
    session = Session(servers=[server.url], system="Be brief.", seed=7, resume="never", keep_partial=True)
    session.chat("One?")
    fork, stored = session.fork(), session.fork("novel")
    with pytest.raises(StreamInterruptedError):
        fork.chat("Two?")
    assert asked(server)["options"] == {"seed": 7}
    assert [len(each.turns) for each in (session, fork, stored)] == [1, 2, 1]
    assert stored.fork().history == session.history
    assert [each.system for each in (fork, stored)] == ["Be brief."] * 2
    with pytest.raises(ValueError, match="there is a session 'novel' already"):
        session.fork("novel")


def test_save_and_load(server: FakeServer, tmp_path: Path) -> None:
    """A conversation that was saved is the same when it is loaded, in memory or under a name."""
    session = Session("novel", servers=[server.url], system="Be brief.")
    session.chat("One?")
    session.save(tmp_path / "novel.json")
    loaded = Session.load(tmp_path / "novel.json", servers=[server.url])
    stored = Session.load(tmp_path / "novel.json", "again", servers=[server.url])
    assert loaded.turns == stored.turns == session.turns
    assert (loaded.system, loaded.name, stored.name) == ("Be brief.", None, "again")
    assert loaded.chat("Two?") == TEXT
    with pytest.raises(ValueError, match="there is a session 'again' already"):
        Session.load(tmp_path / "novel.json", "again")


def test_names_and_remove(server: FakeServer) -> None:
    """Stored conversations have names, that used last first, and can be removed."""
    assert Session.names() == []
    for name in ("a", "b", "a"):
        Session(name, servers=[server.url]).chat("One?")
    assert Session.names() == ["a", "b"]
    Session.remove("a")
    assert Session.names() == ["b"]
    with pytest.raises(ValueError, match="there is no session 'a'"):
        Session.remove("a")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"name": " "}, ValueError, "not empty"),
        ({"name": "two\nlines"}, ValueError, "one line"),
        ({"name": 3}, ValueError, "must be text"),
        ({"context_length": 0}, ValueError, "context_length must be a number of tokens"),
        ({"context_length": True}, ValueError, "context_length"),
        ({"system": ""}, ValueError, "system is empty"),
        ({"messages": []}, TypeError, "takes no 'messages': that is the conversation's own"),
        ({"session": "x"}, TypeError, "takes no 'session'"),
        ({"images": []}, TypeError, "takes no 'images': that belongs to a call"),
        ({"modle": "x"}, TypeError, "did you mean 'model'"),
        ({"temperature": "hot"}, ValueError, "temperature"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    """What cannot be meant is refused at once, and nothing is made."""
    with pytest.raises(error, match=words):
        Session(**arguments)
    assert Session.names() == []


@pytest.mark.parametrize(
    ("asked", "arguments", "error"),
    [(None, {}, ValueError), ("", {}, ValueError), ("Hi", {"messages": []}, TypeError), ("Hi", {"x": 1}, TypeError)],
)
def test_wrong_questions(asked: Any, arguments: dict[str, Any], error: type[Exception], say: Say) -> None:
    """A question is text, and what was said before it is the session's to know."""
    with pytest.raises(error):
        say(Session(), asked, **arguments)


def test_a_file_that_cannot_be_written_is_an_error(say: Say, server: FakeServer) -> None:
    """Where a whole answer cannot be kept, that is raised in place of its end; a retry keeps it."""
    session = Session("novel", servers=[server.url])
    with Registry() as registry:
        path = Path(registry.path)
    path.parent.mkdir(parents=True)
    stream = say(session, "One?", stream=True)
    path.mkdir()
    with pytest.raises(RegistryError):
        stream.text()
    path.rmdir()
    assert stream.text() == TEXT
    assert session.history == [user("One?"), assistant()]


def test_a_partial_answer_that_cannot_be_written_is_a_warning(say: Say, server: FakeServer) -> None:
    """What broke the answer is raised; that the rest of it could not be kept is told beside."""
    server.script(CUT)
    session = Session("novel", servers=[server.url], keep_partial=True)
    with Registry() as registry:
        path = Path(registry.path)
    path.parent.mkdir(parents=True)
    stream = say(session, "One?", stream=True, resume="never")
    path.mkdir()
    with pytest.warns(RuntimeWarning, match="the partial answer is not kept"), pytest.raises(StreamInterruptedError):
        stream.text()
    path.rmdir()
    assert session.turns == ()


def test_the_oldest_turns_are_left_out(say: Say, server: FakeServer) -> None:
    """What has no room is not sent, and told at the start of the stream; what is kept stays whole."""
    session = Session(servers=[server.url], system="Be brief.", context_length=250, max_tokens=100)
    for number in range(8):
        stream = say(session, f"{number}?", stream=True)
        stream.text()
    assert len(session.turns) == 8
    left_out = (stream.events[0].meta or {})["trimmed_turns"]
    assert session.turns[-1].left_out == left_out > 0
    assert sent(server)[:2] == [{"role": "system", "content": "Be brief."}, user(f"{left_out}?")]
    assert len(sent(server)) == 2 + 2 * (7 - left_out)


def test_num_ctx_is_a_context_length(say: Say, server: FakeServer) -> None:
    """The option that sets the context is believed; a context_length goes before it."""
    for more, has_room in (({}, False), ({"context_length": 8192}, True)):
        session = Session(servers=[server.url], options={"num_ctx": 200}, **more)
        for number in range(6):
            say(session, f"{number}?")
        assert (len(sent(server)) == 11) is has_room


LONG = "word " * 1000


def context_asked(server: FakeServer) -> int:
    """Return how often the server was asked what it has loaded."""
    return sum(request.path == "/api/ps" for request in server.requests)


@pytest.mark.parametrize("name", [None, "novel"])
def test_the_server_says_how_much_its_model_takes(name: str | None, say: Say, server: FakeServer) -> None:
    """Once the conversation is long the server that answered last is asked, one time."""
    session = Session(name, servers=[server.url])
    say(session, "Short?")
    say(session, "Short?")
    assert context_asked(server) == 0
    for number in range(8):
        say(session, f"{number} {LONG}")
    assert context_asked(server) == 1
    assert session.turns[-1].left_out > 0  # of 8192 tokens
    assert sent(server)[0]["content"].endswith(LONG)


def test_a_server_that_does_not_say_leaves_it_to_the_registry(say: Say, server: FakeServer) -> None:
    """What a refresh has written counts where the server is silent; where nobody knows, everything is sent."""
    server.paths["/api/ps"] = Status(500)
    session = Session(servers=[server.url], model="fake")
    for number in range(6):
        say(session, f"{number} {LONG}")
    assert len(sent(server)) == 11
    with Registry() as registry:
        models = (ModelEntry("fake:latest", context_length=4096),)
        registry.apply([Observation(Condition(server.url, 1.0, 1.0), models)])
    say(session, "Last?")
    assert session.turns[-1].left_out > 0
    assert context_asked(server) == 1


CHILD = """
import sys
from aicortex.session import Session

session = Session("novel", servers=[sys.argv[1]])
for number in range(int(sys.argv[2])):
    session.chat(f"{number}?")
for token in session.chat("Last?", stream=True).tokens():
    print(token, flush=True)
"""


def test_a_kill_in_the_middle_of_an_answer_leaves_whole_turns(server: FakeServer) -> None:
    """A process that is killed while an answer comes leaves the turns before it, and the conversation goes on."""
    server.script(Answer(TEXT), Answer(TEXT), Answer("one two three").then(Hang(), after_tokens=2))
    with subprocess.Popen([sys.executable, "-c", CHILD, server.url, "2"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert [process.stdout.readline(), process.stdout.readline()] == [b"one\n", b" two\n"]
        process.send_signal(signal.SIGKILL)
    session = Session("novel", servers=[server.url])
    whole = [user("0?"), assistant(), user("1?"), assistant()]
    assert session.history == whole
    assert session.chat("And now?") == TEXT
    assert sent(server) == [*whole, user("And now?")]


@pytest.mark.parametrize("count", [3, 17])
def test_a_kill_at_any_moment_leaves_whole_turns(count: int, server: FakeServer) -> None:
    """A process that is killed while it asks and writes leaves nothing but whole turns, in order."""
    with subprocess.Popen([sys.executable, "-c", CHILD, server.url, "9999"], stdout=subprocess.PIPE) as process:
        assert server.wait_until(lambda: len(server.requests) > count)
        process.kill()
    history = Session("novel").history
    assert history == [message for number in range(len(history) // 2) for message in (user(f"{number}?"), assistant())]
    assert len(history) >= 2 * (count - 3)


def test_the_embedded_engine_has_a_conversation(short_server: FakeServer) -> None:
    """The real engine gets the conversation as it is and counts it: it grows with each turn."""
    session = Session(servers=[short_server.url], model="llama3.2:3b", max_tokens=8)
    session.chat("Say a word.")
    session.chat("And another.")
    first, second = session.turns
    assert 0 < first.context < second.context
    assert sent(short_server) == [*first.messages, user("And another.")]


@pytest.mark.parametrize(
    "code",
    re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/conversations.md").read_text(), re.MULTILINE | re.DOTALL),
)
def test_the_examples_of_the_docs_run(code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each example of docs/conversations.md runs as it stands."""
    monkeypatch.chdir(tmp_path)
    with FakeServer(models=("llama3.2:3b",)) as server:
        monkeypatch.setenv("AICORTEX_SERVERS", server.url)
        exec(compile(code, "docs/conversations.md", "exec"), {})
