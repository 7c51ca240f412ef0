"""One state that many machines share: what this process knows of it, promises to it, and counts for it."""

import asyncio
import importlib.metadata
import json
import logging
import math
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import anyio

from fastapi_maintenance.backends.base import Edit
from fastapi_maintenance.backends.redis_link import Link, OutOfContact, Refused
from fastapi_maintenance.backends.redis_scripts import BEAT, CENSUS, CHANGE, GOODBYE, LOOK, VOUCH, Script
from fastapi_maintenance.errors import BackendError, DrainIncomplete, DrainTimeout, MaintenanceError
from fastapi_maintenance.forks import follow_forks
from fastapi_maintenance.inflight import InFlight, Worker
from fastapi_maintenance.state import OPEN, Hold, MaintenanceState, utcnow

logger = logging.getLogger("fastapi_maintenance")

LARGEST_NEWS = 16 * 1024
"""Characters of a document that is published whole; a larger one is asked for."""

GOODBYE_WITHIN = 1.0
"""Seconds that joining and leaving may take at the beginning and the end of a lifespan."""

_SAFE = 0.95
"""The part of a lease on which its holder relies."""

_KEEP = 1.5
"""For how many leases a bar, and the promise of it, outlast the contact."""

_SET_BACK = 0.03
"""The part of a lease by which Redis' time may be behind before it is taken as set back."""

_LEAP = 0.4
"""The part of a lease by which the store's clock goes on at most between two looks; beats come more often."""

_WRITTEN_AGAIN = 0.05
"""Seconds that a newcomer gives the others to write an emptied store again."""

_Lost: TypeAlias = Callable[[], None]


@dataclass(frozen=True)
class Terms:
    """How long what lasts.

    Attributes:
        lease: Seconds for which a worker or a hold counts as alive after it was heard last.
        forget: Seconds after which a worker that left without a goodbye is forgotten, from the end of its lease.
        timeout: Seconds that a change may take.
    """

    lease: float
    forget: float
    timeout: float

    @property
    def pause(self) -> float:
        """Seconds between two beats, less a random part so that a fleet does not beat in time."""
        return self.lease / 3 * random.uniform(0.8, 1)  # noqa: S311 - no secret


class Reply(NamedTuple):
    """What the store says of the state."""

    done: bool
    now: int
    era: str
    line: str
    revision: int
    stamp: str
    document: str
    leases: dict[str, int]

    @classmethod
    def of(cls, raw: list[Any]) -> "Reply":
        """Read what a script gave.

        Raises:
            Refused: Somebody else has written there what is no state.
        """
        try:
            done, now, era, line, revision, stamp, document = (_text(part) for part in raw[:7])
            names = [_text(part) for part in raw[7]]
            leases = {name: int(left) for name, left in zip(names[::2], names[1::2], strict=True)}
            return cls(done == "1", int(now), era, line, int(revision), stamp, document, leases)
        except ValueError as error:
            raise Refused(f"the state cannot be read: {error}") from None


class Known(NamedTuple):
    """A document, as it was written.

    Attributes:
        line: The line of revisions that it belongs to; empty for a store without one.
        stamp: Names the write.
        state: The document.
    """

    line: str
    stamp: str
    state: MaintenanceState


class Found(NamedTuple):
    """What is to be changed: the document, which holds are alive, and the state that this means."""

    known: Known
    alive: frozenset[str]
    state: MaintenanceState


class View(NamedTuple):
    """What requests go by.

    Attributes:
        state: The state, with the holds that are alive.
        end: The monotonic instant until which that is vouched for; without holds for ever.
        rest: The state without its live holds: what is known beyond that instant.
    """

    state: MaintenanceState
    end: float
    rest: MaintenanceState


class Contact(NamedTuple):
    """The last reply: the store's clock, its era, and when it was received by ours."""

    now: int
    era: str
    received: float


