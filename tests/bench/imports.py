"""What importing the package adds to the import of FastAPI and pydantic-settings."""

import json
import subprocess
from tempfile import TemporaryDirectory

import budgets
from driver import clean_environment
from figures import TOO_NOISY, Figure, judge

TIMED = """
import json, sys, time
first = time.process_time_ns()
import fastapi, pydantic_settings
known, begun = len(sys.modules), time.process_time_ns()
import fastapi_maintenance
ended = time.process_time_ns()
print(json.dumps([(ended - begun) / 1e6, (begun - first) / 1e6, len(sys.modules) - known]))
"""


def measure(python: str, times: int) -> dict[str, object]:
    """Import it in fresh processes; give milliseconds of CPU time and how many modules it brings."""
    taken: list[float] = []
    others: list[float] = []
    modules = 0
    with TemporaryDirectory() as compiled:
        env = clean_environment(PYTHONPYCACHEPREFIX=compiled)
        for _ in range(times + 1):
            run = subprocess.run([python, "-c", TIMED], capture_output=True, text=True, check=True, env=env, timeout=60)
            milliseconds, before, modules = json.loads(run.stdout)
            taken.append(milliseconds)
            others.append(before)
    # The first one compiled.
    figure, steady = Figure.of(taken[1:]), Figure.of(others[1:])
    return {
        "ms": figure.value,
        "low": figure.low,
        "high": figure.high,
        "fastest": min(taken[1:]),
        "modules": modules,
        "noisy": steady.spread > TOO_NOISY * steady.value,
        "budget": budgets.IMPORT,
        "verdict": judge(figure, budgets.IMPORT),
    }
