"""`aicortex doctor`: what it looks at, how it says it, and its status."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from time import time

import pytest

from aicortex._core.health import Health
from aicortex.cli.server_diagnosis import ASK_SECONDS
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import Condition, Measurement, Observation
from aicortex.registry.store import Registry
from aicortex.testing import FakeServer, Hang, Status
from cli.running import PATIENCE, Terminal, finish, here, start

DEAD = "http://127.0.0.1:1"
SECRET = "sk-verysecret"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AICORTEX_CACHE_DIR", str(tmp_path / "cache"))


def lines(out: str, mark: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith(mark)]


def test_nothing_is_wrong(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Where all is well each line says ok, and the status is 0."""
    ended = here(capsys, "doctor", server.url)
    assert (ended.status, ended.err) == (0, "")
    *findings, summary = ended.out.splitlines()
    assert summary == "nothing is wrong"
    assert [line[:9] for line in findings] == ["ok       "] * len(findings)
    assert f"ok       {server.url}: it has 2 models" in findings


def test_problems(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Each problem is a line with what to do, the status is 1, and the other servers are looked at too."""
    ended = here(capsys, "doctor", DEAD, server.url)
    assert ended.status == 1
    (problem,) = lines(ended.out, "problem")
    assert problem.startswith(f"problem  {DEAD}: nothing listens there. Start Ollama")
    assert f"ok       {server.url}: it has 2 models" in ended.out
    assert ended.out.splitlines()[-1] == "1 problem, 0 warnings"


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` has the same as objects, with the keys that the help names."""
    ended = here(capsys, "doctor", DEAD, "--json")
    rows = json.loads(ended.out)
    assert (ended.status, [row["about"] for row in rows if row["mark"] == "problem"]) == (1, [DEAD])
    said = here(capsys, "doctor", "--help").out
    assert [key for key in rows[0] if key not in said] == []


def test_registered(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an address all servers in use are examined, and one without its key is a problem of its own."""
    with Registry() as registry:
        registry.add(entry_of(server.url, name="desk"))
        registry.add(entry_of(DEAD, api_key="env:NO_SUCH_KEY"))
    ended = here(capsys, "doctor")
    (problem,) = lines(ended.out, "problem")
    assert problem.startswith("problem  credentials: ")
    assert "NO_SUCH_KEY" in problem
    assert lines(ended.out, "warning") == []
    assert f"ok       {server.url}: it has 2 models" in ended.out
    assert ended.err == ""


def test_model(server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The model that is wanted is on a server, is on some alone, or is on none, and then those like it are named."""
    with FakeServer(models=("smollm2:135m",)) as other:
        ended = here(capsys, "doctor", server.url, other.url, "--model", "qwen3:8b")
        assert f"ok       model: 'qwen3:8b' is on {server.url}\n" in ended.out
        (warning,) = lines(ended.out, "warning")
        assert warning.startswith(f"warning  {other.url}: it does not have 'qwen3:8b'. Fetch it there: ")
        assert warning.endswith(f" OLLAMA_HOST={other.url} ollama pull qwen3:8b")
        assert ended.status == 0
    monkeypatch.setenv("AICORTEX_MODEL", "qwen3:9b")
    ended = here(capsys, "doctor", server.url)
    (problem,) = lines(ended.out, "problem")
    assert "did you mean 'qwen3:8b'" in problem
    assert problem.endswith(f"Use qwen3:8b, or fetch it: OLLAMA_HOST={server.url} ollama pull qwen3:9b")


def test_server_without_models(capsys: pytest.CaptureFixture[str]) -> None:
    """A server without models is a warning that says how to fetch one."""
    with FakeServer(models=()) as server:
        (warning,) = lines(here(capsys, "doctor", server.url).out, "warning")
    assert warning.endswith(f"it has no models. Fetch one: OLLAMA_HOST={server.url} ollama pull llama3.2")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("open: no space left on device", "its disk is full: HTTP 500: open: no space left on device. Make room"),
        (f"strange {SECRET}", "it does not say which models it has: HTTP 500: strange ***"),
    ],
)
def test_list_that_fails(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str, words: str
) -> None:
    """A server that cannot list its models is a problem; its secrets are not in what it says."""
    monkeypatch.setenv("DESK_KEY", SECRET)
    with Registry() as registry:
        registry.add(entry_of(server.url, api_key="env:DESK_KEY"))
    server.paths["/api/tags"] = Status(500, {"error": said})
    ended = here(capsys, "doctor")
    (problem,) = lines(ended.out, "problem")
    assert words in problem
    assert SECRET not in ended.out + ended.err