_NOTHING = Known("", "", OPEN)
_NEVER = Contact(-1, "", -math.inf)


class Held:
    """A hold of this process, and until when it is sure of it.

    Attributes:
        hold: The hold.
        drained: Whether it is sure that nothing is running, too.
        lost: Whether it was sure once, and is no more.
    """

    def __init__(self, hold: Hold, until: float) -> None:
        self.hold = hold
        self.drained = False
        self.lost = False
        self._until = until
        self._promised = math.inf
        self._renew_at = 0.0
        self._tell: list[_Lost] = []

    @property
    def until(self) -> float:
        """The monotonic instant at which it is lost."""
        return min(self._until, self._promised)

    def due(self) -> bool:
        """Tell whether it is time to renew it."""
        return time.monotonic() >= self._renew_at

    def renew(self, until: float, pause: float) -> None:
        """Be sure of the lease until then, and renew it after `pause` seconds."""
        self._until = until
        self._renew_at = time.monotonic() + pause / 2

    def rely(self, until: float) -> None:
        """Be sure until then that all workers refuse."""
        self.drained = True
        self._promised = until

    def tell(self, lost: _Lost) -> None:
        """Call `lost` when it is lost."""
        self._tell.append(lost)

    def check(self) -> bool:
        """Tell whether it is lost, by the clock alone."""
        if not self.lost and time.monotonic() >= self.until:
            self.lost = True
            for tell in self._tell:
                tell()
        return self.lost


class FleetInFlight(InFlight):
    """Counts the requests in flight in this process, and promises the fleet to begin none.

    All that matters is decided under one lock: while a hold bars the way, nothing is counted in; that there is a bar
    and nothing in flight can therefore be promised. Without contact a bar ends by this process's own clock, never
    before the promise does.
    """

    def __init__(self, fleet: "Fleet") -> None:
        self._fleet = fleet
        self._turn = threading.Lock()
        self._bar: frozenset[str] = frozenset()
        self._bar_end = math.inf
        self._arrived = threading.Event()
        self._assumed: set[str] = set()
        super().__init__()

    def after_fork(self) -> None:
        """Begin anew, as a worker of its own."""
        super().after_fork()
        self._turn = threading.Lock()
        self._bar, self._bar_end = frozenset(), math.inf
        self._arrived = threading.Event()

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
        with self._turn:
            if not self._arrived.is_set() or (self._bar and not self._bar_ended()):
                return False
            self._running.add(request)
            return True

    def leave(self, request: object) -> None:
        """Count a request out; when the last one leaves while a hold bars the way, the fleet is told."""
        with self._turn:
            self._running.discard(request)
            told = bool(self._bar) and not self._running
        if told:
            self._fleet.hurry()

    def _bar_ended(self) -> bool:
        if self.opens and time.monotonic() >= self._bar_end:
            self._bar = frozenset()
        return not self._bar

    # Called in the fleet's thread

    def bar(self, holds: frozenset[str], end: float) -> None:
        """Let nobody in as long as `holds` are alive; without contact until `end` (monotonic)."""
        with self._turn:
            self._bar, self._bar_end = holds, end

    def bar_also(self, holds: frozenset[str], end: float) -> None:
        """Let nobody in as long as `holds` are alive, either."""
        with self._turn:
            self._bar |= holds
            self._bar_end = max(end, self._bar_end) if math.isfinite(self._bar_end) else end

    def promise(self) -> tuple[frozenset[str], bool, int]:
        """Give the holds that bar the way, whether nothing is in flight, and how much is."""
        with self._turn:
            self._bar_ended()
            return self._bar, not self._running, len(self._running)

    def arrive(self) -> None:
        """Begin to let requests in: the fleet knows of this worker, or the wait for it was long enough.

        One that has left meanwhile is about to be struck off, and begins anew with its next request.
        """
        with self._turn:
            if self._joined:
                self._arrived.set()

    # Workers

    @property
    def ready(self) -> bool:
        """Whether requests may be counted in without waiting for the first contact."""
        return self._arrived.is_set()

    @property
    def joined(self) -> bool:
        """Whether this process is a worker, or wants to be one."""
        return self._joined

    def join(self) -> None:
        """Be a worker from now on."""
        if not self._joined:
            self._joined = True
            self._fleet.hurry()

    async def wait_ready(self, seconds: float) -> None:
        """Wait until the fleet knows of this worker, at most `seconds`; then serve without."""
        self.join()
        end = anyio.current_time() + seconds
        while not self._arrived.is_set() and anyio.current_time() < end:  # noqa: ASYNC110 - set by another thread
            await anyio.sleep(0.002)
        self.arrive()

    def attach(self) -> None:
        """Join the fleet as a lifespan begins; waits for it, a second at most."""
        super().attach()
        self._arrived.wait(GOODBYE_WITHIN)

    def part(self) -> None:
        """Say goodbye, unless requests still run; waits for it, a second at most."""
        with self._turn:
            if self._running or not self._joined:
                return
            self._joined = False
            self._arrived = threading.Event()
        self._fleet.say_goodbye()

    async def workers(self) -> tuple[Worker, ...]:
        """Give the workers of the fleet, those that are silent but not forgotten, too."""
        return tuple(member.worker for member in await self._fleet.census())

    # Draining

    async def drained(self, hold_id: str) -> bool:
        """Tell whether every worker has promised to refuse because of this hold, with nothing in flight."""
        return await self._fleet.drained(hold_id)

    async def shortfall(self, seconds: float) -> MaintenanceError:
        """Give the error that says who was still running, or did not answer."""
        members = await self._fleet.census()
        ids = self._fleet.drains()
        silent = [member for member in members if not ids & member.refuses]
        if silent:
            return DrainIncomplete([member.name for member in silent])
        busy = [member.worker for member in members if not member.idle]
        if not busy and members:
            return DrainIncomplete(["workers that were not heard since Redis began or restarted"])
        pids = [worker.pid for worker in busy if worker.pid is not None]
        return DrainTimeout(seconds, len(busy), len(members), pids, self.operations())


