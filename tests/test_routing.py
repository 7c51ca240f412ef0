"""What the matrix does not reach: odd ways to build an application, marks that come late, and one decision only."""

import copy
from itertools import pairwise
from unittest.mock import AsyncMock, Mock

import anyio
import fastapi
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Match, Mount, Route, Router

from fastapi_maintenance import (
    Maintenance,
    MaintenanceModeMiddleware,
    MaintenanceRoute,
    MaintenanceSettings,
    force_maintenance_mode_off,
    force_maintenance_mode_on,
)
from fastapi_maintenance.backends import MemoryBackend
from fastapi_maintenance.decision import Verdict
from fastapi_maintenance.inflight import NOTES, Passage, noted
from fastapi_maintenance.marks import Marks
from fastapi_maintenance.routing import Marked, _match_leaf, _seen_by, operation_of, routed

FASTAPI = tuple(int(part) for part in fastapi.__version__.split(".")[:2])
live_routers = pytest.mark.skipif(FASTAPI < (0, 137), reason="routers are copied when they are included")
has_frontend = pytest.mark.skipif(FASTAPI < (0, 138), reason="no app.frontend()")


def open_one(**options):
    """Give an object of its own that is open."""
    return Maintenance(backend=MemoryBackend(), **options)


def closed_one(**options):
    """Give an object of its own that is closed."""
    maintenance = open_one(**options)
    anyio.run(maintenance.enable)
    return maintenance


