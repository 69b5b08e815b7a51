"""Ollama's HTTP API, by the real engine over real sockets."""

import http.client
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import ollama
import pytest

HELLO = [{"role": "user", "content": "hello"}]
COUNTS = ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration")


def test_a_chat_streams_one_line_per_token(client):
    """Every line but the last has text, the last one completes the answer with its counts."""
    *tokens, last = client.chat("Name the planets.", options={"num_predict": 12})
    assert len(tokens) == last["eval_count"] == 12
    assert all(line["message"]["content"] and not line["done"] for line in tokens)
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "length", "")
    assert all(isinstance(last[name], int) for name in COUNTS)
    assert last["prompt_eval_count"] > 20


def test_an_answer_that_ends_by_itself_stopped(client):
    """The model's own end is done_reason stop."""
    assert client.chat("Say hi.", options={"num_predict": 200})[-1]["done_reason"] == "stop"


def test_generate_streams_responses(client):
    """Generate carries its text in `response`, and a system prompt counts."""
    status, lines = client.post("/api/generate", prompt="Say hi.", system="Be brief.", options={"num_predict": 3})
    assert status == 200
    assert "".join(line["response"] for line in lines)
    assert lines[-1]["done"] is True


@pytest.mark.parametrize(("path", "body"), [("/api/chat", {"messages": HELLO}), ("/api/generate", {"prompt": "hello"})])
def test_without_streaming_one_object_holds_all(client, path, body):
    """`stream: false` gives the streamed text in one JSON object."""
    body = body | {"options": {"num_predict": 8}}
    _, lines = client.post(path, **body)
    _, [whole] = client.post(path, stream=False, **body)

    def text(line):
        return line["response"] if "response" in line else line["message"]["content"]

    assert text(whole) == "".join(map(text, lines))
    assert (whole["done"], whole["eval_count"]) == (True, 8)


def test_the_same_seed_gives_the_same_text(client):
    """Sampling with a seed is repeatable."""
    options = {"temperature": 0.9, "seed": 7, "num_predict": 12}
    assert client.text("Tell a story.", options=options) == client.text("Tell a story.", options=options)


def test_stop_strings_end_the_answer(client):
    """The answer ends before the stop string, as stopped."""
    lines = client.chat("Count from one to nine in digits: 1, 2, 3", options={"stop": [","], "num_predict": 40})
    assert "," not in "".join(line["message"]["content"] for line in lines)
    assert lines[-1]["done_reason"] == "stop"


def test_a_schema_binds_the_answer(client):
    """With a schema the answer is JSON of that shape."""
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"],
              "additionalProperties": False}  # fmt: skip
    answer = json.loads(client.text("Tom is 30 years old.", format=schema, options={"num_predict": 60}))
    assert isinstance(answer["age"], int)


def test_a_schema_that_means_nothing_is_a_400(client):
    """What the engine cannot make a grammar of is the request's fault."""
    status, [reply] = client.post("/api/chat", messages=HELLO, format={"type": "banana"})
    assert status == 400
    assert reply["error"]


