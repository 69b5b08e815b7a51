"""The registry's file: what goes in comes out, whole, whatever happens to its processes."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.registry.observing import DESK, RACK, integrity, observation, run

from aicortex._core.health import Health
from aicortex.errors import AICortexError, RegistryError
from aicortex.registry import store
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import Condition, Measurement, ModelEntry, Observation, ServerEntry, Snapshot
from aicortex.registry.store import Registry

DAY = 86400.0


def permissions(path: str) -> str:
    return oct(stat.S_IMODE(os.stat(path).st_mode))


def test_reading_creates_nothing(registry: Registry) -> None:
    """Where there is no file, nothing is known, and nothing is made."""
    assert registry.snapshot() == Snapshot()
    assert registry.read_health() == {}
    assert registry.version() == 0
    registry.apply([])
    registry.write_health({})
    registry.forget(DESK, "a:latest")
    assert not os.path.exists(os.path.dirname(registry.path))


def test_the_file_is_the_users_alone(registry: Registry) -> None:
    """Database, log and folder are for nobody else, whatever the umask."""
    before = os.umask(0)
    try:
        registry.add(entry_of("desk"))
    finally:
        os.umask(before)
    assert permissions(os.path.dirname(registry.path)) == "0o700"
    assert [permissions(registry.path + end) for end in ("", "-wal", "-shm")] == ["0o600"] * 3


def test_the_usual_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a path the registry is the user's."""
    monkeypatch.setenv("AICORTEX_DATA_DIR", str(tmp_path))
    assert repr(Registry()) == f"Registry('{tmp_path}/registry.db')"


def test_servers_are_kept_in_order(registry: Registry) -> None:
    """Every field of every server is there for whoever opens the file, in the order of adding."""
    entries = [
        entry_of("rack", name="rack", labels={"gpu": "4090"}, headers={"X-A": "env:A"}, weight=2, is_draining=True),
        entry_of("desk", location="eu/office", organization="lab", priority=-1, slots=4, api_key="keyring:a/b"),
        entry_of("https://all/x", expand=True, verify=False, ca_file="/lab.pem", client_cert="/me.pem"),
    ]
    for entry in entries:
        registry.add(msgspec.structs.replace(entry, source="/x/aicortex.toml"))
    with Registry(registry.path) as other:
        assert other.snapshot().servers == tuple(entries)


def test_added_entries_are_checked(registry: Registry) -> None:
    """An entry that was not made by `entry_of` gets the same spelling and the same refusals."""
    registry.add(ServerEntry("desk", weight=2))
    assert registry.snapshot().servers == (entry_of("desk", weight=2),)
    with pytest.raises(ValueError, match="api_key: a secret is named, not stored"):
        registry.add(ServerEntry(RACK, api_key="5ecret"))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (entry_of("http://desk:11434", name="other"), "the server http://desk:11434 is there already, as desk"),
        (entry_of("box", name="desk"), "the name desk is that of http://desk:11434: choose another"),
    ],
)
def test_addresses_and_names_are_taken_once(entry: ServerEntry, words: str, registry: Registry) -> None:
    """A second server of one address or name is refused, and the first stays."""
    registry.add(entry_of("desk", name="desk"))
    registry.add(entry_of("nameless"))
    registry.add(entry_of("nameless2"))
    with pytest.raises(ValueError, match=words):
        registry.add(entry)
    assert [known.title for known in registry.snapshot().servers] == [
        "desk",
        "http://nameless:11434",
        "http://nameless2:11434",
    ]


@pytest.mark.parametrize("title", ["desk", "http://desk:11434", "desk:11434", " HTTP://desk:11434/ "])
def test_a_server_is_changed_by_name_or_address(title: str, registry: Registry) -> None:
    """Any spelling finds it; its place and what is known of it stay."""
    registry.add(entry_of("http://desk:11434", name="desk", api_key="env:KEY"))
    registry.add(entry_of("rack"))
    registry.apply([observation(DESK, 1.0, "a:latest")])
    changed = registry.change(title, is_draining=True, name="table", weight=3)
    assert changed == entry_of("desk", name="table", api_key="env:KEY", is_draining=True, weight=3)
    assert registry.snapshot().servers == (changed, entry_of("rack"))
    assert registry.snapshot().models.keys() == {DESK}


