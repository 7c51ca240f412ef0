"""How large a fleet may be, and what a dead Redis costs: `nox -s redis_scale`, against real redis-servers of its own.

Three parts: eight real worker processes (from `on` to the last one refusing), thousands of registered workers that are
played by one process sending what they would send (what a beat, an `on` and a scan cost Redis), and what a request
takes while Redis is dead, in turns with one whose Redis is alive.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from fastapi import FastAPI

from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware
from fastapi_maintenance.backends import RedisBackend
from fastapi_maintenance.backends.redis.scripts import BEAT, CENSUS, LOOK, VOUCH
from tests.bench.figures import percentile
from tests.redis_servers import redis, redis_server
from tests.waiting import until

WORKERS, ROUNDS = 8, 100
PING_EVERY = 5.0
"""Seconds between two pings of a subscription; with a lease of 30 seconds a beat comes about half as often."""

PLACE = "{fastapi_maintenance:default}"
KEYS = [f"{PLACE}:{key}" for key in ("state", "holds", "workers", "acks", "records")]
LEASE = 30_000
"""Milliseconds."""

REQUESTS, BATCH = 20_000, 50
"""Of each application, and in one turn."""

SCOPE = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}

WORKER = """
import asyncio, sys, time
from fastapi_maintenance import Maintenance
from fastapi_maintenance.backends import RedisBackend
from fastapi_maintenance.backends.redis.workers import FleetInFlight
was, bar = False, FleetInFlight.bar
def told(self, holds, end):
    global was
    bar(self, holds, end)
    if was is not bool(holds):
        was = bool(holds)
        print(time.monotonic(), int(was), flush=True)
FleetInFlight.bar = told
async def main():
    maintenance = Maintenance(backend=RedisBackend(sys.argv[1]))
    async with maintenance.lifespan():
        print("ready", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@contextmanager
def own_server(*options):
    """Start a server in a directory of its own, for the time of a block."""
    with tempfile.TemporaryDirectory() as directory, redis_server(Path(directory), *options) as server:
        yield server


def spread(values, unit):
    """Say what is in the middle of some values, and what is above nearly all of them."""
    ordered = sorted(values)
    return f"p50 {percentile(ordered, 0.5):.1f} {unit}, p99 {percentile(ordered, 0.99):.1f} {unit}"


async def eight_workers(url):
    """Give the times from `on` to the last of the workers refusing, in milliseconds."""
    workers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, url, stdout=subprocess.PIPE)
        for _ in range(WORKERS)
    ]
    took, maintenance = [], Maintenance(backend=RedisBackend(url))
    try:
        for worker in workers:
            await worker.stdout.readline()
        await maintenance.status()
        for _ in range(ROUNDS):
            began = time.monotonic()
            async with maintenance.on():
                took.append(1000 * max([await told(worker, 1) for worker in workers]) - 1000 * began)
            for worker in workers:
                await told(worker, 0)
    finally:
        # What it knows, it would write again into a store that is emptied later.
        maintenance.backend.close()
        for worker in workers:
            worker.kill()
            await worker.wait()
    return took


async def told(worker, closed):
    """Wait until a worker says that it is closed, or open; give when it was."""
    while True:
        at, state = (await worker.stdout.readline()).split()
        if int(state) == closed:
            return float(at)


def common(era):
    """Give what every script is told."""
    return ["fresh", era, "-1", str(int(0.4 * LEASE)), "900", ""]


def beat(client, number, beats, era="", promise=""):
    """Send what one worker sends: registered the first time, renewed and promised later."""
    record = json.dumps({"version": "0.1.0", "in_flight": 0})
    worker = f"host-{number // 8}.example:{1000 + number}:{number:08x}"
    client.evalsha(BEAT.sha, 5, *KEYS, *common(era), worker, str(beats), "0", str(LEASE), promise, record)


def all_beat(client, fleet, *said):
    """Send what each worker sends; give the seconds of processor time that Redis uses for it."""
    used = busy(client)
    pipe = client.pipeline(transaction=False)
    for number in range(fleet):
        beat(pipe, number, *said)
        if number % 500 == 499:
            pipe.execute()
    pipe.execute()
    return busy(client) - used


def busy(client):
    """Give the seconds of processor time that Redis has used."""
    info = client.info("cpu")
    return info["used_cpu_sys"] + info["used_cpu_user"]


