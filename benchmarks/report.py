"""Turn samples into the tables and the list of targets that are printed; pure.

Samples are `{client: {column: [one value per measurement]}}`, in the units the columns name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

Samples = dict[str, dict[str, list[float]]]

LABELS = {
    "bare": "bare recv",
    "urllib3": "urllib3 + msgspec",
    "aicortex": "AI Cortex",
    "ollama": "ollama",
    "litellm": "litellm",
}
COLUMNS = {
    "flood_cpu_us": "flood CPU µs/token",
    "flood_wall_us": "flood wall µs/token",
    "paced_cpu_us": "paced CPU µs/token",
    "warm_first_token_ms": "first token, warm ms",
    "import_ms": "import ms",
    "start_first_token_ms": "process start → first token ms",
}


@dataclass(frozen=True)
class Target:
    """A bound on `client`'s median of `column`: at most `factor` times that of `reference`, plus `plus`."""

    text: str
    column: str
    reference: str | None = None
    factor: float = 0.0
    plus: float = 0.0
    client: str = "aicortex"


TARGETS = (
    Target("flood: ≤ 1.5 µs of CPU per token", "flood_cpu_us", plus=1.5),
    Target("flood: ≥ 10 times below ollama", "flood_cpu_us", "ollama", 1 / 10),
    Target("flood: ≥ 150 times below litellm", "flood_cpu_us", "litellm", 1 / 150),
    Target("paced: ≤ 1.5 times bare recv", "paced_cpu_us", "bare", 1.5),
    Target("warm connection: first token ≤ 0.15 ms over bare recv", "warm_first_token_ms", "bare", 1, 0.15),
    Target("process start → first token: ≤ 2 times bare recv", "start_first_token_ms", "bare", 2),
    Target("server is no bottleneck: bare recv in half AI Cortex's time", "flood_wall_us", "aicortex", 0.5,
           client="bare"),
)  # fmt: skip


def medians_of(samples: Samples) -> dict[str, dict[str, float]]:
    """Return the median of each column of each client."""
    return {
        client: {column: median(values) for column, values in columns.items()} for client, columns in samples.items()
    }


def verdicts_on(
    medians: dict[str, dict[str, float]], targets: Iterable[Target] = TARGETS
) -> list[tuple[str, Target, str]]:
    """Return (`met`, `MISSED` or `not measured`, target, the numbers compared) for each target."""
    verdicts = []
    for target in targets:
        value = medians.get(target.client, {}).get(target.column)
        reference = medians.get(target.reference, {}).get(target.column) if target.reference else 0.0
        if value is None or reference is None:
            verdicts.append(("not measured", target, ""))
            continue
        bound = reference * target.factor + target.plus
        numbers = f"{number(value)} against a bound of {number(bound)}"
        verdicts.append(("met" if value <= bound else "MISSED", target, numbers))
    return verdicts


def is_missed(samples: Samples) -> bool:
    """Tell whether a target that could be measured is missed."""
    return any(verdict == "MISSED" for verdict, _, _ in verdicts_on(medians_of(samples)))


def render(samples: Samples, not_installed: list[str]) -> str:
    """Return the report: medians, the same as multiples of bare `recv` and of AI Cortex, and the targets."""
    medians = medians_of(samples)
    parts = [_table("median", medians, not_installed)]
    for reference in ("bare", "aicortex"):
        if reference in medians:
            parts.append(_table(f"times {LABELS[reference]}", _ratios(medians, medians[reference]), []))
    return "\n\n".join([*parts, render_verdicts(verdicts_on(medians))])


def render_verdicts(verdicts: list[tuple[str, Target, str]]) -> str:
    """Return the list of targets, each with its verdict and the numbers compared."""
    lines = [
        f"- {verdict}: {target.text} ({numbers})" if numbers else f"- {verdict}: {target.text}"
        for verdict, target, numbers in verdicts
    ]
    return "\n".join(["Targets", *lines])


def _ratios(medians: dict[str, dict[str, float]], reference: dict[str, float]) -> dict[str, dict[str, float]]:
    return {
        client: {column: value / reference[column] for column, value in columns.items()}
        for client, columns in medians.items()
    }


def _table(title: str, medians: dict[str, dict[str, float]], not_installed: list[str]) -> str:
    rows = [[title, *COLUMNS.values()]]
    for client in LABELS:
        if client in medians:
            rows.append([LABELS[client], *(number(medians[client][column]) for column in COLUMNS)])
        elif client in not_installed:
            rows.append([LABELS[client], "not installed", *[""] * (len(COLUMNS) - 1)])
    return aligned(rows)


def aligned(rows: list[list[str]]) -> str:
    """Return rows of cells, the first one the head, as a Markdown table that is aligned for the terminal too."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(row, widths) for row in [rows[0], rule, *rows[1:]])


def _line(cells: list[str], widths: list[int]) -> str:
    first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join([cells[0].ljust(len(first)), *others])} |"


def number(value: float) -> str:
    """Return `value` with the digits that mean something: 0.028, 1.46, 16.3, 694."""
    digits = 3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"
