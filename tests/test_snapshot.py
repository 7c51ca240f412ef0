"""What a process knows of a distant store: asked in the background, rarely, and never at a request's cost."""

import asyncio
import copy
import logging
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated

import anyio
import anyio.to_thread
import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from fastapi_maintenance import (
    BackendError,
    Maintenance,
    MaintenanceSettings,
    MaintenanceState,
    MaintenanceStatus,
    get_maintenance_mode,
)
from fastapi_maintenance.backends import BaseStateBackend, EnvVarBackend, LocalFileBackend, MemoryBackend
from fastapi_maintenance.snapshot import snapshot_of
from fastapi_maintenance.state import OPEN, utcnow

ON = OPEN.switched(utcnow(), on=True)


class Store:
    """A distant store of documents; `answer` is what each question gets."""

    def __init__(self, state=OPEN):
        self.state = state
        self.asked = 0

    async def read_state(self):
        self.asked += 1
        return await self.answer()

    async def answer(self):
        return self.state

    async def change_state(self, edit):
        self.state = edit(self.state)
        return self.state


class Flag(BaseStateBackend):
    """A distant store of true or false, which counts how often it is asked."""

    def __init__(self, value=False):
        self.value = value
        self.asked = 0

    async def get_value(self):
        self.asked += 1
        return await self.answer()

    async def answer(self):
        return self.value

    async def set_value(self, value):
        self.value = value


