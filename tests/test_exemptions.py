"""Reasons to let a request through while it is closed."""

import contextlib
import functools
import hmac
import logging

import anyio
import anyio.lowlevel
import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection, Request
from starlette.testclient import WebSocketDenialResponse

from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware, MaintenanceSettings
from fastapi_maintenance.asgi import connection, route_path
from fastapi_maintenance.backends import MemoryBackend
from fastapi_maintenance.exemptions import Exemptions

SECRET = "gehé im-Gäns∂marsch"  # noqa: S105 - made up


def scope(path="/x", root_path=None, client=("192.0.2.1", 5), headers=(), kind="http"):
    """Make the scope of a request."""
    made = {"type": kind, "method": "POST", "path": path, "client": client, "headers": list(headers)}
    return made if root_path is None else made | {"root_path": root_path}


async def covers(made=None, /, *, docs=False, handler=None, **settings):
    """Tell whether a request is exempt under these settings."""
    return await Exemptions(MaintenanceSettings(**settings), handler).cover(made or scope(), docs)


@pytest.mark.anyio
async def test_without_a_reason_nobody_is_exempt():
    """With the default settings and no handler a request is not exempt."""
    assert await covers() is False


# Docs


@pytest.mark.anyio
@pytest.mark.parametrize("exempt_docs", [True, False])
async def test_docs_are_exempt_unless_said_otherwise(exempt_docs):
    """A documentation endpoint is exempt while `exempt_docs` is true."""
    assert await covers(docs=True, exempt_docs=exempt_docs) is exempt_docs


def ok():
    """Answer."""
    return 1


def closed(app, **settings):
    """Put a closed middleware before an app."""
    maintenance = Maintenance(MaintenanceSettings(**settings), backend=MemoryBackend())
    anyio.run(maintenance.enable)
    return TestClient(MaintenanceModeMiddleware(app, maintenance=maintenance))


@pytest.mark.parametrize(("exempt", "docs"), [(True, 200), (False, 503)])
def test_docs_of_the_app_that_answers_are_exempt(exempt, docs):
    """The docs endpoints of an app and of a mounted one stay open at their own paths, exactly; the rest is closed."""
    sub = FastAPI(docs_url="/d", redoc_url=None)
    app = FastAPI(docs_url="/help", redoc_url="/red")
    app.mount("/sub", sub)
    for path in ("/docs", "/help/more", "/openapi.jsonx"):
        app.get(path)(ok)
        sub.get(path)(ok)
    client = closed(app, exempt_docs=exempt)
    ours = ["/help", "/red", "/openapi.json", "/docs/oauth2-redirect", "/sub/d", "/sub/openapi.json"]
    assert {path: client.get(path).status_code for path in ours} == dict.fromkeys(ours, docs)
    others = ["/docs", "/help/more", "/openapi.jsonx", "/sub/docs", "/sub/help/more", "/sub/openapi.jsonx"]
    assert {path: client.get(path).status_code for path in others} == dict.fromkeys(others, 503)


# Paths


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("exempt", "path", "covered"),
    [
        ("/health", "/health", True),
        ("/health", "/health/", False),
        ("/health", "/health/db", False),
        ("/health", "/healthz", False),
        ("/health", "/Health", False),
        ("/health", "/v1/health", False),
        ("/health", "//health", False),
        ("/health/*", "/health", True),
        ("/health/*", "/health/", True),
        ("/health/*", "/health/db/1", True),
        ("/health/*", "/health/.well-known", True),
        ("/health/*", "/health/a..b", True),
        ("/health/*", "/health/...", True),
        ("/health/*", "/healthz", False),
        ("/health/*", "/healthz/db", False),
        ("/health/*", "/health%2Fdb", False),
        ("/health/*", "/health\\db", False),
        ("/health/*", "//health/db", False),
        ("/health/*", "/v1/health/db", False),
        ("/health/*", "/health/..", False),
        ("/health/*", "/health/.", False),
        ("/health/*", "/health/../admin", False),
        ("/health/*", "/health/./db", False),
        ("/health/*", "/health/a/../../admin", False),
        ("/health/*", "/health/..\\admin", False),
        ("/health/*", "/health/a\\..\\..\\admin", False),
        ("/health/*", "/health/\\admin", False),
        ("/*", "/", True),
        ("/*", "/anything/at/all", True),
        ("/*", "/a/../b", False),
        ("/a/../b", "/a/../b", True),
        ("/a\\b", "/a\\b", True),
        ("/a.b", "/axb", False),
        ("/x,/y/*", "/y/z", True),
        ("/x,/y/*", "/x", True),
        ("/x,/y/*", "/x/z", False),
    ],
)
async def test_paths_are_exempt_exactly_or_below(exempt, path, covered):
    """A path is exempt as written, or with `/*` on whole segments; never by its beginning when it climbs."""
    assert await covers(scope(path), exempt_paths=exempt) is covered


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("root_path", "path", "route"),
    [
        (None, "/health", "/health"),
        ("", "/health", "/health"),
        ("/api", "/api/health", "/health"),
        ("/api", "/health", "/health"),
        ("/api", "/apihealth", "/apihealth"),
        ("/api", "/api", ""),
        ("/api", "/api/", "/"),
        ("/api", "/v1/api/health", "/v1/api/health"),
        ("/api/", "/api/health", "/api/health"),
    ],
)
async def test_the_route_path_is_compared(root_path, path, route):
    """`exempt_paths` are compared with the path less `root_path`, taken away on a segment boundary only."""
    made = scope(path, root_path)
    assert route_path(made) == route
    assert await covers(made, exempt_paths="/health") is (route == "/health")


