"""The kernel locks beside the state file, in both variants, and the file backend on each of them."""

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from fastapi_maintenance import BackendError, Maintenance
from fastapi_maintenance.backends import LocalFileBackend, flock, locks
from fastapi_maintenance.backends.flock import FlockGate, gate_beside
from fastapi_maintenance.backends.locks import Gate
from tests.descriptors import open_below

ROOT = Path(__file__).parent.parent
ID = "0123456789abcdef"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away and drop to another user")


def names(directory):
    """List a directory."""
    return sorted(entry.name for entry in Path(directory).iterdir())


def fail(number):
    """Give a function that fails with an error of the system."""

    def failing(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return failing


PROGRAM = """
import os, signal, sys
from fastapi_maintenance.backends import flock

variant, state, what, hold = sys.argv[1:]
gate = getattr(flock, variant)(state)

def say(word):
    print(word, flush=True)
    sys.stdin.readline()

if what == "write":
    with gate.writing():
        say("writing")
elif what == "hold":
    gate.hold(hold)
    say("held")
else:
    lock = gate.hold(hold)
    child = os.fork()
    if child == 0:
        signal.pause()
    say(child)
    lock.release()
    say("released")
"""


@contextmanager
def process(kind, path, what, hold=ID):
    """Run another process that locks; give it when it has said its first line."""
    command = [sys.executable, "-c", PROGRAM, kind.__name__, path, what, hold]
    environment = {**os.environ, "COVERAGE_PROCESS_START": ""}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as other:  # noqa: S603 - this program
        try:
            other.said = other.stdout.readline().strip()
            yield other
        finally:
            other.kill()


# Which one


@pytest.mark.parametrize(("platform", "expected"), [("linux", Gate), ("darwin", FlockGate), ("freebsd14", FlockGate)])
def test_each_system_gets_the_locks_it_has(platform, expected, path, monkeypatch):
    """Linux has locks of open file descriptions; a constant of that name elsewhere is not trusted."""
    monkeypatch.setattr(sys, "platform", platform)
    assert type(gate_beside(str(path))) is expected


def test_a_linux_without_range_locks_gets_the_other_variant(path, monkeypatch):
    """Where Python does not know the constants, whole files are locked."""
    monkeypatch.delattr(fcntl, "F_OFD_SETLK")
    assert type(gate_beside(str(path))) is FlockGate


# Writers


def test_one_process_writes_at_a_time(kind, gate, path, monkeypatch):
    """While another process writes, nobody else does, and the error says for how long it waited."""
    monkeypatch.setattr(locks, "WRITE_TIMEOUT", 0.05)
    with process(kind, path, "write") as other:
        assert other.said == "writing"
        with pytest.raises(TimeoutError, match=r"another process has been writing for 0\.05 s"):
            gate.writing().__enter__()
        assert open_below(path.parent) == []


def test_a_writer_waits_for_the_one_before_it(kind, gate, path):
    """A writer gets its turn when the other process ends its own, or dies."""
    with process(kind, path, "write") as other:
        other.stdin.close()
        with gate.writing() as revision:
            assert revision.highest() == 0
    with process(kind, path, "write") as other:
        other.send_signal(signal.SIGKILL)
        with gate.writing() as revision:
            assert revision.highest() == 0


def test_two_gates_in_one_process_exclude_each_other(kind, gate, path, monkeypatch):
    """Each opens the file for itself, so it does not matter that they share a process."""
    monkeypatch.setattr(locks, "WRITE_TIMEOUT", 0.0)
    with gate.writing(), pytest.raises(TimeoutError):
        kind(str(path)).writing().__enter__()


def test_a_writer_and_a_hold_do_not_hinder_each_other(kind, gate, path):
    """A hold can begin while another process writes, and a writer can write while another process holds."""
    with process(kind, path, "write"):
        hold = gate.hold(ID)
        alive = gate.alive([ID])
    hold.release()
    with process(kind, path, "hold"), gate.writing() as revision:
        assert (alive, gate.alive([ID]), revision.highest()) == ({ID}, {ID}, 0)


def test_a_gate_that_is_a_link_is_not_followed(gate, path):
    """Whoever can write in the directory must not choose what is locked and written."""
    target = path.with_name("target")
    target.write_text("precious")
    Path(gate.path).symlink_to(target)
    with pytest.raises(OSError, match="symbolic links") as caught:
        gate.writing().__enter__()
    assert (caught.value.errno, target.read_text()) == (errno.ELOOP, "precious")


@as_root
@pytest.mark.parametrize("made_by", ["writing", "hold"])
def test_what_root_makes_belongs_to_the_owner_of_the_directory(gate, path, made_by):
    """A gate made by root must not lock the service's workers out."""
    os.chown(path.parent, 4242, 4243)
    if made_by == "hold":
        gate.hold(ID).release()
        gate.hold("other")
    else:
        with gate.writing():
            pass
    owners = {(entry.stat().st_uid, entry.stat().st_gid) for entry in path.parent.iterdir()}
    assert owners == {(4242, 4243)}


def test_a_gate_that_cannot_be_given_away_is_used_all_the_same(gate, monkeypatch):
    """Who may not change the owner locks all the same."""
    monkeypatch.setattr(os, "fchown", fail(errno.EPERM))
    with gate.writing() as revision:
        assert revision.highest() == 0


# Revision


def test_the_revision_is_what_the_last_writer_said(gate, path):
    """It is 0 where there was no writer, and looking creates nothing."""
    seen = [gate.revision(), names(path.parent)]
    for number in (1, 2, 17):
        with gate.writing() as revision:
            revision.begin(number)
            seen.append((gate.revision(), revision.highest()))
            revision.end(number)
            seen.append((gate.revision(), revision.highest()))
    assert seen == [0, [], (1, 1), (1, 1), (2, 2), (2, 2), (17, 17), (17, 17)]


def test_a_revision_that_was_begun_is_used_up(gate):
    """A writer that died may have been seen, so the next one takes a higher number."""
    with gate.writing() as revision:
        revision.end(4)
        revision.begin(5)
    with gate.writing() as revision:
        assert (gate.revision(), revision.highest()) == (5, 5)


@pytest.mark.parametrize("contents", [b"", b"1234567"])
def test_a_gate_cut_short_has_revision_0(gate, contents):
    """Eight bytes or none."""
    Path(gate.path).write_bytes(contents)
    assert gate.revision() == 0


@pytest.mark.anyio
@pytest.mark.parametrize("revision", [2**63, 10**40])
async def test_a_huge_revision_written_by_hand_can_be_changed(kind, path, revision):
    """What does not fit into eight bytes is in the document all the same."""
    path.write_text(json.dumps({"revision": revision}))
    backend = LocalFileBackend(path)
    await backend.change_state(lambda state: state.model_copy(update={"team": "ops"}))
    assert (json.loads(path.read_text())["revision"], (await backend.read_state()).revision) == (revision + 1,) * 2


# Holds


@pytest.mark.parametrize("hold", [ID, "x", "", "../../etc/passwd", "/", "a\0b", "ü ✓", "x" * 5000], ids=lambda i: i[:8])
def test_a_hold_is_alive_until_it_is_released(gate, path, hold):
    """Whatever its id looks like, it is alive from its lock to its release, and leaves no file but the gate."""
    files = names(path.parent)
    seen = [gate.alive([hold])]
    lock = gate.hold(hold)
    seen.append(gate.alive([hold, "other"]))
    lock.release()
    seen.append(gate.alive([hold]))
    assert seen == [frozenset(), {hold}, frozenset()]
    assert (files, open_below(path.parent)) == ([], [])
    assert set(names(path.parent)) <= {"state.gate"}


def test_a_hold_of_another_process_ends_with_it(kind, gate, path):
    """The kernel drops the lock of a process that was killed."""
    with process(kind, path, "hold") as other:
        inside = gate.alive([ID, "other"])
        other.send_signal(signal.SIGKILL)
        other.wait()
        after = gate.alive([ID, "other"])
    assert (inside, after) == ({ID}, frozenset())


def test_a_fork_inside_a_hold_does_not_prolong_it(kind, gate, path):
    """A child keeps a copy of the descriptor, but the release ends the hold all the same."""
    with process(kind, path, "fork") as other:
        child = int(other.said)
        inside = gate.alive([ID])
        other.stdin.write("\n")
        other.stdin.flush()
        released = other.stdout.readline()
        after = gate.alive([ID])
        os.kill(child, signal.SIGKILL)
    assert (inside, released, after) == ({ID}, "released\n", frozenset())


def test_a_lock_that_the_system_refuses_leaves_no_descriptor(gate, path, monkeypatch):
    """Some network file systems have no locks: the error comes out, and nothing stays open."""
    monkeypatch.setattr(fcntl, "fcntl", fail(errno.ENOLCK))
    monkeypatch.setattr(fcntl, "flock", fail(errno.ENOLCK))
    with pytest.raises(OSError, match="No locks available"):
        gate.hold(ID)
    assert open_below(path.parent) == []


def test_what_a_dead_hold_left_is_tidied_away_and_what_is_alive_is_not(kind, gate, path):
    """Only files of this gate's holds that nobody locks go; those of others stay."""
    strangers = ["state.gate.old", "state.gates.0123456789abcdef", "other.gate.0123456789abcdef"]
    for stranger in strangers:
        path.with_name(stranger).touch()
    lock = gate.hold("living")
    with process(kind, path, "hold", "dying") as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
    before = len(names(path.parent))
    gate.tidy()
    alive = gate.alive(["living", "dying"])
    assert (alive, before - len(names(path.parent))) == ({"living"}, int(kind is FlockGate))
    lock.release()
    assert set(names(path.parent)) <= {"state.gate", *strangers}


@pytest.mark.parametrize("replaced", [True, False])
def test_a_hold_file_tidied_away_before_it_was_locked_is_made_again(path, monkeypatch, replaced):
    """Between opening and locking a file somebody may remove it; the hold is visible all the same."""
    gate = FlockGate(str(path))
    real, removed = fcntl.flock, []

    def flock(descriptor, operation):
        if not removed:
            (file,) = path.parent.iterdir()
            removed.append(file.unlink())
            for _ in range(replaced):
                file.touch()
        return real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = gate.hold(ID)
    assert (gate.alive([ID]), removed) == ({ID}, [None])
    lock.release()
    assert (open_below(path.parent), names(path.parent)) == ([], [])


# The whole backend on each of them


@pytest.mark.anyio
async def test_a_hold_closes_every_process_and_leaves_nothing(kind, path):
    """Two workers agree inside and after, and beside the file there is only the gate."""
    one, other = (Maintenance(backend=LocalFileBackend(path)) for _ in range(2))
    async with one.on(message="moving", mode="read_only") as hold:
        inside = [await maintenance.status() for maintenance in (one, other)]
        async with other.on():
            both = [await maintenance.status() for maintenance in (one, other)]
        left = [await maintenance.status() for maintenance in (one, other)]
    after = [(await maintenance.status()).active for maintenance in (one, other)]
    assert [[held.id for held in status.holds] for status in inside + left] == [[hold.id]] * 4
    assert [(len(status.holds), status.mode) for status in both] == [(2, "full")] * 2
    assert (after, names(path.parent)) == ([False, False], ["state", "state.gate"])


@pytest.mark.anyio
@pytest.mark.parametrize("on_failure", ["lift", "keep"])
async def test_a_hold_whose_body_raised(kind, path, on_failure):
    """It ends, or stays as an orphan for everybody until anybody turns it off."""
    one, other = (Maintenance(backend=LocalFileBackend(path)) for _ in range(2))
    with pytest.raises(KeyError):
        async with one.on(on_failure=on_failure):
            raise KeyError
    phases = [[hold.phase for hold in (await maintenance.status()).holds] for maintenance in (one, other)]
    assert phases == [["orphan"] * (on_failure == "keep")] * 2
    await other.disable()
    assert not await one.status()


@pytest.mark.anyio
@pytest.mark.parametrize("mended", ["the document", "0\n", None])
async def test_a_hold_that_fails_while_the_file_is_broken(kind, path, caplog, mended):
    """The log says what could not be stored; mended it is an orphan, and who writes the file anew decides anew."""
    one, other = (Maintenance(backend=LocalFileBackend(path)) for _ in range(2))
    context = one.on(on_failure="keep")
    hold = await context.__aenter__()
    await other.status()
    before = path.read_text()
    path.write_text("{")
    await context.__aexit__(KeyError, KeyError(), None)
    broken = [await maintenance.status() for maintenance in (one, other)]
    if mended is None:
        path.unlink()
    else:
        path.write_text(before if mended == "the document" else mended)
    after = [await Maintenance(backend=LocalFileBackend(path)).status(), await one.status(), await other.status()]
    phases = [[held.phase for held in status.holds] for status in after]
    assert [(status.active, status.stale is None) for status in broken] == [(True, False)] * 2
    assert phases == [["orphan"] * (mended == "the document")] * 3
    assert f"It was not overwritten: mend it, or delete it to start anew. Hold {hold.id} stays closed" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("on_failure", ["lift", "keep"])
async def test_a_listed_hold_without_a_lock_is_dead(kind, path, on_failure):
    """Where there is no gate nobody holds: it is open, or closed by an orphan when it asked to be kept."""
    hold = {"id": "../odd id", "since": "2026-01-01T00:00:00Z", "on_failure": on_failure}
    path.write_text(json.dumps({"holds": [hold]}))
    maintenance = Maintenance(backend=LocalFileBackend(path))
    found = await maintenance.status()
    assert [held.phase for held in found.holds] == ["orphan"] * (on_failure == "keep")
    assert (found.stale, names(path.parent)) == (None, ["state"])
    await maintenance.disable()
    assert path.read_text() == "0\n"


@pytest.mark.anyio
async def test_an_unchanged_state_is_the_same_object_while_its_holds_live(kind, path, monkeypatch):
    """Looking again whether holds are alive does not make a new state as long as they are."""
    monkeypatch.setattr("fastapi_maintenance.backends.file.ALIVE_FOR", 0.0)
    reader, maintenance = LocalFileBackend(path), Maintenance(backend=LocalFileBackend(path))
    with pytest.raises(KeyError):
        async with maintenance.on(on_failure="keep"):
            raise KeyError
    async with maintenance.on():
        path.write_text(path.read_text().replace("lift", "keep"))
        first = reader.peek_state()
        again = [reader.peek_state() is first for _ in range(3)]
    assert again == [True] * 3


@pytest.mark.anyio
async def test_a_living_hold_is_asked_for_now_and_then_only(kind, path, monkeypatch):
    """For a moment a hold that was seen alive is taken to be so, so that a look stays cheap."""
    monkeypatch.setattr("fastapi_maintenance.backends.file.ALIVE_FOR", 1000.0)
    reader, maintenance = LocalFileBackend(path), Maintenance(backend=LocalFileBackend(path))
    asked = []
    real = reader._gate.alive
    monkeypatch.setattr(reader._gate, "alive", lambda ids: asked.append(1) or real(ids))
    async with maintenance.on():
        assert [len(reader.peek_state().holds) for _ in range(5)] == [1] * 5
    assert len(asked) == 1


@pytest.mark.anyio
async def test_a_gate_that_cannot_be_read_is_a_failure_where_holds_are_listed(kind, path, monkeypatch, caplog):
    """Whether they are alive is not known then: the last known state is kept, and the log says why."""
    reader, maintenance = (Maintenance(backend=LocalFileBackend(path)) for _ in range(2))
    monkeypatch.setattr("fastapi_maintenance.backends.file.ALIVE_FOR", 0.0)
    async with maintenance.on():
        before = await reader.status()
        for module in (locks, flock):
            monkeypatch.setattr(module, "reading", fail(errno.EACCES))
        failing = await reader.status()
        with pytest.raises(BackendError, match="its gate cannot be read: Permission denied"):
            await maintenance.enable()
        monkeypatch.undo()
    assert (before.stale, failing.active, failing.stale is None) == (None, True, False)
    assert "its gate cannot be read: Permission denied" in caplog.text


@pytest.mark.anyio
async def test_a_word_is_understood_even_when_the_gate_cannot_be_read(kind, path, monkeypatch):
    """What a shell wrote needs no locks."""
    path.write_text("1")
    monkeypatch.setattr(locks, "reading", fail(errno.EACCES))
    status = await Maintenance(backend=LocalFileBackend(path)).status()
    assert (status.active, status.stale) == (True, None)


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["link", "directory"])
async def test_a_gate_that_cannot_be_locked_stops_changes_and_holds(kind, path, what):
    """The error names path, gate and reason, nothing has begun, and the state stays readable."""
    path.write_text("1\n")
    gate = path.with_name("state.gate")
    gate.symlink_to(path) if what == "link" else gate.mkdir()
    maintenance = Maintenance(backend=LocalFileBackend(path))
    said = rf"state file {path}: its gate cannot be written: (it is a symbolic link|Is a directory .*{gate} has mode d)"
    with pytest.raises(BackendError, match=said):
        await maintenance.disable()
    assert (path.read_text(), (await maintenance.status()).active) == ("1\n", True)


