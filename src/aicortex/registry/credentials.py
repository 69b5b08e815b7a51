"""References to secrets, how an entry is checked, and the `Server` that an entry stands for.

    env:VARIABLE           the environment variable
    keyring:SERVICE/USER   the system's keyring, by way of the optional `keyring` package

Only references are kept, shown and exported. A text that is no reference may be the secret itself, so no error here
repeats one.
"""

from __future__ import annotations

import os
import re
from math import isfinite
from typing import Any

import msgspec

from aicortex._core.server import EMBEDDED, Server, parse_address
from aicortex.errors import CredentialError
from aicortex.registry.entries import ServerEntry

ENVIRONMENT, KEYRING = "env:", "keyring:"
REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|keyring:[^\s/](?:[^\n\r]*[^\s/])?/[^\s/]+")
HOW_TO_REFER = "a secret is named, not stored: write env:VARIABLE or keyring:SERVICE/USER"
NOT_STORED = (
    "credentials are not stored: put them in a variable and name it with --api-key env:NAME or "
    "--header 'Authorization=env:NAME'"
)
LARGEST = 1_000_000  # priorities and slots; nobody means more, and the file's integers end somewhere


def check_reference(text: str) -> None:
    """Raise ValueError, which never repeats the text, unless it is `env:VARIABLE` or `keyring:SERVICE/USER`."""
    if not isinstance(text, str) or not REFERENCE.fullmatch(text) or not text.isprintable():
        raise ValueError(HOW_TO_REFER)


def entry_of(url: str, **fields: Any) -> ServerEntry:  # Any: the fields of ServerEntry, which are checked here
    """Return a server's entry, its address in any spelling turned into the label of `Server`, every field checked.

    Relative paths of `ca_file` and `client_cert` are taken from the working directory and made absolute. Raises
    ValueError that begins with the field's name and never repeats what might be a secret; TypeError for an unknown
    field.
    """
    return checked(ServerEntry(url, **fields))


def checked(entry: ServerEntry) -> ServerEntry:
    """Return an entry as `entry_of` makes it; raises ValueError as that does."""
    try:
        msgspec.convert(msgspec.to_builtins(entry), ServerEntry)
    except msgspec.ValidationError as error:
        raise ValueError(type_complaint(error)) from None
    _check_words(entry)
    _check_numbers(entry)
    _check_references(entry)
    return msgspec.structs.replace(
        entry,
        url=label_of(entry.url),
        weight=float(entry.weight),
        ca_file=_absolute(entry.ca_file),
        client_cert=_absolute(entry.client_cert),
    )


def type_complaint(error: msgspec.ValidationError) -> str:
    """Return msgspec's complaint with the field first: "weight: Expected `float`, got `str`"."""
    words, separator, place = str(error).partition(" - at `")
    field = place.rstrip("`").removeprefix("$").lstrip(".")
    return f"{field}: {words}" if separator and field else words


def label_of(url: str) -> str:
    """Return the one spelling of a server's address; raises ValueError for what is none and for one with user info."""
    if not url.strip():
        raise ValueError("url is empty: write host, host:port or http(s)://host:port/path")
    if parse_address(url)[1]:
        raise ValueError(f"url: {NOT_STORED}")
    return Server(url).label


def server_of(entry: ServerEntry) -> Server:
    """Return the `Server` of an entry, with its secrets as they are now.

    They are read from the environment or the keyring each time (a keyring may take many milliseconds, and may ask
    its user to unlock it). Raises CredentialError that names the variable or keyring entry that is missing.
    """
    key = _secret(entry, "api_key", entry.api_key) if entry.api_key else None
    headers = {name: _secret(entry, f"header {name}", value) for name, value in entry.headers.items()}
    try:
        return Server(
            entry.url,
            api_key=key,
            headers=headers,
            verify=entry.verify,
            ca_file=entry.ca_file,
            client_cert=entry.client_cert,
        )
    except ValueError as error:  # a secret with characters that no header may have
        raise CredentialError(f"server {entry.title}: {error}") from None


def _check_words(entry: ServerEntry) -> None:
    name = entry.name
    if name and (name == EMBEDDED or not all(character.isalnum() or character in "-_" for character in name)):
        raise ValueError(f"name must be letters, digits, - and _ (so that no address looks like it), not {name!r}")
    for field in ("location", "organization", "ca_file", "client_cert"):
        if not (getattr(entry, field) or "").isprintable():
            raise ValueError(f"{field} has characters that cannot be shown")
    for key, value in entry.labels.items():
        if not key or not (key + value).isprintable():
            raise ValueError(f"labels: {key!r} is empty or has characters that cannot be shown")


def _check_numbers(entry: ServerEntry) -> None:
    if not isfinite(entry.weight) or entry.weight <= 0:
        raise ValueError(f"weight must be more than 0, not {entry.weight}")
    if not 1 <= entry.slots <= LARGEST:
        raise ValueError(f"slots must be from 1 to {LARGEST}, not {entry.slots}")
    if abs(entry.priority) > LARGEST:
        raise ValueError(f"priority must be from {-LARGEST} to {LARGEST}, not {entry.priority}")


def _check_references(entry: ServerEntry) -> None:
    for name, text in {"api_key": entry.api_key or f"{ENVIRONMENT}NONE", **entry.headers}.items():
        try:
            check_reference(text)
        except ValueError as error:
            where = "api_key" if name == "api_key" else f"headers: {name}"
            raise ValueError(f"{where}: {error}") from None
    if entry.api_key and any(name.lower() == "authorization" for name in entry.headers):
        raise ValueError("api_key is sent as the header Authorization: give one of the two")
    try:
        Server("", headers=dict.fromkeys(entry.headers, ""))
    except ValueError as error:
        raise ValueError(f"headers: {error}") from None


def _absolute(path: str | None) -> str | None:
    return os.path.abspath(os.path.expanduser(path)) if path else None


def _secret(entry: ServerEntry, what: str, reference: str) -> str:
    """Return what a reference of an entry stands for; raises CredentialError where it stands for nothing."""
    check_reference(reference)
    where = f"server {entry.title} ({what})"
    if reference.startswith(ENVIRONMENT):
        variable = reference.removeprefix(ENVIRONMENT)
        value = os.environ.get(variable)
        if not value:
            raise CredentialError(f"{where}: the variable {variable} is not set: set it, or change the entry")
        return value
    service, _, user = reference.removeprefix(KEYRING).rpartition("/")
    value = _from_keyring(where, service, user)
    if not value:
        advice = f"run 'keyring set {service} {user}', or change the entry"
        raise CredentialError(f"{where}: the keyring has no entry {service}/{user}: {advice}")
    return value


def _from_keyring(where: str, service: str, user: str) -> str | None:
    try:
        import keyring
    except ImportError:
        words = f"{where}: the keyring package is not installed: run pip install 'aicortex[keyring]'"
        raise CredentialError(words) from None
    try:
        return keyring.get_password(service, user)
    except Exception as error:  # backends are plug-ins and raise what they like; their words may hold anything
        words = f"the keyring cannot be read for {service}/{user} ({type(error).__name__})"
        raise CredentialError(f"{where}: {words}: unlock it, or use env:VARIABLE") from None