def test_what_was_met_lately(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Draining servers, pauses after failures and full disks that were met before are told."""
    with Registry() as registry:
        registry.add(entry_of(server.url, name="desk", is_draining=True))
        registry.write_health({(server.url, "qwen3:8b"): Health(failures=2, kind="stalled", until=time() + 60)})
        full = Measurement(server.url, "qwen3:8b", time(), error="HTTP 500: no space left on device")
        registry.apply([Observation(Condition(server.url, time(), time()), None, (full,))])
    ended = here(capsys, "doctor")
    draining, failing = lines(ended.out, "warning")
    assert draining.endswith("End that: aicortex servers drain desk --off")
    assert "qwen3:8b failed 2 times in a row, the last time with 'stalled'. It is tried again in " in failing
    (problem,) = lines(ended.out, "problem")
    assert problem.startswith(f"problem  {server.url}: its disk is full: HTTP 500: no space left on device. Make room")


def test_broken_settings(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong file and a damaged registry are told, and a server that is named is examined all the same."""
    (tmp_path / "aicortex.toml").write_text("modle = 1", "utf-8")
    (tmp_path / "registry.db").write_text("this is no database, " * 50, "utf-8")
    monkeypatch.setenv("AICORTEX_CONFIG", str(tmp_path / "aicortex.toml"))
    monkeypatch.setenv("AICORTEX_DATA_DIR", str(tmp_path))
    for addresses in ([], [server.url]):
        ended = here(capsys, "doctor", *addresses)
        assert (ended.status, ended.err) == (1, "")
        assert [line.split()[1] for line in lines(ended.out, "problem")] == ["configuration:", "registry:"]
        assert (f"ok       {server.url}: it has 2 models" in ended.out) == bool(addresses)


def test_local_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where OLLAMA_HOST names a server that is dead it is examined, beside the engine that stands in for it."""
    monkeypatch.setenv("OLLAMA_HOST", DEAD)
    ended = here(capsys, "doctor")
    (problem,) = lines(ended.out, "problem")
    assert (ended.status, ended.err, problem.startswith(f"problem  {DEAD}: nothing listens there.")) == (1, "", True)
    assert "\nok       embedded: it has 1 model\n" in ended.out
    assert lines(ended.out, "warning") == []
    monkeypatch.setenv("AICORTEX_SERVERS", "embedded")
    assert here(capsys, "doctor").status == 0


def test_wrong_address(capsys: pytest.CaptureFixture[str]) -> None:
    """What is no address is a usage error."""
    ended = here(capsys, "doctor", "http://a b")
    assert (ended.status, "no server address" in ended.err) == (2, True)


@pytest.mark.parametrize("columns", [40, 80])
def test_fits_the_terminal(columns: int) -> None:
    """On a terminal each finding is broken between words, and what it goes on with is indented."""
    with Terminal("doctor", DEAD, columns=columns, more={"AICORTEX_DATA_DIR": "/no-such"}) as terminal:
        assert terminal.end() == 1
        shown = terminal.text().splitlines()
    assert max(map(len, shown)) < columns
    assert all(line[:9] in ("ok       ", "warning  ", "problem  ", " " * 9) for line in shown[:-1])


def test_names_are_no_hosts(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A word that is a name, or may be one, is not looked for in the network: the true problem is the only one."""
    with Registry() as registry:
        registry.add(entry_of("keyed.test", name="keyed", api_key="env:NO_SUCH_KEY"))
        registry.add(entry_of(server.url, name="good"))
    ended = here(capsys, "doctor", "keyed", "good")
    (problem,) = lines(ended.out, "problem")
    assert "NO_SUCH_KEY" in problem
    assert f"ok       {server.url}: it has 2 models" in ended.out
    file = tmp_path / "aicortex.toml"
    file.write_text("modle = 'x'", "utf-8")
    monkeypatch.setenv("AICORTEX_CONFIG", str(file))
    (problem,) = lines(here(capsys, "doctor", "good").out, "problem")
    assert "did you mean 'model'? Correct the file" in problem


def test_aliases(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An alias of an alias, or of models that no server has, is a warning."""
    file = tmp_path / "aicortex.toml"
    text = "[aliases]\nchat = ['none:1b', 'qwen3:8b']\nsmall = 'chat'\nown = 'own'\nbig = ['none:1b', 'none:2b']\n"
    file.write_text(text, "utf-8")
    monkeypatch.setenv("AICORTEX_CONFIG", str(file))
    assert lines(here(capsys, "doctor", server.url).out, "warning") == [
        "warning  alias small: it stands for 'chat', which is an alias itself. Write the models there",
        "warning  alias own: it stands for 'own', which is an alias itself. Write the models there",
        "warning  alias big: no server that answers has 'none:1b' or 'none:2b'. Correct it, or fetch a model of it",
    ]


def test_interrupted() -> None:
    """Ctrl-C ends it while a server still keeps it waiting."""
    with FakeServer(everything=Hang()) as server:
        process = start("doctor", server.url)
        assert server.wait_until(lambda: bool(server.requests), PATIENCE)
        pressed = time()
        process.send_signal(signal.SIGINT)
        ended = finish(process)
        assert time() - pressed < ASK_SECONDS - 2
    assert (ended.status, ended.out) == (130, "")
    assert ended.err == "aicortex: stopped\n"