@pytest.fixture
def clock(monkeypatch):
    """Give the clock of the snapshot, which stands still until it is moved."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("fastapi_maintenance.snapshot.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def log(caplog):
    """Give the levels of all that was logged from info on."""
    caplog.set_level(logging.INFO, "fastapi_maintenance")
    return lambda: [record.levelname for record in caplog.records]


def watched(store, **settings):
    """Make an object that asks `store` with a generous timeout."""
    return Maintenance(MaintenanceSettings(**{"read_timeout": 5.0, **settings}), backend=store)


async def until(condition):
    """Wait for a condition, at most 5 seconds."""
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.001)


async def look_until(maintenance, condition, clock):
    """Look again and again, one second of the clock later each time, until a status is as wanted."""
    with anyio.fail_after(5):
        while not condition(status := await maintenance.status()):
            clock.now += 1
            await anyio.sleep(0.001)
    return status


async def forever():
    """Answer never."""
    await anyio.sleep_forever()


async def give(value):
    """Answer with something."""
    return value


async def refuse(error):
    """Answer with an error."""
    raise error


# How often it is asked


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Store, Flag])
@pytest.mark.parametrize("late", [False, True], ids=["made with it", "told later"])
async def test_each_object_sees_a_shared_store_within_its_own_interval(kind, late, clock):
    """Requests to one object see a change within its interval, however long another one on the same store waits."""
    store = kind()
    patient = watched(store, refresh_interval=60)
    hasty = watched(MemoryBackend() if late else store, refresh_interval=1)
    if late:
        hasty.use_backend(store)
    apps = []
    for maintenance in (patient, hasty):
        app = FastAPI(dependencies=[Depends(maintenance.guard)])
        app.add_api_route("/", lambda: "open")
        apps.append(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test"))
    for client in apps * 2:
        assert (await client.get("/")).status_code == 200
    store.state, store.value = ON, True
    clock.now += 1.1
    with anyio.fail_after(5):
        while (await apps[1].get("/")).status_code == 200:
            await anyio.sleep(0.001)
    assert store.asked == 2


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Store, Flag])
async def test_a_store_is_asked_once_per_interval(kind, clock):
    """However many look, one question goes out in each `refresh_interval`, and its answer is seen afterwards."""
    store = kind()
    maintenance = watched(store, refresh_interval=2)
    for _ in range(10):
        await maintenance.status()
    clock.now += 1.9
    await maintenance.status()
    first = store.asked
    store.state, store.value = ON, True
    clock.now += 0.1
    before = await maintenance.status()
    await until(lambda: store.asked > 1)
    await anyio.wait_all_tasks_blocked()
    after = [(await maintenance.status()).active for _ in range(10)]
    assert (first, store.asked, before.active, after) == (1, 2, False, [True] * 10)


@pytest.mark.anyio
@pytest.mark.parametrize(("value", "active"), [(1, True), (0, False)])
async def test_a_flag_may_be_one_or_zero(value, active):
    """Stores that count in 1 and 0 are understood; both are known states, not failures."""
    flag = Flag()
    flag.value = value
    status = await Maintenance(backend=flag).status()
    assert (status.active, status.stale) == (active, None)


@pytest.mark.anyio
async def test_a_subclass_of_a_built_in_backend_has_the_last_word():
    """Who overrides `get_value` of a built-in backend is asked, as in the older package."""

    class Always(EnvVarBackend):
        async def get_value(self):
            return True

    assert (await Maintenance(backend=Always()).status()).active


@pytest.mark.anyio
async def test_many_first_looks_share_one_question():
    """All that wait for the first answer wait for the same one."""
    store, release, seen = Store(ON), anyio.Event(), []
    maintenance = watched(store)

    async def answer():
        await release.wait()
        return store.state

    async def look():
        seen.append((await maintenance.status()).active)

    store.answer = answer
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(look)
        await anyio.wait_all_tasks_blocked()
        release.set()
    assert (store.asked, seen) == (1, [True] * 20)


@pytest.mark.anyio
async def test_a_slow_answer_is_waited_for_by_nobody_but_the_first(clock):
    """While a question is under way nobody asks again, and all looks are answered from what is known."""
    store = Store(ON)
    maintenance = watched(store, read_timeout=3600)
    await maintenance.status()
    store.answer = forever
    with anyio.fail_after(5):
        for _ in range(5):
            clock.now += 10
            assert (await maintenance.status()).active
    await until(lambda: store.asked == 2)
    assert (await maintenance.status()).stale is None


@pytest.mark.anyio
@pytest.mark.parametrize("when_unknown", ["open", "closed"])
async def test_the_first_look_waits_no_longer_than_the_timeout(when_unknown, log):
    """A store that hangs from the start is left alone; what to be is what was asked for, and it is said once."""
    store = Store()
    store.answer = forever
    maintenance = watched(store, read_timeout=0.02, on_backend_error=when_unknown)
    with anyio.fail_after(5):
        seen = [await maintenance.status() for _ in range(3)]
    assert [(status.active, status.stale is None) for status in seen] == [(when_unknown == "closed", False)] * 3
    assert (store.asked, log()) == (1, ["WARNING"])


@pytest.mark.anyio
async def test_a_deaf_store_is_noticed_and_asked_no_second_time(clock, log):
    """A store that blocks in a thread cannot be cancelled: it counts as failing, until it answers after all."""
    store, release = Store(ON), threading.Event()
    maintenance = watched(store, read_timeout=2)
    await maintenance.status()

    async def answer():
        await anyio.to_thread.run_sync(release.wait, 10)
        return OPEN

    store.answer = answer
    clock.now += 1
    await maintenance.status()
    await until(lambda: store.asked == 2)
    clock.now += 1.5
    in_time = await maintenance.status()
    clock.now += 1
    late = [await maintenance.status() for _ in range(3)]
    release.set()
    await until(lambda: log() == ["WARNING", "INFO"])
    assert (in_time.stale, [status.active for status in late]) == (None, [True] * 3)
    assert all(status.stale is not None for status in late)
    assert (store.asked, (await maintenance.status()).active) == (2, False)


# What goes wrong

FAILURES = {
    "raises": lambda: refuse(OSError("no route")),
    "raises its own error": lambda: refuse(BackendError("shelf", "is closed")),
    "raises a timeout": lambda: refuse(TimeoutError()),
    "hangs": forever,
    "a string": lambda: give("false"),
    "nothing": lambda: give(None),
    "a number": lambda: give(2),
    "a coroutine": lambda: give(give(True)),
}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Store, Flag])
@pytest.mark.parametrize("failure", FAILURES)
async def test_an_outage_keeps_the_last_known_state(kind, failure, clock, log, caplog):
    """The last known state holds, `stale` counts the seconds, one warning begins the outage and one info ends it."""
    store = kind()
    store.state, store.value = ON, True
    maintenance = watched(store, read_timeout=0.02)
    await maintenance.status()
    healthy = store.answer
    store.answer = FAILURES[failure]
    first = await look_until(maintenance, lambda status: status.stale is not None, clock)
    asked = store.asked
    later = await look_until(maintenance, lambda status: store.asked > asked + 2, clock)
    during = log()
    assert (first.active, later.active, during) == (True, True, ["WARNING"])
    assert later.stale >= first.stale + 2
    assert kind.__name__ in caplog.text or "shelf: is closed" in caplog.text
    store.answer = healthy
    store.state, store.value = OPEN, False
    ended = await look_until(maintenance, lambda status: status.stale is None, clock)
    assert (ended.active, log()) == (False, ["WARNING", "INFO"])


@pytest.mark.anyio
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("when_unknown", ["open", "closed"])
async def test_a_failure_from_the_start_is_what_was_asked_for(failure, when_unknown):
    """While nothing is known of a true/false store, `on_backend_error` decides; nothing raises."""
    store = Flag()
    store.answer = FAILURES[failure]
    status = await watched(store, read_timeout=0.02, on_backend_error=when_unknown).status()
    assert (status.active, status.stale is not None) == (when_unknown == "closed", True)


@pytest.mark.anyio
async def test_a_hold_counts_while_nothing_is_known():
    """A hold on a store that never answered closes this process all the same."""

    class Reader:
        def read_state(self):
            return refuse(OSError("down"))

    maintenance = watched(Reader())
    async with maintenance.on(message="held"):
        held = await maintenance.status()
    after = await maintenance.status()
    assert (held.active, held.message, after.active) == (True, "held", False)


@pytest.mark.anyio
async def test_a_near_backend_that_gives_nonsense_is_a_failure(log):
    """A `peek_state` that gives a coroutine by mistake decides nothing and raises nothing."""

    class Near(Store):
        def peek_state(self):
            return give(ON)

    status = await watched(Near()).status()
    assert (status.active, status.stale is not None, log()) == (False, True, ["WARNING"])


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", ["raises", "nothing"])
async def test_a_change_that_fails_names_the_store(wrong):
    """Whatever `change_state` raises or gives comes out as a `BackendError`."""
    store = Store()
    store.change_state = lambda edit: FAILURES[wrong]()
    with pytest.raises(
        BackendError, match=r"Store: cannot be written: (OSError: no route|TypeError: .* gave NoneType)"
    ):
        await watched(store).enable()
    assert not (await watched(store).status()).active


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", ["raises", "raises its own error", "a string"])
async def test_a_hold_on_a_store_that_cannot_be_read_has_not_begun(wrong):
    """Before a hold turns the switch on, it asks; what fails there is a `BackendError`."""
    store = Store()
    store.answer = FAILURES[wrong]
    with pytest.raises(BackendError, match=r"no route|is closed|gave str"):
        await watched(store).on().__aenter__()
    assert store.state is OPEN


# What is newer wins


@pytest.mark.anyio
@pytest.mark.parametrize("asking", ["a look", "a read"])
async def test_an_answer_older_than_our_change_is_dropped(asking, clock):
    """A question that was under way when this process changed the state does not bring the old state back."""
    store, release = Store(), anyio.Event()
    maintenance = watched(store)
    await maintenance.status()

    async def answer():
        old = store.state
        await release.wait()
        return old

    store.answer = answer
    async with anyio.create_task_group() as group:
        clock.now += asking == "a look"
        group.start_soon(maintenance.status if asking == "a look" else maintenance.snapshot.read)
        await until(lambda: store.asked == 2)
        await maintenance.enable()
        release.set()
        await anyio.wait_all_tasks_blocked()
    assert (await maintenance.status()).active


@pytest.mark.anyio
async def test_a_true_false_store_keeps_since_while_it_says_the_same(clock):
    """The same answer is the same state: revision and `since` stay."""
    store = Flag(True)
    maintenance = watched(store)
    first = await maintenance.status()
    again = await look_until(maintenance, lambda status: store.asked > 3, clock)
    assert (again.since, again.revision) == (first.since, first.revision)


# Feeds


class Feed(Store):
    """A store that tells of changes: `news` gives what each round of listening tells."""

    def __init__(self, *news):
        super().__init__()
        self.news = list(news)
        self.rounds = 0
        self.left = 0

    async def watch_state(self):
        self.rounds += 1
        try:
            for item in self.news.pop(0) if self.news else ():
                yield item() if callable(item) else item
            if not self.news:
                await anyio.sleep_forever()
        finally:
            self.left += 1


def breaks():
    """Break the feed."""
    raise OSError("connection lost")


@pytest.mark.anyio
async def test_a_feed_is_listened_to_during_the_lifespan(clock):
    """What is pushed is seen without a question, and at the end of the lifespan nobody listens any more."""
    feed = Feed([ON])
    maintenance = watched(feed)
    async with maintenance.lifespan():
        await until(lambda: feed.rounds == 1)
        await anyio.wait_all_tasks_blocked()
        pushed = await maintenance.status()
    await until(lambda: feed.left == 1)
    assert (pushed.active, feed.asked, feed.rounds) == (True, 1, 1)


@pytest.mark.anyio
async def test_a_feed_is_asked_again_after_errors(monkeypatch, clock, log):
    """After an error, nonsense or an end it is listened to again; one warning tells of each outage, no look fails."""
    monkeypatch.setattr("fastapi_maintenance.snapshot.FEED_PAUSE", 0.001)
    feed = Feed([breaks], ["nonsense"], [breaks], [ON], [], [breaks], [ON])
    maintenance = watched(feed)
    async with maintenance.lifespan():
        await until(lambda: feed.rounds == 7)
        await anyio.wait_all_tasks_blocked()
        status = await maintenance.status()
    assert (status.active, status.stale, log()) == (True, None, ["WARNING", "WARNING"])


@pytest.mark.anyio
async def test_a_push_is_newer_than_an_answer_under_way(clock):
    """An answer that was asked for before a push does not override it."""
    feed, release = Feed(), anyio.Event()
    maintenance = watched(feed)
    await maintenance.status()

    async def answer():
        await release.wait()
        return OPEN

    async def news():
        await until(lambda: feed.asked == 2)
        yield ON
        release.set()
        await anyio.sleep_forever()

    feed.answer, feed.watch_state = answer, news
    async with maintenance.lifespan():
        clock.now += 1
        await maintenance.status()
        await release.wait()
        await anyio.wait_all_tasks_blocked()
        assert (await maintenance.status()).active


@pytest.mark.anyio
@pytest.mark.parametrize("store", [Store(), Flag(), MemoryBackend()], ids=lambda store: type(store).__name__)
async def test_the_lifespan_asks_first_and_needs_no_feed(store):
    """At start-up the state is known before the first request, twice as well as once."""
    maintenance = watched(store)
    for _ in range(2):
        async with maintenance.lifespan():
            assert not await maintenance.status()
    assert getattr(store, "asked", 1) == 1


# Event loops and contexts


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", [Store, Flag])
def test_each_request_may_have_an_event_loop_of_its_own(loop, kind, clock):
    """With a new event loop for each request the store is asked once per interval, and its answers are seen."""
    store = kind()
    maintenance = watched(store)
    app = FastAPI(dependencies=[Depends(maintenance.guard)])
    app.get("/")(lambda: 1)
    client = TestClient(app, backend=loop)
    codes = [client.get("/").status_code for _ in range(3)]
    store.state, store.value = ON, True
    for _ in range(20):
        clock.now += 1
        codes.append(client.get("/").status_code)
    assert (codes[:3], codes[-1]) == ([200] * 3, 503)
    assert 2 <= store.asked <= 21


def test_a_store_is_asked_outside_of_the_request(clock):
    """A question in the background sees no context of the request that set it off."""
    user = ContextVar("user", default="nobody")
    seen = []

    class Curious(Store):
        async def answer(self):
            seen.append(user.get())
            return OPEN

    maintenance = watched(Curious())
    app = FastAPI()

    @app.get("/")
    async def read(status: Annotated[MaintenanceStatus, Depends(maintenance.status)]):
        user.set("alice")
        await maintenance.status()
        clock.now += 1
        return (await maintenance.status()).active

    with TestClient(app) as client:
        assert [client.get("/").json() for _ in range(2)] == [False, False]
    assert set(seen) == {"nobody"}
    assert len(seen) > 1


# What is a backend, and what is shared


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (object(), "object is no backend"),
        ("file:x", "backend is the string 'file:x'"),
        ({"on": True}, "dict is no backend"),
        (MemoryBackend, r"backend is the class MemoryBackend; give an object of it: MemoryBackend\(...\)"),
        (Store, "backend is the class Store"),
    ],
    ids=["object", "string", "dict", "built-in class", "own class"],
)
def test_what_is_no_backend_is_a_type_error(thing, said):
    """The error tells what to give instead."""
    with pytest.raises(TypeError, match=said):
        Maintenance(backend=thing)


@pytest.mark.parametrize("make", [MemoryBackend, Flag, Store], ids=lambda make: make.__name__)
def test_all_objects_share_what_is_known_of_a_backend(make):
    """One snapshot stands before a backend object, whoever uses it."""
    backend = make()
    assert Maintenance(backend=backend).snapshot is Maintenance(backend=backend).snapshot


@pytest.mark.anyio
@pytest.mark.parametrize("make", [MemoryBackend, Flag], ids=lambda make: make.__name__)
async def test_a_copy_is_a_backend_of_its_own(make):
    """Copying a backend that is in use does not lead back to the first one."""
    first = make()
    await Maintenance(backend=first).status()
    second = copy.copy(first)
    await Maintenance(backend=second).enable()
    assert (await second.get_value(), await first.get_value()) == (True, False)


@pytest.mark.anyio
async def test_a_wrapper_is_asked_itself():
    """An object that passes attributes on to a backend in use is not bypassed."""
    inner = Store()
    await Maintenance(backend=inner).status()

    class Wrapper:
        def __getattr__(self, name):
            return getattr(inner, name)

        def read_state(self):
            return give(ON)

    assert await get_maintenance_mode(Wrapper())


@pytest.mark.anyio
async def test_a_backend_without_room_for_attributes_works():
    """With `__slots__`, or frozen, each object looks by itself, and sees the others' changes within the interval."""

    class Slotted:
        __slots__ = ("state",)

        async def read_state(self):
            return self.state

        async def change_state(self, edit):
            self.state = edit(self.state)
            return self.state

    @dataclass(frozen=True, slots=True)
    class Frozen:
        state: MaintenanceState

        async def read_state(self):
            return self.state

    backend = Slotted()
    backend.state = OPEN
    one, other = watched(backend), watched(backend, refresh_interval=0.001)
    seen = [(await it.status()).active for it in (one, other)]
    seen.append((await one.enable()).active)
    await look_until(other, lambda status: status.active, SimpleNamespace(now=0))
    assert seen == [False, False, True]
    assert await get_maintenance_mode(Frozen(ON))


