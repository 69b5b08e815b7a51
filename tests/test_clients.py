"""Clients: defaults for every call, connections of their own, and their end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from tests.colours import PATIENCE, BlockingStream, Portal

from aicortex import AsyncClient, Client, chat
from aicortex.testing import Answer, FakeServer, Stall

TEXT = "A client keeps its connections for itself."
STALLING = Answer(TEXT).then(Stall(), after_tokens=3)
Run = Callable[..., Any]  # asyncio.run, or what uvloop has in its place
Make = Callable[..., Any]  # a Client, or what looks like one


class BlockingClient:
    """An `AsyncClient` as a thread sees it that blocks, so that one test holds in both colours."""

    def __init__(self, portal: Portal, client: AsyncClient) -> None:
        self._portal = portal
        self._client = client

    def chat(self, *asked: Any, stream: bool = False, **arguments: Any) -> BlockingStream | str:
        if not stream:
            text: str = self._portal.run(self._client.chat(*asked, **arguments))
            return text
        return BlockingStream(self._portal, self._portal.run(self._client.chat(*asked, stream=True, **arguments)))

    def models(self, *asked: Any) -> list[str]:
        return self._portal.run(self._client.models(*asked))

    def list_model_servers(self, model: str) -> list[Any]:
        return self._portal.run(self._client.list_model_servers(model))

    def close(self) -> None:
        self._portal.run(self._client.aclose())
        self._portal.run(asyncio.sleep(0))  # the loop closes what its connections are made of in its own time

    def __enter__(self) -> BlockingClient:
        self._portal.run(self._client.__aenter__())
        return self

    def __exit__(self, *left: Any) -> None:
        self._portal.run(self._client.__aexit__(*left))

    def __repr__(self) -> str:
        return repr(self._client)


@pytest.fixture(params=["Client", "AsyncClient"])
def make(request: pytest.FixtureRequest) -> Any:  # an iterator over one Make
    """Make a client of either colour."""
    if request.param == "Client":
        yield Client
        return
    with Portal() as portal:
        yield lambda **defaults: BlockingClient(portal, AsyncClient(**defaults))


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine as a user's program does, on either event loop."""
    return asyncio.run if request.param == "asyncio" else uvloop.run


def test_defaults_count_for_every_call(make: Make) -> None:
    """What a client was told goes with each of its calls."""
    with FakeServer(answer=TEXT) as server, make(servers=server.url, temperature=0, system="Be brief.") as client:
        assert [client.chat("One?"), client.chat("Two?", stream=True).text()] == [TEXT, TEXT]
        asked = [request.json for request in server.requests if request.method == "POST"]
    assert [body["options"]["temperature"] for body in asked] == [0, 0]
    assert [body["messages"][0]["content"] for body in asked] == ["Be brief.", "Be brief."]


def test_what_a_call_says_goes_before_the_defaults(make: Make) -> None:
    """None is something to say, too: it takes a default back."""
    with FakeServer(answer=TEXT) as server, make(servers="nowhere:1", temperature=0, seed=7) as client:
        client.chat("Why?", servers=server.url, temperature=1, seed=None)
        assert server.requests[-1].option("options") == {"temperature": 1}


def test_a_client_knows_its_servers_models(make: Make) -> None:
    """The lists of models and of servers are those of the client's servers."""
    with FakeServer(answer=TEXT) as server, make(servers=[server.url]) as client:
        assert client.models() == ["fake:latest"]
        assert client.models("no such family") == []
        assert [row["url"] for row in client.list_model_servers("fake:latest")] == [server.url]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("told", "error", "words"),
    [
        ({"temprature": 0}, TypeError, r"no argument 'temprature'; did you mean 'temperature'\?"),
        ({"stream": True}, TypeError, "takes no 'stream'"),
        ({"messages": []}, TypeError, "they belong to a call"),
        ({"images": [b"x"]}, TypeError, "they belong to a call"),
        ({"timeout": -1}, ValueError, "timeout must be more than 0"),
        ({"routing": "luck"}, ValueError, "routing must be one of"),
    ],
)
def test_wrong_defaults_are_refused_at_once(
    kind: Callable[..., object], told: dict[str, Any], error: type[Exception], words: str
) -> None:
    """The line that is wrong is the one that raises, and the client is named."""
    with pytest.raises(error, match=words) as caught:
        kind(**told)
    if error is TypeError:
        assert f"{kind.__name__}()" in str(caught.value)


def test_wrong_arguments_of_a_call(make: Make) -> None:
    """A call says which argument it does not know, and what asks nothing is refused."""
    with make(servers="nowhere:1") as client:
        with pytest.raises(TypeError, match="no argument 'modle'; did you mean 'model'"):
            client.chat("Why?", modle="m")
        with pytest.raises(ValueError, match="nothing is asked"):
            client.chat()


