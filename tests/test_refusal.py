"""What a closed gate answers: body, headers, the user's own answers, HEAD and websockets."""

import logging
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, WebSocket
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from fastapi.testclient import TestClient
from httpx import ASGITransport, AsyncClient
from starlette.requests import HTTPConnection
from starlette.routing import Host
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from fastapi_maintenance import (
    Maintenance,
    MaintenanceActive,
    MaintenanceModeMiddleware,
    MaintenanceSettings,
    MaintenanceStatus,
    force_maintenance_mode_on,
    get_maintenance_mode,
)
from fastapi_maintenance.backends import MemoryBackend

GATES = ("guard", "route class", "middleware")
every_gate = pytest.mark.parametrize("gate", GATES)


def run(function, *args, **options):
    """Call a coroutine function from a sync test."""
    return anyio.run(partial(function, *args, **options))


def made(*, settings=None, response_handler=None, closed=True, **switch):
    """Give an object of its own, closed with `switch`."""
    maintenance = Maintenance(settings, backend=MemoryBackend(), response_handler=response_handler)
    if closed:
        run(maintenance.enable, **switch)
    return maintenance


def behind(gate, maintenance, **options):
    """Give an app with `/x` (any method), a websocket `/ws` and `/other`, which has a 503 of its own."""
    app = FastAPI(dependencies=[Depends(maintenance.guard)] if gate == "guard" else None, **options)
    router = APIRouter(route_class=maintenance.route_class) if gate == "route class" else APIRouter()
    router.add_api_route("/x", lambda: "open", methods=["GET", "HEAD", "POST"])

    @app.websocket("/ws")
    async def socket(websocket: WebSocket):
        await websocket.accept()
        await websocket.close()

    @app.get("/other")
    def busy():
        raise HTTPException(503, "busy")

    app.include_router(router)
    if gate == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    return app


def ask(app, method="GET", path="/x", **options):
    """Send one request."""
    return TestClient(app).request(method, path, follow_redirects=False, **options)


class Spoiling:
    """A middleware that writes into the headers of an answer, where the request asks for it."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """Let the answer to a request with `X-Spoil` have one header alone."""

        async def spoil(message):
            if "headers" in message:
                message["headers"][:] = [(b"x-spoilt", b"1")]
            await send(message)

        spoilt = (b"x-spoil", b"1") in scope.get("headers", ())
        await self.app(scope, receive, spoil if spoilt else send)


def answer_spoilt(request, error):
    """Answer with the refusal's own response, written into where the request asks for it."""
    if "X-Spoil" in request.headers:
        error.response.headers["X-Spoilt"] = "1"
        error.response.body = b"spoilt"
    return error.response


# The built-in answer


@every_gate
def test_members(gate):
    """The body has the members of RFC 9457, mode, retry_after and until; applied only where no code has run."""
    response = ask(behind(gate, made(message="Back soon")), "POST")
    expected = {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "Back soon",
        "mode": "full",
        "retry_after": 60,
        "until": None,
    }
    applied = {} if gate == "guard" else {"applied": False}
    assert (response.status_code, response.json()) == (503, expected | applied)


@every_gate
def test_headers(gate):
    """It is never stored, varies by Accept, and a marker header tells it from an outage."""
    headers = ask(behind(gate, made())).headers
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Vary"] == "Accept"
    assert headers["Maintenance"] == "full"
    assert headers["Retry-After"] == "60"


@every_gate
@pytest.mark.parametrize("accept", ["*/*", "application/problem+json", "text/html", "text/plain"])
@pytest.mark.parametrize("spoilt_by", ["a middleware", "an exception handler"])
def test_what_is_done_to_one_answer_stays_with_it(gate, accept, spoilt_by):
    """Who writes into the answer to one request changes nothing in the answers to others, though they are kept."""
    app = behind(gate, made())
    if spoilt_by == "a middleware":
        app.add_middleware(Spoiling)
    else:
        app.add_exception_handler(MaintenanceActive, answer_spoilt)
    headers = {"Accept": accept}
    before = ask(app, headers=headers)
    assert "X-Spoilt" in ask(app, headers={**headers, "X-Spoil": "1"}).headers
    after = ask(app, headers=headers)
    assert "X-Spoilt" not in after.headers
    assert (after.status_code, after.headers) == (before.status_code, before.headers)
    assert len(after.content) == len(before.content)


