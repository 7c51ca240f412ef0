"""What the state machines have in common: how long they run, where they write, and that they find what is broken."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings


def profile(variable, examples):
    """Give a short profile; where the environment says how many examples, a long one, other ones each time."""
    return settings(
        max_examples=int(os.environ.get(variable, examples)),
        stateful_step_count=30,
        deadline=None,
        database=None,
        derandomize=variable not in os.environ,
        suppress_health_check=list(HealthCheck),
    )


def until_found(usual):
    """Give the profile that looks for what is broken on purpose."""
    return settings(usual, max_examples=300, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False)


def with_each(mutants):
    """Give the mark of a test that runs with each of the rows: a machine, and the owner, the name and a mutant."""
    ids = [f"{machine.__name__}-{mutant.__name__}" for machine, _, _, mutant in mutants]
    return pytest.mark.parametrize(("machine", "owner", "name", "mutant"), mutants, ids=ids)


def in_memory(prefix=None):
    """Give a directory where syncing costs nothing, if the system has one."""
    memory = Path("/dev/shm")  # noqa: S108 - tests only
    return tempfile.TemporaryDirectory(prefix=prefix, dir=memory if memory.is_dir() else None)


async def at_once(function, *args, limiter):
    """Run what is for a thread here and now, in the place of `anyio.to_thread.run_sync`."""
    return function(*args)
