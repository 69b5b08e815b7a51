"""References to secrets, checked entries, and the servers they stand for."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import keyring
import keyring.backend
import keyring.core
import keyring.errors
import pytest

from aicortex import Server
from aicortex.errors import AICortexError, CredentialError
from aicortex.registry.credentials import check_reference, checked, entry_of, server_of
from aicortex.registry.entries import ServerEntry
from aicortex.registry.store import Registry
from aicortex.registry.transfer import export_entries, import_text

SECRETS = {"DESK_KEY": "sk-desk-5ecret", "TEAM_HEADER": "team-5ecret-value", "DIRTY": "sk-5ecret\nline"}
REFUSED = "http://user:pa55word@desk", "sk-live-5ecret", "env:sk-live-5ecret", "keyring:5ecret", "Bearer 5ecret"
NEEDLES = (*SECRETS.values(), "5ecret", "pa55word")


class Ring(keyring.backend.KeyringBackend):
    """A keyring in memory, in which the entry of the user `locked` is not given out."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        if username == "locked":
            raise keyring.errors.KeyringLocked("5ecret words of a backend")
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(keyring.core, "_keyring_backend", None)  # what the developer has comes back afterwards
    keyring.set_keyring(Ring())
    keyring.set_password("aicortex", "desk", "ring-5ecret")


@pytest.mark.parametrize(
    "text", ["env:KEY", "env:_k9", "keyring:aicortex/desk", "keyring:a b/c/me@host", "keyring:s/u"]
)
def test_references(text: str) -> None:
    """A variable has a variable's name; in the keyring the user is what follows the last slash."""
    check_reference(text)


@pytest.mark.parametrize(
    "text",
    [*REFUSED, "", "env:", "env:9", "env:A B", "ENV:KEY", "keyring:", "keyring:/u", "keyring:s/", "keyring:s/\x1b"],
)
def test_what_is_no_reference_is_not_repeated(text: str) -> None:
    """It may be the secret itself, written where its name belongs."""
    with pytest.raises(ValueError, match="write env:VARIABLE or keyring:SERVICE/USER") as caught:
        check_reference(text)
    assert str(caught.value) == "a secret is named, not stored: write env:VARIABLE or keyring:SERVICE/USER"


def test_an_address_has_one_spelling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An entry's URL is the label of its Server, its numbers and paths have one form too."""
    monkeypatch.chdir(tmp_path)
    entry = entry_of("desk", weight=2, ca_file="lab.pem", client_cert="")
    assert entry == ServerEntry("http://desk:11434", weight=2.0, ca_file=str(tmp_path / "lab.pem"))
    assert isinstance(entry.weight, float)
    assert checked(entry) == entry
    assert entry_of("HTTPS://Rack/ollama/").url == Server("HTTPS://Rack/ollama/").label


@pytest.mark.parametrize(
    ("url", "fields", "words"),
    [
        ("", {}, "url is empty"),
        ("ftp://x", {}, "'ftp://x' is no server address"),
        ("http://user:pa55word@desk", {}, "url: credentials are not stored: put them in a variable"),
        ("user@desk", {}, "url: credentials are not stored"),
        (3, {}, "url: Expected `str`, got `int`"),
        ("a", {"name": "a b"}, "name must be letters, digits, - and _"),
        ("a", {"name": "a:1"}, "name must be letters"),
        ("a", {"name": "a.b"}, "name must be letters"),
        ("a", {"name": "a,b"}, "name must be letters"),
        ("a", {"name": "embedded"}, "name must be letters"),
        ("a", {"name": None}, "name: Expected `str`, got `null`"),
        ("a", {"weight": 0}, "weight must be more than 0, not 0"),
        ("a", {"weight": -1.0}, "weight must be more than 0"),
        ("a", {"weight": float("nan")}, "weight must be more than 0"),
        ("a", {"weight": float("inf")}, "weight must be more than 0"),
        ("a", {"weight": "2"}, "weight: Expected `float`, got `str`"),
        ("a", {"slots": 0}, "slots must be from 1 to 1000000, not 0"),
        ("a", {"slots": 10**7}, "slots must be from 1"),
        ("a", {"priority": 10**20}, "priority must be from -1000000 to 1000000"),
        ("a", {"location": "\x1b[2J"}, "location has characters that cannot be shown"),
        ("a", {"organization": "a\nb"}, "organization has characters"),
        ("a", {"ca_file": "a\0b"}, "ca_file has characters"),
        ("a", {"labels": {"": "x"}}, "labels: '' is empty or has characters"),
        ("a", {"labels": {"gpu": 4090}}, "labels[...]: Expected `str`, got `int`"),
        ("a", {"api_key": "sk-live-5ecret"}, "api_key: a secret is named, not stored"),
        ("a", {"headers": {"X-Key": "5ecret"}}, "headers: X-Key: a secret is named, not stored"),
        ("a", {"headers": {"X Key": "env:A"}}, "headers: 'X Key' is no HTTP header name"),
        ("a", {"headers": {"Host": "env:A"}}, "headers: the header Host is the connection's own"),
        ("a", {"api_key": "env:A", "headers": {"authorization": "env:B"}}, "api_key is sent as the header"),
    ],
)
def test_wrong_fields(url: Any, fields: dict[str, Any], words: str) -> None:  # Any: wrong types are the test
    """Each mistake begins with its field and repeats no secret."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words are compared below
        entry_of(url, **fields)
    assert str(caught.value).startswith(words)
    assert not [needle for needle in NEEDLES if needle in str(caught.value)]


def test_unknown_fields() -> None:
    """A field that does not exist is a TypeError, as in any call."""
    with pytest.raises(TypeError, match="wieght"):
        entry_of("a", wieght=3)


def test_a_server_is_made_of_its_entry() -> None:
    """The secrets of an entry are read when its Server is made, from wherever each is."""
    entry = entry_of("desk", api_key="env:DESK_KEY", headers={"X-Team": "keyring:aicortex/desk"}, verify=False)
    server = server_of(entry)
    assert (server.label, server.verify) == ("http://desk:11434", False)
    assert dict(server.headers) == {"X-Team": "ring-5ecret", "Authorization": "Bearer sk-desk-5ecret"}
    assert server == Server("desk", api_key="sk-desk-5ecret", headers={"X-Team": "ring-5ecret"}, verify=False)


def test_a_changed_secret_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered: the next Server has the new secret."""
    entry = entry_of("desk", api_key="env:DESK_KEY")
    before = server_of(entry)
    monkeypatch.setenv("DESK_KEY", "another")
    assert server_of(entry) != before


