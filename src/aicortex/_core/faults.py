"""What a reply that is no answer means: a failure with its kind (protocol: "Errors before the stream")."""

from __future__ import annotations

from aicortex._core.failover import Failure
from aicortex._core.http import Response
from aicortex._core.ollama import error_of_body, excerpt

MAX_ERROR_BYTES = 64 * 1024  # more of an error reply is not read

REJECTED = frozenset({400, 413, 422})  # the request is wrong; another server would say the same
DENIED = frozenset({401, 403})
BUSY = frozenset({429, 503})
RESUME = "resume"
FIRST_TOKEN = "first token"
STREAM = "stream"


def of_status(response: Response) -> Failure:
    """Return the failure that a reply with an error status stands for."""
    status = response.status
    body = b"".join(response.body)
    said = error_of_body(body)
    words = said if said is not None else _describe(response, body)
    kind = _kind(status, said)
    message = f"HTTP {status}: {words}" if words else f"HTTP {status}"
    if kind == "bad_response" and 300 <= status < 400:
        message = f"HTTP {status}: redirects to {response.header('location')!r}; name that server instead"
    return Failure(kind, FIRST_TOKEN, message, status, _retry_after(response))


def _kind(status: int, said: str | None) -> str:
    if status in REJECTED and said is not None:
        return "rejected"
    if status in DENIED:
        return "denied"
    if status in BUSY:
        return "busy"
    if status == 404 and said is not None:
        return "model_not_found"
    return "server_error" if status >= 499 else "bad_response"


def _describe(response: Response, body: bytes) -> str:
    kind = response.header("content-type").partition(";")[0].strip()
    if "html" in kind:
        return "an HTML page, so this is no Ollama server, or a proxy answered in its place"
    return excerpt(body)


def _retry_after(response: Response) -> float | None:
    value = response.header("retry-after").strip()
    return float(value) if value.isascii() and value.isdigit() else None


def of_end(response: Response, *, phase: str) -> Failure:
    """Return the failure of a reply that is over and was not whole."""
    if response.fault is not None:
        return Failure("bad_response", phase, response.fault)
    if not response.started:
        return Failure("closed", phase, "closed the connection without a reply")
    return Failure("truncated", phase, "the stream ended without saying that it was done", response.status)


def of_content(response: Response, fault: str, *, phase: str) -> Failure:
    """Return the failure of a reply whose body is not what Ollama sends."""
    kind = response.header("content-type").partition(";")[0].strip()
    words = _describe(response, b"") if "html" in kind else fault
    return Failure("bad_response", phase, words, response.status)
