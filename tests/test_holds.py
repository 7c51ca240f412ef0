"""Holding it closed for the time of a block: overlaps, failures, cancellation, and stores that carry no holds."""

import asyncio
import errno
import functools
import json
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import anyio
import httpx
import pytest
from fastapi import Depends, FastAPI

from fastapi_maintenance import (
    BackendError,
    Maintenance,
    get_maintenance_mode,
    maintenance_mode_on,
    set_maintenance_mode,
)
from fastapi_maintenance.backends import BaseStateBackend, EnvVarBackend, LocalFileBackend, MemoryBackend
from fastapi_maintenance.holds import hold_template
from fastapi_maintenance.state import OPEN
from tests.redis_servers import needs_redis, redis_server
from tests.servers import PATIENCE, ROOT
from tests.waiting import ends, until


def raise_if(error, wanted):
    """Raise `error` if it is wanted."""
    if wanted:
        raise error


class Flag(BaseStateBackend):
    """A true/false store that keeps the list of what it was told."""

    def __init__(self, value=False):
        self.value = value
        self.told = []

    async def get_value(self):
        return self.value

    async def set_value(self, value):
        await anyio.lowlevel.checkpoint()
        self.told.append(value)
        self.value = value


class Faulty(Flag):
    """A true/false store that hangs or fails when it is told `broken`."""

    broken = None
    hangs = False

    async def set_value(self, value):
        if value is self.broken and self.hangs:
            self.told.append("hanging")
            await anyio.sleep_forever()
        if value is self.broken:
            raise OSError("no route")
        await super().set_value(value)


class Carrier(MemoryBackend):
    """A store that carries holds; `wrong` makes it fail at what it names."""

    wrong = None

    async def take_hold(self, hold):
        if self.wrong == "take":
            raise OSError("no route")
        await super().take_hold(hold)

    async def end_hold(self, hold, *, failed):
        if self.wrong == "end":
            raise OSError("no route")
        await super().end_hold(hold, failed=failed)


def lockless(path):
    """Give a file backend as it is on a system without kernel locks."""
    backend = LocalFileBackend(path / "state")
    backend._gate = None
    return backend


BACKENDS = {
    "env": lambda path: EnvVarBackend(),
    "memory": lambda path: MemoryBackend(),
    "file": lambda path: LocalFileBackend(path / "state"),
    "lockless": lockless,
    "flag": lambda path: Flag(),
}


@pytest.fixture(params=BACKENDS)
def maintenance(request, tmp_path):
    """Give an object on each kind of backend."""
    return Maintenance(backend=BACKENDS[request.param](tmp_path))


@pytest.fixture(params=[name for name in BACKENDS if name != "env"])
def writable(request, tmp_path):
    """Give an object on each kind of backend that can be written."""
    return Maintenance(backend=BACKENDS[request.param](tmp_path))


@pytest.fixture(params=["lockless", "flag"])
def lending(request, tmp_path):
    """Give an object on each kind of store that can be written but carries no holds."""
    return Maintenance(backend=BACKENDS[request.param](tmp_path))


async def active(maintenance):
    """Tell whether it is closed."""
    return (await maintenance.status()).active


def broken(*args):
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, "No room")


# One after the other, inside each other, side by side


@pytest.mark.anyio
async def test_a_hold_closes_for_the_time_of_its_block(maintenance):
    """It is closed inside, with the hold in the status, and open afterwards."""
    async with maintenance.on(message="moving", mode="read_only", by="me") as hold:
        inside = await maintenance.status()
    after = await maintenance.status()
    (held,) = inside.holds
    assert (held.id, held.by, inside.message) == (hold.id, "me", "moving")
    assert (inside.active, inside.since, after.active, after.holds) == (True, held.since, False, ())


@pytest.mark.anyio
async def test_the_functional_hold_closes_the_default_object():
    """`maintenance_mode_on()` holds the default object, as context manager and as decorator."""
    seen = []

    @maintenance_mode_on()
    async def job():
        seen.append(await get_maintenance_mode())

    async with maintenance_mode_on():
        seen.append(await get_maintenance_mode())
    seen.append(await get_maintenance_mode())
    await job()
    seen.append(await get_maintenance_mode())
    assert seen == [True, False, True, False]


