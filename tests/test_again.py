"""A gate that has been asked much answers as one that has been asked nothing."""

from datetime import UTC, datetime, timedelta

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse

from fastapi_maintenance import (
    BackendError,
    Maintenance,
    MaintenanceModeMiddleware,
    MaintenanceSettings,
    force_maintenance_mode_off,
    force_maintenance_mode_on,
)
from fastapi_maintenance.backends import MemoryBackend
from fastapi_maintenance.gate import Gate
from fastapi_maintenance.inflight import InFlight
from fastapi_maintenance.refusal import Refusals

pytestmark = [pytest.mark.anyio, pytest.mark.no_cover]  # the same lines again and again, at a third of the speed

GATES = ("guard", "route class", "middleware")
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Barred(InFlight):
    """Lets nobody in while it is told so, as while a drained hold lasts."""

    bars = False

    def enter(self, request):
        """Count a request in."""
        return not self.bars and super().enter(request)


class Flaky(MemoryBackend):
    """Cannot be read while it is told so."""

    fails = False

    def __init__(self):
        super().__init__()
        self.in_flight = Barred()

    def peek_state(self):
        """Give the state, or fail."""
        if self.fails:
            raise BackendError("flaky", "as it was told")
        return super().peek_state()


def own_answer(request, status):
    """Answer with what is known, for one path."""
    if request.url.path == "/y":
        return None
    return PlainTextResponse(f"{status.mode} {status.message} {status.retry_after}", 418)


def behind(gate, maintenance):
    """Give an app with operations that are let through, refused, and without a mark."""
    app = FastAPI(dependencies=[Depends(maintenance.guard)] if gate == "guard" else None)
    router = APIRouter(route_class=maintenance.route_class) if gate == "route class" else APIRouter()

    async def plain():
        return "open"

    async def off():
        return "open"

    async def on():
        return "open"

    for path, endpoint in (("/x", plain), ("/y", plain), ("/exempt", plain), ("/off", off), ("/on", on)):
        router.add_api_route(path, endpoint, methods=["GET", "HEAD", "POST"])
    force_maintenance_mode_off(off)
    force_maintenance_mode_on(on)
    app.include_router(router)
    if gate == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    return app


def known_agent(request):
    """Exempt one client by what it says it is."""
    return request.headers.get("user-agent") == "known"


async def ask(app, method, path, accepts, headers, client):
    """Give all that an application sends."""
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "client": client, "root_path": ""}
    headers = [*headers, *((b"accept", accept.encode()) for accept in accepts)]
    told = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        told.append(message)

    await app({**scope, "headers": headers}, receive, send)
    return told


requests = st.tuples(
    st.sampled_from(["GET", "GET", "POST", "HEAD"]),
    st.sampled_from(["/x", "/x", "/y", "/exempt", "/off", "/on", "/docs", "/nowhere"]),
    st.sampled_from([(), (), ("text/event-stream",), ("text/plain",), ("nonsense;;q=x", "text/html")]),
    st.sampled_from([(), (), ((b"maintenance-bypass", b"s3cret"),), ((b"user-agent", b"known"),)]),
    st.sampled_from([None, ("192.0.2.1", 1), ("10.0.0.7", 1)]),
)
changes = st.one_of(
    st.tuples(st.just("enable"), st.sampled_from([None, "why"]), st.sampled_from([None, 2, 9]), st.booleans()),
    st.tuples(st.just("enable"), st.just("why"), st.sampled_from([None, 9]), st.just(False)),
    st.tuples(st.just("plan"), st.sampled_from([0, 2]), st.sampled_from([3, 5])),
    st.tuples(st.just("pass"), st.sampled_from([0.4, 1.0, 2.0])),
    st.sampled_from([("disable",), ("fail",), ("bar",), ("pass", 0)]),
)
steps = st.tuples(changes, st.lists(requests, min_size=1, max_size=4), st.integers(1, 3))
"""Something changes, then some requests come, each of them once or more often."""


class Clock:
    """A time that stands still until it is told to go on."""

    now = NOON

    def utcnow(self):
        """Give it as the package reads it."""
        return self.now

    def time(self):
        """Give it as the system tells it."""
        return self.now.timestamp()

    def after(self, seconds):
        """Give a later time."""
        return self.now + timedelta(seconds=seconds)


@pytest.fixture
def clock(monkeypatch):
    """Give the clock that the package goes by."""
    clock = Clock()
    for module in ("maintenance", "gate", "holds", "snapshot", "refusal", "backends.memory"):
        monkeypatch.setattr(f"fastapi_maintenance.{module}.utcnow", clock.utcnow)
    monkeypatch.setattr("fastapi_maintenance.gate.time", clock)
    return clock


@pytest.fixture
def given_again(monkeypatch):
    """Give a list of all refusals that were given again."""
    given, again = [], Refusals.again
    monkeypatch.setattr(Refusals, "again", lambda *asked, **more: given.append(again(*asked, **more)) or given[-1])
    return given


