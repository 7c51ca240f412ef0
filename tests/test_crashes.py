"""Many processes at once, and processes that are killed or stopped at any point: nothing torn, stuck or lost."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastapi_maintenance import BackendError, Maintenance
from fastapi_maintenance.backends import LocalFileBackend, flock, locks

ROOT = Path(__file__).parent.parent

PROCESSES = 16
CHANGES = 50
READS = {"Gate": 200_000, "FlockGate": 50_000}
KILLS = 200

COMMON = """
import asyncio, builtins, json, os, random, signal, sys, time, traceback
from datetime import UTC, datetime, timedelta
import anyio
from fastapi_maintenance import BackendError, Maintenance, set_maintenance_mode
from fastapi_maintenance.backends import LocalFileBackend, file, flock, locks
from fastapi_maintenance.state import Hold

# What is loaded now need not be loaded by each child.
asyncio.run(anyio.sleep(0))
variant, path, *rest = sys.argv[1:]
file.gate_beside = getattr(flock, variant)
directory = os.path.dirname(path)

def fork(work, *args):
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work(*args)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)

def wait(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.0005)
    return condition()

def is_active(state):
    return state.at(datetime.now(UTC)).active

def names():
    return sorted(os.listdir(directory))
"""


@pytest.fixture(params=["Gate", "FlockGate"])
def variant(request, monkeypatch):
    """Give the name of each variant of the gate; file backends made in the test use it."""
    monkeypatch.setattr("fastapi_maintenance.backends.file.gate_beside", getattr(flock, request.param))
    return request.param


@pytest.fixture
def path(tmp_path):
    """Give the path of a state file that does not exist yet."""
    return tmp_path / "state"


def names(directory):
    """List a directory."""
    return sorted(entry.name for entry in Path(directory).iterdir())


@contextmanager
def program(text, *arguments):
    """Run a program in the background until the end of the block."""
    command = [sys.executable, "-c", COMMON + text, *map(str, arguments)]
    environment = {**os.environ, "COVERAGE_PROCESS_START": ""}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:  # noqa: S603 - these programs
        try:
            yield process
        finally:
            process.kill()


def run(text, *arguments):
    """Run a program and give what it found."""
    with program(text, *arguments) as process:
        out, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    return json.loads(out)


# Many at once

MANY = """
# Many writers on a slow disk wait long, and a lock need not be fair: here it is only asked that nothing is lost.
locks.WRITE_TIMEOUT = 100.0
processes, changes = map(int, rest)
soon = datetime.now(UTC) + timedelta(hours=1)

async def change(maintenance, number, what):
    if what == 0:
        await maintenance.schedule(soon, soon + timedelta(hours=1), message=number)
    elif what == 1:
        await maintenance.enable(message=number)
    elif what == 2:
        await maintenance.disable()
    elif what == 3:
        async with maintenance.on(message=number) as hold:
            assert hold.id in [held.id for held in (await maintenance.status()).holds], number
    else:
        await set_maintenance_mode(True, maintenance.backend)

async def main(process):
    maintenance = Maintenance(backend=LocalFileBackend(path))
    for number in range(changes):
        await change(maintenance, f"{process}-{number}", number % 5)

children = [fork(lambda: asyncio.run(main(number))) for number in range(processes)]
print(json.dumps(wait(children)))
"""


def test_no_change_of_many_processes_is_lost(variant, path):
    """Each window is in the final document, each change took a revision of its own, and no hold is left."""
    failed = run(MANY, variant, path, PROCESSES, CHANGES)
    document = json.loads(path.read_text())
    planned = {f"{process}-{number}" for process in range(PROCESSES) for number in range(0, CHANGES, 5)}
    assert failed == [0] * PROCESSES
    assert ({window["message"] for window in document["windows"]}, len(document["windows"])) == (planned, len(planned))
    # A hold changes the document twice.
    assert (document["revision"], document["holds"]) == (PROCESSES * CHANGES * 6 // 5, [])
    assert names(path.parent) == ["state", "state.gate"]


READERS = """
what, reads = rest[0], int(rest[1])
soon = datetime.now(UTC) + timedelta(hours=1)

