"""Going on with a broken answer over real sockets: the text is the right one to the byte, or the error is honest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from tests.colours import Ask, Chat

from aicortex import Stream, StreamInterruptedError, board
from aicortex.testing import (
    Answer,
    Close,
    Cut,
    Exchange,
    FakeServer,
    Hang,
    Refuse,
    Reply,
    Request,
    Reset,
    Status,
    split_tokens,
)

TEXT = "Rivers begin where rain and melting snow gather in the hills, and they end where the land meets the sea."
TOKENS = split_tokens(TEXT)
BEGUN = "".join(TOKENS[:5])
REST = "".join(TOKENS[5:])
BREAKS = Answer(TEXT).then(Reset(), after_tokens=5)
WEIGHTS, OTHER_WEIGHTS, UNKNOWN = {"fake:latest": "a" * 64}, {"fake:latest": "b" * 64}, {"fake:latest": ""}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
THOUGHT = "Hills first."
CALL = ("look_up", {"river": "Rhine"})
IMAGE = b"\x89PNG\r\n\x1a\n the size of a dot"


@dataclass(frozen=True)
class Says(Reply):
    """A whole text, whatever the prompt holds of it already."""

    text: str

    def play(self, exchange: Exchange) -> None:
        for token in split_tokens(self.text):
            exchange.token(content=token)
        exchange.done({"done_reason": "stop"})


SHAPES = {
    "the whole answer again": Says(TEXT),
    "its last words again": Says("".join(TOKENS[3:])),
    "a preamble": Says(f" Sure, here is the rest:{REST}"),
    "other words from the start": Says("Rivers begin where springs rise, far from any sea, and then flow downhill."),
}


@pytest.fixture
def ask(chat: Chat) -> Ask:
    """Ask the given servers, in this order."""

    def asking(*servers: FakeServer, **arguments: Any) -> Stream:
        return chat("Where?", stream=True, servers=[server.url for server in servers], **arguments)

    return asking


def posted(server: FakeServer) -> list[Request]:
    """Return the requests for text, prepared or not."""
    return [request for request in server.requests if request.method == "POST"]


def is_render(request: Request) -> bool:
    return request.option("_debug_render_only") is True


def resumed(stream: Stream) -> list[tuple[str, str, bool | None]]:
    """Return server, rung and whether the weights are the same, for each place where the answer went on."""
    metas = [event.meta for event in stream.events if event.type == "meta" and event.meta]
    found = [meta for meta in metas if meta["kind"] == "resumed"]
    return [(meta["server"], meta["rung"], meta["same_weights"]) for meta in found]


def partial_of(stream: Stream) -> str:
    """Read a stream that breaks off, and return what came before."""
    with pytest.raises(StreamInterruptedError) as caught:
        stream.text()
    assert caught.value.partial == stream.text_so_far
    assert "end" not in [event.type for event in stream.events]
    return caught.value.partial


@pytest.mark.parametrize("shape", SHAPES)
def test_a_greedy_answer_survives_a_server_that_does_not_go_on(ask: Ask, shape: str) -> None:
    """What begins anew is found out, and with temperature 0 the same server gives the right text by replay."""
    with FakeServer(BREAKS) as one, FakeServer(answer=TEXT, continuation=SHAPES[shape]) as two:
        stream = ask(one, two, temperature=0)
        assert stream.text() == TEXT
        assert resumed(stream) == [(two.url, "replay", True)]
        kinds = [attempt.kind for attempt in stream.result.attempts]
    assert kinds == ["reset", "diverged", "ok"]


@pytest.mark.parametrize("template", ["chatml", "prefill"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sampled_answer_ends_honestly_where_nobody_goes_on(ask: Ask, shape: str, template: str) -> None:
    """Without an exact way on there is an error with what is true of the answer, and never a wrong text."""
    with FakeServer(BREAKS) as one, FakeServer(continuation=SHAPES[shape], template=template) as two:
        stream = ask(one, two, first_token_timeout=0.5)
        assert partial_of(stream) == BEGUN
        kinds = [event.meta["kind"] for event in stream.events if event.type == "error" and event.meta]
    assert kinds[:2] == ["reset", "diverged"]
    assert resumed(stream) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_behind_a_server_that_does_not_go_on_comes_the_next(ask: Ask, shape: str) -> None:
    """A third server that goes on as asked makes the answer whole."""
    with (
        FakeServer(BREAKS) as one,
        FakeServer(continuation=SHAPES[shape]) as two,
        FakeServer(answer=TEXT) as three,
    ):
        stream = ask(one, two, three)
        assert stream.text() == TEXT
        assert resumed(stream) == [(three.url, "raw", True)]


def test_a_replay_that_differs_is_given_up(ask: Ask) -> None:
    """An answer that comes out another way this time is not patched onto the first one."""
    with FakeServer(BREAKS) as one, FakeServer(answer="Rivers begin where springs rise.", version="0.9.0") as two:
        assert partial_of(ask(one, two, temperature=0, first_token_timeout=0.5)) == BEGUN


def test_other_weights_go_on_and_it_is_told(ask: Ask) -> None:
    """Another model under the same name goes on from the text as it sees it, and the seam says so."""
    other = f"{BEGUN} springs rise."
    with FakeServer(BREAKS, models=WEIGHTS) as one, FakeServer(answer=other, models=OTHER_WEIGHTS) as two:
        stream = ask(one, two)
        assert stream.text() == other
        assert resumed(stream) == [(two.url, "raw", False)]


def test_other_weights_never_replay(ask: Ask) -> None:
    """Greedy or not, other weights cannot repeat the answer, so they are not asked to."""
    with (
        FakeServer(BREAKS, models=WEIGHTS) as one,
        FakeServer(answer=TEXT, models=OTHER_WEIGHTS) as two,
    ):
        assert partial_of(ask(one, two, temperature=0, tools=TOOLS, first_token_timeout=0.5)) == BEGUN
        assert [is_render(request) for request in posted(two)] == [True]


def test_the_same_weights_are_asked_first(ask: Ask) -> None:
    """The server with the weights the text came from goes on, even if it stands last."""
    with (
        FakeServer(BREAKS, models=WEIGHTS) as one,
        FakeServer(answer=TEXT, models=OTHER_WEIGHTS) as two,
        FakeServer(answer=TEXT, models=UNKNOWN) as three,
        FakeServer(answer=TEXT, models=WEIGHTS) as four,
    ):
        stream = ask(one, two, three, four)
        assert stream.text() == TEXT
        assert resumed(stream) == [(four.url, "raw", True)]
        assert posted(two) == posted(three) == []


def test_unknown_weights_are_told_as_unknown(ask: Ask) -> None:
    """A server that does not say which weights it has comes before other weights, and the seam says None."""
    with (
        FakeServer(BREAKS, models=WEIGHTS) as one,
        FakeServer(answer=TEXT, models=OTHER_WEIGHTS) as two,
        FakeServer(answer=TEXT, models=UNKNOWN) as three,
    ):
        stream = ask(one, two, three)
        assert stream.text() == TEXT
        assert resumed(stream) == [(three.url, "raw", None)]
        assert posted(two) == []


def test_the_first_weights_are_not_the_same_any_more(ask: Ask) -> None:
    """Once other weights had a part in the text, it is no more what the first ones would have said."""
    stalls = Answer(TEXT).then(Hang(), after_tokens=5)
    with (
        FakeServer(stalls, answer=TEXT, models=WEIGHTS) as one,
        FakeServer(continuation=stalls, models=OTHER_WEIGHTS) as two,
    ):
        stream = ask(one, two)
        for count in (5, 8):
            words = stream.tokens()
            for _ in range(count):
                next(words)
            assert stream.move()
        assert stream.text() == TEXT
        assert resumed(stream) == [(two.url, "raw", False), (one.url, "raw", False)]


def test_a_name_that_broke_in_two_goes_on(ask: Ask) -> None:
    """A cut inside of a name leaves a capital behind a letter, which is no new message of the model."""
    tokens = ["Python", " has", " a", " class", " Incremental", "Decoder", ":", " one", " for", " each", " codec", "."]
    answer = Answer(tokens)
    with FakeServer(answer.then(Reset(), after_tokens=5)) as one, FakeServer(answer=answer) as two:
        stream = ask(one, two)
        assert stream.text() == "".join(tokens)
        assert resumed(stream) == [(two.url, "raw", True)]


def test_how_long_a_model_stays_is_no_business_of_a_render(ask: Ask) -> None:
    """`keep_alive=0` goes with the question and the continuation: what prepares it must not unload the model."""
    with FakeServer(BREAKS) as one, FakeServer(answer=TEXT) as two:
        assert ask(one, two, keep_alive=0).text() == TEXT
        assert [(is_render(request), request.option("keep_alive")) for request in (*posted(one), *posted(two))] == [
            (False, 0),
            (True, None),
            (False, 0),
        ]


def test_a_key_that_is_missing_is_told(ask: Ask) -> None:
    """A server that may not be asked to go on says so, and with which status."""
    with FakeServer(BREAKS) as one, FakeServer(answer=TEXT, paths={"/api/chat": Status(401)}) as two:
        stream = ask(one, two, first_token_timeout=0.5)
        partial_of(stream)
        errors = [event.meta or {} for event in stream.events if event.type == "error"]
    assert [(meta["server"], meta["kind"], meta["status"]) for meta in errors[:2]] == [
        (one.url, "reset", 200),
        (two.url, "denied", 401),
    ]


def test_a_stop_string_across_the_seam_ends_the_answer(ask: Ask) -> None:
    """One server ended with the first half of it, the next one begins with the other: neither could see it."""
    broken = Answer(BEGUN).then(Reset())
    with FakeServer(broken) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two, stop="and melting")
        assert stream.text() == BEGUN
        assert stream.result.finish_reason == "stop"
        assert two.wait_until(lambda: two.active == 0)


def test_half_a_stop_string_at_the_seam_is_text(ask: Ask) -> None:
    """What could have become a stop string and does not is delivered."""
    with FakeServer(BREAKS) as one, FakeServer(answer=TEXT) as two:
        assert ask(one, two, stop=["and molten", "rain and ice"]).text() == TEXT


def test_a_stop_string_behind_the_seam_is_the_servers(ask: Ask) -> None:
    """The server that goes on gets the stop strings and ends the answer before the first one."""
    with FakeServer(BREAKS) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two, stop=" gather")
        assert stream.text() == TEXT[: TEXT.index(" gather")]
        assert posted(two)[-1].option("options") == {"stop": [" gather"]}
        assert stream.result.finish_reason == "stop"


def test_the_limit_is_reduced_by_what_was_delivered(ask: Ask) -> None:
    """A server that goes on may say what is left of max_tokens, and usage counts both parts."""
    with FakeServer(BREAKS) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two, max_tokens=9)
        assert stream.text() == "".join(TOKENS[:9])
        assert posted(two)[-1].path == "/api/generate"
        assert posted(two)[-1].option("options") == {"num_predict": 4}
    assert stream.result.finish_reason == "length"
    assert stream.result.usage == {"prompt_tokens": 7, "completion_tokens": 9}


def test_a_break_behind_the_last_token_allowed(ask: Ask) -> None:
    """With max_tokens used up a server is asked to say that the answer is done (C5), and nothing more is delivered."""
    with FakeServer(BREAKS) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two, max_tokens=5)
        assert stream.text() == BEGUN
        assert posted(two)[-1].option("options") == {"num_predict": 1}
    assert stream.result.finish_reason == "length"
    assert stream.result.usage == {"prompt_tokens": 7, "completion_tokens": 5}


def test_a_break_behind_the_last_token_with_nobody_left(ask: Ask) -> None:
    """No server said that the answer is done, so that it does not end as whole."""
    with FakeServer(BREAKS) as server:
        assert partial_of(ask(server, max_tokens=5, first_token_timeout=0.5)) == BEGUN


@pytest.mark.parametrize(
    ("kind", "asked"),
    [({}, {}), ({"template": "prefill"}, {"tools": TOOLS}), ({"version": "0.9.0"}, {"seed": 7})],
    ids=["raw", "prefill", "replay"],
)
def test_usage_is_that_of_one_answer(ask: Ask, kind: dict[str, str], asked: dict[str, Any]) -> None:
    """Whichever way it went on, the answer has as many tokens as if it had not broken."""
    with (
        FakeServer(BREAKS) as one,
        FakeServer(answer=TEXT, **kind) as two,  # type: ignore[arg-type]
    ):
        stream = ask(one, two, **asked)
        assert stream.text() == TEXT
    assert stream.result.usage == {"prompt_tokens": 7, "completion_tokens": len(TOKENS)}


@pytest.mark.parametrize("way", [{"seed": 3}, {"temperature": 0}])
def test_an_answer_bound_by_a_format_is_replayed(ask: Ask, way: dict[str, int]) -> None:
    """A grammar starts anew with each request, so the answer is generated again, format and all."""
    with FakeServer(BREAKS) as one, FakeServer(answer=TEXT) as two:
        stream = ask(one, two, format="json", **way)
        assert stream.text() == TEXT
        assert resumed(stream) == [(two.url, "replay", True)]
        assert [request.path for request in posted(two)] == ["/api/chat"]
        assert posted(two)[0].json == posted(one)[0].json
        assert posted(two)[0].option("format") == "json"


def test_an_answer_bound_by_a_format_cannot_be_continued_without_a_seed(ask: Ask) -> None:
    """A sampled one ends in an error, and no other server is asked for anything."""
    with FakeServer(BREAKS) as one, FakeServer(answer=TEXT) as two:
        assert partial_of(ask(one, two, format="json")) == BEGUN
        assert posted(two) == []


def test_an_answer_about_images_is_continued_by_prefill(ask: Ask) -> None:
    """A raw prompt has no place for images: the conversation is sent again, images and beginning included."""
    with FakeServer(BREAKS) as one, FakeServer(answer=TEXT, template="prefill") as two:
        stream = ask(one, two, images=[IMAGE])
        assert stream.text() == TEXT
        assert resumed(stream) == [(two.url, "prefill", True)]
        assert [(request.path, is_render(request)) for request in posted(two)] == [
            ("/api/chat", True),
            ("/api/chat", False),
        ]
        user, begun = posted(two)[-1].option("messages")
    assert user["images"]
    assert begun == {"role": "assistant", "content": BEGUN}


def test_an_answer_about_images_needs_a_template_that_goes_on(ask: Ask) -> None:
    """Where the rendered prompt closes the message nothing is generated, and the error is honest."""
    with FakeServer(BREAKS) as one, FakeServer(answer=TEXT) as two:
        assert partial_of(ask(one, two, images=[IMAGE], first_token_timeout=0.5)) == BEGUN
        assert [is_render(request) for request in posted(two)] == [True]


def test_a_last_message_of_the_assistants_own_is_continued(chat: Chat) -> None:
    """A conversation that ends with a beginning of the caller's goes on with it, and with what was delivered."""
    messages = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": TOKENS[0]}]
    whole = "".join(TOKENS[1:])
    broken = Answer(TEXT).then(Reset(), after_tokens=4)
    with FakeServer(broken, template="prefill") as one, FakeServer(answer=TEXT, template="prefill") as two:
        servers = [one.url, two.url]
        stream = chat(messages=messages, stream=True, servers=servers, tools=TOOLS)
        assert stream.text() == whole
        assert posted(two)[-1].option("messages")[-1]["content"] == BEGUN


