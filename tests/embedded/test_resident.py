"""The model in memory."""

import math
from threading import Event

import pytest

from aicortex.embedded.api import ApiError
from aicortex.embedded.resident import KEEP_ALIVE, Resident
from aicortex.errors import EmbeddedEngineError


class Engines:
    """Stands where the engines come from; counts them."""

    def __init__(self):
        self.loaded = 0
        self.closed = Event()

    def load(self):
        self.loaded += 1
        self.closed.clear()
        return self

    def close(self):
        assert not self.closed.is_set()
        self.closed.set()


def test_it_loads_once_and_stays():
    """The first user loads, the next finds it loaded, and it stays for the default time."""
    engines = Engines()
    resident = Resident(engines.load)
    assert resident.expires_in() is None
    for _ in range(2):
        with resident.engine(None):
            pass
    assert engines.loaded == 1
    assert 0 < resident.expires_in() <= KEEP_ALIVE


def test_zero_frees_when_the_last_user_leaves():
    """keep_alive 0 frees at once, but not under another user."""
    engines = Engines()
    resident = Resident(engines.load)
    with resident.engine(0):
        with resident.engine(0):
            pass
        assert not engines.closed.is_set()
    assert engines.closed.is_set()
    assert resident.expires_in() is None


def test_it_is_freed_after_its_time_and_loaded_again():
    """An unused engine is freed when its keep_alive has passed; the next user loads another."""
    engines = Engines()
    resident = Resident(engines.load)
    with resident.engine(0.05):
        pass
    assert engines.closed.wait(10)
    with resident.engine(math.inf):
        pass
    assert engines.loaded == 2
    assert resident.expires_in() == math.inf


def test_unloading_spares_those_who_use_it():
    """An unload frees an unused engine at once and a used one not."""
    engines = Engines()
    resident = Resident(engines.load)
    resident.unload()
    with resident.engine(math.inf):
        resident.unload()
        assert not engines.closed.is_set()
    resident.unload()
    assert engines.closed.is_set()


def test_a_failed_load_is_an_error_reply():
    """What keeps the engine from loading is told to the client, and the next request tries again."""

    def fail():
        raise EmbeddedEngineError("no memory")

    resident = Resident(fail)
    for _ in range(2):
        with pytest.raises(ApiError, match="no memory"), resident.engine(None):
            pass
