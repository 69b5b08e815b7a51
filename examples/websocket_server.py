"""A web page to chat with, over a WebSocket.

    pip install fastapi uvicorn websockets
    python examples/websocket_server.py --port 8000

Open http://127.0.0.1:8000 then. On /ws/chat every text message is a prompt. The replies are JSON objects:
{"type": "token", "content": …} for each token, "error" for a server that failed, and last "end", or "failed" with the
reason. A new prompt stops the answer before it, and so does leaving; the server stops generating then.
"""

from __future__ import annotations

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse

from aicortex import chat

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>AI Cortex</title>
<link rel="icon" href="data:,">
<style>
  body { font: 1.1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem }
  form { display: flex; gap: .5rem }
  input { flex: 1; font: inherit; padding: .3rem }
  button { font: inherit }
  #answer { white-space: pre-wrap; margin-top: 1rem }
  #notes { color: #a33 }
</style>
<form id="form">
  <input id="prompt" placeholder="Ask something" aria-label="Prompt" autofocus required>
  <button>Ask</button>
  <button type="button" id="stop" disabled>Stop</button>
</form>
<div id="answer" aria-live="polite"></div>
<div id="notes" role="status"></div>
<script>
  const [form, prompt, stop, answer, notes] =
    ["form", "prompt", "stop", "answer", "notes"].map(id => document.getElementById(id));
  let socket;

  function connect(onopen) {
    const mine = socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/ws/chat");
    socket.onopen = onopen;
    socket.onmessage = ({data}) => {
      const {type, content} = JSON.parse(data);
      if (mine !== socket) return;
      if (type === "token") answer.textContent += content;
      else notes.textContent = content;
      if (type === "end" || type === "failed") stop.disabled = true;
    };
    socket.onclose = () => { if (mine === socket) { socket = undefined; stop.disabled = true; } };
  }

  form.onsubmit = event => {
    event.preventDefault();
    const ask = () => socket.send(prompt.value);
    answer.textContent = notes.textContent = "";
    stop.disabled = false;
    stop.onclick = () => socket?.close();  // the server stops generating when its client leaves
    socket?.close();
    connect(ask);
  };
</script>
"""

app = FastAPI()
readers = ThreadPoolExecutor(max_workers=64)  # a stream that waits for a token holds one; the event loop stays free


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
    answer: asyncio.Task[None] | None = None
    try:
        async for prompt in websocket.iter_text():
            await stop(answer)
            answer = asyncio.create_task(send_answer(websocket, prompt))
    finally:
        await stop(answer)


def is_same_origin(websocket: WebSocket) -> bool:
    """Tell whether the page that connects is ours: any page in a browser could, and use up the model."""
    origin = websocket.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == websocket.headers.get("host")


async def stop(answer: asyncio.Task[None] | None) -> None:
    """Stop sending an answer, and generating it."""
    if answer is not None:
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)


async def send_answer(websocket: WebSocket, prompt: str) -> None:
    """Send the events of one answer as they come; a cancelled task cancels the stream."""
    loop = asyncio.get_running_loop()
    try:
        with await loop.run_in_executor(readers, partial(chat, prompt, stream=True)) as stream:
            events = iter(stream)
            while (event := await loop.run_in_executor(readers, next, events, None)) is not None:
                if event.type in ("token", "error", "end"):
                    await websocket.send_json({"type": event.type, "content": event.content})
    except WebSocketDisconnect:
        return
    except (RuntimeError, ValueError) as error:  # the fleet's fault; the prompt's
        await websocket.send_json({"type": "failed", "content": str(error)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a web page to chat with, on this machine only.")
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port)
