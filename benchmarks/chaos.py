"""`python -m benchmarks.chaos`: break real servers in the middle of real answers, and compare every character.

Three embedded engines, each a process of its own behind a relay, answer the same prompts. First every prompt once,
undisturbed: the references. Then each stream meets a fault at a moment, both drawn from the seed and the stream's
number, and must come out as its reference: one start, every token once and in order, one end, the same text.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from random import Random
from statistics import median

from aicortex import StreamEvent, chat
from aicortex.errors import AICortexError
from aicortex.stream import Stream
from benchmarks.engines import MODEL, Engine, Fleet, running

MAX_TOKENS = 64
STALL_SECONDS = 1.0
FIRST_TOKEN_SECONDS = 4.0  # a stopped server must not hold a stream longer; a loaded one needs 0.3
TOTAL_SECONDS = 60.0  # a stream that takes longer counts as interrupted
FAR_BYTES = 600  # within about four chunks, so that faults strike in every part of one
PROMPTS = (
    "Why is the sky blue?",
    "Write a haiku about rain.",
    "List five uses of a brick, one per line.",
    "What is the capital of France, and what is it known for?",
    "Explain recursion to a child.",
    "Write a Python function that reverses a list.",
    "Tell me a story about a lighthouse keeper and a whale.",
    "Which flag is this: 🇫🇷?",
    "Name the planets in order, with one fact for each.",
    "Name three rivers in Africa.",
    "Give me three reasons to learn the piano.",
    "What is a black hole?",
    "Write a limerick about a cat who codes.",
    "Which emoji means love?",
    "Describe a sunset over the sea in two sentences.",
    "What does HTTP status 404 mean?",
    "How does a bicycle stay upright?",
    "Make a table in Markdown of three animals and their sounds.",
    "Who was Ada Lovelace?",
    "Continue: once upon a time, in a village without clocks,",
)


@dataclass(frozen=True)
class Scene:
    """What a fault may act on: the engine that answers, the stream it answers, and chance."""

    answering: Engine
    stream: Stream
    chance: Random

    def cut(self, *, reset: bool) -> None:
        """Break the connection, most often within a chunk."""
        self.answering.relay.cut(reset=reset, after_bytes=self.chance.randrange(FAR_BYTES))


@dataclass(frozen=True)
class Fault:
    """What strikes in the middle of an answer; `prepare` happens to the second server before the stream begins."""

    name: str
    strike: Callable[[Scene], object]
    prepare: Callable[[Engine], object] = lambda _: None


FAULTS = (
    Fault("process killed", lambda scene: scene.answering.kill()),
    Fault("process stopped", lambda scene: scene.answering.pause()),
    Fault("connection reset", lambda scene: scene.cut(reset=True)),
    Fault("connection closed", lambda scene: scene.cut(reset=False)),
    Fault("connection silent", lambda scene: scene.answering.relay.stall()),
    Fault("byte corrupted", lambda scene: scene.answering.relay.corrupt(after_bytes=scene.chance.randrange(FAR_BYTES))),
    Fault("reset, next queue full", lambda scene: scene.answering.relay.cut(), prepare=Engine.fill),
    Fault("moved", lambda scene: scene.stream.move()),
    Fault("throttled", lambda scene: scene.answering.relay.throttle(4000)),
    Fault("delayed", lambda scene: scene.answering.relay.delay(0.2)),
)
BREAKING = FAULTS[:5]  # those after which an answer always goes on elsewhere
TWICE = "two in a row"
DIFFERENT = "different: characters are missing, doubled or other ones"
ANOTHER = "another ending"
KINDS = ("whole", ANOTHER, "different", "malformed", "interrupted")


@dataclass(frozen=True)
class Reference:
    """A prompt's answer without a fault: its text, its number of chunks and how long it took."""

    prompt: str
    text: str
    chunks: int
    seconds: float


@dataclass(frozen=True)
class Seam:
    """Where an answer was continued: by which way, and the text and the number of tokens delivered before."""

    rung: str
    text: str
    tokens: int


