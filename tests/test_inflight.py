"""Who is running: what holds for each way of counting, in a process, on a machine and in a fleet."""

import asyncio
import copy
import gc
import sys
import threading
import time
from math import inf
from unittest.mock import Mock

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fastapi_maintenance import Maintenance
from fastapi_maintenance.backends import LocalFileBackend, MemoryBackend
from fastapi_maintenance.backends.redis.fleet import Fleet, Terms
from fastapi_maintenance.backends.redis.workers import FleetInFlight
from fastapi_maintenance.inflight import InFlight, Passage, Worker
from tests.waiting import PATIENCE, ends


def in_a_fleet(path):
    """Give what counts for a fleet that knows of this worker."""
    in_flight = FleetInFlight(Mock())
    in_flight.join()
    in_flight.arrive()
    return in_flight


KINDS = {
    "process": lambda path: MemoryBackend().in_flight,
    "machine": lambda path: LocalFileBackend(path).in_flight,
    "fleet": in_a_fleet,
}


class Request:
    """A request that is forgotten while it runs, so that the garbage collector ends it."""

    def __init__(self, in_flight: InFlight):
        self.in_flight, self.itself = in_flight, self
        in_flight.enter(id(self))

    def __del__(self):
        self.in_flight.leave(id(self))


@pytest.fixture
def _collecting():
    """Have garbage collected wherever Python can."""
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("_collecting")
@pytest.mark.parametrize("kind", KINDS)
def test_a_forgotten_request_may_end_while_others_are_counted(kind, path):
    """The garbage collector ends a request in the middle of counting others; nobody waits for ever, none is lost."""
    in_flight = KINDS[kind](path)

    def count():
        for _ in range(1000):
            Request(in_flight)
            assert in_flight.enter("another")
            in_flight.leave("another")

    assert ends(count)
    gc.collect()
    assert not in_flight.running


@pytest.fixture
def _restless():
    """Have threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Crowd:
    """Threads that come in and go out as long as the block runs."""

    def __init__(self, in_flight):
        self.in_flight, self.inside, self.went, self.over = in_flight, set(), 0, False
        self.threads = [threading.Thread(target=self.walk, args=(n,)) for n in range(3)]

    def walk(self, number):
        """Come in if that is allowed, and go out again."""
        while not self.over:
            if self.in_flight.enter(number):
                self.inside.add(number)
                self.went += 1
                self.inside.discard(number)
                self.in_flight.leave(number)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over = True
        for thread in self.threads:
            thread.join(PATIENCE)


def wait(condition):
    """Wait until a condition is true, while other threads have their turns."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0)


@pytest.mark.usefixtures("_restless")
def test_nobody_is_in_while_the_fleet_has_a_promise(path):
    """From the promise that a hold bars the way and nothing runs until the bar is lifted no thread comes in."""
    in_flight, seen = in_a_fleet(path), []
    with Crowd(in_flight) as crowd:
        for number in range(300):
            before = crowd.went
            wait(lambda before=before: crowd.went > before)
            in_flight.bar(frozenset({f"hold {number}"}), inf)
            wait(lambda: in_flight.promise()[1])
            for _ in range(20):
                time.sleep(0)
                seen += crowd.inside
            in_flight.bar(frozenset(), inf)
    assert not seen
    assert not in_flight.running


class Meddled(set):
    """What is running, with something else that happens in the middle of a look at it, or of a change."""

    def __init__(self, *, adding=lambda: None, looking=lambda: None):
        super().__init__()
        self.adding, self.looking = adding, looking

    def add(self, request):
        """Add a request, after something else has happened."""
        self.adding()
        super().add(request)

    def __bool__(self):
        """Tell whether there is any, before something else happens."""
        any_running = len(self) > 0
        self.looking()
        return any_running


def test_a_promise_before_a_request_is_counted_keeps_it_out(path):
    """A request that found no bar, and was not counted before a hold was promised that nobody runs, does not get in."""
    in_flight, promised = in_a_fleet(path), []
    assert in_flight.enter("early")
    in_flight.leave("early")

    def promise():
        in_flight.bar(frozenset({"hold"}), inf)
        promised.append(in_flight.promise()[1])

    in_flight.running = Meddled(adding=promise)
    assert not in_flight.enter("late")
    assert (promised, len(in_flight.running)) == ([True], 0)