def test_connections_are_its_own(make: Make) -> None:
    """One connection serves a client's calls, and neither another client's nor those of `chat`."""
    with FakeServer(answer=TEXT) as server, make(servers=server.url) as one, make(servers=server.url) as two:
        chat("Which?", servers=server.url)  # from now on it is known which models there are
        before = server.connections
        for _ in range(3):
            one.chat("Which?")
            assert server.wait_until(lambda: server.active == 0)  # the end of the body comes behind the last chunk
        assert server.connections == before + 1
        two.chat("Which?")
        assert server.connections == before + 2
        chat("Which?", servers=server.url)
        assert server.connections == before + 2


def test_closing_closes_what_is_kept_and_leaves_streams_alone(make: Make) -> None:
    """A stream that is under way is read to its end, and leaves no connection behind."""
    with FakeServer(answer=Answer(TEXT, delay=0.005)) as server:
        client = make(servers=server.url, model="fake:latest")
        streams = [client.chat("Which?", stream=True) for _ in range(2)]
        assert streams[0].text() == TEXT
        client.close()
        client.close()
        assert streams[1].text() == TEXT
        if not isinstance(client, Client):
            client._portal.run(asyncio.sleep(0))
        assert server.wait_until(lambda: server.active == 0)
        assert server.cancelled == 0


def test_a_closed_client_says_so(make: Make) -> None:
    """Whatever is asked of it, before anything is sent."""
    with FakeServer(answer=TEXT) as server:
        client = make(servers=server.url)
        client.close()
        for ask in (lambda: client.chat("Why?"), client.models, lambda: client.list_model_servers("m")):
            with pytest.raises(RuntimeError, match=r"this (Async)?Client is closed: make another one"):
                ask()
        assert server.requests == []


def test_repr_shows_no_secrets(make: Make) -> None:
    """Addresses may have passwords in them, and prompts are nobody's business."""
    with make(servers="http://user:secret@desk", model="m", system="private") as client:
        assert "secret" not in repr(client)
        assert "private" not in repr(client)
        assert "open, model='m'>" in repr(client)
    assert "closed" in repr(client)


def test_leaving_by_an_error_closes(make: Make) -> None:
    """The error goes on as it is."""
    client = make(servers="nowhere:1")
    with pytest.raises(KeyError, match="mine"), client:
        raise KeyError("mine")
    assert "closed" in repr(client)


def test_threads_may_share_a_client() -> None:
    """Calls of many threads are whole, and most of them go over a connection that another one has used."""
    with FakeServer(answer=TEXT) as server, Client(servers=server.url, model="fake:latest") as client:
        client.chat("Which?")
        before = server.connections
        texts: list[str] = []
        threads = [
            threading.Thread(target=lambda: texts.extend(client.chat("Which?") for _ in range(10))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == [TEXT] * 80
        assert server.connections < before + 40


def test_one_loop_after_another(run: Run) -> None:
    """A client may outlive a loop; nothing of it is left open there."""

    async def main() -> None:
        assert await client.chat("Which?") == TEXT

    with FakeServer(answer=TEXT) as server:
        client = AsyncClient(servers=server.url)
        run(main())
        run(main())
        run(client.aclose())


def test_two_loops_at_once_and_one_of_them_closes(run: Run) -> None:
    """Closing reaches the connections of other loops by the hands of those loops alone."""

    async def other() -> None:
        assert await client.chat("Which?") == TEXT
        is_ready.set()
        await asyncio.to_thread(is_closed.wait, PATIENCE)
        assert await asyncio.to_thread(server.wait_until, lambda: server.active == 0)

    async def main() -> None:
        thread = threading.Thread(target=lambda: errors.append(run(other(), debug=True)))
        thread.start()
        await asyncio.to_thread(is_ready.wait, PATIENCE)
        assert await client.chat("Which?") == TEXT
        await client.aclose()
        is_closed.set()
        await asyncio.to_thread(thread.join, PATIENCE)

    is_ready, is_closed = threading.Event(), threading.Event()
    errors: list[None] = []
    with FakeServer(answer=TEXT) as server:
        client = AsyncClient(servers=server.url, model="fake:latest")
        run(main(), debug=True)
    assert errors == [None]


def test_a_client_that_was_never_closed(run: Run) -> None:
    """The end of the loop closes what it kept; nothing warns, which would fail the test."""

    async def main() -> None:
        client = AsyncClient(servers=server.url)
        async with await client.chat("Which?", stream=True) as stream:
            assert await anext(aiter(stream.tokens()))

    with FakeServer(STALLING) as server:
        run(main())
        assert server.wait_for_disconnect(1)


def test_the_wrong_kind_of_with_says_what_to_write() -> None:
    """A client of the other colour is not entered."""

    async def enter_with_async(client: Any) -> None:
        async with client:
            pass

    with pytest.raises(TypeError, match="without 'async'"):
        asyncio.run(enter_with_async(Client()))
    client: Any = AsyncClient()
    with pytest.raises(TypeError, match="write 'async with'"), client:
        pass
