"""What the rest of the package sees of the embedded engine."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from aicortex import embedded
from aicortex.errors import EmbeddedEngineError


def run(script, *arguments):
    """Run a script in a fresh interpreter; return what it printed."""
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_loads_nothing_heavy():
    """The parent's side costs an import of next to nothing."""
    heavy = "{'xllamacpp', 'rich', 'ssl', 'asyncio', 'socket', 'subprocess', 'msgspec', 'platformdirs', 'filelock'}"
    assert run(f"import sys, aicortex.embedded; print({heavy} & set(sys.modules))") == "set()\n"


def test_all_calls_and_threads_share_one_engine(client):
    """Many threads at once get the one engine."""
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: embedded.ensure_running(), range(16)))
    assert found == {(client.host, client.port)}


def test_a_killed_engine_is_replaced():
    """After kill -9 of the engine the next call starts another, which answers; stop leaves no child."""
    script = """
import os, signal, urllib.request
from aicortex import embedded
first = embedded.ensure_running()
os.kill(embedded._running._process.pid, signal.SIGKILL)
embedded._running.wait()
second = embedded.ensure_running()
print(urllib.request.urlopen("http://%s:%d/" % second).read().decode())
embedded.stop()
embedded.stop()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child")
"""
    assert run(script) == "Ollama is running\nno child\n"


def test_only_the_engine_at_the_port_is_discarded():
    """An engine another thread started meanwhile stays; the one that is meant ends, and twice does no harm."""
    script = """
from aicortex import embedded
host, port = embedded.ensure_running()
embedded.discard(port + 1)
print(embedded.ensure_running() == (host, port))
embedded.discard(port)
embedded.discard(port)
print(embedded._running)
"""
    assert run(script) == "True\nNone\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_starts_its_own():
    """The fork gets another engine and stops only that; the parent's goes on."""
    script = """
import os, sys
from aicortex import embedded
first = embedded.ensure_running()
child = os.fork()
if child == 0:
    inherited = embedded._running
    own = embedded.ensure_running()
    print(inherited, own != first, flush=True)
    sys.exit()
print(os.waitpid(child, 0)[1], embedded.ensure_running() == first)
"""
    assert run(script) == "None True\n0 True\n"


@pytest.mark.parametrize(
    ("file", "name"),
    [("", "smollm2:135m"), ("/x/Qwen2.5-0.5B-Instruct-Q4_K_M.gguf", "qwen2.5-0.5b-instruct-q4_k_m:latest"),
     ("my model!.gguf", "my-model:latest"), ("!.gguf", "model:latest")],
)  # fmt: skip
def test_the_name_is_known_without_starting_anything(monkeypatch, file, name):
    """The model's name comes from the file's."""
    monkeypatch.setenv("AICORTEX_EMBEDDED_MODEL", file)
    assert embedded.model_name() == name


def test_the_extra_is_seen():
    """Where the tests run the engine is installed; without xllamacpp it is not, and the error says what to do."""
    assert embedded.is_available()
    script = """
import sys
sys.modules["xllamacpp"] = None
from aicortex import embedded
try:
    embedded.ensure_running()
except RuntimeError as exc:
    print(embedded.is_available(), exc)
"""
    assert run(script) == f"False {embedded.NOT_INSTALLED}\n"


@pytest.mark.parametrize("value", ["0", "-1", "two", "²", ""])
def test_a_wrong_number_of_threads_is_refused(monkeypatch, value):
    """AICORTEX_EMBEDDED_THREADS is a whole number from 1 on."""
    monkeypatch.setenv("AICORTEX_EMBEDDED_THREADS", value)
    with pytest.raises(EmbeddedEngineError, match="AICORTEX_EMBEDDED_THREADS"):
        embedded.serve(port=0)


def test_serving_off_loopback_is_refused():
    """Without an API key nothing is offered to the network."""
    for host in ("0.0.0.0", "192.0.2.1", "example.org", "::"):
        with pytest.raises(EmbeddedEngineError, match="loopback only"):
            embedded.serve(host, 0)


@pytest.mark.parametrize("name", ["", "a b c/:", "x:", "/x", "a/b/c/d", "x\n", "-x", "ä"])
def test_what_is_no_model_name_is_refused(name):
    """Nothing is served under a name no client could ask for."""
    with pytest.raises(ValueError, match="is not a model name"):
        embedded.serve(port=0, name=name)


@pytest.mark.parametrize("name", ["llama3.2", "library/llama3.2:3b", "hf.co/someone/Some-GGUF:Q4_K_M", "host:80/a/b:c"])
def test_every_form_of_a_model_name_is_taken(monkeypatch, name):
    """A namespace, a registry with its port and a tag belong to a name; the next check is reached."""
    monkeypatch.setenv("AICORTEX_EMBEDDED_THREADS", "0")
    with pytest.raises(EmbeddedEngineError, match="AICORTEX_EMBEDDED_THREADS"):
        embedded.serve(port=0, name=name)


@pytest.mark.skipif(sys.platform == "win32", reason="these signals cannot be sent there")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("weights_path")
def test_serving_ends_with_a_signal(connect_to, until, sent):
    """It says where it serves, under the name asked for, and ends with status 0 and no engine left."""
    script = "import sys; from aicortex import embedded; sys.exit(embedded.serve(port=0, name='llama3.2:3b'))"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert line.startswith("Serving llama3.2:3b at http://127.0.0.1:")
        port = int(line.split("//127.0.0.1:")[1].split()[0])
        client = connect_to("127.0.0.1", port)
        assert client.get("/api/tags")["models"][0]["name"] == "llama3.2:3b"
        process.send_signal(sent)
        assert process.wait(30) == 0

    def is_closed():
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) != 0

    until(is_closed)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no signal 9")
@pytest.mark.usefixtures("weights_path")
def test_serving_says_that_its_engine_was_killed():
    """After kill -9 of the engine the foreground ends with status 1 and one line: the log has nothing to do with it."""
    script = """
import json, os, signal, sys, threading
from aicortex import embedded
from aicortex.embedded.process import EngineProcess
wait = EngineProcess.wait
def kill_first(process):
    os.kill(process._process.pid, signal.SIGKILL)
    return wait(process)
EngineProcess.wait = kill_first
sys.exit(embedded.serve(port=0))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "aicortex: the engine was killed (signal 9)\n")
