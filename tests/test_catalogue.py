"""The lists that users ask for: models, who has them, and how well they do."""

from __future__ import annotations

from contextlib import ExitStack
from time import time
from typing import Any

import pytest

from aicortex import (
    AllServersFailedError,
    ModelNotFoundError,
    Server,
    best_server,
    chat,
    families,
    get_llm_params,
    get_model_info,
    get_server_info,
    list_model_servers,
    models,
    search_models,
)
from aicortex.board import BOARD, News
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import Condition, Measurement, ModelEntry, Observation
from aicortex.registry.store import Registry
from aicortex.testing import FakeServer, Refuse, Status

LLAMA = {
    "name": "llama3.2:3b",
    "digest": "aa",
    "size": 2_000,
    "details": {"family": "llama", "parameter_size": "3.2B", "quantization_level": "Q4_K_M"},
}
QWEN = {
    "name": "qwen3:8b",
    "digest": "bb",
    "size": 5_000,
    "details": {"family": "qwen3", "parameter_size": "8.2B", "quantization_level": "Q4_K_M"},
}
EMBED = {
    "name": "embed:latest",
    "digest": "cc",
    "size": 100,
    "details": {"family": "bert", "parameter_size": "137M", "quantization_level": "F16"},
}


def having(*listed: dict[str, Any]) -> FakeServer:
    names = [each["name"] for each in listed]
    return FakeServer(answer="Hi.", models=names, paths={"/api/tags": Status(200, {"models": list(listed)})})


def registered(*servers: FakeServer) -> Registry:
    registry = Registry()
    for number, server in enumerate(servers):
        registry.add(
            entry_of(server.url, name=f"s{number}", location=f"eu/{number}", organization="lab", labels={"gpu": "x"})
        )
    return registry


def test_models_by_family() -> None:
    """Names can be narrowed down to one family, in any case; families are listed by alphabet."""
    with having(LLAMA, QWEN) as one, having(EMBED, LLAMA) as two:
        servers = [one.url, two.url]
        assert models(servers=servers) == ["llama3.2:3b", "qwen3:8b", "embed:latest"]
        assert models("LLAMA", servers=servers) == ["llama3.2:3b"]
        assert families(servers=servers) == ["bert", "llama", "qwen3"]


@pytest.mark.parametrize(
    ("query", "bounds", "found"),
    [
        ("", {}, ["llama3.2:3b", "qwen3:8b", "embed:latest"]),
        ("LLAMA q4", {}, ["llama3.2:3b"]),
        ("nothing", {}, []),
        ("", {"min_params": "3.2B"}, ["llama3.2:3b", "qwen3:8b"]),
        ("", {"min_params": 1e8, "max_params": "4b"}, ["llama3.2:3b", "embed:latest"]),
        ("q4", {"family": "Qwen3"}, ["qwen3:8b"]),
    ],
)
def test_search(query: str, bounds: dict[str, Any], found: list[str]) -> None:
    """All words must be there, and the size within its bounds."""
    with having(LLAMA, QWEN, EMBED) as one:
        assert [info["model"] for info in search_models(query, servers=one.url, **bounds)] == found


@pytest.mark.parametrize("wrong", [{"min_params": "many"}, {"max_params": -1}, {"max_params": "B"}])
def test_wrong_numbers_of_parameters(wrong: dict[str, Any]) -> None:
    """What is no number of parameters is named, before anybody is asked."""
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is a number of parameters"):
        search_models(servers="desk", **wrong)


def test_what_is_known_of_a_model() -> None:
    """Name, weights, sizes, who has it; what only a refresh asks comes from the registry, by the digest."""
    other = {**LLAMA, "digest": "dd"}
    with having(LLAMA) as one, having(LLAMA) as two, having(other) as three, registered(one) as registry:
        told = ModelEntry(
            "x:latest", "aa", context_length=131072, capabilities=("completion", "tools"), families=("llama", "mllama")
        )
        registry.apply([Observation(Condition("http://elsewhere:11434", 1.0), (told,))])
        assert get_model_info("llama3.2:3b", servers=[one.url, two.url, three.url]) == {
            "model": "llama3.2:3b",
            "digest": "aa",
            "size": 2_000,
            "family": "llama",
            "families": ["llama", "mllama"],
            "parameter_size": "3.2B",
            "parameters": 3.2e9,
            "quantization": "Q4_K_M",
            "context_length": 131072,
            "capabilities": ["completion", "tools"],
            "servers": [one.url, two.url],
            "loaded_on": [one.url, two.url],
            "other_digests": ["dd"],
        }


