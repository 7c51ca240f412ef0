"""Real servers under load, drained over Redis by holders on all sides, with faults: nothing runs in a window.

With `DRAIN_LONG` set (`nox -s drain`) it is more than a thousand windows.
"""

import os

import pytest

from tests.drain.campaign import Plan, nothing_ran
from tests.drain.fleet import run_on_redis
from tests.redis_servers import needs_redis
from tests.servers import needs_servers

pytestmark = [needs_servers, needs_redis]

LONG = "DRAIN_LONG" in os.environ
PROCESSES = ("kill_worker", "stop_worker", "kill_holder")
STORE = ("drop_connections", "pause_redis", "kill_redis", "empty_redis", "cut_off", "cut_off_for_long")
LONG_PLANS = [
    *(Plan("uvicorn", gates=gates, windows=60) for gates in ("middleware", "route", "guard", "all")),
    Plan("gunicorn-preload", windows=60),
    Plan("uvicorn", workers=8, windows=60, faults=("drop_connections", "pause_redis"), every=1.0),
    Plan("uvicorn", workers=4, windows=60, faults=PROCESSES, every=6.0),
    *(Plan("uvicorn", windows=60, faults=(fault,), every=4.0) for fault in (*STORE, "fail_over", "stop_holder")),
    Plan("uvicorn", workers=4, windows=60, faults=(*STORE, *PROCESSES), every=5.0),
]
PLANS = LONG_PLANS if LONG else [Plan("uvicorn", windows=6, faults=("kill_redis",), every=2.0)]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan}-{'-'.join(plan.faults)}")
def test_nothing_runs_in_a_window_of_the_fleet(plan):
    """Holders drain a fleet again and again, under load and faults: no request runs in any window."""
    nothing_ran(run_on_redis(plan), plan)


def test_a_promise_without_counting_is_caught():
    """Where workers promise that nothing is in flight without counting, requests run in windows, and it is seen."""
    plan = Plan("uvicorn", windows=10, control="idle-always", holders=("script",), at_start=0)
    seen = run_on_redis(plan)
    assert seen.contested >= plan.contested, seen
    assert seen.violated * 2 > seen.contested, seen
