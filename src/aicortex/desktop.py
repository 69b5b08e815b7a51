"""A stream in a window: its text goes into a widget of Tk as it comes, and the window stays alive.

A thread reads the stream and puts what it finds into a queue; the window empties the queue 30 times a second. So only
Tk's own thread touches Tk, and a fast model costs one insertion per look, not one per token. To be woken, instead of
looking, takes what Tk has on some systems only (`createfilehandler`); a look at an empty queue costs microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING
from weakref import ref

from aicortex.endings import Ending, mark_of
from aicortex.errors import StreamCancelledError
from aicortex.events import StreamEvent
from aicortex.stream import Stream

if TYPE_CHECKING:
    import tkinter as tk

LOOK_AGAIN_MS = 33
NOTE = "note"  # the tag of what is not the model's
NOTE_COLOUR = "#a51d2d"

Source = Stream | Callable[[], Stream]


def stream_to_tk(
    stream: Source,
    widget: tk.Text,
    *,
    on_event: Callable[[StreamEvent], object] | None = None,
    on_end: Callable[[Ending], object] | None = None,
) -> TextFeed:
    """Show an answer at the end of a text widget as it comes; returns at once, a handle with `cancel()` and `done`.

    `stream` is a stream or a function that returns one, such as `lambda: chat(question, stream=True)`. The function is
    called in a thread, because looking for a server and connecting take time; it must not touch the window. A
    read-only widget (`state="disabled"`) stays one. The view follows the text only while its end is in view.

    In Tk's own thread `on_event` gets every event that is not a token, when the text before it is shown: `error` when a
    server failed, `meta`, `tool_call`, `tool_result`. `on_end` gets the `Result`, or the exception that ended the
    answer: what reading the stream raises, or what the function raised. An answer that is not whole is marked in the
    widget too, by a line with the tag `note`. When the widget is destroyed, the answer is cancelled and nothing is
    called any more.

    Call it in Tk's own thread. Raises TypeError for what is neither a stream nor a function.
    """
    if not isinstance(stream, Stream) and not callable(stream):
        raise TypeError(f"stream_to_tk shows a Stream, or a function that returns one, not {type(stream).__name__}")
    return TextFeed(stream, widget, on_event, on_end)


class TextFeed:
    """An answer on its way into a widget: what `stream_to_tk` returns.

    `outcome` is None, and later the `Result` or the exception that ended the answer.
    """

    def __init__(
        self,
        stream: Source,
        widget: tk.Text,
        on_event: Callable[[StreamEvent], object] | None,
        on_end: Callable[[Ending], object] | None,
    ) -> None:
        self.outcome: Ending | None = None
        self._widget = widget
        self._on_event = on_event
        self._on_end = on_end
        self._last_text = ""
        self._is_gone = False  # the widget
        self._reader = Reader(stream)
        self._next_look = widget.after(0, self._look)
        widget.bind("<Destroy>", _leaving(ref(self)), add=True)
        self._reader.start()

    @property
    def done(self) -> bool:
        """Whether the answer is over and all of it is shown."""
        return self.outcome is not None

    def cancel(self) -> None:
        """Stop the answer, from any thread: the server stops generating, and what is shown stays."""
        self._reader.cancel()

    def _look(self) -> None:
        """Show what has come since the last look, and look again later unless that was all."""
        texts: list[str] = []
        while not self._is_gone:
            try:
                found = self._reader.found.get_nowait()
            except Empty:
                self._insert("".join(texts))
                self._next_look = self._widget.after(LOOK_AGAIN_MS, self._look)
                return
            if isinstance(found, StreamEvent) and found.type == "token":
                texts.append(found.content or "")
                continue
            self._insert("".join(texts))
            texts.clear()
            if not isinstance(found, StreamEvent):
                self._end(found)
                return
            if self._on_event is not None:
                self._on_event(found)

    def _end(self, outcome: Ending) -> None:
        self.outcome = outcome
        mark = mark_of(outcome, has_text=bool(self._last_text))
        if mark:
            if NOTE not in self._widget.tag_names():
                self._widget.tag_configure(NOTE, foreground=NOTE_COLOUR)
            begins_line = self._last_text.endswith("\n") or not self._last_text
            self._insert(f"[{mark}]" if begins_line else f"\n[{mark}]", NOTE)
        if self._on_end is not None:
            self._on_end(outcome)

    def _insert(self, text: str, *tags: str) -> None:
        if not text:
            return
        widget = self._widget
        was_at_end = widget.yview()[1] == 1.0
        state = str(widget["state"])
        widget["state"] = "normal"
        widget.insert("end", text, tags)
        widget["state"] = state
        if was_at_end:
            widget.see("end")
        self._last_text = text

    def _leave(self) -> None:
        """Stop, because the widget is being destroyed."""
        self._is_gone = True
        self._widget.after_cancel(self._next_look)
        self._reader.cancel()


def _leaving(weakly: ref[TextFeed]) -> Callable[[tk.Event[tk.Text]], None]:
    """Return what a widget calls when it is destroyed; it may see many answers before, and must not keep them."""

    def leave(_: object) -> None:
        feed = weakly()
        if feed is not None:
            feed._leave()

    return leave


class Reader(Thread):
    """Reads a stream in the background: `found` gets its events, and last its result or the exception that ended it."""

    def __init__(self, source: Source) -> None:
        super().__init__(daemon=True)
        self.found: SimpleQueue[StreamEvent | Ending] = SimpleQueue()
        self._source = source
        self._stream = source if isinstance(source, Stream) else None
        self._is_cancelled = False
        self._lock = Lock()

    def run(self) -> None:
        """Read to the end, whatever it is."""
        try:
            stream = self._open()
            for event in stream:
                self.found.put(event)
            self.found.put(stream.result)
        except Exception as error:  # whatever it is: nobody else would hear of it
            self.found.put(error)

    def cancel(self) -> None:
        """Stop the answer, from any thread."""
        with self._lock:
            self._is_cancelled = True
            stream = self._stream
        if stream is not None:
            stream.cancel()
        else:  # the function may take its time; its stream is cancelled as soon as it comes
            self.found.put(StreamCancelledError("the answer was cancelled before it began"))

    def _open(self) -> Stream:
        stream = self._source if isinstance(self._source, Stream) else self._source()
        if not isinstance(stream, Stream):
            kind = type(stream).__name__
            raise TypeError(f"the function must return a Stream, not {kind}: write lambda: chat(…, stream=True)")
        with self._lock:
            self._stream = stream
        if self._is_cancelled:
            stream.cancel()
        return stream
