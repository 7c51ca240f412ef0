"""`on(drain=)`: requests are counted under every gate, and the block runs only when none is in flight."""

import logging
import os
import threading
from contextlib import asynccontextmanager
from unittest.mock import AsyncMock, Mock

import anyio
import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection
from starlette.routing import Route

from fastapi_maintenance import (
    BackendError,
    DrainTimeout,
    DrainUnsupported,
    DrainWouldDeadlock,
    Maintenance,
    MaintenanceModeMiddleware,
    NoWorkers,
    force_maintenance_mode_off,
    maintenance_mode_on,
)
from fastapi_maintenance.backends import BaseStateBackend, EnvVarBackend, LocalFileBackend, MemoryBackend
from fastapi_maintenance.gate import current_owner
from fastapi_maintenance.inflight import NOTES, InFlight, current_passage
from fastapi_maintenance.state import Hold, utcnow
from tests.waiting import PATIENCE, until

GATES = ["middleware", "route", "guard", "middleware+route+guard"]

each_gate = pytest.mark.parametrize("gates", GATES)
pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "env", "file"])
def maintenance(request, tmp_path):
    """Give an object on each backend that can drain."""
    makes = {"memory": MemoryBackend, "env": EnvVarBackend, "file": lambda: LocalFileBackend(tmp_path / "state")}
    return Maintenance(backend=makes[request.param]())


class Step:
    """Where a request waits, until the test lets it go on."""

    def __init__(self):
        self.reached = 0
        self.open = False

    async def __call__(self):
        self.reached += 1
        await until(lambda: self.open)

    def wait(self):
        """Wait in a thread."""
        self.reached += 1
        while not self.open:
            threading.Event().wait(0.001)


class Service:
    """An application behind some gates of one object, with an endpoint for each way to take time."""

    def __init__(self, maintenance, gates="middleware"):
        self.maintenance = maintenance
        self.step = Step()
        guards = [Depends(maintenance.guard)] if "guard" in gates else []
        self.app = FastAPI(dependencies=guards)
        if "route" in gates:
            self.app.router.route_class = maintenance.route_class
        if "middleware" in gates:
            self.app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
        self._add_slow()
        self._add_holding()

    def _add_slow(self):
        app, step = self.app, self.step

        @app.get("/quick")
        async def quick():
            return 1

        @app.get("/async")
        async def waiting():
            await step()

        @app.get("/sync")
        def in_a_thread():
            step.wait()

        @app.get("/stream")
        async def stream():
            async def chunks():
                yield b"begin"
                await step()
                yield b"end"

            return StreamingResponse(chunks())

        @app.get("/background")
        async def background(tasks: BackgroundTasks):
            tasks.add_task(step)

        @app.get("/raising")
        async def raising():
            await step()
            raise ValueError("a handler's own")

    def _add_holding(self):
        app, step = self.app, self.step

        @app.get("/always")
        @force_maintenance_mode_off
        async def always():
            await step()

        @app.post("/migrate")
        @force_maintenance_mode_off
        async def migrate():
            async with self.maintenance.on(drain=PATIENCE):
                return "alone"

        @app.post("/deadlock")
        async def deadlock():
            await self.maintenance.on(drain=PATIENCE).__aenter__()

    async def ask(self, path, method="GET"):
        """Ask, and give the status."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.request(method, path)).status_code

    @asynccontextmanager
    async def asking(self, path):
        """Have a request wait inside the endpoint for the time of the block; it goes on at its end."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.ask, path)
            await until(lambda: self.step.reached)
            yield
            self.step.open = True


# What is counted


@each_gate
@pytest.mark.parametrize("path", ["/async", "/sync", "/stream", "/background", "/raising"])
async def test_a_request_is_waited_for_until_its_call_returns(maintenance, gates, path):
    """The block runs after the last byte, background task and error of what was let in, under every gate."""
    service, entered = Service(maintenance, gates), []

    async def hold():
        async with maintenance.on(drain=PATIENCE):
            entered.append(service.step.open)

    async with anyio.create_task_group() as group, service.asking(path):
        group.start_soon(hold)
        await until(lambda: maintenance.snapshot.last_known().holds)
        with pytest.raises(DrainTimeout):
            await maintenance.on(drain=0).__aenter__()
    assert entered == [True]
    assert await service.ask("/quick") == 200


