"""Redis as a backend: pushes, outages, holds that are lost, drains over machines, secrets, forks and settings."""

import functools
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError
from unittest.mock import Mock

import anyio
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from fastapi_maintenance import (
    BackendError,
    DrainIncomplete,
    DrainTimeout,
    Maintenance,
    MaintenanceSettings,
    NoWorkers,
    backends,
    configure_backend,
    get_maintenance,
)
from fastapi_maintenance.backends import RedisBackend
from fastapi_maintenance.backends.redis import replies, urls
from fastapi_maintenance.state import utcnow
from tests.redis_servers import SHORT, Proxy, close, needs_redis, redis, redis_server
from tests.servers import PATIENCE, ROOT

pytestmark = [needs_redis, pytest.mark.anyio]

SECRET = "s3cr3t%2Fpass"  # noqa: S105 - a test's
PLAIN_SECRET = "s3cr3t/pass"  # noqa: S105 - as above

both_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
"""For what waits in the event loop of those who ask; all talking is done in another one."""


@pytest.fixture
def anyio_backend():
    """Run async tests once: the contract of stores is tried on both event loops."""
    return "asyncio"


@pytest.fixture
def server(tmp_path):
    """Give a server of its own."""
    with redis_server(tmp_path, "--appendonly", "yes") as running:
        yield running


@pytest.fixture
def make():
    """Give a function that makes an object on a server; the threads end with the test."""
    made = []

    def maintenance(url, settings=None, **options):
        backend = RedisBackend(url, **{"timeout": 1.5, **options})
        made.append(backend)
        return Maintenance(settings, backend=backend)

    yield maintenance
    close(made)


async def until(condition, seconds=PATIENCE):
    """Wait until `condition` gives something, and give that."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it took too long"
        await anyio.sleep(0.005)
    return found


@asynccontextmanager
async def worker(maintenance):
    """Be a worker, as a lifespan makes one."""
    async with maintenance.lifespan():
        yield maintenance.snapshot.in_flight


def connections(server):
    """Give how many connections of others a server has."""
    with server.client() as client:
        return len(client.client_list()) - 1


# Push


@both_loops
async def test_a_change_is_pushed_in_milliseconds(server, make):
    """What one object changes, another one sees without asking, in far less than a poll takes."""
    here, there = make(server.url()), make(server.url())
    async with worker(there):
        took = []
        for on in (True, False) * 5:
            await (here.enable() if on else here.disable())
            began = time.monotonic()
            await until(lambda on=on: (there.last_known_mode() is not None) is on)
            took.append(time.monotonic() - began)
        assert sorted(took)[5] < 0.2


async def test_reading_creates_nothing(server, make):
    """To ask an empty store for the status leaves it empty."""
    assert not (await make(server.url()).status()).active
    assert server.do("DBSIZE") == 0


async def test_scopes_share_a_connection_and_nothing_else(server, make):
    """Two scopes on one URL are independent switches on one thread's connections."""
    one, other = make(server.url()), make(server.url(), scope="billing")
    async with worker(one), worker(other):
        assert connections(server) <= 3
        await one.enable()
        assert not (await other.status()).active
        await other.enable()
        await one.disable()
        assert (await other.status()).active


async def test_a_process_has_two_connections_and_five_at_most(server, make):
    """A worker hears over one connection and asks over another; many scopes that drain at once share five."""
    many = [make(server.url(lease=2), scope=f"s{number}") for number in range(12)]
    async with worker(many[0]):
        fleet = many[0].backend._fleet
        await until(lambda: fleet._beats > 3)
        assert connections(server) == 2
        counts = []

        async def drains(maintenance):
            async with worker(maintenance), maintenance.on(drain=PATIENCE):
                counts.append(connections(server))

        async with anyio.create_task_group() as tasks:
            for maintenance in many[1:]:
                tasks.start_soon(drains, maintenance)
        assert 2 < max(counts) <= 5


# Outages


async def test_scopes_come_back_together(server, make):
    """When Redis hung up on several scopes at once, one contact for all of them is made, and stays."""
    many = [make(server.url(), scope=f"s{number}") for number in range(3)]
    for maintenance in many:
        await maintenance.enable()
    server.drop_connections()
    for maintenance in many:
        await maintenance.disable()
    before = server.do("INFO", "stats")["total_connections_received"]
    for maintenance in many:
        await maintenance.enable()
    assert server.do("INFO", "stats")["total_connections_received"] <= before + 3


