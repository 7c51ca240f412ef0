"""What OpenTelemetry and the log are told of a refusal, and that nothing is imported for it."""

import gc
import json
import logging
import subprocess
import sys
from functools import partial
from pathlib import Path
from weakref import WeakSet

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse
from starlette.testclient import WebSocketDenialResponse

from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware, MaintenanceSettings, force_maintenance_mode_on
from fastapi_maintenance.backends import MemoryBackend
from fastapi_maintenance.telemetry import METER, _Observed

ROOT = Path(__file__).parents[1]
GATES = ("guard", "route", "middleware")

every_gate = pytest.mark.parametrize("gate", GATES)


def made(*, closed=True, scope="default", **switch):
    """Give an object with a state of its own."""
    maintenance = Maintenance(backend=MemoryBackend(), scope=scope)
    if closed:
        anyio.run(partial(maintenance.enable, **switch))
    return maintenance


def behind(gate, maintenance, **options):
    """Give an app with `/api/{id}` in an included router, and a websocket `/ws`."""
    app = FastAPI(dependencies=[Depends(maintenance.guard)] if gate == "guard" else None, **options)
    router = APIRouter(route_class=maintenance.route_class) if gate == "route" else APIRouter()
    router.add_api_route("/{number}", lambda number: number, methods=["GET", "POST"])
    app.include_router(router, prefix="/api")

    @app.websocket("/ws")
    async def socket(websocket: WebSocket):
        await websocket.accept()
        await websocket.close()

    if gate == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    return app


def ask(app, path="/api/3", method="GET"):
    """Send one request; give its status."""
    return TestClient(app).request(method, path).status_code


@pytest.fixture
def tracing():
    """Give a provider of tracers, and a function that gives the spans of one kind that have ended."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - optional
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415 - optional
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: PLC0415 - optional

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter.get_finished_spans


@pytest.fixture
def native(tracing):
    """Give what FastAPI's own telemetry is configured with, and its spans."""
    pytest.importorskip("fastapi.telemetry", reason="this FastAPI has no telemetry of its own")
    provider, spans = tracing
    return {"tracer_provider": provider}, spans


@pytest.fixture
def points(monkeypatch):
    """Give a function that collects: the data points of an instrument of ours, as attributes and value."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry import metrics  # noqa: PLC0415 - optional
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 - optional
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: PLC0415 - optional

    monkeypatch.setattr(_Observed, "telemetries", WeakSet())
    reader = InMemoryMetricReader()
    monkeypatch.setattr(metrics, "get_meter", MeterProvider([reader]).get_meter)

    def collect(name):
        data = reader.get_metrics_data()
        return [
            (dict(point.attributes), point.value)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
            if (scope.scope.name, metric.name) == (METER, name)
        ]

    return collect


def told(spans):
    """Give what the spans say of maintenance: kind, mode, events."""
    return [
        (
            span.kind.name,
            span.attributes.get("maintenance.mode"),
            [(event.name, dict(event.attributes)) for event in span.events],
        )
        for span in spans
        if span.events or "maintenance.mode" in span.attributes
    ]


# Spans


@every_gate
@pytest.mark.parametrize("mode", ["full", "read_only"])
def test_the_server_span_tells(gate, mode, native):
    """FastAPI's server span, and no other, carries the mode and one event for a refusal."""
    configured, spans = native
    app = behind(gate, made(mode=mode, scope="billing"), telemetry=configured)
    assert ask(app, method="POST") == 503
    event = ("maintenance.refused", {"maintenance.gate": gate, "maintenance.scope": "billing"})
    assert told(spans()) == [("SERVER", mode, [event])]


@pytest.mark.parametrize("gate", ["guard", "middleware"])
def test_the_span_of_a_websocket_tells(gate, native):
    """So does the span of a websocket that was refused."""
    configured, spans = native
    client = TestClient(behind(gate, made(), telemetry=configured))
    with pytest.raises(WebSocketDenialResponse), client.websocket_connect("/ws"):
        ...
    event = ("maintenance.refused", {"maintenance.gate": gate, "maintenance.scope": "default"})
    assert told(spans()) == [("SERVER", "full", [event])]


@every_gate
def test_the_span_of_a_served_request_tells_nothing(gate, native):
    """A request that is let through has nothing of ours in its spans."""
    configured, spans = native
    app = behind(gate, made(closed=False), telemetry=configured)
    assert ask(app) == 200
    with TestClient(app).websocket_connect("/ws"):
        pass
    assert spans()
    assert told(spans()) == []


