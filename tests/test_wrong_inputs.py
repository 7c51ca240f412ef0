"""Wrong inputs and their answers, where no other file tests them: newer documents, users' stores, users, clocks."""

import os
import pwd
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from fastapi_maintenance import BackendError, Maintenance, MaintenanceSettings
from fastapi_maintenance.backends import BaseStateBackend, EnvVarBackend, LocalFileBackend, MemoryBackend

ROOT = Path(__file__).parents[1]
NOBODY = 65534
NOW = datetime.now(UTC)
AN_HOUR = timedelta(hours=1)

CHANGES = {
    "enable": lambda m: m.enable(),
    "disable": lambda m: m.disable(),
    "schedule": lambda m: m.schedule(NOW, NOW + AN_HOUR),
    "unschedule": lambda m: m.unschedule("w"),
    "hold": lambda m: m.on().__aenter__(),
}


@pytest.mark.anyio
@pytest.mark.parametrize("change", CHANGES)
async def test_a_newer_document_is_not_written(tmp_path, change):
    """Who would write over a document of a newer version is told so, and it stays as it is."""
    path = tmp_path / "state"
    path.write_text('{"schema": 2, "switch": "as they say now"}')
    with pytest.raises(
        BackendError, match=r"written by a newer version \(schema 2, this one reads up to 1\)"
    ) as caught:
        await CHANGES[change](Maintenance(backend=LocalFileBackend(path)))
    assert str(path) in str(caught.value)
    assert path.read_text() == '{"schema": 2, "switch": "as they say now"}'


class Flag(BaseStateBackend):
    """A true/false store of a user."""

    answer = True
    told = ()

    async def get_value(self):
        return self.answer() if callable(self.answer) else self.answer

    async def set_value(self, value):
        self.told = (*self.told, value)


async def forgotten():
    """Stand for a coroutine that a store forgot to await."""


RUBBISH = {
    "'false'": "false",
    "'1'": "1",
    "None": None,
    "2": 2,
    "1.0": 1.0,
    "[]": [],
    "<coroutine ob": forgotten,
}


@pytest.mark.anyio
@pytest.mark.parametrize("shown", RUBBISH)
async def test_an_answer_that_is_no_bool_is_a_type_error_that_names_the_store(shown, caplog):
    """What is neither true nor false is never taken for either: the last known state holds, the log says why."""
    flag = Flag()
    maintenance = Maintenance(MaintenanceSettings(refresh_interval=0.001, read_timeout=5), backend=flag)
    await maintenance.status()
    flag.answer = RUBBISH[shown]
    with anyio.fail_after(5):
        while (status := await maintenance.status()).stale is None:
            await anyio.sleep(0.002)
    (line,) = caplog.messages
    assert status.active
    assert f"TypeError: Flag.get_value() gave {shown}" in line
    assert line.endswith("it must give True or False")


@pytest.mark.anyio
@pytest.mark.parametrize("shown", RUBBISH)
async def test_a_hold_asks_and_an_answer_that_is_no_bool_means_no_hold(shown):
    """A hold has to know what to put back; without an answer it has not begun and the store was told nothing."""
    flag = Flag()
    flag.answer = RUBBISH[shown]
    with pytest.raises(BackendError, match=r"TypeError: Flag\.get_value\(\) gave "):
        await Maintenance(backend=flag).on().__aenter__()
    assert flag.told == ()


# No permission, for each kind of change and for real

PROGRAM = """
import os, sys
from datetime import UTC, datetime, timedelta
import anyio
from fastapi_maintenance import BackendError, Maintenance
from fastapi_maintenance.backends import LocalFileBackend

async def held(maintenance):
    async with maintenance.on():
        print("the body has run")

async def main():
    await anyio.to_thread.run_sync(int)
    maintenance = Maintenance(backend=LocalFileBackend(sys.argv[1]))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    now = datetime.now(UTC)
    for change in (
        maintenance.enable, maintenance.disable, lambda: maintenance.schedule(now, now + timedelta(1)),
        lambda: held(maintenance),
    ):
        try:
            await change()
        except BackendError as error:
            print(error)
        status = await maintenance.status()
        print(status.active, status.message, status.holds, status.stale)

anyio.run(main)
"""