@dataclass
class Trial:
    """One stream: which faults after how many tokens (the second counts from where the first was survived)."""

    number: int
    reference: Reference
    order: list[str]
    strikes: list[tuple[int, Fault]]
    chance: Random
    text: str = ""
    seams: list[Seam] = field(default_factory=list)
    failures: int = 0
    extra_seconds: float = 0.0
    verdict: str = ""

    @property
    def fault(self) -> str:
        return TWICE if len(self.strikes) > 1 else self.strikes[0][1].name

    @property
    def row(self) -> tuple[str, str]:
        """The row of the table that it counts in."""
        return self.fault, ", ".join(seam.rung for seam in self.seams) or (
            "begun again" if self.failures else "not needed"
        )


def draw(seed: int, number: int, references: Sequence[Reference], servers: Iterable[str]) -> Trial:
    """Return the trial with this number, whatever came before it; faults take turns, all else is chance."""
    chance = Random(f"{seed} {number}")
    reference = chance.choice(references)
    order = list(servers)
    chance.shuffle(order)
    turn = number % (len(FAULTS) + 1)
    if turn < len(FAULTS):
        strikes = [(chance.randrange(reference.chunks), FAULTS[turn])]
    else:
        first = chance.randrange(1, max(2, reference.chunks // 2))
        strikes = [(first, chance.choice(BREAKING)), (chance.randrange(1, 12), chance.choice(BREAKING))]
    return Trial(number, reference, order, strikes, chance)


def ask(prompt: str, servers: Sequence[str]) -> Stream:
    """Begin a stream that says the same each time."""
    return chat(
        prompt,
        stream=True,
        model=MODEL,
        servers=servers,
        temperature=0,
        max_tokens=MAX_TOKENS,
        stall_timeout=STALL_SECONDS,
        first_token_timeout=FIRST_TOKEN_SECONDS,
        timeout=TOTAL_SECONDS,
    )


def refer(prompt: str, server: str) -> Reference:
    """Return what a prompt gives when nothing happens."""
    began = time.perf_counter()
    stream = ask(prompt, [server])
    text = stream.text()
    seconds = time.perf_counter() - began
    return Reference(prompt, text, sum(event.type == "token" for event in stream.events), seconds)


def undergo(trial: Trial, fleet: Fleet) -> None:
    """Read the stream of a trial, strike when its moments come, and note how it came out."""
    for _, fault in trial.strikes:
        fault.prepare(fleet.engines[trial.order[1]])
    began = time.perf_counter()
    stream = ask(trial.reference.prompt, trial.order)
    try:
        _read(stream, trial, fleet)
        trial.verdict = judge(stream.events, trial.reference.text)
    except AICortexError as error:
        trial.verdict = f"interrupted: {error}"
    trial.extra_seconds = time.perf_counter() - began - trial.reference.seconds
    trial.text = stream.text_so_far
    trial.failures = sum(event.type == "error" for event in stream.events)
    stream.cancel()


def _read(stream: Stream, trial: Trial, fleet: Fleet) -> None:
    answering, said, begun, left = trial.order[0], [], 0, list(trial.strikes)
    for event in stream:
        meta = event.meta or {}
        if event.type == "token":
            said.append(event.content or "")
        elif event.type == "meta" and meta["kind"] in ("connected", "resumed"):
            answering = meta["server"]
        if meta.get("kind") == "resumed":
            trial.seams.append(Seam(meta["rung"], "".join(said), len(said)))
            begun = len(said)
        survived = len(trial.seams) >= len(trial.strikes) - len(left)
        if left and survived and len(said) - begun >= left[0][0]:
            fault = left.pop(0)[1]
            fault.strike(Scene(fleet.engines[answering], stream, trial.chance))


def judge(events: Sequence[StreamEvent], text: str) -> str:
    """Return "whole" if these events are one complete answer with this text, or what is wrong with them."""
    types = [event.type for event in events]
    tokens = [event for event in events if event.type == "token"]
    if types.count("start") != 1 or types[0] != "start":
        return "malformed: not exactly one start, first"
    if types.count("end") != 1 or types[-1] != "end":
        return "malformed: not exactly one end, last"
    if [event.index for event in tokens] != list(range(len(tokens))):
        return "malformed: the index has gaps or repeats"
    if "".join(event.content or "" for event in tokens) != text:
        return DIFFERENT
    return "whole"


def goes_on_honestly(trial: Trial, engine: Engine) -> bool:
    """Whether a text differs only because the engine itself, asked to go on from a seam, says something else.

    It evaluates there in one go what it had generated token by token, and maybe cuts it into other tokens: where two
    words are about equally likely, the other one may come. Nothing is lost or doubled as long as each part of the text
    is what the engine says behind what had been delivered.
    """
    if not trial.seams or not trial.reference.text.startswith(trial.seams[0].text):
        return False
    rendered = engine.render(trial.reference.prompt)
    texts = [
        seam.text + engine.go_on(rendered + seam.text, max_tokens=MAX_TOKENS - seam.tokens) for seam in trial.seams
    ]
    reached = all(text.startswith(seam.text) for text, seam in zip(texts, trial.seams[1:], strict=False))
    return reached and texts[-1] == trial.text


def explain(trial: Trial, seed: int) -> str:
    """Return what is needed to look into a stream that did not come out whole."""
    expected, actual = trial.reference.text, trial.text
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(expected, actual, strict=False)))
    near = slice(max(0, same - 40), same + 40)
    strikes = " and ".join(f"{fault.name} after {moment} tokens" for moment, fault in trial.strikes)
    return (
        f"seed {seed}, stream {trial.number}: {strikes}; rungs: {trial.row[1]}\n  {trial.verdict}\n"
        f"  prompt    {trial.reference.prompt!r}\n"
        f"  {len(actual)} characters of {len(expected)}, the first {same} equal\n"
        f"  expected  {expected[near]!r}\n  actual    {actual[near]!r}"
    )


