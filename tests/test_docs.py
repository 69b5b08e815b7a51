"""What exists is in the docs, and what the docs point at exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import aicortex
from aicortex import Attempt, Result, StreamEvent, chat, errors
from aicortex._core import failover
from aicortex._core.faults import FIRST_TOKEN, RESUME, STREAM
from aicortex._core.routing import STRATEGIES
from aicortex.network import CONNECT, SEND
from aicortex.registry.config import parse
from aicortex.testing import Answer, FakeServer, Status

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
DOCS = "\n".join(page.read_text("utf-8") for page in PAGES)
EVENTS = (ROOT / "docs" / "events.md").read_text("utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
SOURCES = {path: ast.parse(path.read_text("utf-8")) for path in (ROOT / "src").rglob("*.py")}


def constants(name: str, position: int = 0) -> Iterator[str]:
    """Yield the texts that stand as an argument in calls of a function, method or class anywhere in the source."""
    for tree in SOURCES.values():
        for node in ast.walk(tree):
            called = getattr(node, "func", None)
            if isinstance(node, ast.Call) and name in (getattr(called, "id", None), getattr(called, "attr", None)):
                yield from _texts(node.args[position] if len(node.args) > position else None)


def _texts(node: ast.expr | None) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*_texts(node.body), *_texts(node.orelse))


def missing(words: set[str], text: str) -> set[str]:
    """Return those of the words that do not stand in the text as code."""
    return {word for word in words if not re.search(rf"[`\"]{re.escape(word)}[`\"(]", text)}


def returned(module: str, function: str) -> set[str]:
    """Return the texts that a function of the source returns."""
    tree = SOURCES[ROOT / "src" / "aicortex" / module]
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function)
    return {text for node in ast.walk(found) if isinstance(node, ast.Return) for text in _texts(node.value)}


def first_cells(heading: str, text: str = EVENTS) -> list[str]:
    """Return what stands in the first column of the table under a heading, as code."""
    section = text.split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = re.findall(r"^\| (`.*?) \|", section.split("|---", 1)[1], re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(\S+?)`", row)]


def test_every_variable_is_documented() -> None:
    """docs/settings.md has every environment variable of AI Cortex and Ollama that the source knows."""
    sources = "\n".join(path.read_text("utf-8") for path in SOURCES)
    known = set(re.findall(r"\b(?:AICORTEX|OLLAMA)_[A-Z_]+\b|\b[A-Z]+_PROXY\b", sources))
    assert {"AICORTEX_SERVERS", "OLLAMA_HOST", "AICORTEX_CACHE_DIR"} < known
    assert missing(known, SETTINGS) == set()


def test_no_other_variable_is_documented() -> None:
    """A variable that the docs name stands in the source."""
    sources = "\n".join(path.read_text("utf-8") for path in SOURCES)
    named = set(re.findall(r"\b(?:AICORTEX|OLLAMA)_[A-Z_]*[A-Z]\b", DOCS))
    invented = {name for name in named if name.startswith("AICORTEX_KEY_")}  # by users, for their keys
    assert {name for name in named - invented if name not in sources} == set()


def test_every_public_name_is_documented() -> None:
    """Each name that `aicortex` exports stands in the docs as code."""
    assert missing(set(aicortex.__all__), DOCS) == set()


def test_every_argument_of_chat_is_documented() -> None:
    """docs/settings.md has the arguments of `chat`, no more and no fewer."""
    tree = SOURCES[ROOT / "src" / "aicortex" / "ask.py"]
    *_, chat = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "chat")
    assert {argument.arg for argument in (*chat.args.args, *chat.args.kwonlyargs)} == set(
        first_cells("Arguments of `chat`", SETTINGS)
    )


def test_every_event_type_is_documented() -> None:
    """The table of event types has all of them, those of the guide and those that the source makes."""
    described = set(re.findall(r"`(\w+)`", (StreamEvent.__doc__ or "").split("`content` is")[0])) - {"type"}
    made = {*constants("StreamEvent"), *constants("_event")}
    assert {"start", "token", "end"} < made <= described
    assert set(first_cells("Event types")) == described


def test_every_meta_kind_is_documented() -> None:
    """The table of meta kinds has exactly those that the source makes."""
    pairs = (
        pair
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for pair in zip(node.keys, node.values, strict=True)
    )
    made = {kind for key, value in pairs if [*_texts(key)] == ["kind"] for kind in _texts(value)}
    assert "connected" in made
    assert set(first_cells("Meta kinds")) == made


def test_every_failure_kind_is_documented() -> None:
    """The table of failure kinds has exactly those that the source knows."""
    table = re.findall(r"^    ([a-z_ ]+?) {2,}(?:goes|ends)", failover.__doc__ or "", re.MULTILINE)
    known = {kind for row in table for kind in row.split()}
    assert {*constants("Failure"), *returned("_core/faults.py", "_kind")} <= known
    assert set(first_cells("Failure kinds")) == known


def test_every_phase_is_documented() -> None:
    """The phases that an attempt can fail in stand in the row of `phase`."""
    (row,) = re.findall(r"^\| `phase` \|(.*)\|$", EVENTS, re.MULTILINE)
    assert set(re.findall(r"`([a-z ]+)`", row)) == {CONNECT, SEND, FIRST_TOKEN, STREAM, RESUME, "reply"}


def test_every_error_class_is_documented() -> None:
    """The table of error classes has all of them, and the tree is the one in the source."""
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert set(first_cells("Error classes")) == classes
    tree = "\n".join(line[4:] for line in (errors.__doc__ or "").splitlines() if line.startswith("    "))
    assert tree in EVENTS


def test_every_field_is_documented() -> None:
    """The fields of a `Result` and of an `Attempt` stand in the docs."""
    assert set(first_cells("The result")) == set(Result.__struct_fields__)
    assert missing(set(Attempt.__struct_fields__), EVENTS) == set()


def test_every_key_of_meta_is_documented() -> None:
    """Each key in the `meta` of a stream with everything in it stands in the table of its event."""
    with FakeServer(Status(500)) as first, FakeServer(Answer("4", thinking="2 + 2")) as second:
        stream = chat("2 + 2?", servers=[first.url, second.url], stream=True)
        assert stream.text() == "4"
    seen = {event.type: set(event.meta or {}) for event in stream.events}
    assert seen["error"] == set(first_cells("Error events"))
    assert missing(seen["end"], EVENTS.split("# End events")[1].split("\n#")[0]) == set()
    assert missing(seen["start"], EVENTS.split("# Event types")[1].split("\n#")[0]) == set()
    kinds = EVENTS.split("# Meta kinds")[1].split("\n#")[0]
    for event in stream.events:
        if event.type == "meta" and event.meta:
            (row,) = re.findall(rf"^\| `{event.meta['kind']}` .*$", kinds, re.MULTILINE)
            assert missing(set(event.meta) - {"kind"}, row) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    """A relative link leads to a file, and to a heading of that file."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            found = (page.parent / name) if name else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_begins_with_code() -> None:
    """The first screen of the README, 24 lines, shows how the library is used."""
    assert "stream=True):" in "\n".join(README.splitlines()[:24])