@every_gate
def test_kept_answers_follow_the_state(gate):
    """An answer that is kept for the next request is not sent once message, Retry-After, mode or end are others."""
    maintenance = made()
    app = behind(gate, maintenance)
    until = datetime.now(UTC) + timedelta(days=1)
    switches = ({"message": "a"}, {"message": "b", "retry_after": 7}, {"mode": "read_only"}, {"until": until}, {})
    told = []
    for switch in (*switches, *switches):
        run(maintenance.enable, **switch)
        answers = [ask(app, "POST") for _ in range(2)]
        assert answers[0].json() == answers[1].json()
        body, headers = answers[1].json(), answers[1].headers
        assert headers["Retry-After"] == str(body["retry_after"])
        assert headers["Maintenance"] == body["mode"]
        told.append((body["detail"], body["retry_after"] // 8000, body["mode"], body["until"] is not None))
    default = "Service temporarily unavailable due to maintenance"
    expected = [("a", 0, "full", False), ("b", 0, "full", False), (default, 0, "read_only", False)]
    expected += [(default, 10, "full", True), (default, 0, "full", False)]
    assert told == expected * 2


@every_gate
def test_kept_answers_follow_the_request(gate):
    """Requests in turn get what each of them prefers, with a body or, for HEAD, without."""
    app = behind(gate, made())
    forms = ("application/json", "application/problem+json", "text/plain; charset=utf-8", "text/html; charset=utf-8")
    for _ in range(2):
        for form in forms:
            accept = {"Accept": form.partition(";")[0]}
            got, head = ask(app, headers=accept), ask(app, "HEAD", headers=accept)
            assert got.headers["Content-Type"] == head.headers["Content-Type"] == form
            assert got.headers["Content-Length"] == str(len(got.content))
            assert (bool(got.content), head.content) == (True, b"")


@every_gate
def test_only_so_many_answers_are_kept(gate):
    """Clients that prefer something else each time, or at length, fill no memory, and get what they prefer."""
    maintenance = made()
    app = behind(gate, maintenance)
    preferences = [f"text/plain;q=0.{n}" for n in range(1, 100)] + [f"text/plain,{'x/y,' * 100}"]
    answers = {ask(app, headers={"Accept": accept}).headers["Content-Type"] for accept in preferences * 2}
    assert answers == {"text/plain; charset=utf-8"}
    kept = maintenance.gate._refusals._made.by_request
    assert len(kept) == 64
    assert all(len(accept) < 256 for accept, *_ in kept)


@every_gate
def test_preferences_in_two_lines_are_one(gate):
    """Several `Accept` lines say the same as one with commas (RFC 9110 section 5.3), whatever else is there twice."""
    app = behind(gate, made())
    lines = [("Cookie", "a=1"), ("Cookie", "b=1"), ("Accept", "text/plain"), ("Accept", "text/html;q=0.1")]
    for headers in (lines, lines[:3], lines[1:]):
        assert ask(app, headers=headers).headers["Content-Type"].startswith("text/plain")


@every_gate
@pytest.mark.parametrize("headers", [iter, tuple, lambda pairs: [tuple(map(bytearray, pair)) for pair in pairs]])
@pytest.mark.parametrize("secret", [None, "s3cret"])
def test_any_form_of_headers_will_do(gate, headers, secret):
    """Headers are pairs of byte strings that can be iterated over, and no more is asked of them (ASGI)."""
    app, told = behind(gate, made(settings=MaintenanceSettings(bypass_secret=secret))), []
    # A route that reads the headers to see whether it is meant.
    app.router.routes.insert(0, Host("elsewhere", FastAPI()))
    scope = {"type": "http", "method": "GET", "path": "/x", "query_string": b"", "root_path": ""}

    async def send(message):
        told.append(message)

    async def each(*forms):
        for form in forms:
            await app({**scope, "headers": headers([(b"accept", form), (b"x", b"y")])}, None, send)
        await app({**scope, "headers": headers([(b"maintenance-bypass", b"s3cret")])}, None, send)

    run(each, b"application/problem+json", b"text/plain", b"text/plain", b"application/json")
    starts = [message for message in told if message["type"] == "http.response.start"]
    kinds = [dict(start["headers"])[b"content-type"].partition(b";")[0] for start in starts[:-1]]
    assert kinds == [b"application/problem+json", b"text/plain", b"text/plain", b"application/json"]
    assert [start["status"] for start in starts] == [503, 503, 503, 503, 503 if secret is None else 200]


@every_gate
@pytest.mark.parametrize("own", [False, True], ids=["built in", "exception handler"])
def test_an_answer_that_is_given_again_is_given_by_the_same_object(gate, own):
    """Who makes an answer, or has it in hand on its way, finds the functional API on the object that refused."""
    seen, app = [], behind(gate, made())

    class Asking:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            async def ask_first(message):
                seen.append(await get_maintenance_mode())
                await send(message)

            await self.app(scope, receive, ask_first)

    async def answer(request, error):
        seen.append(await get_maintenance_mode())
        return PlainTextResponse("closed", 503)

    if own:
        app.add_exception_handler(MaintenanceActive, answer)
    app.add_middleware(Asking)
    assert [ask(app).status_code for _ in range(3)] == [503] * 3
    assert seen == [True] * (9 if own else 6)


@every_gate
def test_open_answers_are_left_alone(gate):
    """While open, no header is added."""
    response = ask(behind(gate, made(closed=False)))
    assert (response.status_code, response.json()) == (200, "open")
    assert not {"cache-control", "maintenance", "retry-after", "vary"} & set(response.headers)


@every_gate
def test_read_only_is_told(gate):
    """In read_only a refused write tells the mode in body and header, and a read is served."""
    app = behind(gate, made(mode="read_only"))
    response = ask(app, "POST")
    assert (response.status_code, response.headers["Maintenance"], response.json()["mode"]) == (503,) + 2 * (
        "read_only",
    )
    assert ask(app).status_code == 200


@every_gate
def test_nobody_is_named(gate):
    """The public body tells neither who closed it nor what else is stored."""
    response = ask(behind(gate, made(by="alice")))
    assert response.status_code == 503
    assert "alice" not in response.text + str(response.headers)


@every_gate
def test_message_is_never_in_a_header(gate):
    """A message with line feeds is in the body only."""
    response = ask(behind(gate, made(message="one\ntwo\tßé")))
    assert response.json()["detail"] == "one\ntwo\tßé"
    assert "two" not in str(response.headers)


@every_gate
def test_configured_message_and_status_code(gate):
    """Without a message in the state the configured one is told, with the configured status code."""
    settings = MaintenanceSettings(message="Gone fishing", status_code=500)
    response = ask(behind(gate, made(settings=settings)))
    assert (response.status_code, response.json()["status"], response.json()["detail"]) == (500, 500, "Gone fishing")


# Retry-After


@every_gate
@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(seconds=90, microseconds=1)])
def test_retry_after_is_the_time_left(gate, ahead):
    """With a known end, Retry-After and the body tell the whole seconds until then, whatever is configured."""
    until = datetime.now(UTC) + ahead
    response = ask(behind(gate, made(until=until, retry_after=7)))
    after = (until - datetime.now(UTC)).total_seconds()
    seconds = int(response.headers["Retry-After"])
    assert after <= seconds <= ahead.total_seconds() + 1
    assert response.json()["retry_after"] == seconds
    assert datetime.fromisoformat(response.json()["until"]) == until


