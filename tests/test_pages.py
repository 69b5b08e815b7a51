"""The web pages of examples/ in a real browser, with scripted servers and with the embedded engine."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from playwright.sync_api import Browser, Page, expect, sync_playwright
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from aicortex.testing import Answer, Close, FakeServer, Hang, Reply, Stall, Status

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = ["websocket_server.py", "sse_server.py"]
TEXT = "The quick <b>brown</b> fox & co.\n\n1. jumps over\n2. the lazy dog."
BEGINNING = "The quick <b>brown</b>"
STALLING = Answer(TEXT).then(Stall(), after_tokens=3)
LONG = "Explain recursion with a simple analogy."
LIMIT = 60.0  # seconds
SERVE = "from aicortex.embedded import serve; raise SystemExit(serve(port=0, name='llama3.2:3b'))"
# Chromium asks its maker's servers for one thing or another unless it is told not to; the sandbox wants not to be root.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, as Debian has it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        yield browser
        browser.close()


@contextmanager
def serve(app: FastAPI) -> Iterator[tuple[str, uvicorn.Server]]:
    """Serve an application from a thread; give its address and what serves it."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=0))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}", server
    finally:
        server.should_exit = True
        thread.join(LIMIT)


def app_of(program: str) -> FastAPI:
    app: FastAPI = runpy.run_path(str(EXAMPLES / program))["app"]
    return app


