"""Every exception of the package, made from data."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import HTTPException
from starlette.responses import Response

from fastapi_maintenance.state import MaintenanceStatus


class MaintenanceError(Exception):
    """The base of all errors of this package, except wrong arguments (`ValueError`, `TypeError`)."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Copy and pickle it as it is: the data it was made from is in its attributes, not in `args`."""
        return _unmade, (type(self), *self.args), self.__dict__


class MaintenanceActive(MaintenanceError, HTTPException):
    """Raised when a gate is closed. A handler registered for it, else for 503, answers under all three gates.

    Attributes:
        status: The status at the moment of the refusal.
        response: What is sent when no handler of the application answers.
    """

    def __init__(self, status: MaintenanceStatus, response: Response, detail: str) -> None:
        retry_after = response.headers.get("Retry-After")
        headers = None if retry_after is None else {"Retry-After": retry_after}
        HTTPException.__init__(self, response.status_code, detail, headers)
        self.status = status
        self.response = response


class BackendError(MaintenanceError):
    """Raised when a backend cannot be read, written or made.

    Attributes:
        backend: The backend's name for people, never with credentials.
        reason: What is wrong and what to do.
    """

    def __init__(self, backend: str, reason: str) -> None:
        super().__init__(f"{backend}: {reason}")
        self.backend = backend
        self.reason = reason


class BackendReadOnlyError(BackendError):
    """Raised when a change is asked of a backend that can only be read."""


def named(pids: Sequence[int], hosts: Sequence[str] = ()) -> str:
    """Name processes in brackets, with their machines where there are several; empty where none is known."""
    if not pids:
        return ""
    if not hosts:
        return f" (pid {', '.join(map(str, pids))})"
    return f" ({', '.join(f'{host} pid {pid}' for host, pid in zip(hosts, pids, strict=True))})"


class DrainTimeout(MaintenanceError):
    """Raised when admitted requests were still running at the end of the time given to drain.

    Attributes:
        seconds: How long it waited.
        busy: Workers with a request in flight.
        workers: Workers attached.
        pids: The process ids of the busy ones, as far as they are known.
        hosts: Their machines in the same order, none where there is only one.
        operations: What is running in the asking process, by name.
    """

    def __init__(
        self,
        seconds: float,
        busy: int,
        workers: int,
        pids: Sequence[int] = (),
        operations: Sequence[str] = (),
        hosts: Sequence[str] = (),
    ) -> None:
        here = f"; in this process: {', '.join(operations)}" if operations else ""
        who = f"{busy} of {workers} workers busy{named(pids, hosts)}"
        super().__init__(f"{who} after {seconds:g} s{here}; wait longer with a higher drain=")
        self.seconds = seconds
        self.busy = busy
        self.workers = workers
        self.pids = tuple(pids)
        self.hosts = tuple(hosts)
        self.operations = tuple(operations)


class DrainIncomplete(MaintenanceError):
    """Raised when a worker did not answer, so nobody can say that it runs nothing.

    Attributes:
        missing: Host and process of each.
    """

    def __init__(self, missing: Sequence[str]) -> None:
        super().__init__(
            f"no answer from {', '.join(missing)}; make sure that they have ended, then try again; "
            "one that ended without a goodbye is forgotten in a minute or two"
        )
        self.missing = tuple(missing)


class NoWorkers(MaintenanceError):
    """Raised when fewer workers are attached than a drain asks for.

    Attributes:
        found: Workers attached.
        wanted: `min_workers`.
    """

    def __init__(self, found: int, wanted: int) -> None:
        super().__init__(
            f"{found} workers attached, at least {wanted} expected: is it the same backend (path, URL, scope)? "
            "A worker is attached from its lifespan, else from its first request on; before that, say min_workers=0"
        )
        self.found = found
        self.wanted = wanted


class DrainWouldDeadlock(MaintenanceError):
    """Raised when a request that is itself counted asks to drain: it would wait for its own end."""

    def __init__(self) -> None:
        super().__init__(
            "this request is counted, so draining would wait for itself; mark its route @force_maintenance_mode_off"
        )


class DrainUnsupported(MaintenanceError):
    """Raised when a backend or a platform cannot promise that nobody is running.

    Attributes:
        reason: Why not.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"drain= cannot be promised: {reason}; leave drain= out")
        self.reason = reason


def _unmade(kind: type[MaintenanceError], *args: object) -> MaintenanceError:
    return kind.__new__(kind, *args)
