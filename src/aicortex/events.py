"""The one thing a stream is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class StreamEvent:
    """One event of a stream, as the user guide tables them.

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
    meta: dict[str, Any] | None = None  # Any: JSON values
    timestamp: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the eight fields as a plain dictionary."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the event as one line of JSON; a tool result that JSON cannot express appears as its `repr`."""
        import msgspec

        return msgspec.json.encode(self, enc_hook=repr).decode()
