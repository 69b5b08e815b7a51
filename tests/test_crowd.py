"""The crowd's server paces every stream, its readers see every fault, and its report judges rightly."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from socket import create_connection, socket
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from benchmarks import replay
from benchmarks.clients import LAST_CHUNK
from benchmarks.crowd import clients, measure, report
from benchmarks.crowd.__main__ import allow_files, parse_arguments
from benchmarks.crowd.script import RATE, Script, number_of, prompt_of

MODEL = "crowd-3-5:latest"
LONE = "crowd-2-3:latest"
CROWD = "crowd-3-20:latest"
LONG = "crowd-2-50:latest"
MODELS = [MODEL, LONE, CROWD, LONG, measure.WARM_UP_CROWD]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with replay.running(MODELS, "benchmarks.crowd.server") as url:
        yield url


@pytest.fixture(scope="module")
def impatient_url() -> Iterator[str]:
    """The server that waits less for streams that do not come, for the tests in which they do not."""
    with replay.running(MODELS, "tests.impatient_crowd") as url:
        yield url


def connect(url: str) -> socket:
    parts = urlsplit(url)
    return create_connection((parts.hostname, parts.port), timeout=10)


def ask(connection: socket, model: str, number: int) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": prompt_of(number)}]}).encode()
    connection.sendall(b"POST /api/chat HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body))
    connection.sendall(body)  # a request may come in two pieces


def read_answer(connection: socket) -> bytes:
    data = b""
    while not data.endswith(LAST_CHUNK):
        received = connection.recv(1000)
        assert received, data
        data += received
    return data


def texts_of(answer: bytes) -> list[str]:
    """Return the text of each object in a chunked answer, the last one with `done` included."""
    records = [json.loads(line) for line in answer.splitlines() if line.startswith(b"{")]
    assert [record["done"] for record in records] == [False] * (len(records) - 1) + [True]
    return [record["message"]["content"] for record in records]


def doubles(url: str, column: str, model: str) -> array[float]:
    with urlopen(f"{url}/{column}/{model}", timeout=10) as response:
        return array("d", response.read())


def test_every_stream_says_its_own_words(url: str) -> None:
    """A crowd begins when all are there; each stream gets its words, one a turn, as many bytes as the script says."""
    script = Script(MODEL)
    connections = [connect(url) for _ in range(script.streams)]
    for number, connection in enumerate(connections):
        ask(connection, MODEL, number)
    answers = [read_answer(connection) for connection in connections]
    for connection in connections:
        connection.close()

    for number, answer in enumerate(answers):
        assert texts_of(answer) == [*script.words[number : number + script.tokens], ""]
        assert len(answer) == script.size_of(number)


def test_server_keeps_a_schedule_and_tells_it(url: str) -> None:
    """Turns of a stream are 20 ms apart, no token is written before it is due, and moments are of the shared clock."""
    script, begun = Script(LONE), time.perf_counter()
    with connect(url) as first, connect(url) as second:
        ask(first, LONE, 0)
        ask(second, LONE, 1)
        read_answer(first), read_answer(second)
    written, due, cpu = (doubles(url, column, LONE) for column in ("written", "due", "cpu"))

    steps = [due[slot + 1] - due[slot] for slot in (0, 1, 3, 4)]
    assert steps == pytest.approx([1 / RATE] * 4)
    assert all(begun < due[slot] <= written[slot] < time.perf_counter() for slot in range(len(due)))
    assert len(due) == script.streams * script.tokens
    assert len(cpu) % 2 == 0


def test_crowd_that_stays_small_begins_all_the_same(impatient_url: str) -> None:
    """A client that opens fewer streams at once is answered, and its next stream on the same connection too."""
    with connect(impatient_url) as connection:
        ask(connection, MODEL, 2)
        first = read_answer(connection)
        ask(connection, MODEL, 0)
        second = read_answer(connection)

    assert texts_of(first) == [*Script(MODEL).words[2:7], ""]
    assert texts_of(second) == [*Script(MODEL).words[0:5], ""]


def test_late_stream_begins_while_others_run(impatient_url: str) -> None:
    """What comes when the crowd has begun waits for nobody."""
    with connect(impatient_url) as first, connect(impatient_url) as late:
        ask(first, LONG, 0)
        first.recv(1)
        ask(late, LONG, 1)
        read_answer(first)
        read_answer(late)
    due = doubles(impatient_url, "due", LONG)

    assert due[0] < due[50] < due[49] < due[99]


def test_server_survives_a_client_that_leaves(url: str) -> None:
    """A stream whose reader is gone is dropped, and the others go on."""
    with connect(url) as gone:
        ask(gone, LONE, 0)
    with connect(url) as connection:
        ask(connection, LONE, 1)
        assert texts_of(read_answer(connection)) == [*Script(LONE).words[1:4], ""]


def test_server_answers_what_clients_ask_before(url: str) -> None:
    """The list of models, the version, and a 404 in Ollama's words for anything else."""
    with urlopen(f"{url}/api/tags", timeout=10) as response:
        names = [entry["name"] for entry in json.load(response)["models"]]
    with connect(url) as connection:
        connection.sendall(b"GET /elsewhere HTTP/1.1\r\n\r\n")
        head = connection.recv(1000)

    assert names == MODELS
    assert head.startswith(b"HTTP/1.1 404 ")


