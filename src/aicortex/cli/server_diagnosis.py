"""What can be wrong with one server: each function looks at one thing and says what it found.

Only the address that the user gave is asked, and port 11434 of the same host. Other ports and schemes are tried
without any of the server's secrets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from time import perf_counter, time

from aicortex import settings
from aicortex._core import faults
from aicortex._core.failover import AttemptFailed, Failure
from aicortex._core.http import Response
from aicortex._core.ollama import version_of
from aicortex._core.server import DEFAULT_PORT, Server
from aicortex._sync.pool import call
from aicortex.cli.finding import OK, PROBLEM, WARNING, Finding, says_disk_is_full
from aicortex.cli.known import way_to_set
from aicortex.cli.table import milliseconds, span_words

ASK_SECONDS = 5.0  # for the server itself
TRY_SECONDS = 2.0  # for another port or scheme of its host
SKEW_SECONDS = 60.0  # by which two clocks may differ before anybody is told
HTTPS_HINT = "HTTP request to an HTTPS server"  # what Go's servers answer, with status 400

OLD = (  # versions, newest first, and what those before them lack
    ((0, 11, 5), "an answer that breaks off there cannot be continued exactly (that came with 0.11.5)"),
    ((0, 12, 6), "an error before the first token looks like an answer at first (until 0.12.6)"),
)


def ask_version(server: Server, seconds: float) -> tuple[Response, float]:
    """Return the reply to `GET /api/version`, within so many seconds, and how many it took; raises AttemptFailed."""
    began = perf_counter()
    response = call(server, "GET", "/api/version", due=began + seconds)
    return response, perf_counter() - began


def examine_failure(server: Server, failure: Failure) -> Finding:
    """Return what it means that a server could not be reached, or did not answer."""
    look = LOOKS.get(failure.kind, _strange)
    finding = look(server, failure)
    if finding.finding:
        return finding
    return Finding(PROBLEM, server.label, server.redact(failure.message), finding.remedy)


def examine_reply(server: Server, response: Response, seconds: float) -> Finding:
    """Return whether a reply to `GET /api/version` is Ollama's."""
    version = version_of(b"".join(response.body)) if response.status == 200 else ""
    if version:
        words = f"Ollama {server.redact(version)} answers after {milliseconds(seconds * 1000)}"
        return Finding(OK, server.label, words)
    failure = faults.of_status(response)
    said = server.redact(failure.message)
    if HTTPS_HINT in said:
        return _speaks_https(server)
    if response.status == 403 and not b"".join(response.body).strip():
        return _guarded(server)
    if response.status in faults.DENIED:
        return _denied(server, said)
    if says_disk_is_full(said):
        return Finding(PROBLEM, server.label, f"its disk is full: {said}", full_disk_remedy(server))
    if response.status >= 500:
        return Finding(PROBLEM, server.label, f"it fails: {said}", f"Look at the log of Ollama on {server.host}")
    is_html = "html" in response.header("content-type")
    words = "something else than Ollama answers there" + (": an HTML page" if is_html else f" ({said or 'no version'})")
    ending = next((path for path in ("/api", "/v1") if server.path.endswith(path)), "")
    if ending:
        return Finding(PROBLEM, server.label, words, f"Leave {ending} off")
    remedy = _elsewhere(server) or "Look at the port and the path; Ollama's usual port is 11434"
    return Finding(PROBLEM, server.label, words, remedy)


def examine_version(server: Server, response: Response) -> Iterator[Finding]:
    """Look whether a server is too old for something."""
    version = version_of(b"".join(response.body))
    numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
    if not any(numbers):  # one that somebody built from source
        return
    lacking = [words for since, words in OLD if numbers < since]
    if lacking:
        words = f"Ollama {server.redact(version)} is old: {'; '.join(lacking)}"
        yield Finding(WARNING, server.label, words, f"Install a newer Ollama on {server.host}")


def examine_clocks(server: Server, response: Response) -> Iterator[Finding]:
    """Look whether the server's clock, as its `Date` header has it, is this machine's."""
    try:
        skew = parsedate_to_datetime(response.header("date")).timestamp() - time()
    except (TypeError, ValueError):
        return
    if abs(skew) > SKEW_SECONDS:
        way = "ahead of" if skew > 0 else "behind"
        words = f"its clock is {span_words(abs(skew))} {way} this machine's: one of the two is wrong"
        yield Finding(WARNING, server.label, words, "Turn on time synchronisation on both")


def examine_proxy(server: Server) -> Iterator[Finding]:
    """Look whether a proxy of the environment stands between this machine and the server."""
    try:
        proxy = settings.proxy_for(server)
    except ValueError as error:
        yield Finding(PROBLEM, server.label, str(error), "Set the variable anew, or unset it")
        return
    if proxy is not None:
        words = f"requests go through the proxy {proxy.label}, because {server.scheme}_proxy or all_proxy names it"
        yield Finding(WARNING, server.label, words, f"If it should be asked directly, add {server.host} to NO_PROXY")


def full_disk_remedy(server: Server) -> str:
    """Return what to do when a server's disk is full."""
    return f"Make room on {server.host}: 'ollama rm MODEL' removes a model that nobody needs"


def _nothing_listens(server: Server, _: Failure) -> Finding:
    elsewhere = _elsewhere(server)
    if elsewhere:
        remedy = elsewhere
    elif server.is_loopback:
        remedy = "Start Ollama ('ollama serve', or its service), or 'aicortex embedded'"
    else:
        remedy = (
            f"Start Ollama on {server.host}, with OLLAMA_HOST=0.0.0.0 there: otherwise it listens to its own "
            "machine alone"
        )
    return Finding(PROBLEM, server.label, "nothing listens there", remedy)