def test_a_name_comes_before_an_address(registry: Registry) -> None:
    """A server may be called as the host of another."""
    registry.add(entry_of("box"))
    registry.add(entry_of("rack", name="box"))
    assert registry.remove("box").url == RACK
    assert registry.remove("box").url == "http://box:11434"


@pytest.mark.parametrize(
    ("title", "fields", "words"),
    [
        ("rack", {"weight": 0}, "weight must be more than 0"),
        ("rack", {"api_key": "5ecret"}, "api_key: a secret is named"),
        ("rack", {"name": "desk"}, "the name desk is that of http://desk:11434"),
        ("rack", {"url": "box"}, "url cannot be changed: remove the server and add the new one"),
        ("rakc", {}, r"no server 'rakc'; did you mean http://rack:11434\?"),
        ("desc", {}, r"no server 'desc'; did you mean desk\?"),
        ("zzz", {}, "no server 'zzz'; there are desk, http://rack:11434"),
        ("", {}, "no server ''; there are"),
        ("u:pa55word@x y", {}, "no server 'x y'; there are"),
    ],
)
def test_wrong_changes(title: str, fields: dict[str, object], words: str, registry: Registry) -> None:
    """A change that cannot be made changes nothing."""
    registry.add(entry_of("desk", name="desk"))
    registry.add(entry_of("rack"))
    before = registry.snapshot()
    with pytest.raises(ValueError, match=f"^{words}"):
        registry.change(title, **fields)
    with pytest.raises(TypeError, match="wieght"):
        registry.change("rack", wieght=1)
    assert registry.snapshot() == before


def test_nothing_can_be_changed_where_nothing_is(registry: Registry) -> None:
    """The first thing to do is to add a server."""
    with pytest.raises(ValueError, match="no server 'desk'; none is registered"):
        registry.remove("desk")


def test_everything_known_goes_with_a_server(registry: Registry) -> None:
    """A server that is added again begins with nothing."""
    for name in ("desk", "rack"):
        registry.add(entry_of(name, name=name))
    registry.apply([observation(DESK, 1.0, "a:latest"), observation(RACK, 1.0, "a:latest")])
    registry.write_health({(DESK, ""): Health(failures=1), (RACK, "a"): Health(failures=2)})
    assert registry.remove("desk") == entry_of("desk", name="desk")
    known = registry.snapshot()
    assert [entry.name for entry in known.servers] == ["rack"]
    assert {*known.conditions, *known.models} == {RACK}
    assert {url for url, _ in (*known.measurements, *registry.read_health())} == {RACK}


def test_models_take_the_place_of_those_before(registry: Registry) -> None:
    """A refresh knows all models of a server; one that did not hear of them leaves them."""
    registry.apply([observation(DESK, 1.0, "b:1", "a:1"), observation(RACK, 1.0, "a:1")])
    registry.apply([observation(DESK, 2.0, "c:1")])
    silent = Observation(Condition(RACK, 3.0, 1.0, error="refused"))
    registry.apply([silent])
    known = registry.snapshot()
    assert {url: [model.name for model in models] for url, models in known.models.items()} == {
        DESK: ["c:1"],
        RACK: ["a:1"],
    }
    assert known.conditions[RACK] == silent.condition
    assert known.conditions[RACK].is_stale
    assert known.models[DESK] == observation(DESK, 2.0, "c:1").models
    assert known.measurements[DESK, "c:1"] == Measurement(DESK, "c:1", 2.0, 2.0, 4.0)
    registry.apply([observation(RACK, 4.0)])
    assert registry.snapshot().models.keys() == {DESK}


