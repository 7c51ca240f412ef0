"""Holding it closed for the time of a block: `async with maintenance.on()`."""

import inspect
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from types import TracebackType
from typing import ParamSpec, Protocol, Self, TypeVar, get_args

import anyio

from fastapi_maintenance.audit import record, whoami
from fastapi_maintenance.backends.base import (
    DrainStore,
    Edit,
    HoldStore,
    InheritableHolds,
    LeasedHolds,
    StateReader,
    StateStore,
)
from fastapi_maintenance.errors import BackendError, DrainUnsupported, DrainWouldDeadlock, NoWorkers
from fastapi_maintenance.forks import follow_forks
from fastapi_maintenance.inflight import InFlight, current_passage
from fastapi_maintenance.state import (
    Hold,
    MaintenanceState,
    OnFailure,
    Switch,
    checked_message,
    checked_mode,
    utcnow,
)
from fastapi_maintenance.tasks import Turns, in_this_loop, to_the_end

logger = logging.getLogger("fastapi_maintenance")

P = ParamSpec("P")
R = TypeVar("R")

LEAVE_TIMEOUT = 10.0
"""Seconds that ending a hold may take; a store that hangs must not keep the caller for ever."""

_DRAIN_TRY = 0.005
"""Seconds between two looks whether anything is still running."""

_LONGEST = 1e9
"""Seconds that a drain may wait: thirty years."""


class Drain:
    """What a hold is asked to wait for before its block runs.

    Args:
        seconds: How long to wait until nothing is running; 0 is one try.
        min_workers: How many workers there must be.
    """

    def __init__(self, seconds: float, min_workers: int) -> None:
        self.seconds = seconds
        self.min_workers = min_workers

    @classmethod
    def asked(cls, seconds: float | None, min_workers: int, mode: str) -> Self | None:
        """Check what a person asks for; `None` where no drain is asked for.

        Raises:
            ValueError: An argument breaks a rule.
        """
        if isinstance(min_workers, bool) or not isinstance(min_workers, int) or min_workers < 0:
            raise ValueError(f"min_workers must be a whole number, 0 or more, not {min_workers!r}")
        if seconds is None:
            return None
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= _LONGEST:
            raise ValueError(f"drain must be seconds, 0 or more, not {seconds!r}")
        if mode != "full":
            raise ValueError(f"drain= needs mode='full', for a {mode} hold lets reads run; leave one of them out")
        return cls(seconds, min_workers)


class Stored(Protocol):
    """What a holder needs of the state that stands behind it."""

    @property
    def backend(self) -> StateReader:
        """Where the state is kept."""
        ...

    @property
    def name(self) -> str:
        """The backend's name for people."""
        ...

    @property
    def revision(self) -> int | None:
        """The revision that is known, if any."""
        ...

    async def read(self) -> MaintenanceState:
        """Ask the backend now."""
        ...

    async def change(self, edit: Edit) -> MaintenanceState:
        """Change what is stored."""
        ...

    def look_again(self) -> None:
        """Have the next request see that a local hold has come or gone."""
        ...


class _Nothing:
    """There is nothing to put back."""


_NOTHING = _Nothing()


