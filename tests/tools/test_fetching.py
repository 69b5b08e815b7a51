"""What servers have, asked of real sockets."""

from __future__ import annotations

from datetime import datetime, timezone
from time import perf_counter, time
from typing import Any

import msgspec
import pytest

from aicortex import Server, chat, embedded
from aicortex.registry.entries import ModelEntry, Snapshot
from aicortex.testing import FakeServer, Garbage, Hang, Loading, Reply, Reset, Status
from aicortex.tools import Fetched, Progress, check, fetch
from tools.misbehaving import Behind, Late, Trickle

FOR_EVER = datetime(2318, 1, 1, tzinfo=timezone.utc).timestamp()  # as the fake server says
SHOW = "/api/show"


def tags(*models: dict[str, Any]) -> dict[str, Reply]:
    return {"/api/tags": Status(200, {"models": list(models)})}


def listed(name: str = "a:1", digest: str = "d1", **more: Any) -> dict[str, Any]:
    return {"name": name, "digest": digest, **more}


def paths(server: FakeServer) -> list[str]:
    return [request.path for request in server.requests]


def one(found: dict[Server, Fetched]) -> Fetched:
    (fetched,) = found.values()
    return fetched


def test_a_model_with_everything_that_is_said_of_it() -> None:
    """Tags, memory and abilities of a model come together in one entry; a name without a tag is full."""
    with FakeServer(models={"llama3.2": "abc"}) as fake:
        fetched = one(fetch(fake.url))
        assert fetched.models == (
            ModelEntry(
                name="llama3.2:latest",
                digest="abc",
                size=1_000_000_000,
                family="llama",
                families=("llama",),
                parameter_size="1B",
                quantization="Q4_K_M",
                context_length=8192,
                capabilities=("completion", "tools", "thinking", "vision"),
                loaded_until=FOR_EVER,
            ),
        )
        assert (fetched.failure, fetched.knows_loaded, fetched.checked.version) == (None, True, "0.33.0")
        assert paths(fake) == ["/api/version", "/api/version", "/api/tags", "/api/ps", SHOW]
        assert fake.connections == 1


def test_what_was_checked_is_not_checked_again() -> None:
    """The result of check can be passed on; a server that failed is not asked, and one that has not is."""
    with FakeServer() as good, FakeServer(everything=Status(500)) as bad:
        checked = check([good.url, bad.url])
        good.requests.clear()
        bad.requests.clear()
        fetched = fetch(checked)
        assert paths(good) == ["/api/tags", "/api/ps", SHOW]
        assert paths(bad) == []
    assert [found.checked for found in fetched.values()] == [*checked.values()]
    failures = [found.failure and found.failure.kind for found in fetched.values()]
    assert failures == [None, "server_error"]


def test_a_known_fleet_is_not_asked_for_abilities() -> None:
    """A digest of which the registry has capabilities needs no `/api/show`, whatever its name and server were."""
    old = ModelEntry("other:1", "d1", context_length=4096, capabilities=("completion",))
    with FakeServer(models={"a:1": "d1", "b:1": "d2"}) as fake:
        fetched = one(fetch(fake.url, known=Snapshot(models={"http://elsewhere:11434": (old,)})))
        assert [request.model for request in fake.requests if request.path == SHOW] == ["b:1"]
    assert fetched.models is not None
    assert [(model.context_length, model.capabilities[0]) for model in fetched.models] == [
        (4096, "completion"),
        (8192, "completion"),
    ]


def test_what_the_registry_does_not_know_is_asked_for_again() -> None:
    """A digest without capabilities, from a server that did not say them, is asked for in each refresh."""
    old = ModelEntry("a:1", "d1", context_length=4096)
    with FakeServer(models={"a:1": "d1"}) as fake:
        (model,) = one(fetch(fake.url, known=Snapshot(models={fake.url: (old,)}))).models or ()
    assert (model.context_length, len(model.capabilities)) == (8192, 4)


def test_a_server_that_hangs_at_one_model_is_not_asked_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the time of each of its models, and with it that of the servers that wait for them."""
    monkeypatch.setattr("aicortex.tools.fetching.SHOW_WAIT", 0.3)
    with FakeServer(models={"a:1": "d1", "b:1": "d2"}, paths={SHOW: Hang()}) as fake:
        fetched = one(fetch(fake.url, deadline=6.0))
        assert paths(fake).count(SHOW) == 1
    assert [model.name for model in fetched.models or ()] == ["a:1", "b:1"]


def test_servers_that_hang_at_their_models_do_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them withholds one digest for a moment, and then the next server says it."""
    monkeypatch.setattr("aicortex.tools.fetching.SHOW_WAIT", 0.5)
    models = {f"m:{number}": f"d{number}" for number in range(6)}
    hanging = [FakeServer(models=models, paths={SHOW: Hang()}) for _ in range(3)]
    good = FakeServer(models=models)
    listing = Status(200, {"models": [listed(name, digest) for name, digest in models.items()]})
    good.paths["/api/tags"] = Behind(listing, hanging[0], SHOW)
    for fake in (*hanging, good):
        fake.start()
    found = fetch([fake.url for fake in (*hanging, good)], deadline=3.0)
    for fake in (*hanging, good):
        fake.stop()
    assert all(paths(fake).count(SHOW) <= 1 for fake in hanging)
    assert all(model.context_length == 8192 for model in found[Server(good.url)].models or ())


