"""The whole pipeline: a fleet refreshed, killed, brought back, at real sockets and with the real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

import pytest

from aicortex import Server, chat
from aicortex.registry.entries import ServerEntry
from aicortex.registry.store import Registry
from aicortex.testing import FakeServer, Hang, Loading, Reply, Status
from aicortex.tools import Progress, Report, refresh
from tools.misbehaving import Trickle

KEY = "key-1234-secret"


@pytest.fixture(autouse=True)
def _no_files_of_the_developer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AICORTEX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(str(tmp_path / "registry.db")) as found:
        yield found


def kinds(report: Report) -> list[tuple[str, str, str]]:
    return [(change.kind, change.server, change.model) for change in report.changes]


def test_a_fleet_and_its_fate(registry: Registry) -> None:
    """New, unchanged, lost, moved meanwhile, and back."""
    with FakeServer(models={"a:1": "d1"}) as one, FakeServer(models={"b:1": "d2"}) as two:
        urls = [one.url, two.url]
        first = refresh(urls, registry=registry)
        assert kinds(first) == [
            ("new", one.url, ""),
            ("new", two.url, ""),
            ("new", one.url, "a:1"),
            ("new", two.url, "b:1"),
        ]
        assert (first.servers, first.answered, first.models, first.unreachable) == (2, 2, 2, {})
        assert kinds(refresh(urls, registry=registry)) == []

        one.refuse()
        lost = refresh(urls, registry=registry)
        assert kinds(lost) == [("lost", one.url, "")]
        assert (lost.answered, lost.models) == (1, 1)
        assert lost.unreachable == {one.url: "refused the connection: nothing listens there"}
        snapshot = registry.snapshot()
        assert snapshot.conditions[one.url].is_stale
        assert [model.name for model in snapshot.models[one.url]] == ["a:1"]

        one.start()
        one.paths["/api/tags"] = Status(200, {"models": []})
        two.paths["/api/tags"] = Status(200, {"models": [{"name": "a:1", "digest": "d1"}]})
        back = refresh(urls, registry=registry)
        assert kinds(back) == [("back", one.url, ""), ("moved", two.url, "a:1"), ("gone", two.url, "b:1")]
        (moved,) = registry.snapshot().models[two.url]
        assert moved.context_length == 8192


def test_a_known_fleet_is_refreshed_cheaply(registry: Registry) -> None:
    """The second refresh asks for no model's abilities, and every request of a server goes over one connection."""
    with FakeServer(models={"a:1": "d1", "b:1": "d2"}) as fake:
        refresh(fake.url, registry=registry)
        fake.requests.clear()
        refresh(fake.url, registry=registry)
        asked = [request.path for request in fake.requests]
        assert asked == ["/api/version", "/api/version", "/api/tags", "/api/ps"]
        assert fake.connections == 1
    assert [model.capabilities[0] for model in registry.snapshot().models[fake.url]] == ["completion"] * 2


@pytest.mark.parametrize(
    ("place", "reply"), [("/api/version", Hang()), ("/api/tags", Hang()), ("/api/tags", Trickle(0.1))]
)
def test_fifty_servers_of_which_five_hang(registry: Registry, place: str, reply: Reply) -> None:
    """The refresh ends within its deadline, and the others are known whatever the five do."""
    with ExitStack() as stack:
        good = [stack.enter_context(FakeServer(models={f"m:{number % 3}": f"d{number % 3}"})) for number in range(45)]
        hanging = [stack.enter_context(FakeServer(paths={place: reply})) for _ in range(5)]
        told: list[Progress] = []
        began = perf_counter()
        report = refresh([fake.url for fake in (*hanging, *good)], registry=registry, deadline=2.0, tell=told.append)
        assert perf_counter() - began < 2.0
    assert report.seconds < 2.0
    assert (report.servers, report.answered, report.models) == (50, 45, 3)
    assert set(report.unreachable) == {fake.url for fake in hanging}
    assert all("did not answer" in reason for reason in report.unreachable.values())
    snapshot = registry.snapshot()
    assert all(model.context_length == 8192 for fake in good for model in snapshot.models[fake.url])
    assert len(snapshot.conditions) == 50
    steps = {progress.step: progress for progress in told}
    assert [(step, last.done, last.total, last.failed) for step, last in steps.items()] == [
        ("check", 50, 50, 5 if place == "/api/version" else 0),
        ("fetch", 50, 50, 5),
        ("apply", 50, 50, 0),
    ]


@pytest.mark.usefixtures("hanging_resolver")
def test_a_name_that_is_not_resolved(registry: Registry) -> None:
    """The system's resolver may take half a minute; the refresh does not."""
    with FakeServer() as good:
        report = refresh(["box.example", good.url], registry=registry, deadline=1.5)
    assert report.seconds < 1.5
    assert report.answered == 1
    assert "not resolved in time" in report.unreachable["http://box.example:11434"]


