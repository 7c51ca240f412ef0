"""How cost grows: with routes, marks, windows, holds, exemptions, requests at once, and workers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import report
import servers
from driver import Worker
from figures import Cost, Turn, quiet_of
from subjects import MANY, OURS, Subject

Say = Callable[[str], None]
TURNS, ROUNDS = 3, 15

_OPEN = {
    "middleware": Subject(OURS, "middleware", "memory", first=True),
    "route class": Subject(OURS, "route class", "memory", first=True),
    "guard": Subject(OURS, "guard", "memory", first=True),
}
_CLOSED = {
    f"{gate}, {backend}": Subject(OURS, gate, backend, closed=True)
    for gate in ("middleware", "route class")
    for backend in ("memory", "file")
}
_CLOSED_IN_MEMORY = {name: subject for name, subject in _CLOSED.items() if subject.backend == "memory"}
_OPEN_BACKENDS = {backend: Subject(OURS, "middleware", backend) for backend in ("memory", "file")}


@dataclass
class Axis:
    """One thing that grows.

    Attributes:
        name: What it is.
        sizes: From little to much.
        lines: What is measured at each size, by name.
        grow: Gives a line's subject of one size.
        total: Whether the whole request counts, with the bare one as a line of its own, not what is added to that.
    """

    name: str
    sizes: Sequence[int]
    lines: Mapping[str, Subject]
    grow: Callable[[Subject, int], Subject]
    total: bool = False


AXES = [
    Axis("routes, open", (10, 100, 1000, 10000), _OPEN, lambda s, n: replace(s, routes=n)),
    Axis("routes, included, open", (10, 100, 1000), _OPEN, lambda s, n: replace(s, routes=n, included=True)),
    Axis("routes, closed", (10, 100, 1000, 10000), _CLOSED_IN_MEMORY, lambda s, n: replace(s, routes=n), total=True),
    Axis(
        "marks among 1000 routes, open",
        (0, 2, 20, 200, 998),
        {"middleware": _OPEN["middleware"], "route class": _OPEN["route class"]},
        lambda s, n: replace(s, routes=1000, forced_on=n // 2, forced_off=n - n // 2),
    ),
    Axis("windows, open", (0, 10, 100, 1000), _OPEN_BACKENDS, lambda s, n: replace(s, windows=n)),
    Axis("windows, closed", (0, 10, 100, 1000), _CLOSED, lambda s, n: replace(s, windows=n), total=True),
    # A hold on a file is safe on the disk, so that a thousand of them take minutes.
    Axis("holds, closed", (1, 10, 100), _CLOSED, lambda s, n: replace(s, holds=n), total=True),
    Axis(
        "holds in memory, closed", (1, 10, 100, 1000), _CLOSED_IN_MEMORY, lambda s, n: replace(s, holds=n), total=True
    ),
    Axis("exemptions, open", (0, 10, 100, 1000, 10000), _OPEN, lambda s, n: replace(s, exempt=n)),
    Axis("exemptions, closed", (0, 10, 100, 1000, 10000), _CLOSED, lambda s, n: replace(s, exempt=n), total=True),
]

CROWDS = (1, 10, 100, 1000, 10000)
_CROWDED = {
    "bare, running": Subject(waits=True),
    "middleware, running": Subject(OURS, "middleware", "memory", waits=True),
    "middleware on a file, running": Subject(OURS, "middleware", "file", waits=True),
    "guard, running": Subject(OURS, "guard", "memory", waits=True),
    "bare": Subject(),
    "middleware, refused": Subject(OURS, "middleware", "memory", closed=True),
    "route class, refused": Subject(OURS, "route class", "memory", closed=True),
}
WORKERS = (1, 2, 4, 8)


@dataclass
class Grown:
    """What came of an axis.

    Attributes:
        name: What grew.
        unit: What was measured.
        points: By line, (size, microseconds or another unit).
        bytes: By line, (size, bytes); `None` where it was not measured.
    """

    name: str
    unit: str
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    bytes: dict[str, list[tuple[float, float | None]]] = field(default_factory=dict)

    def add(self, line: str, size: int, value: float, memory: float | None) -> None:
        """Note one figure."""
        self.points.setdefault(line, []).append((size, value))
        self.bytes.setdefault(line, []).append((size, memory))

    def table(self) -> list[list[str]]:
        """Give the table's rows, with its head."""
        head = [f"{self.name} ({self.unit} · KiB)", *(f"{size:g}" for size, _ in next(iter(self.points.values())))]
        return [head] + [
            [
                line,
                *(
                    f"{value:.2f} · {'–' if memory is None else f'{memory / 1024:.1f}'}"
                    for (_, value), (_, memory) in zip(p, self.bytes[line], strict=True)
                ),
            ]
            for line, p in self.points.items()
        ]

    def draw(self, folder: Path) -> bool:
        """Draw it, and its memory."""
        name = "".join(c if c.isalnum() else "-" for c in self.name).replace("--", "-")
        kib = {line: [(x, y / 1024) for x, y in points if y is not None] for line, points in self.bytes.items()}
        drawn = report.plot(folder / f"{name}.svg", self.name, self.name.partition(",")[0], self.unit, self.points)
        return drawn and report.plot(folder / f"{name}-memory.svg", self.name, self.name.partition(",")[0], "KiB", kib)


