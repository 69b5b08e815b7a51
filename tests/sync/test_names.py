"""Names that stand for many servers."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from tests.colours import Chat

from aicortex import Server
from aicortex._core.failover import AttemptFailed, Failure
from aicortex._sync import names
from aicortex.fleet import find_fleet
from aicortex.registry.credentials import entry_of
from aicortex.registry.store import Registry
from aicortex.testing import FakeServer


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str, module: Any = names) -> list[str]:
    """Let every name resolve to these addresses, and return the names that were asked for."""
    asked: list[str] = []

    def addresses_of(host: str, port: int, _: float) -> list[Any]:
        asked.append(host)
        if not addresses:
            raise AttemptFailed(Failure("unreachable", "connect", "the name cannot be resolved"))
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [(family, 1, 6, "", (address, port)) for family, address in zip(families, addresses, strict=True)]

    monkeypatch.setattr(module, "addresses_of", addresses_of)
    return asked


def test_each_address_is_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with several addresses stands for one server at each, in an order that does not change."""
    resolving(monkeypatch, "10.0.0.2", "10.0.0.1")
    found = names.expand(Server("pods:11434", api_key="sesame"))
    assert [server.label for server in found] == ["http://10.0.0.1:11434", "http://10.0.0.2:11434"]
    assert {(server.host, server.headers) for server in found} == {("pods", (("Authorization", "Bearer sesame"),))}


@pytest.mark.parametrize("addresses", [(), ("10.0.0.1",), ("10.0.0.1", "fd00::1", "fd00::2")])
def test_one_address_or_none_is_the_server_itself(monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]) -> None:
    """IPv6 addresses next to an IPv4 one are the same machine; a name that does not resolve fails when it is used."""
    resolving(monkeypatch, *addresses)
    assert names.expand(Server("pods:11434")) == [Server("pods:11434")]


def test_ipv6_addresses_count_where_there_are_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand in brackets in the label."""
    resolving(monkeypatch, "fd00::1", "fd00::2")
    assert [server.label for server in names.expand(Server("https://pods"))] == [
        "https://[fd00::1]:443",
        "https://[fd00::2]:443",
    ]


def test_a_name_is_resolved_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a name server said is believed for half a minute, also that it knows nothing."""
    asked = resolving(monkeypatch)
    for _ in range(3):
        names.expand(Server("pods"))
    assert asked == ["pods"]


def test_requests_go_to_the_address_and_call_the_server_by_its_name(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 and 127.0.0.2 are two servers of one name here: each gets requests with that name as their host."""
    with FakeServer(answer="one") as one, Registry() as registry:
        registry.add(entry_of(f"pods:{one.port}", expand=True))
        resolving(monkeypatch, "127.0.0.1", "127.0.0.2")
        servers = find_fleet().servers
        assert [server.label for server in servers] == [f"http://127.0.0.{n}:{one.port}" for n in (1, 2)]
        assert chat("Hi", model="fake") == "one"
        assert one.requests[-1].headers["host"] == f"pods:{one.port}"
