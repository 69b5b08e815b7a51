"""How fast models are, measured at real sockets and at the real engine."""

from __future__ import annotations

from itertools import pairwise
from time import perf_counter, time

import pytest

from aicortex import Server
from aicortex.registry.entries import ModelEntry
from aicortex.testing import Answer, FakeServer, Hang, Loading, Reset, Status
from aicortex.tools import Progress, fetch, measure
from aicortex.tools.measuring import choose
from tools.misbehaving import Late

FAKE = ModelEntry("fake:latest", capabilities=("completion",))
TEN = "one two three four five six seven eight nine ten"


def test_one_short_answer() -> None:
    """What is asked is small and bounded, and what the server says of its speed is what counts."""
    with FakeServer(answer=Answer(TEN, first_delay=0.2)) as fake:
        began = time()
        (found,) = measure({Server(fake.url): [FAKE]})
        asked = [request.json for request in fake.requests if request.path == "/api/chat"]
    assert [(one["model"], one["options"]) for one in asked] == [("fake:latest", {"temperature": 0, "num_predict": 16})]
    assert (found.url, found.model, found.error) == (fake.url, "fake:latest", "")
    assert began <= found.at <= time()
    assert found.tokens_per_second == pytest.approx(100)
    assert found.load_ms == pytest.approx(10)
    assert found.first_token_ms >= 190


def test_no_measurement_profits_from_the_one_before() -> None:
    """Each prompt begins differently: what a server remembers of the last one does not make it look faster."""
    with FakeServer() as fake:
        for _ in range(2):
            measure({Server(fake.url): [FAKE]})
        asked = [request.json["messages"] for request in fake.requests if request.path == "/api/chat"]
    assert asked[0][0] != asked[1][0]
    assert asked[0][1:] == asked[1][1:]


def test_loading_the_model_is_not_the_first_token() -> None:
    """What the server says that loading took is taken off."""
    loaded = {"message": {"content": "one"}, "done": True, "load_duration": 200_000_000, "eval_count": 1}
    with FakeServer(Late(Status(200, loaded), 0.3)) as fake:
        began = perf_counter()
        (found,) = measure({Server(fake.url): [FAKE]})
        took_ms = (perf_counter() - began) * 1000
    assert found.load_ms == pytest.approx(200)
    assert 0 < found.first_token_ms <= took_ms - 200
    assert found.tokens_per_second == 0.0  # it does not say how long it took


def test_a_load_longer_than_what_was_waited() -> None:
    """Such a server is not believed, and its first token came when it came."""
    loaded = {"message": {"content": "one"}, "done": True, "load_duration": 60_000_000_000, "eval_count": 1}
    with FakeServer(Late(Status(200, loaded), 0.2)) as fake:
        (found,) = measure({Server(fake.url): [FAKE]})
    assert found.first_token_ms >= 190
    assert found.load_ms == 0.0


def test_a_thinking_model_is_asked_not_to_think() -> None:
    """So that what is measured is the answer; where it thinks all the same, its first thought is the first token."""
    thinker = ModelEntry("fake:latest", capabilities=("completion", "thinking"))
    with FakeServer(Answer("", thinking="well well", first_delay=0.1, delay=0.3)) as fake:
        (found,) = measure({Server(fake.url): [thinker]})
        assert fake.requests[-1].json["think"] is False
    assert found.error == ""
    assert found.first_token_ms > 80


def test_embedding_models_are_never_asked() -> None:
    """Neither by what they say they can, nor by their family where they do not say."""
    said = ModelEntry("a:1", capabilities=("embedding",))
    family = ModelEntry("b:1", family="nomic-bert")
    assert choose([said, family], 0.0, every=True) == []
    told: list[Progress] = []
    assert measure({Server("nowhere"): [said, family]}, tell=told.append) == []
    assert told == []


def test_the_model_in_memory_goes_first() -> None:
    """Then the smallest that can chat; one whose size is unknown comes last."""
    small, large = ModelEntry("s:1", size=1), ModelEntry("l:1", size=9)
    unknown, loaded = ModelEntry("u:1"), ModelEntry("m:1", size=99, loaded_until=200.0)
    models = [unknown, large, small, loaded]
    assert choose(models, 100.0, every=False) == [loaded]
    assert choose(models, 300.0, every=False) == [small]
    assert choose(models, 100.0, every=True) == [loaded, small, large, unknown]


