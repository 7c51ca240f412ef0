"""For tests of a backend of one's own: `BackendContract`, what any store must do."""

import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import cycle, pairwise
from threading import Event, Thread
from time import sleep
from typing import Any, NoReturn, TypeAlias, cast
from unittest import SkipTest

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

from fastapi_maintenance.backends import HoldStore, StateFeed, StatePeek, StateReader, StateStore
from fastapi_maintenance.errors import BackendError, BackendReadOnlyError
from fastapi_maintenance.maintenance import Maintenance
from fastapi_maintenance.settings import MaintenanceSettings
from fastapi_maintenance.snapshot import FlagStore
from fastapi_maintenance.state import MaintenanceState, MaintenanceStatus, Switch, Window, utcnow

PATIENCE = 5.0
"""Seconds after which something that should be seen is taken as missed."""

REFRESH = 0.01
_MOMENT = 0.001
_OVERLAP = 0.1
"""Seconds that one change leaves another one to come in between; one that waits its turn costs no more than this."""

HOUR = timedelta(hours=1)
NOTE = {"x_note": {"kept": [1, None]}}


@dataclass(frozen=True)
class Bench:
    """One backend under test.

    Attributes:
        backend: What `make_backend()` gave.
        maintenance: An object on it.
        make_other: Gives a second backend object on the same store, `None` where there is none.
    """

    backend: object
    maintenance: Maintenance
    make_other: Callable[[], object | None]

    @property
    def store(self) -> StateReader:
        """The backend as a reader of states, a true/false store, too."""
        return self.maintenance.snapshot.backend

    @property
    def flag(self) -> bool:
        """Whether it stores one truth value."""
        return isinstance(self.store, FlagStore)

    def needs(self, *, flag: bool | None = None) -> StateStore:
        """Give the store when it can be written and is of this kind, or skip the test."""
        if not isinstance(self.store, StateStore):
            raise SkipTest("it can only be read")
        if flag is not None and flag is not self.flag:
            raise SkipTest("it stores only true or false" if self.flag else "it stores documents")
        return self.store

    def other(self) -> Maintenance:
        """Give an object on the second backend, or skip the test."""
        backend = self.make_other()
        if backend is None:
            raise SkipTest("other() gives no second object on the same store")
        _must(backend is not self.backend, "other() gave the same object; it must give a second one on the same store")
        return _maintenance(backend)

    def all(self) -> list[Maintenance]:
        """Give the objects that there are: one, or two on the same store."""
        with suppress(SkipTest):
            return [self.maintenance, self.other()]
        return [self.maintenance]


_Check: TypeAlias = Callable[["BackendContract", Bench], Awaitable[None]]


def _on_each_event_loop(check: _Check) -> Callable[["BackendContract"], None]:
    """Make a test of `check`: on asyncio and, where it is installed, on trio, each time with a fresh backend."""

    def test(self: "BackendContract") -> None:
        for event_loop in self.event_loops:
            if importlib.util.find_spec(event_loop) is not None:
                try:
                    anyio.run(_checked, self, check, backend=event_loop)
                except Exception as error:  # noqa: BLE001 - it is raised again, without its groups
                    bare = _bare(error)
                    bare.add_note(f"on {event_loop}")
                    raise bare from bare.__cause__

    for name in ("__name__", "__qualname__", "__doc__", "__module__"):
        setattr(test, name, getattr(check, name))
    return test


async def _checked(contract: "BackendContract", check: _Check) -> None:
    made = [contract.make_backend()]

    def other() -> object | None:
        backend = contract.other(made[0])
        made.extend([] if backend is None else [backend])
        return backend

    try:
        await check(contract, Bench(made[0], _maintenance(made[0]), other))
    finally:
        for backend in made:
            await contract.close(backend)