@pytest.mark.anyio
async def test_the_functional_hold_takes_a_backend(tmp_path):
    """`maintenance_mode_on(backend)` holds that one, and the default object stays open."""
    backend = LocalFileBackend(tmp_path / "state")
    async with maintenance_mode_on(backend):
        inside = (await get_maintenance_mode(backend), await get_maintenance_mode())
    assert (inside, await get_maintenance_mode(backend)) == ((True, False), False)


@pytest.mark.anyio
async def test_nested_holds_are_closed_until_the_last_one_leaves(maintenance):
    """Leaving the inner block leaves the outer hold as it was."""
    async with maintenance.on() as outer:
        async with maintenance.on() as inner:
            both = [hold.id for hold in (await maintenance.status()).holds]
        one = [hold.id for hold in (await maintenance.status()).holds]
        still = await active(maintenance)
    assert (both, one, still) == ([outer.id, inner.id], [outer.id], True)
    assert not await active(maintenance)


@pytest.mark.anyio
async def test_overlapping_holds_may_leave_in_the_order_they_came(maintenance):
    """The first to come may be the first to leave; it stays closed until the second does."""
    first, second = maintenance.on(), maintenance.on()
    await first.__aenter__()
    await second.__aenter__()
    await first.__aexit__(None, None, None)
    between = await active(maintenance)
    await second.__aexit__(None, None, None)
    assert (between, await active(maintenance)) == (True, False)


@pytest.mark.anyio
async def test_many_tasks_hold_at_once(maintenance):
    """It is never open while any of many tasks holds, and open when all have left."""
    seen = []

    async def work(number):
        for _ in range(3):
            async with maintenance.on():
                await anyio.sleep(0.001 * (number % 3))
                seen.append(await active(maintenance))

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(work, number)
    assert seen == [True] * 24
    assert not await active(maintenance)


def test_threads_with_event_loops_of_their_own_hold_at_once(maintenance):
    """Holds of several threads, each with its own event loop, on asyncio and trio, compose."""

    async def work():
        seen = []
        for _ in range(5):
            async with maintenance.on():
                seen.append(await active(maintenance))
                await anyio.sleep(0.001)
        return seen

    with ThreadPoolExecutor(4) as pool:
        loops = ["asyncio", "trio"] * 2
        seen = list(pool.map(lambda loop: anyio.run(work, backend=loop), loops))
    assert seen == [[True] * 5] * 4
    assert not anyio.run(active, maintenance)


@pytest.mark.anyio
async def test_the_first_hold_sets_and_the_last_puts_back():
    """A true/false store is told once when the first hold comes and once when the last one leaves."""
    store = Flag()
    maintenance = Maintenance(backend=store)
    async with maintenance.on(), maintenance.on(), maintenance.on():
        inside = store.value
    assert (inside, store.told) == (True, [True, False])


# Entering again, decorating


@pytest.mark.anyio
async def test_the_same_object_entered_twice_at_once_is_an_error(maintenance):
    """The second entry is a `RuntimeError`, the first is unharmed, and after leaving it may be entered again."""
    context = maintenance.on()
    async with context as first:
        with pytest.raises(RuntimeError, match="already entered"):
            await context.__aenter__()
        unharmed = [hold.id for hold in (await maintenance.status()).holds]
    between = await active(maintenance)
    async with context as second:
        again = await active(maintenance)
    assert (unharmed, between, again, await active(maintenance)) == ([first.id], False, True, False)
    assert first.id != second.id


@pytest.mark.anyio
async def test_leaving_what_was_not_entered_does_nothing(maintenance):
    """An exit without an entry is no error and changes nothing."""
    async with maintenance.on():
        await maintenance.on().__aexit__(None, None, None)
        assert await active(maintenance)


@pytest.mark.anyio
async def test_a_decorated_function_holds_for_each_call(maintenance):
    """Calls may overlap; arguments, result, name and errors are those of the function."""

    @maintenance.on()
    async def job(depth, *, fail=False):
        """Work."""
        if fail:
            raise KeyError(depth)
        inner = await job(depth - 1) if depth else []
        return [len((await maintenance.status()).holds), *inner]

    assert await job(2) == [1, 2, 3]
    with pytest.raises(KeyError):
        await job(7, fail=True)
    assert (job.__name__, job.__doc__, await active(maintenance)) == ("job", "Work.", False)


@pytest.mark.parametrize(
    "function", [lambda: 1, print, Flag, functools.partial(print)], ids=["def", "builtin", "class", "partial"]
)
def test_only_an_async_def_can_be_decorated(function):
    """Anything else is a `TypeError` that says what to do."""
    with pytest.raises(TypeError, match=r"is not an async def.*write `async def`"):
        Maintenance().on()(function)


