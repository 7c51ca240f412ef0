"""What the system and Python take for the parts: below their sum nothing can be."""

import os
import timeit
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory

import least

_REPEAT = 200
_NUMBER = 50


def measure() -> dict[str, float]:
    """Give the microseconds of each part, the fastest of many looks."""
    variable: ContextVar[object] = ContextVar("variable")
    running: set[object] = set()
    parts: dict[str, Callable[[], object]] = {
        "context variable, set and reset": lambda: variable.reset(variable.set(None)),
        "set, add and discard": lambda: (running.add(1), running.discard(1)),
        "os.environ.get of a variable that is not set": lambda: os.environ.get("BENCH_IS_NOT_SET"),
    }
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "state")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        parts["os.lstat"] = lambda: os.lstat(path)
        parts["os.fstat"] = lambda: os.fstat(descriptor)
        if least.has_range_locks():
            parts["range lock and unlock"] = lambda: (
                least.fcntl(descriptor, least.F_OFD_SETLK, least.LOCK),
                least.fcntl(descriptor, least.F_OFD_SETLK, least.UNLOCK),
            )
        nothing = _fastest(lambda: None)
        found = {name: round(_fastest(part) - nothing, 2) for name, part in parts.items()}
        os.close(descriptor)
    return found


def _fastest(part: Callable[[], object]) -> float:
    return min(timeit.repeat(part, number=_NUMBER, repeat=_REPEAT)) / _NUMBER * 1e6
