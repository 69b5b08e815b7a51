"""`aicortex batch`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmarks import batch

from aicortex._core.ollama import full_name
from aicortex.cli.batch import Pace
from aicortex.job import Progress
from aicortex.registry.credentials import entry_of
from aicortex.registry.store import Registry
from aicortex.testing import Answer, FakeServer, Hang, Status
from cli.running import PATIENCE, Terminal, environment, finish, here, run, start

MODEL = "llama3.2:3b"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A file of six prompts, two of them in the same words, every other one with an id."""
    rows = [{"prompt": f"{index // 2 * 2}?", **({"id": f"p{index}"} if index % 2 else {})} for index in range(6)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def records(path: Path) -> list[Any]:
    return [json.loads(row) for row in path.read_text("utf-8").splitlines()]


def asked(server: FakeServer) -> list[str]:
    """Return what a server was asked, in order."""
    return [request.json["messages"][-1]["content"] for request in server.requests if request.path == "/api/chat"]


def test_every_prompt_has_an_answer(
    server: FakeServer, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each prompt is asked once and has one line, with the keys that the help names; nothing is on stdout."""
    out = tmp_path / "a.jsonl"
    ended = here(capsys, "batch", str(prompts), "-o", str(out), "--server", server.url, "--seed", "7")
    assert (ended.status, ended.out) == (0, "")
    assert re.fullmatch(
        r"aicortex: 6 of 6 prompts answered in \S+a\.jsonl, 6 now in \d+ s, [\d.]+ answers/s, [\d.]+ tokens/s\n",
        ended.err,
    )
    assert sorted(asked(server)) == ["0?", "0?", "2?", "2?", "4?", "4?"]
    assert sorted(record["index"] for record in records(out)) == list(range(6))
    assert {record.get("id") for record in records(out)} == {None, "p1", "p3", "p5"}
    assert {record["text"] for record in records(out)} == {"Black holes form when stars die."}
    said = " ".join(here(capsys, "batch", "--help").out.split())
    assert [key for key in records(out)[-1] if key not in said] == []


def test_the_second_run_asks_what_is_missing(
    server: FakeServer, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A torn line and missing ones are asked again, whole ones are not; when nothing is missing no server is asked."""
    out = tmp_path / "a.jsonl"
    command = ("batch", str(prompts), "-o", str(out), "--server", server.url)
    here(capsys, *command)
    first = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(first[:3]) + first[3][:-9])
    before = len(asked(server))
    ended = here(capsys, *command)
    assert (ended.status, "6 of 6 prompts answered" in ended.err, ", 3 now" in ended.err) == (0, True, True)
    assert len(asked(server)) == before + 3
    assert out.read_bytes().splitlines(keepends=True)[:3] == first[:3]
    assert len({record["index"] for record in records(out)}) == 6
    requests = len(server.requests)
    ended = here(capsys, *command)
    assert (ended.status, ended.err) == (0, f"aicortex: all 6 prompts are answered in {out} already\n")
    assert len(server.requests) == requests


def test_failures_are_told_and_asked_again(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A prompt that fails has no line; it is named on stderr, the status is 1, and the next run asks it."""
    out = tmp_path / "a.jsonl"
    with FakeServer(Status(400, {"error": "too long"}), models=[MODEL]) as server:
        command = ("batch", str(prompts), "-o", str(out), "--server", server.url, "--per-server", "1")
        ended = here(capsys, *command)
        assert (ended.status, len(records(out))) == (1, 5)
        assert f"aicortex: {prompts}:1: the request was refused by {server.url}" in ended.err
        assert ended.err.endswith("aicortex: 1 failed; the same command asks them again\n")
        ended = here(capsys, *command)
        assert (ended.status, len(records(out)), len(asked(server))) == (0, 6, 7)


def test_many_failures_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of many failures the first twenty have a line, the others are counted."""
    path = tmp_path / "p.txt"
    path.write_text("".join(f"{index}?\n" for index in range(50)), "utf-8")
    with FakeServer(*[Status(400, {"error": "no such option"})] * 50, models=[MODEL]) as server:
        ended = here(capsys, "batch", str(path), "-o", str(tmp_path / "a"), "--server", server.url)
    assert ended.status == 1
    assert ended.err.count("no such option") == 20
    assert "50 failed" in ended.err


def test_a_dead_fleet_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When no server has answered anything after twenty failures, the other prompts are not asked."""
    path = tmp_path / "p.txt"
    path.write_text("".join(f"{index}?\n" for index in range(50)), "utf-8")
    with FakeServer(models=[MODEL]) as server:
        server.refuse()
        ended = here(capsys, "batch", str(path), "-o", str(tmp_path / "a"), "--server", server.url)
    assert ended.status == 1
    assert ended.err.count("All servers failed") == 20
    assert "the other prompts are not asked" in ended.err
    assert "20 failed; the same command asks them again" in ended.err


def test_options_hold_for_all_prompts(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the command says holds for each prompt, unless the prompt says something else."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "1?"}\n{"prompt": "2?", "temperature": 1, "model": "qwen3:8b"}\n', "utf-8")
    options = ("--model", MODEL, "--temperature", "0", "--max-tokens", "9", "--system", "Be brief.")
    assert here(capsys, "batch", str(path), "-o", str(tmp_path / "a"), "--server", server.url, *options).status == 0
    bodies = {body["messages"][-1]["content"]: body for body in _bodies(server)}
    assert (bodies["1?"]["model"], bodies["2?"]["model"]) == (MODEL, "qwen3:8b")
    assert bodies["1?"]["options"] == {"temperature": 0, "num_predict": 9}
    assert bodies["2?"]["options"] == {"temperature": 1, "num_predict": 9}
    assert bodies["1?"]["messages"][0] == {"role": "system", "content": "Be brief."}


def _bodies(server: FakeServer) -> list[Any]:
    return [request.json for request in server.requests if request.path == "/api/chat"]


def test_prompts_from_standard_input(server: FakeServer, tmp_path: Path) -> None:
    """'-' reads prompts from a pipe."""
    out = tmp_path / "a"
    ended = run("batch", "-", "-o", str(out), "--server", server.url, text=b"1?\n2?\n")
    assert (ended.status, sorted(asked(server))) == (0, ["1?", "2?"])


def test_the_model_of_the_first_run_stays(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --model the missing ones are asked of the model that gave the answers that are there."""
    out = tmp_path / "a"
    with FakeServer(models=["one", "two"]) as server:
        command = ("batch", str(prompts), "-o", str(out), "--server", server.url)
        here(capsys, *command)
        first = out.read_bytes().splitlines(keepends=True)
        out.write_bytes(first[0])
    with FakeServer(models=["two", "one"]) as server:
        assert here(capsys, *command[:-1], server.url).status == 0
    assert {record["model"] for record in records(out)} == {"one"}


def test_no_other_model_goes_on(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where prompts name no model the answers are of one: another is refused, and that one goes on in any spelling."""
    out = tmp_path / "a"
    with FakeServer(models=["one:latest", "two:1b"]) as server:
        command = ("batch", str(prompts), "-o", str(out), "--server", server.url)
        assert here(capsys, *command).status == 0
        rows = [*prompts.read_text("utf-8").splitlines(), '{"prompt": "6?", "model": "two:1b"}', '{"prompt": "8?"}']
        prompts.write_text("\n".join(rows), "utf-8")
        monkeypatch.setenv("AICORTEX_MODEL", "two:1b")
        for options in ((), ("--model", "two:1b")):
            ended = here(capsys, *command, *options)
            assert (ended.status, len(records(out))) == (2, 6)
            said = (
                rf"{out}:\d: is an answer of one:latest, and two:1b is the model to ask; go on with --model one:latest,"
            )
            assert re.search(said, ended.err)
        assert here(capsys, *command, "--model", "one").status == 0
        monkeypatch.delenv("AICORTEX_MODEL")
        assert "already" in here(capsys, *command).err
    assert {record["index"]: full_name(record["model"]) for record in records(out)} == {
        **dict.fromkeys([0, 1, 2, 3, 4, 5, 7], "one:latest"),
        6: "two:1b",
    }


def test_an_alias_may_have_several_models(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model is an alias the answers of all its models are in place, and of no other one."""
    (tmp_path / "aicortex.toml").write_text('[aliases]\nsmall = ["one", "two:1b"]\n', "utf-8")
    monkeypatch.setenv("AICORTEX_CONFIG", str(tmp_path / "aicortex.toml"))
    out = tmp_path / "a"
    for model in ("two:1b", "one:latest"):
        out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:3]) if out.exists() else b"")
        with FakeServer(models=[model]) as server:
            command = ("batch", str(prompts), "-o", str(out), "--server", server.url)
            assert here(capsys, *command, "--model", "small").status == 0
    assert {full_name(record["model"]) for record in records(out)} == {"one:latest", "two:1b"}
    ended = here(capsys, *command)
    assert (ended.status, "is the model to ask" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ('{"prompt": "1?"}\n{"prompt": 2}\n', (), "p.jsonl:2: prompt must be text"),
        ("", (), "there is no prompt in"),
        ('{"prompt": "1?"}\n', ("--temperature", "-1"), "temperature must be at least 0"),
        ('{"prompt": "1?"}\n', ("--per-server", "0"), "0 is too few"),
        ('{"prompt": "1?"}\n', ("--server", "ftp://desk"), "no server address"),
    ],
)
def test_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, options: tuple[str, ...], words: str
) -> None:
    """Wrong files and options end with status 2 before anything is asked."""
    path = tmp_path / "p.jsonl"
    path.write_text(content, "utf-8")
    ended = here(capsys, "batch", str(path), "-o", str(tmp_path / "a"), *options)
    assert (ended.status, words in ended.err) == (2, True), ended.err


