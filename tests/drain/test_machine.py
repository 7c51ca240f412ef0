"""Requests, holds, drains, crashes and the switch in any order, with the kernel's own locks, in one process.

The short profile runs with the other tests; `DRAIN_EXAMPLES=10000` makes a long one. A process is a backend object with
descriptors of its own; one that dies has them closed without a release, as the kernel does. What another process does
in the middle of an admission, before and after the count, is done there by a thread with an event loop of its own.
"""

import asyncio
import logging
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as explore

from fastapi_maintenance import DrainTimeout, Maintenance, MaintenanceModeMiddleware, tasks
from fastapi_maintenance.backends import LocalFileBackend, MemoryBackend, file
from fastapi_maintenance.backends.flock import FlockGate, gate_beside
from fastapi_maintenance.backends.locks import RangeWorker
from fastapi_maintenance.backends.slots import MachineInFlight
from fastapi_maintenance.gate import Gate
from fastapi_maintenance.inflight import InFlight, Passage
from fastapi_maintenance.marks import Marks
from tests.machines import at_once, in_memory, profile, until_found, with_each

PROFILE = profile("DRAIN_EXAMPLES", 20)

numbers = st.integers(0, 2)
workers = st.integers(0, 1)
actions = st.sampled_from(["hold", "drain", "enable"])
moments = st.sampled_from(["before", "after"])


class Process:
    """A worker, or a script: an object on a backend, and what runs in it."""

    def __init__(self, backend):
        self.maintenance = Maintenance(backend=backend)
        self.served = MaintenanceModeMiddleware(self.work, maintenance=self.maintenance)
        self.inside = {}

    async def work(self, scope, receive, send):
        """Run until somebody says that it is over, and how."""
        over = self.inside[scope["key"]] = asyncio.get_running_loop().create_future()
        try:
            await over
        finally:
            del self.inside[scope["key"]]

    async def start(self, key):
        """Begin a request; give its task once it is inside or refused."""
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "key": key}
        task = asyncio.create_task(self.served(scope, _nothing, _nothing))
        while not task.done() and key not in self.inside:
            await asyncio.sleep(0)
        return task


async def _nothing(*_):
    return {"type": "http.disconnect"}


class OnMemory(RuleBasedStateMachine):
    """Three objects on one memory backend."""

    gates = staticmethod(gate_beside)

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(logging.getLogger("fastapi_maintenance"), "disabled", True)
        self.patch.setattr(tasks.anyio.to_thread, "run_sync", at_once)
        self.patch.setattr(file, "ALIVE_FOR", 0)
        self.patch.setattr(file, "gate_beside", self.gates)
        self.meanwhile = {}
        for kind in (InFlight, MachineInFlight):
            self.patch.setattr(kind, "enter", self.interrupted(kind.enter))
        self.switch = False
        self.holds = []
        self.started = 0
        self.tasks = {}

    @initialize()
    def begin(self):
        """Make the processes."""
        backend = MemoryBackend()
        self.processes = [Process(backend) for _ in range(3)]

    def teardown(self):
        for process in self.processes:
            self.dies(process)
        self.runner.close()
        self.patch.undo()

    def dies(self, process):
        """End all that runs in a process."""
        self.runner.run(self.cancel(process))

    async def cancel(self, process):
        """Cancel all that runs in a process, and wait until that is done."""
        running = [self.tasks.pop(key) for key in list(process.inside)]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # What happens

    def interrupted(self, enter):
        """Give `enter` with something that happens elsewhere just before, or just after."""

        def entering(in_flight, request):
            self.elsewhere("before")
            entered = enter(in_flight, request)
            self.elsewhere("after")
            return entered

        return entering

    def elsewhere(self, moment):
        """Do what is to happen now as another process, with an event loop of its own."""
        action = self.meanwhile.pop(moment, "nothing")
        if action == "nothing":
            return
        thread = threading.Thread(target=lambda: asyncio.run(getattr(self, action)(self.processes[2])))
        thread.start()
        thread.join()

    async def enable(self, process):
        """Turn the switch on."""
        await process.maintenance.enable()
        self.switch = True

    async def hold(self, process):
        """Begin a hold that does not drain."""
        context = process.maintenance.on()
        await context.__aenter__()
        self.holds.append((process, context, False))

    async def drain(self, process):
        """Begin a hold that drains, in one try: whether it succeeds is the question."""
        context = process.maintenance.on(drain=0, min_workers=0)
        with suppress(DrainTimeout):
            await context.__aenter__()
            self.holds.append((process, context, True))

    @property
    def closed(self):
        """Whether it is closed."""
        return self.switch or bool(self.holds)

    @property
    def running(self):
        """How many requests run."""
        return sum(len(process.inside) for process in self.processes)

    # Rules

    @rule(number=workers, action=actions, moment=moments)
    def start(self, number, action, moment):
        """Begin a request, and let something happen in the middle of its admission."""
        self.start_one(number, action, moment)

    def start_one(self, number, action, moment):
        """Begin a request; it is let through exactly when it is open after all that happened meanwhile."""
        self.started += 1
        key, process = self.started, self.processes[number]
        was_free = self.running == 0 and not self.closed
        self.meanwhile = {} if self.closed else {moment: action}
        task = self.runner.run(process.start(key))
        assert self.meanwhile == {}, "an open gate counts"
        self.tasks.update({key: task} if key in process.inside else {})
        assert (key in process.inside) is not self.closed
        # Nobody drains while this request is counted, whether or not it is let through afterwards.
        drained = any(drained for *_, drained in self.holds)
        assert action != "drain" or not was_free or drained is (moment == "before")

    @rule(number=workers, count=st.integers(1, 3))
    def start_some(self, number, count):
        """Begin requests in one worker while nothing else happens."""
        for _ in range(count):
            self.start_one(number, "nothing", "before")

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.booleans())
    def finish(self, data, fails):
        """End a request, well or with an error."""
        inside = {key: process for process in self.processes for key in process.inside}
        key = data.draw(st.sampled_from(sorted(inside)))
        over = inside[key].inside[key]
        over.set_exception(ArithmeticError("its own")) if fails else over.set_result(None)
        self.runner.run(_ended(self.tasks.pop(key)))

    @rule(number=numbers)
    def begin_hold(self, number):
        """Hold without a drain."""
        self.runner.run(self.hold(self.processes[number]))

    @rule(number=numbers)
    def begin_drained(self, number):
        """A drain succeeds exactly when nothing runs, holds or not."""
        held = len(self.holds)
        self.runner.run(self.drain(self.processes[number]))
        assert (len(self.holds) > held) is (self.running == 0)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def end_hold(self, data):
        """End one hold; the others, and the switch, stay."""
        entry = data.draw(st.sampled_from(self.holds))
        self.runner.run(entry[1].__aexit__(None, None, None))
        self.holds.remove(entry)

    @rule(number=numbers)
    def turn_off(self, number):
        """Turn the switch off."""
        self.runner.run(self.processes[number].maintenance.disable())
        self.switch = False

    # What must be so

    @invariant()
    def nothing_runs_in_a_window(self):
        """While a hold has drained, nothing runs."""
        assert not any(drained for *_, drained in self.holds) or self.running == 0

    @invariant()
    def all_agree_whether_it_is_closed(self):
        """It is closed exactly while somebody holds or the switch is on."""
        for process in self.processes:
            assert bool(self.runner.run(process.maintenance.status())) is self.closed


