"""Slots beside the state file: who is attached, who is busy, and a hold that keeps everybody out; in both variants."""

import errno
import gc
import os
import shutil
import signal
import sys
from pathlib import Path
from unittest.mock import Mock
from weakref import WeakSet

import anyio
import pytest

from fastapi_maintenance import BackendError, DrainTimeout, DrainUnsupported, Maintenance
from fastapi_maintenance.backends import LocalFileBackend, MemoryBackend, flock, locks, slots
from fastapi_maintenance.backends.flock import FlockGate
from fastapi_maintenance.backends.locks import Gate
from fastapi_maintenance.backends.slots import MachineInFlight, file_system_of
from fastapi_maintenance.forks import _Following
from fastapi_maintenance.state import Hold, utcnow
from tests.descriptors import open_below

ID = "0123456789abcdef"


def names(directory):
    """List a directory."""
    return [entry.name for entry in Path(directory).iterdir()]


def fail(*args, **kwargs):
    """Fail as a system does that has no locks to give."""
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def seen(gate):
    """Give process id and business of each worker."""
    return [(worker.pid, worker.busy) for worker in gate.workers()]


def in_child(function):
    """Run `function` in a forked child, and give its exit code."""
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child, which writes no coverage
        code = 1
        try:
            code = int(bool(function()))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Locks


def test_a_slot_and_a_hold_exclude_each_other(gate):
    """A hold keeps everybody out only when no slot is taken, and then no slot can be taken until it is released."""
    worker, hold = gate.attach(), gate.hold(ID)
    assert worker.take()
    assert not hold.exclude()
    worker.free()
    assert hold.exclude()
    assert not worker.take()
    hold.release()
    assert worker.take()
    worker.leave()


def test_workers_are_seen_with_what_they_do(gate):
    """Each worker is seen from `attach` to `leave` with its process id, busy while its slot is taken."""
    assert seen(gate) == []
    first, second = gate.attach(), gate.attach()
    assert first.take()
    assert seen(gate) == [(os.getpid(), True), (os.getpid(), False)]
    assert len({worker.number for worker in gate.workers()}) == 2
    first.free()
    first.leave()
    assert seen(gate) == [(os.getpid(), False)]
    second.leave()
    assert seen(gate) == []


def test_many_workers_are_all_seen(gate):
    """The kernel tells of one lock at a time; none is missed."""
    workers = [gate.attach() for _ in range(40)]
    busy = [worker.take() for worker in workers[::3]]
    assert (len(gate.workers()), sum(worker.busy for worker in gate.workers())) == (40, sum(busy))
    for worker in workers:
        worker.leave()


def test_a_dead_worker_is_no_worker(gate):
    """The kernel drops the locks of a killed process, the slot as well."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child, which is killed
        gate.attach().take()
        os.write(writer, b"1")
        signal.pause()
    os.read(reader, 1)
    assert seen(gate) == [(child, True)]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert seen(gate) == []
    hold = gate.hold(ID)
    assert hold.exclude()
    hold.release()
    gate.tidy()
    assert not [name for name in names(Path(gate.path).parent) if "worker" in name]


def test_a_forked_child_has_locks_of_its_own(kind, path):
    """A child neither frees its parent's slot nor hides behind it, and its own slot is one more."""
    backend = LocalFileBackend(path)
    assert backend.in_flight.enter("parent")

    def child():  # pragma: no cover - in the child
        # One worker as long as the child has not served; then two busy ones.
        alone = seen(backend._gate) == [(os.getppid(), True)]
        backend.in_flight.enter("child")
        both = len(seen(backend._gate)) == 2
        backend.in_flight.leave("child")
        return alone and both

    assert in_child(child) == 1
    assert seen(backend._gate) == [(os.getpid(), True)]
    backend.in_flight.leave("parent")
    assert seen(backend._gate) == [(os.getpid(), False)]


def test_a_forked_child_keeps_no_hold(kind, path):
    """A child that is forked inside a hold leaves it to its parent: it does not end it, nor keep it alive."""
    backend = LocalFileBackend(path)
    maintenance = Maintenance(backend=backend)

    async def hold():
        async with maintenance.on(drain=0, min_workers=0) as held:
            code = in_child(lambda: not backend._held and backend.peek_state().holds)
            return code, held.descriptors, len((await maintenance.status()).holds)

    code, descriptors, holds = anyio.run(hold)
    assert (code, bool(descriptors), holds) == (1, True, 1)
    assert not backend.peek_state().holds