@every_gate
@pytest.mark.parametrize(
    ("settings", "switch", "expected"),
    [
        ({}, {}, "60"),
        ({"retry_after": 120}, {}, "120"),
        ({"retry_after": 120}, {"retry_after": 7}, "7"),
        ({"retry_after": None}, {"retry_after": 7}, "7"),
        ({"retry_after": None}, {}, None),
    ],
)
def test_retry_after_without_a_known_end(gate, settings, switch, expected):
    """Without a known end it is the switch's figure, else the configured one, else absent; the body has the same."""
    response = ask(behind(gate, made(settings=MaintenanceSettings(**settings), **switch)))
    assert response.headers.get("Retry-After") == expected
    assert response.json()["retry_after"] == (None if expected is None else int(expected))


@every_gate
def test_forced_on_while_open(gate):
    """A route that is forced on tells the configured message and figure while nothing else is closed."""
    settings = MaintenanceSettings(message="Not yet", retry_after=5)
    maintenance = made(settings=settings, closed=False)
    app = behind(gate, maintenance)
    forced = APIRouter(route_class=maintenance.route_class) if gate == "route class" else APIRouter()
    forced.add_api_route("/beta", force_maintenance_mode_on(lambda: 1))
    app.include_router(forced)
    response = ask(app, path="/beta")
    assert (response.status_code, response.json()["detail"], response.json()["mode"]) == (503, "Not yet", "full")
    assert (response.headers["Retry-After"], response.headers["Maintenance"]) == ("5", "full")