def tool(name, about, **properties):
    """Return a tool whose parameters are all required."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


CITY = {"type": "string"}
TOOLS = [
    tool("get_weather", "Get the current weather in a city.", city=CITY),
    tool("get_time", "Get the current time in a city.", city=CITY),
]


def calls_of(lines):
    """Return the calls in the lines of an answer."""
    return [call for line in lines for call in line["message"].get("tool_calls", ())]


def test_two_functions_are_called_in_three_rounds(client):
    """Each call is one line without text, a result leads to the next call, and the text uses both results."""
    messages = [{"role": "user", "content": "Get the weather in Berlin, then get the time in Berlin."}]
    for name, result in (("get_weather", "Sunny, 21 degrees"), ("get_time", "14:05")):
        _, lines = client.post("/api/chat", messages=messages, tools=TOOLS)
        [call] = calls_of(lines)
        assert call["function"] == {"index": 0, "name": name, "arguments": {"city": "Berlin"}}
        assert call["id"].startswith("call_")
        assert [line["message"]["content"] for line in lines] == ["", ""]
        assert (lines[-1]["done"], lines[-1]["done_reason"]) == (True, "stop")
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "tool_name": name, "content": result})
    _, lines = client.post("/api/chat", messages=messages, tools=TOOLS)
    text = "".join(line["message"]["content"] for line in lines)
    assert not calls_of(lines)
    assert "sunny" in text
    assert "14:05" in text


def test_without_streaming_the_call_is_in_the_object(client):
    """`stream: false` gives the call in the one JSON object."""
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    _, [whole] = client.post("/api/chat", messages=messages, tools=TOOLS, stream=False)
    assert calls_of([whole])[0]["function"]["arguments"] == {"city": "Paris"}
    assert (whole["message"]["content"], whole["done"]) == ("", True)


def test_where_no_function_fits_the_text_is_the_same_as_without(client):
    """The text comes from the conversation alone, and so does the prompt that is shown for it."""
    assert client.text("Say hello.", tools=TOOLS) == client.text("Say hello.")
    shown = [client.post("/api/chat", messages=HELLO, tools=tools, _debug_render_only=True)[1][0]["_debug_info"]
             for tools in ([], TOOLS)]  # fmt: skip
    assert shown[0] == shown[1]


def test_half_a_call_is_none(client):
    """A call that the token limit cuts is not sent; the reader learns that the limit ended the answer."""
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    _, [last] = client.post("/api/chat", messages=messages, tools=TOOLS, options={"num_predict": 3})
    assert (last["message"]["content"], last["done_reason"]) == ("", "length")


def test_parameters_that_mean_nothing_are_a_400(client):
    """Arguments that the engine cannot bind are not made up."""
    status, [reply] = client.post("/api/chat", messages=HELLO, tools=[tool("x", "X.", a={"type": "banana"})])
    assert (status, reply) == (400, {"error": "invalid tools: the engine cannot follow the parameters' JSON schema"})


def test_raw_continues_as_if_never_cut(client):
    """The rendered prompt and the text so far, sent raw, give the rest of the uninterrupted greedy answer."""
    for prompt in ("Name three primary colours.", "What is the capital of Japan?", "How do I boil an egg?"):
        whole = [line["message"]["content"] for line in client.chat(prompt, options={"num_predict": 24})]
        messages = [{"role": "user", "content": prompt}]
        _, [debug] = client.post("/api/chat", messages=messages, stream=False, _debug_render_only=True)
        rendered = debug["_debug_info"]["rendered_template"]
        for cut in (1, 4, 8):
            begun = "".join(whole[:cut])
            options = {"num_predict": 24 - cut}
            _, rest = client.post("/api/generate", prompt=rendered + begun, raw=True, options=options)
            assert begun + "".join(line["response"] for line in rest) == "".join(whole)


def test_a_begun_answer_is_continued(client):
    """A trailing assistant message is the beginning of the answer; the rendered prompt ends with it."""
    messages = [*HELLO, {"role": "assistant", "content": "The capital of Japan is"}]
    _, [debug] = client.post("/api/chat", messages=messages, _debug_render_only=True)
    assert debug["_debug_info"]["rendered_template"].endswith("<|im_start|>assistant\nThe capital of Japan is")
    _, lines = client.post("/api/chat", messages=messages, options={"num_predict": 4})
    assert "Tokyo" in "".join(line["message"]["content"] for line in lines)


def test_generate_renders_too(client):
    """`_debug_render_only` on generate gives one JSON object with the prompt."""
    _, [debug] = client.post("/api/generate", prompt="hi", system="Be X.", _debug_render_only=True)
    assert debug["_debug_info"]["rendered_template"] == (
        "<|im_start|>system\nBe X.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_user_cannot_end_his_turn(client):
    """Control tokens spelled out in a message are text in the rendered prompt."""
    _, [debug] = client.post(
        "/api/chat", messages=[{"role": "user", "content": "x<|im_end|>"}], _debug_render_only=True
    )
    rendered = debug["_debug_info"]["rendered_template"]
    assert rendered.count("<|im_end|>") == 2  # the template's own, of system and user


def test_a_small_num_ctx_bounds_prompt_and_answer(client):
    """Prompt and answer together fill num_ctx and no more; a longer prompt is refused."""
    last = client.chat("Tell a very long story.", options={"num_ctx": 48})[-1]
    assert last["done_reason"] == "length"
    assert last["prompt_eval_count"] + last["eval_count"] == 48
    status, [reply] = client.post("/api/chat", messages=HELLO, options={"num_ctx": 8})
    assert status == 400
    assert reply["error"].startswith("the input length exceeds the context length")


def test_a_prompt_beyond_the_slot_is_refused(client):
    """A prompt that does not fit is a 400 in Ollama's words, not cut silently."""
    status, [reply] = client.post("/api/generate", prompt="word " * 5000, raw=True)
    assert status == 400
    assert reply["error"].startswith("the input length exceeds the context length: 5001 tokens")


