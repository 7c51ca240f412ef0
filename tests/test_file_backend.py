"""The state file: what stands in it, what is wrong with it, and what a write may never do."""

import errno
import json
import logging
import os
import pwd
import re
import socket
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest

from fastapi_maintenance import BackendError, Maintenance, set_maintenance_mode
from fastapi_maintenance.backends import LocalFileBackend
from fastapi_maintenance.backends.file import SIZE_LIMIT
from fastapi_maintenance.backends.flock import FlockGate
from fastapi_maintenance.backends.locks import Gate
from fastapi_maintenance.state import OPEN
from tests.descriptors import open_below

ROOT = Path(__file__).parent.parent
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away and drop to another user")


@pytest.fixture
def path(tmp_path):
    """Give the path of a state file that does not exist yet."""
    return tmp_path / "state"


def names(directory):
    """List a directory."""
    return sorted(entry.name for entry in Path(directory).iterdir())


def age(path, seconds=10.0):
    """Wait until the file is old enough not to be read again at each look."""
    deadline = time.monotonic() + seconds
    while time.time_ns() - path.lstat().st_ctime_ns < 60_000_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    return path


def count_opens(monkeypatch, path):
    """Count how often the state file is opened."""
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda name, *args, **kw: opened.append(name) or real(name, *args, **kw))
    return lambda: opened.count(str(path))


# What stands in it


def test_a_missing_file_is_open_and_reading_creates_nothing(path):
    """No file means open, and a look leaves no file behind."""
    backend = LocalFileBackend(path)
    assert backend.peek_state() is OPEN
    assert list(path.parent.iterdir()) == []


def test_a_missing_directory_is_an_error_at_construction(tmp_path):
    """The error names the directory that has to be made."""
    with pytest.raises(BackendError, match=f"the directory {re.escape(str(tmp_path / 'no'))} does not exist"):
        LocalFileBackend(tmp_path / "no" / "state")


def test_a_directory_is_an_error_at_construction(tmp_path):
    """A path that is a directory is no state file, and the error asks for one."""
    with pytest.raises(BackendError, match="it is a directory; name a file in it"):
        LocalFileBackend(tmp_path)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        *((word, "full") for word in ("1", "true", "T", "yes", "Y", "On", "ON\n", " true \r\n")),
        *((word, None) for word in ("0", "False", "f", "NO", "n", "oFF\n")),
        ("read_only\n", "read_only"),
    ],
)
def test_words_written_by_hand_are_the_switch(path, text, mode):
    """A word in any case, with a newline or blanks around it, is understood; `since` is the file's time."""
    path.write_text(text, newline="")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    switch = LocalFileBackend(path).peek_state().switch
    assert (switch and (switch.mode, switch.since)) == (mode and (mode, datetime.fromtimestamp(1_700_000_000, UTC)))


@pytest.mark.anyio
async def test_plain_states_are_written_as_words_and_richer_ones_as_a_document(path):
    """`1` and `0` for on and off with nothing else to say, JSON for the rest, and words again afterwards."""
    maintenance = Maintenance(backend=LocalFileBackend(path))
    written = []
    for change in (
        set_maintenance_mode(True, maintenance.backend),
        maintenance.disable(),
        maintenance.enable(message="soon back"),
        set_maintenance_mode(True, maintenance.backend),
    ):
        await change
        written.append(path.read_text())
    assert (written[0], written[1], written[3]) == ("1\n", "0\n", "1\n")
    assert json.loads(written[2])["switch"]["message"] == "soon back"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("said", "by"),
    [({}, rf".+@{re.escape(socket.gethostname())}:{os.getpid()}"), ({"by": "ann"}, "ann")],
    ids=["me", "ann"],
)
async def test_the_document_says_who_turned_it_on(path, said, by):
    """`enable()` writes who did it: user@host:pid, or what it was told."""
    await Maintenance(backend=LocalFileBackend(path)).enable(**said)
    assert re.fullmatch(by, json.loads(path.read_text())["switch"]["by"])