@each_gate
async def test_nobody_comes_in_while_it_is_drained(maintenance, gates):
    """Inside the block requests are refused, and after it they are served."""
    service = Service(maintenance, gates)
    assert await service.ask("/quick") == 200
    async with maintenance.on(drain=PATIENCE):
        assert await service.ask("/quick") == 503
    assert await service.ask("/quick") == 200


@each_gate
async def test_a_refused_request_that_is_tried_again_is_refused_again(maintenance, gates):
    """A middleware outside may run the application twice with one scope; what was refused once is not let in then."""
    service, statuses = Service(maintenance, gates), []

    async def twice(scope, receive, send):
        async def note(message):
            statuses.extend([message["status"]] if message["type"] == "http.response.start" else [])

        await service.app(scope, receive, note)
        await service.app(scope, receive, send)

    async with maintenance.on(), httpx.AsyncClient(transport=httpx.ASGITransport(twice)) as client:
        statuses.append((await client.get("http://test/quick")).status_code)
        assert maintenance.snapshot.in_flight.operations() == ()
    assert statuses == [503, 503]


@each_gate
async def test_a_scope_that_is_used_again_carries_nothing_along(maintenance, gates):
    """However often an application is run with one scope, it notes no more there than at the first time."""
    service, scope = Service(maintenance, gates), {}
    scope |= {"type": "http", "method": "GET", "path": "/quick", "headers": [], "query_string": b"", "root_path": ""}
    for _ in range(5):
        await service.app(scope, AsyncMock(), AsyncMock())
    passage, length = scope[NOTES], 0
    while passage is not None:
        passage, length = passage.before, length + 1
    assert length <= len(gates.split("+"))


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("path", ["/quick", "/always"])
@pytest.mark.parametrize("mode", [None, "read_only", "full"])
async def test_afterwards_no_object_is_the_current_one(gates, path, mode):
    """Whatever gates a request came through or was refused by, in the task that ran it no object is left as current."""
    maintenance = Maintenance(backend=MemoryBackend())
    if mode is not None:
        await maintenance.enable(mode=mode)
    around = FastAPI()
    around.add_middleware(MaintenanceModeMiddleware, backend=MemoryBackend())
    services = [Service(maintenance, gates + "+guard"), Service(maintenance, gates)]
    for service in services:
        service.step.open = True
    around.mount("/", services[1].app)
    # The first one that is let through for what it asks is looked at in another way than the next.
    for app in (services[0].app, around) * 2:
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", "root_path": ""}
        await app(scope, AsyncMock(), AsyncMock())
        assert current_passage() is None


@pytest.mark.parametrize("objects", [1, 2, 3])
@pytest.mark.parametrize("around", [False, True], ids=["alone", "in a middleware"])
async def test_afterwards_the_object_around_several_guards_is_the_current_one(objects, around):
    """However many guards a route class has around its operation, what was current before is current again."""
    guards = [Depends(Maintenance(backend=MemoryBackend()).guard) for _ in range(objects)]
    app = FastAPI(dependencies=guards)
    app.router.route_class = Maintenance(backend=MemoryBackend()).route_class
    app.get("/quick")(lambda: 1)
    outer, seen = Maintenance(backend=MemoryBackend()), []

    async def looking(scope, receive, send):
        await app(scope, receive, send)
        seen.append(current_owner())

    served = MaintenanceModeMiddleware(looking, maintenance=outer) if around else looking
    for _ in range(2):
        scope = {"type": "http", "method": "GET", "path": "/quick", "headers": [], "query_string": b"", "root_path": ""}
        await served(scope, AsyncMock(), AsyncMock())
        seen.append(current_owner())
    assert seen == [outer if around else None, None] * 2


@each_gate
async def test_an_always_open_endpoint_drains_the_rest(maintenance, gates):
    """A forced-off request is not counted, so that it can drain its own worker and does not hinder others."""
    service = Service(maintenance, gates)
    assert await service.ask("/migrate", "POST") == 200
    async with service.asking("/always"), maintenance.on(drain=0) as hold:
        assert hold.id


@each_gate
async def test_a_counted_request_that_drains_is_an_error_at_once(maintenance, gates):
    """It would wait for its own end; the text tells the way out, and nothing is held afterwards."""
    service = Service(maintenance, gates)
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(DrainWouldDeadlock, match="@force_maintenance_mode_off"):
            await client.post("/deadlock")
    assert not await maintenance.status()


