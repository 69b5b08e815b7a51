"""`aicortex refresh`: ask the servers what they have, and say what has changed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from aicortex._core.server import Server
from aicortex.cli.known import entry_named, names_by_url
from aicortex.cli.progress import choose_display
from aicortex.cli.table import counted, milliseconds, print_json, print_line, print_table, tell_unreachable
from aicortex.cli.terminal import note
from aicortex.fleet import find_servers, registered
from aicortex.registry.entries import Measurement
from aicortex.tools import Report, refresh


def run(options: argparse.Namespace) -> int:
    """Refresh the registry and return 0 when a server answered, else 1; raises ValueError and RegistryError."""
    servers = _named(options.names)
    with choose_display() as display:
        report = refresh(servers, measure=options.measure, deadline=options.timeout, tell=display.tell)
    if options.json:
        print_json(report.to_dict())
    else:
        _show(report)
    tell_unreachable(report.unreachable)
    if not report.servers:
        note("no server is registered: 'aicortex servers add ADDRESS' adds one")
    return 0 if report.answered else 1


def _named(titles: Sequence[str]) -> list[Server] | None:
    """Return the registered servers of these names or addresses, all (None) when none is named."""
    if not titles:
        registered()  # for its errors: they come before the display
        return None
    return find_servers([entry_named(title).url for title in titles])


def _show(report: Report) -> None:
    for change in report.changes:
        print_line(str(change))
    if report.measurements:
        print_measurements(report.measurements)
    if report.servers:
        servers = f"{report.answered} of {counted(report.servers, 'server')} answered"
        unchanged = "" if report.changes else ", nothing has changed"
        print_line(f"{servers}, {counted(report.models, 'model')}{unchanged} ({report.seconds:.1f} s)")


def print_measurements(measurements: Sequence[Measurement]) -> None:
    """Print what models were measured to do."""
    titles = names_by_url()
    rows = [
        [
            titles.get(one.url, one.url),
            one.model,
            one.error or milliseconds(one.first_token_ms),
            f"{one.tokens_per_second:.1f}" if one.tokens_per_second else "",
        ]
        for one in measurements
    ]
    print_table(["SERVER", "MODEL", "FIRST TOKEN", "TOKENS/S"], rows)
