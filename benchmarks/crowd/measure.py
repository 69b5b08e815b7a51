"""One measurement of one client on one event loop, in the fresh process it runs in; prints one line of JSON."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from array import array
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.request import urlopen

from benchmarks.clients import FLOORS
from benchmarks.crowd.clients import OPEN, Ask
from benchmarks.crowd.script import RATE, Script, prompt_of
from benchmarks.measure import FLOOD_SECONDS, WARM_UP_MODEL

WARM_UP_CROWD = "crowd-8-50:latest"
ARRIVING = 20  # streams that begin at once: a thousand in one millisecond would show what opening them leaves behind
ARRIVAL_SECONDS = 0.01  # between them
OPEN_SECONDS = 1.0  # without another first token: the streams that have none yet do not run at once with the others
BEGIN_SECONDS = 60.0  # for the first token of all
END_SECONDS = 60.0  # for the end of all streams that run at once, beyond the time they should take


class Words:
    """Reads stream `number` of a crowd as text: when each token came, and whether it was the right one."""

    __slots__ = ("_next", "_slot", "_times", "_words", "right")

    def __init__(self, script: Script, number: int, times: array[float]) -> None:
        self._words = script.words
        self._next = number
        self._times = times
        self._slot = number * script.tokens
        self.right = True

    def take(self, text: str) -> None:
        """Note one token; one too many raises IndexError or spoils another stream, and is not `right`."""
        self._times[self._slot] = time.perf_counter()
        self._slot += 1
        if text != self._words[self._next]:
            self.right = False
        self._next += 1

    def is_whole(self, script: Script, number: int) -> bool:
        """Tell whether every token of the stream came, and nothing else."""
        return self.right and self._next == number + script.tokens


class Bytes:
    """Reads stream `number` of a crowd as bytes: when each token was whole, and how many bytes there were."""

    __slots__ = ("_ends", "_next", "_size", "_slot", "_times", "_until")

    def __init__(self, script: Script, number: int, times: array[float]) -> None:
        self._ends = script.ends
        self._next = number + 1
        self._until = number + script.tokens
        self._size = script.ends[number] - script.size_before(number, 0)  # counts as `ends` does
        self._times = times
        self._slot = number * script.tokens

    def take(self, data: bytes) -> None:
        """Note the tokens that are whole with these bytes."""
        self._size += len(data)
        while self._next <= self._until and self._ends[self._next] <= self._size:
            self._times[self._slot] = time.perf_counter()
            self._slot += 1
            self._next += 1

    def is_whole(self, script: Script, number: int) -> bool:
        """Tell whether as many bytes came as were sent."""
        return self._size == script.ends[number] - script.size_before(number, 0) + script.size_of(number)


@dataclass(frozen=True)
class Moment:
    """This process at one moment: `time.perf_counter()`, CPU seconds so far, resident memory in bytes."""

    time: float
    cpu: float
    memory: int

    @classmethod
    def now(cls) -> Moment:
        """Look at the clocks and at the memory."""
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return cls(time.perf_counter(), time.process_time(), pages * os.sysconf("SC_PAGESIZE"))


async def crowd(client: str, url: str, model: str) -> dict[str, Any]:  # Any: numbers, and the reasons
    """Read all streams of a crowd at once; return what they cost and what became of them."""
    script = Script(model)
    times = array("d", [0.0]) * (script.streams * script.tokens)
    reader = Bytes if client in FLOORS else Words
    async with OPEN[client](url) as ask:
        await warm_up(ask, reader)
        gc.collect()
        readers = [reader(script, number, times) for number in range(script.streams)]
        before = Moment.now()
        tasks = []
        for number in range(script.streams):
            tasks.append(asyncio.create_task(ask(model, prompt_of(number), readers[number].take)))
            if number % ARRIVING == ARRIVING - 1:
                await asyncio.sleep(ARRIVAL_SECONDS)
        begun, first = await opened(script, times)
        seconds = script.tokens / RATE
        await asyncio.sleep(first.time + seconds / 2 - time.perf_counter())
        middle = Moment.now()
        await asyncio.sleep(first.time + seconds * 0.9 - time.perf_counter())
        last = Moment.now()
        reasons = await outcomes(tasks, begun, seconds + END_SECONDS)
    whole = [
        reader.is_whole(script, number) and reason == "ended"
        for number, (reader, reason) in enumerate(zip(readers, reasons, strict=True))
    ]
    return {
        "whole": sum(whole),
        "lost": len(whole) - sum(whole),
        "reasons": dict(Counter(reason for reason, fine in zip(reasons, whole, strict=True) if not fine)),
        "begun": len(begun),
        "open_us": (first.cpu - before.cpu) / len(begun) * 1e6,
        **memory(times, len(begun), before=before, first=first, middle=middle),
        **pace(times, url, model, first, last),
    }


async def warm_up(ask: Ask, reader: type[Words] | type[Bytes]) -> None:
    """Read a small crowd: what is loaded or built with the first requests is no stream's own."""
    script = Script(WARM_UP_CROWD)
    times = array("d", [0.0]) * (script.streams * script.tokens)
    takes = [reader(script, number, times).take for number in range(script.streams)]
    await asyncio.gather(*(ask(WARM_UP_CROWD, prompt_of(number), take) for number, take in enumerate(takes)))