async def test_another_object_on_the_same_file_is_no_way_out(tmp_path, monkeypatch):
    """Two backends of one file, however it is named, wait for the same requests: an error at once as well."""
    monkeypatch.chdir(tmp_path)
    service = Service(Maintenance(backend=LocalFileBackend(tmp_path / "state")))
    (tmp_path / "link").symlink_to(tmp_path)
    others = [LocalFileBackend("state"), LocalFileBackend("link/state"), LocalFileBackend("other"), MemoryBackend()]
    raised = []

    @service.app.get("/others")
    async def drain_others():
        for other in others:
            try:
                async with Maintenance(backend=other).on(drain=0, min_workers=0):
                    raised.append(None)
            except DrainWouldDeadlock as error:
                raised.append(type(error))

    assert await service.ask("/others") == 200
    assert raised == [DrainWouldDeadlock, DrainWouldDeadlock, None, None]


@each_gate
async def test_a_task_that_outlives_its_request_may_drain(maintenance, gates):
    """The request that started it is over, so there is nothing to wait for."""
    service, drained = Service(maintenance, gates), []

    async def later(over):
        await over.wait()
        async with maintenance.on(drain=PATIENCE):
            drained.append(True)

    async with anyio.create_task_group() as group:
        over = anyio.Event()

        @service.app.get("/start")
        async def start():
            group.start_soon(later, over)

        await service.ask("/start")
        over.set()
    assert drained == [True]


async def test_what_is_exempt_while_closed_is_not_counted(maintenance):
    """A request that was let through for an exemption does not keep another drain waiting."""
    maintenance = Maintenance(backend=maintenance.backend, exempt_handler=lambda request: True)
    service = Service(maintenance)
    async with maintenance.on(), service.asking("/async"), maintenance.on(drain=0) as hold:
        assert hold.id


async def test_what_came_while_open_is_counted_even_if_it_would_be_exempt(maintenance):
    """It was let in because it was open, so it is waited for."""
    maintenance = Maintenance(backend=maintenance.backend, exempt_handler=lambda request: True)
    service = Service(maintenance)
    async with service.asking("/async"):
        with pytest.raises(DrainTimeout):
            await maintenance.on(drain=0).__aenter__()


async def test_a_read_that_read_only_lets_pass_is_counted(tmp_path):
    """A drain closes reads, too, so it waits for those that were let in."""
    maintenance = Maintenance(backend=MemoryBackend())
    service = Service(maintenance)
    async with maintenance.on(mode="read_only"), service.asking("/async"):
        with pytest.raises(DrainTimeout):
            await maintenance.on(drain=0).__aenter__()


@pytest.mark.parametrize("gates", ["middleware", "guard"])
async def test_a_websocket_is_waited_for(maintenance, gates, anyio_backend):
    """An open websocket is in flight until it ends."""
    service = Service(maintenance, gates)

    @service.app.websocket("/ws")
    async def echo(websocket: WebSocket):
        await websocket.accept()
        await websocket.send_text("in")
        await websocket.receive_text()

    def drained():
        async def hold():
            try:
                async with maintenance.on(drain=0):
                    return True
            except DrainTimeout:
                return False

        return anyio.run(hold)

    def talk():
        client = TestClient(service.app, backend=anyio_backend)
        with client.websocket_connect("/ws") as websocket:
            websocket.receive_text()
            before = drained()
            websocket.send_text("go")
        return before, drained()

    assert await anyio.to_thread.run_sync(talk) == (False, True)


async def test_a_drain_has_streams_and_websockets_end_in_time(maintenance, anyio_backend):
    """With `close_streams_after` what would go on for ever is ended, so that the drain comes to its end."""
    app, opened = FastAPI(), []
    app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance, close_streams_after=0)

    @app.get("/events")
    async def events():
        async def forever():
            opened.append("events")
            while True:
                yield b": still there\n\n"
                await anyio.sleep(0.01)

        return StreamingResponse(forever(), media_type="text/event-stream")

    @app.websocket("/ws")
    async def talk(websocket: WebSocket):
        await websocket.accept()
        opened.append("ws")
        await websocket.receive_text()

    def listen():
        with TestClient(app, backend=anyio_backend).websocket_connect("/ws") as websocket:
            return websocket.receive()["code"]

    codes = []

    async def connect():
        codes.append(await anyio.to_thread.run_sync(listen))

    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    async with client, anyio.create_task_group() as group:
        group.start_soon(client.get, "/events")
        group.start_soon(connect)
        await until(lambda: len(opened) == 2)
        with pytest.raises(DrainTimeout):
            await maintenance.on(drain=0).__aenter__()
        async with maintenance.on(drain=PATIENCE) as hold:
            assert hold.id
    assert codes == [1012]


