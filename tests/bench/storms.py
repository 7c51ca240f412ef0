"""Storms: everybody asks a closed service at once, and a service closes and opens all the time under full load."""

import asyncio
import time
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import budgets
from driver import Server
from figures import percentile
from load import Check, Result, allow_many_files, expecting, load
from servers import CONNECTIONS, serving
from subjects import OURS, Subject

CLIENTS = 10_000
EVERY = 0.1
"""Seconds between closing and opening."""
TURNS = 6
"""Parts of the time that it closes and opens."""
GROWTH = 0.05
"""The part by which memory may be more in the last quarter than in the second: what is measured wavers."""

_SERVED = Subject(OURS, "middleware", "file")


def rush(python: str, times: int) -> dict[str, Any]:
    """Have 10,000 clients ask at once, a closed service and the bare one in turn."""
    allow_many_files()
    refusing = Subject(OURS, "middleware", "file", closed=True)
    found: dict[str, Any] = {"clients": CLIENTS}
    with serving({OURS: python}, [Subject(), refusing]) as running:
        for name in ("bare", "closed"):
            found[name] = {"p50 ms": [], "p99 ms": [], "lost": 0, "wrong": 0, "memory bytes": []}
        for _ in range(times + 1):
            for name, (subject, server) in zip(("bare", "closed"), running.items(), strict=True):
                result = asyncio.run(load(server.port, CLIENTS, 0, expecting(subject.status)))
                _note(found[name], result, server)
    for name in ("bare", "closed"):
        del found[name]["p50 ms"][0], found[name]["p99 ms"][0]
    bare, closed = found["bare"]["p99 ms"], found["closed"]["p99 ms"]
    found["p99 of the bare"] = median(own / base for own, base in zip(closed, bare, strict=True))
    found["verdict"] = _verdict(found["closed"], found["p99 of the bare"], bare)
    return found


def _note(into: dict[str, Any], result: Result, server: Server) -> None:
    into["p50 ms"].append(percentile(result.latencies, 0.5))
    into["p99 ms"].append(percentile(result.latencies, 0.99))
    into["lost"] += result.lost
    into["wrong"] += result.wrong
    into["memory bytes"].append(server.memory)


def _verdict(found: dict[str, Any], ratio: float, bare: list[float]) -> str:
    """Say what is wrong; nobody knows where the bare application's own p99 wavers as much as the budget allows."""
    faults = [f"{found[name]} {name}" for name in ("lost", "wrong") if found[name]]
    if ratio > budgets.STORM:
        steady = max(bare) <= budgets.STORM * min(bare)
        unsure = f"too noisy to tell, the bare one wavers between {min(bare):.1f} and {max(bare):.1f} ms"
        faults.append(f"p99 is {ratio:.2f} times the bare one: {'BROKEN' if steady else unsure}")
    return ", ".join(faults) or "met"


class Switching:
    """Closes and opens, and knows for which answers that leaves no choice.

    Args:
        path: The state file that the server looks at.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._times: list[float] = []
        self._closed: list[bool | None] = []
        self.changes = 0

    async def run(self, seconds: float) -> None:
        """Close and open for that long, and leave it open."""
        from fastapi_maintenance import Maintenance  # noqa: PLC0415 - only where ours is installed
        from fastapi_maintenance.backends import LocalFileBackend  # noqa: PLC0415 - as above

        maintenance = Maintenance(backend=LocalFileBackend(self._path))
        end = time.monotonic() + seconds
        self._say(closed=False)
        while time.monotonic() < end:
            for close in (True, False):
                self._say(closed=None)
                await (maintenance.enable() if close else maintenance.disable())
                self._say(closed=close)
                self.changes += 1
                await asyncio.sleep(EVERY)

    def _say(self, *, closed: bool | None) -> None:
        self._times.append(time.monotonic())
        self._closed.append(closed)

    def is_right(self, sent: float, answered: float, status: int, body: bytes) -> bool:
        """Tell whether an answer is right: it must be of a state that was true at some time between."""
        first, last = bisect_right(self._times, sent) - 1, bisect_right(self._times, answered) - 1
        states = set(self._closed[max(first, 0) : last + 1])
        could = {True, False} if None in states else states
        return {200: False, 503: True}.get(status) in could and (status != 200 or b"a small answer" in body)


def flicker(python: str, seconds: float) -> dict[str, Any]:
    """Close and open a service every 100 ms under full load.

    Before and after each part of that time the bare one has the same load, while a file that it does not look at
    changes as often: a machine may be slower for some seconds.
    """
    part = seconds / TURNS
    latencies: list[list[float]] = []
    memory: list[int] = []
    refused = lost = wrong = 0
    with serving({OURS: python}, [Subject(), _SERVED]) as running:
        bare, ours = running.values()
        (path,) = ours.folder.glob("*.state")
        switching = Switching(path)
        around = [_p99_of_bare(bare, part / 2)]
        for _ in range(TURNS):
            result, weighed = asyncio.run(_flickering(ours, switching, part, switching.is_right))
            around.append(_p99_of_bare(bare, part / 2))
            latencies.append(result.latencies)
            memory += weighed
            refused, lost, wrong = refused + result.statuses[503], lost + result.lost, wrong + result.wrong
    p99 = [percentile(each, 0.99) for each in latencies]
    ratio = median(own / mean(beside) for own, beside in zip(p99, pairwise(around), strict=True))
    quarter = max(1, len(memory) // 4)
    growth = max(memory[-quarter:]) / max(1, *memory[quarter : 2 * quarter]) - 1 if any(memory) else 0.0
    found = {
        "seconds": seconds,
        "changes": switching.changes,
        "requests": sum(map(len, latencies)),
        "refused": refused,
        "p99 ms": p99,
        "bare p99 ms": around,
        "p99 of the bare": ratio,
        "lost": lost,
        "wrong": wrong,
        "memory bytes": memory,
        "growth of memory": growth,
    }
    found["verdict"] = _verdict(found, ratio, around)
    if growth > GROWTH:
        found["verdict"] = f"{found['verdict']}, memory grew by {growth:.0%}"
    return found


def _p99_of_bare(server: Server, seconds: float) -> float:
    nobodys = Switching(server.folder / "nobodys.state")
    result = asyncio.run(_flickering(server, nobodys, seconds, expecting(200)))[0]
    return percentile(result.latencies, 0.99)


async def _flickering(server: Server, switching: Switching, seconds: float, check: Check) -> tuple[Result, list[int]]:
    memory: list[int] = []

    async def weigh() -> None:
        while True:
            memory.append(server.memory)
            await asyncio.sleep(max(seconds / 40, 0.2))

    weighing = asyncio.ensure_future(weigh())
    loading = asyncio.ensure_future(load(server.port, CONNECTIONS, seconds, check))
    await switching.run(seconds)
    result = await loading
    weighing.cancel()
    return result, memory