async def change(maintenance, clock, what, *how):
    """Change the state, the time, or whether the state can be read."""
    if what == "enable":
        message, seconds, reads = how
        until = None if seconds is None else clock.after(seconds)
        await maintenance.enable(message=message, until=until, mode="read_only" if reads else "full")
    elif what == "disable":
        await maintenance.disable()
    elif what == "plan":
        await maintenance.schedule(*map(clock.after, how))
    elif what == "pass":
        clock.now = clock.after(*how)
    elif what == "bar":
        maintenance.backend.in_flight.bars = not maintenance.backend.in_flight.bars
    else:
        maintenance.backend.fails = not maintenance.backend.fails


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    ("configured", "handlers"),
    [
        ({}, {}),
        ({}, {"response_handler": own_answer}),
        ({"exempt_paths": ("/exempt",), "exempt_ips": ("10.0.0.0/8",), "bypass_secret": "s3cret"}, {}),
        ({"exempt_paths": ("/exempt",)}, {"exempt_handler": known_agent}),
        ({"event_streams": "retry"}, {}),
    ],
    ids=["built in", "own answer", "exemptions", "own exemption", "event streams"],
)
def test_what_was_asked_before_changes_no_answer(gate, handlers, configured, clock, given_again):
    """Whatever was asked, changed or failed, and whatever the time: a new object on the same state answers the same."""
    options = {"settings": MaintenanceSettings(**configured), **handlers}

    async def compare(run):
        clock.now = NOON
        options["backend"] = Flaky()
        maintenance = Maintenance(**options)
        app = behind(gate, maintenance)
        for how, asked, times in run:
            await change(maintenance, clock, *how)
            for request in asked * times:
                assert await ask(app, *request) == await ask(behind(gate, Maintenance(**options)), *request)
        assert maintenance.backend.in_flight.operations() == ()

    @given(st.lists(steps, min_size=2, max_size=8))
    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    def explore(run):
        anyio.run(compare, run)

    explore()
    assert any(given_again) is not bool(handlers)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("configured", [{}, {"exempt_paths": ("/exempt",)}], ids=["built in", "exemptions"])
async def test_what_a_drain_kept_out_is_let_in_after_it(gate, configured):
    """A read that only a drained hold kept out of a read-only service is let in again, and a write is refused still."""
    maintenance = Maintenance(MaintenanceSettings(**configured), backend=Flaky())
    app, barred = behind(gate, maintenance), maintenance.backend.in_flight
    await maintenance.enable(mode="read_only")
    answers = []
    for barred.bars in (False, True, True, False, False):
        for method in ("GET", "POST"):
            start, *_ = await ask(app, method, "/x", (), (), None)
            answers.append(start["status"])
    assert answers == [200, 503, 503, 503, 503, 503, 200, 503, 200, 503]


@pytest.mark.parametrize("gate", GATES)
async def test_a_state_that_another_thread_sees_first_is_not_mistaken(gate, monkeypatch):
    """A verdict from one state is not kept for another one, which came while the request was decided on."""
    maintenance = Maintenance(backend=MemoryBackend())
    app, decided = behind(gate, maintenance), Gate._verdict

    def overtaken(self, *asked):
        verdict = decided(self, *asked)
        self.owner.backend._state = reads
        self.last_known_mode()
        return verdict

    await maintenance.enable(mode="read_only")
    reads = maintenance.backend.peek_state()
    await maintenance.enable(mode="full")
    monkeypatch.setattr(Gate, "_verdict", overtaken)
    answers = [(await ask(app, "GET", "/x", (), (), None))[0]["status"] for _ in range(3)]
    assert answers == [503, 200, 200]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("mode", ["full", "read_only"])
async def test_an_operation_that_is_forced_on_lets_no_other_refusal_be_made_anew(gate, mode, given_again):
    """Who polls an operation that is always closed does not make the refusals of others dear."""
    maintenance = Maintenance(backend=MemoryBackend())
    app = behind(gate, maintenance)
    await maintenance.enable(mode=mode)
    for path in ("/x", "/on", "/x"):
        assert (await ask(app, "POST", path, (), (), None))[0]["status"] == 503
    assert given_again[-1] is not None


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("planned", [True, False], ids=["a window", "until"])
async def test_an_open_gate_goes_by_the_clock(gate, planned, clock):
    """Asked again and again, it closes and opens at the instant that the state names, and follows a clock set back."""
    maintenance = Maintenance(backend=MemoryBackend())
    app, answers = behind(gate, maintenance), []
    start, end = clock.after(60), clock.after(120)
    if planned:
        await maintenance.schedule(start, end)
    else:
        await maintenance.enable(until=end)
    for seconds in (0, 59, 60, 119, 120, 3600, 61, 0):
        clock.now = NOON + timedelta(seconds=seconds)
        answers += [(await ask(app, "GET", "/x", (), (), None))[0]["status"] for _ in range(3)]
    before = 200 if planned else 503
    assert answers[::3] == answers[1::3] == answers[2::3] == [before, before, 503, 503, 200, 200, 503, before]