def test_the_newest_twenty_measurements_are_kept(registry: Registry) -> None:
    """The file does not grow with every refresh; a late report does not push out a newer one."""
    for at in (*range(1, 30), 0.5):
        registry.apply([observation(DESK, float(at), "a:1", "b:1")])
    with closing(sqlite3.connect(registry.path)) as connection:
        kept = connection.execute("SELECT at FROM measurements WHERE model = 'a:1' ORDER BY at").fetchall()
        count = connection.execute("SELECT count(*) FROM measurements").fetchone()
    assert ([row[0] for row in kept], count) == ([float(at) for at in range(10, 30)], (40,))
    assert registry.snapshot().measurements[DESK, "a:1"].at == 29.0


def test_addresses_nobody_names_are_forgotten(registry: Registry) -> None:
    """Of names that stand for many addresses old ones do not pile up; a user's server is never forgotten."""
    registry.add(entry_of("desk"))
    registry.apply([observation(url, DAY, "a:1") for url in (DESK, RACK, "http://10.0.0.1:11434")])
    registry.write_health({(RACK, ""): Health(failures=1)})
    registry.apply([observation("http://10.0.0.1:11434", 31 * DAY, "a:1")])
    assert registry.snapshot().models.keys() == {DESK, RACK, "http://10.0.0.1:11434"}
    registry.apply([observation("http://10.0.0.1:11434", 31 * DAY + 1, "a:1")])
    known = registry.snapshot()
    assert known.models.keys() == known.conditions.keys() == {DESK, "http://10.0.0.1:11434"}
    assert (RACK, "a:1") not in known.measurements
    assert registry.read_health() == {}


def test_a_model_can_be_forgotten(registry: Registry) -> None:
    """What a server says it does not have is off its list, and only that."""
    registry.apply([observation(DESK, 1.0, "a:1", "b:1"), observation(RACK, 1.0, "a:1")])
    registry.forget(DESK, "a:1")
    registry.forget(DESK, "unknown")
    known = registry.snapshot().models
    assert {url: [model.name for model in models] for url, models in known.items()} == {DESK: ["b:1"], RACK: ["a:1"]}


def test_health_is_kept_row_by_row(registry: Registry) -> None:
    """Each process writes what it learned and leaves what others did; every field comes back."""
    every = {name: index + 1 for index, name in enumerate(Health.__struct_fields__)} | {"kind": "reset"}
    full = msgspec.convert(every, Health)
    registry.write_health({(DESK, ""): full, (DESK, "a:1"): Health(failures=1)})
    with Registry(registry.path) as other:
        other.write_health({(DESK, "a:1"): Health(failures=2), (RACK, ""): Health(pace=50.5)})
    expected = {(DESK, ""): full, (DESK, "a:1"): Health(failures=2), (RACK, ""): Health(pace=50.5)}
    assert registry.read_health() == expected


