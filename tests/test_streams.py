"""Ending websockets and event streams when the middleware's gate closes, and what an event stream is refused with."""

import threading
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial

import anyio
import anyio.lowlevel
import fastapi.routing
import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from starlette.middleware.base import BaseHTTPMiddleware  # noqa: TID251 - users have it
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import Route
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from fastapi_maintenance import (
    Maintenance,
    MaintenanceModeMiddleware,
    MaintenanceSettings,
    force_maintenance_mode_off,
    get_maintenance,
    get_maintenance_mode,
    streams,
)
from fastapi_maintenance.backends import MemoryBackend
from fastapi_maintenance.marks import Marks
from fastapi_maintenance.tasks import spawn
from tests.waiting import PATIENCE, until

EVENTS = "text/event-stream"
EventSourceResponse = getattr(fastapi.routing, "EventSourceResponse", None)
collected = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
"""Trio warns where a framework leaves an async generator to be collected."""
needs_sse = pytest.mark.skipif(EventSourceResponse is None, reason="this FastAPI has no EventSourceResponse")


class Clock:
    """A clock that stands still; the watcher reads it once for each look."""

    def __init__(self):
        self.now = 1000.0
        self.reads = 0

    def __call__(self):
        self.reads += 1
        return self.now

    async def looked(self):
        """Wait until the watcher has looked twice more: once to see, once to act."""
        seen = self.reads
        await until(lambda: self.reads > seen + 2)


@pytest.fixture
def clock(monkeypatch):
    """Give a clock that the test moves."""
    clock = Clock()
    monkeypatch.setattr(anyio, "current_time", clock)
    return clock


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(streams, "LOOK_EVERY", 0.002)


class Connection:
    """One connection to an app, as a server keeps it."""

    def __init__(self, app, path, *, headers=(), form=list, method="GET", spec="2.4"):
        self.app = app
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": spec},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": form([(name.encode(), value.encode()) for name, value in headers]),
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "scheme": "http",
        }
        self.incoming = [{"type": "http.request", "body": b"", "more_body": False}]
        if "/ws" in path:
            self.scope |= {"type": "websocket", "scheme": "ws", "subprotocols": []}
            self.scope.pop("method")
            self.incoming = [{"type": "websocket.connect"}]
        self.sent = []
        self.at_end = None
        self.stalled = False
        self.over = False
        self.error = None

    async def run(self):
        try:
            await self.app(self.scope, self.receive, self.send)
        except Exception as error:  # noqa: BLE001 - a server logs it
            self.error = error
        self.over = True

    async def receive(self):
        await until(lambda: self.incoming)
        return self.incoming.pop(0)

    async def send(self, message):
        await anyio.lowlevel.checkpoint()
        if self.at_end is not None and message == self.end:
            self.at_end()
        self.sent.append(message)
        await until(lambda: not self.stalled)

    def say(self, text):
        self.incoming.append({"type": "websocket.receive", "text": text})

    @property
    def last(self):
        """The last message that the client got."""
        return self.sent[-1]

    @property
    def end(self):
        """The message with which this middleware ends such a connection."""
        if self.scope["type"] == "websocket":
            return {"type": "websocket.close", "code": 1012, "reason": "service restart"}
        return {"type": "http.response.body", "body": b"", "more_body": False}


def streaming(connection):
    """Tell whether a connection has become a stream: an accepted websocket, or a first chunk."""
    return len(connection.sent) >= (1 if connection.scope["type"] == "websocket" else 2)


@asynccontextmanager
async def opened(app, *paths, ready=streaming, **options):
    """Give open connections; those that are left are cut at the end."""
    connections = [Connection(app, path, **options) for path in paths]
    async with anyio.create_task_group() as group:
        for connection in connections:
            group.start_soon(connection.run)
        await until(lambda: all(map(ready, connections)))
        yield connections[0] if len(connections) == 1 else connections
        group.cancel_scope.cancel()


