"""The object: which one serves, what operators do with it, the functional API, modes, scopes and the lifespan."""

import contextvars
import logging
import re
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated
from unittest.mock import Mock

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException, WebSocket
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Mount, Router
from starlette.testclient import WebSocketDenialResponse

from fastapi_maintenance import (
    BackendError,
    BackendReadOnlyError,
    Maintenance,
    MaintenanceModeMiddleware,
    MaintenanceRoute,
    MaintenanceSettings,
    MaintenanceStatus,
    configure_backend,
    force_maintenance_mode_off,
    force_maintenance_mode_on,
    get_maintenance,
    get_maintenance_mode,
    maintenance_mode_on,
    set_maintenance_mode,
)
from fastapi_maintenance.backends import BaseStateBackend, EnvVarBackend, LocalFileBackend, MemoryBackend
from fastapi_maintenance.gate import current_owner
from fastapi_maintenance.inflight import Passage
from fastapi_maintenance.maintenance import _check_environment

MESSAGE = "Service temporarily unavailable due to maintenance"
MODE = "FASTAPI_MAINTENANCE_MODE"
BACKEND = "FASTAPI_MAINTENANCE_BACKEND"
every_gate = pytest.mark.parametrize("gate", ["guard", "route class", "middleware"])
AN_HOUR = timedelta(hours=1)


def run(function, *args, **options):
    """Call a coroutine function from a sync test."""
    return anyio.run(partial(function, *args, **options))


def made(message=None, **options):
    """Give an object with a store of its own, closed where a message is given."""
    maintenance = Maintenance(backend=MemoryBackend(), **options)
    if message is not None:
        run(maintenance.enable, message=message)
    return maintenance


def behind(gate, maintenance, **options):
    """Give an app, and its router, that one gate of `maintenance` covers."""
    app = FastAPI(dependencies=[Depends(maintenance.guard)] if gate == "guard" else None, **options)
    if gate == "route class":
        app.router.route_class = maintenance.route_class
    if gate == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    app.add_api_route("/x", lambda: 1, methods=["GET", "POST"])
    return app


def ask(app, path="/x", method="GET", **options):
    """Send one request."""
    return TestClient(app).request(method, path, **options)


def said(response):
    """Give who refused (the message) and whether no code had run; the status of an answer that is no refusal."""
    if response.status_code != 503:
        return response.status_code
    body = response.json()
    return body["detail"], "applied" in body


class Flag(BaseStateBackend):
    """A user's store of one truth value."""

    def __init__(self, value=False):
        self.value = value

    async def get_value(self):
        return self.value

    async def set_value(self, value):
        self.value = value


class Broken(Flag):
    """A user's store that cannot be read."""

    async def get_value(self):
        raise OSError("unplugged")


# Which object


def test_default_object_is_made_at_first_use(monkeypatch):
    """The default object is made from the environment when it is first asked for, and stays the same."""
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware)
    app.add_api_route("/x", lambda: 1)
    monkeypatch.setenv(BACKEND, "memory")
    assert isinstance(get_maintenance().backend, MemoryBackend)
    assert get_maintenance() is get_maintenance()
    run(get_maintenance().enable, message="default")
    assert said(ask(app)) == ("default", True)


@every_gate
def test_bound_gates_serve_theirs(gate):
    """A gate of an object serves that object, whatever the default object and an override say."""
    configure_backend("memory")
    mine = made()
    app = behind(gate, mine)
    app.dependency_overrides[get_maintenance] = lambda: made("override")
    run(get_maintenance().enable, message="default")
    assert said(ask(app)) == 200
    run(mine.enable, message="mine")
    assert said(ask(app)) == ("mine", gate != "guard")


OPEN, CLOSED = "open", "closed"


@pytest.mark.parametrize("unless", [False, True], ids=["guard", "guard_unless"])
@pytest.mark.parametrize(
    ("override", "middleware", "guard", "default", "expected"),
    [
        (None, None, None, CLOSED, ("default", True)),
        (None, None, None, OPEN, 200),
        (None, None, CLOSED, OPEN, ("guard", True)),
        (None, None, OPEN, CLOSED, 200),
        (None, OPEN, None, CLOSED, 200),
        (None, OPEN, CLOSED, OPEN, ("guard", False)),
        (CLOSED, None, None, OPEN, ("override", True)),
        (CLOSED, OPEN, OPEN, OPEN, ("override", True)),
        (OPEN, OPEN, OPEN, CLOSED, 200),
        (OPEN, OPEN, CLOSED, CLOSED, ("guard", False)),
    ],
)
def test_unbound_route_class(override, middleware, guard, default, expected, unless):
    """It serves an override, else whose gate the request came through, else the app's guard, else the default."""
    objects = {
        name: made(name if state == CLOSED else None)
        for name, state in {"override": override, "middleware": middleware, "guard": guard}.items()
        if state is not None
    }
    configure_backend("memory")
    run(set_maintenance_mode, default == CLOSED)
    dependencies = [Depends(lambda: None)] * unless
    if guard is not None:
        dependencies.append(Depends(objects["guard"].guard_unless(lambda: False) if unless else objects["guard"].guard))
    app = FastAPI(dependencies=dependencies)
    router = APIRouter(route_class=MaintenanceRoute)
    router.add_api_route("/x", lambda: 1)
    app.include_router(router)
    if override is not None:
        app.dependency_overrides[get_maintenance] = lambda: objects["override"]
    if middleware is not None:
        app.add_middleware(MaintenanceModeMiddleware, maintenance=objects["middleware"])
    if expected == ("default", True):
        expected = (MESSAGE, True)
    assert said(ask(app)) == expected


@pytest.mark.parametrize("around", ["no application", "Starlette"])
def test_unbound_route_without_fastapi(around):
    """Where no FastAPI application is around it, an unbound route serves the default object."""
    configure_backend("memory")
    run(get_maintenance().enable, message="default")
    router = APIRouter(route_class=MaintenanceRoute)
    router.add_api_route("/x", lambda: 1)
    app = router if around == "no application" else Starlette(routes=[Mount("/", router)])
    assert said(ask(app)) == ("default", True)


async def override_async():
    """Give an object, asynchronously."""
    return made_before["now"]


made_before = {}


