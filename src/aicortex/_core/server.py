"""A server's address, in every spelling users write, and what is sent to it with each request."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Mapping

DEFAULT_PORT = 11434
PORTS = {"http": 80, "https": 443}  # when a scheme is given without a port, as Ollama's own client does
EMBEDDED = "embedded"  # the name of the engine that this process starts for itself
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # addresses to listen on, not to call
SPELLINGS = "write host, host:port or http(s)://host:port/path"


class Server:
    """One Ollama server: where it is and what it must be sent.

    `url` may be a host, `host:port`, `:port`, a URL with user info and path, an IPv6 literal, or `"embedded"`.
    `api_key` becomes `Authorization: Bearer …`, user info in the URL `Authorization: Basic …`; `headers` are sent
    as given. `verify=False` accepts any certificate, `ca_file` (PEM) adds an authority, `client_cert` is a PEM file
    with certificate and key. `label` names the server without secrets, as `repr` and every error do.
    `address` is the IP address that `at` chose, else "".
    Raises ValueError for what is no address.
    """

    __slots__ = (
        "_hash",
        "_key",
        "address",
        "ca_file",
        "client_cert",
        "headers",
        "host",
        "label",
        "path",
        "port",
        "scheme",
        "secrets",
        "verify",
    )

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        verify: bool = True,
        ca_file: str | None = None,
        client_cert: str | None = None,
    ) -> None:
        if not isinstance(url, str):
            raise ValueError(f"a server's address must be text, not {type(url).__name__}")
        scheme, userinfo, self.host, self.port, self.path = parse_address(url)
        self.scheme = scheme
        self.verify = verify
        self.ca_file = ca_file
        self.client_cert = client_cert
        sent = dict(headers or {})
        own = {name.lower() for name in sent}
        if api_key:
            _check_header("api_key", api_key)
            sent = {name: value for name, value in sent.items() if name.lower() != "authorization"}
            sent["Authorization"] = f"Bearer {api_key}"
        elif userinfo and "authorization" not in own:
            sent["Authorization"] = f"Basic {_base64(_unquoted(userinfo))}"
        for name, value in sent.items():
            _check_header(name, value)
        self.headers = tuple(sent.items())
        self.secrets = _secrets_of(userinfo, api_key, sent)
        self.address = ""
        self.label = EMBEDDED if scheme == EMBEDDED else f"{scheme}://{self.netloc}{self.path}"
        self._key: tuple[object, ...] = (self.label, self.headers, verify, ca_file, client_cert)
        self._hash = hash(self._key)

    def at(self, address: str) -> Server:
        """Return the server at one of the addresses that this one's name stands for, as an IP literal.

        It is connected to there, and called and checked by its name; the address stands in its label.
        """
        from copy import copy

        one = copy(self)
        one.address = address
        one.label = f"{self.scheme}://{_joined(address, self.port)}{self.path}"
        one._key = (one.label, self.host, *self._key[1:])
        one._hash = hash(one._key)
        return one

    @property
    def netloc(self) -> str:
        """Host and port as they stand in a URL."""
        return _joined(self.host, self.port)

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine."""
        digits = self.host.replace(".", "")
        return self.host in ("localhost", "::1") or (self.host.startswith("127.") and digits.isdigit())

    def redact(self, text: str) -> str:
        """Return the text without this server's secrets, which a server may echo in its errors."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        for secret in self.secrets:  # an excerpt may end in the middle of one
            size = next((n for n in range(len(secret) - 1, 3, -1) if text.rstrip("…").endswith(secret[:n])), 0)
            if size:
                text = text.rstrip("…")[:-size] + "***"
        return text

    def redact_json(self, data: bytes) -> bytes:
        """Return JSON without this server's secrets, which a server may echo anywhere."""
        for secret in self.secrets:
            data = data.replace(secret.encode(), b"***")
        return data

    def __setstate__(self, state: tuple[None, dict[str, object]]) -> None:
        """Take over what was pickled, but for the hash, which is another one in each process."""
        for name, value in state[1].items():
            setattr(self, name, value)
        self._hash = hash(self._key)

    def __repr__(self) -> str:
        return f"Server({self.label!r})"

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Server) and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> tuple[str, str, str, int, str]:
    """Return scheme, user info, host, port and path of an address; raises ValueError with what to write instead."""
    address = text.strip().strip("\"'")
    if address == EMBEDDED:
        return EMBEDDED, "", "127.0.0.1", 0, ""
    scheme, separator, rest = address.rpartition("://")
    scheme = scheme.lower() if separator else "http"
    if scheme not in PORTS:
        raise ValueError(f"{_shown(address)!r} is no server address: {SPELLINGS}")
    if "?" in rest or "#" in rest:
        raise ValueError(f"{_shown(address)!r} is no server address: {SPELLINGS}, without a query")
    netloc, slash, path = rest.partition("/")
    userinfo, _, hostport = netloc.rpartition("@")
    host, port = _split_port(hostport, _shown(address))
    if not _is_clean(host + path) or not path.isascii():
        raise ValueError(f"{_shown(address)!r} is no server address: {SPELLINGS}, without spaces")
    if separator and not host:
        raise ValueError(f"{_shown(address)!r} is no server address: {SPELLINGS}")
    host = WILDCARDS.get(host, host)
    if not host.isascii():
        host = host.encode("idna").decode()
    default = PORTS[scheme] if separator else DEFAULT_PORT
    return scheme, userinfo, host, default if port is None else port, (slash + path).rstrip("/")


