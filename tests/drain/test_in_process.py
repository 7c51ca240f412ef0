"""Draining while tasks and threads begin requests, all in one process: the same check, without servers."""

import asyncio
import threading

import anyio
import pytest

from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware
from fastapi_maintenance.backends import EnvVarBackend, LocalFileBackend, MemoryBackend
from tests.drain.record import REQUESTS, WINDOWS, Record, overlaps, spans
from tests.servers import until

TASKS = 8
HELD = 15


@pytest.fixture(params=["memory", "environment", "file"])
def maintenance(request, tmp_path):
    """Give an object on each backend that can drain."""
    backends = {
        "memory": MemoryBackend,
        "environment": EnvVarBackend,
        "file": lambda: LocalFileBackend(tmp_path / "state"),
    }
    return Maintenance(backend=backends[request.param]())


class Load:
    """Requests through a middleware, recorded while they run, and windows."""

    def __init__(self, maintenance, directory):
        self.maintenance = maintenance
        self.requests, self.windows = Record(directory, REQUESTS), Record(directory, WINDOWS)
        self.served = MaintenanceModeMiddleware(self.work, maintenance=maintenance)
        self.over = False

    async def work(self, scope, receive, send):
        with self.requests.span("task"):
            await anyio.sleep(0.002)

    async def ask(self):
        """Ask again and again until it is over."""
        while not self.over:
            scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
            await self.served(scope, self.nothing, self.nothing)
            await anyio.sleep(0.001)

    async def nothing(self, *_):
        return {"type": "http.disconnect"}

    async def hold(self):
        """Hold some windows, with time for requests between, then say that it is over."""
        for _ in range(HELD):
            async with self.maintenance.on(drain=10):
                with self.windows.span("window"):
                    await anyio.sleep(0.002)
            await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_nothing_runs_in_a_window_of_the_same_loop(maintenance, tmp_path, anyio_backend):
    """Tasks of one event loop, asyncio's or trio's, are drained by one of them."""
    load = Load(maintenance, tmp_path)
    async with anyio.create_task_group() as group:
        for _ in range(TASKS):
            group.start_soon(load.ask)
        await anyio.sleep(0.02)
        await load.hold()
        load.over = True
    judge(tmp_path)


def test_nothing_runs_in_a_window_of_another_thread(maintenance, tmp_path):
    """Threads with event loops of their own are drained by two at once."""
    load = Load(maintenance, tmp_path)
    asking = [threading.Thread(target=asyncio.run, args=(load.ask(),)) for _ in range(TASKS)]
    holding = [threading.Thread(target=asyncio.run, args=(load.hold(),)) for _ in range(2)]
    for thread in asking:
        thread.start()
    until(lambda: maintenance.snapshot.in_flight.running)
    for thread in holding:
        thread.start()
    for thread in holding:
        thread.join()
    load.over = True
    for thread in asking:
        thread.join()
    judge(tmp_path, holders=2)


def judge(directory, holders=1):
    """Check the records."""
    windows, requests = spans(directory, WINDOWS), spans(directory, REQUESTS)
    assert len(windows) == HELD * holders
    assert len(requests) > HELD * TASKS // 4
    assert overlaps(windows, requests) == []