def test_thoughts_are_given_along(ask: Ask) -> None:
    """An answer that was thought about goes on behind its thoughts, which the reader gets once."""
    answer = Answer(TEXT, thinking=THOUGHT)
    broken = answer.then(Reset(), after_tokens=7)
    with FakeServer(broken, template="prefill") as one, FakeServer(answer=answer, template="prefill") as two:
        stream = ask(one, two, think=True)
        assert stream.text() == TEXT
        assert stream.result.thinking == THOUGHT
        assert resumed(stream) == [(two.url, "prefill", True)]
        begun = posted(two)[-1].option("messages")[-1]
    assert begun == {"role": "assistant", "content": BEGUN, "thinking": THOUGHT}


def test_a_greedy_thought_is_replayed(ask: Ask) -> None:
    """With temperature 0 a thought that broke off goes on where it stopped."""
    answer = Answer(TEXT, thinking=THOUGHT)
    with FakeServer(answer.then(Reset(), after_tokens=2)) as one, FakeServer(answer=answer) as two:
        stream = ask(one, two, temperature=0)
        assert stream.text() == TEXT
        assert resumed(stream) == [(two.url, "replay", True)]
    thoughts = [e.content for e in stream.events if e.type == "meta" and e.meta and e.meta["kind"] == "thinking"]
    assert "".join(thought or "" for thought in thoughts) == THOUGHT == stream.result.thinking