def read():
    backend = LocalFileBackend(path)
    seen = {is_active(backend.peek_state()) for _ in range(reads)}
    assert seen == {True}, seen

async def write():
    maintenance = Maintenance(backend=LocalFileBackend(path))
    while True:
        if what == "switch":
            await maintenance.enable(message="still on")
            await set_maintenance_mode(True, maintenance.backend)
        else:
            window = await maintenance.schedule(soon, soon + timedelta(hours=1))
            await maintenance.unschedule(window.id)

async def hold():
    async with Maintenance(backend=LocalFileBackend(path)).on():
        await asyncio.sleep(3600)

others = [fork(lambda: asyncio.run(hold()))] if what == "hold" else []
backend = LocalFileBackend(path)
closed = until(lambda: what == "switch" or is_active(backend.peek_state()), 10)
others.append(fork(lambda: asyncio.run(write())))
before = backend.peek_state().revision
until(lambda: backend.peek_state().revision > before, 10)
first = backend.peek_state().revision
failed = wait([fork(read) for _ in range(2)])
last = backend.peek_state().revision
for other in others:
    os.kill(other, signal.SIGKILL)
print(json.dumps([closed, failed, last - first]))
"""


@pytest.mark.parametrize("what", ["switch", "hold"])
def test_no_reader_sees_off_while_a_writer_writes_without_pause(variant, path, what):
    """Closed by the switch or by a hold: of 200,000 reads by two processes none finds it open, and none raises."""
    path.write_text("1\n" if what == "switch" else "0\n")
    closed, failed, changes = run(READERS, variant, path, what, READS[variant] // 2)
    assert (closed, failed) == (True, [0, 0])
    assert changes > 10


# Holders that die

HOLDER = """
import mmap
kills, seed = map(int, rest)
chance = random.Random(seed)
counter = mmap.mmap(-1, 8)
backend = LocalFileBackend(path)
wrong = []

def count():
    return int.from_bytes(counter[:8], "little")

async def hold_again_and_again():
    maintenance = Maintenance(backend=LocalFileBackend(path))
    for number in range(1, 1_000_000, 2):
        async with maintenance.on():
            counter[:8] = number.to_bytes(8, "little")
            await asyncio.sleep(chance.uniform(0, 0.01))
            counter[:8] = (number + 1).to_bytes(8, "little")

def look():
    before = count()
    active = is_active(backend.peek_state())
    if before % 2 and count() == before:
        seen_closed.append(active)

held = seen = 0
for number in range(kills):
    seen_closed = []
    counter[:8] = bytes(8)
    chance.seed(seed + number)
    holder = fork(lambda: asyncio.run(hold_again_and_again()))
    until(count, 10)
    end = time.monotonic() + chance.uniform(0, 0.02)
    while time.monotonic() < end:
        look()
    os.kill(holder, signal.SIGKILL)
    wait([holder])
    held += count() % 2
    seen += len(seen_closed)
    if not all(seen_closed):
        wrong.append([number, "open while held"])
    if not until(lambda: not is_active(backend.peek_state()), 1):
        wrong.append([number, "closed for a second after"])
    state = backend._change(lambda state: state.switched(datetime.now(UTC), on=False))
    if state.holds or names() != ["state", "state.gate"]:
        wrong.append([number, names()])
print(json.dumps([wrong, held, seen]))
"""


def test_a_holder_killed_at_any_instant_leaves_it_open(variant, path):
    """Closed while it lives, open within a second after, and nothing left after the next change; 200 times."""
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)  # noqa: T201 - shown when the test fails
    wrong, held, seen = run(HOLDER, variant, path, KILLS, seed)
    assert wrong == []
    # It was killed inside its block as well as while it entered or left, and it was looked at.
    assert 0 < held < KILLS
    assert seen > KILLS


KEEPER = """
async def keep():
    async with Maintenance(backend=LocalFileBackend(path)).on(on_failure="keep", message="half done"):
        os.kill(os.getpid(), signal.SIGKILL)

