"""The regression guard: the instructions that it cost when `baseline.json` was written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

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
