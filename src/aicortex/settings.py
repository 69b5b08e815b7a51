"""Settings from the environment and from `aicortex.toml`, read when they are needed and validated once.

    AICORTEX_SERVERS   servers to use, separated by commas or spaces
    AICORTEX_API_KEY   sent as `Authorization: Bearer …` to the servers in AICORTEX_SERVERS that have no own credentials
    AICORTEX_MODEL     the model when none is named
    AICORTEX_ROUTING   which server is asked first: a strategy of `aicortex._core.routing`
    AICORTEX_LOCATION  where this machine is, for the strategy "nearest"
    AICORTEX_RESUME    "continue" or "never": what becomes of an answer that breaks off, when a call does not say
    AICORTEX_CONFIG    the configuration file to read, and AICORTEX_DATA_DIR the registry's folder: see `registry.paths`
    OLLAMA_HOST        the local Ollama's address, in all of Ollama's spellings
    OLLAMA_API_KEY     sent as `Authorization: Bearer …` to the server at OLLAMA_HOST
    HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY   as everywhere; never used for this machine itself

A variable goes before what the file says. The embedded engine has its own: see `aicortex.embedded`.
"""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, TypeAlias

from aicortex._core.server import Server, parse_address
from aicortex.registry.paths import config_paths
from aicortex.request import check_resume, check_routing

if TYPE_CHECKING:
    from types import EllipsisType

    from aicortex.registry.config import Config

    Told: TypeAlias = Config | EllipsisType | None  # what the configuration says, if it was read before


def configuration() -> Config | None:
    """Return what the configuration files say, None where there is none; raises ValueError that names file and key."""
    if not config_paths():
        return None
    from aicortex.registry.config import read_config  # TOML takes 15 ms to import

    return read_config()


def configured_servers(names: Container[str] = ()) -> tuple[str | Server, ...]:
    """Return the servers of AICORTEX_SERVERS, those of these names as they are; raises ValueError that names it."""
    words = os.environ.get("AICORTEX_SERVERS", "").replace(",", " ").split()
    try:
        key = os.environ.get("AICORTEX_API_KEY")
        return tuple(word if word in names else _with_key(word, key) for word in words)
    except ValueError as error:
        raise ValueError(f"AICORTEX_SERVERS: {error}") from None


def names_servers() -> bool:
    """Whether AICORTEX_SERVERS names any."""
    return bool(os.environ.get("AICORTEX_SERVERS", "").strip(", "))


def local_server() -> Server:
    """Return the local Ollama's address, from OLLAMA_HOST or by default; raises ValueError that names it."""
    try:
        return _with_key(os.environ.get("OLLAMA_HOST", ""), os.environ.get("OLLAMA_API_KEY"))
    except ValueError as error:
        raise ValueError(f"OLLAMA_HOST: {error}") from None


def names_local_server() -> bool:
    """Whether the user said where the local Ollama is."""
    return bool(os.environ.get("OLLAMA_HOST", "").strip())


def default_model(config: Told = ...) -> str | None:
    """Return the model to use when none is named, if the environment or the configuration has one."""
    return _said("AICORTEX_MODEL", "model", config) or None


def default_routing(config: Told = ...) -> str | None:
    """Return the strategy when a call does not say, if there is one; raises ValueError that names the variable."""
    said = _said("AICORTEX_ROUTING", "routing", config).lower()
    try:
        return check_routing(said) if said else None
    except ValueError as error:
        raise ValueError(f"AICORTEX_ROUTING: {error}") from None


def location(config: Told = ...) -> str:
    """Return where this machine is, "" when nobody said."""
    return _said("AICORTEX_LOCATION", "location", config)


def models_meant(name: str, config: Told = ...) -> Sequence[str]:
    """Return the models that a name stands for, in order of preference: itself, if it is no alias."""
    if config is ...:
        config = configuration()
    return (config.aliases.get(name) if config else None) or (name,)


def resumes_by_default(config: Told = ...) -> bool:
    """Return whether AICORTEX_RESUME wants broken answers continued, as is the default; raises ValueError."""
    value = _said("AICORTEX_RESUME", "resume", config).lower() or "continue"
    try:
        return check_resume(value)
    except ValueError as error:
        raise ValueError(f"AICORTEX_RESUME: {error}") from None


def proxy_for(server: Server) -> Server | None:
    """Return the proxy the environment names for a server, if any."""
    if server.is_loopback or not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies, proxy_bypass  # knows every system's rules; slow to import

    proxies = getproxies()
    url = proxies.get(server.scheme) or proxies.get("all")
    if not url or proxy_bypass(server.netloc):
        return None
    try:
        proxy = Server(url if "://" in url else f"http://{url}")
    except ValueError as error:
        raise ValueError(f"the {server.scheme}_proxy variable: {error}") from None
    if proxy.scheme != "http":
        raise ValueError(f"the {server.scheme}_proxy variable: only http:// proxies are spoken to, not {proxy.label}")
    return proxy


def _said(variable: str, key: str, config: Told) -> str:
    """Return what a variable or else the configuration says."""
    value = os.environ.get(variable, "").strip()
    if value:
        return value
    if config is ...:
        config = configuration()
    return getattr(config, key) if config else ""


def _with_key(address: str, key: str | None) -> Server:
    has_own = bool(parse_address(address)[1])
    return Server(address, api_key=None if has_own else key)
