"""Every exception AI Cortex raises of its own.

    AICortexError
    ├── ModelNotFoundError     (ValueError)    no server that answered has the model
    ├── RequestRejectedError   (ValueError)    a server says that the request itself is wrong
    ├── CredentialError        (ValueError)    a secret that an entry of the registry refers to is not there
    ├── OutputValidationError  (ValueError)    the whole answer is not what the format wants: .text, .reason
    ├── AllServersFailedError  (RuntimeError)  every attempt failed: .attempts
    │   └── StreamInterruptedError             the answer broke off and cannot go on: .partial
    ├── StreamCancelledError   (RuntimeError)  somebody called cancel(): .partial
    ├── RegistryError          (RuntimeError)  the registry's file cannot be read or written
    └── EmbeddedEngineError    (RuntimeError)  the embedded engine cannot be installed or started

Wrong arguments raise plain `ValueError` (or `TypeError`, for an unknown keyword), as everywhere in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aicortex._core.failover import Attempt


class AICortexError(Exception):
    """The root of every error of this package."""


class ModelNotFoundError(AICortexError, ValueError):
    """No server that answered has the model.

    `model` is the name asked for, `available` every name the fleet has, `matches` those that look like it.
    """

    def __init__(self, message: str, *, model: str = "", available: Sequence[str] = (), matches: Sequence[str] = ()):
        super().__init__(message)
        self.model = model
        self.available = list(available)
        self.matches = list(matches)


class RequestRejectedError(AICortexError, ValueError):
    """A server refused the request as wrong (HTTP 400 and its kin): another server would say the same.

    `server` is the URL without secrets, `status` the HTTP status.
    """

    def __init__(self, message: str, *, server: str = "", status: int | None = None, partial: str = ""):
        super().__init__(message)
        self.server = server
        self.status = status
        self.partial = partial


class CredentialError(AICortexError, ValueError):
    """A server's key or header is to come from a variable or the keyring and is not there; the message names which."""


class OutputValidationError(AICortexError, ValueError):
    """The model's whole answer does not have the form that was asked for.

    `text` is the answer, `reason` what is wrong with it, and where.
    """

    def __init__(self, message: str, *, text: str = "", reason: str = ""):
        super().__init__(message)
        self.text = text
        self.reason = reason


class AllServersFailedError(AICortexError, RuntimeError):
    """Every attempt failed and no server is left to try.

    `attempts` lists them in order: server, kind, phase, message of each.
    """

    def __init__(self, message: str, *, attempts: Sequence[Attempt] = ()):
        super().__init__(message)
        self.attempts = list(attempts)


class StreamInterruptedError(AllServersFailedError):
    """The answer broke off after text was delivered and could not be continued honestly.

    `partial` is the text delivered so far: a true prefix of the answer, not the answer.
    """

    def __init__(self, message: str, *, attempts: Sequence[Attempt] = (), partial: str = ""):
        super().__init__(message, attempts=attempts)
        self.partial = partial


class StreamCancelledError(AICortexError, RuntimeError):
    """The stream was cancelled before its end. `partial` is the text delivered so far."""

    def __init__(self, message: str, *, partial: str = ""):
        super().__init__(message)
        self.partial = partial


class RegistryError(AICortexError, RuntimeError):
    """The registry's file cannot be read or written; the message names it and says what to do."""


class EmbeddedEngineError(AICortexError, RuntimeError):
    """The embedded engine cannot run here; the message says what to install or set."""