def scope_of(path, method="GET", **more):
    """Give the ASGI scope of a request."""
    return {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", **more}


def statuses(app, *paths, **options):
    """Give the status of a GET to each path."""
    client = TestClient(app, **options)
    return [client.get(path, follow_redirects=False).status_code for path in paths]


class Hiding:
    """A middleware that does not show what it wraps."""

    def __init__(self, wrapped):
        self._wrapped = wrapped

    async def __call__(self, scope, receive, send):
        """Call what is behind."""
        await self._wrapped(scope, receive, send)


class Shorter:
    """A middleware that takes /v1 from the path, and hides what it wraps."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """Call what is behind with the shorter path."""
        await self.app({**scope, "path": scope["path"].removeprefix("/v1")}, receive, send)


# operation_of


AROUND = {
    "nothing": lambda sub: sub,
    "middleware": lambda sub: GZipMiddleware(GZipMiddleware(sub)),
    "own gate": lambda sub: MaintenanceModeMiddleware(sub, maintenance=open_one()),
    "router": lambda sub: Router([Mount("", sub)]),
    "Starlette": lambda sub: Starlette(routes=[Mount("/", sub)]),
}


@pytest.mark.parametrize("wrapped", AROUND.values(), ids=AROUND)
def test_operation_behind_what_wraps_a_mount(wrapped):
    """The operation of a mounted application is found through middleware and routers around it, and so is its 404."""
    sub, app = FastAPI(), FastAPI()
    endpoint = sub.get("/op")(lambda: 1)
    app.mount("/sub", wrapped(sub))
    assert operation_of(app, scope_of("/sub/op")).endpoint is endpoint
    assert operation_of(app, scope_of("/sub/nowhere")) is None
    assert operation_of(app, scope_of("/sub/openapi.json")).docs
    assert statuses(app, "/sub/op", "/sub/nowhere") == [200, 404]


def test_operation_of_leaves_the_scope_alone():
    """To look for an operation changes nothing in the scope of the request."""
    app, router = FastAPI(), APIRouter()
    endpoint = router.get("/op")(lambda: 1)
    app.include_router(router, prefix="/in")
    for more in ({}, {"fastapi": {"kept": 1}}):
        scope = scope_of("/in/op", **more)
        assert operation_of(app, scope).endpoint is endpoint
        assert scope == scope_of("/in/op", **more)


def test_routed_gives_up_on_a_loop():
    """Middleware that wraps itself does not hang the search."""
    loop = GZipMiddleware(None)
    loop.app = loop
    assert routed(loop) is None


class ByVersion(APIRoute):
    """A route that is asked for by a header."""

    version = b"1"

    def matches(self, scope):
        """Match as any route, but only with the header."""
        match, child = super().matches(scope)
        return (match, child) if (b"version", self.version) in scope["headers"] else (Match.NONE, {})


class BySecondVersion(ByVersion):
    """The same for the second version."""

    version = b"2"


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_own_matches_of_an_included_route(depth):
    """A route class with `matches()` of its own decides which of two operations at one path is meant, and its mark."""
    routers = [APIRouter() for _ in range(depth + 1)]
    add = routers[0].add_api_route
    add("/op", force_maintenance_mode_on(lambda: 1), route_class_override=ByVersion)
    add("/op", lambda: 2, route_class_override=BySecondVersion)
    for inner, outer in pairwise(routers):
        outer.include_router(inner, prefix="/in")
    app = FastAPI()
    app.include_router(routers[-1])
    app.add_middleware(MaintenanceModeMiddleware, maintenance=open_one())
    client = TestClient(app)
    answers = [client.get("/in" * depth + "/op", headers={"version": v}).status_code for v in ("1", "2", "3")]
    assert answers == [503, 200, 404]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_each_included_route_is_asked_once(depth):
    """To look for an operation asks every route before it once, and none behind it, however deep they are included."""
    asked = []

    class Asked(APIRoute):
        def matches(self, scope):
            asked.append(self.path)
            return super().matches(scope)

    routers = [APIRouter(route_class=Asked) for _ in range(depth + 1)]
    for path in ("/first", "/second", "/third"):
        routers[0].get(path)(lambda: 1)
    for inner, outer in pairwise(routers):
        outer.include_router(inner)
    app = FastAPI(openapi_url=None)
    app.include_router(routers[-1])
    assert operation_of(app, scope_of("/second")).path == "/second"
    assert asked == ["/first", "/second"]


def test_a_later_route_that_matches_wholly_goes_first():
    """A route with another method, in the same or another included router, does not hide the operation behind it."""
    app, first, second = FastAPI(), APIRouter(), APIRouter()
    first.post("/here")(lambda: 1)
    first.post("/there")(lambda: 2)
    here = first.get("/here")(lambda: 3)
    there = second.get("/there")(lambda: 4)
    app.include_router(first, prefix="/in")
    app.include_router(second, prefix="/in")
    assert operation_of(app, scope_of("/in/here")).endpoint is here
    assert operation_of(app, scope_of("/in/there")).endpoint is there
    assert operation_of(app, scope_of("/in/here", "PUT")) is None


@live_routers
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_own_matches_of_an_included_router(depth):
    """A router with `matches()` of its own is asked, however deep it is included: what it leaves out stays 404."""

    class Off(APIRouter):
        def matches(self, scope):
            return Match.NONE, {}

    routers = [Off(), *(APIRouter() for _ in range(depth))]
    routers[0].get("/off")(lambda: 1)
    for inner, outer in pairwise(routers):
        outer.include_router(inner)
        outer.get("/on")(lambda: 2)
    app = FastAPI()
    app.include_router(routers[-1])
    app.add_middleware(MaintenanceModeMiddleware, maintenance=closed_one())
    assert statuses(app, "/off", "/on") == [404, 503 if depth else 404]


@live_routers
def test_an_operation_that_cannot_be_identified_is_unmarked():
    """What a router with `matches()` of its own answers by itself is refused while closed, and not before."""

    class CatchAll(APIRouter):
        def matches(self, scope):
            return (Match.FULL if scope["path"].startswith("/any") else Match.NONE), {}

        async def handle(self, scope, receive, send):
            await PlainTextResponse()(scope, receive, send)

    maintenance, app, router = open_one(), FastAPI(), CatchAll()
    router.get("/op")(force_maintenance_mode_on(lambda: 1))
    app.include_router(router)
    app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    assert statuses(app, "/any/thing", "/op") == [200, 404]
    anyio.run(maintenance.enable)
    assert statuses(app, "/any/thing", "/op") == [503, 404]


@pytest.mark.parametrize("exempt_docs", [True, False])
def test_docs_are_exact_and_of_the_application_that_answers(exempt_docs):
    """Only the very paths of the application that answers are documentation, and only its own endpoints."""
    app, sub, own = FastAPI(docs_url="/manual"), FastAPI(docs_url=None), FastAPI(openapi_url=None)
    for path in ("/manual/more", "/manuals", "/more/manual"):
        app.add_route(path, lambda request: PlainTextResponse())
    sub.add_route("/docs", lambda request: PlainTextResponse())
    sub.add_route("/manual", lambda request: PlainTextResponse())
    own.get("/docs")(lambda: 1)
    app.mount("/part", sub)
    app.mount("/own", own)
    maintenance = closed_one(settings=MaintenanceSettings(exempt_docs=exempt_docs))
    app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    docs = 200 if exempt_docs else 503
    assert statuses(app, "/manual", "/openapi.json", "/part/openapi.json") == [docs] * 3
    others = ("/manual/more", "/manuals", "/more/manual", "/part/docs", "/part/manual", "/own/docs")
    assert statuses(app, *others) == [503] * len(others)


@has_frontend
@pytest.mark.parametrize("redirects", [True, False])
def test_redirect_goes_before_a_frontend(redirects, tmp_path):
    """Redirects to the path with or without a slash, and 405, are answered though `app.frontend()` is there, too."""
    (tmp_path / "index.html").write_text("index")
    app = FastAPI(redirect_slashes=redirects)
    app.get("/slash/")(lambda: 1)
    app.post("/form")(lambda: 1)
    app.get("")(lambda: 1)
    app.frontend("/", directory=tmp_path, fallback=None)
    maintenance = open_one()
    app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    paths = ("/slash", "/form/", "/form", "/index.html", "/")
    redirected = [307, 307] if redirects else [404, 404]
    assert statuses(app, *paths) == [*redirected, 405, 200, 200]
    anyio.run(maintenance.enable)
    redirected = [307, 307] if redirects else [503, 503]
    assert statuses(app, *paths) == [*redirected, 405, 503, 503]


@has_frontend
def test_frontend_of_an_included_router(tmp_path):
    """A frontend of an included router is an operation, its 405 and what is not below it are not."""
    (tmp_path / "index.html").write_text("index")
    app, inner, outer = FastAPI(), APIRouter(), APIRouter()
    inner.frontend("/pages", directory=tmp_path)
    outer.include_router(inner, prefix="/inner")
    app.include_router(outer, prefix="/outer")
    app.add_middleware(MaintenanceModeMiddleware, maintenance=closed_one())
    assert statuses(app, "/outer/inner/pages/index.html", "/outer/inner/other") == [503, 404]
    assert TestClient(app).post("/outer/inner/pages/index.html").status_code == 405


def test_no_redirect_where_they_are_turned_off():
    """An application without slash redirects answers 404 itself."""
    app = FastAPI(redirect_slashes=False)
    app.get("/slash/")(lambda: 1)
    app.add_middleware(MaintenanceModeMiddleware, maintenance=closed_one())
    assert statuses(app, "/slash", "/slash/") == [404, 503]


# Where the middleware stands


def marked_app():
    """Give an application with an operation of each mark."""
    app = FastAPI()
    app.get("/plain")(lambda: 1)
    app.get("/on")(force_maintenance_mode_on(lambda: 1))
    app.get("/off")(force_maintenance_mode_off(lambda: 1))
    return app


def from_outside(app, maintenance):
    """Wrap the application."""
    return MaintenanceModeMiddleware(app, maintenance=maintenance)


def from_inside(app, maintenance):
    """Add the middleware to the application."""
    app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    return app


def around_a_hiding_one(app, maintenance):
    """Add the middleware outside of one that does not show what it wraps."""
    app.add_middleware(Hiding)
    return from_inside(app, maintenance)


PATHS = ("/plain", "/on", "/off", "/nowhere", "/docs", "/plain/")


@pytest.mark.parametrize("root_path", ["", "/api"])
@pytest.mark.parametrize("wrap", [from_outside, from_inside, around_a_hiding_one])
def test_middleware_around_an_application(wrap, root_path):
    """Wrapped from outside or from inside, with or without a root path: marks, docs and 404 are what they are."""
    app, maintenance = marked_app(), open_one()
    app.root_path = root_path
    served = wrap(app, maintenance)
    paths = [root_path + path for path in PATHS]
    assert statuses(served, *paths) == [200, 503, 200, 404, 200, 307]
    anyio.run(maintenance.enable)
    assert statuses(served, *paths) == [503, 503, 200, 404, 200, 307]


@pytest.mark.parametrize("root_path", ["", "/other"])
@pytest.mark.parametrize("wrap", [from_outside, from_inside, around_a_hiding_one])
def test_middleware_around_a_mounted_application(wrap, root_path):
    """A mounted application is gated by its own middleware, whose 404 stays, and the one around it is not."""
    app, sub, maintenance = FastAPI(), marked_app(), open_one()
    app.get("/plain")(lambda: 1)
    sub.root_path = root_path
    app.mount("/other", wrap(sub, maintenance))
    paths = ["/plain", *("/other" + path for path in PATHS)]
    assert statuses(app, *paths) == [200, 200, 503, 200, 404, 200, 307]
    anyio.run(maintenance.enable)
    assert statuses(app, *paths) == [200, 503, 503, 200, 404, 200, 307]


@pytest.mark.parametrize("wrap", [from_outside, from_inside, around_a_hiding_one])
def test_an_application_that_mounts_itself(wrap):
    """An application may stand below itself: its marks hold at all of its paths."""
    app, maintenance = marked_app(), open_one()
    # First of all, so that it is looked through before a mark is found.
    app.router.routes.insert(0, Mount("/again", app))
    served = wrap(app, maintenance)
    paths = ["/plain", "/again/on", "/again/off", "/again/again/plain"]
    assert statuses(served, *paths) == [200, 503, 200, 200]
    anyio.run(maintenance.enable)
    assert statuses(served, *paths) == [503, 503, 200, 503]


def test_applications_that_mount_one_another(monkeypatch):
    """Each is looked through once for each mount of the outer one, however they are connected; marks hold in all."""
    apps = [FastAPI() for _ in range(8)]
    for app in apps:
        for number, other in enumerate(apps):
            app.mount(f"/{number}", other)
    apps[-1].get("/on")(force_maintenance_mode_on(lambda: 1))
    apps[0].get("/plain")(lambda: 1)
    looks, walk = [], Marked._walk
    monkeypatch.setattr(Marked, "_walk", lambda self, router: looks.append(router) or walk(self, router))
    apps[0].add_middleware(MaintenanceModeMiddleware, maintenance=open_one())
    assert statuses(apps[0], "/7/on", "/1/7/on", "/3/2/7/on", "/plain") == [503, 503, 503, 200]
    assert len(looks) <= 1 + len(apps) ** 2


def test_root_path_of_a_mounted_application_is_the_one_that_counts():
    """A mounted application with a `root_path` of its own answers 404 for other paths, and that is left to it."""
    app, sub = FastAPI(), FastAPI()
    sub.get("/op")(lambda: 1)
    sub.root_path = "/elsewhere"
    app.mount("/sub", sub)
    app.add_middleware(MaintenanceModeMiddleware, maintenance=closed_one())
    assert statuses(app, "/sub/op") == [404]


async def bare(scope, receive, send):
    """Answer everything."""
    await PlainTextResponse()(scope, receive, send)


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (lambda app: app, [200, 503]),
        (force_maintenance_mode_on, [503, 503]),
        (force_maintenance_mode_off, [200, 200]),
    ],
    ids=["unmarked", "on", "off"],
)
@pytest.mark.parametrize("place", ["alone", "mounted", "mounted inside another", "on a route", "mounted as routes"])
def test_application_without_routes(mark, expected, place):
    """An application without routes, or a single route, is one operation, by its own mark and at each path below."""
    maintenance, endpoint = open_one(), mark(Hiding(bare))
    gate = Middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    gated = MaintenanceModeMiddleware(endpoint, maintenance=maintenance)
    app = FastAPI()
    routes = {
        "alone": lambda: gated,
        "mounted": lambda: Mount("/x", gated),
        "mounted inside another": lambda: Mount("/x", Hiding(gated)),
        "on a route": lambda: Route("/x/y", mark(lambda request: PlainTextResponse()), middleware=[gate]),
        "mounted as routes": lambda: Mount("/x", routes=[Route("/y", endpoint)], middleware=[gate]),
    }
    served = routes[place]()
    if place != "alone":
        app.router.routes.append(served)
        app.get("/free")(lambda: 1)
        assert statuses(app, "/free", "/nowhere") == [200, 404]
        served = app
    opened = statuses(served, "/x/y")
    anyio.run(maintenance.enable)
    assert [*opened, *statuses(served, "/x/y")] == expected


@pytest.mark.parametrize("place", ["app", "mounted"])
def test_static_files_with_a_middleware_of_their_own(place, tmp_path):
    """Static files behind their own middleware are gated by it, the application around them is not."""
    (tmp_path / "page.html").write_text("page")
    app, around, maintenance = FastAPI(), FastAPI(), open_one()
    app.get("/op")(lambda: 1)
    app.mount("/static", MaintenanceModeMiddleware(StaticFiles(directory=tmp_path), maintenance=maintenance))
    around.mount("/in", app)
    served, prefix = {"app": (app, ""), "mounted": (around, "/in")}[place]
    paths = [prefix + path for path in ("/op", "/static/page.html", "/static/nothing")]
    assert statuses(served, *paths) == [200, 200, 404]
    anyio.run(maintenance.enable)
    assert statuses(served, *paths) == [200, 503, 503]


# Marked operations


class Untouched(list):
    """A list that nobody looks into."""

    def __iter__(self):
        raise AssertionError


class Unasked(Router):
    """A router that answers by itself, and must not be asked for a route."""

    def __init__(self):
        super().__init__()
        self.route = Mock(spec=Route, endpoint=None, app=None)
        self.route.matches.side_effect = AssertionError
        self.routes = [self.route]

    async def __call__(self, scope, receive, send):
        """Answer."""
        await bare(scope, receive, send)


def test_no_route_is_looked_at_while_nothing_is_marked(monkeypatch):
    """An open middleware does not look into the routes without marks; with one, or closed, it does."""
    monkeypatch.setattr(Marks, "count", 0)
    maintenance, app = open_one(), Unasked()
    app.routes = Untouched(app.routes)
    served = from_outside(app, maintenance)
    assert statuses(served, "/op") == [200]
    assert app.route.mock_calls == []
    monkeypatch.setattr(Marks, "count", 1)
    with pytest.raises(AssertionError):
        statuses(served, "/op")
    monkeypatch.setattr(Marks, "count", 0)
    anyio.run(maintenance.enable)
    with pytest.raises(AssertionError):
        statuses(served, "/op")


@pytest.mark.parametrize("mark", [force_maintenance_mode_on, force_maintenance_mode_off])
def test_no_route_is_asked_while_no_route_is_marked(mark):
    """With marks elsewhere an open middleware asks no route whether it matches."""
    app = Unasked()
    force_maintenance_mode_on(lambda: 1)
    app.route.endpoint = lambda: 1
    assert statuses(from_outside(app, open_one()), "/op") == [200]
    app.route.matches.assert_not_called()
    app.route.endpoint = mark(lambda: 1)
    with pytest.raises(AssertionError):
        statuses(from_outside(app, open_one()), "/op")


def places(app):
    """Give the places of an application where an operation may be added, with their prefixes."""
    sub, hosted, deep = FastAPI(), FastAPI(), FastAPI()
    inner, middle, outer = APIRouter(), APIRouter(), APIRouter()
    middle.include_router(inner, prefix="/inner")
    outer.include_router(middle, prefix="/middle")
    app.include_router(outer, prefix="/outer")
    sub.mount("/deep", GZipMiddleware(deep))
    app.mount("/sub", sub)
    app.host("hosted.example.org", hosted)
    return {"": app, "/sub": sub, "/sub/deep": deep, "host": hosted, "/outer/middle/inner": inner}


PREFIXES = ["", "/sub", "/sub/deep", "host", pytest.param("/outer/middle/inner", marks=live_routers)]


def ask(app, prefix):
    """Give the statuses of the marked operation, and of the other one at the same place."""
    base_url, prefix = ("http://hosted.example.org", "") if prefix == "host" else ("http://testserver", prefix)
    return statuses(app, prefix + "/op", prefix + "/other", base_url=base_url)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_route_added_after_the_start(prefix):
    """An operation that is forced on is refused in an open application, also when its route comes late."""
    app, endpoint = FastAPI(), force_maintenance_mode_on(lambda: 1)
    place = places(app)[prefix]
    place.get("/other")(lambda: 1)
    from_inside(app, open_one())
    assert ask(app, prefix) == [404, 200]
    place.get("/op")(endpoint)
    assert ask(app, prefix) == [503, 200]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_mark_set_late(prefix):
    """A mark that is set after the first request counts at the next one, and for its operation only."""
    app = FastAPI()
    place = places(app)[prefix]
    endpoint = place.get("/op")(lambda: 1)
    place.get("/other")(lambda: 1)
    from_inside(app, open_one())
    assert ask(app, prefix) == [200, 200]
    force_maintenance_mode_on(endpoint)
    assert ask(app, prefix) == [503, 200]


def test_a_suspect_is_not_yet_refused():
    """An operation that stands before one that is forced on at the same path is not refused for it."""
    app = FastAPI()
    app.get("/op/first")(lambda: 1)
    app.get("/op/{name}")(force_maintenance_mode_on(lambda name: name))
    app.post("/op/{name}")(lambda name: name)
    from_inside(app, open_one())
    assert statuses(app, "/op/first", "/op/second") == [200, 503]
    assert TestClient(app).post("/op/second").status_code == 200


def test_host_in_an_included_router_and_mount_in_a_host():
    """What is marked below a host, and below a mount there, is found by `Marked`, the rest of the host is not."""
    sub = FastAPI()
    sub.get("/op")(force_maintenance_mode_on(lambda: 1))
    app = FastAPI(routes=[Host("hosted.example.org", Router([Mount("/sub", sub)]))])
    marked = Marked(app)
    headers = [(b"host", b"hosted.example.org")]
    assert marked.may_match(scope_of("/sub/op", headers=headers))
    assert not marked.may_match(scope_of("/sub/op"))


class Lenient(APIRoute):
    """A route with a way of its own to tell what it answers."""

    def matches(self, scope):
        """Answer what ends like its path, too."""
        return super().matches({**scope, "path": "/" + scope["path"].rpartition("/")[2]})


class Reserved(APIRouter):
    """A router with a way of its own to tell that nothing in it is meant."""

    def matches(self, scope):
        """Match nothing."""
        return Match.NONE, {}


def test_a_router_that_declines_hides_what_is_in_it():
    """Where a router's own `matches` declines, the operation is the next one, as it is for FastAPI."""
    app, outer, inner = FastAPI(), APIRouter(), Reserved()
    inner.get("/op")(force_maintenance_mode_off(lambda: "hidden"))
    outer.include_router(inner)

    @outer.get("/op")
    def shown():
        return "shown"

    app.include_router(outer)
    shows = TestClient(app).get("/op").json() == "shown"
    assert (operation_of(app, scope_of("/op")).endpoint is shown) is shows


class Grouped(StringConvertor):
    """A convertor whose pattern has a group that it refers to."""

    regex = r"(.)\2"


class Referring(Grouped):
    """A convertor whose pattern refers to another parameter by its name."""

    regex = r"(?P=n)"


class Numbering(Grouped):
    """A convertor whose pattern refers to another parameter by its number."""

    regex = r"\1"


CONVERTORS = {
    "own groups": (Grouped, "/{n:own}/a"),
    "refers to a name": (Referring, "/{n}/{again:own}"),
    "refers to a number": (Numbering, "/{n}/{again:own}"),
}
BY_PATH = ["plain", "parameters", "included", "mount", "websocket", "root path"]
BY_MORE = ["own matches", *CONVERTORS, "host"]


def with_marks(kind):
    """Give an application in which some operations are marked, of one kind beside the plain ones."""
    app, sub, router, lenient = FastAPI(), FastAPI(), APIRouter(), APIRouter(route_class=Lenient)
    marked = force_maintenance_mode_on(lambda: 1)
    app.get("/free")(lambda: 1)
    app.get("/op")(marked)
    app.get("/op/")(marked)
    if kind == "parameters":
        app.get("/a/{n:int}/{rest:path}")(force_maintenance_mode_off(lambda n, rest: n))
        app.post("/{name}.b")(marked)
    if kind == "included":
        router.get("/a/{n}")(marked)
        app.include_router(router, prefix="/b/{m}")
    if kind == "mount":
        sub.get("/a")(marked)
        app.mount("/b", sub)
    if kind == "websocket":
        app.websocket("/a/{n}")(force_maintenance_mode_on(lambda websocket, n: None))
    if kind == "own matches":
        lenient.get("/a")(marked)
        app.include_router(lenient)
    if kind in CONVERTORS:
        convertor, path = CONVERTORS[kind]
        register_url_convertor("own", convertor())
        app.get(path)(marked)
    if kind == "host":
        app.host("a.example.org", sub)
        sub.get("/b")(marked)
    if kind == "root path":
        app.root_path = "/a"
    return app


@pytest.mark.parametrize("kind", BY_PATH + BY_MORE)
@given(
    path=st.text("/abop.1\n", max_size=8).map("/".__add__),
    websocket=st.booleans(),
    method=st.sampled_from(["GET", "POST"]),
)
def test_one_look_at_the_path_misses_no_mark(kind, path, websocket, method):
    """`Marked` suspects a request just when a route with a mark matches it, whatever else routes go by."""
    app = with_marks(kind)
    scope = {**scope_of(path, headers=[(b"host", b"a.example.org")]), "method": method}
    if websocket:
        scope = {**scope, "type": "websocket"}
    seen = _seen_by(app, scope)
    marked = Marked(app)
    suspects = marked.may_match(scope)
    asked = [_match_leaf(route, context, seen)[0] for route, context in marked._suspects]
    assert suspects is (Match.FULL in asked)
    assert (marked._paths is None) is (kind in BY_MORE)


def test_marked_routes_are_not_asked_for_the_path_of_another(monkeypatch):
    """A path that is none of theirs is told from all of them by one look, so that a thousand cost what one does."""
    app = FastAPI()
    for number in range(1000):
        app.get(f"/op{number}/{{id}}")(force_maintenance_mode_on(lambda id: id))  # noqa: A006 - the name in the path
    marked, matched = Marked(app), Mock(return_value=(Match.FULL, {}))
    monkeypatch.setattr("fastapi_maintenance.routing._match_leaf", matched)
    assert not marked.may_match(scope_of("/other/1"))
    matched.assert_not_called()
    assert marked.may_match(scope_of("/op999/1"))
    matched.assert_called_once()


# Decided once


def all_gates(app, maintenance):
    """Give the application three gates of one object, and an operation."""
    app.router.dependencies.append(Depends(maintenance.guard))
    app.router.route_class = maintenance.route_class
    app.api_route("/op", methods=["GET", "POST"])(lambda: 1)
    return from_inside(app, maintenance)


@pytest.mark.parametrize(
    ("before", "after", "method"),
    [("open", "full", "POST"), ("open", "read_only", "POST"), ("read_only", "full", "GET")],
)
def test_a_state_that_flips_between_two_gates_does_not_matter(before, after, method):
    """What the outer gate decided holds for the inner ones, whatever the state has become."""
    maintenance, app = open_one(), FastAPI()
    changes = {
        "open": maintenance.disable,
        "read_only": lambda: maintenance.enable(mode="read_only"),
        "full": maintenance.enable,
    }

    class Flip(Hiding):
        def __init__(self, app):
            super().__init__(app)

        async def __call__(self, scope, receive, send):
            await changes[after]()
            await super().__call__(scope, receive, send)

    app.add_middleware(Flip)
    from_inside(all_gates(app, maintenance), open_one())
    anyio.run(changes[before])
    client = TestClient(app)
    assert [client.request(method, "/op").status_code for _ in range(2)] == [200, 503]


@pytest.mark.parametrize(("answer", "status"), [(True, 200), (False, 503)])
def test_exempt_handler_is_asked_once(answer, status):
    """Three gates of one object ask its handler one time, whatever it answers."""
    handler = Mock(return_value=answer)
    app = all_gates(FastAPI(), closed_one(exempt_handler=handler))
    assert statuses(app, "/op") == [status]
    handler.assert_called_once()


def test_objects_decide_independently():
    """What one object decided says nothing about another one."""
    first, second = open_one(), open_one()
    app = all_gates(all_gates(FastAPI(), first), second)
    assert statuses(app, "/op") == [200]
    anyio.run(first.enable)
    assert statuses(app, "/op") == [503]
    anyio.run(first.disable)
    anyio.run(second.enable)
    assert statuses(app, "/op") == [503]


@pytest.mark.parametrize(
    ("mark", "opened", "closed"),
    [(lambda app: app, 200, 503), (force_maintenance_mode_on, 503, 503), (force_maintenance_mode_off, 200, 200)],
    ids=["unmarked", "on", "off"],
)
@pytest.mark.parametrize("gate", ["guard", "route class"])
def test_inner_gate_asks_where_the_path_was_changed(gate, mark, opened, closed):
    """Where a middleware behind ours changes the path, the inner gate still decides on the true operation."""
    app, maintenance = FastAPI(), open_one()
    app.router.route_class = {"guard": APIRoute, "route class": maintenance.route_class}[gate]
    dependencies = {"guard": [Depends(maintenance.guard)], "route class": []}[gate]
    app.get("/op", dependencies=dependencies)(mark(lambda: 1))
    app.add_middleware(Shorter)
    from_inside(app, maintenance)
    assert statuses(app, "/v1/op") == [opened]
    anyio.run(maintenance.enable)
    assert statuses(app, "/v1/op") == [closed]


# The body


@pytest.mark.anyio
@pytest.mark.parametrize("mark", [lambda endpoint: endpoint, force_maintenance_mode_on], ids=["unmarked", "on"])
@pytest.mark.parametrize("gate", ["middleware", "route class"])
async def test_body_of_a_refused_request_is_not_read(gate, mark):
    """Middleware and route class refuse without asking the server for the body, and say that nothing was applied."""
    maintenance, app, handler = open_one(), FastAPI(), AsyncMock()
    await maintenance.enable()
    if gate == "middleware":
        from_inside(app, maintenance)
    else:
        app.router.route_class = maintenance.route_class

    @app.post("/op", dependencies=[Depends(handler)])
    @mark
    async def upload(body: bytes):
        """Never runs."""

    receive, send = AsyncMock(), AsyncMock()
    await app(scope_of("/op", "POST"), receive, send)
    start, body = (call.args[0] for call in send.await_args_list)
    assert start["status"] == 503
    assert b'"applied":false' in body["body"]
    receive.assert_not_awaited()
    handler.assert_not_awaited()


@pytest.mark.anyio
async def test_decision_is_noted_in_the_scope():
    """What a gate decided stands in the scope while the request runs, nothing where the framework answers by itself."""
    owners = []
    maintenance = open_one()
    app = all_gates(FastAPI(), maintenance)
    found, missing = scope_of("/op"), scope_of("/nowhere")
    await maintenance.enable(mode="read_only")
    tell = AsyncMock(side_effect=lambda message: owners.extend(passage.owner for passage in noted(found)))
    await app(found, AsyncMock(), tell)
    await app(missing, AsyncMock(), AsyncMock())
    assert set(owners) == {maintenance}
    assert not list(noted(found))
    assert NOTES not in missing


def test_a_verdict_ends_with_its_passage():
    """A copy of the scope, as a mount makes one, tells nothing of a gate that was left, but of the one around it."""
    around, inner = object(), object()
    scope = scope_of("/op")
    outside, inside = Passage(around, scope, None), Passage(inner, scope, None)
    outside.note(scope, Verdict.ADMITTED)
    inside.note(scope, Verdict.ADMITTED)
    copied = dict(scope)
    inside.leave()
    seen = [[passage.owner for passage in noted(each)] for each in (scope, copied)]
    outside.leave()
    assert seen == [[around], [around]]
    assert not list(noted(copied))


class Skipping(APIRoute):
    """A user's route class that does not tell those after it how a route is made."""

    def __init__(self, *args, **kwargs):
        APIRoute.__init__(self, *args, **kwargs)


@pytest.mark.parametrize("how", ["copied", "mixed in", "bound later"])
def test_a_route_finds_its_gate(how):
    """A route serves the object that its class is bound to: also a copy, one made by another class, or bound later."""
    maintenance = closed_one()
    bound = maintenance.route_class
    own = type("Own", (MaintenanceRoute,), {})
    kind = {"copied": bound, "mixed in": type("Mixed", (Skipping, bound), {})}.get(how, own)
    router = APIRouter(route_class=kind)
    router.add_api_route("/op", lambda: 1)
    if how == "bound later":
        kind.bound = maintenance.gate
    app = FastAPI(routes=copy.deepcopy(router.routes) if how == "copied" else router.routes)
    assert statuses(app, "/op") == [503]


def test_wrong_method_without_an_application():
    """A route class in a plain router, without an application around it, leaves 405 to the framework as well."""
    route = closed_one().route_class("/op", lambda: 1, methods=["GET"])
    assert TestClient(Router([route])).post("/op").status_code == 405


# Foreign applications, rewritten requests, and indexes that went wrong


class Foreign(Hiding):
    """An ASGI application of another framework, which has routes of its own kind."""

    def __init__(self, routes):
        super().__init__(bare)
        self.routes = routes


@pytest.mark.parametrize("place", ["alone", "mounted", "behind middleware", "in a mounted application", "hosted"])
@pytest.mark.parametrize("routes", [[], ["/y"], {"/y": bare}, None], ids=["empty", "text", "dict", "none"])
def test_foreign_application_with_routes_of_its_own_is_one_operation(routes, place):
    """A foreign application is served while open and refused while closed, at each path, whatever `routes` it has."""
    maintenance, foreign, app = open_one(), Foreign(routes), marked_app()
    sub = FastAPI()
    sub.mount("/x", foreign)
    served, path = {
        "alone": lambda: (MaintenanceModeMiddleware(foreign, maintenance=maintenance), "/y"),
        "mounted": lambda: (app.mount("/x", foreign) or from_inside(app, maintenance), "/x/y"),
        "behind middleware": lambda: (
            app.mount("/x", GZipMiddleware(foreign)) or from_inside(app, maintenance),
            "/x/y",
        ),
        "in a mounted application": lambda: (app.mount("/sub", sub) or from_inside(app, maintenance), "/sub/x/y"),
        "hosted": lambda: (app.host("testserver", foreign) or from_inside(app, maintenance), "/x/y"),
    }[place]()
    assert statuses(served, path, path + "/z") == [200, 200]
    anyio.run(maintenance.enable)
    assert statuses(served, path, path + "/z") == [503, 503]


@live_routers
def test_failed_index_serves_nothing_that_is_forced_on():
    """Where the routes cannot be read, each request fails, and no later one comes through to what is forced on."""
    app, router = FastAPI(), APIRouter()
    app.get("/op")(force_maintenance_mode_on(lambda: 1))
    router.get("/{twice}")(lambda: 1)
    app.include_router(router, prefix="/{twice}")
    from_inside(app, open_one())
    assert statuses(app, "/op", "/op", "/op", raise_server_exceptions=False) == [500, 500, 500]
    app.router.routes.pop()
    assert statuses(app, "/op", "/op") == [503, 503]


def replace_last(router, make):
    """Put a route in the place of the last one."""
    router.routes[-1] = make()


def pop_and_append(router, make):
    """Take the last route away, and then make another one, which may get its memory."""
    router.routes.pop()
    router.routes.append(make())


def replace_list(router, make):
    """Give the router another list of the same length and with the same end."""
    router.routes = [make(), *router.routes[1:]]


@pytest.mark.parametrize("change", [replace_last, pop_and_append, replace_list])
@pytest.mark.parametrize("prefix", ["", "/sub"])
def test_replaced_route_is_noticed(prefix, change):
    """A route that takes the place of another one is refused at the next request when it is forced on."""
    app, sub = FastAPI(), FastAPI()
    app.mount("/sub", sub)
    router = sub.router if prefix else app.router
    endpoint = force_maintenance_mode_on(lambda request: PlainTextResponse())
    from_inside(app, open_one())
    for _ in range(5):
        router.routes.append(Route("/op", lambda request: PlainTextResponse()))
        assert statuses(app, prefix + "/op") == [200]
        change(router, lambda: Route("/op", endpoint))
        assert statuses(app, prefix + "/op") == [503]
        router.routes[:] = [route for route in router.routes if getattr(route, "endpoint", None) is not endpoint]


@live_routers
def test_replaced_route_of_an_included_router_is_noticed():
    """The same for a router that is included, where FastAPI itself notices it."""
    app, router = FastAPI(), APIRouter()
    endpoint = force_maintenance_mode_on(lambda: 1)
    router.get("/op")(lambda: 1)
    app.include_router(router, prefix="/in")
    from_inside(app, open_one())
    assert statuses(app, "/in/op") == [200]
    router.routes.pop()
    router.get("/op")(endpoint)
    assert statuses(app, "/in/op") == [503]


class Rewriting:
    """A middleware that makes another request of what comes in, and hides what it wraps."""

    def __init__(self, app, closing=None, **changes):
        self.app = app
        self.closing = closing
        self.changes = changes

    async def __call__(self, scope, receive, send):
        """Call what is behind with the changed request."""
        if self.closing is not None:
            await self.closing.enable()
        await self.app({**scope, **self.changes}, receive, send)


@pytest.mark.parametrize("gate", ["guard", "route class", "middleware"])
@pytest.mark.parametrize(
    ("mode", "path", "changes", "expected"),
    [
        ("read_only", "/x", {"method": "DELETE"}, 503),
        ("read_only", "/x", {"method": "HEAD"}, 200),
        ("full", "/health", {"path": "/x"}, 503),
        ("full", "/health", {}, 200),
        ("read_only", "/health", {"path": "/x"}, 200),
        ("read_only", "/health", {"path": "/x", "method": "DELETE"}, 503),
    ],
    ids=["GET to DELETE", "GET to HEAD", "health to x", "as it is", "GET of x", "health to DELETE of x"],
)
def test_rewritten_request_is_decided_anew(gate, mode, path, changes, expected):
    """A request whose method or path was changed behind one gate is another one for the next gate of the object."""
    maintenance, app = open_one(), FastAPI()
    if gate == "guard":
        app.router.dependencies.append(Depends(maintenance.guard))
    if gate == "route class":
        app.router.route_class = maintenance.route_class
    app.api_route("/x", methods=["GET", "HEAD", "DELETE"])(lambda: 1)
    app.get("/health")(force_maintenance_mode_off(lambda: 1))
    if gate == "middleware":
        from_inside(app, maintenance)
    app.add_middleware(Rewriting, **changes)
    from_inside(app, maintenance)
    anyio.run(lambda: maintenance.enable(mode=mode))
    assert statuses(app, path) == [expected]


@pytest.mark.parametrize("gate", ["guard", "route class", "middleware"])
@pytest.mark.parametrize("changes", [{}, {"path": "/x"}], ids=["as it is", "rewritten"])
@pytest.mark.parametrize("between", [False, True], ids=["alone", "another object between"])
def test_who_was_let_in_while_all_was_open_runs_to_the_end(gate, changes, between):
    """A request that came in before it closed is not refused by an inner gate, whatever a middleware makes of it."""
    maintenance, other, app = open_one(), open_one(), FastAPI()
    if gate == "guard":
        app.router.dependencies.append(Depends(maintenance.guard))
    if gate == "route class":
        app.router.route_class = maintenance.route_class
    app.get("/x")(lambda: 1)
    app.get("/y")(lambda: 1)
    if gate == "middleware":
        from_inside(app, maintenance)
    if between:
        from_inside(app, other)
    app.add_middleware(Rewriting, closing=maintenance, **changes)
    from_inside(app, maintenance)
    for each in (maintenance, other):
        anyio.run(each.status)
    assert statuses(app, "/y", "/y") == [200, 503]
