"""One state that many machines share: what this process knows of it, promises to it, and counts for it."""

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from fastapi_maintenance.backends.base import Edit
from fastapi_maintenance.backends.redis.holds import Held, Lost
from fastapi_maintenance.backends.redis.link import CHANCE, Link, OutOfContact, Refused
from fastapi_maintenance.backends.redis.replies import (
    NEVER,
    NOTHING,
    Contact,
    Found,
    Known,
    Member,
    Reply,
    View,
    name_of,
    new_token,
    new_worker_id,
    record_of,
    text_of,
)
from fastapi_maintenance.backends.redis.scripts import BEAT, CALL, CENSUS, CHANGE, GOODBYE, LOOK, VOUCH, Script
from fastapi_maintenance.backends.redis.workers import GOODBYE_WITHIN, FleetInFlight
from fastapi_maintenance.errors import BackendError, DrainIncomplete
from fastapi_maintenance.forks import follow_forks
from fastapi_maintenance.state import OPEN, Hold, MaintenanceState, utcnow
from fastapi_maintenance.tasks import Turns

logger = logging.getLogger("fastapi_maintenance")

LARGEST_NEWS = 16 * 1024
"""Characters of a document that is published whole; a larger one is asked for."""

_SAFE = 0.95
"""The part of a lease on which its holder relies."""

_KEEP = 1.5
"""For how many leases a bar, and the promise of it, outlast the contact."""

_SET_BACK = 0.03
"""The part of a lease by which Redis' time may be behind before it is taken as set back."""

_LEAP = 0.4
"""The part of a lease by which the store's clock goes on at most between two looks; beats come more often."""

_YOUNG = 0.05
"""The part of a lease after which a register that may be incomplete is counted again."""

_WRITTEN_AGAIN = 0.05
"""Seconds that a newcomer gives the others to write an emptied store again."""


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
        return self.lease / 3 * CHANCE.uniform(0.8, 1)