def unbound(gate):
    """Give an app with a gate that is bound to no object."""
    app = FastAPI()
    if gate == "middleware":
        app.add_middleware(MaintenanceModeMiddleware)
    else:
        app.router.route_class = MaintenanceRoute
    app.add_api_route("/x", lambda: 1)
    return app


unbound_gates = pytest.mark.parametrize("gate", ["middleware", "route class"])


def test_a_gate_knows_whom_it_let_in_through_those_of_other_objects():
    """What a middleware decided holds for the guard of the same object, with another object's route class between."""
    outer, between = made(), made()
    app, counted = FastAPI(dependencies=[Depends(outer.guard)]), []
    app.router.route_class = between.route_class
    app.get("/x")(lambda: counted.extend(len(each.snapshot.in_flight.running) for each in (outer, between)))

    async def closing(scope, receive, send):
        await outer.enable()
        await app(scope, receive, send)
        await outer.disable()

    served = MaintenanceModeMiddleware(closing, maintenance=outer)
    assert [ask(served).status_code for _ in range(3)] == [200] * 3
    assert counted == [1] * 6


@unbound_gates
@pytest.mark.parametrize("override", [lambda: made_before["now"], override_async], ids=["def", "async def"])
def test_override(gate, override):
    """`dependency_overrides[get_maintenance]`, sync or async, is asked at each request."""
    app = unbound(gate)
    app.dependency_overrides[get_maintenance] = override
    client = TestClient(app)
    answers = []
    for message in (None, "one", "two", None):
        made_before["now"] = made(message)
        answers.append(said(client.get("/x")))
    del app.dependency_overrides[get_maintenance]
    answers.append(said(client.get("/x")))
    assert answers == [200, ("one", True), ("two", True), 200, 200]


@unbound_gates
@pytest.mark.parametrize("given", [None, MemoryBackend()])
def test_override_that_gives_nonsense(gate, given):
    """An override that gives no Maintenance is a TypeError that says so."""
    app = unbound(gate)
    app.dependency_overrides[get_maintenance] = lambda: given
    with pytest.raises(TypeError, match=rf"get_maintenance\] gave a {type(given).__name__}; it must give a Maint"):
        ask(app)


def test_middleware_handlers_replace_those_of_the_default_object():
    """Handlers given to the middleware replace the object's one by one, for this middleware only."""
    theirs = made(
        "x",
        exempt_handler=lambda request: "friend" in request.headers,
        response_handler=lambda request: PlainTextResponse("theirs", 503),
    )
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, exempt_handler=lambda request: "vip" in request.headers)
    app.add_api_route("/x", lambda: 1)
    other = FastAPI()
    other.add_middleware(
        MaintenanceModeMiddleware, response_handler=lambda request: PlainTextResponse("of the middleware", 503)
    )
    other.add_api_route("/x", lambda: 1)
    for each in (app, other):
        each.dependency_overrides[get_maintenance] = lambda: theirs
    clients = ({"vip": ""}, {"friend": ""}, {})
    assert [ask(app, headers=headers).text for headers in clients] == ["1", "theirs", "theirs"]
    assert [ask(other, headers=headers).text for headers in clients] == ["of the middleware", "1", "of the middleware"]
    assert ask(behind("guard", theirs)).text == "theirs"


def test_middleware_with_a_backend_has_an_object_of_its_own():
    """With `backend=` neither the default object nor an override matters, and its handlers are its own."""
    store = MemoryBackend()
    app = FastAPI()
    app.add_middleware(
        MaintenanceModeMiddleware,
        backend=store,
        exempt_handler=lambda request: "vip" in request.headers,
        response_handler=lambda request: PlainTextResponse("own", 503),
    )
    app.add_api_route("/x", lambda: 1)
    app.dependency_overrides[get_maintenance] = lambda: made("override")
    client = TestClient(app)
    assert client.get("/x").text == "1"
    run(store.set_value, value=True)
    assert client.get("/x").text == "own"
    assert client.get("/x", headers={"vip": ""}).text == "1"
    assert run(get_maintenance_mode) is False


def test_middleware_with_a_backend_that_is_none():
    """A backend that is none is a TypeError that stops the start."""
    with pytest.raises(TypeError, match="int is no backend"):
        ask(MaintenanceModeMiddleware(behind("guard", made()), backend=5))


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (lambda app: app, [200, ("closed", True)]),
        (force_maintenance_mode_off, [200, 200]),
        (force_maintenance_mode_on, [(MESSAGE, True), ("closed", True)]),
    ],
    ids=["unmarked", "off", "on"],
)
def test_middleware_around_an_app_without_routes(mark, expected):
    """Around a plain ASGI app every request is one for an operation, which is the app itself."""

    async def app(scope, receive, send):
        await PlainTextResponse("served")(scope, receive, send)

    maintenance = made()
    client = TestClient(MaintenanceModeMiddleware(mark(app), maintenance=maintenance))
    answers = [said(client.get("/any"))]
    run(maintenance.enable, message="closed")
    assert [*answers, said(client.get("/any"))] == expected


@pytest.mark.parametrize(
    "other",
    [
        {"enable_maintenance": False},
        {"backend": MemoryBackend()},
        {"exempt_handler": lambda request: False},
        {"response_handler": lambda request: PlainTextResponse("")},
    ],
    ids=lambda other: next(iter(other)),
)
def test_maintenance_goes_with_nothing_else(other):
    """`maintenance=` together with any other argument is a TypeError."""
    with pytest.raises(TypeError, match="maintenance= brings its own"):
        MaintenanceModeMiddleware(FastAPI(), maintenance=made(), **other)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"maintenance": MemoryBackend()}, "maintenance must be a Maintenance, not MemoryBackend"),
        ({"enable_maintenance": 1}, "enable_maintenance must be True, False or None, not 1"),
    ],
    ids=["maintenance", "enable_maintenance"],
)
def test_wrong_arguments_of_the_middleware(wrong, text):
    """An argument of a wrong type is a TypeError that says what would be right."""
    with pytest.raises(TypeError, match=text):
        MaintenanceModeMiddleware(FastAPI(), **wrong)


def enabled(value, store):
    """Give an app with `enable_maintenance=value`, with marks and an exemption."""
    app = FastAPI()
    app.add_middleware(
        MaintenanceModeMiddleware,
        enable_maintenance=value,
        backend=store,
        exempt_handler=lambda request: "vip" in request.headers,
    )
    app.add_api_route("/x", lambda: 1)
    app.add_api_route("/on", force_maintenance_mode_on(lambda: 1))
    app.add_api_route("/off", force_maintenance_mode_off(lambda: 1))
    return app