class Service:
    """An app with streams of each kind, those below `/always` forced off; it notes whose `finally` blocks have run."""

    def __init__(self, grace=0.0, *, inside=(), settings=None, exempt_handler=None):
        self.begun = []
        self.cleaned = []
        self.release = False
        self.maintenance = Maintenance(settings, backend=MemoryBackend(), exempt_handler=exempt_handler)
        self.app = FastAPI()
        for middleware in inside:
            self.app.add_middleware(middleware)
        self.app.add_middleware(MaintenanceModeMiddleware, maintenance=self.maintenance, close_streams_after=grace)
        self._add("", lambda endpoint: endpoint)
        self._add("/always", force_maintenance_mode_off)

    def _add(self, prefix, mark):  # noqa: C901 - one app
        router = APIRouter(prefix=prefix)
        add = partial(router.add_api_route, methods=["GET", "POST"])

        async def ticks(path):
            with self.cleaning(prefix + path):
                while not self.release:
                    yield b"data: tick\n\n"
                    await anyio.sleep(0.001)

        def sync_ticks(path):
            with self.cleaning(prefix + path):
                while True:
                    yield b"data: tick\n\n"
                    time.sleep(0.001)

        def answer(chunks, media_type, **headers):
            return lambda: StreamingResponse(chunks(), media_type=media_type, headers=headers)

        async def slow():
            with self.cleaning(f"{prefix}/slow"):
                await until(lambda: self.release)
            return "done"

        async def sse():
            async for tick in ticks("/sse"):  # pragma: no branch - some never end by themselves
                yield tick.decode()

        def sync_sse():
            yield from map(bytes.decode, sync_ticks("/sync_sse"))

        async def socket(websocket: WebSocket):
            with self.cleaning(f"{prefix}/ws"):
                await websocket.accept()
                async for text in websocket.iter_text():
                    await websocket.send_text(text)

        add("/events", mark(answer(partial(ticks, "/events"), EVENTS)))
        add("/sync", mark(answer(partial(sync_ticks, "/sync"), f"{EVENTS.upper()} ; charset=utf-8")))
        add("/download", mark(answer(partial(ticks, "/download"), "application/octet-stream")))
        add("/counted", mark(answer(partial(ticks, "/counted"), EVENTS, **{"content-length": "9999999"})))
        add("/slow", mark(slow))
        add("/sse", mark(sse), response_class=EventSourceResponse or StreamingResponse)
        add("/sync_sse", mark(sync_sse), response_class=EventSourceResponse or StreamingResponse)
        router.add_api_websocket_route("/ws", mark(socket))
        self.app.include_router(router)

    def has_begun(self, *paths):
        """Give the condition that these have begun."""
        return lambda _: set(paths) <= set(self.begun)

    @contextmanager
    def cleaning(self, path):
        self.begun.append(path)
        try:
            yield
        finally:
            self.cleaned.append(path)


