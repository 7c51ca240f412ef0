"""A user's store that hangs, raises, answers rubbish or flaps: no request fails, none waits, the log tells once."""

import http.client
import importlib.util
import json
import logging
import re
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

import anyio
import httpx
import pytest

from tests.servers import PATIENCE, needs_servers, until

PATHS = ["/guard", "/route", "/mounted/x"]

STORE = """
import logging, threading
from typing import Annotated

import anyio, anyio.to_thread
from fastapi import APIRouter, Depends, FastAPI
from fastapi_maintenance import (
    Maintenance, MaintenanceModeMiddleware, MaintenanceSettings, MaintenanceStatus, force_maintenance_mode_off
)
from fastapi_maintenance.backends import BaseStateBackend


class Store(BaseStateBackend):
    how, value, asked, hanging, outages, failing = "works", False, 0, 0, 0, False
    released = threading.Event()

    async def get_value(self):
        self.asked += 1
        failing = self.how != "works" and (self.how != "flaps" or self.asked % 4 < 2)
        self.outages += failing and not self.failing
        self.failing = failing
        return await self.fail() if failing else self.value

    async def fail(self):
        self.hanging += 1
        try:
            if self.how == "hangs":
                await anyio.sleep(30)
            if self.how == "hangs in a thread":
                await anyio.to_thread.run_sync(self.released.wait, 30)
        finally:
            self.hanging -= 1
        if self.how == "answers rubbish":
            return "false"
        raise OSError("no route")

    async def set_value(self, value):
        self.value = value


def app_on(store, **settings):
    maintenance = Maintenance(MaintenanceSettings(**settings), backend=store)
    app = FastAPI()
    guarded = APIRouter(dependencies=[Depends(maintenance.guard)])
    routed = APIRouter(route_class=maintenance.route_class)
    mounted = FastAPI()
    mounted.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    guarded.add_api_route("/guard", lambda: "served")
    routed.add_api_route("/route", lambda: "served")
    mounted.add_api_route("/x", lambda: "served")

    @guarded.get("/status")
    @force_maintenance_mode_off
    async def status(now: Annotated[MaintenanceStatus, Depends(maintenance.status)]):
        return {"active": now.active, "stale": now.stale, "asked": store.asked, "outages": store.outages}

    @guarded.post("/store")
    @force_maintenance_mode_off
    async def command(how: str, value: bool):
        store.how, store.value = how, value
        (store.released.set if how == "works" else store.released.clear)()

    app.include_router(guarded)
    app.include_router(routed)
    app.mount("/mounted", mounted)
    return app
"""
SERVED = (
    STORE
    + """

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
app = app_on(Store(), refresh_interval=0.05, read_timeout=1.0)
"""
)

TROUBLES = {"hangs": False, "hangs in a thread": True, "raises": False, "answers rubbish": True, "flaps": False}
"""What a store does, and whether it said before that it is closed."""

QUESTIONS = {"hangs": 2, "hangs in a thread": 0}
"""How often they are asked again in an outage: each question takes its time, or all of it; the others 12 times."""


def pairs(trouble, outages):
    """Give the levels that the log has for so many outages; only a store that flaps has several."""
    assert outages >= 3 if trouble == "flaps" else outages == 1
    return ["WARNING", "INFO"] * outages


# A real server


