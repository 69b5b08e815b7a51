"""A thin skin over xllamacpp: load, render, count, run, close.

Only ever inside the child process (`aicortex.embedded.child`): llama.cpp ends the process when it fails badly.

The settings were measured. One thread, because on a busy machine two threads wait for each other and yield 1-5 tokens a
second. Micro-batches of 32, because with them a prompt evaluated at once gives nearly always the same text as one
generated token by token, which continuing a broken answer needs (23 of 24 cuts; 21 with an 8-bit cache).
Batches of 32, because a cancellation during prompt evaluation waits for the end of one or two. No cache outside the
slots, whose default is 8 GiB.
"""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aicortex.embedded.api import ApiError
from aicortex.embedded.replies import read_chunk
from aicortex.errors import EmbeddedEngineError

CONTEXT_LENGTH = 4096  # tokens per slot, Ollama's usual num_ctx
SLOTS = 4
_ONLY_ERRORS = 1  # llama.cpp's verbosity
_PORT_TIMEOUT = 60.0  # seconds for rendering or counting; both take milliseconds


class Engine:
    """One loaded model with `SLOTS` slots of `context_length` tokens. Its methods may be called from many threads."""

    def __init__(self, path: Path, *, context_length: int = CONTEXT_LENGTH, threads: int = 1):
        """Load the weights and warm up, 0.5-1 s. Raise EmbeddedEngineError."""
        self._key = secrets.token_hex(16)
        self._server = _start(path, context_length, threads, self._key)
        self._address = urlsplit(self._server.listening_address).netloc
        self._schemas: dict[str, bool] = {}  # what can_follow found out, by the JSON of what binds
        # Destroying a server that never ran can wait for ever (2 of 25 times); and the first request is the
        # slowest.
        self.run("a", {"n_predict": 1}, lambda _: False)

    def render(self, messages: list[dict[str, str]]) -> str:
        """Return the prompt that the model's own template makes of `messages`. Raise ApiError."""
        return str(self._ask("/apply-template", {"messages": messages})["prompt"])

    def count_tokens(self, prompt: str) -> int:
        """Return the length of `prompt` in tokens. Raise ApiError."""
        reply = self._ask("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})
        return len(reply["tokens"])

    def run(self, prompt: str, parameters: dict[str, Any], on_chunk: Callable[[dict[str, Any]], bool]) -> None:
        """Generate until the end, calling `on_chunk` with every chunk; a true return or an exception cancels.

        Chunks without text report the progress of prompt evaluation. An error of the engine is a chunk with
        `error`. An exception of `on_chunk` is raised here.
        """
        failure: list[BaseException] = []

        def guarded(chunk: dict[str, Any]) -> bool:
            try:
                return on_chunk(chunk)
            except BaseException as exc:  # the binding would swallow it and go on
                failure.append(exc)
                return True

        # return_progress also lets a cancellation through while the prompt is evaluated.
        request = parameters | {"prompt": prompt, "stream": True, "return_progress": True}
        self._server.handle_completions(request, guarded)
        if failure:
            raise failure[0]

    def can_follow(self, binding: dict[str, Any]) -> bool:
        """Tell whether the engine can bind an answer of JSON to this `json_schema` or `grammar`, a parameter of `run`.

        It says nothing about a schema it cannot compile and answers freely. So it is tempted: with a heavy bias it
        writes `x`, which begins no JSON, unless the schema holds it back. One token, 20-40 ms.
        """
        key = json.dumps(binding)
        if key not in self._schemas:
            probe = {"n_predict": 1, "temperature": 0, "logit_bias": [["x", 100.0]]} | binding
            texts: list[str] = []

            def collect(chunk: dict[str, Any]) -> bool:
                texts.append(read_chunk(chunk).text)
                return False

            self.run("a", probe, collect)
            self._schemas[key] = not "".join(texts).startswith("x")
        return self._schemas[key]

    def close(self) -> None:
        """Free the model's memory. Nothing may be running."""
        del self._server

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post to the engine's own port: the only place where it renders and tokenises."""
        connection = http.client.HTTPConnection(self._address, timeout=_PORT_TIMEOUT)
        try:
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body).encode(), headers)
            response = connection.getresponse()
            reply = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise ApiError(500, f"the engine does not answer: {exc}") from exc
        finally:
            connection.close()
        if response.status != 200:
            error = reply.get("error", {})
            raise ApiError(response.status, str(error.get("message", "the engine refused the request")))
        return dict(reply)


def _start(path: Path, context_length: int, threads: int, key: str) -> Any:  # Any: the binding has no types
    try:
        import xllamacpp  # type: ignore[import-untyped]
    except ImportError as exc:
        raise EmbeddedEngineError(_explained(exc)) from exc
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_parallel = SLOTS
    settings.n_ctx = SLOTS * context_length
    settings.n_batch = 32
    settings.n_ubatch = 32
    settings.kv_unified = False
    settings.cache_ram_mib = 0
    settings.cpuparams.n_threads = threads
    settings.cpuparams_batch.n_threads = threads
    settings.warmup = False  # one token of our own does it
    settings.verbosity = _ONLY_ERRORS
    # Its port has no authentication by default and lets every web page in: a key only we know, no page, no
    # origins.
    settings.hostnames = ["127.0.0.1"]
    settings.port = 0
    settings.api_keys = [key]
    settings.cors_origins = "http://127.0.0.1"
    settings.ui = False
    settings.endpoint_slots = False
    settings.n_threads_http = 2
    try:
        return xllamacpp.Server(settings)
    except (RuntimeError, ValueError) as exc:
        raise EmbeddedEngineError(f"llama.cpp cannot load {path}: {exc}") from exc


def _explained(error: ImportError) -> str:
    """Return what to do about a binding that cannot be imported."""
    if "libgomp" in str(error):
        return "llama.cpp needs the system library libgomp.so.1: apt install libgomp1, or dnf install libgomp"
    return f"xllamacpp cannot be imported ({error}): pip install 'aicortex[embedded]'"
