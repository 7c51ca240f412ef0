"""Redis: what a worker or a hold may rely on when a message was late, a register incomplete, an answer slow."""

import time
from contextlib import asynccontextmanager
from datetime import timedelta

import anyio
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from fastapi_maintenance import (
    DrainIncomplete,
    DrainTimeout,
    DrainWouldDeadlock,
    Maintenance,
    MaintenanceSettings,
)
from fastapi_maintenance.backends import RedisBackend
from fastapi_maintenance.backends.redis.scripts import BEAT, GOODBYE
from fastapi_maintenance.state import utcnow
from tests.redis_servers import Proxy, close, free_port, needs_redis
from tests.waiting import PATIENCE, until

pytestmark = [needs_redis, pytest.mark.anyio]
KEYS = [f"{{fastapi_maintenance:default}}:{key}" for key in ("state", "holds", "workers", "acks", "records")]


@pytest.fixture
def anyio_backend():
    """Run on one event loop: the thread that talks to Redis has its own."""
    return "asyncio"


@pytest.fixture
def make(server):
    """Give a function that makes an object on the server, or on a port before it."""
    made = []

    def maintenance(port=None, lease=1.5, **settings):
        backend = RedisBackend(f"redis://127.0.0.1:{port or server.port}/0?lease={lease}", timeout=1.5)
        made.append(backend)
        return Maintenance(MaintenanceSettings(**settings), backend=backend)

    yield maintenance
    close(made)


@asynccontextmanager
async def proxied(server):
    """Give a way to the server that can be cut."""
    proxy = Proxy(server.port)
    try:
        yield proxy
    finally:
        proxy.close()


def cut_off(proxy, server, *, forgets):
    """Let nothing through any more; Redis may also lose all that it knows."""
    proxy.open.clear()
    if forgets:
        server.do("FLUSHALL")


@pytest.mark.parametrize("forgets", [False, True])
async def test_a_drained_hold_is_lost_before_a_worker_that_is_cut_off_may_open(server, make, forgets):
    """A worker that opens for want of knowledge does so after the body was told, be it that Redis has forgotten it."""
    async with proxied(server) as proxy:
        here, there = make(), make(proxy.port)
        async with there.lifespan():
            in_flight = there.snapshot.in_flight
            async with here.on(drain=PATIENCE) as hold:
                cut_off(proxy, server, forgets=forgets)
                while not hold.lost:
                    assert not in_flight.enter("request")
                    await anyio.sleep(0.01)
                await until(lambda: in_flight.enter("request"))
                in_flight.leave("request")
            proxy.open.set()
            await until(lambda: there.snapshot.last_known() and there.snapshot.stale is None)


@pytest.mark.parametrize(("forgets", "lease"), [(False, 2), (True, 3)])
async def test_workers_that_stay_closed_keep_a_drained_hold(server, make, forgets, lease):
    """With `on_backend_error=closed` a worker that is cut off costs nothing, be it that Redis has forgotten it."""
    async with proxied(server) as proxy:
        here, there = (make(port, lease=lease, on_backend_error="closed") for port in (None, proxy.port))
        async with there.lifespan():
            async with here.on(drain=PATIENCE) as hold:
                cut_off(proxy, server, forgets=forgets)
                end = time.monotonic() + 1.7 * lease
                while time.monotonic() < end:
                    assert not there.snapshot.in_flight.enter("request")
                    await anyio.sleep(0.02)
                assert not hold.lost
                assert there.last_known_mode() == "full"
            proxy.open.set()
            await until(lambda: there.last_known_mode() is None)


async def test_an_emptied_register_is_counted_again_in_time(server, make, monkeypatch):
    """However soon after a renewal it is emptied, it is old enough to be relied on before the hold would be lost."""
    monkeypatch.setattr("fastapi_maintenance.backends.redis.fleet.CHANCE.uniform", lambda _, most: most)
    async with proxied(server) as proxy:
        here, there = make(lease=2.5, on_backend_error="closed"), make(proxy.port, lease=2.5, on_backend_error="closed")
        async with there.lifespan():
            async with here.on(drain=PATIENCE) as hold:
                held = here.backend._fleet._held[hold.id]
                renewed = held.until
                await until(lambda: held.until > renewed + 0.5)
                emptied = held.until
                proxy.open.clear()
                server.do("FLUSHALL")
                await until(lambda: hold.lost or held.until > emptied + 0.5)
                assert not hold.lost
            proxy.open.set()
            await until(lambda: there.last_known_mode() is None)


