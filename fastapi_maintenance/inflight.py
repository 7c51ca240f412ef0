"""Who is running: the requests that were let in and have not ended yet."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextvars import ContextVar, Token
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from starlette.types import Scope

from fastapi_maintenance.asgi import path_of
from fastapi_maintenance.errors import DrainTimeout, MaintenanceError
from fastapi_maintenance.forks import follow_forks

logger = logging.getLogger("fastapi_maintenance")


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that serves requests behind gates of one backend.

    Attributes:
        id: Names it among all workers of the backend.
        pid: Its process id.
        busy: Whether an admitted request is running there.
        host: Its machine, `None` where there is only one.
        in_flight: How many admitted requests run there, `None` where only "any" is known.
        version: The version of this package there, `None` where it is not known.
        last_beat: When it was last heard (UTC), `None` where it need not say anything.
    """

    id: str
    pid: int
    busy: bool
    host: str | None = None
    in_flight: int | None = None
    version: str | None = None
    last_beat: datetime | None = None


def places(workers: Iterable[Worker]) -> tuple[list[int], list[str]]:
    """Give the process ids of workers, and their machines in the same order; none where there is only one."""
    known = list(workers)
    return [worker.pid for worker in known], [worker.host for worker in known if worker.host is not None]


class InFlight:
    """Counts the requests in flight in this process, and tells when there are none.

    It is also the base class of those that reach further: a machine, a fleet. `enter` and `leave` are on the path of
    each request: they never wait, and may be called in any thread.

    Attributes:
        running: The requests.
        joined: Whether this process is a worker.
    """

    def __init__(self) -> None:
        self.running: set[object] = set()
        self.joined = False
        self._lifespans = 0
        follow_forks(self)

    def after_fork(self) -> None:
        """Begin anew: the requests of the parent run in the parent."""
        self.running = set()
        self.joined = False
        self._lifespans = 0

    # Requests

    def enter(self, request: object) -> bool:
        """Count a request in, before the state is looked at.

        Returns:
            `False` when a drained hold keeps everybody out.
        """
        self.joined = True
        self.running.add(request)
        return True

    def leave(self, request: object) -> None:
        """Count a request out."""
        self.running.discard(request)

    def operations(self) -> tuple[str, ...]:
        """Name what is running in this process, each once."""
        # One that ends meanwhile has no name any more.
        return tuple(sorted({name for request in tuple(self.running) if (name := str(request))}))

    # Workers

    @property
    def ready(self) -> bool:
        """Whether a request may be counted in without `wait_ready`."""
        return True

    async def wait_ready(self, seconds: float) -> None:
        """Wait until the others know of this worker, at most `seconds`."""

    def assumes(self, when_unknown: str) -> None:
        """Learn what a gate is while nothing is known of the state: `open` or `closed`."""

    def attach(self) -> None:
        """Join the workers as a lifespan begins; several may run, and each has its `detach`. May wait."""
        self._lifespans += 1
        self.join()

    def detach(self) -> None:
        """Leave the workers as the last lifespan ends. May wait."""
        self._lifespans -= 1
        if self._lifespans == 0:
            self.part()

    def join(self) -> None:
        """Be a worker from now on, if it is none: a lifespan begins, or a request came to a gate."""
        self.joined = True

    def part(self) -> None:
        """Be no worker any more, until the next request."""
        self.joined = False

    async def workers(self) -> tuple[Worker, ...]:
        """Give the workers that are attached.

        Raises:
            BackendError: It cannot be told now.
        """
        if not self.joined:
            return ()
        count = len(self.running)
        return (Worker(str(os.getpid()), os.getpid(), count > 0, in_flight=count),)

    # Draining

    @property
    def reach(self) -> object:
        """What a drain waits for: the same thing for two of this process that wait for each other's requests."""
        return self

    async def check(self) -> None:
        """Make sure that a drain can keep its promise here.

        Raises:
            DrainUnsupported: It cannot.
        """

    async def drained(self, hold_id: str) -> bool:  # noqa: ARG002 - those that reach further need it
        """Tell whether nothing is running and, until the hold `hold_id` ends, nothing can start.

        Raises:
            MaintenanceError: It will not come to that.
        """
        return not self.running

    async def shortfall(self, seconds: float) -> MaintenanceError:
        """Give the error that says who was still running after `seconds`."""
        workers = await self.workers()
        busy = [worker for worker in workers if worker.busy]
        pids, hosts = places(busy)
        return DrainTimeout(seconds, len(busy), len(workers), pids, self.operations(), hosts)