def test_the_code_of_the_readme_compiles() -> None:
    """Every Python example of the README is Python."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        compile(block, "README.md", "exec")


def test_the_testing_example_of_the_readme_runs() -> None:
    """The README's example of a test passes."""
    section = README.split("## Testing your own program", 1)[1]
    exec(section.split("```python\n", 1)[1].split("```", 1)[0], {})


FLEET = (ROOT / "docs" / "fleet.md").read_text("utf-8")


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```$", FLEET, re.MULTILINE | re.DOTALL))
def test_the_examples_of_the_fleet_run(code: str) -> None:
    """Each example of docs/fleet.md runs as it stands."""
    exec(compile(code, "docs/fleet.md", "exec"), {})


ASYNC = (ROOT / "docs" / "async.md").read_text("utf-8")


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```$", ASYNC, re.MULTILINE | re.DOTALL))
def test_the_examples_of_asyncio_run(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example of docs/async.md runs as it stands."""
    with FakeServer(models=("llama3.2:3b",)) as server:
        monkeypatch.setenv("AICORTEX_SERVERS", server.url)
        exec(compile(code, "docs/async.md", "exec"), {})


def test_the_configuration_in_the_docs_is_read() -> None:
    """The aicortex.toml of docs/fleet.md has every setting, and every strategy stands in the table."""
    (text,) = re.findall(r"^```toml\n(.*?)^```$", FLEET, re.MULTILINE | re.DOTALL)
    config = parse(text, "docs/fleet.md", folder="/")
    assert all(getattr(config, name) for name in config.__struct_fields__)
    assert first_cells("Which server is asked first", FLEET) == list(STRATEGIES)
