"""The one thing a stream is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

if TYPE_CHECKING:
    from dataclasses import Field


class _Fields:
    """What `dataclasses` wants to know of StreamEvent, made when it asks.

    Importing that module takes 9 ms of the 25 that `from aicortex import chat` needs, and a Struct is built in a
    third of the time of a dataclass with slots; whoever looks sees a dataclass all the same.
    """

    def __init__(self) -> None:
        self._known: dict[type, dict[str, Field[Any]]] = {}  # Any: as the fields

    def __get__(self, event: object, owner: type[msgspec.Struct]) -> dict[str, Field[Any]]:
        if owner not in self._known:
            from dataclasses import fields, make_dataclass

            optional = [(name, Any, None) for name in owner.__struct_fields__[1:]]
            twin = make_dataclass(owner.__name__, [("type", str), *optional])
            self._known[owner] = {field.name: field for field in fields(twin)}
        return self._known[owner]


class StreamEvent(msgspec.Struct, gc=False):  # a tenth of the time of a thousand streams would go into its collections
    """One event of a stream: the dataclass of the user guide.

    `type` is `start`, `token`, `end`, `error`, `tool_call`, `tool_result` or `meta`. `content` is the text of a
    token, the message of an error, the delta of a thinking `meta` event, `""` on `start` and `end`. `index` counts
    the tokens of the whole stream from 0 and is None on other events. `timestamp` is Unix seconds and never goes
    back within a stream.
    """

    type: str
    content: str | None = None
    index: int | None = None
    tool_name: str | None = None
    tool_args: dict[str, Any] | None = None  # Any: JSON of the model's making
    tool_result: Any = None  # Any: whatever the tool returned
    meta: dict[str, Any] | None = None  # Any: JSON
    timestamp: float | None = None
    __dataclass_fields__: ClassVar[dict[str, Any]] = _Fields()  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """Return the eight fields as a plain dictionary; what they hold is copied too."""
        from copy import deepcopy

        return deepcopy(msgspec.structs.asdict(self))

    def to_json(self) -> str:
        """Return the event as one line of JSON; a tool result that JSON cannot express appears as its `repr`."""
        try:
            return msgspec.json.encode(self, enc_hook=repr).decode()
        except (RecursionError, ValueError):  # it holds itself, or half of a character
            shown = repr(self.tool_result).encode("utf-8", "backslashreplace").decode()
            return msgspec.json.encode(msgspec.structs.replace(self, tool_result=shown)).decode()
