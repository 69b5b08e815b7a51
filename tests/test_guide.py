"""Every example of the user guide runs as it stands there, against the embedded engine."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from aicortex import StreamEvent
from aicortex.testing import FakeServer, Status

GUIDE = Path(__file__).parents[1] / "docs" / "streaming.md"
LIMIT = 120.0  # seconds of one example; on a busy machine the engine is slow
NUMBER = r"([0-9.]+)"

# Runs an example as the main program, with the one name that the guide's first example imports and the shorter ones
# after it use, then prints as JSON what an expression over its names says.
RUN_AND_TELL = """
import json, runpy, sys
from aicortex import chat
names = runpy.run_path(sys.argv[1], {"chat": chat}, "__main__")
print("", json.dumps(eval(sys.argv[2], names)), sep="\\n")
"""

# Runs the Tkinter example, whose main loop has no end, and closes its window when its thread is done. Prints how often
# the window was free to do something else meanwhile, then its text.
RUN_AND_CLOSE = """
import runpy, sys, threading, tkinter
loop = tkinter.Tk.mainloop

def mainloop(root):
    ticks = []

    def tick():
        ticks.append(None)
        root.after(10, tick)

    def finish():
        print(len(ticks), root.winfo_children()[0].get("1.0", "end"), sep="\\n")
        root.destroy()

    def watch():
        worker.join()
        root.after(0, finish)

    worker, = (thread for thread in threading.enumerate() if thread.name.endswith("(run)"))
    root.after(0, tick)
    threading.Thread(target=watch).start()
    loop(root)