@pytest.mark.anyio
async def test_the_gate_appears_beside_it_at_the_first_change(path):
    """A change makes the file and its gate and nothing else; the gate is never replaced."""
    maintenance = Maintenance(backend=LocalFileBackend(path))
    await maintenance.enable()
    first = path.with_name("state.gate").stat().st_ino
    await maintenance.disable()
    assert (names(path.parent), path.with_name("state.gate").stat().st_ino) == (["state", "state.gate"], first)


@pytest.mark.anyio
async def test_an_edit_that_forgets_the_revision_gets_one(path):
    """The revision grows with each change, also when the edit gives a state with an old one."""
    backend = LocalFileBackend(path)
    await backend.set_value(True)
    revisions = [
        (await backend.change_state(lambda state, n=n: OPEN.model_copy(update={"n": n}))).revision for n in (1, 2)
    ]
    assert revisions == [2, 3]


@pytest.mark.anyio
async def test_unknown_fields_are_kept(path):
    """Fields of others survive a change, in the document and in its parts."""
    path.write_text(
        '{"schema": 1, "team": "ops", "switch": {"since": "2026-01-01T00:00:00Z", "ticket": 5}, "windows": []}'
    )
    maintenance = Maintenance(backend=LocalFileBackend(path))
    soon = datetime.now(UTC) + timedelta(hours=1)
    await maintenance.schedule(soon, soon + timedelta(hours=1))
    document = json.loads(path.read_text())
    assert (document["team"], document["switch"]["ticket"], len(document["windows"])) == ("ops", 5, 1)


@pytest.mark.anyio
async def test_a_hand_written_word_becomes_a_document_when_more_is_said(path):
    """Planning a window keeps the switch that a shell turned on."""
    path.write_text("on\n")
    maintenance = Maintenance(backend=LocalFileBackend(path))
    soon = datetime.now(UTC) + timedelta(hours=1)
    await maintenance.schedule(soon, soon + timedelta(hours=1))
    document = json.loads(path.read_text())
    assert (document["switch"]["mode"], len(document["windows"])) == ("full", 1)


@pytest.mark.anyio
async def test_the_state_survives_a_restart(path):
    """Another object on the same path knows all that was stored."""
    await Maintenance(backend=LocalFileBackend(path)).enable(message="moving", mode="read_only")
    status = await Maintenance(backend=LocalFileBackend(path)).status()
    assert (status.mode, status.message) == ("read_only", "moving")


@pytest.mark.anyio
async def test_an_edit_that_changes_nothing_writes_nothing(path):
    """When the edit gives the same state back, there is no state file."""
    state = await LocalFileBackend(path).change_state(lambda state: state)
    assert (state.switch, path.exists()) == (None, False)


BY_HAND = {
    "a word": lambda path: path.write_text("read_only\n"),
    "a document": lambda path: path.write_text('{"team": "ops"}'),
    "an older document": lambda path: path.write_text('{"revision": 2}'),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Gate, FlockGate])
@pytest.mark.parametrize("edit", BY_HAND)
async def test_a_hand_edit_never_lowers_the_revision(path, monkeypatch, kind, edit):
    """All readers, old and new, show the revision of the last change, and the next change is higher."""
    monkeypatch.setattr("fastapi_maintenance.backends.file.gate_beside", kind)
    old, writer = LocalFileBackend(path), LocalFileBackend(path)
    for on in (True, False, True):
        await writer.set_value(on)
        old.peek_state()
    BY_HAND[edit](path)
    shown = [backend.peek_state().revision for backend in (old, writer, LocalFileBackend(path)) for _ in range(2)]
    await LocalFileBackend(path).set_value(False)
    after = [backend.peek_state().revision for backend in (old, writer, LocalFileBackend(path))]
    assert (shown, after) == ([3] * 6, [4] * 3)