def test_what_a_fork_makes_of_a_child(kind, path, monkeypatch):
    """A child has no request in flight, is no worker, and holds nothing; with locks that no other thread has."""
    monkeypatch.setattr("fastapi_maintenance.forks._Following.followers", WeakSet())
    maintenance = Maintenance(backend=LocalFileBackend(path))
    backend, holder = maintenance.backend, maintenance.snapshot.holds
    counted = [backend.in_flight, MemoryBackend().in_flight]
    hold = Hold(id=ID, since=utcnow())
    anyio.run(backend.take_hold, hold)
    holder.local = (hold,)
    before = open_below(path.parent)
    assert all(in_flight.enter(1) for in_flight in counted)
    _Following.tell()
    _Following.tell()
    assert [in_flight.operations() for in_flight in counted] == [(), ()]
    assert [anyio.run(in_flight.workers) for in_flight in counted] == [(), ()]
    assert (holder.local, backend.hold_descriptors(ID)) == ((), ())
    assert len(open_below(path.parent)) < len(before)


def test_a_child_process_that_gets_the_descriptors_keeps_it_closed(kind, path):
    """What a holder hands to a child process holds on after the holder is gone, until the child ends."""
    program = (
        "import os, subprocess, sys, anyio\n"
        "from fastapi_maintenance import Maintenance\n"
        "from fastapi_maintenance.backends import LocalFileBackend, file, flock\n"
        f"file.gate_beside = flock.{kind.__name__}\n"
        "async def main():\n"
        "    async with Maintenance(backend=LocalFileBackend(sys.argv[1])).on(drain=0, min_workers=0) as hold:\n"
        "        child = subprocess.Popen(['sleep', '60'], pass_fds=hold.descriptors)\n"
        "        print(child.pid, flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
        "anyio.run(main)\n"
    )
    reader, writer = os.pipe()
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", program, str(path)],
        {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)],
    )
    child = int(os.read(reader, 20))
    _, status = os.wait()
    assert os.WTERMSIG(status) == signal.SIGKILL
    backend = LocalFileBackend(path)
    assert backend.peek_state().holds
    assert not backend.in_flight.enter("kept out")
    os.kill(child, signal.SIGKILL)

    async def opened():
        with anyio.fail_after(20):
            while backend.peek_state().holds or not backend.in_flight.enter("let in"):
                await anyio.sleep(0.001)

    anyio.run(opened)


# The gate is taken away


@pytest.mark.parametrize("take_away", [os.unlink, lambda path: Path(path).rename(f"{path}.away")], ids=["rm", "mv"])
def test_a_worker_attaches_anew_when_its_gate_is_gone(path, take_away, monkeypatch):
    """A worker that finds its gate deleted, or in a while moved away, locks the new one before it lets anybody in."""
    monkeypatch.setattr(locks, "SURE_FOR", -1)
    in_flight = LocalFileBackend(path).in_flight
    assert in_flight.enter(1)
    in_flight.leave(1)
    take_away(f"{path}.gate")
    assert in_flight.enter(2)
    assert seen(Gate(str(path))) == [(os.getpid(), True)]


def test_a_worker_attaches_anew_when_its_files_are_gone(kind, path):
    """A worker whose files were deleted while it was idle is seen again as soon as it lets anybody in."""
    in_flight = LocalFileBackend(path).in_flight
    assert in_flight.enter(1)
    in_flight.leave(1)
    for file in path.parent.glob("state.gate*"):
        file.unlink()
    assert in_flight.enter(2)
    assert seen(kind(str(path))) == [(os.getpid(), True)]


@pytest.mark.parametrize(("times", "at_once"), [(1, True), (2, False)], ids=["once", "twice"])
def test_a_worker_whose_gate_goes_as_it_is_made_refuses_nobody(kind, path, monkeypatch, times, at_once):
    """When a gate is deleted between its making and its locking another one is made, at the latest for who is next."""
    in_flight, attach, made = LocalFileBackend(path).in_flight, kind.attach, []

    def attach_in_vain(gate):
        worker = attach(gate)
        made.append(worker)
        if len(made) <= times:
            for file in path.parent.glob("state.gate*"):
                file.unlink()
        return worker

    monkeypatch.setattr(kind, "attach", attach_in_vain)
    assert in_flight.enter(1)
    assert seen(kind(str(path))) == [(os.getpid(), True)] * at_once
    assert in_flight.enter(2)
    assert seen(kind(str(path))) == [(os.getpid(), True)]