@pytest.mark.parametrize(("value", "closed"), [(True, True), (False, False), (None, None)])
@pytest.mark.parametrize("switch", [False, True])
def test_enable_maintenance(value, closed, switch):
    """It stands in for switch and windows; marks, exemptions and holds keep their rank."""
    store = MemoryBackend()
    app = enabled(value, store)
    maintenance = Maintenance(backend=store)
    if switch:
        run(maintenance.enable)
        run(maintenance.schedule, datetime.now(UTC), datetime.now(UTC) + AN_HOUR)
    expected = 503 if (switch if closed is None else closed) else 200

    def answers():
        return [ask(app, path).status_code for path in ("/x", "/on", "/off")]

    async def answers_in_a_hold():
        async with maintenance.on():
            return await anyio.to_thread.run_sync(answers)

    assert answers() == [expected, 503, 200]
    assert ask(app, headers={"vip": ""}).status_code == 200
    assert run(answers_in_a_hold) == [503, 503, 200]


def test_one_decision_for_all_gates_of_one_object():
    """A request that comes through several gates of an object is decided once."""
    asked = []

    def exempt(request):
        asked.append(request.url.path)
        return True

    maintenance = made("closed", exempt_handler=exempt)
    app = FastAPI(dependencies=[Depends(maintenance.guard)])
    app.router.route_class = maintenance.route_class
    app.add_api_route("/x", lambda: 1)
    app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    assert ask(app).status_code == 200
    assert asked == ["/x"]


def test_gates_of_two_objects():
    """A request that comes through gates of two objects needs both open."""
    outer, inner = made(), made()
    app = behind("guard", inner)
    app.add_middleware(MaintenanceModeMiddleware, maintenance=outer)
    answers = [said(ask(app))]
    run(inner.enable, message="inner")
    answers.append(said(ask(app)))
    run(outer.enable, message="outer")
    answers.append(said(ask(app)))
    assert answers == [200, ("inner", False), ("outer", True)]


def test_two_apps_in_one_process():
    """Objects with stores of their own never touch each other."""
    one, two = made(), made()
    first, second = behind("guard", one), behind("middleware", two)
    run(one.enable, message="one")
    assert (said(ask(first)), said(ask(second))) == (("one", False), 200)


@pytest.mark.parametrize("url", ["memory", "env", "file:{}/state"])
def test_same_environment_shares_the_store(url, tmp_path, monkeypatch):
    """Two objects made from the same environment always agree; another scope is another store."""
    monkeypatch.setenv(BACKEND, url.format(tmp_path))
    one, two, other = Maintenance(), Maintenance(), Maintenance(scope="billing")
    assert one.backend is two.backend
    assert one.backend is not other.backend


# The functional API


def functional(app):
    """Add endpoints that use the functional API: in an async def, in a thread, in background tasks."""

    @app.get("/mode/async")
    @force_maintenance_mode_off
    async def mode():
        return await get_maintenance_mode()

    @app.get("/mode/def")
    @force_maintenance_mode_off
    def mode_in_a_thread():
        return anyio.from_thread.run(get_maintenance_mode)

    @app.put("/mode/async/{value}")
    @force_maintenance_mode_off
    async def switch(value: bool):
        await set_maintenance_mode(value)

    @app.put("/mode/def/{value}")
    @force_maintenance_mode_off
    def switch_in_a_thread(value: bool):
        anyio.from_thread.run(set_maintenance_mode, value)

    @app.put("/mode/later/{value}")
    @force_maintenance_mode_off
    async def switch_later(value: bool, tasks: BackgroundTasks):
        tasks.add_task(set_maintenance_mode, value)

    @app.get("/held")
    @force_maintenance_mode_off
    @maintenance_mode_on()
    async def held():
        return await get_maintenance_mode()

    return app


@every_gate
@pytest.mark.parametrize("way", ["async", "def", "later"])
@pytest.mark.parametrize("marked", [True, False], ids=["gate", "gate and another outside"])
def test_functional_api_acts_on_the_object_of_the_request(gate, way, marked, anyio_backend):
    """In a request it acts on the object whose gate the request came through last, wherever it is called."""
    mine, other = made(), made()
    app = functional(behind(gate, mine))
    if not marked:
        app.add_middleware(MaintenanceModeMiddleware, maintenance=other)
    client = TestClient(app, backend=anyio_backend)
    read = f"/mode/{'def' if way == 'def' else 'async'}"
    seen = []
    for value in (True, False):
        assert client.put(f"/mode/{way}/{value}").status_code == 200
        seen.append((client.get(read).json(), bool(run(mine.status)), bool(run(other.status))))
    assert seen == [(True, True, False), (False, False, False)]
    assert client.get("/held").json() is True
    assert client.get(read).json() is False
    assert run(get_maintenance_mode) is False


@pytest.mark.parametrize("path", ["/mode/async", "/mode/def", "/held"])
def test_functional_api_behind_no_gate(path):
    """A request that came through no gate acts on the default object."""
    configure_backend("memory")
    app = functional(FastAPI())
    run(set_maintenance_mode, True)
    assert ask(app, path).json() is True


def test_middleware_with_a_backend_is_the_current_object():
    """Behind a middleware with a store of its own the functional API acts on that."""
    store = MemoryBackend()
    app = functional(FastAPI())
    app.add_middleware(MaintenanceModeMiddleware, backend=store)
    assert ask(app, "/mode/async/true", "PUT").status_code == 200
    assert run(store.get_value) is True
    assert run(get_maintenance_mode) is False


def with_lifespan(maintenance, lifespan):
    """Give an app whose object reaches `lifespan` through the object's own."""

    @asynccontextmanager
    async def inside(app):
        async with maintenance.lifespan(app), lifespan(app):
            yield

    return FastAPI(lifespan=inside)


def with_middleware(maintenance, lifespan):
    """Give an app whose object reaches `lifespan` through the middleware."""
    app = FastAPI(lifespan=lifespan)
    app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    return app


