"""Each example does what its first lines say."""

import importlib.util
import sys
import threading
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from unittest.mock import AsyncMock

import anyio
import httpx
import pytest
import uvicorn
from fastapi import Body, FastAPI
from fastapi.testclient import TestClient
from starlette.responses import JSONResponse
from starlette.testclient import WebSocketDenialResponse

ROOT = Path(__file__).parent.parent
SCRIPTS = {"migrate"}
NAMES = sorted({path.stem for path in (ROOT / "examples").glob("*.py")} - SCRIPTS)
ORIGIN = "https://shop.example"


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Give a function that runs an example anew, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def load(name):
        spec = importlib.util.spec_from_file_location(f"examples.{name}", ROOT / "examples" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def mode(monkeypatch):
    """Give a function that sets the live environment variable."""
    return lambda value: monkeypatch.setenv("FASTAPI_MAINTENANCE_MODE", value)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_says_how_to_start_it(name):
    """The first lines of each example have the command that starts it."""
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert f"uvicorn examples.{name}:app" in text.split('"""')[1]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_leaves_the_directory_alone(name, load):
    """To load an example, and to serve a first request that finds nothing, creates no file."""
    assert TestClient(load(name).app, raise_server_exceptions=False).get("/nowhere").status_code == 404
    assert not list(Path.cwd().iterdir())


# quickstart


def test_quickstart_is_switched_over_http(load):
    """PUT closes, GET shows it while closed, DELETE opens; the greeting follows."""
    client = TestClient(load("quickstart").app)
    assert client.get("/").json() == {"message": "Hello"}
    assert client.get("/maintenance").json()["active"] is False

    assert client.put("/maintenance").json()["active"] is True
    refused = client.get("/")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "60")
    shown = client.get("/maintenance")
    assert (shown.status_code, shown.json()["active"], shown.json()["mode"]) == (200, True, "full")

    assert client.delete("/maintenance").json()["active"] is False
    assert client.get("/").status_code == 200


def test_quickstart_keeps_its_state_in_the_current_directory(load):
    """Without a variable the state is in `maintenance.state`, and what is written there by hand counts."""
    client = TestClient(load("quickstart").app)
    client.put("/maintenance")
    assert sorted(path.name for path in Path().iterdir()) == ["maintenance.state", "maintenance.state.gate"]
    Path("maintenance.state").write_text("0\n")
    assert client.get("/").status_code == 200
    Path("maintenance.state").write_text("on\n")
    assert client.get("/").status_code == 503


def test_quickstart_keeps_its_state_where_the_environment_says(load, monkeypatch, tmp_path):
    """FASTAPI_MAINTENANCE_BACKEND names another file, and the next start finds the state there."""
    path = tmp_path / "elsewhere"
    monkeypatch.setenv("FASTAPI_MAINTENANCE_BACKEND", f"file:{path}")
    TestClient(load("quickstart").app).put("/maintenance")
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "elsewhere.gate"]
    assert TestClient(load("quickstart").app).get("/").status_code == 503


# dependency


def test_dependency_serves_while_open(load):
    """Guard, route class and status stand in nobody's way while it is open."""
    client = TestClient(load("dependency").app)
    assert client.get("/orders").json() == ["tea", "biscuits"]
    assert client.post("/imports", json=["tea", "milk"]).json() == {"imported": 2}
    assert client.get("/banner").json() == {"banner": None}
    with client.websocket_connect("/orders/live") as live:
        assert live.receive_json() == {"ordered": "tea"}


def test_dependency_refuses_while_closed(load, mode):
    """The guard refuses HTTP and websockets, and the banner says why."""
    mode("1")
    client = TestClient(load("dependency").app)
    assert client.get("/orders").status_code == 503
    with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/orders/live"):
        ...
    assert denied.value.status_code == 503
    assert "maintenance" in client.get("/banner").json()["banner"]


@pytest.mark.anyio
async def test_dependency_refuses_an_import_before_its_body(load, mode):
    """The route class refuses without having read the body."""
    mode("1")
    receive, send = AsyncMock(), AsyncMock()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/imports",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"7")],
    }
    await load("dependency").app(scope, receive, send)
    receive.assert_not_awaited()
    assert send.await_args_list[0].args[0]["status"] == 503


# decorators


@pytest.mark.parametrize(("value", "articles"), [("0", 200), ("1", 503)])
def test_decorators_outrank_the_switch(load, mode, value, articles):
    """Health and status are always open, beta is always closed, and articles follow the switch."""
    mode(value)
    client = TestClient(load("decorators").app)
    assert client.get("/articles").status_code == articles
    assert client.get("/health").json() == {"health": "good"}
    assert client.get("/status").json() == {"maintenance": value == "1"}
    assert client.get("/beta").status_code == 503


@pytest.mark.anyio
async def test_decorators_close_an_endpoint_and_not_its_function(load):
    """What is forced closed over HTTP can still be called in the program, as its own developers do."""
    assert await load("decorators").beta() == {"feature": "teleport"}


