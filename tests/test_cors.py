"""Browsers on other origins: a refusal carries the CORS headers that any answer of the app does."""

from functools import partial

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.testclient import TestClient
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware  # noqa: TID251 - users have it
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware

from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware, force_maintenance_mode_on
from fastapi_maintenance.backends import MemoryBackend

ORIGIN = "https://shop.example"
FOREIGN = "https://foreign.example"
CORS = Middleware(
    CORSMiddleware,
    allow_origins=[ORIGIN],
    allow_methods=["GET", "PUT"],
    allow_headers=["X-Token"],
    allow_credentials=True,
    expose_headers=["Retry-After"],
)
ANY_ORIGIN = Middleware(CORSMiddleware, allow_origins=["*"])
WITH_COOKIE = Middleware(CORSMiddleware, allow_origins=["*"], allow_credentials=True)
PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}


class Stamp(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)


class StrictCORS(CORSMiddleware):
    """A user's own subclass."""


class Hiding:
    """A middleware that keeps what it wraps to itself."""

    def __init__(self, app):
        self.hidden = app

    async def __call__(self, scope, receive, send):
        await self.hidden(scope, receive, send)


GZIP = Middleware(GZipMiddleware, minimum_size=10_000)
SESSIONS = Middleware(SessionMiddleware, secret_key="test")  # noqa: S106 - a test's
STAMP = Middleware(Stamp)
HIDING = Middleware(Hiding)


def plain(maintenance, *middleware):
    """Give an app with one operation and `middleware`, outermost first."""
    app = FastAPI(middleware=list(middleware))
    app.add_api_route("/x", lambda: 1, methods=["GET", "PUT"])
    return app


def ours(maintenance):
    """Give the entry of our middleware in a list."""
    return Middleware(MaintenanceModeMiddleware, maintenance=maintenance)


def guarded(maintenance):
    """Close with the guard."""
    app = FastAPI(dependencies=[Depends(maintenance.guard)], middleware=[CORS])
    app.add_api_route("/x", lambda: 1, methods=["GET", "PUT"])
    return app


def routed(maintenance):
    """Close with the route class."""
    app = FastAPI(middleware=[CORS])
    router = APIRouter(route_class=maintenance.route_class)
    router.add_api_route("/x", lambda: 1, methods=["GET", "PUT"])
    app.include_router(router)
    return app


def added(maintenance, *, first):
    """Add our middleware with `add_middleware`, before or after CORS."""
    app = plain(maintenance)
    if first:
        app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    app.add_middleware(CORS.cls, **CORS.kwargs)
    if not first:
        app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    return app


def listed(*entries):
    """Give an app by the list of its middleware, outermost first; `None` stands for ours."""

    def make(maintenance):
        return plain(maintenance, *(entry or ours(maintenance) for entry in entries))

    return make


def wrapped(*inside, outside=()):
    """Wrap our middleware, and more `outside` of the app, around a whole app."""

    def make(maintenance):
        app = plain(maintenance, *inside)
        for entry in outside:
            app = entry.cls(app, **entry.kwargs)
        return MaintenanceModeMiddleware(app, maintenance=maintenance)

    return make


def mounted(maintenance):
    """Mount a wrapped app with CORS of its own, hidden from ours, in an app without."""
    outer = FastAPI()
    inner = CORS.cls(Hiding(plain(maintenance)), **CORS.kwargs)
    outer.mount("", MaintenanceModeMiddleware(inner, maintenance=maintenance))
    return outer


APPS = {
    "guard": guarded,
    "route class": routed,
    "added before": partial(added, first=True),
    "added after": partial(added, first=False),
    "listed outside": listed(None, CORS),
    "listed inside": listed(CORS, None),
    "behind others": listed(None, GZIP, SESSIONS, STAMP, CORS),
    "between others": listed(GZIP, None, STAMP, CORS, SESSIONS),
    "a subclass": listed(None, Middleware(StrictCORS, **CORS.kwargs)),
    "any origin": listed(None, ANY_ORIGIN),
    "any origin with cookies": listed(None, WITH_COOKIE),
    "hidden behind": listed(None, HIDING, CORS),
    "hidden before": listed(None, CORS, HIDING),
    "hidden, outside of ours": listed(CORS, None, HIDING),
    "wrapped around the app": wrapped(CORS),
    "wrapped around CORS": wrapped(outside=[CORS]),
    "wrapped around CORS and the app's own": wrapped(GZIP, CORS, outside=[STAMP]),
    "wrapped around CORS around a hidden app": wrapped(outside=[HIDING, CORS]),
    "mounted around CORS around a hidden app": mounted,
}
every_app = pytest.mark.parametrize("make", APPS.values(), ids=APPS)


