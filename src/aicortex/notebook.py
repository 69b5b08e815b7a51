"""A stream that shows itself: what IPython does with one that is the last expression of a cell.

In a notebook the text grows in place, as Markdown, by updates of one output. The Markdown becomes HTML here and not in
the browser: a page that Jupyter trusts runs the scripts in its outputs, Markdown included, and a model's words are
nobody's program. For the same reason images are not loaded: their addresses could carry words away.

Nothing here needs IPython to be installed: it is there when it calls.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextvars import Context
from html import escape
from threading import Lock, Timer
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from aicortex._core.result import Result
from aicortex.endings import mark_of, summary_of
from aicortex.errors import AICortexError
from aicortex.events import StreamEvent

if TYPE_CHECKING:
    import asyncio

    from aicortex.astream import AsyncStream
    from aicortex.stream import Stream

UPDATE_SECONDS = 1 / 15
# Jupyter's server drops output beyond 1 MB/s (its `iopub_data_rate_limit`); several streams may be shown at once.
BYTES_PER_SECOND = 250_000
DRAWING_SHARE = 4  # drawing takes a fifth of the time at most: the model may need the rest
NOTE = '<div style="font-size: 85%; opacity: 0.75">{}</div>'
MARK = '<div style="font-weight: bold; color: var(--jp-error-color1, #c62828)">{}</div>'
# What the notebook's page typesets: $…$ as in pandoc, so that two prices are no formula, $$…$$, \(…\) and \[…\]. With a
# limit, because a text full of beginnings without an end would be searched to its own end from each of them.
MATH = re.compile(
    r"\$\$.{1,999}?\$\$|\$(?=[^\s$])[^$]{1,999}(?<=\S)\$(?!\d)|\\\(.{1,999}?\\\)|\\\[.{1,999}?\\\]", re.DOTALL
)


def _keep_math(state: StateInline, silent: bool) -> bool:
    """Leave a formula as it was written, backslashes and all."""
    found = MATH.match(state.src, state.pos, state.posMax) if state.src[state.pos] in "$\\" else None
    if found is None:
        return False
    if not silent:
        state.pending += found[0]
    state.pos = found.end()
    return True


PARSER = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["strikethrough", "table"])
PARSER.disable(["image", "reference"])  # a reference may stand far from its definition, which is yet to come
PARSER.inline.ruler.before("escape", "math", _keep_math)


def _rendered(tokens: list[Token]) -> str:
    return str(PARSER.renderer.render(tokens, PARSER.options, {}))


class Markdown:
    """Markdown that grows, as HTML.

    What is finished is rendered once: a block is, as soon as another has begun behind it, because CommonMark decides
    line by line (https://spec.commonmark.org/0.31.2/#phase-1-block-structure).
    """

    def __init__(self) -> None:
        self._finished: list[str] = []  # HTML
        self._open = ""  # the source from the first block on that may still change

    def feed(self, text: str) -> None:
        """Append a piece of the source."""
        self._open += text.replace("\r", "")

    def html(self) -> str:
        """Return all of it so far as HTML."""
        source = self._open
        tokens = PARSER.parse(source)
        starts = [
            (index, token.map[0])
            for index, token in enumerate(tokens)
            if token.level == 0 and token.nesting >= 0 and token.map is not None
        ]
        decided = source.count("\n")  # whole lines: the last one may still become something else
        index, line = max((start for start in starts if start[1] < decided), default=(0, 0))
        if index:
            self._finished.append(_rendered(tokens[:index]))
            self._open = "\n".join(source.split("\n")[line:])
        return "".join([*self._finished, _rendered(tokens[index:])])


class Page:
    """What there is to see of an answer: its text, what happened to it, and how it is or how it ended."""

    def __init__(self) -> None:
        self._markdown = Markdown()
        self._texts: list[str] = []
        self._notes: list[str] = []
        self._server = ""
        self._status = "waiting for a server"
        self._mark = ""  # why this is not the whole answer
        self._is_over = False

    def take(self, event: StreamEvent) -> None:
        """Take the next event."""
        meta = event.meta or {}
        if event.type == "token" and event.content:
            self._texts.append(event.content)
            self._markdown.feed(event.content)
            self._status = "…"
        elif event.type == "error" and meta["will_retry"]:  # the last one is what ends the stream
            self._notes.append(event.content or "")
            self._status = "looking for another server"
        elif event.type == "tool_call":
            self._notes.append(f"calls {event.tool_name} with {event.tool_args}")
            self._status = f"waiting for {event.tool_name}"
        elif event.type == "tool_result":
            said = f"returned {event.tool_result!r}" if meta["kind"] == "ok" else str(event.tool_result)
            self._notes.append(f"{event.tool_name}: {said:.200}")
        elif event.type == "meta":
            self._take_meta(meta)

    def _take_meta(self, meta: dict[str, Any]) -> None:  # Any: JSON
        kind = meta["kind"]
        if kind == "connected":
            self._server = f"{self._server} or {meta['server']}" if meta.get("hedge") else meta["server"]
            self._status = f"waiting for {self._server}"
        elif kind == "resumed":
            self._notes.append(f"{meta['server']} goes on with the answer")
        elif kind == "loading":
            self._status = f"{meta['server']} is loading the model"
        elif kind == "thinking":
            self._status = "thinking"

    def end(self, outcome: Result | AICortexError) -> None:
        """Say how it ended."""
        self._is_over = True
        self._status = summary_of(outcome) if isinstance(outcome, Result) else ""
        self._mark = mark_of(outcome, has_text=bool(self._texts))

    def stop(self, name: str) -> None:
        """Say that showing was interrupted, and what can be done with the stream, which is known by this name."""
        self._is_over = True
        self._status = ""
        self._mark = f"Stopped here. The answer can go on: {name} shows it again, {name}.cancel() ends it."

    @property
    def remarks(self) -> list[str]:
        """What is to be said below the text."""
        return [words for words in (*self._notes, self._mark, self._status) if words]

    def bundle(self) -> dict[str, str]:
        """Return the output, by MIME type; as plain text, which no page shows, only at the end."""
        lines = [(MARK if words is self._mark else NOTE).format(escape(words)) for words in self.remarks]
        bundle = {"text/html": self._markdown.html() + "\n".join(lines)}
        if self._is_over:
            remarks = "\n".join(f"[{words}]" for words in self.remarks)
            bundle["text/plain"] = "\n\n".join(filter(None, ["".join(self._texts), remarks]))
        return bundle


class Appointment(Protocol):
    """Something that will be done later."""

    def cancel(self) -> None:
        """Do not."""


Later = Callable[[float, Callable[[], None]], Appointment]


class Output:
    """One output of a notebook that shows a page, updated no more often than the browser and the model can bear."""

    def __init__(self, shell: Any, later: Later) -> None:  # Any: IPython is no dependency
        self._shell = shell
        self._later = later
        self._page = Page()
        self._lock = Lock()  # what came while drawing rested may be drawn by another thread
        self._appointment: Appointment | None = None
        self._name = {"display_id": uuid4().hex}
        self._rest_until = 0.0
        shell.display_pub.publish(self._page.bundle(), transient=self._name)

    def take(self, event: StreamEvent) -> None:
        """Show the next event, soon."""
        with self._lock:
            self._page.take(event)
            if self._appointment is None:
                left = self._rest_until - perf_counter()
                if left > 0:
                    self._appointment = self._later(left, self._draw_late)
                else:
                    self._draw()

    def end(self, outcome: Result | AICortexError) -> None:
        """Show the whole and how it ended."""
        with self._lock:
            self._page.end(outcome)
            self._close()

    def repeat(self) -> None:
        """Show once more what is shown, for those who did not listen when it came."""
        with self._lock:
            self._draw()

    def stop(self, name: str, events: list[StreamEvent]) -> None:
        """Show these events and that the user stopped here; the page may have been left in the middle of anything."""
        with self._lock:
            self._page = Page()
            for event in events:
                self._page.take(event)
            self._page.stop(name)
            self._close()

    def _close(self) -> None:
        if self._appointment is not None:
            self._appointment.cancel()
        self._appointment = None
        self._draw()

    def _draw_late(self) -> None:
        with self._lock:
            if self._appointment is not None:
                self._appointment = None
                self._draw()

    def _draw(self) -> None:
        began = perf_counter()
        bundle = self._page.bundle()
        self._shell.display_pub.publish(bundle, transient=self._name, update=True)
        now = perf_counter()
        size = len(bundle["text/html"].encode())
        self._rest_until = now + max(UPDATE_SECONDS, size / BYTES_PER_SECOND, DRAWING_SHARE * (now - began))


class Print:
    """Shows an answer on a terminal, as `aicortex chat` does."""

    def __init__(self) -> None:
        from aicortex.cli.screens import choose_screen

        print()  # IPython has begun the line with its Out[n]
        self._screen = choose_screen(json=False, plain=False)
        self._page = Page()

    def take(self, event: StreamEvent) -> None:
        """Show the next event."""
        self._page.take(event)
        self._screen.show(event)
        self._screen.refresh()

    def end(self, outcome: Result | AICortexError) -> None:
        """Say how it ended."""
        self._page.end(outcome)
        self._close()

    def stop(self, name: str, _: list[StreamEvent]) -> None:
        """Say that the user stopped here."""
        self._page.stop(name)
        self._close()

    def _close(self) -> None:
        from aicortex.cli.terminal import note

        self._screen.finish()
        for words in self._page.remarks:
            note(words)


TASKS: set[asyncio.Task[None]] = set()  # the event loop itself forgets tasks that nobody holds


def show(stream: Stream) -> None:
    """Show a stream as it comes, in the notebook or the terminal that IPython runs in, and read it to its end.

    How the stream ended is shown and not raised; reading it raises. The stop button raises KeyboardInterrupt, with the
    stream as the cell's result (`_`, `Out[n]`), intact.
    """
    shell = _shell()
    view = Print() if _is_terminal(shell) else Output(shell, _start_timer)
    try:
        for event in stream:
            view.take(event)
        view.end(stream.result)
    except AICortexError as error:
        view.end(error)
    except KeyboardInterrupt as stop:
        shell.displayhook.update_user_ns(stream)
        view.stop(f"Out[{shell.displayhook.prompt_count}]", list(stream.events))
        vars(stop)["_render_traceback_"] = lambda: ["KeyboardInterrupt"]  # where we were is nobody's business
        raise


def ashow(stream: AsyncStream) -> None:
    """Show an asynchronous stream as it comes, in a task on the running loop: the cell ends at once.

    How the stream ended is shown and not raised. NotImplementedError in a terminal, whose loop runs no longer than a
    cell does: IPython then shows the stream's `repr`.
    """
    shell = _shell()
    if _is_terminal(shell):
        raise NotImplementedError
    import asyncio

    loop = asyncio.get_running_loop()
    output = Output(shell, loop.call_later)
    # In a context of its own: in the cell's, ipykernel 7 would send updates in the name of a cell that has ended, which
    # those who run notebooks without a page (nbclient) do not take.
    task = Context().run(loop.create_task, _follow(stream, output))
    TASKS.add(task)
    task.add_done_callback(TASKS.discard)
    task.add_done_callback(lambda _: _repeat_in_next_cell(shell, output))


def _repeat_in_next_cell(shell: Any, output: Output) -> None:  # Any: IPython is no dependency
    """Show the end of an answer again with the next cell: nbclient does not listen while none runs."""

    def repeat(_: object) -> None:
        shell.events.unregister("post_run_cell", repeat)
        output.repeat()

    shell.events.register("post_run_cell", repeat)


async def _follow(stream: AsyncStream, output: Output) -> None:
    try:
        async for event in stream:
            output.take(event)
        output.end(await stream.result())
    except AICortexError as error:
        output.end(error)


def _shell() -> Any:  # Any: IPython is no dependency
    return sys.modules["IPython"].get_ipython()


def _is_terminal(shell: Any) -> bool:  # Any: IPython is no dependency
    return "TerminalInteractiveShell" in [kind.__name__ for kind in type(shell).__mro__]


def _start_timer(seconds: float, action: Callable[[], None]) -> Timer:
    timer = Timer(seconds, action)
    timer.daemon = True
    timer.start()
    return timer
