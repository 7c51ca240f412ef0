"""The warning at start-up of health probes that would be refused."""

import logging

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from fastapi_maintenance import (
    Maintenance,
    MaintenanceModeMiddleware,
    MaintenanceRoute,
    MaintenanceSettings,
    force_maintenance_mode_off,
    force_maintenance_mode_on,
    get_maintenance,
)
from fastapi_maintenance.backends import MemoryBackend

PATHS = ["/health", "/healthz", "/live", "/livez", "/ready", "/readyz"]
GATES = ("guard", "guard_unless", "route class", "middleware")

every_gate = pytest.mark.parametrize("gate", GATES)


def made(**configured):
    """Give an object of its own."""
    return Maintenance(MaintenanceSettings(**configured), backend=MemoryBackend())


def behind(gate, maintenance, add, prefix=""):
    """Give an app with the operations that `add` puts on an included router, behind one gate."""
    guards = {"guard": maintenance.guard, "guard_unless": maintenance.guard_unless(lambda: False)}
    app = FastAPI(
        dependencies=[Depends(guards[gate])] if gate in guards else None,
        lifespan=None if gate == "middleware" else maintenance.lifespan,
    )
    router = APIRouter(route_class=maintenance.route_class) if gate == "route class" else APIRouter()
    add(router)
    app.include_router(router, prefix=prefix)
    if gate == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    return app


def adding(*paths, mark=None, **route):
    """Give a function that adds an operation at each path."""

    def add(router):
        for path in paths:
            router.add_api_route(path, mark(lambda: "well") if mark else lambda: "well", **route)

    return add


@pytest.fixture
def warned(caplog):
    """Give a function that starts and stops an application, and gives the probes that were warned of."""

    def start(app):
        caplog.clear()
        with TestClient(app):
            pass
        records = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert all("@force_maintenance_mode_off" in record.getMessage() for record in records)
        assert all("FASTAPI_MAINTENANCE_EXEMPT_PATHS" in record.getMessage() for record in records)
        assert all(record.path in record.getMessage() for record in records)
        return sorted(record.path for record in records)

    return start


@every_gate
def test_gated_probes_are_warned_of(gate, warned):
    """Each well-known probe path behind a gate is named once, and the warning says what to do."""
    app = behind(gate, made(), adding(*PATHS, "/", "/healthy", "/health/deep"))
    assert warned(app) == PATHS


@every_gate
@pytest.mark.parametrize("prefix", ["/api", ""])
@pytest.mark.parametrize("path", ["/healthz", "/health"])
def test_the_path_is_the_one_with_its_prefix(gate, prefix, path, warned):
    """What counts is where a probe is served, its prefix included."""
    assert warned(behind(gate, made(), adding(path), prefix)) == ([] if prefix else [path])


@every_gate
def test_a_path_that_becomes_one_by_its_prefix(gate, warned):
    """A prefix may make the path of a probe."""
    assert warned(behind(gate, made(), adding(""), "/healthz")) == ["/healthz"]


@every_gate
@pytest.mark.parametrize(("mark", "expected"), [(force_maintenance_mode_off, []), (force_maintenance_mode_on, PATHS)])
def test_marks(gate, mark, expected, warned):
    """A probe that is forced off needs no warning, one that is forced on does."""
    assert warned(behind(gate, made(), adding(*PATHS, mark=mark))) == expected


@every_gate
@pytest.mark.parametrize(
    ("exempt", "expected"),
    [(["/health"], ["/healthz"]), (["/health/*"], ["/healthz"]), (["/*"], []), (["/other"], ["/health", "/healthz"])],
)
def test_exempt_paths(gate, exempt, expected, warned):
    """A probe that is exempt by its path needs no warning."""
    assert warned(behind(gate, made(exempt_paths=exempt), adding("/health", "/healthz"))) == expected


@every_gate
@pytest.mark.parametrize(
    ("methods", "expected"), [(["GET"], ["/health"]), (["GET", "POST"], ["/health"]), (["POST"], [])]
)
def test_a_probe_is_asked_with_get(gate, methods, expected, warned):
    """An operation that GET does not reach is no probe."""
    assert warned(behind(gate, made(), adding("/health", methods=methods))) == expected


def test_probes_that_no_gate_covers(warned):
    """Probes beside the gates are served anyway."""
    maintenance = made()
    app = FastAPI(lifespan=maintenance.lifespan)
    adding(*PATHS)(app)
    gated = APIRouter(route_class=maintenance.route_class, dependencies=[Depends(maintenance.guard)])
    adding("/x")(gated)
    app.include_router(gated)
    assert warned(app) == []


@every_gate
def test_gates_of_another_object(gate, warned):
    """An object speaks of its own gates alone."""
    app = behind(gate, made(), adding(*PATHS))
    app.router.lifespan_context = made().lifespan
    own = [] if gate != "middleware" else PATHS
    assert warned(app) == own


@pytest.mark.parametrize("default", [True, False])
def test_the_unbound_route_class(default, warned):
    """Probes of the unbound route class are the default object's."""
    maintenance = get_maintenance() if default else made()
    app = FastAPI(lifespan=maintenance.lifespan)
    app.router.route_class = MaintenanceRoute
    adding("/health")(app)
    assert warned(app) == (["/health"] if default else [])


def test_the_default_middleware(warned):
    """A middleware without an object warns for the default one."""
    app = FastAPI()
    adding("/health")(app)
    app.add_middleware(MaintenanceModeMiddleware)
    assert warned(app) == ["/health"]


def test_each_probe_is_warned_of_once(warned):
    """Middleware, guard, route class and lifespan of one object give one warning for a probe, started again none."""
    maintenance = made()
    app = FastAPI(dependencies=[Depends(maintenance.guard)], lifespan=maintenance.lifespan)
    app.router.route_class = maintenance.route_class
    adding("/health", "/ready")(app)
    app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    assert warned(app) == ["/health", "/ready"]
    assert warned(app) == []


class Probe(HTTPEndpoint):
    """A probe that is a class, for which its route lists no methods."""

    get = None


@pytest.mark.parametrize("kind", [FastAPI, Starlette])
def test_plain_routes_behind_the_middleware(kind, warned):
    """Plain Starlette routes are probes, too: a function, or a class with methods; in Starlette itself as well."""
    app = kind(routes=[Route("/health", PlainTextResponse("well").render), Route("/ready", Probe)])
    app.add_middleware(MaintenanceModeMiddleware, maintenance=made())
    assert warned(app) == ["/health", "/ready"]


def test_around_an_application_that_nobody_knows(warned):
    """Around an application without routes the start goes as usual."""

    async def unknown(scope, receive, send):
        for done in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
            await receive()
            await send({"type": done})

    assert warned(MaintenanceModeMiddleware(unknown, maintenance=made())) == []
