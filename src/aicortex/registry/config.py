"""The configuration in `aicortex.toml`: the project's and the user's, read when needed and checked once.

    model, routing, location, resume   what a call takes when it does not say
    [aliases]                          one name for different models: on each server the first that it has
    [[servers]]                        the fields of `ServerEntry`

Of settings and aliases that stand in several files the most specific file's count, and so of servers with one address.
A project's file, which comes with the project, may only name secrets that are meant for this: variables that begin with
AICORTEX_KEY_, and the keyring's service "aicortex".
Every `chat()` comes this way, so what only a file that is there needs is imported when one is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from aicortex.registry.entries import ServerEntry
from aicortex.registry.paths import CONFIG_NAME, CONFIG_VARIABLE, config_paths, is_users_own

SETTINGS = ("model", "routing", "location", "resume")
KEYS = (*SETTINGS, "aliases", "servers")
PROJECT_REFERENCES = ("env:AICORTEX_KEY_", "keyring:aicortex/")
FIELDS = tuple(name for name in ServerEntry.__struct_encode_fields__ if name != "source")
Stamp = tuple[str, int, int]  # a file's path, time of change in nanoseconds and size


class Config(msgspec.Struct, frozen=True):
    """What the configuration says; "" is where it says nothing.

    `servers` name their file as `source`. `aliases` map a name to models in order of preference: on each server the
    first of them that it has is meant. `location` is this machine's own.
    """

    servers: tuple[ServerEntry, ...] = ()
    aliases: dict[str, tuple[str, ...]] = {}
    model: str = ""
    routing: str = ""
    location: str = ""
    resume: str = ""


_remembered: tuple[tuple[Stamp, ...], Config] = ((), Config())


def read_config() -> Config:
    """Return what all configuration files say together; they are read again only when one of them has changed.

    Raises ValueError that names the file and the key, and a close match for an unknown key.
    """
    global _remembered
    stamps = tuple(map(_stamp, config_paths()))
    if stamps != _remembered[0]:
        _remembered = (stamps, _merged([_read(path) for path, _, _ in stamps]))
    return _remembered[1]


def parse(text: str, source: str, *, folder: str) -> Config:
    """Return what the text of one configuration says; relative paths in it are relative to the folder.

    `source` names it in errors, which are ValueErrors, and in the entries of its servers.
    """
    try:
        told = msgspec.toml.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"{source} is no TOML: {error}") from None
    try:
        _check_keys(told, KEYS)
        settings = {key: _setting(key, told[key]) for key in SETTINGS if key in told}
        return Config(_servers(told.get("servers", []), source, folder), _aliases(told.get("aliases", {})), **settings)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _stamp(path: str) -> Stamp:
    try:
        known = os.stat(path)
    except OSError as error:
        named = f" ({CONFIG_VARIABLE} names it)" if os.environ.get(CONFIG_VARIABLE) else ""
        raise ValueError(f"{path} cannot be read: {error.strerror}{named}") from None
    return path, known.st_mtime_ns, known.st_size


def read_text(path: str) -> str:
    """Return the text of a TOML file; raises ValueError that names it."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no TOML: it is not encoded as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _read(path: str) -> Config:
    config = parse(read_text(path), path, folder=os.path.dirname(path))
    if not is_users_own(path):
        _check_restraint(config)
    return config


def _check_restraint(config: Config) -> None:
    """Raise ValueError where a project's file wants a secret that is not meant for it.

    Whoever clones a project runs in its folder: its file must not send any variable of theirs to any address.
    """
    for entry in config.servers:
        for reference in filter(None, (entry.api_key, *entry.headers.values())):
            if not reference.startswith(PROJECT_REFERENCES):
                raise ValueError(
                    f"{entry.source}: server {entry.title}: a project's file may only name secrets that begin with "
                    f"{' or '.join(PROJECT_REFERENCES)}: rename it, or put the server into your own {CONFIG_NAME}"
                )


def _merged(configs: Iterable[Config]) -> Config:
    """Return what several files say together, the most specific first."""
    said: dict[str, str] = {}
    aliases: dict[str, tuple[str, ...]] = {}
    servers: dict[str, ServerEntry] = {}
    for config in configs:
        said = {key: said.get(key) or getattr(config, key) for key in SETTINGS}
        aliases = {**config.aliases, **aliases}
        names = {entry.name for entry in servers.values()}
        for entry in config.servers:
            own = msgspec.structs.replace(entry, name="") if entry.name in names else entry
            servers.setdefault(entry.url, own)
    return Config(tuple(servers.values()), aliases, **said)


def _check_keys(told: Mapping[str, object], known: tuple[str, ...]) -> None:
    for key in told:
        if key not in known:
            from difflib import get_close_matches  # 10 ms to import

            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it may have {', '.join(known)}"
            raise ValueError(f"unknown key {key!r}; {hint}")


def _setting(key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"{key} must be text that is not empty")
    if key == "routing":
        from aicortex._core.routing import STRATEGIES

        if value not in STRATEGIES:
            raise ValueError(f"routing must be one of {', '.join(STRATEGIES)}, not {value!r}")
    if key == "resume":
        from aicortex.request import check_resume

        check_resume(value)
    return value


def _aliases(told: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(told, dict):
        raise ValueError('aliases is a table: write [aliases] and under it chat = "llama3.2:3b"')
    aliases = {}
    for alias, models in told.items():
        names = [models] if isinstance(models, str) else models
        if not isinstance(names, list) or not names or not all(isinstance(n, str) and n.strip() for n in names):
            raise ValueError(f"aliases.{alias} must be a model's name, or a list of such in order of preference")
        aliases[alias] = tuple(names)
    return aliases


def _servers(told: object, source: str, folder: str) -> tuple[ServerEntry, ...]:
    if not isinstance(told, list) or not all(isinstance(item, dict) for item in told):
        raise ValueError("servers is a list of tables: write [[servers]] above each")
    entries: list[ServerEntry] = []
    for place, item in enumerate(told):
        try:
            entry = _entry(item, source, folder)
            taken = [other for other in entries if other.url == entry.url or (entry.name and other.name == entry.name)]
            if taken:
                raise ValueError(f"{'url' if taken[0].url == entry.url else 'name'} is that of another server above")
        except ValueError as error:
            raise ValueError(f"servers[{place}]: {error}") from None
        entries.append(entry)
    return tuple(entries)


def _entry(told: dict[str, Any], source: str, folder: str) -> ServerEntry:  # Any: TOML, checked here
    from aicortex.registry.credentials import checked, type_complaint

    _check_keys(told, FIELDS)
    try:
        entry = msgspec.convert(told, ServerEntry)
    except msgspec.ValidationError as error:
        raise ValueError(type_complaint(error)) from None
    paths = {field: _beside(folder, getattr(entry, field)) for field in ("ca_file", "client_cert")}
    return checked(msgspec.structs.replace(entry, source=source, **paths))


def _beside(folder: str, path: str | None) -> str | None:
    return os.path.join(folder, os.path.expanduser(path)) if path else None
