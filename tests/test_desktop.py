"""`stream_to_tk` and the example that stands on it, in real windows that nobody sees."""

from __future__ import annotations

import gc
import re
import runpy
import threading
import time
import tkinter as tk
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aicortex import (
    AllServersFailedError,
    Result,
    Stream,
    StreamCancelledError,
    StreamEvent,
    StreamInterruptedError,
    chat,
)
from aicortex.desktop import TextFeed, stream_to_tk
from aicortex.testing import Answer, Close, FakeServer, Hang, Stall, Status

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "tkinter_chat.py"
TEXT = "The quick brown fox jumps over the lazy dog."  # what a FakeServer answers
LIMIT = 60.0  # seconds


class Window:
    """A text widget in a window, and a list of what went wrong in it without anybody being told."""

    def __init__(self, display: str) -> None:
        self.root = tk.Tk(display)
        self.complaints: list[BaseException] = []
        self.root.report_callback_exception = lambda _, error, __: self.complaints.append(error)
        # what Tcl itself complains of, such as a command that is not there any more
        self.root.tk.createcommand("bgerror", lambda words: self.complaints.append(RuntimeError(words)))
        self.box = tk.Text(self.root, width=40, height=10, wrap="word")
        self.box.pack()
        self.root.update()

    def live(self, claim: Callable[[], object]) -> None:
        """Let the window live until a claim holds."""
        due = time.monotonic() + LIMIT
        while not claim():
            assert time.monotonic() < due, self.text
            self.root.tk.dooneevent(0)

    def show(self, stream: Stream | Callable[[], Stream], **how: Any) -> TextFeed:  # Any: the arguments
        """Show a stream to its end."""
        feed = stream_to_tk(stream, self.box, **how)
        self.live(lambda: feed.done)
        return feed

    @property
    def text(self) -> str:
        return self.box.get("1.0", "end-1c")


@pytest.fixture
def window(display: str) -> Iterator[Window]:
    """An empty window; nothing may be complained of in it."""
    made = Window(display)
    try:
        yield made
        assert made.complaints == []
    finally:
        with suppress(tk.TclError):  # the test has closed it
            made.root.destroy()


def ask(server: FakeServer, **how: Any) -> Stream:  # Any: the arguments of chat
    return chat("Hi", servers=[server.url], stream=True, **how)


def test_the_text_appears(window: Window) -> None:
    """The whole text comes into the widget, and `on_end` gets the result, once."""
    outcomes: list[Result | Exception] = []
    with FakeServer() as server:
        feed = window.show(ask(server), on_end=outcomes.append)
        assert window.text == TEXT
        assert isinstance(feed.outcome, Result)
        assert outcomes == [feed.outcome]
        assert feed.outcome.server == server.url


def test_the_text_grows(window: Window) -> None:
    """What has come is to be seen while the server goes on thinking about the rest."""
    with FakeServer(Answer(TEXT).then(Stall(), after_tokens=2)) as server:
        feed = stream_to_tk(ask(server), window.box)
        window.live(lambda: window.text == "The quick")
        assert not feed.done
        feed.cancel()
        window.live(lambda: feed.done)


def test_asking_does_not_hold_the_window_up(window: Window) -> None:
    """A function is called in another thread, and the window lives on until it returns."""
    go = threading.Event()
    threads: list[threading.Thread] = []

    def open_late() -> Stream:
        threads.append(threading.current_thread())
        assert go.wait(LIMIT)
        return ask(server)

    with FakeServer() as server:
        feed = stream_to_tk(open_late, window.box)
        window.root.after(1, go.set)  # the window is alive
        window.live(lambda: feed.done)
        assert window.text == TEXT
        assert threads != [threading.main_thread()]


def test_cancel(window: Window) -> None:
    """`cancel()` stops the server; what is shown stays, with a mark, and `on_end` is told."""
    outcomes: list[Result | Exception] = []
    with FakeServer(Answer(TEXT).then(Stall(), after_tokens=2)) as server:
        feed = stream_to_tk(ask(server), window.box, on_end=outcomes.append)
        window.live(lambda: window.text == "The quick")
        feed.cancel()
        assert server.wait_for_disconnect(1.0)
        window.live(lambda: feed.done)
    assert isinstance(outcomes[0], StreamCancelledError)
    assert outcomes[0].partial == "The quick"
    assert window.text == "The quick\n[This is not the whole answer: it was cancelled.]"


