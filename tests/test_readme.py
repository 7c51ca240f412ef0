"""Every code block of the README is executed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import anyio
import httpx
import pytest
from fastapi.testclient import TestClient
from sybil import Document
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parent.parent
AS_A_NEWCOMER = os.environ.get("README_AS_A_NEWCOMER") == "1"


def blocks(language):
    """Give the README's code blocks of one language, in order."""
    parser = CodeBlockParser(language, evaluator=lambda example: None)
    return [example.parsed for example in Document.parse(str(ROOT / "README.md"), parser).examples()]


PYTHON = blocks("python")
START, CURL, TEST = blocks("sh")


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_block_runs(number, tmp_path, monkeypatch):
    """Each Python block of the README runs by itself."""
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(compile(PYTHON[number], f"README.md block {number}", "exec"), namespace)  # noqa: S102 - our own README
    assert {"maintenance", "app"} & namespace.keys()
    for name in {"close_and_open", "migrate"} & namespace.keys():
        anyio.run(namespace[name])


def test_first_block_answers_as_shown(monkeypatch):
    """The answer that the README shows is what its first block answers."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_MODE", "1")
    namespace = {}
    exec(PYTHON[0], namespace)  # noqa: S102 - our own README
    head, body = blocks("http")[0].split("\n\n")
    status, *headers = head.splitlines()
    response = TestClient(namespace["app"]).get("/hello")
    assert status == f"HTTP/1.1 {response.status_code} Service Unavailable"
    assert {line.split(": ")[0].lower(): line.split(": ")[1] for line in headers} == {
        name: value for name, value in response.headers.items() if name != "content-length"
    }
    assert response.json() == json.loads(body)


def test_ci_runs_the_test_command():
    """What CI runs is the README's test command, to the letter."""
    assert TEST.strip() in (ROOT / ".ci" / "run").read_text().splitlines()


def free_port():
    """Give a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_commands_close_and_open_a_real_server(tmp_path):
    """The README's commands start a server, and close and open it."""
    for folder in ("examples", "fastapi_maintenance"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    port = free_port()
    started = START.strip() if AS_A_NEWCOMER else f"{sys.executable} -m uvicorn examples.quickstart:app"
    environment = {key: value for key, value in os.environ.items() if key not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    server = subprocess.Popen(  # noqa: S602 - our own README
        f"{started} --port {port}", shell=True, cwd=tmp_path, env=environment, start_new_session=True
    )
    try:
        deadline = time.monotonic() + (300 if AS_A_NEWCOMER else 30)
        up = False
        while not up:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.1)
            up = answers(port)
        seen = []
        for line in CURL.strip().splitlines():
            command = line.split("#")[0].replace("localhost:8000", f"127.0.0.1:{port}")
            done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)  # noqa: S602 - our own README
            seen.append(done.stdout.splitlines()[0] if " -i " in command else json.loads(done.stdout)["active"])
        assert seen == ["HTTP/1.1 200 OK", True, "HTTP/1.1 503 Service Unavailable", False]
        (tmp_path / "maintenance.state").write_text("1\n")
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 503
        (tmp_path / "maintenance.state").write_text("0\n")
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(30)


def answers(port):
    """Tell whether a server answers on `port`."""
    found = []
    with suppress(httpx.TransportError):
        found.append(httpx.get(f"http://127.0.0.1:{port}/").status_code)
    return found == [200]