def test_each_digest_is_asked_for_once() -> None:
    """Ten servers with the same two models: two questions in all, and every server's models are described."""
    fakes = [FakeServer(models={"a:1": "d1", "b:1": "d2"}) for _ in range(10)]
    for fake in fakes:
        fake.start()
    found = fetch([fake.url for fake in fakes])
    for fake in fakes:
        fake.stop()
    assert sum(paths(fake).count(SHOW) for fake in fakes) == 2
    lengths = [model.context_length for fetched in found.values() for model in fetched.models or ()]
    assert lengths == [8192] * 20


@pytest.mark.parametrize("reply", [Hang(), Reset(), Status(500), Status(404, "404 page not found"), Garbage()])
def test_a_server_that_says_nothing_of_a_model_leaves_it_to_another(
    reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No digest stays unknown because the first server that was asked for it cannot say, and no server fails by it."""
    monkeypatch.setattr("aicortex.tools.fetching.SHOW_WAIT", 0.3)
    with FakeServer(models={"a:1": "d1"}, paths={SHOW: reply}) as bad, FakeServer(models={"a:1": "d1"}) as good:
        good.paths["/api/tags"] = Behind(Status(200, {"models": [listed()]}), bad, SHOW)
        found = fetch([bad.url, good.url], deadline=10.0)
    assert [fetched.failure for fetched in found.values()] == [None, None]
    last = found[Server(good.url)].models
    assert last is not None
    assert last[0].context_length == 8192


def test_a_server_without_abilities_is_asked_once_for_each_digest() -> None:
    """Servers before Ollama 0.6.4 say no capabilities; in one refresh nobody asks them again."""
    silent = Status(200, {"model_info": {"general.architecture": "llama", "llama.context_length": 2048}})
    fakes = [FakeServer(models={"a:1": "d1"}, paths={SHOW: silent}) for _ in range(3)]
    for fake in fakes:
        fake.start()
    found = fetch([fake.url for fake in fakes])
    for fake in fakes:
        fake.stop()
    assert sum(paths(fake).count(SHOW) for fake in fakes) == 1
    lengths = [model.context_length for fetched in found.values() for model in fetched.models or ()]
    assert lengths == [2048] * 3


def test_a_model_that_is_being_loaded_does_not_make_the_server_fail() -> None:
    """`/api/ps` waits meanwhile: then what is in memory is not known, and nothing else is missing."""
    with FakeServer(Loading(Status(200, {}))) as fake:
        loading = chat("Hi", stream=True, model="fake", servers=[fake.url])
        assert fake.wait_until(lambda: fake.loading == 1)
        fetched = one(fetch(fake.url, deadline=10.0))
        assert (fetched.failure, fetched.knows_loaded) == (None, False)
        assert fetched.models is not None
        assert [(model.context_length, model.loaded_until) for model in fetched.models] == [(8192, 0.0)]
        assert fake.aborted_loads == 0
        loading.cancel()


@pytest.mark.parametrize("reply", [Status(404, "404 page not found"), Garbage(), Status(200, {"models": [{"x": 1}]})])
def test_a_server_that_does_not_know_what_is_in_memory(reply: Reply) -> None:
    """Only that is unknown then."""
    with FakeServer(paths={"/api/ps": reply}) as fake:
        fetched = one(fetch(fake.url))
    assert (fetched.failure, fetched.knows_loaded) == (None, False)
    assert fetched.models is not None


def test_how_long_a_model_stays_in_memory() -> None:
    """Until the server's own time, in any time zone, or for five minutes where it does not say."""
    names = ("a:1", "b:1", "c:1")
    loaded = [
        listed("a:1", expires_at="2030-06-04T14:38:31.837531234-07:00"),
        listed("b"),
        listed("b:1", expires_at=None),
    ]
    replies = {**tags(*(listed(name) for name in names)), "/api/ps": Status(200, {"models": loaded})}
    with FakeServer(paths=replies) as fake:
        models = one(fetch(fake.url)).models or ()
    assert [model.name for model in models] == [*names]
    assert models[0].loaded_until == pytest.approx(1_906_839_511.84, abs=0.01)
    assert models[1].loaded_until == pytest.approx(time() + 300, abs=30)
    assert models[2].loaded_until == 0.0


def test_fields_that_are_missing_or_null() -> None:
    """Servers that only look like Ollama say less; a list that is null is empty."""
    bare = {"name": "a", "digest": None, "size": None, "details": {"families": None, "family": None}}
    with FakeServer(paths={**tags(bare, {"name": "b:1"}), SHOW: Status(200, {"model_info": None})}) as fake:
        assert one(fetch(fake.url)).models == (ModelEntry("a:latest"), ModelEntry("b:1"))
        fake.paths["/api/tags"] = Status(200, {"models": None})
        assert one(fetch(fake.url)).models == ()


def test_a_name_that_is_listed_twice() -> None:
    """A name with and without its tag is one model."""
    with FakeServer(paths=tags(listed("a"), listed("a:latest"))) as fake:
        assert [model.name for model in one(fetch(fake.url)).models or ()] == ["a:latest"]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Status(401, {"error": "no"}), "denied"),
        (Status(200, {"models": [{"digest": "d"}]}), "bad_response"),
        (Status(200, "[]"), "bad_response"),
        (Reset(), "reset"),
        (Hang(), "stalled"),
        (Trickle(0.01), "stalled"),
    ],
)
def test_a_server_that_does_not_say_what_it_has(reply: Reply, kind: str) -> None:
    """It is alive, but it failed: its models are not known, which is not the same as none."""
    with FakeServer(paths={"/api/tags": reply}) as fake:
        fetched = one(fetch(fake.url, deadline=1.0))
    assert fetched.models is None
    assert fetched.checked.failure is None
    assert fetched.failure is not None
    assert fetched.failure.kind == kind


