"""Settings from the environment, read when they are needed and validated once.

    AICORTEX_SERVERS   servers to use, separated by commas or spaces
    AICORTEX_API_KEY   sent as `Authorization: Bearer …` to the servers in AICORTEX_SERVERS that have no own credentials
    AICORTEX_MODEL     the model when none is named
    AICORTEX_RESUME    "continue" or "never": what becomes of an answer that breaks off, when a call does not say
    OLLAMA_HOST        the local Ollama's address, in all of Ollama's spellings
    OLLAMA_API_KEY     sent as `Authorization: Bearer …` to the server at OLLAMA_HOST
    HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY   as everywhere; never used for this machine itself

The embedded engine has its own: see `aicortex.embedded`.
"""

from __future__ import annotations

import os

from aicortex._core.server import Server, parse_address
from aicortex.request import check_resume


def configured_servers() -> tuple[Server, ...]:
    """Return the servers of AICORTEX_SERVERS; raises ValueError that names the variable."""
    words = os.environ.get("AICORTEX_SERVERS", "").replace(",", " ").split()
    try:
        return tuple(_with_key(word, os.environ.get("AICORTEX_API_KEY")) for word in words)
    except ValueError as error:
        raise ValueError(f"AICORTEX_SERVERS: {error}") from None


def local_server() -> Server:
    """Return the local Ollama's address, from OLLAMA_HOST or by default; raises ValueError that names it."""
    try:
        return _with_key(os.environ.get("OLLAMA_HOST", ""), os.environ.get("OLLAMA_API_KEY"))
    except ValueError as error:
        raise ValueError(f"OLLAMA_HOST: {error}") from None


def names_local_server() -> bool:
    """Whether the user said where the local Ollama is."""
    return bool(os.environ.get("OLLAMA_HOST", "").strip())


def default_model() -> str | None:
    """Return the model to use when none is named, if the environment has one."""
    return os.environ.get("AICORTEX_MODEL", "").strip() or None


def resumes_by_default() -> bool:
    """Return whether AICORTEX_RESUME wants broken answers continued, as is the default; raises ValueError."""
    value = os.environ.get("AICORTEX_RESUME", "").strip().lower() or "continue"
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


def _with_key(address: str, key: str | None) -> Server:
    has_own = bool(parse_address(address)[1])
    return Server(address, api_key=None if has_own else key)