@pytest.mark.anyio
async def test_a_revision_written_by_hand_that_runs_ahead_is_not_followed_by_a_lower_one(path):
    """Who has seen it shows at least that from then on, and changes come after it."""
    backend = LocalFileBackend(path)
    await backend.set_value(True)
    seen = []
    for text in ('{"revision": 70}', "0\n", '{"revision": 5}'):
        path.write_text(text)
        seen.append(backend.peek_state().revision)
    await backend.set_value(True)
    assert (seen, backend.peek_state().revision) == ([70] * 3, 71)


@pytest.mark.anyio
async def test_the_same_word_after_two_changes_is_another_revision(path):
    """A reader that slept through "off" and "on" shows what the others show."""
    writer, sleeper = LocalFileBackend(path), LocalFileBackend(path)
    seen = []
    for on in (True, False, True):
        await writer.set_value(on)
        seen.append(sleeper.peek_state().revision if on else None)
    assert seen == [1, None, 3]


# What is wrong with it


def make_socket(path):
    """Leave a socket at `path`."""
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)
        listener.bind(path.name)


BROKEN = {
    "empty": (lambda path: path.write_bytes(b""), "it is empty or binary"),
    "blank": (lambda path: path.write_bytes(b" \n"), "it is empty or binary"),
    "cut short": (lambda path: path.write_bytes(b'{"schema": 1, "swi'), "EOF while parsing"),
    "no JSON": (lambda path: path.write_bytes(b"maintenance please"), "'maintenance please' is not a maintenance mode"),
    "a list": (lambda path: path.write_bytes(b"[1]"), "is not a maintenance mode"),
    "a broken rule": (lambda path: path.write_bytes(b'{"switch": {"mode": "full"}}'), "switch.since"),
    "UTF-16": (lambda path: path.write_bytes("1\n".encode("utf-16")), "it is empty or binary"),
    "UTF-16 without mark": (lambda path: path.write_bytes("1\n".encode("utf-16-le")), "it is empty or binary"),
    "Latin-1": (lambda path: path.write_bytes(b"\xe9t\xe9"), "can't decode"),
    "NUL": (lambda path: path.write_bytes(b"1\0"), "it is empty or binary"),
    "huge": (lambda path: path.write_bytes(b" " * SIZE_LIMIT + b"1"), "more than 4194304 bytes"),
    "newer schema": (lambda path: path.write_bytes(b'{"schema": 2}'), "written by a newer version"),
    "directory": (lambda path: path.mkdir(), "Is a directory"),
    "FIFO": (os.mkfifo, "it is a FIFO or a device"),
    "device": (lambda path: None, "it is a FIFO or a device"),
    "socket": (make_socket, "No such device"),
    "symlink": (lambda path: path.symlink_to(path.parent / "elsewhere"), "it is a symbolic link"),
}


@pytest.fixture(params=BROKEN)
def broken(request, path, monkeypatch):
    """Give a path, what breaks it, and what the error says."""
    monkeypatch.chdir(path.parent)
    spoil, said = BROKEN[request.param]
    if request.param == "device":
        return Path("/dev/null"), spoil, said
    (path.parent / "elsewhere").write_text("0\n")
    return path, spoil, said


@pytest.mark.anyio
async def test_what_cannot_be_read_keeps_the_last_known_state(broken, tmp_path, caplog):
    """A broken file is a failure: the last known state holds, and one warning names path and reason."""
    caplog.set_level(logging.INFO, "fastapi_maintenance")
    path, spoil, said = broken
    backend = LocalFileBackend(tmp_path / "before")
    maintenance = Maintenance(backend=backend)
    await maintenance.enable()
    await maintenance.status()
    caplog.clear()
    backend.file_path = str(path)
    spoil(path)
    seen = [await maintenance.status() for _ in range(3)]
    assert all(status.active and status.stale is not None for status in seen)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"state file {path}" in caplog.text
    assert said in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("contents", [b"", b" \n"])
async def test_a_file_with_nothing_in_it_can_be_written(path, contents):
    """An empty file is a failure to a reader, but a write has nothing to destroy there."""
    path.write_bytes(contents)
    maintenance = Maintenance(backend=LocalFileBackend(path))
    unknown = await maintenance.status()
    await maintenance.enable()
    status = await maintenance.status()
    assert (unknown.stale is None, status.active, status.stale) == (False, True, None)
    assert json.loads(path.read_text())["revision"] == status.revision