# Errors of the body


@pytest.mark.anyio
@pytest.mark.parametrize("error", [KeyError("body"), BackendError("x", "body"), TimeoutError("body")], ids=repr)
async def test_an_error_of_the_body_comes_out_and_the_hold_ends(maintenance, error):
    """The very error of the body comes out, and it is open afterwards."""
    with pytest.raises(type(error)) as caught:
        async with maintenance.on():
            raise error
    assert caught.value is error
    assert not await active(maintenance)


@pytest.mark.anyio
async def test_a_failed_hold_that_keeps_stays_until_disable(writable):
    """With `on_failure="keep"` an orphan stays; another hold does not end it, `disable()` does."""
    with pytest.raises(KeyError):
        async with writable.on(on_failure="keep", message="half done"):
            raise KeyError
    kept = await writable.status()
    async with writable.on():
        pass
    still = await writable.status()
    ended = await writable.disable()
    assert [hold.phase for hold in kept.holds] == ["orphan"]
    assert (kept.message, still.holds, ended.active, ended.holds) == ("half done", kept.holds, False, ())


@pytest.mark.anyio
async def test_disable_ends_an_orphan_where_the_store_cannot_be_written():
    """On the environment an orphan is this process's own, so `disable()` ends it without an error."""
    maintenance = Maintenance(backend=EnvVarBackend())
    with pytest.raises(KeyError):
        async with maintenance.on(on_failure="keep"):
            raise KeyError
    kept = await active(maintenance)
    assert (kept, (await maintenance.disable()).active) == (True, False)


@pytest.mark.anyio
async def test_a_hold_that_keeps_and_succeeds_leaves_nothing(maintenance):
    """`on_failure="keep"` matters only when the body raised."""
    async with maintenance.on(on_failure="keep"):
        inside = await active(maintenance)
    assert (inside, await active(maintenance)) == (True, False)


# The switch meanwhile


@pytest.mark.anyio
async def test_disable_during_a_hold_leaves_it_closed_and_afterwards_open(writable):
    """Turning the switch off never ends a live hold; the switch is off when the hold is over."""
    await writable.enable()
    async with writable.on():
        during = await writable.disable()
    assert (during.active, len(during.holds), await active(writable)) == (True, 1, False)


@pytest.mark.anyio
async def test_enable_during_a_hold_stays_on_afterwards(writable):
    """What an operator turns on during a hold is on after it."""
    async with writable.on():
        await writable.enable()
    after = await writable.status()
    assert (after.active, after.holds, (await writable.disable()).active) == (True, (), False)


@pytest.mark.anyio
async def test_the_older_setter_during_a_hold_acts_as_the_switch(writable):
    """`set_maintenance_mode(False)` inside a hold leaves it closed until the block ends."""
    await set_maintenance_mode(True, writable.backend)
    async with maintenance_mode_on(writable.backend):
        await set_maintenance_mode(False, writable.backend)
        during = await get_maintenance_mode(writable.backend)
    assert (during, await get_maintenance_mode(writable.backend)) == (True, False)


@pytest.mark.anyio
async def test_what_was_on_before_stays_on(writable):
    """A hold inside a closed time leaves it closed."""
    await writable.enable()
    async with writable.on():
        pass
    assert await active(writable)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["file", "lockless", "memory"])
async def test_a_switch_with_more_to_say_is_afterwards_what_it_was(name, tmp_path):
    """Message, mode and end of the switch are afterwards what they were before the holds."""
    maintenance = Maintenance(backend=BACKENDS[name](tmp_path))
    end = datetime.now(UTC) + timedelta(hours=1)
    before = await maintenance.enable(message="soon back", mode="read_only", until=end)
    async with maintenance.on():
        inside = await maintenance.status()
        async with maintenance.on():
            pass
    after = await maintenance.status()
    assert (inside.mode, inside.until) == ("full", None)
    assert (after.message, after.mode, after.until) == (before.message, "read_only", end)


@pytest.mark.anyio
async def test_what_somebody_else_turned_off_meanwhile_stays_off(lending):
    """When the store was turned off from outside during a hold, the last hold does not turn it on again."""
    await lending.enable()
    await lending.disable()
    async with lending.on():
        await lending.backend.set_value(False)
        inside = await active(lending)
    assert (inside, await lending.backend.get_value(), await active(lending)) == (True, False, False)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["file", "lockless"])
