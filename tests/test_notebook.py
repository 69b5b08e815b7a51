"""Streams that show themselves: in a real kernel, as a notebook runs it, and in IPython's terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbclient import NotebookClient
from nbformat import NotebookNode

from aicortex import chat
from aicortex.notebook import PARSER, Markdown, Page
from aicortex.testing import Answer, Close, FakeServer, Loading, Stall, Status

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "notebook.ipynb"
TEXT = "The quick brown fox jumps over the lazy dog."  # what a FakeServer answers
LIMIT = 60  # seconds
# what Markdown is made of, and what it is not
PIECES = ["a", "b ", "a | b\n", "|", "|---|---|\n", "- ", "* ", "1. ", "2) ", "> ", "# ", "---\n", "===\n", "=", "-"]
PIECES += [
    "\n",
    "\n\n",
    "    ",
    "\t",
    "\r",
    "```\n",
    "```",
    "~~~\n",
    "`",
    "**",
    "$",
    "\\(",
    "\\)",
    "[x]",
    "[x]: /u\n",
    "<b>",
]


@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_markdown_that_grows(pieces: list[str]) -> None:
    """Whatever comes in whatever pieces, what was rendered on the way is what the whole is."""
    markdown = Markdown()
    for piece in pieces:
        markdown.feed(piece)
        markdown.html()
    assert markdown.html() == PARSER.render("".join(pieces).replace("\r", ""))


def test_markdown_that_is_finished_is_not_rendered_again() -> None:
    """Only the last block is kept as source: the whole costs what its blocks cost."""
    markdown = Markdown()
    for number in range(100):
        markdown.feed(f"Paragraph {number}.\n\n")
        html = markdown.html()
    assert markdown._open == "Paragraph 99.\n\n"
    assert html.count("<p>") == 100


@pytest.mark.parametrize(
    ("source", "html"),
    [
        ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>\n"),
        ("<img src=x onerror=alert(1)>", "<p>&lt;img src=x onerror=alert(1)&gt;</p>\n"),
        ("<div onclick=alert(1)>\n\nx", "<p>&lt;div onclick=alert(1)&gt;</p>\n<p>x</p>\n"),
        ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>\n"),
        ("![x](http://far.example/y)", '<p>!<a href="http://far.example/y">x</a></p>\n'),
        ("`<b>` & *so*", "<p><code>&lt;b&gt;</code> &amp; <em>so</em></p>\n"),
        ("$<script>$", "<p>$&lt;script&gt;$</p>\n"),
    ],
)
def test_a_model_writes_no_html(source: str, html: str) -> None:
    """What a page would run or load appears as text."""
    markdown = Markdown()
    markdown.feed(source)
    assert markdown.html() == html


@pytest.mark.parametrize("formula", [r"\(a_1 * b_1 * c\)", r"\[a_1 \\ b_1\]", "$a_1 b_1$", "$$a_1\n= b_1$$"])
def test_formulas_stay_as_they_are(formula: str) -> None:
    """What the notebook's page typesets comes to it as the model wrote it."""
    markdown = Markdown()
    markdown.feed(f"So {formula}, *yes*")
    assert markdown.html() == f"<p>So {formula}, <em>yes</em></p>\n"


def test_prices_are_no_formula() -> None:
    """Between two prices Markdown is Markdown."""
    markdown = Markdown()
    markdown.feed("$5 *or* $10")
    assert markdown.html() == "<p>$5 <em>or</em> $10</p>\n"


def html_of(page: Page) -> str:
    return page.bundle()["text/html"]


