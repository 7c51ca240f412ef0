"""Who is running in this process, and what it promises the fleet."""

import math
import threading
import time
from typing import Protocol

import anyio

from fastapi_maintenance.backends.redis.replies import Member, name_of
from fastapi_maintenance.errors import DrainIncomplete, DrainTimeout, MaintenanceError
from fastapi_maintenance.inflight import InFlight, Worker, places

GOODBYE_WITHIN = 1.0
"""Seconds that joining and leaving may take at the beginning and the end of a lifespan."""


class Fleet(Protocol):
    """Where the workers of all machines are known."""

    def hurry(self) -> None:
        """Have something to tell it."""
        ...

    def say_goodbye(self) -> None:
        """Strike this worker off; waits `GOODBYE_WITHIN` at most."""
        ...

    async def census(self) -> list[Member]:
        """List the workers."""
        ...

    async def drained(self, hold_id: str) -> bool:
        """Tell whether nothing runs in the fleet and, until the hold is lost, nothing can start."""
        ...

    def drains(self) -> frozenset[str]:
        """Give the holds of this process."""
        ...

    def may_have_forgotten(self) -> bool:
        """Tell whether workers may be missing from the census, as those holds have seen it."""
        ...

    @property
    def settling(self) -> float:
        """Seconds after which an emptied or restarted store knows all workers again."""
        ...

    @property
    def identity(self) -> object:
        """What is the same for all who share this state in this process."""
        ...


class FleetInFlight(InFlight):
    """Counts the requests in flight in this process, and promises the fleet to begin none.

    A request is counted first and asks then whether a hold bars the way; who promises bars the way first and looks at
    the count then. One of the two sees the other, so that there is a bar and nothing in flight can be promised. Without
    contact a bar ends by this process's own clock, never before the promise does.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        # Nothing that the garbage collector may call, like `leave`, waits for it.
        self._turn = threading.Lock()
        self._bar: frozenset[str] = frozenset()
        self._bar_end = math.inf
        self._arrived = threading.Event()
        # Whether a request has more to ask before it may enter; set in one turn with what it may ask for.
        self._may_bar = True
        self._assumed: set[str] = set()
        self._joined_at = -math.inf
        super().__init__()

    def after_fork(self) -> None:
        """Begin anew, as a worker of its own."""
        super().after_fork()
        self._turn = threading.Lock()
        self._bar, self._bar_end = frozenset(), math.inf
        self._arrived = threading.Event()
        self._may_bar = True

    def assumes(self, when_unknown: str) -> None:
        """Learn what a gate is while nothing is known; with one that opens, no promise outlasts the contact."""
        self._assumed.add(when_unknown)

    @property
    def opens(self) -> bool:
        """Whether a gate may open while nothing is known."""
        return self._assumed != {"closed"}

    # Requests

    def enter(self, request: object) -> bool:
        """Count a request in."""
        # Before as well: whoever knocks again and again must not look as if somebody ran.
        if self._may_bar and self._bars():
            return False
        self.running.add(request)
        if self._may_bar and self._bars():
            self.leave(request)
            return False
        return True

    def leave(self, request: object) -> None:
        """Count a request out; when the last one leaves while a hold bars the way, the fleet is told."""
        self.running.discard(request)
        if self._bar and not self.running:
            self._fleet.hurry()

    def _bars(self) -> bool:
        """Tell whether a request must stay outside, and whether the next one has to ask again."""
        with self._turn:
            self._may_bar = not self._arrived.is_set() or not self._bar_ended()
            return self._may_bar

    def _bar_ended(self) -> bool:
        if self.opens and time.monotonic() >= self._bar_end:
            self._bar = frozenset()
        return not self._bar

    # Called in the fleet's thread

    def bar(self, holds: frozenset[str], end: float) -> None:
        """Let nobody in as long as `holds` are alive; without contact until `end` (monotonic)."""
        with self._turn:
            self._bar, self._bar_end, self._may_bar = holds, end, True

    def promise(self) -> tuple[frozenset[str], bool, int]:
        """Give the holds that bar the way, whether nothing is in flight, and how much is."""
        with self._turn:
            self._bar_ended()
            return self._bar, not self.running, len(self.running)

    def arrive(self) -> None:
        """Begin to let requests in: the fleet knows of this worker, or it serves without.

        One that has left meanwhile is about to be struck off, and begins anew with its next request.
        """
        with self._turn:
            if self.joined:
                self._arrived.set()

    # Workers

    @property
    def ready(self) -> bool:
        """Whether requests may be counted in without waiting for the first contact."""
        return self._arrived.is_set()

    def join(self) -> None:
        """Be a worker from now on."""
        if not self.joined:
            self.joined = True
            self._joined_at = time.monotonic()
            self._fleet.hurry()

    async def wait_ready(self, seconds: float) -> None:
        """Wait until the fleet knows of this worker, at most `seconds` after it joined.

        Then it serves without, if it opens while nothing is known; else nobody gets in before the fleet knows of it.
        """
        self.join()
        end = self._joined_at + seconds
        while not self._arrived.is_set() and time.monotonic() < end:  # noqa: ASYNC110 - set by another thread
            await anyio.sleep(0.002)
        if self.opens:
            self.arrive()

    def attach(self) -> None:
        """Join the fleet as a lifespan begins; waits for it, a second at most."""
        super().attach()
        self._arrived.wait(max(0.0, self._joined_at + GOODBYE_WITHIN - time.monotonic()))

    def part(self) -> None:
        """Say goodbye, unless requests still run; waits for it, a second at most."""
        self._part(anyway=False)

    def pause(self) -> None:
        """Tell the fleet nothing any more until the next request: `part`, and stay listed if requests still run."""
        self._part(anyway=True)

    def _part(self, *, anyway: bool) -> None:
        with self._turn:
            # First: who comes in from here on waits for the end of this turn.
            self._may_bar = True
            busy, joined = bool(self.running), self.joined
            if anyway or not busy:
                self.joined, self._arrived = False, threading.Event()
        if joined and not busy:
            self._fleet.say_goodbye()

    async def workers(self) -> tuple[Worker, ...]:
        """Give the workers of the fleet, those that are silent but not forgotten, too."""
        return tuple(member.worker for member in await self._fleet.census())

    # Draining

    @property
    def reach(self) -> object:
        """The state in the store, through whichever backend object."""
        return self._fleet.identity

    async def drained(self, hold_id: str) -> bool:
        """Tell whether every worker has promised to refuse because of this hold, with nothing in flight."""
        return await self._fleet.drained(hold_id)

    async def shortfall(self, seconds: float) -> MaintenanceError:
        """Give the error that says who was still running, or did not answer."""
        members = await self._fleet.census()
        ids = self._fleet.drains()
        silent = [member for member in members if not ids & member.refuses]
        if silent:
            return DrainIncomplete([name_of(member.worker.id) for member in silent])
        busy = [member.worker for member in members if not member.idle]
        if not busy and self._fleet.may_have_forgotten():
            ago = f"less than {self._fleet.settling:g} s ago (ask again then, or let the drain wait longer)"
            return DrainIncomplete([f"workers that were not heard since Redis began or restarted, {ago}"])
        pids, hosts = places(busy)
        return DrainTimeout(seconds, len(busy), len(members), pids, self.operations(), hosts)