async def test_what_somebody_else_said_meanwhile_stays(name, tmp_path):
    """A switch with a message, set by another process during a hold, is on after the hold."""
    maintenance = Maintenance(backend=BACKENDS[name](tmp_path))
    async with maintenance.on():
        await Maintenance(backend=BACKENDS[name](tmp_path)).enable(message="fire")
    assert (await maintenance.status()).message == "fire"


@pytest.mark.anyio
@pytest.mark.parametrize("text", ["0\n", "1\n", '{"team": "ops"}'])
async def test_the_file_lists_a_hold_and_leaves_the_switch_alone(text, tmp_path):
    """Inside, the document holds the hold beside the switch that was there; afterwards only that switch."""
    path = anyio.Path(tmp_path / "state")
    await path.write_text(text)
    maintenance = Maintenance(backend=LocalFileBackend(path))
    before = (await maintenance.backend.read_state()).switch
    async with maintenance.on(message="moving") as hold:
        inside = json.loads(await path.read_text())
        switch = (await maintenance.backend.read_state()).switch
    after = await maintenance.backend.read_state()
    assert [(held["id"], held["message"]) for held in inside["holds"]] == [(hold.id, "moving")]
    assert (inside["switch"] is None, switch, after.switch, after.holds) == (before is None, before, before, ())


@pytest.mark.anyio
async def test_without_kernel_locks_the_file_says_1_during_a_hold_and_0_after(tmp_path):
    """Shell scripts and other workers see the hold as the switch."""
    maintenance = Maintenance(backend=lockless(tmp_path))
    async with maintenance.on():
        inside = await anyio.Path(tmp_path / "state").read_text()
    assert (inside, await anyio.Path(tmp_path / "state").read_text()) == ("1\n", "0\n")


@pytest.mark.anyio
async def test_another_object_on_the_same_file_sees_the_hold(tmp_path):
    """Other workers are closed by the hold while it lives, and it is not theirs to end."""
    one, other = (Maintenance(backend=LocalFileBackend(tmp_path / "state")) for _ in range(2))
    async with one.on() as hold:
        await other.enable()
        inside = await other.disable()
        async with other.on():
            pass
        still = await active(other)
    assert ([held.id for held in inside.holds], still, await active(other)) == ([hold.id], True, False)


@pytest.mark.anyio
@pytest.mark.parametrize("fails", ["os.replace", "fastapi_maintenance.backends.locks.Gate.writing"])
async def test_a_hold_ends_even_when_its_end_cannot_be_written(tmp_path, monkeypatch, fails):
    """What ends it is the lock: everybody is open at once, and the next change forgets it."""
    monkeypatch.setattr("fastapi_maintenance.backends.file.ALIVE_FOR", 1000.0)
    one, other = (Maintenance(backend=LocalFileBackend(tmp_path / "state")) for _ in range(2))
    async with one.on():
        inside = await active(one)
        monkeypatch.setattr(fails, broken)
    after = (inside, await active(one), await active(other))
    monkeypatch.undo()
    await other.enable()
    assert (after, json.loads(await anyio.Path(tmp_path / "state").read_text())["holds"]) == ((True, False, False), [])


@pytest.mark.anyio
async def test_a_hold_that_keeps_stays_when_its_end_cannot_be_written(tmp_path, monkeypatch):
    """It could not be told from one that failed, so it is an orphan, and the error says why."""
    maintenance = Maintenance(backend=LocalFileBackend(tmp_path / "state"))
    context = maintenance.on(on_failure="keep")
    await context.__aenter__()
    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(BackendError, match="cannot be written: No room"):
        await context.__aexit__(None, None, None)
    monkeypatch.undo()
    assert [hold.phase for hold in (await maintenance.status()).holds] == ["orphan"]
    assert not await maintenance.disable()


@pytest.mark.anyio
async def test_an_edit_that_is_tried_again_remembers_the_newest_state():
    """When a store calls the edit again on a newer state, that one is put back, not the older."""

    class Racing:
        state = OPEN
        rivals = [OPEN.switched(datetime.now(UTC), on=True)]  # noqa: RUF012 - used up by the one test

        async def read_state(self):
            return self.state

        async def change_state(self, edit):
            for rival in self.rivals[:]:
                edit(self.state)
                self.rivals.remove(rival)
                self.state = rival
            self.state = edit(self.state)
            return self.state

    maintenance = Maintenance(backend=Racing())
    async with maintenance.on():
        pass
    assert await active(maintenance)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("env", "other processes stay as they are"),
        ("lockless", "leaves it on"),
        ("flag", "leaves it on"),
        ("file", None),
        ("memory", None),
    ],
)
async def test_a_store_that_carries_no_holds_is_named_once(name, said, tmp_path, caplog):
    """That holds are counted in this process only is said once in the log."""
    maintenance = Maintenance(backend=BACKENDS[name](tmp_path))
    for _ in range(3):
        async with maintenance.on():
            pass
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (said is not None)
    assert all("counted in this process only" in message and said in message for message in messages)


