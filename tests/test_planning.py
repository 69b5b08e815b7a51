"""Which servers have a model, and in what order they are asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.colours import Chat

from aicortex import CredentialError, RegistryError, Server
from aicortex.fleet import find_fleet
from aicortex.planning import plan
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import Condition, ModelEntry, Observation
from aicortex.registry.paths import data_path
from aicortex.registry.store import Registry
from aicortex.request import OPENING_CHARACTERS, opening_of
from aicortex.testing import FakeServer, Status

NOBODY = Status(200, {"models": []})


def known(*servers: FakeServer, model: str = "fake:latest") -> None:
    """Register servers as a refresh leaves them."""
    with Registry() as registry:
        for number, server in enumerate(servers):
            registry.add(entry_of(server.url, name=f"s{number}"))
        registry.apply(Observation(Condition(server.url, 1.0), (ModelEntry(model),)) for server in servers)


def asked(server: FakeServer) -> list[str]:
    return [request.path for request in server.requests]


def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    path = tmp_path / "aicortex.toml"
    path.write_text(text)
    monkeypatch.setenv("AICORTEX_CONFIG", str(path))


def test_registered_servers_are_used_without_being_named(chat: Chat) -> None:
    """What the registry knows is believed: nobody is asked for a list before the question itself."""
    with FakeServer(answer="one") as one:
        known(one)
        assert chat("Hi") == "one"
        assert asked(one) == ["/api/chat"]


def test_variables_and_arguments_go_before_the_registry(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is: the call, AICORTEX_SERVERS, the registry."""
    with FakeServer(answer="one") as one, FakeServer(answer="two") as two, FakeServer(answer="three") as three:
        known(one)
        monkeypatch.setenv("AICORTEX_SERVERS", two.url)
        assert chat("Hi", servers=three.url) == "three"
        assert chat("Hi") == "two"
        monkeypatch.delenv("AICORTEX_SERVERS")
        assert chat("Hi") == "one"