def test_every_model_one_after_the_other() -> None:
    """A server is never asked for two answers at once; servers are measured at the same time."""
    slow = Answer(TEN, delay=0.05)
    with FakeServer(models=("a:1", "b:1", "c:1"), answer=slow) as one, FakeServer(models=("a:1",), answer=slow) as two:
        told: list[Progress] = []
        fetched = {server: found.models or () for server, found in fetch([one.url, two.url]).items()}
        found = measure(fetched, every=True, tell=told.append)
        chats = [request.at for request in one.requests if request.path == "/api/chat"]
        begun = next(request.at for request in two.requests if request.path == "/api/chat")
    assert sorted((measured.url, measured.model) for measured in found if not measured.error) == sorted(
        [(one.url, "a:1"), (one.url, "b:1"), (one.url, "c:1"), (two.url, "a:1")]
    )
    assert begun < chats[1]
    assert all(later - earlier > 0.4 for earlier, later in pairwise(chats))
    assert (told[-1].step, told[-1].done, told[-1].total, told[-1].failed) == ("measure", 4, 4, 0)


def test_failures_are_measurements() -> None:
    """Each says why, without the server's name and without its secrets."""
    with (
        FakeServer(everything=Status(401, {"error": "bad key key-1234"})) as denied,
        FakeServer(Reset(), Reset(), Reset(), Reset(), Reset()) as broken,
        FakeServer(models=("b:1",)) as lacking,
        FakeServer(answer="") as silent,
        FakeServer(Status(400, {"error": "no"})) as picky,
        FakeServer() as dead,
    ):
        dead.refuse()
        fakes = [denied, broken, lacking, silent, picky, dead]
        found = {one.url: one for one in measure({Server(fake.url, api_key="key-1234"): [FAKE] for fake in fakes})}
    reasons = [found[fake.url].error for fake in fakes]
    assert reasons[0] == "HTTP 401: bad key ***"
    assert "broke the connection" in reasons[1]
    assert "model 'fake:latest' not found" in reasons[2]
    assert reasons[3] == "the model said nothing"
    assert "HTTP 400: no" in reasons[4]
    assert "nothing listens there" in reasons[5]
    assert all(one.tokens_per_second == 0.0 for one in found.values())
    assert "key-1234" not in repr(found)


def test_the_deadline_holds() -> None:
    """Answers that do not end are left, which frees their servers; models whose turn did not come are left out."""
    with (
        FakeServer(models=("a:1", "b:1"), answer=Answer(TEN, delay=60)) as slow,
        FakeServer(Loading(Answer(TEN))) as loading,
        FakeServer() as good,
    ):
        models = {Server(slow.url): [ModelEntry("a:1"), ModelEntry("b:1")], Server(loading.url): [FAKE]}
        began = perf_counter()
        found = measure({**models, Server(good.url): [FAKE]}, every=True, deadline=1.0)
        assert perf_counter() - began < 4
        assert slow.wait_for_disconnect()
        assert loading.wait_until(lambda: loading.aborted_loads == 1)
    errors = {(one.url, one.model): one.error for one in found}
    assert set(errors) == {(slow.url, "a:1"), (loading.url, "fake:latest"), (good.url, "fake:latest")}
    assert errors[good.url, "fake:latest"] == ""
    assert errors[slow.url, "a:1"] == errors[loading.url, "fake:latest"] == "the answer was not whole within 0.9 s"


def test_a_server_that_hangs_before_it_is_asked() -> None:
    """A measurement that was begun and not ended in time failed."""
    with FakeServer(everything=Hang()) as fake:
        (found,) = measure({Server(fake.url): [FAKE]}, deadline=0.5)
    assert found.error


def test_the_real_engine(embedded_server: str) -> None:
    """Its speed is a real one, of the model in its memory."""
    fetched = {server: found.models or () for server, found in fetch(embedded_server).items()}
    (found,) = measure(fetched)
    assert found.error == ""
    assert 1 < found.tokens_per_second < 2000
    assert 1 < found.first_token_ms < 30_000
