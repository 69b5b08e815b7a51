"""`aicortex models`: what there is to talk with."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from aicortex._core.ollama import full_name
from aicortex.catalogue import search_models
from aicortex.cli.known import names_by_url
from aicortex.cli.table import print_json, print_table, size_words, tell_unreachable
from aicortex.cli.terminal import note
from aicortex.cli.waiting import Waiting
from aicortex.settings import models_meant

if TYPE_CHECKING:
    from aicortex.census import FleetList


def run(options: argparse.Namespace) -> int:
    """Print the models and return 0; raises AllServersFailedError when no server answered."""
    query = " ".join([*options.query, options.search or ""]).strip()
    with Waiting() as waiting:
        waiting.begin("asking the servers")
        found = _found(query, options)
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


def _found(query: str, options: argparse.Namespace) -> FleetList[dict[str, Any]]:
    """Return the models that have the words of the query, and those that it stands for as an alias."""
    search = partial(
        search_models,
        family=options.family,
        min_params=options.min_params,
        max_params=options.max_params,
        servers=options.server,
    )
    found = search(query)
    meant = {full_name(name) for name in models_meant(query)} - {full_name(query)}
    if meant:
        found += [row for row in search() if full_name(row["model"]) in meant and row not in found]
    return found


def _with_urls(row: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    """Return a row whose servers go by the name that all lists of this command line have for them."""
    return {("urls" if key == "servers" else key): value for key, value in row.items()}