def test_all_gates_tell_once(native, points):
    """Three gates of one object in a row are one refusal: one event, counted once."""
    configured, spans = native
    maintenance = made()
    app = FastAPI(dependencies=[Depends(maintenance.guard)], telemetry=configured)
    app.router.route_class = maintenance.route_class
    app.add_api_route("/x", force_maintenance_mode_on(lambda: 1))
    app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    assert ask(app, "/x") == 503
    assert [len(events) for _, _, events in told(spans())] == [1]
    assert [value for _, value in points("maintenance.refusals")] == [1]


@every_gate
def test_a_span_of_the_users_own_instrumentation_tells(gate, tracing):
    """Where FastAPI makes no span, the current one is told: that of an instrumentation around the application."""
    provider, spans = tracing
    app = behind(gate, made(), telemetry={"tracing": False})

    async def instrumented(scope, receive, send):
        with provider.get_tracer("mine").start_as_current_span("request"):
            await app(scope, receive, send)

    assert ask(instrumented) == 503
    event = ("maintenance.refused", {"maintenance.gate": gate, "maintenance.scope": "default"})
    assert told(spans()) == [("INTERNAL", "full", [event])]


@every_gate
def test_nothing_is_told_where_nothing_records(gate, monkeypatch):
    """A span that is not sampled is left alone."""
    from opentelemetry import trace  # noqa: PLC0415 - optional

    span = trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)
    app, asked, told = behind(gate, made(), telemetry={"tracing": False}), [], []
    monkeypatch.setattr(span, "is_recording", lambda: asked.append("whether it records"))
    monkeypatch.setattr(span, "set_attribute", lambda *given: told.append(given), raising=False)

    async def instrumented(scope, receive, send):
        with trace.use_span(span):
            await app(scope, receive, send)

    assert ask(instrumented) == 503
    assert (bool(asked), told) == (True, [])


@every_gate
def test_an_api_that_is_there_in_part_does_no_harm(gate, monkeypatch):
    """Where something has unloaded OpenTelemetry's context, a refusal is a refusal."""
    app = behind(gate, made(), telemetry={"tracing": False})
    monkeypatch.delitem(sys.modules, "opentelemetry.context")
    assert ask(app) == 503


def test_planned_maintenance_can_be_kept_out(native):
    """`telemetry={"exclude": …}` with what the object knows leaves no span of a refusal, and those of the rest."""
    configured, spans = native
    maintenance = made()
    exclude = {"exclude": lambda scope: maintenance.last_known_mode() is not None}
    app = behind("guard", maintenance, telemetry={**configured, **exclude})
    assert ask(app) == 503
    assert spans() == ()
    anyio.run(maintenance.disable)
    assert ask(app) == 200
    assert spans()


# Metrics


@every_gate
def test_refusals_are_counted(gate, points):
    """The counter tells the gate, the scope and the route with its include prefix and placeholders."""
    app = behind(gate, made(scope="billing"))
    assert [ask(app, path) for path in ("/api/1", "/api/2", "/missing")] == [503, 503, 404]
    attributes = {"maintenance.gate": gate, "maintenance.scope": "billing", "http.route": "/api/{number}"}
    assert points("maintenance.refusals") == [(attributes, 2)]


@every_gate
def test_served_requests_are_not_counted(gate, points):
    """While open nothing is counted."""
    assert ask(behind(gate, made(closed=False))) == 200
    assert points("maintenance.refusals") == []


def test_without_a_route_none_is_told(points):
    """Around an application without routes, a refusal is counted without one."""
    app = MaintenanceModeMiddleware(PlainTextResponse("open"), maintenance=made())
    assert ask(app) == 503
    assert points("maintenance.refusals") == [({"maintenance.gate": "middleware", "maintenance.scope": "default"}, 1)]


def test_the_gauge_says_open_or_closed(points):
    """The gauge is 1 while closed and 0 while open, for each scope."""
    billing, shop = made(scope="billing", closed=False), made(scope="shop")
    gauge = partial(points, "maintenance.active")

    def values():
        return {attributes["maintenance.scope"]: value for attributes, value in gauge()}

    assert values() == {"billing": 0, "shop": 1}
    anyio.run(partial(billing.enable, mode="read_only"))
    anyio.run(shop.disable)
    assert values() == {"billing": 1, "shop": 0}


@pytest.mark.parametrize(("when_unknown", "value"), [("open", 0), ("closed", 1)])
def test_the_gauge_while_nothing_is_known(when_unknown, value, points):
    """In a thread without an event loop, a state that nobody has looked at yet is what requests would take it for."""

    class Store:
        read_state = anyio.sleep_forever

    maintenance = Maintenance(MaintenanceSettings(on_backend_error=when_unknown), backend=Store())
    assert points("maintenance.active") == [({"maintenance.scope": maintenance.scope}, value)]


