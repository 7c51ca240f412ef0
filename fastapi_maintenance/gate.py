"""One gate's way from a request to a verdict."""

import logging
import time
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from math import inf
from typing import Protocol

from starlette.types import Scope

from fastapi_maintenance.decision import Verdict, decide
from fastapi_maintenance.errors import BackendError
from fastapi_maintenance.exemptions import ExemptHandler, Exemptions
from fastapi_maintenance.inflight import NOTES, Passage, current_passage, noted
from fastapi_maintenance.marks import Mark, Marks, mark_of
from fastapi_maintenance.refusal import GateName, Refusal, Refusals, ResponseHandler
from fastapi_maintenance.settings import MaintenanceSettings
from fastapi_maintenance.snapshot import Snapshot, assumed
from fastapi_maintenance.state import MaintenanceState, MaintenanceStatus, Mode, Switch, utcnow
from fastapi_maintenance.telemetry import Telemetry

logger = logging.getLogger("fastapi_maintenance")


class Owner(Protocol):
    """What a gate needs of the object that it belongs to."""

    @property
    def settings(self) -> MaintenanceSettings:
        """How it is configured."""
        ...

    @property
    def snapshot(self) -> Snapshot:
        """What is known of its state."""
        ...

    @property
    def telemetry(self) -> Telemetry:
        """What OpenTelemetry is told."""
        ...


def current_owner() -> Owner | None:
    """Give the object whose gate the current request or lifespan came through last, `None` outside of one."""
    passage = current_passage()
    return None if passage is None else passage.owner


_ADMITTED = Verdict.ADMITTED
_REFUSED = (Verdict.REFUSED, Verdict.REFUSED_UNLESS_EXEMPT)


class _Reading:
    """The mode that `state` means from `begin` until `end` (seconds since the epoch), or whatever the time is."""

    __slots__ = ("always", "begin", "end", "mode", "state", "status", "told")

    def __init__(self, state: MaintenanceState, seen: MaintenanceState, now: datetime) -> None:
        causes, change = seen.active_causes(now), seen.next_change(now)
        self.state = state
        self.mode: Mode | None = causes[0].mode if causes else None
        self.always = not seen.windows and (seen.switch is None or seen.switch.until is None)
        self.status: MaintenanceStatus | None = None
        self.told = (inf, -inf)
        self.begin = now.timestamp()
        self.end = inf if change is None else change.timestamp()

    def means(self, now: float) -> bool:
        """Tell whether the state still means this mode at `now`."""
        return self.always or self.begin <= now < self.end

    def tell(self, status: MaintenanceStatus, now: float) -> None:
        """Keep what was computed at `now`, for as long as it is true."""
        self.status = status
        end = self.end
        if status.until is not None and status.retry_after is not None:
            # Until the seconds left are one less.
            end = min(end, status.until.timestamp() - status.retry_after + 1)
        self.told = (-inf, inf) if self.always else (now, end)

    def tells(self, now: float) -> bool:
        """Tell whether what was kept is true at `now`."""
        begin, end = self.told
        return begin <= now < end