def test_a_tool_call_is_delivered_once(ask: Ask) -> None:
    """An answer that broke behind a tool call is replayed, and the call does not come again."""
    answer = Answer(TEXT, tool_calls=[CALL])
    with FakeServer(answer.then(Close())) as one, FakeServer(answer=answer) as two:
        stream = ask(one, two, tools=TOOLS, temperature=0)
        assert stream.text() == TEXT
        assert resumed(stream) == [(two.url, "replay", True)]
    assert [(e.tool_name, e.tool_args) for e in stream.events if e.type == "tool_call"] == [CALL]


def test_a_tool_call_is_not_made_up_again(ask: Ask) -> None:
    """A sampled answer that broke behind a tool call ends in an error: another call could be another one."""
    answer = Answer(TEXT, tool_calls=[CALL])
    with (
        FakeServer(answer.then(Close()), template="prefill") as one,
        FakeServer(answer=answer, template="prefill") as two,
    ):
        stream = ask(one, two, tools=TOOLS)
        assert partial_of(stream) == TEXT
        assert posted(two) == []
    assert [event.tool_name for event in stream.events if event.type == "tool_call"] == ["look_up"]


def test_old_servers_are_not_asked_to_render(ask: Ask) -> None:
    """A server whose version does not know how gets no request that it would take for a question."""
    with FakeServer(BREAKS, version="0.9.0") as one, FakeServer(answer=TEXT, version="0.9.0") as two:
        stream = ask(one, two, temperature=0)
        assert stream.text() == TEXT
        assert resumed(stream) == [(two.url, "replay", True)]
        assert [is_render(request) for request in posted(two)] == [False]


