"""Connections in both colours, over real sockets: TLS, proxies, timeouts, and the words for what goes wrong."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import trustme
from tests.colours import Ask, Chat
from tests.peers import deaf_port, proxy

from aicortex import AllServersFailedError, Server, Stream, StreamCancelledError
from aicortex.fleet import Model
from aicortex.testing import Answer, FakeServer, Hang, Stall, Status

TEXT = "Rings are made of ice and rock."


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_server(authority: trustme.CA, name: str = "localhost", client_ca: trustme.CA | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, "127.0.0.1" if name == "localhost" else name).configure_cert(context)
    if client_ca is not None:
        client_ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
def ask(chat: Chat) -> Ask:
    """Ask the given server."""

    def asking(server: str | Server, **arguments: Any) -> Stream:
        return chat("What?", stream=True, model="fake:latest", servers=[server], **arguments)

    return asking


def reason(stream: Stream) -> tuple[str, str]:
    with pytest.raises(AllServersFailedError) as caught:
        stream.text()
    return caught.value.attempts[-1].kind, str(caught.value)


def test_tls(ask: Ask, authority: trustme.CA, tmp_path: Path) -> None:
    """https with an own authority works and streams, and its connection serves twice."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with FakeServer(answer=TEXT, tls=tls_server(authority)) as fake:
        server = Server(f"https://localhost:{fake.port}", ca_file=str(tmp_path / "ca.pem"))
        assert ask(server).text() == TEXT
        before = fake.connections
        assert ask(server).text() == TEXT
        assert fake.connections == before


def test_an_unknown_authority_is_refused_unless_told_otherwise(ask: Ask, authority: trustme.CA) -> None:
    """TLS is verified by default; verify=False is the user's own decision."""
    with FakeServer(answer=TEXT, tls=tls_server(authority)) as fake:
        kind, words = reason(ask(f"https://localhost:{fake.port}"))
        assert (kind, "certificate" in words.lower()) == ("tls", True)
        assert ask(Server(f"https://localhost:{fake.port}", verify=False)).text() == TEXT


def test_another_hosts_certificate_is_refused(ask: Ask, authority: trustme.CA, tmp_path: Path) -> None:
    """A valid certificate of somebody else does not do."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with FakeServer(answer=TEXT, tls=tls_server(authority, "elsewhere.example")) as fake:
        assert reason(ask(Server(f"https://localhost:{fake.port}", ca_file=str(tmp_path / "ca.pem"))))[0] == "tls"


def test_client_certificates(ask: Ask, authority: trustme.CA, tmp_path: Path) -> None:
    """A server that wants a client certificate gets it."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("me@example.org").private_key_and_cert_chain_pem.write_to_path(tmp_path / "me.pem")
    with FakeServer(answer=TEXT, tls=tls_server(authority, client_ca=authority)) as fake:
        url = f"https://localhost:{fake.port}"
        ca_file, mine = str(tmp_path / "ca.pem"), str(tmp_path / "me.pem")
        assert ask(Server(url, ca_file=ca_file, client_cert=mine)).text() == TEXT
        assert reason(ask(Server(url, ca_file=ca_file)))[0] in ("tls", "reset", "closed")


def test_a_missing_certificate_file_is_named(ask: Ask, tmp_path: Path) -> None:
    """A wrong path shows as such, not as a dead server."""
    with FakeServer() as fake:
        kind, words = reason(ask(Server(f"https://localhost:{fake.port}", ca_file=str(tmp_path / "none.pem"))))
    assert kind == "tls"
    assert "none.pem" in words


