"""The same locks for POSIX systems that have only flock(2), such as macOS and BSD, and which of them a system has.

Each hold and each worker has a file of its own beside the gate, and all requests share the lock of one more. Only one
hold at a time can drain.
"""

import contextlib
import os
import re
import secrets
import sys
from collections.abc import Iterable
from hashlib import sha256

from fastapi_maintenance.backends.locks import (
    PIDS,
    Attached,
    Gate,
    Hold,
    Place,
    Worker,
    fcntl,
    open_or_create,
    reading,
    stands_at,
)

_BUSY, _IDLE = b"1", b"0"


class FlockHold(Hold):
    """The lock of one hold on a file of its own.

    Args:
        descriptor: The locked file.
        path: Its path.
        slots_path: The file that all requests lock.
    """

    def __init__(self, descriptor: int, path: str, slots_path: str) -> None:
        super().__init__(descriptor, path)
        self._slots_path = slots_path
        self._slots: int | None = None

    def exclude(self) -> bool:
        """Try to keep all requests out; `False` while one is in flight, or another hold does the same."""
        if self._slots is None:
            self._slots = open_or_create(self._slots_path)
            self.descriptors = (self._descriptor, self._slots)
        return _flock(self._slots, fcntl.LOCK_EX)

    def stands(self) -> bool:
        """Tell whether its files are still there."""
        return super().stands() and self._slots is not None and stands_at(self._slots_path, self._slots)

    def release(self) -> None:
        """Let go."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        try:
            for descriptor in self.descriptors:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            self.abandon()


class FlockWorker:
    """A worker's own file, locked, and the file that all requests lock; the first byte of its own tells "busy"."""

    def __init__(self, descriptor: int, path: str, slots: int, slots_path: str) -> None:
        self._descriptor = descriptor
        self._path = path
        self._slots = slots
        self._places = Place(path, descriptor), Place(slots_path, slots)

    def take(self) -> bool:
        """Lock the slot."""
        if not _flock(self._slots, fcntl.LOCK_SH):
            return False
        for place in self._places:
            if not place.stands():
                raise FileNotFoundError(place.path)
        os.pwrite(self._descriptor, _BUSY, 0)
        return True

    def free(self) -> None:
        """Unlock the slot."""
        fcntl.flock(self._slots, fcntl.LOCK_UN)
        os.pwrite(self._descriptor, _IDLE, 0)

    def leave(self) -> None:
        """Let go of everything."""
        with contextlib.suppress(OSError):
            # Where it was taken away, another worker may have made it anew.
            if stands_at(self._path, self._descriptor):
                os.unlink(self._path)
        try:
            for descriptor in (self._descriptor, self._slots):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the copies of a forked child."""
        os.close(self._descriptor)
        os.close(self._slots)


class FlockGate(Gate):
    """The locks beside one state file, for POSIX systems without locks of open file descriptions."""

    def hold(self, hold_id: str) -> Hold:
        """Lock a hold, in a file of its own."""
        path = self._hold_path(hold_id)
        while True:
            descriptor = open_or_create(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Somebody may have tidied it away before it was locked.
                if stands_at(path, descriptor):
                    return FlockHold(descriptor, path, self._slots_path)
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def alive(self, hold_ids: Iterable[str]) -> frozenset[str]:
        """Tell which holds a living process has locked."""
        return frozenset(hold_id for hold_id in hold_ids if _is_flocked(self._hold_path(hold_id)))

    def attach(self) -> Worker:
        """Be a worker, with a file of its own."""
        number = os.getpid()
        while True:
            path = f"{self.path}.worker-{number}"
            descriptor = open_or_create(path)
            try:
                if _flock(descriptor, fcntl.LOCK_EX) and stands_at(path, descriptor):
                    return FlockWorker(descriptor, path, open_or_create(self._slots_path), self._slots_path)
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)
            number += PIDS

    def workers(self) -> list[Attached]:
        """Give all workers that are attached."""
        alive = [path for path in self._files(r"worker-[0-9]+") if _is_flocked(path)]
        return sorted(Attached(int(path.rpartition("-")[2]), _first_byte(path) == _BUSY) for path in alive)

    def excludes(self) -> bool:
        """Try whether locks of two descriptors exclude each other here."""
        path = f"{self.path}.{secrets.token_hex(8)}.test"
        first, second = open_or_create(path), open_or_create(path)
        try:
            return _flock(first, fcntl.LOCK_SH) and not _flock(second, fcntl.LOCK_EX)
        finally:
            os.unlink(path)
            os.close(first)
            os.close(second)

    def tidy(self) -> None:
        """Remove the files of holds and workers whose process is gone."""
        for path in self._files(r"[0-9a-f]{16}|worker-[0-9]+"):
            with contextlib.suppress(OSError), reading(path) as descriptor:
                if _flock(descriptor, fcntl.LOCK_EX):
                    os.unlink(path)

    def any_other(self, hold_ids: Iterable[str]) -> bool:
        """Tell whether a living process has locked a hold that is none of these."""
        known = {self._hold_path(hold_id) for hold_id in hold_ids}
        return any(_is_flocked(path) for path in self._files(r"[0-9a-f]{16}") if path not in known)

    @property
    def _slots_path(self) -> str:
        return f"{self.path}.slots"

    def _files(self, suffix: str) -> list[str]:
        """Give the files beside the gate whose names go on with a dot and the pattern `suffix`."""
        directory, name = os.path.split(self.path)
        ours = re.compile(rf"{re.escape(name)}\.(?:{suffix})")
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            return [entry.path for entry in entries if ours.fullmatch(entry.name)]
        return []

    def _hold_path(self, hold_id: str) -> str:
        # A digest, for a document written by hand may name a hold as it likes.
        return f"{self.path}.{sha256(hold_id.encode()).hexdigest()[:16]}"

    def _try_writer(self, descriptor: int) -> bool:
        return _flock(descriptor, fcntl.LOCK_EX)

    def _free_writer(self, descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def gate_beside(state_path: str) -> Gate | None:
    """Give the locks that this system has, `None` where it has none."""
    if fcntl is None:  # pragma: no cover - Windows
        return None
    # Elsewhere the constant may exist, too, but `struct flock` is another one.
    has_range_locks = sys.platform == "linux" and hasattr(fcntl, "F_OFD_SETLK")
    return Gate(state_path) if has_range_locks else FlockGate(state_path)


def _is_flocked(path: str) -> bool:
    with contextlib.suppress(FileNotFoundError), reading(path) as descriptor:
        return not _flock(descriptor, fcntl.LOCK_SH)
    return False


def _first_byte(path: str) -> bytes:
    with contextlib.suppress(FileNotFoundError), reading(path) as descriptor:
        return os.pread(descriptor, 1, 0)
    return b""


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