@pytest.mark.anyio
async def test_nothing_shows_the_repr_of_a_backend(caplog):
    """A repr may hold credentials: logs, errors and reprs name the class."""
    caplog.set_level(logging.DEBUG, "fastapi_maintenance")

    class Secretive(Flag):
        def __repr__(self):
            return "Secretive(password='hunter2')"

        answer = staticmethod(FAILURES["a string"])

        def set_value(self, value):
            return refuse(OSError("no"))

    backend = Secretive()
    maintenance = watched(backend)
    await maintenance.status()
    errors = []
    for change in (maintenance.enable, maintenance.on().__aenter__, lambda: maintenance.enable(message="x")):
        with pytest.raises(BackendError) as caught:
            await change()
        errors.append(str(caught.value))
    said = "\n".join([caplog.text, *errors, repr(maintenance), repr(snapshot_of(backend).backend)])
    assert "hunter2" in repr(backend)
    assert "hunter2" not in said
    assert said.count("Secretive") > 4


@pytest.mark.anyio
async def test_near_backends_need_no_first_look(tmp_path):
    """Environment, memory and file are looked at by each request, and nothing runs in the background for them."""
    for backend in (EnvVarBackend(), MemoryBackend(), LocalFileBackend(tmp_path / "state")):
        snapshot = snapshot_of(backend)
        assert snapshot.near
        assert snapshot.look(1, 1).switch is None


