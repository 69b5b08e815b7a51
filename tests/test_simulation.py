"""The simulator over the pure core: it finds nothing, repeats itself, and would find what is wrong."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from benchmarks import simulate
from benchmarks.simulation import wire
from benchmarks.simulation.drive import Drive, run
from benchmarks.simulation.hosts import emitted, last_words, limited, seam_stop
from benchmarks.simulation.invariants import Violation
from benchmarks.simulation.scenario import draw
from benchmarks.simulation.weights import Weights, behind
from msgspec.structs import replace

from aicortex.events import StreamEvent

SEEDS = 10_000
RUNGS = ("went on by raw", "went on by prefill", "went on by replay", "went on by restart", "went on by several rungs")
ENDINGS = ("nothing went wrong", "begun again at another server", "hedged", "moved", *RUNGS)


def quiet_seed() -> int:
    """Return the first seed whose run is whole without any failure, with several tokens."""
    for seed in range(1000):
        drive = Drive(draw(seed))
        drive.run()
        tokens = [event for event in drive.answer.log if event.type == "token"]
        if drive.ending() == "whole, nothing went wrong" and len(tokens) > 4:
            return seed
    raise AssertionError("no seed is without failures")


def test_ten_thousand_seeds_hold() -> None:
    """No invariant is violated in ten thousand runs, and every way to go on is taken in some of them."""
    endings, bad = simulate.run_batch(range(SEEDS))
    assert [f"seed {found.seed}: {found.violation}" for found in bad] == []
    for ending in ENDINGS:
        assert endings[f"whole, {ending}"] > 0
    assert endings["cancelled"] > 0


def test_a_seed_repeats_itself() -> None:
    """The same seed gives the same trace, event for event."""
    traces: list[list[str]] = [[], []]
    for seed in range(50):
        for trace in traces:
            run(seed, trace)
    assert traces[0] == traces[1]


def _doctored(kind: str, log: list[StreamEvent]) -> None:
    tokens = [number for number, event in enumerate(log) if event.type == "token"]
    second, third = tokens[1], tokens[2]
    if kind == "a token twice":
        log.insert(third, replace(log[second]))
    elif kind == "a gap":
        del log[second]
    elif kind == "a gap, numbered without one":
        del log[second]
        for number in tokens[2:]:
            log[number - 1] = replace(log[number - 1], index=(log[number - 1].index or 0) - 1)
    elif kind == "other words":
        log[second] = replace(log[second], content="Sure, here is the continuation:")
    elif kind == "no text":
        log[second] = replace(log[second], content="")
    elif kind == "time goes back":
        log[third] = replace(log[third], timestamp=0.0)
    elif kind == "an error without its keys":
        log.insert(third, StreamEvent("error", "x", meta={"server": "http://s0:1"}, timestamp=log[third].timestamp))
    elif kind == "start twice":
        log.insert(third, log[0])
    elif kind == "something after end":
        log.append(replace(log[-1]))
    elif kind == "an unknown event":
        log.insert(third, StreamEvent("rumour", "x", timestamp=log[third].timestamp))


@pytest.mark.parametrize(
    "kind",
    [
        "a token twice",
        "a gap",
        "a gap, numbered without one",
        "other words",
        "no text",
        "time goes back",
        "an error without its keys",
        "start twice",
        "something after end",
        "an unknown event",
    ],
)
def test_the_invariants_can_fail(kind: str) -> None:
    """A log that was doctored is found out."""
    drive = Drive(draw(quiet_seed()))
    drive.run()
    fresh = Drive(draw(quiet_seed())).witness
    fresh.answer.log[:] = drive.answer.log
    _doctored(kind, fresh.answer.log)
    with pytest.raises(Violation):
        fresh.look(drive.now, drive.exchanges[-1])
    honest = Drive(draw(quiet_seed())).witness
    honest.answer.log[:] = drive.answer.log
    honest.look(drive.now, drive.exchanges[-1])


def test_a_changed_log_is_found_out() -> None:
    """The log is append only: a replaced event is a violation."""
    drive = Drive(draw(quiet_seed()))
    drive.run()
    drive.answer.log[-1] = replace(drive.answer.log[-1])
    with pytest.raises(Violation, match="not appended"):
        drive.witness.look(drive.now)


def test_an_early_end_is_found_out() -> None:
    """A result whose text is not the whole of what the server said is a violation."""
    drive = Drive(draw(quiet_seed()))
    drive.run()
    exchange = drive.exchanges[-1]
    assert exchange.truth is not None
    exchange.truth = replace(exchange.truth, text=exchange.truth.text + " and more")
    with pytest.raises(Violation, match="not of the whole answer"):
        drive.witness.finish(drive.now, drive.exchanges, cancelled=False)


def test_greedy_decoding_is_a_function_of_the_text() -> None:
    """The same weights go on alike from any place of what they said, other weights do not."""
    mine, other = (Weights(Random(number), shape="prose", thinks=False) for number in (1, 2))
    text = mine.text
    for place in range(len(text) + 1):
        assert text[:place] + "".join(mine.rest(text[:place])) == text
    begun = text[:30]
    foreign = "".join(other.rest(begun))
    assert begun + foreign != text
    assert "".join(other.rest(begun + foreign[:7])) == foreign[7:]


def test_a_reply_can_be_cut_anywhere() -> None:
    """A cut reply is a beginning of the whole one; scattered bytes are the same bytes."""
    arrivals = wire.stream([(0.1, b"one\n"), (0.2, b"two\n")], chunked=True)
    whole = b"".join(data for _, data in arrivals)
    for seed in range(300):
        cut = b"".join(data for _, data in wire.cut(arrivals, Random(seed)))
        assert whole.startswith(cut)
        assert len(cut) < len(whole)
        scattered = wire.scatter(arrivals, Random(seed))
        assert b"".join(data for _, data in scattered) == whole
        assert [at for at, _ in scattered] == sorted(at for at, _ in scattered)


def test_what_a_server_makes_of_stop_and_limit() -> None:
    """A server stops at what it says itself; a stop string across the seam is for the client to find."""
    assert emitted(["a", "bc", "d"], ["cd"], holds_back=True) == ["a", "b"]
    assert emitted(["a", "bc", "d"], ["cd"], holds_back=False) == ["a", "bc"]
    assert emitted(["a", "bc"], ["x"], holds_back=True) == ["a", "bc"]
    assert seam_stop("abc", "de", ["cd"]) == 2
    assert seam_stop("abc", "cd", ["cd"]) is None
    assert limited(["a", "b"], ["t"], 2) == (["a"], ["t"], "length")
    assert limited(["a", "b"], ["t"], 3) == (["a", "b"], ["t"], "stop")
    assert behind(["ab", "cd"], 3) == ["d"]
    assert last_words("one two\n\nthree  four \n") == "two\n\nthree  four"


def test_the_command_prints_a_table_and_replays(capsys: pytest.CaptureFixture[str]) -> None:
    """The outcomes come as a Markdown table; one seed comes with its trace."""
    assert simulate.run_all(map(simulate.run_batch, [range(20)]), 20) == 0
    printed = capsys.readouterr().out
    assert "| ending | runs | share |" in printed
    assert "0 violations" in printed
    assert simulate.show(quiet_seed()) == 0
    assert "POST /api/chat" in capsys.readouterr().out
    assert simulate.table_of(Counter({"cancelled": 1})).endswith("| cancelled | 1 | 100.00 % |")
