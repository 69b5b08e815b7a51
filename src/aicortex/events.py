"""The one thing a stream is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from dataclasses import Field


class _Fields:
    """What `dataclasses` wants to know of StreamEvent, made when it asks: importing that module takes 9 ms of the 20
    that `from aicortex import chat` needs in all, and a program that only streams never uses it."""

    def __get__(self, event: object, owner: type) -> dict[str, Field[Any]]:  # Any: whatever the fields hold
        from dataclasses import fields, make_dataclass

        names = [(name, Any, None) for name in owner.__slots__[1:]]  # type: ignore[attr-defined]
        twin = make_dataclass(owner.__name__, [("type", str), *names])
        return {field.name: field for field in fields(twin)}


class StreamEvent:
    """One event of a stream, as the user guide tables them: a dataclass, written out.

    `type` is `start`, `token`, `end`, `error`, `tool_call`, `tool_result` or `meta`. `content` is the text of a
    token, the message of an error, the delta of a thinking `meta` event, `""` on `start` and `end`. `index` counts
    the tokens of the whole stream from 0 and is None on other events. `timestamp` is Unix seconds and never goes
    back within a stream. Any: tools and models bring JSON of their own making.
    """

    __slots__ = (  # noqa: RUF023 - the guide's order
        "type",
        "content",
        "index",
        "tool_name",
        "tool_args",
        "tool_result",
        "meta",
        "timestamp",
    )
    __match_args__ = ("type", "content", "index", "tool_name", "tool_args", "tool_result", "meta", "timestamp")
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]] = _Fields()  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]  # events can be changed, as those of any plain dataclass

    def __init__(
        self,
        type: str,
        content: str | None = None,
        index: int | None = None,
        tool_name: str | None = None,
        tool_args: dict[str, Any] | None = None,
        tool_result: Any = None,
        meta: dict[str, Any] | None = None,
        timestamp: float | None = None,
    ) -> None:
        self.type = type
        self.content = content
        self.index = index
        self.tool_name = tool_name
        self.tool_args = tool_args
        self.tool_result = tool_result
        self.meta = meta
        self.timestamp = timestamp

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StreamEvent):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __repr__(self) -> str:
        return f"StreamEvent({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the eight fields as a plain dictionary; what they hold is copied too."""
        from copy import deepcopy

        return {name: deepcopy(getattr(self, name)) for name in self.__slots__}

    def to_json(self) -> str:
        """Return the event as one line of JSON; a tool result that JSON cannot express appears as its `repr`."""
        import msgspec

        fields = {name: getattr(self, name) for name in self.__slots__}
        return msgspec.json.encode(fields, enc_hook=repr).decode()
