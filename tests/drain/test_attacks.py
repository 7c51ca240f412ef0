"""Ways around the count: what runs must be counted to its very end, and what is not counted must not run."""

import asyncio
import contextvars
import threading

import anyio
import anyio.to_thread
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.testclient import TestClient

from fastapi_maintenance import DrainTimeout, Maintenance, MaintenanceModeMiddleware
from fastapi_maintenance.backends import LocalFileBackend, MemoryBackend
from fastapi_maintenance.backends.flock import FlockGate
from fastapi_maintenance.backends.locks import Gate, RangeWorker


@pytest.fixture
def path(tmp_path):
    """Give the path of a state file."""
    return tmp_path / "state"


def at(path):
    """Give an object of its own at a path, as another process has it."""
    return Maintenance(backend=LocalFileBackend(path))


def drained(path):
    """Tell whether another process can drain at once."""

    async def tried():
        async with at(path).on(drain=0):
            return True

    try:
        # In a context of its own, as another process is: in that of a counted request it would be an error at once.
        return contextvars.Context().run(lambda: asyncio.run(tried()))
    except DrainTimeout:
        return False


@pytest.mark.parametrize("form", ["guard", "guard_unless"])
def test_the_end_of_an_earlier_dependency_is_waited_for(path, form):
    """A dependency with `yield` that was solved before the guard ends inside the count: a session commits there."""
    seen = []
    maintenance = at(path)

    async def session():
        yield "session"
        seen.append(await anyio.to_thread.run_sync(drained, path))

    async def admin(used: str = Depends(session)):
        return False

    guard = maintenance.guard if form == "guard" else maintenance.guard_unless(admin)
    app = FastAPI(dependencies=[Depends(session), Depends(guard)])
    app.add_api_route("/", lambda: "served")
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    assert seen == [False]
    assert drained(path)


def test_an_error_passes_the_guard_unchanged(path):
    """What an endpoint raises reaches a dependency with `yield` that was solved before the guard, and the caller."""
    seen = []

    async def session():
        try:
            yield
        except ArithmeticError as error:
            seen.append(error)
            raise

    def endpoint():
        raise ArithmeticError("its own")

    app = FastAPI(dependencies=[Depends(session), Depends(at(path).guard)])
    app.add_api_route("/", endpoint)
    with TestClient(app) as client, pytest.raises(ArithmeticError, match="its own"):
        client.get("/")
    assert len(seen) == 1
    assert drained(path)


@pytest.mark.parametrize("fails", ["attach", "take"])
def test_a_worker_that_could_not_lock_is_waited_for_as_soon_as_it_can(path, fails, monkeypatch):
    """A worker that joins the others while a request runs has its slot from then on; before, it is none of them."""
    in_flight = LocalFileBackend(path).in_flight
    now = [0.0]
    monkeypatch.setattr("fastapi_maintenance.backends.slots.time.monotonic", lambda: now[0])
    with monkeypatch.context() as broken:
        broken.setattr(*{"attach": (Gate, "attach"), "take": (RangeWorker, "take")}[fails], _refused)
        assert in_flight.enter("first")
        assert at(path).backend.in_flight._workers() == ()
    now[0] += 10
    in_flight.join()
    assert not drained(path)
    in_flight.enter("second")
    in_flight.leave("first")
    assert not drained(path)
    in_flight.leave("second")
    assert drained(path)


def _refused(*_):
    raise OSError("no locks available")


@pytest.mark.parametrize("gate", ["open", "closed"])
def test_a_scope_that_is_used_again_is_decided_again(path, gate):
    """A middleware outside that runs the application a second time, with the same scope, gets a new decision."""
    maintenance = at(path)
    counts = []

    async def counting(scope, receive, send):
        counts.append(len(maintenance.backend.in_flight.running))

    app = MaintenanceModeMiddleware(counting, maintenance=maintenance)

    async def twice():
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        await app(scope, _nothing, _nothing)
        if gate == "closed":
            await maintenance.enable()
        await app(scope, _nothing, _nothing)

    asyncio.run(twice())
    assert counts == [1, 1][: 1 + (gate == "open")]


async def _nothing(*_):
    pass