class ReadingHeaders:
    """An application that looks at the headers as soon as it can."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """Look, and go on."""
        assert HTTPConnection(scope).headers
        await self.app(scope, receive, send)


STREAMS = ["/ws", "/events", "/sync", *(pytest.param(path, marks=needs_sse) for path in ("/sse", "/sync_sse"))]


@pytest.mark.anyio
@collected
@pytest.mark.parametrize("spec", ["2.3", "2.4"])
@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_ends(path, spec):
    """Once closed, a websocket gets 1012 and an event stream its last chunk; their `finally` blocks have run."""
    service = Service()
    async with opened(service.app, path, spec=spec) as connection:
        assert not connection.over
        await service.maintenance.enable()
        await until(lambda: connection.over)
        assert (connection.error, connection.last) == (None, connection.end)
        await until(lambda: service.cleaned == [path])


@pytest.mark.anyio
@pytest.mark.parametrize("spec", ["2.3", "2.4"])
@pytest.mark.parametrize("path", ["/ws", "/events"])
async def test_finally_blocks_run_first(monkeypatch, path, spec):
    """The `finally` block of an endpoint or an async generator has run before the client is told the end."""
    monkeypatch.setattr(streams.gc, "collect", lambda: None)
    service = Service()
    async with opened(service.app, path, spec=spec) as connection:
        cleaned = []
        connection.at_end = lambda: cleaned.extend(service.cleaned)
        await service.maintenance.enable()
        await until(lambda: connection.over)
        assert cleaned == [path]


@pytest.mark.anyio
@collected
@pytest.mark.parametrize("path", ["/ws", "/events"])
@pytest.mark.parametrize("inside", [GZipMiddleware, BaseHTTPMiddleware])
async def test_a_stream_ends_through_other_middleware(path, inside):
    """Middleware between this one and the application does not keep a stream from its clean end."""

    async def untouched(request, call_next):
        return await call_next(request)

    options = {"dispatch": untouched} if inside is BaseHTTPMiddleware else {}
    service = Service(inside=[partial(inside, **options)])
    async with opened(service.app, path, headers=[("accept-encoding", "gzip")]) as connection:
        await service.maintenance.enable()
        await until(lambda: connection.over)
        assert (connection.error, connection.last) == (None, connection.end)
        await until(lambda: service.cleaned == [path])


@pytest.mark.anyio
@pytest.mark.parametrize("accept", ["text/event-stream", "*/*", "application/json"])
async def test_an_event_stream_is_known_by_its_content_type(accept):
    """An event stream ends whatever the client had asked for, a POST as well."""
    service = Service()
    async with opened(service.app, "/events", method="POST", headers=[("accept", accept)]) as connection:
        await service.maintenance.enable()
        await until(lambda: connection.over)
        assert connection.last == connection.end


@pytest.mark.anyio
async def test_one_that_becomes_a_stream_while_closed_ends():
    """A request that was let in while open and answers with an event stream after the gate has closed is ended."""
    service = Service()
    gate = anyio.Event()

    @service.app.get("/late")
    async def late():
        await gate.wait()
        return StreamingResponse(iter(lambda: b"data: tick\n\n", b""), media_type=EVENTS)

    async with opened(service.app, "/late", "/ws", ready=service.has_begun("/ws")) as (connection, other):
        await service.maintenance.enable()
        await until(lambda: other.over)
        assert connection.sent == []
        gate.set()
        await until(lambda: connection.over)
        assert connection.last == connection.end


@pytest.mark.anyio
async def test_a_raw_application():
    """An ASGI application without routes is served, too; one that is marked forced off goes on."""
    maintenance = Maintenance(backend=MemoryBackend())

    async def raw(scope, receive, send):
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": "hello"})

    async def always(scope, receive, send):
        await raw(scope, receive, send)

    marked = MaintenanceModeMiddleware(
        force_maintenance_mode_off(always), maintenance=maintenance, close_streams_after=0
    )
    app = MaintenanceModeMiddleware(raw, maintenance=maintenance, close_streams_after=0)
    async with opened(marked, "/ws") as kept, opened(app, "/ws") as connection:
        await maintenance.enable()
        await until(lambda: connection.over)
        assert connection.last == connection.end
        assert await is_served(kept)


# What goes on


async def is_served(connection, service=None):
    """Tell whether a connection is served on, until it ends by itself."""
    before = len(connection.sent)
    if service is None:
        connection.say("hello")
        await until(lambda: len(connection.sent) > before)
        on = connection.last == {"type": "websocket.send", "text": "hello"} and not connection.over
        connection.incoming.append({"type": "websocket.disconnect", "code": 1000})
    else:
        await until(lambda: len(connection.sent) > before + 3 or connection.over)
        on = not connection.over
        service.release = True
    await until(lambda: connection.over)
    return on and connection.error is None


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/always/ws", "/always/events", "/download", "/counted"])
async def test_what_stays_open_and_what_is_no_stream_goes_on(path):
    """Streams of forced-off endpoints go on, and so do downloads, and event streams of a known length."""
    service = Service()
    async with opened(service.app, path, "/ws", headers=[("accept", EVENTS)]) as (connection, other):
        await service.maintenance.enable()
        await until(lambda: other.over)
        assert service.cleaned == ["/ws"]
        assert await is_served(connection, None if "/ws" in path else service)


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/ws", "/events"])
@pytest.mark.parametrize("by", ["path", "handler", "network", "secret"])
@pytest.mark.parametrize("closed_before", [False, True])
@pytest.mark.parametrize("form", [list, iter])
async def test_an_exempt_stream_goes_on(clock, monkeypatch, path, by, closed_before, form):
    """A connection that is exempt goes on, whether it was opened before or after the gate closed."""

    async def handler(request):
        return by == "handler" and "friend" in request.headers

    settings = MaintenanceSettings(
        exempt_paths=[path] if by == "path" else [],
        exempt_ips=["127.0.0.1"] if by == "network" else [],
        bypass_secret="s3cret" if by == "secret" else None,
    )
    service = Service(settings=settings, exempt_handler=handler, inside=[ReadingHeaders])
    # As in an application without marks, where nothing is asked of a request before the gate lets it through.
    monkeypatch.setattr(Marks, "count", 0)
    headers = [("friend", "yes"), ("maintenance-bypass", "s3cret")]
    if closed_before:
        await service.maintenance.enable()
    async with opened(service.app, path, headers=headers, form=form) as connection:
        await service.maintenance.disable()
        async with opened(service.app, path, headers=headers, form=form):
            await service.maintenance.enable()
            await clock.looked()
            assert await is_served(connection, None if path == "/ws" else service)


@pytest.mark.anyio
async def test_one_that_was_exempt_when_it_came_is_not_asked_again():
    """A connection that was let through for an exemption goes on, whatever the handler would say later."""
    asked = []

    def handler(request):
        asked.append(request.url.path)
        return len(asked) == 1

    service = Service(exempt_handler=handler)
    await service.maintenance.enable()
    async with opened(service.app, "/ws") as connection:
        await service.maintenance.disable()
        async with opened(service.app, "/ws") as other:
            await service.maintenance.enable()
            await until(lambda: other.over)
        assert asked == ["/ws", "/ws"]
        assert await is_served(connection)


@pytest.mark.anyio
async def test_below_a_mount():
    """Marks and streams below a mount are found, though routing has changed the scope in the meantime."""
    maintenance = Maintenance(backend=MemoryBackend())
    outer = FastAPI()
    outer.mount("/sub", Service().app)
    outer.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance, close_streams_after=0)
    async with opened(outer, "/sub/always/ws", "/sub/ws", "/sub/events") as (kept, *others):
        await maintenance.enable()
        await until(lambda: all(other.over for other in others))
        assert [other.last for other in others] == [other.end for other in others]
        assert await is_served(kept)


@pytest.mark.anyio
@pytest.mark.parametrize("around", [False, True], ids=["alone", "behind another gate"])
async def test_a_hold_ends_the_streams_of_a_middleware_that_is_switched_off(around):
    """`enable_maintenance=False` stands in for switch and windows only, for streams as for requests."""
    maintenance, app = get_maintenance(), FastAPI()
    maintenance.use_backend(MemoryBackend())

    @app.websocket("/ws")
    async def echo(websocket: WebSocket):
        await websocket.accept()
        async for text in websocket.iter_text():  # pragma: no cover - nobody says anything
            await websocket.send_text(text)

    app.add_middleware(MaintenanceModeMiddleware, enable_maintenance=False, close_streams_after=0)
    if around:
        app.add_middleware(MaintenanceModeMiddleware)
    for _ in range(2):
        async with opened(app, "/ws", "/ws") as both, maintenance.on():
            await until(lambda: all(each.over for each in both))
            assert [each.last for each in both] == [each.end for each in both]


@pytest.mark.anyio
async def test_read_only(clock):
    """Read-only ends websockets and event streams of writes; those of GET go on until the mode is full."""
    service = Service(10)
    async with (
        opened(service.app, "/events") as reader,
        opened(service.app, "/events", method="POST") as writer,
        opened(service.app, "/ws") as socket,
    ):
        await service.maintenance.enable(mode="read_only")
        await clock.looked()
        clock.now += 10
        await until(lambda: writer.over and socket.over)
        assert (writer.last, socket.last) == (writer.end, socket.end)
        await service.maintenance.enable()
        await clock.looked()
        assert not reader.over
        clock.now += 10
        await until(lambda: reader.over)
        assert reader.last == reader.end


@pytest.mark.anyio
async def test_a_request_without_an_answer_yet_goes_on():
    """A slow request, and a websocket whose handshake is under way, are never cut."""
    service = Service()

    @service.app.websocket("/ws/slow")
    async def handshake(websocket: WebSocket):
        with service.cleaning("handshake"):
            await until(lambda: service.release)
        await websocket.close(4000)

    paths = ("/slow", "/ws/slow", "/ws")
    async with opened(service.app, *paths, ready=service.has_begun(*paths[::2], "handshake")) as connections:
        request, shaking, other = connections
        await service.maintenance.enable()
        await until(lambda: other.over)
        assert (request.sent, shaking.sent) == ([], [])
        service.release = True
        await until(lambda: request.over and shaking.over)
        assert (request.sent[0]["status"], request.last["body"]) == (200, b'"done"')
        assert shaking.last["code"] == 4000


@pytest.mark.anyio
async def test_left_out_nothing_ends(clock):
    """Without `close_streams_after`, and behind another object, streams go on."""
    service, other = Service(None), Service()
    async with opened(service.app, "/ws") as kept, opened(other.app, "/ws") as kept_too:
        await service.maintenance.enable()
        await clock.looked()
        assert await is_served(kept)
        assert await is_served(kept_too)


# The grace


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/ws", "/events"])
async def test_grace(clock, path):
    """A stream may go on for exactly the time of grace after the gate was seen closed."""
    service = Service(10)
    async with opened(service.app, path) as connection:
        await service.maintenance.enable()
        await clock.looked()
        clock.now += 9.9
        await clock.looked()
        assert not connection.over
        clock.now += 0.1
        await until(lambda: connection.over)
        assert connection.last == connection.end


@pytest.mark.anyio
async def test_opening_again_within_the_grace_saves_a_stream(clock):
    """What opened again within the grace begins a new grace when it closes next."""
    service = Service(10)
    async with opened(service.app, "/ws") as connection:
        await service.maintenance.enable()
        await clock.looked()
        clock.now += 9
        await service.maintenance.disable()
        await clock.looked()
        await service.maintenance.enable()
        await clock.looked()
        clock.now += 9
        await clock.looked()
        assert not connection.over
        clock.now += 1
        await until(lambda: connection.over)
        assert connection.last == connection.end


@pytest.mark.anyio
async def test_exemptions_are_asked_once_for_each_closing(clock):
    """The handler is asked once when the gate closes, inside of its object; a late answer counts for nothing."""
    asked, answers = [], [anyio.Event(), anyio.Event()]

    async def handler(request):
        asked.append((request.url.path, await get_maintenance_mode()))
        await answers[len(asked) - 1].wait()
        return False

    service = Service(exempt_handler=handler)
    async with opened(service.app, "/ws") as connection:
        await service.maintenance.enable()
        await until(lambda: len(asked) == 1)
        await clock.looked()
        await service.maintenance.disable()
        await clock.looked()
        clock.now += 1
        await service.maintenance.enable()
        await until(lambda: len(asked) == 2)
        answers[0].set()
        await clock.looked()
        assert asked == [("/ws", True), ("/ws", True)]
        assert not connection.over
        answers[1].set()
        await until(lambda: connection.over)
        assert connection.last == connection.end


@pytest.mark.anyio
async def test_where_nobody_can_tell_a_stream_goes_on(clock, caplog):
    """A route that cannot be matched any more ends no stream and no event loop; the log says why."""
    service = Service()

    class Moody(Route):
        def matches(self, scope):
            if service.begun:
                raise RuntimeError("moody")
            return super().matches(scope)

    service.app.router.routes.insert(0, Moody("/moody", dict))
    async with opened(service.app, "/ws") as connection:
        await service.maintenance.enable()
        await until(lambda: "moody" in caplog.text)
        await clock.looked()
        assert "so it goes on" in caplog.text
        assert await is_served(connection)


# Endings that meet


def with_socket(endpoint, grace=0.0):
    """Give a service with a websocket endpoint at `/ws/own`."""
    service = Service(grace)
    service.app.add_api_websocket_route("/ws/own", endpoint)
    return service


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/ws", "/events"])
async def test_a_client_that_has_gone_is_told_nothing(path):
    """When the client goes while it is told the end, that is no error."""
    service = Service()

    def gone():
        raise OSError("the client has gone")

    async with opened(service.app, path) as connection:
        connection.at_end = gone
        await service.maintenance.enable()
        await until(lambda: connection.over)
        assert connection.error is None
        assert connection.last != connection.end


@pytest.mark.anyio
async def test_cleaning_up_after_a_client_that_went_is_not_cut():
    """An endpoint that the client has left cleans up in peace."""
    finished = []

    async def endpoint(websocket: WebSocket):
        await websocket.accept()
        with pytest.raises(WebSocketDisconnect):
            await websocket.receive_text()
        with service.cleaning("left"):
            await until(lambda: service.release)
        finished.append(True)

    service = with_socket(endpoint)
    async with opened(service.app, "/ws/own", "/ws") as (connection, other):
        connection.incoming.append({"type": "websocket.disconnect", "code": 1001})
        await until(lambda: "left" in service.begun)
        await service.maintenance.enable()
        await until(lambda: other.over)
        service.release = True
        await until(lambda: connection.over)
        assert finished == [True]
        assert connection.sent == [{"type": "websocket.accept", "subprotocol": None, "headers": []}]


@pytest.mark.anyio
async def test_an_end_of_the_applications_own_is_not_cut():
    """An endpoint that is closing already, to a client that is slow, closes as it wants and goes on to its end."""
    finished = []

    async def endpoint(websocket: WebSocket):
        await websocket.accept()
        await websocket.receive_text()
        await websocket.close(4002)
        await anyio.lowlevel.checkpoint()
        finished.append(True)

    service = with_socket(endpoint)
    async with opened(service.app, "/ws/own", "/ws") as (connection, other):
        connection.stalled = True
        connection.say("end")
        await until(lambda: connection.last["type"] == "websocket.close")
        await service.maintenance.enable()
        await until(lambda: other.over)
        assert not connection.over
        connection.stalled = False
        await until(lambda: connection.over)
        assert finished == [True]
        assert [message.get("code") for message in connection.sent] == [None, 4002]


@pytest.mark.anyio
async def test_a_goodbye_in_a_finally_block():
    """An endpoint that closes in its `finally` block, as it is cancelled, has the last word."""

    async def endpoint(websocket: WebSocket):
        await websocket.accept()
        try:
            await websocket.receive_text()
        finally:
            await websocket.close(4001)

    service = with_socket(endpoint)
    async with opened(service.app, "/ws/own") as connection:
        await service.maintenance.enable()
        await until(lambda: connection.over)
        assert connection.error is None
        assert [message.get("code") for message in connection.sent] == [None, 4001]


@pytest.mark.anyio
async def test_a_cancellation_that_is_swallowed():
    """An endpoint that catches its cancellation and returns is closed with 1012 all the same."""
    caught = []

    async def endpoint(websocket: WebSocket):
        await websocket.accept()
        try:
            await websocket.receive_text()
        except BaseException as error:  # noqa: BLE001 - as people do
            caught.append(type(error))

    service = with_socket(endpoint)
    async with opened(service.app, "/ws/own") as connection:
        await service.maintenance.enable()
        await until(lambda: connection.over)
        assert caught == [anyio.get_cancelled_exc_class()]
        assert connection.last == connection.end


@pytest.mark.anyio
async def test_an_error_in_a_finally_block_is_the_applications():
    """An error while cleaning up goes to the server as it would otherwise; other streams end as they should."""

    async def endpoint(websocket: WebSocket):
        await websocket.accept()
        try:
            await websocket.receive_text()
        finally:
            raise LookupError("cleaning failed")

    service = with_socket(endpoint)
    async with opened(service.app, "/ws/own", "/ws") as (connection, other):
        await service.maintenance.enable()
        await until(lambda: connection.over and other.over)
        assert isinstance(connection.error, LookupError)
        assert len(connection.sent) == 1
        assert (other.error, other.last) == (None, other.end)


@pytest.mark.anyio
async def test_shielded_work_is_waited_for():
    """An endpoint inside of a shielded scope is ended when it leaves that."""
    finished = []

    async def endpoint(websocket: WebSocket):
        await websocket.accept()
        with anyio.CancelScope(shield=True):
            await until(lambda: service.release)
            finished.append(True)
        await websocket.receive_text()

    service = with_socket(endpoint)
    async with opened(service.app, "/ws/own", "/ws") as (connection, other):
        await service.maintenance.enable()
        await until(lambda: other.over)
        assert not connection.over
        service.release = True
        await until(lambda: connection.over)
        assert finished == [True]
        assert connection.last == connection.end


@pytest.mark.anyio
@collected
@pytest.mark.parametrize("reads_again", [True, False])
async def test_a_stalled_client(clock, reads_again):
    """A message on its way is waited for, so that a stream ends between two; but only for a second."""
    service = Service(10)
    async with opened(service.app, "/events") as connection:
        connection.stalled = True
        held = len(connection.sent)
        await until(lambda: len(connection.sent) > held)
        await service.maintenance.enable()
        await clock.looked()
        clock.now += 10
        await clock.looked()
        assert not connection.over
        connection.stalled = not reads_again
        clock.now += 0 if reads_again else streams.STALLED
        await until(lambda: connection.last == connection.end)
        connection.stalled = False
        await until(lambda: connection.over and service.cleaned == ["/events"])
        assert connection.error is None


# The watcher


class Watchers:
    """How many tasks the streams have started, and how many of them run."""

    def __init__(self):
        self.started = 0
        self.running = 0

    def spawn(self, function, alive):
        async def counted():
            self.running += 1
            try:
                await function()
            finally:
                self.running -= 1

        self.started += 1
        spawn(counted, alive)


@pytest.fixture
def watchers(monkeypatch):
    """Count the tasks that streams start."""
    counter = Watchers()
    monkeypatch.setattr(streams, "spawn", counter.spawn)
    return counter


@pytest.mark.anyio
async def test_one_watcher_while_anything_is_open(watchers, clock):
    """One task watches all streams of an event loop; it ends when none is left and comes back with the next."""
    service = Service()
    for rounds in (1, 2):
        async with opened(service.app, "/ws", "/events", "/sync"):
            async with opened(service.app, "/ws"):
                await clock.looked()
            await clock.looked()
            assert (watchers.started, watchers.running) == (rounds, 1)
        await until(lambda: watchers.running == 0)


@pytest.mark.anyio
async def test_no_watcher_for_ordinary_requests(watchers):
    """A request that is no stream starts no task."""
    service = Service()
    async with opened(service.app, "/download", "/slow", ready=service.has_begun("/slow")) as (download, slow):
        service.release = True
        await until(lambda: download.over and slow.over)
    assert watchers.started == 0


@pytest.mark.anyio
async def test_two_middlewares_in_one_event_loop(clock):
    """Each has its own grace."""
    short, long = Service(1), Service(10)
    async with opened(short.app, "/ws") as first, opened(long.app, "/ws") as second:
        await short.maintenance.enable()
        await long.maintenance.enable()
        await clock.looked()
        clock.now += 1
        await until(lambda: first.over)
        assert not second.over
        clock.now += 9
        await until(lambda: second.over)
        assert (first.last, second.last) == (first.end, second.end)


def test_several_event_loops():
    """One app that serves several event loops, of both kinds, and one after another, ends the streams of each."""
    service = Service()
    together = threading.Barrier(4, timeout=PATIENCE)
    ends = []

    async def served():
        async with opened(service.app, "/ws") as connection:
            await anyio.to_thread.run_sync(together.wait)
            await until(lambda: connection.over)
            ends.append(connection.last == connection.end)

    for _ in range(2):
        threads = [
            threading.Thread(target=anyio.run, args=[served], kwargs={"backend": backend})
            for backend in ("asyncio", "trio", "asyncio")
        ]
        for thread in threads:
            thread.start()
        together.wait()
        anyio.run(service.maintenance.enable)
        for thread in threads:
            thread.join(PATIENCE)
        anyio.run(service.maintenance.disable)
    assert ends == [True] * 6


# The setting


@pytest.mark.parametrize("seconds", [-1, -0.1, float("nan"), float("inf"), "10", True, [], 1j])
def test_bad_seconds(seconds):
    """What is no number of seconds is an error when the middleware is made."""
    with pytest.raises(ValueError, match="close_streams_after must be seconds, 0 or more, not"):
        MaintenanceModeMiddleware(FastAPI(), close_streams_after=seconds)


@pytest.mark.parametrize("seconds", [0, 0.5, 3])
def test_good_seconds(seconds):
    """It may stand beside `maintenance` and by itself."""
    maintenance = Maintenance(backend=MemoryBackend())
    app = FastAPI()
    app.add_api_route("/x", lambda: "open")
    for options in ({}, {"maintenance": maintenance}):
        client = TestClient(MaintenanceModeMiddleware(app, close_streams_after=seconds, **options))
        assert client.get("/x").json() == "open"


# Refusing an event stream, and a handshake

GATES = ("guard", "route class", "middleware")


def closed(gate, settings=None, **switch):
    """Give a client of an app that is closed by `gate`."""
    maintenance = Maintenance(settings, backend=MemoryBackend())
    anyio.run(partial(maintenance.enable, **switch))
    app = FastAPI(dependencies=[Depends(maintenance.guard)] if gate == "guard" else None)
    router = APIRouter(route_class=maintenance.route_class) if gate == "route class" else APIRouter()
    router.add_api_route("/events", lambda: "open", methods=["GET", "POST"])
    router.add_api_websocket_route("/ws", lambda: "open")
    app.include_router(router)
    if gate == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    return TestClient(app)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("switch", "retry"), [({"retry_after": 7}, "7000"), ({}, "60000")])
def test_an_event_source_is_told_when_to_come_back(gate, switch, retry):
    """With `event_streams="retry"` an EventSource gets a stream that only says `retry:`, in milliseconds, and ends."""
    client = closed(gate, MaintenanceSettings(event_streams="retry"), **switch)
    response = client.get("/events", headers={"Accept": EVENTS})
    assert (response.status_code, response.text) == (200, f"retry: {retry}\n\n")
    assert response.headers["Content-Type"].partition(";")[0] == EVENTS
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Maintenance"] == "full"
    assert response.headers["Vary"] == "Accept"


def test_an_event_source_comes_back_where_nothing_is_configured():
    """Without a Retry-After to tell it is told half a minute."""
    client = closed("middleware", MaintenanceSettings(event_streams="retry", retry_after=None))
    assert client.get("/events", headers={"Accept": EVENTS}).text == "retry: 30000\n\n"


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    ("setting", "accept", "media_type"),
    [
        ("refuse", EVENTS, "application/json"),
        ("retry", "*/*", "application/json"),
        ("retry", "", "application/json"),
        ("retry", f"{EVENTS};q=0.5, application/json", "application/json"),
        ("retry", f"text/html, {EVENTS};q=0.9", "text/html"),
        ("retry", f"{EVENTS};q=0", "application/json"),
    ],
)
def test_others_get_the_503(gate, setting, accept, media_type):
    """The 200 is opt-in, and for clients that prefer an event stream to all else."""
    response = closed(gate, MaintenanceSettings(event_streams=setting)).get("/events", headers={"Accept": accept})
    assert (response.status_code, response.headers["Content-Type"].partition(";")[0]) == (503, media_type)
    assert response.headers["Retry-After"] == "60"


def denied(client, **options):
    """Give the response that a handshake is denied with."""
    with pytest.raises(WebSocketDenialResponse) as caught, ExitStack() as stack:
        stack.enter_context(client.websocket_connect("/ws", **options))
    return caught.value


@pytest.mark.parametrize("gate", ["guard", "middleware"])
def test_a_denied_handshake_has_the_same_figure(gate):
    """A websocket handshake is denied with 503, Retry-After with its jitter, and the same figure in the body."""
    client = closed(gate, MaintenanceSettings(retry_after_jitter=5), retry_after=100)
    seen = set()
    while len(seen) < 3:
        response = denied(client)
        seen.add(response.json()["retry_after"])
        assert (response.status_code, response.headers["Maintenance"]) == (503, "full")
        assert int(response.headers["Retry-After"]) == response.json()["retry_after"]
    assert seen <= set(range(100, 106))


@pytest.mark.parametrize("gate", ["guard", "middleware"])
def test_a_handshake_is_denied_whatever_event_streams_get(gate):
    """The setting is for event streams: a handshake that asks for one is denied with 503."""
    client = closed(gate, MaintenanceSettings(event_streams="retry"))
    assert denied(client, headers={"Accept": EVENTS}).status_code == 503


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("method", "code"), [("GET", 200), ("POST", 503)])
def test_a_write_is_never_answered_200(gate, method, code):
    """The 200 is what an EventSource gets, which sends GET; a refused POST is not told that it went well."""
    client = closed(gate, MaintenanceSettings(event_streams="retry"))
    response = client.request(method, "/events", headers={"Accept": EVENTS})
    assert response.status_code == code


@pytest.mark.anyio
@pytest.mark.parametrize("gate", ["guard", "middleware"])
async def test_a_server_that_cannot_deny(gate):
    """Where the server lacks the extension for denials, the handshake ends with close 1013."""
    client = await anyio.to_thread.run_sync(closed, gate)
    async with opened(client.app, "/ws") as connection:
        await until(lambda: connection.over)
        assert connection.error is None
        assert connection.sent == [{"type": "websocket.close", "code": 1013, "reason": "maintenance"}]
