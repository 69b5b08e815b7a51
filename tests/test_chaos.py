"""Real engines that are killed, stopped, cut off and overrun lose no character of any stream."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import pytest
from benchmarks import chaos
from benchmarks.engines import Engine, running

from aicortex import StreamEvent

SEED = 5
STREAMS = len(chaos.FAULTS) + 1  # every fault once; the benchmark runs hundreds
SHORT = [chaos.PROMPTS[number] for number in (1, 8, 13)]  # those whose answers end long before the limit
WHOLE = [
    StreamEvent("start", ""),
    StreamEvent("token", "Rivers", 0),
    StreamEvent("token", " flow.", 1),
    StreamEvent("end", ""),
]
REFERENCE = chaos.Reference("What do rivers do?", "Rivers flow.", 2, 0.5)


def trial(number: int = 0, *, verdict: str = "whole", text: str = "Rivers flow.") -> chaos.Trial:
    made = chaos.draw(SEED, number, [REFERENCE], ["a", "b", "c"])
    made.verdict, made.text = verdict, text
    return made


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGSTOP")
def test_every_stream_is_whole_whatever_happens_to_the_servers(weights_path: Path) -> None:
    """Each fault strikes real processes, and every stream comes out as the answer without a fault."""
    assert weights_path.exists()
    with running() as fleet:
        trials = chaos.run(fleet, streams=STREAMS, seed=SEED, prompts=SHORT)
    assert [chaos.explain(each, SEED) for each in trials if each.verdict != "whole"] == []
    assert {each.fault for each in trials} == {*(fault.name for fault in chaos.FAULTS), chaos.TWICE}
    assert sum(bool(each.seams) for each in trials) >= STREAMS // 2


def test_a_whole_stream_is_called_whole() -> None:
    """Other events between the tokens change nothing."""
    events = [*WHOLE[:2], StreamEvent("meta", meta={"kind": "resumed"}), *WHOLE[2:]]
    assert chaos.judge(events, "Rivers flow.") == "whole"


@pytest.mark.parametrize(
    ("events", "verdict"),
    [
        (WHOLE[1:], "malformed: not exactly one start, first"),
        ([*WHOLE[:2], *WHOLE], "malformed: not exactly one start, first"),
        (WHOLE[:-1], "malformed: not exactly one end, last"),
        ([*WHOLE, WHOLE[1]], "malformed: not exactly one end, last"),
        ([WHOLE[0], *WHOLE[2:]], "malformed: the index has gaps or repeats"),
        ([*WHOLE[:2], *WHOLE[1:]], "malformed: the index has gaps or repeats"),
        ([*WHOLE[:2], WHOLE[3]], "different: characters are missing, doubled or other ones"),
    ],
)
def test_what_is_not_whole_is_told(events: list[StreamEvent], verdict: str) -> None:
    """A second start, an early end, a gap in the index and a missing word are each called by name."""
    assert chaos.judge(events, "Rivers flow.") == verdict


def test_a_trial_depends_on_seed_and_number_alone() -> None:
    """A stream that failed can be drawn again without those before it."""
    first, again, other = trial(5), trial(5), trial(16)
    assert (first.strikes, first.order) == (again.strikes, again.order)
    assert first.chance.random() == again.chance.random()
    assert other.fault == first.fault
    assert other.chance.random() != first.chance.random()


class Speaker:
    """Says what follows a text as the dictionary has it, in place of an engine."""

    def __init__(self, sayings: dict[str, str]) -> None:
        self.sayings = sayings

    def render(self, prompt: str) -> str:
        return f"<{prompt}>"

    def go_on(self, text: str, *, max_tokens: int) -> str:
        return " ".join(self.sayings[text].split(" ")[: max_tokens + 1])


@pytest.mark.parametrize(
    ("seams", "text", "honest"),
    [
        (["Rivers"], "Rivers run and run.", True),
        (["Rivers", "Rivers run"], "Rivers run far.", True),
        (["Rivers"], "Rivers and run.", False),
        (["Rivers"], "Rivers Rivers run and run.", False),
        (["Rivers run"], "Rivers run far.", False),
        ([], "Rivers run far.", False),
    ],
)
def test_another_ending_is_the_engines_own(seams: list[str], text: str, honest: bool) -> None:
    """Only what the engine says behind the delivered text excuses a difference, at every seam."""
    sayings = {"<What do rivers do?>Rivers": " run and run.", "<What do rivers do?>Rivers run": " far."}
    made = trial(verdict=chaos.DIFFERENT, text=text)
    made.seams = [chaos.Seam("raw", seam, seam.count(" ") + 1) for seam in seams]
    assert chaos.goes_on_honestly(made, cast(Engine, Speaker(sayings))) is honest


def test_a_failed_stream_is_explained() -> None:
    """The report has what is needed to repeat it, and the texts around the first difference."""
    words = chaos.explain(trial(verdict="different: characters", text="Rivers rivers flow."), SEED)
    assert "seed 5, stream 0: process killed after" in words
    assert "19 characters of 12, the first 7 equal" in words
    assert "'Rivers rivers flow.'" in words


def test_the_table_has_a_row_per_fault_and_way() -> None:
    """Rows come in the order of the faults, with the median and the greatest delay; the totals name every verdict."""
    trials = [trial(1), trial(), trial(verdict=chaos.ANOTHER), trial(verdict="interrupted: no server")]
    trials[1].seams = trials[2].seams = [chaos.Seam("raw", "Rivers", 1)]
    trials[3].failures = 1
    trials[1].extra_seconds, trials[2].extra_seconds = 0.5, 1.5
    assert chaos.render(trials).splitlines()[2:] == [
        "| process killed | begun again | 1 | 0 | 0 | 0.00 | 0.00 |",
        "| process killed | raw | 2 | 1 | 1 | 1.00 | 1.50 |",
        "| process stopped | not needed | 1 | 1 | 0 | 0.00 | 0.00 |",
        "",
        "4 streams: 2 whole, 1 another ending, 0 different, 0 malformed, 1 interrupted",
    ]


def test_the_number_of_streams_is_positive(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing to run is a mistake on the command line."""
    with pytest.raises(SystemExit):
        chaos.main(["--streams", "0"])
    assert "--streams must be positive" in capsys.readouterr().err
