"""What importing the package adds to the import of FastAPI and pydantic-settings."""

import json
import subprocess
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import budgets
from driver import clean_environment
from figures import TOO_NOISY, Figure, judge

MANY = 100
"""More modules than the package has."""

TIMED = """
import json, sys, time
first = time.process_time_ns()
import fastapi, pydantic_settings
known, begun = len(sys.modules), time.process_time_ns()
import fastapi_maintenance
ended = time.process_time_ns()
print(json.dumps([(ended - begun) / 1e6, (begun - first) / 1e6, len(sys.modules) - known]))
"""

LEAST = """
import builtins, dataclasses, json, sys, time
import fastapi, pydantic, pydantic_settings

spent = 0

def timed(function):
    def call(*args, **options):
        global spent
        begun = time.process_time_ns()
        try:
            return function(*args, **options)
        finally:
            spent += time.process_time_ns() - begun
    return call

build, decorate = builtins.__build_class__, dataclasses.dataclass
timed_build = timed(build)

def build_class(body, name, *bases, **options):
    validates = any(isinstance(base, type) and issubclass(base, pydantic.BaseModel) for base in bases)
    return (timed_build if validates else build)(body, name, *bases, **options)

builtins.__build_class__ = build_class
dataclasses.dataclass = lambda **options: timed(decorate(**options))
known = len(sys.modules)
import fastapi_maintenance
names = [f"m{number}" for number in range(len(sys.modules) - known)]
builtins.__build_class__ = build
sys.path.insert(0, sys.argv[1])
begun = time.process_time_ns()
for name in names:
    __import__(name)
print(json.dumps([spent / 1e6, (time.process_time_ns() - begun) / 1e6]))
"""
"""Times the classes that validate and the dataclasses while they are made, and the import of as many empty modules."""


def measure(python: str, times: int) -> dict[str, object]:
    """Import it in fresh processes; give milliseconds of CPU time and how many modules it brings.

    Beside them stands the least: what its models, settings and dataclasses take, and as many empty modules.
    """
    taken: list[float] = []
    others: list[float] = []
    least: list[float] = []
    modules = 0
    with TemporaryDirectory() as compiled, TemporaryDirectory() as empty:
        env = clean_environment(PYTHONPYCACHEPREFIX=compiled)
        for number in range(MANY):
            (Path(empty) / f"m{number}.py").touch()
        for _ in range(times + 1):
            milliseconds, before, modules = _run(python, env, TIMED)
            taken.append(milliseconds)
            others.append(before)
            least.append(sum(_run(python, env, LEAST, empty)))
    # The first one compiled.
    figure, steady, limit = Figure.of(taken[1:]), Figure.of(others[1:]), median(least[1:])
    return {
        "ms": figure.value,
        "low": figure.low,
        "high": figure.high,
        "fastest": min(taken[1:]),
        "least": limit,
        "modules": modules,
        "noisy": steady.spread > TOO_NOISY * steady.value,
        "budget": budgets.IMPORT,
        "verdict": judge(figure, budgets.IMPORT, limit),
    }


def _run(python: str, env: dict[str, str], *program: str) -> list[Any]:
    run = subprocess.run([python, "-c", *program], capture_output=True, text=True, check=True, env=env, timeout=60)
    told: list[Any] = json.loads(run.stdout)
    return told
