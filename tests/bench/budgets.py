"""What it may cost: the figures of the project's contract, in microseconds unless said otherwise.

They are those of a machine on which a bare request takes `BARE_REQUEST`; on another one they grow and shrink with it.
"""

from dataclasses import replace

from subjects import BARE, DEFAULT_OBJECT, OURS, Subject

BARE_REQUEST = 49.0
"""To the application of 20 direct routes."""
MIDDLEWARE = {"environment": 1.5, "memory": 1.5, "redis": 1.5, "slow store": 1.5, "file": 6.0, DEFAULT_OBJECT: 1.5}
ROUTE_CLASS_MORE = 1.5
GUARD_MORE = 1.5
MARKS_MORE = 15.0
IMPORT = 10.0
"""Milliseconds."""
STORM = 1.5
"""Times the bare application's own p99."""
DEPENDENCY = Subject(gate="empty dependency")


def budget(subject: Subject, bare: float, dependency: float, slower: float) -> float | None:
    """Give what a subject may add to its bare application.

    Args:
        subject: It.
        bare: What a request of its bare application takes.
        dependency: What an empty dependency adds to the same application.
        slower: How many times slower this machine is than the contract's.

    Returns:
        Microseconds; `None` where there is no budget for it.
    """
    if subject.package != OURS:
        return None
    if subject.closed:
        # Refusing replaces the bare request, so what it may add is negative for the route class.
        return {"middleware": 0.0, "route class": -bare / 2, "unbound route class": -bare / 2}.get(subject.gate)
    allowed = MIDDLEWARE[subject.backend] + (MARKS_MORE if subject.forced_on else 0)
    if "route class" in subject.gate:
        allowed += ROUTE_CLASS_MORE
    if subject.gate == "guard":
        allowed += GUARD_MORE
    return allowed * slower + (dependency if subject.gate == "guard" else 0.0)


def limit(subject: Subject, allowed: float, bare: float, least: float | None, slack: float) -> float:
    """Give what a subject may add until its budget is broken, with slack; no less than the least that it has to do.

    A refusal is measured by all that it takes, everything else by what it adds.

    Args:
        subject: It.
        allowed: What it may add.
        bare: What a request of its bare application takes.
        least: What the least adds, `None` where that was not measured.
        slack: Times the budget.
    """
    return max(allowed, least or allowed) + (slack - 1) * (allowed + (bare if subject.closed else 0))


def least_of(subject: Subject) -> Subject:
    """Give the bare application that does the least of what a subject has to: the physical limit beside the budget."""
    if not subject.closed:
        return replace(subject.base, gate=f"least {subject.gate.removeprefix('unbound ')}", backend=subject.backend)
    store = "file" if subject.backend == "file" else "memory"
    return replace(subject.base, gate="least refusal", backend=store, closed=True)


def dependency_of(subject: Subject) -> Subject:
    """Give the application with an empty dependency that a guard is compared with."""
    return replace(subject.base, package=BARE, gate=DEPENDENCY.gate)