def test_a_worker_leaves_a_gate_that_is_gone_though_somebody_holds_there(kind, path):
    """A hold that keeps nobody out on a deleted gate keeps no worker there, where the next drain would not see it."""
    in_flight = LocalFileBackend(path).in_flight
    in_flight.join()
    hold = kind(str(path)).hold(ID)
    for file in path.parent.glob("state.gate*"):
        file.unlink()
    assert in_flight.enter(1)
    draining = kind(str(path)).hold("another")
    assert not draining.exclude()
    in_flight.leave(1)
    assert draining.exclude()
    hold.release()


@pytest.mark.parametrize("name", ["gate", "gate.slots"])
def test_a_worker_of_the_flock_variant_finds_that_a_file_was_moved_away(path, monkeypatch, name):
    """Each of the files that others look at is looked for, now and then, where they look."""
    monkeypatch.setattr("fastapi_maintenance.backends.file.gate_beside", FlockGate)
    monkeypatch.setattr(locks, "SURE_FOR", -1)
    in_flight = LocalFileBackend(path).in_flight
    in_flight.join()
    for file in path.parent.glob(f"state.{name}*"):
        file.rename(file.with_name(f"away-{file.name}"))
    assert in_flight.enter(1)
    assert not FlockGate(str(path)).hold(ID).exclude()


def test_two_objects_of_one_process_find_their_places_again(kind, path, monkeypatch):
    """After somebody has deleted the gate each attaches anew once, and none takes the other's place away."""
    both, attach, attached = [LocalFileBackend(path).in_flight for _ in range(2)], kind.attach, []
    monkeypatch.setattr(kind, "attach", lambda gate: attached.append(attach(gate)) or attached[-1])
    for in_flight in both:
        in_flight.join()
    for file in path.parent.glob("state.gate*"):
        file.unlink()
    for _ in range(3):
        for in_flight in reversed(both):
            assert in_flight.enter(1)
            in_flight.leave(1)
    assert (len(attached), len(seen(kind(str(path))))) == (4, 2)


@pytest.mark.parametrize("kept", ["a file in its place", "no locks"])
def test_a_gate_that_cannot_be_looked_for_refuses_nobody(kind, path, monkeypatch, kept, caplog):
    """Whatever the system says of a gate that was taken away, requests are served and counted out again."""
    directory = path.parent / "service"
    directory.mkdir()
    backend = LocalFileBackend(directory / "state")
    assert backend.in_flight.enter(1)
    backend.in_flight.leave(1)
    shutil.rmtree(directory)
    if kept == "no locks":
        directory.mkdir()
        monkeypatch.setattr(locks.fcntl, "fcntl", fail)
        monkeypatch.setattr(locks.fcntl, "flock", fail)
    else:
        directory.write_text("not a directory")
    for number in range(3):
        assert backend.in_flight.enter(number)
    for number in range(3):
        backend.in_flight.leave(number)
    assert backend.in_flight.operations() == ()
    assert caplog.text.count("cannot be waited for by on(drain=)") == 1


