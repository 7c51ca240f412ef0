"""How large a fleet may be: `nox -s redis_scale`, against a real redis-server of its own.

Two parts: eight real worker processes (from `on` to the last one refusing), and thousands of registered workers that
are played by one process sending what they would send (what a beat, an `on` and a scan cost Redis).
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastapi_maintenance import Maintenance
from fastapi_maintenance.backends import RedisBackend
from fastapi_maintenance.backends.redis.scripts import BEAT, CENSUS, LOOK, VOUCH
from tests.redis_servers import redis, redis_server

WORKERS, ROUNDS = 8, 100
PLACE = "{fastapi_maintenance:default}"
KEYS = [f"{PLACE}:{key}" for key in ("state", "holds", "workers", "acks", "records")]
LEASE = 30_000

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


def share(values, part):
    """Give the value below which `part` of the values are."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


async def eight_workers(url):
    """Give the times from `on` to the last of the workers refusing, in milliseconds."""
    workers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, url, stdout=subprocess.PIPE)
        for _ in range(WORKERS)
    ]
    took = []
    try:
        for worker in workers:
            await worker.stdout.readline()
        maintenance = Maintenance(backend=RedisBackend(url))
        await maintenance.status()
        for _ in range(ROUNDS):
            began = time.monotonic()
            async with maintenance.on():
                took.append(1000 * max([await told(worker, 1) for worker in workers]) - 1000 * began)
            for worker in workers:
                await told(worker, 0)
    finally:
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


def beat(pipe, number, hold=""):
    """Send what one worker sends: registered the first time, renewed and promised later."""
    promise = f"- 1 {hold}" if hold else ""
    record = json.dumps({"version": "0.1.0", "in_flight": 0})
    common = ["fresh", pipe.era, "-1", str(int(0.4 * LEASE)), "900", pipe.stamp]
    worker = f"host-{number // 8}.example:{1000 + number}:{number:08x}"
    pipe.evalsha(BEAT.sha, 5, *KEYS, *common, worker, str(pipe.number), "0", str(LEASE), promise, record)


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
    pipe = client.pipeline(transaction=False)
    pipe.era = pipe.stamp = ""
    for pipe.number in (1, 2):
        used = busy(client)
        for number in range(fleet):
            beat(pipe, number)
            if number % 500 == 499:
                pipe.execute()
        pipe.execute()
    figures["µs of Redis per beat"] = round(1e6 * (busy(client) - used) / fleet, 1)
    client.zadd(KEYS[1], {"hold": 4e12})
    pipe.era, pipe.number = client.hget(KEYS[0], "era"), 3
    used = busy(client)
    for number in range(fleet):
        beat(pipe, number, "hold")
        if number % 500 == 499:
            pipe.execute()
    pipe.execute()
    figures["ms of Redis for all promises of one on"] = round(1e3 * (busy(client) - used), 1)
    common = ["fresh", pipe.era, "-1", str(int(0.4 * LEASE)), "900", ""]
    times = []
    for _ in range(20):
        began = time.perf_counter()
        client.evalsha(VOUCH.sha, 5, *KEYS, *common, "hold", str(LEASE), "60000", "1", "0")
        times.append(1000 * (time.perf_counter() - began))
    figures["ms per scan"] = round(statistics.median(times), 2)
    began = time.perf_counter()
    client.evalsha(CENSUS.sha, 5, *KEYS, *common, "60000")
    figures["ms per list of workers"] = round(1000 * (time.perf_counter() - began), 1)
    figures["bytes per worker"] = round((client.info("memory")["used_memory"] - empty) / fleet)
    client.close()
    return figures


def subscribers(server, count):
    """Give the bytes that a subscribed connection costs, and the milliseconds to publish to so many."""
    client = redis.Redis(port=server.port, max_connections=count + 10)
    before = client.info("memory")["used_memory"]
    listeners = [client.pubsub() for _ in range(count)]
    for listener in listeners:
        listener.subscribe("news")
    memory = (client.info("memory")["used_memory"] - before) / count
    began = time.perf_counter()
    client.publish("news", "x" * 400)
    took = 1000 * (time.perf_counter() - began)
    for listener in listeners:
        listener.close()
    client.close()
    return {"subscribers": count, "bytes each": round(memory), "ms to publish": round(took, 1)}


def main():
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as directory, redis_server(Path(directory), "--maxclients", "5000") as server:
        took = asyncio.run(eight_workers(f"redis://127.0.0.1:{server.port}"))
        print(f"{WORKERS} workers, on to last refusal: p50 {share(took, 0.5):.1f} ms, p99 {share(took, 0.99):.1f} ms")
        for fleet in (100, 1000, 10_000):
            print(simulated(server, fleet))
        print(subscribers(server, 800))


if __name__ == "__main__":
    main()