async def test_a_plain_route_and_a_404_are_no_trouble(maintenance):
    """What has no operation is answered by the framework, and leaves nothing counted."""
    service = Service(maintenance)
    service.app.router.routes.append(Route("/plain", httpx_free))
    assert [await service.ask(path) for path in ("/plain", "/none")] == [200, 404]
    async with maintenance.on(drain=0):
        assert [await service.ask(path) for path in ("/plain", "/none")] == [503, 404]


async def httpx_free(request):
    """Answer without FastAPI."""
    return StreamingResponse(iter([b"1"]))


# What is said


async def test_a_timeout_names_who_is_busy(maintenance):
    """The error has the numbers, and the names of what runs in the asking process."""
    service = Service(maintenance)
    async with service.asking("/async"):
        with pytest.raises(DrainTimeout) as caught:
            await maintenance.on(drain=0.01).__aenter__()
    error = caught.value
    assert (error.seconds, error.busy, error.workers, error.pids) == (0.01, 1, 1, (os.getpid(),))
    assert error.operations == ("GET /async",)
    assert not await maintenance.status()


async def test_the_status_tells_how_it_drains(maintenance):
    """While it drains the phase is `closing` with the number of busy workers; inside the block it is `closed`."""
    service, phases = Service(maintenance), []

    async def hold():
        async with maintenance.on(drain=PATIENCE):
            status = await maintenance.status()
            phases.append((status.phase, status.busy, status.workers))

    async with anyio.create_task_group() as group, service.asking("/async"):
        group.start_soon(hold)
        await until(lambda: maintenance.snapshot.last_known().holds)
        status = await maintenance.status()
        phases.append((status.phase, status.busy, status.workers))
    assert phases == [("closing", 1, 1), ("closed", None, None)]


async def test_a_status_without_workers_is_a_status(maintenance, monkeypatch):
    """Where the workers cannot be told while it drains, the status says all the rest."""

    async def fail(self):
        raise BackendError("the store", "away")

    service = Service(maintenance)
    async with anyio.create_task_group() as group, service.asking("/async"):
        group.start_soon(enter_and_leave, maintenance)
        await until(lambda: maintenance.snapshot.last_known().holds)
        with monkeypatch.context() as patch:
            patch.setattr(type(maintenance.snapshot.in_flight), "workers", fail)
            status = await maintenance.status()
    assert (status.phase, status.busy) == ("closing", None)


async def test_a_refusal_does_not_ask_who_is_running(monkeypatch):
    """While it drains, a request is refused without a look at the workers, whose locks may take a moment."""
    maintenance, asked = Maintenance(backend=MemoryBackend()), AsyncMock(return_value=())
    monkeypatch.setattr(maintenance.snapshot.in_flight, "workers", asked)
    await maintenance.backend.take_hold(Hold(id="draining", since=utcnow(), phase="closing"))
    assert await Service(maintenance).ask("/quick") == 503
    asked.assert_not_awaited()
    assert (await maintenance.status()).phase == "closing"
    asked.assert_awaited_once()


async def enter_and_leave(maintenance):
    """Drain, and go."""
    async with maintenance.on(drain=PATIENCE):
        pass


async def test_nobody_is_attached(maintenance):
    """Without a worker the drain says so, for the path may be wrong; `min_workers=0` is for before the start."""
    with pytest.raises(NoWorkers) as caught:
        await maintenance.on(drain=1).__aenter__()
    assert (caught.value.found, caught.value.wanted) == (0, 1)
    assert not await maintenance.status()
    async with maintenance.on(drain=0, min_workers=0) as hold:
        assert hold.id


