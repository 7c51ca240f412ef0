"""What this process knows of one backend: the last known state, how it is refreshed, and its local holds.

One `Snapshot` stands before each backend object, shared by all that use it. A near backend (`StatePeek`) is looked at
by each request; any other is asked in the background, by one task at a time and with a timeout, so that no request
but the very first waits for it.
"""

import asyncio
import inspect
import logging
import reprlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from math import inf
from typing import Any
from uuid import uuid4

import anyio
from anyio.lowlevel import RunVar

from fastapi_maintenance.backends.base import (
    BaseStateBackend,
    DrainStore,
    Edit,
    StateFeed,
    StateLink,
    StatePeek,
    StateReader,
    StateStore,
)
from fastapi_maintenance.errors import BackendError, BackendReadOnlyError
from fastapi_maintenance.forks import follow_forks
from fastapi_maintenance.holds import Holder
from fastapi_maintenance.inflight import InFlight
from fastapi_maintenance.state import OPEN, Hold, MaintenanceState, Switch, utcnow
from fastapi_maintenance.tasks import spawn

logger = logging.getLogger("fastapi_maintenance")

_ATTRIBUTE = "_fastapi_maintenance_snapshot"

FEED_PAUSE = 1.0
"""Seconds before a feed that ended or failed is asked again."""


class FlagStore:
    """A true/false store (`BaseStateBackend`) seen as a store of states: it carries the switch and nothing else."""

    def __init__(self, flag: BaseStateBackend) -> None:
        self.flag = flag
        self._state = OPEN

    def __repr__(self) -> str:
        return type(self.flag).__name__

    async def read_state(self) -> MaintenanceState:
        """Ask the store; `TypeError` when it answers anything but true or false (or 1 or 0, as many stores do)."""
        asked: object = self.flag.get_value()
        if not inspect.isawaitable(asked):
            raise TypeError(f"{self!r}.get_value() is not `async def`; write it so, and set_value(), too")
        value: object = await asked
        if isinstance(value, int) and value in {0, 1}:
            value = bool(value)
        if not isinstance(value, bool):
            if inspect.iscoroutine(value):
                value.close()
            raise TypeError(f"{self!r}.get_value() gave {reprlib.repr(value)}; it must give True or False")
        if value is (self._state.switch is None):
            self._state = self._state.switched(utcnow(), on=value)
        return self._state

    async def change_state(self, edit: Edit) -> MaintenanceState:
        """Store the switch of `edit(last known state)`; a `BackendError` when it says more than on or off."""
        state = edit(self._state)
        if state.switch is not None:
            # Who did it goes to the log.
            state = state.with_given_switch(state.switch.model_copy(update={"by": None}))
        if state.word is None:
            raise BackendError(
                repr(self),
                "it stores only true or false: no message, times, mode or windows. "
                "Leave them out, or use a backend that stores the document (file, Redis, memory)",
            )
        await self.flag.set_value(state.switch is not None)
        self._state = state
        return state


