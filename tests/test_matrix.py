"""The table: which gate refuses what, by kind of route, method, mark and state."""

from typing import NamedTuple

import fastapi
import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.responses import PlainTextResponse

from fastapi_maintenance import (
    Maintenance,
    MaintenanceModeMiddleware,
    MaintenanceRoute,
    configure_backend,
    force_maintenance_mode_off,
    force_maintenance_mode_on,
    get_maintenance,
)
from fastapi_maintenance.backends import MemoryBackend

pytestmark = pytest.mark.no_cover  # the same lines again and again, at a third of the speed

FASTAPI = tuple(int(part) for part in fastapi.__version__.split(".")[:2])
MOUNTS_IN_ROUTERS = FASTAPI >= (0, 137)
FRONTEND = FASTAPI >= (0, 138)
GUARDED_FRONTEND = "GM" if FASTAPI >= (0, 139) else "M"

ACCEPTED = 101
CLOSED = 1000
HOST = "hosted.example.org"
SAFE = {"GET", "HEAD", "OPTIONS", "QUERY"}

MARKS = {"unmarked": lambda endpoint: endpoint, "on": force_maintenance_mode_on, "off": force_maintenance_mode_off}

STATES = ["open", "full", "read_only"]

REFUSED = {
    # mark, state: the methods that are refused where a gate covers the operation
    ("unmarked", "open"): "none",
    ("unmarked", "full"): "all",
    ("unmarked", "read_only"): "unsafe",
    ("on", "open"): "all",
    ("on", "full"): "all",
    ("on", "read_only"): "all",
    ("off", "open"): "none",
    ("off", "full"): "none",
    ("off", "read_only"): "none",
}


class Gate(NamedTuple):
    """Which gates stand in an application, and whether they are bound to an object of their own."""

    parts: str
    bound: bool = True


GATES = {
    "guard": Gate("G"),
    "bound route class": Gate("R"),
    "MaintenanceRoute": Gate("R", bound=False),
    "bound middleware": Gate("M"),
    "middleware": Gate("M", bound=False),
    "guard and MaintenanceRoute": Gate("Gr"),
    "all bound": Gate("GRM"),
    "all unbound": Gate("GRM", bound=False),
}


class Row(NamedTuple):
    """One request: what the framework answers to it, and which gates cover it (guard, route class, middleware)."""

    method: str
    path: str
    answer: int
    covered: str
    host: str = "testserver"
    markable: bool = True


