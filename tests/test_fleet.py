"""Which servers there are, and which models they have, asked of real sockets."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from time import perf_counter

import pytest
from tests.colours import Chat

from aicortex import AllServersFailedError, Server, list_model_servers, models, planning
from aicortex._core.failover import Failure
from aicortex.catalogue import list_models, list_servers
from aicortex.fleet import find_servers
from aicortex.testing import Answer, Exchange, FakeServer, Garbage, Hang, Raw, Reply, Status


def test_given_servers_go_before_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """servers= is used as given, each server once."""
    monkeypatch.setenv("AICORTEX_SERVERS", "elsewhere")
    assert find_servers(["a", "b:1", "http://a:11434"]) == [Server("a"), Server("b:1")]
    assert find_servers("a") == find_servers(Server("a")) == [Server("a")]


def test_the_environment_names_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """AICORTEX_SERVERS takes commas and spaces, and AICORTEX_API_KEY goes to those without credentials."""
    monkeypatch.setenv("AICORTEX_SERVERS", " a, http://me:pw12@b:1  c")
    monkeypatch.setenv("AICORTEX_API_KEY", "key-1234")
    found = find_servers()
    assert [server.label for server in found] == ["http://a:11434", "http://b:1", "http://c:11434"]
    assert [dict(server.headers)["Authorization"].split()[0] for server in found] == ["Bearer", "Basic", "Bearer"]


def test_a_bad_environment_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says where the bad address stands."""
    monkeypatch.setenv("OLLAMA_HOST", "ftp://x")
    with pytest.raises(ValueError, match="OLLAMA_HOST"):
        find_servers()
    monkeypatch.setenv("AICORTEX_SERVERS", "box:port")
    with pytest.raises(ValueError, match="AICORTEX_SERVERS"):
        find_servers()