@pytest.fixture(scope="module", params=PROGRAMS)
def site(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of each example."""
    with serve(app_of(request.param)) as (address, _):
        yield address


@pytest.fixture
def page(browser: Browser, site: str) -> Iterator[Page]:
    """A tab that shows the page; nothing in it may go wrong."""
    yield from open_tab(browser, site)


def open_tab(browser: Browser, site: str, **looks: Any) -> Iterator[Page]:  # Any: as Playwright takes them
    tab = browser.new_page(viewport={"width": 800, "height": 600}, **looks)
    tab.set_default_timeout(LIMIT * 1000)
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(site)
    yield tab
    tab.close()
    assert errors == []


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say which servers the examples ask, in this order."""
    monkeypatch.setenv("AICORTEX_ROUTING", "order")

    def use(*servers: FakeServer | str) -> None:
        urls = [server if isinstance(server, str) else server.url for server in servers]
        monkeypatch.setenv("AICORTEX_SERVERS", ",".join(urls))

    return use


def ask(page: Page, question: str) -> None:
    page.get_by_label("Prompt").fill(question)
    page.keyboard.press("Enter")


def wait_for_text(page: Page, length: int) -> str:
    """Wait until the last answer is so long; return it."""
    page.wait_for_function(
        "length => (document.querySelector('article:last-of-type .answer')?.textContent.length ?? 0) >= length",
        arg=length,
    )
    return page.locator(".answer").last.text_content() or ""


def expect_answer(page: Page, kind: str, text: str, *, nth: int = -1) -> None:
    """Wait until an answer, the last one if not told otherwise, is of this kind, and compare its text."""
    turn = page.locator("article").nth(nth)
    expect(turn).to_have_class(kind, timeout=LIMIT * 1000)
    assert turn.locator(".answer").text_content() == text


def test_a_whole_answer(page: Page, fleet: Callable[..., None]) -> None:
    """Question and answer stand there as they are, with who answered and how fast; the next question can be typed."""
    with FakeServer(answer=TEXT) as server:
        fleet(server)
        ask(page, "What <i>jumps</i>?")
        expect_answer(page, "whole", TEXT)
        assert page.locator("h2").text_content() == "What <i>jumps</i>?"
        assert page.locator(".status").text_content() == f"fake:latest at {server.url}, 100 tokens/s"
        assert page.locator(".answer").get_attribute("aria-busy") == "false"
        expect(page.get_by_label("Prompt")).to_have_value("")
        expect(page.get_by_label("Prompt")).to_be_focused()
        expect(page.get_by_role("button", name="Stop")).to_be_disabled()


def test_a_server_that_fails(page: Page, fleet: Callable[..., None]) -> None:
    """The answer goes on where it was, and a note says which server failed."""
    with FakeServer(STALLING) as one, FakeServer(answer=TEXT) as two:
        fleet(one, two)
        ask(page, "Hi")
        wait_for_text(page, len(BEGINNING))
        one.refuse()
        expect_answer(page, "whole", TEXT)
        note = page.locator(".note").text_content() or ""
        assert note.startswith(f"⚠ {one.url}: ")
        assert note.endswith("Another server goes on.")
        assert two.url in (page.locator(".status").text_content() or "")


@pytest.mark.parametrize(
    ("reply", "text", "reason"),
    [(Answer(TEXT).then(Close(), after_tokens=3), BEGINNING, "interrupted"), (Status(500), "", "All servers failed")],
)
def test_an_answer_that_is_cut(
    page: Page, fleet: Callable[..., None], monkeypatch: pytest.MonkeyPatch, reply: Reply, text: str, reason: str
) -> None:
    """An answer that broke off is marked, with the reason; the next one is not."""
    monkeypatch.setenv("AICORTEX_RESUME", "never")
    with FakeServer(reply, answer=TEXT) as server:
        fleet(server)
        ask(page, "Hi")
        expect_answer(page, "cut", text)
        status = page.locator(".status").text_content() or ""
        assert status.startswith("Not the whole answer: ")
        assert reason in status
        ask(page, "Once more")
        expect_answer(page, "whole", TEXT)


def test_a_question_that_cannot_be_asked(page: Page, fleet: Callable[..., None]) -> None:
    """What is wrong with a question is said where its answer would be."""
    with FakeServer() as server:
        fleet(server)
        ask(page, " ")
        expect_answer(page, "cut", "")
        assert page.locator(".status").text_content() == "Not the whole answer: prompt is empty"


@pytest.mark.parametrize("reply", [Hang(), STALLING])
def test_stop(page: Page, fleet: Callable[..., None], reply: Reply) -> None:
    """Escape, like the button, stops the answer on the model's server, marks it, and leaves the page ready."""
    with FakeServer(reply, answer=TEXT) as server:
        fleet(server)
        ask(page, "Hi")
        if reply == Hang():
            expect(page.locator(".status")).to_contain_text(server.url)
        else:
            wait_for_text(page, len(BEGINNING))
        page.keyboard.press("Escape")
        assert server.wait_for_disconnect(timeout=1.0)
        expect_answer(page, "cut", "" if reply == Hang() else BEGINNING)
        assert page.locator(".status").text_content() == "Not the whole answer: stopped."
        ask(page, "Something else")
        expect_answer(page, "whole", TEXT)


def test_a_new_question_stops_the_answer(page: Page, fleet: Callable[..., None]) -> None:
    """A question in the middle of an answer ends that one as cut, on the model's server too, and gets its own."""
    with FakeServer(STALLING, answer=TEXT) as server:
        fleet(server)
        ask(page, "Hi")
        wait_for_text(page, len(BEGINNING))
        ask(page, "Something else")
        assert server.wait_for_disconnect(timeout=1.0)
        expect_answer(page, "whole", TEXT)
        expect_answer(page, "cut", BEGINNING, nth=0)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_web_server_ends(browser: Browser, program: str, fleet: Callable[..., None]) -> None:
    """A page whose web server is gone does not take the half answer for a whole one."""
    with FakeServer(STALLING) as server, serve(app_of(program)) as (site, web):
        fleet(server)
        for tab in open_tab(browser, site):
            ask(tab, "Hi")
            wait_for_text(tab, len(BEGINNING))
            web.should_exit = True
            expect_answer(tab, "cut", BEGINNING)


def test_closing_the_tab(page: Page, short_server: FakeServer, fleet: Callable[..., None]) -> None:
    """Closing the tab frees the engine's slot within a second."""
    fleet(short_server)
    ask(page, LONG)
    wait_for_text(page, 20)
    page.close()
    assert short_server.wait_for_disconnect(timeout=1.0)


def test_closing_the_tab_in_silence(page: Page, fleet: Callable[..., None]) -> None:
    """The same before the first token."""
    with FakeServer(Hang()) as server:
        fleet(server)
        ask(page, "Hi")
        expect(page.locator(".status")).to_contain_text(server.url)
        page.close()
        assert server.wait_for_disconnect(timeout=1.0)


def test_the_embedded_engine(
    browser: Browser, site: str, short_server: FakeServer, fleet: Callable[..., None], tmp_path: Path
) -> None:
    """A real answer comes piece by piece, on a phone in the dark too, where nothing is wider than the screen."""
    fleet(short_server)
    for tab in open_tab(browser, site, color_scheme="dark", is_mobile=True):
        tab.set_viewport_size({"width": 360, "height": 640})
        ask(tab, LONG)
        beginning = wait_for_text(tab, 20)
        tab.screenshot(path=tmp_path / "phone.png")
        expect(tab.locator("article")).to_have_class("whole", timeout=LIMIT * 1000)
        text = tab.locator(".answer").text_content() or ""
        assert text.startswith(beginning)
        assert len(text) > len(beginning)
        assert tab.evaluate("document.documentElement.scrollWidth") == 360


def test_an_engine_that_is_killed(page: Page, embedded_server: str, fleet: Callable[..., None], tmp_path: Path) -> None:
    """An engine is killed in the middle of its answer: the page keeps the text, and another engine goes on with it."""
    command = [sys.executable, "-c", SERVE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True) as engine:
        assert engine.stdout is not None  # asked for in the line above
        try:
            first = engine.stdout.readline().split(" at ")[1].split()[0]
            fleet(first, embedded_server)
            ask(page, LONG)
            wait_for_text(page, 60)
            page.screenshot(path=tmp_path / "before.png")
        finally:
            os.killpg(engine.pid, signal.SIGKILL)
    before = page.locator(".answer").text_content() or ""
    page.locator(".note").wait_for()
    after = wait_for_text(page, len(before) + 60)
    page.screenshot(path=tmp_path / "after.png")
    assert after.startswith(before)
    assert first in (page.locator(".note").text_content() or "")
    assert embedded_server in (page.locator(".status").text_content() or "")


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_program(program: str) -> None:
    """Each example runs as its first lines say, on this machine only."""
    with FakeServer(answer=TEXT) as server:
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / program), "--port", "0"],
            env={**os.environ, "AICORTEX_SERVERS": server.url},
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        with process:
            assert process.stderr is not None  # asked for above
            try:
                line = next(line for line in process.stderr if "running on http://" in line)
                address = line.split("running on ")[1].split()[0]
                assert address.startswith("http://127.0.0.1:")
                with urllib.request.urlopen(address, timeout=LIMIT) as reply:
                    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
            finally:
                process.terminate()
            process.communicate(timeout=LIMIT)
        assert process.returncode in (0, -signal.SIGTERM)


