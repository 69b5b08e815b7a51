"""Markdown on a terminal, while it is still being written.

What is finished is printed for good; only the last block may still change. Of that block's lines those stay which a
new rendering leaves as they were, so that a growing paragraph or program rewrites its last line alone: nothing
flickers, and an answer may be longer than the screen. A block is finished when another has begun behind it, because
CommonMark decides line by line (https://spec.commonmark.org/0.31.2/#phase-1-block-structure).
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Lock, Timer
from time import perf_counter

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console
from rich.markdown import Markdown

from aicortex.cli.sign import Sign
from aicortex.cli.tail import Tail, plain
from aicortex.cli.terminal import printable, width
from aicortex.events import StreamEvent

# Without the rules that make rich show less than was written: HTML, addresses of images, definitions of links.
PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
PARSER.disable(["html_inline", "html_block", "image", "autolink", "reference"])
# An unfinished last line that may become a list, a rule, a fence or a heading, and looks like something else now.
UNDECIDED = re.compile(r"(?:^|(?<=\n))[ >]*([-=*_+~`#|:]+|\d+[.)]?)[ ]*\Z")
# A long block is drawn so seldom that drawing takes a fifth of the time, because the model may need the rest.
DRAWING_SHARE = 4
MAX_REST = 0.1  # seconds


@dataclass(frozen=True)
class Block:
    """One block of Markdown, from line `start` up to `end` (counted from 0, exclusive).

    The items of a list are blocks of their own: `number` is an item's in its ordered list, and `continues` says that
    it follows another item.
    """

    kind: str
    start: int
    end: int
    number: int | None = None
    continues: bool = False


def can_draw() -> bool:
    """Whether the terminal understands escape sequences; the console of old Windows does not."""
    return not Console(file=sys.stdout).legacy_windows


def parse(text: str) -> list[Token]:
    """Parse Markdown; a line break in the source stays one, so that verses remain verses."""
    tokens = PARSER.parse(text)
    for token in tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return tokens


def blocks_of(text: str) -> list[Block]:
    """Return the blocks of a text, in order."""
    found: list[Block] = []
    number: int | None = None
    continues = False
    for token in PARSER.parse(text):
        if token.nesting < 0 or token.map is None:
            continue
        start, end = token.map
        if token.level == 1 and token.type == "list_item_open":
            found.append(Block("item", start, end, number, continues))
            number = None if number is None else number + 1
            continues = True
        elif token.level == 0 and token.type in ("ordered_list_open", "bullet_list_open"):
            number = int(token.attrs.get("start", 1)) if token.type == "ordered_list_open" else None
            continues = False
        elif token.level == 0:
            found.append(Block(token.type.removesuffix("_open"), start, end))
    return found


class MarkdownScreen:
    """Shows one answer as rendered Markdown."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, force_terminal=True, highlight=False)
        self._tail = Tail()
        self._sign = Sign()  # no row of the text is full, see `width`
        self._pending = ""  # what came, from the first block on that may still change
        self._first: Block | None = None  # that block, when others were printed before it
        self._rest_until = 0.0
        self._lock = Lock()  # what came while drawing rested is drawn by a timer's thread
        self._timer: Timer | None = None

    def show(self, event: StreamEvent) -> None:
        if event.type == "token" and event.content:
            with self._lock:
                self._pending += printable(event.content)

    def refresh(self) -> None:
        with self._lock:
            left = self._rest_until - perf_counter()
            if left <= 0:
                self._draw()
            elif self._timer is None:
                self._timer = Timer(left, self._draw_late)
                self._timer.daemon = True
                self._timer.start()

    def say(self, words: str) -> None:
        with self._lock:
            self._sign.show(words)

    def finish(self) -> None:
        with self._lock:
            self._sign.clear()
            blocks = self._blocks(self._pending)
            rendered = self._rendered(self._pending, blocks)
            self._tail.draw([line for lines in rendered for line in lines])
            self._tail.end()
            self._pending = ""

    def _draw_late(self) -> None:
        with self._lock, suppress(OSError):  # the reading thread meets the same error and tells it
            self._timer = None
            if self._pending:
                self._draw()

    def _draw(self) -> None:
        began = perf_counter()
        self._sign.clear()
        text = UNDECIDED.sub("", self._pending)
        blocks = self._blocks(text)
        rendered = self._rendered(text, blocks)
        is_table = bool(blocks) and blocks[-1].kind == "table"
        if self._tail.draw([line for lines in rendered for line in lines], keeps_shape=not is_table):
            self._keep(blocks, rendered)
        now = perf_counter()
        self._rest_until = now + min(DRAWING_SHARE * (now - began), MAX_REST)

    def _keep(self, blocks: list[Block], rendered: list[list[str]]) -> None:
        """Forget the blocks that no further line can change: they are on the screen for good."""
        whole = self._pending[: self._pending.rfind("\n") + 1]
        finished = len(blocks_of(whole)) - 1
        if finished < 1:
            return
        self._tail.keep(sum(map(len, rendered[:finished])))
        self._first = blocks[finished]
        self._pending = "\n".join(self._pending.split("\n")[self._first.start :])

    def _blocks(self, text: str) -> list[Block]:
        """Return the blocks of what is pending; the first may go on with a list whose beginning is printed."""
        blocks = blocks_of(text)
        if not blocks or self._first is None or not self._first.continues:
            return blocks
        first, *others = blocks
        number = self._first.number
        going_on = [replace(first, number=number, continues=True)]
        for block in others:
            if number is not None and block.continues and going_on[-1].continues:
                number += 1
                block = replace(block, number=number)
            else:
                number = None
            going_on.append(block)
        return going_on

    def _rendered(self, text: str, blocks: list[Block]) -> list[list[str]]:
        """Return the lines of each block, with the empty line before it."""
        source = text.split("\n")
        self._console.width = width()
        found = []
        for index, block in enumerate(blocks):
            lines = self._lines_of("\n".join(source[block.start : block.end]), block.number)
            begins = index == 0 and self._first is None
            found.append(lines if begins or block.continues else ["", *lines])
        return found

    def _lines_of(self, text: str, number: int | None) -> list[str]:
        # rich's own parser would drop HTML; bright colours on whatever background the terminal has
        markdown = Markdown("", code_theme="ansi_dark", hyperlinks=False)
        markdown.parsed = parse(text)
        if number is not None and markdown.parsed:
            markdown.parsed[0].attrs["start"] = number
        with self._console.capture() as capture:
            self._console.print(markdown)
        lines = [line.rstrip(" ") for line in capture.get().split("\n")]
        written = [index for index, line in enumerate(lines) if plain(line).strip()]
        return lines[written[0] : written[-1] + 1] if written else []
