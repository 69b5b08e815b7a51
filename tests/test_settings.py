"""Settings come from the environment, else from aicortex.toml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aicortex import settings

TEXT = """
model = "from file"
routing = "fastest"
location = "eu"
resume = "never"
[aliases]
small = ["a", "b"]
"""


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A configuration file that says everything."""
    path = tmp_path / "aicortex.toml"
    path.write_text(TEXT, "utf-8")
    monkeypatch.setenv("AICORTEX_CONFIG", str(path))
    return path


@pytest.mark.parametrize(
    ("ask", "unsaid", "from_file", "variable", "value", "from_variable"),
    [
        (settings.default_model, None, "from file", "AICORTEX_MODEL", "mine", "mine"),
        (settings.default_routing, None, "fastest", "AICORTEX_ROUTING", "Random", "random"),
        (settings.location, "", "eu", "AICORTEX_LOCATION", "us", "us"),
        (settings.resumes_by_default, True, False, "AICORTEX_RESUME", "continue", True),
    ],
)
def test_variables_go_before_the_file(
    ask: Callable[..., object],
    unsaid: object,
    from_file: object,
    variable: str,
    value: str,
    from_variable: object,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each setting is the variable's, else the file's, else the default; what was read before is not read again."""
    assert (ask(None), ask()) == (unsaid, from_file)
    monkeypatch.setenv(variable, value)
    assert (ask(), ask(None)) == (from_variable, from_variable)
    assert config.exists()


def test_aliases(config: Path) -> None:
    """A name stands for the models of its alias, or else for itself."""
    assert settings.models_meant("small") == ("a", "b")
    assert settings.models_meant("large") == settings.models_meant("large", None) == ("large",)
    assert config.exists()


@pytest.mark.parametrize(
    ("variable", "ask"),
    [("AICORTEX_ROUTING", settings.default_routing), ("AICORTEX_RESUME", settings.resumes_by_default)],
)
def test_wrong_variables_are_named(variable: str, ask: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes no sense raises ValueError with the variable's name."""
    monkeypatch.setenv(variable, "perhaps")
    with pytest.raises(ValueError, match=f"{variable}: "):
        ask()


def test_whether_servers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Separators alone name none."""
    for value, named in (("", False), (" , ", False), ("desk", True)):
        monkeypatch.setenv("AICORTEX_SERVERS", value)
        assert settings.names_servers() == named == bool(settings.configured_servers())
