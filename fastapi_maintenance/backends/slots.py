"""Who is running on this machine: each worker locks a slot beside the state file while a request is in flight."""

import logging
import os
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi_maintenance.backends.locks import Gate, Hold, Worker
from fastapi_maintenance.errors import BackendError, DrainUnsupported
from fastapi_maintenance.inflight import InFlight
from fastapi_maintenance.inflight import Worker as WorkerStatus
from fastapi_maintenance.tasks import in_thread

logger = logging.getLogger("fastapi_maintenance")

_TRIES = 2
"""How often a slot is tried when its gate is taken away meanwhile."""

ATTACH_AGAIN = 1.0
"""Seconds before a worker that could not attach tries again."""

REMOTE = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "lustre", "nfs", "nfs4", "ocfs2", "smb3", "smbfs"}
    | {"fuse.glusterfs", "fuse.s3fs", "fuse.sshfs"}
)
"""File systems that other machines see as well, so that a lock on this one tells nothing of them."""


class MachineInFlight(InFlight):
    """Counts the requests in flight in this process, and holds the process's slot while there are any.

    Args:
        gate: The locks beside the state file, `None` where the system has none.
        held: The locks of this process's holds by their ids.
        name: The backend's name for people.
    """

    def __init__(self, gate: Gate | None, held: Mapping[str, Hold], name: str) -> None:
        self._gate = gate
        self._held = held
        self._name = name
        self._turn = threading.RLock()
        self._worker: Worker | None = None
        self._forgotten: weakref.finalize[..., Any] | None = None
        self._has_slot = False
        self._try_again_at = 0.0
        self._told = False
        super().__init__()

    def after_fork(self) -> None:
        """Begin anew, with locks of its own: the copied descriptors are the parent's."""
        super().after_fork()
        self._turn = threading.RLock()
        worker = self._worker
        self._work_as(None)
        self._try_again_at = 0.0
        if worker is not None:
            worker.abandon()

    # Requests

    def enter(self, request: object) -> bool:
        """Count a request in; the first one takes the slot."""
        with self._turn:
            # First: the garbage collector may end a forgotten request in here, and that must not free the slot.
            self.running.add(request)
            counted = False
            try:
                counted = self._has_slot or self._take_slot()
            finally:
                if not counted:
                    self.running.discard(request)
            return counted

    def leave(self, request: object) -> None:
        """Count a request out; the last one frees the slot."""
        with self._turn:
            self.running.discard(request)
            if not self.running and self._has_slot and (worker := self._worker) is not None:
                self._has_slot = False
                try:
                    worker.free()
                except OSError as error:
                    self._cannot_lock(worker, error)

    def _take_slot(self, tries: int = _TRIES) -> bool:
        """Lock the slot; `False` while a hold keeps all requests out.

        Without a gate that can be locked nobody drains this worker, as it has told; it serves all the same.
        """
        worker = (self._worker or self._attach()) if tries else None
        if worker is None:
            return True
        try:
            self._has_slot = worker.take()
        except FileNotFoundError:
            self._let_go(worker)
            return self._take_slot(tries - 1)
        except OSError as error:
            self._cannot_lock(worker, error)
            return True
        return self._has_slot

    def _cannot_lock(self, worker: Worker, error: OSError) -> None:
        """Be no worker for a while, rather than one that seems to be idle."""
        self._work_as(None)
        worker.abandon()
        self._cannot_attach(error)

    # Workers

    def join(self) -> None:
        """Be a worker from now on."""
        if not self.joined:
            with self._turn:
                if self._worker is None:  # pragma: no branch - another thread may have been faster
                    self._attach()
                if self.running:
                    # What came in before there was a gate to lock is waited for from now on.
                    self._take_slot()

    def part(self) -> None:
        """Be no worker any more; one whose requests still run stays until its process ends."""
        with self._turn:
            worker = self._worker
            if worker is not None and not self.running:
                self._let_go(worker)

    def _attach(self) -> Worker | None:
        """Give locks to this worker, which has none; `None` if it cannot have any."""
        if self._gate is None or time.monotonic() < self._try_again_at:
            return None
        try:
            self._work_as(self._gate.attach())
        except OSError as error:
            self._cannot_attach(error)
        return self._worker

    def _let_go(self, worker: Worker) -> None:
        self._work_as(None)
        with suppress(OSError):
            worker.leave()

    def _work_as(self, worker: Worker | None) -> None:
        """Have these locks from now on; they are let go of with this object, where nobody says goodbye."""
        if self._forgotten is not None:
            self._forgotten.detach()
        self._worker, self.joined, self._has_slot = worker, worker is not None, False
        self._forgotten = None if worker is None else weakref.finalize(self, worker.abandon)

    def _cannot_attach(self, error: OSError) -> None:
        self._try_again_at = time.monotonic() + ATTACH_AGAIN
        if not self._told:
            self._told = True
            logger.warning(
                "This worker cannot be waited for by on(drain=): the gate of %s cannot be locked: %s. Make its "
                "directory writable for this user, or do not drain",
                self._name,
                error,
                extra={"backend": self._name, "reason": str(error)},
            )

    async def workers(self) -> tuple[WorkerStatus, ...]:
        """Give the workers of this machine, as their locks tell."""
        return await in_thread(self._workers)

    def _workers(self) -> tuple[WorkerStatus, ...]:
        try:
            attached = [] if self._gate is None else self._gate.workers()
        except OSError as error:
            raise BackendError(self._name, f"its gate cannot be read: {error}") from None
        return tuple(WorkerStatus(str(worker.number), worker.pid, worker.busy) for worker in attached)

    # Draining

    @property
    def reach(self) -> object:
        """The gate, wherever it is named: two backends of one file share its slots."""
        return self if self._gate is None else os.path.realpath(self._gate.path)

    async def check(self) -> None:
        """Make sure that the locks here are seen by everybody who uses the file, and exclude each other."""
        await in_thread(self._check)

    def _check(self) -> None:
        if self._gate is None:
            raise DrainUnsupported("this system has no locks that end with their process")
        remote = file_system_of(self._gate.path)
        if remote in REMOTE:
            raise DrainUnsupported(
                f"{self._name} is on {remote}, which other machines use as well; keep it on a local disk"
            )
        try:
            excludes = self._gate.excludes()
        except OSError as error:
            raise DrainUnsupported(f"the gate of {self._name} cannot be locked: {error}") from None
        if not excludes:
            raise DrainUnsupported(f"locks in the directory of {self._name} do not exclude each other")

    async def drained(self, hold_id: str) -> bool:
        """Try to lock all slots for the hold."""
        hold = self._held.get(hold_id)
        try:
            # A worker that could not attach has no slot, so what runs in this process is looked at as well.
            if hold is None or not hold.exclude() or (self.running and self._worker is None):
                return False
            standing = hold.stands()
        except OSError as error:
            raise BackendError(self._name, f"its slots cannot be locked: {error}") from None
        if not standing:
            raise BackendError(self._name, "its gate was deleted while it drained; leave PATH.gate alone and try again")
        return True


def file_system_of(path: str) -> str | None:
    """Give the type of the file system that `path` is on, `None` where the system does not tell."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    place = str(Path(path).parent.resolve())
    best, kind = "", None
    for line in lines:
        # proc_pid_mountinfo(5): the mount point is the fifth field, the type the first one after a dash.
        before, _, after = line.partition(" - ")
        mount = _unescaped(before.split(" ")[4])
        # A later mount hides an earlier one.
        if len(mount) >= len(best) and (place == mount or place.startswith(mount.rstrip("/") + "/")):
            best, kind = mount, after.split(" ")[0]
    return kind


def _unescaped(field: str) -> str:
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        field = field.replace(code, character)
    return field