@pytest.mark.parametrize("wire", ["lifespan", "middleware"])
async def test_a_lifespan_attaches_and_says_goodbye(maintenance, wire, anyio_backend):
    """A worker counts as one from its start to its end, requests or not."""
    app = FastAPI(lifespan=maintenance.lifespan if wire == "lifespan" else None)
    if wire == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)

    def live():
        counts = [len(anyio.run(maintenance.workers))]
        with TestClient(app, backend=anyio_backend):
            counts.append(len(anyio.run(maintenance.workers)))
        return [*counts, len(anyio.run(maintenance.workers))]

    assert await anyio.to_thread.run_sync(live) == [0, 1, 0]


async def test_a_request_attaches_where_there_is_no_lifespan(maintenance):
    """The first request makes its process a worker, even one that is not counted."""
    service = Service(maintenance)
    service.step.open = True
    assert await service.ask("/always") == 200
    (worker,) = await maintenance.workers()
    assert (worker.pid, worker.busy) == (os.getpid(), False)


def told(caplog):
    """Give what the log has of changes."""
    return [record for record in caplog.records if hasattr(record, "what")]


def steps(caplog):
    """Give what became of the hold, step by step."""
    return [record.what.split(" ", 2)[2] for record in told(caplog)]


async def test_the_audit_tells_of_the_drain(maintenance, caplog):
    """Each step of a drain is one line: begun, drained, ended; or that it was not drained."""
    service = Service(maintenance)
    caplog.set_level(logging.INFO)

    await service.ask("/quick")
    async with maintenance.on(drain=1):
        pass
    assert steps(caplog) == ["begun, draining", "drained", "ended"]
    caplog.clear()
    async with service.asking("/async"):
        with pytest.raises(DrainTimeout):
            await maintenance.on(drain=0).__aenter__()
    assert steps(caplog) == ["begun, draining", "not drained, ended"]
    # The hold was taken back before that was told.
    assert told(caplog)[-1].revision == maintenance.snapshot.revision


async def test_the_audit_does_not_tell_of_an_end_that_was_none(caplog):
    """A hold that was not drained and cannot be taken back has not ended: an error says so, and no line of an end."""

    class Broken(MemoryBackend):
        async def end_hold(self, hold, *, failed):
            raise BackendError("Broken", "out of order")

    maintenance = Maintenance(backend=Broken())
    service = Service(maintenance)
    caplog.set_level(logging.INFO)
    async with service.asking("/async"):
        with pytest.raises(DrainTimeout):
            await maintenance.on(drain=0).__aenter__()
    assert steps(caplog) == ["begun, draining"]
    assert "could not be taken back: Broken: out of order" in caplog.text


@pytest.mark.parametrize("drain", [None, 1])
async def test_the_audit_tells_of_the_end_of_a_hold_that_could_not_be_given(drain, caplog):
    """A hold that was taken, drained even, and is given back because of an error behind that is told as ended."""

    class Broken(MemoryBackend):
        def hold_descriptors(self, hold_id):
            raise OSError("out of order")

    maintenance = Maintenance(backend=Broken())
    caplog.set_level(logging.INFO)
    with pytest.raises(OSError, match="out of order"):
        await maintenance.on(drain=drain, min_workers=0).__aenter__()
    assert steps(caplog) == (["begun", "ended"] if drain is None else ["begun, draining", "drained", "ended"])
    assert not await maintenance.status()


async def test_what_is_refused_at_once_asks_the_store_for_nothing(caplog):
    """A drain that cannot keep its promise has begun no hold, so none is ended: in the store, and in the log."""
    backend = MemoryBackend()
    backend.end_hold = AsyncMock()
    caplog.set_level(logging.INFO)
    with pytest.raises(NoWorkers):
        await Maintenance(backend=backend).on(drain=1).__aenter__()
    backend.end_hold.assert_not_called()
    assert (backend.peek_state().revision, steps(caplog)) == (0, [])


# Who cannot


class Flag(BaseStateBackend):
    """A true/false store."""

    get_value = AsyncMock()
    set_value = AsyncMock()


async def test_a_store_that_does_not_count_says_so():
    """A user's store cannot promise anything, so draining is an error and nothing has happened."""
    maintenance = Maintenance(backend=Flag())
    with pytest.raises(DrainUnsupported, match="Flag does not count running requests"):
        await maintenance.on(drain=1).__aenter__()
    Flag.set_value.assert_not_called()


# More than one


