"""Where the files are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from aicortex.registry.paths import config_paths, data_path, user_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any configuration, who works in the folder `work/deep` of their home."""
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "AICORTEX_DATA_DIR", "AICORTEX_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "deep")
    return tmp_path


def config_in(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "aicortex.toml").write_text("", "utf-8")
    return str(folder / "aicortex.toml")


def give_away(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the file another user's, neither this one's nor root's."""
    if os.getuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        monkeypatch.setattr(os, "getuid", lambda: os.stat(path).st_uid + 1)


@pytest.mark.parametrize("xdg", [None, "", "relative", "/somewhere/else"])
def test_the_users_folders_are_those_of_platformdirs(
    xdg: str | None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The XDG rules followed by hand give what the library gives."""
    assert home.exists()
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME") if xdg is not None else ():
        monkeypatch.setenv(name, xdg or "")
    assert user_folder("data") == platformdirs.user_data_dir("aicortex", appauthor=False)
    assert user_folder("config") == platformdirs.user_config_dir("aicortex", appauthor=False)


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_to_platformdirs(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where XDG does not rule, the library is asked."""
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platformdirs, "user_data_dir", lambda name, **_: f"data of {name}")
    monkeypatch.setattr(platformdirs, "user_config_dir", lambda name, **_: f"config of {name}")
    assert [user_folder("data"), user_folder("config")] == ["data of aicortex", "config of aicortex"]


def test_the_registry_is_in_the_data_folder(home: Path) -> None:
    """Without a word of the user the file is where data belongs."""
    assert data_path() == str(home / ".local/share/aicortex/registry.db")


@pytest.mark.parametrize(
    ("named", "path"), [("/x/y", "/x/y/registry.db"), ("~/z", "{home}/z/registry.db"), ("", "{home}/{usual}")]
)
def test_a_variable_names_the_data_folder(named: str, path: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AICORTEX_DATA_DIR is the folder of the file, unless it is empty."""
    monkeypatch.setenv("AICORTEX_DATA_DIR", named)
    assert data_path() == path.format(home=home, usual=".local/share/aicortex/registry.db")


def test_nothing_configured(home: Path) -> None:
    """Where there is no file, there is no path."""
    assert home.exists()
    assert config_paths() == []


def test_the_nearest_file_comes_first(home: Path) -> None:
    """The working directory, its parents up to the project's, then the user's own."""
    above = config_in(home)
    users = config_in(home / ".config/aicortex")
    deep = config_in(home / "work/deep")
    work = config_in(home / "work")
    assert config_paths() == [deep, users]
    (home / "work/pyproject.toml").touch()
    assert config_paths() == [deep, work, users]
    (home / ".git").mkdir()
    assert above not in config_paths()
    (home / "work/pyproject.toml").unlink()
    assert config_paths() == [deep, work, above, users]


def test_a_file_counts_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Working in one's own configuration folder does not make two of its file."""
    users = config_in(home / ".config/aicortex")
    monkeypatch.chdir(home / ".config/aicortex")
    assert config_paths() == [users]


def test_folders_are_no_files(home: Path) -> None:
    """A folder of that name is left alone."""
    (home / "work/deep/aicortex.toml").mkdir()
    (home / ".config/aicortex/aicortex.toml").mkdir(parents=True)
    assert config_paths() == []


def test_a_variable_names_the_only_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AICORTEX_CONFIG takes the place of all others, and is believed to be there."""
    config_in(home / "work/deep")
    monkeypatch.setenv("AICORTEX_CONFIG", "~/team.toml")
    assert config_paths() == [str(home / "team.toml")]
    monkeypatch.setenv("AICORTEX_CONFIG", "")
    assert config_paths() == [str(home / "work/deep/aicortex.toml")]


def test_another_users_file_is_not_believed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may write into a shared folder must not say where others' prompts go."""
    path = config_in(home / "work/deep")
    give_away(path, monkeypatch)
    with pytest.warns(RuntimeWarning, match="belongs to another user and is not read") as caught:
        assert config_paths() == []
    assert path in str(caught[0].message)
    monkeypatch.setenv("AICORTEX_CONFIG", path)
    assert config_paths() == [path]


def test_a_removed_working_directory(home: Path) -> None:
    """Without a working directory the user's own file still counts."""
    users = config_in(home / ".config/aicortex")
    script = (
        "import os; os.rmdir(os.getcwd())\n"
        "from aicortex.registry.paths import config_paths; print(config_paths() == [__import__('sys').argv[1]])"
    )
    done = subprocess.run([sys.executable, "-c", script, users], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")
