"""A window to chat in: the answer appears as it comes, and can be cancelled.

    python examples/tkinter_chat.py

Debian's Python needs the package python3-tk. The window never waits for a server: `stream_to_tk` asks and reads in a
thread, and touches the window only from the window's own.
"""

from __future__ import annotations

import tkinter as tk
from tkinter import scrolledtext, ttk

from aicortex import Result, StreamCancelledError, StreamEvent, chat
from aicortex.desktop import TextFeed, stream_to_tk


class ChatWindow:
    """The conversation above, the prompt and its buttons below, and a line that says how it goes."""

    def __init__(self, root: tk.Tk) -> None:
        self.root = root
        self.messages: list[dict[str, str]] = []  # the turns that are whole
        self.feed: TextFeed | None = None  # the answer that is coming
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
        self.prompt.focus_set()

    def send(self) -> None:
        """Ask what stands in the entry, unless an answer is still coming."""
        question = self.prompt.get().strip()
        if self.feed is not None or not question:
            return
        self.prompt.delete(0, tk.END)
        self.show(f"{question}\n", "user")
        self.status.set("…")
        self.send_button["state"], self.cancel_button["state"] = tk.DISABLED, tk.NORMAL
        turns = [*self.messages, {"role": "user", "content": question}]
        self.feed = stream_to_tk(
            lambda: chat(messages=turns, stream=True),
            self.conversation,
            on_event=self.follow,
            on_end=lambda outcome: self.finish(turns, outcome),
        )

    def cancel(self) -> None:
        """Stop the answer that is coming, on the server too."""
        if self.feed is not None:
            self.feed.cancel()

    def show(self, text: str, tag: str = "") -> None:
        """Append a text to the conversation and scroll to it."""
        self.conversation["state"] = tk.NORMAL
        self.conversation.insert(tk.END, text, tag)
        self.conversation["state"] = tk.DISABLED
        self.conversation.see(tk.END)

    def follow(self, event: StreamEvent) -> None:
        """Say what happens besides the text."""
        meta = event.meta or {}
        if event.type == "error":
            self.status.set(f"{event.content} …")
        elif meta.get("kind") == "connected":
            self.status.set(f"{meta['server']} …")

    def finish(self, turns: list[dict[str, str]], outcome: Result | Exception) -> None:
        """Keep the turn if it is whole: the model must not see half an answer as its own."""
        if isinstance(outcome, Result):
            self.messages = [*turns, {"role": "assistant", "content": outcome.text}]
            speed = f"{outcome.timings['tokens_per_second']:.0f} tokens/s"
            self.status.set(f"{outcome.model} at {outcome.server}, {speed}")
        else:
            self.status.set("cancelled" if isinstance(outcome, StreamCancelledError) else str(outcome))
        self.show("\n")
        self.send_button["state"], self.cancel_button["state"] = tk.NORMAL, tk.DISABLED
        self.feed = None


if __name__ == "__main__":
    window = ChatWindow(tk.Tk())
    window.root.mainloop()