@pytest.mark.anyio
@pytest.mark.parametrize("what", sorted(BROKEN.keys() - {"empty", "blank"}))
async def test_a_write_refuses_to_destroy_what_it_cannot_read(what, path, monkeypatch):
    """`enable()`, `disable()` and a hold raise, and what stands there stays as it is, with nothing beside it."""
    monkeypatch.chdir(path.parent)
    (path.parent / "elsewhere").write_text("0\n")
    backend = LocalFileBackend(path)
    path = Path("/dev/null") if what == "device" else path
    # Its gate stays where it is, not in /dev.
    backend.file_path = str(path)
    spoil, _ = BROKEN[what]
    spoil(path)
    before = path.lstat()
    maintenance = Maintenance(backend=backend)
    for change in (maintenance.enable, maintenance.disable, maintenance.on().__aenter__):
        with pytest.raises(BackendError, match=str(path)):
            await change()
    after = path.lstat()
    assert (after.st_ino, after.st_size, after.st_mode) == (before.st_ino, before.st_size, before.st_mode)
    assert [name for name in names(path.parent) if name.startswith(f".{path.name}.")] == []
    assert (await maintenance.status()).holds == ()


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["symlink", "directory", "FIFO", "huge"])
async def test_what_takes_the_place_of_an_empty_file_is_not_destroyed(what, path):
    """That there was nothing to destroy at the last look does not count at the next one."""
    backend = LocalFileBackend(path)
    path.write_text("")
    with pytest.raises(BackendError):
        backend.peek_state()
    path.unlink()
    BROKEN[what][0](path)
    before = path.lstat()
    with pytest.raises(BackendError, match="It was not overwritten"):
        await backend.set_value(True)
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.anyio
@pytest.mark.parametrize("when_unknown", ["open", "closed"])
async def test_a_file_broken_from_the_start_is_what_was_asked_for(path, monkeypatch, when_unknown):
    """While nothing is known, `on_backend_error` decides."""
    path.write_bytes(b"")
    monkeypatch.setenv("FASTAPI_MAINTENANCE_ON_BACKEND_ERROR", when_unknown)
    status = await Maintenance(backend=LocalFileBackend(path)).status()
    assert status.active is (when_unknown == "closed")


@pytest.mark.anyio
async def test_a_mended_file_is_read_again(path, caplog):
    """After the mend the new state holds, and one info tells of the end of the failure."""
    caplog.set_level(logging.INFO, "fastapi_maintenance")
    path.write_text("1")
    maintenance = Maintenance(backend=LocalFileBackend(path))
    await maintenance.status()
    path.write_text("")
    await maintenance.status()
    path.write_text("0")
    seen = [await maintenance.status() for _ in range(2)]
    assert [(status.active, status.stale) for status in seen] == [(False, None)] * 2
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.anyio
async def test_a_file_that_comes_back_unchanged_is_read_again(path):
    """A failure ends also when the contents are what they were before it."""
    maintenance = Maintenance(backend=LocalFileBackend(path))
    await maintenance.enable()
    await maintenance.status()
    path.rename(path.with_name("aside"))
    path.mkdir()
    failing = await maintenance.status()
    path.rmdir()
    path.with_name("aside").rename(path)
    mended = await maintenance.status()
    assert (failing.active, failing.stale is None) == (True, False)
    assert (mended.active, mended.stale) == (True, None)


@pytest.mark.anyio
async def test_a_deleted_file_is_open_again(path):
    """Deleting the file opens, after a failure, too, and the revision does not fall."""
    maintenance = Maintenance(backend=LocalFileBackend(path))
    closed = await maintenance.enable()
    path.unlink()
    opened = await maintenance.status()
    path.write_text("")
    assert (await maintenance.status()).stale is not None
    path.unlink()
    again = await maintenance.status()
    assert (opened.active, again.active, again.stale) == (False, False, None)
    assert closed.revision == opened.revision == again.revision == 1


