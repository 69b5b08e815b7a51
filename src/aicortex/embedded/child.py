"""The engine's own process.

It reads its settings as one JSON argument, says one JSON line on stdout (`{"port": …, "pid": …}` or
`{"error": …}`) and serves. It ends when its parent does, or after its idle time; always by `os._exit`,
because leaving while a thread generates is a segmentation fault. Ctrl-C is the parent's business: the child
lives in a session of its own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from threading import Event, Thread
from typing import TextIO

from aicortex.embedded.answering import Model
from aicortex.embedded.api import ApiError
from aicortex.embedded.server import ApiServer
from aicortex.embedded.settings import Settings

_GLANCE = 1.0  # seconds between two looks at the parent and the clock


def main(argument: str) -> None:
    """Serve as the JSON `argument` says; never return."""
    settings = Settings.from_json(argument)
    out = _take_stdout()
    try:
        server = _start(settings)
    except BaseException as exc:
        _say(out, {"error": str(exc) or repr(exc)})
        os._exit(1)
    orphaned = Event()
    Thread(target=_listen_to_parent, args=(server, orphaned), name="parent", daemon=True).start()
    Thread(target=server.serve_forever, name="accept", daemon=True).start()
    _say(out, {"port": server.port, "pid": os.getpid()})
    while not orphaned.wait(_GLANCE):
        # A process forked from the parent may hold the pipe open after the parent's death.
        if os.getppid() != settings.parent or _is_idle(server, settings.idle_seconds):
            break
    os._exit(0)


def _start(settings: Settings) -> ApiServer:
    """Take the port and load the model, so that both failures are told before anybody waits for an answer."""
    model = Model(Path(settings.path), settings.name, digest=settings.digest, threads=settings.threads)
    try:
        server = ApiServer(settings.host, settings.port, model)
    except OSError as exc:
        raise OSError(f"port {settings.port} on {settings.host} cannot be used: {exc.strerror}") from exc
    try:
        with model.resident.engine(None):
            return server
    except ApiError as exc:
        raise RuntimeError(exc.message) from exc


def _take_stdout() -> TextIO:
    """Keep stdout for the one line to the parent; whatever llama.cpp prints goes to the log on stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _say(out: TextIO, message: dict[str, object]) -> None:
    with out:
        out.write(json.dumps(message) + "\n")


def _listen_to_parent(server: ApiServer, orphaned: Event) -> None:
    """Every byte says that the parent still wants this server; the end says that it is gone."""
    while os.read(0, 1024):
        server.touch()
    orphaned.set()


def _is_idle(server: ApiServer, limit: float | None) -> bool:
    """Tell whether to leave: nobody asked for `limit` seconds and no keep_alive holds the model in memory."""
    return limit is not None and server.idle_seconds() > limit and server.model.resident.expires_in() is None