def test_a_registered_name_stands_for_its_server(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name, or an address in any spelling, brings the key that the registry refers to."""
    monkeypatch.setenv("DESK_KEY", "sesame")
    with FakeServer(answer="one") as one, Registry() as registry:
        registry.add(entry_of(one.url, name="desk", api_key="env:DESK_KEY"))
        for spelling in ("desk", one.url, one.url.removeprefix("http://")):
            assert chat("Hi", servers=spelling) == "one"
            assert one.requests[-1].headers["authorization"] == "Bearer sesame"


def test_a_server_object_with_a_key_of_its_own_keeps_it(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the call says about a server goes before what the registry says."""
    monkeypatch.setenv("DESK_KEY", "sesame")
    with FakeServer(answer="one") as one, Registry() as registry:
        registry.add(entry_of(one.url, api_key="env:DESK_KEY"))
        assert chat("Hi", servers=Server(one.url, api_key="other")) == "one"
        assert one.requests[-1].headers["authorization"] == "Bearer other"


def test_a_missing_key_leaves_its_server_out(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on, with a warning that names the variable; when all lack theirs, that is the error."""
    with FakeServer(answer="one") as one, FakeServer(answer="two") as two, Registry() as registry:
        registry.add(entry_of(one.url, name="desk", api_key="env:DESK_KEY"))
        with pytest.raises(CredentialError, match="DESK_KEY is not set"):
            chat("Hi")
        registry.add(entry_of(two.url))
        with pytest.warns(RuntimeWarning, match="DESK_KEY is not set"):
            assert chat("Hi") == "two"
        with pytest.warns(RuntimeWarning, match="DESK_KEY is not set"):
            assert chat("Hi", servers=["desk", two.url]) == "two"
        with pytest.raises(CredentialError, match="DESK_KEY is not set"):
            chat("Hi", servers="desk")
        monkeypatch.setenv("DESK_KEY", "sesame")
        assert {server.label for server in find_fleet().servers} == {one.url, two.url}


def test_names_in_the_variable(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """AICORTEX_SERVERS takes names from the registry as the call does."""
    with FakeServer(answer="one") as one, Registry() as registry:
        registry.add(entry_of(one.url, name="desk"))
        monkeypatch.setenv("AICORTEX_SERVERS", "desk")
        assert chat("Hi") == "one"


def test_a_registry_that_cannot_be_read_is_an_error_where_it_is_needed(chat: Chat) -> None:
    """Falling back to another server than the registered ones would hide it."""
    Path(os.environ["AICORTEX_DATA_DIR"]).mkdir()
    Path(data_path()).write_bytes(b"no database at all" * 100)
    with pytest.raises(RegistryError, match="move the file away"):
        chat("Hi")


def test_what_was_pulled_since_the_refresh_is_found(chat: Chat) -> None:
    """When nobody is known to have a model, all are asked again before it counts as missing."""
    with FakeServer(answer="one", models=["new"]) as one:
        known(one, model="old")
        assert chat("Hi", model="new") == "one"


def test_a_draining_server_gets_no_new_requests(chat: Chat) -> None:
    """It stands last: only when no other one is left is it asked."""
    with FakeServer(answer="one") as one, FakeServer(answer="two") as two:
        known(one, two)
        with Registry() as registry:
            registry.change("s0", is_draining=True)
        assert [chat("Hi") for _ in range(5)] == ["two"] * 5
        with Registry() as registry:
            registry.change("s1", is_draining=True)
        fleet = find_fleet()
        assert plan("fake", fleet).reasons == ["last: it is being drained"] * 2


def test_servers_of_the_call_are_asked_in_its_order_and_others_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names servers gives them an order, unless a setting or the call wants another strategy."""
    with FakeServer(answer="one") as one, FakeServer(answer="two") as two:
        fleet = find_fleet([one.url, two.url])
        assert plan("fake", fleet).reasons[0].startswith("order:")
        monkeypatch.setenv("AICORTEX_ROUTING", "priority")
        assert plan("fake", fleet).reasons[0].startswith("priority:")
        assert plan("fake", fleet, routing="nearest").reasons[0].startswith("nearest:")
        monkeypatch.delenv("AICORTEX_ROUTING")
        monkeypatch.setenv("AICORTEX_SERVERS", f"{one.url},{two.url}")
        assert plan("fake", find_fleet()).reasons[0].startswith("balanced:")


def test_those_that_have_the_model_go_before_the_others() -> None:
    """Behind them stand those that did not say, and last those that have it not, with the reason."""
    with (
        FakeServer(paths={"/api/tags": NOBODY}) as one,
        FakeServer() as two,
        FakeServer(paths={"/api/tags": Status(500)}) as three,
    ):
        route = plan("fake", find_fleet([one.url, three.url, two.url]))
        assert list(zip([server.label for server in route.servers], route.reasons, strict=True)) == [
            (two.url, "order: number 1 of those that have the model"),
            (three.url, "did not say which models it has"),
            (one.url, "says that it does not have the model"),
        ]


def test_an_alias_means_another_model_on_each_server(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On each server the first of an alias's models that it has is asked, and the answer names it."""
    configure(monkeypatch, tmp_path, '[aliases]\nsmall = ["a:1b", "b:2b"]\n')
    with FakeServer(Status(500), models=["b:2b"]) as one, FakeServer(answer="two", models=["b:2b", "a:1b"]) as two:
        stream = chat("Hi", model="small", servers=[one.url, two.url], stream=True)
        assert (stream.text(), stream.result.model) == ("two", "a:1b")
        assert [server.requests[-1].model for server in (one, two)] == ["b:2b", "a:1b"]


def test_an_alias_stays_what_it_is_when_an_answer_goes_on_elsewhere(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rendering and continuing use the name of the model on the server that goes on."""
    from aicortex.testing import Answer, Reset

    configure(monkeypatch, tmp_path, '[aliases]\nsmall = ["a:1b", "b:2b"]\n')
    text = "Black holes form when stars die."
    with (
        FakeServer(Answer(text).then(Reset(), after_tokens=3), models=["b:2b"]) as one,
        FakeServer(answer=text, models=["a:1b"]) as two,
    ):
        assert chat("Hi", model="small", servers=[one.url, two.url]) == text
        assert {request.model for request in two.requests if request.method == "POST"} == {"a:1b"}


def test_the_configuration_names_the_model(chat: Chat, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`model` of aicortex.toml is used when neither call nor variable names one, and servers in it are used too."""
    with FakeServer(answer="one", models=["x", "y"]) as one:
        configure(monkeypatch, tmp_path, f'model = "y"\n[[servers]]\nurl = "{one.url}"\n')
        assert chat("Hi") == "one"
        assert one.requests[-1].model == "y"
        monkeypatch.setenv("AICORTEX_MODEL", "x")
        assert chat("Hi") == "one"
        assert one.requests[-1].model == "x"


@pytest.mark.parametrize(
    ("messages", "session", "opening", "counts"),
    [
        ([{"role": "user", "content": "Hi"}], None, "user Hi", False),
        ([{"role": "user", "content": "Hi"}], "s1", "session s1", True),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}], None, "user Hi", True),
        (
            [{"role": "system", "content": "x" * 3000}, {"role": "user", "content": "Hi"}],
            None,
            "system " + "x" * 1993,
            True,
        ),
    ],
)
def test_what_stands_for_a_conversation(
    messages: list[dict[str, str]], session: str | None, opening: str, counts: bool
) -> None:
    """Its session, or how it begins; a short first question does not count."""
    assert opening_of(messages, session) == (opening, counts)
    assert len(opening) <= OPENING_CHARACTERS


@pytest.mark.parametrize("wrong", [{"routing": "best"}, {"session": " "}])
def test_wrong_arguments(chat: Chat, wrong: dict[str, str]) -> None:
    """A strategy that there is not, and a session without a name, are ValueErrors."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        chat("Hi", servers="desk", **wrong)


def test_a_wrong_strategy_in_the_environment_is_named(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which variable to correct."""
    monkeypatch.setenv("AICORTEX_ROUTING", "best")
    with FakeServer() as one, FakeServer() as two, pytest.raises(ValueError, match="AICORTEX_ROUTING: routing must be"):
        chat("Hi", servers=[one.url, two.url])