def test_an_unknown_model_is_named_with_those_like_it() -> None:
    """Every question about one model raises ModelNotFoundError with close matches; the list of its servers is empty."""
    with having(LLAMA) as one:
        for ask in (get_model_info, get_server_info, best_server, get_llm_params):
            with pytest.raises(ModelNotFoundError, match=r"did you mean 'llama3\.2:3b'") as raised:
                ask("llama3.2", servers=one.url)
            assert raised.value.matches == ["llama3.2:3b"]
        assert list_model_servers("llama3.2", servers=one.url) == []


def test_servers_of_a_model_say_all_that_is_registered_and_measured() -> None:
    """Each row has what the user said of the server, what the refresh measured, and how it is."""
    with having(LLAMA) as one, registered(one) as registry:
        measured = Measurement(one.url, "llama3.2:3b", 86_400.0, 120.0, 42.06)
        registry.apply([Observation(Condition(one.url, 1.0), None, (measured,))])
        (row,) = list_model_servers("llama3.2:3b")
        assert {key: row[key] for key in ("url", "name", "location", "organization", "labels", "loaded", "status")} == {
            "url": one.url,
            "name": "s0",
            "location": "eu/0",
            "organization": "lab",
            "labels": {"gpu": "x"},
            "loaded": True,
            "status": "ok",
        }
        assert row["performance"] == {
            "tokens_per_second": 42.1,
            "ttft_ms": 120.0,
            "last_tested": "1970-01-02T00:00:00+00:00",
        }


def test_streams_are_measurements() -> None:
    """After an answer the list says how fast it was, and when."""
    with having(LLAMA) as one, having(LLAMA) as two:
        servers = [one.url, two.url]
        chat("Hi", model="llama3.2:3b", servers=servers)
        first, second = (row["performance"] for row in list_model_servers("llama3.2:3b", servers=servers))
        assert first["tokens_per_second"] > 0
        assert first["ttft_ms"] > 0
        assert second == {"tokens_per_second": None, "ttft_ms": None, "last_tested": None}


def test_how_servers_are() -> None:
    """The status tells a full queue, failures and draining apart; who does not answer is stale and comes last."""
    with ExitStack() as stack:
        one, two, three, four = (stack.enter_context(having(LLAMA)) for _ in range(4))
        dead = stack.enter_context(FakeServer(everything=Refuse()))
        with registered(dead, one, two, three, four) as registry:
            registry.apply([Observation(Condition(dead.url, 1.0), (ModelEntry("llama3.2:3b"),))])
            registry.change("s3", is_draining=True)
            BOARD.post(News(one.url, "llama3.2:3b", "busy", time()))
            BOARD.post(News(two.url, "llama3.2:3b", "server_error", time()))
            found = list_model_servers("llama3.2:3b")
            assert [(row["url"], row["status"]) for row in found] == [
                (one.url, "busy"),
                (two.url, "failing"),
                (three.url, "draining"),
                (four.url, "ok"),
                (dead.url, "stale"),
            ]
            assert list(found.unreachable) == [dead.url]


def test_what_nobody_says_and_nobody_knows_is_an_error() -> None:
    """When no server answers and nothing is remembered, that is raised and not an empty list."""
    with FakeServer(everything=Refuse()) as dead:
        for ask in (list_model_servers, get_model_info, best_server):
            with pytest.raises(AllServersFailedError):
                ask("m", servers=dead.url)


def test_the_best_server() -> None:
    """It is the one that a request would go to: by speed, or by another strategy; a single one can be asked for."""
    with having(LLAMA) as one, having(LLAMA) as two, registered(one, two) as registry:
        for server, first in ((one, 900.0), (two, 100.0)):
            measured = Measurement(server.url, "llama3.2:3b", 2e9, first, 42.0)
            registry.apply([Observation(Condition(server.url, 2e9), None, (measured,))])
        assert best_server("llama3.2:3b")["url"] == two.url
        assert best_server("llama3.2:3b", "order")["url"] == one.url
        assert get_server_info("llama3.2:3b")["url"] == two.url
        assert get_server_info("llama3.2:3b", "s0")["url"] == one.url
        assert get_llm_params("llama3.2:3b") == {"model": "llama3.2:3b", "base_url": two.url}
        with pytest.raises(ValueError, match="routing must be"):
            best_server("llama3.2:3b", "best")


def test_a_name_without_a_tag_means_latest() -> None:
    """`embed` and `embed:latest` are one model."""
    with having(EMBED) as one:
        assert get_model_info("embed", servers=one.url)["model"] == "embed:latest"


def test_other_clients_get_a_server_that_they_can_use() -> None:
    """One that wants a key is named only when there is no other."""
    with having(LLAMA) as one, having(LLAMA) as two:
        keyed = Server(one.url, api_key="sesame")
        for servers, first in (([keyed, Server(two.url)], two.url), ([keyed], one.url)):
            assert get_llm_params("llama3.2:3b", strategy="order", servers=servers)["base_url"] == first


def test_a_query_is_words() -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="query is words"):
        search_models(3, servers="desk")  # type: ignore[arg-type]
