"""A file as a backend: replaced whole, read again only when it changed, shared by all processes of a machine."""

import contextlib
import errno
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import TypeAlias

from fastapi_maintenance.backends import locks
from fastapi_maintenance.backends.base import BaseStateBackend, Edit
from fastapi_maintenance.backends.flock import gate_beside
from fastapi_maintenance.backends.locks import Gate, Revision
from fastapi_maintenance.backends.locks import Hold as HoldLock
from fastapi_maintenance.backends.slots import MachineInFlight
from fastapi_maintenance.errors import BackendError
from fastapi_maintenance.forks import follow_forks
from fastapi_maintenance.state import OPEN, Hold, MaintenanceState, Switch, mode_of_word, utcnow
from fastapi_maintenance.tasks import in_thread, to_the_end

SIZE_LIMIT = 4 * 1024 * 1024
"""Bytes that a state file may have."""

SETTLED_AFTER = 50_000_000
"""Nanoseconds: two changes within one tick of the file system's clock look alike, so a younger file is read again."""

_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)

_Identity: TypeAlias = tuple[int, int, int, int, int] | None

_identity: Callable[[os.stat_result], _Identity] = attrgetter(
    "st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"
)

_UNSEEN: _Identity = (-1, -1, -1, -1, -1)
"""What a file is that may be there but cannot be looked at."""


UNLISTED = "unlisted"
"""The id of a hold whose entry somebody has written over."""

_WHAT_KEEPS = "Hold {} stays closed where the file lists it, until disable(); write 1 where it does not but should"
"""What to tell of a hold that is to be kept after a failure."""

ALIVE_FOR = 0.02
"""Seconds for which a hold that was seen alive is taken to be so."""


@dataclass(slots=True)
class _Look:
    """What the file was when it was last looked at.

    Attributes:
        plain: Whether the state is what the file says: nothing is wrong with it, and no hold may have died meanwhile.
    """

    identity: _Identity
    settled: bool
    raw: bytes | None
    state: MaintenanceState
    error: str | None = None
    plain: bool = field(init=False)

    def __post_init__(self) -> None:
        self.plain = self.error is None and not self.state.holds