def test_files_that_will_not_do(server: FakeServer, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file, answers into the prompts, and answers to something else are refused."""
    ended = here(capsys, "batch", "nowhere.jsonl", "-o", "a")
    assert (ended.status, "nowhere.jsonl cannot be read: No such file" in ended.err) == (2, True)
    ended = here(capsys, "batch", str(prompts), "-o", str(prompts))
    assert (ended.status, "cannot take the answers to itself" in ended.err) == (2, True)
    out = prompts.with_name("a")
    command = ("batch", str(prompts), "-o", str(out), "--server", server.url)
    assert here(capsys, *command).status == 0
    ended = here(capsys, *command, "--seed", "8")
    assert (ended.status, "answers something else than" in ended.err) == (2, True)
    ended = here(capsys, "batch", str(prompts), "-o", str(out.with_name("none") / "a"))
    assert (ended.status, f"{out.with_name('none') / 'a'} cannot be written: No such file" in ended.err) == (2, True)
    ended = here(capsys, "batch", str(prompts), "-o", str(prompts.parent))
    assert (ended.status, f"{prompts.parent} cannot be written: Is a directory" in ended.err) == (2, True)
    ended = here(capsys, "batch", str(prompts.parent), "-o", str(out))
    assert (ended.status, f"{prompts.parent} cannot be read: Is a directory" in ended.err) == (2, True)


def test_standard_output_takes_no_answers(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """'-' is no file of answers, and none of that name is made."""
    monkeypatch.chdir(tmp_path)
    ended = here(capsys, "batch", str(prompts), "-o", "-")
    assert (ended.status, "kept in a file to go on with" in ended.err) == (2, True)
    assert not Path("-").exists()


def test_a_model_that_nobody_has(server: FakeServer, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error of `chat` ends it with status 1, and nothing is written."""
    out = prompts.with_name("a")
    ended = here(capsys, "batch", str(prompts), "-o", str(out), "--server", server.url, "--model", "lama3.2:3b")
    assert (ended.status, f"did you mean '{MODEL}'?" in ended.err) == (1, True)
    assert not out.exists()
    out.touch()
    here(capsys, "batch", str(prompts), "-o", str(out), "--server", server.url, "--model", "lama3.2:3b")
    assert out.read_bytes() == b""  # somebody else made it


def test_a_full_disk(server: FakeServer, prompts: Path, tmp_path: Path) -> None:
    """The file is named, what is whole is counted, and the same command goes on with the rest."""
    out = tmp_path / "a"
    command = ["batch", str(prompts), "-o", str(out), "--server", server.url]
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
    code += "from aicortex.cli import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, *command]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=False)
    count = out.read_bytes().count(b"\n")
    assert 0 < count < 6
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        [
            f"aicortex: {count} of 6 prompts answered in {out}; the same command goes on with the rest",
            f"aicortex: error: input or output failed: {out} cannot be written: File too large",
        ],
    )
    assert run(*command).status == 0
    assert sorted(record["index"] for record in records(out)) == list(range(6))