def test_the_local_ollama_is_used_if_it_answers(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """OLLAMA_HOST goes before the embedded engine while something answers there, with its key."""
    monkeypatch.setenv("OLLAMA_API_KEY", "key-1234")
    with FakeServer(require={"Authorization": "Bearer key-1234"}) as server:
        monkeypatch.setenv("OLLAMA_HOST", f"0.0.0.0:{server.port}")
        assert [found.label for found in find_servers()] == [server.url]
        assert chat("Hi")


def test_else_the_embedded_engine_is_used_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A named local Ollama that does not answer is not replaced in silence."""
    with FakeServer() as server:
        server.refuse()
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        with pytest.warns(RuntimeWarning, match="does not answer; the embedded engine is used"):
            assert find_servers() == [Server("embedded")]


def test_models_of_the_whole_fleet() -> None:
    """Each name once, in the order of the servers; who did not answer is said."""
    with (
        FakeServer(models=("a:1", "b:1")) as one,
        FakeServer(models=("b:1", "c:1")) as two,
        FakeServer(everything=Status(401, {"error": "no"})) as three,
    ):
        names = models(servers=[one.url, two.url, three.url])
        assert names == ["a:1", "b:1", "c:1"]
        assert names[:2] == ["a:1", "b:1"]
        assert names.unreachable == {three.url: "HTTP 401: no"}


@pytest.mark.parametrize("reply", [Hang(), Garbage(), Status.html(code=502), Status(200, ["no", "object"])])
def test_servers_that_do_not_answer_are_named_within_the_deadline(reply: Hang) -> None:
    """All are asked at once: ten silent ones take no longer than one."""
    silent = [FakeServer(everything=reply) for _ in range(10)]
    with FakeServer(models=("a:1",)) as good:
        for server in silent:
            server.start()
        began = perf_counter()
        names = models(servers=[*(server.url for server in silent), good.url])
        assert perf_counter() - began < 4
        for server in silent:
            server.stop()
    assert names == ["a:1"]
    assert len(names.unreachable) == 10


def test_when_no_server_answers() -> None:
    """An empty list would be a lie."""
    with FakeServer() as server:
        server.refuse()
        with pytest.raises(AllServersFailedError, match=r"^All servers failed: .*nothing listens"):
            models(servers=[server.url])


def test_servers_of_a_model() -> None:
    """Where a model is, with digest, size and whether it is loaded; nowhere is an empty list."""
    with FakeServer(models=("a:latest",)) as one, FakeServer(models=("b:1",)) as two:
        rows = list_model_servers("a", servers=[one.url, two.url])
        assert [(row["url"], row["model"]) for row in rows] == [(one.url, "a:latest")]
        assert {"digest", "size", "parameter_size", "quantization", "loaded"} <= set(rows[0])
        assert list_model_servers("nobody", servers=[one.url, two.url]) == []
    with pytest.raises(ValueError, match="model must be"):
        list_model_servers("")


def test_tables_of_models_and_servers() -> None:
    """The command line's tables: every model of every server, and how every server is."""
    with FakeServer(models=("a:1", "b:1"), version="9.8.7") as one, FakeServer() as two:
        two.refuse()
        rows = list_models(servers=[one.url, two.url])
        assert [(row["url"], row["model"]) for row in rows] == [(one.url, "a:1"), (one.url, "b:1")]
        good, bad = list_servers(servers=[one.url, two.url])
    assert (good["answers"], good["version"], good["models"]) == (True, "9.8.7", 2)
    assert good["round_trip"] > 0
    assert (bad["answers"], bad["version"]) == (False, None)


def test_the_server_that_has_the_model_is_asked(chat: Chat) -> None:
    """A server without the model is not asked for it while another has it."""
    with FakeServer(models=("a:1",)) as one, FakeServer(models=("b:1",), answer="from two") as two:
        assert chat("Hi", model="b:1", servers=[one.url, two.url]) == "from two"
        assert not any(request.path == "/api/chat" for request in one.requests)


def test_the_order_of_the_servers_is_kept(chat: Chat) -> None:
    """Best first: that another server was asked before does not put it in front."""
    with FakeServer(answer="from one") as one, FakeServer(answer="from two") as two:
        assert chat("Hi", model="fake", servers=[two.url]) == "from two"
        assert chat("Hi", model="fake", servers=[one.url, two.url]) == "from one"


def test_a_slow_server_that_answered_at_last_is_first_again(chat: Chat) -> None:
    """What a server says after nobody waited any more counts the next time."""
    slow = Status(200, {"models": [{"name": "fake:latest"}]})
    with (
        FakeServer(answer="from one", paths={"/api/tags": Late(slow, 0.5)}) as one,
        FakeServer(answer="from two") as two,
    ):
        assert chat("Hi", model="fake", servers=[one.url, two.url]) == "from two"
        deadline = perf_counter() + 5
        while _failed(Server(one.url)):  # until the answer that nobody waited for is noted
            assert perf_counter() < deadline
            one.wait_until(lambda: False, 0.02)
        assert chat("Hi", model="fake", servers=[one.url, two.url]) == "from one"


@dataclass(frozen=True)
class Late(Reply):
    """A reply after some seconds."""

    reply: Reply
    seconds: float

    def play(self, exchange: Exchange) -> None:
        exchange.pause(self.seconds)
        self.reply.play(exchange)


def _failed(server: Server) -> bool:
    return isinstance(planning._known[server][1], Failure)


def test_what_servers_have_is_asked_once(chat: Chat) -> None:
    """A second question needs no second list of models, with or without a name."""
    with FakeServer() as one, FakeServer() as two:
        for model in ("fake", None, "fake", None):
            assert chat("Hi", model=model, servers=[one.url, two.url])
        for server in (one, two):
            assert [request.path for request in server.requests].count("/api/tags") == 1


def test_a_port_that_speaks_no_http_says_so() -> None:
    """Another protocol's greeting is named, not shown as a status of 0."""
    with (
        FakeServer(everything=Raw(b"SSH-2.0-OpenSSH_9\r\n")) as server,
        pytest.raises(AllServersFailedError, match="not valid HTTP"),
    ):
        models(servers=[server.url])


def test_without_a_name_a_model_of_the_fleet_is_used(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """AICORTEX_MODEL, else the first model there is."""
    with FakeServer(models=()) as one, FakeServer(models=("b:1", "c:1")) as two:
        urls = [one.url, two.url]
        assert chat("Hi", stream=True, servers=urls).result.model == "b:1"
        monkeypatch.setenv("AICORTEX_MODEL", "c:1")
        assert chat("Hi", stream=True, servers=urls).result.model == "c:1"


def test_a_model_pulled_since_is_found(chat: Chat) -> None:
    """What a server had a moment ago is not held against it."""
    with FakeServer(models=("a:1",)) as server:
        assert chat("Hi", servers=[server.url])
        with FakeServer(models=("a:1", "b:1")) as other:
            assert chat("Hi", model="b:1", servers=[server.url, other.url])


def test_a_silent_server_does_not_keep_the_others_waiting(chat: Chat) -> None:
    """Once one server has the model, those that hang get a moment and no more."""
    with FakeServer(everything=Hang()) as one, FakeServer(answer="here") as two:
        began = perf_counter()
        assert chat("Hi", model="fake", servers=[one.url, two.url]) == "here"
        assert perf_counter() - began < 2


def test_nobody_says_which_models_there_are(chat: Chat) -> None:
    """Without a model and without an answer, every server's failure is an event and an attempt."""
    with FakeServer(everything=Status(500, {"error": "broken"})) as one, FakeServer() as two:
        two.refuse()
        stream = chat("Hi", stream=True, servers=[one.url, two.url])
        with pytest.raises(AllServersFailedError) as caught:
            stream.text()
    assert [attempt.kind for attempt in caught.value.attempts] == ["server_error", "refused"]
    assert [event.type for event in stream.events] == ["start", "error", "error"]


def test_a_named_model_is_asked_for_even_where_the_list_is_not_given(chat: Chat) -> None:
    """A proxy that hides /api/tags does not hide the model."""
    with FakeServer(answer="here", paths={"/api/tags": Status(404, "not here")}) as server:
        assert chat("Hi", model="fake:latest", servers=[server.url]) == "here"


def test_many_threads_ask_at_once(chat: Chat) -> None:
    """Fifty threads with one pool get fifty whole answers."""
    text = "one two three four five"
    with FakeServer(answer=Answer(text, delay=0.001)) as server:
        answers: list[str] = []
        asking = [threading.Thread(target=lambda: answers.append(chat("Hi", servers=[server.url]))) for _ in range(50)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    assert answers == [text] * 50