@pytest.mark.parametrize("kind", ["directory", "symlink", "FIFO"])
def test_looks_at_a_broken_file_hold_no_descriptors(path, kind):
    """However often it is looked at, no descriptor stays open."""
    backend = LocalFileBackend(path)
    BROKEN[kind][0](path)
    for _ in range(20):
        with pytest.raises(BackendError):
            backend.peek_state()
    assert open_below(path.parent) == []


def test_each_look_at_a_broken_file_raises_a_new_error(path):
    """The same error raised for ever would grow a traceback with each request."""
    path.write_text("")
    backend = LocalFileBackend(age(path))
    errors = []
    for _ in range(2):
        with pytest.raises(BackendError) as caught:
            backend.peek_state()
        errors.append(caught.value)
    assert errors[0] is not errors[1]


def test_a_directory_that_cannot_be_entered_is_a_failure(path, monkeypatch):
    """A file that cannot be looked at may be there, so it is not taken for missing."""
    backend = LocalFileBackend(path)
    backend.peek_state()

    def refused(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "lstat", refused)
    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(BackendError, match=rf"Permission denied \(user .*; the mode of {path} cannot be seen\)"):
        backend.peek_state()


# When it is read


def test_an_unchanged_file_is_not_opened_again(path, monkeypatch):
    """Once the file has settled, a look is one system call and gives the same object."""
    path.write_text("1")
    backend = LocalFileBackend(age(path))
    first = backend.peek_state()
    opens = count_opens(monkeypatch, path)
    assert all(backend.peek_state() is first for _ in range(100))
    assert opens() == 0
    path.write_text("0")
    assert backend.peek_state().switch is None
    assert opens() == 1


def test_a_touched_file_gives_the_same_state_object(path, monkeypatch):
    """A new time without new contents is read once and changes nothing."""
    path.write_text("1")
    backend = LocalFileBackend(path)
    first = backend.peek_state()
    os.utime(path)
    age(path)
    opens = count_opens(monkeypatch, path)
    assert [backend.peek_state() is first for _ in range(3)] == [True] * 3
    assert opens() == 1


def test_a_missing_file_is_not_opened_again(path, monkeypatch):
    """While there is no file, a look opens nothing."""
    backend = LocalFileBackend(path)
    backend.peek_state()
    opens = count_opens(monkeypatch, path)
    backend.peek_state()
    assert opens() == 0


def test_a_change_within_one_tick_of_the_clock_is_seen(path, monkeypatch):
    """Same inode, size and times: what a shell writes right after a look is seen at the next one."""
    tick = time.time_ns() + 10_000_000_000

    def coarse(real):
        def look(which):
            info = real(which)
            kept = {name: getattr(info, name) for name in ("st_dev", "st_ino", "st_size", "st_mode")}
            return SimpleNamespace(**kept, st_mtime=tick / 1e9, st_mtime_ns=tick, st_ctime_ns=tick)

        return look

    backend = LocalFileBackend(path)
    monkeypatch.setattr(os, "lstat", coarse(os.lstat))
    monkeypatch.setattr(os, "fstat", coarse(os.fstat))
    seen = []
    for word in ["1", "0"] * 3:
        path.write_text(word)
        seen.append(backend.peek_state().switch is not None)
    assert seen == [True, False] * 3


# Writing


def fail(error):
    """Give a function that raises `error` for all arguments."""

    def failing(*args, **kwargs):
        raise error

    return failing


