"""Holds, switch, windows, crashes and clocks in any order, against a simple model of what must be so.

The short profile runs with the other tests; `STATE_MACHINE_EXAMPLES=10000` makes a long one. An owner that dies is
simulated inside this process: the descriptor of each of its locks is closed without a release, as the kernel does, and
all its objects are dropped. A writer that dies does so between two system calls: each call after that fails, the clean
up of the file layer, too, and then its locks are closed like an owner's.
"""

import asyncio
import json
import logging
import os
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fastapi_maintenance import BackendError, Maintenance, MaintenanceState, tasks
from fastapi_maintenance.backends import LocalFileBackend, MemoryBackend, file, locks
from tests.machines import at_once, in_memory, profile, until_found, with_each

pytestmark = pytest.mark.no_cover  # the same lines again and again, at a third of the speed

PROFILE = profile("STATE_MACHINE_EXAMPLES", 30)
START = datetime(2030, 1, 1, tzinfo=UTC)
CLOCKS = [
    f"fastapi_maintenance.{module}.utcnow" for module in ("maintenance", "gate", "holds", "snapshot", "backends.memory")
]
SYSTEM_CALLS = ("open", "pwrite", "fchown", "fchmod", "fsync", "replace", "unlink", "scandir")

WORDS = {"0": None, " ON\n": "full", "read_only": "read_only"}

modes = st.sampled_from(["full", "read_only"])
minutes = st.integers(1, 300).map(lambda number: timedelta(minutes=number))
numbers = st.integers(0, 2)
notes = st.dictionaries(st.sampled_from(["x_team", "x_ticket"]), st.integers(0, 9), max_size=2)


class Killed(BaseException):
    """The process died here."""


class Model:
    """What must be so, as simply as it can be said."""

    def __init__(self):
        self.switch = None
        self.windows = {}
        self.holds = {}
        self.notes = {}

    def copy(self):
        """Give the model as it is now."""
        copied = Model()
        copied.switch, copied.notes = self.switch, self.notes
        copied.windows, copied.holds = dict(self.windows), dict(self.holds)
        return copied

    def modes(self, now):
        """Give the modes of all that closes at `now`; a hold that was written over is full."""
        found = [mode for start, end, mode in self.windows.values() if start <= now < end]
        found += [hold.mode if hold.listed else "full" for hold in self.holds.values()]
        if self.switch is not None and (self.switch.until is None or now < self.switch.until):
            found.append(self.switch.mode)
        return found

    def mode(self, now):
        """Give the strictest of them."""
        return min(self.modes(now), default=None)

    def until(self, now):
        """Give the first instant from `now` on at which nothing closes, if there is one and it is closed now."""
        ends = [end for _, end, _ in self.windows.values()]
        ends += [self.switch.until] if self.switch is not None and self.switch.until is not None else []
        opens = [end for end in sorted(ends) if end > now and not self.modes(end)]
        return opens[0] if opens and self.modes(now) else None

    def ids(self):
        """Give the ids of the holds; those that were written over are shown as one."""
        return {key if hold.listed else file.UNLISTED for key, hold in self.holds.items()}

    def next_start(self, now):
        """Give when the next window begins."""
        return min((start for start, _, _ in self.windows.values() if start > now), default=None)

    def off(self):
        """Turn the switch off, which ends orphans."""
        self.switch = None
        self.holds = {key: hold for key, hold in self.holds.items() if not hold.orphan}

    def dies(self, owner):
        """End the holds of a process."""
        for key, hold in list(self.holds.items()):
            if hold.owner is owner and not hold.orphan:
                self.fails(key, hold)

    def fails(self, key, hold, *, stored=False):
        """End a hold that failed; unless that is stored, it is kept only where the file lists it."""
        del self.holds[key]
        if hold.keep and (hold.listed or stored):
            self.holds[key] = SimpleNamespace(**{**vars(hold), "orphan": True, "listed": True})

    def written_over(self, mode):
        """Forget what a hand has written over; holds that live stay."""
        lives = {key: hold for key, hold in self.holds.items() if not hold.orphan}
        self.holds = {key: SimpleNamespace(**{**vars(hold), "listed": False}) for key, hold in lives.items()}
        self.switch = mode and SimpleNamespace(mode=mode, until=None)
        self.windows, self.notes = {}, {}


