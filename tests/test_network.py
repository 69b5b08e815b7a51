"""What both front ends do alike about the network: requests as bytes, proxies, TLS contexts, and words for errors."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import sys
from pathlib import Path

import pytest
import trustme

from aicortex import Server
from aicortex._core.failover import AttemptFailed
from aicortex.network import (
    CONNECT,
    SEND,
    check_tunnel,
    encode,
    failure_of,
    handshake_timeout,
    head_of,
    is_tls_error,
    numeric_addresses,
    prepare,
    proxy_to,
    tls_context,
    tunnel_request,
    unresolved,
)

PLAIN = Server("http://desk:11434/ollama")
SECURE = Server("https://rack.example")
PROXY = Server("http://user:secret@proxy:3128")


def test_a_request_as_bytes() -> None:
    """Host, path and body are where HTTP wants them, whatever the server's path is."""
    sent = encode("POST", "/api/chat", PLAIN, b'{"model":"m"}', head_of(None, PLAIN))
    head, _, body = sent.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /ollama/api/chat HTTP/1.1\r\nHost: desk:11434\r\n")
    assert b"Content-Length: 13" in head
    assert body == b'{"model":"m"}'


def test_the_servers_own_headers_come_last() -> None:
    """A key goes with each request to the server."""
    server = Server("desk", api_key="sesame")
    assert encode("GET", "/api/tags", server, b"", ("", [])).endswith(b"Authorization: Bearer sesame\r\n\r\n")


def test_plain_requests_name_the_server_to_a_proxy() -> None:
    """Without TLS a proxy is asked for the whole address, and told who asks."""
    prefix, headers = head_of(PROXY, PLAIN)
    assert prefix == "http://desk:11434"
    assert [name for name, _ in headers] == ["Proxy-Authorization"]
    sent = encode("GET", "/api/tags", PLAIN, b"", (prefix, headers))
    assert sent.startswith(b"GET http://desk:11434/ollama/api/tags HTTP/1.1\r\n")


def test_a_proxy_never_sees_what_is_secured() -> None:
    """With TLS the way through is asked for once, and the requests name nothing but their path."""
    assert head_of(PROXY, SECURE) == ("", [])
    asked = tunnel_request(PROXY, Server("https://rack.example", api_key="sesame"))
    assert asked.startswith(b"CONNECT rack.example:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic" in asked
    assert b"sesame" not in asked


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 Connection established\r\n\r\n", b"HTTP/1.0 200 OK\r\nVia: x\r\n\r\n"])
def test_a_proxy_that_lets_through(head: bytes) -> None:
    """The status decides, not its words."""
    check_tunnel(PROXY, head)


@pytest.mark.parametrize("head", [b"HTTP/1.1 407 Who are you?\r\n\r\n", b"HTTP/1.1", b"", b"SSH-2.0-OpenSSH\r\n"])
def test_a_proxy_that_does_not(head: bytes) -> None:
    """Its words are told, its password is not."""
    with pytest.raises(AttemptFailed, match="proxy:3128 refuses the way through") as caught:
        check_tunnel(PROXY, head)
    assert caught.value.failure.kind == "proxy"
    assert "secret" not in str(caught.value)


def test_a_proxy_variable_that_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the attempt that fails, and the variable is named."""
    monkeypatch.setenv("http_proxy", "socks5://proxy:1080")
    with pytest.raises(AttemptFailed, match="http_proxy variable") as caught:
        proxy_to(PLAIN)
    assert (caught.value.failure.kind, caught.value.failure.phase) == ("proxy", CONNECT)


def test_no_proxy_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local server is asked directly whatever the variables say."""
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    found = proxy_to(PLAIN)
    assert found is not None
    assert found.label == "http://proxy:3128"
    assert proxy_to(Server("127.0.0.1")) is None


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_addresses_need_no_resolver(host: str, family: int) -> None:
    """An address is its own, and a name is nobody's before it was asked for."""
    found = numeric_addresses(host, 11434)
    assert found is not None
    assert (found[0][0], found[0][4][:2]) == (family, (host, 11434))


@pytest.mark.parametrize("host", ["localhost", "box.example", "a" * 64 + ".example", "\udce4"])
def test_names_are_left_to_the_resolver(host: str) -> None:
    """What is no address, even no name, is not looked up here."""
    assert numeric_addresses(host, 11434) is None


def test_a_name_that_was_not_resolved() -> None:
    """A name server that is silent is a matter of time, one that knows nothing is not."""
    late, unknown = unresolved("box", None).failure, unresolved("box", OSError("unknown")).failure
    assert (late.kind, unknown.kind) == ("connect_timeout", "unreachable")
    assert "box" in late.message
    assert "unknown" in unknown.message


def test_a_socket_for_streams() -> None:
    """Small requests go at once, and a host that went away is noticed."""
    with socket.socket() as found:
        prepare(found)
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_one_context_serves_all_servers_of_its_kind() -> None:
    """A context takes long to make; servers differ by what they trust, not by name."""
    assert tls_context(SECURE) is tls_context(Server("https://other.example"))
    trusting = tls_context(Server("https://rack.example", verify=False))
    assert trusting is not tls_context(SECURE)
    assert (trusting.verify_mode, trusting.check_hostname) == (ssl.CERT_NONE, False)


def test_a_certificate_that_was_renewed_is_read_again(tmp_path: Path) -> None:
    """Whoever replaces a file need not restart the program."""
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(file)
    server = Server("https://rack.example", ca_file=str(file))
    before = tls_context(server)
    assert tls_context(server) is before
    trustme.CA().cert_pem.write_to_path(tmp_path / "new.pem")
    os.replace(tmp_path / "new.pem", file)
    assert tls_context(server) is not before


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_certificate_file_that_cannot_be_used_is_named(tmp_path: Path, text: str | None) -> None:
    """Neither a missing file nor one of something else; and it is looked at again the next time."""
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    server = Server("https://rack.example", ca_file=str(file))
    for _ in range(2):
        with pytest.raises(AttemptFailed, match=r"ca\.pem cannot be used") as caught:
            tls_context(server)
        assert caught.value.failure.kind == "tls"
    trustme.CA().cert_pem.write_to_path(file)
    assert tls_context(server).cert_store_stats()["x509_ca"] > 0


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "refused", "nothing listens there"),
        (TimeoutError(), "connect_timeout", "could not be opened in time"),
        (ssl.SSLCertVerificationError("bad certificate"), "tls", "bad certificate"),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), "reset", "reset by peer"),
        (BrokenPipeError(), "reset", "BrokenPipeError"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "unreachable", "No route to host"),
    ],
)
def test_the_systems_errors_in_plain_words(error: Exception, kind: str, words: str) -> None:
    """Each kind of error has its name, and the system's own words where they say more."""
    failure = failure_of(error, CONNECT)
    assert (failure.kind, failure.phase) == (kind, CONNECT)
    assert words in failure.message


def test_what_breaks_later_was_reachable_before() -> None:
    """The same error means another thing once a connection is open."""
    assert failure_of(OSError(errno.ENETDOWN, "Network is down"), SEND).kind == "reset"


def test_tls_errors_are_told_apart_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that never used https does not load TLS to look at an error."""
    assert is_tls_error(ssl.SSLError("x"))
    assert not is_tls_error(OSError("x"))
    monkeypatch.delitem(sys.modules, "ssl")
    assert not is_tls_error(OSError("x"))
    assert "ssl" not in sys.modules


def test_a_handshake_that_does_not_end() -> None:
    """The likeliest reason is asked for."""
    assert "does this port speak https?" in handshake_timeout().failure.message