@pytest.fixture
def public():
    """Give a directory that each user can enter and only its owner could write; pytest's own are private."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)
        Path(directory).chmod(0o700)


@pytest.mark.parametrize("gate", [None, 0o600, 0o644])
def test_no_permission_to_write(public, gate):
    """Each change, and a hold before its body, is an error with path, user and mode; the state stands as it was."""
    state = public / "state"
    document = '{"switch": {"since": "2026-01-01T00:00:00Z", "message": "as it was"}}'
    state.write_text(document)
    state.chmod(0o644)
    if gate is not None:
        (public / "state.gate").write_bytes(bytes(8))
        (public / "state.gate").chmod(gate if os.geteuid() == 0 else gate & 0o444)
    before = sorted(public.iterdir())
    public.chmod(0o555)
    done = subprocess.run(  # noqa: S603 - this program
        [sys.executable, "-c", PROGRAM, state], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    user = pwd.getpwuid(os.geteuid() or NOBODY).pw_name
    assert lines[1::2] == ["True as it was () None"] * 4
    assert [line.startswith(f"state file {state}: ") for line in lines[::2]] == [True] * 4
    assert [f"Permission denied (user {user}, uid " in line and " has mode " in line for line in lines[::2]] == [
        True
    ] * 4
    assert (state.read_text(), sorted(public.iterdir())) == (document, before)


# The wall clock steps


@pytest.fixture
def step(monkeypatch):
    """Give a function that sets the wall clock so much off; the monotonic clock goes on as it did."""
    real = time.time_ns

    def stepped(delta):
        nanoseconds = int(delta.total_seconds()) * 10**9
        monkeypatch.setattr(time, "time_ns", lambda: real() + nanoseconds)
        monkeypatch.setattr(time, "time", lambda: (real() + nanoseconds) / 1e9)
        for name, module in list(sys.modules.items()):
            if name.startswith("fastapi_maintenance.") and hasattr(module, "utcnow"):
                monkeypatch.setattr(module, "utcnow", lambda: datetime.fromtimestamp(time.time(), UTC))

    return stepped


KINDS = {
    "memory": lambda path: MemoryBackend(),
    "file": lambda path: LocalFileBackend(path / "state"),
    "flag": lambda path: Flag(),
    "env": lambda path: EnvVarBackend(),
}
STEPS = [timedelta(days=days) for days in (0, 400, -400, 0)]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS)
async def test_a_hold_does_not_follow_the_wall_clock(kind, tmp_path, step):
    """However the clock steps while it is held, it is closed, and open when the hold is over."""
    backend = KINDS[kind](tmp_path)
    backend.answer = False
    maintenance = Maintenance(backend=backend)
    seen = []
    for first in STEPS:
        step(first)
        async with maintenance.on():
            for delta in STEPS:
                step(delta)
                seen.append(((await maintenance.status()).active, maintenance.last_known_mode()))
        seen.append(((await maintenance.status()).active, maintenance.last_known_mode()))
    assert seen == [*[(True, "full")] * 4, (False, None)] * 4


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("what", ["window", "until"])
async def test_windows_and_ends_follow_the_wall_clock(kind, what, tmp_path, step):
    """A window, and a switch with an end, is what the clock says at each look, forwards and backwards."""
    maintenance = Maintenance(backend=KINDS[kind](tmp_path))
    if what == "window":
        await maintenance.schedule(NOW + AN_HOUR, NOW + 3 * AN_HOUR)
    else:
        await maintenance.enable(until=NOW + 3 * AN_HOUR)
    seen = []
    for hours in (0, 2, 4, 2, 0):
        step(hours * AN_HOUR)
        status = await maintenance.status()
        assert (maintenance.last_known_mode() is not None) == status.active
        seen.append(status.active)
    assert seen == ([False, True, False, True, False] if what == "window" else [True, True, False, True, True])