def run(fleet: Fleet, *, streams: int, seed: int, prompts: Sequence[str] = PROMPTS) -> list[Trial]:
    """Make the references and read all streams, one after the other, with progress on standard error."""
    servers = list(fleet.engines)
    references = []
    for number, prompt in enumerate(prompts, 1):
        _progress(f"reference {number} of {len(prompts)}")
        references.append(refer(prompt, servers[0]))
    trials: list[Trial] = []
    for number in range(streams):
        trial = draw(seed, number, references, servers)
        whole = sum(each.verdict == "whole" for each in trials)
        _progress(f"stream {number + 1} of {streams}, {whole} of {number} whole: {trial.fault}")
        try:
            undergo(trial, fleet)
        finally:
            fleet.heal()
        if trial.verdict == DIFFERENT and any(goes_on_honestly(trial, engine) for engine in fleet.ready):
            trial.verdict = ANOTHER
        trials.append(trial)
    _progress("")
    return trials


def _progress(words: str) -> None:
    print(f"\r{words:<79}", end="" if words else "\r", file=sys.stderr, flush=True)


def render(trials: Sequence[Trial]) -> str:
    """Return the table, a row per fault and way on, and the totals under it."""
    lines = [
        "| fault | continued by | streams | whole | another ending | extra s, median | extra s, max |",
        "|---|---|---|---|---|---|---|",
    ]
    names = [*(fault.name for fault in FAULTS), TWICE]
    for row in sorted({trial.row for trial in trials}, key=lambda row: (names.index(row[0]), row[1])):
        those = [trial for trial in trials if trial.row == row]
        extra = [trial.extra_seconds for trial in those]
        counts = [len(those), *(sum(trial.verdict == verdict for trial in those) for verdict in ("whole", ANOTHER))]
        cells = [*row, *map(str, counts), f"{median(extra):.2f}", f"{max(extra):.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    verdicts = Counter(trial.verdict.split(":")[0] for trial in trials)
    totals = ", ".join(f"{verdicts[kind]} {kind}" for kind in KINDS)
    return "\n".join([*lines, "", f"{len(trials)} streams: {totals}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and print the report; return 1 if any stream lost or doubled something."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--streams", type=int, default=200, help="how many streams meet a fault (200)")
    parser.add_argument("--seed", type=int, default=0, help="what faults and moments are drawn from (0)")
    options = parser.parse_args(arguments)
    if options.streams < 1:
        parser.error("--streams must be positive")
    with running() as fleet:
        trials = run(fleet, streams=options.streams, seed=options.seed)
    failed = [trial for trial in trials if trial.verdict != "whole"]
    for trial in failed:
        print(explain(trial, options.seed), end="\n\n")
    print(render(trials))
    return 1 if any(trial.verdict != ANOTHER for trial in failed) else 0


if __name__ == "__main__":
    sys.exit(main())