ROWS = [
    # direct
    Row("GET", "/direct", 200, "GRM"),
    Row("POST", "/direct", 200, "GRM"),
    Row("PUT", "/direct", 200, "GRM"),
    Row("PATCH", "/direct", 200, "GRM"),
    Row("DELETE", "/direct", 200, "GRM"),
    Row("QUERY", "/direct", 200, "GRM"),
    Row("HEAD", "/direct", 405, ""),
    Row("OPTIONS", "/direct", 405, ""),
    Row("HEAD", "/explicit", 200, "GRM"),
    Row("OPTIONS", "/explicit", 200, "GRM"),
    Row("GET", "/explicit", 405, ""),
    Row("GET", "/direct/7", 200, "GRM"),
    Row("DELETE", "/direct/7", 405, ""),
    Row("WS", "/ws", ACCEPTED, "GM"),
    Row("GET", "/ws", 404, ""),
    # included
    Row("GET", "/included/op", 200, "GRM"),
    Row("POST", "/included/op", 200, "GRM"),
    Row("HEAD", "/included/op", 405, ""),
    Row("OPTIONS", "/included/op", 405, ""),
    Row("DELETE", "/included/op", 405, ""),
    Row("WS", "/included/ws", ACCEPTED, "GM"),
    Row("GET", "/included/starlette", 200, "M"),
    Row("HEAD", "/included/starlette", 200, "M"),
    Row("GET", "/included/mount/op", 200 if MOUNTS_IN_ROUTERS else 404, "M" if MOUNTS_IN_ROUTERS else ""),
    Row("GET", "/included/nowhere", 404, ""),
    # included from a router without the route class
    Row("GET", "/plain/op", 200, "GM"),
    Row("POST", "/plain/op", 200, "GM"),
    # nested three deep
    Row("GET", "/a/b/c/op", 200, "GRM"),
    Row("POST", "/a/b/c/op", 200, "GRM"),
    Row("HEAD", "/a/b/c/op", 405, ""),
    Row("WS", "/a/b/c/ws", ACCEPTED, "GM"),
    # the same router twice
    Row("GET", "/v1/op", 200, "GRM"),
    Row("POST", "/v1/op", 200, "GRM"),
    Row("WS", "/v1/ws", ACCEPTED, "GM"),
    Row("GET", "/v2/op", 200, "GRM"),
    Row("POST", "/v2/op", 200, "GRM"),
    Row("DELETE", "/v2/op", 405, ""),
    Row("WS", "/v2/ws", ACCEPTED, "GM"),
    # plain Starlette
    Row("GET", "/starlette", 200, "M"),
    Row("HEAD", "/starlette", 200, "M"),
    Row("POST", "/starlette", 405, ""),
    # a mounted application without a gate of its own
    Row("GET", "/sub/op", 200, "M"),
    Row("POST", "/sub/op", 200, "M"),
    Row("HEAD", "/sub/op", 405, ""),
    Row("GET", "/sub/inner/op", 200, "M"),
    Row("WS", "/sub/ws", ACCEPTED, "M"),
    Row("GET", "/sub/nowhere", 404, ""),
    Row("GET", "/sub/op/", 307, ""),
    Row("GET", "/sub/manual", 200, ""),
    Row("GET", "/sub/manual.json", 200, ""),
    Row("GET", "/sub/handbook", 404, ""),
    # a mounted application that has the same gates itself
    Row("GET", "/gated/op", 200, "GRM"),
    Row("POST", "/gated/op", 200, "GRM"),
    Row("GET", "/gated/inner/op", 200, "GM"),
    Row("DELETE", "/gated/op", 405, ""),
    Row("WS", "/gated/ws", ACCEPTED, "GM"),
    Row("GET", "/gated/nowhere", 404, ""),
    Row("GET", "/gated/manual", 200, ""),
    # a host
    Row("GET", "/op", 200, "M", host=HOST),
    Row("POST", "/op", 200, "M", host=HOST),
    Row("DELETE", "/op", 405, "", host=HOST),
    Row("WS", "/ws-of-host", ACCEPTED, "M", host=HOST),
    Row("GET", "/nowhere", 404, "", host=HOST),
    Row("GET", "/manual", 200, "", host=HOST),
    Row("GET", "/op", 404, ""),
    # static files: an operation for every path and method below
    Row("GET", "/static/page.html", 200, "M"),
    Row("HEAD", "/static/page.html", 200, "M"),
    Row("OPTIONS", "/static/page.html", 405, "M"),
    Row("POST", "/static/page.html", 405, "M"),
    Row("GET", "/static/nothing.html", 404, "M"),
    Row("GET", "/static", 307, ""),
    # a frontend, which cannot be marked
    Row("GET", "/front/page.html", 200 if FRONTEND else 404, GUARDED_FRONTEND if FRONTEND else "", markable=False),
    Row("HEAD", "/front/page.html", 200 if FRONTEND else 404, GUARDED_FRONTEND if FRONTEND else "", markable=False),
    Row("GET", "/front/nothing.html", 404, GUARDED_FRONTEND if FRONTEND else "", markable=False),
    Row("POST", "/front/page.html", 405 if FRONTEND else 404, ""),
    Row("OPTIONS", "/front/page.html", 405 if FRONTEND else 404, ""),
    # documentation at custom URLs, exempt
    Row("GET", "/handbook", 200, ""),
    Row("HEAD", "/handbook", 200, ""),
    Row("POST", "/handbook", 405, ""),
    Row("GET", "/reference", 200, ""),
    Row("GET", "/schema.json", 200, ""),
    Row("GET", "/handbook/back", 200, ""),
    Row("GET", "/handbook/further", 200, "GRM"),
    Row("GET", "/docs", 404, ""),
    # nothing matches
    Row("GET", "/nowhere", 404, ""),
    Row("POST", "/nowhere", 404, ""),
    Row("OPTIONS", "/nowhere", 404, ""),
    Row("WS", "/nowhere", CLOSED, ""),
    # slash redirects
    Row("GET", "/slash", 307, ""),
    Row("POST", "/slash", 307, ""),
    Row("GET", "/slash/", 200, "GRM"),
    Row("GET", "/direct/", 307, ""),
    Row("GET", "/included/op/", 307, ""),
    Row("POST", "/a/b/c/op/", 307, ""),
]


def expected(row, gate, mark, state):
    """Tell what is answered to the request of `row`."""
    refused = REFUSED[mark if row.markable else "unmarked", state]
    covered = set(row.covered) & set(gate.parts.upper())
    if covered and (refused == "all" or (refused == "unsafe" and row.method not in SAFE)):
        return 503
    return row.answer


