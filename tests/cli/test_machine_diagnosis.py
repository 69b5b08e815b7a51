"""Every way in which this machine can be wrong, and what `aicortex doctor` says of it."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from aicortex.cli.finding import Finding
from aicortex.cli.machine_diagnosis import (
    examine_clock,
    examine_configuration,
    examine_credentials,
    examine_disks,
    examine_engine,
    examine_registry,
)
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import Condition, Observation
from aicortex.registry.store import Registry

NOW = 1_800_000_000.0


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one configuration file."""
    file = tmp_path / "aicortex.toml"
    monkeypatch.setenv("AICORTEX_CONFIG", str(file))
    return file


def only(findings: object) -> Finding:
    (finding,) = findings  # type: ignore[misc]
    return finding  # type: ignore[no-any-return]


def test_no_configuration() -> None:
    """No file at all is well."""
    assert only(examine_configuration()).mark == "ok"


def test_configuration(file: Path) -> None:
    """A file that is right is named; one that is wrong is a problem that names the key."""
    file.write_text('model = "llama3.2"\n', "utf-8")
    assert only(examine_configuration()) == Finding("ok", "configuration", f"{file} is read")
    file.write_text('modle = "llama3.2:3b"\n', "utf-8")
    finding = only(examine_configuration())
    assert (finding.mark, finding.finding) == ("problem", f"{file}: unknown key 'modle'; did you mean 'model'?")
    assert "AICORTEX_CONFIG" in finding.remedy


@pytest.mark.parametrize(
    "variable", ["AICORTEX_SERVERS=http://a:b", "OLLAMA_HOST=a b", "AICORTEX_ROUTING=quick", "AICORTEX_RESUME=no"]
)
def test_variables(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that makes no sense is a problem with its name."""
    name, _, value = variable.partition("=")
    monkeypatch.setenv(name, value)
    finding = next(finding for finding in examine_configuration() if finding.mark == "problem")
    assert finding.finding.startswith(f"{name}: ")


def test_registry() -> None:
    """No registry yet is well, and so is one that can be read and written."""
    assert only(examine_registry(NOW)).finding.startswith("no server was added yet: there is no ")
    with Registry() as registry:
        registry.add(entry_of("desk:11434"))
    finding = only(examine_registry(NOW))
    assert (finding.mark, finding.finding.startswith("1 server in ")) == ("ok", True)


def test_registry_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged registry, and one of a newer version, are problems that say what to do."""
    monkeypatch.setenv("AICORTEX_DATA_DIR", str(tmp_path))
    path = tmp_path / "registry.db"
    path.write_text("this is no database, " * 50, "utf-8")
    finding = only(examine_registry(NOW))
    assert (finding.mark, "move the file away" in finding.finding) == ("problem", True)
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    finding = only(examine_registry(NOW))
    assert (finding.mark, "upgrade aicortex" in finding.finding) == ("problem", True)


def test_registry_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that takes no file is a problem that names it and the variable."""
    monkeypatch.setenv("AICORTEX_DATA_DIR", "/proc/aicortex")
    finding = only(examine_registry(NOW))
    assert finding.mark == "problem"
    assert finding.finding.startswith("/proc cannot be written (")
    assert finding.remedy == "Make it writable, or name another folder in AICORTEX_DATA_DIR"
    (tmp_path / "file").touch()
    monkeypatch.setenv("AICORTEX_DATA_DIR", str(tmp_path / "file" / "folder"))
    assert only(examine_registry(NOW)).mark == "problem"


def test_clock_that_was_set_back() -> None:
    """A refresh in the future is a warning."""
    with Registry() as registry:
        registry.apply([Observation(Condition("http://desk:11434", NOW + 3600))])
    finding = next(finding for finding in examine_registry(NOW) if finding.mark != "ok")
    assert (finding.mark, "3600 s in the future" in finding.finding) == ("warning", True)


def test_clock() -> None:
    """A clock that shows the seventies is a problem."""
    assert list(examine_clock(NOW)) == []
    assert "1970-01-02" in only(examine_clock(100_000.0)).finding


def test_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that is there is well, one that is not is a problem with its name; none is shown."""
    monkeypatch.setenv("DESK_KEY", "sk-verysecret")
    with Registry() as registry:
        registry.add(entry_of("desk:11434", name="desk", api_key="env:DESK_KEY"))
        registry.add(entry_of("rack:11434", name="rack", headers={"X-Team": "env:NO_SUCH_TEAM"}))
        registry.add(entry_of("free:11434"))
    well, missing = examine_credentials()
    assert (well.mark, well.finding) == ("ok", "those of desk are there")
    assert (missing.mark, "the variable NO_SUCH_TEAM is not set" in missing.finding) == ("problem", True)
    assert "verysecret" not in f"{well} {missing}"


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full is a problem for the registry, and a warning for a model that is still to be fetched."""
    monkeypatch.setenv("AICORTEX_CACHE_DIR", str(tmp_path / "cache"))
    assert {finding.mark for finding in examine_disks()} == {"ok"}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    registry, cache = examine_disks()
    assert (registry.mark, "only 5 MB is free" in registry.finding) == ("problem", True)
    assert (cache.mark, f"at {tmp_path}" in cache.finding) == ("warning", True)
    monkeypatch.setenv("AICORTEX_EMBEDDED_MODEL", __file__)
    assert len(list(examine_disks())) == 1


def test_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the engine's extra there must be another server."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in sys.modules or None)
    monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
    assert only(examine_engine(["http://desk:11434"])).mark == "ok"
    finding = only(examine_engine(["embedded"]))
    assert (finding.mark, "pip install 'aicortex[embedded]'" in finding.remedy) == ("problem", True)
    monkeypatch.undo()
    assert only(examine_engine(["embedded"])).finding == "it is installed"
    monkeypatch.setenv("AICORTEX_EMBEDDED_MODEL", "/no/such/model.gguf")
    finding = only(examine_engine(["embedded"]))
    assert (finding.mark, "AICORTEX_EMBEDDED_MODEL" in finding.remedy) == ("problem", True)
