"""The relay carries bytes as they are, breaks them as it is told, and lets each side see the other leave."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import trustme
from tests.colours import Chat

from aicortex.testing import Answer, FakeServer, Raw, Relay, Reset, Stall

BODY = b'{"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}'
REQUEST = b"POST /api/chat HTTP/1.1\r\nHost: fake\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
DATA = b"".join(b"%06d\n" % number for number in range(200))
STALLING = Answer("one two three four").then(Stall(), after_tokens=2)
AGES = 1e6  # seconds: a fault of this length is over when it is taken back


@pytest.fixture(autouse=True)
def _no_thread_survives() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("Relay")] == []


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that sends DATA and closes, whatever it is asked."""
    with FakeServer(everything=Raw(DATA)) as server:
        yield server


@pytest.fixture
def relay(server: FakeServer) -> Iterator[Relay]:
    with Relay(server.url) as relay:
        yield relay


def connect(relay: Relay) -> socket.socket:
    return socket.create_connection((relay.host, relay.port), timeout=10)


def ask(relay: Relay) -> socket.socket:
    client = connect(relay)
    client.sendall(REQUEST)
    return client


def read(client: socket.socket) -> tuple[bytes, str]:
    """Return all bytes until the end, and how it ended: "closed" or "reset"."""
    data = b""
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionResetError:
        return data, "reset"
    return data, "closed"


def answer_of(relay: Relay) -> tuple[bytes, str]:
    try:
        with closing(ask(relay)) as client:
            return read(client)
    except ConnectionError:  # reset before the request was sent
        return b"", "reset"


def is_silent(client: socket.socket) -> bool:
    """Whether neither a byte nor the end comes; what is held back by mistake is there within a tenth of a second."""
    client.settimeout(0.1)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(10)
    return False


def wait_until_sent(server: FakeServer, requests: int = 1) -> None:
    """Wait until the server has answered so many requests and left."""
    assert server.wait_until(lambda: len(server.requests) == requests and server.active == 0)


def test_without_a_fault_everything_passes_and_is_counted(server: FakeServer, relay: Relay) -> None:
    """The server gets the request and the client the response and its end, byte by byte."""
    assert [answer_of(relay), answer_of(relay)] == [(DATA, "closed")] * 2
    assert [request.body for request in server.requests] == [BODY, BODY]
    assert relay.wait_until(lambda: relay.active == 0)
    assert (relay.connections, relay.request_bytes, relay.response_bytes) == (2, 2 * len(REQUEST), 2 * len(DATA))


def test_a_stream_passes(chat: Chat) -> None:
    """`chat` reads a whole answer through a relay, over connections that are kept."""
    with FakeServer(answer="Rivers flow.") as server, Relay(f"{server.host}:{server.port}") as relay:
        assert [chat("Do they?", servers=[relay.url]) for _ in range(3)] == ["Rivers flow."] * 3
        assert relay.connections < len(server.requests)


def test_more_than_buffers_hold_passes_both_ways() -> None:
    """Neither a large request nor a large response to a client that reads late is lost."""
    large = bytes(range(256)) * 40_000
    head = b"POST /x HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(large)
    with FakeServer(everything=Raw(large)) as server, Relay(server.url) as relay, closing(connect(relay)) as client:
        client.sendall(head + large)
        assert server.wait_until(lambda: len(server.requests) == 1, 10)
        assert read(client) == (large, "closed")
        assert server.requests[0].body == large


def test_the_server_sees_at_once_that_the_client_left() -> None:
    """Closing the client's connection cancels the generation behind the relay."""
    with FakeServer(STALLING) as server, Relay(server.url) as relay:
        with closing(ask(relay)) as client:
            assert client.recv(1) == b"H"
        assert server.wait_for_disconnect()
        assert relay.wait_until(lambda: relay.active == 0)


def test_the_client_sees_how_the_server_left() -> None:
    """A server that resets or goes away in the middle does so at the client too."""
    with FakeServer(STALLING, Reset()) as server, Relay(server.url) as relay, closing(ask(relay)) as stalling:
        assert server.wait_until(lambda: server.active == 1)
        assert answer_of(relay) == (b"", "reset")
        server.stop()
        assert read(stalling)[1] == "closed"


