"""What runs when: each process appends begin and end of what it does to a record of its own, and an exact check.

Times are those of `CLOCK_MONOTONIC`, in nanoseconds: one clock for all processes of a machine.
"""

import os
import secrets
import threading
import time
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import NamedTuple

REQUESTS, WINDOWS, KILLED = "requests", "windows", "killed"


class Span(NamedTuple):
    """Something that ran.

    Attributes:
        begin: When it began.
        end: When it ended; infinite while nobody knows.
        pid: In which process.
        kind: What it was.
        asked: When it was asked for.
    """

    begin: float
    end: float
    pid: int
    kind: str
    asked: float = 0


class Record:
    """Appends to a file of its own for each process; one `write` a line, so that a killed process tears none.

    Args:
        directory: Where the records are.
        what: `REQUESTS` or `WINDOWS`.
    """

    def __init__(self, directory, what):
        self._directory = Path(directory)
        self._what = what
        self._opened = (0, 0)
        self._turn = threading.Lock()

    @contextmanager
    def span(self, kind, asked=0):
        """Note that something runs for the time of the block; it is for those who come out of it to say so.

        What is given takes the time of an earlier end.
        """
        key = secrets.token_hex(6)
        ended = []
        self._write(f"begin {key} {time.monotonic_ns()} {kind} {asked}")
        try:
            yield ended
        finally:
            self._write(f"end {key} {(ended or [time.monotonic_ns()])[-1]}")

    def _write(self, line):
        with self._turn:
            if self._opened[0] != os.getpid():
                path = self._directory / f"{self._what}-{os.getpid()}-{secrets.token_hex(4)}"
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                self._opened = (os.getpid(), descriptor)
        os.write(self._opened[1], f"{line}\n".encode())


def note_kill(directory, pid):
    """Note, before it is done, that a process is killed: what it runs ends later than this, and nobody else says so."""
    with Path(directory, KILLED).open("a") as file:
        file.write(f"{pid} {time.monotonic_ns()}\n")


def killed(directory):
    """Give the processes that were killed, each with the time."""
    path = Path(directory, KILLED)
    lines = path.read_text().splitlines() if path.exists() else []
    return {int(pid): int(at) for pid, at in map(str.split, lines)}


def spans(directory, what):
    """Give everything of one sort that was recorded; what a killed process began ended when it was killed."""
    dead = killed(directory)
    found = []
    for path in Path(directory).glob(f"{what}-*"):
        pid = int(path.name.split("-")[1])
        lines = [line.split() for line in path.read_text().splitlines()]
        ends = {key: int(at) for word, key, at, *_ in lines if word == "end"}
        found += [
            Span(int(line[2]), ends.get(line[1], dead.get(pid, inf)), pid, line[3], int(line[4]))
            for line in lines
            if line[0] == "begin"
        ]
    return sorted(found)


def overlaps(windows, requests):
    """Give every pair of a window and a request that ran at the same time; to touch is not to overlap."""
    found, running, coming = [], [], iter(sorted(requests))
    following = next(coming, None)
    for window in sorted(windows):
        # Windows come by their beginning: what ended before this one begins is of no concern to any later one.
        running = [request for request in running if request.end > window.begin]
        while following is not None and following.begin < window.end:
            running += [following]
            following = next(coming, None)
        found += [(window, request) for request in running if _both(window, request)]
    return found


def _both(window, request):
    return request.begin < window.end and window.begin < request.end