def test_cancel_from_another_thread(window: Window) -> None:
    """Whoever holds the handle may cancel."""
    with FakeServer(Answer(TEXT).then(Stall(), after_tokens=2)) as server:
        feed = stream_to_tk(ask(server), window.box)
        window.live(lambda: window.text == "The quick")
        threading.Thread(target=feed.cancel).start()
        window.live(lambda: feed.done)


def test_cancel_before_there_is_a_stream(window: Window) -> None:
    """Cancelling does not wait for a function that still looks for a server; its stream is cancelled when it comes."""
    go = threading.Event()

    def open_late() -> Stream:
        assert go.wait(LIMIT)
        return ask(server)

    with FakeServer(Answer(TEXT).then(Stall(), after_tokens=2)) as server:
        feed = stream_to_tk(open_late, window.box)
        feed.cancel()
        window.live(lambda: feed.done)
        assert window.text == "[There is no answer: it was cancelled.]"
        go.set()
        assert server.wait_for_disconnect()


def test_a_broken_answer_is_marked(window: Window) -> None:
    """An answer that broke off is never shown as whole."""
    with FakeServer(Answer(TEXT).then(Close(), after_tokens=3)) as server:
        feed = window.show(ask(server, resume="never"))
    assert isinstance(feed.outcome, StreamInterruptedError)
    assert window.text == f"The quick brown\n[This is not the whole answer. {feed.outcome}]"
    assert [str(place) for place in window.box.tag_ranges("note")] == ["1.15", f"2.{len(str(feed.outcome)) + 32}"]
    assert window.box.tag_cget("note", "foreground") != ""


def test_an_answer_cut_at_its_limit_is_marked(window: Window) -> None:
    """`max_tokens` ends an answer whole for the server, not for who reads it."""
    with FakeServer() as server:
        window.show(ask(server, max_tokens=2))
    assert window.text == "The quick\n[This is not the whole answer: it ends at its limit of 2 tokens.]"


def test_no_answer_is_marked(window: Window) -> None:
    """When all servers fail, the widget says so, and a tag of the program's own is left as it is."""
    window.box.tag_configure("note", foreground="blue")
    with FakeServer(Status(500)) as server:
        feed = window.show(ask(server))
    assert isinstance(feed.outcome, AllServersFailedError)
    assert window.text == f"[There is no answer. {feed.outcome}]"
    assert window.box.tag_cget("note", "foreground") == "blue"


def test_an_empty_answer_is_marked(window: Window) -> None:
    """Nothing is something to be told."""
    with FakeServer(Answer("")) as server:
        window.show(ask(server))
    assert window.text == "[The model answered nothing.]"


def test_what_the_function_raises(window: Window) -> None:
    """Nothing is swallowed: wrong arguments reach `on_end` and the widget."""
    feed = window.show(lambda: chat("", stream=True))
    assert isinstance(feed.outcome, ValueError)
    assert window.text == "[There is no answer. prompt is empty]"


def test_a_function_that_returns_no_stream(window: Window) -> None:
    """Whoever forgets `stream=True` is told what to write."""
    feed = window.show(lambda: "text")  # type: ignore[arg-type, return-value]
    assert isinstance(feed.outcome, TypeError)
    assert "not str: write lambda: chat(…, stream=True)" in window.text


def test_neither_stream_nor_function(window: Window) -> None:
    """What cannot be shown raises at once."""
    with pytest.raises(TypeError, match="not str"):
        stream_to_tk("Hi", window.box)  # type: ignore[arg-type]