def simulated(server, fleet):
    """Measure what a fleet of so many workers costs."""
    client = redis.Redis(port=server.port, decode_responses=True)
    client.flushall()
    for script in (BEAT, VOUCH, CENSUS, LOOK):
        client.script_load(script.source)
    empty = client.info("memory")["used_memory"]
    figures = {"workers": fleet}
    all_beat(client, fleet, 1)
    era = client.hget(KEYS[0], "era")
    figures["µs of Redis per beat"] = round(1e6 * all_beat(client, fleet, 2, era) / fleet, 1)
    client.zadd(KEYS[1], {"hold": 4e12})
    figures["ms of Redis for all promises of one on"] = round(1e3 * all_beat(client, fleet, 3, era, "- 1 hold"), 1)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        client.evalsha(VOUCH.sha, 5, *KEYS, *common(era), "hold", str(LEASE), "60000", "1", "0")
        times.append(1000 * (time.perf_counter() - began))
    figures["ms per scan"] = round(statistics.median(times), 2)
    began = time.perf_counter()
    client.evalsha(CENSUS.sha, 5, *KEYS, *common(era), "60000")
    figures["ms per list of workers"] = round(1000 * (time.perf_counter() - began), 1)
    figures["bytes per worker, without its connections"] = round((client.info("memory")["used_memory"] - empty) / fleet)
    client.close()
    return figures


def connected(server, fleet):
    """Give the bytes that the two connections of a worker cost, new and in use, and the milliseconds to publish."""
    client = redis.Redis(port=server.port)

    def each():
        return (client.info("memory")["used_memory"] - before) / fleet

    client.flushall()
    client.script_load(BEAT.source)
    before = client.info("memory")["used_memory"]
    askers = [redis.Redis(port=server.port, single_connection_client=True) for _ in range(fleet)]
    listeners = [asker.pubsub() for asker in askers]
    for number, (asker, listener) in enumerate(zip(askers, listeners, strict=True)):
        listener.subscribe("news")
        beat(asker, number, 1)
    new, used = each(), []
    began = time.monotonic()
    for step in range(4 * fleet):
        time.sleep(max(0.0, began + step * PING_EVERY / fleet - time.monotonic()))
        listeners[step % fleet].ping()
        if step % 2 == 0:
            beat(askers[step // 2 % fleet], step // 2 % fleet, 2)
        # What was new is over then.
        if step > 2 * fleet and step % 10 == 0:
            used.append(each())
    began = time.perf_counter()
    client.publish("news", "x" * 400)
    took = 1000 * (time.perf_counter() - began)
    for opened in (*listeners, *askers, client):
        opened.close()
    memory = {"bytes of both connections, new": round(new), "in use": round(statistics.median(used))}
    return {"workers": fleet, **memory, "ms to publish": round(took, 1)}


async def hello():
    """Answer."""
    return "hello"


async def receive():
    """Give the body of a GET."""
    return {"type": "http.request"}


async def let_through(message):
    """Take an answer, which must be that of the operation."""
    assert message.get("status", 200) == 200


async def batch(app):
    """Give what each of some requests took, in microseconds."""
    took = []
    for _ in range(BATCH):
        began = time.perf_counter()
        await app(SCOPE.copy(), receive, let_through)
        took.append(1e6 * (time.perf_counter() - began))
    return took


async def in_turns(apps):
    """Give what requests to each of two applications took; one, other, other, one, so that no drift favours either."""
    took = [], []
    while len(took[0]) < REQUESTS:
        for number in (0, 1, 1, 0):
            took[number].extend(await batch(apps[number]))
            # Nobody measures what else there is to do in the event loop.
            await asyncio.sleep(0)
    return took


def misses_redis(maintenance):
    """Tell whether a request would find that Redis does not answer."""
    maintenance.last_known_mode()
    return maintenance.snapshot.stale is not None


async def requests_beside_a_dead_redis(servers):
    """Measure requests to an application on each server, while both are alive and when the second one was killed."""
    made, apps = [], []
    async with AsyncExitStack() as stack:
        for server in servers:
            made.append(Maintenance(backend=RedisBackend(f"redis://127.0.0.1:{server.port}")))
            stack.callback(made[-1].backend.close)
            await stack.enter_async_context(made[-1].lifespan())
            apps.append(FastAPI())
            apps[-1].add_middleware(MaintenanceModeMiddleware, maintenance=made[-1])
            apps[-1].get("/")(hello)
        await asyncio.gather(*map(batch, apps))
        alive = await in_turns(apps)
        servers[1].kill()
        await until(lambda: misses_redis(made[1]))
        dead = await in_turns(apps)
        assert list(map(misses_redis, made)) == [False, True]
    return {
        "first, both alive": alive[0],
        "second, both alive": alive[1],
        "first, the second one dead": dead[0],
        "second, which is dead": dead[1],
    }


def main():
    """Measure, and print."""
    with own_server("--maxclients", "5000") as server:
        took = asyncio.run(eight_workers(f"redis://127.0.0.1:{server.port}"))
        print(f"{WORKERS} workers, on to last refusal: {spread(took, 'ms')}")
        for fleet in (100, 1000, 10_000):
            print(simulated(server, fleet))
        print(connected(server, 800))
    with own_server() as first, own_server() as second:
        for which, took in asyncio.run(requests_beside_a_dead_redis([first, second])).items():
            print(f"a request, the state on the {which}: {spread(took, 'µs')}")


if __name__ == "__main__":
    main()