def test_busy_threads_keep_no_hold_waiting(path):
    """Where sync endpoints have all threads of the process, a hold begins and ends all the same."""
    maintenance = at(path)
    over = threading.Event()

    async def hold():
        threads = int(anyio.to_thread.current_default_thread_limiter().total_tokens)
        async with anyio.create_task_group() as group:
            for _ in range(threads + 5):
                group.start_soon(anyio.to_thread.run_sync, over.wait)
            await anyio.lowlevel.checkpoint()
            try:
                with anyio.fail_after(5):
                    async with maintenance.on(drain=0, min_workers=0):
                        held = bool(await maintenance.status())
            finally:
                over.set()
        return held

    assert asyncio.run(hold()) is True
    assert at(path).backend._gate.any_other([]) is False


def test_a_request_that_is_collected_inside_the_count_takes_nothing_with_it(path, monkeypatch):
    """The garbage collector may end a forgotten request while another one is being counted, in the same thread."""
    in_flight = LocalFileBackend(path).in_flight
    in_flight.enter("forgotten")
    take = RangeWorker.take

    def collecting(worker):
        in_flight.leave("forgotten")
        return take(worker)

    in_flight.leave("forgotten")
    monkeypatch.setattr(RangeWorker, "take", collecting)
    entered = threading.Thread(target=in_flight.enter, args=("new",), daemon=True)
    entered.start()
    entered.join(5)
    assert not entered.is_alive()
    assert not drained(path)


@pytest.fixture
def with_flock(monkeypatch):
    """Lock as systems do that have no locks of open file descriptions."""
    monkeypatch.setattr("fastapi_maintenance.backends.file.gate_beside", FlockGate)


@pytest.mark.parametrize("variant", ["range", "flock"])
def test_a_gate_that_is_deleted_during_a_hold_lets_nobody_in(path, variant, request):
    """A worker that was there when a hold drained refuses until that hold ends, whatever is deleted meanwhile."""
    request.getfixturevalue({"range": "path", "flock": "with_flock"}[variant])
    in_flight = LocalFileBackend(path).in_flight
    in_flight.enter("before")
    in_flight.leave("before")

    async def hold():
        async with at(path).on(drain=0):
            for file in path.parent.glob("state.gate*"):
                file.unlink()
            return in_flight.enter("inside")

    assert asyncio.run(hold()) is False
    assert in_flight.enter("after")


@pytest.mark.parametrize("gates", ["middleware", "route", "guard", "all"])
@pytest.mark.parametrize("lifespan", [True, False])
def test_background_work_is_counted_without_a_lifespan_too(path, gates, lifespan):
    """A task that runs after the response is waited for under each gate, lifespan or not."""
    maintenance = at(path)
    seen = []

    def endpoint(tasks: BackgroundTasks):
        tasks.add_task(lambda: seen.append(drained(path)))

    every = gates == "all"
    app = FastAPI(dependencies=[Depends(maintenance.guard)] if every or gates == "guard" else [])
    app.router.route_class = maintenance.route_class if every or gates == "route" else app.router.route_class
    app.add_api_route("/", endpoint)
    served = MaintenanceModeMiddleware(app, maintenance=maintenance) if every or gates == "middleware" else app
    client = TestClient(served)
    with client if lifespan else client.__class__(served):
        assert client.get("/").status_code == 200
    assert seen == [False]


async def test_a_client_that_goes_away_is_counted_until_its_request_ends(anyio_backend):
    """A request whose client has gone runs on and is waited for."""
    maintenance = Maintenance(backend=MemoryBackend())
    started, go_on = anyio.Event(), anyio.Event()

    async def app(scope, receive, send):
        started.set()
        with anyio.CancelScope(shield=True):
            await go_on.wait()

    served = MaintenanceModeMiddleware(app, maintenance=maintenance)
    async with anyio.create_task_group() as group:

        async def client():
            scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
            await served(scope, _nothing, _nothing)

        group.start_soon(client)
        await started.wait()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            with pytest.raises(DrainTimeout):
                await maintenance.on(drain=0).__aenter__()
            go_on.set()
    async with maintenance.on(drain=0):
        pass
