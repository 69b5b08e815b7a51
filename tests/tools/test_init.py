"""The package as such: what it exports, and what its page in the docs promises."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from aicortex import tools
from aicortex.tools import resolving

PAGE = (Path(__file__).parents[2] / "docs" / "tools.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_name_is_there_and_documented() -> None:
    """What the package exports stands in the docs as code."""
    assert tools.__all__ == sorted(tools.__all__)
    for name in tools.__all__:
        assert getattr(tools, name).__name__ == name
        assert f"`{name}" in PAGE or f"### {name}" in PAGE


@pytest.mark.parametrize("name", ["Report", "Checked", "Fetched", "Progress", "Resolution", "Change"])
def test_every_field_is_documented(name: str) -> None:
    """The fields of the results stand in the docs as code."""
    fields = {field.name for field in msgspec.structs.fields(getattr(tools, name))}
    assert {field for field in fields if f"`{field}`" not in PAGE} == set()


def test_every_kind_of_change_is_documented() -> None:
    """The table has those that the source knows, no more and no fewer."""
    rows = re.findall(r"^\| (`[^|]*) \|", PAGE.split("| `kind` |", 1)[1], re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert documented == {kind for kind, _ in resolving._WORDS}


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_page_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example holds, with a registry of its own."""
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], f"docs/tools.md, example {number + 1}", "exec"), {})


def test_every_step_has_an_example() -> None:
    """The page begins with one, shows them all together, then each alone."""
    assert len(EXAMPLES) == 7