# HEAD


def streamed(request):
    """Answer with a stream."""
    return StreamingResponse(iter([b"please ", b"wait"]), 503)


@every_gate
@pytest.mark.parametrize(
    "handler",
    [None, lambda request: HTMLResponse("<p>wait", 503), streamed],
    ids=["JSON", "HTML", "stream"],
)
def test_head_has_no_body(gate, handler):
    """HEAD is answered with the status and the headers of GET, and no body."""
    app = behind(gate, made(response_handler=handler))
    head, get = ask(app, "HEAD"), ask(app)
    assert (head.status_code, head.content) == (503, b"")
    assert dict(head.headers) == dict(get.headers)
    assert get.content


@every_gate
def test_head_leaves_a_shared_response_whole(gate):
    """A handler may give one response object many times: GET has its body after a HEAD as well."""
    page = HTMLResponse("<p>wait", 503)
    app = behind(gate, made(response_handler=lambda request: page))
    assert [ask(app, method).text for method in ("HEAD", "GET")] == ["", "<p>wait"]


# The user's own answer


async def answer_async(request, status):
    """Answer with two arguments."""
    return HTMLResponse(f"{request.url.path} {status.message}", 503)


class Answer:
    """A callable object."""

    async def __call__(self, request, status):
        return HTMLResponse(f"{request.url.path} {status.message}", 503)

    def method(self, request, status, /, *rest, note=""):
        """Answer with a bound method that takes more than is given."""
        return HTMLResponse(f"{request.url.path} {status.message}{note}{rest or ''}", 503)


def answer_after(prefix, request, status):
    """Answer with an argument that `partial` fills."""
    return HTMLResponse(f"{prefix}{request.url.path} {status.message}", 503)