class Holder:
    """Takes and ends the holds of this process on one backend.

    A backend that can carry holds (`HoldStore`) does so itself. On any other one a hold closes this process; where
    the store can be written, the first hold also turns its switch on, and the last one puts back what was there.

    Attributes:
        local: The holds that close this process only.
        edit: Who has it knows that these do not change.
    """

    def __init__(self, stored: Stored) -> None:
        self.local: tuple[Hold, ...] = ()
        self._stored = stored
        self._turns = Turns()
        # Ids: to end what was never asked for, or is a parent's, would be a change that nobody wants.
        self._asked: set[str] = set()
        # Reentrant: a signal handler may ask for the state meanwhile.
        self.edit = threading.RLock()
        self._borrowed = False
        self._put_back: Switch | _Nothing | None = _NOTHING
        self._told = False
        follow_forks(self)

    def after_fork(self) -> None:
        """Forget the holds of the parent: they close the parent, and it ends them."""
        self.local, self._asked = (), set()
        self._turns, self.edit = Turns(), threading.RLock()
        self._borrowed, self._put_back = False, _NOTHING

    @property
    def name(self) -> str:
        """The backend's name for people."""
        return self._stored.name

    def active(self, hold_id: str) -> "ActiveHold":
        """Give what the block of a hold gets; it is told when the hold is lost, where that can be."""
        backend = self._stored.backend
        descriptors = backend.hold_descriptors(hold_id) if isinstance(backend, InheritableHolds) else ()
        if not isinstance(backend, LeasedHolds):
            return ActiveHold(hold_id, descriptors)
        active = ActiveHold(hold_id, descriptors, partial(backend.hold_lost, hold_id))
        backend.watch_hold(hold_id, in_this_loop(active.lose))
        return active

    async def take(self, hold: Hold) -> None:
        """Begin `hold`; when this raises, it has not begun."""
        backend = self._stored.backend
        if isinstance(backend, HoldStore) and _can_hold(backend):
            self._asked.add(hold.id)
            with self._failing_as("begun"):
                await backend.take_hold(hold)
            await self._stored.read()
            return
        self._tell_once()
        async with self._turns.one():
            self._replace(hold, hold)
            if isinstance(backend, StateStore) and not self._borrowed:
                await self._borrow()

    async def end(self, hold: Hold, *, failed: bool) -> bool:
        """End `hold`, or leave it an orphan when its body failed and it says so.

        Returns:
            `False` when there was nothing to do: this process has not asked for it, or tried to end it before.
        """
        backend = self._stored.backend
        if isinstance(backend, HoldStore) and _can_hold(backend):
            if hold.id not in self._asked:
                return False
            self._asked.discard(hold.id)
            with self._failing_as("ended"):
                await backend.end_hold(hold, failed=failed)
            # It has ended, whether or not the store can tell of it, and however long that took.
            with suppress(BackendError), anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
                await self._stored.read()
            return True
        if all(known.id != hold.id for known in self.local):
            return False
        if failed and hold.on_failure == "keep":
            self._replace(hold, hold.model_copy(update={"phase": "orphan"}))
            return True
        # Before its turn: this process opens again even when the store hangs.
        self._replace(hold)
        async with self._turns.one():
            if not self.local:
                await self._give_back()
        return True

    # Draining

    async def check_drain(self, drain: Drain) -> None:
        """Make sure, before anything happens, that a drain can keep its promise.

        Raises:
            DrainWouldDeadlock: The request that asks is counted itself.
            DrainUnsupported: The backend or the platform cannot promise it.
            NoWorkers: There are too few workers.
            BackendError: The backend cannot tell.
        """
        in_flight = self._in_flight()
        passage = current_passage()
        if passage is not None and passage.is_counted_in(in_flight):
            raise DrainWouldDeadlock
        await in_flight.check()
        workers = await in_flight.workers()
        if len(workers) < drain.min_workers:
            raise NoWorkers(len(workers), drain.min_workers)

    async def drain(self, hold: Hold, drain: Drain) -> None:
        """Wait until nothing is running and, as long as `hold` lives, nothing can start.

        Raises:
            DrainTimeout: It did not come to that in time.
            DrainIncomplete: A worker did not answer.
            BackendError: The backend cannot tell.
        """
        in_flight = self._in_flight()
        deadline = anyio.current_time() + drain.seconds
        while not await in_flight.drained(hold.id):
            left = deadline - anyio.current_time()
            if left <= 0:
                raise await in_flight.shortfall(drain.seconds)
            await anyio.sleep(min(_DRAIN_TRY, left))
        await self._say_drained(hold)

    def _in_flight(self) -> InFlight:
        backend = self._stored.backend
        if not isinstance(backend, DrainStore):
            raise DrainUnsupported(f"{self.name} does not count running requests; a state file or Redis does")
        return backend.in_flight

    async def _say_drained(self, hold: Hold) -> None:
        """Tell that nothing is running any more; the hold keeps its promise even where that cannot be stored."""
        if hold in self.local:
            self._replace(hold, hold.model_copy(update={"phase": "closed"}))
            return
        try:
            await self._stored.change(lambda state: state.with_drained(hold.id))
        except BackendError as error:
            logger.warning("Hold %s has drained, but its status says closing: %s", hold.id, error)

    # The switch

    async def switch(self, edit: Edit, *, on: bool) -> None:
        """Turn the switch as an operator asks, and remember what the last hold has to put back."""
        async with self._turns.one():
            await self._switch(edit, on=on)

    async def _switch(self, edit: Edit, *, on: bool) -> None:
        stores = isinstance(self._stored.backend, StateStore)
        orphans = [] if on else [hold for hold in self.local if hold.phase == "orphan"]
        for orphan in orphans:
            self._replace(orphan)
        if self.local and stores and not on:
            await self._lend()
        elif stores or not orphans:
            await self._stored.change(edit)
            self._put_back = _NOTHING
            self._borrowed = self._borrowed and bool(self.local)

    def record(self, what: str, hold: Hold, scope: str) -> None:
        """Log what became of a hold."""
        revision = self._stored.revision
        record(f"hold {hold.id} {what}", scope=scope, by=hold.by, why=hold.message, revision=revision)

    def _replace(self, hold: Hold, *by: Hold) -> None:
        with self.edit:
            self.local = (*(known for known in self.local if known.id != hold.id), *by)
            self._stored.look_again()

    @contextmanager
    def _failing_as(self, what: str) -> Generator[None]:
        try:
            yield
        except BackendError:
            raise
        except Exception as error:
            reason = f"the hold could not be {what}: {type(error).__name__}: {error}"
            raise BackendError(self.name, reason) from error

    # The switch of a store that cannot carry holds

    async def _borrow(self) -> None:
        """Turn the switch on for the first hold, unless it is fully on already."""
        # Something, when the first hold broke off in here and another one came before it was taken back.
        before = self._put_back

        def lent(state: MaintenanceState) -> MaintenanceState:
            switch = state.switch
            if isinstance(before, _Nothing):
                if switch is not None and switch.until is None and switch.mode == "full":
                    self._put_back = _NOTHING
                    return state
                self._put_back = switch
            return state.switched(utcnow(), on=True)

        await self._stored.read()
        await self._stored.change(lent)
        self._borrowed = True

    async def _lend(self) -> None:
        """Leave the switch on for the holds that are alive; the last one turns it off."""
        await self._stored.change(lambda state: state.switched(utcnow(), on=True))
        self._put_back = None

    async def _give_back(self) -> None:
        """Put back what the first hold found, unless somebody changed the switch meanwhile."""
        put_back = self._put_back

        def returned(state: MaintenanceState) -> MaintenanceState:
            ours = state.switch is not None and state.switch.bare
            return state.with_given_switch(put_back) if ours and not isinstance(put_back, _Nothing) else state

        if not isinstance(put_back, _Nothing):
            await self._stored.change(returned)
        # Not before: where this failed, the next hold has it to put back.
        self._put_back, self._borrowed = _NOTHING, False

    def _tell_once(self) -> None:
        if self._told:
            return
        self._told = True
        kept = isinstance(self._stored.backend, StateStore)
        logger.warning(
            "Holds on %s are counted in this process only; %s",
            self.name,
            "a process killed inside one leaves it on" if kept else "other processes stay as they are",
            extra={"backend": self.name},
        )


