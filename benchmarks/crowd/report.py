"""Turn samples into the tables and the list of targets that are printed; pure.

Samples are `{"client loop": {column: [one value per measurement]}}`, in the units the columns name.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from benchmarks.report import Target, aligned, number, render_verdicts, verdicts_on

Samples = dict[str, dict[str, list[float]]]
Medians = Mapping[str, Mapping[str, float]]

KEPT_UP_MS = 2.0  # 1,000 streams at 50/s fill a core at 20 µs a token: a client that needs more reads several at a time
LATE_MS = 5.0  # 99 % of the server's writes come no later: beyond that, its bursts spare a client wake-ups
LOOPS = ("asyncio", "uvloop")
LABELS = {
    "bare": "bare Protocol",
    "buffered": "bare BufferedProtocol",
    "aiohttp": "aiohttp + msgspec",
    "aicortex": "AI Cortex achat",
    "ollama": "ollama AsyncClient",
    "litellm": "litellm acompletion",
}
CROWD = {
    "whole": "whole streams",
    "cpu_us": "CPU µs/token",
    "busy": "core used",
    "open_us": "opening µs/stream",
    "first_kb": "kB/stream, first token",
    "middle_kb": "kB/stream, half way",
    "p50_ms": "delay p50 ms",
    "p99_ms": "delay p99 ms",
    "late_p99_ms": "server late p99 ms",
    "server_busy": "server's core used",
}
SINGLE = {
    "flood_cpu_us": "flood CPU µs/token",
    "flood_wall_us": "flood wall µs/token",
    "paced_cpu_us": "paced CPU µs/token",
}


def row_of(client: str, loop: str) -> str:
    """Return the key of a client on a loop."""
    return f"{client} {loop}"


def targets_of(loop: str) -> list[Target]:
    """Return the bounds on AI Cortex's medians on this loop."""

    def target(text: str, column: str, reference: str = "", factor: float = 0.0, plus: float = 0.0) -> Target:
        rival = row_of(reference, loop) if reference else None
        return Target(f"{loop}: {text}", column, rival, factor, plus, client=row_of("aicortex", loop))

    return [
        target("no stream of the crowd is lost", "lost"),
        target("crowd: ≤ 20 µs of CPU per token", "cpu_us", plus=20),
        target("crowd: keeps up, half of the tokens ≤ 2 ms after they were written", "p50_ms", plus=KEPT_UP_MS),
        target("crowd: ≤ 10 kB a stream, at its first token", "first_kb", plus=10),
        target("the server is no bottleneck: 99 % of its writes ≤ 5 ms late", "late_p99_ms", plus=LATE_MS),
        target("flood: ≤ 2 µs of CPU per token", "flood_cpu_us", plus=2),
        target("flood: ≥ 10 times below ollama", "flood_cpu_us", "ollama", 1 / 10),
        target("flood: ≥ 150 times below litellm", "flood_cpu_us", "litellm", 1 / 150),
        target("paced: ≤ 1.3 times the bare protocol", "paced_cpu_us", "bare", 1.3),
    ]


def medians_of(samples: Samples) -> dict[str, dict[str, float]]:
    """Return the median of each column that was measured; of `whole` and `lost` the worst."""
    worst = {"whole": min, "lost": max}
    return {
        row: {column: worst.get(column, median)(values) for column, values in columns.items() if values}
        for row, columns in samples.items()
    }


def is_missed(samples: Samples) -> bool:
    """Tell whether a target that could be measured is missed."""
    medians = medians_of(samples)
    return any(verdict == "MISSED" for loop in LOOPS for verdict, _, _ in verdicts_on(medians, targets_of(loop)))


def render(samples: Samples, reasons: Mapping[str, Mapping[str, int]], not_installed: list[str]) -> str:
    """Return the report: the crowd, what became of lost streams, the single streams, and the targets."""
    medians = medians_of(samples)
    parts = [table("crowd", CROWD, medians)]
    parts += [notes] if (notes := "\n".join(_notes(medians, reasons, not_installed))) else []
    parts.append(table("one stream", SINGLE, medians))
    verdicts = [verdict for loop in LOOPS for verdict in verdicts_on(medians, targets_of(loop))]
    return "\n\n".join([*parts, render_verdicts(verdicts)])


def _notes(medians: Medians, reasons: Mapping[str, Mapping[str, int]], not_installed: list[str]) -> list[str]:
    notes = []
    for row, counts in reasons.items():
        told = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        begun = f"; {medians[row]['begun']:.0f} ran at once"
        notes.append(f"- not whole: {label(row)}: {told}{begun}")
    return notes + [f"- not installed: {name}" for name in not_installed]


def label(row: str) -> str:
    """Return what a row is called."""
    client, _, loop = row.partition(" ")
    return f"{LABELS[client]}, {loop}"


def table(title: str, columns: Mapping[str, str], medians: Medians) -> str:
    """Return the table of these columns; a row without any of them is left out."""
    rows = [[title, *columns.values()]]
    for row, values in medians.items():
        if any(column in values for column in columns):
            rows.append([label(row), *(_cell(column, values) for column in columns)])
    return aligned(rows)


def _cell(column: str, values: Mapping[str, float]) -> str:
    if column not in values:
        return ""
    value = values[column]
    if column == "whole":
        return f"{value:.0f} of {value + values['lost']:.0f}"
    if column in ("first_kb", "middle_kb"):
        tokens = values[column.replace("kb", "tokens")]
        return f"{number(value)} after {tokens:.0f}"
    return f"{value:.0%}" if column in ("busy", "server_busy") else number(value)