def test_a_request_in_the_middle_of_a_goodbye_waits_until_the_fleet_knows_of_it_again(path):
    """Who comes in after the last look whether anybody runs is not let in by a worker that is struck off."""
    in_flight, let_in = in_a_fleet(path), []
    assert in_flight.enter("early")
    in_flight.leave("early")
    late = threading.Thread(target=lambda: let_in.append(in_flight.enter("late")))

    def look():
        in_flight.running.looking = lambda: None
        late.start()
        # It has to wait for the goodbye; were it let in, that would take no time.
        late.join(0.2)

    in_flight.running = Meddled(looking=look)
    in_flight.part()
    late.join(PATIENCE)
    assert let_in == [False]


def test_a_child_lets_nobody_in_before_the_fleet_knows_of_it(path):
    """However many its parent has let in, a forked child is a worker that nobody has heard of."""
    in_flight = in_a_fleet(path)
    assert in_flight.enter("early")
    in_flight.after_fork()
    assert not in_flight.enter("late")


@pytest.mark.usefixtures("_restless")
def test_nobody_is_in_after_the_goodbye(path):
    """A worker that has said goodbye lets no thread in before the fleet knows of it again; one that is busy stays."""
    in_flight, seen, goodbyes = in_a_fleet(path), [], 0
    with Crowd(in_flight) as crowd:
        while goodbyes < 300:
            before = crowd.went
            wait(lambda before=before: crowd.went > before)
            in_flight.part()
            if not in_flight.joined:
                goodbyes += 1
                for _ in range(20):
                    time.sleep(0)
                    seen += crowd.inside
                in_flight.join()
                in_flight.arrive()
    assert not seen


def test_a_forgotten_state_may_be_closed_while_its_store_is_heard(monkeypatch):
    """The garbage collector closes what nobody uses any more, be it in the middle of taking an answer for it."""

    class Forgotten:
        def __init__(self, fleet):
            self.fleet, self.itself = fleet, self

        def __del__(self):
            self.fleet.close()

    def notify_all(condition):
        gc.collect()
        told(condition)

    def hear():
        fleet = Fleet(Mock(), "{place}", Terms(1.0, 1.0, 1.0), "name")
        Forgotten(fleet)
        fleet.lose_contact("as it was told")

    told = threading.Condition.notify_all
    monkeypatch.setattr(threading.Condition, "notify_all", notify_all)
    assert ends(hear)


def test_a_request_is_named_by_what_it_asks_until_it_ends():
    """Before a route is chosen it is the path that names it; one that ends while it is named has no name any more."""
    in_flight = InFlight()
    asked = [{"method": "GET", "path": "/op"}, {"path": "/socket"}, {"method": "GET", "path": "/over"}]
    passages = [Passage(None, scope, in_flight) for scope in asked]
    for passage in passages:
        in_flight.enter(passage)
    passages[-1].counted = None
    passages[-1].leave()
    named = in_flight.operations()
    for passage in reversed(passages):
        passage.leave()
    assert named == ("GET /op", "websocket /socket")


class Told(InFlight):
    """A user's own, which does as its parent, and tells of it."""

    def __init__(self):
        super().__init__()
        self.told = []


class Entered(Told):
    """Tells who came."""

    tells = "enter"

    def enter(self, request):
        """Count a request in."""
        self.told.append(self.tells)
        return super().enter(request)


class Left(Told):
    """Tells who went."""

    tells = "leave"

    def leave(self, request):
        """Count a request out."""
        self.told.append(self.tells)
        super().leave(request)


def counting(in_flight):
    """Give an open app whose operation tells how many requests run, and whose requests are counted there."""
    maintenance, app = Maintenance(backend=MemoryBackend()), FastAPI()
    maintenance.snapshot.in_flight = in_flight
    app.router.route_class = maintenance.route_class

    async def running():
        return [worker.in_flight for worker in await in_flight.workers()]

    app.get("/x")(running)
    return TestClient(app)