class BackendContract:
    """What any store must do, as tests: inherit it, say how to make a backend, and run pytest.

        class TestMyStore(BackendContract):
            def make_backend(self):
                return MyStore(...)

    It needs no plugin. What a store cannot do (change a read-only one, keep a message in a true/false one) is skipped,
    or its refusal is tested. Fixtures of your own, say for a directory, are written as in any test class:
    `@pytest.fixture(autouse=True) def place(self, tmp_path): self.path = tmp_path / "state"`.

    Attributes:
        event_loops: Where the store runs; a store that needs asyncio says `("asyncio",)`.
    """

    event_loops: tuple[str, ...] = ("asyncio", "trio")

    def make_backend(self) -> object:
        """Give a backend on a new, empty store; called inside the event loop, once for each check."""
        raise NotImplementedError(f"{type(self).__name__} must define make_backend()")

    def other(self, backend: object) -> object | None:  # noqa: ARG002 - for those who define it
        """Give a second object on the store of `backend`, as another process would have; `None`: there is none."""
        return None

    def failing_writes(self, backend: object) -> AbstractContextManager[Any] | None:  # noqa: ARG002 - as above
        """Give a context in which the store of `backend` cannot be written; `None`: that cannot be arranged."""
        return None

    async def close(self, backend: object) -> None:
        """Close what `make_backend()` or `other()` gave."""

    # Reading

    @_on_each_event_loop
    async def test_an_empty_store_is_open(self, bench: Bench) -> None:
        """A store that was never changed is open, and answers with a state."""
        await _read(bench)
        status = await bench.maintenance.status()
        _must(not status.active, "a new store is closed; make_backend() must give an empty one, and empty means open")
        _must(status.stale is None, "a new store cannot be read")

    @_on_each_event_loop
    async def test_reading_changes_nothing(self, bench: Bench) -> None:
        """To read, once or again, gives the same and leaves the store as it is."""
        if isinstance(bench.store, StateStore):
            await bench.maintenance.enable()
        states = [await _read(bench) for _ in range(3)]
        _must(states[0] == states[1] == states[2], f"reading changed the state: {states}")
        if isinstance(bench.store, StatePeek):
            _must(bench.store.peek_state() == states[0], "peek_state() and read_state() do not agree")

    @_on_each_event_loop
    async def test_a_store_that_can_only_be_read_says_so(self, bench: Bench) -> None:
        """A change of a store that can only be read is a `BackendReadOnlyError`, and nothing changes."""
        if isinstance(bench.store, StateStore):
            raise SkipTest("it can be written")
        maintenance, now = bench.maintenance, utcnow()
        for change in (maintenance.enable, maintenance.disable, lambda: maintenance.schedule(now, now + HOUR)):
            _must(isinstance(await _error_of(change), BackendReadOnlyError), "a change was not refused")
        await _sees(maintenance, active=False)

    # The switch

    @_on_each_event_loop
    async def test_the_switch_is_seen_at_once(self, bench: Bench) -> None:
        """What `enable()` and `disable()` change is seen at once through the object that changed it."""
        bench.needs()
        for expected in (True, False, True, True, False, False):
            status = await _switch(bench.maintenance, on=expected)
            _must(status.active is expected, f"after {_named(expected)} the status said the opposite")
            _must((await bench.maintenance.status()).active is expected, f"{_named(expected)} was not seen at once")
            _must((await _read(bench)).at(utcnow()).active is expected, f"{_named(expected)} was not stored")

    @_on_each_event_loop
    async def test_the_switch_is_seen_by_others(self, bench: Bench) -> None:
        """What one object changes is seen by another one after its refresh, in both directions."""
        bench.needs()
        other = bench.other()
        for expected, by, seen_by in ((True, bench.maintenance, other), (False, other, bench.maintenance)):
            await _switch(by, on=expected)
            await _sees(seen_by, active=expected)

    @_on_each_event_loop
    async def test_the_revision_grows(self, bench: Bench) -> None:
        """Each change gives a higher revision than the one before it."""
        bench.needs()
        revisions = [(await bench.maintenance.status()).revision]
        for objects, on in zip(cycle(bench.all()), (True, True, False, True, False), strict=False):
            # A true/false store has a revision in each object only.
            maintenance = bench.maintenance if bench.flag else objects
            revisions.append((await _switch(maintenance, on=on)).revision)
        _must(all(a < b for a, b in pairwise(revisions)), f"the revision did not grow with each change: {revisions}")

    @_on_each_event_loop
    async def test_a_true_false_store_refuses_what_it_cannot_keep(self, bench: Bench) -> None:
        """A true/false store refuses a message, an end, a mode, a `Retry-After` and a window, and nothing changes."""
        bench.needs(flag=True)
        maintenance, later = bench.maintenance, utcnow() + HOUR
        said: list[dict[str, Any]] = [{"message": "m"}, {"until": later}, {"mode": "read_only"}, {"retry_after": 7}]
        for words in said:
            _must(isinstance(await _error_of(lambda: maintenance.enable(**words)), BackendError), f"{words} was taken")  # noqa: B023 - used at once
        _must(
            isinstance(await _error_of(lambda: maintenance.schedule(later, later + HOUR)), BackendError),
            "a window was taken",
        )
        _must(not (await _read(bench)).at(utcnow()).active, "what was refused was stored all the same")

    # Documents

    @_on_each_event_loop
    async def test_what_was_said_is_kept(self, bench: Bench) -> None:
        """Message, end, mode, `Retry-After` and author are given back as they were said, to everybody."""
        bench.needs(flag=False)
        until = utcnow() + HOUR
        said: dict[str, Any] = {"message": 'Zürich "\n\t\\ 維', "until": until, "mode": "read_only", "by": "somebody"}
        await bench.maintenance.enable(**said, retry_after=7)
        for maintenance in bench.all():
            switch = (await maintenance.snapshot.read()).switch
            expected = Switch(**said, retry_after=7, since=utcnow() if switch is None else switch.since)
            _must(switch == expected, f"not kept as said: {switch}")

    @_on_each_event_loop
    async def test_windows_are_kept_and_dropped(self, bench: Bench) -> None:
        """A planned window is seen by everybody until it is dropped; one that runs closes."""
        bench.needs(flag=False)
        now = utcnow()
        running = await bench.maintenance.schedule(now - HOUR, now + HOUR, message="now")
        ahead = await bench.maintenance.schedule(now + 2 * HOUR, now + 3 * HOUR, mode="read_only", message="later")
        for maintenance in bench.all():
            status = await _sees(maintenance, active=True)
            _must((status.message, status.until, status.next_window) == ("now", running.end, ahead), f"{status}")
        await bench.all()[-1].unschedule(running.id)
        status = await _sees(bench.maintenance, active=False)
        _must(status.next_window == ahead, "another window went with it")
        _must(
            isinstance(await _error_of(lambda: bench.maintenance.unschedule(running.id)), LookupError),
            "a window that was dropped is still there",
        )

    @_on_each_event_loop
    async def test_unknown_fields_are_kept(self, bench: Bench) -> None:
        """Fields that this version does not know survive changes, in the document and in its parts."""
        store, now = bench.needs(flag=False), utcnow()
        window = Window.model_validate({"id": "w", "start": now, "end": now + HOUR, **NOTE})
        switch = Switch.model_validate({"since": now, **NOTE})

        def annotated(state: MaintenanceState) -> MaintenanceState:
            return state.with_window(window).with_given_switch(switch).model_copy(update=NOTE)

        await store.change_state(annotated)
        await bench.all()[-1].schedule(now + HOUR, now + 2 * HOUR)
        state = await bench.maintenance.snapshot.read()
        _must(state.switch == switch, f"the switch lost a field: {state.switch}")
        _must(window in state.windows, f"a window lost a field: {state.windows}")
        _must(state.model_extra == NOTE, f"the document lost a field: {state.model_extra}")

    # Changes at once, and changes that fail

    @_on_each_event_loop
    async def test_changes_at_once_lose_nothing(self, bench: Bench) -> None:
        """Of many changes at once, by several tasks and objects, each one is in the final document."""
        bench.needs(flag=False)
        before = await _read(bench)
        objects, errors = bench.all(), list[BaseException | None]()

        async def change(maintenance: Maintenance, task: int) -> None:
            for number in range(3):
                errors.append(await _error_of(lambda: maintenance.snapshot.change(_slowly(f"{task}-{number}"))))  # noqa: B023 - used at once

        async with anyio.create_task_group() as tasks:
            for task in range(6):
                tasks.start_soon(change, objects[task % len(objects)], task)
        _must(errors == [None] * 18, f"changes failed: {errors}")
        after = await _read(bench)
        missing = {f"{task}-{number}" for task in range(6) for number in range(3)} - {w.id for w in after.windows}
        _must(not missing, f"changes were lost: {sorted(missing)}")
        _must(after.revision >= before.revision + 18, f"18 changes, but revisions {before.revision}, {after.revision}")

    @_on_each_event_loop
    async def test_a_change_by_another_process_in_between_is_not_lost(self, bench: Bench) -> None:
        """A change that comes while another object's change is under way waits, or the other one is done anew."""
        store = bench.needs(flag=False)
        bench.other()
        begun, done, errors = Event(), Event(), list[BaseException | None]()

        def interrupted(state: MaintenanceState) -> MaintenanceState:
            begun.set()
            done.wait(_OVERLAP)
            return _slowly("first")(state)

        async def interrupt() -> None:
            other = self.other(bench.backend)
            begun.wait(PATIENCE)
            await _maintenance(other).snapshot.change(_slowly("second"))
            await self.close(other)

        async def process() -> None:
            errors.append(await _error_of(interrupt))
            done.set()

        thread = Thread(target=anyio.run, args=(process,), kwargs={"backend": self.event_loops[0]})
        thread.start()
        errors.append(await _error_of(lambda: store.change_state(interrupted)))
        await anyio.to_thread.run_sync(thread.join)
        _must(errors == [None, None], f"changes failed: {errors}")
        found = {window.id for window in (await _read(bench)).windows}
        _must(found == {"first", "second"}, f"a change was lost: only {sorted(found)} is there")

    @_on_each_event_loop
    async def test_a_reader_sees_the_old_or_the_new_state(self, bench: Bench) -> None:
        """While a change is under way a reader sees what was or what will be: never a part, never open in between."""
        bench.needs()
        said: list[dict[str, Any]] = [{}] if bench.flag else [{"message": c * 2000, "by": c} for c in "ab"]
        await bench.maintenance.enable(**said[0])
        reader, wrong = bench.all()[-1], list[object]()

        def whole(switch: Switch | None) -> bool:
            return switch is not None and (bench.flag or {"message": switch.message, "by": switch.by} in said)

        async def watch() -> None:
            pauses = cycle(range(5))
            while True:
                try:
                    state = await reader.snapshot.read()
                except BackendError as error:
                    wrong.append(error)
                else:
                    wrong.extend([] if whole(state.switch) else [state.switch])
                # Of varying length, for event loops that let tasks run in strict turn.
                for _ in range(1 + next(pauses)):
                    await checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            for words, _ in zip(cycle(said), range(40), strict=False):
                await bench.maintenance.enable(**words)
                await checkpoint()
            tasks.cancel_scope.cancel()
        _must(not wrong, f"a reader saw neither the old nor the new state, but {wrong[:3]}")

    @_on_each_event_loop
    async def test_a_cancelled_change_is_whole_or_nothing(self, bench: Bench) -> None:
        """A change that is cancelled, wherever it is, leaves the old or the new state, and the next one works."""
        bench.needs()
        for steps in range(12):
            await _switch(bench.maintenance, on=False)
            await _cancelled_after(steps, bench.maintenance.enable)
            state = await _read(bench)
            _must(state.switch is None or state.switch.is_on(utcnow()), f"cancelled after {steps} steps: {state}")
            await _switch(bench.maintenance, on=True)
            _must((await _read(bench)).switch is not None, f"after a change cancelled after {steps} steps none works")

    @_on_each_event_loop
    async def test_a_change_that_raises_leaves_the_old_state(self, bench: Bench) -> None:
        """When the change itself raises, its error comes out, the old state is there, and the next change works."""
        store = bench.needs()
        await bench.maintenance.enable()
        before = await _read(bench)

        def wrong(state: MaintenanceState) -> MaintenanceState:
            raise ArithmeticError(state.revision)

        _must(isinstance(await _error_of(lambda: store.change_state(wrong)), ArithmeticError), "its error was lost")
        _must(await _read(bench) == before, "a change that raised was stored")
        _must(not (await bench.maintenance.disable()).active, "after a change that raised none works")

    @_on_each_event_loop
    async def test_a_failed_write_leaves_the_old_state(self, bench: Bench) -> None:
        """When the store cannot be written, a change is a `BackendError`, the old state stays, no hold begins."""
        bench.needs()
        context = self.failing_writes(bench.backend)
        if context is None:
            raise SkipTest("failing_writes() arranges none")
        before = await _read(bench)
        with context:
            _must(isinstance(await _error_of(bench.maintenance.enable), BackendError), "a failed write was not told")
            _must(isinstance(await _error_of(bench.maintenance.on().__aenter__), BackendError), "a hold began")
        _must(await _read(bench) == before, "a failed write changed the state")
        _must(not (await bench.maintenance.status()).active, "a failed write is believed")
        _must((await bench.maintenance.enable()).active, "after a failed write none works")

    @_on_each_event_loop
    async def test_a_feed_tells_of_changes(self, bench: Bench) -> None:
        """A store that tells of changes by itself gives the new state without being asked."""
        bench.needs()
        if not isinstance(bench.store, StateFeed):
            raise SkipTest("it does not tell of changes by itself")
        changer, heard, feed = bench.all()[-1], list[MaintenanceState](), bench.store.watch_state()

        async def listen(states: AsyncIterator[MaintenanceState]) -> None:
            async for state in states:
                heard.append(state)

        async def told() -> bool:
            await _switch(changer, on=not (await changer.status()).active)
            return {state.switch is None for state in heard} == {True, False}

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, feed)
            await _soon(told, "of changes from off to on and back it does not tell")
            tasks.cancel_scope.cancel()

    # Holds

    @_on_each_event_loop
    async def test_a_hold_closes_for_the_time_of_its_block(self, bench: Bench) -> None:
        """It is closed inside a hold, which the status names, and open afterwards."""
        async with bench.maintenance.on(mode="read_only", message="moving") as hold:
            status = await bench.maintenance.status()
            _must(status.active, "a hold does not close")
            _must([held.id for held in status.holds] == [hold.id], f"the status names the holds {status.holds}")
        await _left_open(bench)

    @_on_each_event_loop
    async def test_a_hold_is_seen_by_others(self, bench: Bench) -> None:
        """A hold of one object closes another one on the same store, too, and its end opens it."""
        bench.needs()
        other = bench.other()
        async with bench.maintenance.on() as hold:
            status = await _sees(other, active=True)
            named = [held.id for held in status.holds]
            _must(named == ([hold.id] if _carries_holds(bench) else []), f"the other status names the holds {named}")
        await _sees(other, active=False)

    @_on_each_event_loop
    async def test_holds_overlap(self, bench: Bench) -> None:
        """It is closed until the last of several holds ends, in whatever order they end."""
        objects = bench.all() if _carries_holds(bench) else [bench.maintenance]
        for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
            holds = [objects[number % len(objects)].on() for number in range(3)]
            for hold in holds:
                await hold.__aenter__()
            for number in order:
                for maintenance in objects:
                    await _sees(maintenance, active=True)
                await holds[number].__aexit__(None, None, None)
            await _left_open(bench)

    @_on_each_event_loop
    async def test_an_error_of_the_body_comes_out(self, bench: Bench) -> None:
        """The error of a body comes out of its hold as it is, and the hold ends."""
        error = ArithmeticError("the body's own")

        async def fails() -> NoReturn:
            async with bench.maintenance.on():
                raise error

        _must(await _error_of(fails) is error, "another error came out")
        await _left_open(bench)

    @_on_each_event_loop
    async def test_a_failed_hold_can_keep_it_closed(self, bench: Bench) -> None:
        """A hold with `on_failure="keep"` whose body raised stays until `disable()`, and one that succeeds ends."""
        bench.needs()

        async def works(*, well: bool) -> None:
            async with bench.maintenance.on(on_failure="keep"):
                _must(well, "the body fails")

        await works(well=True)
        await _left_open(bench)
        _must(await _error_of(lambda: works(well=False)) is not None, "the body's error was lost")
        for maintenance in bench.all():
            await _sees(maintenance, active=True)
        _must(not (await bench.maintenance.disable()).active, "disable() did not end it")
        await _left_open(bench)

    @_on_each_event_loop
    async def test_the_switch_and_holds_are_independent(self, bench: Bench) -> None:
        """`disable()` ends no hold, and the end of a hold leaves the switch as it was or as it was said meanwhile."""
        bench.needs()
        for before, meanwhile in ((False, None), (True, None), (True, False), (False, True)):
            await _switch(bench.maintenance, on=before)
            async with bench.maintenance.on():
                if meanwhile is not None:
                    await _switch(bench.maintenance, on=meanwhile)
                _must((await bench.maintenance.status()).active, "disable() ended a hold")
            expected = before if meanwhile is None else meanwhile
            for maintenance in bench.all():
                await _sees(maintenance, active=expected)

    @_on_each_event_loop
    async def test_cancelled_holds_leave_nothing(self, bench: Bench) -> None:
        """A hold that is cancelled, wherever it is, leaves nothing behind."""

        async def hold() -> None:
            async with bench.maintenance.on():
                await checkpoint()

        for steps in range(20):
            await _cancelled_after(steps, hold)
            await _left_open(bench)


