"""Every way in which a server can be wrong, and what `aicortex doctor` says of it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from email.utils import formatdate
from pathlib import Path
from time import time

import pytest
import trustme

from aicortex._core.failover import AttemptFailed, Failure
from aicortex._core.server import Server
from aicortex.cli import server_diagnosis
from aicortex.cli.finding import Finding
from aicortex.cli.server_diagnosis import (
    ask_version,
    examine_clocks,
    examine_failure,
    examine_proxy,
    examine_reply,
    examine_version,
)
from aicortex.testing import Close, FakeServer, Garbage, Hang, Status

SECRET = "sk-verysecret"


def examined(server: str | Server, seconds: float = 5.0) -> Finding:
    """Return the verdict on a server."""
    server = Server(server) if isinstance(server, str) else server
    try:
        response, took = ask_version(server, seconds)
    except AttemptFailed as error:
        return examine_failure(server, error.failure)
    return examine_reply(server, response, took)


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake servers never answer a TLS greeting: do not wait for that as long as for a real one."""
    monkeypatch.setattr(server_diagnosis, "TRY_SECONDS", 0.5)


@pytest.fixture
def authority() -> trustme.CA:
    """An authority that nobody knows."""
    return trustme.CA()


Secured = Callable[..., FakeServer]


@pytest.fixture
def secured(authority: trustme.CA) -> Iterator[Secured]:
    """Starts servers that speak https, with certificates of the authority."""
    started: list[FakeServer] = []

    def start(name: str = "127.0.0.1", **dates: datetime) -> FakeServer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name, **dates).configure_cert(context)
        server = FakeServer(tls=context)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def authority_file(authority: trustme.CA, tmp_path: Path) -> str:
    """The authority's own certificate as a file."""
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    return str(file)


def test_well(server: FakeServer) -> None:
    """A server that answers is well."""
    finding = examined(server.url)
    assert (finding.mark, finding.remedy) == ("ok", "")
    assert finding.finding.startswith("Ollama 0.33.0 answers after ")


def test_nothing_listens() -> None:
    """Where nothing listens Ollama is to be started."""
    finding = examined("127.0.0.1:1")
    assert (finding.mark, finding.about, finding.finding) == ("problem", "http://127.0.0.1:1", "nothing listens there")
    assert "ollama serve" in finding.remedy


def test_nothing_listens_on_another_machine() -> None:
    """On another machine Ollama must listen to more than itself."""
    finding = examine_failure(Server("rack.test:11434"), Failure("refused", "connect", "nothing listens there"))
    assert finding.remedy.startswith("Start Ollama on rack.test, with OLLAMA_HOST=0.0.0.0 there")


@pytest.mark.parametrize("is_dead", [True, False])
def test_usual_port_answers(is_dead: bool) -> None:
    """When Ollama answers at its usual port of the same host, that is what to write."""
    usual, wrong = FakeServer(), FakeServer(everything=Status.html(404))
    usual.host = wrong.host = "127.0.0.99"
    usual.port = 11434
    with usual, wrong:
        if is_dead:
            wrong.refuse()
        finding = examined(wrong.url)
    assert finding.mark == "problem"
    assert finding.remedy == "An Ollama answers at http://127.0.0.99:11434: write that"


def test_name_that_means_nothing() -> None:
    """A name that does not resolve is said to be misspelled."""
    finding = examined("no-such-host.invalid")
    assert (finding.mark, "spelling" in finding.remedy) == ("problem", True)
    assert finding.finding == "the name no-such-host.invalid means nothing here"


def test_silence() -> None:
    """A server that takes the connection and says nothing is wedged; one that takes none is behind a firewall."""
    with FakeServer(everything=Hang()) as server:
        finding = examined(server.url, 0.3)
    assert finding.finding == "it takes the connection and never answers"
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        finding = examined(f"127.0.0.1:{port}", 0.3)
        for each in waiting:
            each.close()
    assert finding.finding == "nobody answers there: the connection cannot be opened"
    assert f"a firewall keeps port {port} from you" in finding.remedy


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Status.html(200), "something else than Ollama answers there: an HTML page"),
        (Status.html(404), "something else than Ollama answers there: an HTML page"),
        (Status(200, {"status": "ok"}), "something else than Ollama answers there (HTTP 200: "),
        (Status(500, {"error": "it broke"}), "it fails: HTTP 500: it broke"),
        (Status(500, {"error": "write: no space left on device"}), "its disk is full: HTTP 500: write: no space"),
        (Garbage(), "not valid HTTP"),
        (Close(), "closed the connection"),
    ],
)
def test_other_replies(server: FakeServer, reply: Status, words: str) -> None:
    """What does not answer as Ollama does, or fails itself, is told, with what to look at."""
    server.everything = reply
    finding = examined(server.url)
    assert (finding.mark, words in finding.finding) == ("problem", True), finding
    assert finding.remedy


@pytest.mark.parametrize(
    ("dates", "name", "knows", "words"),
    [
        ({}, "127.0.0.1", False, "nobody here knows who signed its certificate"),
        ({}, "other.test", True, "its certificate is for another name"),
        ({"not_after": datetime(2020, 1, 1, tzinfo=timezone.utc)}, "127.0.0.1", True, "its certificate has expired"),
        ({"not_before": datetime(2090, 1, 1, tzinfo=timezone.utc)}, "127.0.0.1", True, "is not valid yet"),
    ],
)
def test_certificates(
    secured: Secured, authority_file: str, dates: dict[str, datetime], name: str, knows: bool, words: str
) -> None:
    """What is wrong with a certificate is told, with the option that helps."""
    server = secured(name, **dates)
    finding = examined(Server(server.url, ca_file=authority_file if knows else None))
    assert (finding.mark, words in finding.finding) == ("problem", True), finding
    assert "{}" not in finding.remedy
    assert ("--ca-file" in finding.remedy) == (not knows)