class LocalFileBackend(BaseStateBackend):
    """Keep the state in a local file, for all processes that can read it.

    The file holds a JSON document, or simply `1` or `0` as a shell writes it (`echo 1 > PATH`). A missing file means
    open, and reading creates nothing. A file that cannot be read or understood is a failure, never "off".
    What is written by hand or deleted is shown with the revision of the last change, or its own where that is higher.

    Beside it, `PATH.gate` is made by the first worker, change or hold: it lets one process write at a time, so no
    change is lost, ends each hold with its process, and tells who is running. Both belong on a local disk, in the
    service's own directory.

    Args:
        file_path: The file. Its directory must exist.

    Attributes:
        in_flight: The requests that are running on this machine behind gates of this file.

    Raises:
        BackendError: The directory is missing or cannot be seen, or the file is a directory.
    """

    def __init__(self, file_path: str | os.PathLike[str]) -> None:
        self.file_path: str = os.path.abspath(os.fsdecode(file_path))
        self._look = _Look(None, settled=False, raw=None, state=OPEN)
        self._lock = threading.Lock()
        self._gate = gate_beside(self.file_path)
        self._held: dict[str, HoldLock] = {}
        self.in_flight = MachineInFlight(self._gate, self._held, self._name)
        self._unlisted: Hold | None = None
        self._living: tuple[MaintenanceState, float, MaintenanceState] | None = None
        self._check_place()
        follow_forks(self)

    def _check_place(self) -> None:
        directory = os.path.dirname(self.file_path)
        try:
            possible = b"\0" not in os.fsencode(self.file_path)
        except UnicodeEncodeError:
            possible = False
        if not possible:
            raise self._error("no file can have this name; name another path")
        try:
            there = stat.S_ISDIR(os.stat(directory).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            there = False
        except OSError as error:
            raise self._error(f"its directory cannot be seen: {_say(error, directory)}; name another path") from None
        if not there:
            raise self._error(f"the directory {directory} does not exist; create it, or name another path")
        try:
            is_directory = stat.S_ISDIR(os.stat(self.file_path).st_mode)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise self._error(f"{error.strerror}; name another path") from None
            return
        if is_directory:
            raise self._error("it is a directory; name a file in it")

    def after_fork(self) -> None:
        """Leave the parent's holds to the parent: the copies of their descriptors would keep them alive."""
        self._lock = threading.Lock()
        for lock in self._held.values():
            lock.abandon()
        self._held.clear()

    def __repr__(self) -> str:
        return f"LocalFileBackend({self.file_path!r})"

    def peek_state(self) -> MaintenanceState:
        """Give the state; one system call while the file is unchanged. `BackendError` when it cannot be read."""
        look = self._look
        if not look.settled or look.identity != self._identify():
            look = self._look = self._read()
        if look.plain:
            return look.state
        if look.error is not None:
            raise self._error(look.error)
        return self._with_live_holds(look.state)

    async def read_state(self) -> MaintenanceState:
        """Give the state."""
        return self.peek_state()

    async def change_state(self, edit: Edit) -> MaintenanceState:
        """Change the state; the file is replaced whole, and safe on the disk when this returns.

        Raises:
            BackendError: The file cannot be read (then it is not overwritten) or not be written.
        """
        return await to_the_end(lambda: in_thread(self._change, edit))

    @property
    def can_hold(self) -> bool:
        """Whether this system ends a hold with its process; if not, holds turn the switch on and off again."""
        return self._gate is not None

    async def take_hold(self, hold: Hold) -> None:
        """Begin `hold`, for all processes; the kernel ends it with this one.

        Raises:
            BackendError: It could not be stored; it has not begun.
        """
        await to_the_end(lambda: in_thread(self._take, hold))

    async def end_hold(self, hold: Hold, *, failed: bool) -> None:
        """End `hold`, or leave an orphan.

        Without its lock, a hold that is to be kept is an orphan wherever the file lists it. So where nothing can be
        written, it stays closed as long as its entry does: through a full disk, and through a broken file that is
        mended. Whoever writes the file anew, without the entry, decides anew.

        Raises:
            BackendError: A hold that is to be kept after a failure ended, but that could not be stored.
        """
        await to_the_end(lambda: in_thread(self._end, hold, failed))

    def hold_descriptors(self, hold_id: str) -> tuple[int, ...]:
        """Give the descriptors that keep a hold of this process alive, with the slots that it has locked."""
        lock = self._held.get(hold_id)
        return () if lock is None else lock.descriptors

    async def get_value(self) -> bool:
        """Tell whether maintenance is on now."""
        return self.peek_state().at(utcnow()).active

    async def set_value(self, value: bool) -> None:  # noqa: FBT001 - the older package's signature
        """Write `1` or `0`; a document stays one where windows are planned."""
        await self.change_state(lambda state: state.switched(utcnow(), on=value))

    # Reading

    def _identify(self) -> _Identity:
        try:
            return _identity(os.lstat(self.file_path))
        except FileNotFoundError:
            return None
        except OSError:
            return _UNSEEN

    def _read(self) -> _Look:
        last = self._look
        now = time.time_ns()
        try:
            raw, info = self._contents()
        except FileNotFoundError:
            known_missing = last.identity is None and last.raw is None and last.error is None
            state = last.state if known_missing else OPEN
            state = _at_least(state, self._lowest(changed=not known_missing))
            return _Look(None, settled=True, raw=None, state=self._with_unlisted(state))
        except OSError as error:
            return replace(last, settled=False, raw=None, error=f"cannot be read: {_say(error, self.file_path)}")
        identity = _identity(info)
        settled = now - info.st_ctime_ns > SETTLED_AFTER
        if raw == last.raw and last.error is None and last.state.revision >= self._lowest(changed=False):
            return replace(last, identity=identity, settled=settled, state=self._with_unlisted(last.state))
        try:
            state = _at_least(self._parse(raw, info), self._lowest(changed=True))
        except (ValueError, TypeError) as error:
            return _Look(identity, settled, raw.strip() or b"", last.state, str(error))
        return _Look(identity, settled, raw, self._with_unlisted(state))

    def _lowest(self, *, changed: bool) -> int:
        """Give the lowest revision for what was just read, so that none somebody saw is followed by a lower one.

        A word tells no revision, and what a person writes may tell an old one. The gate knows that of the last change.
        """
        seen = self._look.state.revision
        if self._gate is None:  # pragma: no cover - Windows
            return seen + changed
        return max(seen, self._gate.revision())

    def _contents(self) -> tuple[bytes, os.stat_result]:
        with open(self.file_path, "rb", opener=lambda path, _: os.open(path, _READ_FLAGS)) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise OSError(None, "it is a FIFO or a device, not a regular file")
            raw = file.read(SIZE_LIMIT + 1)
        if len(raw) > SIZE_LIMIT:
            raise OSError(None, f"it has more than {SIZE_LIMIT} bytes")
        return raw, info

    def _parse(self, raw: bytes, info: os.stat_result) -> MaintenanceState:
        text = raw.decode("utf-8").strip() if b"\0" not in raw else None
        if not text:
            raise ValueError("it is empty or binary; write 1, 0, read_only or a document")
        if text.startswith("{"):
            return MaintenanceState.from_json(text)
        mode = mode_of_word(text)
        since = datetime.fromtimestamp(info.st_mtime, UTC)
        return MaintenanceState(switch=None if mode is None else Switch(since=since, mode=mode))

    # Holds

    def _with_unlisted(self, state: MaintenanceState) -> MaintenanceState:
        """Give the state with a hold that is alive but not in it: a file written by hand never ends a live hold."""
        state = state.without_unlisted(UNLISTED)
        if self._gate is None:
            return state
        try:
            found = self._gate.any_other([hold.id for hold in state.holds])
        except OSError:
            # Who may not see the gate has said so where it mattered: when a hold was listed.
            return state
        if not found:
            self._unlisted = None
            return state
        seen = self._unlisted = self._unlisted or Hold(id=UNLISTED, since=utcnow())
        return state.with_unlisted(seen)

    def _with_live_holds(self, state: MaintenanceState, *, fresh: bool = False) -> MaintenanceState:
        """Give the state without holds whose process is gone; those that asked to be kept are orphans then."""
        if self._gate is None:  # pragma: no cover - Windows
            return state
        now, known = time.monotonic(), self._living
        if known is not None and known[0] is state and now < known[1] and not fresh:
            return known[2]
        try:
            alive = self._gate.alive(hold.id for hold in state.holds if hold.phase != "orphan") | {UNLISTED}
        except OSError as error:
            raise self._error(f"its gate cannot be read: {_say(error, self._gate.path)}") from None
        living = self._with_unlisted(state).with_live_holds(alive)
        if known is not None and known[2] == living:
            living = known[2]
        self._living = (state, now + ALIVE_FOR, living)
        return living

    def _take(self, hold: Hold) -> None:
        try:
            lock = self._locks().hold(hold.id)
        except OSError as error:
            raise self._not_locked(error) from None
        try:
            self._change(lambda state: state.with_hold(hold))
        except BaseException:
            lock.release()
            raise
        self._held[hold.id] = lock

    def _end(self, hold: Hold, failed: bool) -> None:  # noqa: FBT001 - what a thread is given
        lock = self._held.pop(hold.id, None)
        if lock is None:
            return
        if hold.on_failure == "lift":
            # What ends it is the lock; the next change forgets it where this one cannot.
            lock.release()
            self._living = None
            with contextlib.suppress(BackendError):
                self._change(lambda state: state.without_hold(hold.id))
            return
        try:
            self._change(lambda state: state.with_orphan(hold) if failed else state.without_hold(hold.id))
        except BackendError as error:
            raise self._error(f"{error.reason}. {_WHAT_KEEPS.format(hold.id)}") from None
        finally:
            lock.release()
            self._living = None

    def _locks(self) -> Gate:
        if self._gate is None:  # pragma: no cover - Windows
            raise self._error("holds cannot be kept on this system")
        return self._gate

    # Writing

    @contextlib.contextmanager
    def _writing(self) -> Generator[Revision | None]:
        """Be the only writer, of all processes where the system can."""
        if not self._lock.acquire(timeout=locks.WRITE_TIMEOUT):
            # Else each would wait for all before it, and take the threads of the application.
            raise self._error(f"cannot be written: this process has been trying to for {locks.WRITE_TIMEOUT:g} s")
        with contextlib.ExitStack() as stack:
            stack.callback(self._lock.release)
            try:
                revision = None if self._gate is None else stack.enter_context(self._gate.writing())
            except TimeoutError as error:
                raise self._error(f"cannot be written: {error}") from None
            except OSError as error:
                raise self._not_locked(error) from None
            yield revision

    def _change(self, edit: Edit) -> MaintenanceState:
        with self._writing() as revision:
            deadline = time.monotonic() + locks.WRITE_TIMEOUT
            while (state := self._try_to_change(edit, revision)) is None:
                if time.monotonic() > deadline:
                    raise self._error("cannot be written: somebody else writes it again and again, without its gate")
            return state

    def _try_to_change(self, edit: Edit, revision: Revision | None) -> MaintenanceState | None:
        """Change the state; `None` where somebody has edited the file meanwhile."""
        look = self._read()
        if look.error is not None and look.raw != b"":
            raise self._error(f"{look.error}. It was not overwritten: mend it, or delete it to start anew")
        before = self._with_live_holds(look.state, fresh=True).without_unlisted(UNLISTED)
        before = before if revision is None else _at_least(before, revision.highest())
        state = edit(before)
        if state is before:
            return state
        if state.revision <= before.revision:
            state = state.model_copy(update={"revision": before.revision + 1})
        raw = (state.word or state.to_json()).encode() + b"\n"
        if not self._write(raw, revision, state.revision, look.identity):
            return None
        self._look = _Look(None, settled=False, raw=raw, state=state)
        return state

    def _write(self, raw: bytes, revision: Revision | None, number: int, replaced: _Identity) -> bool:
        """Replace the file, unless it is not any more the one that was read."""
        if len(raw) > SIZE_LIMIT:
            raise self._error(f"the state would have {len(raw)} bytes, at most {SIZE_LIMIT} are allowed")
        directory, name = os.path.split(self.file_path)
        temporary = os.path.join(directory, f".{name}.{secrets.token_hex(8)}.tmp")
        try:
            if self._gate is not None and revision is not None:
                revision.begin(number)
                self._gate.tidy()
                _remove_left_over(directory, name)
            self._fill(temporary, raw)
            if self._identify() != replaced:
                return False
            os.replace(temporary, self.file_path)
        except OSError as error:
            raise self._error(f"cannot be written: {_say(error, directory)}") from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        # From here on the change is true for everybody, so nothing may deny it.
        _sync_directory(directory)
        if revision is not None:
            with contextlib.suppress(OSError):
                revision.end(number)
        return True

    def _fill(self, temporary: str, raw: bytes) -> None:
        descriptor = os.open(temporary, _CREATE_FLAGS, 0o666)
        with open(descriptor, "wb") as file:
            self._keep_owner_and_mode(descriptor)
            file.write(raw)
            file.flush()
            os.fsync(descriptor)

    def _keep_owner_and_mode(self, descriptor: int) -> None:
        """Give the new file the owner, group and mode of the old one; a first file gets its directory's owner."""
        try:
            model, mode = os.stat(self.file_path), True
        except FileNotFoundError:
            model, mode = os.stat(os.path.dirname(self.file_path)), False
        if not hasattr(os, "fchown"):  # pragma: no cover - Windows has neither
            return
        for owner in (model.st_uid, -1):
            try:
                os.fchown(descriptor, owner, model.st_gid if mode else -1)
                break
            except OSError:
                continue
        if mode:
            os.fchmod(descriptor, stat.S_IMODE(model.st_mode))

    def _not_locked(self, error: OSError) -> BackendError:
        gate, directory = f"{self.file_path}.gate", os.path.dirname(self.file_path)
        if os.path.lexists(gate):
            return self._error(f"its gate cannot be written: {_say(error, gate)}")
        return self._error(f"cannot be written: {_say(error, directory)}")

    @property
    def _name(self) -> str:
        return _printable(f"state file {self.file_path}")

    def _error(self, reason: str) -> BackendError:
        return BackendError(self._name, _printable(reason))


def _printable(text: str) -> str:
    """Give text with what is no text, as the name of a file may hold, written out."""
    return text.encode(errors="backslashreplace").decode()


def _at_least(state: MaintenanceState, revision: int) -> MaintenanceState:
    """Give the state with this revision, unless it has a higher one; no change of its own."""
    return state if state.revision >= revision else state.model_copy(update={"revision": revision})


def _remove_left_over(directory: str, name: str) -> None:
    """Remove what writers that were killed left; the only writer there is calls it."""
    left_over = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{16}}\.tmp")
    # Not from a directory that can be written but not listed, nor what belongs to somebody else.
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in [entry for entry in entries if left_over.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


def _sync_directory(directory: str) -> None:
    """Make a rename safe on the disk, where the system can; the rename itself cannot fail any more."""
    flag = getattr(os, "O_DIRECTORY", None)
    if flag is None:  # pragma: no cover - Windows
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | flag)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _say(error: OSError, place: str) -> str:
    """Tell the reason, who was refused, and the mode of `place`."""
    if error.errno is None:
        return str(error.strerror)
    if error.errno == errno.ELOOP:
        return "it is a symbolic link; name the file itself"
    try:
        mode = f"{place} has mode {stat.filemode(os.stat(place).st_mode)}"
    except OSError:
        mode = f"the mode of {place} cannot be seen"
    return f"{error.strerror} (user {_user()}; {mode})"


def _user() -> str:
    """Name the user that the system sees; the environment may still name another one."""
    if not hasattr(os, "geteuid"):  # pragma: no cover - Windows
        import getpass  # noqa: PLC0415 - slow to import, and only here

        return getpass.getuser()
    import pwd  # noqa: PLC0415 - not on Windows

    try:
        return f"{pwd.getpwuid(os.geteuid()).pw_name}, uid {os.geteuid()}"
    except KeyError:
        return f"of uid {os.geteuid()}"