def _must(condition: bool, message: str) -> None:  # noqa: FBT001 - an assertion that `python -O` keeps
    if not condition:
        raise AssertionError(message)


def _bare(error: Exception) -> Exception:
    """Take an error out of the groups of its tasks where it is the only one."""
    inner = cast("tuple[Exception, ...]", getattr(error, "exceptions", ()))
    return _bare(inner[0]) if len(inner) == 1 else error


def _maintenance(backend: object) -> Maintenance:
    settings = MaintenanceSettings(refresh_interval=REFRESH, read_timeout=PATIENCE)
    return Maintenance(settings, backend=backend, scope="contract")


def _named(on: bool) -> str:  # noqa: FBT001 - its name says it
    return "enable()" if on else "disable()"


def _carries_holds(bench: Bench) -> bool:
    return isinstance(bench.store, HoldStore) and bool(getattr(bench.store, "can_hold", True))


async def _switch(maintenance: Maintenance, *, on: bool) -> MaintenanceStatus:
    return await (maintenance.enable() if on else maintenance.disable())


async def _read(bench: Bench) -> MaintenanceState:
    """Ask the store itself; `BackendError` when it fails or answers no state."""
    return await bench.maintenance.snapshot.read()


async def _error_of(function: Callable[[], Awaitable[object]]) -> BaseException | None:
    try:
        await function()
    except Exception as error:  # noqa: BLE001 - whatever a user's store raises
        return error
    return None