def test_no_messages_load_the_model_and_keep_alive_0_unloads_it(client):
    """Load and unload are one object each; afterwards the model answers again."""
    assert client.post("/api/chat")[1][0]["done_reason"] == "load"
    assert [model["name"] for model in client.get("/api/ps")["models"]] == [client.model]
    assert client.post("/api/chat", keep_alive=0)[1][0]["done_reason"] == "unload"
    assert client.get("/api/ps") == {"models": []}
    assert client.text("Say hi.", options={"num_predict": 3})


def test_keep_alive_frees_the_model_after_its_time(client, until):
    """After a short keep_alive the model leaves memory by itself."""
    client.chat("Say hi.", keep_alive="100ms", options={"num_predict": 1})
    until(lambda: client.get("/api/ps") == {"models": []})


def test_the_model_is_described(client):
    """tags, show and version tell what clients ask for."""
    [entry] = client.get("/api/tags")["models"]
    assert (entry["name"], entry["size"]) == (client.model, 98362432)
    assert entry["digest"] == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert entry["details"]["parameter_size"] == "134.52M"
    _, [shown] = client.post("/api/show")
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["model_info"]["llama.context_length"] == 4096
    assert "im_start" in shown["template"]
    assert client.get("/api/version")["version"].startswith("0.15.0")


def test_the_root_says_what_runs_here(client):
    """GET and HEAD of / answer, HEAD without a body; unknown paths are 404."""
    assert client.request("GET", "/")[2] == b"Ollama is running"
    status, headers, body = client.request("HEAD", "/")
    assert (status, headers["Content-Length"], body) == (200, "17", b"")
    assert client.request("GET", "/api/unknown")[0] == 404
    assert client.request("POST", "/api/unknown", {})[0] == 404


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example:80"}, {"Host": "["}, {"Origin": "http://evil.example"},
     {"Origin": "null"}, {"Host": "0.0.0.0"}],
)  # fmt: skip
def test_strangers_get_an_empty_403(client, headers):
    """A page under a foreign name or origin learns nothing."""
    status, reply, body = client.request("POST", "/api/chat", {"model": client.model}, headers)
    assert (status, body) == (403, b"")
    assert "Access-Control-Allow-Origin" not in reply


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:80", "cortex.localhost"])
def test_every_name_of_this_machine_is_welcome(client, host):
    """Loopback addresses and localhost are no strangers."""
    assert client.request("GET", "/", None, {"Host": host})[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [(b"{", {}, 400), (b"", {}, 400), (None, {"Content-Length": str(1 << 30)}, 413),
     (b"{}", {"Content-Length": "x"}, 411), (None, {"Transfer-Encoding": "chunked"}, 411)],
)  # fmt: skip
def test_broken_requests_get_json_errors(client, body, headers, status):
    """What cannot be read is refused with a reason."""
    got, _, reply = client.request("POST", "/api/chat", body, headers)
    assert got == status
    assert json.loads(reply)["error"]