class Snapshot:
    """The last known state of one backend.

    Attributes:
        backend: The backend.
        in_flight: The requests that run behind its gates; where it cannot drain, those of this process.
        holds: Takes and ends holds on it.
        contacted: Whether it was heard, or waited for, once.
        glance: Gives what is stored, while all was well at the last look and nothing else counts; `None` where it takes
            another `look` to know. May raise what the backend raises.
    """

    def __init__(self, backend: StateReader) -> None:
        self.backend = backend
        self.in_flight = backend.in_flight if isinstance(backend, DrainStore) else InFlight()
        self.contacted = False
        self._known: MaintenanceState | None = None
        self._asked_at = -inf
        self._shortest_interval = inf
        self._changes = 0
        self._failing_since: float | None = None
        self._feed_fails = False
        # Under older anyio, variables of one name are one variable.
        self._flight: RunVar[anyio.Event | None] = RunVar(f"{_ATTRIBUTE}_{uuid4()}", default=None)
        self._tasks: set[asyncio.Task[None]] = set()
        self.holds = Holder(self)
        self._merged: tuple[MaintenanceState, tuple[Hold, ...], MaintenanceState] | None = None
        self._peek = backend.peek_state if isinstance(backend, StatePeek) else None
        self.glance: Callable[[], MaintenanceState | None] = _nothing
        self._link = backend if isinstance(backend, StateLink) else None
        follow_forks(self)

    def after_fork(self) -> None:
        """Forget the contact of a thread that the child does not have."""
        if self._link is not None:
            self.contacted, self._known = False, None
            self.look_again()

    @property
    def stale(self) -> float | None:
        """Seconds since it was first found that the backend cannot be asked, `None` when it can."""
        return None if self._failing_since is None else time.monotonic() - self._failing_since

    @property
    def revision(self) -> int | None:
        """The revision that is known, `None` while nothing is."""
        return None if self._known is None else self._known.revision

    @property
    def name(self) -> str:
        """The backend's name for people: its class, for a `repr` may show credentials."""
        return repr(self.backend) if isinstance(self.backend, FlagStore) else type(self.backend).__name__

    def stands_before(self, backend: object) -> bool:
        """Whether it was made for this object, and not for one that `backend` copies or wraps."""
        return self.backend is backend or (isinstance(self.backend, FlagStore) and self.backend.flag is backend)

    @property
    def near(self) -> bool:
        """Whether each request looks at the backend itself."""
        return self._peek is not None and self._link is None

    # Reading

    def refresh_every(self, seconds: float) -> None:
        """Learn that somebody wants to know no less than this old state of a distant backend; the least counts."""
        self._shortest_interval = min(self._shortest_interval, seconds)

    def look(self, refresh_interval: float, read_timeout: float) -> MaintenanceState | None:
        """Give the last known state without waiting, `None` while nothing is known.

        A near backend is looked at; another one is asked in the background when `refresh_interval` seconds have
        passed, with `read_timeout` seconds to answer. Must be called in an event loop.
        """
        peek = self._peek
        if peek is None:
            if time.monotonic() - self._asked_at >= refresh_interval:
                self._refresh(read_timeout)
            if self._failing_since is None:
                self._suffices(self._recent)
        elif self._link is None or self.contacted or self._link.heard:
            try:
                state = peek()
                if state is not self._known:
                    self._known = self._checked(state, "peek_state")
                if self._failing_since is not None:
                    self._recovered()
                self._suffices(peek)
            except Exception as error:  # noqa: BLE001 - whatever a user's backend raises
                if self._link is not None:
                    self._known = self._link.remembered_state()
                self._failed(error)
        known = self._known
        return known if known is None or not self.holds.local else self._with_local(known)

    def look_again(self) -> None:
        """Have the next request look, whatever a glance would tell it."""
        self.glance = _nothing

    def _suffices(self, glance: Callable[[], MaintenanceState | None]) -> None:
        """Let a glance suffice from now on, unless a local hold counts as well."""
        if self.glance != glance:
            with self.holds.edit:
                if not self.holds.local:
                    self.glance = glance

    def _recent(self) -> MaintenanceState | None:
        """Give what is known of a distant backend, `None` when it is time to ask again."""
        return self._known if time.monotonic() - self._asked_at < self._shortest_interval else None

    def last_known(self) -> MaintenanceState | None:
        """Give the last known state, a near backend's of now; in any thread."""
        if self._peek is not None:
            return self.look(inf, inf)
        known = self._known
        return known if known is None or not self.holds.local else self._with_local(known)

    async def first_look(self, read_timeout: float) -> None:
        """Wait for the first answer of a backend that was never heard, at most `read_timeout` seconds, once."""
        if self._link is not None and not self.contacted:
            await self._link.first_contact(read_timeout)
            self.contacted = True
        if self.contacted or self._peek is not None:
            return
        landed = self._refresh(read_timeout)
        with anyio.move_on_after(read_timeout) as wait:
            await landed.wait()
        if wait.cancelled_caught:
            self._failed(_no_answer(read_timeout))
        self.contacted = True

    def assume(self, state: MaintenanceState) -> MaintenanceState:
        """Give `state`, which stands in while nothing is known, with the local holds and what is known all the same."""
        if self._link is not None and state.switch is None:
            state = self._link.remembered_rest()
        return self._with_local(state) if self.holds.local else state

    def _refresh(self, read_timeout: float) -> anyio.Event:
        """Start asking in the background, unless that is under way in this event loop."""
        landed = self._flight.get()
        if landed is None or landed.is_set():
            landed = anyio.Event()
            self._flight.set(landed)
            self._asked_at = time.monotonic()
            spawn(_bound(self._ask, landed, read_timeout), self._tasks)
        elif time.monotonic() - self._asked_at > read_timeout:
            # A store that sits in a thread is deaf to its timeout.
            self._failed(_no_answer(read_timeout))
        return landed

    async def _ask(self, landed: anyio.Event, read_timeout: float) -> None:
        changes = self._changes
        try:
            with anyio.fail_after(read_timeout):
                state = self._checked(await self.backend.read_state(), "read_state")
        except TimeoutError:
            self._failed(_no_answer(read_timeout))
        except Exception as error:  # noqa: BLE001 - whatever a user's store raises
            self._failed(error)
        except BaseException:
            # The event loop ends; the next one asks anew.
            self._asked_at = -inf
            raise
        else:
            # An answer that was asked for before a change of our own may be older than the change.
            if changes == self._changes:
                self._learn(state)
        finally:
            landed.set()

    def _checked(self, state: object, source: str) -> MaintenanceState:
        if isinstance(state, MaintenanceState):
            return state
        if inspect.iscoroutine(state):
            state.close()
        raise TypeError(f"{self.name}.{source}() gave {type(state).__name__}, not a MaintenanceState")

    def _learn(self, state: MaintenanceState) -> None:
        self._known = state
        self.contacted = True
        if self._failing_since is not None:
            self._recovered()

    def _failed(self, error: Exception) -> None:
        self.look_again()
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            reason = str(error) if isinstance(error, BackendError) else f"{type(error).__name__}: {error}"
            believed = "the last known state is kept" if self._known is not None else "no state is known yet"
            logger.warning(
                "Maintenance backend %s cannot be read, %s: %s",
                self.name,
                believed,
                reason,
                extra={"backend": self.name, "reason": reason},
            )

    def _recovered(self) -> None:
        seconds = self.stale or 0.0
        self._failing_since = None
        logger.info(
            "Maintenance backend %s can be read again after %.1f s",
            self.name,
            seconds,
            extra={"backend": self.name, "seconds": seconds},
        )

    @asynccontextmanager
    async def watching(self, refresh_interval: float, read_timeout: float) -> AsyncGenerator[None]:
        """Ask a distant backend again and again, and listen to one that tells of changes, until the end of the block.

        Args:
            refresh_interval: Seconds between two questions.
            read_timeout: Seconds to answer.
        """
        if self._peek is not None:
            yield
            return
        polling, listening = anyio.CancelScope(), anyio.CancelScope()
        spawn(_bound(self._poll, refresh_interval, read_timeout, polling), self._tasks)
        if isinstance(self.backend, StateFeed):
            spawn(_bound(self._watch, self.backend, listening), self._tasks)
        try:
            yield
        finally:
            polling.cancel()
            listening.cancel()

    async def _poll(self, refresh_interval: float, read_timeout: float, scope: anyio.CancelScope) -> None:
        with scope:
            while True:
                await anyio.sleep(refresh_interval)
                self.look(refresh_interval, read_timeout)

    async def _watch(self, feed: StateFeed, scope: anyio.CancelScope) -> None:
        with scope:
            while True:
                try:
                    async for state in feed.watch_state():
                        self._hear(state)
                except Exception as error:  # noqa: BLE001 - whatever a user's feed raises
                    self._heard_wrong(error)
                await anyio.sleep(FEED_PAUSE)

    def _hear(self, news: object) -> None:
        try:
            state = self._checked(news, "watch_state")
        except TypeError as error:
            self._heard_wrong(error)
        else:
            self._changes += 1
            self._feed_fails = False
            self._learn(state)

    def _heard_wrong(self, error: Exception) -> None:
        if not self._feed_fails:
            logger.warning(
                "Maintenance backend %s does not tell of changes now, it is only asked: %s: %s",
                self.name,
                type(error).__name__,
                error,
                extra={"backend": self.name},
            )
        self._feed_fails = True

    async def read(self) -> MaintenanceState:
        """Ask the backend now; for changes, not for requests.

        Raises:
            BackendError: It cannot be read.
        """
        changes = self._changes
        try:
            state = self._checked(await self.backend.read_state(), "read_state")
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(self.name, f"cannot be read: {type(error).__name__}: {error}") from error
        if changes == self._changes:
            self._learn(state)
        return state

    # Writing

    async def change(self, edit: Edit) -> MaintenanceState:
        """Change what is stored; this process sees it at once.

        Raises:
            BackendReadOnlyError: The backend can only be read.
            BackendError: It could not be stored.
        Exception: Whatever `edit` raised.
        """
        if not isinstance(self.backend, StateStore):
            raise BackendReadOnlyError(
                self.name,
                getattr(self.backend, "READ_ONLY", "it can only be read; change the state where it comes from"),
            )
        refused: list[Exception] = []

        def apply(state: MaintenanceState) -> MaintenanceState:
            try:
                return edit(state.without_past(utcnow()))
            except Exception as error:
                refused.append(error)
                raise

        try:
            state = self._checked(await self.backend.change_state(apply), "change_state")
        except Exception as error:
            if isinstance(error, BackendError) or error in refused:
                raise
            raise BackendError(self.name, f"cannot be written: {type(error).__name__}: {error}") from error
        self._changes += 1
        self._learn(state)
        return state

    def _with_local(self, known: MaintenanceState) -> MaintenanceState:
        """Give `known` with the local holds: the same object while neither changed."""
        merged = self._merged
        if merged is None or merged[0] is not known or merged[1] is not self.holds.local:
            state = known.model_copy(update={"holds": (*known.holds, *self.holds.local)})
            self._merged = merged = (known, self.holds.local, state)
        return merged[2]


