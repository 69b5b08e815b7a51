"""Markdown that is still being written: whatever the tokens, the screen ends as if it had come at once."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aicortex.cli import render
from aicortex.cli.render import MarkdownScreen, blocks_of
from aicortex.events import StreamEvent
from cli.running import draw

ANSWER = """\
# Black holes

Here is what **happens** to a *star*, with `code` and <b>HTML</b>:
- First it burns hydrogen for a very long time
- Then it swells
  - a nested item

    with a second paragraph

1. one
1. two, numbered lazily
1. three

| Star | Mass |
|------|-----:|
| Sun | 1 |
| Rigel | 21 |

```python
def radius(mass):
    \"\"\"Return it
    in metres.\"\"\"
    return 2 * G * mass / c ** 2
```

An old silent pond
A frog jumps into the pond

> a quote
> of two lines

[1]: https://example.org/a ![image](https://example.org/b.png) [link](https://example.org/c)

Setext
------

***

The end.
"""
PIECES = [
    "- ",
    "1. ",
    "10) ",
    "# ",
    "> ",
    "```\n",
    "| a | b |\n",
    "|---|---|\n",
    "---",
    "\n",
    "\n\n",
    "    ",
    "**",
    "`",
]
PIECES += ["one", " two", " three_four", " *five*", "<i>", "[x](y)", " 🦊", " a word and another"]


@pytest.fixture(autouse=True)
def _draw_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "DRAWING_SHARE", -1)
    monkeypatch.setenv("TERM", "xterm-256color")


def screen_after(tokens: list[str], *, columns: int = 60, rows: int = 200) -> list[str]:
    """Return the lines on a terminal to which these tokens were shown one after the other."""
    out = StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("LINES", str(rows))
        screen = MarkdownScreen()
        for token in tokens:
            screen.show(StreamEvent("token", token))
            screen.refresh()
        screen.finish()
        screen.finish()
    return [line.rstrip() for line in draw(out.getvalue().replace("\n", "\r\n"), columns, rows)]


def cut(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 3, 50])
@pytest.mark.parametrize("columns", [24, 80])
def test_cuts_do_not_matter(size: int, columns: int) -> None:
    """However an answer is cut into tokens, the screen ends the same."""
    assert screen_after(cut(ANSWER, size), columns=columns) == screen_after([ANSWER], columns=columns)


@given(st.lists(st.sampled_from(PIECES), max_size=25), st.integers(2, 5))
@settings(deadline=None, max_examples=50)
def test_random_markdown(pieces: list[str], size: int) -> None:
    """The same holds for random Markdown."""
    text = "".join(pieces)
    assert screen_after(cut(text, size)) == screen_after([text])


@pytest.mark.parametrize("rows", [5, 16])
def test_answers_longer_than_the_screen(rows: int) -> None:
    """Prose, lists and programs longer than the screen stand whole above it, each line once."""
    code = "".join(f"line_{number} = {number}\n" for number in range(30))
    words = " ".join(f"word{number}" for number in range(120))
    items = "".join(f"{number}. item {number}\n" for number in range(1, 20))
    text = f"Begin\n\n```python\n{code}```\n\n{words}\n\n{items}\nEnd"
    assert screen_after(cut(text, 11), rows=rows, columns=40) == screen_after([text], rows=500, columns=40)


def test_table_higher_than_the_screen() -> None:
    """A table whose columns still change is shown once it is whole, not in part or twice."""
    rows = "".join(f"| {number} | {'x' * number} |\n" for number in range(20))
    text = f"Before\n\n| a | b |\n|---|---|\n{rows}\nAfter"
    assert screen_after(cut(text, 9), rows=10) == screen_after([text], rows=500)


def test_nothing_is_lost() -> None:
    """HTML, addresses, definitions and line breaks, which Markdown hides, are shown."""
    shown = "\n".join(screen_after([ANSWER]))
    for words in ("<b>HTML</b>", "https://example.org/a", "https://example.org/b.png", "https://example.org/c"):
        assert words in shown
    assert "An old silent pond\nA frog jumps into the pond\n" in shown


def test_lists_number_their_items() -> None:
    """Items count on from the first number, also when each is written as `1.`."""
    assert [line for line in screen_after(cut(ANSWER, 1)) if re.match(r" +\d ", line)] == [
        " 1 one",
        " 2 two, numbered lazily",
        " 3 three",
    ]


def test_no_flash_of_a_heading() -> None:
    """A list behind a line of text never makes that line a heading for a moment."""
    out = StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        screen = MarkdownScreen()
        for token in ("Stars", "\n", "-", " ", "Sun"):
            screen.show(StreamEvent("token", token))
            screen.refresh()
        screen.finish()
    assert out.getvalue().count("Stars") == 1


def test_control_characters_do_not_steer() -> None:
    """An answer cannot move the cursor or change the terminal."""
    assert screen_after(["safe\x1b[2J\x1b]52;c;x\x07 text\r\n"]) == ["safe\ufffd[2J\ufffd]52;c;x\ufffd text", ""]


def test_empty_answer() -> None:
    """Nothing gives nothing."""
    assert screen_after([]) == [""]


def test_blocks() -> None:
    """Blocks have their lines; the items of a list are blocks with numbers."""
    blocks = blocks_of("para\n\n3. three\n4. four\n\n- a\n")
    assert [(b.kind, b.start, b.end, b.number, b.continues) for b in blocks] == [
        ("paragraph", 0, 1, None, False),
        ("item", 2, 3, 3, False),
        ("item", 3, 5, 4, True),
        ("item", 5, 6, None, False),
    ]
