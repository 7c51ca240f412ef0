"""Real servers, each with its websockets: handshakes that are refused, and streams that end when the gate closes."""

import http.client
import importlib.util
import json
import re
import socket
import subprocess
import sys
from contextlib import closing

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.servers import PATIENCE, asked, environment, needs_servers, until

pytestmark = needs_servers

APP = """
import time

import anyio
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware, force_maintenance_mode_off

maintenance = Maintenance()
seen = {"begun": [], "cleaned": [], "released": False}


async def echo(websocket: WebSocket):
    try:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)
    finally:
        seen["cleaned"].append("socket")


@force_maintenance_mode_off
async def always(websocket: WebSocket):
    await echo(websocket)


async def ticks():
    try:
        while True:
            yield "data: tick\\n\\n"
            await anyio.sleep(0.02)
    finally:
        seen["cleaned"].append("events")


def sync_ticks():
    try:
        while True:
            yield "data: tick\\n\\n"
            time.sleep(0.02)
    finally:
        seen["cleaned"].append("sync")


async def slow():
    seen["begun"].append("slow")
    while not seen["released"]:
        await anyio.sleep(0.02)
    return "done"


inner = FastAPI()
inner.add_api_websocket_route("/ws", echo)
inner.add_api_websocket_route("/always/ws", always)
inner.add_api_route("/events", lambda: StreamingResponse(ticks(), media_type="text/event-stream"))
inner.add_api_route("/sync", lambda: StreamingResponse(sync_ticks(), media_type="text/event-stream"))
inner.add_api_route("/slow", slow)
guarded = APIRouter(dependencies=[Depends(maintenance.guard)])
guarded.add_api_websocket_route("/ws", echo)
app = FastAPI()
app.include_router(guarded, prefix="/guard")
app.mount("/middleware", MaintenanceModeMiddleware(inner, maintenance=maintenance, close_streams_after=0.2))
app.add_api_route("/seen", lambda: seen)
app.add_api_route("/release", lambda: seen.update(released=True))
app.add_api_route("/forget", lambda: seen.update(begun=[], cleaned=[], released=False))
"""

SERVERS = {
    "uvicorn websockets": ("uvicorn", "--host", "127.0.0.1", "--port", "0", "--ws", "websockets"),
    "uvicorn websockets-sansio": ("uvicorn", "--host", "127.0.0.1", "--port", "0", "--ws", "websockets-sansio"),
    "uvicorn wsproto": ("uvicorn", "--host", "127.0.0.1", "--port", "0", "--ws", "wsproto"),
    "hypercorn asyncio": ("hypercorn", "--bind", "127.0.0.1:0", "--worker-class", "asyncio"),
    "hypercorn trio": ("hypercorn", "--bind", "127.0.0.1:0", "--worker-class", "trio"),
    "granian": ("granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", "FREE"),
}


class Server:
    """A running server, its port and its state file."""

    def __init__(self, directory, port):
        self.log = directory / "log"
        self.port = port
        self._state = directory / "state"

    def write(self, word):
        self._state.write_text(word)

    def url(self, path):
        return f"ws://127.0.0.1:{self.port}{path}"

    def seen(self):
        return json.loads(asked(self.port, "/seen")[1])

    def opened(self, path):
        """Send a request over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", path, headers={"Accept": "text/event-stream"})
        return closing(connection)


def served_by(name):
    """Give a server as a parameter, skipped where a package that it needs is not installed."""
    module, *options = SERVERS[name]
    needed = {module} | {"trio", "wsproto"}.intersection(options)
    missing = sorted(package for package in needed if importlib.util.find_spec(package) is None)
    return pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"))


def free_port():
    """Give a port that is free, for a server that does not tell which one the system chose."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return str(listening.getsockname()[1])


def running_port(process, log):
    """Give the port on which a server listens, nothing before it does."""
    text = log.read_text()
    assert process.poll() is None, text
    told = re.search(r"(?:unning on|istening at:) http://127.0.0.1:(\d+)", text)
    with socket.socket() as probe:
        return told and probe.connect_ex(("127.0.0.1", int(told[1]))) == 0 and int(told[1])


@pytest.fixture(scope="module", params=map(served_by, SERVERS))
def running(request, tmp_path_factory):
    """Give each server, one after another."""
    directory = tmp_path_factory.mktemp("served")
    (directory / "served.py").write_text(APP)
    module, *options = (free_port() if option == "FREE" else option for option in SERVERS[request.param])
    log = directory / "log"
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603 - our own
            [sys.executable, "-m", module, *options, "served:app"],
            cwd=directory,
            env=environment(),
            stdout=output,
            stderr=output,
        )
    try:
        yield Server(directory, until(lambda: running_port(process, log)))
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture
def server(running):
    """Give a server that is open and has forgotten what was."""
    running.write("0")
    asked(running.port, "/forget")
    return running


@pytest.mark.parametrize("gate", ["guard", "middleware"])
def test_a_handshake_is_refused(server, gate):
    """A websocket client gets a real HTTP 503 with body and Retry-After; while open it is accepted."""
    url = server.url(f"/{gate}/ws")
    with connect(url) as websocket:
        websocket.send("hello")
        assert websocket.recv(PATIENCE) == "hello"
    for word in ("1", "read_only"):
        server.write(word)
        with pytest.raises(InvalidStatus) as caught:
            connect(url)
        response = caught.value.response
        assert (response.status_code, response.headers["Retry-After"]) == (503, "60")
        assert (response.headers["Cache-Control"], response.headers["Content-Type"]) == ("no-store", "application/json")
        assert json.loads(response.body)["retry_after"] == 60


def test_what_is_open_ends(server):
    """A websocket gets 1012, event streams end as complete answers, `finally` blocks run; a slow request goes on."""
    with (
        connect(server.url("/middleware/ws")) as websocket,
        connect(server.url("/middleware/always/ws")) as always,
        server.opened("/middleware/events") as events,
        server.opened("/middleware/sync") as sync_events,
        server.opened("/middleware/slow") as slow,
    ):
        for each in (websocket, always):
            each.send("hello")
            assert each.recv(PATIENCE) == "hello"
        answers = [connection.getresponse() for connection in (events, sync_events)]
        assert [answer.readline() for answer in answers] == [b"data: tick\n"] * 2
        until(lambda: server.seen()["begun"] == ["slow"])
        server.write("1")
        with pytest.raises(ConnectionClosed) as caught:
            websocket.recv(PATIENCE)
        assert caught.value.rcvd.code == 1012
        # An answer that is not complete raises IncompleteRead.
        assert all(answer.read().endswith(b"data: tick\n\n") for answer in answers)
        until(lambda: sorted(server.seen()["cleaned"]) == ["events", "socket", "sync"])
        always.send("still here")
        assert always.recv(PATIENCE) == "still here"
        asked(server.port, "/release")
        answer = slow.getresponse()
        assert (answer.status, answer.read()) == (200, b'"done"')
    assert "Traceback" not in server.log.read_text()