def _can_hold(backend: HoldStore) -> bool:
    """Tell whether the system lets the backend do what it can do elsewhere."""
    return bool(getattr(backend, "can_hold", True))


def _never() -> bool:
    return False


class ActiveHold:
    """A hold while its block runs.

    Attributes:
        id: Names it in `status.holds`.
        descriptors: File descriptors to hand to a child process that is to keep it closed as long as it lives
            (`pass_fds` of `subprocess`); none where the backend keeps holds in another way.
    """

    def __init__(self, hold_id: str, descriptors: tuple[int, ...] = (), expired: Callable[[], bool] = _never) -> None:
        self.id = hold_id
        self.descriptors = descriptors
        self._expired = expired
        self._lost = anyio.Event()

    @property
    def lost(self) -> bool:
        """Whether the backend can no longer vouch for it, by the clock now."""
        # Not only what another thread has told: after a stop this one may go on first.
        return self._lost.is_set() or self._expired()

    def lose(self) -> None:
        """Wake those who wait until it is lost; in the event loop that entered it."""
        self._lost.set()

    async def wait_lost(self) -> None:
        """Wait until the hold is lost."""
        await self._lost.wait()


class HoldContext:
    """What `maintenance.on()` gives: an async context manager, and a decorator that holds for each call.

    Entered again once it was left, it makes another hold; entered twice at once it is a `RuntimeError`.
    """

    def __init__(self, holder: Callable[[], tuple[Holder, str]], template: Hold, drain: Drain | None = None) -> None:
        self._holder = holder
        self._template = template
        self._drain = drain
        self._entered: tuple[Holder, Hold, str] | None = None

    def __call__(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """Hold for the time of each call of an `async def`.

        Raises:
            TypeError: `function` is not an `async def`.
        """
        if not inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{getattr(function, '__qualname__', function)!r} is not an async def, so it cannot be held closed "
                "for the time of a call; write `async def`, or use `async with` inside one"
            )

        @wraps(function)
        async def held(*args: P.args, **kwargs: P.kwargs) -> R:
            async with HoldContext(self._holder, self._template, self._drain):
                return await function(*args, **kwargs)

        return held

    async def __aenter__(self) -> ActiveHold:
        """Begin a hold, and drain if that is asked for; when this raises, nothing is held."""
        if self._entered is not None:
            raise RuntimeError("this hold is already entered; call on() for each block, holds may overlap")
        holder, scope = self._holder()
        own = {"id": secrets.token_hex(8), "since": utcnow(), "by": self._template.by or whoami()}
        if self._drain is not None:
            own["phase"] = "closing"
        hold = self._template.model_copy(update=own)
        tell = partial(holder.record, hold=hold, scope=scope)
        told: Callable[[], None] | None = None
        self._entered = (holder, hold, scope)
        try:
            if self._drain is None:
                await holder.take(hold)
                told = partial(tell, "ended")
                tell("begun")
            else:
                await holder.check_drain(self._drain)
                await holder.take(hold)
                told = partial(tell, "not drained, ended")
                tell("begun, draining")
                await holder.drain(hold, self._drain)
                told = partial(tell, "ended")
                tell("drained")
            return holder.active(hold.id)
        except BaseException:
            # A cancellation may have come after the hold was stored.
            self._entered = None
            await _leave(holder, hold, failed=False, quiet=True, told=told)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the hold, whatever happens to this task; an error of the body comes out first.

        Nothing happens in a process that was forked in the block: the hold is its parent's.
        """
        entered, self._entered = self._entered, None
        if entered is not None:
            holder, hold, scope = entered
            kept = error is not None and hold.on_failure == "keep"
            told = partial(holder.record, "failed, kept closed" if kept else "ended", hold, scope)
            await _leave(holder, hold, failed=error is not None, quiet=error is not None, told=told)


async def _leave(
    holder: Holder, hold: Hold, *, failed: bool, quiet: bool, told: Callable[[], None] | None = None
) -> None:
    """End `hold`, whatever happens to this task, and call `told` when that is done.

    With `quiet` a failure is logged only, not to hide another error.
    """

    async def end() -> None:
        try:
            with anyio.fail_after(LEAVE_TIMEOUT):
                ended = await holder.end(hold, failed=failed)
            if ended and told is not None:
                told()
        except (BackendError, TimeoutError) as problem:
            slow = BackendError(holder.name, f"no answer within {LEAVE_TIMEOUT:g} s")
            error = problem if isinstance(problem, BackendError) else slow
            extra = {"hold": hold.id, "reason": error.reason}
            logger.error("Hold %s could not be taken back: %s", hold.id, error, extra=extra)  # noqa: TRY400 - the reason tells all
            if not quiet:
                raise error from problem.__cause__

    await to_the_end(end)


def hold_template(
    *,
    message: str | None = None,
    mode: str = "full",
    on_failure: str = "lift",
    by: str | None = None,
) -> Hold:
    """Check the arguments of `on()` and give the hold that each block begins.

    Raises:
        ValueError: An argument breaks a rule.
        TypeError: `message` is no string.
    """
    if on_failure not in get_args(OnFailure):
        raise ValueError(f"unknown on_failure {on_failure!r}: use 'lift' or 'keep'")
    return Hold(
        id="new",
        since=utcnow(),
        message=checked_message(message),
        mode=checked_mode(mode),
        on_failure="keep" if on_failure == "keep" else "lift",
        by=checked_message(by, "by"),
    )
