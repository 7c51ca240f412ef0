"""A distant store that is near for requests (`StateLink`), and holds that can be lost: what stands before each."""

import threading

import anyio
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from fastapi_maintenance import BackendError, Maintenance, MaintenanceSettings
from fastapi_maintenance.backends import LeasedHolds, MemoryBackend, RedisBackend, StateLink
from fastapi_maintenance.inflight import InFlight
from fastapi_maintenance.state import OPEN, Switch, utcnow

CLOSED = OPEN.model_copy(update={"switch": Switch(since=utcnow())})


class Linked(MemoryBackend):
    """A store that was heard when somebody has waited for it, and fails when it is told to."""

    def __init__(self, *, fails=False, remembered=None, rest=OPEN):
        super().__init__()
        self.heard = False
        self.fails = fails
        self.remembered = remembered
        self.rest = rest
        self.waited = []

    def peek_state(self):
        if self.fails:
            raise BackendError("the store", "no contact")
        return super().peek_state()

    async def first_contact(self, seconds):
        self.waited.append(seconds)
        self.heard = True

    def remembered_state(self):
        return self.remembered

    def remembered_rest(self):
        return self.rest


class Arriving(InFlight):
    """Is ready when somebody has waited for it."""

    ready = False

    async def wait_ready(self, seconds):
        self.ready = True


def asked(backend, **settings):
    """Give the statuses of two requests behind a guard."""
    maintenance = Maintenance(MaintenanceSettings(**settings), backend=backend)
    app = FastAPI(dependencies=[Depends(maintenance.guard)])
    app.get("/")(lambda: 1)
    client = TestClient(app)
    return [client.get("/").status_code for _ in range(2)]


def test_the_first_request_waits_for_the_first_contact_and_no_other_does():
    """Before the first admission the store is waited for once, at most `read_timeout`."""
    backend = Linked()
    assert isinstance(backend, StateLink)
    assert asked(backend, read_timeout=0.5) == [200, 200]
    assert backend.waited == [0.5]


def test_the_first_request_waits_until_the_others_know_of_this_worker():
    """A worker that has not arrived lets nobody in before it has."""
    backend = Linked()
    backend.in_flight = Arriving()
    assert asked(backend) == [200, 200]
    assert backend.in_flight.ready


@pytest.mark.parametrize(
    ("remembered", "rest", "unknown", "expected"),
    [(CLOSED, OPEN, "open", 503), (OPEN, OPEN, "closed", 200), (None, OPEN, "open", 200), (None, CLOSED, "open", 503)],
    ids=["closed", "open", "not sure", "not sure, but closed"],
)
def test_without_contact_requests_go_by_what_is_remembered(remembered, rest, unknown, expected):
    """What is known holds; what can be vouched for no more is as `on_backend_error` says, and the rest is kept."""
    backend = Linked(fails=True, remembered=remembered, rest=rest)
    assert asked(backend, on_backend_error=unknown) == [expected] * 2


class Leased(MemoryBackend):
    """A store whose holds are lost when the test says so."""

    over = False

    def watch_hold(self, hold_id, lost):
        self.lose = lost

    def hold_lost(self, hold_id):
        return self.over


@pytest.mark.anyio
async def test_a_hold_that_is_lost_says_so_and_wakes_who_waits():
    """The store's thread tells it: `hold.lost` is true at once, and `wait_lost()` returns."""
    backend = Leased()
    assert isinstance(backend, LeasedHolds)
    async with Maintenance(backend=backend).on() as hold:
        thread = threading.Thread(target=backend.lose)
        thread.start()
        with anyio.fail_after(20):
            await hold.wait_lost()
        thread.join()
        assert hold.lost


@pytest.mark.anyio
async def test_a_hold_is_lost_by_the_clock_before_anybody_is_told():
    """A body that looks need not wait for the store's thread, which may go on later than it after both were stopped."""
    backend = Leased()
    async with Maintenance(backend=backend).on() as hold:
        assert not hold.lost
        backend.over = True
        assert hold.lost


def test_a_hold_that_is_lost_when_its_event_loop_is_gone_is_no_error(anyio_backend):
    """The store may tell late."""
    backend = Leased()

    async def main():
        async with Maintenance(backend=backend).on() as hold:
            return hold

    hold = anyio.run(main, backend=anyio_backend)
    backend.over = True
    backend.lose()
    assert hold.lost


def test_a_redis_url_makes_a_redis_backend_and_shows_no_password():
    """The settings take a URL of Redis; what is shown of it has no credentials."""
    settings = MaintenanceSettings(backend="redis://user:s3cret@127.0.0.1:1/0")
    maintenance = Maintenance(settings)
    assert isinstance(maintenance.backend, RedisBackend)
    assert not [text for text in (repr(settings), str(settings), repr(maintenance.backend)) if "s3cret" in text]


def test_the_backends_name_what_is_imported_late_and_have_no_other_lazy_name():
    """`dir()` lists all that is public; what is not there is an `AttributeError`, as in any module."""
    from fastapi_maintenance import backends  # noqa: PLC0415 - the module itself

    assert set(backends.__all__) <= set(dir(backends))
    with pytest.raises(AttributeError, match="has no attribute 'Rediss'"):
        _ = backends.Rediss
