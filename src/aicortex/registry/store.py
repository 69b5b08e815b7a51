"""The registry's file: one SQLite database that all processes of a user share.

`tables` says what is in it. Every write is one transaction and every reading another, in SQLite's write-ahead log: a
reader sees a whole state and waits for nobody, a process that is killed leaves the state before or the one after.
"""

from __future__ import annotations

import atexit
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

import msgspec

from aicortex._core.health import Health
from aicortex._core.server import Server
from aicortex.errors import RegistryError
from aicortex.registry import tables
from aicortex.registry.credentials import checked
from aicortex.registry.entries import Condition, Measurement, Observation, ServerEntry, Snapshot
from aicortex.registry.paths import DATA_VARIABLE, data_path

BUSY_SECONDS = 5.0  # how long a write waits for another process's
KEPT_MEASUREMENTS = 20  # of each model of each address
STRANGER_SECONDS = 30 * 86400.0  # after which an unnamed address is forgotten: names that stand for many change theirs
CLOCK_SECONDS = 60.0  # what was written later than that from now was written by a clock that went wrong
HEALTH_SECONDS = 7 * 86400.0  # after which health that nobody wrote again says nothing any more
WRITABLE = f"make the file and its folder writable, or name another folder in {DATA_VARIABLE}"
DAMAGED = "move the file away, and add the servers again"
ADVICE = (
    ("locked", "another process keeps it busy: try again"),
    ("readonly", WRITABLE),
    ("unable to open", WRITABLE),
    ("disk is full", "make room on the disk"),
    ("", DAMAGED),  # or no registry at all
)


