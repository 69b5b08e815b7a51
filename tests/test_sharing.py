"""Several processes of one user, and what none of them may ever show."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.colours import Chat

from aicortex import AllServersFailedError, CredentialError, list_model_servers
from aicortex.board import BOARD
from aicortex.catalogue import list_servers
from aicortex.fleet import find_fleet
from aicortex.registry.credentials import entry_of
from aicortex.registry.paths import data_path
from aicortex.registry.store import Registry
from aicortex.registry.transfer import export_entries
from aicortex.testing import FakeServer, InBandError, Status
from aicortex.tools import refresh

SECRET = "sesame-open-4711"
# Refreshes and streams in turn; the arguments say in which `apply` to die, and how many statements after its beginning.
WORKER = """
import os, signal, sqlite3, sys
from aicortex import chat
from aicortex.registry import store
from aicortex.tools import refresh

dies_in, dies_at = int(sys.argv[1]), int(sys.argv[2])
real = store.sqlite3.connect

def connect(*arguments, **more):
    connection = real(*arguments, **more)
    connection.set_trace_callback(count)
    return connection

statements = None

def count(statement):
    global statements
    if statement == "BEGIN IMMEDIATE":
        statements = 0
    elif statements is not None:
        statements += 1
        if turn == dies_in and statements == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

turn = -1
for turn in range(8):
    store.sqlite3.connect = connect
    statements = None
    report = refresh()
    store.sqlite3.connect = real
    assert (report.answered, report.models) == (3, 2), report
    assert chat("Hi", model="m1") == "Rivers flow."
print("whole")
"""


@pytest.fixture
def fleet() -> Iterator[list[FakeServer]]:
    """Three registered servers with two models."""
    servers = [FakeServer(answer="Rivers flow.", models=["m1", "m2"]) for _ in range(3)]
    with Registry() as registry:
        for server in servers:
            server.start()
            registry.add(entry_of(server.url))
    yield servers
    for server in servers:
        server.stop()


def test_two_processes_at_once_and_one_that_is_killed_while_it_writes(fleet: list[FakeServer]) -> None:
    """Two processes refresh and stream; others die in the middle of `apply`; the registry is whole all the time."""
    start = [sys.executable, "-c", WORKER]
    steady = [subprocess.Popen([*start, "-1", "0"], stdout=subprocess.PIPE, encoding="utf-8") for _ in range(2)]
    for at in (3, 8, 14):  # behind what was deleted, between two servers, before the end
        assert subprocess.run([*start, "1", str(at)], timeout=60, check=False).returncode == -signal.SIGKILL
        with Registry() as registry:
            assert {len(entries) for entries in registry.snapshot().models.values()} == {2}
    assert [(process.communicate(timeout=60)[0], process.returncode) for process in steady] == [("whole\n", 0)] * 2
    connection = sqlite3.connect(data_path())
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    with Registry() as registry:
        models = registry.snapshot().models
    assert {url: sorted(entry.name for entry in entries) for url, entries in models.items()} == {
        server.url: ["m1:latest", "m2:latest"] for server in fleet
    }


def test_no_secret_is_kept_or_shown(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A key is in the requests and nowhere else: no file, log, `repr`, error, event or export, whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("DESK_KEY", SECRET)
    shown: list[object] = []
    echo = {"error": f"the key {SECRET} is wrong"}
    tags = {"models": [{"name": "fake:latest", "digest": SECRET, "details": {"family": SECRET}}]}
    wanted = {"Authorization": f"Bearer {SECRET}"}
    with (
        FakeServer(
            *(InBandError(echo["error"]), Status(500, echo)),
            answer="Rivers flow.",
            require=wanted,
            paths={"/api/tags": Status(200, tags), "/api/version": Status(200, {"version": SECRET})},
        ) as one,
        FakeServer(everything=Status(403, echo)) as two,
        Registry() as registry,
    ):
        registry.add(entry_of(one.url, name="desk", api_key="env:DESK_KEY"))
        registry.add(entry_of(two.url, name="rack", headers={"X-Key": "env:DESK_KEY"}))
        shown += [registry, registry.snapshot(), refresh().to_dict(), find_fleet(), list_servers()]
        for _ in range(3):
            stream = chat("Hi", model="fake", stream=True, timeout=5)
            try:
                shown.append(stream.text())
            except AllServersFailedError as error:
                shown += [error, error.attempts]
            shown += [stream, *stream.events]
        shown += [list_model_servers("fake"), BOARD.healths(), export_entries(registry.snapshot().servers)]
        monkeypatch.delenv("DESK_KEY")
        with pytest.raises(CredentialError) as raised:
            chat("Hi", model="fake")
        shown.append(raised.value)
        with pytest.raises(ValueError, match="a secret is named") as refused:
            entry_of("http://lab:11434", api_key=SECRET)
        shown.append(refused.value)
        BOARD.close()
        environment = {**os.environ, "DESK_KEY": SECRET}
        for words in (
            ["servers", "--json"],
            ["servers", "export"],
            ["refresh", "--json"],
            ["doctor"],
            ["chat", "--json", "Hi"],
        ):
            run = subprocess.run(
                [sys.executable, "-m", "aicortex", *words],
                env=environment,
                capture_output=True,
                timeout=60,
                check=False,
            )
            assert run.returncode in (0, 1)
            assert run.stdout
            shown += [run.stdout.decode(), run.stderr.decode()]
    assert any(request.headers.get("authorization") == f"Bearer {SECRET}" for request in one.requests)
    written = b"".join(path.read_bytes() for path in Path(data_path()).parent.iterdir())
    assert b"DESK_KEY" in written
    assert SECRET.encode() not in written
    assert "env:DESK_KEY" in str(shown)
    assert SECRET not in "\n".join(map(repr, shown)) + "\n".join(map(str, shown)) + json.dumps(
        [str(each) for each in shown]
    )
    assert SECRET not in caplog.text + "".join(capfd.readouterr())