def test_before_the_text() -> None:
    """A page says what is waited for: a model being loaded, thoughts, the next server."""
    with (
        FakeServer(Status(500)) as failing,
        FakeServer(Loading(Answer("4", thinking="2 + 2"))) as loading,
    ):
        stream = chat("2 + 2?", servers=[failing.url, loading.url], stream=True, first_token_timeout=0.1)
        page = Page()
        statuses = []
        for event in stream:
            page.take(event)
            statuses.append(page.remarks[-1])
            if event.meta and event.meta.get("kind") == "loading":
                loading.finish_loading()
    assert list(dict.fromkeys(statuses)) == [
        "waiting for a server",
        f"waiting for {failing.url}",
        "looking for another server",
        f"waiting for {loading.url}",
        f"{loading.url} is loading the model",
        "thinking",
        "…",
    ]


def test_a_second_server_beside_the_first() -> None:
    """While two are asked nobody knows who will answer."""
    with FakeServer(Loading(Answer("4"))) as one, FakeServer(Loading(Answer("4"))) as two:
        page = Page()
        for event in chat("2 + 2?", servers=[one.url, two.url], stream=True, hedge_after=0.1):
            page.take(event)
            if event.meta and "hedge" in event.meta:
                assert page.remarks == [f"waiting for {one.url} or {two.url}"]
                one.wait_until(lambda: one.loading == 1, LIMIT)
                one.finish_loading()
                two.finish_loading()


def test_tool_calls() -> None:
    """What the model wants to call stands below the text."""
    with FakeServer(Answer("", tool_calls=[("add", {"a": 1})])) as server:
        page = Page()
        for event in chat("1 + ?", servers=[server.url], stream=True):
            page.take(event)
    assert "calls add with {&#x27;a&#x27;: 1}" in html_of(page)


def test_results_of_tools() -> None:
    """What a tool returned, or what went wrong with it, stands there too."""

    def add(a: int, b: int) -> int:
        return a + b

    calls = [("add", {"a": 1, "b": 2}), ("add", {"a": 1})]
    with FakeServer(Answer("", tool_calls=calls), answer="3") as server:
        page = Page()
        for event in chat("1 + 2?", tools=[add], servers=[server.url], stream=True):
            page.take(event)
            if event.type == "tool_call":
                assert page.remarks[-1] == "waiting for add"
    assert "add: returned 3" in page.remarks
    assert "add: Error: add was not called: the argument 'b' is missing" in " ".join(page.remarks)


class Watcher(NotebookClient):
    """Runs cells, and lets a test look at each message of the kernel when it comes."""

    watch: Callable[[str, dict[str, Any]], object] = staticmethod(lambda _, __: None)  # Any: JSON

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        self.watch(msg["msg_type"], msg["content"])
        return super().process_message(msg, cell, cell_index)


class Notebook:
    """A notebook whose kernel runs, and what its cells have sent."""

    def __init__(self, client: Watcher) -> None:
        self.client = client
        self.htmls: list[str] = []  # of the last cell, as they came
        self.kinds: list[str] = []

    def run(self, *lines: str, stop_at: str | None = None) -> NotebookNode:
        """Run a cell to its end, or press the stop button when its output has these words; return the cell."""
        pressed: list[bool] = []
        self.htmls, self.kinds = [], []

        def watch(kind: str, content: dict[str, Any]) -> None:  # Any: JSON
            html = content.get("data", {}).get("text/html")
            if html is not None:
                self.htmls.append(html)
                self.kinds.append(kind)
                if stop_at is not None and stop_at in html and not pressed:
                    pressed.append(True)
                    os.kill(self.client.km.provisioner.process.pid, signal.SIGINT)

        self.client.watch = watch
        cell = nbformat.v4.new_code_cell("\n".join(lines))
        self.client.nb.cells.append(cell)
        self.client.execute_cell(cell, len(self.client.nb.cells) - 1)
        return cell

    def ask(self, *servers: FakeServer, **how: Any) -> str:  # Any: the arguments of chat
        """Return the words that ask these servers."""
        arguments = {"servers": [server.url for server in servers], "stream": True, **how}
        return f"chat('Hi', {', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watcher]:
    """A kernel without the developer's own settings."""
    client = Watcher(nbformat.v4.new_notebook(), timeout=LIMIT, allow_errors=True)
    folder = str(tmp_path_factory.mktemp("ipython"))
    with client.setup_kernel(env={**os.environ, "IPYTHONDIR": folder, "AICORTEX_DATA_DIR": folder}):
        Notebook(client).run(
            "import asyncio", "from aicortex import achat, chat", "from aicortex.notebook import TASKS"
        )
        yield client