@every_gate
@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(lambda request: HTMLResponse(f"{request.url.path} wait", 503), id="one argument"),
        pytest.param(lambda request, status: HTMLResponse(f"{request.url.path} {status.message}", 503), id="two"),
        pytest.param(lambda request, word="wait": HTMLResponse(f"{request.url.path} {word}", 503), id="default"),
        pytest.param(lambda request, *more: HTMLResponse(f"{request.url.path} wait{more or ''}", 503), id="rest"),
        pytest.param(lambda request, *, word="wait": HTMLResponse(f"{request.url.path} {word}", 503), id="keyword"),
        pytest.param(answer_async, id="async"),
        pytest.param(Answer(), id="callable object"),
        pytest.param(Answer().method, id="bound method"),
        pytest.param(partial(answer_after, ""), id="partial"),
        pytest.param(partial(answer_async, status=MaintenanceStatus(message="wait")), id="partial, second given"),
    ],
)
def test_response_handler(gate, handler):
    """A handler of any kind gets the request, and the status when its second parameter has no default."""
    response = ask(behind(gate, made(message="wait", response_handler=handler)))
    assert (response.status_code, response.text) == (503, "/x wait")
    assert response.headers["Content-Type"].startswith("text/html")
    assert (response.headers["Cache-Control"], response.headers["Maintenance"]) == ("no-store", "full")


@every_gate
def test_redirect_and_stream_of_a_handler(gate):
    """A handler may redirect or stream."""
    moved = ask(behind(gate, made(response_handler=lambda request: RedirectResponse("/sorry"))))
    assert (moved.status_code, moved.headers["Location"], moved.headers["Maintenance"]) == (307, "/sorry", "full")
    stream = ask(behind(gate, made(response_handler=streamed)))
    assert (stream.status_code, stream.text, stream.headers["Cache-Control"]) == (503, "please wait", "no-store")


@every_gate
def test_headers_of_a_handler_stay(gate):
    """Cache-Control and Maintenance are added only when absent; nothing else is."""
    own = {"cache-control": "max-age=5", "maintenance": "tea break"}
    response = ask(behind(gate, made(response_handler=lambda request: PlainTextResponse("", 200, own))))
    assert response.status_code == 200
    assert (response.headers["Cache-Control"], response.headers["Maintenance"]) == ("max-age=5", "tea break")
    assert not {"retry-after", "vary"} & set(response.headers)


def answer_badly(request):
    """Raise."""
    raise LookupError(request.url.path)


@every_gate
@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (answer_badly, "raised"),
        (partial(answer_after, "", "", ""), "raised"),
        (lambda request: PlainTextResponse, "gave a type"),
        (dict, "gave a dict"),
        (lambda request: None, "gave a NoneType"),
        (lambda request, status: "<p>", "gave a str"),
        (anyio.sleep, "raised"),
    ],
    ids=[
        "raises",
        "takes three",
        "gives a class",
        "has no signature",
        "gives nothing",
        "gives text",
        "raises when awaited",
    ],
)
def test_bad_response_handler(gate, handler, told, caplog):
    """A handler that raises or gives no response is logged, and the built-in answer is sent."""
    response = ask(behind(gate, made(response_handler=handler)))
    assert (response.status_code, response.json()["mode"], response.headers["Retry-After"]) == (503, "full", "60")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("fastapi_maintenance", logging.ERROR)
    assert "response_handler" in record.message
    assert told in record.message


@pytest.mark.parametrize("make", [Maintenance, partial(MaintenanceModeMiddleware, FastAPI())])
@pytest.mark.parametrize("name", ["response_handler", "exempt_handler"])
def test_handler_must_be_callable(make, name):
    """A handler that cannot be called is a TypeError where it is given."""
    with pytest.raises(TypeError, match=f"{name} must be callable, not int"):
        make(**{name: 5})


# Handlers of the application


def shown(request, error):
    """Answer as an application does: sync."""
    return PlainTextResponse(f"{error.status_code} {error.detail}", error.status_code)


async def shown_async(request, error):
    """Answer as an application does: async."""
    return shown(request, error)


class Shown:
    """Answer with a callable object."""

    async def __call__(self, request, error):
        return shown(request, error)


@every_gate
@pytest.mark.parametrize("kind", [MaintenanceActive, 503])
@pytest.mark.parametrize(
    "handler",
    [shown, shown_async, Shown(), partial(shown)],
    ids=["def", "async def", "object", "partial"],
)
def test_handler_of_the_app(gate, kind, handler):
    """A handler that the app registered for MaintenanceActive, or for 503, answers under every gate."""
    app = behind(gate, made(message="wait"), exception_handlers={kind: handler})
    for _ in range(2):
        response = ask(app)
        assert (response.status_code, response.text) == (503, "503 wait")