@pytest.mark.anyio
@pytest.mark.parametrize("body_fails", [False, True])
async def test_a_switch_that_could_not_be_given_back_is_given_back_by_the_next_hold(body_fails):
    """A true/false store that failed at the end of one hold is open again after the end of the next one."""

    class Failing(Flag):
        failures = 0

        async def set_value(self, value):
            if not value and self.failures == 0:
                self.failures += 1
                raise OSError("no connection")
            await super().set_value(value)

    async def held(maintenance):
        async with maintenance.on():
            assert 1 / (not body_fails) == 1

    store = Failing()
    maintenance = watched(store)
    with pytest.raises(ZeroDivisionError if body_fails else BackendError):
        await held(maintenance)
    assert (store.value, store.failures) == (True, 1)
    async with maintenance.on():
        assert (await maintenance.status()).active
    assert store.value is False
    assert not (await maintenance.status()).active


def test_a_question_that_died_with_its_event_loop_is_asked_again_in_the_next(clock):
    """Where each event loop ends before the answer, each new one asks, and one that lasts learns the new state."""

    class Slow(Flag):
        async def answer(self):
            value = self.value
            await asyncio.sleep(0.01)
            return value

    async def lasting():
        await until(lambda: maintenance.last_known_mode() == "full")
        return await maintenance.status()

    async def short():
        status = await maintenance.status()
        await asyncio.sleep(0)
        return status

    store = Slow()
    maintenance = watched(store)
    assert not asyncio.run(short()).active
    clock.now += 1
    store.value = True
    for asked in (2, 3, 4):
        assert (asyncio.run(short()).active, store.asked) == (False, asked)
    asyncio.run(short())

    async def asked_again():
        await maintenance.status()
        return await lasting()

    assert asyncio.run(asked_again()).active
    assert store.asked == 6


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Store, Flag])
async def test_during_the_lifespan_a_store_is_asked_without_requests(kind):
    """With a lifespan a change is seen though nobody asks, and afterwards the store is left in peace."""
    store = kind()
    maintenance = watched(store, refresh_interval=0.001)
    async with maintenance.lifespan():
        for state, value, mode in ((ON, True, "full"), (OPEN, False, None), (ON, True, "full")):
            store.state, store.value = state, value
            await until(lambda mode=mode: maintenance.last_known_mode() == mode)
    await until(lambda: not maintenance.snapshot._tasks)
    assert store.asked > 1


