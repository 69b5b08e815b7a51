"""Servers as text and back."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex.registry.config import parse
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import ServerEntry
from aicortex.registry.transfer import export_entries, import_text

WORDS = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=8)
NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8).filter(str.isalnum)
REFERENCES = st.sampled_from(["env:KEY", "env:_x", "keyring:aicortex/desk", "keyring:a b/c"])
ENTRIES = st.builds(
    entry_of,
    st.sampled_from(["desk", "10.0.0.1:1", "https://rack/ollama", "[::1]:99", "bücher.example"]),
    name=NAMES.filter(lambda name: name != "embedded"),
    location=WORDS,
    labels=st.dictionaries(WORDS.filter(bool), WORDS, max_size=2),
    weight=st.floats(0.001, 1000),
    priority=st.integers(-9, 9),
    slots=st.integers(1, 9),
    api_key=st.just("") | REFERENCES,
    headers=st.dictionaries(st.sampled_from(["X-Team", "X-Key"]), REFERENCES),
    verify=st.booleans(),
    ca_file=st.none() | st.just("/lab.pem"),
    is_draining=st.booleans(),
)


def test_defaults_are_left_out() -> None:
    """What is exported reads as if a person had written it."""
    desk = entry_of("desk", name="desk", labels={"gpu": "4090"}, api_key="env:KEY", is_draining=True)
    text = export_entries([desk, entry_of("rack")], {"chat": ("llama3.2:3b",), "small": ("a:1b", "b:1b")})
    assert text == (
        '[aliases]\nchat = "llama3.2:3b"\nsmall = [\n    "a:1b",\n    "b:1b",\n]\n\n'
        '[[servers]]\nurl = "http://desk:11434"\nname = "desk"\napi_key = "env:KEY"\ndraining = true\n\n'
        '[servers.labels]\ngpu = "4090"\n\n[[servers]]\nurl = "http://rack:11434"\n'
    )


def test_nothing_is_exported_as_no_servers() -> None:
    """An empty registry gives a configuration that can be read."""
    assert import_text(export_entries([])) == []


@given(st.lists(ENTRIES, max_size=4, unique_by=(lambda entry: entry.url, lambda entry: entry.name)))
def test_what_is_exported_can_be_imported(entries: list[ServerEntry]) -> None:
    """Every entry comes back as it was, wherever it came from."""
    from_files = [msgspec.structs.replace(entry, source="/x/aicortex.toml") for entry in entries]
    assert import_text(export_entries(from_files)) == entries


def test_an_export_is_a_configuration() -> None:
    """It can be put where it is read every time, aliases and all."""
    text = export_entries([entry_of("desk")], {"chat": ("a:1b", "b:1b")})
    config = parse(text, "here", folder="/")
    assert config.aliases == {"chat": ("a:1b", "b:1b")}
    assert config.servers == (ServerEntry("http://desk:11434", source="here"),)


def test_paths_are_beside_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path means the folder of the file that was read, else the working directory."""
    monkeypatch.chdir(tmp_path)
    text = '\ufeff[[servers]]\nurl = "desk"\nca_file = "lab.pem"\n'
    assert [entry.ca_file for entry in import_text(text, folder="/team")] == ["/team/lab.pem"]
    assert [entry.ca_file for entry in import_text(text)] == [str(tmp_path / "lab.pem")]


def test_a_mistake_names_the_key() -> None:
    """A wrong text is refused as a whole."""
    with pytest.raises(ValueError, match=r"the text: servers\[1\]: unknown key 'nmae'; did you mean 'name'\?"):
        import_text('[[servers]]\nurl = "a"\n[[servers]]\nurl = "b"\nnmae = "c"\n')
