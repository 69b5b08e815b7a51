"""From a task to an answer, over an engine that follows a script."""

import json
from hashlib import sha256
from threading import Thread

import pytest

from aicortex.embedded.answering import Model
from aicortex.embedded.resident import Resident
from aicortex.embedded.server import ApiServer
from aicortex.embedded.slots import Slots


class ScriptedEngine:
    """Stands where llama.cpp would: says the chunks of its script, and raises those that are exceptions."""

    def __init__(self, *script):
        self.script = script

    def render(self, _):
        return "rendered"

    def run(self, _prompt, _parameters, on_chunk):
        for chunk in self.script:
            if isinstance(chunk, Exception):
                raise chunk
            if on_chunk(chunk):
                return

    def close(self):
        """Nothing to free."""


def says(text, reason=None):
    """Return one chunk of the engine."""
    chunk = {"choices": [{"text": text, "finish_reason": reason}]}
    if reason:
        chunk |= {"usage": {"prompt_tokens": 1}, "timings": {"prompt_ms": 1, "predicted_n": 2, "predicted_ms": 1}}
    return chunk


@pytest.fixture
def serve(weights_path, connect_to):
    """Start servers over scripted engines; returns their clients."""
    servers = []

    def start(*script, slots=None):
        model = Model(weights_path, "smollm2:135m", digest="d")
        model.resident = Resident(lambda: ScriptedEngine(*script))
        model.slots = slots or model.slots
        servers.append(ApiServer("127.0.0.1", 0, model))
        Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return connect_to("127.0.0.1", servers[-1].port)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_failure_in_the_middle_is_a_last_line(serve):
    """After the first token an error of the engine is an in-band line, without `done`."""
    client = serve(says("one"), {"error": {"code": 500, "message": "slot lost"}})
    first, last = client.chat("x")
    assert first["message"]["content"] == "one"
    assert last == {"error": "slot lost"}


def test_an_unforeseen_failure_is_told_too(serve):
    """Whatever the binding raises reaches the client, before the stream with a status and in it as a line."""
    assert serve(says("one"), MemoryError("gone")).chat("x")[-1] == {"error": "MemoryError: gone"}
    status, [reply] = serve(RuntimeError("no slot")).post("/api/generate", prompt="x")
    assert (status, reply) == (500, {"error": "RuntimeError: no slot"})


def test_an_answer_without_an_end_is_no_success(serve):
    """When the engine just stops, the stream ends in an error and not in `done`."""
    assert serve(says("one")).chat("x")[-1] == {"error": "the engine broke the answer off"}


def test_a_failure_without_streaming_has_a_status(serve):
    """Text collected before the failure does not make it a success."""
    client = serve(says("one"), {"error": {"code": 500, "message": "slot lost"}})
    status, lines = client.post("/api/chat", messages=[{"role": "user", "content": "x"}], stream=False)
    assert (status, lines) == (500, [{"error": "slot lost"}])


def test_a_cut_character_is_not_shown(serve):
    """U+FFFD at the token limit reaches neither a stream nor a whole reply."""
    client = serve(says("caf"), says("\ufffd"), says("", "length"))
    assert client.text("x") == "caf"
    _, [whole] = client.post("/api/generate", prompt="x", stream=False)
    assert whole["response"] == "caf"


def test_a_full_queue_is_busy(serve):
    """Beyond slots and queue the reply is 503 in Ollama's words."""
    client = serve(says("one", "stop"), slots=Slots(0, queue_limit=0))
    status, _, body = client.request("POST", "/api/generate", {"model": "smollm2:135m", "prompt": "x"})
    assert status == 503
    assert json.loads(body)["error"] == "server busy, please try again.  maximum pending requests exceeded"


def test_the_digest_is_the_files_own(weights_path):
    """Without a known digest the file is hashed at the first need."""
    model = Model(weights_path, "mine")
    assert model.digest == sha256(weights_path.read_bytes()).hexdigest()
    assert model.tags()["models"][0]["name"] == "mine"
    assert model.running() == {"models": []}