async def test_holders_drain_together(maintenance):
    """Several drained blocks overlap, and it is closed until the last one ends."""
    service = Service(maintenance)
    await service.ask("/quick")
    first, second = maintenance.on(drain=1), maintenance.on(drain=1)
    async with first:
        await second.__aenter__()
    assert await service.ask("/quick") == 503
    await second.__aexit__(None, None, None)
    assert await service.ask("/quick") == 200


async def test_a_drain_that_is_cancelled_leaves_nothing(maintenance):
    """Cancelled while it waits, it takes its hold back, and requests are served."""
    service = Service(maintenance)
    async with service.asking("/async"):
        with anyio.move_on_after(0.05) as waited:
            await maintenance.on(drain=PATIENCE).__aenter__()
        assert waited.cancelled_caught
        assert await service.ask("/quick") == 200
    assert not await maintenance.status()


async def test_a_decorator_drains_for_each_call(maintenance):
    """`@maintenance.on(drain=…)` waits before each call."""
    service = Service(maintenance)
    await service.ask("/quick")

    @maintenance.on(drain=1)
    async def job():
        return await service.ask("/quick")

    assert [await job(), await service.ask("/quick")] == [503, 200]


async def test_two_objects_on_one_backend_count_alike(maintenance):
    """A drain by one object waits for what came through the gate of another that shares the backend object."""
    service, other = Service(maintenance), Maintenance(backend=maintenance.backend)
    async with service.asking("/async"):
        with pytest.raises(DrainTimeout):
            await other.on(drain=0).__aenter__()


async def test_objects_with_stores_of_their_own_do_not_wait_for_each_other(maintenance):
    """A request behind another store is none of this one's business."""
    service, other = Service(maintenance), Maintenance(backend=MemoryBackend())
    async with service.asking("/async"), other.on(drain=0, min_workers=0) as hold:
        assert hold.id


async def test_the_functional_api_holds_without_a_drain(maintenance):
    """`maintenance_mode_on()` closes at once, whoever is running."""
    service = Service(maintenance)
    async with service.asking("/async"), maintenance_mode_on(maintenance.backend):
        assert await service.ask("/quick") == 503


@each_gate
@pytest.mark.parametrize("before", ["open", "read_only"])
async def test_a_hold_that_comes_between_the_look_and_the_count_is_seen(gates, before):
    """A request looks again after it was counted, so that either it sees the hold or the hold sees it."""

    class Closing(InFlight):
        """Closes as soon as a request is counted."""

        def enter(self, request):
            counted = super().enter(request)
            backend._state = backend._state.switched(now, on=True)
            return counted

    backend = MemoryBackend()
    maintenance = Maintenance(backend=backend)
    now = (await maintenance.enable()).since
    await (maintenance.disable() if before == "open" else maintenance.enable(mode="read_only"))
    service = Service(maintenance, gates)
    assert await service.ask("/quick") == 200
    maintenance.snapshot.in_flight = Closing()
    assert await service.ask("/quick") == 503
    assert maintenance.snapshot.in_flight.operations() == ()


@each_gate
async def test_who_is_kept_out_by_the_slots_is_refused_even_if_the_state_says_open(gates):
    """What a worker believes of the state does not matter while a drained hold keeps everybody out."""

    class Full(InFlight):
        """Lets nobody in, and expects nobody to go."""

        leave = Mock()

        def enter(self, request):
            return False

    maintenance = Maintenance(backend=MemoryBackend())
    maintenance.snapshot.in_flight = Full()
    service = Service(maintenance, gates)
    assert await service.ask("/quick") == 503
    scope = {"type": "http", "method": "GET", "path": "/quick", "headers": [], "query_string": b"", "root_path": ""}
    for _ in range(2):
        await service.app(dict(scope), AsyncMock(), AsyncMock())
        assert current_passage() is None
    assert not Full.leave.called


class Failing(MemoryBackend):
    """Raises what it is told when it is looked at."""

    error = None

    def peek_state(self):
        """Give the state, or fail."""
        if self.error is not None:
            raise self.error
        return super().peek_state()


@each_gate
@pytest.mark.parametrize("closed", [False, True])
async def test_a_backend_that_fails_while_a_request_is_counted(gates, closed):
    """The last known state decides, one warning tells of it, and the request is counted out again."""
    backend = Failing()
    maintenance = Maintenance(backend=backend)
    service = Service(maintenance, gates)
    if closed:
        await maintenance.enable()
    before = [await service.ask("/quick") for _ in range(3)]
    backend.error = RuntimeError("as it was told")
    while_it_fails = [await service.ask("/quick") for _ in range(3)]
    assert before == while_it_fails == [503 if closed else 200] * 3
    assert backend.in_flight.operations() == ()


