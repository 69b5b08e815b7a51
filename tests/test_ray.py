"""`map_dataset`, on a local Ray cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest

from aicortex import Server
from aicortex.ray import COLUMNS, Asker, asker_options, map_dataset
from aicortex.registry.credentials import entry_of
from aicortex.registry.store import Registry
from aicortex.testing import Answer, Exchange, FakeServer, Reply, Status

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
PATIENCE = 30.0  # seconds until a test gives up; only failing tests wait that long
SOURCE = str(Path(__file__).parents[1] / "src")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray's data module, on a cluster of two CPUs of this machine that tells nobody of itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", SOURCE)
        import ray
        import ray.data

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray.data
        ray.shutdown()


def test_answers_become_columns(ray: Any) -> None:
    """Each row keeps what it had and gets its own answer, or its own error; keys go to the workers with the servers."""
    key = {"Authorization": "Bearer secret"}
    with FakeServer(Status(400, {"error": "no"}), answer="one two", require=key) as server:
        rows = [{"question": f"{index}?", "text": index} for index in range(100)]
        dataset = ray.from_items(rows, override_num_blocks=3)
        one = Server(server.url, api_key="secret")
        answered = map_dataset(dataset, "question", prefix="answer_", servers=one, seed=7).take_all()
        asked = [request.json for request in server.requests if request.path == "/api/chat"]
    assert sorted(row["text"] for row in answered) == list(range(100))
    assert sorted(body["messages"][0]["content"] for body in asked) == sorted(row["question"] for row in rows)
    assert {body["options"]["seed"] for body in asked} == {7}
    (failed,) = (row for row in answered if row["answer_error"])
    assert "no" in failed["answer_error"]
    assert failed["answer_text"] is None
    row = next(row for row in answered if not row["answer_error"])
    assert (row["answer_text"], row["answer_model"], row["answer_server"]) == ("one two", "fake:latest", server.url)
    assert (row["answer_finish_reason"], row["answer_completion_tokens"], row["answer_prompt_tokens"]) == ("stop", 2, 7)
    assert 0 < row["answer_seconds"] < 60


@dataclass(frozen=True)
class Gathered(Reply):
    """An answer that begins when as many are under way as the barrier wants."""

    barrier: Barrier

    def play(self, exchange: Exchange) -> None:
        with suppress(BrokenBarrierError):
            self.barrier.wait(PATIENCE)
        Answer("yes").play(exchange)


def test_small_blocks_are_asked_together(ray: Any) -> None:
    """Blocks of one row each leave no room at a server empty."""
    barrier = Barrier(8)
    with FakeServer(*[Gathered(barrier)] * 8) as server:
        dataset = ray.from_items([{"prompt": f"{index}?"} for index in range(8)], override_num_blocks=8)
        answered = map_dataset(dataset, servers=server.url, per_server=8).take_all()
    assert not barrier.broken
    assert [row["text"] for row in answered] == ["yes"] * 8


def test_what_is_configured_here_holds_there(ray: Any, embedded_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry's servers and the model of the environment go with the work; two workers share a real engine."""
    with Registry() as registry:
        registry.add(entry_of(embedded_server, name="desk", slots=2))
    monkeypatch.setenv("AICORTEX_MODEL", "llama3.2:3b")
    talks = [[{"role": "user", "content": f"Say {word}."}] for word in ("one", "two", "three")]
    dataset = ray.from_items([{"prompt": talk} for talk in talks], override_num_blocks=2)
    dataset = map_dataset(dataset, workers=2, max_tokens=8, temperature=0)
    monkeypatch.delenv("AICORTEX_MODEL")
    answered = dataset.take_all()
    assert [(row["error"], row["server"], row["model"]) for row in answered] == [
        (None, embedded_server, "llama3.2:3b")
    ] * 3
    assert all(0 < row["completion_tokens"] <= 8 and row["text"] for row in answered)


def test_slots_go_with_the_servers() -> None:
    """Workers ask each server as many prompts at a time as are registered here, and the routing is that of here."""
    with FakeServer() as server, Registry() as registry:
        registry.add(entry_of(server.url, slots=3))
        options = asker_options({"routing": "fastest", "model": None}, None)
        assert options["rooms"] == {server.url: 3}
        assert options["arguments"] == {"servers": [Server(server.url)], "routing": "fastest", "resume": "continue"}
        assert asker_options({}, 2)["rooms"] == 2


def test_mistakes(ray: Any) -> None:
    """Wrong arguments, and columns that are missing or in the way, raise before anything is asked."""
    dataset = ray.from_items([{"text": "1?"}])
    with pytest.raises(ValueError, match="no column 'prompt', only 'text'"):
        map_dataset(dataset)
    with pytest.raises(ValueError, match="a column 'text' already: choose another prefix"):
        map_dataset(dataset, "text")
    with pytest.raises(ValueError, match="workers must be a whole number"):
        map_dataset(dataset, "text", prefix="a_", workers=0)
    with pytest.raises(TypeError, match=r"map_dataset\(\) has no argument 'temprature'; did you mean"):
        map_dataset(dataset, "text", prefix="a_", temprature=0)
    with pytest.raises(ValueError, match="max_tokens"):
        map_dataset(dataset, "text", prefix="a_", max_tokens=0)


def test_columns_that_are_only_known_in_a_worker() -> None:
    """A worker refuses a table whose columns are wrong, and gives an empty one its new columns."""
    import pyarrow

    with FakeServer() as server:
        asker = Asker(**asker_options({"servers": server.url}, None), prompt="text", prefix="")
        with pytest.raises(ValueError, match="a column 'text' already"):
            next(asker(pyarrow.table({"text": ["1?"]})))
        asker = Asker(**asker_options({"servers": server.url}, None), prompt="text", prefix="a_")
        (empty,) = asker(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}))
        assert empty.column_names == ["text", *(f"a_{name}" for name in COLUMNS)]
        (table,) = asker(pyarrow.table({"text": ["1?", None]}))
        assert [bool(error) for error in table.column("a_error").to_pylist()] == [False, True]
        assert table.schema == empty.schema


def test_chat_loads_none_of_it() -> None:
    """Whoever asks one question loads neither Ray nor asyncio nor what works on many prompts."""
    code = "import sys; from aicortex import chat; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ray", "pyarrow", "asyncio", "aicortex.many", "aicortex.job", "aicortex.ray"} & {*loaded}