@every_gate
@pytest.mark.parametrize("kind", [HTTPException, Exception, 500])
def test_handlers_that_never_answer(gate, kind):
    """Handlers for HTTPException, Exception and other statuses do not answer a refusal."""
    app = behind(gate, made(), exception_handlers={kind: lambda request, error: PlainTextResponse("mine")})
    response = ask(app)
    assert (response.status_code, response.json()["mode"]) == (503, "full")


@every_gate
@pytest.mark.parametrize("other", [shown, shown_async])
def test_both_handlers(gate, other):
    """Of two handlers the one for MaintenanceActive answers refusals; other 503s still go to the one for 503."""
    mine = lambda request, error: PlainTextResponse("mine", 503)  # noqa: E731 - sync
    maintenance = made()
    app = behind(gate, maintenance, exception_handlers={503: other, MaintenanceActive: mine})
    assert [ask(app).text for _ in range(2)] == ["mine", "mine"]
    run(maintenance.disable)
    assert ask(app, path="/other").text == "503 busy"
    assert ask(app).json() == "open"


@every_gate
def test_what_a_handler_of_the_app_gets(gate):
    """The error carries the status, and the response that would have been sent."""
    seen = []

    async def handler(request, error):
        seen.append((request.url.path, error.status, error.detail))
        error.response.headers["Mine"] = "yes"
        return error.response

    response = ask(behind(gate, made(message="wait"), exception_handlers={MaintenanceActive: handler}))
    assert (response.status_code, response.headers["Mine"], response.json()["detail"]) == (503, "yes", "wait")
    ((path, status, detail),) = seen
    assert (path, status.active, status.mode, status.message, detail) == ("/x", True, "full", "wait", "wait")


@every_gate
@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (lambda request, error: answer_badly(request), ["raised"]),
        (lambda request, error: "<p>", ["gave a str"]),
        (lambda request, error: None, []),
    ],
    ids=["raises", "gives text", "gives nothing"],
)
@pytest.mark.parametrize("kind", [MaintenanceActive, 503])
def test_bad_handler_of_the_app(gate, handler, told, kind, caplog):
    """A handler of the app that raises or gives no response is logged, and the refusal is sent as it stands."""
    response = ask(behind(gate, made(), exception_handlers={kind: handler}))
    assert (response.status_code, response.json()["mode"]) == (503, "full")
    logged = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert all(part in message for part, message in zip(told, logged, strict=True))


def test_without_exception_handling():
    """Raised where no application handles exceptions, it is the plain error of a closed service."""
    maintenance = made(message="wait")
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with pytest.raises(MaintenanceActive, match="wait") as caught:
        run(maintenance.guard, HTTPConnection(scope))
    assert isinstance(caught.value, HTTPException)
    assert (caught.value.status_code, caught.value.headers) == (503, {"Retry-After": "60"})


def test_without_retry_after_in_the_error():
    """The error carries no header where the response has none."""
    maintenance = made(response_handler=lambda request: PlainTextResponse("", 503))
    with pytest.raises(MaintenanceActive) as caught:
        run(maintenance.guard, HTTPConnection({"type": "http", "method": "GET", "path": "/", "headers": []}))
    assert caught.value.headers is None


# Websockets

WEBSOCKET_GATES = pytest.mark.parametrize("gate", ["guard", "middleware"])


def without_denial(app):
    """Give `app` as a server that cannot refuse a handshake with HTTP runs it."""

    async def served(scope, receive, send):
        await app({**scope, "extensions": None}, receive, send)

    return served


def denied(app):
    """Open a websocket and give the HTTP answer that refuses it."""
    with pytest.raises(WebSocketDenialResponse) as caught:
        TestClient(app).websocket_connect("/ws").__enter__()
    return caught.value