def _unreachable(server: Server, failure: Failure) -> Finding:
    if "resolved" in failure.message or "has no address" in failure.message:
        words = f"the name {server.host} means nothing here"
        return Finding(PROBLEM, server.label, words, "Look at its spelling, or give the IP address instead")
    return Finding(PROBLEM, server.label, "", "Look at the cable, the VPN and the address")


def _silent(server: Server, failure: Failure) -> Finding:
    if "resolved" in failure.message:
        return Finding(PROBLEM, server.label, "", "The name server does not answer: give the IP address instead")
    remedy = f"Look whether {server.host} is on, and whether a firewall keeps port {server.port} from you"
    return Finding(PROBLEM, server.label, "nobody answers there: the connection cannot be opened", remedy)


def _wedged(server: Server, _: Failure) -> Finding:
    remedy = f"Restart Ollama on {server.host}, if it is that: an open port proves nothing"
    return Finding(PROBLEM, server.label, "it takes the connection and never answers", remedy)


def _insecure(server: Server, failure: Failure) -> Finding:
    said = failure.message
    lower = said.lower()
    for signs, words, remedy in CERTIFICATES:
        if any(sign in lower for sign in signs):
            way = way_to_set(server.label, "--ca-file FILE")
            return Finding(PROBLEM, server.label, words, remedy.format(server.host, way))
    if "the certificate file" in lower:
        way = way_to_set(server.label, "--ca-file FILE --client-cert FILE")
        return Finding(PROBLEM, server.label, "", f"Name another: {way}")
    plain = Server(f"http://{server.netloc}{server.path}")
    if _answers(plain):
        words = "https is spoken to a port that speaks http"
        return Finding(PROBLEM, server.label, words, f"Write {plain.label}")
    return Finding(PROBLEM, server.label, "", "Look whether this port speaks https at all")


def _broken(server: Server, failure: Failure) -> Finding:
    """Judge a connection that ended without a reply that makes sense."""
    if server.scheme == "http" and _speaks_tls(server):
        return _speaks_https(server)
    return _strange(server, failure)


def _through_proxy(server: Server, _: Failure) -> Finding:
    return Finding(PROBLEM, server.label, "", f"If the proxy is not needed, add {server.host} to NO_PROXY")


def _strange(server: Server, _: Failure) -> Finding:
    remedy = _elsewhere(server) or "Look at the port: this is not how Ollama answers"
    return Finding(PROBLEM, server.label, "", remedy)


def _engine(server: Server, _: Failure) -> Finding:
    return Finding(PROBLEM, server.label, "", "")


def _speaks_https(server: Server) -> Finding:
    secure = Server(f"https://{server.netloc}{server.path}").label
    return Finding(PROBLEM, server.label, "http is spoken to a port that speaks https", f"Write {secure}")


def _guarded(server: Server) -> Finding:
    words = f"it refuses everybody who calls it {server.host}: Ollama answers 403 to names that it does not know"
    remedy = (
        f"Set OLLAMA_HOST=0.0.0.0 on {server.host} and restart Ollama, or let its proxy send 'Host: localhost'; for "
        "browsers there is OLLAMA_ORIGINS"
    )
    return Finding(PROBLEM, server.label, words, remedy)


def _denied(server: Server, said: str) -> Finding:
    way = way_to_set(server.label, "--api-key env:VARIABLE")
    if server.headers:
        remedy = f"Look at the key that it is sent; another is named so: {way}"
        return Finding(PROBLEM, server.label, f"it does not accept its key: {said}", remedy)
    remedy = f"Give it its key: {way}"
    return Finding(PROBLEM, server.label, f"it wants a key: {said}", remedy)


def _elsewhere(server: Server) -> str:
    """Return what to write if an Ollama answers at its usual port of the same host, else ""."""
    usual = Server(f"http://[{server.host}]:{DEFAULT_PORT}" if ":" in server.host else f"{server.host}:{DEFAULT_PORT}")
    if server.port == DEFAULT_PORT or not _answers(usual):
        return ""
    return f"An Ollama answers at {usual.label}: write that"


def _answers(server: Server) -> bool:
    """Whether an Ollama is there."""
    try:
        response, _ = ask_version(server, TRY_SECONDS)
    except AttemptFailed:
        return False
    return bool(version_of(b"".join(response.body))) or response.status in faults.DENIED


def _speaks_tls(server: Server) -> bool:
    """Whether the port speaks TLS, even if with a certificate that nobody knows."""
    try:
        ask_version(Server(f"https://{server.netloc}", verify=False), TRY_SECONDS)
    except AttemptFailed as error:
        return error.failure.kind not in ("tls", "refused", "unreachable", "connect_timeout")
    return True


LOOKS: dict[str, Callable[[Server, Failure], Finding]] = {
    "refused": _nothing_listens,
    "unreachable": _unreachable,
    "connect_timeout": _silent,
    "stalled": _wedged,
    "tls": _insecure,
    "closed": _broken,
    "reset": _broken,
    "bad_response": _broken,
    "proxy": _through_proxy,
    "engine": _engine,
}
CERTIFICATES = (  # OpenSSL's words for what is wrong with a certificate, ours, and what to do
    (("expired",), "its certificate has expired", "Renew it on {}; if it is valid, this machine's clock is wrong"),
    (("not yet valid",), "its certificate is not valid yet", "Look at the clocks of this machine and of {}"),
    (
        ("mismatch", "is not valid for"),
        "its certificate is for another name",
        "Write the name that the certificate has, or give {} a new certificate",
    ),
    (
        ("self-signed", "self signed", "local issuer", "verify failed"),
        "nobody here knows who signed its certificate",
        "Name the authority's PEM file: {1}; or accept any certificate of {0}: --no-verify there",
    ),
)