tkinter.Tk.mainloop = mainloop
runpy.run_path(sys.argv[1], {}, "__main__")
"""


def _examples() -> dict[str, str]:
    """Return the guide's examples, each under the heading before it."""
    found, heading = {}, ""
    for match in re.finditer(
        r"^#+ ([^\n]+)$|^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        heading = match[1] or heading
        if match[2]:
            found[heading] = match[2]
    return found


EXAMPLES = _examples()


class Example:
    """The example under a heading of the guide, in a folder of its own."""

    def __init__(self, folder: Path, *headings: str) -> None:
        self.folder = folder
        self.path = folder / "example.py"
        self.path.write_text("\n".join(EXAMPLES[heading] for heading in headings), "utf-8")

    def run(self, *how: str, **environment: str) -> str:
        """Run it in a new process, by a program that is given its path, or alone; return what it prints."""
        command = [sys.executable, "-W", "error", *(["-c", how[0]] if how else []), str(self.path), *how[1:]]
        done = self._run(command, environment)
        assert (done.stderr, done.returncode) == ("", 0)
        return done.stdout

    def tell(self, expression: str, **environment: str) -> Any:  # Any: what the expression says
        """Run it, and return what an expression over its names says."""
        return json.loads(self.run(RUN_AND_TELL, expression, **environment).splitlines()[-1])

    def fail(self, **environment: str) -> str:
        """Run it, which must fail; return what it says about that."""
        done = self._run([sys.executable, str(self.path)], environment)
        assert done.returncode != 0
        return done.stderr

    def begin(self, characters: int, **environment: str) -> str:
        """Run it until it has printed so many characters; return them."""
        known = {**os.environ, "PYTHONIOENCODING": "utf-8", **environment}
        command = [sys.executable, str(self.path)]
        with subprocess.Popen(command, cwd=self.folder, env=known, stdout=subprocess.PIPE, encoding="utf-8") as process:
            try:
                assert process.stdout is not None  # asked for in the lines above
                return process.stdout.read(characters)
            finally:
                process.kill()

    def _run(self, command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        known = {**os.environ, "PYTHONIOENCODING": "utf-8", **environment}
        return subprocess.run(
            command, cwd=self.folder, env=known, capture_output=True, encoding="utf-8", timeout=LIMIT, check=False
        )


@pytest.fixture
def engine(short_server: FakeServer) -> dict[str, str]:
    """The environment of a user whose Ollama is the embedded engine, with short answers."""
    return {"OLLAMA_HOST": short_server.url}


def numbers(pattern: str, text: str) -> list[float]:
    """Return the numbers in the one place where a pattern, whose # stands for a number, matches the text."""
    match = re.search(re.escape(pattern).replace(r"\#", NUMBER), text)
    assert match is not None, text
    return [float(group) for group in match.groups()]


def test_every_example_is_under_a_heading_of_its_own() -> None:
    """The guide has fourteen examples, and this file can name each by its heading."""
    assert GUIDE.read_text("utf-8").count("```python") == len(EXAMPLES) == 14


def test_the_essential_pattern(tmp_path: Path, engine: dict[str, str]) -> None:
    """The first example prints an answer and a newline behind it."""
    printed = Example(tmp_path, "The Essential Pattern").run(**engine)
    assert len(printed.split()) > 10
    assert printed.endswith("\n")


@pytest.mark.usefixtures("weights_path")
@pytest.mark.parametrize("heading", ["The Essential Pattern", "Progress Tracking", "CLI Typewriter Effect"])
def test_without_any_setting(tmp_path: Path, heading: str) -> None:
    """Examples that name no model need neither a server nor a setting, and print as the answer comes."""
    assert len(Example(tmp_path, heading).begin(60)) == 60


def test_the_event_reference() -> None:
    """`StreamEvent` has the fields of the guide, in its order."""
    names: dict[str, Any] = {"dataclass": dataclasses.dataclass, "Any": Any}
    exec(EXAMPLES["StreamEvent Reference"], names)
    shown = [field.name for field in dataclasses.fields(names["StreamEvent"])]
    assert [field.name for field in dataclasses.fields(StreamEvent)] == shown


def test_iterating(tmp_path: Path, engine: dict[str, str]) -> None:
    """A stream is read with `for`, and remembers what it gave."""
    assert Example(tmp_path, "Iterating").tell("stream.text() != '' and stream.done", **engine)


def test_getting_the_full_text(tmp_path: Path, engine: dict[str, str]) -> None:
    """Collecting by hand and `text()` give the same text of the same stream."""
    told = Example(tmp_path, "Getting the Full Text").tell(
        "[stream.text() == ''.join(parts) != '', stream2.text() == full != '']", **engine
    )
    assert told == [True, True]


def test_inspecting_collected_events(tmp_path: Path, engine: dict[str, str]) -> None:
    """The arithmetic over the events gives a positive time to the first token and a positive speed."""
    printed = Example(tmp_path, "Inspecting Collected Events").run(RUN_AND_TELL, "0", **engine)
    (tokens,) = numbers("Generated # tokens", printed)
    (first_ms,) = numbers("Time to first token: # ms", printed)
    (total,) = numbers("Total generation time: #s", printed)
    (speed,) = numbers("Average speed: # tok/s", printed)
    assert min(tokens, first_ms, speed) > 0
    assert first_ms <= total * 1000 + 10  # one is rounded to 10 ms


def test_handling_all_event_types(tmp_path: Path, engine: dict[str, str]) -> None:
    """The robust handler prints the answer between its first and its last line, and counts it right."""
    example = Example(tmp_path, "Handling All Event Types")
    printed = example.run(RUN_AND_TELL, "result", **engine)
    result = json.loads(printed.splitlines()[-1])
    head, text, tail = "🟢 Generating...\n\n", result, f"\n\n✅ Done — {len(result)} chars, "
    assert printed.startswith(head + text + tail)
    assert result


def test_handling_a_server_that_fails(tmp_path: Path) -> None:
    """The robust handler reports the server that failed, and prints the answer of the next one."""
    with FakeServer(Status(500), models=["llama3.2:3b"]) as first, FakeServer(models=["llama3.2:3b"]) as second:
        printed = Example(tmp_path, "Handling All Event Types").run(
            AICORTEX_SERVERS=f"{first.url} {second.url}", AICORTEX_ROUTING="order"
        )
    assert f"⚠️ Server error: {first.url}: HTTP 500" in printed
    assert "The quick brown fox jumps over the lazy dog.\n\n✅ Done — 44 chars, 9 tokens" in printed


def test_progress_tracking(tmp_path: Path, engine: dict[str, str]) -> None:
    """The example counts every token, and says so at every fiftieth."""
    printed = Example(tmp_path, "Progress Tracking").run(**engine)
    (count,) = numbers("Final count: # tokens", printed)
    assert printed.count("tokens so far...]") == count // 50 > 0


def test_streaming_to_a_file(tmp_path: Path, engine: dict[str, str]) -> None:
    """The answer is in the file."""
    assert Example(tmp_path, "Streaming to a File").run(**engine) == "Essay saved to output.txt\n"
    assert len((tmp_path / "output.txt").read_text("utf-8").split()) > 10


def test_graceful_error_recovery(tmp_path: Path, engine: dict[str, str]) -> None:
    """An answer without errors is returned whole."""
    printed = Example(tmp_path, "Graceful Error Recovery").run(RUN_AND_TELL, "result", **engine)
    result = json.loads(printed.splitlines()[-1])
    assert printed.startswith(result)
    assert result


def test_recovery_on_the_next_server(tmp_path: Path) -> None:
    """A server that fails is a warning, and the answer comes from the next one."""
    with FakeServer(Status(500), models=["llama3.2:3b"]) as first, FakeServer(models=["llama3.2:3b"]) as second:
        example = Example(tmp_path, "Graceful Error Recovery")
        printed = example.run(
            RUN_AND_TELL, "result", AICORTEX_SERVERS=f"{first.url} {second.url}", AICORTEX_ROUTING="order"
        )
    assert printed.startswith(f"\n[Warning: {first.url}: HTTP 500")
    assert json.loads(printed.splitlines()[-1]) == "The quick brown fox jumps over the lazy dog."


def test_all_servers_failed(tmp_path: Path) -> None:
    """When no server is left, the example says so and returns nothing."""
    with FakeServer(everything=Status(500)) as server:
        printed = Example(tmp_path, "Graceful Error Recovery").run(RUN_AND_TELL, "result", AICORTEX_SERVERS=server.url)
    assert "❌ All servers failed: All servers failed: " in printed
    assert json.loads(printed.splitlines()[-1]) == ""


def test_testing_connectivity(tmp_path: Path, engine: dict[str, str]) -> None:
    """The model is found on one server, which then answers."""
    found, text = Example(tmp_path, "Testing Connectivity Before Streaming").run(**engine).split("\n", 1)
    assert found == "Found 1 server(s) for llama3.2:3b"
    assert text.strip()


def test_testing_connectivity_without_the_model(tmp_path: Path) -> None:
    """A model that nobody has is reported with those that there are."""
    with FakeServer() as server:
        printed = Example(tmp_path, "Testing Connectivity Before Streaming").run(OLLAMA_HOST=server.url)
    assert printed == "Model 'llama3.2:3b' not found. Available: ['fake:latest']\n"


def test_websocket_server(tmp_path: Path, engine: dict[str, str]) -> None:
    """A client of the WebSocket gets the tokens and [DONE], for each of its messages."""
    Example(tmp_path, "WebSocket Server (FastAPI)")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "uvicorn", "example:app", "--fd", str(listener.fileno())]
        known = {**os.environ, **engine}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=known, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL
        )
        try:
            with process, connect(f"ws://127.0.0.1:{listener.getsockname()[1]}/ws/chat", open_timeout=60) as client:
                for prompt in ("What is the capital of France?", "Name a colour."):
                    client.send(prompt)
                    answer = list(iter(client.recv, "[DONE]"))
                    assert len(answer) > 1
                process.terminate()
        finally:
            process.kill()


def test_typewriter(tmp_path: Path, engine: dict[str, str]) -> None:
    """The typewriter prints an answer and a newline."""
    printed = Example(tmp_path, "CLI Typewriter Effect").run(**engine)
    assert len(printed.split()) > 5
    assert printed.endswith("\n")


def test_tkinter(tmp_path: Path, engine: dict[str, str], display: str) -> None:
    """The window fills with the answer while its main loop goes on."""
    printed = Example(tmp_path, "Tkinter GUI (Non-Blocking)").run(RUN_AND_CLOSE, DISPLAY=display, **engine)
    ticks, text = printed.split("\n", 1)
    assert int(ticks) > 5
    assert len(text.split()) > 10


def test_garbled_output(tmp_path: Path, engine: dict[str, str]) -> None:
    """Where the output's encoding cannot express the answer, the two lines at the end of the guide help."""
    ascii_only = {**engine, "PYTHONIOENCODING": "ascii"}
    assert "UnicodeEncodeError" in Example(tmp_path, "Handling All Event Types").fail(**ascii_only)
    printed = Example(tmp_path, "Troubleshooting", "Handling All Event Types").run(**ascii_only)
    assert printed.startswith("🟢 Generating...")
