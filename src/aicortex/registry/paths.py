"""Where the registry's file and the configuration files are.

    AICORTEX_DATA_DIR   the folder of the registry's file, instead of the user's data directory
    AICORTEX_CONFIG     the one configuration file to read, instead of those below

On Linux the XDG rules are followed by hand: `platformdirs` takes 17 ms to import, and every `chat()` comes this way.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache

from aicortex.warn import warn

DATA_VARIABLE = "AICORTEX_DATA_DIR"
CONFIG_VARIABLE = "AICORTEX_CONFIG"
CONFIG_NAME = "aicortex.toml"
DATABASE_NAME = "registry.db"
PROJECT_MARKERS = (".git", "pyproject.toml")


def data_path() -> str:
    """Return the absolute path of the registry's file, which need not exist: in AICORTEX_DATA_DIR if that is set."""
    named = os.environ.get(DATA_VARIABLE)
    return os.path.join(_absolute(named) if named else user_folder("data"), DATABASE_NAME)


def config_paths() -> list[str]:
    """Return the absolute paths of the configuration files, the most specific first.

    AICORTEX_CONFIG names the only one, which is returned even where there is no such file. Else they are the
    `aicortex.toml` of the working directory and of its parents up to the one that holds `.git` or `pyproject.toml`
    (of the working directory alone where none does), then that of the user's configuration directory. A project's file
    that belongs to another user, root aside, is left out with a RuntimeWarning: it would say where prompts go.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        return [_absolute(named)]
    found = [path for folder in _project_folders() if _is_own(path := os.path.join(folder, CONFIG_NAME))]
    users = os.path.join(user_folder("config"), CONFIG_NAME)
    if users not in found and os.path.isfile(users):
        found.append(users)
    return found


def is_users_own(path: str) -> bool:
    """Whether a configuration file was chosen by this user: the variable names it, or it is the user's own."""
    return bool(os.environ.get(CONFIG_VARIABLE)) or path == os.path.join(user_folder("config"), CONFIG_NAME)


def user_folder(kind: str) -> str:
    """Return this user's folder for our "data" or "config", as `platformdirs` says; it need not exist."""
    if sys.platform != "linux":
        import platformdirs

        where = platformdirs.user_data_dir if kind == "data" else platformdirs.user_config_dir
        return where("aicortex", appauthor=False)
    variable, usual = ("XDG_DATA_HOME", ".local/share") if kind == "data" else ("XDG_CONFIG_HOME", ".config")
    return _xdg_folder(os.environ.get(variable, ""), os.environ.get("HOME", ""), usual)


@lru_cache(maxsize=16)
def _xdg_folder(home: str, _: str, usual: str) -> str:
    if not os.path.isabs(home):  # the XDG specification: a relative path is to be ignored
        home = os.path.join(os.path.expanduser("~"), usual)
    return os.path.join(home, "aicortex")


def _project_folders() -> list[str]:
    """Return the working directory and its parents up to the project's, or the first alone if it is in no project."""
    try:
        here = os.getcwd()
    except OSError:  # it was removed under us
        return []
    folders, folder = [here], here
    while not any(os.path.exists(os.path.join(folder, marker)) for marker in PROJECT_MARKERS):
        folder, before = os.path.dirname(folder), folder
        if folder == before:
            return [here]
        folders.append(folder)
    return folders


def _is_own(path: str) -> bool:
    """Whether there is such a file and this user may trust it."""
    try:
        owner = os.stat(path).st_uid
    except OSError:
        return False
    if not os.path.isfile(path):
        return False
    if sys.platform == "win32" or owner in (os.getuid(), 0):
        return True
    warn(f"{path} belongs to another user and is not read; name it in {CONFIG_VARIABLE} if you trust it")
    return False


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
