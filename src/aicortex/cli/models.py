"""`aicortex models`: what there is to talk with."""

from __future__ import annotations

import argparse
from typing import Any

from aicortex.catalogue import search_models
from aicortex.cli.known import names_by_url
from aicortex.cli.table import print_json, print_table, size_words, tell_unreachable
from aicortex.cli.terminal import note
from aicortex.cli.waiting import Waiting


def run(options: argparse.Namespace) -> int:
    """Print the models and return 0; raises AllServersFailedError when no server answered."""
    query = " ".join([*options.query, options.search or ""]).strip()
    with Waiting() as waiting:
        waiting.begin("asking the servers")
        found = search_models(
            query,
            family=options.family,
            min_params=options.min_params,
            max_params=options.max_params,
            servers=options.server,
        )
    if options.json:
        print_json([_with_urls(row) for row in found])
    elif found:
        titles = names_by_url()
        rows = [
            [
                row["model"],
                row["parameter_size"],
                row["quantization"],
                size_words(row["size"]),
                ", ".join(titles.get(url, url) for url in row["servers"]),
            ]
            for row in found
        ]
        print_table(["MODEL", "PARAMETERS", "QUANTIZATION", "SIZE", "SERVERS"], rows)
    else:
        is_search = query or options.family or options.min_params or options.max_params
        note("no model is like that" if is_search else "the servers have no models: 'ollama pull llama3.2' fetches one")
    tell_unreachable(found.unreachable)
    return 0


def _with_urls(row: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    """Return a row whose servers go by the name that all lists of this command line have for them."""
    return {("urls" if key == "servers" else key): value for key, value in row.items()}