@pytest.fixture
def notebook(kernel: Watcher) -> Notebook:
    """A notebook with `chat` and `achat`."""
    return Notebook(kernel)


def outputs(cell: NotebookNode) -> list[tuple[str, str]]:
    """Return the kind and the words of each output of a cell."""
    return [
        (output.output_type, output.get("data", {}).get("text/plain", output.get("ename"))) for output in cell.outputs
    ]


def text_of(html: str) -> str:
    """Return the text of an output, without what stands below it."""
    return re.sub("<.*?>", "", html.split("<div", 1)[0]).strip()


def test_a_stream_shows_itself(notebook: Notebook) -> None:
    """The text grows in one output; at the end it is there as a page and as text, with who answered."""
    with FakeServer(answer=Answer("word " * 30 + "*end*", delay=0.02)) as server:
        cell = notebook.run(notebook.ask(server))
    whole = "word " * 30 + "end"
    footer = f"fake:latest at {server.url} · 31 tokens · 100 tokens/s"
    assert outputs(cell) == [("display_data", "word " * 30 + f"*end*\n\n[{footer}]")]
    assert cell.outputs[0].data["text/html"].startswith("<p>" + "word " * 30 + "<em>end</em></p>\n<div")
    assert footer in cell.outputs[0].data["text/html"]
    assert notebook.kinds == ["display_data"] + ["update_display_data"] * (len(notebook.kinds) - 1)
    growing = [text_of(html) for html in notebook.htmls[:-1]]
    assert growing[0] == ""
    assert len(set(growing)) > 3
    assert all(whole.startswith(text) for text in growing)
    assert sorted(growing, key=len) == growing


def test_a_flood(notebook: Notebook) -> None:
    """A fast model's tokens come in few updates."""
    with FakeServer(answer=Answer([f"{number} " for number in range(10_000)])) as server:
        cell = notebook.run(notebook.ask(server))
    assert text_of(cell.outputs[0].data["text/html"]).split() == [str(number) for number in range(10_000)]
    assert len(notebook.htmls) < 500


def test_showing_again(notebook: Notebook) -> None:
    """A stream that is whole shows itself as often as it is asked to."""
    with FakeServer() as server:
        first = notebook.run(f"stream = {notebook.ask(server)}", "stream")
    again = notebook.run("stream")
    assert again.outputs == first.outputs
    assert notebook.run("_").outputs == first.outputs
    assert notebook.run("stream.result.usage['completion_tokens']").outputs[0].data == {"text/plain": "9"}


def test_the_stop_button(notebook: Notebook) -> None:
    """What is shown stays and says how to go on; the stream is intact and goes on when it is shown again."""
    with FakeServer(Answer(TEXT, delay=0.1)) as server:
        cell = notebook.run(notebook.ask(server), stop_at="The quick")
        name = f"Out[{cell.execution_count}]"
        mark = f"Stopped here. The answer can go on: {name} shows it again, {name}.cancel() ends it."
        (kind, plain), error = outputs(cell)
        assert (kind, error) == ("display_data", ("error", "KeyboardInterrupt"))
        assert plain.startswith("The quick")
        assert plain.endswith(f"\n\n[{mark}]")
        assert cell.outputs[1].traceback == ["KeyboardInterrupt"]
        assert server.cancelled == 0
        again = notebook.run(name)
    assert outputs(again) == [("display_data", f"{TEXT}\n\n[fake:latest at {server.url} · 9 tokens · 100 tokens/s]")]
    assert len(server.requests) == 2  # which models it has, and the question: once