class Builder:
    """Makes the application of one gate and one mark."""

    def __init__(self, gate, mark):
        configure_backend("memory")
        self.maintenance = Maintenance(backend=MemoryBackend()) if gate.bound else get_maintenance()
        self.gate = gate
        self.mark = MARKS[mark]
        self.route_class = APIRoute
        if "R" in gate.parts:
            self.route_class = self.maintenance.route_class if gate.bound else MaintenanceRoute
        if "r" in gate.parts:
            self.route_class = MaintenanceRoute

    def gated(self, **options):
        """Give an application with the gates."""
        guards = [Depends(self.maintenance.guard)] if "G" in self.gate.parts else []
        app = FastAPI(dependencies=guards, **options)
        app.router.route_class = self.route_class
        if "M" in self.gate.parts:
            bound = {"maintenance": self.maintenance} if self.gate.bound else {}
            app.add_middleware(MaintenanceModeMiddleware, **bound)
        return app

    def fill(self, router, *, op="/op", ws="/ws", methods=("GET", "POST")):
        """Add an operation for each method, and a websocket."""

        @self.mark
        async def operation():
            return {}

        @router.websocket(ws)
        @self.mark
        async def socket(websocket: WebSocket):
            await websocket.accept()
            await websocket.close()

        for method in methods:
            router.add_api_route(op, operation, methods=[method])
        return router

    def starlette(self, router):
        """Add a plain Starlette route."""

        @self.mark
        async def plain(request):
            return PlainTextResponse()

        router.add_route("/starlette", plain)

    def sub(self, app, *, ws="/ws"):
        """Fill an application that is to be mounted."""
        self.fill(app, ws=ws)
        app.include_router(self.fill(APIRouter()), prefix="/inner")
        return app

    def router(self):
        """Give a router with the route class."""
        return self.fill(APIRouter(route_class=self.route_class))

    def app(self, directory):
        """Give the whole application."""
        documents = {
            "docs_url": "/handbook",
            "redoc_url": "/reference",
            "openapi_url": "/schema.json",
            "swagger_ui_oauth2_redirect_url": "/handbook/back",
        }
        manual = {"docs_url": "/manual", "openapi_url": "/manual.json"}
        app = self.gated(**documents)
        self.fill(app, op="/direct", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "QUERY"])
        self.fill(app, op="/explicit", ws="/ws-2", methods=["HEAD", "OPTIONS"])
        self.fill(app, op="/slash/", ws="/ws-3")
        self.fill(app, op="/handbook/further", ws="/ws-4")
        app.get("/direct/{number}")(self.mark(lambda number: number))
        self.starlette(app)

        included = self.router()
        self.starlette(included)
        # A router's own prefix is not put before a mount, so it is given where the router is included.
        included.mount("/mount", self.fill(FastAPI()))
        app.include_router(included, prefix="/included")
        app.include_router(self.fill(APIRouter(prefix="/plain")))
        inner, middle, outer = self.router(), APIRouter(prefix="/b"), APIRouter(prefix="/a")
        middle.include_router(inner, prefix="/c")
        outer.include_router(middle)
        app.include_router(outer)
        twice = self.router()
        app.include_router(twice, prefix="/v1")
        app.include_router(twice, prefix="/v2")

        app.mount("/sub", self.sub(FastAPI(**manual)))
        app.mount("/gated", self.sub(self.gated(**manual)))
        app.mount("/static", self.mark(StaticFiles(directory=directory)))
        getattr(app, "frontend", lambda *_, **__: None)("/front", directory=directory)
        app.host(HOST, self.sub(FastAPI(**manual), ws="/ws-of-host"))
        return app


async def ask(app, row, root_path):
    """Give the status of the answer; for a websocket `ACCEPTED`, or the code it was closed with."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": row.method,
        "scheme": "http",
        "path": root_path + row.path,
        "root_path": root_path,
        "query_string": b"",
        "headers": [(b"host", row.host.encode())],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 80),
        "state": {},
        "extensions": {"websocket.http.response": {}},
    }
    received = [{"type": "http.request"}, {"type": "http.disconnect"}]
    if row.method == "WS":
        del scope["method"]
        scope |= {"type": "websocket", "scheme": "ws", "subprotocols": []}
        received = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]
    sent = []

    async def receive():
        return received.pop(0) if len(received) > 1 else received[0]

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    if sent[0]["type"] == "websocket.accept":
        return ACCEPTED
    return sent[0].get("status") or sent[0]["code"]


@pytest.mark.parametrize(
    ("anyio_backend", "root_path"),
    [("asyncio", ""), ("trio", ""), ("asyncio", "/api")],
    ids=["asyncio", "trio", "root_path"],
)
@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
@pytest.mark.anyio
async def test_matrix(gate, mark, root_path, tmp_path):
    """Each gate refuses what the table says that it covers, and leaves the rest to the framework."""
    (tmp_path / "page.html").write_text("page")
    builder = Builder(gate, mark)
    app = builder.app(tmp_path)
    answers = {}
    for state in STATES:
        await (builder.maintenance.disable() if state == "open" else builder.maintenance.enable(mode=state))
        for row in ROWS:
            answers[state, row] = await ask(app, row, root_path)
    assert answers == {(state, row): expected(row, gate, mark, state) for state in STATES for row in ROWS}
