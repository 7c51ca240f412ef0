"""Each error: what it says, what it carries, and that it can be copied and pickled."""

import copy
import pickle
from datetime import UTC, datetime
from functools import partial

import pytest
from fastapi import HTTPException
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse, PlainTextResponse

from fastapi_maintenance import errors
from fastapi_maintenance.errors import (
    BackendError,
    BackendReadOnlyError,
    DrainIncomplete,
    DrainTimeout,
    DrainUnsupported,
    DrainWouldDeadlock,
    MaintenanceActive,
    MaintenanceError,
    NoWorkers,
)
from fastapi_maintenance.state import Hold, MaintenanceStatus, Window

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
STATUS = MaintenanceStatus(
    active=True,
    mode="full",
    phase="closed",
    since=NOON,
    next_window=Window(id="w", start=NOON, end=NOON.replace(hour=13)),
    holds=(Hold(id="h", since=NOON),),
)

CASES = [
    (
        BackendError("state file /x", "it is empty"),
        "state file /x: it is empty",
        {"backend": "state file /x", "reason": "it is empty"},
    ),
    (
        BackendReadOnlyError("EnvVarBackend", "it can only be read"),
        "EnvVarBackend: it can only be read",
        {"backend": "EnvVarBackend", "reason": "it can only be read"},
    ),
    (
        DrainTimeout(30, 2, 8, [4242, 4243]),
        "2 of 8 workers busy (pid 4242, 4243) after 30 s; wait longer with a higher drain=",
        {"seconds": 30, "busy": 2, "workers": 8, "pids": (4242, 4243)},
    ),
    (
        DrainTimeout(0.5, 1, 1),
        "1 of 1 workers busy after 0.5 s; wait longer with a higher drain=",
        {"seconds": 0.5, "busy": 1, "workers": 1, "pids": ()},
    ),
    (
        DrainIncomplete(["a:1", "b:2"]),
        (
            "no answer from a:1, b:2; make sure that they have ended, then try again; "
            "one that ended without a goodbye is forgotten in a minute or two"
        ),
        {"missing": ("a:1", "b:2")},
    ),
    (
        NoWorkers(0, 1),
        (
            "0 workers attached, at least 1 expected: is it the same backend (path, URL, scope)? "
            "A worker is attached from its lifespan, else from its first request on; before that, say min_workers=0"
        ),
        {"found": 0, "wanted": 1},
    ),
    (
        DrainWouldDeadlock(),
        "this request is counted, so draining would wait for itself; mark its route @force_maintenance_mode_off",
        {},
    ),
    (
        DrainUnsupported("it is a network file system"),
        "drain= cannot be promised: it is a network file system; leave drain= out",
        {"reason": "it is a network file system"},
    ),
    (
        MaintenanceActive(STATUS, JSONResponse({}, 503, {"Retry-After": "60"}), "Back soon"),
        "503: Back soon",
        {"status": STATUS, "status_code": 503, "detail": "Back soon", "headers": {"Retry-After": "60"}},
    ),
    (
        MaintenanceActive(STATUS, PlainTextResponse("no", 500), "Back soon"),
        "500: Back soon",
        {"status": STATUS, "status_code": 500, "detail": "Back soon", "headers": None},
    ),
]
WAYS = ["copy", "deepcopy", *(f"pickle-{number}" for number in range(6))]


def pickled(error, protocol):
    """Send an error through pickle."""
    return pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own


each_error = pytest.mark.parametrize(
    ("error", "text", "attributes"),
    CASES,
    ids=[f"{type(error).__name__}-{number}" for number, (error, *_) in enumerate(CASES)],
)


@each_error
def test_an_error_says_what_is_wrong_and_what_to_do(error, text, attributes):
    """The text is made from the data that the error was given, and the data are its attributes."""
    assert str(error) == text
    assert {name: getattr(error, name) for name in attributes} == attributes


@each_error
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, *(partial(pickled, protocol=number) for number in range(6))], ids=WAYS
)
def test_an_error_can_be_copied_and_pickled(again, error, text, attributes):
    """A copy, also one that went through pickle as between processes, says and carries the same, notes too."""
    error.__notes__ = ["a note"]
    twin = again(error)
    assert twin is not error
    assert type(twin) is type(error)
    assert str(twin) == text
    assert {name: getattr(twin, name) for name in attributes} == attributes
    assert twin.args == error.args or isinstance(error, MaintenanceActive)
    assert twin.__notes__ == ["a note"]


def test_a_copied_refusal_answers_the_same():
    """The response of a refusal goes along, body and headers."""
    error = MaintenanceActive(STATUS, JSONResponse({"x": 1}, 503, {"Retry-After": "60"}), "Back soon")
    twin = pickled(error, pickle.HIGHEST_PROTOCOL)
    assert (twin.response.status_code, twin.response.body) == (503, b'{"x":1}')
    assert twin.response.raw_headers == error.response.raw_headers


def test_all_errors_are_maintenance_errors():
    """Each exception that the module has stands under `MaintenanceError`, and each is among the cases above."""
    own = {
        found
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, Exception) and found.__module__ == errors.__name__
    }
    assert all(issubclass(found, MaintenanceError) for found in own)
    assert own - {MaintenanceError} == {type(error) for error, *_ in CASES}


def test_a_refusal_is_an_http_exception():
    """`MaintenanceActive` is FastAPI's and Starlette's `HTTPException`, the other errors are none."""
    assert issubclass(MaintenanceActive, HTTPException)
    http = [type(error) for error, *_ in CASES if isinstance(error, StarletteHTTPException)]
    assert set(http) == {MaintenanceActive}


def test_read_only_is_a_backend_error():
    """Who catches `BackendError` catches `BackendReadOnlyError`, too."""
    assert issubclass(BackendReadOnlyError, BackendError)