async def opened(script: Script, times: array[float]) -> tuple[list[int], Moment]:
    """Wait for the first token of every stream; return those that have one, and the moment when the last of them came.

    When no more streams begin while those that have begun run, these are the answer.
    """
    begun: list[int] = []
    moment = Moment.now()
    while len(begun) < script.streams:
        if time.perf_counter() - moment.time > (OPEN_SECONDS if begun else BEGIN_SECONDS):
            break
        await asyncio.sleep(0.01)
        known, begun = begun, [number for number in range(script.streams) if times[number * script.tokens]]
        if len(begun) > len(known):
            moment = Moment.now()
    if not begun:
        raise RuntimeError(f"no stream of the crowd began within {BEGIN_SECONDS:.0f} s")
    return begun, moment


async def outcomes(tasks: list[asyncio.Task[None]], begun: list[int], seconds: float) -> list[str]:
    """Give the streams that have begun `seconds` to end; return what became of each of all the streams.

    That is `ended`, the name of an error, or `still waiting` for one that would have needed another stream's place.
    """
    await asyncio.wait([tasks[number] for number in begun], timeout=seconds)
    done = [task.done() for task in tasks]
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [
        "still waiting" if not is_done else "ended" if result is None else type(result).__name__
        for is_done, result in zip(done, results, strict=True)
    ]


def memory(times: array[float], streams: int, *, before: Moment, first: Moment, middle: Moment) -> dict[str, float]:
    """Return kB of memory that each open stream has added, with about no tokens and in the middle of its answer."""
    at_first, at_middle = (sum(0 < moment <= sample.time for moment in times) / streams for sample in (first, middle))
    return {
        "first_kb": (first.memory - before.memory) / streams / 1000,
        "first_tokens": at_first,
        "middle_kb": (middle.memory - before.memory) / streams / 1000,
        "middle_tokens": at_middle,
    }


def pace(times: array[float], url: str, model: str, first: Moment, last: Moment) -> dict[str, float]:
    """Return CPU and delays of the tokens read between two moments, and how the server kept its schedule."""
    written, due, cpu = (column(url, name, model) for name in ("written", "due", "cpu"))
    slots = [slot for slot, moment in enumerate(times) if first.time <= moment < last.time]
    delays = sorted(times[slot] - written[slot] for slot in slots)
    lags = sorted(written[slot] - due[slot] for slot in slots)
    notes = [
        (moment, used) for moment, used in zip(cpu[::2], cpu[1::2], strict=True) if first.time <= moment < last.time
    ]
    return {
        "cpu_us": (last.cpu - first.cpu) / len(slots) * 1e6,
        "busy": (last.cpu - first.cpu) / (last.time - first.time),
        "tokens": len(slots),
        "p50_ms": share(delays, 0.5) * 1e3,
        "p99_ms": share(delays, 0.99) * 1e3,
        "late_p50_ms": share(lags, 0.5) * 1e3,
        "late_p99_ms": share(lags, 0.99) * 1e3,
        "server_busy": (notes[-1][1] - notes[0][1]) / (notes[-1][0] - notes[0][0]),
    }


def share(ordered: list[float], part: float) -> float:
    """Return the value below which this part of the values lies; they are in order."""
    return ordered[int(part * len(ordered))]


def column(url: str, name: str, model: str) -> array[float]:
    """Return what the server noted of a crowd."""
    with urlopen(f"{url}/{name}/{model}") as response:
        return array("d", response.read())


async def answers(client: str, url: str, model: str, seconds: float) -> dict[str, float]:
    """Read answers of `model`, one or `seconds` full; return the CPU and wall seconds of one answer."""
    sizes = array("q", [0])

    def take(piece: str | bytes) -> None:
        sizes[0] += len(piece)

    async with OPEN[client](url) as ask:
        await ask(WARM_UP_MODEL, prompt_of(0), take)
        count, cpu, wall = 0, time.process_time(), time.perf_counter()
        while count == 0 or time.perf_counter() - wall < seconds:
            sizes[0] = 0
            await ask(model, prompt_of(0), take)
            count += 1
        spent = time.process_time() - cpu, time.perf_counter() - wall
    return {"size": sizes[0], "cpu": spent[0] / count, "wall": spent[1] / count}


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """Return an event loop of asyncio or of uvloop."""
    if kind == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


def main() -> None:
    """Measure what the arguments say (`crowd | flood | paced`, client, loop, URL, model) and print it."""
    kind, client, loop_kind, url, model = sys.argv[1:]
    loop = new_loop(loop_kind)
    if kind == "crowd":
        work = crowd(client, url, model)
    else:
        work = answers(client, url, model, FLOOD_SECONDS if kind == "flood" else 0)
    result = loop.run_until_complete(work)
    print(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # a measured loop need not be tidied up


if __name__ == "__main__":
    main()