class Common(RuleBasedStateMachine):
    """What memory and file do alike; three objects on one store, with an event loop and a clock."""

    entered = Bundle("entered")
    planned = Bundle("planned")

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(logging.getLogger("fastapi_maintenance"), "disabled", True)
        self.now = self.latest = START
        for clock in CLOCKS:
            self.patch.setattr(clock, lambda: self.now)
        self.model = Model()
        self.revision = self.killed = 0
        self.shown = []
        self.objects = []

    def teardown(self):
        self.runner.close()
        self.patch.undo()

    def run(self, awaitable):
        """Run to the end in the machine's event loop."""
        return self.runner.run(_plain(awaitable))

    def changed(self, maintenance):
        """Note that a change was made: its revision is higher than all that was ever shown, and all know it."""
        revision = self.run(maintenance.snapshot.read()).revision
        assert revision > self.revision, f"revision {revision} after {self.revision}"
        self.revision = revision
        assert self.revisions() == [revision] * len(self.objects)

    def revisions(self):
        """Give the revision that each object shows."""
        return [self.run(maintenance.snapshot.read()).revision for maintenance in self.objects]

    # The switch, windows, the clock

    @rule(number=numbers, mode=modes, lasts=st.none() | minutes)
    def enable(self, number, mode, lasts):
        """Turn the switch on, with or without an end."""
        until = None if lasts is None else self.now + lasts
        self.run(self.objects[number].enable(mode=mode, until=until))
        self.model.switch = SimpleNamespace(mode=mode, until=until)
        self.changed(self.objects[number])

    @rule(number=numbers)
    def disable(self, number):
        """Turn it off; live holds stay."""
        self.run(self.objects[number].disable())
        self.model.off()
        self.changed(self.objects[number])

    @rule(target=planned, number=numbers, begins=st.integers(-60, 300), lasts=minutes, mode=modes)
    def schedule(self, number, begins, lasts, mode):
        """Plan a window that is not over yet."""
        start = self.now + timedelta(minutes=begins)
        end = max(start + lasts, self.now + timedelta(minutes=1))
        window = self.run(self.objects[number].schedule(start, end, mode=mode))
        self.model.windows[window.id] = (start, end, mode)
        self.changed(self.objects[number])
        return window.id

    @rule(number=numbers, window=consumes(planned))
    def unschedule(self, number, window):
        """Drop a window; one that was over for a day, or that a hand removed, is unknown."""
        known = self.model.windows.pop(window, None)
        if known is not None and self.latest - known[1] < timedelta(days=1):
            self.run(self.objects[number].unschedule(window))
            self.changed(self.objects[number])

    @rule(step=st.integers(-20, 600))
    def time_passes(self, step):
        """Move the clock, mostly forwards."""
        self.now += timedelta(minutes=step)
        self.latest = max(self.latest, self.now)

    @rule(number=numbers, said=notes)
    def annotate(self, number, said):
        """Store fields that this version does not know."""
        self.run(self.objects[number].snapshot.change(lambda state: _noted(state, said)))
        self.model.notes = {**self.model.notes, **said}
        self.changed(self.objects[number])

    # Holds

    @rule(target=entered, number=numbers, mode=modes, keep=st.booleans())
    def begin(self, number, mode, keep):
        """Begin a hold."""
        owner = self.objects[number]
        context = owner.on(mode=mode, on_failure="keep" if keep else "lift")
        key = self.run(context.__aenter__()).id
        hold = SimpleNamespace(owner=owner, context=context, mode=mode, keep=keep, orphan=False, listed=True)
        self.model.holds[key] = hold
        self.changed(owner)
        return key

    @rule(key=consumes(entered), fails=st.booleans())
    def leave(self, key, fails):
        """End a hold whose owner lives; its body may fail."""
        hold = self.model.holds.get(key)
        if hold is not None and not hold.orphan:
            error = ArithmeticError("the body's own") if fails else None
            self.run(hold.context.__aexit__(error and type(error), error, None))
            if fails:
                self.model.fails(key, hold, stored=True)
            else:
                del self.model.holds[key]
            self.changed(hold.owner)

    # What must be so

    @invariant()
    def all_objects_say_what_the_model_says(self):
        """Closed exactly when the model says so, by the same holds, with the same end and next window."""
        expected = (
            self.model.mode(self.now),
            self.model.until(self.now),
            self.model.next_start(self.now),
            self.model.ids() if self.model.mode(self.now) else set(),
        )
        for maintenance in self.objects:
            status = self.run(maintenance.status())
            held = {hold.id for hold in status.holds}
            begins = status.next_window and status.next_window.start
            assert status.stale is None, maintenance.snapshot.backend
            assert (status.mode, status.until, begins, held) == expected
            state = self.run(maintenance.snapshot.read())
            assert state.model_extra == self.model.notes
            assert {hold.id for hold in state.holds if hold.phase == "orphan"} == {
                key for key, hold in self.model.holds.items() if hold.orphan
            }

    @invariant()
    def no_revision_falls(self):
        """No object shows a lower revision than before, and a new process none that is lower than any shown."""
        revisions = self.revisions()
        assert all(now >= before for now, before in zip(revisions, self.shown, strict=False))
        self.shown, self.revision = revisions, max([self.revision, *revisions])


