"""The embedded engine: one more Ollama server, for machines without one.

A child process on loopback speaks Ollama's HTTP API over llama.cpp. It is started at the first need,
shared by the whole process, and ends with it. Importing this package loads none of its dependencies.
"""

from __future__ import annotations

import os
import re
import sys
from threading import Lock
from typing import TYPE_CHECKING

from aicortex.errors import EmbeddedEngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aicortex.embedded.process import EngineProcess

__all__ = ["address_if_running", "discard", "ensure_running", "is_available", "model_name", "serve", "stop"]

# As in weights.py, which this module must not import before the engine is wanted.
_MODEL_VARIABLE = "AICORTEX_EMBEDDED_MODEL"
_THREADS_VARIABLE = "AICORTEX_EMBEDDED_THREADS"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NAME = re.compile(  # of a model: [host[:port]/][namespace/]model[:tag]
    r"(?:[a-z0-9][\w.-]*(?::[0-9]+)?/)?(?:\w[\w.-]*/)?\w[\w.-]*(?::\w[\w.-]*)?", re.ASCII | re.IGNORECASE
)
_IDLE_SECONDS = 600.0  # after which the engine of a process leaves by itself; the next call starts another

NOT_INSTALLED = (
    "no Ollama answers here and the embedded engine is not installed: start Ollama, name servers, "
    "or pip install 'aicortex[embedded]'"
)

_lock = Lock()
_running: EngineProcess | None = None
_stops_at_exit = False


def ensure_running(*, quiet: bool = False) -> tuple[str, int]:
    """Return host and port of this process's engine, starting it at the first call or when it has gone.

    The first call on a machine fetches the weights (92.9 MB) and shows that on stderr unless `quiet`;
    otherwise the start takes about a second. Calls and threads share one engine; a forked child starts its
    own. Raise EmbeddedEngineError.
    """
    global _running, _stops_at_exit
    with _lock:
        if _running is not None and not _running.is_wanted():
            _running.stop()
            _running = None
        if _running is None:
            _running = _start("127.0.0.1", 0, model_name(), _IDLE_SECONDS, quiet=quiet)
            if not _stops_at_exit:
                import atexit

                atexit.register(stop)
                _stops_at_exit = True
        return _running.host, _running.port


def address_if_running() -> tuple[str, int] | None:
    """Return host and port of this process's engine if it runs; never waits."""
    if not _lock.acquire(blocking=False):
        return None  # another thread starts or ends it
    try:
        return (_running.host, _running.port) if _running is not None and _running.is_wanted() else None
    finally:
        _lock.release()


def model_name() -> str:
    """Return the name the engine serves: `smollm2:135m`, or one made of the file AICORTEX_EMBEDDED_MODEL names."""
    own = os.environ.get(_MODEL_VARIABLE)
    if not own:
        return "smollm2:135m"
    stem = os.path.splitext(os.path.basename(own))[0].lower()
    return (re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-") or "model") + ":latest"


def is_available() -> bool:
    """Tell whether the extra `embedded` is installed."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("xllamacpp", "filelock"))


def stop() -> None:
    """End this process's engine, if it runs one."""
    _end(None)


def discard(port: int) -> None:
    """End the engine that listens at `port`, if this process still runs it: another thread may have replaced it."""
    _end(port)


def _tell(url: str, name: str) -> None:
    print(f"Serving {name} at {url} as Ollama does. Ctrl-C ends it.\nUse it: OLLAMA_HOST={url}", flush=True)


def serve(
    host: str = "127.0.0.1",
    port: int = 11434,
    name: str | None = None,
    *,
    announce: Callable[[str, str], None] = _tell,
) -> int:
    """Serve the engine in the foreground until Ctrl-C or SIGTERM; return the exit status.

    `name` is the one name the model is reported and accepted under. Only loopback addresses are taken: the
    engine asks nobody for a key. `announce` is called with URL and name once it answers. Raise ValueError for what is
    no model name, and EmbeddedEngineError, for a port that is taken too.
    """
    import signal

    if host not in _LOOPBACK:
        raise EmbeddedEngineError(f"the embedded engine listens on loopback only, not on {host}: it has no API key")
    if name is None:
        name = model_name()
    elif not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a model name: it looks like llama3.2 or library/llama3.2:3b")
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # one way out for both
    process = None
    try:
        process = _start("127.0.0.1" if host == "localhost" else host, port, name, None, quiet=False)
        url = f"http://{f'[{host}]' if ':' in host else host}:{process.port}"
        announce(url, name)
        print(f"aicortex: the engine {process.wait()}\n{process.last_words()}".rstrip(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        if process is not None:
            process.stop()
        signal.signal(signal.SIGTERM, previous)


def _end(port: int | None) -> None:
    """End this process's engine if it listens at `port`, or wherever it listens."""
    global _running
    with _lock:
        if _running is not None and port in (None, _running.port):
            _running.stop()
            _running = None


def _start(host: str, port: int, name: str, idle_seconds: float | None, *, quiet: bool) -> EngineProcess:
    if not is_available():
        raise EmbeddedEngineError(NOT_INSTALLED)
    from aicortex.embedded.process import EngineProcess
    from aicortex.embedded.settings import Settings
    from aicortex.embedded.weights import SMOLLM2, ensure_weights

    threads = _threads()
    path = ensure_weights((lambda *_: None) if quiet else None)
    digest = "" if os.environ.get(_MODEL_VARIABLE) else SMOLLM2.sha256
    return EngineProcess(Settings(str(path), name, digest, host, port, threads, idle_seconds, os.getpid()))


def _threads() -> int:
    value = os.environ.get(_THREADS_VARIABLE, "1")
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise EmbeddedEngineError(f"{_THREADS_VARIABLE} is a number of threads from 1 on, not {value!r}")
    return int(value)


def _forget_after_fork() -> None:
    """Leave the parent's engine to the parent; the old lock may be held by a thread that does not exist here."""
    global _lock, _running
    _lock = Lock()
    if _running is not None:
        _running.disown()
        _running = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
