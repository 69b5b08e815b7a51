"""A web page to chat with, over a WebSocket.

    pip install fastapi uvicorn websockets
    python examples/websocket_server.py --port 8000

Open http://127.0.0.1:8000 then. On /ws/chat every text message is a prompt that goes on with the conversation, and
stops the answer before it; an empty one only stops. The events of each answer come back as JSON, last "end" or
"failed". The model's server stops generating when an answer is stopped and when the page is closed.
"""

from __future__ import annotations

import argparse
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse

from aicortex import achat
from aicortex.web import failed_event, stream_to_websocket

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>AI Cortex</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --line: light-dark(#d5d5da, #45454d); --soft: light-dark(#66666e, #a5a5ae);
          --live: light-dark(#2a62c9, #86b0ff); --bad: light-dark(#b3261e, #ff9a90) }
  body { font: 1.05rem/1.55 system-ui, sans-serif; max-width: 44rem; min-height: 100dvh; margin: auto; padding: 0 1rem;
         display: flex; flex-direction: column; overflow-wrap: anywhere }
  main { flex: 1; padding: 1rem 0 }
  article { margin-bottom: 1.75rem }
  h2 { font-size: 1em; font-weight: 500; margin: 0 0 .7rem auto; padding: .5rem .9rem; border-radius: 1rem;
       width: fit-content; max-width: 80%; background: light-dark(#e9effa, #25304a) }
  .answer { white-space: pre-wrap; padding-left: .9rem; border-left: 3px solid var(--line) }
  .live .answer { border-color: var(--live) }
  .live .answer::after { content: "▍"; color: var(--live) }
  .cut .answer { border: 3px dashed var(--bad); border-width: 0 0 3px 3px; padding-bottom: .3rem }
  .note, .status { font-size: .85em; margin: .4rem 0 0; color: var(--soft) }
  .note, .cut .status { color: var(--bad) }
  form { position: sticky; bottom: 0; display: flex; gap: .5rem; padding: .75rem 0; background: Canvas;
         border-top: 1px solid var(--line) }
  input, button { font: inherit; padding: .5rem .8rem; border: 1px solid var(--line); border-radius: .6rem }
  input { flex: 1; min-width: 0 }
</style>
<main id="log"></main>
<form id="form">
  <input id="prompt" placeholder="Ask something" aria-label="Prompt" autocomplete="off" autofocus required>
  <button>Ask</button>
  <button type="button" id="stop" title="Escape" disabled>Stop</button>
</form>
<script>
  const [log, form, prompt, stop] = ["log", "form", "prompt", "stop"].map(id => document.getElementById(id));
  const turns = [];  // those that are not over: each gets one "end" or "failed", in the order of the prompts
  let socket;

  function add(parent, tag, kind, text = "") {
    const element = Object.assign(document.createElement(tag), {className: kind, textContent: text});
    return parent.appendChild(element);
  }

  function send(text) {
    if (!socket) {
      socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/ws/chat");
      socket.onmessage = ({data}) => show(JSON.parse(data));
      socket.onclose = () => {
        socket = undefined;
        while (turns.length) end("cut", "Not the whole answer.");
        add(log, "p", "note", "⚠ The connection broke: the next prompt begins a new conversation.");
      };
    }
    if (socket.readyState) socket.send(text);
    else socket.addEventListener("open", ({target}) => target.send(text));
  }

  function begin(text) {
    const article = add(log, "article", "live");
    add(article, "h2", "", text);
    const answer = add(article, "div", "answer");
    Object.assign(answer, {ariaLive: "polite", ariaBusy: "true"});  // is read aloud when it is whole
    turns.push({article, answer, status: add(article, "p", "status", "…")});
    stop.disabled = false;
    scrollTo(0, document.body.scrollHeight);
    send(text);
  }

  function end(kind, text) {
    const {article, answer, status} = turns.shift();
    article.className = kind;
    answer.ariaBusy = "false";
    status.textContent = text;
    stop.disabled = !turns.length;
  }

  function show({type, content, meta}) {
    const {answer, status} = turns[0];
    const follows = innerHeight + scrollY > document.body.scrollHeight - 80;
    if (type === "token") answer.append(content);
    else if (type === "error") {
      status.before(add(log, "p", "note", `⚠ ${content}` + (meta.will_retry ? ". Another server goes on." : "")));
    } else if (type === "end") {
      const speed = meta.timings.tokens_per_second;
      end("whole", `${meta.model} at ${meta.server}` + (speed ? `, ${speed.toFixed(0)} tokens/s` : ""));
    } else if (type === "failed") {
      const isStopped = meta.error === "StreamCancelledError";
      end("cut", `Not the whole answer: ${isStopped ? "stopped." : content}`);
    } else if (meta?.server) {
      status.textContent = `${meta.kind === "loading" ? "the model is being loaded at" : "at"} ${meta.server} …`;
    }
    if (follows) scrollTo(0, document.body.scrollHeight);
  }

  form.onsubmit = event => { event.preventDefault(); begin(prompt.value); prompt.value = ""; };
  stop.onclick = () => { send(""); prompt.focus(); };
  onkeydown = ({key}) => { if (key === "Escape") stop.click(); };
</script>
"""

app = FastAPI()
app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])  # no other name leads here


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    """Return the page."""
    return PAGE


@app.websocket("/ws/chat")
async def converse(websocket: WebSocket) -> None:
    """Answer each message until the client leaves."""
    if not is_same_origin(websocket):
        await websocket.close(code=1008)
        return
    await websocket.accept()
    turns: list[dict[str, str]] = []
    prompt: str | None = None
    try:
        while True:
            prompt = await answer(websocket, prompt, turns) if prompt else await websocket.receive_text()
    except WebSocketDisconnect:
        return
    except KeyError:  # Starlette's word for a message that is no text
        await websocket.close(code=1003)


def is_same_origin(websocket: WebSocket) -> bool:
    """Tell whether the page that connects is ours: any page in a browser could, and use up the model."""
    origin = websocket.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == websocket.headers.get("host")


async def answer(websocket: WebSocket, prompt: str, turns: list[dict[str, str]]) -> str | None:
    """Send one answer; return the message that stopped it, if one did."""
    try:
        stream = await achat(prompt, messages=turns, stream=True)
    except (RuntimeError, ValueError) as error:  # nothing could be asked: no server has a model, the prompt is empty
        await websocket.send_text(failed_event(error).to_json())
        return None
    message = await stream_to_websocket(stream, websocket)
    if stream.events[-1].type == "end":  # half an answer must not look to the model like its own words
        turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": stream.text_so_far}]
    return message


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a web page to chat with, on this machine only.")
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port)