def _slowly(window_id: str) -> Callable[[MaintenanceState], MaintenanceState]:
    """Give a change that takes a moment, so that others come in between where they can: it plans a window."""
    window = Window(id=window_id, start=utcnow() + HOUR, end=utcnow() + 2 * HOUR)

    def edit(state: MaintenanceState) -> MaintenanceState:
        sleep(_MOMENT)
        return state.with_window(window)

    return edit


async def _soon(condition: Callable[[], Awaitable[bool]], message: str) -> None:
    """Wait until a condition is true, at most `PATIENCE` seconds."""
    with anyio.move_on_after(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - what is waited for has no event
            await anyio.sleep(_MOMENT)
        return
    raise AssertionError(message)


async def _sees(maintenance: Maintenance, *, active: bool) -> MaintenanceStatus:
    """Give the status as soon as it is as expected; the refresh is a few milliseconds."""

    async def seen() -> bool:
        return (await maintenance.status()).active is active

    await _soon(seen, f"{PATIENCE:g} s later it is still {'open' if active else 'closed'} for {maintenance!r}")
    return await maintenance.status()


async def _left_open(bench: Bench) -> None:
    """Demand that neither this object, nor another one, nor the store itself has anything left."""
    status = await bench.maintenance.status()
    _must(not status.active, f"it stays closed: {status}")
    _must(status.holds == (), f"holds are left: {status.holds}")
    state = await _read(bench)
    _must(state.switch is None and state.holds == (), f"the store keeps {state}")
    for maintenance in bench.all()[1:]:
        await _sees(maintenance, active=False)


async def _cancelled_after(steps: int, function: Callable[[], Awaitable[object]]) -> None:
    """Run `function`, and cancel it after some steps of the event loop."""

    async def run() -> None:
        with cancelled:
            await function()

    cancelled = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(steps):
            await checkpoint()
        cancelled.cancel()