@pytest.mark.anyio
@pytest.mark.parametrize("text", ["0\n", '{"schema": 1, "team": "ops"}'])
@pytest.mark.parametrize(
    ("call", "number"),
    [("open", errno.EROFS), ("fsync", errno.EIO), ("replace", errno.ENOSPC), ("open", errno.EACCES)],
    ids=str,
)
async def test_a_failed_write_leaves_the_old_state(path, monkeypatch, text, call, number):
    """The old file is intact, nothing lies beside it, the hold has not begun, and the error names path and user."""
    path.write_text(text)
    maintenance = Maintenance(backend=LocalFileBackend(path))
    real = getattr(os, call)
    error = OSError(number, os.strerror(number))
    monkeypatch.setattr(os, call, lambda *a, **k: real(*a, **k) if a[0] == str(path) else fail(error)())
    for change in (maintenance.enable, maintenance.on().__aenter__):
        with pytest.raises(BackendError, match="cannot be written") as caught:
            await change()
        user = pwd.getpwuid(os.geteuid()).pw_name
        assert all(word in str(caught.value) for word in (str(path), os.strerror(number), f"user {user}", "mode d"))
    monkeypatch.undo()
    assert path.read_text() == text
    assert set(names(path.parent)) <= {"state", "state.gate"}
    assert not await maintenance.status()


@pytest.mark.anyio
async def test_a_clean_up_that_fails_hides_no_error(path, monkeypatch):
    """On a read-only file system even deleting what is not there fails; the first reason comes out."""
    maintenance = Maintenance(backend=LocalFileBackend(path))
    monkeypatch.setattr(os, "replace", fail(OSError(errno.EROFS, "Read-only file system")))
    monkeypatch.setattr(os, "unlink", fail(OSError(errno.EROFS, "Read-only")))
    with pytest.raises(BackendError, match="cannot be written: Read-only file system"):
        await maintenance.enable()
    assert not path.exists()


@pytest.mark.anyio
async def test_a_directory_that_cannot_be_synced_does_not_deny_what_was_stored(path, monkeypatch):
    """After the rename the change is true for everybody, so it is no failure any more."""
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: real(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else fail(OSError)())
    assert (await Maintenance(backend=LocalFileBackend(path)).enable()).active
    assert json.loads(path.read_text())["switch"]["mode"] == "full"


@pytest.mark.anyio
async def test_a_gate_that_cannot_be_told_of_the_end_does_not_deny_what_was_stored(path, monkeypatch):
    """The revision that could not be written is used up all the same."""
    backend = LocalFileBackend(path)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, raw, at: real(fd, raw, at) if raw[0] & 1 else fail(OSError)())
    await backend.set_value(True)
    stored = path.read_text()
    monkeypatch.undo()
    path.write_text("0")
    other = LocalFileBackend(path)
    await other.set_value(True)
    assert (stored, (await other.read_state()).revision) == ("1\n", 2)


@pytest.mark.anyio
async def test_a_state_over_the_limit_is_refused(path, monkeypatch):
    """What could not be read back is not written."""
    maintenance = Maintenance(backend=LocalFileBackend(path))
    await maintenance.backend.set_value(True)
    monkeypatch.setattr("fastapi_maintenance.backends.file.SIZE_LIMIT", 200)
    with pytest.raises(BackendError, match="at most 200 are allowed"):
        await maintenance.enable(message="x" * 200)
    assert path.read_text() == "1\n"


@pytest.mark.anyio
async def test_a_user_without_a_name_is_told_by_number(path, monkeypatch):
    """In a container the user may have no name; the error tells the number."""
    maintenance = Maintenance(backend=LocalFileBackend(path))
    monkeypatch.setattr(os, "replace", fail(PermissionError(errno.EACCES, "Permission denied")))
    monkeypatch.setattr(pwd, "getpwuid", fail(KeyError()))
    with pytest.raises(BackendError, match=f"user of uid {os.geteuid()};"):
        await maintenance.enable()


@pytest.mark.anyio
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o604])
async def test_the_mode_of_an_existing_file_is_kept(path, mode):
    """The file that takes its place has the same mode."""
    path.write_text("0")
    path.chmod(mode)
    await Maintenance(backend=LocalFileBackend(path)).enable()
    assert stat.S_IMODE(path.stat().st_mode) == mode


