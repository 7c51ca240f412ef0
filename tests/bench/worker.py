"""A process that measures what it is told to, in its own environment: one JSON question a line, one answer a line."""

import asyncio
import contextlib
import gc
import inspect
import json
import logging
import multiprocessing
import os
import platform
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from subjects import MANY, Built, Subject, build, has_redis

FRAMEWORK = ("fastapi", "starlette", "pydantic", "anyio")
PACKAGES = (*FRAMEWORK, "uvicorn", "fastapi-maintenance", "waygate")
ROUND = 3e6
"""Nanoseconds that one batch should last: short beside what disturbs a machine, long beside its first, cold request."""
WARM_UP = 30
SETTLED_AFTER = 0.1
"""Seconds after which a state file counts as settled."""

SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/r/42",
    "raw_path": b"/r/42",
    "query_string": b"",
    "root_path": "",
    "headers": [
        (b"host", b"127.0.0.1:8000"),
        (b"user-agent", b"bench"),
        (b"accept", b"application/json"),
        (b"accept-encoding", b"gzip, deflate"),
        (b"connection", b"keep-alive"),
    ],
    "client": ("127.0.0.1", 50000),
    "server": ("127.0.0.1", 8000),
    "state": {},
}


async def receive() -> dict[str, Any]:
    """Give the body of a GET."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Any) -> None:
    """Take an answer."""


async def answer(app: Any) -> tuple[int, bytes]:
    """Ask once, and give status and body."""
    messages: list[Any] = []

    async def collect(message: Any) -> None:
        messages.append(message)

    await app(dict(SCOPE), receive, collect)
    return messages[0]["status"], b"".join(message.get("body", b"") for message in messages[1:])


async def batch(app: Any, requests: int) -> tuple[float, float]:
    """Give the time of a request in microseconds: on the wall, and of this process's CPU."""
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    for _ in range(requests):
        await app(SCOPE.copy(), receive, send)
    cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
    return wall / requests / 1000, cpu / requests / 1000