@pytest.mark.anyio
async def test_a_hold_that_cannot_be_locked_has_not_begun(kind, path, monkeypatch):
    """The error names the reason, and nobody is closed."""
    maintenance = Maintenance(backend=LocalFileBackend(path))
    monkeypatch.setattr(kind, "hold", fail(errno.ENOLCK))
    with pytest.raises(BackendError, match="No locks available"):
        await maintenance.on().__aenter__()
    assert not await maintenance.status()
    assert names(path.parent) == []


@pytest.mark.anyio
async def test_a_directory_that_cannot_be_listed_can_be_written(kind, path, monkeypatch):
    """Tidying up is no reason to refuse a change."""
    monkeypatch.setattr(os, "scandir", fail(errno.EACCES))
    await LocalFileBackend(path).set_value(True)
    assert path.read_text() == "1\n"


@pytest.mark.anyio
async def test_what_killed_writers_left_is_removed_and_what_belongs_to_others_is_not(kind, path):
    """The next change removes the temporary files of this state file, never those of a scope's file beside it."""
    left = path.with_name(".state.0123456789abcdef.tmp")
    others = [".state.billing.0123456789abcdef.tmp", ".state.mine.tmp", ".states.0123456789abcdef.tmp", "x.tmp"]
    for file in (left, *(path.with_name(name) for name in others)):
        file.touch()
    path.with_name(".state.fedcba9876543210.tmp").mkdir()
    await LocalFileBackend(path).set_value(True)
    kept = {".state.fedcba9876543210.tmp", *others, "state", "state.gate"}
    assert set(names(path.parent)) == kept