def test_no_two_streams_say_the_same_at_once() -> None:
    """No word stands twice, so a token of another stream or of another place is never taken for the right one."""
    script = Script("crowd-50-20:latest")

    assert len(set(script.words)) == len(script.words) == 70


@pytest.mark.parametrize("name", ["flood-20:latest", "crowd-20:latest", "crowd-1-2-3"])
def test_model_name_must_say_a_crowd(name: str) -> None:
    """A name without streams and tokens is a mistake of the caller."""
    with pytest.raises(ValueError, match=name):
        Script(name)


def test_prompt_says_the_number() -> None:
    """What `prompt_of` writes, `number_of` reads."""
    assert [number_of(prompt_of(number)) for number in (0, 7, 999)] == [0, 7, 999]


def times_of(script: Script) -> array[float]:
    return array("d", [0.0]) * (script.streams * script.tokens)


@pytest.mark.parametrize("number", [0, 2])
def test_words_are_whole_only_if_all_are_right(number: int) -> None:
    """A stream is whole after all its tokens, not with one lost, doubled, swapped or of another stream."""
    script = Script(MODEL)
    right = script.words[number : number + 5]
    other = script.words[number + 1 : number + 6]
    faulty = [right[:-1], [*right[:2], *right[1:4]], [right[1], right[0], *right[2:]], other]

    def is_whole(words: list[str]) -> bool:
        reader = measure.Words(script, number, times_of(script))
        for word in words:
            reader.take(word)
        return reader.is_whole(script, number)

    assert is_whole(right)
    assert not any(map(is_whole, faulty))


@pytest.mark.parametrize("cut", [1, 7, 150, 100_000])
def test_bytes_note_a_token_when_its_last_byte_is_there(cut: int) -> None:
    """However the bytes are cut, every token gets a moment, in order, and only all bytes make a stream whole."""
    script, number = Script(MODEL), 1
    answer = replay.ANSWER_HEAD + b"".join(script.chunks[number : number + 5]) + script.last
    times = times_of(script)
    reader = measure.Bytes(script, number, times)

    for start in range(0, len(answer), cut):
        assert not reader.is_whole(script, number)
        reader.take(answer[start : start + cut])

    own = list(times[5:10])
    assert own == sorted(own)
    assert all(own)
    assert not any(times[:5])
    assert not any(times[10:])
    assert reader.is_whole(script, number)


