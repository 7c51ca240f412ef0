"""Real servers under load, drained by three holders at once, with faults: nothing runs in a window.

With `DRAIN_LONG` set (`nox -s drain`) it is every server with each gate and at least a thousand windows.
"""

import importlib.util
import os

import pytest

from tests.drain.campaign import Plan, nothing_ran, run
from tests.servers import needs_servers

pytestmark = needs_servers

LONG = "DRAIN_LONG" in os.environ
ROUGH = ("kill_worker", "stop_worker", "kill_holder", "rubbish")
SHORT_PLANS = [Plan("uvicorn", windows=20, faults=ROUGH, every=0.3)]
LONG_PLANS = [
    *(Plan("uvicorn", gates=gates, windows=40) for gates in ("middleware", "route", "guard", "all")),
    Plan("uvicorn", windows=60, faults=ROUGH, every=1.0),
    Plan("uvicorn", workers=8, windows=40, gates="middleware"),
    Plan("uvicorn", workers=8, windows=60, faults=ROUGH, every=2.0),
    *(Plan("gunicorn", gates=gates, windows=40) for gates in ("guard", "all")),
    *(Plan("gunicorn-preload", gates=gates, windows=40) for gates in ("guard", "all")),
    Plan("gunicorn", workers=4, gates="route", windows=40, faults=ROUGH, every=1.5),
    Plan("gunicorn-preload", workers=4, windows=40, faults=ROUGH, every=1.5),
    Plan("granian", windows=40, gates="all", faults=("stop_worker", "kill_holder"), every=1.0),
    Plan("granian", windows=30, gates="middleware"),
    Plan("hypercorn", windows=40, gates="all", faults=("stop_worker", "kill_holder"), every=1.0),
    Plan("hypercorn", windows=30, gates="guard"),
]
CONTROLS = [
    Plan("uvicorn", windows=(10, 40)[LONG], control="state-only", holders=("script",), at_start=0),
    Plan("gunicorn-preload", 4, windows=(10, 40)[LONG], control="one-description", holders=("script",), at_start=0),
]

needs_gunicorn = pytest.mark.skipif(
    importlib.util.find_spec("uvicorn_worker") is None, reason="needs gunicorn with uvicorn's worker"
)


@pytest.mark.parametrize("plan", LONG_PLANS if LONG else SHORT_PLANS, ids=str)
def test_nothing_runs_in_a_window(plan):
    """Three holders drain a server again and again, under load and faults: no request runs in any window."""
    nothing_ran(run(plan), plan)


@needs_gunicorn
@pytest.mark.parametrize("plan", CONTROLS, ids=str)
def test_a_protocol_that_is_broken_on_purpose_is_caught(plan):
    """Without the slot, or with one descriptor for all workers, requests run in most windows, and it is seen."""
    seen = run(plan)
    assert seen.contested >= plan.contested, seen
    assert seen.violated * 2 > seen.contested, seen
