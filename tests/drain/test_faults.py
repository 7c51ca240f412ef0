"""Faults, one by one, on a real server of two workers: a stopped worker, a killed holder, a gate that is deleted."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from fastapi_maintenance import DrainTimeout, Maintenance, NoWorkers
from fastapi_maintenance.backends import LocalFileBackend
from tests.servers import asked, environment, needs_servers, serving, until

pytestmark = needs_servers

SERVED = """
import os

os.environ.update(DRAIN_GATES="all", DRAIN_CONTROL="none", DRAIN_RECORDS=".", DRAIN_AT_START="0")
from tests.drain.served import app
"""

HOLDER = """
import asyncio
from fastapi_maintenance import Maintenance

async def hold():
    async with Maintenance().on(drain=20):
        print("drained", flush=True)
        await asyncio.sleep(60)

asyncio.run(hold())
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Give the directory of the server."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def port(directory):
    """Serve with two workers, for all tests here; give the port."""
    with serving(directory) as start:
        yield start(SERVED, "--workers", "2", "--no-access-log", workers=2)


@pytest.fixture
def ask(port):
    """Give a function that asks, and gives status and body; and wait for both workers to be there and idle before."""
    with ThreadPoolExecutor(8) as pool:

        def asking(path):
            return asked(port, path)[:2]

        asking.later = lambda path: pool.submit(asking, path)
        until(lambda: len({asking("/pid")[1] for _ in range(8)}) == 2)
        yield asking


@pytest.fixture
def maintenance(directory, ask):
    """Give an object as a script has it, once the server is open and its two workers are idle."""
    maintenance = Maintenance(backend=LocalFileBackend(directory / "state"))
    until(lambda: ask("/async?ms=0")[0] == 200 and idle(maintenance) == 2)
    return maintenance


def idle(maintenance):
    """Count the workers that do nothing."""
    return sum(not worker.busy for worker in asyncio.run(maintenance.workers()))


def busy(maintenance):
    """Give the processes of the workers that do something."""
    return [worker.pid for worker in asyncio.run(maintenance.workers()) if worker.busy]


async def drain(maintenance, seconds, within=lambda: None):
    """Drain, do something within, and give what it gave."""
    async with maintenance.on(drain=seconds):
        return within()


@contextmanager
def holding(directory):
    """Hold from a process of its own; give it once it has drained."""
    env = environment(FASTAPI_MAINTENANCE_BACKEND=f"file:{directory / 'state'}")
    process = subprocess.Popen([sys.executable, "-c", HOLDER], env=env, stdout=subprocess.PIPE)  # noqa: S603 - our own
    with process:
        assert process.stdout.readline() == b"drained\n"
        yield process
        process.kill()


def test_a_stopped_worker_that_is_busy_is_never_drained(maintenance, ask):
    """A drain waits for a busy worker that is stopped, and names it; once it goes on, its request ends well."""
    answer = ask.later("/async?ms=300")
    (pid,) = until(lambda: busy(maintenance))
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(DrainTimeout) as timeout:
            asyncio.run(drain(maintenance, 0.6))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (timeout.value.busy, timeout.value.workers, timeout.value.pids) == (1, 2, (pid,))
    assert answer.result()[0] == 200
    assert asyncio.run(drain(maintenance, 5, lambda: ask("/async?ms=0")[0])) == 503


def test_a_killed_worker_is_waited_for_no_longer(maintenance, ask):
    """The kernel ends the slot of a killed worker: a drain that waits for it goes on."""
    answer = ask.later("/async?ms=20000")
    (pid,) = until(lambda: busy(maintenance))
    os.kill(pid, signal.SIGKILL)
    assert asyncio.run(drain(maintenance, 5, lambda: ask("/async?ms=0")[0])) == 503
    assert isinstance(answer.exception(), OSError)


def test_a_killed_holder_reopens_at_once(maintenance, ask, directory):
    """The kernel ends the hold of a killed process: the server is open again after much less than a second."""
    with holding(directory) as process:
        assert ask("/async?ms=0")[0] == 503
        begin = time.monotonic()
        process.kill()
        until(lambda: ask("/async?ms=0")[0] == 200)
    print(f"open again {(time.monotonic() - begin) * 1000:.0f} ms after the holder was killed")  # noqa: T201 - a figure


def test_a_wrong_path_is_no_workers(tmp_path):
    """Where nobody is attached a drain says so, instead of having drained nothing."""
    with pytest.raises(NoWorkers) as nobody:
        asyncio.run(drain(Maintenance(backend=LocalFileBackend(tmp_path / "other")), 1))
    assert (nobody.value.found, nobody.value.wanted) == (0, 1)


def test_a_gate_that_was_deleted_is_attached_to_anew(maintenance, ask, directory):
    """Without the gate there are no workers; those that serve attach to a new one, and can be drained."""
    (directory / "state.gate").unlink()
    with pytest.raises(NoWorkers):
        asyncio.run(drain(maintenance, 1))
    until(lambda: ask("/async?ms=0")[0] == 200 and idle(maintenance) == 2)
    assert asyncio.run(drain(maintenance, 5, lambda: ask("/async?ms=0")[0])) == 503


@pytest.mark.parametrize("fault", ["gate", "rubbish", "off", "deleted"])
def test_nothing_starts_in_a_window_whatever_becomes_of_the_files(maintenance, ask, directory, fault):
    """The gate deleted, the state deleted, overwritten by `0` or by rubbish: nobody gets in before the end."""
    state = directory / "state"
    faults = {
        "gate": (directory / "state.gate").unlink,
        "rubbish": lambda: state.write_bytes(b"\xff{"),
        "off": lambda: state.write_bytes(b"0"),
        "deleted": state.unlink,
    }

    def within():
        faults[fault]()
        return {ask("/async?ms=0")[0] for _ in range(30)}

    assert asyncio.run(drain(maintenance, 5, within)) == {503}
    state.write_bytes(b"0")
    until(lambda: ask("/async?ms=0")[0] == 200)