class Registry:
    """What is known of the user's servers, in the file at `path` (by default `data_path()`).

    `patience` is how many seconds a write waits for another process's to end.

    The first write creates the file, for this user alone; reading where there is none finds nothing. One Registry may
    be used by several threads, one after the other, and on both sides of a fork. It opens the file when needed and
    keeps it open until `close`, the end of a `with` block or of the process; a call after that opens it again. Every
    method raises RegistryError, which names the file, when that cannot be read or written or is of a newer version.
    No finaliser may call one: it may run in the middle of another, in the same thread.
    """

    def __init__(self, path: str | None = None, *, patience: float = BUSY_SECONDS) -> None:
        self.path = os.path.abspath(path or data_path())
        self._patience = patience
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file = (0, 0)  # which file is open: it may be replaced by another of this name
        self._openings = 0
        _registries.add(self)

    def __repr__(self) -> str:
        return f"Registry({self.path!r})"

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, entry: ServerEntry) -> None:
        """Add a server, checked as by `entry_of`; raises ValueError, also when its address or name is taken."""
        entry = checked(entry)
        with self.writing() as connection:
            _check_free(entry, _entries(connection))
            connection.execute(tables.insert("servers", tables.SERVER), tables.cells_of(entry, tables.SERVER))

    def change(self, title: str, **fields: Any) -> ServerEntry:  # Any: the fields of ServerEntry, checked here
        """Change fields of the server of this name or address, in any spelling, and return its new entry.

        Raises ValueError for a wrong field and, with close matches, for an unknown server; TypeError for an unknown
        field. The address cannot be changed: what is known of a server is known of its address.
        """
        if "url" in fields:
            raise ValueError("url cannot be changed: remove the server and add the new one")
        with self.writing() as connection:
            entries = _entries(connection)
            before = _named(title, entries)
            entry = checked(msgspec.structs.replace(before, **fields))
            _check_free(entry, [other for other in entries if other is not before])
            connection.execute(tables.CHANGE, (*tables.cells_of(entry, tables.SERVER), entry.url))
        return msgspec.structs.replace(entry, source="")

    def remove(self, title: str) -> ServerEntry:
        """Remove the server of this name or address, with everything known of it, and return the entry it had.

        Raises ValueError, with close matches, for an unknown server.
        """
        with self.writing() as connection:
            entry = _named(title, _entries(connection))
            _forget_address(connection, entry.url)
            connection.execute("DELETE FROM servers WHERE url = ?", (entry.url,))
        return entry

    def snapshot(self) -> Snapshot:
        """Return everything that is known, health aside, as of one moment."""
        servers, conditions, models, measurements = self._read(*tables.EVERYTHING)
        with understood(self.path):
            return Snapshot(
                tuple(map(checked, tables.servers_of(servers))),
                {row[0]: Condition(*row) for row in conditions},
                tables.models_of(models),
                {(row[0], row[1]): Measurement(*row) for row in measurements},
            )

    def apply(self, observations: Iterable[Observation]) -> None:
        """Write what a refresh found, all or nothing.

        The models of an observation take the place of those known of its address; None leaves them. Of each model's
        measurements the newest 20 are kept. Addresses that are no server of this registry are forgotten 30 days after
        they were last checked.
        """
        seen = list(observations)
        if not seen:
            return
        with self.writing() as connection:
            for observation in seen:
                _write(connection, observation)
            due = max(observation.condition.checked_at for observation in seen) - STRANGER_SECONDS
            for (url,) in connection.execute(tables.STRANGERS, (due,)).fetchall():
                _forget_address(connection, url)

    def forget(self, url: str, model: str) -> None:
        """Take a model off an address's list: the server there says that it does not have it."""
        if os.path.exists(self.path):
            with self.writing() as connection:
                connection.execute("DELETE FROM models WHERE url = ? AND name = ?", (url, model))

    def read_health(self) -> dict[tuple[str, str], Health]:
        """Return the health of each address and model that was written; the model is "" for the server itself."""
        (rows,) = self._read(tables.ALL_HEALTH)
        return {(row[0], row[1]): Health(*row[2:]) for row in rows}

    def write_health(self, rows: Mapping[tuple[str, str], Health]) -> None:
        """Write the health of these addresses and models where it is newer, and leave that of all others.

        What nobody has written for a week is dropped.
        """
        if not rows:
            return
        now = time.time()
        cells = [(*key, *tables.cells_of(health, tables.HEALTH), now) for key, health in rows.items()]
        with self.writing() as connection:
            connection.executemany(tables.WRITE_HEALTH, [(*row, now + CLOCK_SECONDS) for row in cells])
            connection.execute("DELETE FROM health WHERE written_at < ?", (now - HEALTH_SECONDS,))

    def version(self) -> int:
        """Return a number that changes whenever another connection has changed the file; 0 while there is none."""
        with self._lock, _explained(self.path):
            connection = self._opened()
            if connection is None:
                return 0
            (version,) = connection.execute("PRAGMA data_version").fetchone()  # says nothing about other openings
            return int(self._openings << 32 | version)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._let_go()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection | None]:
        """Open a transaction that sees one moment; None where there is no file, or nothing in it, yet."""
        with self._lock, _explained(self.path):
            connection = self._opened()
            if connection is None:
                yield None
                return
            with connection:
                connection.execute("BEGIN")
                yield connection if self._has_tables(connection) else None

    def _read(self, *queries: str) -> list[list[tables.Row]]:
        """Return what each query finds, as of one moment; nothing where there is no file yet."""
        with self.reading() as connection:
            return [connection.execute(query).fetchall() if connection else [] for query in queries]

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction that no other process writes beside, in a file that has the tables."""
        with self._lock, _explained(self.path):
            connection = self._opened() or self._created()
            if not os.path.getsize(self.path):
                with suppress(sqlite3.OperationalError):  # another process does this right now
                    connection.execute("PRAGMA journal_mode = WAL")
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                if not self._has_tables(connection):
                    for statement in tables.schema():
                        connection.execute(statement)
                yield connection

    def _has_tables(self, connection: sqlite3.Connection) -> bool:
        """Whether the file has our tables: it has nothing at all until the first write is done."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > tables.SCHEMA_VERSION:
            words = f"is of version {version}, and this aicortex knows {tables.SCHEMA_VERSION}: upgrade aicortex"
            raise RegistryError(f"the registry {self.path} {words}, or name another folder in {DATA_VARIABLE}")
        if not version and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise RegistryError(f"{self.path} is another program's database: name another folder in {DATA_VARIABLE}")
        return bool(version)

    def _created(self) -> sqlite3.Connection:
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives the log the same permissions
        connection = self._opened()
        if connection is None:
            raise FileNotFoundError(f"{self.path} was removed at once")
        return connection

    def _opened(self) -> sqlite3.Connection | None:
        """Return a connection to the file that now has this name, if there is one."""
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            self._let_go()
            return None
        if self._connection is None or self._file != (found.st_dev, found.st_ino):
            self._let_go()
            self._connection = _connected(self.path, self._patience)
            self._file = (found.st_dev, found.st_ino)
            self._openings += 1
        return self._connection

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


