"""Which of the user's servers a name or an address on the command line means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aicortex._core.server import EMBEDDED
from aicortex.errors import AICortexError
from aicortex.fleet import Fleet, find_fleet, registered

if TYPE_CHECKING:
    from aicortex.registry.entries import ServerEntry


def entry_named(title: str) -> ServerEntry:
    """Return the entry of this name or address, in any spelling; raises ValueError with those that look like it."""
    from aicortex.registry.credentials import label_of

    entries = registered()
    try:
        label = label_of(title)
    except ValueError:
        label = ""
    found = [entry for entry in entries if entry.name == title] or [entry for entry in entries if entry.url == label]
    if title and found:
        return found[0]
    raise ValueError(_unknown(title, entries))


def own_entry(title: str, advice: str) -> ServerEntry:
    """Return the entry of this name or address in the registry.

    Raises ValueError when it is unknown, and when a file names it, with what to do there.
    """
    entry = entry_named(title)
    if entry.source:
        raise ValueError(f"the server {entry.title} stands in {entry.source}: {advice} there")
    return entry


def fleet_of(titles: Sequence[str]) -> Fleet:
    """Return these servers, or all in use when none is named.

    An address need not be registered; raises ValueError for a mere word that is no registered name, with those that
    look like it, and whatever `find_fleet` raises.
    """
    for title in titles:
        if is_word(title):
            entry_named(title)
    return find_fleet(list(titles) or None)


def is_word(title: str) -> bool:
    """Whether this is a mere word: the name of a server perhaps, but no address without doubt."""
    return title != EMBEDDED and not any(sign in title for sign in ".:/")


def may_be_name(title: str) -> bool:
    """Whether a server is called so, or might be, because what is registered cannot be read."""
    try:
        return is_word(title) and any(entry.name == title for entry in registered())
    except (AICortexError, ValueError):
        return True


def way_to_set(url: str, options: str) -> str:
    """Return how the server of this URL is given these options: by which command, or in which file."""
    try:
        found = next((entry for entry in registered() if entry.url == url), None)
    except (AICortexError, ValueError):
        found = None
    if found is not None and found.source:
        return f"the same in {found.source}, instead of {options}"
    command = f"set {found.title}" if found is not None else f"add {url}"
    return f"'aicortex servers {command} {options}'"


def names_by_url() -> dict[str, str]:
    """Return the names of the registered servers that have one, by URL."""
    return {entry.url: entry.name for entry in registered() if entry.name}


def _unknown(title: str, entries: Sequence[ServerEntry]) -> str:
    from difflib import get_close_matches

    shown = title.rpartition("@")[2]  # without what may be a password
    keys = {key: entry.title for entry in entries for key in (entry.url.partition("://")[2], entry.name)}
    sought = shown.partition("://")[2] or shown  # what begins with http:// would be like every other
    cutoff = 0.6 if any(map(str.isalpha, sought)) else 0.85  # numbers are soon alike
    close = [keys[key] for key in get_close_matches(sought, filter(None, keys), n=3, cutoff=cutoff)]
    if close:
        return f"there is no server {shown!r}; did you mean {' or '.join(dict.fromkeys(close))}?"
    known = f"there are {', '.join(entry.title for entry in entries)}" if entries else "none is registered"
    return f"there is no server {shown!r}; {known}"
