"""The registry's file when several use it at once, and when one of them is killed or forks."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from tests.registry.observing import BEGUN, ROOT, after_it, before_it, integrity, run

from aicortex._core.health import Health
from aicortex.registry.credentials import entry_of
from aicortex.registry.entries import Snapshot
from aicortex.registry.store import Registry


def test_threads_take_turns(registry: Registry) -> None:
    """One registry serves many threads, and loses nothing."""
    failed: list[Exception] = []

    def work(name: str) -> None:
        try:
            registry.add(entry_of(name))
            for at in range(20):
                registry.write_health({(f"http://{name}:11434", str(at)): Health(failures=at)})
                assert registry.read_health()
        except Exception as error:  # whoever waits for the thread raises it
            failed.append(error)

    threads = [threading.Thread(target=work, args=(f"box{index}",)) for index in range(8)]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that they meet in the middle of everything
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    assert failed == []
    assert len(registry.snapshot().servers) == 8
    assert len(registry.read_health()) == 160


KILLS = """
import itertools, shutil, sqlite3

opened = sqlite3.connect
def apply_and_die(path, last):
    count = itertools.count(1)
    def trace(_):
        if next(count) == last:
            os.kill(os.getpid(), signal.SIGKILL)
    def connect(*arguments, **options):
        connection = opened(*arguments, **options)
        connection.set_trace_callback(trace)
        return connection
    sqlite3.connect = connect
    Registry(path).apply(after_it())

base, killed = os.path.dirname(registry.path), True
for last in itertools.count(1):
    path = f'{base}-{last}/registry.db'
    if os.path.exists(base):
        shutil.copytree(base, os.path.dirname(path))
    child = os.fork()
    if not child:
        signal.alarm(20)
        apply_and_die(path, last)
        os._exit(0)
    end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(path, end)
    if end != -signal.SIGKILL:
        break
"""


@pytest.mark.parametrize("is_first", [False, True])
def test_a_process_killed_in_the_middle_of_apply(is_first: bool, registry: Registry) -> None:
    """Killed before any of its statements, the first write of all or not, it leaves the state before; later the new."""
    if not is_first:
        registry.apply(before_it())
    old = registry.snapshot()
    registry.close()
    *killed, (last, end) = [line.rsplit(" ", 1) for line in run(KILLS, registry.path).splitlines()]
    assert len(killed) > 12
    assert {end for _, end in killed} == {str(-signal.SIGKILL)}
    for path, _ in killed:
        with Registry(path) as left:
            assert left.snapshot() == old
            left.apply(after_it())
            new = left.snapshot()
        assert integrity(path) == "ok"
    assert end == "0"
    with Registry(last) as left:
        assert left.snapshot() == new
        assert new != old


WRITER = """
own = sys.argv[2]
sys.stdin.readline()
for at in range(1, 101):
    names = [f'{own}{index}:1' for index in range(at % 5 + 1)]
    registry.apply([observation(url, float(at), *names) for url in ('http://both:1', f'http://{own}:1', f'http://{own}:2')])
"""


def _is_whole(known: Snapshot, own: str) -> bool:
    """Whether what one writer wrote in one transaction was read together."""
    one, two = f"http://{own}:1", f"http://{own}:2"
    if one not in known.conditions:
        return two not in known.conditions
    at = known.conditions[one].checked_at
    names = [f"{own}{index}:1" for index in range(int(at) % 5 + 1)]
    return all(
        known.conditions[url].checked_at == at
        and [model.name for model in known.models[url]] == names
        and all(known.measurements[url, name].at == at for name in names)
        for url in (one, two)
    )


def test_two_processes_write_at_once(registry: Registry) -> None:
    """Both go through, one after the other, and a reader meanwhile sees only whole states."""
    command = [sys.executable, "-c", BEGUN + WRITER, registry.path]
    writers = [subprocess.Popen([*command, own], stdin=subprocess.PIPE, text=True, cwd=ROOT) for own in "xy"]
    for writer in writers:
        assert writer.stdin is not None  # asked for in the line above
        writer.stdin.write("go\n")
        writer.stdin.close()
    seen = set()
    while any(writer.poll() is None for writer in writers):
        known = registry.snapshot()
        assert _is_whole(known, "x")
        assert _is_whole(known, "y")
        both = {model.name[0] for model in known.models.get("http://both:1", ())}
        assert len(both) <= 1
        seen.add(tuple(condition.checked_at for condition in known.conditions.values()))
    assert [writer.wait() for writer in writers] == [0, 0]
    known = registry.snapshot()
    assert [known.conditions[f"http://{own}:2"].checked_at for own in "xy"] == [100.0, 100.0]
    assert len(seen) > 5
    assert integrity(registry.path) == "ok"


CROWD = """
barrier, release = os.pipe()
children = []
for index in range(8):
    child = os.fork()
    if not child:
        signal.alarm(20)  # no child outlives a test that goes wrong
        os.close(release)
        os.read(barrier, 1)
        registry.add(entry_of(f'box{index}'))
        os._exit(0)
    children.append(child)
os.close(release)
print([os.waitpid(child, 0)[1] for child in children], len(registry.snapshot().servers))
"""


def test_many_processes_create_the_file_at_once(path: str) -> None:
    """Each adds its server to the one file, whoever made it."""
    assert run(CROWD, path) == f"{[0] * 8} 8\n"
    assert integrity(path) == "ok"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


FORKS = """
import threading, warnings
signal.alarm(30)
warnings.simplefilter('ignore', DeprecationWarning)  # of forks beside threads, which is what is tried here
registry.add(entry_of('desk'))
stopped = threading.Event()
def write():
    while not stopped.is_set():
        registry.write_health({('thread', ''): Health(failures=1)})
thread = threading.Thread(target=write)
thread.start()
children = []
for index in range(10):
    child = os.fork()
    if not child:
        signal.alarm(10)  # a lock that nobody will release is waited for without end
        inherited = [name for name in map(os.path.realpath, map('/proc/self/fd/{}'.format, os.listdir('/proc/self/fd')))
                     if name.startswith(registry.path)] if os.path.isdir('/proc/self/fd') else []
        registry.write_health({(f'child{index}', ''): Health(failures=index)})
        assert len(registry.snapshot().servers) == 1
        os._exit(len(inherited))
    registry.write_health({(f'parent{index}', ''): Health(failures=index)})
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children])
stopped.set()
thread.join()
print(len(registry.read_health()))
"""


def test_a_fork_shares_no_connection(path: str) -> None:
    """Parent and children go on with the registry, though a thread was writing when they parted."""
    assert run(FORKS, path) == f"{[0] * 10}\n21\n"
    assert integrity(path) == "ok"
