"""What a process knows of its servers, and what it shares."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import time

import pytest

from aicortex import chat
from aicortex._core.health import Health
from aicortex.board import BOARD, Board, News, Seat, draw, nearness
from aicortex.in_flight import count
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import Condition, Measurement, ModelEntry, Observation
from aicortex.registry.paths import data_path
from aicortex.registry.store import Registry
from aicortex.testing import FakeServer, Status

URL = "http://desk:11434"
OTHER = "http://rack:11434"


@pytest.fixture
def registry() -> Registry:
    """A registry with two servers."""
    store = Registry()
    store.add(entry_of(URL, name="desk"))
    store.add(entry_of(OTHER, name="rack"))
    return store


def news(kind: str, label: str = URL, at: float = 0.0, **more: float) -> News:
    return News(label, "m", kind, at, **more)


def test_chance_is_between_0_and_1() -> None:
    """Draws are numbers from 0 to 1, and differ."""
    drawn = {draw() for _ in range(100)}
    assert len(drawn) == 100
    assert all(0 <= number < 1 for number in drawn)


@pytest.mark.parametrize(
    ("place", "here", "parts"),
    [("eu/office", "eu/office", 2), ("eu/office/2", "eu/office", 2), ("EU/x", "eu/y", 1), ("us", "eu", 0), ("", "", 0)],
)
def test_nearness(place: str, here: str, parts: int) -> None:
    """Places are as near as the parts that they have in common from the left."""
    assert nearness(place, here) == parts


def test_a_failure_to_connect_is_the_servers_and_another_one_the_models() -> None:
    """A refused connection counts for all models, an error of one model for that one."""
    board = Board()
    board.post(news("refused"))
    board.post(news("server_error", OTHER))
    failures = {key: health.failures for key, health in board.healths().items()}
    assert failures == {(URL, ""): 1, (OTHER, "m:latest"): 1}


def test_an_answer_ends_both_failures() -> None:
    """What answers is well again, the server and the model on it."""
    board = Board()
    for kind in ("refused", "server_error", "ok"):
        board.post(news(kind, first_token=0.5, pace=20.0))
    healths = board.healths()
    assert [health.failures for health in healths.values()] == [0, 0]
    assert healths[URL, "m:latest"].first_token == 0.5


def test_the_first_choice_counts_at_once() -> None:
    """A server that was chosen is busy from then on, so that the next thread takes another one."""
    seats = [Seat(URL, "m"), Seat(OTHER, "m")]
    choices, claim = BOARD.choose(seats, "fastest")
    assert count(seats[choices[0].server].label) == 1
    others, _ = BOARD.choose(seats, "fastest")
    assert others[0].server != choices[0].server
    del claim
    assert count(seats[choices[0].server].label) == 0


def test_ranking_changes_nothing() -> None:
    """Who only asks which server is best takes no turn and claims nothing."""
    seats = [Seat(URL, "m"), Seat(OTHER, "m")]
    assert len({BOARD.rank(seats, "round_robin")[0].server for _ in range(3)}) == 1
    assert count(URL) == 0


def test_turns_are_taken() -> None:
    """Each choice moves `round_robin` on."""
    seats = [Seat(URL, "m"), Seat(OTHER, "m")]
    turns = [BOARD.choose(seats, "round_robin")[0][0].server for _ in range(4)]
    assert turns in ([0, 1, 0, 1], [1, 0, 1, 0])  # beginning anywhere, so that many processes do not go in step


def test_each_model_has_turns_of_its_own() -> None:
    """Two models asked in turn go over all servers, both of them."""
    found: dict[str, set[int]] = {"m": set(), "n": set()}
    for model in "mnmn":
        found[model].add(BOARD.choose([Seat(URL, model), Seat(OTHER, model)], "round_robin")[0][0].server)
    assert found == {"m": {0, 1}, "n": {0, 1}}


def test_without_a_registry_none_is_made() -> None:
    """What servers do stays in the process until there is a registry."""
    BOARD.post(news("refused"))
    BOARD.share()
    assert not os.path.exists(data_path())


def test_what_one_process_learns_another_one_knows(registry: Registry) -> None:
    """Healths go through the registry's file: a second board, as of another process, reads them at once."""
    BOARD.post(news("refused"))
    BOARD.share()
    other = Board()
    assert other.healths()[URL, ""].failures == 1
    BOARD.post(news("ok"))
    BOARD.share()
    assert other.healths()[URL, ""].failures == 0
    other.close()
    registry.close()