def guarded(maintenance):
    """Make an app with a guarded operation."""
    app = FastAPI(dependencies=[Depends(maintenance.guard)])
    app.get("/x")(ok)
    return app


def with_route_class(maintenance):
    """Make an app with an operation of the route class."""
    app, router = FastAPI(), APIRouter(route_class=maintenance.route_class)
    router.get("/x")(ok)
    app.include_router(router)
    return app


def behind_middleware(maintenance):
    """Make an app behind the middleware."""
    app = FastAPI()
    app.get("/x")(ok)
    app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    return app


gates = pytest.mark.parametrize("make", [guarded, with_route_class, behind_middleware])


def answer(make, method="GET", url="/x", *, handler=None, headers=None, **settings):
    """Ask a closed app."""
    maintenance = Maintenance(MaintenanceSettings(**settings), backend=MemoryBackend(), exempt_handler=handler)
    anyio.run(maintenance.enable)
    return TestClient(make(maintenance)).request(method, url, headers=headers).status_code


class Empty(list):
    """A handler that is false as a truth value, and exempts everybody."""

    def __call__(self, request):
        """Exempt it."""
        return True


REASONS = {
    "path": ({"exempt_paths": ("/x",)}, None),
    "all below": ({"exempt_paths": ("/x/*",)}, None),
    "network": ({"exempt_ips": ("10.0.0.0/8",)}, None),
    "secret": ({"bypass_secret": "s3cret"}, None),
    "handler": ({}, lambda request: True),
    "empty handler": ({}, Empty()),
    "nothing": ({}, None),
}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("networks", "clients", "kept"),
    [
        ("10.0.0.0/8", [f"10.0.{n // 256}.{n % 256}" for n in range(2000)], 1024),
        ("10.0.0.0/8", [f"{'x' * 1000}{n}" for n in range(10)], 0),
        ("", ["10.0.0.1"], 0),
    ],
)
async def test_only_so_many_clients_are_kept(networks, clients, kept):
    """Clients fill no memory, though a proxy header may name one at length; where none is exempt, none is kept."""
    exemptions = Exemptions(MaintenanceSettings(exempt_ips=networks, bypass_secret=SECRET), None)
    answers = {await exemptions.cover(scope(client=(client, 5)), docs=False) for client in clients}
    assert answers == {bool(kept)}
    assert exemptions._networks.cover.cache_info().currsize == kept


@gates
@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_alone_is_enough(make, reason):
    """One reason of any kind lets a request through under each gate, with nothing else configured."""
    settings, handler = REASONS[reason]
    maintenance = Maintenance(MaintenanceSettings(**settings), backend=MemoryBackend(), exempt_handler=handler)
    anyio.run(maintenance.enable)
    client = TestClient(make(maintenance), client=("10.1.2.3", 1), headers={"Maintenance-Bypass": "s3cret"})
    assert client.get("/x").status_code == (503 if reason == "nothing" else 200)


@gates
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "example.com/health/"},
        {"Host": "example.com/health?"},
        {"Host": "example.com/health#"},
        {"Host": "127.0.0.1"},
        {"X-Original-URL": "/health"},
        {"X-Forwarded-Prefix": "/health"},
    ],
)
def test_headers_shape_no_path(make, headers):
    """A `Host` header that carries a path, or one that names another URL, exempts nobody."""
    assert answer(make, headers=headers, exempt_paths="/health,/health/*,/") == 503