@pytest.mark.parametrize("build", [with_lifespan, with_middleware])
def test_functional_api_in_a_lifespan(build, anyio_backend):
    """In a lifespan it acts on the object that the lifespan came through, at start-up and at shutdown."""
    maintenance = made("left over")

    @asynccontextmanager
    async def lifespan(app):
        await set_maintenance_mode(False)
        yield
        await set_maintenance_mode(True)

    with TestClient(build(maintenance, lifespan), backend=anyio_backend):
        assert bool(run(maintenance.status)) is False
    assert bool(run(maintenance.status)) is True
    assert run(get_maintenance_mode) is False


def test_lifespan_as_it_stands(anyio_backend):
    """`FastAPI(lifespan=maintenance.lifespan)` asks the store before the first request."""
    maintenance = Maintenance(backend=Flag(True))
    with TestClient(FastAPI(lifespan=maintenance.lifespan), backend=anyio_backend):
        assert maintenance.snapshot.contacted
    assert current_owner() is None


def test_leaving_in_another_context():
    """A server may end a request in another context than the one that began it; that is no error."""
    contextvars.copy_context().run(Passage, made(), {}, None).leave()
    assert current_owner() is None


@pytest.mark.parametrize(
    "make", [MemoryBackend, Flag, lambda: LocalFileBackend("state")], ids=["memory", "own", "file"]
)
def test_functional_api_with_a_backend(make, tmp_path, monkeypatch, anyio_backend):
    """With a backend given it asks, changes and holds that one, and nothing else."""
    monkeypatch.chdir(tmp_path)
    store = make()

    async def use():
        seen = [await get_maintenance_mode(store)]
        await set_maintenance_mode(True, store)
        seen.append(await get_maintenance_mode(backend=store))
        await set_maintenance_mode(False, backend=store)
        async with maintenance_mode_on(store):
            seen.append(await get_maintenance_mode(store))
        return [*seen, await get_maintenance_mode(store), await get_maintenance_mode()]

    assert anyio.run(use, backend=anyio_backend) == [False, True, True, False, False]


def test_read_only_backend_is_left_alone(caplog):
    """On the environment the functional API logs one warning and changes nothing."""
    run(set_maintenance_mode, True)
    (record,) = caplog.records
    assert (record.levelno, "was not changed" in record.message) == (logging.WARNING, True)
    assert run(get_maintenance_mode) is False


@pytest.mark.parametrize("value", ["on", 1, None])
def test_mode_is_true_or_false(value):
    """Anything but True and False is a TypeError."""
    with pytest.raises(TypeError, match="value must be True or False"):
        run(set_maintenance_mode, value)


@pytest.mark.parametrize("call", [get_maintenance_mode, partial(set_maintenance_mode, True)], ids=["get", "set"])
def test_functional_api_with_nonsense_for_a_backend(call):
    """A backend that is none is a TypeError."""
    with pytest.raises(TypeError, match="backend is the string"):
        run(call, backend="memory")


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("env", {}, EnvVarBackend),
        ("env", {"var_name": "CLOSED_BY_TEST"}, EnvVarBackend),
        ("memory", {}, MemoryBackend),
        ("file", {"file_path": "state"}, LocalFileBackend),
    ],
    ids=["env", "env, named", "memory", "file"],
)
def test_configure_backend(kind, options, expected, used_before, tmp_path, monkeypatch):
    """It sets the backend of the default object, also after that was used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLOSED_BY_TEST", "1")
    before = get_maintenance() if used_before else None
    configure_backend(kind, **options)
    assert before in {None, get_maintenance()}
    assert isinstance(get_maintenance().backend, expected)
    assert run(get_maintenance_mode) is ("var_name" in options)


@pytest.mark.parametrize("kind", ["mysql", "Memory", "", None, 5, b"env", ["env"]], ids=repr)
def test_configure_backend_of_an_unknown_kind(kind):
    """An unknown kind is a ValueError that names the known ones, whatever was given."""
    said = f"unknown backend {kind!r}: use one of 'env', 'file', 'memory', 'redis'"
    with pytest.raises(ValueError, match=re.escape(said)):
        configure_backend(kind)


@pytest.mark.parametrize("url", ["redis://:s3cret@h/0", b"redis://:s3cret@h/0"], ids=["str", "bytes"])
def test_a_url_in_place_of_the_kind_of_a_backend_is_not_repeated(url):
    """It may hold a password."""
    with pytest.raises(ValueError, match=r"^unknown backend \.\.\.: use one of 'env'"):
        configure_backend(url)


@pytest.mark.parametrize("override", [Mock(side_effect=HTTPException(401)), lambda: None], ids=["raises", "nothing"])
def test_a_wrong_method_asks_for_no_object(override):
    """405 stays 405, whatever the object that would serve the route is, and that object is not even asked for."""
    app = unbound("route class")
    app.dependency_overrides[get_maintenance] = override
    assert ask(app, method="DELETE").status_code == 405
    assert not getattr(override, "called", False)


@pytest.mark.parametrize("state", ["open", "read_only", "full", "draining"])
def test_a_wrong_method_is_405_in_each_state(state):
    """405 stays 405, with what is allowed, open, closed and while a drained hold lasts; it makes nobody a worker."""
    maintenance = made()
    app = behind("route class", maintenance)

    async def asked():
        if state in {"read_only", "full"}:
            await maintenance.enable(mode=state)
        async with maintenance.on(drain=0, min_workers=0) if state == "draining" else nullcontext():
            answer = await anyio.to_thread.run_sync(partial(ask, app, method="DELETE"))
        return answer.status_code, answer.headers["allow"], await maintenance.workers()

    status, allowed, workers = run(asked)
    assert (status, set(allowed.split(", ")), workers) == (405, {"GET", "POST"}, ())


def test_a_plain_router_in_place_of_the_applications_own():
    """An application whose router is Starlette's serves routes of an unbound class, of the default object."""
    configure_backend("memory")
    app = FastAPI()
    app.router = Router(routes=[MaintenanceRoute("/x", lambda: 1, methods=["GET"])])
    open_, _ = ask(app).status_code, run(set_maintenance_mode, True)
    assert (open_, ask(app).status_code, TestClient(app).post("/x").status_code) == (200, 503, 405)