_registries: WeakSet[Registry] = WeakSet()
_held: list[Registry] = []  # while this process forks


@atexit.register
def _close_all() -> None:
    for registry in list(_registries):
        registry.close()


def _before_fork() -> None:
    """Close every connection: SQLite's must not be in two processes, where even closing one does harm."""
    for registry in list(_registries):
        registry._lock.acquire()
        registry._let_go()
        _held.append(registry)


def _after_fork() -> None:
    while _held:
        _held.pop()._lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def _connected(path: str, patience: float) -> sqlite3.Connection:
    name, is_uri = path, False
    if not (os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK)):
        has_log = os.path.exists(f"{path}-wal")  # then somebody writes; else SQLite wants to make one before it reads
        quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")  # as SQLite wants it
        name, is_uri = f"file:{quoted}?mode=ro{'' if has_log else '&immutable=1'}", True
    connection = sqlite3.connect(name, timeout=patience, isolation_level=None, check_same_thread=False, uri=is_uri)
    try:
        connection.execute("PRAGMA synchronous = NORMAL")  # in write-ahead mode that is safe from kills
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn errors of SQLite and of the system into a RegistryError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        words = str(error)
        advice = next((advice for sign, advice in ADVICE if sign in words))
        raise RegistryError(f"the registry {path}: {words}; {advice}") from error
    except OSError as error:
        raise RegistryError(f"the registry {path}: {error.strerror or error}; {WRITABLE}") from error


@contextmanager
def understood(path: str) -> Iterator[None]:
    """Turn what is wrong with rows that this program cannot have written into a RegistryError."""
    try:
        yield
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise RegistryError(f"the registry {path} is damaged ({error}); {DAMAGED}") from error


def _entries(connection: sqlite3.Connection) -> tuple[ServerEntry, ...]:
    return tables.servers_of(connection.execute(tables.ALL_SERVERS).fetchall())


def _write(connection: sqlite3.Connection, observation: Observation) -> None:
    condition = observation.condition
    connection.execute(tables.insert("conditions", tables.CONDITION), tables.cells_of(condition, tables.CONDITION))
    if observation.models is not None:
        connection.execute("DELETE FROM models WHERE url = ?", (condition.url,))
        rows = [(condition.url, *tables.cells_of(model, tables.MODEL)) for model in observation.models]
        connection.executemany(tables.insert("models", ("url", *tables.MODEL)), rows)
    rows = [tables.cells_of(measurement, tables.MEASUREMENT) for measurement in observation.measurements]
    connection.executemany(tables.insert("measurements", tables.MEASUREMENT), rows)
    for url, model in {(measurement.url, measurement.model) for measurement in observation.measurements}:
        connection.execute(tables.TRIM, (url, model, url, model, KEPT_MEASUREMENTS - 1))


def _forget_address(connection: sqlite3.Connection, url: str) -> None:
    for table in tables.BY_URL:
        connection.execute(f"DELETE FROM {table} WHERE url = ?", (url,))


def _named(title: str, entries: Sequence[ServerEntry]) -> ServerEntry:
    """Return the entry of this name or address; raises ValueError with those that look like it."""
    try:
        label = Server(title).label if title.strip() else ""
    except ValueError:
        label = ""
    found = [entry for entry in entries if title == entry.name] or [entry for entry in entries if label == entry.url]
    if title and found:
        return found[0]
    from difflib import get_close_matches  # 10 ms to import

    keys: dict[str, str] = {}  # what a title may be like -> the title meant
    for entry in entries:
        address = entry.url.partition("://")[2]
        keys.update(dict.fromkeys((entry.name, entry.url, address, address.rpartition(":")[0]), entry.title))
    close = [keys[key] for key in get_close_matches(title, filter(None, keys), n=3)]
    known = f"there are {', '.join(entry.title for entry in entries)}" if entries else "none is registered"
    hint = f"did you mean {' or '.join(dict.fromkeys(close))}?" if close else known
    raise ValueError(f"no server {title.rpartition('@')[2]!r}; {hint}")  # without what may be a password


def _check_free(entry: ServerEntry, others: Iterable[ServerEntry]) -> None:
    for other in others:
        if other.url == entry.url:
            raise ValueError(f"the server {entry.url} is there already{f', as {other.name}' if other.name else ''}")
        if entry.name and other.name == entry.name:
            raise ValueError(f"the name {entry.name} is that of {other.url}: choose another")