@gates
@pytest.mark.parametrize("url", ["/x", "/x?a=/y", "/%78"])
def test_an_exempt_path_is_let_through_by_each_gate(make, url):
    """An exempt path is served under each gate, with a query or in percent encoding, too."""
    assert answer(make, url=url, exempt_paths="/x") == 200


# Networks


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("client", "covered"),
    [
        (("10.1.2.3", 5), True),
        (["10.1.2.3", 5], True),
        (("11.1.2.3", 5), False),
        (("192.0.2.7", 0), True),
        (("192.0.2.8", 0), False),
        (("::ffff:10.1.2.3", 5), True),
        (("::ffff:a01:203", 5), True),
        (("::ffff:11.1.2.3", 5), False),
        (("::10.1.2.3", 5), False),
        (("2001:db8::1", 5), True),
        (("2001:db9::1", 5), False),
        (("fe80::1%eth0", 5), True),
        (("fe80::2%eth0", 5), False),
        (("testclient", 50000), False),
        (("unix:/run/app.sock", 0), False),
        (("/run/app.sock", None), False),
        (("", 0), False),
        (("10.1.2.3" * 60, 5), False),
        ((["10.1.2.3"], 5), False),
        ((None, None), False),
        ((), False),
        (None, False),
    ],
)
async def test_networks_are_those_of_the_connection(client, covered):
    """A client inside a network is exempt, IPv4 in IPv6 as well; one without an address is not."""
    networks = "10.0.0.0/8, 192.0.2.7, 2001:db8::/32, fe80::1"
    assert await covers(scope(client=client), exempt_ips=networks) is covered


@pytest.mark.anyio
@pytest.mark.parametrize("networks", ["0.0.0.0/0", "::/0"])
async def test_no_client_is_not_exempt(networks):
    """A server that names no client, as behind a unix socket, exempts nobody, even when all networks are."""
    made = scope()
    del made["client"]
    assert await covers(made, exempt_ips=networks) is False


@gates
@pytest.mark.parametrize(
    "name", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "CF-Connecting-IP", "True-Client-IP", "X-Client-IP"]
)
def test_forwarded_headers_are_ignored(make, name):
    """What a header says about the client exempts nobody."""
    value = "for=10.1.2.3" if name == "Forwarded" else "10.1.2.3"
    assert answer(make, headers={name: value}, exempt_ips="10.0.0.0/8") == 503


# The secret


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "covered"),
    [
        ([(b"maintenance-bypass", SECRET.encode())], True),
        ([(b"maintenance-bypass", b"wrong"), (b"maintenance-bypass", SECRET.encode())], True),
        ([(b"maintenance-bypass", SECRET.encode()), (b"maintenance-bypass", b"wrong")], True),
        ([(b"maintenance-bypass", b"wrong"), (b"maintenance-bypass", b"")], False),
        ([(b"maintenance-bypass", SECRET.encode()[:-1])], False),
        ([(b"maintenance-bypass", SECRET.encode() + b" ")], False),
        ([(b"maintenance-bypass", SECRET.upper().encode())], False),
        ([(b"maintenance-bypass", SECRET.encode("utf-16"))], False),
        ([(b"maintenance-bypass", b"\xff\x00")], False),
        ([(b"other", SECRET.encode())], False),
        ([], False),
    ],
)
async def test_the_secret_lets_through(headers, covered):
    """A request with the secret, byte for byte, in any header of that name is exempt; any other value is not."""
    assert await covers(scope(headers=headers), bypass_secret=SECRET) is covered


@pytest.mark.anyio
@pytest.mark.parametrize("secret", [None, ""])
@pytest.mark.parametrize("value", [b"", b"None"])
async def test_without_a_secret_the_header_opens_nothing(secret, value):
    """Where no secret is set the header exempts nobody, empty or not."""
    assert await covers(scope(headers=[(b"maintenance-bypass", value)]), bypass_secret=secret) is False


@gates
@pytest.mark.parametrize("sent", ["X-Let-Me-In", "x-let-me-in", "X-LET-ME-IN"])
def test_the_header_has_any_name_in_any_case(make, sent):
    """The header's name can be set, and its case does not matter."""
    settings = {"bypass_secret": "s", "bypass_header": "X-Let-Me-In"}
    assert answer(make, headers={sent: "s"}, **settings) == 200
    assert answer(make, headers={"Maintenance-Bypass": "s"}, **settings) == 503


