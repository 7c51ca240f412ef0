"""Real servers: how tests start uvicorn, ask it and wait for what it does."""

import http.client
import importlib.util
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_servers = pytest.mark.skipif(
    sys.platform in {"win32", "emscripten", "wasi"} or importlib.util.find_spec("uvicorn") is None,
    reason="needs uvicorn, and a system on which it runs workers and ends by a signal",
)

ROOT = Path(__file__).parents[1]
PATIENCE = 60
"""Seconds after which a server that does nothing is a failure."""

WITH_PID = """
import os


async def app(scope, receive, send):
    async def send_with_pid(message):
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"pid", str(os.getpid()).encode())]
        await send(message)

    await api(scope, receive, send_with_pid)
"""
"""What makes `app` of `api`, with the worker's process in a header of each answer."""


def command(*options):
    """Give the command that serves `served.py` on a port that the system chooses."""
    return [sys.executable, "-m", "uvicorn", "served:app", "--host", "127.0.0.1", "--port", "0", *options]


def environment(**more):
    """Give the environment of a process that imports this package."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "FASTAPI_MAINTENANCE_BACKEND": "file:state", **more}


def until(condition):
    """Wait until `condition` gives something, and give that."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
    return found


@contextmanager
def serving(directory):
    """Give a function that serves the source of an app in `directory` and gives its port; they end with the block."""
    processes = []
    log = directory / "log"

    def start(source, *options, workers=1):
        (directory / "served.py").write_text(source)
        with log.open("w") as output:
            processes.append(
                subprocess.Popen(  # noqa: S603 - our own
                    command(*options), cwd=directory, env=environment(), stdout=output, stderr=output
                )
            )

        def port():
            text = log.read_text()
            assert processes[-1].poll() is None, text
            running = re.search(r"running on http://127.0.0.1:(\d+)", text)
            return running and text.count("startup complete") == workers and int(running[1])

        return until(port)

    try:
        yield start
    finally:
        for process in processes:
            process.terminate()
            process.wait(PATIENCE)


def asked(port, path, method="GET"):
    """Ask over a new connection; give status, body and the worker's process."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path)
    response = connection.getresponse()
    answer = response.status, response.read().decode(), response.headers.get("pid")
    connection.close()
    return answer