def grow(workers: Sequence[Worker], axis: Axis, say: Say) -> Grown:
    """Measure one axis, a turn in each worker; the first alone where there are many routes."""
    grown = Grown(axis.name, "µs a request" if axis.total else "µs added")
    for size in axis.sizes:
        subjects = {line: axis.grow(subject, size) for line, subject in axis.lines.items()}
        taken: dict[str, list[Turn]] = {line: [] for line in subjects}
        many = max(subject.routes for subject in subjects.values()) >= MANY
        for worker in workers[:1] if many else workers:
            results = worker.ask("rounds", subjects=list(subjects.values()), count=ROUNDS)
            for line, result in zip(subjects, results, strict=True):
                if result["wrong"]:
                    raise RuntimeError(f"{line} at {size} {axis.name} {result['wrong']}")
                taken[line].append(result["rounds"])
        quiet = quiet_of(turn for turns in taken.values() for turn in turns)
        for line, subject in subjects.items():
            memory = workers[0].ask("memory", subject=subject) if subject.routes <= MANY else None
            adds = Cost.of(taken[line], quiet).adds.value
            grown.add(line, size, quiet + adds if axis.total else adds, memory)
        if axis.total:
            grown.add("bare", size, quiet, None)
        say(f"  {axis.name}: {size}")
    return grown


def crowd(worker: Worker, say: Say) -> Grown:
    """Measure requests at once; memory is that of one request."""
    grown = Grown("requests at once", "µs a request")
    for size in CROWDS:
        for line, subject in _CROWDED.items():
            found = worker.ask("crowd", subject=subject, size=size)
            grown.add(line, size, found["us"], found["bytes"])
        say(f"  requests at once: {size}")
    return grown


def workers(python: str, seconds: float, say: Say) -> list[Grown]:
    """Measure worker processes of a real server; memory is that of all of them together."""
    rates, waits = Grown("workers", "requests/s"), Grown("workers, p99", "ms")
    chosen = {"bare": Subject(), "middleware on a file": Subject(OURS, "middleware", "file")}
    for count in WORKERS:
        found = servers.measure({OURS: python}, list(chosen.values()), 3, seconds, workers=count)
        for line, each in zip(chosen, found, strict=True):
            rates.add(line, count, each["requests per second"], each["memory bytes"])
            waits.add(line, count, each["p99 ms"], each["memory bytes"])
        say(f"  workers: {count}")
    return [rates, waits]


def to_dict(grown: list[Grown]) -> list[dict[str, Any]]:
    """Give it for JSON."""
    return [{"name": g.name, "unit": g.unit, "points": g.points, "bytes": g.bytes} for g in grown]