@as_root
@pytest.mark.anyio
async def test_root_keeps_the_owner_and_gives_a_first_file_to_the_owner_of_its_directory(path):
    """A file made by root must not lock the service's workers out."""
    os.chown(path.parent, 4242, 4243)
    maintenance = Maintenance(backend=LocalFileBackend(path))
    await maintenance.enable()
    first = path.stat()
    os.chown(path, 1717, 1818)
    await maintenance.disable()
    second = path.stat()
    assert (first.st_uid, second.st_uid, second.st_gid) == (4242, 1717, 1818)


@pytest.mark.anyio
async def test_a_file_that_cannot_be_given_away_is_written_all_the_same(path, monkeypatch):
    """Who may not change the owner still changes the state, with the mode kept."""
    path.write_text("0")
    path.chmod(0o640)
    path.with_name("state.gate").touch()
    asked = []
    monkeypatch.setattr(os, "fchown", lambda fd, uid, gid: asked.append(uid) or fail(PermissionError(errno.EPERM))())
    await LocalFileBackend(path).set_value(True)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("1\n", 0o640)
    assert asked == [path.stat().st_uid, -1]


# Other users and full disks, for real

PROGRAM = """
import asyncio, os, pwd, resource, signal, sys
import anyio
from fastapi_maintenance import BackendError, Maintenance
from fastapi_maintenance.backends import LocalFileBackend

async def main():
    await anyio.to_thread.run_sync(int)
    maintenance = Maintenance(backend=LocalFileBackend(sys.argv[1]))
    if sys.argv[2] == "full disk":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    elif os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        await maintenance.enable(message="x" * 200)
    except BackendError as error:
        print(error)
    print((await maintenance.status()).active)

asyncio.run(main())
"""