@pytest.mark.anyio
async def test_the_secret_is_compared_in_constant_time(monkeypatch):
    """Each value is compared as bytes by `hmac.compare_digest`, and by nothing else."""
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda *pair: compared.append(pair))
    headers = [(b"maintenance-bypass", SECRET.encode()), (b"other", b"1"), (b"maintenance-bypass", b"2")]
    assert not await covers(scope(headers=headers), bypass_secret=SECRET)
    assert compared == [(SECRET.encode(), SECRET.encode()), (b"2", SECRET.encode())]


# The handler


def sync_handler(request):
    """Answer by the path."""
    return request.url.path == "/x"


async def async_handler(request):
    """Answer by the path, after a while."""
    await anyio.lowlevel.checkpoint()
    return request.url.path == "/x"


async def two_arguments(path, request):
    """Answer for one path."""
    return request.url.path == path


class Handler:
    """Handlers that are objects."""

    def method(self, request):
        """Answer by the path."""
        return sync_handler(request)

    async def __call__(self, request):
        return sync_handler(request)


class Awaitable:
    """An answer that is awaitable and no coroutine."""

    def __init__(self, request):
        self.request = request

    def __await__(self):
        return async_handler(self.request).__await__()


HANDLERS = {
    "sync": sync_handler,
    "async": async_handler,
    "object with async call": Handler(),
    "method": Handler().method,
    "partial of sync": functools.partial(sync_handler),
    "partial of async": functools.partial(two_arguments, "/x"),
    "partial of an object": functools.partial(Handler()),
    "lambda that gives a coroutine": lambda request: async_handler(request),  # noqa: PLW0108 - no coroutine function
    "class whose objects are awaitable": Awaitable,
}
handlers = pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)


@pytest.mark.anyio
@handlers
async def test_a_handler_exempts_when_its_result_is_true(handler):
    """A handler of any kind is called, its result awaited if it has to be, and only `True` exempts."""
    assert await covers(scope("/x"), handler=handler) is True
    assert await covers(scope("/y"), handler=handler) is False


@gates
@handlers
def test_a_handler_is_asked_under_each_gate(make, handler, caplog):
    """Under each gate the handler lets its request through, and the log has nothing to say."""
    assert answer(make, handler=handler) == 200
    assert answer(make, handler=lambda _: False) == 503
    assert not caplog.records


@gates
def test_a_handler_is_asked_only_before_a_refusal(make):
    """While it is open, and for what other reasons exempt, the handler is not asked."""
    asked = []
    maintenance = Maintenance(backend=MemoryBackend(), exempt_handler=asked.append)
    assert TestClient(make(maintenance)).get("/x").status_code == 200
    assert answer(make, handler=asked.append, exempt_paths="/x") == 200
    assert answer(make, handler=asked.append) == 503
    assert len(asked) == 1


async def failing(request):
    """Fail after a while."""
    await anyio.lowlevel.checkpoint()
    return 1 / 0 if request else None


def generating(request):
    """Give an async generator."""
    return request.stream()


async def reading(request):
    """Try to read the body."""
    return await request.json()


def needy(_request, _more):
    """Want more than there is."""


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("handler", "error"),
    [(failing, "ZeroDivisionError"), (needy, "TypeError"), (reading, "RuntimeError"), (chr, "TypeError")],
    ids=["raises", "takes two", "reads the body", "builtin"],
)
async def test_a_handler_that_raises_exempts_nobody(caplog, handler, error):
    """A handler that raises exempts nobody; the log has one error with the traceback."""
    assert await covers(handler=handler) is False
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.name == "fastapi_maintenance"
    assert record.exc_info[0].__name__ == error
    assert "raised, so it exempts nobody" in record.getMessage()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (lambda _: "yes", "str"),
        (lambda _: "", "str"),
        (lambda _: 1, "int"),
        (lambda _: 0, "int"),
        (lambda _: object(), "object"),
        (lambda _: [True], "list"),
        (lambda _: NotImplemented, "NotImplementedType"),
        (generating, "async_generator"),
        (lambda _: (yield True), "generator"),
    ],
    ids=["yes", "empty", "1", "0", "object", "list", "not implemented", "async generator", "generator"],
)
async def test_a_handler_that_answers_nonsense_exempts_nobody(caplog, handler, kind):
    """An answer that is neither true nor false exempts nobody; the log has one error that names its type."""
    assert await covers(handler=handler) is False
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"gave a {kind}, so it exempts nobody; it must give True or False" in record.getMessage()


@pytest.mark.anyio
async def test_no_answer_means_no(caplog):
    """A handler that returns nothing exempts nobody, and needs no log."""
    assert await covers(handler=lambda _: None) is False
    assert not caplog.records