def test_a_server_that_loads_a_model(registry: Registry) -> None:
    """It answers, its load goes on, and what was known of its memory stays."""
    with FakeServer(Loading(Status(200, {}))) as fake:
        refresh(fake.url, registry=registry)
        before = registry.snapshot().models[fake.url]
        loading = chat("Hi", stream=True, model="fake", servers=[fake.url])
        assert fake.wait_until(lambda: fake.loading == 1)
        report = refresh(fake.url, registry=registry)
        assert (report.answered, report.changes) == (1, ())
        assert registry.snapshot().models[fake.url] == before
        assert before[0].loaded_until > 0
        assert fake.aborted_loads == 0
        loading.cancel()


def test_without_servers_the_registered_ones_are_refreshed(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the registry and of the configuration files, with their keys; none is an empty report."""
    assert refresh(registry=registry).servers == 0
    with FakeServer(require={"Authorization": f"Bearer {KEY}"}) as one, FakeServer() as two:
        (tmp_path / "aicortex.toml").write_text(f'[[servers]]\nurl = "{two.url}"\n', "utf-8")
        registry.add(ServerEntry(one.url, api_key="env:ONE_KEY"))
        registry.add(ServerEntry(two.url, api_key="env:NOT_THERE"))  # the file says of this one that it needs none
        monkeypatch.setenv("ONE_KEY", KEY)
        report = refresh(registry=registry)
        assert (report.servers, report.answered) == (2, 2)
        monkeypatch.delenv("ONE_KEY")
        report = refresh(registry=registry)
        assert (report.servers, report.answered) == (2, 1)
        assert "ONE_KEY" in report.unreachable[one.url]
        assert [(change.kind, change.server) for change in report.changes] == [("lost", one.url)]
    assert registry.snapshot().models[one.url]


def test_the_users_own_registry(tmp_path: Path) -> None:
    """Without a registry the user's is written, and closed."""
    with FakeServer() as fake:
        refresh(fake.url)
        assert [file.name for file in (tmp_path / "data").iterdir()] == ["registry.db"]
        with Registry() as own:
            assert [*own.snapshot().models] == [fake.url]


def test_no_secret_goes_anywhere(registry: Registry, tmp_path: Path) -> None:
    """Neither into the report, nor the progress, nor the file, although servers echo the key in every error."""
    echo = Status(500, {"error": f"for Bearer {KEY}"})
    with (
        FakeServer(everything=echo) as one,
        FakeServer(paths={"/api/tags": echo, "/api/version": Status(200, {"version": KEY})}) as two,
        FakeServer(paths={"/api/chat": echo, "/api/show": echo, "/api/ps": echo}) as three,
    ):
        told: list[Progress] = []
        servers = [Server(fake.url, api_key=KEY) for fake in (one, two, three)]
        report = refresh(servers, registry=registry, measure=True, tell=told.append)
    registry.close()
    assert report.unreachable == {one.url: "HTTP 500: for ***", two.url: "HTTP 500: for ***"}
    assert [measurement.error for measurement in report.measurements] == ["HTTP 500: for ***"]
    for shown in (repr(report), json.dumps(report.to_dict()), repr(told), "".join(map(str, report.changes))):
        assert KEY not in shown
    for file in tmp_path.glob("registry.db*"):
        assert KEY.encode() not in file.read_bytes()


def test_measuring_writes_what_was_found(registry: Registry) -> None:
    """One model of each server that answers is measured, and a server that became much slower is told of."""
    with FakeServer() as one, FakeServer() as dead:
        dead.refuse()
        first = refresh([one.url, dead.url], registry=registry, measure=True)
        assert [(found.url, found.tokens_per_second) for found in first.measurements] == [(one.url, pytest.approx(100))]
        slow = {"message": {"content": "one"}, "done": True, "eval_count": 10, "eval_duration": 1_000_000_000}
        one.script(Status(200, slow))
        second = refresh([one.url, dead.url], registry=registry, measure=True)
    assert [(change.kind, change.unit, change.before, change.after) for change in second.changes] == [
        ("slower", "tokens_per_second", pytest.approx(100), pytest.approx(10))
    ]
    assert registry.snapshot().measurements[one.url, "fake:latest"].tokens_per_second == pytest.approx(10)


def test_the_real_engine(embedded_server: str, registry: Registry) -> None:
    """Capabilities, context length and speed of the embedded engine are in the registry afterwards."""
    report = refresh(embedded_server, registry=registry, measure=True)
    url = Server(embedded_server).label
    assert (report.answered, report.unreachable) == (1, {})
    snapshot = registry.snapshot()
    (model,) = snapshot.models[url]
    assert model.capabilities == ("completion", "tools")
    assert model.context_length > 0
    assert len(model.digest) == 64
    measurement = snapshot.measurements[url, model.name]
    assert measurement.error == ""
    assert measurement.tokens_per_second > 0
    assert measurement.first_token_ms > 0
    assert snapshot.conditions[url].round_trip_ms > 0


def test_what_is_wrong_raises(registry: Registry) -> None:
    """Neither an address nor a deadline that is none reaches a server."""
    with pytest.raises(ValueError, match="no server address"):
        refresh("ftp://desk", registry=registry)
    with pytest.raises(ValueError, match="deadline must be"):
        refresh("desk", registry=registry, deadline=0)
