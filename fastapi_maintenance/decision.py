"""Who wins: the one table that every gate asks. No I/O."""

from enum import Enum

from fastapi_maintenance.marks import Mark
from fastapi_maintenance.state import SAFE_METHODS, Mode


class Verdict(Enum):
    """What becomes of one request."""

    ADMITTED = "admitted"
    FORCED_OFF = "forced off"
    EXEMPT = "exempt"
    REFUSED = "refused"
    REFUSED_UNLESS_EXEMPT = "refused unless exempt"


def decide(mark: Mark | None, mode: Mode | None, method: str | None, *, operation: bool = True) -> Verdict:
    """Decide on one request; a pure function.

    Args:
        mark: What the endpoint is marked as.
        mode: The mode while maintenance is active, `None` while it is not.
        method: The HTTP method, `None` for a websocket.
        operation: Whether an operation matches; if not, the framework has an answer of its own (404, 405, redirect).

    Returns:
        The verdict. With `REFUSED_UNLESS_EXEMPT` the caller has to ask the exemptions, which may take time.
    """
    if mark is Mark.FORCED_ON:
        return Verdict.REFUSED
    if mark is Mark.FORCED_OFF:
        return Verdict.FORCED_OFF
    if not operation or mode is None:
        return Verdict.ADMITTED
    if mode == "read_only" and method in SAFE_METHODS:
        return Verdict.ADMITTED
    return Verdict.REFUSED_UNLESS_EXEMPT
