"""Programs in the style of the published 0.0.5 run as they did; the differences are those that the contract lists."""

import asyncio
import inspect
import logging
from functools import partial

import anyio
import httpx
import pytest
import uvicorn
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.testclient import TestClient

from fastapi_maintenance import (
    MaintenanceModeMiddleware,
    configure_backend,
    force_maintenance_mode_off,
    force_maintenance_mode_on,
    get_maintenance_mode,
    maintenance_mode_on,
    set_maintenance_mode,
)
from fastapi_maintenance.backends import BaseStateBackend, EnvVarBackend, LocalFileBackend

VARIABLE = "FASTAPI_MAINTENANCE_MODE"
DETAIL = "Service temporarily unavailable due to maintenance"
ON = ["1", "yes", "y", "true", "t", "on", "TRUE", "On", " yes "]
OFF = ["0", "no", "n", "false", "f", "off", "FALSE", "Off", " no ", "", " "]


class Store(BaseStateBackend):
    """A store as its users write one: no `super().__init__()`, strings inside, and a note of each call."""

    def __init__(self, stored=None):
        self.stored = stored
        self.asked = 0

    async def get_value(self):
        self.asked += 1
        await anyio.lowlevel.checkpoint()
        return self._str_to_bool(self.stored or "")

    async def set_value(self, value):
        await anyio.lowlevel.checkpoint()
        self.stored = self._bool_to_str(value)


def make_app(**options):
    """Give an application with one page, behind the middleware."""
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, **options)
    app.get("/")(lambda: {"message": "Hello"})
    return app


def status_of(app, path="/", **options):
    """Give the status code of one request."""
    return TestClient(app, **options).get(path).status_code


def add_switches(app):
    """Add the always open endpoints with which its users switch."""

    @app.post("/admin/on")
    @force_maintenance_mode_off
    async def switch_on():
        await set_maintenance_mode(True)
        return {"maintenance_mode": True}

    @app.post("/admin/off")
    @force_maintenance_mode_off
    async def switch_off():
        await set_maintenance_mode(False)
        return {"maintenance_mode": False}

    @app.get("/admin")
    @force_maintenance_mode_off
    async def show():
        return {"maintenance_mode": await get_maintenance_mode()}


# The middleware and the environment


@pytest.mark.parametrize(("value", "answer"), [*((v, 503) for v in ON), *((v, 200) for v in OFF), (None, 200)])
def test_the_environment_decides(monkeypatch, value, answer):
    """Each word for on closes, each word for off and no variable leave it open."""
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert status_of(make_app()) == answer


def test_the_environment_is_read_live(monkeypatch):
    """A change of the variable while the program runs counts at the next request."""
    client = TestClient(make_app())
    answers = [client.get("/").status_code]
    for value in ("1", "0", "on"):
        monkeypatch.setenv(VARIABLE, value)
        answers.append(client.get("/").status_code)
    assert answers == [200, 503, 200, 503]


def test_the_answer_has_the_known_detail():
    """The JSON body still has `detail` with the known text; `Retry-After` is 60 now."""
    response = TestClient(make_app(enable_maintenance=True)).get("/")
    assert response.status_code == 503
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Retry-After"] == "60"
    assert response.json()["detail"] == DETAIL


@pytest.mark.parametrize("value", ["0", "1"])
@pytest.mark.parametrize(("enabled", "answer"), [(True, 503), (False, 200)])
def test_enable_maintenance_outranks_the_backend(monkeypatch, value, enabled, answer):
    """`enable_maintenance=True` closes and `False` opens, whatever the variable says."""
    monkeypatch.setenv(VARIABLE, value)
    assert status_of(make_app(enable_maintenance=enabled)) == answer


def test_enable_maintenance_none_asks_the_backend(monkeypatch):
    """`enable_maintenance=None` is the same as leaving it out."""
    monkeypatch.setenv(VARIABLE, "1")
    assert status_of(make_app(enable_maintenance=None)) == 503