async def test_a_store_that_somebody_else_has_written_anew_is_believed(server, make):
    """Emptied and written anew, Redis opens who waits for a hold of before; not before its lease, nor much later."""
    async with proxied(server) as proxy:
        holder, there, other = make(proxy.port), make(proxy.port), make()
        async with there.lifespan():
            await holder.on().__aenter__()
            await until(lambda: there.last_known_mode() == "full")
            # As if its process were killed.
            holder.backend._fleet._held.clear()
            holder.backend.close()
            proxy.open.clear()
            server.do("FLUSHALL")
            await other.enable()
            await other.disable()
            proxy.open.set()
            assert (await there.backend.read_state()).holds
            assert not there.snapshot.in_flight.enter("request")
            await until(lambda: there.last_known_mode() is None)
            assert (await there.enable()).active


async def test_a_hold_is_written_into_a_store_that_somebody_else_has_written_anew(server, make):
    """Its owner writes it again before it is lost, and who knew of it opens for no moment in between."""
    async with proxied(server) as proxy:
        here, other = make(proxy.port, lease=3), make(lease=3)
        async with here.lifespan():
            async with here.on() as hold:
                proxy.open.clear()
                server.do("FLUSHALL")
                await other.enable()
                await other.disable()
                proxy.open.set()
                written_again = False
                while not written_again:
                    await anyio.sleep(0.01)
                    assert not hold.lost
                    assert not here.snapshot.in_flight.enter("request")
                    written_again = server.do("ZCARD", KEYS[1]) == 1
            assert not (await here.status()).active


async def test_who_knew_less_writes_nothing_over_who_knew_more(server, make):
    """Who writes an emptied store again without knowing the last change is behind him who does, and undoes nothing."""
    async with proxied(server) as proxy, proxied(server) as another:
        here, there = make(proxy.port), make(another.port)
        async with here.lifespan(), there.lifespan():
            await there.enable()
            await until(lambda: here.last_known_mode() == "full")
            proxy.open.clear()
            await there.disable()
            another.open.clear()
            server.do("FLUSHALL")
            proxy.open.set()
            await until(lambda: server.do("HEXISTS", KEYS[0], "document"))
            another.open.set()
            await until(lambda: server.do("HGET", KEYS[0], "revision") == "2")
            await until(lambda: here.last_known_mode() is None)
            assert (await there.backend.read_state()).switch is None


async def test_a_newcomer_that_changes_an_emptied_store_asks_the_others_first(server, make):
    """The first change after Redis was emptied is one of what was known before, though no beat has written it again."""
    here, newcomer = make(lease=60), make(lease=60)
    async with here.lifespan():
        await here.enable(message="known")
        await until(lambda: here.snapshot.in_flight.ready)
        server.do("FLUSHALL")
        now = utcnow()
        await newcomer.schedule(now + timedelta(hours=1), now + timedelta(hours=2))
        state = await newcomer.backend.read_state()
        assert (state.switch.message, len(state.windows)) == ("known", 1)
        assert here.last_known_mode() == "full"


async def test_a_hold_is_told_when_a_promise_ends_before_its_lease(server, make):
    """A worker that was cut off while others were waited for opens soon: whoever watches the hold is told before."""
    async with proxied(server) as proxy:
        here, busy, cut = make(lease=3), make(lease=3), make(proxy.port, lease=3)
        async with cut.lifespan(), busy.lifespan(), anyio.create_task_group() as tasks:
            assert busy.snapshot.in_flight.enter("request")
            told = []

            async def cut_off():
                await until(lambda: any(ack.split()[1] == "1" for ack in server.do("HVALS", KEYS[3])))
                proxy.open.clear()
                end = cut.snapshot.in_flight._bar_end
                await until(lambda: time.monotonic() > end - 0.7)
                busy.snapshot.in_flight.leave("request")

            tasks.start_soon(cut_off)
            async with here.on(drain=PATIENCE) as hold:
                here.backend.watch_hold(hold.id, lambda: told.append(time.monotonic()))
                held = here.backend._fleet._held[hold.id]
                await until(lambda: told)
                assert told[0] - held.until < 0.5
            proxy.open.set()


async def test_however_many_are_forgotten_keep_nobody_from_draining(server, make):
    """Workers that went without a goodbye long ago are not waited for, and no error names them."""
    here = make()
    gone = {f"host:{pid}:gone": 1 for pid in range(250)}
    async with here.lifespan():
        with server.client() as client:
            client.zadd(KEYS[2], gone)
        async with here.on(drain=PATIENCE):
            assert not here.snapshot.in_flight.enter("request")


async def test_an_emptied_store_knows_its_server(server, make):
    """So that another one in its place is noticed, although nobody has joined or drained since it was emptied."""
    here = make()
    async with here.lifespan():
        server.do("FLUSHALL")
        await until(lambda: server.do("ZCARD", KEYS[2]))
        assert server.do("HGET", KEYS[0], "run") == server.do("INFO", "server")["run_id"]