@pytest.mark.parametrize("how", ["itself", "mixin", "later"])
def test_a_route_class_that_finds_its_gate_by_itself(how):
    """A subclass of the unbound route class with a `gate` of its own is asked for it by each request."""
    configure_backend("memory")
    objects = {"open": made(), "closed": made("closed")}

    class ByHeader:
        async def gate(self, scope):
            return objects[dict(scope["headers"])[b"which"].decode()].gate

    bases = (ByHeader, MaintenanceRoute) if how == "mixin" else (MaintenanceRoute,)
    route_class = type("Own", bases, {"gate": ByHeader.gate} if how == "itself" else {})
    if how == "later":
        route_class.gate = ByHeader.gate
    app = FastAPI()
    app.router.route_class = route_class
    app.get("/x")(lambda: 1)
    client = TestClient(app)
    assert [client.get("/x", headers={"which": name}).status_code for name in objects] == [200, 503]
    assert get_maintenance().last_known_mode() is None


@pytest.mark.parametrize("outside", ["open", "closed"])
def test_a_middleware_that_is_switched_on_refuses_whom_another_gate_let_in(outside):
    """`enable_maintenance=True` closes its middleware, also behind an open gate of the same object."""
    maintenance, app = get_maintenance(), FastAPI()
    maintenance.use_backend(MemoryBackend())
    app.add_api_route("/x", lambda: 1)
    app.add_middleware(MaintenanceModeMiddleware, enable_maintenance=True)
    app.add_middleware(MaintenanceModeMiddleware)
    if outside == "closed":
        run(maintenance.enable)
    assert [ask(app).status_code for _ in range(2)] == [503, 503]


def test_a_middleware_that_is_switched_off_counts_nobody_again():
    """Behind another gate of the same object, one with `enable_maintenance=False` takes over what that has decided."""
    maintenance, counted, app = get_maintenance(), [], FastAPI()
    maintenance.use_backend(MemoryBackend())
    app.add_api_route("/x", lambda: counted.append(len(maintenance.snapshot.in_flight.running)))
    app.add_middleware(MaintenanceModeMiddleware, enable_maintenance=False)
    app.add_middleware(MaintenanceModeMiddleware)
    assert [ask(app).status_code for _ in range(2)] == [200, 200]
    assert counted == [1, 1]


@pytest.mark.parametrize(
    ("kind", "options"),
    [("memory", {"file_path": "x"}), ("file", {}), ("file", {"path": "x"}), ("env", {"file_path": "x"})],
    ids=["memory", "file, none", "file, other", "env"],
)
def test_configure_backend_with_wrong_options(kind, options):
    """Options that the kind does not take are a TypeError that shows what it takes."""
    with pytest.raises(TypeError, match=rf"backend '{kind}' takes \("):
        configure_backend(kind, **options)
    assert isinstance(get_maintenance().backend, EnvVarBackend)


def test_configure_backend_that_cannot_be_made(tmp_path):
    """A file in a directory that does not exist is a BackendError, and nothing is set."""
    with pytest.raises(BackendError, match="does not exist"):
        configure_backend("file", file_path=tmp_path / "missing" / "state")
    assert isinstance(get_maintenance().backend, EnvVarBackend)


# guard_unless


def is_admin(x_admin: Annotated[str, Header()] = ""):
    """Tell whether an administrator asks."""
    return x_admin


def test_guard_unless(anyio_backend):
    """It lets through when the dependency is true, except where an endpoint is forced on."""
    maintenance = made("closed")
    app = FastAPI(dependencies=[Depends(maintenance.guard_unless(is_admin))])
    app.add_api_route("/x", lambda: 1)
    app.add_api_route("/beta", force_maintenance_mode_on(lambda: 1))
    client = TestClient(app, backend=anyio_backend)
    admin = {"X-Admin": "yes"}
    assert [client.get("/x").status_code, client.get("/x", headers=admin).status_code] == [503, 200]
    assert client.get("/beta", headers=admin).status_code == 503


def test_guard_unless_solves_its_dependency_while_open():
    """The dependency runs on every request, open or closed."""
    solved = []
    maintenance = made()
    app = FastAPI(dependencies=[Depends(maintenance.guard_unless(lambda: solved.append(1)))])
    app.add_api_route("/x", lambda: 1)
    assert ask(app).status_code == 200
    run(maintenance.enable)
    assert ask(app).status_code == 503
    assert solved == [1, 1]


# Operators


@pytest.mark.anyio
async def test_switch():
    """Turning the switch on and off gives the new status each time."""
    maintenance = made()
    on = await maintenance.enable(message="soon", retry_after=5, by="me")
    assert (on.active, on.mode, on.phase, on.message, on.retry_after) == (True, "full", "closed", "soon", 5)
    again = await maintenance.enable(mode="read_only")
    assert (again.mode, again.message, again.since) == ("read_only", MESSAGE, on.since)
    off = await maintenance.disable(by="me")
    assert (off.active, off.mode, off.phase, off.message) == (False, None, "open", None)
    assert on.revision < again.revision < off.revision


@pytest.mark.anyio
async def test_windows():
    """A window in the future is planned, one that covers now closes, and dropping it opens again."""
    maintenance, now = made(), datetime.now(UTC)
    ahead = await maintenance.schedule(now + AN_HOUR, now + 2 * AN_HOUR, message="tonight")
    status = await maintenance.status()
    assert (status.active, status.phase, status.next_window) == (False, "scheduled", ahead)
    running = await maintenance.schedule(now, now + AN_HOUR, message="now", mode="read_only", by="me")
    status = await maintenance.status()
    assert (status.mode, status.message, status.until, status.next_window) == ("read_only", "now", ahead.end, ahead)
    assert not await maintenance.unschedule(running.id)
    assert (await maintenance.unschedule(ahead.id)).phase == "open"


