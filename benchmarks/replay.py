"""A server that replays prepared answers in Ollama's shape, so that a benchmark measures the client alone.

Every answer is rendered before the first request. The model's name chooses it: `flood-20000:latest` is 20,000
tokens in one `sendall`, `paced-2000:latest` is 2,000 tokens, one every two milliseconds on an absolute
schedule (a late chunk does not delay those behind it). One HTTP chunk carries one object, as Ollama flushes
them; the headers travel with the first. Run as `python -m benchmarks.replay MODEL...` it prints its port and
lives until its standard input ends.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY, create_server, socket

ROOT = Path(__file__).resolve().parents[1]
PACE = 0.002  # seconds between two tokens: 500 a second
TOKENS = (
    " The", " black", " hole", " forms", " when", " a", " massive", " star", " runs", " out", " of", ",",
    " and", " gravity", " over", "comes", " the", " pressure", " that", " held", " it", " up", ".", "\n\n",
    "It", ' "', "coll", "apses", '"', " to", " a", " radius", " of", " 10", "⁶", " km", " or", " less", ";",
)  # fmt: skip
ANSWER_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
    b"Date: Sun, 22 Nov 2026 10:00:00 GMT\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
DETAILS = {
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "3.2B",
    "quantization_level": "Q4_K_M",
}


class Answer:
    """One prepared answer: the `texts` of its tokens, the `writes` that carry it, if they are `paced`."""

    def __init__(self, model: str) -> None:
        """Render the answer of `model`, named `flood-N` or `paced-N`; raise ValueError for any other name."""
        mode, _, count = model.partition(":")[0].partition("-")
        if mode not in ("flood", "paced"):
            raise ValueError(f"the replay server knows flood-N and paced-N, not {model!r}")
        self.paced = mode == "paced"
        self.texts = list(itertools.islice(itertools.cycle(TOKENS), int(count)))
        chunks = [token_chunk(model, index, text) for index, text in enumerate(self.texts)]
        chunks.append(done_chunk(model, len(chunks)) + LAST_CHUNK)
        chunks[0] = ANSWER_HEAD + chunks[0]
        self.writes = chunks if self.paced else [b"".join(chunks)]

    @property
    def size_bytes(self) -> int:
        """Return how many bytes the whole response has."""
        return sum(map(len, self.writes))

    def send(self, connection: socket) -> None:
        """Write the response to `connection`, at its pace."""
        start = time.perf_counter()
        for index, data in enumerate(self.writes):
            ahead = start + index * PACE - time.perf_counter()
            if self.paced and ahead > 0:
                time.sleep(ahead)
            connection.sendall(data)


def token_chunk(model: str, index: int, text: str) -> bytes:
    """Return the HTTP chunk of one token."""
    message = {"role": "assistant", "content": text}
    return _http_chunk({"model": model, "created_at": _moment(index), "message": message, "done": False})


def done_chunk(model: str, tokens: int) -> bytes:
    """Return the HTTP chunk of the object that ends an answer of so many tokens."""
    nanoseconds = int(tokens * PACE * 1e9)
    return _http_chunk({
        "model": model, "created_at": _moment(tokens), "message": {"role": "assistant", "content": ""},
        "done": True, "done_reason": "stop", "total_duration": nanoseconds + 61_000_000,
        "load_duration": 41_000_000, "prompt_eval_count": 26, "prompt_eval_duration": 20_000_000,
        "eval_count": tokens, "eval_duration": nanoseconds,
    })  # fmt: skip


def _moment(index: int) -> str:
    minutes, milliseconds = divmod(index * 2, 60_000)
    return f"2026-11-22T10:{minutes % 60:02}:{milliseconds // 1000:02}.{milliseconds % 1000:03}123457Z"


def _http_chunk(value: dict[str, object]) -> bytes:
    line = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    return b"%x\r\n%b\r\n" % (len(line), line)


def json_response(status: str, value: Mapping[str, object]) -> bytes:
    """Return a whole response with a JSON body."""
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def documents_of(models: list[str]) -> dict[str, bytes]:
    """Return the responses to what clients ask before they chat, by path."""
    entries = [_model_entry(model) for model in models]
    show = {"details": DETAILS, "capabilities": ["completion"], "template": "{{ .Prompt }}", "model_info": {}}
    return {
        "/api/version": json_response("200 OK", {"version": "0.33.0"}),
        "/api/tags": json_response("200 OK", {"models": entries}),
        "/api/ps": json_response("200 OK", {"models": entries}),
        "/api/show": json_response("200 OK", show),
    }


class Replay:
    """The server: answers chats from `answers`, and what clients ask before they chat."""

    def __init__(self, models: list[str]) -> None:
        """Render the answers of `models` and listen on a free loopback port."""
        self.answers = {model: Answer(model) for model in models}
        self.listener = create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.documents = documents_of(models)

    def serve(self) -> None:
        """Accept connections until the process ends, each on a thread of its own."""
        while True:
            connection, _ = self.listener.accept()
            connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            threading.Thread(target=self._answer_all, args=(connection,), daemon=True).start()

    def _answer_all(self, connection: socket) -> None:
        """Answer the requests of one connection, one after the other, until the client closes it."""
        with connection:
            try:
                while request := _read_request(connection):
                    self._answer(connection, *request)
            except ConnectionError:
                return  # a client may leave at any moment

    def _answer(self, connection: socket, path: str, body: bytes) -> None:
        if path != "/api/chat":
            missing = json_response("404 Not Found", {"error": f"{path} is not replayed"})
            connection.sendall(self.documents.get(path, missing))
            return
        model = json.loads(body)["model"]
        answer = self.answers.get(model) or self.answers.get(f"{model}:latest")
        if answer is None:
            missing = json_response("404 Not Found", {"error": f"model '{model}' not found"})
            connection.sendall(missing)
            return
        answer.send(connection)


def _read_request(connection: socket) -> tuple[str, bytes] | None:
    """Return path and body of the next request, or None when the client closed the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65536)
        if not received:
            return None
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    request_line, *headers = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in headers)}
    missing = int(fields.get("content-length", "0")) - len(body)
    while missing > 0:
        received = connection.recv(missing)
        if not received:
            return None
        body += received
        missing -= len(received)
    return request_line.split(" ")[1], body


def _model_entry(model: str) -> dict[str, object]:
    return {
        "name": model,
        "model": model,
        "modified_at": _moment(0),
        "size": 2_019_393_189,
        "size_vram": 2_019_393_189,
        "digest": "a80c4f17acd5" + 52 * "0",
        "expires_at": "2318-01-01T00:00:00Z",
        "context_length": 4096,
        "details": DETAILS,
    }


@contextmanager
def running(models: list[str], module: str = "benchmarks.replay") -> Iterator[str]:
    """Run the server `module` in a process of its own with these models; yield its URL, and end it on the way out."""
    command = [sys.executable, "-m", module, *models]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the replay server was started without its pipes")
        port = process.stdout.readline().decode().strip()
        if not port:
            raise RuntimeError("the replay server did not start; its error is above")
        yield f"http://127.0.0.1:{port}"
        process.stdin.close()


def main() -> None:
    """Serve the models named on the command line until standard input ends."""
    replay = Replay(sys.argv[1:])
    print(replay.port, flush=True)
    threading.Thread(target=replay.serve, daemon=True).start()
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
