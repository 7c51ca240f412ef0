"""In process: every gate and every peer beside the bare application."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import budgets
from driver import worker
from figures import Cost, Turn, judge, quiet_of
from subjects import (
    BARE,
    DEFAULT_OBJECT,
    GATES,
    MANY,
    OLDER,
    OURS,
    WAYGATE,
    Subject,
    gates,
    in_each_state,
    on_redis,
    peers,
)

Say = Callable[[str], None]
TURNS_OF_MANY = 2
"""How often those with many routes are measured: each takes seconds, and in its noise what a gate adds is lost."""
REFUSED_DESPITE_EXEMPTIONS = [
    Subject(OURS, gate, "memory", exempt=50, closed=True) for gate in ("middleware", "route class")
]


@dataclass
class Row:
    """What came of one subject.

    Attributes:
        subject: It.
        wrong: What is wrong with its answer, so that it was not measured.
        cost: What it costs.
        budget: What it may add.
        least: What the least that it has to do adds by itself, `None` where that was not measured.
    """

    subject: Subject
    wrong: str | None = None
    cost: Cost | None = None
    budget: float | None = None
    least: float | None = None

    @property
    def verdict(self) -> str:
        """Whether its budget is met."""
        if self.wrong is not None:
            return self.wrong
        if self.cost is None or self.budget is None:
            return ""
        return judge(self.cost.adds, self.budget, self.least)

    def broken(self, slack: float) -> bool:
        """Tell whether it costs, surely, `slack` times more than allowed."""
        if self.cost is None or self.budget is None:
            return self.wrong is not None and self.subject.package == OURS
        if self.cost.noisy or not self.cost.adds.enough:
            return False
        return self.cost.adds.low > budgets.limit(self.subject, self.budget, self.cost.quiet, self.least, slack)

    @property
    def told(self) -> str:
        """Say what it adds, and what it may."""
        if self.cost is None or self.budget is None:
            return self.verdict
        return f"adds {self.cost.adds.value:.1f} µs, surely {self.cost.adds.low:.1f}; {self.budget:.1f} are allowed"

    def to_dict(self) -> dict[str, Any]:
        """Give it for JSON."""
        cost = None if self.cost is None else asdict(self.cost)
        return {
            **asdict(self.subject),
            "wrong": self.wrong,
            "cost": cost,
            "budget": self.budget,
            "least": self.least,
            "verdict": self.verdict,
        }


def everything(redis: str | None) -> list[Subject]:
    """Give all that stands in the full table."""
    ours = [*gates(), *([] if redis is None else on_redis(redis))]
    marked = Subject(OURS, "middleware", "memory", routes=1000, forced_on=10, forced_off=10)
    opened = [
        Subject(OURS, gate, "memory", exempt=50, routes=n) for gate in ("middleware", "guard") for n in (20, 1000)
    ]
    return [*in_each_state([*ours, *peers()]), marked, *opened, *REFUSED_DESPITE_EXEMPTIONS]


def quick() -> list[Subject]:
    """Give what CI looks at where no instructions can be counted."""
    backends = [Subject(OURS, "middleware", backend) for backend in ("environment", "memory", "file")]
    others = [Subject(OURS, gate, "memory") for gate in ("route class", "guard")]
    closed = [Subject(OURS, gate, "memory", closed=True) for gate in ("middleware", "route class")]
    bare = [s for s in gates() if s.package == BARE and s.backend in {"", "environment", "memory", "file"}]
    return [*bare, *backends, *others, *closed]


def counted() -> list[Subject]:
    """Give what instructions are counted for; those in included routes may cost no more than in direct ones."""
    closed = [Subject(OURS, gate, "memory", closed=True) for gate in GATES]
    opened = [s for s in gates() if s.backend in {"", "memory", DEFAULT_OBJECT} and not s.closed]
    included = [replace(subject, included=True) for subject in opened]
    return [*gates(), *closed, *REFUSED_DESPITE_EXEMPTIONS, *included]


def measure(pythons: Mapping[str, str], subjects: list[Subject], turns: int, rounds: int, say: Say) -> list[Row]:
    """Measure all subjects `turns` times, in new processes each time; those with many routes less often.

    Args:
        pythons: The interpreter of each package's environment.
        subjects: What is measured.
        turns: How often, where there are not many routes.
        rounds: How many rounds each time.
        say: Told of progress.
    """
    taken: dict[Subject, list[Turn]] = {subject: [] for subject in subjects}
    wrong: dict[Subject, str | None] = {}
    framework: dict[str, str] = {}
    for turn in range(turns):
        now = [subject for subject in subjects if subject.routes < MANY or turn < TURNS_OF_MANY]
        for package, python in pythons.items():
            own = [subject for subject in now if _measured_by(subject) == package]
            random.shuffle(own)
            with worker(python, hashes=turn) as process:
                framework[package] = process.ask("about")["framework"]
                results = process.ask("rounds", subjects=own, count=rounds)
            for subject, result in zip(own, results, strict=True):
                wrong[subject] = result["wrong"]
                if not result["wrong"]:
                    taken[subject].append(result["rounds"])
        say(f"  turn {turn + 1} of {turns}")
    # The same application on the same framework is the same, in whichever environment.
    alike = {subject: (framework[_measured_by(subject)], subject.base) for subject in subjects}
    bare: dict[tuple[str, Subject], list[Turn]] = {}
    for subject in subjects:
        bare.setdefault(alike[subject], []).extend(taken[subject])
    costs = {s: Cost.of(taken[s], quiet_of(bare[alike[s]])) for s in subjects if taken[s]}
    slower = slowness(costs)
    return [_row(subject, wrong[subject], costs, slower) for subject in subjects]


def slowness(costs: Mapping[Subject, Cost]) -> float:
    """Give how many times slower this machine is than the one that the budgets are of; 1 where it was not measured."""
    bare = (
        cost.quiet for subject, cost in costs.items() if subject.base == Subject() and _measured_by(subject) == OURS
    )
    return next(bare, budgets.BARE_REQUEST) / budgets.BARE_REQUEST


def _measured_by(subject: Subject) -> str:
    return OURS if subject.package not in {s.package for s in peers()} else subject.package


def _row(subject: Subject, wrong: str | None, costs: Mapping[Subject, Cost], slower: float) -> Row:
    cost = costs.get(subject)
    if cost is None:
        return Row(subject, wrong)
    dependency = costs.get(budgets.dependency_of(subject))
    if subject.gate == "guard" and dependency is None:
        return Row(subject, wrong, cost)
    # Among very many routes noise may be larger than it, but it never saves time.
    adds = max(0.0, dependency.adds.value) if dependency and subject.gate == "guard" else 0.0
    least = costs.get(budgets.least_of(subject)) if subject.package == OURS else None
    return Row(
        subject,
        wrong,
        cost,
        budgets.budget(subject, cost.quiet, adds, slower),
        None if least is None else least.adds.value,
    )


SUMMARY = {
    "an empty dependency": Subject(gate="empty dependency"),
    "middleware; memory": Subject(OURS, "middleware", "memory"),
    "middleware; environment": Subject(OURS, "middleware", "environment"),
    "middleware; file": Subject(OURS, "middleware", "file"),
    "middleware; Redis": Subject(OURS, "middleware", "redis"),
    "route class; memory": Subject(OURS, "route class", "memory"),
    "route class; file": Subject(OURS, "route class", "file"),
    "guard; memory": Subject(OURS, "guard", "memory"),
    "guard; file": Subject(OURS, "guard", "file"),
    "`fastapi-maintenance` 0.0.5; environment": Subject(OLDER, "middleware", "environment"),
    "`fastapi-maintenance` 0.0.5; file": Subject(OLDER, "middleware", "file"),
    "`waygate` 0.2.0; memory": Subject(WAYGATE, "middleware", "memory"),
}
"""What the README shows."""


def shown(rows: Iterable[Row], *, closed: bool) -> dict[str, Cost]:
    """Give what the README shows, open or closed, as far as it was measured."""
    costs = {replace(row.subject, redis=""): row.cost for row in rows if row.wrong is None}
    asked = {label: costs.get(replace(subject, closed=closed)) for label, subject in SUMMARY.items()}
    return {label: cost for label, cost in asked.items() if cost is not None}


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Give the README's table: what a gate adds while it is open, and what a refusal takes."""
    opened, closed = shown(rows, closed=False), shown(rows, closed=True)
    lines = [["", "adds while open", "a request is", "a refusal takes"]]
    for label, cost in opened.items():
        refusal = f"{closed[label].quiet + closed[label].waits.value:.0f} µs" if label in closed else ""
        lines.append([label, f"{cost.waits.value:.1f} µs", f"×{cost.waited:.2f}", refusal])
    return lines


def table(rows: Iterable[Row]) -> list[list[str]]:
    """Give the table's rows, with its head."""
    measured = ["bare µs", "µs", "adds µs (95 %)", "adds µs on the wall", "ratio", "least µs", "may add µs"]
    return [["subject", "state", "routes", *measured, ""], *map(_cells, rows)]


def _cells(row: Row) -> list[str]:
    subject, cost = row.subject, row.cost
    cells = [subject.label, "closed" if subject.closed else "open", subject.behind]
    if cost is None:
        return [*cells, "", "", "", "", "", "", "", row.verdict]
    least = "" if row.least is None else f"{row.least:.1f}"
    may = "" if row.budget is None else f"{row.budget:.1f}"
    return [
        *cells,
        f"{cost.quiet:.1f}",
        f"{cost.quiet + cost.adds.value:.1f}",
        str(cost.adds),
        f"{cost.waits.value:.1f}",
        f"×{cost.ratio.value:.3f}",
        least,
        may,
        row.verdict,
    ]