NOW = datetime.now(UTC)
NAIVE = NOW.replace(tzinfo=None)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "arguments", "error", "text"),
    [
        ("enable", {"until": NAIVE + AN_HOUR}, ValueError, "until has no time zone"),
        ("enable", {"until": NOW - AN_HOUR}, ValueError, "is in the past"),
        ("enable", {"until": "tomorrow"}, TypeError, "until must be a datetime"),
        ("enable", {"mode": "pause"}, ValueError, "unknown mode 'pause': use one of 'full', 'read_only'"),
        ("enable", {"mode": ""}, ValueError, "unknown mode"),
        ("enable", {"retry_after": 0}, ValueError, "retry_after must be at least 1"),
        ("enable", {"retry_after": -1}, ValueError, "retry_after must be at least 1"),
        ("enable", {"retry_after": 1.5}, TypeError, "retry_after must be whole seconds"),
        ("enable", {"message": "x" * 2049}, ValueError, "at most 2048"),
        ("enable", {"message": "bell\a"}, ValueError, "control character"),
        ("enable", {"message": "half \ud800"}, ValueError, "lone surrogate"),
        ("enable", {"message": 5}, TypeError, "message must be a string"),
        ("schedule", {"start": NAIVE, "end": NOW}, ValueError, "start has no time zone"),
        ("schedule", {"start": NOW, "end": NAIVE + AN_HOUR}, ValueError, "end has no time zone"),
        ("schedule", {"start": NOW, "end": NOW}, ValueError, "must come after its start"),
        ("schedule", {"start": NOW, "end": NOW - AN_HOUR}, ValueError, "must come after its start"),
        ("schedule", {"start": NOW - 2 * AN_HOUR, "end": NOW - AN_HOUR}, ValueError, "^end .* is in the past"),
        ("schedule", {"start": NOW, "end": 5}, TypeError, "end must be a datetime"),
        ("schedule", {"start": NOW, "end": NOW + AN_HOUR, "mode": "off"}, ValueError, "unknown mode"),
        ("schedule", {"start": NOW, "end": NOW + AN_HOUR, "message": "\0"}, ValueError, "control character"),
        ("unschedule", {"window_id": "none"}, LookupError, "none"),
    ],
)
async def test_bad_arguments(method, arguments, error, text):
    """A bad argument is an error that says what is wrong, and the state stays as it was."""
    maintenance = made()
    before = await maintenance.status()
    with pytest.raises(error, match=text):
        await getattr(maintenance, method)(**arguments)
    assert await maintenance.status() == before


@pytest.mark.anyio
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.enable(),
        lambda m: m.disable(),
        lambda m: m.schedule(NOW, NOW + AN_HOUR),
        lambda m: m.unschedule("any"),
    ],
    ids=["enable", "disable", "schedule", "unschedule"],
)
async def test_read_only_backend_refuses_changes(change):
    """On the environment a change is a BackendReadOnlyError."""
    with pytest.raises(BackendReadOnlyError, match="can only be set before the start"):
        await change(Maintenance())


@pytest.mark.anyio
async def test_bad_argument_comes_before_the_read_only_backend():
    """A bad argument is told first, also on a backend that could not be changed."""
    with pytest.raises(ValueError, match="unknown mode"):
        await Maintenance().enable(mode="off")


def test_status_is_a_dependency():
    """A handler gets the status; it is true while closed."""
    maintenance = made()
    app = FastAPI()

    @app.get("/status")
    async def status(now: Annotated[MaintenanceStatus, Depends(maintenance.status)]):
        return [bool(now), now.phase, now.message]

    assert ask(app, "/status").json() == [False, "open", None]
    run(maintenance.enable, message="soon")
    assert ask(app, "/status").json() == [True, "closed", "soon"]


@pytest.mark.anyio
@pytest.mark.parametrize(("when_unknown", "active"), [("open", False), ("closed", True)])
async def test_status_of_a_store_that_fails(when_unknown, active, caplog):
    """While nothing is known it is what on_backend_error says; the status tells that the store cannot be asked."""
    maintenance = Maintenance(MaintenanceSettings(on_backend_error=when_unknown), backend=Broken())
    status = await maintenance.status()
    assert (status.active, status.stale is not None) == (active, True)
    assert "unplugged" in caplog.text


@pytest.mark.parametrize(("when_unknown", "code"), [("open", 200), ("closed", 503)])
@every_gate
def test_requests_with_a_store_that_fails(gate, when_unknown, code):
    """A store that fails is never a 500."""
    maintenance = Maintenance(MaintenanceSettings(on_backend_error=when_unknown), backend=Broken())
    app = behind(gate, maintenance)
    with TestClient(app) as client:
        assert [client.get("/x").status_code for _ in range(2)] == [code, code]


@every_gate
def test_requests_with_a_store_of_a_user(gate, anyio_backend):
    """The very first request asks the store and goes by its answer."""
    with TestClient(behind(gate, Maintenance(backend=Flag(True))), backend=anyio_backend) as client:
        assert client.get("/x").status_code == 503


def test_window_ends_by_the_clock(monkeypatch):
    """A gate opens when a window has ended, though nothing was changed."""
    maintenance = made()
    run(maintenance.schedule, datetime.now(UTC), datetime.now(UTC) + AN_HOUR)
    app = behind("middleware", maintenance)
    assert ask(app).status_code == 503
    later = datetime.now(UTC) + AN_HOUR
    monkeypatch.setattr("fastapi_maintenance.gate.utcnow", lambda: later)
    monkeypatch.setattr("fastapi_maintenance.gate.time.time", later.timestamp)
    assert ask(app).status_code == 200


# Construction


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"settings": MemoryBackend()}, "settings must be a MaintenanceSettings, not MemoryBackend; a backend goes to"),
        ({"backend": MemoryBackend}, "backend is the class MemoryBackend; give an object"),
        ({"backend": "memory"}, "backend is the string 'memory'; write Maint"),
    ],
    ids=["settings", "class", "name"],
)
def test_wrong_arguments_of_the_object(arguments, text):
    """An argument of a wrong type is a TypeError that says what would be right."""
    with pytest.raises(TypeError, match=text):
        Maintenance(**arguments)


def test_repr_names_scope_and_backend():
    """The repr tells the scope and the kind of the backend, and no secret."""
    settings = MaintenanceSettings(bypass_secret="hush")  # noqa: S106 - a test's
    assert repr(Maintenance(settings, scope="billing")) == "Maintenance(scope='billing', backend=EnvVarBackend)"


# The environment


@every_gate
def test_environment_is_read_live(gate, monkeypatch):
    """FASTAPI_MAINTENANCE_MODE is the state, read at each request."""
    client = TestClient(behind(gate, Maintenance()))
    answers = []
    for value in ("", "1", "off", "read_only", "ON", None):
        monkeypatch.setenv(MODE, value) if value is not None else monkeypatch.delenv(MODE)
        answers.append((client.get("/x").status_code, client.post("/x").status_code))
    assert answers == [(200, 200), (503, 503), (200, 200), (200, 503), (503, 503), (200, 200)]


