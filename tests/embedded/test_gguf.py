"""The head of a GGUF file."""

import struct

import pytest

from aicortex.embedded.gguf import is_gguf, read_header


def text(value):
    """Encode a string as the format does."""
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key, kind, value):
    """Encode one key and its value."""
    return text(key) + struct.pack("<I", kind) + value


def gguf_file(folder, version=3):
    """Write a small file: four tokens, one of them for control, and one tensor of 3 x 500."""
    tokens = struct.pack("<IQ", 8, 4) + b"".join(map(text, ("a", "<|end|>", "b", "c")))
    kinds = struct.pack("<IQ4i", 5, 4, 1, 3, 1, 4)
    pairs = [
        pair("general.architecture", 8, text("tiny")),
        pair("tiny.context_length", 4, struct.pack("<I", 2048)),
        pair("general.file_type", 4, struct.pack("<I", 15)),
        pair("tiny.flag", 7, b"\x01"),
        pair("tokenizer.ggml.tokens", 9, tokens),
        pair("tokenizer.ggml.token_type", 9, kinds),
    ]
    tensor = text("t") + struct.pack("<IQQIQ", 2, 3, 500, 0, 0)
    path = folder / "tiny.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 1, len(pairs)) + b"".join(pairs) + tensor)
    return path


def test_the_head_is_read(tmp_path):
    """Name, context, format, control tokens and size come out of the file."""
    header = read_header(gguf_file(tmp_path))
    assert (header.architecture, header.context_length, header.quantization) == ("tiny", 2048, "Q4_K_M")
    assert header.control_tokens == ("<|end|>",)
    assert (header.parameter_count, header.parameter_size) == (1500, "1.50K")
    assert header.metadata["tiny.flag"] is True
    assert "tokenizer.ggml.tokens" not in header.metadata


def test_the_real_weights_are_read(weights_path):
    """The demonstration model is what the documentation says."""
    header = read_header(weights_path)
    assert (header.parameter_size, header.quantization, header.context_length) == ("134.52M", "Q4_1", 8192)
    assert "<|im_end|>" in header.control_tokens


def test_a_file_cut_anywhere_is_an_error(tmp_path):
    """No cut makes a shorter file pass for a whole one."""
    path = gguf_file(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"GGUF|empty"):
            read_header(path)


def test_other_files_are_told_apart(tmp_path):
    """Another magic or version is refused."""
    other = tmp_path / "other"
    other.write_bytes(b"PK\x03\x04")
    assert not is_gguf(other)
    assert is_gguf(gguf_file(tmp_path))
    with pytest.raises(ValueError, match="version 9"):
        read_header(gguf_file(tmp_path, version=9))