@both_loops
async def test_many_scopes_share_few_connections(server, make):
    """A dozen scopes that all have something to ask at once do not use up the connections of the client."""
    many = [make(server.url(lease=30, max_connections=8), scope=f"s{number}") for number in range(12)]
    async with anyio.create_task_group() as tasks:
        for maintenance in many:
            tasks.start_soon(maintenance.enable)
    assert [maintenance.last_known_mode() for maintenance in many] == ["full"] * 12
    assert connections(server) <= 8


async def test_last_known_state_while_redis_is_dead(server, make, caplog):
    """A dead Redis keeps the last known state: one warning, `stale`, no wait; and one line when it is back."""
    caplog.set_level(logging.INFO)
    maintenance = make(server.url())
    await maintenance.enable()
    server.kill()
    await until(lambda: maintenance.last_known_mode() and maintenance.snapshot.stale is not None)
    began = time.monotonic()
    for _ in range(100):
        assert (await maintenance.status()).active
    assert time.monotonic() - began < 1
    assert (await maintenance.status()).stale > 0
    with pytest.raises(BackendError, match="RedisBackend"):
        await maintenance.disable()
    server.start()
    await until(lambda: maintenance.last_known_mode() and maintenance.snapshot.stale is None)
    assert (await maintenance.status()).active
    lines = [record.message for record in caplog.records if "RedisBackend" in record.message]
    assert [("cannot be read, the last" in line, "again after" in line) for line in lines] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize(("policy", "status"), [("open", 200), ("closed", 503)])
