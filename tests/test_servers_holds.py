"""Holds on real servers: jobs that overlap in two workers, and a worker that is killed inside its hold."""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.servers import PATIENCE, WITH_PID, environment, needs_servers, until

pytestmark = needs_servers

JOBS = (
    """
from pathlib import Path

import anyio
from fastapi import APIRouter, Depends, FastAPI
from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware, force_maintenance_mode_off, maintenance_mode_on

maintenance = Maintenance()
api = FastAPI()
guarded = APIRouter(dependencies=[Depends(maintenance.guard)])
routed = APIRouter(route_class=maintenance.route_class)
mounted = FastAPI()
mounted.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)


async def work(name):
    Path(f"{name}.running").touch()
    while not Path(f"{name}.done").exists():
        await anyio.sleep(0.01)
    return name


@guarded.post("/guard/jobs/{name}")
@routed.post("/route/jobs/{name}")
@mounted.post("/jobs/{name}")
@force_maintenance_mode_off
async def job(name: str):
    async with maintenance_mode_on():
        return await work(name)


@guarded.post("/guard/held/{on_failure}")
@force_maintenance_mode_off
async def held(on_failure: str):
    async with maintenance.on(on_failure=on_failure):
        return await work("held")


guarded.add_api_route("/guard/orders", lambda: "served")
routed.add_api_route("/route/orders", lambda: "served")
mounted.add_api_route("/orders", lambda: "served")
api.include_router(guarded)
api.include_router(routed)
api.mount("/mounted", mounted)
"""
    + WITH_PID
)

OPTIONS = [
    *("--workers", "2", "--no-access-log"),
    # A connection waits until each worker has some.
    *("--timeout-graceful-shutdown", "1", "--timeout-keep-alive", "60"),
]


class Client:
    """A connection that is kept alive, so that one worker answers all that is asked over it."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.calls = []

    def ask(self, method, path):
        """Ask; note and give begin, end, status and body."""
        begin = time.monotonic()
        self.connection.request(method, path)
        response = self.connection.getresponse()
        body = response.read().decode()
        self.pid = int(response.headers["pid"])
        self.calls.append((begin, time.monotonic(), response.status, body))
        return self.calls[-1]

    def count(self, status, since):
        """Count the answers of this status to what was asked since then."""
        return sum(call[2] == status and call[0] >= since for call in self.calls)


@pytest.fixture
def connect():
    """Give a function that opens connections until two workers have three each; they end with the test."""
    clients = []

    def connected(port):
        workers = {}

        def enough():
            client = Client(port)
            clients.append(client)
            client.ask("GET", "/guard/orders")
            workers.setdefault(client.pid, []).append(client)
            return len(workers) == 2 and all(len(known) > 2 for known in workers.values())

        until(enough)
        return [known[:3] for known in workers.values()]

    yield connected
    for client in clients:
        client.connection.close()


class Load:
    """Clients that keep calling, each in a thread, until the end of the block."""

    def __init__(self, clients, path):
        self.clients = clients
        self.path = path
        self.over = threading.Event()
        self.pool = ThreadPoolExecutor(len(clients))

    def call(self, client):
        while not self.over.wait(0.005):
            client.ask("GET", self.path)

    def __enter__(self):
        self.running = [self.pool.submit(self.call, client) for client in self.clients]
        return self

    def __exit__(self, *_):
        self.over.set()
        self.pool.shutdown()
        assert [running.exception() for running in self.running] == [None] * len(self.clients)

    def answers(self, status, count=8):
        """Wait until each client got this answer so many times from now on; give when that began and ended."""
        begin = time.monotonic()
        until(lambda: all(client.count(status, begin) >= count for client in self.clients))
        return begin, time.monotonic()

    def between(self, begin, end):
        """Give the answers to all that was asked and answered between two moments."""
        calls = [call for client in self.clients for call in client.calls]
        return {call[2] for call in calls if call[0] >= begin and call[1] <= end}


@pytest.mark.parametrize(
    ("gate", "workers"),
    [("/guard", "both workers"), ("/route", "both workers"), ("/mounted", "one worker")],
)
def test_two_jobs_that_overlap(serve, connect, tmp_path, gate, workers):
    """Refused by both workers from the first job's hold to the end of the last one's, and served right after."""
    port = serve(JOBS, *OPTIONS, workers=2)
    (first, its_other, one), (second, _, two) = connect(port)
    second = second if workers == "both workers" else its_other

    with ThreadPoolExecutor(2) as jobs, Load([one, two], f"{gate}/orders") as load:
        before = load.answers(200)
        a = jobs.submit(first.ask, "POST", f"{gate}/jobs/a")
        until((tmp_path / "a.running").exists)
        begin, _ = load.answers(503)
        b = jobs.submit(second.ask, "POST", f"{gate}/jobs/b")
        until((tmp_path / "b.running").exists)
        load.answers(503)
        (tmp_path / "a.done").touch()
        ended = a.result(PATIENCE)
        _, end = load.answers(503)
        (tmp_path / "b.done").touch()
        again = b.result(PATIENCE)
        after = load.answers(200)

    assert [call[2:] for call in (ended, again)] == [(200, '"a"'), (200, '"b"')]
    assert ended[1] < end < again[1]
    assert [load.between(*span) for span in (before, (begin, end), (again[1], after[1]))] == [{200}, {503}, {200}]


TURN_OFF = """
import anyio
from fastapi_maintenance import Maintenance

print(len(anyio.run(Maintenance().disable).holds))
"""


def test_a_worker_killed_inside_its_hold(serve, connect, tmp_path):
    """Open again within a second; a hold that asked to be kept stays closed until somebody turns it off."""
    port = serve(JOBS, *OPTIONS, workers=2)

    def kill_the_holder(on_failure):
        ((holder, *_), (caller, *_)) = connect(port)
        with ThreadPoolExecutor(1) as jobs:
            held = jobs.submit(holder.ask, "POST", f"/guard/held/{on_failure}")
            until((tmp_path / "held.running").exists)
            refused = caller.ask("GET", "/guard/orders")[2]
            os.kill(holder.pid, signal.SIGKILL)
            killed = time.monotonic()
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                held.result(PATIENCE)
        (tmp_path / "held.running").unlink()
        return caller, refused, killed

    caller, refused, killed = kill_the_holder("lift")
    opened = until(lambda: (call := caller.ask("GET", "/guard/orders"))[2] == 200 and call)
    assert (refused, opened[1] - killed < 1) == (503, True)

    caller, refused, killed = kill_the_holder("keep")
    while time.monotonic() < killed + 0.5:
        assert caller.ask("GET", "/guard/orders")[2] == 503
    off = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", TURN_OFF], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert (refused, off.stdout, caller.ask("GET", "/guard/orders")[2]) == (503, "0\n", 200)
