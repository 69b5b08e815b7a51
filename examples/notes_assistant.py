"""Talk with a model that may look into a folder of notes, and write one when you allow it.

    python examples/notes_assistant.py ~/notes
    python examples/notes_assistant.py ~/notes --name garden

With --name the conversation is kept, and goes on where it was. Ctrl-C stops an answer, Ctrl-D ends the program.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aicortex import AICortexError, Session, Stream, ToolCall


class Notes:
    """A folder of text files, as tools of a model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def list_notes(self) -> list[str]:
        """List the names of all notes."""
        return sorted(path.stem for path in self._folder.glob("*.txt"))

    def read_note(self, name: str) -> str:
        """Read one note.

        Args:
            name: The name of the note, as list_notes gives it.
        """
        return self._path(name).read_text("utf-8")

    def write_note(self, name: str, text: str) -> str:
        """Write a new note, or replace one.

        Args:
            name: A short name, without a folder.
            text: The whole text of the note.
        """
        self._path(name).write_text(text, "utf-8")
        return "written"

    def _path(self, name: str) -> Path:
        path = self._folder / f"{name}.txt"
        if path.parent != self._folder or not name:
            raise ValueError("the name of a note has no folder in it")  # the model is told, and may try another
        return path


def allow(call: ToolCall) -> bool:
    """Let the model read what it likes, and ask before it writes."""
    if call.name != "write_note":
        return True
    said = input(f"\nwrite the note {call.args.get('name')!r}? [y/N] ")
    return said.strip().lower() in ("y", "yes")


def show(stream: Stream) -> None:
    """Print an answer as it comes, and what the model does for it; raises AICortexError."""
    for event in stream:
        if event.type == "token":
            print(event.content, end="", flush=True)
        elif event.type == "tool_call":
            print(f"[{event.tool_name}]", flush=True)
        elif event.type == "tool_result" and event.meta and event.meta["kind"] != "ok":
            print(f"[{event.meta['kind']}: {event.tool_result}]", flush=True)
    print()


def talk(session: Session) -> None:
    """Read questions until the end of the input, and answer them."""
    while True:
        try:
            question = input("> ")
        except EOFError:
            print()
            return
        if not question.strip():
            continue
        try:
            with session.chat(question, stream=True) as stream:
                show(stream)
        except KeyboardInterrupt:
            print()
        except AICortexError as error:
            print(f"\n{error}", file=sys.stderr)


def main() -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description="Talk with a model about a folder of notes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", help="keep the conversation under this name")
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder")
    notes = Notes(options.folder)
    tools = [notes.list_notes, notes.read_note, notes.write_note]
    try:
        talk(Session(options.name, tools=tools, on_tool_call=allow))
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