def test_nothing_known_waits_once_and_obeys_the_setting(make, tmp_path, policy, status):
    """A Redis that was never heard costs the first request `read_timeout` at most, and the setting decides."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"
        maintenance = make(url, MaintenanceSettings(on_backend_error=policy, read_timeout=0.3))
        app = FastAPI(dependencies=[Depends(maintenance.guard)])
        app.get("/")(lambda: "hello")
        began = time.monotonic()
        assert TestClient(app).get("/").status_code == status
        assert 0.3 <= time.monotonic() - began < 3
        began = time.monotonic()
        assert TestClient(app).get("/").status_code == status
        assert time.monotonic() - began < 0.3


async def test_an_emptied_store_is_not_off(server, make, caplog):
    """What an emptied store has lost is written again by those who know it, live holds with it."""
    here, there = make(server.url(lease=SHORT)), make(server.url(lease=SHORT))
    async with worker(there):
        await here.enable(message="kept")
        async with here.on() as hold:
            await until(lambda: there.backend.peek_state() == here.backend.peek_state())
            server.do("FLUSHALL")
            end = time.monotonic() + SHORT
            while time.monotonic() < end:
                assert there.last_known_mode() == "full"
                await anyio.sleep(0.02)
            assert not hold.lost
            fresh = await make(server.url(prefix="fastapi_maintenance")).status()
            assert (fresh.message, [held.id for held in fresh.holds]) == ("kept", [hold.id])
        assert [held.id for held in (await here.status()).holds] == []
    assert "has lost revision" in caplog.text


async def test_a_newcomer_finds_closed_what_an_emptied_store_has_forgotten(server, make):
    """Who starts just when the store was emptied lets nobody in while a hold is alive that others know of."""
    here, there, new = (make(server.url(lease=60)) for _ in range(3))
    async with worker(there), here.on() as hold:
        await until(lambda: there.last_known_mode() == "full")
        server.do("FLUSHALL")
        async with worker(new) as in_flight:
            assert in_flight.ready
            assert new.last_known_mode() == "full"
        assert not hold.lost


async def test_a_document_that_cannot_be_read_keeps_the_last_known(server, make):
    """A value of a wrong type, or no document, is a failure and never off; a change does not write over it."""
    maintenance = make(server.url())
    async with worker(maintenance):
        await maintenance.enable()
        server.do("DEL", "{fastapi_maintenance:default}:state")
        server.do("SET", "{fastapi_maintenance:default}:state", "rubbish")
        await until(lambda: maintenance.last_known_mode() and maintenance.snapshot.stale is not None)
        with pytest.raises(BackendError, match="WRONGTYPE"):
            await maintenance.disable()
        assert maintenance.last_known_mode() == "full"
        assert server.do("GET", "{fastapi_maintenance:default}:state") == "rubbish"


async def test_a_scope_that_cannot_be_read_leaves_the_others_alone(server, make):
    """A revision that is no number is a failure of its scope; the connection that others share stays."""
    broken, sound = make(server.url()), make(server.url(), scope="billing")
    await broken.enable()
    await sound.enable()
    server.do("HSET", "{fastapi_maintenance:default}:state", "revision", "many")
    with pytest.raises(BackendError, match="the state cannot be read"):
        await broken.disable()
    assert (await broken.status()).active
    assert sound.backend.peek_state() == await sound.backend.read_state()


async def test_a_black_hole_is_noticed(server, make):
    """A network that swallows everything without closing a connection is an outage as any other."""
    proxy = Proxy(server.port)
    maintenance = make(server.url().replace(str(server.port), str(proxy.port)))
    async with worker(maintenance):
        proxy.open.clear()
        await until(lambda: maintenance.last_known_mode() is None and maintenance.snapshot.stale is not None)
        proxy.open.set()
        await until(lambda: maintenance.last_known_mode() is None and maintenance.snapshot.stale is None)
    proxy.close()


async def test_a_replica_that_was_promoted_without_the_last_write(server, make, tmp_path):
    """A replica that lacks the last write is behind: it is told again, and nobody opens meanwhile."""
    server.do("CONFIG", "SET", "repl-diskless-sync-delay", "0")
    (tmp_path / "replica").mkdir()
    with redis_server(tmp_path / "replica") as replica:
        replica.do("REPLICAOF", "127.0.0.1", str(server.port))
        proxy = Proxy(server.port)
        maintenance = make(server.url().replace(str(server.port), str(proxy.port)))
        await maintenance.enable(message="first")
        await until(lambda: replica.do("HGET", "{fastapi_maintenance:default}:state", "revision") == "1")
        replica.do("REPLICAOF", "NO", "ONE")
        await maintenance.enable(message="second")
        proxy.target = replica.port
        server.kill()
        await until(lambda: "second" in replica.do("HGET", "{fastapi_maintenance:default}:state", "document"))
        assert (await maintenance.status()).message == "second"
    proxy.close()


# Holds


async def test_a_hold_of_a_dead_owner_ends_with_its_lease(server, make):
    """A hold whose process was killed ends by itself; with `keep` it stays until it is turned off."""
    maintenance = make(server.url(lease=SHORT))
    code = (
        "import asyncio, os, signal\nfrom fastapi_maintenance import Maintenance\n"
        "async def main():\n"
        "    maintenance = Maintenance()\n"
        "    async with maintenance.on(on_failure='keep'), maintenance.on():\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())"
    )

    def phases():
        return [hold.phase for hold in maintenance.backend.peek_state().holds]

    async with worker(maintenance):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FASTAPI_MAINTENANCE_BACKEND": server.url(lease=SHORT),
        }
        await anyio.run_process([sys.executable, "-c", code], env=environment, check=False)
        await until(lambda: phases() == ["closed", "closed"])
        await until(lambda: phases() == ["orphan"])
        assert maintenance.last_known_mode() == "full"
        assert not (await maintenance.disable()).active


@both_loops
async def test_a_hold_is_lost_before_its_lease_is_over(server, make):
    """Cut off from Redis, the body is told by a clock, before others may open; the hold then ends with an error."""
    proxy = Proxy(server.port)
    holder = make(server.url(lease=SHORT).replace(str(server.port), str(proxy.port)))
    other = make(server.url(lease=SHORT))
    async with worker(other):
        with pytest.raises(BackendError):  # noqa: PT012 - the error comes as the block ends
            async with holder.on() as hold:
                await until(lambda: other.last_known_mode() == "full")
                proxy.open.clear()
                began = time.monotonic()
                with anyio.fail_after(2 * SHORT):
                    await hold.wait_lost()
                assert hold.lost
                assert time.monotonic() - began < SHORT
                assert other.last_known_mode() == "full"
        await until(lambda: other.last_known_mode() is None)
    proxy.close()


async def test_a_blocked_event_loop_loses_no_hold(server, make):
    """A body that blocks its event loop for longer than a lease keeps its hold: a thread renews it."""
    holder, other = make(server.url(lease=SHORT)), make(server.url(lease=SHORT))
    async with holder.on() as hold:
        time.sleep(1.3 * SHORT)  # noqa: ASYNC251 - as a synchronous migration does
        assert not hold.lost
        assert (await other.status()).active


# Draining


async def test_a_drain_waits_for_every_worker(server, make):
    """`on(drain=)` enters when what runs in another worker has ended, and nothing can begin until it leaves."""
    here, there = make(server.url()), make(server.url())
    async with worker(there) as in_flight:
        assert in_flight.enter("request")
        with pytest.raises(DrainTimeout) as caught:
            await here.on(drain=SHORT).__aenter__()
        assert (caught.value.busy, caught.value.workers, caught.value.pids) == (1, 1, (os.getpid(),))
        assert not (await here.status()).holds
        in_flight.leave("request")
        async with here.on(drain=PATIENCE):
            assert not in_flight.enter("another")
        await until(lambda: in_flight.enter("another"))
        in_flight.leave("another")


async def test_a_worker_that_does_not_answer_is_named(server, make):
    """A worker that is cut off makes the drain incomplete, with its host and process; after a goodbye it does not."""
    proxy = Proxy(server.port)
    here = make(server.url(lease=SHORT))
    there = make(server.url(lease=SHORT).replace(str(server.port), str(proxy.port)))
    async with worker(here), worker(there):
        async with here.on(drain=PATIENCE):
            pass
        proxy.open.clear()
        with pytest.raises(DrainIncomplete) as caught:
            await here.on(drain=PATIENCE).__aenter__()
        assert caught.value.missing == (f"{socket.gethostname()} (pid {os.getpid()})",)
        proxy.open.set()
        await until(lambda: there.last_known_mode() is None and there.snapshot.stale is None)
    with pytest.raises(NoWorkers):
        await here.on(drain=PATIENCE).__aenter__()
    proxy.close()


async def test_who_has_left_lets_nobody_in_unregistered(server, make):
    """A beat that comes back after the goodbye lets no request in: the fleet no longer knows of this worker."""
    maintenance = make(server.url())
    async with worker(maintenance) as in_flight:
        assert in_flight.ready
    in_flight.arrive()
    assert not in_flight.ready
    assert not in_flight.enter("late")


async def test_workers_are_listed(server, make):
    """A worker is known by host, process, version, what it runs and when it was heard; a goodbye strikes it off."""
    here, there = make(server.url()), make(server.url())
    async with worker(there) as in_flight:
        assert in_flight.enter("request")
        in_flight._fleet.hurry()
        await until(lambda: '"in_flight": 1' in server.do("HVALS", "{fastapi_maintenance:default}:records")[0])
        (listed,) = await here.workers()
        assert listed.busy
        assert (listed.pid, listed.host, listed.in_flight) == (os.getpid(), socket.gethostname(), 1)
        assert listed.version
        assert listed.last_beat is not None
        in_flight.leave("request")
    assert await here.workers() == ()


async def test_a_program_without_metadata_is_a_worker(server, make, monkeypatch):
    """Where the package was bundled without its metadata, a worker has no version, and all else works."""
    monkeypatch.setattr(replies, "_version", replies._version.__wrapped__)
    monkeypatch.setattr(replies.importlib.metadata, "version", Mock(side_effect=PackageNotFoundError))
    maintenance = make(server.url())
    async with worker(maintenance):
        (listed,) = await maintenance.workers()
    assert listed.version is None
    assert (await maintenance.status()).stale is None


# Security


ACL = "~{fastapi_maintenance:* &{fastapi_maintenance:* -@all +evalsha +eval +subscribe +unsubscribe +ping \
+time +info +del +hget +hset +hmget +hdel +zadd +zrem +zscore +zrange +zrangebyscore +publish"


def test_the_acl_of_the_readme_is_the_one_that_is_tested():
    """The README lists what the tests use."""
    assert all(rule in (ROOT / "README.md").read_text() for rule in ACL.split())


@both_loops
async def test_a_restricted_user_is_enough(server, make):
    """A user with the commands and key patterns that the README lists can do everything."""
    server.do("ACL", "SETUSER", "gate", "on", f">{PLAIN_SECRET}", *ACL.split())
    url = server.url().replace("redis://", f"redis://gate:{SECRET}@")
    here, there = make(url), make(url)
    async with worker(there):
        await here.enable()
        await until(lambda: there.last_known_mode() == "full")
        await here.disable()
        async with here.on(drain=PATIENCE):
            assert len(await here.workers()) == 1


@pytest.mark.parametrize("how", ["wrong password", "nobody there", "not permitted"])
async def test_secrets_are_never_shown(server, make, caplog, how):
    """Neither an error nor a log line nor a `repr` shows the password, whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    server.do("ACL", "SETUSER", "gate", "on", f">{PLAIN_SECRET}", "+ping")
    password = SECRET if how == "not permitted" else f"{SECRET}x"
    port = str(server.port) if how != "nobody there" else "1"
    url = server.url().replace("redis://", f"redis://gate:{password}@").replace(str(server.port), port)
    maintenance = make(url)
    with pytest.raises(BackendError) as caught:
        await maintenance.enable()
    status = await maintenance.status()
    settings = MaintenanceSettings(backend=url)
    shown = f"{caught.value!r} {caught.value} {maintenance.backend!r} {status} {settings!r} {settings} {caplog.text}"
    assert "s3cr3t" not in shown
    assert "127.0.0.1" in repr(maintenance.backend)