USER = """
import asyncio, os, sys
import anyio
from fastapi_maintenance import Maintenance
from fastapi_maintenance.backends import LocalFileBackend, file, flock

file.gate_beside = getattr(flock, sys.argv[1])
backend = LocalFileBackend(sys.argv[2])

async def main():
    await anyio.to_thread.run_sync(int)
    maintenance = Maintenance(backend=backend)
    os.setgroups([])
    os.setgid(4243)
    os.setuid(4242)
    await maintenance.enable()
    await maintenance.disable()
    async with maintenance.on():
        print((await maintenance.status()).active)
    print((await maintenance.status()).active)

asyncio.run(main())
"""


@as_root
def test_a_service_works_with_what_root_made(kind):
    """Root switches and holds first; the owner of the directory reads, switches and holds afterwards."""
    command = [sys.executable, "-c", USER, kind.__name__]
    environment = {**os.environ, "COVERAGE_PROCESS_START": ""}

    async def root(state):
        maintenance = Maintenance(backend=LocalFileBackend(state))
        await maintenance.enable()
        async with maintenance.on():
            done = await anyio.run_process([*command, state], cwd=ROOT, env=environment, check=False)
        return done, await maintenance.status()

    with tempfile.TemporaryDirectory() as name:
        os.chown(name, 4242, 4243)
        umask = os.umask(0o077)
        try:
            done, after = anyio.run(root, Path(name, "state"))
        finally:
            os.umask(umask)
        modes = {file: stat.S_IMODE(Path(name, file).stat().st_mode) for file in names(name)}
    assert (done.stdout.decode().split(), done.stderr) == (["True", "True"], b"")
    assert (after.active, modes) == (False, {"state": 0o600, "state.gate": 0o600})