def test_what_breaks_off_the_locking_of_a_slot_leaves_nothing_counted(path, monkeypatch):
    """An interrupt while a request is counted goes on to whoever asked, and the request is counted no more."""
    in_flight = LocalFileBackend(path).in_flight
    in_flight.join()
    monkeypatch.setattr(in_flight._worker, "take", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        in_flight.enter(1)
    assert not in_flight.running


def test_a_worker_stays_with_a_hold_on_a_gate_that_is_gone(path):
    """A drained hold whose gate somebody deletes still keeps out the workers that know it; then they go to the new."""
    backend = LocalFileBackend(path)
    backend.in_flight.join()
    hold = Gate(str(path)).hold(ID)
    assert hold.exclude()
    Path(f"{path}.gate").unlink()
    assert not backend.in_flight.enter(1)
    hold.release()
    assert backend.in_flight.enter(1)
    assert seen(Gate(str(path))) == [(os.getpid(), True)]


def test_a_drain_on_a_gate_that_goes_away_is_no_drain(kind, path, anyio_backend):
    """A hold whose files are deleted before all slots are locked gets an error, never a false promise."""
    backend = LocalFileBackend(path)
    maintenance = Maintenance(backend=backend)

    async def hold():
        async with maintenance.on(drain=0, min_workers=0) as held:
            for file in path.parent.glob("state.gate*"):
                file.unlink()
            with pytest.raises(BackendError, match="its gate was deleted"):
                await backend.in_flight.drained(held.id)
            return await backend.in_flight.drained("another")

    assert anyio.run(hold, backend=anyio_backend) is False


# What the system refuses


def test_a_worker_that_cannot_attach_serves_and_says_so_once(path, monkeypatch, caplog):
    """Where the gate cannot be locked requests are served, one line tells that they are not waited for."""
    monkeypatch.setattr(Gate, "attach", fail)
    monkeypatch.setattr(slots, "ATTACH_AGAIN", -1)
    in_flight = LocalFileBackend(path).in_flight
    in_flight.join()
    assert in_flight.enter(1)
    in_flight.leave(1)
    assert caplog.text.count("cannot be waited for by on(drain=)") == 1
    assert "No locks available" in caplog.text
    in_flight.part()


def test_a_name_that_is_no_text_can_be_told(path, monkeypatch, caplog):
    """A state file may have a name that is no text; what is said of it can be printed all the same."""
    monkeypatch.setattr(Gate, "attach", fail)
    monkeypatch.setattr(Gate, "excludes", fail)
    backend = LocalFileBackend(os.fsencode(path) + b"\xff")
    assert backend.in_flight.enter(1)
    backend.in_flight.leave(1)
    with pytest.raises(DrainUnsupported) as caught:
        anyio.run(Maintenance(backend=backend).on(drain=0, min_workers=0).__aenter__)
    assert r"state\udcff" in caplog.text.encode().decode()
    assert r"state\udcff" in str(caught.value).encode().decode()


def test_a_worker_that_cannot_attach_does_not_try_at_each_request(path, monkeypatch):
    """After a failure it waits a while before it tries again."""
    tries = []
    monkeypatch.setattr(Gate, "attach", lambda self: (tries.append(1), fail()))
    in_flight = LocalFileBackend(path).in_flight
    assert [in_flight.enter(1), in_flight.enter(2), in_flight.leave(1), in_flight.leave(2), in_flight.enter(3)]
    assert len(tries) == 1


def test_what_runs_here_without_a_slot_is_waited_for_here(path, monkeypatch):
    """A process that could not attach still knows of its own requests when it drains itself."""
    backend = LocalFileBackend(path)
    monkeypatch.setattr(Gate, "attach", fail)
    backend.in_flight.enter(1)

    async def hold():
        with pytest.raises(DrainTimeout):
            await Maintenance(backend=backend).on(drain=0, min_workers=0).__aenter__()

    anyio.run(hold)


@pytest.mark.parametrize("call", ["take", "free"])
def test_a_slot_that_cannot_be_locked_refuses_nobody(path, monkeypatch, call, caplog):
    """An error of the system at a slot is logged, the request is served, and nobody takes this worker for idle."""
    in_flight = LocalFileBackend(path).in_flight
    in_flight.join()
    monkeypatch.setattr(in_flight._worker, call, fail, raising=True)
    assert in_flight.enter(1)
    in_flight.leave(1)
    assert "cannot be waited for" in caplog.text
    assert seen(Gate(str(path))) == []


@pytest.mark.parametrize("name", ["hold", "attach"])
def test_locks_that_fail_leave_no_descriptor_open(gate, path, monkeypatch, name):
    """When the system refuses a lock, what was opened for it is closed."""
    monkeypatch.setattr(locks.fcntl, "fcntl", fail)
    monkeypatch.setattr(locks.fcntl, "flock", fail)
    with pytest.raises(OSError, match="No locks"):
        getattr(gate, name)(*[ID] * (name == "hold"))
    assert open_below(path.parent) == []


def drain_fails(backend, kind, match):
    """Expect an error of a kind when a drain is asked for, and that nothing is held then."""

    async def hold():
        with pytest.raises(kind, match=match):
            await Maintenance(backend=backend).on(drain=0, min_workers=0).__aenter__()

    anyio.run(hold)
    assert not backend.peek_state().holds


@pytest.mark.parametrize("system", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_a_network_file_system_promises_nothing(path, monkeypatch, system):
    """Other machines do not see these locks, so draining is an error that names the file system."""
    monkeypatch.setattr(slots, "file_system_of", lambda path: system)
    drain_fails(LocalFileBackend(path), DrainUnsupported, rf"is on {system}, which other machines use")


def test_locks_that_do_not_exclude_promise_nothing(kind, path, monkeypatch):
    """Before it drains it tries whether two descriptors exclude each other."""
    monkeypatch.setattr(kind, "excludes", lambda self: False)
    drain_fails(LocalFileBackend(path), DrainUnsupported, "do not exclude each other")


def test_the_locks_here_exclude_each_other(gate):
    """The test passes where locks work, and leaves nothing behind."""
    assert gate.excludes()
    assert [name for name in names(Path(gate.path).parent) if name.endswith("test")] == []


def test_a_gate_that_cannot_be_locked_promises_nothing(path, monkeypatch):
    """An error of the system at that try is told."""
    monkeypatch.setattr(Gate, "excludes", fail)
    drain_fails(LocalFileBackend(path), DrainUnsupported, "cannot be locked: .*No locks available")


def test_a_system_without_locks_promises_nothing(path):
    """On Windows, say, draining is an error, and requests are counted by nobody."""
    in_flight = MachineInFlight(None, {}, "state file")
    assert in_flight.enter(1)
    in_flight.leave(1)
    assert anyio.run(in_flight.workers) == ()
    with pytest.raises(DrainUnsupported, match="no locks that end with their process"):
        anyio.run(in_flight.check)


def test_slots_that_cannot_be_locked_fail_the_drain(path, monkeypatch):
    """An error of the system while it drains is an error of the backend, and the hold is taken back."""
    monkeypatch.setattr(locks.Hold, "exclude", fail)
    drain_fails(LocalFileBackend(path), BackendError, "its slots cannot be locked")


def test_workers_that_cannot_be_seen_fail_the_drain(path, monkeypatch):
    """Whoever cannot read the gate is told so."""
    monkeypatch.setattr(Gate, "workers", fail)
    drain_fails(LocalFileBackend(path), BackendError, "its gate cannot be read")


# Which file system


MOUNTS = r"""22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:30 / /srv/shared\040files rw,relatime shared:1 - nfs4 server:/ rw
31 22 0:31 / /srv/shared rw - tmpfs none rw
32 31 0:32 / /srv/shared rw - cifs //server/share rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/state", "ext4"),
        ("/srv/shared files/a/state", "nfs4"),
        ("/srv/shared/state", "cifs"),
        ("/srv/sharedx/s", "ext4"),
    ],
)
def test_the_file_system_of_a_path(monkeypatch, path, expected):
    """The deepest mount counts, the last one where several are at one place."""
    monkeypatch.setattr(Path, "read_text", lambda self, **_: MOUNTS)
    assert file_system_of(path) == expected


def test_a_system_that_does_not_tell_its_mounts(monkeypatch):
    """Elsewhere than on Linux there is no such list, and nothing is said."""
    monkeypatch.setattr(Path, "read_text", fail)
    assert file_system_of("/state") is None


def test_an_end_of_lifespans_with_requests_in_flight_lets_them_count(path):
    """A worker whose lifespan ends while a request runs is waited for until its process ends."""
    in_flight = LocalFileBackend(path).in_flight
    in_flight.attach()
    in_flight.attach()
    in_flight.enter(1)
    in_flight.detach()
    in_flight.detach()
    assert seen(Gate(str(path))) == [(os.getpid(), True)]
    in_flight.leave(1)
    in_flight.part()
    assert seen(Gate(str(path))) == []


def test_a_worker_that_goes_while_it_is_looked_at_is_idle(path, monkeypatch):
    """Between two looks at its file a worker may have left; that is no error."""
    gate = FlockGate(str(path))
    gate.attach()
    monkeypatch.setattr(flock, "_is_flocked", lambda path: not Path(path).unlink())
    assert seen(gate) == [(os.getpid(), False)]


def test_a_forgotten_backend_is_no_worker(gate, path):
    """An object that nobody uses any more lets go of its locks and its descriptors."""
    backend = LocalFileBackend(path)
    backend.in_flight.join()
    assert seen(gate) == [(os.getpid(), False)]
    del backend
    gc.collect()
    assert (seen(gate), open_below(path.parent)) == ([], [])
