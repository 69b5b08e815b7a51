"""The benchmark's server speaks HTTP, its report judges rightly, and a small run prints a table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from socket import create_connection, socket
from urllib.parse import urlsplit

import h11
import pytest
from benchmarks import partials, replay, report
from benchmarks.__main__ import child_environment, parse_arguments, require_whole

MODELS = ["flood-40:latest", "paced-3:latest"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with replay.running(MODELS) as url:
        yield url


@pytest.fixture
def connection(url: str) -> Iterator[socket]:
    parts = urlsplit(url)
    with create_connection((parts.hostname, parts.port), timeout=10) as connection:
        yield connection


def exchange(connection: socket, method: str, path: str, body: bytes = b"") -> tuple[int, list[h11.Data]]:
    """Ask for `path` with h11 as the client; return the status and the pieces of the body."""
    client = h11.Connection(h11.CLIENT)
    headers = [("Host", "replay"), ("Content-Length", str(len(body)))]
    connection.sendall(client.send(h11.Request(method=method, target=path, headers=headers)))
    connection.sendall(client.send(h11.Data(data=body)) + client.send(h11.EndOfMessage()))
    status, pieces = 0, []
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(connection.recv(1000))  # small reads cut chunks anywhere
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            pieces.append(event)
        else:
            assert isinstance(event, h11.EndOfMessage)
            assert client.trailing_data[0] == b""
            return status, pieces


def chat(connection: socket, model: str) -> tuple[int, list[h11.Data]]:
    return exchange(connection, "POST", "/api/chat", json.dumps({"model": model, "stream": True}).encode())


@pytest.mark.parametrize(("model", "tokens"), [(MODELS[0], 40), (MODELS[1], 3)])
def test_answer_is_one_chunk_per_token_and_a_done_chunk(connection: socket, model: str, tokens: int) -> None:
    """Both modes send one HTTP chunk per object of about 130 bytes: the tokens, then `done` with counters."""
    status, pieces = chat(connection, model)

    assert status == 200
    assert sum(piece.chunk_end for piece in pieces) == tokens + 1
    lines = b"".join(piece.data for piece in pieces).splitlines(keepends=True)
    records = [json.loads(line) for line in lines]
    assert [record["done"] for record in records] == [False] * tokens + [True]
    assert [record["message"]["content"] for record in records[:-1]] == replay.Answer(model).texts
    assert all(110 <= len(line) <= 150 for line in lines[:-1])
    assert records[-1]["eval_count"] == tokens
    assert records[-1]["done_reason"] == "stop"


def test_tokens_are_never_empty() -> None:
    """A client may count non-empty texts and arrive at the right number."""
    assert all(replay.TOKENS)


def test_connection_is_kept_alive(connection: socket) -> None:
    """One connection serves what a client asks before a chat, the chat, and the next one."""
    version, _ = exchange(connection, "GET", "/api/version")
    _, tags = exchange(connection, "GET", "/api/tags")
    show, _ = exchange(connection, "POST", "/api/show", b'{"model": "flood-40"}')
    first, _ = chat(connection, "flood-40")
    second, _ = chat(connection, "flood-40:latest")

    names = [entry["name"] for entry in json.loads(b"".join(piece.data for piece in tags))["models"]]
    assert [version, show, first, second] == [200] * 4
    assert names == MODELS


def test_unknown_is_404(connection: socket) -> None:
    """A model or a path that is not replayed is refused in Ollama's words, and the connection lives on."""
    status, pieces = chat(connection, "flood-41")
    elsewhere, _ = exchange(connection, "GET", "/elsewhere")

    assert (status, elsewhere) == (404, 404)
    assert json.loads(pieces[0].data) == {"error": "model 'flood-41' not found"}


def test_model_name_must_say_a_mode() -> None:
    """A model that is neither flooded nor paced is a mistake of the caller."""
    with pytest.raises(ValueError, match=r"'llama3\.2:3b'"):
        replay.Answer("llama3.2:3b")


def samples_with(**aicortex: float) -> report.Samples:
    """Return samples in which AI Cortex meets every target, but for the columns given."""
    row = {column: [1.0] for column in report.COLUMNS}
    met = row | {"flood_cpu_us": [0.1, 0.1, 9.0]}
    samples = {"bare": row | {"flood_wall_us": [0.5]}, "aicortex": met, "ollama": row}
    samples["litellm"] = row | {"flood_cpu_us": [15.0]}
    samples["aicortex"] = met | {column: [value] for column, value in aicortex.items()}
    return samples


def test_targets_are_judged_by_medians() -> None:
    """One slow measurement of three misses no target, and a value on the bound meets it."""
    verdicts = report.verdicts_on(report.medians_of(samples_with(start_first_token_ms=2.0)))

    assert [verdict for verdict, _, _ in verdicts] == ["met"] * len(report.TARGETS)