@pytest.mark.parametrize(
    "url",
    [
        f"redis+sentinel://gate:{SECRET}@127.0.0.1:1,127.0.0.1:2/primary/1?sentinel_password={SECRET}",
        f"rediss+sentinel://:{SECRET}@127.0.0.1:1/primary",
        f"redis+cluster://gate:{SECRET}@127.0.0.1:1",
    ],
)
async def test_secrets_of_sentinels_and_clusters_are_never_shown(make, caplog, url):
    """Where no sentinel and no node of a cluster answers, the error names the kind of store and shows no password."""
    caplog.set_level(logging.DEBUG)
    maintenance = make(url, timeout=0.5, lease=SHORT)
    with pytest.raises(BackendError) as caught:
        await maintenance.enable()
    shown = f"{caught.value!r} {caught.value} {maintenance.backend!r} {caplog.text}"
    assert "s3cr3t" not in shown
    assert url.partition(":")[0] in repr(maintenance.backend)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{PLAIN_SECRET}@host/x",
        f"redis://u:{PLAIN_SECRET}",
        f"redis://:{SECRET}@host:port",
        f"redis:{PLAIN_SECRET}",
        f"redis://:{SECRET}#@host",
        f"redis://:{SECRET}@host/0?nonsense",
        f"redis://:{SECRET}@host/0?no_such_option=1",
        f"redis://:{SECRET}@[host/0",
        f"redis+sentinel://:{SECRET}@host",
        f"redis://:{SECRET}@host/{PLAIN_SECRET}",
        f"redis://:{SECRET}@host/0#{PLAIN_SECRET}",
        f"redis://:{SECRET}@host:0",
        f"unix://{PLAIN_SECRET}",
        f"redis://:{SECRET}@host/0?lease=often",
        f"redis://u:123?{PLAIN_SECRET}=1@host",
    ],
)
def test_a_malformed_url_is_not_repeated(url, monkeypatch):
    """An error about a URL never shows it, for a part that looks like a host may belong to a password."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_BACKEND", url)
    with pytest.raises(ValueError, match=r"Redis|lease") as caught:
        Maintenance()
    assert "s3cr3t" not in str(caught.value)


# How it is made


def test_it_is_configured_by_the_environment_and_by_name(server, monkeypatch):
    """The variable, with the scope in the key, and `configure_backend("redis", url=...)` make the same thing."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_BACKEND", server.url())
    plain, billing = Maintenance(), Maintenance(scope="billing")
    assert plain.backend is Maintenance().backend
    assert plain.backend is not billing.backend
    anyio.run(billing.enable)
    configure_backend("redis", url=server.url())
    configured = get_maintenance()
    assert isinstance(configured.backend, RedisBackend)
    assert not anyio.run(configured.status).active
    assert server.do("EXISTS", "{fastapi_maintenance:billing}:state") == 1
    for maintenance in (plain, billing, configured):
        maintenance.backend.close()


