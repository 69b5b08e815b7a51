"""Addresses in every spelling, and secrets that stay secret."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest

from aicortex import Server
from aicortex._core.server import parse_address


@pytest.mark.parametrize(
    ("spelling", "label"),
    [
        ("", "http://127.0.0.1:11434"),
        ("box", "http://box:11434"),
        ("box:8080", "http://box:8080"),
        (":8080", "http://127.0.0.1:8080"),
        ("http://box", "http://box:80"),
        ("https://box", "https://box:443"),
        ("HTTPS://box:8443", "https://box:8443"),
        ("https://box/ollama/", "https://box:443/ollama"),
        ("http://box:1/a/b", "http://box:1/a/b"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:1234", "http://127.0.0.1:1234"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:99", "http://[::1]:99"),
        ("::1", "http://[::1]:11434"),
        ("fe80::1%eth0", "http://[fe80::1%eth0]:11434"),
        ("[::]:99", "http://[::1]:99"),
        ("http://[fe80::1]:99/x", "http://[fe80::1]:99/x"),
        (' "box:1" ', "http://box:1"),
        ("bücher.example", "http://xn--bcher-kva.example:11434"),
        ("http://user:secret@box", "http://box:80"),
        ("embedded", "embedded"),
    ],
)
def test_spellings(spelling: str, label: str) -> None:
    """Every spelling of OLLAMA_HOST means what Ollama's own client makes of it."""
    assert Server(spelling).label == label


@pytest.mark.parametrize(
    "bad",
    [
        "ftp://box",
        "box:port",
        "box:0",
        "box:70000",
        "a b",
        "http://box?x=1",
        "http://box/#x",
        "x://",
        "box\n:1",
        "http://",
        "[::1",
        "[box]",
        ":::x",
        "http://box/ü",
    ],
)
def test_what_is_no_address_says_so_without_secrets(bad: str) -> None:
    """A bad address is a ValueError that shows it, but never its user info."""
    with pytest.raises(ValueError, match=r"address|port"):
        Server(bad)
    with pytest.raises(ValueError, match=r"address|port") as caught:
        Server("http://me:hunter22@box:port")
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("bad", ["http://me:hunt/er22@box:1", "http://me:hunt://er22@box:x", "me:er22@box:x"])
def test_a_password_is_not_shown_however_it_is_misspelt(bad: str) -> None:
    """An unescaped slash in a password is a mistake, and no reason to print it."""
    with pytest.raises(ValueError, match=r"address|port") as caught:
        Server(bad)
    assert "er22" not in str(caught.value)


def test_credentials_become_headers() -> None:
    """User info is Basic, percent-decoded; a key is Bearer and wins; other headers are sent as given."""
    assert dict(Server("http://me:s%40cret@box").headers) == {"Authorization": "Basic bWU6c0BjcmV0"}
    assert dict(Server("http://me:x@box", api_key="key-1234").headers) == {"Authorization": "Bearer key-1234"}
    assert dict(Server("box", headers={"X-Proxy-Key": "v"}).headers) == {"X-Proxy-Key": "v"}
    assert Server("box", headers={"authorization": "a"}, api_key="key-1234").headers == (
        ("Authorization", "Bearer key-1234"),
    )
    assert Server("http://me:x@box", headers={"authorization": "a"}).headers == (("authorization", "a"),)
    with pytest.raises(ValueError, match="api_key"):
        Server("box", api_key="…")
    with pytest.raises(ValueError, match="must be text"):
        Server(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("Content-Length", "1"), ("host", "x"), ("X A", "v"), ("X-A", "v\r\nX-B: w"), ("", "v"), ("X-A", "ü")],
)
def test_headers_cannot_smuggle(name: str, value: str) -> None:
    """What could break out of a header line is refused."""
    with pytest.raises(ValueError, match=r"header|characters that HTTP"):
        Server("box", headers={name: value})


def test_secrets_never_show() -> None:
    """Neither repr nor label nor a redacted text has a key, in any of its forms."""
    server = Server("http://me:hunter22@box", headers={"X-Key": "Token abcd1234"}, api_key="key-5678")
    shown = f"{server!r} {server.label} " + server.redact("hunter22 abcd1234 key-5678 Bearer key-5678 me:hunter22")
    assert not any(secret in shown for secret in ("hunter22", "abcd1234", "key-5678"))


def test_equal_servers_are_equal() -> None:
    """Two spellings of one server are one; another key makes another."""
    assert Server("box") == Server("http://box:11434") != Server("box", api_key="abcd")
    assert len({Server("box"), Server("box:11434")}) == 1
    assert Server("box") != "box"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.2", True), ("localhost", True), ("::1", True), ("box", False), ("127.evil.example", False)],
)
def test_loopback(host: str, loopback: bool) -> None:
    """This machine is known by its names."""
    assert Server(host).is_loopback is loopback


def test_parts() -> None:
    """An address has five parts."""
    assert parse_address("https://u:p@h:1/x/") == ("https", "u:p", "h", 1, "/x")


def test_an_error_shows_no_query() -> None:
    """A query may hold a key, so what is wrong with an address is told without it."""
    with pytest.raises(ValueError, match="no server address") as raised:
        Server("http://desk:11434/?key=sesame")
    assert "sesame" not in str(raised.value)


def test_one_address_of_a_name() -> None:
    """A server at an address is labelled by it, called by its name, and no other server."""
    name = Server("https://pods.example/ollama", api_key="sesame")
    one = name.at("10.0.0.1")
    assert (one.label, one.host, one.netloc, one.headers) == (
        "https://10.0.0.1:443/ollama",
        "pods.example",
        "pods.example:443",
        name.headers,
    )
    assert one == name.at("10.0.0.1")
    assert len({name, one, name.at("10.0.0.2"), Server("https://10.0.0.1/ollama", api_key="sesame")}) == 4


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the key sesame-4711 is wrong", "the key *** is wrong"),
        ("the key sesame-47…", "the key ***"),
        ("the key sesa", "the key ***"),
        ("ends in ses", "ends in ses"),
        ("", ""),
    ],
)
def test_secrets_are_taken_out_also_where_they_are_cut_off(text: str, shown: str) -> None:
    """An excerpt may end in the middle of one; three characters of it say little."""
    assert Server("desk", api_key="sesame-4711").redact(text) == shown


def test_passwords_are_secrets_as_they_are_meant() -> None:
    """A password that is quoted in the URL is one in plain letters as well."""
    server = Server("http://me:p%40ssword@desk")
    assert server.redact("p%40ssword and p@ssword") == "*** and ***"
    assert server.redact_json(b'{"digest": "p@ssword"}') == b'{"digest": "***"}'


def test_a_pickled_server_is_found_in_another_process() -> None:
    """Equal servers have equal hashes, although those of texts differ from process to process."""
    code = "import pickle, sys; from aicortex import Server; sys.stdout.buffer.write(pickle.dumps(Server('desk')))"
    pickled = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert {Server("desk"): 1}[pickle.loads(pickled)] == 1
    assert copy.copy(Server("desk")) == Server("desk")
