"""What the system and Python take for the parts: below their sum nothing can be."""

import os
import struct
import timeit
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory

_FLOCK = struct.Struct("hhqqi4x")
_REPEAT = 200
_NUMBER = 50


def measure() -> dict[str, float]:
    """Give the microseconds of each part, the fastest of many looks."""
    variable: ContextVar[object] = ContextVar("variable")
    running: set[object] = set()
    parts = {
        "context variable, set and reset": lambda: variable.reset(variable.set(None)),
        "set, add and discard": lambda: (running.add(1), running.discard(1)),
        "os.environ.get of a variable that is not set": lambda: os.environ.get("BENCH_IS_NOT_SET"),
    }
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "state")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        parts["os.lstat"] = lambda: os.lstat(path)
        parts["os.fstat"] = lambda: os.fstat(descriptor)
        try:
            import fcntl  # noqa: PLC0415 - not on Windows

            lock, unlock = (_FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK))
            command = fcntl.F_OFD_SETLK
        except (ImportError, AttributeError):
            pass
        else:
            parts["range lock and unlock"] = lambda: (
                fcntl.fcntl(descriptor, command, lock),
                fcntl.fcntl(descriptor, command, unlock),
            )
        nothing = _fastest(lambda: None)
        found = {name: round(_fastest(part) - nothing, 2) for name, part in parts.items()}
        os.close(descriptor)
    return found


def _fastest(part: object) -> float:
    return min(timeit.repeat(part, number=_NUMBER, repeat=_REPEAT)) / _NUMBER * 1e6  # type: ignore[arg-type]
