"""Over the loopback: real uvicorn, each subject in turn under the same load."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from driver import WAITED, Server
from figures import Figure, percentile
from load import Result, expecting, load
from subjects import OLDER, OURS, WAYGATE, Subject

CONNECTIONS = 32


def subjects() -> list[Subject]:
    """Give what is served."""
    ours = [
        Subject(OURS, gate, backend)
        for gate in ("middleware", "route class", "guard")
        for backend in ("memory", "file")
    ]
    others = [Subject(OLDER, "middleware", "environment"), Subject(OLDER, "middleware", "file")]
    refusing = [
        Subject(OURS, "middleware", "file", closed=True),
        Subject(OURS, "route class", "file", closed=True),
        Subject(OLDER, "middleware", "file", closed=True),
    ]
    return [Subject(), *ours, *others, Subject(WAYGATE, "middleware", "memory"), *refusing]


@contextmanager
def serving(pythons: Mapping[str, str], chosen: list[Subject], workers: int = 1) -> Iterator[dict[Subject, Server]]:
    """Give a running server for each subject; they end with the block."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        running: dict[Subject, Server] = {}
        for subject in chosen:
            python = pythons.get(subject.package, pythons[OURS])
            running[subject] = server = Server(python, subject, Path(folder), workers)
            stack.callback(server.close)
        end = time.monotonic() + WAITED
        while not all(server.started() for server in running.values()):
            if time.monotonic() > end:
                raise TimeoutError(f"the servers did not start within {WAITED:g} s")
            time.sleep(0.05)
        yield running


def measure(
    pythons: Mapping[str, str], chosen: list[Subject], turns: int, seconds: float, workers: int = 1
) -> list[dict[str, Any]]:
    """Load each server in turn, `turns` times after one that warms up; all are compared with the first one."""
    taken: dict[Subject, list[Result]] = {subject: [] for subject in chosen}
    with serving(pythons, chosen, workers) as running:
        for _ in range(turns + 1):
            for subject, server in running.items():
                result = asyncio.run(load(server.port, CONNECTIONS, seconds, expecting(subject.status)))
                taken[subject].append(result)
        memory = {subject: server.memory for subject, server in running.items()}
    bare = [_rate(result) for result in taken[chosen[0]][1:]]
    return [{**_figures(subject, taken[subject][1:], bare), "memory bytes": memory[subject]} for subject in chosen]


def _rate(result: Result) -> float:
    return len(result.latencies) / result.seconds


def _figures(subject: Subject, results: list[Result], bare: list[float]) -> dict[str, Any]:
    rates = [_rate(result) for result in results]
    ratio = Figure.of(rate / base for rate, base in zip(rates, bare, strict=True))
    return {
        "subject": subject.label,
        "closed": subject.closed,
        "requests per second": median(rates),
        "of the bare": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "p50 ms": median(percentile(result.latencies, 0.5) for result in results),
        "p99 ms": median(percentile(result.latencies, 0.99) for result in results),
        "lost": sum(result.lost for result in results),
        "wrong": sum(result.wrong for result in results),
    }


def table(found: list[dict[str, Any]]) -> list[list[str]]:
    """Give the table's rows, with its head."""
    head = ["subject", "state", "requests/s", "of the bare", "p50 ms", "p99 ms", "lost", "wrong"]
    return [head] + [
        [
            each["subject"],
            "closed" if each["closed"] else "open",
            f"{each['requests per second']:.0f}",
            f"{each['of the bare']:.2f} ({each['low']:.2f} … {each['high']:.2f})",
            f"{each['p50 ms']:.2f}",
            f"{each['p99 ms']:.2f}",
            str(each["lost"]),
            str(each["wrong"]),
        ]
        for each in found
    ]