@pytest.mark.parametrize("value", ["0", "1"])
@pytest.mark.parametrize(
    ("known", "headers", "answer"),
    [
        ("secret", {"Admin-Token": "secret"}, 200),
        ("secret", {"Admin-Token": "other"}, 403),
        ("secret", {}, 403),
        ("", {"Admin-Token": ""}, 403),
    ],
)
def test_decorators_leave_the_dependency_of_an_endpoint_alone(load, mode, monkeypatch, value, known, headers, answer):
    """The always open admin endpoint is open to administrators only."""
    mode(value)
    monkeypatch.setenv("ADMIN_TOKEN", known)
    assert TestClient(load("decorators").app).get("/admin/users", headers=headers).status_code == answer


# combined


@pytest.mark.anyio
@pytest.mark.parametrize("backend", ["env", "memory", "file:state"])
async def test_combined_closes_for_all_but_monitors_while_the_job_runs(load, monkeypatch, backend):
    """While the admin's job runs others get the service's own 503, monitors are served; then it is open again."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_BACKEND", backend)
    example = load("combined")
    started, finish = anyio.Event(), anyio.Event()
    build_index = example.build_index

    async def slow_build():
        started.set()
        await finish.wait()
        await build_index()

    monkeypatch.setattr(example, "build_index", slow_build)
    done = []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(example.app), base_url="http://test") as client:
        assert (await client.get("/search?word=wait")).json() == []

        async def run_job():
            done.append(await client.post("/admin/reindex"))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run_job)
                await started.wait()
                refused = await client.get("/search?word=wait")
                monitored = await client.get("/search?word=wait", headers={"User-Agent": "uptime-check/2.1"})
                finish.set()
        served = await client.get("/search?word=wait")

    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "60")
    assert refused.json()["error"] == {
        "code": "reindexing",
        "path": "/search",
        "message": "Service temporarily unavailable due to maintenance",
    }
    assert monitored.status_code == 200
    assert (done[0].status_code, done[0].json()) == (200, {"words": 9})
    assert served.json() == ["biscuits", "tea"]


def test_combined_admin_job_runs_while_it_is_closed_already(load, mode):
    """The admin endpoint is open while the switch is on, and its job leaves the switch as it was."""
    mode("1")
    client = TestClient(load("combined").app)
    assert client.post("/admin/reindex").status_code == 200
    assert client.get("/search?word=tea").status_code == 503


# lifecycle


@pytest.mark.parametrize("left", ["1\n", "0\n", None])
@pytest.mark.parametrize("events", [False, True])
def test_lifecycle_opens_at_start_and_closes_at_shutdown(load, events, left):
    """What a crash left is cleared at start-up, and after the shutdown the file says closed."""
    state = Path("maintenance.state")
    example = load("lifecycle")
    app = made_with_events(example) if events else example.app
    if left is not None:
        state.write_text(left)
    with TestClient(app) as client:
        assert client.get("/hello").json() == {"message": "Hello"}
        state.write_text("1\n")
        assert client.get("/hello").status_code == 503
        state.write_text("0\n")
        assert client.get("/hello").status_code == 200
    refused = TestClient(app).get("/hello")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "60" if events else "10")


def made_with_events(example):
    """Give the example's application with `on_event`, which FastAPI deprecates."""
    with pytest.deprecated_call(match="on_event is deprecated"):
        return example.app_with_events()


# cors


@pytest.mark.parametrize(("value", "answer"), [("0", 200), ("1", 503)])
def test_cors_headers_are_on_the_refusal_too(load, mode, value, answer):
    """A script of the allowed origin can read the answer, open or closed; one of a foreign origin cannot."""
    mode(value)
    client = TestClient(load("cors").app)
    response = client.post("/orders", headers={"Origin": ORIGIN})
    assert response.status_code == answer
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert response.headers["Access-Control-Expose-Headers"] == "Retry-After"
    foreign = client.post("/orders", headers={"Origin": "https://other.example"})
    assert foreign.status_code == answer
    assert "Access-Control-Allow-Origin" not in foreign.headers


@pytest.mark.parametrize("value", ["0", "1"])
def test_cors_preflight_is_answered(load, mode, value):
    """A preflight gets the application's answer, open or closed."""
    mode(value)
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    response = TestClient(load("cors").app).options("/orders", headers=preflight)
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "POST" in response.headers["Access-Control-Allow-Methods"]


# status_dependency


def test_status_dependency_serves_while_open(load):
    """There is no banner, and the basket can be paid."""
    client = TestClient(load("status_dependency").app)
    assert client.get("/articles").json() == {"titles": ["How to make tea"], "banner": None}
    assert client.post("/checkout").json() == {"paid": "yes"}


@pytest.mark.parametrize(("configured", "named"), [("120", "120"), ("none", None)])
def test_status_dependency_lets_handlers_decide_while_closed(load, mode, monkeypatch, configured, named):
    """Reading goes on with a banner, and the checkout refuses with its own error."""
    mode("1")
    monkeypatch.setenv("FASTAPI_MAINTENANCE_MESSAGE", "Back at noon")
    monkeypatch.setenv("FASTAPI_MAINTENANCE_RETRY_AFTER", configured)
    client = TestClient(load("status_dependency").app)
    assert client.get("/articles").json() == {"titles": ["How to make tea"], "banner": "Back at noon"}
    refused = client.post("/checkout")
    assert (refused.status_code, refused.headers.get("Retry-After")) == (503, named)
    assert refused.json() == {"detail": "Nothing was charged. Your basket is kept."}