def test_a_unix_socket_is_a_url_as_well(tmp_path):
    """A server that listens on a socket in the file system is named by its path."""
    # The path of a socket is short.
    with tempfile.TemporaryDirectory() as folder, redis_server(tmp_path, "--unixsocket", f"{folder}/s") as server:
        backend = RedisBackend(f"unix://{folder}/s?db=2&lease=3")
        assert anyio.run(Maintenance(backend=backend).enable).active
        backend.close()
        assert server.do("INFO", "keyspace").keys() == {"db2"}


def test_a_client_factory_takes_the_place_of_a_url(server):
    """A factory of clients serves as well, and one of both must be given."""
    library = urls.library()
    backend = RedisBackend(client_factory=lambda: library.Redis(port=server.port, decode_responses=True))
    assert anyio.run(Maintenance(backend=backend).enable).active
    backend.close()
    for wrong in ({}, {"url": server.url(), "client_factory": library.Redis}):
        with pytest.raises(TypeError, match="one of them"):
            RedisBackend(**wrong)


def test_without_redis_py_the_error_says_what_to_install(monkeypatch):
    """Where redis-py is missing, making the backend says how to install it; the package itself does without."""
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(BackendError, match=r'pip install "fastapi-maintenance\[redis\]"'):
        RedisBackend("redis://localhost")
    with pytest.raises(AttributeError, match="no attribute 'NoBackend'"):
        backends.NoBackend  # noqa: B018 - asking for it is the test


