"""Files of prompts and files of answers."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aicortex import Attempt, Result
from aicortex.batch import Answers, Line, Record, read_prompts
from aicortex.job import Outcome

JSON = b'{"prompt": "1?", "id": "a", "temperature": 0.5}\n\n{"messages": [{"role": "user", "content": "2?"}]}\r\n'


def outcome(text: str = "yes", index: int = 0) -> Outcome:
    attempt = Attempt("http://desk:1", "ok", "stream", "", 3, False, 1.0)
    timings = {"first_token": 0.123456, "total": 1.0}
    usage = {"prompt_tokens": 2, "completion_tokens": 3}
    return Outcome(index, None, text, Result(text, "", "stop", usage, timings, "llama", "http://desk:1", (attempt,)))


def read(name: str, data: bytes, shared: dict[str, Any]) -> list[Line]:
    return read_prompts(name, BytesIO(data), shared)


def prompts(*rows: object) -> list[Line]:
    return read("p.jsonl", "\n".join(json.dumps(row) for row in rows).encode(), {})


def write(path: Path, lines: list[Line]) -> None:
    with Answers(str(path)) as answers:
        for line in lines:
            answers.add(Record.of(line, outcome()))


def test_prompts_of_json() -> None:
    """Each line that is not blank is a prompt with its own arguments; its number and its place are known."""
    one, two = read("p.jsonl", JSON, {})
    assert (one.number, one.index, one.id, one.prompt) == (
        1,
        0,
        "a",
        {"prompt": "1?", "id": "a", "temperature": 0.5},
    )
    assert (two.number, two.index, two.id) == (3, 1, None)
    assert two.prompt["messages"][0]["content"] == "2?"


def test_prompts_of_text() -> None:
    """Each line that is not blank is a prompt as it stands."""
    one, two = read("p.txt", "\ufeff 1? \n\n{2?}\r\n".encode(), {})
    assert (one.prompt, two.prompt, two.number) == ({"prompt": " 1? "}, {"prompt": "{2?}"}, 3)


@pytest.mark.parametrize(
    ("name", "data", "is_json"),
    [
        ("p.jsonl", b'{"prompt": "1"}', True),
        ("p.ndjson", b'{"prompt": "1"}', True),
        ("p.txt", b'{"prompt": "1"}', False),
        ("p", b'\n {"prompt": "1"}', True),
        ("<stdin>", b"why?", False),
    ],
)
def test_what_a_file_holds(name: str, data: bytes, is_json: bool) -> None:
    """The name tells JSON from text, or else the first character."""
    assert [line.is_json for line in read(name, data, {})] == [is_json]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b"{", "is no JSON"),
        (b'"Why?"', "is no JSON object with 'prompt' or 'messages'"),
        (b"{}", "give a prompt, or messages"),
        (b'{"prompt": 5}', "prompt must be text"),
        (b'{"prompt": "5", "max_tokens": 0}', "max_tokens must be at least 1"),
        (b'{"prompt": "5", "temprature": 0}', "a prompt has no argument 'temprature'; did you mean 'temperature'?"),
        (b'{"prompt": "5", "servers": ["desk"]}', "names no servers"),
        (b'{"prompt": "5", "stream": true}', "a prompt has no argument 'stream': answers come whole"),
        (b'{"promt": "5"}', "a prompt has no argument 'promt'; did you mean 'prompt'?"),
        (b'{"prompt": "5", "id": [1]}', "an id is a text or a whole number"),
        (b'{"prompt": "5", "id": true}', "an id is a text or a whole number"),
        (b'{"prompt": "5", "id": "a"}', "the id 'a' is that of line 1 too"),
        (b"\xff", "is not UTF-8 (byte 0xff)"),
    ],
)
def test_a_wrong_line_is_named(row: bytes, words: str) -> None:
    """Whatever is wrong with a line is said with the file and the line's number."""
    with pytest.raises(ValueError, match=r"^p\.jsonl:3: ") as raised:
        read("p.jsonl", b'{"prompt": "4", "id": "a"}\n\n' + row, {})
    assert words in str(raised.value)


def test_a_digest_is_that_of_the_request() -> None:
    """It changes with what is asked and with what is given for all, but not with the id or the spelling of JSON."""
    digests = [
        read("p", row, shared)[0].digest
        for row, shared in (
            (b'{"prompt": "1?", "seed": 1}', {}),
            (b'{ "seed":1,"id":7, "prompt": "1\\u003f"}', {}),
            (b'{"prompt": "1?"}', {"seed": 1}),
            (b'{"prompt": "1?"}', {"seed": 2}),
            (b'{"prompt": "2?"}', {"seed": 1}),
            (b"1?", {"seed": 1}),
        )
    ]
    assert digests[0] == digests[1] == digests[2] == digests[5]
    assert len({*digests}) == 3