@pytest.mark.parametrize("first", [True, False])
def test_one_gauge_for_a_scope(first, points):
    """Two objects of one scope are one series: closed when either is."""
    objects = [made(closed=first), made(closed=not first)]
    assert [value for _, value in points("maintenance.active")] == [1]
    for maintenance in objects:
        anyio.run(maintenance.disable)
    assert [value for _, value in points("maintenance.active")] == [0]


def test_an_object_that_is_gone_is_not_observed(points):
    """The gauge keeps no object alive, and tells nothing of one that is gone."""
    maintenance = made(scope="billing")
    assert points("maintenance.active") == [({"maintenance.scope": maintenance.scope}, 1)]
    del maintenance
    gc.collect()
    assert points("maintenance.active") == []


def test_opentelemetry_that_is_imported_late(points, monkeypatch):
    """Where OpenTelemetry is imported after the object was made, it counts from the next refusal on."""
    metrics = sys.modules["opentelemetry.metrics"]
    monkeypatch.delitem(sys.modules, "opentelemetry.metrics")
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    app = behind("guard", made())
    assert ask(app) == 503
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", metrics)
    assert points("maintenance.active") == []
    assert [ask(app), ask(app)] == [503, 503]
    assert [value for _, value in points("maintenance.refusals")] == [2]
    assert [value for _, value in points("maintenance.active")] == [1]


def test_the_lifespan_begins_to_tell(points, monkeypatch):
    """With the lifespan the gauge is there from the start of the application."""
    metrics = sys.modules["opentelemetry.metrics"]
    monkeypatch.delitem(sys.modules, "opentelemetry.metrics")
    maintenance = made(closed=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", metrics)
    with TestClient(FastAPI(lifespan=maintenance.lifespan)):
        assert [value for _, value in points("maintenance.active")] == [0]


PROGRAM = """
import json
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from fastapi_maintenance import Maintenance

maintenance = Maintenance()
app = FastAPI(dependencies=[Depends(maintenance.guard)])
app.add_api_route("/x", lambda: 1)
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
assert TestClient(app).get("/x").status_code == 503
found = {
    metric["name"]: [point["value"] for point in metric["data"]["data_points"]]
    for resource in json.loads(reader.get_metrics_data().to_json())["resource_metrics"]
    for scope in resource["scope_metrics"]
    for metric in scope["metrics"]
    if scope["scope"]["name"] == "fastapi_maintenance"
}
print(json.dumps(found))
"""

WITHOUT = """
import builtins, json, sys
import fastapi
from fastapi.testclient import TestClient

def traces():
    return {name for name in sys.modules if name.partition(".")[0] == "opentelemetry"}

before, find = traces(), builtins.__import__
def watched(name, given=None, *rest):
    ours = (given or {}).get("__name__", "").startswith("fastapi_maintenance")
    assert not (ours and name.partition(".")[0] == "opentelemetry"), name
    return find(name, given, *rest)
builtins.__import__ = watched

from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware
if LOADED:
    sys.modules.update(dict.fromkeys(["opentelemetry.metrics", "opentelemetry.trace"]))
app = fastapi.FastAPI()
app.add_api_route("/x", lambda: 1)
app.add_middleware(MaintenanceModeMiddleware)
assert TestClient(app).get("/x").status_code == 503
print(json.dumps(sorted(traces() - before - {"opentelemetry.metrics", "opentelemetry.trace"})))
"""


def ran(source):
    """Run a program in an interpreter of its own, closed by the environment; give what it printed."""
    run = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-W", "error::ImportWarning", "-c", source],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
        env={"FASTAPI_MAINTENANCE_MODE": "1", "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_provider_that_is_set_late():
    """A provider of meters that is set after the object was made gets the figures, too."""
    pytest.importorskip("opentelemetry.sdk")
    assert ran(PROGRAM) == {"maintenance.refusals": [1], "maintenance.active": [1]}


def test_nothing_is_imported():
    """A refusal imports nothing of OpenTelemetry, and works where it is blocked."""
    assert ran(WITHOUT.replace("LOADED", "True")) == []
    assert ran(WITHOUT.replace("LOADED", "False")) == []


# The log


@every_gate
def test_a_refusal_is_logged_at_debug(gate, caplog):
    """A refusal is one record at debug, of no logger anything above: planned maintenance is not an error."""
    app = behind(gate, made())
    caplog.set_level(logging.DEBUG, "fastapi_maintenance")
    assert ask(app) == 503
    ours = [record for record in caplog.records if record.name == "fastapi_maintenance"]
    assert [record.getMessage() for record in ours] == ["Refused GET /api/3"]
    assert {record.levelno for record in ours} == {logging.DEBUG}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