def test_the_example_of_the_documentation_runs() -> None:
    """The example of docs/testing.md works as written."""
    page = (Path(__file__).parents[1] / "docs" / "testing.md").read_text(encoding="utf-8")
    section = page.split("## Between client and server\n")[1]
    exec(compile(section.split("```python\n")[1].split("```")[0], "docs/testing.md", "exec"), {})


def test_without_a_server_the_connection_is_reset(relay: Relay, server: FakeServer) -> None:
    """A relay that finds no server resets; once the server is there it is used."""
    server.stop()
    assert answer_of(relay) == (b"", "reset")
    server.start()
    assert answer_of(relay) == (DATA, "closed")


@pytest.mark.parametrize(("reset", "end"), [(True, "reset"), (False, "closed")])
def test_cut_ends_open_connections_and_spares_new_ones(chat: Chat, reset: bool, end: str) -> None:
    """Both sides of an open connection see its end at once; the next connection works."""
    with FakeServer(STALLING, answer="Fine.") as server, Relay(server.url) as relay, closing(ask(relay)) as client:
        assert client.recv(1) == b"H"
        relay.cut(reset=reset)
        assert relay.active == 0
        assert read(client)[1] == end
        assert server.wait_for_disconnect()
        assert chat("Hi", servers=[relay.url]) == "Fine."


@pytest.mark.parametrize(("reset", "end"), [(True, "reset"), (False, "closed")])
def test_cut_after_bytes_lets_so_many_through_and_strikes_once(relay: Relay, reset: bool, end: str) -> None:
    """The first connection to get more bytes ends behind them, the next is whole."""
    relay.cut(after_bytes=len(DATA), reset=reset)
    assert answer_of(relay) == (DATA, "closed")
    relay.restore()
    relay.cut(after_bytes=100, reset=reset)
    data, seen = answer_of(relay)
    assert seen == end
    assert data == DATA[:100] or (reset and DATA[:100].startswith(data))  # not every system delivers before RST
    assert answer_of(relay) == (DATA, "closed")


def test_bytes_are_counted_from_the_call_on() -> None:
    """What an open connection got before does not count."""
    kept = Raw(DATA, keep_open=True)
    with FakeServer(everything=kept) as server, Relay(server.url) as relay, closing(ask(relay)) as client:
        assert client.recv(len(DATA), socket.MSG_WAITALL) == DATA
        relay.cut(after_bytes=len(DATA) + 50, reset=False)
        client.sendall(REQUEST + REQUEST)
        assert read(client) == (DATA + DATA[:50], "closed")


def test_corrupt_flips_one_byte_once(relay: Relay) -> None:
    """One byte has all its bits flipped, everything else and the next connection are as they were."""
    relay.corrupt(after_bytes=77)
    flipped = DATA[:77] + bytes([DATA[77] ^ 0xFF]) + DATA[78:]
    assert [answer_of(relay), answer_of(relay)] == [(flipped, "closed"), (DATA, "closed")]


def test_restore_forgets_strikes(relay: Relay) -> None:
    """What has not struck yet never does."""
    relay.corrupt(after_bytes=10)
    relay.cut(after_bytes=20)
    relay.restore()
    assert answer_of(relay) == (DATA, "closed")


def test_faults_join(relay: Relay) -> None:
    """A byte can be corrupted on a connection that is cut behind it."""
    relay.corrupt()
    relay.cut(after_bytes=5, reset=False)
    assert answer_of(relay) == (bytes([DATA[0] ^ 0xFF]) + DATA[1:5], "closed")


def test_stall_holds_everything_until_restore(server: FakeServer, relay: Relay) -> None:
    """The client gets neither bytes nor the end while the request still goes through, and all of it afterwards."""
    relay.stall()
    with closing(ask(relay)) as client:
        wait_until_sent(server)
        assert is_silent(client)
        assert (relay.active, relay.request_bytes, relay.response_bytes) == (1, len(REQUEST), 0)
        relay.restore()
        assert read(client) == (DATA, "closed")


def test_stall_holds_the_end_alone() -> None:
    """A client that has every byte does not learn that the server left until the stall is over."""
    kept = Raw(DATA, keep_open=True)
    with FakeServer(everything=kept) as server, Relay(server.url) as relay, closing(ask(relay)) as client:
        assert client.recv(len(DATA), socket.MSG_WAITALL) == DATA
        relay.stall()
        server.stop()
        assert is_silent(client)
        relay.restore()
        assert read(client) == (b"", "closed")