@pytest.mark.parametrize("make", [Maintenance, get_maintenance, partial(configure_backend, "env")])
def test_wrong_environment(make, monkeypatch):
    """A wrong mode is an error at construction that names the variable and what would be right."""
    monkeypatch.setenv(MODE, "maybe")
    with pytest.raises(ValueError, match=f"{MODE}.*'maybe' is not a maintenance mode: write 1"):
        make()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("BACKEND", "oracle", "FASTAPI_MAINTENANCE_BACKEND: unknown backend"),
        ("EXEMPT_IPS", "10.0.0.0/99", "FASTAPI_MAINTENANCE_EXEMPT_IPS"),
        ("RETRY_AFTER", "-1", "FASTAPI_MAINTENANCE_RETRY_AFTER"),
    ],
    ids=["backend", "network", "seconds"],
)
def test_wrong_settings(name, value, text, monkeypatch):
    """A wrong setting is an error at construction that names the variable."""
    monkeypatch.setenv(f"FASTAPI_MAINTENANCE_{name}", value)
    with pytest.raises(ValueError, match=text):
        Maintenance()


@pytest.mark.parametrize(
    ("value", "told"), [("1", True), ("read_only", True), ("maybe", True), ("0", False), ("", False), (None, False)]
)
@pytest.mark.parametrize(
    "backend", [MemoryBackend, Flag, partial(EnvVarBackend, "CLOSED_BY_TEST")], ids=["memory", "own", "env"]
)
def test_variable_that_closes_nothing(value, told, backend, monkeypatch, caplog):
    """With another backend the variable closes nothing, and one warning says so when it is on."""
    if value is not None:
        monkeypatch.setenv(MODE, value)
    maintenance = Maintenance(backend=backend())
    assert ask(behind("guard", maintenance)).status_code == 200
    logged = [(r.levelno, MODE in r.message) for r in caplog.records]
    assert logged == ([(logging.WARNING, True)] if told else [])


@pytest.mark.anyio
@pytest.mark.parametrize("store", ["memory", "file"])
async def test_the_middleware_says_goodbye_before_the_shutdown_is_complete(store, tmp_path):
    """When the server hears that the shutdown is complete, after which it may stop the loop, the worker has left."""
    backend = MemoryBackend() if store == "memory" else LocalFileBackend(tmp_path / "state")
    maintenance = Maintenance(backend=backend)
    app = MaintenanceModeMiddleware(FastAPI(), maintenance=maintenance)
    heard = iter(["lifespan.startup", "lifespan.shutdown"])
    attached = {}

    async def receive():
        return {"type": next(heard)}

    async def send(message):
        attached[message["type"]] = len(await maintenance.workers())

    await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert attached == {"lifespan.startup.complete": 1, "lifespan.shutdown.complete": 0}


async def failed_start(app, error):
    """Start an app as a server does, and give why it did not; it raises as Starlette does."""
    sent = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    with pytest.raises(error):
        await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    (message,) = sent
    assert message["type"] == "lifespan.startup.failed"
    return message["message"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "value", "error", "told"),
    [
        ("MODE", "maybe", ValueError, "ValueError: environment variable FASTAPI_MAINTENANCE_MODE: 'maybe' is not"),
        ("BACKEND", "oracle", ValueError, "ValueError: FASTAPI_MAINTENANCE_BACKEND: unknown backend"),
        ("BACKEND", "file:/no/such/state", BackendError, "BackendError: state file /no/such/state: the directory"),
        ("PAGE_TEMPLATE", "/no/such/page", ValueError, "ValueError: page template /no/such/page cannot be read"),
    ],
    ids=["mode", "backend", "directory", "template"],
)
async def test_wrong_environment_stops_the_start(name, value, error, told, monkeypatch):
    """A server whose app has the middleware does not start in a wrong environment, and says why."""
    monkeypatch.setenv(f"FASTAPI_MAINTENANCE_{name}", value)
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware)
    assert (await failed_start(app, error)).startswith(told)


@pytest.mark.anyio
async def test_wrong_backend_stops_the_start():
    """A backend that is none stops the start as well."""
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, backend=5)
    assert (await failed_start(app, TypeError)).startswith("TypeError: int is no backend")


@pytest.mark.anyio
async def test_whatever_an_own_way_to_the_object_raises_stops_the_start():
    """An override of `get_maintenance` that raises stops the start: else a server goes on without a lifespan."""

    def unreachable():
        raise ConnectionError("no route to the flags")

    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware)
    app.dependency_overrides[get_maintenance] = unreachable
    assert await failed_start(app, ConnectionError) == "ConnectionError: no route to the flags"


@pytest.mark.parametrize(
    "own", [{"exempt_handler": lambda request: False}, {"enable_maintenance": False}], ids=lambda own: next(iter(own))
)
def test_a_page_template_is_read_at_the_start(own, monkeypatch, tmp_path):
    """A middleware of its own kind reads the template as the server starts; it may be gone at the first request."""
    template = tmp_path / "page.html"
    template.write_text("$message")
    monkeypatch.setenv("FASTAPI_MAINTENANCE_PAGE_TEMPLATE", str(template))
    app = FastAPI()
    app.get("/")(lambda: 1)
    app.add_middleware(MaintenanceModeMiddleware, **own)
    with TestClient(app) as client:
        template.unlink()
        assert client.get("/").status_code == 200


# Modes

READS = ["GET", "HEAD", "OPTIONS", "QUERY"]
WRITES = ["POST", "PUT", "PATCH", "DELETE", "REPORT"]


@every_gate
@pytest.mark.parametrize("method", [*READS, *WRITES])
def test_read_only(gate, method):
    """In read_only GET, HEAD, OPTIONS and QUERY pass and anything else is refused; in full all are."""
    maintenance = made()
    app = behind(gate, maintenance)
    app.add_api_route("/any", lambda: 1, methods=[method])
    answers = [ask(app, "/any", method).status_code]
    run(maintenance.enable, mode="read_only")
    answers.append(ask(app, "/any", method).status_code)
    run(maintenance.enable, mode="full")
    answers.append(ask(app, "/any", method).status_code)
    assert answers == [200, 200 if method in READS else 503, 503]