class OnFile(OnMemory):
    """Three processes on one file, that die."""

    @initialize()
    def begin(self):
        """Make the processes, and a directory in memory, where syncing costs nothing."""
        self.directory = in_memory()
        self.path = Path(self.directory.name) / "state"
        self.processes = [self.process() for _ in range(3)]

    def process(self):
        """Start a process."""
        return Process(LocalFileBackend(self.path))

    def teardown(self):
        super().teardown()
        self.directory.cleanup()

    def dies(self, process):
        """Close its locks as the kernel does, then end what is left of it in here."""
        backend = process.maintenance.backend
        in_flight = backend.in_flight
        for lock in (*backend._held.values(), *filter(None, [in_flight._worker])):
            lock.abandon()
        backend._held.clear()
        in_flight._work_as(None)
        super().dies(process)

    @rule(number=numbers)
    def crash(self, number):
        """Kill a process: its holds and its requests end, and another one starts in its place."""
        process = self.processes[number]
        self.dies(process)
        self.holds = [entry for entry in self.holds if entry[0] is not process]
        self.processes[number] = self.process()

    @precondition(lambda self: not self.holds and not self.running)
    @rule()
    def delete_the_gate(self):
        """Delete the gate, and what belongs to it, while nobody holds and nothing runs."""
        for gate in self.path.parent.glob("state.gate*"):
            gate.unlink()


class OnFlock(OnFile):
    """The same where there are no locks of open file descriptions; draining holds take turns there."""

    gates = staticmethod(FlockGate)

    @precondition(lambda self: not any(drained for *_, drained in self.holds))
    @rule(number=numbers)
    def begin_drained(self, number):
        """A drain succeeds exactly when nothing runs, and nobody else has drained."""
        held = len(self.holds)
        self.runner.run(self.drain(self.processes[number]))
        assert (len(self.holds) > held) is (self.running == 0)


async def _ended(task):
    await asyncio.wait([task])
    task.exception()


MACHINES = {"memory": OnMemory, "file": OnFile, "flock": OnFlock}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_nothing_runs_in_a_window_whatever_happens(machine):
    """Whatever happens in whatever order: no request in a window, none while closed, all while open."""
    assert explore(machine, settings=PROFILE) is None


# The machine finds what it is there to find


def frees_on_every_leave(in_flight, request):
    """Unlock the slot whenever a request ends."""
    in_flight.running.discard(request)
    in_flight._worker.free()
    in_flight._has_slot = False


def takes_no_slot(worker):
    """Believe the state alone."""
    return True


def looks_and_counts(gate, scope, endpoint=None):
    """Look at the state before the count, and not again."""
    if gate.is_closed_to(scope.get("method")):
        return None
    passage = Passage(gate.owner, scope, gate.owner.snapshot.in_flight)
    return passage if passage.counted.enter(passage) else None


def counts_nothing(in_flight, request):
    """Let all in, and count none."""
    return True


MUTANTS = [
    (OnFile, MachineInFlight, "leave", frees_on_every_leave),
    (OnFile, RangeWorker, "take", takes_no_slot),
    (OnFile, Gate, "admit_if_open", looks_and_counts),
    (OnMemory, Gate, "admit_if_open", looks_and_counts),
    (OnMemory, InFlight, "enter", counts_nothing),
    (OnFile, MachineInFlight, "enter", counts_nothing),
]


@with_each(MUTANTS)
def test_a_mutant_is_found(machine, owner, name, mutant, monkeypatch):
    """The machine fails when something is broken on purpose."""
    # With marks of other tests about, requests would not take the path that is broken here.
    monkeypatch.setattr(Marks, "count", 0)
    monkeypatch.setattr(owner, name, mutant)
    with pytest.raises(AssertionError):
        explore(machine, settings=until_found(PROFILE))