def run_program(path, what):
    """Run the program as another user or with a small limit, and give its lines."""
    done = subprocess.run(  # noqa: S603 - this program
        [sys.executable, "-c", PROGRAM, path, what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COVERAGE_PROCESS_START": "", "USER": "root"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_full_disk_leaves_the_old_state(path):
    """A write that finds no room fails whole: the old contents are there, and no temporary file."""
    path.write_text("1\n")
    said, active = run_program(path, "full disk")
    assert said.startswith(f"state file {path}: cannot be written: File too large (user ")
    assert (active, path.read_text(), names(path.parent)) == ("True", "1\n", ["state", "state.gate"])


@pytest.fixture
def public():
    """Give a directory that each user can enter; pytest's own are private."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_an_ordinary_user_in_a_read_only_directory_is_named(public):
    """The old state is intact, and the error names path, the user that the system sees, and the mode."""
    state = public / "state"
    state.write_text("1\n")
    state.chmod(0o644)
    public.chmod(0o555)
    said, active = run_program(state, "other user")
    user = pwd.getpwuid(os.geteuid() or NOBODY).pw_name
    assert said.startswith(f"state file {state}: cannot be written: Permission denied (user {user}, uid ")
    assert f"{public} has mode dr-xr-xr-x" in said
    assert (active, state.read_text(), names(public)) == ("True", "1\n", ["state"])


def test_an_ordinary_user_who_may_not_read_is_told_so(public):
    """A file without permission is a failure, not "off", and it is not overwritten."""
    public.chmod(0o777)
    state = public / "state"
    state.write_text("1\n")
    state.chmod(0)
    said, active = run_program(state, "other user")
    assert said.startswith(f"state file {state}: cannot be read: Permission denied (user ")
    assert f"{state} has mode ----------" in said
    state.chmod(0o600)
    assert (active, state.read_text()) == ("False", "1\n")


# Many at once


def edit_meanwhile(path, monkeypatch, edits):
    """Let somebody edit the file by hand while the next changes write theirs."""
    real, left = os.fsync, list(edits)

    def fsync(descriptor):
        real(descriptor)
        for edit in left[:1] if stat.S_ISREG(os.fstat(descriptor).st_mode) else []:
            left.remove(edit)
            BY_HAND[edit](path)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.anyio
@pytest.mark.parametrize("edit", sorted(BY_HAND))
async def test_a_hand_edit_in_the_middle_of_a_change_is_not_lost(path, monkeypatch, edit):
    """The change is made anew on what stands there then, and nothing lies beside it."""
    path.write_text("0\n")
    backend = LocalFileBackend(path)
    edit_meanwhile(path, monkeypatch, [edit])
    state = await backend.change_state(lambda state: state.model_copy(update={"seen": state.switch is not None}))
    team = {"team": "ops"} if edit == "a document" else {}
    assert state.model_extra == {**team, "seen": edit == "a word"}
    assert backend.peek_state() == LocalFileBackend(path).peek_state() == state
    assert names(path.parent) == ["state", "state.gate"]


@pytest.mark.anyio
async def test_a_file_that_is_edited_again_and_again_is_left_alone(path, monkeypatch):
    """Who writes it without pause and without the gate is named, and has the last word."""
    path.write_text("0\n")
    monkeypatch.setattr("fastapi_maintenance.backends.locks.WRITE_TIMEOUT", 0.0)
    edit_meanwhile(path, monkeypatch, ["a word", "an older document"])
    with pytest.raises(BackendError, match="somebody else writes it again and again"):
        await LocalFileBackend(path).set_value(True)
    assert (path.read_text(), names(path.parent)) == ("read_only\n", ["state", "state.gate"])


@pytest.mark.anyio
async def test_changes_of_one_process_do_not_wait_for_one_another_without_end(path, monkeypatch):
    """While one is stuck, all others give up after the time that one may take, not one after another."""
    backend = LocalFileBackend(path)
    monkeypatch.setattr("fastapi_maintenance.backends.locks.WRITE_TIMEOUT", 0.01)
    failed = []

    async def change():
        with pytest.raises(BackendError, match=r"this process has been trying to for 0\.01 s"):
            await backend.set_value(True)
        failed.append(True)

    with backend._writing():
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(change)
    await backend.set_value(True)
    assert (len(failed), path.read_text()) == (5, "1\n")


def test_a_path_of_bytes_is_the_same_file(path):
    """What the system calls a path is one, with its gate beside it."""
    anyio.run(LocalFileBackend(os.fsencode(path)).set_value, True)
    assert (path.read_text(), names(path.parent)) == ("1\n", ["state", "state.gate"])


ODD = ["a b", "st*te[1]?", "-rf", "ü ✓", "line\nfeed", "{0}%s", "\udcff", ".hidden", "x.gate", "x" * 200]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Gate, FlockGate])
@pytest.mark.parametrize("name", ODD, ids=ascii)
async def test_a_file_of_any_name(path, monkeypatch, kind, name):
    """It switches, holds and is tidied like any other, and leaves the file beside it alone."""
    monkeypatch.setattr("fastapi_maintenance.backends.file.gate_beside", kind)
    path, beside = path.with_name(name), LocalFileBackend(path.with_name(f"{name}.billing"))
    await beside.set_value(True)
    maintenance = Maintenance(backend=LocalFileBackend(path))
    async with maintenance.on():
        inside = await Maintenance(backend=LocalFileBackend(path)).status()
    await maintenance.enable()
    await maintenance.disable()
    assert (inside.active, bool(await maintenance.status()), await beside.get_value()) == (True, False, True)
    assert names(path.parent) == sorted([name, f"{name}.gate", f"{name}.billing", f"{name}.billing.gate"])


def test_threads_that_change_at_once_lose_nothing(path):
    """Each of many changes made at once in threads and tasks is in the file afterwards."""
    backend = LocalFileBackend(path)
    soon = datetime.now(UTC) + timedelta(hours=1)

    async def plan(maintenance, number):
        await maintenance.schedule(soon, soon + timedelta(hours=1), message=str(number))

    async def work(numbers):
        maintenance = Maintenance(backend=backend)
        async with anyio.create_task_group() as group:
            for number in numbers:
                group.start_soon(plan, maintenance, number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: anyio.run(work, range(5 * n, 5 * n + 5)), range(6)))
    document = json.loads(path.read_text())
    assert {window["message"] for window in document["windows"]} == {str(number) for number in range(30)}
    assert (document["revision"], names(path.parent)) == (30, ["state", "state.gate"])