class Client:
    """A connection that is kept alive."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def ask(self, path, method="GET"):
        """Give status, body and how long it took."""
        begin = time.monotonic()
        self.connection.request(method, path)
        response = self.connection.getresponse()
        body = response.read()
        return response.status, body, time.monotonic() - begin


@pytest.fixture
def connect(serve, tmp_path):
    """Give connections to a server with a store that can be told how to fail."""
    port = serve(SERVED, "--no-access-log")
    clients = [Client(port) for _ in range(5)]
    yield clients
    clients[0].ask("/store?how=works&value=0", "POST")
    for client in clients:
        client.connection.close()


def load(clients, enough):
    """Call all gates over each connection, some hundred times, until it is `enough`; give statuses and times."""
    over = threading.Event()

    def call(client):
        answers, paths = [], cycle(PATHS)
        while not over.wait(0.01) or len(answers) < 60:
            answers.append(client.ask(next(paths)))
        return answers

    with ThreadPoolExecutor(len(clients)) as pool:
        running = [pool.submit(call, client) for client in clients]
        try:
            until(enough)
        finally:
            over.set()
    answers = [answer for each in running for answer in each.result()]
    return {status for status, *_ in answers}, [seconds for *_, seconds in answers]


def told(path):
    """Give the levels of what the package logged of its store, line by line."""
    lines = re.findall(r"^(WARNING|INFO) fastapi_maintenance (.*)$", path.read_text(), re.MULTILINE)
    assert all("Maintenance backend Store" in text for _, text in lines)
    return [level for level, _ in lines]


@needs_servers
@pytest.mark.parametrize(("trouble", "closed"), TROUBLES.items())
def test_under_load(connect, tmp_path, trouble, closed):
    """No request gets a 500 or waits, an open endpoint tells of the outage, the log has one line for each end of it."""
    control, *clients = connect

    def status():
        return json.loads(control.ask("/status")[1])

    def tell(how):
        control.ask(f"/store?how={how.replace(' ', '%20')}&value={int(closed)}", "POST")
        return status()["asked"]

    def asked_since(before, times):
        return status()["asked"] >= before + times

    before = tell("works")
    until(lambda: status()["active"] is closed)
    healthy, usual = load(clients, lambda: asked_since(before, 8))
    quiet = told(tmp_path / "log")

    before = tell(trouble)
    times = QUESTIONS.get(trouble, 12)
    failing, slower = load(
        clients, lambda: asked_since(before, times) and (trouble == "flaps" or (status()["stale"] or 0) > 0.5)
    )
    during = told(tmp_path / "log")

    tell("works")
    until(lambda: status()["stale"] is None)
    again, _ = load(clients, lambda: True)

    assert (healthy, failing, again) == (({503} if closed else {200}),) * 3
    assert max(slower) < 0.5, "a request that waits for the store takes a second"
    assert statistics.median(slower) < 5 * statistics.median(usual) + 0.005
    assert (quiet, during[:1]) == ([], ["WARNING"])
    assert told(tmp_path / "log") == pairs(trouble, status()["outages"])


# In process, on asyncio and trio


@pytest.fixture
def module(tmp_path):
    """Give the module with the store and its app."""
    (tmp_path / "failing.py").write_text(STORE)
    spec = importlib.util.spec_from_file_location("failing", tmp_path / "failing.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    module.Store.released.set()


async def calls(client, count=15):
    """Call all gates, many at once; give the statuses."""
    statuses = []

    async def call(path):
        statuses.append((await client.get(path)).status_code)

    for _ in range(10):
        async with anyio.create_task_group() as group:
            for path in islice(cycle(PATHS), count):
                group.start_soon(call, path)
    return set(statuses)


def asking(app):
    """Give a client of an app."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.anyio
@pytest.mark.parametrize(("trouble", "closed"), TROUBLES.items())
async def test_in_process(module, caplog, trouble, closed):
    """No request gets a 500, an open endpoint tells of the outage, and the log has one line for each end of it."""
    caplog.set_level(logging.INFO, "fastapi_maintenance")
    store = module.Store()
    store.value = closed
    # A store that answers is never late here, however busy the machine is.
    patience = 2.0 if "hang" in trouble else PATIENCE
    async with asking(module.app_on(store, refresh_interval=0.001, read_timeout=patience)) as client:

        async def call_until(condition):
            with anyio.fail_after(PATIENCE):
                while not condition((await client.get("/status")).json()):
                    statuses.update(await calls(client, 3))

        statuses = await calls(client)
        store.how = trouble
        store.released.clear()
        before, times = store.asked, QUESTIONS.get(trouble, 12)
        await call_until(lambda now: now["asked"] >= before + times and now["stale"] is not None)
        statuses |= await calls(client)
        store.how = "works"
        store.released.set()
        await call_until(lambda now: now["stale"] is None)
    assert statuses == {503 if closed else 200}
    assert [record.levelname for record in caplog.records] == pairs(trouble, store.outages)


@pytest.mark.anyio
@pytest.mark.parametrize("trouble", ["hangs", "hangs in a thread"])
async def test_nobody_waits(module, trouble):
    """While one question hangs for longer than anybody would wait, all requests are answered, and nobody asks again."""
    store = module.Store()
    async with asking(module.app_on(store, refresh_interval=0.001, read_timeout=3600)) as client:
        await calls(client)
        store.how = trouble
        store.released.clear()
        with anyio.fail_after(20):
            while not store.hanging:
                await calls(client, 3)
            asked = store.asked
            statuses = await calls(client)
        seen = (store.hanging, store.asked - asked, statuses)
        store.released.set()
    assert seen == (1, 0, {200})
