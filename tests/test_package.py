"""The package as such: what it exports, what importing it costs, and what the core may not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import aicortex

SOURCE = Path(aicortex.__file__).parent
HEAVY = ("asyncio", "ssl", "socket", "rich", "urllib.request", "http.client", "xllamacpp", "msgspec", "httptools")
IMPURE = {"socket", "asyncio", "threading", "time", "random", "logging", "ssl", "select", "os", "urllib"}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_loads_no_network_library() -> None:
    """`import aicortex` costs nothing that is not needed yet."""
    assert not loaded_by("import aicortex") & set(HEAVY)


def test_chat_loads_neither_asyncio_nor_ssl_nor_rich() -> None:
    """Plain http to a server needs sockets and two small libraries."""
    loaded = loaded_by("from aicortex import chat")
    assert not loaded & {"asyncio", "ssl", "rich", "urllib.request", "http.client", "xllamacpp", "pathlib", "email"}
    assert not loaded & {"docstring_parser", "jsonschema", "pydantic", "sqlite3"}


def test_every_name_is_there() -> None:
    """`__all__` is what `from aicortex import …` gives, and nothing else is promised."""
    assert aicortex.__all__ == sorted(aicortex.__all__)
    for name in aicortex.__all__:
        assert getattr(aicortex, name).__name__ == name
    assert set(aicortex.__all__) <= set(dir(aicortex))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = aicortex.nothing_like_it


def test_the_names_survive_importing_the_modules_behind_them() -> None:
    """No submodule shadows a function of the same name."""
    code = "import aicortex.ask, aicortex.fleet, aicortex.stream; from aicortex import chat; print(chat.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "aicortex.ask"


@pytest.mark.parametrize("file", sorted((SOURCE / "_core").glob("*.py")), ids=lambda file: file.name)
def test_the_core_is_pure(file: Path) -> None:
    """Time, chance and sockets come into the core as arguments."""
    imported = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    allowed_lazily = {"urllib.parse"}  # percent-decoding of user info
    assert not {name.partition(".")[0] for name in imported - allowed_lazily} & IMPURE
    inward = {"aicortex._core", "aicortex.errors", "aicortex.events"}
    own = {name for name in imported if name.startswith("aicortex")}
    assert all(any(name == place or name.startswith(place + ".") for place in inward) for name in own)