class Bench:
    """Answers questions about subjects.

    Args:
        folder: Where state files go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[Subject, Built] = {}
        self._sizes: dict[Subject, int] = {}

    def about(self) -> dict[str, Any]:
        """Tell what runs here."""
        found: dict[str, str] = {}
        for name in PACKAGES:
            with contextlib.suppress(PackageNotFoundError):
                found[name] = version(name)
        # The same version from another compiler or on another processor takes other instructions.
        compiled = " ".join((*platform.python_build(), platform.python_compiler(), platform.machine()))
        python = platform.python_version()
        framework = " ".join([python, *(f"{name}=={found.get(name)}" for name in FRAMEWORK)])
        return {"python": python, "build": compiled, "framework": framework, "versions": found, "redis": has_redis()}

    def rounds(self, subjects: list[Subject], count: int) -> list[dict[str, Any]]:
        """Measure each subject beside its bare application, `count` times.

        Each has a process of its own: a service is one application, and with many others in its process all of them
        take longer, for Python remembers at each place of the framework what it met there last. Those with many routes
        share one, and their bare application: to build that takes seconds, and a request hundreds of microseconds. But
        not with those that have marks, which are counted for the whole process.
        """
        together: dict[Subject, list[Subject]] = {}
        for subject in subjects:
            shared = replace(subject.base, forced_on=subject.forced_on, forced_off=subject.forced_off)
            together.setdefault(subject if subject.routes < MANY else shared, []).append(subject)
        found: dict[Subject, dict[str, Any]] = {}
        for group in together.values():
            found.update(zip(group, _apart(self._rounds, group, count), strict=True))
        return [found[subject] for subject in subjects]

    async def _rounds(self, subjects: list[Subject], count: int) -> list[dict[str, Any]]:
        # Neither is always the one that comes first, and gets the better places in memory.
        needed = list({*subjects, *(subject.base for subject in subjects)})
        random.shuffle(needed)
        for each in needed:
            await self._build(each)
        results: list[dict[str, Any]] = [{"rounds": [], "wrong": await self._wrong(subject)} for subject in subjects]
        await asyncio.sleep(SETTLED_AFTER)
        right = [(s, result["rounds"]) for s, result in zip(subjects, results, strict=True) if not result["wrong"]]
        for _ in range(count):
            for subject, rounds in random.sample(right, len(right)):
                rounds.append(await self._round(subject))
        return results

    async def _round(self, subject: Subject) -> list[float]:
        """Measure it once; one, other, other, one: what grows or shrinks steadily meanwhile falls out."""
        built, bare = self._built[subject], self._built[subject.base]
        await built.before()
        # Background tasks get their turn outside of what is measured.
        await asyncio.sleep(0)
        await batch(bare.app, 2)
        once = (await batch(built.app, 2))[0] * 1000
        requests = max(3, int(ROUND / max(once, 1)))
        own: list[tuple[float, float]] = []
        other: list[tuple[float, float]] = []
        first, second = random.sample([(built.app, own), (bare.app, other)], 2)
        gc.disable()
        try:
            for app, looks in (first, second, second, first):
                looks.append(await batch(app, requests))
        finally:
            gc.enable()
        (wall, cpu), (own_wall, own_cpu) = (map(mean, zip(*looks, strict=True)) for looks in (other, own))
        return [wall, own_wall, cpu, own_cpu]

    async def _build(self, subject: Subject) -> None:
        if subject not in self._built:
            self._built[subject] = await build(subject, self._folder)

    async def _wrong(self, subject: Subject) -> str | None:
        """Build the subject and its bare application where that was not done, and say what is wrong with its answer."""
        for each in (subject.base, subject):
            await self._build(each)
        built = self._built[subject]
        await built.before()
        try:
            status, body = await answer(built.app)
        except Exception as error:  # noqa: BLE001 - whatever another package raises
            return f"raises {type(error).__name__}"
        if status != subject.status or (status == 200 and b"a small answer" not in body):
            return f"answers {status}"
        for _ in range(WARM_UP):
            await batch(built.app, 1)
            await batch(self._built[subject.base].app, 1)
        return None

    def memory(self, subject: Subject) -> int:
        """Tell how many bytes an application takes after 100 requests more than its bare one."""
        if subject.base not in self._sizes:
            self._sizes[subject.base] = _apart(self._size, subject.base)
        return _apart(self._size, subject) - self._sizes[subject.base]

    async def _size(self, subject: Subject) -> int:
        gc.collect()
        tracemalloc.start()
        built = await build(subject, self._folder)
        await built.before()
        for _ in range(100):
            await batch(built.app, 1)
        gc.collect()
        whole = tracemalloc.get_traced_memory()[0]
        # What stays behind without it was not its own: caches of others.
        del built
        gc.collect()
        rest = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return whole - rest

    async def crowd(self, subject: Subject, size: int) -> dict[str, float]:
        """Let `size` requests run at once; give microseconds and bytes for each."""
        built = await build(subject, self._folder)
        await built.before()
        await asyncio.sleep(SETTLED_AFTER)
        # The first one builds what is built once.
        times = [await self._crowd(built, 1 if first else size, waits=subject.waits) for first in (True, *[False] * 5)]
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        await self._crowd(built, size, waits=subject.waits)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return {"us": min(times[1:]), "bytes": (peak - before) / size}

    async def _crowd(self, built: Built, size: int, *, waits: bool) -> float:
        built.gates.update(waiting=0, go=asyncio.Event())
        gc.collect()
        gc.disable()
        begun = time.process_time_ns()
        requests = [asyncio.ensure_future(built.app(SCOPE.copy(), receive, send)) for _ in range(size)]
        while waits and built.gates["waiting"] < size:
            await asyncio.sleep(0)
        built.gates["go"].set()
        await asyncio.gather(*requests)
        gc.enable()
        return (time.process_time_ns() - begun) / size / 1000

    async def prepare(self, subjects: list[Subject]) -> list[str | None]:
        """Build the subjects, and say what is wrong with each."""
        wrong = [await self._wrong(subject) for subject in subjects]
        await asyncio.sleep(SETTLED_AFTER)
        return wrong

    async def instructions(self, subjects: list[Subject], requests: int) -> None:
        """Run the requests of prepared subjects inside of `dir()`, which valgrind is told to count."""
        for subject in subjects:
            built = self._built[subject]
            await built.before()
            for app in (self._built[subject.base].app, built.app):
                dir(_Counted(app, requests))


def _apart(work: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
    """Do something in a child of this process, and give what it gave."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_do, args=(work, arguments, theirs))
    child.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError(f"{arguments} could not be measured; the error is above") from None
    finally:
        child.join()


def _do(work: Callable[..., Coroutine[Any, Any, Any]], arguments: tuple[Any, ...], results: Connection) -> None:
    results.send(asyncio.run(work(*arguments)))


class _Counted:
    """An object whose `dir()` is requests to an application."""

    def __init__(self, app: Any, requests: int) -> None:
        self._app = app
        self._requests = requests

    def __dir__(self) -> list[str]:
        gc.disable()
        for _ in range(self._requests):
            run = self._app(SCOPE.copy(), receive, send)
            with contextlib.suppress(StopIteration):
                run.send(None)
        gc.enable()
        return []


def main() -> None:
    """Answer questions until there are no more."""
    logging.disable()
    with TemporaryDirectory() as folder, asyncio.Runner() as runner:
        bench = Bench(Path(folder))
        gc.freeze()
        for line in sys.stdin:
            question = json.loads(line)
            if "subjects" in question:
                question["subjects"] = [Subject(**each) for each in question["subjects"]]
            if "subject" in question:
                question["subject"] = Subject(**question["subject"])
            answered = getattr(bench, question.pop("do"))(**question)
            if inspect.iscoroutine(answered):
                answered = runner.run(answered)
            os.write(_ANSWERS, json.dumps(answered).encode() + b"\n")


_ANSWERS = os.dup(1)
os.dup2(2, 1)  # what others print is no answer

if __name__ == "__main__":
    main()