def test_a_record_has_what_is_known_of_an_answer(tmp_path: Path) -> None:
    """A line of answers is JSON with the fields of the docs; what there is none of is left out."""
    one, two = prompts({"prompt": "1?", "id": "a"}, {"prompt": "2?"})
    write(tmp_path / "a", [one, two])
    first, second = map(json.loads, (tmp_path / "a").read_bytes().splitlines())
    assert first == {
        "index": 0,
        "digest": one.digest,
        "text": "yes",
        "model": "llama",
        "server": "http://desk:1",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 2, "completion_tokens": 3},
        "timings": {"first_token": 0.1235, "total": 1.0},
        "attempts": 1,
        "id": "a",
    }
    assert "id" not in second


def test_only_what_is_missing_is_left(tmp_path: Path) -> None:
    """What a file answers is not asked again, by id wherever it stands, else by its place; equal prompts are two."""
    path = tmp_path / "a"
    rows = [{"prompt": "1?", "id": "a"}, {"prompt": "2?"}, {"prompt": "2?"}]
    write(path, prompts(*rows)[:2])
    with Answers(str(path)) as answers:
        assert [line.index for line in answers.missing("p", prompts(*rows))] == [2]
        moved = prompts({"prompt": "3?", "id": "c"}, {"prompt": "2?"}, {"prompt": "1?", "id": "a"})
        assert [line.id for line in answers.missing("p", moved)] == ["c"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "1?", "id": "a"}], "a:2: answers the prompt 1, which p does not have"),
        ([{"prompt": "2?"}, {"prompt": "2?"}], "a:1: answers the id 'a', which p does not have"),
        ([{"prompt": "1?", "id": "a"}, {"prompt": "3?"}], "a:2: answers something else than p:2 asks now"),
        ([{"prompt": "1!", "id": "a"}, {"prompt": "2?"}], "a:1: answers something else than p:1 asks now"),
    ],
)
def test_answers_to_other_prompts_are_refused(tmp_path: Path, rows: list[object], words: str) -> None:
    """Prompts that have changed since are noticed, and both lines named."""
    path = tmp_path / "a"
    write(path, prompts({"prompt": "1?", "id": "a"}, {"prompt": "2?"}))
    before = path.read_bytes()
    with Answers(str(path)) as answers, pytest.raises(ValueError, match="write to another file") as raised:
        answers.missing("p", prompts(*rows))
    assert words in str(raised.value)
    assert path.read_bytes() == before


def test_a_torn_line_is_removed_wherever_it_was_cut(tmp_path: Path) -> None:
    """Whatever part of the last line a kill left, the next run has the whole lines before it and no more."""
    path = tmp_path / "a"
    lines = prompts({"prompt": "1?"}, {"prompt": "2?", "id": "ü"})
    write(path, lines)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole) - 1):
        path.write_bytes(whole[:size])
        with Answers(str(path)) as answers:
            assert [line.index for line in answers.missing("p", lines)] == [1]
        assert path.read_bytes() == whole[:first]
    path.write_bytes(whole[:-1])  # nothing is missing but the end of the line
    with Answers(str(path)) as answers:
        assert answers.missing("p", lines) == []
    assert path.read_bytes() == whole


@pytest.mark.parametrize("data", [b"notes", b"notes\n", b'{"index": "?"}\n', b"{}\n", b'{"prompt": "1?"}'])
def test_a_file_that_is_no_file_of_answers_is_left_alone(tmp_path: Path, data: bytes) -> None:
    """Something else is neither cut nor written to."""
    path = tmp_path / "a"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="a:1: is no answer of a batch"):
        Answers(str(path))
    assert path.read_bytes() == data


def test_blank_lines_between_answers_are_left_out(tmp_path: Path) -> None:
    """What an editor adds does no harm, not even before a torn line."""
    path = tmp_path / "a"
    lines = prompts({"prompt": "1?"}, {"prompt": "2?"})
    write(path, lines)
    one, two = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"\n" + one + b"\r\n" + two[:-9])
    with Answers(str(path)) as answers:
        assert [line.index for line in answers.missing("p", lines)] == [1]
    assert path.read_bytes() == b"\n" + one + b"\r\n"


