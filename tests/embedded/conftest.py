"""One engine for the whole folder, and a client that shows replies as they came."""

import http.client
import json
import time

import pytest

from aicortex import embedded


class Client:
    """Speaks to one server; every call is a connection of its own."""

    def __init__(self, host, port):
        self.host, self.port = host, port
        self.model = embedded.model_name()

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=30)

    def request(self, method, path, body=None, headers=None):
        """Return status, headers and body of one reply."""
        connection = self.connect()
        try:
            payload = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, payload, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def get(self, path):
        """Return the JSON of a GET."""
        return json.loads(self.request("GET", path)[2])

    def post(self, path, **body):
        """Return status and JSON lines of a POST for the served model, greedy unless told otherwise."""
        body = {"model": self.model, "options": {}} | body
        body["options"] = {"temperature": 0} | body["options"]
        status, _, reply = self.request("POST", path, body)
        return status, [json.loads(line) for line in reply.splitlines()]

    def chat(self, prompt, **body):
        """Return the lines of a streamed answer to `prompt`."""
        return self.post("/api/chat", messages=[{"role": "user", "content": prompt}], **body)[1]

    def text(self, prompt, **body):
        """Return the text of a streamed answer."""
        return "".join(line["message"]["content"] for line in self.chat(prompt, **body))


def wait_until(claim, seconds=10):
    """Look at `claim` again and again until it holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def weights_path():
    """The model's file, fetched once on this machine."""
    from aicortex.embedded.weights import ensure_weights

    return ensure_weights()


@pytest.fixture(scope="session")
def client(weights_path):
    """A client of this process's engine, which serves the file of `weights_path`."""
    assert weights_path.exists()
    yield Client(*embedded.ensure_running())
    embedded.stop()


@pytest.fixture
def until():
    """The function that waits for a claim."""
    return wait_until


@pytest.fixture(scope="session")
def connect_to():
    """The client's class, for servers a test starts itself."""
    return Client