class Fleet:
    """What one process knows of one state in the store, and tells it. Its coroutines run in the link's thread.

    Args:
        link: Talks to the store.
        place: The prefix of all keys, with a hash tag.
        terms: How long what lasts.
        name: The backend's name for people.

    Attributes:
        in_flight: The requests that are running in the fleet.
        view: What was heard last.
        trouble: Why there is no contact, `None` while there is.
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
        self._turns = Turns()
        self.trouble: str | None = "it was not asked yet"
        self._known = NOTHING
        self._contact = NEVER
        self.view = View(OPEN, math.inf, OPEN)
        self._sent = self._applied = self._pushes = 0
        self._beats = 0
        self._registered = False
        self._id = new_worker_id()
        self._held: dict[str, Held] = {}
        self._alive: frozenset[str] = frozenset()
        self._awaited: tuple[Hold, ...] = ()
        self._awaited_until = -math.inf
        self._next_end = math.inf

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

    def silence(self) -> BackendError:
        """Give the error that says why the view is vouched for no longer."""
        return BackendError(self._name, self.trouble or "it was not heard for the time of a lease")

    def remembered(self) -> MaintenanceState | None:
        """Give what is known without contact; `None` when that was closed by a hold whose lease may have ended."""
        view = self.view
        if self._known is NOTHING and self._contact is NEVER:
            return None
        return view.state if time.monotonic() < view.end else None

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
        return self.view.state

    async def change(self, edit: Edit, *, take: Hold | None = None) -> MaintenanceState:
        """Store `edit(what is stored)`; it is done again when another change came in between."""
        # Each change that comes in between makes all others begin anew, so those of this process take turns; without a
        # turn it is as right, only slower.
        async with self._turns.one(self._terms.timeout) as own:
            if not own and self.trouble is not None:
                raise self.silence()
            return await self._change(edit, take)

    async def _change(self, edit: Edit, take: Hold | None) -> MaintenanceState:
        end = time.monotonic() + self._terms.timeout
        found = await self.ask(self._look)
        if not found.known.line:
            found = await self.ask(self._call)
        while True:
            before = found.state
            after = edit(before)
            if after is before:
                return before
            if after.revision <= before.revision:
                after = after.model_copy(update={"revision": before.revision + 1})
            stamp = new_token()
            taken = {take.id} if take is not None else set[str]()
            if await self.ask(partial(self._write, found, after, stamp, taken)):
                return after
            if time.monotonic() > end:
                raise BackendError(self._name, "others changed it all the time; try again")
            found = await self.ask(self._look)

    async def take(self, hold: Hold) -> None:
        """Begin a hold and renew it from now on."""
        held = Held(hold, math.inf)

        def begun(state: MaintenanceState) -> MaintenanceState:
            # Its lease begins as it is written, however long that had to wait.
            held.renew(time.monotonic() + _SAFE * self._terms.lease, 0.0)
            return state.with_hold(hold)

        await self.change(begun, take=hold)
        self._held[hold.id] = held
        self.hurry()
        self._link.soon(partial(self._guard, held))

    async def end(self, hold: Hold, *, failed: bool) -> None:
        """End a hold and renew it no more, or leave an orphan."""
        held = self._held.pop(hold.id, None)
        if held is not None:
            self._link.soon(partial(self._guard, held))
        if held is None and not failed:
            # It may have been stored although its taking broke off.
            await self.change(lambda state: state.without_hold(hold.id) if _names(state, hold.id) else state)
        elif failed and hold.on_failure == "keep":
            await self.change(lambda state: state.with_orphan(hold))
        else:
            await self.change(lambda state: state.without_hold(hold.id))

    def watch(self, hold_id: str, lost: Lost) -> None:
        """Call `lost`, in the link's thread, when the hold is lost."""
        held = self._held.get(hold_id)
        if held is not None:
            held.tell(lost)

    def lost(self, hold_id: str) -> bool:
        """Tell by the clock whether a hold of this process is lost."""
        held = self._held.get(hold_id)
        return held is not None and held.check()

    def drains(self) -> frozenset[str]:
        """Give the holds of this process."""
        return frozenset(self._held)

    def may_have_forgotten(self) -> bool:
        """Tell whether the store was emptied or replaced so recently that it may not know all workers again."""
        return any(held.young for held in tuple(self._held.values()))

    @property
    def settling(self) -> float:
        """Seconds for which that may be so."""
        return _LEAP * self._terms.lease

    @property
    def identity(self) -> object:
        """The store and the place in it."""
        return self._link, self.channel

    async def drained(self, hold_id: str) -> bool:
        """Tell whether nothing runs in the fleet and, until the hold is lost, nothing can start.

        Raises:
            BackendError: The hold was lost.
            DrainIncomplete: A worker has left without a goodbye, or is cut off.
        """
        held = self._held.get(hold_id)
        if held is None or held.check():
            raise BackendError(self._name, f"hold {hold_id} was lost while it drained: {self.trouble or 'too late'}")
        if not held.may_count():
            return False
        began = time.monotonic()
        with suppress(BackendError):
            silent = await self.ask(lambda: self._vouch(held, scan=True), 1.0)
            if silent:
                raise DrainIncomplete([name_of(worker) for worker in silent])
        held.counted(time.monotonic() - began)
        return held.drained and not held.check()

    async def census(self) -> list[Member]:
        """List the workers."""
        raw = iter([text_of(part) for part in await self.ask(self._count)])
        begun = utcnow() - timedelta(seconds=self._terms.lease)
        try:
            return [Member.of(*listed, begun) for listed in zip(raw, raw, raw, raw, strict=True)]
        except (ValueError, TypeError, AttributeError) as error:
            raise BackendError(self._name, f"the list of workers cannot be read: {error}") from None

    def say_goodbye(self) -> None:
        """Strike this worker off; waits a second at most."""
        with suppress(Exception):
            self._link.submit(self._leave, GOODBYE_WITHIN).result(GOODBYE_WITHIN)

    def close(self) -> None:
        """Talk to the store no more."""
        self._link.remove(self)
        self.trouble = "it was closed"
        # Not cleared: the garbage collector may call this while the lock of the old one is taken.
        self._heard = threading.Event()

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
        self.trouble = reason
        self._heard.set()

    def _apply(self, reply: Reply, sent: int, pushes: int) -> bool:
        """Take a reply; tell whether it is to be asked for again."""
        if sent < self._applied:
            return False
        known = self._known
        same = reply.line == known.line
        if same and reply.revision < known.state.revision and pushes != self._pushes:
            return True
        self._contact = Contact(reply.now, reply.era, time.monotonic())
        behind = known.line != "" and (not reply.line or (same and reply.revision < known.state.revision))
        believed = not behind
        unread = believed and reply.stamp != known.stamp and not self._take_document(reply)
        # Not before: what cannot be read is told to all who ask.
        self._applied = sent
        if unread:
            return True
        if believed:
            if not same:
                # Emptied, and written by somebody who did not know the holds: their owners write them again.
                self._awaited = tuple(hold for hold in known.state.holds if hold.id in self._alive)
                self._awaited_until = self.view.end
            self._awaited = tuple(hold for hold in self._awaited if hold.id not in reply.leases)
            self._alive = frozenset(reply.leases)
            self._next_end = min(reply.leases.values(), default=math.inf) / 1000
        self._show(frozenset())
        self.trouble = None
        self._heard.set()
        return False

    def _take_document(self, reply: Reply) -> bool:
        if not reply.document:
            return False
        try:
            self._known = Known(reply.line, reply.stamp, MaintenanceState.from_json(reply.document))
        except ValueError as error:
            raise Refused(f"the document cannot be read: {error}") from None
        return True

    def _show(self, bar: frozenset[str]) -> None:
        """Let requests go by what is known now; the way is barred before it is open, and opened after it is closed."""
        state = self._known.state.with_live_holds(self._alive)
        if time.monotonic() < self._awaited_until:
            for hold in self._awaited:
                state = state.with_unlisted(hold)
        rest = self._known.state.with_live_holds(())
        if state == self.view.state:
            state = self.view.state
        bar |= {hold.id for hold in state.holds if hold.phase != "orphan" and hold.mode == "full"}
        end = self._contact.received + _KEEP * self._terms.lease if state is not rest else math.inf
        view = View(state, end, rest)
        if bar:
            self.view = view
        self.in_flight.bar(bar, end)
        self.view = view

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
                await self._renew()
                pause = min(pause, self._next_end + 0.005, *(held.due_in() for held in tuple(self._held.values())))
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
            new_token(),
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
            reply = Reply.of(await self._script(LOOK, first=self._contact is NEVER))
            if not self._apply(reply, sent, pushes) and not await self._mend(reply):
                return Found(self._known, self._alive, self._known.state.with_live_holds(self._alive))

    async def _call(self) -> Found:
        """Look again when those who know what was written have had time to write it again."""
        await self._script(CALL)
        await asyncio.sleep(_WRITTEN_AGAIN)
        return await self._look()

    async def _beat(self) -> None:
        """Register this worker, and promise what can be promised; again while that has become more."""
        done = False
        while not done and self.in_flight.joined:
            self._sent += 1
            self._beats += 1
            sent, pushes, era = self._sent, self._pushes, self._contact.era
            bar, idle, running = self.in_flight.promise()
            said = (self._promise(bar, idle=idle), record_of(running))
            joins, lease = not self._registered, int(self._terms.lease * 1000)
            reply = Reply.of(await self._script(BEAT, self._id, self._beats, int(joins), lease, *said))
            if reply.done:
                again = self._apply(reply, sent, pushes) or await self._mend(reply)
                told = era == reply.era or not bar
                done = not again and told and self.in_flight.promise()[:2] == (bar, idle)
                self._registered = True
                if joins and not reply.line:
                    # Nothing was ever written, or all was lost just now: those who know it have been asked for it.
                    await asyncio.sleep(_WRITTEN_AGAIN)
                    done = False
                else:
                    self.in_flight.arrive()

    def _promise(self, bar: frozenset[str], *, idle: bool) -> str:
        """Say until when (by the store's clock) this worker refuses because of which holds."""
        if not bar or self._contact is NEVER:
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
            # The revision stays, so that somebody who knows a later one still sees that it is behind.
            found = Found(known._replace(stamp=reply.stamp), self._alive, known.state)
            if await self._write(found, known.state, new_token(), self._alive):
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
        line = found.known.line or new_token()
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
        """Tell of a hold when it is lost, until it ends; a clock of its own, which no answer can hold up."""
        if held.timer is not None:
            held.timer.cancel()
        if held.hold.id in self._held and not held.check():
            left = max(0.001, held.until - time.monotonic())
            held.timer = asyncio.get_running_loop().call_later(left, self._guard, held)

    async def _renew(self) -> None:
        for held in tuple(self._held.values()):
            if not held.due_in():
                await self._vouch(held, scan=held.drained)

    async def _vouch(self, held: Held, *, scan: bool) -> list[str]:
        """Renew a hold; with `scan` learn whether all workers refuse because of it, and give the silent ones."""
        lease, sent = self._terms.lease, time.monotonic()
        alive, sound, young, silent, register, lasting = await self._script(
            VOUCH, held.hold.id, int(lease * 1000), int(self._terms.forget * 1000), int(scan), int(_LEAP * lease * 1000)
        )
        if not int(alive):
            await self._begin_again(held)
            return []
        held.young = bool(int(young))
        # A promise that a young register does not renew waits for the first moment at which it can be.
        held.renew(sent + _SAFE * lease, _YOUNG * lease if held.young else self._terms.pause / 2)
        if scan and int(sound) >= 0 and not held.young:
            until = sent + int(sound) / 1000 - (1 - _SAFE) * lease
            held.rely(until, text_of(register), lasting=bool(int(lasting)))
        self._guard(held)
        return [text_of(worker) for worker in silent]

    async def _begin_again(self, held: Held) -> None:
        """Write a hold again that the store has lost, unless it has ended meanwhile."""
        done = False
        while not done and held.hold.id in self._held:
            sent = time.monotonic()
            found = await self._look()
            if held.hold.id in self._held:
                done = await self._write(found, found.state.with_hold(held.hold), new_token(), {held.hold.id})
            if done:
                held.renew(sent + _SAFE * self._terms.lease, _YOUNG * self._terms.lease)

    async def _count(self) -> list[Any]:
        return list(await self._script(CENSUS, int(self._terms.forget * 1000)))

    async def _leave(self) -> None:
        # A beat under way would register it again.
        async with self._beating:
            if not self.in_flight.joined:
                self._registered = False
                await self._script(GOODBYE, self._id, self._beats)


def _names(state: MaintenanceState, hold_id: str) -> bool:
    return any(hold.id == hold_id for hold in state.holds)