@pytest.mark.parametrize("cut", [1, 3, 7, 1000])
def test_bare_protocol_sees_the_end_however_it_is_cut(cut: int) -> None:
    """The answer is over with its last byte, and not before."""
    answer = Script(MODEL).chunks[0] + Script(MODEL).last
    pieces = [answer[start : start + cut] for start in range(0, len(answer), cut)]

    async def read() -> list[bool]:
        counter = clients.Counter()
        ended, states = counter.begin(len), []
        for piece in pieces:
            counter.data_received(piece)
            states.append(ended.done())
        return states

    assert asyncio.run(read()) == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("client", ["bare", "buffered", "ollama"])
def test_client_reads_a_crowd(url: str, client: str) -> None:
    """Every stream of a small crowd comes whole, in time order, and nothing is missing among the numbers."""
    result = asyncio.run(measure.crowd(client, url, CROWD))

    assert (result["whole"], result["lost"], result["begun"], result["reasons"]) == (3, 0, 3, {})
    assert 0 < result["p50_ms"] <= result["p99_ms"]
    assert 0 <= result["late_p50_ms"] <= result["late_p99_ms"]
    assert result["cpu_us"] > 0
    assert 1 <= result["first_tokens"] < result["middle_tokens"] < 20


@asynccontextmanager
async def open_faulty(url: str) -> AsyncIterator[clients.Ask]:
    """Read as the right client does, but one stream says its last token twice, and the next one fails at its end."""
    async with clients.open_ollama(url) as right:

        async def ask_faulty(model: str, prompt: str, take: clients.Take) -> None:
            await right(model, prompt, take)
            if model == CROWD and number_of(prompt) == 1:
                take(Script(CROWD).words[20])
            if model == CROWD and number_of(prompt) == 2:
                raise TimeoutError("the pool is full")

        yield ask_faulty


@asynccontextmanager
async def open_one_by_one(url: str) -> AsyncIterator[clients.Ask]:
    """Read as the bare protocol does, but a stream of the crowd begins when another one is over."""
    turn = asyncio.Lock()
    async with clients.open_bare(url) as right:

        async def ask_alone(model: str, prompt: str, take: clients.Take) -> None:
            async with turn if model == CROWD else nullcontext():
                await right(model, prompt, take)

        yield ask_alone