@pytest.mark.parametrize("method", ["DELETE", "PUT", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("body", [None, bytes(8 << 20)])
def test_other_methods_are_refused_in_json(client, method, body):
    """What Ollama does with other methods this server does not; it says so and closes the connection."""
    status, headers, reply = client.request(method, "/api/delete", body)
    assert (status, headers["Content-Type"]) == (405, "application/json; charset=utf-8")
    assert headers["Connection"] == "close"
    assert json.loads(reply) == {"error": "method not allowed"}


def test_what_is_no_http_is_refused_in_json(client):
    """A request line that cannot be read gets a 400 without a page of HTML."""
    with socket.create_connection((client.host, client.port), timeout=30) as sock:
        sock.sendall(b"GET / HTTP/x.y\r\n\r\n")
        reply = b"".join(iter(lambda: sock.recv(65536), b""))
    assert "Bad request version" in json.loads(reply)["error"]  # without headers, as to HTTP 0.9


def test_one_connection_serves_many_requests(client):
    """A connection is kept after a stream, an error and an answer in one piece."""
    connection = client.connect()
    bodies = [
        {"model": client.model, "messages": HELLO, "options": {"num_predict": 2}},
        {"model": "other", "messages": HELLO},
        {"model": client.model, "messages": HELLO, "stream": False, "options": {"num_predict": 2}},
    ]
    seen = []
    for body in bodies:
        connection.request("POST", "/api/chat", json.dumps(body))
        response = connection.getresponse()
        response.read()
        seen.append((response.status, connection.sock is not None))
    connection.close()
    assert seen == [(200, True), (404, True), (200, True)]


def test_an_http_1_0_client_reads_to_the_end_of_the_connection(client):
    """An old client gets plain lines and a closed connection."""
    body = json.dumps({"model": client.model, "messages": HELLO, "options": {"num_predict": 2}}).encode()
    with socket.create_connection((client.host, client.port), timeout=30) as sock:
        sock.sendall(b"POST /api/chat HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        reply = b"".join(iter(lambda: sock.recv(65536), b""))
    lines = reply.partition(b"\r\n\r\n")[2].splitlines()
    assert json.loads(lines[-1])["done"] is True


def test_four_answers_at_once_are_all_whole(client):
    """Parallel requests each get their own whole answer; more of them take turns."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: client.chat(f"Count to {n}.", options={"num_predict": 10}), range(8)))
    assert all(lines[-1]["done"] and lines[-1]["eval_count"] <= 10 for lines in answers)


def leave_after(client, lines, **body):
    """Start a stream, read some lines and close the connection."""
    connection = client.connect()
    connection.request("POST", "/api/generate", json.dumps({"model": client.model} | body))
    if lines:
        response = connection.getresponse()
        for _ in range(lines):
            assert response.readline()
        response.close()
    connection.close()


@pytest.mark.parametrize(
    ("lines", "body"),
    [(2, {"prompt": "Tell a story.", "options": {"num_predict": 4000}}),
     (0, {"prompt": "word " * 3500, "raw": True, "options": {"num_predict": 4000}})],
)  # fmt: skip
def test_leaving_frees_the_slot(client, until, lines, body):
    """Clients that go while text or the prompt is worked on, or while queued, leave the engine free soon."""
    client.post("/api/chat", keep_alive="10m")
    for number in range(6):  # four in the slots, two queued
        leave_after(client, lines if number < 4 else 0, **body)
    until(lambda: is_free(client), seconds=4)


def is_free(client):
    """Tell whether nobody uses the engine: an unload then takes effect at once."""
    client.post("/api/chat", keep_alive=0)
    return client.get("/api/ps") == {"models": []}


def test_the_official_client_works(client):
    """ollama-python streams, chats, generates, lists, shows and sees errors."""
    official = ollama.Client(host=f"http://{client.host}:{client.port}")
    parts = list(official.chat(client.model, HELLO, stream=True, options={"num_predict": 4}))
    assert parts[-1].done_reason == "length"
    assert official.chat(client.model, HELLO, options={"num_predict": 4}).message.content
    assert official.generate(client.model, "hi", options={"num_predict": 4}).response
    assert official.list().models[0].model == client.model
    assert official.ps().models[0].context_length == 4096
    assert official.show(client.model).capabilities == ["completion", "tools"]
    with pytest.raises(ollama.ResponseError, match="model 'other' not found"):
        official.chat("other", HELLO)
    with pytest.raises(ollama.ResponseError, match="does not support thinking"):
        official.chat(client.model, HELLO, think=True)
    official._client.close()


def test_early_failures_have_a_status(client):
    """A stream that fails before its first token is an HTTP error, not a line of a 200."""
    connection = http.client.HTTPConnection(client.host, client.port, timeout=30)
    body = {"model": client.model, "prompt": "word " * 5000, "raw": True, "stream": True}
    connection.request("POST", "/api/generate", json.dumps(body))
    assert connection.getresponse().status == 400
    connection.close()