def test_two_runs_at_once(prompts: Path, tmp_path: Path) -> None:
    """The second run on the same file is refused while the first one is at work."""
    out = tmp_path / "a"
    with FakeServer(answer=Answer("a b").then(Hang(), after_tokens=1), models=[MODEL]) as server:
        command = ("batch", str(prompts), "-o", str(out), "--server", server.url)
        first = start(*command)
        assert server.wait_until(lambda: server.active == 4, PATIENCE)
        ended = run(*command)
        assert (ended.status, f"another run is writing to {out}" in ended.err) == (1, True)
        first.kill()
        finish(first)


def test_ctrl_c_keeps_what_is_whole(prompts: Path, tmp_path: Path) -> None:
    """Ctrl-C ends every generation, says how to go on, and the next run does the rest."""
    out = tmp_path / "a"
    with FakeServer(*[Answer("done")] * 3, answer=Answer("a b").then(Hang(), after_tokens=1), models=[MODEL]) as server:
        command = ("batch", str(prompts), "-o", str(out), "--server", server.url, "--per-server", "1")
        process = start(*command)
        limit = time.monotonic() + PATIENCE
        while not out.exists() or len(records(out)) < 3:
            assert time.monotonic() < limit
        process.send_signal(signal.SIGINT)
        ended = finish(process)
        assert ended.status == 130
        assert ended.err == (
            f"aicortex: 3 of 6 prompts answered in {out}; the same command goes on with the rest\naicortex: stopped\n"
        )
        assert server.wait_until(lambda: server.active == 0)
        assert len(records(out)) == 3
    with FakeServer(models=[MODEL]) as server:
        ended = run(*command[:5], server.url)
        assert (ended.status, len(asked(server)), len(records(out))) == (0, 3, 6)


