"""One gate's way from a request to a verdict."""

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import replace
from typing import NamedTuple, Protocol

from starlette.types import Scope

from fastapi_maintenance.decision import Verdict, decide
from fastapi_maintenance.errors import MaintenanceActive
from fastapi_maintenance.exemptions import ExemptHandler, Exemptions
from fastapi_maintenance.marks import Mark, mark_of, marks_set
from fastapi_maintenance.refusal import Refusals, ResponseHandler
from fastapi_maintenance.settings import MaintenanceSettings
from fastapi_maintenance.snapshot import Snapshot, assumed
from fastapi_maintenance.state import MaintenanceState, MaintenanceStatus, Mode, Switch, utcnow
from fastapi_maintenance.telemetry import Telemetry

logger = logging.getLogger("fastapi_maintenance")

DECIDED = "fastapi_maintenance"
"""Key of the ASGI scope under which the verdicts on a request are kept, by object."""


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


_current: ContextVar[Owner | None] = ContextVar("fastapi_maintenance", default=None)


def current_owner() -> Owner | None:
    """Give the object whose gate the current request or lifespan came through last, `None` outside of one."""
    return _current.get()


def enter(owner: Owner) -> Token[Owner | None]:
    """Make `owner` the current object until `leave`; `passing` at a third of its price, for each request."""
    return _current.set(owner)


def leave(token: Token[Owner | None]) -> None:
    """Make what was the current object before `enter` the current one again."""
    # A server may end a request or a lifespan in another context than the one that began it.
    try:
        _current.reset(token)
    except ValueError:
        logger.debug("left in another context than it was entered in")


@contextmanager
def passing(owner: Owner) -> Generator[None]:
    """Make `owner` the current object for the time of the block."""
    token = enter(owner)
    try:
        yield
    finally:
        leave(token)


_ADMITTED = Verdict.ADMITTED


class _Reading(NamedTuple):
    """The mode that `state` means from `begin` until `end` (seconds since the epoch)."""

    state: MaintenanceState
    begin: float
    end: float
    mode: Mode | None


class Gate:
    """Decides on requests for one object.

    Args:
        owner: The object; its state, its settings, and the name under which verdicts are kept.
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
        self._since = utcnow()
        self._unknown = assumed(owner.settings.on_backend_error, self._since)
        self._refresh_interval = owner.settings.refresh_interval
        self._read_timeout = owner.settings.read_timeout
        self._reading: _Reading | None = None

    # The state

    def mode_if_known(self) -> tuple[bool, Mode | None]:
        """Give whether anything is known, and the mode while active; never waits. Must be called in an event loop."""
        state = self._look()
        return (False, None) if state is None else (True, self._mode(state))

    def last_known_mode(self) -> Mode | None:
        """Give the mode that was known last, without asking; in any thread."""
        snapshot = self.owner.snapshot
        return self._mode(snapshot.last_known() or snapshot.assume(self._unknown))

    def exempts_path(self, path: str) -> bool:
        """Tell whether a path is exempt for all."""
        return self._exemptions.covers_path(path)

    async def status(self) -> MaintenanceStatus:
        """Give the status now. Only the first look of a process may wait for a distant store."""
        settings, snapshot = self.owner.settings, self.owner.snapshot
        state = self._as_seen(await self._state())
        status = state.at(utcnow(), message=settings.message, retry_after=settings.retry_after)
        return status if snapshot.stale is None else replace(status, stale=snapshot.stale)

    def _look(self) -> MaintenanceState | None:
        snapshot = self.owner.snapshot
        state = snapshot.look(self._refresh_interval, self._read_timeout)
        if state is None and (snapshot.contacted or snapshot.near):
            return snapshot.assume(self._unknown)
        return state

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
        if reading is None or reading.state is not state or not reading.begin <= time.time() < reading.end:
            reading = self._reading = self._read(state)
        return reading.mode

    def _read(self, state: MaintenanceState) -> _Reading:
        now = utcnow()
        seen = self._as_seen(state)
        change = seen.next_change(now)
        causes = seen.active_causes(now)
        return _Reading(
            state,
            now.timestamp(),
            float("inf") if change is None else change.timestamp(),
            causes[0].mode if causes else None,
        )

    # Requests

    def admit(self, scope: Scope) -> None:
        """Note that a request was let through while it is open, so that no other gate of the object asks again."""
        if self._enabled is False:
            # What stands in here for switch and windows says nothing to another gate.
            return
        decided = scope.get(DECIDED)
        if decided is None:
            scope[DECIDED] = {self._request(scope): _ADMITTED}
        else:
            decided.setdefault(self._request(scope), _ADMITTED)

    def _request(self, scope: Scope) -> tuple[Owner, str | None, str]:
        """Name a request: a middleware that rewrites the method or the path makes another one of it."""
        return (self.owner, scope.get("method"), scope["path"])

    async def check(
        self, scope: Scope, endpoint: object, *, docs: bool = False, exempt: bool = False, applied: bool | None = None
    ) -> MaintenanceActive | None:
        """Decide on a request, unless another gate of the object has.

        Args:
            scope: The ASGI scope.
            endpoint: What the request is for, where its mark is.
            docs: Whether that is a documentation endpoint.
            exempt: Whether the caller knows a reason to let it through.
            applied: `False` when no code of the application has run yet.

        Returns:
            The refusal, `None` to let it through.
        """
        decided, request = scope.setdefault(DECIDED, {}), self._request(scope)
        mark = mark_of(endpoint) if marks_set() else None
        if request in decided and mark is not Mark.FORCED_ON:
            return None
        verdict = await self._verdict(scope, mark, docs=docs, exempt=exempt)
        if verdict is _ADMITTED:
            self.admit(scope)
            return None
        decided[request] = verdict
        if verdict is not Verdict.REFUSED:
            return None
        status = await self.status()
        if mark is Mark.FORCED_ON and status.active:
            # A mark refuses everything, whatever the mode.
            status = replace(status, mode="full")
        return await self._refusals.make(scope, status, applied=applied)

    async def _verdict(self, scope: Scope, mark: Mark | None, *, docs: bool, exempt: bool = False) -> Verdict:
        state = self._look() or await self._state()
        verdict = decide(mark, self._mode(state), scope.get("method"))
        if verdict is Verdict.REFUSED_UNLESS_EXEMPT:
            covered = exempt or await self._exemptions.cover(scope, docs)
            verdict = Verdict.EXEMPT if covered else Verdict.REFUSED
        return verdict

    # Streams

    def admitted(self, scope: Scope) -> bool:
        """Tell whether a request was let through because it was open, not for its mark or an exemption."""
        return scope.get(DECIDED, {}).get(self._request(scope)) is _ADMITTED

    def is_closed_to(self, method: str | None) -> bool:
        """Tell, without waiting, whether it is closed for this method; exemptions are another question."""
        _, mode = self.mode_if_known()
        return decide(None, mode, method) is not _ADMITTED

    async def would_refuse(self, scope: Scope, endpoint: object, *, docs: bool) -> bool:
        """Tell whether a request that was let through would be refused now; notes nothing."""
        with passing(self.owner):
            mark = mark_of(endpoint) if marks_set() else None
            return await self._verdict(scope, mark, docs=docs) is Verdict.REFUSED

    def report(self, refusal: MaintenanceActive, scope: Scope, gate: str, route: str | None) -> None:
        """Tell the log, at debug, and OpenTelemetry of a refusal: planned maintenance is not an error."""
        logger.debug("Refused %s %s", scope.get("method", "websocket"), scope["path"])
        self.owner.telemetry.refused(scope, refusal.status.mode or "full", gate, route)