@pytest.mark.parametrize("gate", ["guard", "middleware"])
@pytest.mark.parametrize("mode", ["read_only", "full"])
def test_websockets_are_refused_in_each_mode(gate, mode, anyio_backend):
    """A websocket is refused in both modes."""
    maintenance = made()
    app = behind(gate, maintenance)

    @app.websocket("/ws")
    async def socket(websocket: WebSocket):
        await websocket.accept()
        await websocket.send_json(await get_maintenance_mode())
        await websocket.close()

    client = TestClient(app, backend=anyio_backend)
    with client.websocket_connect("/ws") as websocket:
        assert websocket.receive_json() is False
    run(maintenance.enable, mode=mode)
    with pytest.raises(WebSocketDenialResponse) as caught:
        client.websocket_connect("/ws").__enter__()
    assert (caught.value.status_code, caught.value.json()["mode"]) == (503, mode)


# Scopes


def two_scopes():
    """Give an app in which the default object covers everything and `billing` its own router."""
    maintenance, billing = Maintenance(), Maintenance(scope="billing")
    app = FastAPI(dependencies=[Depends(maintenance.guard)])
    router = APIRouter(prefix="/billing", route_class=billing.route_class)
    router.add_api_route("/x", lambda: 1)
    app.include_router(router)
    app.add_api_route("/x", lambda: 1)
    return TestClient(app), maintenance, billing


@pytest.mark.parametrize("url", ["memory", "file:{}/state"])
def test_scopes_are_independent(url, tmp_path, monkeypatch):
    """Each scope has a switch of its own, in one app."""
    monkeypatch.setenv(BACKEND, url.format(tmp_path))
    client, maintenance, billing = two_scopes()
    answers = []
    for change in (billing.enable, maintenance.enable, billing.disable, maintenance.disable):
        run(change)
        answers.append((client.get("/x").status_code, client.get("/billing/x").status_code))
    assert answers == [(200, 503), (503, 503), (503, 503), (200, 200)]


def test_scopes_in_the_environment(monkeypatch):
    """Each scope has a variable of its own, and the plain one never closes another scope."""
    client, _, billing = two_scopes()
    router_only = behind("guard", billing)
    answers = []
    for plain, own in (("1", "0"), ("0", "1")):
        monkeypatch.setenv(MODE, plain)
        monkeypatch.setenv("FASTAPI_MAINTENANCE_BILLING_MODE", own)
        answers.append((client.get("/x").status_code, ask(router_only).status_code))
    assert answers == [(503, 200), (200, 503)]


def test_settings_of_a_scope(monkeypatch):
    """A scope's settings fall back to the plain ones, field by field."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_MESSAGE", "all")
    monkeypatch.setenv("FASTAPI_MAINTENANCE_RETRY_AFTER", "30")
    monkeypatch.setenv("FASTAPI_MAINTENANCE_BILLING_MESSAGE", "bills")
    monkeypatch.setenv("FASTAPI_MAINTENANCE_BILLING_MODE", "on")
    body = ask(behind("guard", Maintenance(scope="billing"))).json()
    assert (body["detail"], body["retry_after"]) == ("bills", 30)


@pytest.mark.parametrize("scope", ["", "1st", "a b", "a/b", "é"])
def test_names_of_scopes(scope):
    """A name that is no scope name is a ValueError."""
    with pytest.raises(ValueError, match="is no scope name"):
        Maintenance(scope=scope)


@pytest.mark.parametrize(("name", "value"), [("MODE", "maybe"), ("RETRY_AFTER", "-5"), ("BACKEND", "oracle")])
def test_wrong_environment_stops_the_definition_of_a_route(name, value, monkeypatch):
    """A route is an error where the environment is wrong, unless it is bound to an object."""
    maintenance = Maintenance(backend=MemoryBackend())
    monkeypatch.setenv(f"FASTAPI_MAINTENANCE_{name}", value)
    _check_environment.cache_clear()
    bound, unbound = APIRouter(route_class=maintenance.route_class), APIRouter(route_class=MaintenanceRoute)
    bound.add_api_route("/x", lambda: 1)
    with pytest.raises(ValueError, match=f"FASTAPI_MAINTENANCE_{name}"):
        unbound.add_api_route("/x", lambda: 1)
    assert len(bound.routes) == 1


@pytest.mark.parametrize("value", ["no_such_module:store", "file:/no/such/directory/m"])
def test_a_route_may_be_defined_before_there_is_a_backend(value, monkeypatch):
    """A module may be the one that is being imported, and a directory come with the lifespan."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_BACKEND", value)
    _check_environment.cache_clear()
    APIRouter(route_class=MaintenanceRoute).add_api_route("/x", lambda: 1)


def test_a_route_of_an_object_that_was_configured_asks_no_environment(monkeypatch):
    """Where the default object is there already, the environment may say what it likes."""
    configure_backend("memory")
    monkeypatch.setenv("FASTAPI_MAINTENANCE_MODE", "maybe")
    _check_environment.cache_clear()
    APIRouter(route_class=MaintenanceRoute).add_api_route("/x", lambda: 1)


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("gate", ["guard", "route class"])
def test_middleware_that_is_switched_off_switches_off_no_other_gate(gate, marked):
    """`enable_maintenance=False` is for its middleware; a guard or route class of the same object goes on refusing."""
    maintenance = get_maintenance()
    maintenance.use_backend(MemoryBackend())
    app = behind(gate, maintenance)
    if marked:
        # Never reached, but it has the middleware look at each request.
        app.add_api_route("/x", force_maintenance_mode_on(lambda: 1), methods=["GET", "POST"])
    app.add_middleware(MaintenanceModeMiddleware, enable_maintenance=False)
    assert ask(app).status_code == 200
    run(maintenance.enable)
    assert ask(app).status_code == 503
    assert ask(app, method="POST").status_code == 503


@pytest.mark.parametrize("wrong", [None, "is_admin", True])
def test_guard_unless_wants_a_dependency(wrong):
    """What cannot be called is a TypeError when the guard is made, not an open gate or a 500 later."""
    with pytest.raises(TypeError, match=f"a dependency, a callable, not {type(wrong).__name__}$"):
        made().guard_unless(wrong)


@pytest.mark.anyio
async def test_environment_that_cannot_be_switched_tells_what_can():
    """The error of a change on the environment names the backend that can be switched at run time."""
    with pytest.raises(
        BackendReadOnlyError, match=r"keep the state in a file \(FASTAPI_MAINTENANCE_BACKEND=file:PATH\)"
    ):
        await Maintenance().enable()
