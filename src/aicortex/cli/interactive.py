"""A conversation on a terminal: questions, answers, and commands that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import aicortex
from aicortex.catalogue import models
from aicortex.cli.asking import Manner, ask
from aicortex.cli.terminal import fitted, note, report
from aicortex.errors import AICortexError, AllServersFailedError
from aicortex.fleet import find_fleet, find_servers
from aicortex.planning import plan

PROMPT = ">>> "
CONTINUED = "... "
HELP = """\
/model [NAME]  ask another model from now on; without a name, list them
/clear         forget the conversation
/save FILE     write the conversation as Markdown, or as JSON into FILE.json
/help          show this
/quit          leave, as Ctrl-D does
A line that ends with \\ goes on in the next one. Ctrl-C stops an answer."""


def converse(manner: Manner) -> int:
    """Talk until the user leaves, and return 0; raises what `chat` raises when there is no model to talk with."""
    with suppress(ImportError):  # Windows has none; there the console itself edits lines
        import readline  # noqa: F401 - importing it gives input() its arrow keys and its history

    conversation = Conversation(manner)
    words = f"aicortex {aicortex.__version__}: {conversation.model}. /help shows the commands, Ctrl-D leaves."
    print(fitted(words))
    while True:
        try:
            question = read_question(conversation.take_unread())
            if question.startswith("/"):
                if not conversation.command(question):
                    return 0
            elif question.strip():
                conversation.ask(question)
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):  # pressed twice
                print()
                note("Ctrl-D or /quit leaves")
        except (AICortexError, ValueError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            report(error)


def read_question(first: str | None = None) -> str:
    """Read a line from the terminal, unless its `first` one is known, and those after it while they end with a \\."""
    lines = [input(PROMPT) if first is None else first]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input(CONTINUED))
    return "\n".join(lines)


class Conversation:
    """The messages so far, and the model that answers."""

    def __init__(self, manner: Manner) -> None:
        """Choose the model; raises ModelNotFoundError or AllServersFailedError."""
        self._manner = manner
        self._messages: list[dict[str, str]] = []
        self._unread: str | None = None  # a line which a command read that was not meant for it
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/model": self._model,
            "/clear": self._clear,
            "/save": self._save,
        }
        self._choose(manner.model)

    @property
    def model(self) -> str:
        """The name of the model that answers."""
        return str(self._manner.model)

    def take_unread(self) -> str | None:
        """Return a line that was typed or pasted where a command asked something, and was no answer to that; once."""
        line, self._unread = self._unread, None
        return line

    def ask(self, question: str) -> None:
        """Ask a question and remember it with its answer; what was stopped or failed leaves no trace."""
        try:
            result = ask(question, self._manner, history=self._messages)
        except KeyboardInterrupt:
            note("stopped: the conversation goes on without this question")
            return
        self._messages += [{"role": "user", "content": question}, {"role": "assistant", "content": result.text}]

    def command(self, line: str) -> bool:
        """Carry out a command and return whether the conversation goes on."""
        name, _, argument = line.strip().partition(" ")
        if name == "/quit":
            return False
        known = self._commands.get(name)
        if known is None:
            note(f"{name} is no command; /help lists them (a question may begin with a space and a slash)")
        else:
            known(argument.strip())
        return True

    def _help(self, _: str) -> None:
        print(HELP)

    def _model(self, name: str) -> None:
        if name:
            self._choose(name)
            print(f"{self.model} answers from now on.")
            return
        for known in models(servers=find_servers(self._manner.servers)):
            print("*" if known == self.model else " ", known)

    def _choose(self, model: str | None) -> None:
        route = plan(model, find_fleet(self._manner.servers))
        if not route.model:
            failed = zip(route.servers, route.failures, strict=True)
            reasons = "; ".join(f"{server.label}: {failure.message}" for server, failure in failed)
            raise AllServersFailedError(f"All servers failed: {reasons}")
        self._manner = replace(self._manner, model=route.model)

    def _clear(self, _: str) -> None:
        self._messages.clear()
        print("The conversation is forgotten.")

    def _save(self, name: str) -> None:
        if not name:
            raise ValueError("say where to: /save FILE")
        if not self._messages:
            raise ValueError("there is nothing to save yet")
        path = Path(name).expanduser()
        mode = "x"
        if path.exists():
            answer = input(f"{path} exists. Overwrite it? [y/N] ")
            if answer.strip().lower() not in ("y", "yes"):
                print("Nothing was written.")
                if answer.strip().lower() not in ("", "n", "no"):
                    self._unread = answer  # the next line of what was pasted
                return
            mode = "w"
        with path.open(mode, encoding="utf-8", newline="\n") as file:
            file.write(self._as_json() if path.suffix == ".json" else self._as_markdown())
        print(f"Saved to {path}.")

    def _all_messages(self) -> list[dict[str, str]]:
        system = self._manner.system
        return [*([{"role": "system", "content": system}] if system else []), *self._messages]

    def _as_json(self) -> str:
        import json

        return json.dumps({"model": self.model, "messages": self._all_messages()}, ensure_ascii=False, indent=2) + "\n"

    def _as_markdown(self) -> str:
        parts = [f"# A conversation with {self.model}"]
        for message in self._all_messages():
            parts += [f"## {message['role'].capitalize()}", message["content"].strip()]
        return "\n\n".join(parts) + "\n"
