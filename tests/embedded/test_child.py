"""The engine's own process: when it ends."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from aicortex.embedded.process import EngineProcess
from aicortex.embedded.settings import Settings

PARENT = """
import os, sys, time
from aicortex import embedded

port, keeper = embedded.ensure_running()[1], 0
if sys.argv[1] == "forks":
    os.dup(embedded._running._process.stdin.fileno())  # the fork's copy keeps the pipe open
    keeper = os.fork()
    if keeper == 0:
        time.sleep(60)
print(port, keeper, flush=True)
sys.stdin.read()
"""


def is_open(port):
    """Tell whether somebody listens on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9 and no fork")
@pytest.mark.parametrize("way", ["alone", "forks"])
@pytest.mark.usefixtures("weights_path")
def test_it_dies_with_its_parent(until, way):
    """After kill -9 of the parent nobody listens any more, even when a fork of the parent lives on."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with parent:
        port, keeper = map(int, parent.stdout.readline().split())
        assert is_open(port)
        parent.kill()
    until(lambda: not is_open(port))
    if keeper:
        os.kill(keeper, signal.SIGKILL)


def settings(weights_path, **changes):
    """Return settings of an engine on any port."""
    base = {"path": str(weights_path), "name": "m", "digest": "d", "host": "127.0.0.1", "port": 0, "threads": 1,
            "idle_seconds": None, "parent": os.getpid()}  # fmt: skip
    return Settings(**(base | changes))


def test_it_leaves_when_idle(weights_path, connect_to):
    """After its idle time, and with the model out of memory, it ends by itself."""
    process = EngineProcess(settings(weights_path, idle_seconds=0.1))
    connect_to("127.0.0.1", process.port).request("POST", "/api/chat", {"model": "m", "keep_alive": 0})
    assert process.wait() == "ended with status 0"
    assert not process.is_wanted()
    process.stop()


def test_it_leaves_in_the_middle_of_an_answer(weights_path, connect_to):
    """Stopping while a thread generates ends the process cleanly."""
    process = EngineProcess(settings(weights_path))
    connection = connect_to("127.0.0.1", process.port).connect()
    connection.request("POST", "/api/generate", '{"model": "m", "prompt": "Tell a story"}')
    assert connection.getresponse().readline()
    process.stop()
    assert process._process.returncode == 0
    connection.close()


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are a POSIX thing")
def test_ctrl_c_is_the_parents_business(weights_path):
    """The child is in a session of its own, where the terminal's Ctrl-C does not reach it."""
    process = EngineProcess(settings(weights_path))
    assert os.getsid(process._process.pid) == process._process.pid
    process.stop()