def _split_port(hostport: str, shown: str) -> tuple[str, int | None]:
    """Split `host:port`; an IPv6 literal may stand with or without its brackets."""
    if hostport.startswith("["):
        host, bracket, tail = hostport[1:].partition("]")
        port = tail.removeprefix(":")
        if not bracket or ":" not in host:
            raise ValueError(f"{shown!r} has no valid IPv6 address: write it as [::1] or [::1]:11434")
    elif hostport.count(":") > 1:
        host, port = hostport, ""
        if not set(host.partition("%")[0]) <= set("0123456789abcdefABCDEF:."):
            raise ValueError(f"{shown!r} is no server address: {SPELLINGS}")
    else:
        host, _, port = hostport.partition(":")
    if not port:
        return host, None
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError(f"{shown!r} has no valid port: it is a number from 1 to 65535")
    return host, int(port)


def _is_clean(text: str) -> bool:
    return text.isprintable() and not any(character in text for character in ' \\<>^`{|}"')


def _shown(address: str) -> str:
    """Return an address for errors: without its user info, and without a query, which may hold a key."""
    userinfo, at, rest = address.partition("?")[0].partition("#")[0].rpartition("@")
    scheme, separator, _ = userinfo.partition("://")
    return f"{scheme}{separator}…@{rest}" if at and separator else rest


def _unquoted(userinfo: str) -> str:
    if "%" not in userinfo:
        return userinfo
    from urllib.parse import unquote  # 10 ms to import, and hardly ever needed

    return unquote(userinfo)


def _base64(text: str) -> str:
    return b2a_base64(text.encode(), newline=False).decode()


def _check_header(name: str, value: str) -> None:
    token = name.replace("-", "").replace("_", "")
    if not (token.isascii() and token.isalnum()):
        raise ValueError(f"{name!r} is no HTTP header name")
    if name.lower() in ("host", "content-length", "transfer-encoding", "connection"):
        raise ValueError(f"the header {name} is the connection's own and cannot be set")
    if not value.isprintable() or not value.isascii():
        raise ValueError(f"the value of {name} has characters that HTTP does not allow")


def _secrets_of(userinfo: str, api_key: str | None, headers: Mapping[str, str]) -> tuple[str, ...]:
    """Return the strings that must never be shown, longest first so that none is left in part."""
    found = set(headers.values()) | {value.partition(" ")[2] for value in headers.values()}
    found |= {api_key or "", userinfo, userinfo.partition(":")[2], _unquoted(userinfo.partition(":")[2])}
    return tuple(sorted((secret for secret in found if len(secret) >= 4), key=len, reverse=True))