class Member(NamedTuple):
    """A worker as the store lists it."""

    worker: Worker
    alive: bool
    refuses: frozenset[str]
    idle: bool

    @property
    def name(self) -> str:
        """Its host and process."""
        return f"{self.worker.host} (pid {self.worker.pid})"


class Fleet:
    """What one process knows of one state in the store, and tells it. Its coroutines run in the link's thread.

    Args:
        link: Talks to the store.
        place: The prefix of all keys, with a hash tag.
        terms: How long what lasts.
        name: The backend's name for people.
    """

    def __init__(self, link: Link, place: str, terms: Terms, name: str) -> None:
        self.channel = f"{place}:news"
        self.in_flight = FleetInFlight(self)
        self._link = link
        self._keys = [f"{place}:{key}" for key in ("state", "holds", "workers", "acks", "records")]
        self._terms = terms
        self._name = name
        self._begin()
        follow_forks(self)

    def _begin(self) -> None:
        self._wake = asyncio.Event()
        self._beating = asyncio.Lock()
        self._heard = threading.Event()
        self._trouble: str | None = "it was not asked yet"
        self._known = _NOTHING
        self._contact = _NEVER
        self._view = View(OPEN, math.inf, OPEN)
        self._sent = self._applied = self._pushes = 0
        self._beats = 0
        self._id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._held: dict[str, Held] = {}
        self._alive: frozenset[str] = frozenset()
        self._next_end = math.inf
        self._scan_at = 0.0

    def after_fork(self) -> None:
        """Begin anew: the holds and the promises are the parent's."""
        self._begin()

    # From any thread

    def begin(self) -> None:
        """Talk to the store from now on."""
        self._link.add(self)

    def hurry(self) -> None:
        """Have something to tell."""
        self.begin()
        self._link.soon(self._waken)

    @property
    def heard(self) -> bool:
        """Whether the store was heard, or did not answer."""
        return self._heard.is_set()

    def wait_heard(self, seconds: float) -> None:
        """Wait until it was."""
        self.begin()
        self._heard.wait(seconds)

    def peek(self) -> MaintenanceState:
        """Give what was heard last.

        Raises:
            BackendError: There is no contact now.
        """
        view = self._view
        if self._trouble is None and time.monotonic() < view.end:
            return view.state
        raise BackendError(self._name, self._trouble or "it was not heard for the time of a lease")

    def remembered(self) -> MaintenanceState | None:
        """Give what is known without contact; `None` when that was closed by a hold whose lease may have ended."""
        view = self._view
        if self._known is _NOTHING and self._contact is _NEVER:
            return None
        return view.state if time.monotonic() < view.end else None

    def rest(self) -> MaintenanceState:
        """Give what is known beside the holds."""
        return self._view.rest

    async def ask(self, work: Callable[[], Any], seconds: float | None = None) -> Any:
        """Run a coroutine function in the link's thread, at most as long as a change may take.

        Raises:
            BackendError: It could not be done in time.
        """
        self.begin()
        try:
            return await self._link.run(work, seconds or self._terms.timeout)
        except (OutOfContact, Refused) as error:
            raise BackendError(self._name, str(error)) from None

    async def read(self) -> MaintenanceState:
        """Ask the store for the state now."""
        await self.ask(self._look)
        return self._view.state

    async def change(self, edit: Edit, *, take: Hold | None = None) -> MaintenanceState:
        """Store `edit(what is stored)`; it is done again when another change came in between."""
        end = time.monotonic() + self._terms.timeout
        while True:
            found = await self.ask(self._look)
            before = found.state
            after = edit(before)
            if after is before:
                return before
            if after.revision <= before.revision:
                after = after.model_copy(update={"revision": before.revision + 1})
            stamp = _token()
            taken = {take.id} if take is not None else set[str]()
            if await self.ask(partial(self._write, found, after, stamp, taken)):
                return after
            if time.monotonic() > end:
                raise BackendError(self._name, "others changed it all the time; try again")

    async def take(self, hold: Hold) -> None:
        """Begin a hold and renew it from now on."""
        held = Held(hold, time.monotonic() + _SAFE * self._terms.lease)
        await self.change(lambda state: state.with_hold(hold), take=hold)
        self._held[hold.id] = held
        self.hurry()
        self._link.soon(partial(self._guard, held))

    async def end(self, hold: Hold, *, failed: bool) -> None:
        """End a hold and renew it no more, or leave an orphan."""
        if self._held.pop(hold.id, None) is None and not failed:
            # It may have been stored although its taking broke off.
            await self.change(lambda state: state.without_hold(hold.id) if _names(state, hold.id) else state)
        elif failed and hold.on_failure == "keep":
            await self.change(lambda state: state.with_orphan(hold))
        else:
            await self.change(lambda state: state.without_hold(hold.id))

    def watch(self, hold_id: str, lost: _Lost) -> None:
        """Call `lost`, in the link's thread, when the hold is lost."""
        held = self._held.get(hold_id)
        if held is not None:
            held.tell(lost)

    def drains(self) -> frozenset[str]:
        """Give the holds of this process."""
        return frozenset(self._held)

    async def drained(self, hold_id: str) -> bool:
        """Tell whether nothing runs in the fleet and, until the hold is lost, nothing can start.

        Raises:
            BackendError: The hold was lost.
            DrainIncomplete: A worker has left without a goodbye, or is cut off.
        """
        held = self._held.get(hold_id)
        if held is None or held.check():
            raise BackendError(self._name, f"hold {hold_id} was lost while it drained: {self._trouble or 'too late'}")
        if time.monotonic() < self._scan_at:
            return False
        began = time.monotonic()
        with suppress(BackendError):
            silent = await self.ask(lambda: self._vouch(held, scan=True), 1.0)
            if silent:
                raise DrainIncomplete([_name_of(worker) for worker in silent])
        # A large fleet is not counted more often than costs a tenth of the time.
        self._scan_at = time.monotonic() + 9 * (time.monotonic() - began)
        return held.drained and not held.check()

    async def census(self) -> list[Member]:
        """List the workers."""
        raw = iter([_text(part) for part in await self.ask(self._count)])
        begun = utcnow() - timedelta(seconds=self._terms.lease)
        return [_member(*listed, begun) for listed in zip(raw, raw, raw, raw, strict=True)]

    def say_goodbye(self) -> None:
        """Strike this worker off; waits a second at most."""
        with suppress(Exception):
            self._link.submit(self._leave, GOODBYE_WITHIN).result(GOODBYE_WITHIN)

    def close(self) -> None:
        """Talk to the store no more."""
        self._link.remove(self)
        self._trouble = "it was closed"
        self._heard.clear()

    # In the link's thread: what is heard

    def hear(self, news: bytes) -> None:
        """Take what was published: to close is believed at once, for all else the store is asked."""
        self._pushes += 1
        self._wake.set()
        try:
            told = json.loads(news)
            known = Known(told["line"], told["stamp"], MaintenanceState.from_json(told["document"]))
            alive = frozenset[str](told["alive"])
        except (ValueError, TypeError, KeyError, AttributeError):
            return
        newer = known.line == self._known.line and known.state.revision > self._known.state.revision
        if newer and known.state.with_live_holds(alive).at(utcnow()).active:
            self._known = known
            self._alive |= alive
            self._show(self.in_flight.promise()[0])

    def _waken(self) -> None:
        self._wake.set()

    def lose_contact(self, reason: str) -> None:
        """Take note that the store does not answer."""
        self._trouble = reason
        self._heard.set()

    def _apply(self, reply: Reply, sent: int, pushes: int) -> bool:
        """Take a reply; tell whether it is to be asked for again."""
        if sent < self._applied:
            return False
        known = self._known
        same = reply.line == known.line
        if same and reply.revision < known.state.revision and pushes != self._pushes:
            return True
        self._applied = sent
        self._contact = Contact(reply.now, reply.era, time.monotonic())
        behind = known.line != "" and (not reply.line or (same and reply.revision < known.state.revision))
        replaced = known.line != "" and not same and self._alive - reply.leases.keys()
        if not behind and not (replaced and time.monotonic() < self._view.end):
            if reply.stamp != known.stamp and not self._take_document(reply):
                return True
            self._alive = frozenset(reply.leases)
            self._next_end = min(reply.leases.values(), default=math.inf) / 1000
        self._show(frozenset())
        self._trouble = None
        self._heard.set()
        return False

    def _take_document(self, reply: Reply) -> bool:
        if not reply.stamp:
            self._known = _NOTHING
        elif not reply.document:
            return False
        else:
            try:
                self._known = Known(reply.line, reply.stamp, MaintenanceState.from_json(reply.document))
            except ValueError as error:
                raise Refused(f"the document cannot be read: {error}") from None
        return True

    def _show(self, bar: frozenset[str]) -> None:
        """Let requests go by what is known now; the way is barred before it is open, and opened after it is closed."""
        state = self._known.state.with_live_holds(self._alive)
        rest = self._known.state.with_live_holds(())
        if state == self._view.state:
            state = self._view.state
        bar |= {hold.id for hold in state.holds if hold.phase != "orphan" and hold.mode == "full"}
        end = self._contact.received + _KEEP * self._terms.lease if state is not rest else math.inf
        view = View(state, end, rest)
        if bar:
            self._view = view
        self.in_flight.bar(bar, end)
        self._view = view

    # In the link's thread: what is told

    async def attend(self) -> None:
        """Beat, or look, and renew the holds, as long as there is contact."""
        self._wake, self._beating = asyncio.Event(), asyncio.Lock()
        while True:
            self._wake.clear()
            pause = self._terms.pause
            try:
                async with self._beating:
                    await (self._beat() if self.in_flight.joined else self._look())
                for held in tuple(self._held.values()):
                    await self._renew(held)
                pause = min(pause, self._next_end + 0.005)
            except Refused as error:
                self.lose_contact(str(error))
                pause = min(1.0, pause)
            except OutOfContact:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def _script(self, script: Script, *more: object, first: bool = False, known: str | None = None) -> Any:
        lease, contact = self._terms.lease, self._contact
        counted = contact.now + (time.monotonic() - contact.received) * 1000 if contact.now >= 0 else -1
        arguments = (
            secrets.token_hex(8),
            contact.era,
            int(counted),
            -1 if first else int(_LEAP * lease * 1000),
            int(_SET_BACK * lease * 1000),
            self._known.stamp if known is None else known,
            *more,
        )
        return await self._link.script(script, self._keys, [str(argument) for argument in arguments])

    async def _look(self) -> Found:
        """Ask for the state; what is given belongs together, whatever comes in between later."""
        while True:
            self._sent += 1
            sent, pushes = self._sent, self._pushes
            reply = Reply.of(await self._script(LOOK, first=self._contact is _NEVER))
            if not self._apply(reply, sent, pushes) and not await self._mend(reply):
                return Found(self._known, self._alive, self._view.state)

    async def _beat(self) -> None:
        """Register this worker, and promise what can be promised; again while that has become more."""
        done = False
        while not done and self.in_flight.joined:
            self._sent += 1
            self._beats += 1
            sent, pushes, era = self._sent, self._pushes, self._contact.era
            bar, idle, running = self.in_flight.promise()
            record = json.dumps({"version": _version(), "in_flight": running})
            lease = int(self._terms.lease * 1000)
            reply = Reply.of(
                await self._script(BEAT, self._id, self._beats, lease, self._promise(bar, idle=idle), record)
            )
            if reply.done:
                again = self._apply(reply, sent, pushes) or await self._mend(reply)
                told = era == reply.era or not bar
                done = not again and told and self.in_flight.promise()[:2] == (bar, idle)
                if self._beats == 1 and not reply.line:
                    # Nothing was ever written, or all was lost just now: those who know it have been asked for it.
                    await asyncio.sleep(_WRITTEN_AGAIN)
                    done = False
                else:
                    self.in_flight.arrive()

    def _promise(self, bar: frozenset[str], *, idle: bool) -> str:
        """Say until when (by the store's clock) this worker refuses because of which holds."""
        if not bar or self._contact is _NEVER:
            return ""
        until = str(self._contact.now + int(_KEEP * self._terms.lease * 1000)) if self.in_flight.opens else "-"
        return f"{until} {int(idle)} {','.join(sorted(bar))}"

    async def _mend(self, reply: Reply) -> bool:
        """Write again what the store has lost, where it is behind; tell whether it was."""
        known = self._known
        lost = known.line != "" and (
            not reply.line or (reply.line == known.line and reply.revision < known.state.revision)
        )
        if lost:
            state = known.state.model_copy(update={"revision": known.state.revision + 1})
            found = Found(Known(known.line, reply.stamp, state), self._alive, state)
            if await self._write(found, state, _token(), self._alive):
                logger.warning(
                    "%s has lost revision %d; it was written again",
                    self._name,
                    known.state.revision,
                    extra={"backend": self._name},
                )
        return lost

    async def _write(self, found: Found, after: MaintenanceState, stamp: str, taken: Collection[str]) -> bool:
        """Replace the document that was found; tell whether it was still there."""
        document = after.model_dump_json(by_alias=True)
        living = {*found.alive, *taken}
        alive = [hold.id for hold in after.holds if hold.phase != "orphan" and hold.id in living]
        line = found.known.line or _token()
        small = document if len(document) <= LARGEST_NEWS else None
        news = {"line": line, "revision": after.revision, "stamp": stamp, "alive": alive, "document": small}
        self._sent += 1
        sent, pushes = self._sent, self._pushes
        raw = await self._script(
            CHANGE,
            found.known.stamp,
            stamp,
            line,
            after.revision,
            document,
            int(self._terms.lease * 1000),
            ",".join(taken),
            f",{','.join(alive)},",
            self.channel,
            json.dumps(news),
            known=stamp,
        )
        reply = Reply.of(raw)
        if reply.stamp == stamp:
            reply = reply._replace(document=document)
        if self._apply(reply, sent, pushes):
            self._wake.set()
        return reply.done

    # In the link's thread: holds and workers

    def _guard(self, held: Held) -> None:
        """Tell of a hold when it is lost; a clock of its own, which no answer can hold up."""
        if held.hold.id in self._held and not held.check():
            left = max(0.001, held.until - time.monotonic())
            asyncio.get_running_loop().call_later(left, self._guard, held)

    async def _renew(self, held: Held) -> None:
        if held.due():
            await self._vouch(held, scan=held.drained)

    async def _vouch(self, held: Held, *, scan: bool) -> list[str]:
        """Renew a hold; with `scan` learn whether all workers refuse because of it, and give the silent ones."""
        lease, sent = self._terms.lease, time.monotonic()
        alive, sound, young, silent = await self._script(
            VOUCH, held.hold.id, int(lease * 1000), int(self._terms.forget * 1000), int(scan), int(_LEAP * lease * 1000)
        )
        if not int(alive):
            await self._begin_again(held)
            return []
        held.renew(sent + _SAFE * lease, self._terms.pause)
        if scan and int(sound) >= 0 and (held.drained or not int(young)):
            held.rely(sent + int(sound) / 1000 - (1 - _SAFE) * lease)
        return [_text(worker) for worker in silent]

    async def _begin_again(self, held: Held) -> None:
        """Write a hold again that the store has lost, unless it has ended meanwhile."""
        done = False
        while not done and held.hold.id in self._held:
            sent = time.monotonic()
            found = await self._look()
            if held.hold.id in self._held:
                done = await self._write(found, found.state.with_hold(held.hold), _token(), {held.hold.id})
                held.renew(sent + _SAFE * self._terms.lease, self._terms.pause)

    async def _count(self) -> list[Any]:
        return list(await self._script(CENSUS, int(self._terms.forget * 1000)))

    async def _leave(self) -> None:
        # A beat under way would register it again.
        async with self._beating:
            if not self.in_flight.joined:
                await self._script(GOODBYE, self._id)
                # The numbers of its beats begin anew with its record.
                self._beats = 0


def _names(state: MaintenanceState, hold_id: str) -> bool:
    return any(hold.id == hold_id for hold in state.holds)


def _token() -> str:
    return secrets.token_hex(8)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _version() -> str:
    return importlib.metadata.version("fastapi-maintenance")


def _process(worker: str) -> tuple[str, int]:
    host, pid, _ = worker.rsplit(":", 2)
    return host, int(pid)


def _name_of(worker: str) -> str:
    return "{} (pid {})".format(*_process(worker))


def _member(worker: str, left: str, record: str, ack: str, begun: datetime) -> Member:
    host, pid = _process(worker)
    said = json.loads(record.partition(" ")[2] or "{}")
    _, idle, refuses = ack.split(" ") if ack else ("", "0", "")
    running = int(said.get("in_flight", 0))
    beat = begun + timedelta(milliseconds=int(left))
    status = Worker(worker, pid, running > 0, host, running, said.get("version"), beat)
    return Member(status, int(left) > 0, frozenset(refuses.split(",")), idle == "1")