def test_http_spoken_to_a_tls_server_and_the_other_way(
    ask: Ask, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong scheme is an error with words and not a hang."""
    monkeypatch.setattr("aicortex.fleet.ASK_SECONDS", 0.3)
    with FakeServer(answer=TEXT, tls=tls_server(authority)) as fake:
        assert reason(ask(f"http://localhost:{fake.port}"))[0] in ("closed", "reset", "bad_response")
    with FakeServer(answer=TEXT) as fake:
        assert reason(ask(f"https://localhost:{fake.port}", connect_timeout=0.3))[0] == "tls"


def test_a_stall_under_tls(ask: Ask, authority: trustme.CA, tmp_path: Path) -> None:
    """Deadlines and cancelling hold inside TLS as well."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stalling = Answer(TEXT).then(Stall(), after_tokens=3)
    with FakeServer(stalling, stalling, tls=tls_server(authority)) as fake:
        server = Server(f"https://localhost:{fake.port}", ca_file=str(tmp_path / "ca.pem"))
        with pytest.raises(RuntimeError, match="stalled"):
            ask(server, stall_timeout=0.2, resume="never").text()
        stream = ask(server)
        next(stream.tokens())
        stream.cancel()
        assert fake.wait_for_disconnect(1, count=2)


def test_http_through_a_proxy(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain http asks the proxy in absolute form, with the proxy's credentials and nobody else's."""
    with FakeServer(answer=TEXT) as fake, proxy() as (port, heads):
        monkeypatch.setenv("http_proxy", f"http://me:pass@127.0.0.1:{port}")
        server = Server(f"http://ollama.example:{fake.port}", api_key="key-1234")
        assert ask(server).text() == TEXT
    assert heads[0].startswith(b"GET http://ollama.example:%d/api/tags HTTP/1.1\r\n" % fake.port)
    assert b"Proxy-Authorization: Basic bWU6cGFzcw==" in heads[0]
    assert b"Authorization: Bearer key-1234" in heads[0]


def test_https_through_a_proxy(
    ask: Ask, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https goes through a CONNECT tunnel, in which the proxy sees no key."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with FakeServer(answer=TEXT, tls=tls_server(authority, "ollama.example")) as fake, proxy() as (port, heads):
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
        server = Server(f"https://ollama.example:{fake.port}", ca_file=str(tmp_path / "ca.pem"), api_key="key-1234")
        assert ask(server).text() == TEXT
    assert heads[0].startswith(b"CONNECT ollama.example:%d HTTP/1.1\r\n" % fake.port)
    assert b"key-1234" not in b"".join(heads)


def test_a_proxy_that_refuses(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy's own refusal is told as the proxy's."""
    with proxy(b"407 Proxy Authentication Required") as (port, _):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        kind, words = reason(ask("https://ollama.example:1"))
    assert kind == "proxy"
    assert "407" in words


def test_a_proxy_variable_that_is_no_address(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in the environment is told with the variable's name, whoever connects."""
    monkeypatch.setenv("http_proxy", "http://a:b")
    kind, words = reason(chat("x", stream=True, model="m", servers=["http://ollama.example", "http://b.example"]))
    assert kind == "proxy"
    assert "http_proxy" in words


def test_loopback_and_no_proxy_go_direct(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is never asked for through a proxy, nor what NO_PROXY names."""
    from aicortex.settings import proxy_for

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert proxy_for(Server("127.0.0.1")) is None
    assert proxy_for(Server("inside.example")) is None
    assert proxy_for(Server("outside.example")) == Server("http://127.0.0.1:9")
    with FakeServer(answer=TEXT) as fake:
        assert ask(fake.url).text() == TEXT


def test_a_name_that_does_not_exist(ask: Ask) -> None:
    """An unknown host name says so."""
    kind, words = reason(ask("http://does-not-exist.invalid"))
    assert kind == "unreachable"
    assert "does-not-exist.invalid" in words


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_cancel_ends_the_wait_for_a_connection(chat: Chat, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """C11: a reader that waits for a connection to open, or for TLS to begin, is woken at once."""
    monkeypatch.setattr("aicortex.fleet.catalogue", lambda _: (Model("m"),))
    with deaf_port() as port, FakeServer(Status(503), everything=Hang() if scheme == "https" else None) as fake:
        second = f"https://localhost:{fake.port}" if scheme == "https" else f"http://127.0.0.1:{port}"
        first = FakeServer(Answer(TEXT, first_delay=0.2).then(Status(500), after_tokens=0), models=("m",))
        with first:
            stream = chat("x", stream=True, model="m", servers=[first.url, second], connect_timeout=20)
            timer = threading.Timer(0.6, stream.cancel)
            timer.start()
            began = perf_counter()
            with pytest.raises(StreamCancelledError):
                stream.text()
            assert perf_counter() - began < 5
            timer.join()


def test_a_late_reader_still_gets_what_came(chat: Chat, authority: trustme.CA) -> None:
    """A deadline that passed while nobody read does not throw away an answer that is here, in several TLS records."""
    with FakeServer(Answer(TEXT), tls=tls_server(authority)) as fake:
        server = Server(fake.url, verify=False)
        stream = chat("x", stream=True, model="fake:latest", servers=[server], first_token_timeout=0.2)
        assert fake.wait_until(lambda: fake.active == 0 and len(fake.requests) == 2)
        threading.Event().wait(0.3)  # past the deadline, on purpose
        assert stream.text() == TEXT


def test_every_request_carries_the_servers_headers(ask: Ask) -> None:
    """Custom headers and keys go with each request, and a path in front of Ollama's own."""
    with FakeServer(answer=TEXT, require={"Authorization": "Bearer key-1234", "X-Team": "a"}) as fake:
        server = Server(fake.url, api_key="key-1234", headers={"X-Team": "a"})
        assert ask(server).text() == TEXT
        kind, words = reason(ask(Server(fake.url, api_key="wrong-key-99")))
    assert kind == "denied"
    assert "wrong-key-99" not in words
