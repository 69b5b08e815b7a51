"""What is asked, and every way of asking it that the protocol knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


class Request(msgspec.Struct, frozen=True):
    """One HTTP request, without what belongs to the server it goes to."""

    method: str
    path: str
    body: bytes = b""


VERSION = Request("GET", "/api/version")
LOADED = Request("GET", "/api/ps")


class Question(msgspec.Struct, frozen=True):
    """A conversation and how it is to be answered, in Ollama's own words; Any: JSON of the caller's making."""

    model: str
    messages: list[dict[str, Any]]
    think: bool | str | None = None
    options: dict[str, Any] = {}
    keep_alive: str | float | None = None
    tools: list[dict[str, Any]] | None = None
    format: str | dict[str, Any] | None = None

    @property
    def is_repeatable(self) -> bool:
        """Whether the same weights give the same answer again: greedy, or with a seed."""
        seed = self.options.get("seed")
        return self.options.get("temperature") == 0 or (isinstance(seed, int) and seed >= 0)

    @property
    def has_images(self) -> bool:
        """Whether anything in the conversation is a picture."""
        return any(message.get("images") for message in self.messages)

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts at which the answer ends."""
        found = self.options.get("stop") or ()
        return (found,) if isinstance(found, str) else tuple(found)

    @property
    def limit(self) -> int | None:
        """How many tokens the answer may have, if the caller said so."""
        limit = self.options.get("num_predict")
        return limit if isinstance(limit, int) and limit > 0 else None

    def is_full(self, spent: int) -> bool:
        """Whether an answer of so many tokens is as long as it may be."""
        return self.limit is not None and spent >= self.limit

    def behind(self, messages: Sequence[dict[str, Any]]) -> Question:
        """Return the question with more of the conversation; an answer whose beginning was given is one message."""
        last, first = self.messages[-1] if self.messages else {}, messages[0]
        if last.get("role") != "assistant" or first.get("role") != "assistant":
            return msgspec.structs.replace(self, messages=[*self.messages, *messages])
        merged = {**last, **first, "content": last.get("content", "") + first.get("content", "")}
        return msgspec.structs.replace(self, messages=[*self.messages[:-1], merged, *messages[1:]])

    def chat(self) -> Request:
        """Ask from the beginning."""
        return self._post("/api/chat", self._chat_fields())

    def render(self, text: str = "", thinking: str = "") -> Request:
        """Ask how the prompt looks, with the beginning of the answer as its last message if there is one.

        Servers before 0.11.5 do not know the flag and generate: one token then, which says nothing. How long the model
        is kept is left to the request that follows: a `keep_alive` of 0 would unload it before that.
        """
        fields = self._chat_fields(text, thinking)
        fields.pop("keep_alive", None)
        options = {**self.options, "num_predict": 1}
        return self._post("/api/chat", fields, _debug_render_only=True, options=options, stream=False)

    def raw(self, prompt: str, *, spent: int) -> Request:
        """Ask to go on behind this prompt, untouched; `spent` tokens of the limit are used up.

        A BOS that stands in the rendered prompt stays: Ollama hands the chat's own prompt and a raw one to the runner
        by the same call (server/routes.go, `Completion`), so whatever it adds, it adds to both.
        """
        fields = {"model": self.model, "prompt": prompt, "raw": True, "think": False}
        return self._post("/api/generate", {**fields, **self._settings(spent)})

    def prefill(self, text: str, thinking: str = "", *, spent: int) -> Request:
        """Ask to go on behind the beginning of the answer, given as its last message."""
        return self._post("/api/chat", {**self._chat_fields(text, thinking), **self._settings(spent)})

    def _chat_fields(self, text: str = "", thinking: str = "") -> dict[str, Any]:
        fields: dict[str, Any] = msgspec.structs.asdict(self)
        fields["messages"] = self._messages(text, thinking)
        return {name: value for name, value in fields.items() if value is not None and value != {}}

    def _messages(self, text: str, thinking: str) -> list[dict[str, Any]]:
        """Return the conversation with the beginning of the answer; neighbours of one role would be merged."""
        if not text and not thinking:
            return self.messages
        begun = {"role": "assistant", "content": text, **({"thinking": thinking} if thinking else {})}
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant":
            return [*self.messages, begun]
        return [*self.messages[:-1], {**last, **begun, "content": last.get("content", "") + text}]

    def _settings(self, spent: int) -> dict[str, Any]:
        options = dict(self.options)
        if self.limit is not None:
            options["num_predict"] = max(self.limit - spent, 1)
        chosen = {"options": options} if options else {}
        return chosen if self.keep_alive is None else {**chosen, "keep_alive": self.keep_alive}

    def _post(self, path: str, fields: dict[str, Any], **more: Any) -> Request:  # Any: JSON
        return Request("POST", path, msgspec.json.encode({**fields, "stream": True, **more}))