async def test_a_goodbye_that_was_held_up_strikes_nobody_off(server, make):
    """A worker that has said goodbye and is back stays registered when an older goodbye arrives."""
    maintenance = make()
    fleet = maintenance.backend._fleet
    for _ in range(2):
        async with maintenance.lifespan():
            number = fleet._beats
    async with maintenance.lifespan():
        with server.client() as client:
            common = ["fresh", "", "-1", "600", "45", ""]
            assert client.eval(GOODBYE.source, 5, *KEYS, *common, fleet._id, number) == 0
        assert len(await maintenance.workers()) == 1
    assert await maintenance.workers() == ()


async def test_a_beat_that_was_held_up_changes_nothing(server, make):
    """What a worker said later is not overwritten by what it said before."""
    maintenance = make()
    fleet = maintenance.backend._fleet
    async with maintenance.lifespan():
        await until(lambda: fleet._registered)
        with server.client() as client:
            common = ["fresh", "", "-1", "600", "45", ""]
            late = client.eval(BEAT.source, 5, *KEYS, *common, fleet._id, 0, 0, 1500, "- 1 ghost", "{}")
            assert (late[0], client.hgetall(KEYS[3])) == (0, {})


async def test_two_backends_of_one_store_know_that_they_would_wait_for_each_other(make):
    """A drain inside a counted request is an error at once, through another object of the same state as well."""
    outer, inner = make(), make()
    app = FastAPI(dependencies=[Depends(outer.guard)])
    told = []

    @app.get("/")
    async def drain():
        with pytest.raises(DrainWouldDeadlock):
            await inner.on(drain=1).__aenter__()
        told.append(await inner.status())

    assert TestClient(app).get("/").status_code == 200
    assert [status.active for status in told] == [False]


async def test_a_slow_count_does_not_use_up_the_time_of_a_drain(make, monkeypatch):
    """However long one answer took, the fleet is counted again soon."""
    here, there = make(), make()
    fleet = here.backend._fleet
    vouch, counts = fleet._vouch, []

    async def slow(held, *, scan):
        silent = await vouch(held, scan=scan)
        if scan and not held.drained:
            counts.append(time.monotonic())
            if len(counts) == 1:
                await anyio.sleep(0.3)
        return silent

    monkeypatch.setattr(fleet, "_vouch", slow)
    async with there.lifespan():
        in_flight = there.snapshot.in_flight
        await until(lambda: in_flight.enter("request"))
        with pytest.raises((DrainTimeout, DrainIncomplete)):
            await here.on(drain=1.5).__aenter__()
        in_flight.leave("request")
    assert len(counts) > 2


async def test_what_is_missing_from_a_new_register_is_said(server, make):
    """Right after Redis was emptied it cannot know all workers: the error says that, and a later try enters."""
    here, there = make(lease=6), make(lease=6)
    async with there.lifespan():
        with pytest.raises(DrainIncomplete, match=r"Redis began or restarted, less than 2\.4 s ago"):
            await here.on(drain=0.5).__aenter__()
        async with here.on(drain=PATIENCE):
            assert not there.snapshot.in_flight.enter("request")


@pytest.mark.parametrize("policy", ["open", "closed"])
def test_without_redis_a_start_waits_once(make, policy):
    """The lifespan's wait is the only one: the first request after it is answered at once."""
    maintenance = make(free_port(), on_backend_error=policy, read_timeout=0.9)
    app = FastAPI(dependencies=[Depends(maintenance.guard)], lifespan=maintenance.lifespan)
    app.get("/")(lambda: "hello")
    with TestClient(app) as client:
        began = time.monotonic()
        assert client.get("/").status_code == {"open": 200, "closed": 503}[policy]
        assert time.monotonic() - began < 0.5


async def test_who_stays_closed_lets_nobody_in_before_the_fleet_knows_of_it(server, make):
    """With `on_backend_error=closed` the wait may end, but who is not registered counts no request in."""
    async with proxied(server) as proxy:
        proxy.open.clear()
        maintenance = make(proxy.port, on_backend_error="closed", read_timeout=0.1)
        app = FastAPI(dependencies=[Depends(maintenance.guard)])
        app.get("/")(lambda: "hello")
        in_flight = maintenance.snapshot.in_flight
        assert TestClient(app).get("/").status_code == 503
        assert not in_flight.enter("request")
        proxy.open.set()
        await until(lambda: in_flight.enter("request"))
        assert server.do("ZCARD", KEYS[2]) == 1
        in_flight.leave("request")
