"""A window to chat in: the answer appears as it comes, and can be cancelled.

    python examples/tkinter_chat.py

Debian's Python needs the package python3-tk. The window never waits for a server: a thread reads the stream and puts
what it finds into a queue, which the window empties 30 times a second. Only the main thread touches Tk.
"""

from __future__ import annotations

import threading
import tkinter as tk
from queue import Empty, SimpleQueue
from tkinter import scrolledtext, ttk

from aicortex import StreamCancelledError, chat

LOOK_AGAIN_MS = 33


class Reader(threading.Thread):
    """Reads one answer in the background.

    `news` gets pairs of a kind and a text: "token" and "error" as often as they come, and last "end", "cancelled" or
    "failed".
    """

    def __init__(self, messages: list[dict[str, str]]) -> None:
        super().__init__(daemon=True)
        self.news: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._messages = messages
        self._cancelled = threading.Event()
        self._cancel_stream = self._cancelled.set

    def run(self) -> None:
        """Read to the end, whatever it is."""
        try:
            with chat(messages=self._messages, stream=True) as stream:
                self._cancel_stream = stream.cancel
                if self._cancelled.is_set():  # before there was a stream
                    stream.cancel()
                for event in stream:
                    if event.type in ("token", "error"):
                        self.news.put((event.type, event.content or ""))
                result = stream.result
            speed = f"{result.timings['tokens_per_second']:.0f} tokens/s"
            self.news.put(("end", f"{result.model} at {result.server}, {speed}"))
        except StreamCancelledError:
            self.news.put(("cancelled", "cancelled"))
        except (RuntimeError, ValueError) as error:  # the fleet's fault; the question's
            self.news.put(("failed", str(error)))

    def cancel(self) -> None:
        """Stop the answer, on the server too."""
        self._cancelled.set()
        self._cancel_stream()


class ChatWindow:
    """The conversation above, the prompt and its buttons below, and a line that says how it goes."""

    def __init__(self, root: tk.Tk) -> None:
        self.root = root
        self.messages: list[dict[str, str]] = []  # the turns that are whole
        self.reader: Reader | None = None
        self.status = tk.StringVar(root, "Ask something.")
        self.conversation = scrolledtext.ScrolledText(root, wrap=tk.WORD, state=tk.DISABLED, font="TkTextFont", padx=6)
        self.conversation.tag_configure("user", foreground="#1a5fb4", spacing1=8, spacing3=4)
        self.conversation.tag_configure("note", foreground="#a51d2d")
        self.prompt = ttk.Entry(root)
        self.send_button = ttk.Button(root, text="Send", command=self.send)
        self.cancel_button = ttk.Button(root, text="Cancel", command=self.cancel, state=tk.DISABLED)
        self._lay_out()

    def _lay_out(self) -> None:
        root = self.root
        root.title("AI Cortex")
        root.geometry("640x480")
        root.columnconfigure(0, weight=1)
        root.rowconfigure(0, weight=1)
        self.conversation.grid(row=0, columnspan=3, sticky="nsew", padx=8, pady=8)
        self.prompt.grid(row=1, column=0, sticky="ew", padx=8)
        self.send_button.grid(row=1, column=1)
        self.cancel_button.grid(row=1, column=2, padx=8)
        ttk.Label(root, textvariable=self.status).grid(row=2, columnspan=3, sticky="w", padx=8, pady=8)
        self.prompt.bind("<Return>", lambda _: self.send())
        self.prompt.bind("<Escape>", lambda _: self.cancel())
        root.protocol("WM_DELETE_WINDOW", self.close)
        self.prompt.focus_set()

    def send(self) -> None:
        """Ask what stands in the entry, unless an answer is still coming."""
        question = self.prompt.get().strip()
        if self.reader is not None or not question:
            return
        self.prompt.delete(0, tk.END)
        self.show(f"{question}\n", "user")
        self.status.set("…")
        self.send_button["state"], self.cancel_button["state"] = tk.DISABLED, tk.NORMAL
        asked = {"role": "user", "content": question}
        self.reader = Reader([*self.messages, asked])
        self.reader.start()
        self.root.after(LOOK_AGAIN_MS, self._take_news, self.reader, asked, "")

    def cancel(self) -> None:
        """Stop the answer that is coming."""
        if self.reader is not None:
            self.reader.cancel()

    def close(self) -> None:
        """Stop everything and close the window."""
        self.cancel()
        self.root.destroy()

    def show(self, text: str, tag: str = "") -> None:
        """Append a text to the conversation and scroll to it."""
        self.conversation["state"] = tk.NORMAL
        self.conversation.insert(tk.END, text, tag)
        self.conversation["state"] = tk.DISABLED
        self.conversation.see(tk.END)

    def _take_news(self, reader: Reader, asked: dict[str, str], answer: str) -> None:
        """Show what has come since the last look, and look again later unless that was all."""
        while True:
            try:
                kind, text = reader.news.get_nowait()
            except Empty:
                self.root.after(LOOK_AGAIN_MS, self._take_news, reader, asked, answer)
                return
            if kind == "token":
                answer += text
                self.show(text)
            elif kind == "error":
                self.show(f"[{text}]\n", "note")
            else:
                self._finish(kind, text, asked, answer)
                return

    def _finish(self, kind: str, text: str, asked: dict[str, str], answer: str) -> None:
        """Keep the turn if it is whole: the model must not see half an answer as its own."""
        if kind == "end":
            self.messages += [asked, {"role": "assistant", "content": answer}]
        self.show("\n")
        self.status.set(text)
        self.send_button["state"], self.cancel_button["state"] = tk.NORMAL, tk.DISABLED
        self.reader = None


if __name__ == "__main__":
    window = ChatWindow(tk.Tk())
    window.root.mainloop()
