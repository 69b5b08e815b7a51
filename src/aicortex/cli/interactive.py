"""A conversation on a terminal: questions, answers, and commands that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aicortex
from aicortex.catalogue import models
from aicortex.cli.asking import Manner, ask
from aicortex.cli.sessions import length_words, paragraph
from aicortex.cli.terminal import fitted, note, report
from aicortex.errors import AICortexError, AllServersFailedError
from aicortex.fleet import find_fleet, find_servers
from aicortex.planning import plan
from aicortex.session import Session

PROMPT = ">>> "
CONTINUED = "... "
HELP = """\
/model [NAME]  ask another model from now on; without a name, list them
/reset         forget the conversation; /clear does the same
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
    if manner.session is not None:
        print(fitted(length_words(conversation.session)))
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
    """The session, stored if it has a name, and the model that answers."""

    def __init__(self, manner: Manner) -> None:
        """Choose the model; raises ModelNotFoundError or AllServersFailedError."""
        self._manner = manner
        self.session = Session(manner.session)
        self._unread: str | None = None  # a line which a command read that was not meant for it
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/model": self._model,
            "/reset": self._reset,
            "/clear": self._reset,
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
        """Ask a question; it is remembered with its answer, and what was stopped or failed leaves no trace."""
        try:
            ask(question, self._manner, self.session)
        except KeyboardInterrupt:
            note("stopped: the conversation goes on without this question")

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

    def _reset(self, _: str) -> None:
        self.session.reset()
        print("The conversation is forgotten.")

    def _save(self, name: str) -> None:
        if not name:
            raise ValueError("say where to: /save FILE")
        messages = self._messages()
        if not messages:
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
            file.write(self._as_json(messages) if path.suffix == ".json" else self._as_markdown(messages))
        print(f"Saved to {path}.")

    def _messages(self) -> list[dict[str, Any]]:  # Any: JSON
        """Return what was said, with the system's words in front; nothing where nothing was."""
        history, system = self.session.history, self.session.system
        return [{"role": "system", "content": system}, *history] if history and system else history

    def _as_json(self, messages: list[dict[str, Any]]) -> str:  # Any: as above
        import json

        return json.dumps({"model": self.model, "messages": messages}, ensure_ascii=False, indent=2) + "\n"

    def _as_markdown(self, messages: list[dict[str, Any]]) -> str:  # Any: as above
        return "\n\n".join([f"# A conversation with {self.model}", *map(paragraph, messages)]) + "\n"