NOTES = "fastapi_maintenance"
"""Key of the ASGI scope for the last passage whose request was let through; each knows the one before it."""


_current: "ContextVar[Passage | None]" = ContextVar("fastapi_maintenance", default=None)


class Passage:
    """One request (or lifespan) on its way through a gate, which is the current one until the passage leaves.

    Args:
        owner: The object that the gate belongs to.
        scope: The ASGI scope.
        counted: Where the request is counted, `None` where it is not, or not yet.

    Attributes:
        owner: The object that the gate belongs to.
        counted: Where the request is counted, `None` while it is not.
        verdict: Why the request was let through, `None` while it was not and when the passage is over.
        before: The passage that was noted in the scope before this one.
        only_for: Method and path where it was let through for what it asks, `None` where it would have been anyway.
        token: Knows the passage around this one, `None` when this one is over.
    """

    # Each request makes one, so: no slots, without which Python is faster, and what most never set stands here.
    before: "Passage | None" = None
    only_for: tuple[str | None, str | None] | None = None

    def __init__(self, owner: Any, scope: Scope, counted: InFlight | None) -> None:
        self.owner = owner
        self.counted = counted
        self.verdict: Any = None
        self._scope: Scope | None = scope
        self.token: Token[Passage | None] | None = _current.set(self)

    def __str__(self) -> str:
        """Name what it asks, for people; nothing when it is over."""
        scope = self._scope
        return "" if scope is None else f"{scope.get('method', 'websocket')} {path_of(scope) or scope.get('path')}"

    def __enter__(self) -> Self:
        """Give it: it has begun when it was made."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave; where one around it has left before, the current one is right already."""
        current = _current.get()
        if current is not self and (current is None or current.token is not None):
            # A guard lasts longer than the route class around it.
            self.token = None
        self.leave()

    def note(self, scope: Scope, verdict: object, *, whatever: bool = False) -> None:
        """Note in the scope that this request was let through; it holds no longer than the passage.

        Args:
            scope: The ASGI scope.
            verdict: Why.
            whatever: Whether it would have been, whatever it asks.
        """
        self.verdict, self.before = verdict, next(noted(scope), None)
        self.only_for = None if whatever else _asked(scope)
        scope[NOTES] = self

    def is_for(self, scope: Scope) -> bool:
        """Tell whether it holds for this request: a middleware that rewrites method or path makes another one."""
        return self.only_for is None or self.only_for == _asked(scope)

    def leave(self) -> None:
        """End: it is counted no more, and the gate before it is the current one again.

        What outlives the request keeps nothing of it but the owner.
        """
        counted, token = self.counted, self.token
        self.counted = self.token = self.verdict = self._scope = None
        if counted is not None:
            counted.leave(self)
        if token is not None:
            # A server may end a request or a lifespan in another context than the one that began it.
            try:
                _current.reset(token)
            except ValueError:
                logger.debug("left in another context than it was entered in")

    def is_counted_in(self, in_flight: InFlight) -> bool:
        """Tell whether a drain there would wait for this request, or for one around it."""
        passage: Passage | None = self
        while passage is not None:
            if passage.counted is not None and passage.counted.reach == in_flight.reach:
                return True
            around = None if passage.token is None else passage.token.old_value
            passage = around if isinstance(around, Passage) else None
        return False


def _asked(scope: Scope) -> tuple[str | None, str | None]:
    return scope.get("method"), scope.get("path")


def noted(scope: Scope) -> Iterator[Passage]:
    """Give the passages that have let a request through and are not over, the last one first."""
    passage: Passage | None = scope.get(NOTES)
    while passage is not None:
        if passage.verdict is not None:
            yield passage
        passage = passage.before


def current_passage() -> Passage | None:
    """Give the gate that the current request or lifespan came through last, `None` outside of one."""
    return _current.get()
