"""Tools and servers that die: `python -m benchmarks.tools` kills real engines around the calls of a conversation.

Two tools, three turns, three embedded engines. In each run the engine that answers is ended with SIGKILL at one moment,
or at several one after the other. The table says how often each tool ran, and what the reader got.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from aicortex import AllServersFailedError, StreamEvent, chat
from benchmarks.engines import MODEL, Engine, Fleet, running

PROMPT = "Get the weather in Berlin, then get the time in Berlin."  # in these words the small model calls both
Moment = Callable[[StreamEvent, int], bool]  # of an event, and how many tools have run


def is_asked(event: StreamEvent, ran: int) -> bool:
    """Whether the first turn is asked for."""
    return (event.meta or {}).get("kind") == "connected" and ran == 0


def is_called(event: StreamEvent, ran: int) -> bool:
    """Whether the first call has come, and has not run."""
    return event.type == "tool_call" and ran == 0


def is_between(event: StreamEvent, ran: int) -> bool:
    """Whether the first tool has run, and the model is about to go on."""
    return event.type == "tool_result" and ran == 1


def is_answering(event: StreamEvent, ran: int) -> bool:
    """Whether both tools have run, and the model has begun to answer."""
    return event.type == "token" and event.index == 3 and ran == 2


MOMENTS: dict[str, tuple[Moment, ...]] = {
    "never": (),
    "before the call": (is_asked,),
    "behind the call": (is_called,),
    "between the calls": (is_between,),
    "in the answer": (is_answering,),
    "before, between and in the answer": (is_asked, is_between, is_answering),
}


@dataclass
class Trial:
    """One conversation: when engines are killed, what ran, and what the reader got."""

    name: str
    ran: list[str] = field(default_factory=list)
    killed: int = 0
    text: str = ""
    error: str = ""

    @property
    def is_well(self) -> bool:
        """Whether each tool ran once and the answer is whole."""
        return sorted(self.ran) == ["get_time Berlin", "get_weather Berlin"] and bool(self.text) and not self.error


def run(fleet: Fleet, name: str) -> Trial:
    """Have the conversation once, and kill engines at its moments."""
    trial = Trial(name)
    left = list(MOMENTS[name])
    serving: list[Engine] = []

    def get_weather(city: str) -> str:
        """Get the current weather in a city."""
        trial.ran.append(f"get_weather {city}")
        return "Sunny, 21 degrees"

    def get_time(city: str) -> str:
        """Get the current time in a city."""
        trial.ran.append(f"get_time {city}")
        return "14:05"

    stream = chat(
        PROMPT,
        model=MODEL,
        servers=[engine.relay.url for engine in fleet.ready],
        tools=[get_weather, get_time],
        temperature=0,
        max_tokens=60,
        stream=True,
    )
    try:
        for event in stream:
            if (event.meta or {}).get("kind") == "connected":
                serving.append(fleet.engines[(event.meta or {})["server"]])
            if left and left[0](event, len(trial.ran)):
                left.pop(0)
                serving[-1].kill()
                trial.killed += 1
        trial.text = stream.text()
    except AllServersFailedError as error:
        trial.error = str(error)
    return trial


def table_of(trials: list[Trial]) -> str:
    """Return the trials as a Markdown table."""
    rows = [
        f"| {trial.name} | {trial.killed} | {', '.join(trial.ran)} | {trial.error or trial.text} |" for trial in trials
    ]
    head = ["| engine killed | kills | tools that ran | answer |", "|---|--:|---|---|"]
    return "\n".join([*head, *rows])


def run_all(names: Iterable[str]) -> list[Trial]:
    """Have a conversation for each of these moments, with engines of its own."""
    trials = []
    with running() as fleet:
        for name in names:
            trials.append(run(fleet, name))
            fleet.heal()
    return trials


def main() -> int:
    """Run every moment once and print the table."""
    argparse.ArgumentParser(prog="python -m benchmarks.tools", description=__doc__).parse_args()
    trials = run_all(MOMENTS)
    print(table_of(trials))
    return int(not all(trial.is_well for trial in trials))


if __name__ == "__main__":
    raise SystemExit(main())