# external_service


class Service:
    """A service that keeps the switch, on a real port.

    Attributes:
        active: The switch; what is no bool is given as it is.
        broken: Whether it answers with an error.
    """

    def __init__(self):
        self.active, self.broken = False, False
        self.app = FastAPI()
        self.app.get("/maintenance")(self.show)
        self.app.put("/maintenance")(self.change)

    async def show(self):
        return JSONResponse({"active": self.active}, 500 if self.broken else 200)

    async def change(self, active: bool = Body(embed=True)):
        self.active = active
        return await self.show()

    @contextmanager
    def served(self):
        """Serve it in a thread, and give its address."""
        server = uvicorn.Server(uvicorn.Config(self.app, port=0, ws="none", lifespan="off", log_config=None))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def wait_for(condition):
    """Poll until `condition()` is true."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.01)


@pytest.fixture
def service(monkeypatch):
    """Give a running service that the example is told of."""
    service = Service()
    with service.served() as url:
        monkeypatch.setenv("MAINTENANCE_API", url)
        monkeypatch.setenv("FASTAPI_MAINTENANCE_REFRESH_INTERVAL", "0.01")
        monkeypatch.setenv("FASTAPI_MAINTENANCE_READ_TIMEOUT", "10")
        yield service


@pytest.mark.parametrize("active", [False, True])
def test_external_service_is_asked_before_the_first_answer(load, service, active):
    """The very first request is decided by what the service says."""
    service.active = active
    with TestClient(load("external_service").app) as client:
        assert client.get("/hello").status_code == (503 if active else 200)


def test_external_service_is_followed(load, service):
    """A change made in the service is seen within the refresh interval, in both directions."""
    with TestClient(load("external_service").app) as client:
        assert client.get("/hello").json() == {"message": "Hello"}
        service.active = True
        wait_for(lambda: client.get("/hello").status_code == 503)
        service.active = False
        wait_for(lambda: client.get("/hello").status_code == 200)


def test_external_service_is_switched_through_the_example(load, service):
    """The always open endpoint changes the service, and the very next request knows."""
    with TestClient(load("external_service").app) as client:
        assert client.put("/maintenance?active=true").status_code == 204
        assert client.get("/hello").status_code == 503
        assert service.active is True
        assert client.put("/maintenance?active=false").status_code == 204
        assert client.get("/hello").status_code == 200
        assert service.active is False


@pytest.mark.parametrize(("broken", "answer"), [(True, False), (False, "perhaps")])
def test_external_service_that_fails_changes_nothing(load, service, caplog, broken, answer):
    """An error, or an answer that is none, is a failure: the last known state holds, and the log says it once."""
    service.active = True
    with TestClient(load("external_service").app) as client:
        assert client.get("/hello").status_code == 503
        service.broken = broken
        service.active = answer
        seen = set()
        wait_for(lambda: seen.add(client.get("/hello").status_code) or "cannot be read" in caplog.text)
        assert seen | {client.get("/hello").status_code} == {503}
        service.active = service.broken = False
        wait_for(lambda: client.get("/hello").status_code == 200)
    assert caplog.text.count("ApiBackend cannot be read") == 1


def test_external_service_that_cannot_be_changed_is_an_error(load, service):
    """A change that the service refuses comes out as an error of the backend, and the state stays."""
    with TestClient(load("external_service").app, raise_server_exceptions=False) as client:
        assert client.get("/hello").status_code == 200
        service.broken = True
        assert client.put("/maintenance?active=true").status_code == 500
        service.active = service.broken = False
        assert client.get("/hello").status_code == 200


# monitoring


def test_monitoring_reports_operational(load):
    """While open the report says so, and nothing is refused."""
    client = TestClient(load("monitoring").app)
    report = client.get("/status").json()
    assert report == {"status": "operational", "message": "All is well", "since": None, "until": None}
    assert client.get("/articles").status_code == 200


def test_monitoring_reports_maintenance(load, mode):
    """While closed the report is still served, with message and beginning, and the rest is refused."""
    mode("1")
    client = TestClient(load("monitoring").app)
    report = client.get("/status")
    assert report.status_code == 200
    assert report.json()["status"] == "maintenance"
    assert "unavailable" in report.json()["message"]
    assert datetime.fromisoformat(report.json()["since"]).tzinfo is not None
    assert report.json()["until"] is None
    assert client.get("/articles").status_code == 503


# migrate.py


def test_a_migration_tells_how_many_requests_run(load, monkeypatch, capsys):
    """The pretended migration goes through its steps and tells of the service each time."""
    monkeypatch.setattr(anyio, "sleep", AsyncMock())
    anyio.run(load("migrate").migrate)
    assert capsys.readouterr().out.count("the service is open, 0 of 0 workers run a request") == 3
