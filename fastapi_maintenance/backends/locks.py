"""Kernel locks beside the state file: one writer at a time, holds that end with their process, workers and slots.

One file, `PATH.gate`, serves all: Linux has byte-range locks that belong to an open file description (fcntl(2), "Open
file description locks"), and drops those of the dead. Each owner opens the file for itself, for locks of one open
file description never conflict with each other. `flock.py` does the same for systems without such locks.
"""

import contextlib
import os
import secrets
import struct
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Protocol

try:
    import fcntl as _fcntl
except ImportError:  # pragma: no cover - Windows
    _fcntl = None  # type: ignore[assignment]

fcntl: Any = _fcntl

WRITE_TIMEOUT = 9.0
"""Seconds to wait for another process that is writing."""

SURE_FOR = 1.0
"""Seconds for which a worker only looks whether its gate was deleted, not whether it was moved away."""

_RETRY = 0.001
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

_REVISION = struct.Struct("<Q")
_LARGEST = (1 << 8 * _REVISION.size) - 1
_WRITER = _REVISION.size
_HOLDS = 1 << 62
_HOLDS_SIZE = 1 << 61
_SLOTS = 1 << 61
_SLOTS_SIZE = 1 << 60
_ATTACHED = 1 << 60
_ATTACHED_SIZE = 1 << 59
_TEST = 1 << 59
_TEST_SIZE = 1 << 58
PIDS = 1 << 22
"""Process ids are below (proc(5), pid_max): a worker's number is its own plus the smallest free multiple."""

_FLOCK = struct.Struct("hhqqi4x")
"""`struct flock` of 64-bit Linux: type, whence, start, length, pid."""


class Hold:
    """The lock of one hold; it can keep all requests out, too.

    Args:
        descriptor: An open file description of its own.
        path: The file.

    Attributes:
        descriptors: What a child process inherits to keep the hold alive.
    """

    def __init__(self, descriptor: int, path: str) -> None:
        self.descriptors: tuple[int, ...] = (descriptor,)
        self._descriptor = descriptor
        self._path = path

    def exclude(self) -> bool:
        """Try to keep all requests out until the hold is released; `False` while one is in flight.

        Raises:
            OSError: The system refuses locks.
        """
        return _range_lock(self._descriptor, fcntl.F_RDLCK, _SLOTS, _SLOTS_SIZE)

    def stands(self) -> bool:
        """Tell whether its file is still there: locks on a file that was deleted or moved away concern nobody."""
        return stands_at(self._path, self._descriptor)

    def release(self) -> None:
        """Let go; plain system calls that a cancellation cannot break off."""
        try:
            # Explicitly, for a child process may have a copy of the descriptor.
            _range_lock(self._descriptor, fcntl.F_UNLCK, 0, 0)
        finally:
            os.close(self._descriptor)

    def abandon(self) -> None:
        """Close the copies of a forked child; the hold stays with the parent."""
        for descriptor in self.descriptors:
            os.close(descriptor)


class Worker(Protocol):
    """What a worker has locked: that it is there and, while a request is in flight, its slot."""

    def take(self) -> bool:
        """Lock the slot, and look then whether anybody else can see that.

        Returns:
            `False` while a hold keeps all requests out, be it one that began before its file was taken away.

        Raises:
            FileNotFoundError: Its file is no longer where the others look.
            OSError: The system refuses locks.
        """
        ...

    def free(self) -> None:
        """Unlock the slot."""
        ...

    def leave(self) -> None:
        """Let go of everything."""
        ...

    def abandon(self) -> None:
        """Close the copies of a forked child; the locks stay with the parent."""
        ...