def test_env_backend_with_a_variable_of_its_own(monkeypatch):
    """`EnvVarBackend(var_name=…)` reads that variable, and the usual one closes nothing."""
    monkeypatch.setenv(VARIABLE, "1")
    app = make_app(backend=EnvVarBackend(var_name="MY_FLAG"))
    assert status_of(app) == 200
    monkeypatch.setenv("MY_FLAG", "yes")
    assert status_of(app) == 503


def test_a_wrong_value_in_the_environment_stops_the_start(monkeypatch, caplog):
    """0.0.5 took a word it did not know for off; now the server does not start, and the log names the variable."""
    monkeypatch.setenv(VARIABLE, "maybe")
    server = uvicorn.Server(uvicorn.Config(make_app(), port=0, ws="none", log_config=None))
    with pytest.raises(SystemExit):
        server.run()
    assert not server.started
    assert VARIABLE in caplog.text
    assert "'maybe'" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [("GET", "/nowhere", 404), ("POST", "/", 405), ("GET", "/docs", 200), ("GET", "/redoc", 200)],
)
def test_errors_and_docs_stay_as_they_are(method, path, answer):
    """What is not found or not allowed, and the documentation, get the framework's answer while closed."""
    assert TestClient(make_app(enable_maintenance=True)).request(method, path).status_code == answer


# configure_backend, get_maintenance_mode, set_maintenance_mode


@pytest.mark.anyio
@pytest.mark.parametrize("arguments", [("file",), ()])
async def test_configure_backend_file(tmp_path, arguments):
    """The functions and the middleware follow the configured file, and it holds `1` or `0`."""
    path = tmp_path / "maintenance_mode.txt"
    by_name = {} if arguments else {"backend_type": "file"}
    configure_backend(*arguments, **by_name, file_path=str(path))
    app = make_app()
    assert await get_maintenance_mode() is False
    assert not path.exists()
    for value, answer in [(True, 503), (False, 200), (True, 503)]:
        await set_maintenance_mode(value)
        assert await get_maintenance_mode() is value
        assert path.read_text().strip() == str(int(value))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            assert (await client.get("/")).status_code == answer


@pytest.mark.anyio
async def test_configure_backend_env(monkeypatch):
    """`configure_backend("env", var_name=…)` reads that variable."""
    configure_backend("env", var_name="MY_FLAG")
    monkeypatch.setenv("MY_FLAG", "on")
    assert await get_maintenance_mode() is True


def test_configure_backend_of_an_unknown_kind():
    """A backend that does not exist is a `ValueError` that names it and the known ones."""
    with pytest.raises(ValueError, match=r"'database'.*'env', 'file'"):
        configure_backend("database")


def test_configure_backend_after_the_middleware(tmp_path):
    """The order of `add_middleware` and `configure_backend` does not matter."""
    app = make_app()
    configure_backend("file", file_path=str(tmp_path / "state"))
    (tmp_path / "state").write_text("1")
    assert status_of(app) == 503


@pytest.mark.parametrize(("contents", "answer"), [("1", 503), ("0", 200), ("true", 503), ("off", 200), ("1\n", 503)])
def test_a_file_of_the_older_package_is_understood(tmp_path, contents, answer):
    """What 0.0.5 or a shell script wrote means what it meant."""
    path = tmp_path / "maintenance_mode.txt"
    path.write_text(contents)
    assert status_of(make_app(backend=LocalFileBackend(file_path=str(path)))) == answer


def test_reading_creates_no_file(tmp_path):
    """0.0.5 wrote `0` when it found no file; reading leaves the state alone now, beside it stands the gate."""
    assert status_of(make_app(backend=LocalFileBackend(str(tmp_path / "state")))) == 200
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.gate"]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [LocalFileBackend, Store])
async def test_functions_act_on_the_backend_they_are_given(tmp_path, kind):
    """With `backend=` the functions read and write that one, and the default stays as it is."""
    backend = Store() if kind is Store else LocalFileBackend(str(tmp_path / "state"))
    await set_maintenance_mode(True, backend=backend)
    assert await get_maintenance_mode(backend=backend) is True
    assert await backend.get_value() is True
    assert await get_maintenance_mode() is False
    await set_maintenance_mode(False, backend)
    assert await get_maintenance_mode(backend) is False


