"""The parent's hold on one engine process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Timer
from typing import IO, Any

from aicortex.embedded.settings import Settings
from aicortex.errors import EmbeddedEngineError

_START_LIMIT = 300.0  # seconds; a large model of the user's own on a slow disk takes its time
_STOP_LIMIT = 2.0  # seconds between asking and killing
_LAST_LINES = 8  # of the engine's log, in an error
_KILLED = (-9, -15)  # SIGKILL and SIGTERM come from outside; other signals are crashes, and the log says why

# Not `-m`: that would put the working directory before everything else on the child's path.
_PROGRAM = (
    "import sys; a = sys.argv; import json; sys.path[:] = json.loads(a[1]); "
    "from aicortex.embedded.child import main; main(a[2])"
)


class EngineProcess:
    """A running child; `host` and `port` are where it listens."""

    def __init__(self, settings: Settings):
        """Start it and wait until it can answer, about a second. Raise EmbeddedEngineError."""
        self.host = settings.host
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = self._spawn(settings)
        self.port = 0
        try:
            self.port = self._wait_ready()
        finally:
            if not self.port:
                self.kill()

    def is_wanted(self) -> bool:
        """Tell the child that it is still wanted, which restarts its idle time; False when it is gone."""
        assert self._process.stdin is not None  # asked for in _spawn
        if self._process.poll() is not None:
            return False
        try:
            self._process.stdin.write(b".")
        except OSError:
            return False
        return True

    def wait(self) -> str:
        """Wait for its end; return how it ended: "was killed (signal 9)"."""
        status = self._process.wait()
        return f"was killed (signal {-status})" if status < 0 else f"ended with status {status}"

    def stop(self) -> None:
        """End it: it leaves when its input ends, and is killed when it does not. No zombie stays."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self.stop()

    def disown(self) -> None:
        """Forget the process without touching it: a forked child does this with what is its parent's."""
        assert self._process.stdin is not None
        self._process.stdin.close()  # this copy would keep the pipe open after the parent's death
        self._log.close()
        self._process.returncode = 0  # not ours to wait for

    def last_words(self) -> str:
        """Return the last lines of its log; none when somebody killed it, which has nothing to do with them."""
        if self._process.poll() in _KILLED:
            return ""
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return "\n".join(lines[-_LAST_LINES:])

    def _spawn(self, settings: Settings) -> subprocess.Popen[bytes]:
        if not sys.executable:
            raise EmbeddedEngineError("the embedded engine needs a Python interpreter to run; sys.executable is empty")
        root = str(Path(__file__).resolve().parents[2])
        path = [os.path.abspath(entry) for entry in sys.path if entry] + [root]
        try:
            return subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(path), settings.to_json()],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, bufsize=0, **_apart(),
            )  # fmt: skip
        except OSError as exc:
            raise EmbeddedEngineError(f"the embedded engine's process cannot be started: {exc}") from exc

    def _wait_ready(self) -> int:
        """Read the child's one line; return its port."""
        assert self._process.stdout is not None  # asked for in _spawn
        limit = Timer(_START_LIMIT, self._process.kill)
        limit.daemon = True
        limit.start()
        try:
            with self._process.stdout as stdout:
                line = b"".join(iter(lambda: stdout.read(4096), b""))
        finally:
            limit.cancel()
        try:
            message = json.loads(line)
        except ValueError:
            message = {"error": f"its process {self.wait()}"}
        if "error" in message:
            raise EmbeddedEngineError(self._explained(message["error"]))
        return int(message["port"])

    def _explained(self, problem: str) -> str:
        words = self.last_words()
        return f"the embedded engine cannot start: {problem}" + (f"\nIts last words:\n{words}" if words else "")


def _apart() -> dict[str, Any]:
    """Return the arguments that keep the terminal's Ctrl-C from the child."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}