def snapshot_of(backend: object) -> Snapshot:
    """Give the snapshot that stands before `backend`, the same one for everybody who uses this object.

    Raises:
        TypeError: `backend` is no backend.
    """
    known = getattr(backend, _ATTRIBUTE, None)
    if isinstance(known, Snapshot) and known.stands_before(backend):
        return known
    if isinstance(backend, type):
        raise TypeError(f"backend is the class {backend.__name__}; give an object of it: {backend.__name__}(...)")
    if isinstance(backend, str):
        shown = repeatable(backend)
        raise TypeError(f"backend is the string {shown}; write MaintenanceSettings(backend={shown}) for a URL")
    if isinstance(backend, BaseStateBackend) and _is_flag(backend):
        snapshot = Snapshot(FlagStore(backend))
    elif isinstance(backend, StateReader):
        snapshot = Snapshot(backend)
    else:
        raise TypeError(
            f"{type(backend).__name__} is no backend: give EnvVarBackend, LocalFileBackend, MemoryBackend, a subclass "
            "of BaseStateBackend, or an object with `async def read_state()` (and `change_state()` to be written)"
        )
    try:
        setattr(backend, _ATTRIBUTE, snapshot)
    except (AttributeError, TypeError):
        logger.debug("%s takes no attributes, so each Maintenance looks at it by itself", type(backend).__name__)
    return snapshot


def repeatable(given: object) -> str:
    """Give what somebody gave for an error, unless it may be a URL with a password."""
    shown = repr(given)
    return "..." if "://" in shown or "@" in shown else shown


def _nothing() -> None:
    return None


def assumed(when_unknown: str, now: datetime) -> MaintenanceState:
    """Give the state to go by while nothing is known: `open`, or `closed`."""
    return OPEN if when_unknown == "open" else OPEN.model_copy(update={"switch": Switch(since=now)})


def _no_answer(read_timeout: float) -> TimeoutError:
    return TimeoutError(f"no answer within {read_timeout:g} s")


def _bound(function: Callable[..., Awaitable[None]], *args: object) -> Callable[[], Coroutine[Any, Any, None]]:
    async def call() -> None:
        await function(*args)

    return call


def _is_flag(backend: BaseStateBackend) -> bool:
    """Tell whether the truth value has the last word: a subclass of a built-in backend may override it alone."""
    defining = next(kind for kind in type(backend).__mro__ if {"read_state", "get_value"} & vars(kind).keys())
    return "read_state" not in vars(defining)