def test_stop_and_cancel(notebook: Notebook) -> None:
    """What was shown before a server fell silent is all shown; a stream that was stopped can be cancelled."""
    with FakeServer(Answer(TEXT).then(Stall(), after_tokens=3)) as server:
        notebook.run(f"stream = {notebook.ask(server)}", "stream", stop_at="The quick brown")
        cell = notebook.run("stream.cancel()", "stream")
        assert server.wait_for_disconnect()
    assert outputs(cell) == [("display_data", "The quick brown\n\n[This is not the whole answer: it was cancelled.]")]


def test_another_server_goes_on(notebook: Notebook) -> None:
    """A failure that did no harm is told below the whole answer."""
    with (
        FakeServer(Answer(TEXT).then(Close(), after_tokens=2)) as dying,
        FakeServer() as good,
    ):
        ((kind, plain),) = outputs(notebook.run(notebook.ask(dying, good)))
    text, remarks = plain.split("\n\n")
    assert (kind, text) == ("display_data", TEXT)
    failed, resumed, _ = remarks.split("\n")
    assert failed.startswith(f"[{dying.url}")
    assert resumed == f"[{good.url} goes on with the answer]"


def test_a_broken_answer(notebook: Notebook) -> None:
    """An answer that broke off is marked; showing raises nothing, reading does."""
    with FakeServer(Answer(TEXT).then(Close(), after_tokens=3)) as server:
        cell = notebook.run(f"stream = {notebook.ask(server, resume='never')}", "stream")
        ((kind, plain),) = outputs(cell)
    assert kind == "display_data"
    assert plain.startswith("The quick brown\n\n[This is not the whole answer. Stream interrupted after 15 characters")
    assert "font-weight: bold" in cell.outputs[0].data["text/html"]
    assert outputs(notebook.run("stream.text()")) == [("error", "StreamInterruptedError")]


def test_no_answer(notebook: Notebook) -> None:
    """When all servers fail, the cell says so."""
    with FakeServer(Status(500)) as server:
        ((kind, plain),) = outputs(notebook.run(notebook.ask(server)))
    assert kind == "display_data"
    assert plain.startswith(f"[There is no answer. All servers failed: {server.url}")


def test_an_answer_cut_at_its_limit(notebook: Notebook) -> None:
    """`max_tokens` is told."""
    with FakeServer() as server:
        ((_, plain),) = outputs(notebook.run(notebook.ask(server, max_tokens=2)))
    assert plain.startswith("The quick\n\n[This is not the whole answer: it ends at its limit of 2 tokens.]\n")


def test_an_asynchronous_stream(notebook: Notebook) -> None:
    """The cell ends at once, and its output grows while others run."""
    with FakeServer(Answer(TEXT, delay=0.1)) as server:
        asking = notebook.ask(server).replace("chat(", "await achat(")
        cell = notebook.run(f"stream = {asking}", "stream")
        assert "dog" not in cell.outputs[0].data["text/html"]
        assert outputs(notebook.run("await stream.text()")) == [("execute_result", repr(TEXT))]
        assert len({text_of(html) for html in notebook.htmls}) > 3
        notebook.run("await asyncio.gather(*TASKS)")
    footer = f"[fake:latest at {server.url} · 9 tokens · 100 tokens/s]"
    assert outputs(cell) == [("display_data", f"{TEXT}\n\n{footer}")]


def test_cancelling_an_asynchronous_stream(notebook: Notebook) -> None:
    """No cell runs that a button could stop: the next one cancels, and the output says so."""
    with FakeServer(Answer(TEXT).then(Stall(), after_tokens=2)) as server:
        asking = notebook.ask(server).replace("chat(", "await achat(")
        cell = notebook.run(f"stream = {asking}", "stream")
        notebook.run("async for event in stream:", "    if event.index == 1: break")
        notebook.run("stream.cancel()", "await asyncio.gather(*TASKS)")
        assert server.wait_for_disconnect()
    assert outputs(cell) == [("display_data", "The quick\n\n[This is not the whole answer: it was cancelled.]")]