@pytest.mark.anyio
@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("given", [True, False])
async def test_set_on_the_environment_warns_once_and_changes_nothing(caplog, monkeypatch, value, given):
    """`set_maintenance_mode()` on the environment backend logs one warning, and variable and mode stay."""
    monkeypatch.setenv(VARIABLE, str(int(not value)))
    backend = EnvVarBackend() if given else None
    await set_maintenance_mode(value, backend)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert await get_maintenance_mode(backend) is not value


def test_endpoints_switch_the_backend_of_their_middleware(tmp_path):
    """In an endpoint the functions act on the backend that the middleware was given."""
    path = tmp_path / "maintenance_mode.txt"
    app = make_app(backend=LocalFileBackend(file_path=str(path)))
    add_switches(app)
    client = TestClient(app)
    assert client.get("/admin").json() == {"maintenance_mode": False}
    assert client.post("/admin/on").status_code == 200
    assert path.read_text().strip() == "1"
    assert client.get("/").status_code == 503
    assert client.get("/admin").json() == {"maintenance_mode": True}
    assert client.post("/admin/off").status_code == 200
    assert client.get("/").status_code == 200


@pytest.mark.anyio
async def test_background_tasks_switch_the_backend_of_their_middleware(tmp_path):
    """A background task of a request acts on the same backend as its endpoint."""
    app = make_app(backend=LocalFileBackend(str(tmp_path / "state")))

    @app.get("/later")
    async def later(tasks: BackgroundTasks):
        tasks.add_task(set_maintenance_mode, True)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert [(await client.get(path)).status_code for path in ("/later", "/later")] == [200, 503]


@pytest.mark.parametrize("own", [True, False])
def test_start_and_shutdown_handlers_switch(tmp_path, own):
    """`on_event` handlers act on the backend of the middleware, else on the configured one."""
    path = tmp_path / "state"
    path.write_text("1")
    configure_backend("file", file_path=str(tmp_path / "other" if own else path))
    app = make_app(backend=LocalFileBackend(str(path))) if own else make_app()

    async def opens():
        await set_maintenance_mode(False)

    async def closes():
        await set_maintenance_mode(True)

    with pytest.deprecated_call():
        app.on_event("startup")(opens)
        app.on_event("shutdown")(closes)
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    assert path.read_text().strip() == "1"
    assert not (tmp_path / "other").exists()


# Own backends


def test_an_own_backend_decides():
    """A subclass that does not call `super().__init__()` serves the middleware."""
    assert status_of(make_app(backend=Store("yes"))) == 503
    assert status_of(make_app(backend=Store("no"))) == 200
    assert status_of(make_app(backend=Store())) == 200


def test_an_own_backend_is_switched_by_endpoints():
    """What an endpoint writes is in the store, and counts at the very next request."""
    store = Store()
    app = make_app(backend=store)
    add_switches(app)
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
        client.post("/admin/on")
        assert (store.stored, client.get("/").status_code) == ("1", 503)
        client.post("/admin/off")
        assert (store.stored, client.get("/").status_code) == ("0", 200)


def test_an_own_backend_is_asked_once_a_second():
    """0.0.5 asked the store at each request; now a burst of requests asks it once."""
    store = Store()
    with TestClient(make_app(backend=store)) as client:
        assert {client.get("/").status_code for _ in range(10)} == {200}
    assert store.asked == 1


def test_an_own_backend_that_fails_is_no_500():
    """Where 0.0.5 answered 500 because the store raised, the request is served."""
    assert status_of(make_app(backend=Store("neither"))) == 200


@pytest.mark.parametrize(("words", "value"), [(ON, True), (OFF, False)])
def test_helpers_of_the_base_class_read_words(words, value):
    """`_str_to_bool` reads what the environment backend reads."""
    assert {BaseStateBackend._str_to_bool(word) for word in words} == {value}