print(json.dumps(wait([fork(lambda: asyncio.run(keep()))])))
"""


def test_a_holder_killed_inside_a_hold_to_keep_leaves_an_orphan(variant, path):
    """It stays closed through other changes and for other processes until somebody turns it off."""
    status = run(KEEPER, variant, path)
    one, other = (Maintenance(backend=LocalFileBackend(path)) for _ in range(2))

    async def seen():
        found = [await one.status()]
        await one.enable()
        async with one.on():
            found.append(await other.status())
        await set_switch_off(one)
        found.append(await other.status())
        return found, await other.disable()

    async def set_switch_off(maintenance):
        await maintenance.backend.change_state(lambda state: state.with_given_switch(None))

    found, ended = asyncio.run(seen())
    assert status == [-signal.SIGKILL]
    assert [(held.message, held.phase) for state in found for held in state.holds if held.on_failure == "keep"] == [
        ("half done", "orphan")
    ] * 3
    assert (ended.active, ended.holds) == (False, ())
    assert names(path.parent) == ["state", "state.gate"]


# Writers that die or stop

WRITER = """
class Deadly:
    # A module whose functions kill the process at the call that is due.
    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        real = getattr(self.module, name)
        if not callable(real) or isinstance(real, type):
            return real
        return lambda *args, **kwargs: (tick(), real(*args, **kwargs))[1]