def test_the_example(tmp_path: Path, short_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook of the examples runs from its first cell to its last with the embedded engine."""
    monkeypatch.setenv("AICORTEX_SERVERS", short_server.url)
    example = nbformat.read(EXAMPLE, as_version=4)
    assert all(cell.get("outputs", []) == [] for cell in example.cells)
    client = Watcher(example, timeout=LIMIT)
    kinds: list[str] = []
    client.watch = lambda kind, _: kinds.append(kind)
    client.execute(cwd=str(tmp_path), env={**os.environ, "IPYTHONDIR": str(tmp_path)})
    assert kinds.count("update_display_data") > 10
    shown = [output.data for cell in example.cells for output in cell.get("outputs", []) if "data" in output]
    footers = [data["text/plain"].splitlines()[-1] for data in shown if "text/html" in data]
    assert [f"llama3.2:3b at {short_server.url} · " in footer for footer in footers] == [True, True, False, True]


def test_the_docs(notebook: Notebook) -> None:
    """The examples of docs/notebooks-and-desktop.md run as they stand."""
    page = (ROOT / "docs" / "notebooks-and-desktop.md").read_text("utf-8")
    codes = re.findall(r"^```python\n(from aicortex.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(codes) == 2
    with FakeServer() as server:
        notebook.run(f"%env AICORTEX_SERVERS={server.url}")
        cells = [notebook.run(code) for code in codes]
        notebook.run("await stream.text()", "await asyncio.gather(*TASKS)")
    shown = [cell.outputs[-1].data["text/plain"] for cell in cells]
    assert [text.startswith(f"{TEXT}\n\n[fake:latest at {server.url}") for text in shown] == [True, True]


class Terminal:
    """IPython as a user starts it, without a screen."""

    def __init__(self, folder: Path) -> None:
        switches = ["--simple-prompt", "--no-banner", "--no-confirm-exit", "--colors=NoColor"]
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "IPython", *switches],
            env={**os.environ, "IPYTHONDIR": str(folder), "TERM": "dumb", "PYTHONIOENCODING": "utf-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def type(self, *lines: str) -> None:
        assert self.process.stdin is not None  # asked for above
        self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self.process.stdin.flush()

    def read_until(self, words: str) -> str:
        assert self.process.stdout is not None  # asked for above
        found = b""
        while words.encode() not in found:
            piece = os.read(self.process.stdout.fileno(), 1000)
            assert piece, found
            found += piece
        return found.decode()


def test_in_the_terminal(tmp_path: Path) -> None:
    """IPython's terminal prints the text as it comes; Ctrl-C leaves the stream intact there, too."""
    with FakeServer(Answer(TEXT).then(Stall(), after_tokens=2), Answer("Two.")) as server:
        terminal = Terminal(tmp_path)
        with terminal.process as process:
            terminal.type("from aicortex import achat, chat", f"chat('Hi', servers=[{server.url!r}], stream=True)")
            terminal.read_until("The quick")
            process.send_signal(signal.SIGINT)
            stopped = terminal.read_until("KeyboardInterrupt")
            assert "Stopped here. The answer can go on: Out[2] shows it again, Out[2].cancel() ends it." in stopped
            assert "Traceback" not in stopped
            terminal.type("_.cancel()", "_")
            terminal.read_until("The quick\naicortex: This is not the whole answer: it was cancelled.")
            terminal.type(f"chat('Hi', servers=[{server.url!r}], stream=True)")
            terminal.read_until(f"Two.\naicortex: fake:latest at {server.url} · 1 token · 100 tokens/s")
            terminal.type(f"await achat('Hi', servers=[{server.url!r}], stream=True)")
            terminal.read_until("<AsyncStream running, ")  # whose loop stands still between the cells
            process.communicate(timeout=LIMIT)


def test_ipython_is_not_needed() -> None:
    """Neither the library nor this part of it loads IPython."""
    code = "import aicortex.notebook, sys; print('IPython' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