@WEBSOCKET_GATES
def test_open_websocket(gate):
    """While open a websocket is accepted."""
    with TestClient(behind(gate, made(closed=False))).websocket_connect("/ws") as websocket:
        assert websocket.receive()["type"] == "websocket.close"


@WEBSOCKET_GATES
@pytest.mark.parametrize("mode", ["full", "read_only"])
def test_websocket_is_denied(gate, mode):
    """A handshake is refused with HTTP 503, the body and the headers of any refusal, in each mode."""
    response = denied(behind(gate, made(message="wait", mode=mode)))
    assert (response.status_code, response.json()["detail"], response.json()["mode"]) == (503, "wait", mode)
    assert (response.headers["Retry-After"], response.headers["Cache-Control"]) == ("60", "no-store")
    assert response.headers["Maintenance"] == mode
    assert int(response.headers["Content-Length"]) == len(response.content)


@WEBSOCKET_GATES
def test_websocket_gets_a_stream(gate):
    """What a handler streams comes as one body."""
    response = denied(behind(gate, made(response_handler=streamed)))
    assert (response.status_code, response.text, response.headers["Content-Length"]) == (503, "please wait", "11")


@WEBSOCKET_GATES
@pytest.mark.parametrize("kind", [MaintenanceActive, 503])
@pytest.mark.parametrize(
    "handler",
    [shown, shown_async, lambda request, error: streamed(request)],
    ids=["def", "async def", "stream"],
)
def test_websocket_gets_the_answer_of_the_app(gate, kind, handler):
    """A handler that the app registered answers a handshake as well."""
    response = denied(behind(gate, made(message="wait"), exception_handlers={kind: handler}))
    assert response.status_code == 503
    assert response.text in {"503 wait", "please wait"}


@pytest.mark.parametrize("kind", [MaintenanceActive, 503])
def test_websocket_handler_that_sends_by_itself(kind):
    """A handler of the app may answer a handshake by itself and give nothing back."""

    async def handler(websocket, error):
        await websocket.send_denial_response(PlainTextResponse("mine", 503))

    response = denied(behind("guard", made(), exception_handlers={kind: handler}))
    assert (response.status_code, response.text) == (503, "mine")


@WEBSOCKET_GATES
@pytest.mark.parametrize("handlers", [{}, {MaintenanceActive: shown}, {503: shown_async}], ids=["none", "own", "503"])
def test_websocket_is_closed_where_http_cannot_answer(gate, handlers):
    """Where the server cannot refuse with HTTP, the handshake is closed with code 1013."""
    app = without_denial(behind(gate, made(), exception_handlers=handlers))
    with pytest.raises(WebSocketDisconnect) as caught:
        TestClient(app).websocket_connect("/ws").__enter__()
    assert (caught.value.code, caught.value.reason) == (1013, "maintenance")


def answering(secret, request):
    """Answer no response, but what nobody may see."""
    return {"secret": secret, "path": request.url.path}


def raising(secret, request):
    """Raise."""
    raise LookupError(request.url.path, len(secret))


class Carrying:
    """A callable object that shows what it carries."""

    def __init__(self, function, secret):
        self.function = function
        self.secret = secret

    def __repr__(self):
        return f"Carrying({self.secret})"

    def __call__(self, request):
        return self.function(self.secret, request)


@every_gate
@pytest.mark.parametrize("carry", [partial, Carrying])
@pytest.mark.parametrize("function", [answering, raising])
def test_what_a_bad_response_handler_carries_is_not_logged(gate, carry, function, caplog):
    """The log names a handler by its function or class, never with its arguments, and not what it answered."""
    handler = carry(function, "hunter2")
    assert ask(behind(gate, made(response_handler=handler))).status_code == 503
    (record,) = caplog.records
    name = function.__qualname__ if carry is partial else "Carrying"
    assert record.message.startswith(f"response_handler {name} ")
    assert "hunter2" in repr(handler)
    assert "hunter2" not in caplog.text
    assert "hunter2" not in repr(record.args)