class Place:
    """Where others look for a file that this process has open.

    Args:
        path: The place.
        descriptor: The file.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._sure_until = 0.0

    def stands(self) -> bool:
        """Tell whether the file is still there: not deleted, and every `SURE_FOR` seconds whether not moved away."""
        now = time.monotonic()
        if now < self._sure_until:
            return os.fstat(self._descriptor).st_nlink > 0
        self._sure_until = now + SURE_FOR
        return stands_at(self.path, self._descriptor)


class RangeWorker:
    """A worker's byte among the attached ones, and the same one among the slots.

    Args:
        descriptor: The gate, on an open file description of its own.
        path: The gate's path.
        byte: The worker's byte.
    """

    def __init__(self, descriptor: int, path: str, byte: int) -> None:
        self._descriptor = descriptor
        self._place = Place(path, descriptor)
        self._locked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _SLOTS + byte, 1, 0)
        self._unlocked = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, _SLOTS + byte, 1, 0)

    def take(self) -> bool:
        """Lock the slot."""
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, self._locked)
        except BlockingIOError:
            return False
        if not self._place.stands():
            raise FileNotFoundError(self._place.path)
        return True

    def free(self) -> None:
        """Unlock the slot."""
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, self._unlocked)

    def leave(self) -> None:
        """Let go of everything."""
        try:
            _range_lock(self._descriptor, fcntl.F_UNLCK, 0, 0)
        finally:
            os.close(self._descriptor)

    def abandon(self) -> None:
        """Close the copy of a forked child."""
        os.close(self._descriptor)


class Attached(NamedTuple):
    """A worker as others see it.

    Attributes:
        number: Names it: its process id, with a multiple of `PIDS` where another one (a second backend object, another
            container) has the same.
        busy: Whether a request is in flight.
    """

    number: int
    busy: bool

    @property
    def pid(self) -> int:
        """Its process id, as it sees itself."""
        return self.number % PIDS


class Gate:
    """The locks beside one state file, for Linux.

    Args:
        state_path: The state file; the gate is made when somebody serves, writes or holds, and never replaced.
    """

    def __init__(self, state_path: str) -> None:
        self.path = f"{state_path}.gate"

    @contextmanager
    def writing(self) -> Generator["Revision"]:
        """Be the only writer of all processes for the time of the block.

        Raises:
            TimeoutError: Another process has been writing for `WRITE_TIMEOUT` seconds.
            OSError: The gate cannot be opened.
        """
        descriptor = open_or_create(self.path)
        try:
            deadline = time.monotonic() + WRITE_TIMEOUT
            while not self._try_writer(descriptor):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process has been writing for {WRITE_TIMEOUT:g} s")
                time.sleep(_RETRY)
            yield Revision(descriptor)
        finally:
            # Explicitly, for a process forked meanwhile has a copy of the descriptor.
            self._free_writer(descriptor)
            os.close(descriptor)

    def revision(self) -> int:
        """Give the highest revision that somebody may have seen, 0 where there was no change or it cannot be read."""
        with contextlib.suppress(OSError), reading(self.path) as descriptor:
            return Revision(descriptor).highest()
        return 0

    def hold(self, hold_id: str) -> Hold:
        """Lock a hold, for as long as this process lives or until it is released."""
        descriptor = open_or_create(self.path)
        try:
            _range_lock(descriptor, fcntl.F_WRLCK, _byte(hold_id), 1)
        except OSError:
            os.close(descriptor)
            raise
        return Hold(descriptor, self.path)

    def alive(self, hold_ids: Iterable[str]) -> frozenset[str]:
        """Tell which holds a living process has locked.

        Raises:
            OSError: The gate cannot be opened.
        """
        with contextlib.suppress(FileNotFoundError), reading(self.path) as descriptor:
            return frozenset(hold_id for hold_id in hold_ids if _is_range_locked(descriptor, _byte(hold_id), 1))
        return frozenset()

    def attach(self) -> Worker:
        """Be a worker, for as long as this process lives or until it leaves; makes the gate.

        Raises:
            OSError: The gate cannot be opened for writing.
        """
        descriptor = open_or_create(self.path)
        try:
            byte = os.getpid()
            while not _range_lock(descriptor, fcntl.F_WRLCK, _ATTACHED + byte, 1):
                byte += PIDS
        except OSError:
            os.close(descriptor)
            raise
        return RangeWorker(descriptor, self.path, byte)

    def workers(self) -> list[Attached]:
        """Give all workers that are attached.

        Raises:
            OSError: The gate cannot be read.
        """
        with contextlib.suppress(FileNotFoundError), reading(self.path) as descriptor:
            busy = set(_written(descriptor, _SLOTS, _SLOTS_SIZE))
            return [Attached(byte, byte in busy) for byte in sorted(_written(descriptor, _ATTACHED, _ATTACHED_SIZE))]
        return []

    def excludes(self) -> bool:
        """Try whether locks of two descriptors exclude each other here, as not every file system has it.

        Raises:
            OSError: The gate cannot be opened, or the system refuses locks.
        """
        first, second = open_or_create(self.path), open_or_create(self.path)
        byte = _TEST + secrets.randbelow(_TEST_SIZE)
        try:
            locked = _range_lock(first, fcntl.F_WRLCK, byte, 1)
            return locked and not _range_lock(second, fcntl.F_RDLCK, byte, 1)
        finally:
            os.close(first)
            os.close(second)

    def tidy(self) -> None:
        """Remove what dead processes left behind: nothing, here."""

    def any_other(self, hold_ids: Iterable[str]) -> bool:
        """Tell whether a living process has locked a hold that is none of these.

        Raises:
            OSError: The gate cannot be opened.
        """
        # The bytes of the known holds, and one behind the range, each ending a gap in which nothing may be locked.
        ends = [*sorted(_byte(hold_id) for hold_id in hold_ids), _HOLDS + _HOLDS_SIZE]
        starts = [_HOLDS, *(end + 1 for end in ends)]
        gaps = [(start, end - start) for start, end in zip(starts, ends, strict=False) if end > start]
        with contextlib.suppress(FileNotFoundError), reading(self.path) as descriptor:
            return any(_is_range_locked(descriptor, start, length) for start, length in gaps)
        return False

    def _try_writer(self, descriptor: int) -> bool:
        return _range_lock(descriptor, fcntl.F_WRLCK, _WRITER, 1)

    def _free_writer(self, descriptor: int) -> None:
        _range_lock(descriptor, fcntl.F_UNLCK, _WRITER, 1)


class Revision:
    """The first eight bytes of the gate: twice the revision, and one less while its writer is at work."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def highest(self) -> int:
        """Give the highest revision that somebody may have seen: a writer may have died before it was finished."""
        return (self._read() + 1) // 2

    def begin(self, revision: int) -> None:
        """Say that the change to `revision` is under way."""
        self._write(revision * 2 - 1)

    def end(self, revision: int) -> None:
        """Say that the state of `revision` is in place."""
        self._write(revision * 2)

    def _read(self) -> int:
        raw = os.pread(self._descriptor, _REVISION.size, 0)
        return int(_REVISION.unpack(raw)[0]) if len(raw) == _REVISION.size else 0

    def _write(self, number: int) -> None:
        os.pwrite(self._descriptor, _REVISION.pack(min(number, _LARGEST)), 0)