class DeadlyFile:
    # A file that is written in two parts.
    def __init__(self, opened):
        self.opened = opened

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.opened.close()

    def __getattr__(self, name):
        return getattr(self.opened, name)

    def write(self, raw):
        for part in (raw[:len(raw) // 2], raw[len(raw) // 2:]):
            tick()
            self.opened.write(part)
            self.opened.flush()

def deadly_open(name, mode, **options):
    opened = builtins.open(name, mode, **options)
    return DeadlyFile(opened) if "w" in mode else opened

def tick():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def say_more(state):
    return state.with_switch(datetime.now(UTC), message="new")

def plan(state):
    start = datetime.now(UTC) + timedelta(hours=1)
    return state.with_window(file.MaintenanceState.model_validate({"windows": [
        {"id": "w", "start": start, "end": start + timedelta(hours=1)}
    ]}).windows[0])

def hold(on_failure):
    return Hold(id="held", since=datetime.now(UTC), on_failure=on_failure)

def nothing(backend):
    pass

# What is there before, what is done before, and the change that dies.
CASES = {
    "first": (nothing, nothing, lambda backend: backend._change(say_more)),
    "word": (
        lambda backend: backend._change(lambda state: state.switched(datetime.now(UTC), on=True)),
        nothing,
        lambda backend: backend._change(say_more),
    ),
    "document": (lambda backend: backend._change(plan), nothing, lambda backend: backend._change(say_more)),
    "to a word": (
        lambda backend: backend._change(say_more),
        nothing,
        lambda backend: backend._change(lambda state: state.switched(datetime.now(UTC), on=False)),
    ),
    "hold": (nothing, nothing, lambda backend: backend._take(hold("lift"))),
    "hold to keep": (nothing, nothing, lambda backend: backend._take(hold("keep"))),
    "end": (nothing, lambda backend: backend._take(hold("lift")), lambda backend: backend._end(hold("lift"), False)),
    "end to keep": (
        nothing, lambda backend: backend._take(hold("keep")), lambda backend: backend._end(hold("keep"), False)
    ),
    "end of a failed one": (
        nothing, lambda backend: backend._take(hold("keep")), lambda backend: backend._end(hold("keep"), True)
    ),
}

def summary(state):
    switch = None if state.switch is None else state.switch.message or "on"
    return [switch, len(state.windows), [held.phase for held in state.holds]]

def die(before, change, calls):
    global left
    backend = LocalFileBackend(path)
    before(backend)
    left = calls
    file.os, locks.os, flock.os = Deadly(os), Deadly(os), Deadly(os)
    locks.fcntl = flock.fcntl = Deadly(locks.fcntl)
    file.open = deadly_open
    change(backend)

prepare, before, change = CASES[rest[0]]
found, wrong, status, calls = [], [], None, 0
while status != [0]:
    for name in os.listdir(directory):
        os.unlink(os.path.join(directory, name))
    reader = LocalFileBackend(path)
    prepare(reader)
    first = reader.peek_state().revision
    status = wait([fork(die, before, change, calls)])
    state = reader.peek_state()
    fresh = LocalFileBackend(path)
    if summary(fresh.peek_state()) != summary(state):
        wrong.append([calls, "readers disagree"])
    after = fresh._change(lambda state: state.model_copy(update={"revision": state.revision + 1, "note": "x"}))
    if summary(after) != summary(state) or summary(reader.peek_state()) != summary(state):
        wrong.append([calls, "the next change saw another state"])
    if not first <= state.revision < after.revision or after.revision != reader.peek_state().revision:
        wrong.append([calls, first, state.revision, after.revision])
    if names() != ["state", "state.gate"] or reader.peek_state().model_extra != {"note": "x"}:
        wrong.append([calls, names()])
    if status not in ([0], [-signal.SIGKILL]):
        wrong.append([calls, status])
        break
    found.append(summary(state))
    calls += 1
print(json.dumps([wrong, found]))
"""

CLOSED_BY_ORPHAN = [None, 0, ["orphan"]]
OPENED = [None, 0, []]


@pytest.mark.parametrize(
    ("case", "old", "new"),
    [
        ("first", OPENED, ["new", 0, []]),
        ("word", ["on", 0, []], ["new", 0, []]),
        ("document", [None, 1, []], ["new", 1, []]),
        ("to a word", ["new", 0, []], OPENED),
        ("hold", OPENED, OPENED),
        ("hold to keep", OPENED, CLOSED_BY_ORPHAN),
        ("end", OPENED, OPENED),
        ("end to keep", CLOSED_BY_ORPHAN, OPENED),
        ("end of a failed one", CLOSED_BY_ORPHAN, CLOSED_BY_ORPHAN),
    ],
)
def test_a_writer_killed_between_any_two_system_calls(variant, path, case, old, new):
    """The state is the old or the new one, the next change works on it, and what was left over is gone."""
    wrong, found = run(WRITER, variant, path, case)
    turn = found.index(new) if old != new else 1
    assert wrong == []
    assert found == [old] * turn + [new] * (len(found) - turn)
    assert min(turn, len(found) - 15) > 0


STOPPED = """
real = os.replace
def stop_then_replace(*args):
    os.kill(os.getpid(), signal.SIGSTOP)
    return real(*args)
os.replace = stop_then_replace
LocalFileBackend(path)._change(lambda state: state.switched(datetime.now(UTC), on=True))
print(json.dumps("done"))
"""


def test_a_stopped_writer_keeps_nobody_for_ever(variant, path, monkeypatch):
    """Another writer gets an error, readers go on and a hold ends; its own change counts when it goes on."""
    monkeypatch.setattr(locks, "WRITE_TIMEOUT", 0.1)
    one, other = (Maintenance(backend=LocalFileBackend(path)) for _ in range(2))

    async def main():
        context = one.on()
        await context.__aenter__()
        with program(STOPPED, variant, path) as writer:
            await asyncio.to_thread(os.waitpid, writer.pid, os.WUNTRACED)
            with pytest.raises(BackendError, match=r"cannot be written: another process has been writing for 0\.1 s"):
                await one.enable()
            with pytest.raises(BackendError, match="another process has been writing"):
                await other.on().__aenter__()
            inside = [await maintenance.status() for maintenance in (one, other)]
            await context.__aexit__(None, None, None)
            after = [await maintenance.status() for maintenance in (one, other)]
            writer.send_signal(signal.SIGCONT)
            out, errors = writer.communicate(timeout=60)
        return inside, after, (json.loads(out), errors), await other.disable(by="me")

    inside, after, said, ended = asyncio.run(main())
    assert [(status.active, status.stale, len(status.holds)) for status in inside] == [(True, None, 1)] * 2
    assert [(status.active, status.stale) for status in after] == [(False, None)] * 2
    assert (said, ended.active, ended.holds) == (("done", ""), False, ())
    assert names(path.parent) == ["state", "state.gate"]