def test_helpers_of_the_base_class_refuse_nonsense():
    """`_bool_to_str` writes `1` and `0`; both helpers raise a `ValueError` for anything else."""
    assert [BaseStateBackend._bool_to_str(value) for value in (True, False)] == ["1", "0"]
    with pytest.raises(ValueError, match="maybe"):
        BaseStateBackend._str_to_bool("maybe")
    with pytest.raises(ValueError, match="2"):
        BaseStateBackend._bool_to_str(2)


# Handlers


def sync_exempt(request):
    return request.headers.get("X-Key") == "admin" or request.url.path.startswith("/health")


async def async_exempt(request):
    await anyio.lowlevel.checkpoint()
    return sync_exempt(request)


class ExemptObject:
    """An object whose call is asynchronous: 0.0.5 exempted everybody with one."""

    async def __call__(self, request):
        return sync_exempt(request)


@pytest.mark.parametrize("handler", [sync_exempt, async_exempt, ExemptObject(), partial(sync_exempt)])
def test_exempt_handlers(handler):
    """A handler, sync or async, sees the request and lets it through with `True`."""
    app = make_app(enable_maintenance=True, exempt_handler=handler)
    app.get("/health")(lambda: {"status": "healthy"})
    client = TestClient(app)
    assert client.get("/").status_code == 503
    assert client.get("/", headers={"X-Key": "admin"}).status_code == 200
    assert client.get("/health").json() == {"status": "healthy"}


def sync_response(request):
    return JSONResponse({"path": request.url.path}, 503, {"Retry-After": "600"})


async def async_response(request):
    await anyio.lowlevel.checkpoint()
    return sync_response(request)


class ResponseObject:
    """An object whose call is asynchronous."""

    async def __call__(self, request):
        return sync_response(request)


@pytest.mark.parametrize("handler", [sync_response, async_response, ResponseObject()])
def test_response_handlers(handler):
    """A handler, sync or async, answers with its own body, status and headers."""
    response = TestClient(make_app(enable_maintenance=True, response_handler=handler)).get("/")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "600")
    assert response.json() == {"path": "/"}


def test_response_handler_gives_any_response():
    """The handler may answer with a page, and with a status code of its own."""

    async def page(request):
        return HTMLResponse("<h1>Back soon</h1>", status_code=200)

    response = TestClient(make_app(enable_maintenance=True, response_handler=page)).get("/")
    assert (response.status_code, response.text) == (200, "<h1>Back soon</h1>")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Retry-After" not in response.headers


# Decorators


def decorated_app(**options):
    """Give an application with endpoints that are forced open and closed, sync and async, direct and included."""
    app = make_app(**options)
    router = APIRouter()

    def parameters():
        return {"param": "value"}

    @app.get("/open")
    @force_maintenance_mode_off
    def always_open():
        return {"status": "healthy"}

    @router.get("/open/{number}")
    @force_maintenance_mode_off
    async def always_open_too(number: int, common: dict = Depends(parameters)):  # noqa: B008, FAST002 - as it was written then
        return {"number": number, **common}

    app.get("/closed")(force_maintenance_mode_on(lambda: None))
    router.get("/closed/{number}")(force_maintenance_mode_on(lambda number: None))
    app.include_router(router, prefix="/api")
    return app


@pytest.mark.parametrize("enabled", [True, False])
def test_decorators(enabled):
    """Forced endpoints are open or closed whatever the state; dependencies and parameters still work."""
    client = TestClient(decorated_app(enable_maintenance=enabled))
    assert client.get("/").status_code == (503 if enabled else 200)
    assert client.get("/open").json() == {"status": "healthy"}
    assert client.get("/api/open/7").json() == {"number": 7, "param": "value"}
    assert client.get("/closed").status_code == 503
    assert client.get("/api/closed/7").status_code == 503


def test_forced_on_outranks_an_exemption():
    """An exempt request is refused where the endpoint is forced closed, and let through elsewhere."""
    client = TestClient(decorated_app(enable_maintenance=True, exempt_handler=lambda request: True))
    assert (client.get("/").status_code, client.get("/closed").status_code) == (200, 503)