def test_a_conversation_over_the_websocket(fleet: Callable[..., None]) -> None:
    """A prompt goes on with the turns before it that are whole, and with no others."""
    with serve(app_of("websocket_server.py")) as (site, _), FakeServer(STALLING, answer=TEXT) as server:
        fleet(server)
        with connect(site.replace("http", "ws") + "/ws/chat", open_timeout=LIMIT) as client:
            for prompt, last in ("First", "token"), ("", "failed"), ("Second", "end"), ("Third", "end"):
                client.send(prompt)
                while json.loads(client.recv(timeout=LIMIT))["type"] != last:
                    pass
        asked = server.requests[-1].json["messages"]
    assert [(message["role"], message["content"]) for message in asked] == [
        ("user", "Second"),
        ("assistant", TEXT),
        ("user", "Third"),
    ]


def test_pages_of_others(fleet: Callable[..., None]) -> None:
    """A page of another origin, which any browser may have open, cannot ask."""
    with FakeServer() as server:
        fleet(server)
        with serve(app_of("websocket_server.py")) as (site, _), pytest.raises(InvalidStatus, match="403"):
            connect(site.replace("http", "ws") + "/ws/chat", origin=Origin("http://elsewhere.example"))
        with serve(app_of("sse_server.py")) as (site, _):
            request = urllib.request.Request(f"{site}/chat?prompt=Hi", headers={"Sec-Fetch-Site": "cross-site"})
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(request, timeout=LIMIT)
        assert server.requests == []


def test_the_page_of_the_docs(browser: Browser, fleet: Callable[..., None]) -> None:
    """The page in docs/web.md shows an answer, to its end."""
    section = (EXAMPLES.parent / "docs" / "web.md").read_text("utf-8").split("\n## Server-sent events\n")[1]
    python, html = (section.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "html"))
    names: dict[str, Any] = {}  # Any: whatever the example defines
    exec(python, names)
    names["app"].add_api_route("/", lambda: HTMLResponse(html))
    with (
        FakeServer(Answer(TEXT).then(Close(), after_tokens=3), answer=TEXT) as server,
        serve(names["app"]) as (site, _),
    ):
        fleet(server)
        for tab in open_tab(browser, site):
            expect(tab.locator("#answer")).to_have_text(TEXT, timeout=LIMIT * 1000)
            assert len(server.requests) > 1