def test_events(window: Window) -> None:
    """`on_event` gets what is not text, in Tk's thread, when the text before it is shown."""
    seen: list[tuple[StreamEvent, str, threading.Thread]] = []
    with (
        FakeServer(Answer(TEXT).then(Close(), after_tokens=2)) as dying,
        FakeServer() as good,
    ):
        stream = chat("Hi", servers=[dying.url, good.url], stream=True)
        window.show(stream, on_event=lambda event: seen.append((event, window.text, threading.current_thread())))
    assert [event for event, _, _ in seen] == [event for event in stream.events if event.type != "token"]
    (shown,) = (text for event, text, _ in seen if event.type == "error")
    assert shown == "The quick"
    assert {thread for _, _, thread in seen} == {threading.main_thread()}
    assert window.text == TEXT


def test_a_read_only_widget(window: Window) -> None:
    """A widget that the user may not write in gets the text and stays as it is."""
    window.box["state"] = "disabled"
    with FakeServer() as server:
        window.show(ask(server))
    assert window.text == TEXT
    assert window.box["state"] == "disabled"


def test_the_view_follows_the_text(window: Window) -> None:
    """Whoever looks at the end goes on seeing the end, also of lines that are broken many times."""
    with FakeServer(answer=Answer(["word " * 40, "\n", "word " * 200, "end"], delay=0.05)) as server:
        window.show(ask(server))
    assert window.box.yview()[1] == 1.0
    assert window.box.dlineinfo("end-1c") is not None


def test_the_view_stays_where_the_user_looks(window: Window) -> None:
    """Whoever has scrolled back is left in peace."""
    window.box.insert("end", "old\n" * 50)
    window.box.see("1.0")
    with FakeServer() as server:
        window.show(ask(server))
    assert window.box.yview()[0] == 0.0


def test_a_flood(window: Window) -> None:
    """A fast model's tokens come in few insertions, and none is lost."""
    insertions: list[str] = []
    insert = window.box.insert
    window.box.insert = lambda place, text, *tags: insertions.append(text) or insert(place, text, *tags)  # type: ignore
    with FakeServer(answer=Answer([f"{number} " for number in range(5000)])) as server:
        window.show(ask(server))
    assert window.text == "".join(insertions) == "".join(f"{number} " for number in range(5000))
    assert len(insertions) < 500


def destroy_box(window: Window) -> None:
    window.box.destroy()


def destroy_root(window: Window) -> None:
    window.root.destroy()


def close(window: Window) -> None:
    window.root.tk.call("destroy", ".")  # what the window manager's button does


@pytest.mark.parametrize("leave", [destroy_box, destroy_root, close])
def test_leaving(window: Window, leave: Callable[[Window], None]) -> None:
    """When the widget goes, the answer is cancelled on the server, and nothing is called any more."""
    called: list[object] = []
    with FakeServer(Answer(TEXT).then(Stall(), after_tokens=2)) as server:
        feed = stream_to_tk(ask(server), window.box, on_end=called.append)
        window.live(lambda: window.text == "The quick")
        leave(window)
        assert server.wait_for_disconnect(1.0)
        feed._reader.join(LIMIT)
    if leave is destroy_box:
        ticks: list[int] = []
        window.root.after(100, ticks.append, 1)
        due = time.monotonic() + LIMIT
        while not ticks and time.monotonic() < due:
            window.root.tk.dooneevent(0)
    assert called == []


def test_leaving_in_a_callback(window: Window) -> None:
    """The window may be closed by what it is told."""
    with FakeServer(Answer(TEXT).then(Stall(), after_tokens=2)) as server:
        closing: list[None] = []
        stream_to_tk(ask(server), window.box, on_event=lambda _: closing.append(window.root.destroy()))
        while not closing:
            window.root.tk.dooneevent(0)
        assert server.wait_for_disconnect(1.0)


def test_leaving_while_it_connects(window: Window) -> None:
    """A server that is silent does not keep a window that closes."""
    with FakeServer(Hang()) as server:
        stream_to_tk(lambda: ask(server), window.box)
        window.live(lambda: server.active)
        window.root.destroy()
        assert server.wait_for_disconnect()


