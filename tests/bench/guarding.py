"""The guard in instructions: the budgets, and what it cost when `baseline.json` was written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import budgets
from subjects import BARE, Subject

BASELINE = Path(__file__).parent / "baseline.json"
MORE = 1.05
"""Times what was counted with the same versions."""
SLACK = 2.0
"""Times the part of a bare request that was counted with other versions."""
FEW = 1000
"""Instructions that may come and go: a tenth of a microsecond."""


class Counted(TypedDict):
    """Instructions of one request to the bare application, and how many more the subject takes."""

    bare: int
    adds: int


def name(subject: Subject) -> str:
    """Name a subject in the file."""
    return f"{subject.label}, {'closed' if subject.closed else 'open'}, {subject.behind}"


def allowed(subject: Subject, counted: Mapping[Subject, Counted]) -> float | None:
    """Give the instructions that a subject may add by its budget, `None` where it has none.

    A microsecond is a part of the bare request, as many instructions as that takes in one.
    """
    slower = next(c["bare"] for s, c in counted.items() if s.base == Subject()) / budgets.BARE_REQUEST
    dependency = counted.get(budgets.dependency_of(subject))
    adds = 0 if dependency is None else dependency["adds"]
    return budgets.budget(subject, counted[subject]["bare"], adds, slower)


def over_budget(counted: Mapping[Subject, Counted]) -> list[str]:
    """Say what takes more than twice its budget."""
    over: list[str] = []
    for subject, cost in counted.items():
        budget, least = allowed(subject, counted), counted.get(budgets.least_of(subject))
        if budget is None:
            continue
        limit = budgets.limit(subject, budget, cost["bare"], least and least["adds"], SLACK)
        if cost["adds"] > limit:
            over.append(f"{name(subject)}: {cost['adds']:+} instructions, its budget is {budget:+.0f}")
    return over


def write(about: Mapping[str, Any], instructions: Mapping[str, Counted]) -> None:
    """Write the baseline."""
    kept = {"about": about, "instructions": instructions}
    BASELINE.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def compare(about: Mapping[str, Any], instructions: Mapping[str, Counted]) -> list[str]:
    """Say what has become more than it was, with other versions as a part of a bare request."""
    known = json.loads(BASELINE.read_text())
    same = known["about"] == about
    worse: list[str] = []
    for subject, counted in instructions.items():
        # What the bare ones take is the framework's, kept to compare with.
        before = None if subject.startswith(BARE) else known["instructions"].get(subject)
        limit = None if before is None else _limit(before, counted["bare"], same=same)
        if limit is not None and counted["adds"] > limit:
            worse.append(f"{subject}: {counted['adds']:+} instructions, at most {limit:+.0f} were expected")
    return worse


def _limit(before: Counted, bare: int, *, same: bool) -> float:
    """Give what may be added; a refusal adds less than nothing, so that it is measured by all that it takes."""
    refuses = before["adds"] < 0
    takes = before["adds"] + (before["bare"] if refuses else 0)
    most = takes * MORE + FEW if same else takes / before["bare"] * bare * SLACK
    return most - (bare if refuses else 0)