def test_two_answers_to_one_prompt_are_refused(tmp_path: Path) -> None:
    """A file that somebody put together from two is noticed."""
    path = tmp_path / "a"
    write(path, prompts({"prompt": "1?"}))
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ValueError, match="a:2: answers the same as line 1"):
        Answers(str(path))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """Answers are kept in a file: a folder or a device cannot be gone on with."""
    with pytest.raises(ValueError, match="is no file"):
        Answers(os.devnull)
    with pytest.raises(OSError, match="directory"):
        Answers(str(tmp_path))


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """While one process has the file open another is refused; the lock ends with the process, however it ends."""
    path = tmp_path / "a"
    code = f"from aicortex.batch import Answers; a = Answers({str(path)!r}); print('open', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ}
    )
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(BlockingIOError, match="another run is writing to"):
            Answers(str(path))
        holder.kill()
    Answers(str(path)).close()


def test_a_failed_write_leaves_whole_answers(tmp_path: Path) -> None:
    """When the disk is full the error shows, and the file can be gone on with."""
    path = tmp_path / "a"
    lines = prompts(*({"prompt": f"{index}?"} for index in range(9)))
    code = (
        "import json, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from aicortex.batch import Answers;"
        f"a = Answers({str(path)!r}); r = type('R', (), {{}});"
        "import msgspec; from aicortex.batch import Record;"
        "[a.add(msgspec.json.decode(row, type=Record)) for row in sys.stdin.buffer]"
    )
    rows = b"".join(json.dumps(json.loads(_row(line))).encode() + b"\n" for line in lines)
    done = subprocess.run([sys.executable, "-c", code], input=rows, capture_output=True, check=False)
    assert b"OSError" in done.stderr
    assert path.stat().st_size == 700
    with Answers(str(path)) as answers:
        left = answers.missing("p", lines)
    assert 0 < len(left) < 9
    assert path.read_bytes().endswith(b"\n")


def _row(line: Line) -> bytes:
    return msgspec.json.encode(Record.of(line, outcome()))


def test_a_new_file_without_answers_is_removed(tmp_path: Path) -> None:
    """Who wrote nothing leaves nothing, but keeps an empty file that was there before."""
    path = tmp_path / "a"
    Answers(str(path)).close()
    assert not path.exists()
    path.touch()
    Answers(str(path)).close()
    assert path.exists()


def test_a_file_that_is_being_removed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opens a file that another run then removes does not write where nobody reads."""
    path = tmp_path / "a"
    first = Answers(str(path))
    lock = fcntl.flock

    def late(file: int, how: int) -> None:
        first.close()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(BlockingIOError, match="another run is writing to"):
        Answers(str(path))
    monkeypatch.undo()
    Answers(str(path)).close()


def test_prompts_are_read_a_row_at_a_time() -> None:
    """A wrong line ends the reading: the rows behind it are not taken."""
    rows = iter([b'{"prompt": "1?"}\n', b"{\n", b'{"prompt": "2?"}\n'])
    with pytest.raises(ValueError, match=r"^p\.jsonl:2: is no JSON"):
        read_prompts("p.jsonl", rows, {})
    assert len([*rows]) == 1


def test_the_model_to_ask(tmp_path: Path) -> None:
    """It is the one that answered the prompts that name none; another one, or answers of several, are refused."""
    path = tmp_path / "a"
    lines = prompts({"prompt": "1?", "model": "other"}, {"prompt": "2?"}, {"prompt": "3?"}, {"prompt": "4?"})
    with Answers(str(path)) as answers:
        for line, model in zip(lines, ("other", "llama", "llama:latest"), strict=False):
            answers.add(msgspec.structs.replace(Record.of(line, outcome()), model=model))
    with Answers(str(path)) as answers:
        assert answers.model(lines, None) == "llama"
        assert answers.model(lines, "llama:latest") == "llama:latest"
        with pytest.raises(
            ValueError, match=r"a:2: is an answer of llama, and qwen is the model to ask; .* --model llama"
        ):
            answers.model(lines, "qwen")
        answers.add(msgspec.structs.replace(Record.of(lines[3], outcome()), model="qwen"))
    with Answers(str(path)) as answers:
        for wanted in (None, "llama"):
            with pytest.raises(ValueError, match="a:4: is an answer of qwen, and llama is the model to ask"):
                answers.model(lines, wanted)