def test_what_can_wait_is_written_together(registry: Registry) -> None:
    """An answer that changes no breaker is written a second later, or at the end of the process."""
    for _ in range(3):
        BOARD.post(news("ok"))
        BOARD.share()
    assert registry.read_health()[URL, ""].requests == 1
    BOARD.close()
    assert registry.read_health()[URL, ""].requests == 3
    registry.close()


def test_a_look_is_told_to_the_others_before_it_is_taken(registry: Registry) -> None:
    """While one process looks how a server is, another one's request does not."""
    seats = [Seat(URL, "m"), Seat(OTHER, "m")]
    BOARD.post(news("refused", at=1.0))
    choices, _ = BOARD.choose(seats, "balanced")
    assert (choices[0].server, choices[0].is_look) == (0, True)
    other = Board()
    assert [choice.server for choice in other.choose(seats, "balanced")[0]] == [1, 0]
    other.close()
    registry.close()


def test_a_measurement_counts_until_streams_know_better(registry: Registry) -> None:
    """What a refresh measured makes a server first choice; a newer stream's first token takes its place."""
    at = 2e9  # later than anything else here
    registry.apply(
        Observation(Condition(url, at), (ModelEntry("m:latest"),), (Measurement(url, "m:latest", at, first, 50.0),))
        for url, first in ((URL, 900.0), (OTHER, 100.0))
    )
    seats = [Seat(URL, "m"), Seat(OTHER, "m")]
    assert BOARD.rank(seats, "fastest")[0].server == 1
    BOARD.post(news("ok", OTHER, at=at + 1, first_token=60.0))
    assert BOARD.rank(seats, "fastest")[0].server == 0
    registry.close()


def test_a_damaged_registry_does_not_stop_a_stream_that_does_not_need_it() -> None:
    """Servers that the call names are used although the registry cannot be read; a warning says so once."""
    Path(os.environ["AICORTEX_DATA_DIR"]).mkdir()
    Path(data_path()).write_bytes(b"no database at all" * 100)
    with (
        FakeServer(answer="one") as one,
        FakeServer(answer="two") as two,
        pytest.warns(RuntimeWarning, match="registry is not used"),
    ):
        assert chat("Hi", model="fake", servers=[one.url, two.url]) == "one"


KILLED = """
import os, signal
from aicortex import AllServersFailedError, Attempt, chat
stream = chat("Hi", model="fake", stream=True)
stream.text()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_has_told_what_broke(registry: Registry) -> None:
    """A breaker that opened is in the registry before the stream's reader goes on, whatever becomes of the process."""
    with FakeServer(Status(500), answer="one") as one, FakeServer(answer="two") as two:
        for entry in registry.snapshot().servers:
            registry.remove(entry.url)
        for server in (one, two):
            registry.add(entry_of(server.url))
        run = subprocess.run(
            [sys.executable, "-c", KILLED], env={**os.environ, "AICORTEX_ROUTING": "order"}, timeout=60, check=False
        )
        assert run.returncode == -9
        assert registry.read_health()[one.url, "fake:latest"].failures == 1
    registry.close()


def test_what_a_process_has_forgotten_to_write_does_not_undo_what_others_found(registry: Registry) -> None:
    """Of two rows the newer one stays, whoever writes last."""
    now = time()
    for at in (now - 2, now - 1):
        BOARD.post(news("ok", at=at))
        BOARD.share()  # the second one can wait
    registry.write_health({(URL, ""): Health(failures=3, kind="refused", until=now + 60, changed=now)})
    BOARD.close()
    assert registry.read_health()[URL, ""].failures == 3
    assert BOARD.healths()[URL, ""].failures == 3
    registry.close()


def test_a_signal_handler_may_ask_while_the_board_is_held() -> None:
    """It does with what is known, and does not wait for the thread that it has interrupted."""
    with FakeServer(answer="one") as one, FakeServer(answer="two") as two, BOARD._entered():
        assert chat("Hi", model="fake", servers=[one.url, two.url]) == "one"


def test_sharing_waits_for_others_only_where_there_is_a_registry(registry: Registry) -> None:
    """An event loop has it done aside when it is time to write, or a server has failed; without a file never."""
    without = Board()
    assert not without.may_wait(has_failed=True)
    board = Board()
    board.knowledge()
    assert board.may_wait(has_failed=False)
    board.post(news("ok"))
    board.share()
    assert not board.may_wait(has_failed=False)
    assert board.may_wait(has_failed=True)
    board.close()
    registry.close()
