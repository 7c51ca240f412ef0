"""Each test begins with a clean environment and no default object, and async tests run on asyncio and on trio."""

import os
import signal

import pytest

from fastapi_maintenance.backends.flock import FlockGate
from fastapi_maintenance.backends.locks import Gate
from fastapi_maintenance.maintenance import _default
from fastapi_maintenance.settings import PREFIX, _Shared


def pytest_configure():
    """Do not ignore the signals that a shell has what it starts in the background ignore: tests send them."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:  # pragma: no cover - as the shell has it
            signal.signal(number, handler)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """Give the event loops that async tests run on."""
    return request.param


@pytest.fixture(autouse=True)
def _clean_slate(monkeypatch):
    monkeypatch.setenv(f"{PREFIX}MESSAGE", "from outside")
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setattr(_default, "maintenance", None)
    monkeypatch.setattr(_Shared, "backends", {})


@pytest.fixture
def serve(tmp_path):
    """Give a function that serves the source of an app and gives its port; the servers end with the test."""
    from tests.servers import serving  # noqa: PLC0415 - the examples are tested without that module, too

    with serving(tmp_path) as start:
        yield start


@pytest.fixture
def server(tmp_path):
    """Give a redis-server of the test's own."""
    from tests.redis_servers import redis_server  # noqa: PLC0415 - most tests run without redis-py, too

    with redis_server(tmp_path) as running:
        yield running


@pytest.fixture(params=[Gate, FlockGate])
def kind(request, monkeypatch):
    """Give each variant of the locks beside a state file; file backends made in the test use it."""
    monkeypatch.setattr("fastapi_maintenance.backends.file.gate_beside", request.param)
    return request.param


@pytest.fixture
def path(tmp_path):
    """Give the path of a state file that does not exist yet."""
    return tmp_path / "state"


@pytest.fixture
def gate(kind, path):
    """Give a gate of each variant."""
    return kind(str(path))