def test_the_server_waits_for_a_client_that_does_not_read() -> None:
    """The relay keeps no more of a response than a buffer's worth."""
    with FakeServer(everything=Raw(bytes(20_000_000))) as server, Relay(server.url) as relay:
        relay.stall()
        with closing(ask(relay)):
            assert server.wait_until(lambda: server.active == 1)
            assert not server.wait_until(lambda: server.active == 0, 0.3)


def test_a_stalled_client_can_leave() -> None:
    """Who gives up on a stalled connection still cancels the generation."""
    with FakeServer(STALLING) as server, Relay(server.url) as relay:
        relay.stall()
        with closing(ask(relay)):
            assert server.wait_until(lambda: server.active == 1)
        assert server.wait_for_disconnect()


def test_a_stalled_connection_can_be_cut(server: FakeServer, relay: Relay) -> None:
    """What was held is dropped by a cut."""
    relay.stall()
    with closing(ask(relay)) as client:
        wait_until_sent(server)
        relay.cut()
        assert read(client) == (b"", "reset")


def test_delay_holds_a_piece_for_its_time(server: FakeServer, relay: Relay) -> None:
    """A piece is not there before its time, and whole when the delay is taken back."""
    relay.delay(AGES)
    with closing(ask(relay)) as client:
        wait_until_sent(server)
        assert is_silent(client)
        relay.restore()
        assert read(client) == (DATA, "closed")


def test_throttle_holds_what_is_too_much(server: FakeServer, relay: Relay) -> None:
    """A byte takes its time; the others come when the throttle is taken off."""
    relay.throttle(1 / AGES)
    with closing(ask(relay)) as client:
        wait_until_sent(server)
        assert client.recv(100) == DATA[:1]
        assert is_silent(client)
        relay.restore()
        assert read(client) == (DATA[1:], "closed")


def test_a_slow_relay_loses_nothing(relay: Relay) -> None:
    """Delayed and throttled responses are whole, in order."""
    relay.delay(0.001)
    relay.throttle(20_000)
    assert answer_of(relay) == (DATA, "closed")


def test_refuse_turns_new_connections_away_until_restore(chat: Chat) -> None:
    """Open connections live on, new ones are refused; afterwards the port is the same."""
    with FakeServer(STALLING, answer="Fine.") as server, Relay(server.url) as relay, closing(ask(relay)) as client:
        assert server.wait_until(lambda: server.active == 1)
        address = relay.url
        relay.refuse()
        relay.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(relay)
        assert relay.active == 1
        assert client.recv(1) == b"H"
        relay.restore()
        assert relay.url == address
        assert chat("Hi", servers=[address]) == "Fine."


def test_tls_passes_through() -> None:
    """The relay of an https server is an https address, and the certificate is the server's."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with FakeServer(everything=Raw(DATA), tls=context) as server, Relay(server.url + "/ollama") as relay:
        assert relay.url == f"https://127.0.0.1:{relay.port}/ollama"
        with trusting.wrap_socket(connect(relay), server_hostname=relay.host) as client:
            client.sendall(REQUEST)
            assert client.recv(len(DATA)) == DATA
            with suppress(ssl.SSLError):  # the fake server says no goodbye
                assert read(client)[0] == b""


def test_a_relay_can_stop_and_start_again(server: FakeServer) -> None:
    """Stopping closes what is open; starting takes the same port."""
    relay = Relay(f"localhost:{server.port}")
    relay.stop()  # of what does not run is no mistake
    relay.start()
    with closing(connect(relay)) as client:
        assert relay.wait_until(lambda: relay.active == 1)
        relay.stop()
        assert read(client) == (b"", "closed")
    address = relay.url
    with relay:
        assert relay.url == address
        assert answer_of(relay) == (DATA, "closed")


def test_a_relay_that_does_not_run_says_so() -> None:
    """A fault for a relay that has not been started is a mistake of the test."""
    with pytest.raises(RuntimeError, match="start it"):
        Relay("127.0.0.1:1").cut()


@pytest.mark.parametrize("address", ["embedded", "ftp://host", "host:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """A relay needs to know where to."""
    with pytest.raises(ValueError, match=r"address|port"):
        Relay(address)


def test_wait_until_gives_up(relay: Relay) -> None:
    """A claim that does not come true in time is reported, not raised."""
    assert relay.wait_until(lambda: False, 0.01) is False
