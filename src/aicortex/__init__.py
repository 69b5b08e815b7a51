"""AI Cortex: streams that do not break, from the Ollama servers you own.

    from aicortex import chat

    for event in chat("Why is the sky blue?", stream=True):
        if event.type == "token":
            print(event.content, end="", flush=True)

Importing this package makes no connection and loads no network library: names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aicortex._core.failover import Attempt as Attempt
    from aicortex._core.result import Result as Result
    from aicortex._core.server import Server as Server
    from aicortex.ask import achat as achat
    from aicortex.ask import chat as chat
    from aicortex.astream import AsyncStream as AsyncStream
    from aicortex.calling import ToolCall as ToolCall
    from aicortex.catalogue import alist_model_servers as alist_model_servers
    from aicortex.catalogue import amodels as amodels
    from aicortex.catalogue import best_server as best_server
    from aicortex.catalogue import families as families
    from aicortex.catalogue import get_llm_params as get_llm_params
    from aicortex.catalogue import get_model_info as get_model_info
    from aicortex.catalogue import get_server_info as get_server_info
    from aicortex.catalogue import list_model_servers as list_model_servers
    from aicortex.catalogue import models as models
    from aicortex.catalogue import search_models as search_models
    from aicortex.clients import AsyncClient as AsyncClient
    from aicortex.clients import Client as Client
    from aicortex.desktop import stream_to_tk as stream_to_tk
    from aicortex.errors import AICortexError as AICortexError
    from aicortex.errors import AllServersFailedError as AllServersFailedError
    from aicortex.errors import CredentialError as CredentialError
    from aicortex.errors import EmbeddedEngineError as EmbeddedEngineError
    from aicortex.errors import ModelNotFoundError as ModelNotFoundError
    from aicortex.errors import OutputValidationError as OutputValidationError
    from aicortex.errors import RegistryError as RegistryError
    from aicortex.errors import RequestRejectedError as RequestRejectedError
    from aicortex.errors import StreamCancelledError as StreamCancelledError
    from aicortex.errors import StreamInterruptedError as StreamInterruptedError
    from aicortex.events import StreamEvent as StreamEvent
    from aicortex.functions import Tool as Tool
    from aicortex.job import Outcome as Outcome
    from aicortex.many import astream_many as astream_many
    from aicortex.many import stream_many as stream_many
    from aicortex.session import Session as Session
    from aicortex.stream import Stream as Stream

__version__ = "0.1.0"

_HOMES = {
    "AICortexError": "errors",
    "AllServersFailedError": "errors",
    "AsyncClient": "clients",
    "AsyncStream": "astream",
    "Attempt": "_core.failover",
    "Client": "clients",
    "CredentialError": "errors",
    "EmbeddedEngineError": "errors",
    "ModelNotFoundError": "errors",
    "Outcome": "job",
    "OutputValidationError": "errors",
    "RegistryError": "errors",
    "RequestRejectedError": "errors",
    "Result": "_core.result",
    "Server": "_core.server",
    "Session": "session",
    "Stream": "stream",
    "StreamCancelledError": "errors",
    "StreamEvent": "events",
    "StreamInterruptedError": "errors",
    "Tool": "functions",
    "ToolCall": "calling",
    "achat": "ask",
    "alist_model_servers": "catalogue",
    "amodels": "catalogue",
    "astream_many": "many",
    "best_server": "catalogue",
    "chat": "ask",
    "families": "catalogue",
    "get_llm_params": "catalogue",
    "get_model_info": "catalogue",
    "get_server_info": "catalogue",
    "list_model_servers": "catalogue",
    "models": "catalogue",
    "search_models": "catalogue",
    "stream_many": "many",
    "stream_to_tk": "desktop",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    from importlib import import_module

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