class InMemory(Common):
    """Three objects on one memory backend."""

    @initialize()
    def start(self):
        """Make the objects."""
        backend = MemoryBackend()
        self.objects = [Maintenance(backend=backend) for _ in range(3)]


class OnFile(Common):
    """Three processes on one file, that die, and a hand that edits it."""

    @initialize()
    def start(self):
        """Make the processes, and a directory in memory, where syncing costs nothing."""
        self.directory = in_memory()
        self.path = Path(self.directory.name) / "state"
        self.patch.setattr(file, "ALIVE_FOR", 0)
        self.patch.setattr(tasks.anyio.to_thread, "run_sync", at_once)
        self.objects = [self.process() for _ in range(3)]

    def teardown(self):
        for maintenance in self.objects:
            _close_locks(maintenance)
        super().teardown()
        self.directory.cleanup()

    def process(self):
        """Start a process."""
        return Maintenance(backend=LocalFileBackend(self.path))

    def replace(self, number):
        """Let a process die, and another one start in its place."""
        owner = self.objects[number]
        _close_locks(owner)
        self.model.dies(owner)
        self.objects[number] = self.process()
        self.shown[number] = self.revision

    @rule(number=numbers)
    def crash(self, number):
        """Kill a process: its holds end, or become orphans."""
        self.replace(number)

    @rule(number=numbers, calls=st.integers(0, 12), what=st.sampled_from(["enable", "disable", "on"]))
    def crash_while_writing(self, number, calls, what):
        """Kill a process between two system calls of a change: the old state is there, or the new one."""
        owner, old, new = self.objects[number], self.model, self.model.copy()
        context = owner.on(on_failure="keep")
        change = {"enable": owner.enable, "disable": owner.disable, "on": context.__aenter__}[what]
        with self.patch.context() as patch, pytest.MonkeyPatch.context() as ids:
            self.killed += 1
            key = f"{self.killed:016x}"
            ids.setattr("secrets.token_hex", lambda size: key)
            _kill_after(calls, patch)
            with suppress(Killed):
                self.run(change())
        if what == "disable":
            new.off()
        elif what == "enable":
            new.switch = SimpleNamespace(mode="full", until=None)
        else:
            new.holds[key] = SimpleNamespace(owner=owner, mode="full", keep=True, orphan=False, listed=True)
        old.dies(owner)
        new.dies(owner)
        self.replace(number)
        state = self.run(self.objects[number].snapshot.read())
        found = (state.switch and (state.switch.mode, state.switch.until), {hold.id for hold in state.holds})
        self.model = next(model for model in (new, old) if found == _said(model))

    @rule(word=st.sampled_from(sorted(WORDS)))
    def write_a_word(self, word):
        """Write a word by hand, which is all there is then; only live holds stay."""
        self.path.write_text(word)
        self.model.written_over(WORDS[word])

    @rule()
    def delete_the_file(self):
        """Delete the file by hand."""
        self.path.unlink(missing_ok=True)
        self.model.written_over(None)

    @rule(
        mode=st.none() | modes,
        said=notes,
        revision=st.sampled_from([{}, {"revision": 0}]),
        dead=st.sampled_from(["lift", "keep"]),
        begins=st.integers(-60, 60),
    )
    def write_a_document(self, mode, said, revision, dead, begins):
        """Write a document by hand, with an old revision or none, a hold that is dead and a window."""
        start, end = self.now + timedelta(minutes=begins), self.now + timedelta(hours=2)
        window = {"id": "by hand", "start": start.isoformat(), "end": end.isoformat()}
        hold = {"id": "dead", "since": START.isoformat(), "on_failure": dead}
        switch = mode and {"since": START.isoformat(), "mode": mode}
        self.path.write_text(json.dumps({"switch": switch, "windows": [window], "holds": [hold], **said, **revision}))
        self.model.written_over(mode)
        self.model.notes, self.model.windows["by hand"] = said, (start, end, "full")
        self.model.holds["dead"] = SimpleNamespace(
            owner=None, mode="full", keep=dead == "keep", orphan=False, listed=True
        )
        self.model.fails("dead", self.model.holds["dead"])

    @rule(mode=st.none() | modes, said=notes)
    def edit_the_document(self, mode, said):
        """Edit the switch in the document by hand, and add a note."""
        state = self.run(self.objects[0].snapshot.read())
        document = json.loads(state.to_json())
        document["switch"] = mode and {"since": START.isoformat(), "mode": mode}
        self.path.write_text(json.dumps({**document, **said}))
        self.model.switch = mode and SimpleNamespace(mode=mode, until=None)
        self.model.notes = {**self.model.notes, **said}

    @rule(rubbish=st.sampled_from([b"{", b"maybe", b"\xff\xfe1", b'{"schema": 2}', b"[]"]), number=numbers)
    def break_and_mend(self, rubbish, number):
        """While the file is broken each process keeps what it knew, says so, and refuses to write."""
        known = [(status.mode, status.holds) for status in self.statuses()]
        with self.broken(rubbish):
            statuses = self.statuses()
            assert [(status.mode, status.holds) for status in statuses] == known
            assert None not in {status.stale for status in statuses}
            with pytest.raises(BackendError):
                self.run(self.objects[number].enable())
            assert self.path.read_bytes() == rubbish

    @rule(key=consumes(Common.entered))
    def fail_while_broken(self, key):
        """A hold whose body fails while the file is broken stays only where it asked to, and the file lists it."""
        hold = self.model.holds.get(key)
        if hold is not None and not hold.orphan:
            error = ArithmeticError("the body's own")
            with self.broken(b"{"):
                self.run(hold.context.__aexit__(type(error), error, None))
            self.model.fails(key, hold)

    @contextmanager
    def broken(self, rubbish):
        """Break the file for the time of the block."""
        before = self.path.read_bytes() if self.path.exists() else None
        self.path.write_bytes(rubbish)
        yield
        if before is None:
            self.path.unlink()
        else:
            self.path.write_bytes(before)

    def statuses(self):
        """Ask all processes."""
        return [self.run(maintenance.status()) for maintenance in self.objects]