@each_gate
async def test_whatever_breaks_off_the_look_leaves_nothing_counted(gates):
    """An interrupt in the middle of the look goes on to the server, and the request is counted no more."""

    class Interrupted(BaseException):
        pass

    backend = Failing()
    maintenance = Maintenance(backend=backend)
    service = Service(maintenance, gates)
    assert await service.ask("/quick") == 200
    backend.error = Interrupted()
    with pytest.raises(Interrupted):
        await service.ask("/quick")
    assert (backend.in_flight.operations(), current_passage()) == ((), None)


@pytest.mark.parametrize("gates", ["middleware", "route", "guard"])
async def test_two_objects_before_one_application(gates, monkeypatch):
    """A request that both let in is counted by both, without a walk over the routes, until it ends."""
    inner, outer = (Maintenance(backend=MemoryBackend()) for _ in range(2))
    service = Service(inner, gates)
    service.app.add_middleware(MaintenanceModeMiddleware, maintenance=outer)
    assert await service.ask("/quick") == 200
    monkeypatch.setattr("fastapi_maintenance.middleware.operation_of", Mock(side_effect=AssertionError))
    async with service.asking("/async"):
        counted = [maintenance.snapshot.in_flight.operations() for maintenance in (inner, outer)]
    assert counted == [("GET /async",)] * 2
    assert [maintenance.snapshot.in_flight.operations() for maintenance in (inner, outer)] == [()] * 2
    await outer.enable()
    monkeypatch.undo()
    assert await service.ask("/quick") == 503


async def test_a_hold_that_cannot_say_that_it_has_drained_runs_all_the_same(tmp_path, monkeypatch, caplog):
    """The promise holds, only the status stays at `closing`; one line tells it."""
    maintenance = Maintenance(backend=LocalFileBackend(tmp_path / "state"))

    async def fail(edit):
        raise BackendError("the store", "full")

    entering = maintenance.on(drain=1, min_workers=0)
    monkeypatch.setattr(maintenance.snapshot, "change", fail)
    async with entering:
        assert (await maintenance.status()).phase == "closing"
    assert "has drained, but its status says closing: the store: full" in caplog.text


async def test_a_guard_that_cannot_tell_the_end_of_a_request_does_not_count_it():
    """Called outside of FastAPI's own routing the guard decides, and counts nothing that it could not count out."""
    maintenance = Maintenance(backend=MemoryBackend())
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await maintenance.guard(HTTPConnection(scope))
    assert maintenance.snapshot.in_flight.operations() == ()


async def test_the_router_may_be_included_anywhere(maintenance):
    """Under an included router with the route class a request is counted once and named by its full path."""
    step, router = Step(), APIRouter(route_class=maintenance.route_class)

    @router.get("/items/{item}")
    async def read(item: int):
        await step()

    app = FastAPI(dependencies=[Depends(maintenance.guard)])
    app.include_router(router, prefix="/api")
    transport = httpx.ASGITransport(app)
    client = httpx.AsyncClient(transport=transport, base_url="http://test")
    async with client, anyio.create_task_group() as group:
        group.start_soon(client.get, "/api/items/1")
        await until(lambda: step.reached)
        assert maintenance.snapshot.in_flight.operations() == ("GET /api/items/{item}",)
        assert len(maintenance.snapshot.in_flight.running) == 1
        step.open = True


def test_an_included_websocket_is_named_by_its_full_path():
    """What a drain that waits for a websocket names has the placeholders of its route, wherever that is included."""
    maintenance, router = Maintenance(backend=MemoryBackend()), APIRouter()

    @router.websocket("/rooms/{room}")
    async def names(websocket: WebSocket, room: int):
        await websocket.accept()
        await websocket.send_json(maintenance.snapshot.in_flight.operations())
        await websocket.close()

    app = FastAPI(dependencies=[Depends(maintenance.guard)])
    app.include_router(router, prefix="/api")
    with TestClient(app).websocket_connect("/api/rooms/7") as session:
        assert session.receive_json() == ["websocket /api/rooms/{room}"]
