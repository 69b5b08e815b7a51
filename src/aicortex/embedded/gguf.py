"""What the head of a GGUF file says about a model, without loading it.

Layout: magic, version, counts, then key/value pairs, then tensor descriptions (the GGUF specification,
versions 2 and 3).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_CONTROL_TOKEN = 3  # a token that steers the model and never stands for text

# general.file_type, as llama.cpp numbers it.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """The head of one GGUF file.

    `metadata` holds every key except the tokenizer's long arrays; `control_tokens` the texts that the
    tokenizer turns into control tokens; `parameter_count` the number of weights.
    """

    metadata: dict[str, Any]  # Any: numbers, strings, booleans and lists of them
    control_tokens: tuple[str, ...]
    parameter_count: int

    @property
    def architecture(self) -> str:
        """Return the family name, such as `llama`."""
        return str(self.metadata.get("general.architecture", "unknown"))

    @property
    def context_length(self) -> int:
        """Return the context the model was trained for, in tokens; 0 when the file does not say."""
        return int(self.metadata.get(f"{self.architecture}.context_length", 0))

    @property
    def quantization(self) -> str:
        """Return the name of the weights' format, such as `Q4_1`."""
        return _FILE_TYPES.get(self.metadata.get("general.file_type", -1), "unknown")

    @property
    def parameter_size(self) -> str:
        """Return the number of weights as Ollama writes it, such as `134.52M`."""
        for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
            if self.parameter_count >= unit:
                return f"{self.parameter_count / unit:.2f}{letter}"
        return str(self.parameter_count)


def is_gguf(path: Path) -> bool:
    """Tell whether the file begins as a GGUF file does. Raise OSError when it cannot be read."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> Header:
    """Read the head of the file at `path`.

    Raise ValueError when it is no GGUF file or is cut short, OSError when it cannot be read.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Reader(data).header()
        except (struct.error, KeyError) as exc:
            raise ValueError(f"{path} is a damaged GGUF file") from exc


class _Reader:
    """Walks the bytes of one file from the front."""

    def __init__(self, data: mmap.mmap):
        self._data = data
        self._at = 0

    def header(self) -> Header:
        if self._take(4) != MAGIC:
            raise ValueError("not a GGUF file")
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version} is not supported")
        tensors, pairs = self._scalar("<Q"), self._scalar("<Q")
        metadata = {}
        for _ in range(pairs):
            key = self._string()
            metadata[key] = self._value(self._scalar("<I"))
        tokens = metadata.pop("tokenizer.ggml.tokens", [])
        kinds = metadata.pop("tokenizer.ggml.token_type", [])
        for key in ("tokenizer.ggml.merges", "tokenizer.ggml.scores"):
            metadata.pop(key, None)
        control = tuple(token for token, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL_TOKEN)
        return Header(metadata, control, sum(self._tensor_size() for _ in range(tensors)))

    def _tensor_size(self) -> int:
        self._string()
        size = 1
        for _ in range(self._scalar("<I")):
            size *= self._scalar("<Q")
        self._take(4 + 8)  # its number format and where its data begin
        return size

    def _value(self, kind: int) -> Any:  # Any: whatever the file holds
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        item, count = self._scalar("<I"), self._scalar("<Q")
        if item == _STRING:
            return [self._string() for _ in range(count)]
        layout = _SCALARS[item]
        return list(struct.unpack(f"<{count}{layout[1]}", self._take(count * struct.calcsize(layout))))

    def _string(self) -> str:
        return self._take(self._scalar("<Q")).decode(errors="replace")

    def _scalar(self, layout: str) -> Any:  # Any: the layout decides
        (value,) = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return value

    def _take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) < count:
            raise struct.error("cut short")
        self._at += count
        return piece