def _byte(hold_id: str) -> int:
    """Give the byte that a hold locks: far apart for any two ids, and the same in each process."""
    return _HOLDS + int.from_bytes(sha256(hold_id.encode()).digest()[:8]) % _HOLDS_SIZE


def _range_lock(descriptor: int, kind: int, start: int, length: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except BlockingIOError:
        return False
    return True


def _is_range_locked(descriptor: int, start: int, length: int) -> bool:
    return bool(_find_lock(descriptor, fcntl.F_WRLCK, start, length)[0] != fcntl.F_UNLCK)


def _find_lock(descriptor: int, kind: int, start: int, length: int) -> tuple[int, ...]:
    """Give `struct flock` of a lock, any one, that stands in the way of a lock of this kind."""
    asked = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    return _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))


def _written(descriptor: int, start: int, size: int) -> Iterator[int]:
    """Give, counted from `start`, the bytes that others have locked for writing; the kernel tells one at a time."""
    gaps = [(start, size)]
    while gaps:
        begin, length = gaps.pop()
        kind, _, at, held, _ = _find_lock(descriptor, fcntl.F_RDLCK, begin, length)
        if kind != fcntl.F_UNLCK:
            yield at - start
            end = at + held
            gaps += [gap for gap in ((begin, at - begin), (end, begin + length - end)) if gap[1] > 0]


def stands_at(path: str, descriptor: int) -> bool:
    """Tell whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def reading(path: str) -> Generator[int]:
    """Open a file for the time of the block."""
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_or_create(path: str) -> int:
    """Open a file to lock; a new one belongs to the owner of its directory, so that root locks no service out."""
    try:
        return os.open(path, os.O_RDWR | _FLAGS)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
        with contextlib.suppress(OSError):
            directory = Path(path).parent.stat()
            os.fchown(descriptor, directory.st_uid, directory.st_gid)
        return descriptor
