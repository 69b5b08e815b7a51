"""From a task to an answer: takes a slot, lends the engine, runs it, and hands out Ollama's objects one by one."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from aicortex.embedded import engine, gguf
from aicortex.embedded.api import ApiError, Served, Task
from aicortex.embedded.calls import read_call
from aicortex.embedded.replies import EngineChunk, Reply, read_chunk, too_long
from aicortex.embedded.resident import Resident
from aicortex.embedded.slots import ClientGoneError, Slots
from aicortex.embedded.weights import SMOLLM2, file_digest

_FOR_EVER = 100 * 365 * 86400.0  # seconds; the date a client sees for a model that is never unloaded


class Model:
    """One GGUF file under one name, and everything the API tells about it."""

    def __init__(self, path: Path, name: str, *, digest: str = "", threads: int = 1):
        """Read the file's head. `digest` is its SHA-256 where it is known. Raise ValueError, OSError."""
        self._path = path
        self._file = path.stat()
        self._given_digest = digest
        self._header = gguf.read_header(path)
        trained = self._header.context_length or engine.CONTEXT_LENGTH
        length = min(engine.CONTEXT_LENGTH, trained)
        parameters = SMOLLM2.parameters if digest == SMOLLM2.sha256 else ()
        self.served = Served(name, self._header.control_tokens, length, parameters)
        self.resident = Resident(lambda: engine.Engine(path, context_length=length, threads=threads))
        self.slots = Slots(engine.SLOTS)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the weights in hexadecimal, computed at the first need."""
        return self._given_digest or file_digest(self._path)

    def tags(self) -> dict[str, Any]:
        """Return the reply of `GET /api/tags`."""
        modified = datetime.fromtimestamp(self._file.st_mtime, timezone.utc)
        return {"models": [self._entry() | {"modified_at": modified.isoformat()}]}

    def running(self) -> dict[str, Any]:
        """Return the reply of `GET /api/ps`: the model while it is in memory."""
        seconds = self.resident.expires_in()
        if seconds is None:
            return {"models": []}
        expires = datetime.now(timezone.utc) + timedelta(seconds=min(seconds, _FOR_EVER))
        more = {
            "expires_at": expires.isoformat(),
            "size_vram": 0,
            "context_length": self.served.context_length,
        }
        return {"models": [self._entry() | more]}

    def show(self) -> dict[str, Any]:
        """Return the reply of `POST /api/show`."""
        metadata = self._header.metadata
        template = metadata.get("tokenizer.chat_template", "")
        model_info = {key: value for key, value in metadata.items() if key != "tokenizer.chat_template"}
        return {
            "modified_at": self.tags()["models"][0]["modified_at"],
            "details": self._details(),
            "template": template,
            "parameters": "\n".join(f"{name:<30} {value:g}" for name, value in self.served.parameters),
            "model_info": {
                **model_info,
                f"{self._header.architecture}.context_length": self.served.context_length,  # clients ask for as much
                "general.parameter_count": self._header.parameter_count,
            },
            "capabilities": ["completion", "tools"],
        }

    def _entry(self) -> dict[str, Any]:
        name = self.served.name
        return {
            "name": name,
            "model": name,
            "size": self._file.st_size,
            "digest": self.digest,
            "details": self._details(),
        }

    def _details(self) -> dict[str, Any]:
        family = self._header.architecture
        return {
            "parent_model": "",
            "format": "gguf",
            "family": family,
            "families": [family],
            "parameter_size": self._header.parameter_size,
            "quantization_level": self._header.quantization,
        }


def answer(model: Model, task: Task, send: Callable[[dict[str, Any]], None], is_gone: Callable[[], bool]) -> None:
    """Carry out `task`: `send` gets one object per piece of text and then the one that completes the answer.

    Raise ApiError, also in the middle; ClientGoneError when `is_gone()`, which cancels the generation.
    """
    started = time.monotonic_ns()
    reply = Reply(task, _now)
    if task.action == "unload":
        model.resident.unload()
        send(reply.last("unload"))
        return
    with model.resident.engine(task.keep_alive) as running:
        loaded = time.monotonic_ns()
        if task.action == "load":
            send(reply.last("load"))
            return
        prompt = task.prompt if task.messages is None else running.render(task.messages)
        if task.action == "render":
            send(reply.rendered(prompt))
            return
        turn = _Turn(running, task, model.served.context_length, reply, send, is_gone)
        with model.slots.taken(is_gone):
            end = turn.choose() or turn.speak(prompt)
    metrics = {
        "total_duration": time.monotonic_ns() - started,
        "load_duration": loaded - started,
        "prompt_eval_count": end.prompt_tokens,
        "prompt_eval_duration": int(end.prompt_ms * 1e6),
        "eval_count": end.tokens,
        "eval_duration": int(end.tokens_ms * 1e6),
    }
    send(reply.last(end.finish_reason or "stop", **metrics))


@dataclass(frozen=True)
class _Turn:
    """The model's turn of one task, in a slot that is taken. Its methods return the engine's last chunk."""

    running: engine.Engine
    task: Task
    slot_length: int
    reply: Reply
    send: Callable[[dict[str, Any]], None]
    is_gone: Callable[[], bool]

    def choose(self) -> EngineChunk | None:
        """Let the model choose a call and send it; return None when it chose none, or has no choice."""
        choice = self.task.choice
        if choice is None:
            return None
        if not self.running.can_follow({"grammar": choice.parameters["grammar"]}):
            raise ApiError(400, "invalid tools: the engine cannot follow the parameters' JSON schema")
        texts: list[str] = []
        end = self._run(self.running.render(choice.prompt), choice.parameters, lambda chunk: texts.append(chunk.text))
        if end.finish_reason == "length":
            return end  # half a call is none, and no text either
        call = read_call("".join(texts), choice.conversation, f"call_{secrets.token_hex(4)}")
        if call is None:
            return None
        self.send(self.reply.call(call))
        return end

    def speak(self, prompt: str) -> EngineChunk:
        """Generate the text behind `prompt` and send its pieces."""
        schema = self.task.parameters.get("json_schema")
        if schema is not None and not self.running.can_follow({"json_schema": schema}):
            raise ApiError(400, "invalid format: the engine cannot follow this JSON schema")

        def show(chunk: EngineChunk) -> None:
            text = self.reply.ready_text(chunk)
            if text:
                self.send(self.reply.text(text))

        return self._run(prompt, self.task.parameters, show)

    def _run(self, prompt: str, parameters: dict[str, Any], take: Callable[[EngineChunk], None]) -> EngineChunk:
        end: EngineChunk | None = None

        def on_chunk(raw: dict[str, Any]) -> bool:
            nonlocal end
            if self.is_gone():
                raise ClientGoneError
            chunk = read_chunk(raw)
            take(chunk)
            if chunk.finish_reason:
                end = chunk
            return False

        self.running.run(prompt, self._fitted(prompt, parameters), on_chunk)
        if end is None:  # what merely stopped is not complete
            raise ApiError(500, "the engine broke the answer off")
        return end

    def _fitted(self, prompt: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters, the number of tokens bounded by a num_ctx below the slot's, which bounds itself."""
        if self.task.num_ctx == self.slot_length:
            return parameters
        used = self.running.count_tokens(prompt)
        if used >= self.task.num_ctx:
            raise too_long(used, self.task.num_ctx)
        room, wanted = self.task.num_ctx - used, parameters["n_predict"]
        return parameters | {"n_predict": room if wanted < 0 else min(room, wanted)}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