@gates
@pytest.mark.parametrize(
    "handler", [failing, generating, reading, lambda _: "yes"], ids=["raises", "generates", "reads", "nonsense"]
)
def test_a_bad_handler_is_no_500(make, handler):
    """Whatever is wrong with a handler, the client sees the refusal."""
    assert answer(make, handler=handler) == 503


@pytest.mark.parametrize("handler", [5, "handler", True, object(), []])
def test_a_handler_has_to_be_callable(handler):
    """A handler that cannot be called is a `TypeError` at construction."""
    with pytest.raises(TypeError, match=f"^exempt_handler must be callable, not {type(handler).__name__}$"):
        Maintenance(exempt_handler=handler)


@pytest.mark.anyio
async def test_a_cancelled_handler_is_cancelled():
    """Cancellation goes through a handler that waits; it is no failure of the handler."""
    with anyio.move_on_after(0) as cancelled:
        await covers(handler=lambda _: anyio.sleep_forever())
    assert cancelled.cancelled_caught


@pytest.mark.parametrize(("kind", "cls"), [("http", Request), ("websocket", HTTPConnection)])
def test_a_handler_gets_the_request_or_the_connection(kind, cls):
    """A handler gets a `Request` for HTTP and an `HTTPConnection` for a websocket, made from the scope."""
    made = connection(scope(kind=kind, headers=[(b"a", b"b")]))
    assert type(made) is cls
    assert made.headers["a"] == "b"


@pytest.mark.parametrize("exempt", [True, False])
def test_websockets_are_exempt_for_the_same_reasons(exempt):
    """A handler decides on a websocket, too."""
    maintenance = Maintenance(backend=MemoryBackend(), exempt_handler=lambda connection: connection["path"] == "/ws")
    anyio.run(maintenance.enable)
    app = FastAPI()

    @app.websocket("/ws" if exempt else "/other")
    async def endpoint(websocket: WebSocket):
        await websocket.accept()
        await websocket.close()

    client = TestClient(MaintenanceModeMiddleware(app, maintenance=maintenance))
    with contextlib.ExitStack() as stack:
        if exempt:
            assert stack.enter_context(client.websocket_connect("/ws")).accepted_subprotocol is None
        else:
            with pytest.raises(WebSocketDenialResponse):
                stack.enter_context(client.websocket_connect("/other"))


@pytest.mark.parametrize("methods", [["DELETE"], ["GET", "POST", "DELETE"]])
def test_what_takes_over_the_path_of_docs_is_not_exempt(methods):
    """A catch-all route that gets what the docs do not answer is refused, at the paths of the docs as elsewhere."""
    app = FastAPI()
    app.add_route("/{path:path}", lambda request: PlainTextResponse(request.url.path), methods=methods)
    open_client, client = TestClient(app), closed(app)
    for path in ("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect", "/x"):
        assert open_client.delete(path).text == path
        assert client.delete(path).status_code == 503
    assert [client.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [200] * 3


@pytest.mark.parametrize("switched_off", ["openapi_url", "docs_url", "redoc_url"])
def test_ones_own_route_at_the_path_of_docs_is_not_exempt(switched_off):
    """Where FastAPI made no docs, a user's plain route at their path is refused, with a usual or a framework's name."""

    def swagger_ui_html(request):
        return PlainTextResponse("mine")

    app = FastAPI(**{switched_off: None})
    path = "/redoc" if switched_off == "redoc_url" else "/docs"
    app.add_route(path, swagger_ui_html)
    assert TestClient(app).get(path).text == "mine"
    assert closed(app).get(path).status_code == 503


def answering(secret, _request):
    """Answer what nobody may see."""
    return secret


def raising(_secret, request):
    """Raise."""
    raise LookupError(request["path"])


class Carrying:
    """A callable object that shows what it carries."""

    def __init__(self, function, secret):
        self.function = function
        self.secret = secret

    def __repr__(self):
        return f"Carrying({self.secret})"

    def __call__(self, request):
        return self.function(self.secret, request)


@pytest.mark.anyio
@pytest.mark.parametrize("carry", [functools.partial, Carrying])
@pytest.mark.parametrize("function", [answering, raising])
async def test_what_a_bad_handler_carries_is_not_logged(carry, function, caplog):
    """The log names a handler by its function or class, never with its arguments, and not what it answered."""
    handler = carry(function, SECRET)
    assert await covers(handler=handler) is False
    (record,) = caplog.records
    name = function.__qualname__ if carry is functools.partial else "Carrying"
    assert record.getMessage().startswith(f"exempt_handler {name} ")
    assert SECRET in repr(handler)
    assert SECRET not in caplog.text
    assert SECRET not in repr(record.args)