@pytest.mark.parametrize("option", [{"lease": 0}, {"forget": True}, {"prefix": "a b"}, {"prefix": ""}])
def test_options_out_of_range_are_refused(option):
    """A lease of nothing, or a prefix that would be a pattern, is an error at construction."""
    with pytest.raises(ValueError, match=r"must be"):
        RedisBackend("redis://localhost", **option)


def test_a_fork_begins_anew(server, make):
    """A child of a process that talks to Redis is a worker of its own, with its own thread."""
    code = f"""
import anyio, os, sys
from fastapi_maintenance import Maintenance
maintenance = Maintenance(backend=__import__("fastapi_maintenance.backends").backends.RedisBackend({server.url()!r}))
async def be_a_worker():
    async with maintenance.lifespan():
        return {{worker.pid for worker in await maintenance.workers()}}
async def parent():
    async with maintenance.lifespan():
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
anyio.run(maintenance.enable)
child = os.fork()
if child == 0:
    pids = anyio.run(be_a_worker)
    os._exit(0 if pids == {{os.getpid()}} else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=PATIENCE, check=False
    )
    assert run.returncode == 0


def test_requests_touch_no_socket(server, make, monkeypatch):
    """Once in contact, a request opens, reads and writes no socket of Redis: the thread alone does."""
    maintenance = make(server.url())
    app = FastAPI(dependencies=[Depends(maintenance.guard)], lifespan=maintenance.lifespan)
    app.get("/")(lambda: "hello")
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
        before = server.do("INFO", "commandstats")
        calls = before["cmdstat_evalsha"]["calls"] if "cmdstat_evalsha" in before else 0
        for _ in range(200):
            assert client.get("/").status_code == 200
        after = server.do("INFO", "commandstats")["cmdstat_evalsha"]["calls"]
        assert after - calls < 10


@both_loops
async def test_very_many_holds_of_one_process_at_once(server, make):
    """Holds of one process wait for one another instead of failing, and none is left behind."""
    maintenance = make(server.url(), timeout=10)
    ran = []

    @maintenance.on()
    async def work():
        ran.append(await maintenance.status())

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(work)
    assert (len(ran), all(ran), bool(await maintenance.status())) == (100, True, False)


@both_loops
@pytest.mark.parametrize("away", [False, True])
async def test_a_turn_that_never_comes_is_not_waited_for(server, make, away):
    """Behind a change that never ends, in an event loop that was stopped say, others go on, or say why they cannot."""
    maintenance = make(server.url(), timeout=0.3)
    await maintenance.status()
    fleet = maintenance.backend._fleet
    with fleet._turns._lock:
        if away:
            fleet.lose_contact("it is away")
            with pytest.raises(BackendError, match="it is away"):
                await maintenance.snapshot.change(lambda state: state.switched(utcnow(), on=True))
        else:
            assert (await maintenance.enable()).active


async def test_who_waits_for_a_change_waits_no_longer_than_one_may_take(server, make):
    """When Redis hangs, those who wait behind a change of their process are told so when their own time is over."""
    maintenance = make(server.url(), timeout=1)
    await maintenance.status()
    errors = []

    async def change():
        try:
            await maintenance.snapshot.change(lambda state: state.switched(utcnow(), on=True))
        except BackendError as error:
            errors.append(error)

    began = time.monotonic()
    server.pause()
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(change)
    finally:
        server.resume()
    assert len(errors) == 40
    assert time.monotonic() - began < 20


def test_everything_is_awaited_in_the_thread(server, make):
    """Many changes at once, from an object of its own each, lose nothing."""
    objects = [make(server.url()) for _ in range(3)]

    async def all_at_once():
        async with anyio.create_task_group() as tasks:
            for number in range(9):
                tasks.start_soon(functools.partial(objects[number % 3].enable, message=str(number)))

    anyio.run(all_at_once)
    assert server.do("HGET", "{fastapi_maintenance:default}:state", "revision") == "9"
    assert redis.__version__