def test_streams_that_fail_are_lost_and_say_why(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream counts as whole only if it ended without an error and with every token once."""
    monkeypatch.setitem(clients.OPEN, "ollama", open_faulty)

    result = asyncio.run(measure.crowd("ollama", url, CROWD))
    assert (result["whole"], result["lost"]) == (1, 2)
    assert result["reasons"] == {"TimeoutError": 1, "ended": 1}


def test_streams_that_wait_for_others_are_lost(impatient_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not run all streams at once is measured on those that run; the others came too late."""
    monkeypatch.setitem(clients.OPEN, "bare", open_one_by_one)
    monkeypatch.setattr(measure, "OPEN_SECONDS", 0.1)

    result = asyncio.run(measure.crowd("bare", impatient_url, CROWD))
    assert result["begun"] < 3
    assert result["reasons"] == {"still waiting": result["lost"]}
    assert result["lost"] > 0


def samples_with(**aicortex: float) -> report.Samples:
    """Return samples in which AI Cortex on asyncio meets every target, but for the columns given."""
    crowd = {column: [1.0] for column in [*report.CROWD, "begun", "lost", "first_tokens", "middle_tokens"]}
    met = {**crowd, "whole": [1000.0], "lost": [0.0], "flood_cpu_us": [0.1], "paced_cpu_us": [13.0, 13.0, 99.0]}
    return {
        "bare asyncio": {"paced_cpu_us": [10.0], "flood_cpu_us": [0.05]},
        "aicortex asyncio": met | {column: [value] for column, value in aicortex.items()},
        "ollama asyncio": {**crowd, "whole": [100.0], "lost": [900.0], "flood_cpu_us": [1.0]},
        "litellm asyncio": {"flood_cpu_us": [15.0]},
    }


def test_targets_are_judged_by_medians() -> None:
    """One slow measurement of three misses no target, a value on the bound meets it, and other loops do not count."""
    samples = samples_with(cpu_us=20.0, first_kb=10.0, late_p99_ms=5.0, p50_ms=2.0)

    verdicts = [line for line in report.render(samples, {}, []).splitlines() if line.startswith("- met: asyncio")]
    assert len(verdicts) == len(report.targets_of("asyncio"))
    assert not report.is_missed(samples)


@pytest.mark.parametrize(
    ("column", "value", "target"),
    [
        ("lost", 1, "lost"),
        ("cpu_us", 20.1, "20 µs"),
        ("p50_ms", 2.1, "keeps up"),
        ("first_kb", 10.1, "10 kB"),
        ("late_p99_ms", 5.1, "bottleneck"),
        ("flood_cpu_us", 0.101, "times below"),
        ("paced_cpu_us", 13.1, "paced"),
    ],
)
def test_missed_target_is_named(column: str, value: float, target: str) -> None:
    """Each bound is judged on its own column, and the report says MISSED in its line."""
    samples = samples_with(**{column: value})

    missed = [line for line in report.render(samples, {}, []).splitlines() if line.startswith("- MISSED")]
    assert missed
    assert all(target in line for line in missed)
    assert report.is_missed(samples)


def test_one_lost_stream_in_any_repeat_misses_the_target() -> None:
    """Streams are not averaged: the worst repeat counts."""
    samples = samples_with()
    samples["aicortex asyncio"] |= {"whole": [1000.0, 999.0, 1000.0], "lost": [0.0, 1.0, 0.0]}

    assert "999 of 1000" in report.render(samples, {}, [])
    assert report.is_missed(samples)


def test_report_says_what_became_of_streams() -> None:
    """Lost streams have their reasons, and what is not installed is named."""
    text = report.render(samples_with(), {"ollama asyncio": {"still waiting": 900}}, ["uvloop"])

    assert "| ollama AsyncClient, asyncio |   100 of 1000 |" in text
    assert "- not whole: ollama AsyncClient, asyncio: 900 still waiting" in text
    assert "- not installed: uvloop" in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "bare,curl"], "unknown: curl"),
        (["--streams", "0"], "must be positive"),
        (["--seconds", "-1"], "must be positive"),
    ],
)
def test_wrong_option_is_refused(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown client or a number that is not positive ends with a message and status 2."""
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(arguments)

    assert reason in capsys.readouterr().err


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Stand for the limits of open files: the last entry is what holds."""
    held = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: held[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: held.append(limits))
    return held


def test_open_files_are_allowed(limits: list[tuple[int, int]]) -> None:
    """The soft limit is raised as far as needed, and only then."""
    allow_files(100)
    assert limits == [(1024, 4096)]

    allow_files(1000)
    assert limits[1:] == [(1200, 4096)]


@pytest.mark.usefixtures("limits")
def test_too_many_open_files_end_with_a_message() -> None:
    """Where the system forbids that many files, the message says how many there may be."""
    with pytest.raises(SystemExit, match="4000 streams need 4200 open files, and this system allows 4096"):
        allow_files(4000)


def test_small_run_prints_every_sample() -> None:
    """One command measures all three works of a client, on each loop, each stream whole, and shows its progress."""
    small = ["--streams", "4", "--seconds", "0.4", "--tokens", "50", "--paced-seconds", "0.01", "--repeat", "1"]
    command = [sys.executable, "-m", "benchmarks.crowd", *small, "--only", "aicortex", "--json", "--check"]
    done = subprocess.run(command, cwd=replay.ROOT, capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode in (0, 1), done.stderr
    samples = json.loads(done.stdout)["samples"]
    assert "aicortex asyncio" in samples
    for columns in samples.values():
        assert set(columns) >= {*report.CROWD, *report.SINGLE}
        assert columns["whole"] == [4]
    assert "1 of 1: crowd AI Cortex achat, asyncio\n" in done.stderr
