"""Kernel locks beside the state file: one writer at a time, and holds that end with their process.

Linux has byte-range locks that belong to an open file description (fcntl(2), "Open file description locks"): one gate
file, `PATH.gate`, serves all. Other POSIX systems have flock(2): the gate file is for writers, and each hold has a file
of its own. The kernel drops the locks of the dead. Windows has neither (`gate_beside` gives `None`): writers exclude
each other in one process only, and a hold is no more than on a true/false store.

Each owner opens the file for itself: locks of one open file description never conflict with each other.
"""

import contextlib
import os
import re
import struct
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

try:
    import fcntl as _fcntl
except ImportError:  # pragma: no cover - Windows
    _fcntl = None  # type: ignore[assignment]

fcntl: Any = _fcntl

WRITE_TIMEOUT = 5.0
"""Seconds to wait for another process that is writing."""

_RETRY = 0.001
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

_REVISION = struct.Struct("<Q")
_LARGEST = (1 << 8 * _REVISION.size) - 1
_WRITER = _REVISION.size
_HOLDS = 1 << 62
_HOLDS_SIZE = 1 << 61
_FLOCK = struct.Struct("hhqqi4x")
"""`struct flock` of 64-bit Linux: type, whence, start, length, pid."""


class Hold:
    """The lock of one hold.

    Args:
        descriptor: An open file description of its own.
        path: A file that goes with the hold, if any.
    """

    def __init__(self, descriptor: int, path: str | None = None) -> None:
        self._descriptor = descriptor
        self._path = path

    def release(self) -> None:
        """Let go; plain system calls that a cancellation cannot break off."""
        with contextlib.suppress(OSError):
            if self._path is not None:
                os.unlink(self._path)
        try:
            # Explicitly, for a process that was forked inside the hold has a copy of the descriptor.
            if self._path is None:
                _range_lock(self._descriptor, fcntl.F_UNLCK, 0, 0)
            else:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        finally:
            os.close(self._descriptor)


class Gate:
    """The locks beside one state file, for Linux.

    Args:
        state_path: The state file; the gate is made when somebody writes or holds, and never replaced.
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
        descriptor = _open_or_create(self.path)
        try:
            deadline = time.monotonic() + WRITE_TIMEOUT
            while not self._try_writer(descriptor):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process has been writing for {WRITE_TIMEOUT:g} s")
                time.sleep(_RETRY)
            yield Revision(descriptor)
        finally:
            os.close(descriptor)

    def revision(self) -> int:
        """Give the revision of the last change, 0 where there was none or it cannot be read."""
        with contextlib.suppress(OSError), _reading(self.path) as descriptor:
            return Revision(descriptor).get()
        return 0

    def hold(self, hold_id: str) -> Hold:
        """Lock a hold, for as long as this process lives or until it is released."""
        descriptor = _open_or_create(self.path)
        try:
            _range_lock(descriptor, fcntl.F_WRLCK, _byte(hold_id), 1)
        except OSError:
            os.close(descriptor)
            raise
        return Hold(descriptor)

    def alive(self, hold_ids: Iterable[str]) -> frozenset[str]:
        """Tell which holds a living process has locked.

        Raises:
            OSError: The gate cannot be opened.
        """
        with contextlib.suppress(FileNotFoundError), _reading(self.path) as descriptor:
            return frozenset(hold_id for hold_id in hold_ids if _is_range_locked(descriptor, _byte(hold_id), 1))
        return frozenset()

    def tidy(self) -> None:
        """Remove what holds of dead processes left behind: nothing, here."""

    def any_other(self, hold_ids: Iterable[str]) -> bool:
        """Tell whether a living process has locked a hold that is none of these.

        Raises:
            OSError: The gate cannot be opened.
        """
        # The bytes of the known holds, and one behind the range, each ending a gap in which nothing may be locked.
        ends = [*sorted(_byte(hold_id) for hold_id in hold_ids), _HOLDS + _HOLDS_SIZE]
        starts = [_HOLDS, *(end + 1 for end in ends)]
        gaps = [(start, end - start) for start, end in zip(starts, ends, strict=False) if end > start]
        with contextlib.suppress(FileNotFoundError), _reading(self.path) as descriptor:
            return any(_is_range_locked(descriptor, start, length) for start, length in gaps)
        return False

    def _try_writer(self, descriptor: int) -> bool:
        return _range_lock(descriptor, fcntl.F_WRLCK, _WRITER, 1)


class FlockGate(Gate):
    """The locks beside one state file, for POSIX systems without locks of open file descriptions."""

    def hold(self, hold_id: str) -> Hold:
        """Lock a hold, in a file of its own."""
        path = self._hold_path(hold_id)
        while True:
            descriptor = _open_or_create(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Somebody may have tidied it away before it was locked.
                if _stands_at(path, descriptor):
                    return Hold(descriptor, path)
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def alive(self, hold_ids: Iterable[str]) -> frozenset[str]:
        """Tell which holds a living process has locked."""
        return frozenset(hold_id for hold_id in hold_ids if _is_flocked(self._hold_path(hold_id)))

    def tidy(self) -> None:
        """Remove the files of holds whose process is gone."""
        for path in self._hold_files():
            with contextlib.suppress(OSError), _reading(path) as descriptor:
                if _flock(descriptor, fcntl.LOCK_EX):
                    os.unlink(path)

    def any_other(self, hold_ids: Iterable[str]) -> bool:
        """Tell whether a living process has locked a hold that is none of these."""
        known = {self._hold_path(hold_id) for hold_id in hold_ids}
        return any(_is_flocked(path) for path in self._hold_files() if path not in known)

    def _hold_files(self) -> list[str]:
        directory, name = os.path.split(self.path)
        of_hold = re.compile(re.escape(name) + r"\.[0-9a-f]{16}")
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            return [entry.path for entry in entries if of_hold.fullmatch(entry.name)]
        return []

    def _hold_path(self, hold_id: str) -> str:
        # A digest, for a document written by hand may name a hold as it likes.
        return f"{self.path}.{sha256(hold_id.encode()).hexdigest()[:16]}"

    def _try_writer(self, descriptor: int) -> bool:
        return _flock(descriptor, fcntl.LOCK_EX)


class Revision:
    """The first eight bytes of the gate: twice the revision, and one less while its writer is at work."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def get(self) -> int:
        """Give the revision of the last change that was finished."""
        return self._read() // 2

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


def gate_beside(state_path: str) -> Gate | None:
    """Give the locks that this system has, `None` where it has none."""
    if fcntl is None:  # pragma: no cover - Windows
        return None
    # Elsewhere the constant may exist, too, but `struct flock` is another one.
    has_range_locks = sys.platform == "linux" and hasattr(fcntl, "F_OFD_SETLK")
    return Gate(state_path) if has_range_locks else FlockGate(state_path)


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
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    found = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    return bool(found[0] != fcntl.F_UNLCK)


def _stands_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_flocked(path: str) -> bool:
    with contextlib.suppress(FileNotFoundError), _reading(path) as descriptor:
        return not _flock(descriptor, fcntl.LOCK_SH)
    return False


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _reading(path: str) -> Generator[int]:
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_or_create(path: str) -> int:
    """Open a file to lock; a new one belongs to the owner of its directory, so that root locks no service out."""
    try:
        return os.open(path, os.O_RDWR | _FLAGS)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
        with contextlib.suppress(OSError):
            directory = Path(path).parent.stat()
            os.fchown(descriptor, directory.st_uid, directory.st_gid)
        return descriptor
