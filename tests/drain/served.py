"""The application under load: what it does takes as long as the client says, and is recorded while it runs.

It is served by processes of their own. `DRAIN_GATES` names the gates, `DRAIN_CONTROL` breaks the protocol on purpose,
`DRAIN_RECORDS` is where the records go, `DRAIN_AT_START` is how many windows each worker holds as it starts.
"""

import os
import threading
import time
from contextlib import asynccontextmanager

import anyio
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.responses import StreamingResponse

from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware, force_maintenance_mode_off
from fastapi_maintenance.backends.locks import RangeWorker
from fastapi_maintenance.backends.redis.workers import FleetInFlight
from fastapi_maintenance.backends.slots import MachineInFlight
from tests.drain.hold import hold_windows
from tests.drain.record import REQUESTS, Record

GATES = os.environ["DRAIN_GATES"]
CHUNKS = 4

record = Record(os.environ["DRAIN_RECORDS"], REQUESTS)
maintenance = Maintenance()


def state_only():
    """Break it: look at the state, but lock no slot."""
    RangeWorker.take = lambda self: True
    RangeWorker.free = lambda self: None


def one_description():
    """Break it: attach before the fork, so that all workers have one open file description."""

    def keep(in_flight):
        in_flight.running = set()
        in_flight._turn = threading.Lock()

    MachineInFlight.after_fork = keep
    maintenance.backend.in_flight.join()


def idle_always():
    """Break it: promise that nothing is in flight, without counting."""
    promised = FleetInFlight.promise
    FleetInFlight.promise = lambda self: (promised(self)[0], True, 0)


CONTROLS = {
    "none": lambda: None,
    "state-only": state_only,
    "one-description": one_description,
    "idle-always": idle_always,
}
CONTROLS[os.environ["DRAIN_CONTROL"]]()


@asynccontextmanager
async def lifespan(app):
    """Hold some windows before the worker serves, as a start-up hook that migrates does."""
    await hold_windows(maintenance, int(os.environ["DRAIN_AT_START"]), min_workers=0)
    yield


async def asynchronous(ms: float):
    with record.span("async"):
        await anyio.sleep(ms / 1000)


def synchronous(ms: float):
    with record.span("sync"):
        time.sleep(ms / 1000)


class Recorded(StreamingResponse):
    """A stream that is recorded until its call returns, not until the collector finds a generator left half-way."""

    async def __call__(self, scope, receive, send):
        with record.span(self.media_type):
            await super().__call__(scope, receive, send)


async def _chunks(ms):
    for number in range(CHUNKS):
        yield f"data: {number}\n\n"
        await anyio.sleep(ms / 1000 / CHUNKS)


async def streaming(ms: float):
    return Recorded(_chunks(ms), media_type="text/plain")


async def events(ms: float):
    return Recorded(_chunks(ms), media_type="text/event-stream")


async def in_background(ms: float, tasks: BackgroundTasks):
    span = record.span("background")
    span.__enter__()
    tasks.add_task(_work_on, span, ms)


async def _work_on(span, ms):
    try:
        await anyio.sleep(ms / 1000)
    finally:
        span.__exit__(None, None, None)


async def failing(ms: float):
    with record.span("failing"):
        await anyio.sleep(ms / 1000)
        raise ArithmeticError("on purpose")


async def socket(websocket: WebSocket, ms: float):
    with record.span("websocket"):
        await websocket.accept()
        await websocket.receive_text()
        await anyio.sleep(ms / 1000)
        await websocket.send_text("done")
        await websocket.close()


WORK = {
    "async": asynchronous,
    "sync": synchronous,
    "stream": streaming,
    "events": events,
    "background": in_background,
    "failing": failing,
}


@force_maintenance_mode_off
async def admin_hold(windows: int):
    """Hold in a worker, as an administrator's endpoint does."""
    return await hold_windows(maintenance, windows)


@force_maintenance_mode_off
async def pid():
    return os.getpid()


def routes(router):
    """Put all there is on a router."""
    for name, endpoint in WORK.items():
        router.add_api_route(f"/{name}", endpoint)
    router.add_api_websocket_route("/websocket", socket)
    router.add_api_route("/hold", admin_hold, methods=["POST"])
    router.add_api_route("/pid", pid)
    return router


gated = {"route_class": maintenance.route_class} if GATES in {"route", "all"} else {}
guarded = {"dependencies": [Depends(maintenance.guard)]} if GATES in {"guard", "all"} else {}
app = FastAPI(lifespan=lifespan)
app.include_router(routes(APIRouter(**gated, **guarded)))
if GATES in {"middleware", "all"}:
    app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