@pytest.mark.parametrize("kind", [Entered, Left])
def test_a_way_of_counting_of_somebodys_own_is_asked_each_time(kind):
    """A subclass that overrides one of `enter` and `leave` is asked by each request, also after it is a worker."""
    in_flight = kind()
    client = counting(in_flight)
    assert [client.get("/x").json() for _ in range(3)] == [[1]] * 3
    assert in_flight.told == [kind.tells] * 3


class Unmade(InFlight):
    """A user's own that has all of its ways and calls nothing of its parent, also as it is made."""

    def __init__(self):
        self.ids = set()

    def join(self):
        """Be a worker."""

    def enter(self, request):
        """Count a request in."""
        self.ids.add(id(request))
        return True

    def leave(self, request):
        """Count a request out."""
        self.ids.remove(id(request))

    async def workers(self):
        """Give this process."""
        return (Worker("own", 1, bool(self.ids), in_flight=len(self.ids)),)


class Unjoined(InFlight):
    """A user's own that does nothing as it joins."""

    def join(self):
        """Do nothing."""


@pytest.mark.parametrize("kind", [Unmade, Unjoined])
def test_a_way_of_counting_of_somebodys_own_may_do_without_its_parent(kind):
    """A subclass that does not call what it overrides, its `__init__` as well, counts as it does by itself."""
    in_flight = kind()
    client = counting(in_flight)
    assert [client.get("/x").json() for _ in range(3)] == [[1]] * 3
    assert [worker.in_flight for worker in asyncio.run(in_flight.workers())] == [0]


class Delegating:
    """No `InFlight` itself, but one stands behind it, and it tells who comes and who goes."""

    def __init__(self):
        self.behind, self.told = InFlight(), []

    def __getattr__(self, name):
        return getattr(self.behind, name)

    def enter(self, request):
        """Count a request in."""
        self.told.append("enter")
        return self.behind.enter(request)

    def leave(self, request):
        """Count a request out."""
        self.told.append("leave")
        self.behind.leave(request)


def test_who_stands_before_another_way_of_counting_is_asked_each_time():
    """What is no `InFlight` itself is asked by each request whether it may come in, and told that it goes."""
    in_flight = Delegating()
    client = counting(in_flight)
    assert [client.get("/x").json() for _ in range(3)] == [[1]] * 3
    assert in_flight.told == ["enter", "leave"] * 3


@pytest.mark.parametrize("again", ["part", "after_fork"])
def test_the_next_request_is_a_worker_again(again):
    """Who has left, or was forked, is no worker, and is one again with the next request; none is counted twice."""
    in_flight = InFlight()
    client = counting(in_flight)
    first = [client.get("/x").json() for _ in range(2)]
    getattr(in_flight, again)()
    left = asyncio.run(in_flight.workers())
    assert (first, left, [client.get("/x").json() for _ in range(2)]) == ([[1]] * 2, (), [[1]] * 2)
    assert in_flight.operations() == ()


def test_a_copy_counts_for_itself():
    """Requests of a copy are those of the copy, and all of them are counted."""
    in_flight = InFlight()
    assert counting(in_flight).get("/x").json() == [1]
    copied = copy.deepcopy(in_flight)
    assert [counting(copied).get("/x").json() for _ in range(2)] == [[1]] * 2
    assert copied.operations() == in_flight.operations() == ()


@pytest.mark.parametrize("meanwhile", ["join", "part", "after_fork"])
@pytest.mark.parametrize("before", [False, True])
def test_who_was_counted_is_counted_out_whatever_came_between(before, meanwhile):
    """A request that ends after the process became a worker, or was none any more, leaves nothing behind."""
    in_flight = InFlight()
    if before:
        in_flight.join()
    passage = Passage(None, {"method": "GET", "path": "/op"}, in_flight)
    in_flight.enter(passage)
    getattr(in_flight, meanwhile)()
    passage.leave()
    assert in_flight.operations() == ()
    assert asyncio.run(in_flight.drained("a hold"))