def test_old_health_is_dropped(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody wrote again for a week says nothing; a row that was is kept."""
    monkeypatch.setattr(store.time, "time", lambda: 1000 * DAY)
    registry.write_health({(DESK, ""): Health(failures=1), (RACK, ""): Health(failures=1)})
    monkeypatch.setattr(store.time, "time", lambda: 1007 * DAY)
    registry.write_health({(RACK, ""): Health(failures=2)})
    assert registry.read_health().keys() == {(DESK, ""), (RACK, "")}
    monkeypatch.setattr(store.time, "time", lambda: 1007 * DAY + 1)
    registry.write_health({(RACK, "a:1"): Health(failures=2)})
    assert registry.read_health().keys() == {(RACK, ""), (RACK, "a:1")}


def test_the_version_changes_with_what_others_write(registry: Registry) -> None:
    """A reader knows cheaply whether to read again, also after the file was closed or is a new one."""
    registry.add(entry_of("desk"))
    seen = [registry.version()]
    assert seen[0] > 0
    assert registry.version() == seen[0]
    with Registry(registry.path) as other:
        for name in ("a", "b"):
            other.add(entry_of(name))
            seen.append(registry.version())
        assert other.version() > 0
    registry.close()
    seen.append(registry.version())
    shutil.rmtree(os.path.dirname(registry.path))
    seen.append(registry.version())
    registry.add(entry_of("desk"))
    seen.append(registry.version())
    assert len(set(seen)) == len(seen)
    assert seen[-2] == 0


def test_a_new_file_takes_the_place_of_the_old(registry: Registry) -> None:
    """Who removes the folder removes what is known, also for processes that have it open."""
    registry.add(entry_of("desk"))
    shutil.rmtree(os.path.dirname(registry.path))
    with Registry(registry.path) as other:
        other.add(entry_of("rack"))
        assert [entry.url for entry in registry.snapshot().servers] == [RACK]
        registry.add(entry_of("box"))
        assert [entry.url for entry in other.snapshot().servers] == [RACK, "http://box:11434"]
    assert integrity(registry.path) == "ok"


def test_a_closed_registry_opens_again(registry: Registry) -> None:
    """Closing leaves one whole file, and is not the end."""
    registry.add(entry_of("desk"))
    registry.close()
    registry.close()
    assert os.listdir(os.path.dirname(registry.path)) == ["registry.db"]
    assert [entry.url for entry in registry.snapshot().servers] == [DESK]


def test_the_end_of_a_process_closes_it(path: str) -> None:
    """A registry that nobody closed leaves one whole file and no warning."""
    assert run("registry.add(entry_of('desk'))", path) == ""
    assert os.listdir(os.path.dirname(path)) == ["registry.db"]


@dataclass
class Known:
    """What a registry should hold, kept by hand."""

    servers: dict[str, ServerEntry] = field(default_factory=dict)
    observed: dict[str, Observation] = field(default_factory=dict)


URLS = [DESK, RACK, "http://box:11434"]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "change", "apply", "forget"]),
        st.sampled_from(URLS),
        st.lists(st.sampled_from(["a:1", "b:1", "c:1"]), unique=True),
    ),
    max_size=20,
)


def _step(registry: Registry, known: Known, at: float, action: str, url: str, names: list[str]) -> None:
    if action == "apply":
        registry.apply([observation(url, at, *names)])
        known.observed[url] = observation(url, at, *names)
    elif action == "forget" and url in known.observed and names:
        registry.forget(url, names[0])
        before = known.observed[url]
        models = tuple(model for model in before.models or () if model.name != names[0])
        known.observed[url] = msgspec.structs.replace(before, models=models)
    elif action == "add" and url not in known.servers:
        registry.add(entry_of(url))
        known.servers[url] = entry_of(url)
    elif action == "remove" and url in known.servers:
        registry.remove(url)
        del known.servers[url]
        known.observed.pop(url, None)
    elif action == "change" and url in known.servers:
        known.servers[url] = registry.change(url, priority=int(at))


@settings(max_examples=20, deadline=None)
@given(STEPS)
def test_any_history(steps: list[tuple[str, str, list[str]]]) -> None:
    """Whatever is done in whatever order, the registry knows just that."""
    with tempfile.TemporaryDirectory() as folder, Registry(os.path.join(folder, "registry.db")) as registry:
        known = Known()
        for at, step in enumerate(steps, 1):
            _step(registry, known, float(at), *step)
        found = registry.snapshot()
        assert found.servers == tuple(known.servers.values())
        assert found.conditions == {url: seen.condition for url, seen in known.observed.items()}
        assert found.models == {url: seen.models for url, seen in known.observed.items() if seen.models}


# What can be wrong with the file


def _text(path: str) -> None:
    Path(path).write_text("this is no database, but a text that somebody saved here" * 100)


def _newer(path: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def _foreign(path: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE servers (ours)")


def _damaged(path: str) -> None:
    with Registry(path) as registry:
        registry.apply([observation(DESK, 1.0, *(f"m{index}:1" for index in range(500)))])
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (os.path.getsize(path) - 4096))


def _folder(path: str) -> None:
    os.mkdir(path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_text, "file is not a database; move the file away, and add the servers again"),
        (
            _newer,
            "is of version 99, and this aicortex knows 1: upgrade aicortex, or name another folder in AICORTEX_DATA",
        ),
        (_foreign, "is another program's database: name another folder in AICORTEX_DATA_DIR"),
        (_damaged, "database disk image is malformed; move the file away"),
        (_folder, "unable to open database file; make the file and its folder writable"),
    ],
)
def test_a_file_that_cannot_be_used(spoil: object, words: str, path: str) -> None:
    """Reading and writing say which file it is and what to do, and leave it as it is."""
    os.mkdir(os.path.dirname(path))
    assert callable(spoil)
    spoil(path)
    before = None if os.path.isdir(path) else Path(path).read_bytes()
    with Registry(path) as registry:
        for call in (registry.snapshot, lambda: registry.apply([observation(DESK, 2.0, "a:1")])):
            with pytest.raises(RegistryError, match=words) as caught:
                call()
            assert path in str(caught.value)
            assert isinstance(caught.value, AICortexError)
            assert isinstance(caught.value, RuntimeError)
    assert before is None or Path(path).read_bytes() == before


def test_an_empty_file_is_an_empty_registry(path: str) -> None:
    """That is what a process leaves that is killed before its first write."""
    os.mkdir(os.path.dirname(path))
    Path(path).touch()
    with Registry(path) as registry:
        assert registry.snapshot() == Snapshot()
        assert registry.version() > 0
        registry.add(entry_of("desk"))
        assert [entry.url for entry in registry.snapshot().servers] == [DESK]


READ_ONLY = """
if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere
for call in (lambda: registry.add(entry_of('rack')), registry.snapshot):
    try:
        print(call() == Snapshot())
    except RegistryError as error:
        print(error)
"""


def test_a_folder_that_cannot_be_written() -> None:
    """Writing there says so; reading finds what there is, or nothing where there is no file."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "registry.db")
        advice = "make the file and its folder writable, or name another folder in AICORTEX_DATA_DIR"
        os.chmod(folder, 0o555)
        assert run(READ_ONLY, path) == f"the registry {path}: Permission denied; {advice}\nTrue\n"
        os.chmod(folder, 0o755)
        with Registry(path) as registry:
            registry.add(entry_of("desk"))
        os.chmod(path, 0o444)
        os.chmod(folder, 0o555)
        writing, reading = run(READ_ONLY, path).splitlines()
        os.chmod(folder, 0o755)
    assert writing.startswith(f"the registry {path}: ")
    assert writing.endswith(advice)
    assert reading == "False"  # it is not empty


def test_a_path_through_a_file(tmp_path: Path) -> None:
    """A folder that cannot be made is told when something is to be written."""
    (tmp_path / "file").touch()
    with Registry(str(tmp_path / "file" / "registry.db")) as registry:
        assert registry.snapshot() == Snapshot()
        with pytest.raises(RegistryError, match="make the file and its folder writable"):
            registry.add(entry_of("desk"))


def test_another_process_that_does_not_let_go(path: str) -> None:
    """A reader does not wait for a writer and sees the state before; a writer waits, and then says why."""
    with Registry(path, patience=0.01) as registry:
        registry.add(entry_of("desk"))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("DELETE FROM servers")
            assert [entry.url for entry in registry.snapshot().servers] == [DESK]
            with pytest.raises(RegistryError, match="database is locked; another process keeps it busy: try again"):
                registry.add(entry_of("rack"))
        registry.add(entry_of("rack"))
        assert [entry.url for entry in registry.snapshot().servers] == [DESK, RACK]


def test_a_failure_in_the_middle_changes_nothing(registry: Registry) -> None:
    """A refresh is written as a whole or not at all."""
    registry.apply([observation(DESK, 1.0, "a:1")])
    before = registry.snapshot()
    broken = Observation(Condition(RACK, 2.0), (ModelEntry("a:1", size=None),))  # type: ignore[arg-type]  # that is the test
    with pytest.raises(RegistryError, match="NOT NULL"):
        registry.apply([observation(DESK, 2.0, "b:1"), broken])
    assert registry.snapshot() == before
