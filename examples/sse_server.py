"""A web page that asks, over server-sent events.

    pip install fastapi uvicorn
    python examples/sse_server.py --port 8000

Open http://127.0.0.1:8000 then. /chat?prompt=… is an answer: an event for each token, "server_failed" for a server that
failed while another goes on, and last "end" or "failed". The model's server stops generating when the page stops
reading: by its button, by its next question, or because it is closed.
"""

from __future__ import annotations

import argparse

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse

from aicortex import achat
from aicortex.web import sse_failure, sse_response

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
  const names = ["start", "token", "server_failed", "meta", "end", "failed"];
  let end = () => {};  // ends the answer that is coming, if there is one

  function add(parent, tag, kind, text = "") {
    const element = Object.assign(document.createElement(tag), {className: kind, textContent: text});
    return parent.appendChild(element);
  }

  function ask(text) {
    end("cut", "Not the whole answer: stopped.");
    const article = add(log, "article", "live");
    add(article, "h2", "", text);
    const answer = add(article, "div", "answer"), status = add(article, "p", "status", "…");
    Object.assign(answer, {ariaLive: "polite", ariaBusy: "true"});  // is read aloud when it is whole
    const source = new EventSource(`/chat?prompt=${encodeURIComponent(text)}`);
    stop.disabled = false;
    end = (kind, text) => {
      source.close();  // else it would come back by itself, and ask again
      article.className = kind;
      answer.ariaBusy = "false";
      status.textContent = text;
      stop.disabled = true;
      end = () => {};
    };
    for (const name of names) source.addEventListener(name, ({data}) => show(JSON.parse(data), answer, status));
    source.onerror = () => end("cut", "Not the whole answer: the connection broke.");
    scrollTo(0, document.body.scrollHeight);
  }

  function show({type, content, meta}, answer, status) {
    const follows = innerHeight + scrollY > document.body.scrollHeight - 80;
    if (type === "token") answer.append(content);
    else if (type === "error") {
      status.before(add(log, "p", "note", `⚠ ${content}` + (meta.will_retry ? ". Another server goes on." : "")));
    } else if (type === "end") {
      const speed = meta.timings.tokens_per_second;
      end("whole", `${meta.model} at ${meta.server}` + (speed ? `, ${speed.toFixed(0)} tokens/s` : ""));
    } else if (type === "failed") end("cut", `Not the whole answer: ${content}`);
    else if (meta?.server) {
      status.textContent = `${meta.kind === "loading" ? "the model is being loaded at" : "at"} ${meta.server} …`;
    }
    if (follows) scrollTo(0, document.body.scrollHeight);
  }

  form.onsubmit = event => { event.preventDefault(); ask(prompt.value); prompt.value = ""; };
  stop.onclick = () => { end("cut", "Not the whole answer: stopped."); prompt.focus(); };
  onkeydown = ({key}) => { if (key === "Escape") stop.click(); };
</script>
"""

app = FastAPI()
app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])  # no other name leads here


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    """Return the page."""
    return PAGE


@app.get("/chat")
async def answer(request: Request, prompt: str) -> Response:
    """Answer a question as server-sent events."""
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return Response(status_code=403)  # any page in a browser could ask, and use up the model
    try:
        stream = await achat(prompt, stream=True)
    except (RuntimeError, ValueError) as error:  # nothing could be asked: no server has a model, the prompt is empty
        return sse_failure(error)
    return sse_response(stream, last_event_id=request.headers.get("last-event-id"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a web page that asks, on this machine only.")
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, timeout_graceful_shutdown=1)