@pytest.mark.anyio
async def test_a_hold_on_the_environment_leaves_the_variable_alone(monkeypatch):
    """What the variable says during and after a hold is what it said before, and counts again afterwards."""
    maintenance = Maintenance(backend=EnvVarBackend())
    async with maintenance.on():
        monkeypatch.setenv("FASTAPI_MAINTENANCE_MODE", "read_only")
        inside = await maintenance.status()
    after = await maintenance.status()
    assert (inside.mode, after.mode) == ("full", "read_only")


@pytest.mark.anyio
async def test_a_hold_of_this_process_is_seen_by_every_gate():
    """Whoever was open when last asked sees the hold, too, when another object before the same store has looked."""
    backend = EnvVarBackend()
    objects = [Maintenance(backend=backend) for _ in range(2)]
    apps = [FastAPI(dependencies=[Depends(each.guard)]) for each in objects]
    clients = [httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") for app in apps]
    for app in apps:
        app.get("/x")(lambda: 1)

    async def ask():
        return [(await client.get("/x")).status_code for client in clients * 2]

    before = await ask()
    async with objects[0].on():
        inside = await ask()
    assert (before, inside, await ask()) == ([200] * 4, [503] * 4, [200] * 4)


def test_a_signal_handler_may_ask_while_a_hold_begins(monkeypatch):
    """Whoever interrupts the taking of a hold and asks for the state, as sync code may, gets an answer."""
    maintenance, told = Maintenance(backend=EnvVarBackend()), []
    snapshot = maintenance.snapshot
    look_again = snapshot.look_again

    def interrupted():
        told.append(maintenance.last_known_mode())
        look_again()

    async def hold():
        async with maintenance.on():
            told.append((await maintenance.status()).mode)

    monkeypatch.setattr(snapshot, "look_again", interrupted)
    assert ends(lambda: anyio.run(hold))
    assert told == ["full", "full", None]


# Stores that fail


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["flag", "carrier"])
async def test_a_store_that_fails_on_entering_means_no_hold(kind):
    """The error is a `BackendError`, the body has not run, and nothing is held."""
    store = Faulty() if kind == "flag" else Carrier()
    store.broken, store.wrong = True, "take"
    maintenance = Maintenance(backend=store)
    context = maintenance.on()
    with pytest.raises(BackendError, match="OSError: no route"):
        await context.__aenter__()
    failed = await maintenance.status()
    store.broken = store.wrong = None
    async with context:
        inside = await active(maintenance)
    assert (failed.active, failed.holds, inside, await active(maintenance)) == (False, (), True, False)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["flag", "carrier"])
@pytest.mark.parametrize("body", ["fine", "raises"])
async def test_a_store_that_fails_on_leaving(kind, body, caplog):
    """The failure is raised, or logged when the body raised: that error comes out first."""
    store = Faulty() if kind == "flag" else Carrier()
    maintenance = Maintenance(backend=store)
    raised = KeyError("body")

    async def job():
        async with maintenance.on():
            store.broken, store.wrong = False, "end"
            raise_if(raised, body == "raises")

    with pytest.raises((BackendError, KeyError)) as caught:
        await job()
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert (caught.value is raised) is (body == "raises")
    assert "no route" in errors[0]
    assert len(errors) == 1


@pytest.mark.anyio
async def test_a_store_that_refuses_in_its_own_words_is_heard():
    """A `BackendError` of a store that carries holds comes out as it is."""

    class Refusing(Carrier):
        async def take_hold(self, hold):
            raise BackendError("shelf", "is closed")

    with pytest.raises(BackendError, match=r"^shelf: is closed$"):
        await Maintenance(backend=Refusing()).on().__aenter__()