def test_a_header_of_authorization() -> None:
    """Any scheme can be sent, if the whole header is the secret."""
    server = server_of(entry_of("desk", headers={"Authorization": "env:TEAM_HEADER"}))
    assert server.headers == (("Authorization", "team-5ecret-value"),)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"api_key": "env:GONE"}, "server desk (api_key): the variable GONE is not set: set it, or change the entry"),
        ({"headers": {"X-A": "env:GONE"}}, "server desk (header X-A): the variable GONE is not set"),
        ({"api_key": "env:DIRTY"}, "server desk: the value of api_key has characters that HTTP does not allow"),
        (
            {"api_key": "keyring:aicortex/gone"},
            "server desk (api_key): the keyring has no entry aicortex/gone: run 'keyring set aicortex gone', or",
        ),
        (
            {"api_key": "keyring:aicortex/locked"},
            "server desk (api_key): the keyring cannot be read for aicortex/locked (KeyringLocked): unlock it, or",
        ),
    ],
)
def test_missing_secrets(fields: dict[str, Any], words: str) -> None:  # Any: fields of an entry
    """What is missing is named, with what to do; what a backend says is not passed on."""
    with pytest.raises(CredentialError) as caught:
        server_of(entry_of("desk", name="desk", **fields))
    assert str(caught.value).startswith(words)
    assert isinstance(caught.value, AICortexError | ValueError)
    assert not [needle for needle in NEEDLES if needle in str(caught.value)]


def test_the_keyring_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the error says how to install it; variables need none."""
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(CredentialError, match=r"run pip install 'aicortex\[keyring\]'"):
        server_of(entry_of("desk", api_key="keyring:aicortex/desk"))
    assert server_of(entry_of("desk", api_key="env:DESK_KEY")).secrets


def attempt(told: list[str], call: Any, *arguments: Any, **fields: Any) -> None:  # Any: whatever is tried
    try:
        told.append(repr(call(*arguments, **fields)))
    except ValueError as error:
        told += [str(error), repr(error)]


def test_no_secret_is_written_or_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is tried, no byte of the data folder and no word of a repr, error, log or export has a secret."""
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    with Registry(str(tmp_path / "registry.db")) as registry:
        registry.add(entry_of("desk", name="desk", api_key="env:DESK_KEY", headers={"X-Team": "env:TEAM_HEADER"}))
        registry.add(entry_of("rack", name="rack", headers={"X-Ring": "keyring:aicortex/desk"}))
        registry.add(entry_of("old", name="old", api_key="env:DIRTY"))
        registry.add(entry_of("shut", name="shut", api_key="keyring:aicortex/locked"))
        for refused in REFUSED:
            attempt(told, entry_of, "box", api_key=refused)
            attempt(told, registry.add, ServerEntry("http://box:1", headers={"X-Key": refused}))
            attempt(told, registry.change, "desk", api_key=refused)
            attempt(told, import_text, f'[[servers]]\nurl = "box"\nheaders = {{X = "{refused}"}}')
        for address in (REFUSED[0], "http://user:pa55word@box:port"):
            attempt(told, entry_of, address)
            attempt(told, registry.add, ServerEntry(address))
            attempt(told, registry.remove, f"{address}x")
            attempt(told, import_text, f'[[servers]]\nurl = "{address}"')
        entries = registry.snapshot().servers
        for entry in entries:
            attempt(told, server_of, entry)
        told += [repr(registry), repr(entries), export_entries(entries), caplog.text]
        written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(told) > 40
    assert {"registry.db", "registry.db-wal"} <= written.keys()
    assert b"env:DESK_KEY" in b"".join(written.values())
    assert not [needle for needle in NEEDLES if any(needle in words for words in told)]
    assert not [needle for needle in NEEDLES if any(needle.encode() in data for data in written.values())]