def test_many_models_and_little_time() -> None:
    """What there was no time for is left out; the list itself is whole."""
    slow = Late(Status(200, {"capabilities": ["completion"]}), 0.2)
    with FakeServer(models={f"a:{number}": f"d{number}" for number in range(20)}, paths={SHOW: slow}) as fake:
        began = perf_counter()
        fetched = one(fetch(fake.url, deadline=1.0))
        assert perf_counter() - began < 4
    described = [bool(model.capabilities) for model in fetched.models or ()]
    assert len(described) == 20
    assert described[0]
    assert not described[-1]


def test_progress_of_both_steps() -> None:
    """Each server is told twice, and a step ends when all have been told."""
    told: list[Progress] = []
    with FakeServer() as good, FakeServer(paths={"/api/tags": Hang()}) as stuck, FakeServer() as dead:
        dead.refuse()
        fetch([good.url, stuck.url, dead.url], deadline=1.0, tell=told.append)
        last = {progress.step: progress for progress in told}
    assert (last["check"].done, last["check"].total, last["check"].failed) == (3, 3, 1)
    assert last["fetch"] == Progress("fetch", stuck.url, 3, 3, 2)
    assert len(told) == 6


def test_what_tell_raises_is_raised() -> None:
    """A display that breaks is not kept silent about."""

    def broken(_: Progress) -> None:
        raise ZeroDivisionError

    with FakeServer() as fake, pytest.raises(ZeroDivisionError):
        fetch(fake.url, tell=broken)


def test_the_embedded_engine_is_described_without_being_started() -> None:
    """Its one name is known."""
    before = embedded._running
    fetched = one(fetch("embedded"))
    assert fetched.models == (ModelEntry(embedded.model_name()),)
    assert embedded._running is before


def test_no_secret_is_in_what_was_fetched() -> None:
    """A server that echoes a key in its error."""
    with FakeServer(paths={"/api/tags": Status(500, {"error": "for key-1234"})}) as fake:
        found = fetch([Server(fake.url, api_key="key-1234")])
    assert "for ***" in repr(found)
    assert "key-1234" not in repr(found)
    assert b"key-1234" not in msgspec.json.encode([*found.values()])


def test_a_digest_that_another_server_is_being_asked_for() -> None:
    """The others wait for what it says instead of asking again."""
    slow = Late(Status(200, {"capabilities": ["completion"]}), 0.5)
    with FakeServer(models={"a:1": "d1"}, paths={SHOW: slow}) as first, FakeServer() as second:
        second.paths["/api/tags"] = Behind(Status(200, {"models": [listed()]}), first, SHOW)
        found = fetch([first.url, second.url])
        assert SHOW not in paths(second)
    assert [(fetched.models or ())[0].capabilities for fetched in found.values()] == [("completion",)] * 2