@pytest.mark.anyio
@pytest.mark.parametrize("body", ["fine", "raises"])
async def test_a_store_that_hangs_on_leaving_does_not_keep_the_caller(body, monkeypatch, caplog):
    """After a while it is a failure like any other, and this process is held no longer."""
    monkeypatch.setattr("fastapi_maintenance.holds.LEAVE_TIMEOUT", 0.05)
    store = Faulty()
    maintenance = Maintenance(backend=store)

    async def job():
        async with maintenance.on():
            store.broken, store.hangs = False, True
            raise_if(KeyError("body"), body == "raises")

    with pytest.raises((BackendError, KeyError)) as caught:
        await job()
    assert isinstance(caught.value, KeyError) is (body == "raises")
    assert "Faulty: no answer within 0.05 s" in caplog.text
    assert (await maintenance.status()).holds == ()


@pytest.mark.anyio
async def test_a_store_that_ended_a_hold_and_cannot_tell_of_it(monkeypatch, caplog):
    """What was ended is told as ended, however long the store took, and though it then hangs when it is asked."""
    monkeypatch.setattr("fastapi_maintenance.holds.LEAVE_TIMEOUT", 0.05)

    class Slow(Carrier):
        hangs = False

        async def end_hold(self, hold, *, failed):
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.1)
                await super().end_hold(hold, failed=failed)
            self.hangs = True

        async def read_state(self):
            if self.hangs:
                await anyio.sleep_forever()
            return await super().read_state()

    caplog.set_level(logging.INFO)
    maintenance = Maintenance(backend=Slow())
    async with maintenance.on():
        pass
    assert [record.what.split(" ", 2)[2] for record in caplog.records if hasattr(record, "what")] == ["begun", "ended"]
    assert [record.levelno for record in caplog.records if record.levelno >= logging.ERROR] == []