@pytest.mark.parametrize("decorator", [force_maintenance_mode_on, force_maintenance_mode_off])
def test_decorated_functions_can_still_be_called(decorator):
    """A decorated function keeps its name and its signature, and is called as before."""

    @decorator
    async def double(number: int) -> int:
        return 2 * number

    assert (double.__name__, list(inspect.signature(double).parameters)) == ("double", ["number"])
    assert asyncio.run(double(4)) == 8


# The context manager


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["env", "file", "own"])
@pytest.mark.parametrize("explicit", [True, False])
async def test_context_manager_in_an_admin_endpoint(tmp_path, kind, explicit):
    """While the endpoint's block runs others are refused, forced open and exempt ones served; then it is as before."""
    make = {"env": EnvVarBackend, "file": lambda: LocalFileBackend(str(tmp_path / "state")), "own": Store}
    backend = make[kind]()
    app = decorated_app(backend=backend, exempt_handler=sync_exempt)
    started, finish = anyio.Event(), anyio.Event()
    seen = []

    @app.post("/admin/update")
    @force_maintenance_mode_off
    async def update():
        async with maintenance_mode_on(backend=backend) if explicit else maintenance_mode_on():
            seen.append(await get_maintenance_mode())
            started.set()
            await finish.wait()
        seen.append(await get_maintenance_mode())
        return {"status": "updated"}

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:

        async def codes():
            plain = [(await client.get(path)).status_code for path in ("/", "/open")]
            return [*plain, (await client.get("/", headers={"X-Key": "admin"})).status_code]

        async def run_update():
            assert (await client.post("/admin/update")).json() == {"status": "updated"}

        assert await codes() == [200, 200, 200]
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run_update)
                await started.wait()
                assert await codes() == [503, 200, 200]
                finish.set()
        assert await codes() == [200, 200, 200]
    assert seen == [True, False]


@pytest.mark.anyio
async def test_context_manager_on_the_environment_leaves_the_variable(monkeypatch):
    """On the environment backend the block closes this process, and the variable is not touched."""
    monkeypatch.setenv(VARIABLE, "0")
    async with maintenance_mode_on():
        assert await get_maintenance_mode() is True
        assert EnvVarBackend().peek_state().switch is None
    assert await get_maintenance_mode() is False


@pytest.mark.anyio
async def test_context_manager_outranks_enable_maintenance():
    """Inside the block it is closed even where `enable_maintenance=False`."""
    app = make_app(enable_maintenance=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        async with maintenance_mode_on():
            inside = await client.get("/")
        assert (inside.status_code, (await client.get("/")).status_code) == (503, 200)


@pytest.mark.anyio
@pytest.mark.parametrize("before", ["0", "1"])
async def test_context_manager_puts_back_what_it_found(tmp_path, before):
    """It is closed inside the block, and the file says what it said before afterwards, also when the block raises."""
    path = tmp_path / "state"
    path.write_text(before)
    configure_backend("file", file_path=str(path))

    async def fail():
        async with maintenance_mode_on():
            assert await get_maintenance_mode()
            raise LookupError("no such table")

    with pytest.raises(LookupError, match="no such table"):
        await fail()
    assert path.read_text().strip() == before
    assert await get_maintenance_mode() is (before == "1")


@pytest.mark.anyio
async def test_context_managers_nest():
    """It stays closed until the outermost block is left."""
    seen = [await get_maintenance_mode()]
    async with maintenance_mode_on():
        async with maintenance_mode_on():
            seen.append(await get_maintenance_mode())
        seen.append(await get_maintenance_mode())
    seen.append(await get_maintenance_mode())
    assert seen == [False, True, True, False]


@pytest.mark.anyio
async def test_context_manager_of_one_backend_leaves_the_others(tmp_path):
    """A block on a backend closes that one only."""
    app = make_app()
    store = Store()
    async with maintenance_mode_on(backend=store):
        assert (store.stored, await get_maintenance_mode(store)) == ("1", True)
        assert await get_maintenance_mode() is False
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            assert (await client.get("/")).status_code == 200
    assert store.stored == "0"