class Gate:
    """Decides on requests for one object.

    Args:
        owner: The object; its state, its settings, and for whom verdicts are noted.
        exempt_handler: The user's own reason to let a request through.
        response_handler: The user's own answer.
        enabled: Stands in for switch and windows, where it is not `None`.
    """

    def __init__(
        self,
        owner: Owner,
        exempt_handler: ExemptHandler | None = None,
        response_handler: ResponseHandler | None = None,
        *,
        enabled: bool | None = None,
    ) -> None:
        self.owner = owner
        self._exemptions = Exemptions(owner.settings, exempt_handler)
        self._refusals = Refusals(owner.settings, response_handler)
        self._enabled = enabled
        self._open: tuple[MaintenanceState, _Reading | None] | None = None
        self._since = utcnow()
        self._unknown = assumed(owner.settings.on_backend_error, self._since)
        self._refresh_interval = owner.settings.refresh_interval
        self._read_timeout = owner.settings.read_timeout
        self._read(self._unknown, self._since)

    # The state

    def last_known_mode(self) -> Mode | None:
        """Give the mode that was known last, without asking; in any thread."""
        snapshot = self.owner.snapshot
        return self._mode(snapshot.last_known() or snapshot.assume(self._unknown))

    def exempts_path(self, path: str) -> bool:
        """Tell whether a path is exempt for all."""
        return self._exemptions.covers_path(path)

    async def status(self) -> MaintenanceStatus:
        """Give the status now. Only the first look of a process may wait for a distant store."""
        status = self._told(await self._state())
        return await self._with_workers(status) if status.phase == "closing" else status

    def _told(self, state: MaintenanceState) -> MaintenanceStatus:
        """Give what `state` means now, and whether it is stale."""
        status, stale = self._status(state), self.owner.snapshot.stale
        return status if stale is None else replace(status, stale=stale)

    def _status(self, state: MaintenanceState) -> MaintenanceStatus:
        """Give what `state` means now; computed again when a clock may have changed it, be it only `retry_after`."""
        reading, settings = self._reading, self.owner.settings
        if reading.state is state and reading.status is not None and reading.tells(time.time()):
            return reading.status
        now = utcnow()
        status = self._as_seen(state).at(now, message=settings.message, retry_after=settings.retry_after)
        if reading.state is state:
            reading.tell(status, now.timestamp())
        return status

    async def _with_workers(self, status: MaintenanceStatus) -> MaintenanceStatus:
        with suppress(BackendError):
            workers = await self.owner.snapshot.in_flight.workers()
            status = replace(status, busy=sum(worker.busy for worker in workers), workers=len(workers))
        return status

    def _look(self) -> MaintenanceState | None:
        """Give what is known now, `None` before the first contact with a distant store; never waits."""
        return self.owner.snapshot.look(self._refresh_interval, self._read_timeout) or self._assumed()

    def _assumed(self) -> MaintenanceState | None:
        snapshot = self.owner.snapshot
        return snapshot.assume(self._unknown) if snapshot.contacted or snapshot.near else None

    async def _state(self) -> MaintenanceState:
        state = self._look()
        if state is None:
            await self.owner.snapshot.first_look(self._read_timeout)
            state = self._look()
        return state or self._unknown

    def _as_seen(self, state: MaintenanceState) -> MaintenanceState:
        """Give the state with `enabled` in place of switch and windows."""
        if self._enabled is None:
            return state
        switch = Switch(since=self._since) if self._enabled else None
        return state.model_copy(update={"switch": switch, "windows": ()})

    def _mode(self, state: MaintenanceState) -> Mode | None:
        """Give what `state` means now; computed again only when it, or the clock, has come to something new."""
        reading = self._reading
        if reading.state is not state or not reading.means(time.time()):
            reading = self._read(state, utcnow())
        return reading.mode

    def _read(self, state: MaintenanceState, now: datetime) -> _Reading:
        reading = self._reading = _Reading(state, self._as_seen(state), now)
        # The state with which it is open, and what tells until when, `None` for ever; most requests meet it.
        self._open = None if reading.mode is not None else (state, None if reading.always else reading)
        return reading

    # Requests

    def admit_if_open(self, scope: Scope, endpoint: object = None) -> Passage | None:
        """Let a request that no mark is for through and count it, if it is open and was when last seen; never waits.

        Args:
            scope: The ASGI scope.
            endpoint: What the request is for, where the caller has not looked for its mark.

        Returns:
            Its passage, for the caller to leave; `None` where there is more to ask, which `check` does.
        """
        opened = self._open
        # Who was closed when last looked at is looked at by `check`, once and without being counted first.
        if opened is None or (Marks.count and endpoint is not None and mark_of(endpoint) is not None):
            return None
        owner, around = self.owner, NOTES in scope
        if around and self._noted(scope) is not None:
            return Passage(owner, scope, None)
        state, reading = opened
        snapshot = owner.snapshot
        in_flight = snapshot.in_flight
        passage = Passage(owner, scope, in_flight)
        try:
            # Who drains closes first and looks at the count then, so that one of the two sees the other.
            if not in_flight.enter(passage):
                passage.counted = None
                passage.leave()
                return None
            if snapshot.glance() is state and (reading is None or reading.means(time.time())):
                if around or self._enabled is not None:
                    self._note_open(passage, scope)
                else:
                    # The same, where most requests come: a call costs as much as what it does.
                    passage.verdict = _ADMITTED
                    scope[NOTES] = passage
                return passage
            if self._is_open_to(scope):
                self._note_open(passage, scope)
                return passage
        except Exception:  # noqa: BLE001, S110 - whatever a user's backend raises: `check` asks again, and tells of it
            pass
        except BaseException:
            passage.leave()
            raise
        passage.leave()
        return None

    def _noted(self, scope: Scope) -> Verdict | None:
        """Give why a gate of the object has let this request through, `None` where none has.

        That it was open says nothing to a gate that is switched on by itself.
        """
        owner, closed = self.owner, self._enabled is True
        known = (p.verdict for p in noted(scope) if p.owner is owner and p.is_for(scope))
        return next((verdict for verdict in known if not (closed and verdict is _ADMITTED)), None)

    def refuse_again(self, scope: Scope, endpoint: object, gate: GateName) -> Refusal | None:
        """Give the answer that such a request got before, if nothing has changed since; never waits.

        Only for a request that has no reason of its own to be let through.

        Args:
            scope: The ASGI scope.
            endpoint: What the request is for, where its mark is.
            gate: Which one asks.

        Returns:
            The refusal; `None` where there is more to ask, which `check` does.
        """
        reading, snapshot = self._reading, self.owner.snapshot
        status = reading.status
        if status is None or NOTES in scope:
            return None
        if self._exemptions.given and self._exemptions.may_cover(scope):
            return None
        if Marks.count and mark_of(endpoint) is not None:
            return None
        try:
            same = snapshot.glance() is reading.state and (reading.always or reading.tells(time.time()))
        except Exception:  # noqa: BLE001 - whatever a user's backend raises: `check` asks again, and tells of it
            return None
        snapshot.in_flight.join()
        return self._refusals.again(scope, status, gate) if same else None

    async def check(
        self,
        passage: Passage | None,
        scope: Scope,
        endpoint: object,
        gate: GateName,
        *,
        docs: bool = False,
        exempt: bool = False,
    ) -> Refusal | None:
        """Decide on a request, unless another gate of the object has; one that is let through is counted.

        Args:
            passage: The request at this gate, `None` where nobody can tell of its end, so that it cannot be counted.
            scope: The ASGI scope.
            endpoint: What the request is for, where its mark is.
            gate: Which one asks.
            docs: Whether that is a documentation endpoint.
            exempt: Whether the caller knows a reason to let it through.

        Returns:
            The refusal, `None` to let it through.
        """
        mark = mark_of(endpoint) if Marks.count else None
        if NOTES in scope and mark is not Mark.FORCED_ON and self._noted(scope) is not None:
            return None
        in_flight = self.owner.snapshot.in_flight
        in_flight.join()
        if not in_flight.ready:
            await in_flight.wait_ready(self._read_timeout)
        verdict = self._verdict(self._look() or await self._state(), scope, mark, passage)
        # What the verdict came from: an exemption may take its time, and others look meanwhile.
        state = self._reading.state
        asks = verdict is Verdict.REFUSED_UNLESS_EXEMPT and (exempt or docs or self._exemptions.given)
        if asks and (exempt or await self._exemptions.cover(scope, docs)):
            verdict = Verdict.EXEMPT
        if verdict not in _REFUSED:
            if passage is None:
                # Nobody can tell of its end, so it is not the current one.
                passage = Passage(self.owner, scope, None)
                passage.leave()
            if verdict is _ADMITTED:
                self._note_open(passage, scope)
            else:
                passage.note(scope, verdict)
            return None
        # Without the workers of a drain: a request never waits for their locks.
        status = self._told(state)
        if mark is Mark.FORCED_ON and status.active:
            # A mark refuses everything, whatever the mode.
            status = replace(status, mode="full")
        # Only what the status itself refuses is refused as long as it holds: a drain and a mark keep out more.
        again = mark is None and decide(None, status.mode, scope.get("method")) is not _ADMITTED
        return await self._refusals.make(scope, status, gate, again=again)

    def _verdict(
        self, state: MaintenanceState, scope: Scope, mark: Mark | None, passage: Passage | None = None
    ) -> Verdict:
        """Decide without the exemptions; with a passage, a request that is let through for being open is counted."""
        method = scope.get("method")
        verdict = decide(mark, self._mode(state), method)
        if verdict is _ADMITTED and passage is not None and not self._count_in(passage, scope):
            return Verdict.REFUSED_UNLESS_EXEMPT
        return verdict

    def _count_in(self, passage: Passage, scope: Scope) -> bool:
        """Count a request that no mark is for, and look whether it is let through, in this order."""
        in_flight = self.owner.snapshot.in_flight
        if not in_flight.enter(passage):
            return False
        passage.counted = in_flight
        if self._is_open_to(scope):
            return True
        passage.counted = None
        in_flight.leave(passage)
        return False

    def _note_open(self, passage: Passage, scope: Scope) -> None:
        if self._enabled is None:
            passage.note(scope, _ADMITTED, whatever=self._reading.mode is None)
        else:
            # What stands in here for switch and windows says nothing to another gate.
            passage.verdict = _ADMITTED

    def _is_open_to(self, scope: Scope) -> bool:
        state = self._look()
        return state is not None and decide(None, self._mode(state), scope.get("method")) is _ADMITTED

    # Streams

    def admitted(self, passage: Passage, scope: Scope) -> bool:
        """Tell whether a request was let through because it was open, not for its mark or an exemption."""
        return (passage.verdict or self._noted(scope)) is _ADMITTED

    def is_closed_to(self, method: str | None) -> bool:
        """Tell, without waiting, whether it is closed for this method; exemptions are another question."""
        state = self._look()
        return state is not None and decide(None, self._mode(state), method) is not _ADMITTED

    async def would_refuse(self, scope: Scope, endpoint: object, *, docs: bool) -> bool:
        """Tell whether a request that was let through would be refused now; notes nothing."""
        with Passage(self.owner, scope, None):
            mark = mark_of(endpoint) if Marks.count else None
            verdict = self._verdict(self._look() or await self._state(), scope, mark)
            exempt = verdict is Verdict.REFUSED_UNLESS_EXEMPT and await self._exemptions.cover(scope, docs)
            return verdict in _REFUSED and not exempt

    def report(self, refusal: Refusal, scope: Scope, gate: GateName, route: str | None) -> None:
        """Tell the log, at debug, and OpenTelemetry of a refusal: planned maintenance is not an error."""
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("Refused %s %s", scope.get("method", "websocket"), scope["path"])
        self.owner.telemetry.refused(scope, refusal.status.mode or "full", gate, route)