def test_a_widget_forgets_its_answers(window: Window) -> None:
    """A window that stays open for days does not keep every answer twice."""
    with FakeServer() as server:
        for _ in range(3):
            window.show(ask(server))
    gc.collect()
    assert [found for found in gc.get_objects() if isinstance(found, TextFeed)] == []


def test_one_after_the_other(window: Window) -> None:
    """A stream that was read already is shown as well."""
    with FakeServer() as server:
        stream = ask(server)
        assert stream.text() == TEXT
        window.show(stream)
        window.box.insert("end", "\n")
        window.show(stream)
    assert window.text == f"{TEXT}\n{TEXT}"


def test_the_docs(display: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/notebooks-and-desktop.md runs as it stands."""
    page = (ROOT / "docs" / "notebooks-and-desktop.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(import tkinter.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}  # Any: those of the example

    def mainloop(root: tk.Tk) -> None:
        due = time.monotonic() + LIMIT
        while not names["feed"].done and time.monotonic() < due:
            root.tk.dooneevent(0)
        names["text"] = names["box"].get("1.0", "end-1c")
        root.destroy()

    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr(tk.Tk, "mainloop", mainloop)
    with FakeServer() as server:
        monkeypatch.setenv("AICORTEX_SERVERS", server.url)
        exec(compile(code, "docs/notebooks-and-desktop.md", "exec"), names)
    assert names["text"] == TEXT


@pytest.fixture
def program(display: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:  # Any: the class is in a script
    """The window of the example, without its main loop."""
    monkeypatch.setenv("DISPLAY", display)
    made = runpy.run_path(str(EXAMPLE))["ChatWindow"](tk.Tk())
    yield made
    made.root.destroy()


def pump(program: Any, claim: Callable[[], bool]) -> None:  # Any: the class is in a script
    """Let the window live until a claim about it holds."""
    due = time.monotonic() + LIMIT
    while not claim():
        assert time.monotonic() < due, program.status.get()
        program.root.tk.dooneevent(0)


def shown(program: Any) -> str:  # Any: the class is in a script
    text: str = program.conversation.get("1.0", "end").strip()
    return text


def send(program: Any, question: str) -> None:  # Any: the class is in a script
    program.prompt.insert(0, question)
    program.send_button.invoke()


def test_example(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Question and answer appear, and the next question brings the turn before it."""
    with FakeServer() as server:
        monkeypatch.setenv("AICORTEX_SERVERS", server.url)
        send(program, "What jumps?")
        pump(program, lambda: program.feed is None)
        assert shown(program) == f"What jumps?\n{TEXT}"
        assert program.status.get() == f"fake:latest at {server.url}, 100 tokens/s"
        send(program, "Over what?")
        pump(program, lambda: program.feed is None)
        roles = [message["role"] for message in server.requests[-1].json["messages"]]
        assert roles == ["user", "assistant", "user"]


def test_example_cancel(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer appears as it comes; Cancel stops it on the server, and half an answer is not kept."""
    with FakeServer(Answer(TEXT).then(Stall(), after_tokens=2)) as server:
        monkeypatch.setenv("AICORTEX_SERVERS", server.url)
        send(program, "What jumps?")
        pump(program, lambda: shown(program).endswith("The quick"))
        program.cancel_button.invoke()
        pump(program, lambda: program.feed is None)
        assert server.wait_for_disconnect()
        assert program.status.get() == "cancelled"
        assert program.messages == []


def test_example_failure(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server did wrong stands in the conversation and in the last line."""
    with FakeServer(Status(500)) as server:
        monkeypatch.setenv("AICORTEX_SERVERS", server.url)
        send(program, "What jumps?")
        pump(program, lambda: program.feed is None)
        assert f"[There is no answer. All servers failed: {server.url}" in shown(program)
        assert program.status.get().startswith("All servers failed: ")


def test_example_with_the_embedded_engine(
    program: Any, short_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real answer fills the window."""
    monkeypatch.setenv("AICORTEX_SERVERS", short_server.url)
    send(program, "Explain recursion with a simple analogy.")
    pump(program, lambda: program.feed is None)
    assert len(shown(program).split()) > 20
