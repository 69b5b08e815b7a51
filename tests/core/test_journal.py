"""The log and the state, changed together."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from aicortex._core.failover import Deadlines, Failover
from aicortex._core.journal import Journal
from aicortex._core.ladder import Ladder
from aicortex._core.question import Question
from aicortex._core.state import Progress, State
from aicortex.events import StreamEvent

START = StreamEvent("start", "", timestamp=1000.0)


def state(mark: int = 0) -> State:
    return State(Failover((0,), Deadlines(), 10.0, 10.0), Ladder(Question("m", []), ("",), {}), 10.0, mark)


def journal() -> Journal:
    return Journal(state(), START, zero=990.0)


def token(text: str) -> StreamEvent:
    return StreamEvent("token", text)


def interrupted(call: Callable[[], object], place: int) -> int:
    """Interrupt a call at the given line of the journal; return how many lines ran."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if "_core" not in frame.f_code.co_filename:
            return None
        if event == "line":
            count += 1
            if count == place:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return count


def test_it_begins_with_the_start() -> None:
    """The first event is there before anything happens."""
    assert journal().log == [START]


def test_an_event_is_stamped_with_the_wall_clock() -> None:
    """Monotonic times become Unix seconds by one difference, taken at the start."""
    event = journal()._event("meta", 12.5, "", {"kind": "moved"})
    assert event == StreamEvent("meta", "", meta={"kind": "moved"}, timestamp=1002.5)


def test_a_commit_changes_log_and_state_at_once() -> None:
    """Events are appended in order to the same list, and nothing stays staged."""
    kept = journal()
    log = kept.log
    kept._commit([token("a"), token("b")], state(3), Progress(2, True))
    assert kept.log is log
    assert log == [START, token("a"), token("b")]
    assert (kept._state.mark, kept._progress.index, kept._staged) == (3, 2, None)


def test_recovering_without_need_does_nothing() -> None:
    """A commit that was finished is not made again."""
    kept = journal()
    kept._commit([token("a")], state(2), Progress(1, True))
    kept._recover()
    assert kept.log == [START, token("a")]


def test_an_interrupted_commit_is_whole_or_was_never_begun() -> None:
    """An interrupt at every line of a commit, and again at every line of its repair, loses and doubles nothing."""
    lines = interrupted(lambda: journal()._commit([token("a")], state(2), Progress(1, True)), 0)
    assert lines >= 5
    begun = set()
    for place in range(1, lines + 1):
        for again in range(1, 12):
            kept = journal()
            interrupted(lambda kept=kept: kept._commit([token("a")], state(2), Progress(1, True)), place)  # type: ignore[misc]
            was_staged = kept._staged is not None
            interrupted(kept._recover, again)
            kept._recover()
            count = len(kept.log) - 1
            assert count == (1 if was_staged else kept._state.mark // 2)
            assert (kept._state.mark, kept._progress.index) == (2 * count, count)
            begun.add(count)
    assert begun == {0, 1}


def test_an_empty_commit_can_be_interrupted_too() -> None:
    """A change of state without an event is finished as well."""
    for place in range(2, 6):
        kept = journal()
        interrupted(lambda kept=kept: kept._commit([], state(7), Progress(1)), place)  # type: ignore[misc]
        kept._recover()
        assert (kept.log, kept._state.mark, kept._staged) == ([START], 7, None)