def cors_headers(response):
    """Give what a browser reads of an answer to another origin, with what CORS adds to Vary."""
    found = {name: value for name, value in response.headers.items() if name.startswith("access-control-")}
    vary = response.headers.get("Vary", "").replace(",", " ").split()
    return found, [name for name in vary if not name.startswith("Accept")]


def close(maintenance):
    """Close it."""
    anyio.run(maintenance.enable)


@every_app
@pytest.mark.parametrize("origin", [ORIGIN, FOREIGN, None], ids=["own", "foreign", "none"])
@pytest.mark.parametrize("cookie", [{}, {"Cookie": "a=b"}], ids=["no cookie", "cookie"])
def test_same_headers_as_while_open(make, origin, cookie):
    """The 503 carries exactly the CORS headers that a 200 has for the same origin."""
    maintenance = Maintenance(backend=MemoryBackend())
    client = TestClient(make(maintenance))
    headers = cookie if origin is None else {"Origin": origin, **cookie}
    answers = [client.get("/x", headers=headers)]
    close(maintenance)
    answers += [client.get("/x", headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 503, 503]
    assert cors_headers(answers[0]) == cors_headers(answers[1]) == cors_headers(answers[2])
    assert answers[1].headers["Vary"].startswith("Accept")


def test_own_and_foreign_origins():
    """The configured origin is allowed to read a refusal, a foreign one is not."""
    maintenance = Maintenance(backend=MemoryBackend())
    close(maintenance)
    client = TestClient(added(maintenance, first=False))
    own, foreign = (client.get("/x", headers={"Origin": origin}) for origin in (ORIGIN, FOREIGN))
    assert own.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert own.headers["Access-Control-Expose-Headers"] == "Retry-After"
    assert "Access-Control-Allow-Origin" not in foreign.headers


@every_app
@pytest.mark.parametrize("origin", [ORIGIN, FOREIGN], ids=["own", "foreign"])
def test_preflights_are_answered(make, origin):
    """A preflight is answered as while open: 200 for an origin that is allowed."""
    maintenance = Maintenance(backend=MemoryBackend())
    client = TestClient(make(maintenance))
    answers = [client.options("/x", headers={**PREFLIGHT, "Origin": origin})]
    close(maintenance)
    answers.append(client.options("/x", headers={**PREFLIGHT, "Origin": origin}))
    assert answers[0].status_code == answers[1].status_code
    assert cors_headers(answers[0]) == cors_headers(answers[1])
    assert answers[1].status_code == 200 or origin == FOREIGN


def test_preflight_to_a_mount():
    """A preflight to a mount, which takes any method, is answered by the app's CORS middleware as well."""
    maintenance = Maintenance(backend=MemoryBackend())
    app = plain(maintenance, ours(maintenance), CORS)
    app.mount("/files", Hiding(plain(maintenance)))
    close(maintenance)
    client = TestClient(app)
    assert client.options("/files/x", headers=PREFLIGHT).status_code == 200
    assert client.put("/files/x", headers={"Origin": ORIGIN}).headers["Access-Control-Allow-Origin"] == ORIGIN


def test_marks_behind_a_middleware_that_hides_the_app():
    """A route that is forced on is refused while open, though a middleware hides the app."""
    maintenance = Maintenance(backend=MemoryBackend())
    app = plain(maintenance, ours(maintenance), HIDING, CORS)
    app.add_api_route("/beta", force_maintenance_mode_on(lambda: 1))
    client = TestClient(app)
    assert [client.get(path).status_code for path in ("/x", "/beta", "/none", "/x")] == [200, 503, 404, 200]