@pytest.mark.anyio
async def test_a_store_that_hangs_holds_up_nobody_during_the_lifespan():
    """A store that never answers again blocks neither start, nor looks from loop and thread, nor the end."""
    store = Store(ON)
    maintenance = watched(store, refresh_interval=0.001, read_timeout=3600)
    with anyio.fail_after(5):
        async with maintenance.lifespan():
            store.answer, answered = forever, store.asked
            await until(lambda: store.asked > answered)
            for _ in range(20):
                assert (await maintenance.status()).active
                await anyio.sleep(0.001)
            assert await anyio.to_thread.run_sync(maintenance.last_known_mode) == "full"
    assert store.asked == answered + 1


@pytest.mark.anyio
async def test_a_store_whose_methods_are_not_async_is_told(caplog):
    """A `get_value` that is no `async def` is an error that says how to write it."""

    class Sync(BaseStateBackend):
        def get_value(self):
            return True

        def set_value(self, value):
            """Never called: what to put back is not known."""

    maintenance = watched(Sync())
    text = "TypeError: Sync.get_value() is not `async def`; write it so, and set_value(), too"
    assert not (await maintenance.status()).active
    assert text in caplog.text
    with pytest.raises(BackendError) as caught:
        await maintenance.on().__aenter__()
    assert str(caught.value).endswith(text)


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        ("redis://h/0", r"^backend is the string \.\.\.; write MaintenanceSettings\(backend=\.\.\.\) for a URL$"),
        ("redis:/:s3cret@h", r"^backend is the string \.\.\.; write MaintenanceSettings\(backend=\.\.\.\) for a URL$"),
        ("env", r"^backend is the string 'env'; write MaintenanceSettings\(backend='env'\) for a URL$"),
        (asyncio, "^module is no backend: give "),
    ],
    ids=["URL", "malformed URL", "string", "module"],
)
def test_a_string_or_a_module_is_told_what_to_write(thing, text):
    """A URL or a module in place of a backend is a TypeError with what to give instead."""
    with pytest.raises(TypeError, match=text):
        Maintenance(backend=thing)


def test_a_fork_forgets_the_contact_of_a_thread():
    """A child has no thread that talks to a distant store, so what its parent heard is not its own contact."""
    snapshot = snapshot_of(MemoryBackend())
    snapshot.contacted = True
    snapshot.after_fork()
    near = snapshot.contacted
    snapshot._link = snapshot.backend
    snapshot.after_fork()
    assert (near, snapshot.contacted) == (True, False)