EVENTS = "text/event-stream"


@every_gate
@pytest.mark.parametrize(("method", "expected"), [("GET", 200), ("POST", 503), ("HEAD", 503)])
def test_only_a_get_is_told_to_connect_again(gate, method, expected):
    """With `event_streams="retry"` only a GET, which is all that an EventSource sends, gets a stream with 200."""
    app = behind(gate, made(settings=MaintenanceSettings(event_streams="retry")))
    response = ask(app, method, headers={"Accept": EVENTS})
    assert response.status_code == expected
    assert (EVENTS in response.headers["Content-Type"]) is (method == "GET")


@WEBSOCKET_GATES
def test_handshake_is_never_told_to_connect_again(gate):
    """With `event_streams="retry"` a websocket handshake is refused with 503, whatever it accepts."""
    app = behind(gate, made(settings=MaintenanceSettings(event_streams="retry")))
    with pytest.raises(WebSocketDenialResponse) as caught:
        TestClient(app).websocket_connect("/ws", headers={"Accept": EVENTS}).__enter__()
    assert (caught.value.status_code, caught.value.json()["status"]) == (503, 503)


@every_gate
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_forced_on_during_read_only(gate, method):
    """A route that is forced on tells mode full while the rest is read-only, with the message of the switch."""
    maintenance = made(mode="read_only", message="moving", retry_after=7)
    app = behind(gate, maintenance)
    forced = APIRouter(route_class=maintenance.route_class) if gate == "route class" else APIRouter()
    forced.add_api_route("/beta", force_maintenance_mode_on(lambda: 1), methods=["GET", "POST"])
    app.include_router(forced)
    response = ask(app, method, "/beta")
    assert (response.status_code, response.headers["Maintenance"], response.headers["Retry-After"]) == (
        503,
        "full",
        "7",
    )
    assert (response.json()["mode"], response.json()["detail"]) == ("full", "moving")
    assert ask(app, "POST").headers["Maintenance"] == "read_only"


@pytest.mark.anyio
@every_gate
async def test_a_refusal_says_what_it_came_from_after_a_slow_exemption(gate):
    """Who is refused is told the state that refused it, even if it was opened while an exemption was still asked."""

    async def opens_meanwhile(request):
        await maintenance.disable()
        assert (await client.post("/x")).status_code == 200
        return False

    maintenance = Maintenance(backend=MemoryBackend(), exempt_handler=opens_meanwhile)
    await maintenance.enable(mode="read_only", message="No writes now")
    app = behind(gate, maintenance)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        answer = await client.post("/x")
    assert answer.headers["Maintenance"] == answer.json()["mode"] == "read_only"
    assert answer.json()["detail"] == "No writes now"


REPLACED = """
import shutil, sys
from fastapi import FastAPI
from fastapi.testclient import TestClient
from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware
from fastapi_maintenance.backends import MemoryBackend

class Gone:
    def find_spec(self, name, path=None, target=None):
        raise ImportError(name)

app, maintenance = FastAPI(), Maintenance(backend=MemoryBackend())
app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
app.get("/")(lambda: 1)
with TestClient(app) as client:
    client.get("/")
    client.portal.call(maintenance.enable)
    sys.meta_path.insert(0, Gone())
    for form in ("text/html", "text/plain", "application/json"):
        answer = client.get("/", headers={"Accept": form})
        print(answer.status_code, answer.headers["Content-Type"].split(";")[0])
"""


def test_a_refusal_imports_nothing():
    """What is installed may be replaced while it is closed: a process that serves needs nothing more to refuse."""
    run = subprocess.run([sys.executable, "-c", REPLACED], capture_output=True, text=True, check=True, timeout=60)  # noqa: S603 - our own interpreter
    assert run.stdout.split("\n")[:3] == ["503 text/html", "503 text/plain", "503 application/json"]