@pytest.mark.parametrize(
    ("column", "value", "target"),
    [
        ("flood_cpu_us", 0.101, "times below"),
        ("paced_cpu_us", 1.51, "paced"),
        ("warm_first_token_ms", 1.16, "warm connection"),
        ("start_first_token_ms", 2.01, "process start"),
        ("flood_wall_us", 0.99, "bottleneck"),
    ],
)
def test_missed_target_is_named(column: str, value: float, target: str) -> None:
    """Each bound is judged on its own column, and the report says MISSED in its line."""
    samples = samples_with(**{column: value})

    missed = [line for line in report.render(samples, []).splitlines() if line.startswith("- MISSED")]
    assert missed
    assert all(target in line for line in missed)
    assert report.is_missed(samples)


def test_missing_client_is_shown() -> None:
    """A client that is not installed has a row that says so, and its targets are not measured."""
    samples = samples_with()
    del samples["litellm"]

    text = report.render(samples, ["litellm"])
    assert "| litellm   | " in text
    assert "not installed" in text
    assert "- not measured: flood: ≥ 150 times below litellm" in text
    assert not report.is_missed(samples)


@pytest.mark.parametrize(("value", "expected"), [(0.0281, "0.028"), (1.456, "1.46"), (16.32, "16.3"), (694.2, "694")])
def test_numbers_have_three_digits(value: float, expected: str) -> None:
    """A number shows the digits that mean something."""
    assert report.number(value) == expected


def test_clients_see_no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies and the user's settings do not reach a client."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("AICORTEX_MODEL", "other")

    environment = child_environment("/empty")
    assert not {"HTTP_PROXY", "OLLAMA_HOST", "AICORTEX_MODEL"} & set(environment)
    assert environment["HOME"] == "/empty"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "bare,curl"], "unknown: curl"),
        (["--tokens", "0"], "must be positive"),
        (["--repeat", "-1"], "must be positive"),
    ],
)
def test_wrong_option_is_refused(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown client or a number that is not positive ends with a message and status 2."""
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(arguments)

    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bare", "aicortex"])
def test_lost_text_fails_the_run(name: str) -> None:
    """A client that reads one byte or character less is not measured; one that reads all is."""
    answer = replay.Answer("flood-40:latest")
    whole = {"bare": answer.size_bytes, "aicortex": len("".join(answer.texts))}[name]

    require_whole(name, "flood-40:latest", whole)
    with pytest.raises(RuntimeError, match=f"^{name} read {whole - 1} of the {whole} of flood-40:latest$"):
        require_whole(name, "flood-40:latest", whole - 1)


def run_small(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark as its user does, with little to read."""
    small = ["--tokens", "50", "--paced-seconds", "0.01", "--repeat", "1"]
    command = [sys.executable, "-m", "benchmarks", *small, *options]
    return subprocess.run(command, cwd=replay.ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_small_run_prints_a_table() -> None:
    """One command prints a row with every column for each client asked for, and its progress."""
    done = run_small("--only", "aicortex,bare")

    assert done.returncode == 0, done.stderr
    assert "1 of 1: flood AI Cortex\n" in done.stderr
    tables = done.stdout.split("\n\n")[1:4]
    assert [table.splitlines()[0].split("|")[1].strip() for table in tables] == [
        "median", "times bare recv", "times AI Cortex",
    ]  # fmt: skip
    for table in tables:
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
        assert [row[0] for row in rows] == ["bare recv", "AI Cortex"]
        assert all(float(cell) >= 0 for row in rows for cell in row[1:])


def test_json_holds_every_sample() -> None:
    """`--json` prints the samples themselves: fifty first tokens and three starts a repeat."""
    done = run_small("--only", "bare", "--json")

    columns = json.loads(done.stdout)["samples"]["bare"]
    assert {column: len(values) for column, values in columns.items()} == {
        "flood_cpu_us": 1, "flood_wall_us": 1, "paced_cpu_us": 1,
        "warm_first_token_ms": 50, "import_ms": 3, "start_first_token_ms": 3,
    }  # fmt: skip


def test_growing_values_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    """A small run of `benchmarks.partials` prints a row for each kind of answer; wrong numbers are refused in words."""
    assert partials.main(["--size", "10000", "--repeat", "1"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [row[0].strip() for row in rows[2:]] == ["one long string", "a list of 204 objects", "deep mixture"]
    assert {len(row) for row in rows} == {len(partials.HEADER)}
    with pytest.raises(SystemExit):
        partials.main(["--size", "9"])
    assert "--size must be at least 10000" in capsys.readouterr().err