def test_a_terminal_shows_how_far_it_is(prompts: Path, tmp_path: Path) -> None:
    """A bar says how many are done, how fast, and who is at work; names are those of the registry."""
    script = [Answer("done")] * 3
    with FakeServer(*script, answer=Answer("a b").then(Hang(), after_tokens=1), models=[MODEL]) as server:
        with Registry() as registry:
            registry.add(entry_of(server.url, name="desk", slots=1))
        more = {"AICORTEX_DATA_DIR": os.environ["AICORTEX_DATA_DIR"]}
        with Terminal("batch", str(prompts), "-o", str(tmp_path / "a"), columns=120, more=more) as terminal:
            terminal.wait_for("3/6")
            terminal.wait_for("desk 1")
            assert "answers/s" in terminal.text()
            terminal.interrupt()
            assert terminal.end() == 130
            assert "3 of 6 prompts answered" in terminal.text()


@pytest.mark.parametrize("columns", [24, 40, 50])
def test_a_narrow_terminal_shows_how_many(tmp_path: Path, columns: int) -> None:
    """What there is no room for is left out from the end of the line, never the number of answers."""
    path = tmp_path / "p.txt"
    path.write_text("why?\n" * 5000, "utf-8")
    with FakeServer(*[Answer("done")] * 3, answer=Answer("a b").then(Hang(), after_tokens=1), models=[MODEL]) as server:
        command = ("batch", str(path), "-o", str(tmp_path / "a"), "--server", server.url, "--per-server", "1")
        with Terminal(*command, columns=columns) as terminal:
            terminal.wait_for("   3/5000")
            terminal.interrupt()
            assert terminal.end() == 130


def test_the_pace_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is that of this run; what is left is told in seconds, minutes or hours."""
    now = [100.0]
    monkeypatch.setattr("aicortex.cli.batch.perf_counter", lambda: now[0])
    pace = Pace(1000, 400)
    assert (pace.done, pace.speed(), pace.left(), pace.told()) == (400, "", "", "")
    now[0] = 110.0
    pace.tell(Progress(100, 20, 120, 600, 1600, {"http://desk:1": 2, "embedded": 1}))
    assert pace.done == 500
    assert pace.speed() == ", 8 answers/s, 160 tokens/s"
    assert pace.left() == ", 50 s left"
    assert pace.servers() == "; embedded 1, desk:1 2"
    assert pace.told() == ", 80 now in 10 s, 8 answers/s, 160 tokens/s"
    now[0] = 2100.0
    assert pace.left() == ", 2 h 47 min left"


def test_lines_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal a line tells how far it is when enough time has passed."""
    monkeypatch.setattr("aicortex.cli.batch.LINE_SECONDS", 0.0)
    path = tmp_path / "p.txt"
    path.write_text("1?\n2?\n", "utf-8")
    with FakeServer(models=[MODEL]) as server:
        ended = here(capsys, "batch", str(path), "-o", str(tmp_path / "a"), "--server", server.url)
    assert re.match(r"aicortex: 1 of 2, \S+ answers/s, \S+ tokens/s, 0 s left", ended.err)


def test_no_answer_is_lost_or_comes_twice(weights_path: Path) -> None:
    """Of three engines one is killed half way, the command itself a little later; a second run completes the file."""
    assert weights_path.exists()
    ended = batch.run(24, tokens=2)
    assert (ended["status"], ended["answers"], ended["prompts"]) == (0, 24, 24), ended
    assert 16 <= ended["first"] < 24
