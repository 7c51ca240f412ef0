"""Real servers: uvicorn with two workers, a large upload over a socket, a websocket client, a start that is refused."""

import socket
import subprocess
import sys

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.servers import PATIENCE, WITH_PID, asked, command, environment, needs_servers, until

pytestmark = needs_servers

SIZE = 20 * 1024 * 1024

THREE_GATES = """
from fastapi import APIRouter, Depends, FastAPI
from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware

maintenance = Maintenance()
api = FastAPI()
guarded = APIRouter(dependencies=[Depends(maintenance.guard)])
guarded.add_api_route("/guard", lambda: "open")
routed = APIRouter(route_class=maintenance.route_class)
routed.add_api_route("/route", lambda: "open")
mounted = FastAPI()
mounted.add_api_route("/x", lambda: "open")
api.include_router(guarded)
api.include_router(routed)
api.mount("/mounted", MaintenanceModeMiddleware(mounted, maintenance=maintenance))
"""

UPLOADS = """
from typing import Annotated

from fastapi import APIRouter, Body, FastAPI
from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware, force_maintenance_mode_off

maintenance = Maintenance()
api = FastAPI()
count = {"asked": 0, "bytes": 0}


async def upload(data: Annotated[bytes, Body(media_type="application/octet-stream")]):
    return len(data)


api.add_api_route("/count", force_maintenance_mode_off(lambda: count))
routed = APIRouter(route_class=maintenance.route_class)
routed.add_api_route("/route", upload, methods=["POST"])
api.include_router(routed)
mounted = FastAPI()
mounted.add_api_route("/upload", upload, methods=["POST"])
api.mount("/mounted", MaintenanceModeMiddleware(mounted, maintenance=maintenance))


async def app(scope, receive, send):
    async def counted():
        count["asked"] += scope.get("method") == "POST"
        message = await receive()
        count["bytes"] += len(message.get("body", b""))
        return message

    await api(scope, counted, send)
"""

WEBSOCKETS = """
from fastapi import Depends, FastAPI, WebSocket
from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware

maintenance = Maintenance()
app = FastAPI()
mounted = FastAPI()


@mounted.websocket("/ws")
@app.websocket("/ws", dependencies=[Depends(maintenance.guard)])
async def socket(websocket: WebSocket):
    await websocket.accept()
    await websocket.send_text("open")
    await websocket.close()


app.mount("/mounted", MaintenanceModeMiddleware(mounted, maintenance=maintenance))
"""

WRONG = {
    "object": "import fastapi, fastapi_maintenance as m\nmaintenance = m.Maintenance()\napp = fastapi.FastAPI()\n",
    "middleware": (
        "import fastapi, fastapi_maintenance as m\n"
        "app = fastapi.FastAPI()\napp.add_middleware(m.MaintenanceModeMiddleware)\n"
    ),
}


def by_worker(port, path, workers=2):
    """Ask until every worker has answered; give what each answered each time."""
    answers = {}

    def all_have():
        status, _, pid = asked(port, path)
        answers.setdefault(pid, []).append(status)
        return len(answers) == workers

    until(all_have)
    return list(answers.values())


def elsewhere(directory, source):
    """Run Python in another process."""
    subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", source], cwd=directory, env=environment(), check=True, timeout=PATIENCE
    )


def written(text):
    """Give the source that writes the state file as a shell does."""
    return f"open('state', 'w').write('{text}')"


def switched(value):
    """Give the source that changes the state with the package."""
    return f"import anyio, fastapi_maintenance as m; anyio.run(m.set_maintenance_mode, {value})"


@pytest.mark.parametrize("path", ["/guard", "/route", "/mounted/x"])
def test_two_workers(serve, tmp_path, path):
    """Once another process wrote the switch, the next request to each worker is refused; cleared, it is served."""
    port = serve(THREE_GATES + WITH_PID, "--workers", "2", workers=2)
    seen = [by_worker(port, path)]
    for source in (switched(True), switched(False), written("1\\n"), written("0\\n")):
        elsewhere(tmp_path, source)
        seen.append(by_worker(port, path))
    codes = [{status for answers in each for status in answers} for each in seen]
    assert codes == [{200}, {503}, {200}, {503}, {200}]


def uploaded(port, path):
    """Send 20 MB over a socket; give the status line of the answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {SIZE}\r\n"
    head += "Content-Type: application/octet-stream\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(head.encode() + bytes(SIZE))
        return connection.makefile("rb").readline().decode()


@pytest.mark.parametrize("path", ["/route", "/mounted/upload"])
def test_upload_to_a_closed_operation(serve, tmp_path, path):
    """A large upload is refused, and the application has asked for none of it; while open it reads all."""
    port = serve(UPLOADS)
    (tmp_path / "state").write_text("1")
    assert uploaded(port, path).startswith("HTTP/1.1 503 ")
    assert asked(port, "/count")[:2] == (200, '{"asked":0,"bytes":0}')
    (tmp_path / "state").write_text("0")
    assert uploaded(port, path).startswith("HTTP/1.1 200 ")
    assert f'"bytes":{SIZE}' in asked(port, "/count")[1]


@pytest.mark.parametrize("path", ["/ws", "/mounted/ws"])
def test_websocket_handshake(serve, tmp_path, path):
    """A websocket client gets a real HTTP 503 with body and Retry-After; while open it is accepted."""
    url = f"ws://127.0.0.1:{serve(WEBSOCKETS)}{path}"
    with connect(url) as websocket:
        assert websocket.recv() == "open"
    (tmp_path / "state").write_text("1")
    with pytest.raises(InvalidStatus) as caught:
        connect(url)
    response = caught.value.response
    assert (response.status_code, response.headers["Retry-After"]) == (503, "60")
    assert b'"mode":"full"' in response.body


@pytest.mark.parametrize("app", WRONG)
def test_wrong_environment_stops_the_start(tmp_path, app):
    """A server with a wrong FASTAPI_MAINTENANCE_MODE does not start, and says why."""
    (tmp_path / "served.py").write_text(WRONG[app])
    wrong = environment(FASTAPI_MAINTENANCE_BACKEND="env", FASTAPI_MAINTENANCE_MODE="maybe")
    ended = subprocess.run(  # noqa: S603 - our own
        command(), cwd=tmp_path, env=wrong, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ended.returncode != 0
    assert "FASTAPI_MAINTENANCE_MODE" in ended.stderr
    assert "'maybe' is not a maintenance mode: write 1 (on), 0 (off) or read_only" in ended.stderr
    assert "running on" not in ended.stderr