async def until_open(backend):
    """Wait until it is open, or fail."""
    active = True
    with anyio.fail_after(5):
        while active:
            await anyio.sleep(0.005)
            active = (await Maintenance(backend=backend).status()).active


@pytest.mark.anyio
@pytest.mark.parametrize("edit", ["0", "1", None], ids=["off", "on and off", "deleted"])
async def test_a_hand_edit_never_ends_a_live_hold(kind, path, edit):
    """Whoever writes over the entry of a hold, or deletes the file, does not open the service before the hold ends."""
    mine, other = LocalFileBackend(path), LocalFileBackend(path)
    async with Maintenance(backend=mine).on():
        await Maintenance(backend=other).status()
        if edit is None:
            path.unlink()
        else:
            path.write_text(f"{edit}\n")
            path.write_text("0\n")
        inside = [await Maintenance(backend=backend).status() for backend in (mine, other, LocalFileBackend(path))]
        changed = await Maintenance(backend=other).disable()
    await until_open(other)
    assert [(status.active, len(status.holds)) for status in (*inside, changed)] == [(True, 1)] * 4
    assert "unlisted" not in path.read_text()


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["dies", "lives"])
async def test_a_hold_written_over_counts_beside_one_that_is_listed(kind, path, end):
    """A full hold whose entry was written over stays full, beside a milder hold and after that one's death."""
    mine, other = LocalFileBackend(path), LocalFileBackend(path)
    async with Maintenance(backend=mine).on():
        path.write_text("0\n")
        async with Maintenance(backend=other).on(mode="read_only") as second:
            if end == "dies":
                os.close(other._held[second.id]._descriptor)
                other._held.clear()
            status = await Maintenance(backend=LocalFileBackend(path)).status()
    assert (status.mode, len(status.holds)) == ("full", 1 if end == "dies" else 2)
    await until_open(LocalFileBackend(path))
