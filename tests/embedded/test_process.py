"""The parent's hold on one engine process."""

import os
import socket
from dataclasses import replace

import pytest

from aicortex.embedded.process import EngineProcess
from aicortex.embedded.settings import Settings
from aicortex.errors import EmbeddedEngineError


@pytest.fixture
def settings(weights_path):
    """Settings of an engine on any port."""
    return Settings(str(weights_path), "smollm2:135m", "", "127.0.0.1", 0, 1, None, os.getpid())


def test_it_answers_until_it_is_stopped(settings, connect_to):
    """A started process answers, and after stop it is neither running nor a zombie."""
    process = EngineProcess(settings)
    assert process.is_wanted()
    assert connect_to("127.0.0.1", process.port).get("/api/version")
    process.stop()
    assert process._process.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        connect_to("127.0.0.1", process.port).get("/api/version")


def test_a_killed_process_is_noticed(settings):
    """A process that died is not wanted any more, and stopping it is harmless."""
    process = EngineProcess(settings)
    process._log.write(b"unrelated words\n")
    process._process.kill()
    assert process.wait() == "was killed (signal 9)"
    assert process.last_words() == ""
    assert not process.is_wanted()
    process.stop()


def test_a_taken_port_is_explained(settings):
    """The error names host and port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            EmbeddedEngineError, match=f"port {port} on 127.0.0.1 cannot be used: Address already in use"
        ):
            EngineProcess(replace(settings, port=port))


def test_damaged_weights_are_explained(settings, tmp_path):
    """A file that llama.cpp cannot load is named."""
    path = tmp_path / "cut.gguf"
    with open(settings.path, "rb") as whole:
        path.write_bytes(whole.read(3_000_000))
    with pytest.raises(EmbeddedEngineError, match=r"the embedded engine cannot start: (.|\n)*cut\.gguf"):
        EngineProcess(replace(settings, path=str(path)))


def test_ipv6_works_as_well(settings, connect_to):
    """The engine can listen on ::1."""
    process = EngineProcess(replace(settings, host="::1"))
    assert connect_to("::1", process.port).get("/api/version")
    process.stop()