FORKED = """
import asyncio, logging, os, threading
from fastapi_maintenance import Maintenance

maintenance = Maintenance()
logging.basicConfig(level=logging.INFO, format="%(what)s", filename=os.environ["LOG"])

def leave_there(context):
    asyncio.run(context.__aexit__(None, None, None))

async def main():
    context = maintenance.on()
    await context.__aenter__()
    child = os.fork()
    if child == 0:
        # The event loop of this thread runs already.
        thread = threading.Thread(target=leave_there, args=(context,))
        thread.start()
        thread.join()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print((await maintenance.snapshot.read()).holds != ())
    await context.__aexit__(None, None, None)
    print((await maintenance.snapshot.read()).holds != ())

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["memory", "file", pytest.param("redis", marks=needs_redis)])
def test_a_hold_is_ended_by_the_process_that_began_it(kind, tmp_path):
    """A child that is forked in a block and leaves it ends nothing, and the log tells of one end."""
    with redis_server(tmp_path) if kind == "redis" else nullcontext() as server:
        backend = {"memory": "memory", "file": f"file:{tmp_path}/state", "redis": server and server.url()}[kind]
        log = tmp_path / "log"
        done = subprocess.run(  # noqa: S603 - this program
            [sys.executable, "-c", FORKED],
            cwd=ROOT,
            env={**os.environ, "FASTAPI_MAINTENANCE_BACKEND": backend, "LOG": str(log)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    assert done.stdout.split() == ["True", "False"]
    assert [line.split()[2] for line in log.read_text().splitlines()] == ["begun", "ended"]


@pytest.mark.anyio
async def test_a_hold_leaves_this_process_even_when_another_one_hangs(monkeypatch):
    """While the store keeps one hold waiting, another one ends for this process all the same."""
    monkeypatch.setattr("fastapi_maintenance.holds.LEAVE_TIMEOUT", 0.05)
    store = Faulty()
    maintenance = Maintenance(backend=store)
    early = maintenance.on()
    await early.__aenter__()
    store.broken, store.hangs = True, True
    async with anyio.create_task_group() as group:
        group.start_soon(maintenance.disable)
        await until(lambda: "hanging" in store.told)
        with pytest.raises(BackendError, match="no answer"):
            await early.__aexit__(None, None, None)
        assert maintenance.snapshot.holds.local == ()
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_second_hold_sets_the_store_when_the_first_one_failed_to():
    """A hold that waited for its turn behind one that failed closes the store itself."""
    store = Faulty()
    store.broken = True
    holds = Maintenance(backend=store).snapshot.holds
    first, second = (hold_template().model_copy(update={"id": name}) for name in ("first", "second"))
    with pytest.raises(BackendError):
        await holds.take(first)
    store.broken = None
    await holds.take(second)
    await holds.end(first, failed=False)
    inside = store.value
    await holds.end(second, failed=False)
    assert (inside, store.value, holds.local) == (True, False, ())


@pytest.mark.anyio
async def test_a_store_that_was_on_before_anybody_looked_stays_on():
    """A hold asks what is there before it borrows the switch."""
    store = Flag(True)
    async with Maintenance(backend=store).on():
        pass
    assert store.value


@pytest.mark.anyio
async def test_a_hold_that_was_broken_off_does_not_keep_the_next_one_from_opening():
    """The first hold told the store and was cancelled; the second one, next in turn, still puts back "off"."""

    class Slow(Flag):
        async def set_value(self, value):
            await super().set_value(value)
            if self.told == [True]:
                await anyio.sleep_forever()

    store = Slow()
    holds = Maintenance(backend=store).snapshot.holds
    first, second = (hold_template().model_copy(update={"id": name}) for name in ("first", "second"))
    async with anyio.create_task_group() as group:
        group.start_soon(holds.take, first)
        await until(lambda: store.told)
        group.cancel_scope.cancel()
    await holds.take(second)
    await holds.end(first, failed=False)
    inside = store.value
    await holds.end(second, failed=False)
    await holds.end(second, failed=False)
    assert (inside, store.value, holds.local) == (True, False, ())


# Cancellation


@pytest.mark.anyio
async def test_cancelling_the_body_ends_the_hold(maintenance):
    """A cancelled task leaves no hold behind."""
    with anyio.move_on_after(0.02) as scope:
        async with maintenance.on():
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert not await active(maintenance)


@pytest.mark.anyio
@pytest.mark.parametrize("value", [True, False])
async def test_cancelling_while_the_store_is_told_leaves_nothing(value):
    """Cancelled on entering or leaving, while the store works, the store says off afterwards and nobody holds."""

    class Slow(Flag):
        async def set_value(self, told):
            await super().set_value(told)
            if told is value and self.told.count(value) == 1:
                working.set()
                await anyio.sleep(0.02)

    working, store = anyio.Event(), Slow()
    maintenance = Maintenance(backend=store)

    async def job():
        async with maintenance.on():
            pass

    async with anyio.create_task_group() as group:
        group.start_soon(job)
        await working.wait()
        group.cancel_scope.cancel()
    status = await maintenance.status()
    assert (store.value, status.active, status.holds) == (False, False, ())


@pytest.mark.anyio
async def test_cancelling_while_waiting_for_a_turn_means_no_hold():
    """A hold that never got its turn leaves the one before it alone."""
    store = Faulty()
    maintenance = Maintenance(backend=store)
    store.broken, store.hangs = True, True
    async with anyio.create_task_group() as group:
        group.start_soon(maintenance.on().__aenter__)
        await until(lambda: store.told)
        with anyio.move_on_after(0.02) as scope:
            await maintenance.on().__aenter__()
        waiting = len(maintenance.snapshot.holds.local)
        group.cancel_scope.cancel()
    assert (scope.cancelled_caught, waiting, (await maintenance.status()).holds) == (True, 1, ())


@pytest.mark.parametrize("name", ["memory", "file", "lockless", "flag"])
@pytest.mark.parametrize("steps", range(12))
def test_a_native_cancellation_at_any_step_leaves_no_hold(name, steps, tmp_path):
    """`task.cancel()`, as `asyncio.timeout` does it, at each step of entering, body and leaving, and twice, too."""

    async def main():
        maintenance = Maintenance(backend=BACKENDS[name](tmp_path))
        context = maintenance.on()

        async def job():
            async with context:
                await asyncio.sleep(0)

        task = asyncio.create_task(job())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        status = await maintenance.status()
        return status.active, status.holds, await maintenance.backend.get_value()

    assert asyncio.run(main()) == (False, (), False)


def test_a_native_cancellation_on_leaving_waits_for_the_store():
    """`asyncio.timeout` around a block that is leaving: the store is told to the end, then the timeout comes out."""

    async def main():
        class Slow(Flag):
            async def set_value(self, value):
                await asyncio.sleep(0 if value else 0.05)
                await super().set_value(value)

        store = Slow()
        maintenance = Maintenance(backend=store)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02), maintenance.on():
                pass
        return store.told, await active(maintenance)

    assert asyncio.run(main()) == ([True, False], False)


def test_a_native_cancellation_outweighs_a_failing_store(caplog):
    """When the store fails while the task is cancelled, the cancellation comes out and the failure is logged."""

    async def main():
        class Slow(Flag):
            async def set_value(self, value):
                await asyncio.sleep(0 if value else 0.02)
                if not value:
                    raise OSError("no route")

        context = Maintenance(backend=Slow()).on()
        await context.__aenter__()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await context.__aexit__(None, None, None)

    asyncio.run(main())
    assert "no route" in caplog.text


@pytest.mark.parametrize("steps", range(6))
def test_a_hold_that_is_left_as_the_event_loop_ends(steps):
    """`asyncio.run` cancels what still runs; a block that is just being left, or not yet, ends its hold anyway."""
    maintenance = Maintenance(backend=MemoryBackend())

    async def work(go):
        async with maintenance.on():
            await go.wait()

    async def main():
        go = asyncio.Event()
        tasks.extend(asyncio.create_task(work(go)) for _ in range(3))
        await until(lambda: len(maintenance.backend.peek_state().holds) == 3)
        go.set()
        for _ in range(steps):
            await asyncio.sleep(0)

    tasks = []
    asyncio.run(main())
    assert maintenance.backend.peek_state().holds == ()


def test_a_file_write_is_not_left_behind_by_a_cancellation(tmp_path, monkeypatch):
    """A thread that writes the hold when the task is cancelled natively does not write after the hold was ended."""
    backend = LocalFileBackend(tmp_path / "state")
    real, writing, release = backend._change, threading.Event(), threading.Event()

    def slow(edit):
        writing.set()
        release.wait(5)
        return real(edit)

    monkeypatch.setattr(backend, "_change", slow)

    async def main():
        maintenance = Maintenance(backend=backend)
        task = asyncio.create_task(maintenance.on().__aenter__())
        await until(writing.is_set)
        task.cancel()
        await asyncio.sleep(0.01)
        waited = not task.done()
        release.set()
        await asyncio.wait([task])
        return waited, task.cancelled(), await active(maintenance), await backend.get_value()

    assert asyncio.run(main()) == (True, True, False, False)


# Arguments


@pytest.mark.parametrize(
    "drain",
    [-1, -0.5, float("nan"), float("inf"), float("-inf"), "3", True, False, b"1", 10**400],
    ids=lambda d: repr(d)[:5],
)
def test_a_wrong_drain_is_an_error_before_anything_happens(drain):
    """Seconds are a number, 0 or more, and nothing else."""
    with pytest.raises(ValueError, match="drain must be seconds, 0 or more"):
        Maintenance(backend=MemoryBackend()).on(drain=drain)


def test_a_drain_refuses_reads_too():
    """A `read_only` hold lets reads run, so it cannot promise that nothing is running."""
    with pytest.raises(ValueError, match="drain= needs mode='full'"):
        Maintenance(backend=MemoryBackend()).on(drain=1, mode="read_only")


@pytest.mark.parametrize("workers", [-1, 1.0, "1", True, None], ids=repr)
def test_min_workers_is_a_whole_number(workers):
    """Anything else is a `ValueError`, even when `drain=` is given as well."""
    with pytest.raises(ValueError, match="min_workers must be a whole number, 0 or more"):
        Maintenance().on(min_workers=workers, drain=1)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"on_failure": "stay"}, ValueError),
        ({"mode": "pause"}, ValueError),
        ({"message": "\x00"}, ValueError),
        ({"message": "x" * 2049}, ValueError),
        ({"message": 5}, TypeError),
        ({"by": "\ud800"}, ValueError),
    ],
    ids=["on_failure", "mode", "control", "long", "number", "surrogate"],
)
def test_wrong_arguments_are_refused_before_the_block(said, error):
    """A wrong argument is an error at `on()`, not on entering."""
    with pytest.raises(error):
        Maintenance().on(**said)


@pytest.mark.anyio
async def test_min_workers_0_is_right():
    """Before the service starts nobody is attached, and that may be said."""
    async with Maintenance().on(min_workers=0) as hold:
        assert not hold.lost


@pytest.mark.anyio
async def test_a_lost_hold_wakes_who_waits_for_it(maintenance):
    """`hold.lost` is false until the backend can no longer vouch for it; `wait_lost()` returns then."""
    woken = []

    async def wait(hold):
        await hold.wait_lost()
        woken.append(hold.lost)

    async with maintenance.on() as hold, anyio.create_task_group() as group:
        group.start_soon(wait, hold)
        await anyio.wait_all_tasks_blocked()
        before = (hold.lost, list(woken))
        hold.lose()
    assert (before, woken) == ((False, []), [True])