async def _plain(awaitable):
    return await awaitable


def _noted(state, said):
    return state.model_copy(update={"revision": state.revision + 1, **said})


def _said(model):
    return (model.switch and (model.switch.mode, model.switch.until), model.ids())


def _close_locks(maintenance):
    """Do what the kernel does when a process ends."""
    held = maintenance.backend._held
    for lock in held.values():
        os.close(lock._descriptor)
    held.clear()


def _kill_after(calls, patch):
    """Let the process die at its next system call but `calls`; a dead one calls nothing more."""
    left = iter(range(calls))

    def dying(call):
        def step(*args, **kwargs):
            if next(left, None) is None:
                raise Killed
            return call(*args, **kwargs)

        return step

    for name in SYSTEM_CALLS:
        patch.setattr(os, name, dying(getattr(os, name)))


MACHINES = {"memory": InMemory, "file": OnFile}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_it_is_always_what_the_model_says(machine):
    """Whatever happens in whatever order, each object says what the model says."""
    assert run_state_machine_as_test(machine, settings=PROFILE) is None


# The machine finds what it is there to find


def ends_all(state, hold_id):
    """End all holds with one."""
    return state._changed(holds=())


def ends_the_switch(state, hold_id):
    """Turn the switch off with the end of a hold."""
    return state._changed(switch=None, holds=tuple(hold for hold in state.holds if hold.id != hold_id))


def off_ends_holds(state):
    """End live holds when the switch is turned off."""
    return state._changed(switch=None, holds=())


def dead_stay_alive(gate, hold_ids):
    """Take the dead for living."""
    return frozenset(hold_ids)


def knows_no_revision(gate):
    """Leave each reader to what it has seen."""
    return 0


def sees_no_other(gate, hold_ids):
    """Overlook the holds that were written over."""
    return False


def stands_still(state, **update):
    """Change without a new revision."""
    return state.model_copy(update=update)


def in_place(backend, raw, revision, number, replaced):  # pragma: no cover - the writer may die anywhere in here
    """Write into the file itself, in two halves."""
    with Path(backend.file_path).open("wb") as opened:
        opened.write(raw[:1])
        opened.flush()
        os.fsync(opened.fileno())
        opened.write(raw[1:])
    revision.end(number)
    return True


MUTANTS = [
    (InMemory, MaintenanceState, "without_hold", ends_all),
    (InMemory, MaintenanceState, "without_hold", ends_the_switch),
    (InMemory, MaintenanceState, "without_switch", off_ends_holds),
    (InMemory, MaintenanceState, "_changed", stands_still),
    (OnFile, MaintenanceState, "without_hold", ends_all),
    (OnFile, MaintenanceState, "without_hold", ends_the_switch),
    (OnFile, locks.Gate, "alive", dead_stay_alive),
    (OnFile, locks.Gate, "revision", knows_no_revision),
    (OnFile, locks.Gate, "any_other", sees_no_other),
    (OnFile, LocalFileBackend, "_write", in_place),
]


@with_each(MUTANTS)
def test_a_mutant_is_found(machine, owner, name, mutant, monkeypatch):
    """The machine fails when something is broken on purpose."""
    monkeypatch.setattr(owner, name, mutant)
    with pytest.raises((AssertionError, StopIteration, BackendError)):
        run_state_machine_as_test(machine, settings=until_found(PROFILE))
