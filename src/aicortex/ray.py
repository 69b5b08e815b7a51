"""Many prompts in a Ray Dataset: `stream_many` in workers of a cluster. Needs `pip install 'aicortex[ray]'`.

    import ray.data
    from aicortex.ray import map_dataset

    answers = map_dataset(ray.data.read_parquet("prompts"), "question", model="llama3.2:3b", prefix="answer_")
    answers.write_parquet("answers")

What is configured where `map_dataset` is called holds for the workers: which servers there are, with their keys and
slots, the model, the routing. Workers need no registry of their own, but they must reach the servers: an address such
as 127.0.0.1 is the worker's own machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aicortex import settings
from aicortex.fleet import find_fleet
from aicortex.job import Order, Outcome, job_maker, prepared
from aicortex.many import blocking

if TYPE_CHECKING:
    from ray.data import Dataset
    from typing_extensions import Unpack

    from aicortex.dispatch import Rooms
    from aicortex.request import ChatArguments

BATCH_ROWS = (
    1024  # small blocks are bundled: at the end of each batch slots stand empty; a worker that dies repeats one
)
PIECE_ROWS = 64  # so many rows go on to the next step of the pipeline together
WORKER_CPUS = 0.25  # a worker waits most of the time
PASSED_ON = ("AICORTEX_EMBEDDED_MODEL", "AICORTEX_EMBEDDED_THREADS")  # each worker would start its own engine
COLUMNS = {
    "text": "string",
    "model": "string",
    "server": "string",
    "finish_reason": "string",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "seconds": "float64",
    "error": "string",
}


def map_dataset(
    dataset: Dataset,
    prompt: str = "prompt",
    *,
    prefix: str = "",
    workers: int = 1,
    per_server: int | None = None,
    **arguments: Unpack[ChatArguments],
) -> Dataset:
    """Return the dataset with what a model answers to the column `prompt`, once somebody reads it.

    Each cell of that column is a text, or a list of messages with `role` and `content`. Added are the columns `text`,
    `model`, `server`, `finish_reason`, `prompt_tokens`, `completion_tokens`, `seconds` and `error`, each name with
    `prefix` before it: a prompt that failed has an `error` and null in all others.

    The arguments are those of `stream_many`. One worker keeps all servers busy and needs little of a processor; with
    more, for datasets that one machine cannot read fast enough, each of the `workers` asks each server up to
    `per_server` prompts at a time. Servers are sent to the workers as they are, with their keys.

    Raises ValueError and TypeError for wrong arguments, and for columns that are missing or in the way: at once if the
    columns are known, else where the dataset is read.
    """
    import ray.data

    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers must be a whole number from 1 on, not {workers!r}")
    prepared("map_dataset", per_server, arguments)
    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None:
        _check_columns(schema.names, prompt, prefix)
    options = {"prompt": prompt, "prefix": prefix, **asker_options(arguments, per_server)}
    return dataset.map_batches(
        Asker,
        fn_constructor_kwargs=options,
        batch_size=BATCH_ROWS,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=WORKER_CPUS,
    )


def asker_options(arguments: Mapping[str, Any], per_server: int | None) -> dict[str, Any]:  # Any: arguments of `chat`
    """Return what workers are told, with what the configuration here says where the arguments say nothing."""
    fleet = find_fleet(arguments.get("servers"))
    model = arguments.get("model") or settings.default_model(fleet.config)
    configured = {
        "routing": settings.default_routing(fleet.config),
        "resume": "continue" if settings.resumes_by_default(fleet.config) else "never",
    }
    given = {name: value for name, value in arguments.items() if value is not None}
    if model:
        given["model"] = settings.models_meant(model, fleet.config)[0]  # aliases are known here alone
    return {
        "rooms": per_server or {server.label: entry.slots for server, entry in fleet.entries.items()},
        "arguments": {
            **{name: value for name, value in configured.items() if value},
            **given,
            "servers": fleet.servers,
        },
        "variables": {name: os.environ[name] for name in PASSED_ON if name in os.environ},
    }


def _check_columns(names: list[str], prompt: str, prefix: str) -> None:
    if prompt not in names:
        raise ValueError(f"the dataset has no column {prompt!r}, only {', '.join(map(repr, names))}")
    for name in COLUMNS:
        if prefix + name in names:
            words = f"the dataset has a column {prefix + name!r} already"
            raise ValueError(f"{words}: choose another prefix for the new ones, such as prefix='answer_'")


class Asker:
    """What a worker does with each batch of rows; the arguments are as `map_dataset` has resolved them."""

    def __init__(
        self,
        *,
        prompt: str,
        prefix: str,
        rooms: Rooms,
        arguments: dict[str, Any],  # Any: arguments of `chat`
        variables: Mapping[str, str],
    ) -> None:
        for name, value in variables.items():
            os.environ.setdefault(name, value)
        self._prompt = prompt
        self._prefix = prefix
        self._rooms = rooms
        self._arguments = arguments

    def __call__(self, table: Any) -> Iterator[Any]:  # Any: pyarrow has no types
        """Yield the rows with the new columns, a piece at a time."""
        _check_columns(table.column_names, self._prompt, self._prefix)
        prompts = map(_prompt_of, table.column(self._prompt))
        order = Order(None, ordered=True, progress=None)
        outcomes = blocking(prompts, order, job_maker(self._rooms, self._arguments))
        for start in range(0, max(table.num_rows, 1), PIECE_ROWS):
            piece = table.slice(start, PIECE_ROWS)
            yield self._extended(piece, [next(outcomes) for _ in range(piece.num_rows)])

    def _extended(self, table: Any, outcomes: list[Outcome]) -> Any:  # Any: as above
        import pyarrow

        rows = [_cells(outcome) for outcome in outcomes]
        for name, kind in COLUMNS.items():
            cells = pyarrow.array([row.get(name) for row in rows], type=pyarrow.type_for_alias(kind))
            table = table.append_column(self._prefix + name, cells)
        return table


def _prompt_of(cell: Any) -> Any:  # Any: a scalar of pyarrow; what is no prompt is an error of that row
    value = cell.as_py()
    return {"messages": value} if isinstance(value, list) else value


def _cells(outcome: Outcome) -> dict[str, object]:
    result = outcome.result
    if result is None:
        return {"error": str(outcome.error)}
    return {
        "text": result.text,
        "model": result.model,
        "server": result.server,
        "finish_reason": result.finish_reason,
        **result.usage,
        "seconds": result.timings["total"],
    }