def test_good_certificate(secured: Secured, authority_file: str) -> None:
    """A certificate of an authority that is named is no problem; a file that is none is one."""
    server = secured()
    assert examined(Server(server.url, ca_file=authority_file)).mark == "ok"
    finding = examined(Server(server.url, ca_file="/nowhere.pem"))
    assert "the certificate file /nowhere.pem cannot be used" in finding.finding
    assert finding.remedy.startswith("Name another: 'aicortex servers add https://")


def test_http_to_an_https_port(secured: Secured) -> None:
    """Who speaks http to a port that speaks https is told to write https; so Go's servers say themselves."""
    server = secured()
    plain = server.url.replace("https", "http")
    finding = examined(plain)
    assert (finding.finding, finding.remedy) == ("http is spoken to a port that speaks https", f"Write {server.url}")
    with FakeServer(everything=Status(400, "Client sent an HTTP request to an HTTPS server.")) as go:
        assert examined(go.url).finding == "http is spoken to a port that speaks https"


def test_https_to_an_http_port(server: FakeServer) -> None:
    """Who speaks https to a port that speaks http is told to write http."""
    finding = examined(server.url.replace("http", "https"), 0.5)
    assert (finding.finding, finding.remedy) == ("https is spoken to a port that speaks http", f"Write {server.url}")
    finding = examined("https://127.0.0.1:1")
    assert finding.finding == "nothing listens there"


def test_host_guard(server: FakeServer) -> None:
    """An empty 403 is Ollama's guard against names that it does not know."""
    server.everything = Status(403, "")
    finding = examined(server.url)
    assert finding.finding.startswith("it refuses everybody who calls it 127.0.0.1")
    assert "OLLAMA_HOST=0.0.0.0" in finding.remedy
    assert "OLLAMA_ORIGINS" in finding.remedy


def test_keys() -> None:
    """A server that wants a key is told, and one that does not like it, without the key."""
    with FakeServer(require={"Authorization": "Bearer right"}) as server:
        finding = examined(server.url)
        assert (finding.finding, "--api-key" in finding.remedy) == ("it wants a key: HTTP 401: unauthorized", True)
        server.everything = Status(401, {"error": f"no such key: {SECRET}"})
        finding = examined(Server(server.url, api_key=SECRET))
    assert finding.finding == "it does not accept its key: HTTP 401: no such key: ***"


def test_another_port_gets_no_key() -> None:
    """Whatever is tried besides the address that was given gets none of its secrets."""
    usual = FakeServer()
    usual.host, usual.port = "127.0.0.98", 11434
    with usual:
        finding = examined(Server("127.0.0.98:1", api_key=SECRET))
    assert "11434" in finding.remedy
    assert [request.headers.get("authorization") for request in usual.requests] == [None]


@pytest.mark.parametrize(
    ("version", "signs"),
    [
        ("0.9.1", ["0.11.5", "0.12.6"]),
        ("0.11.5", ["0.12.6"]),
        ("0.12.6", []),
        ("0.33.0-rc2", []),
        ("0.0.0", []),
        ("devel", []),
    ],
)
def test_old_versions(version: str, signs: list[str]) -> None:
    """An old version is a warning that says what it lacks; one that somebody built is not judged."""
    with FakeServer(version=version) as server:
        target = Server(server.url)
        findings = list(examine_version(target, ask_version(target, 5.0)[0]))
    assert [finding.mark for finding in findings] == (["warning"] if signs else [])
    assert all(sign in findings[0].finding for sign in signs)


@pytest.mark.parametrize(("ahead", "words"), [(600, "10 min ahead of"), (-7200, "2 h behind"), (5, "")])
def test_clocks(server: FakeServer, ahead: float, words: str) -> None:
    """A server whose clock is far from this machine's is a warning."""
    headers = {"Date": formatdate(time() + ahead, usegmt=True)}
    server.everything = Status(200, {"version": "0.33.0"}, headers=headers)
    target = Server(server.url)
    findings = list(examine_clocks(target, ask_version(target, 5.0)[0]))
    assert [words in finding.finding for finding in findings] == ([True] if words else [])


def test_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy between here and the server is a warning, unless NO_PROXY has the host; its password is not shown."""
    monkeypatch.setenv("http_proxy", f"http://me:{SECRET}@proxy.test:3128")
    (finding,) = examine_proxy(Server("rack.test:11434"))
    assert (finding.mark, "http://proxy.test:3128" in finding.finding) == ("warning", True)
    assert finding.remedy.endswith("add rack.test to NO_PROXY")
    assert SECRET not in str(finding)
    assert list(examine_proxy(Server("127.0.0.1:11434"))) == []
    monkeypatch.setenv("no_proxy", "rack.test")
    assert list(examine_proxy(Server("rack.test:11434"))) == []
    monkeypatch.setenv("https_proxy", "socks5://proxy.test")
    (finding,) = examine_proxy(Server("https://other.test"))
    assert finding.mark == "problem"


def test_proxy_that_refuses(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that refuses the way through is told as such."""
    monkeypatch.setenv("https_proxy", server.url)
    finding = examined("https://rack.test:11434")
    assert "refuses the way through" in finding.finding
    assert finding.remedy.endswith("add rack.test to NO_PROXY")


@pytest.mark.parametrize("ending", ["/api", "/v1"])
def test_path_of_the_protocol(server: FakeServer, ending: str) -> None:
    """An address that ends as the paths of requests begin is too long."""
    assert examined(f"{server.url}{ending}").remedy == f"Leave {ending} off"