def test_what_a_template_cannot_do_is_remembered(ask: Ask) -> None:
    """The second answer does not ask again how a template renders that closed the message for the first one."""
    with FakeServer(BREAKS, BREAKS) as one, FakeServer(answer=TEXT) as two:
        for _ in range(2):
            stream = ask(one, two, temperature=0, tools=TOOLS)
            assert stream.text() == TEXT
            assert resumed(stream) == [(two.url, "replay", True)]
            board.BOARD.__init__()  # type: ignore[misc]  # else the first one would not be asked again
        assert [is_render(request) for request in posted(two)] == [True, False, False]


def test_a_server_that_drops_the_question_speaks_for_itself(ask: Ask) -> None:
    """A new version that generates instead of rendering says nothing about others like it."""
    says_new = {"/api/version": Status(200, {"version": "0.33.0"})}
    with (
        FakeServer(BREAKS) as one,
        FakeServer(answer=TEXT, version="0.9.0", paths=says_new) as two,
        FakeServer(answer=TEXT) as three,
    ):
        stream = ask(one, two, three)
        assert stream.text() == TEXT
        assert resumed(stream) == [(three.url, "raw", True)]
        assert [is_render(request) for request in posted(two)] == [True]


def broken_beginning(kind: str) -> Cut:
    return Answer(TEXT).then(Refuse() if kind == "dies" else Reset(), after_tokens=5)


@pytest.mark.parametrize("kind", ["breaks", "dies"])
def test_the_only_server_goes_on_when_it_comes_back(ask: Ask, kind: str) -> None:
    """A server that broke, or died and was started again, is asked again a second later and goes on."""
    with FakeServer(broken_beginning(kind), answer=TEXT) as server:
        stream = ask(server)
        for event in stream:
            if event.type == "error":
                assert (event.meta or {})["will_retry"] is True
                server.start()
        assert stream.text() == TEXT
        assert resumed(stream) == [(server.url, "raw", True)]
    assert [attempt.kind for attempt in stream.result.attempts] == ["reset", "ok"]
