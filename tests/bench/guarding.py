"""The regression guard: what it cost when `baseline.json` was written, by instructions and by paired ratios."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from beside import Row
from subjects import OURS, Subject

BASELINE = Path(__file__).parent / "baseline.json"
MORE_INSTRUCTIONS = 1.05
"""Times what was counted with the same versions; with others they are no measure."""
FEW = 1000
"""Instructions that may come and go: a tenth of a microsecond."""
MORE_TIME = 1.1
"""Times the ratio that was measured: other machines, other versions."""


def name(subject: Subject) -> str:
    """Name a subject in the file."""
    return f"{subject.label}, {'closed' if subject.closed else 'open'}, {subject.routes} routes"


def ratios_of(rows: Iterable[Row]) -> dict[str, float]:
    """Give what is kept of measured rows."""
    return {name(row.subject): round(row.cost.ratio.value, 3) for row in rows if _kept(row.subject) and row.cost}


def _kept(subject: Subject) -> bool:
    return subject.package == OURS and subject.routes == 20 and not subject.included


def write(about: Mapping[str, Any], instructions: Mapping[str, Any], ratios: Mapping[str, float]) -> None:
    """Write the baseline; what was not measured this time stays."""
    known = _read()
    kept = {
        "about": about,
        "instructions": {**known.get("instructions", {}), **instructions},
        "ratios": {**known.get("ratios", {}), **ratios},
    }
    BASELINE.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def _read() -> dict[str, Any]:
    return json.loads(BASELINE.read_text()) if BASELINE.exists() else {}


def compare(about: Mapping[str, Any], instructions: Mapping[str, Any], rows: Iterable[Row]) -> list[str]:
    """Say what has become more than it was."""
    known = _read()
    if not known:
        return ["there is no baseline.json; write it with --save-baseline"]
    worse: list[str] = []
    if known["about"] == about:
        for subject, counted in instructions.items():
            before = known["instructions"].get(subject)
            if before and counted["adds"] > before["adds"] * MORE_INSTRUCTIONS + FEW:
                worse.append(f"{subject}: {counted['adds']} instructions instead of {before['adds']}")
    for row in rows:
        before = known["ratios"].get(name(row.subject))
        if before and row.cost and row.cost.ratio.low > before * MORE_TIME:
            worse.append(f"{name(row.subject)}: ×{row.cost.ratio.value:.3f} of the bare application, not ×{before}")
    return worse
