"""What a process makes of the store's answers: those that are late, in the wrong order, gone or no answers at all."""

import asyncio
import contextlib
import random
import threading
import time
from functools import partial
from weakref import WeakSet

import anyio
import anyio.to_thread
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from fastapi_maintenance import BackendError, DrainIncomplete, Maintenance
from fastapi_maintenance.backends import RedisBackend
from fastapi_maintenance.backends.redis.holds import Held
from fastapi_maintenance.backends.redis.link import AT_ONCE, Link, OutOfContact
from fastapi_maintenance.backends.redis.reasons import Explainer
from fastapi_maintenance.backends.redis.replies import Found, Known, Reply
from fastapi_maintenance.backends.redis.scripts import BEAT, CHANGE, LOOK, VOUCH
from fastapi_maintenance.backends.redis.urls import library
from fastapi_maintenance.forks import _Following
from fastapi_maintenance.state import OPEN, Hold, Switch, utcnow
from tests.redis_servers import LEASE, SHORT, Proxy, close, needs_redis
from tests.waiting import until

pytestmark = [needs_redis, pytest.mark.anyio]

PLACE = "{fastapi_maintenance:default}"
STATE, HOLDS, WORKERS, ACKS, RECORDS, NEWS = (
    f"{PLACE}:{key}" for key in ("state", "holds", "workers", "acks", "records", "news")
)


@pytest.fixture
def anyio_backend():
    """Run async tests once: it is the background thread that is played with."""
    return "asyncio"


class Stubborn:
    """A subscription of redis-py that takes the first cancellation for a time-out of its own."""

    def __init__(self, news):
        self.news, self.went_on = news, False

    async def get_message(self, **options):
        try:
            return await self.news.get_message(**options)
        except asyncio.CancelledError:
            self.went_on = True
            return await self.news.get_message(timeout=60)

    def __getattr__(self, name):
        return getattr(self.news, name)


class Between:
    """A client of redis-py, and a wire between it and the store."""

    def __init__(self, client, heard, wire):
        self.client, self.heard, self.wire = client, heard, wire

    def pubsub(self):
        return self.wire.subscribed(self.heard.pubsub())

    async def evalsha(self, sha, *rest):
        return await self.wire.asked(sha, partial(self.client.evalsha, sha, *rest))

    async def eval(self, source, *rest):
        return await self.client.eval(source, *rest)

    async def aclose(self):
        await self.heard.aclose()
        await self.client.aclose()


class Wire:
    """Holds scripts back on their way, or answers in the store's place."""

    def __init__(self, server):
        self.port = self.news_port = server.port
        self.waiting = []
        self.answers = {}
        self.made = []
        self.seen = []
        self.subscribed = lambda news: news
        # One function, so that all who are made with it share a thread.
        self.connect = self.client

    def client(self):
        """Make a client, in between."""
        client = partial(library().Redis, socket_timeout=1)
        return Between(client(port=self.port), client(port=self.news_port), self)

    def make(self, **options):
        """Make an object whose backend talks through this."""
        self.made.append(RedisBackend(client_factory=self.client, **{"lease": 30, "timeout": 5, **options}))
        return Maintenance(backend=self.made[-1])

    async def asked(self, sha, ask):
        """Ask in the background thread, when the test lets it."""
        self.seen.append(sha)
        stop = next((stop for stop in self.waiting if stop.sha == sha and not stop.reached.is_set()), None)
        if stop is None:
            return self.answers[sha] if sha in self.answers else await ask()
        if stop.before:
            await stop.wait()
        answer = await ask()
        for late in self.waiting:
            if late.sha == sha and not late.before and (late is stop or not late.reached.is_set()):
                await late.wait()
                break
        return answer

    @contextlib.asynccontextmanager
    async def held_back(self, script, *, before=False):
        """Hold the next `script` back, before it is asked or its answer; give what waits and lets go, until the end."""
        stop = Stop(script.sha, before)
        self.waiting.append(stop)
        try:
            yield stop
        finally:
            stop.go.set()


class Stop:
    """Where a script is held back."""

    def __init__(self, sha, before):
        self.sha, self.before = sha, before
        self.reached, self.go, self.gone = threading.Event(), threading.Event(), threading.Event()

    async def wait(self):
        """Wait in the background thread."""
        self.reached.set()
        while not self.go.is_set():
            await asyncio.sleep(0.001)
        self.gone.set()


@pytest.fixture
def between(server):
    """Give what stands between objects and the server; the threads end with the test."""
    wire = Wire(server)
    yield wire
    close(wire.made)


@pytest.fixture
def make(server):
    """Give a function that makes an object on the server; the threads end with the test."""
    made = []

    def maintenance(**query):
        made.append(RedisBackend(server.url(**{"lease": 30, **query})))
        return Maintenance(backend=made[-1])

    yield maintenance
    close(made)


# Answers that come late


async def test_a_late_answer_brings_nothing_back(between):
    """What was said before a change, and heard after it, is not believed."""
    here = between.make()
    assert not (await here.status()).active
    async with anyio.create_task_group() as tasks, between.held_back(LOOK) as late:
        tasks.start_soon(here.backend.read_state)
        await until(late.reached.is_set)
        await here.enable()
        late.go.set()
    assert here.backend.peek_state().switch is not None


async def test_an_answer_that_a_push_overtook_is_asked_again(between, make):
    """What the store said before another process closed it opens nothing, though it is heard after the push."""
    here, other = between.make(), make()
    await other.disable()
    await other.enable()
    await other.disable()
    read = []

    async def ask():
        read.append(await here.backend.read_state())

    assert not (await here.status()).active
    async with anyio.create_task_group() as tasks, between.held_back(LOOK) as late:
        tasks.start_soon(ask)
        await until(late.reached.is_set)
        await other.enable()
        await until(lambda: here.backend.peek_state().switch is not None)
        late.go.set()
    assert read[0].switch is not None


async def test_a_change_whose_answer_a_push_overtook_is_asked_again(between, make):
    """A change is followed by another one's before its answer is heard: what is known then is the later one."""
    here, other = between.make(), make()
    await here.enable()
    await here.disable()
    async with (
        anyio.create_task_group() as tasks,
        between.held_back(CHANGE, before=True) as early,
        between.held_back(CHANGE) as late,
    ):
        tasks.start_soon(partial(here.enable, message="first"))
        await until(early.reached.is_set)
        async with between.held_back(LOOK, before=True):
            early.go.set()
            await until(late.reached.is_set)
            await other.enable(message="second")
            await until(lambda: here.backend.peek_state().switch is not None)
            late.go.set()
            await until(late.gone.is_set)
    assert here.backend.peek_state().switch.message == "second"


async def test_an_answer_older_than_a_push_settles_nothing(monkeypatch):
    """Whether it answers a look or a change, what came before a push is not taken, and the store is asked again."""
    fleet = RedisBackend("redis://127.0.0.1:1/0")._fleet
    known = Known("line", "pushed", OPEN.model_copy(update={"revision": 5}))
    before = [1, 1, "era", "line", 4, "before", "", []]

    async def answered(*args, **kwargs):
        fleet._pushes += 1
        return before

    monkeypatch.setattr(fleet, "_known", known)
    monkeypatch.setattr(fleet, "_script", answered)
    assert fleet._apply(Reply.of(before), 1, fleet._pushes - 1)
    assert await fleet._write(Found(known, frozenset(), OPEN), OPEN, "mine", ())
    assert (fleet._known, fleet._wake.is_set()) == (known, True)


async def test_an_answer_without_the_document_that_was_known_is_asked_again(between, make, server):
    """The store leaves out the document that one knows; when one knows another by then, it is asked for."""
    here, other = between.make(), make()
    await here.enable(message="first")
    read = []

    async def ask():
        read.append(await here.backend.read_state())

    async with (
        anyio.create_task_group() as tasks,
        between.held_back(LOOK, before=True) as early,
        between.held_back(LOOK) as late,
        between.held_back(LOOK, before=True) as later,
    ):
        server.do("PUBLISH", NEWS, "")
        await until(early.reached.is_set)
        tasks.start_soon(ask)
        await until(late.reached.is_set)
        server.do("FLUSHALL")
        await other.enable(message="of another line")
        early.go.set()
        await until(later.reached.is_set)
        assert here.backend.peek_state().switch.message == "of another line"
        late.go.set()
        await until(late.gone.is_set)
    assert read[0].switch.message == "of another line"


# Documents


@pytest.mark.parametrize("document", [None, "{", "[]"], ids=["gone", "cut short", "a list"])
async def test_a_document_that_is_damaged_keeps_the_last_known(server, make, document):
    """A document that cannot be read is a failure, told to who asks, and never off; it is not asked for on and on."""
    here, fresh = make(), make(prefix="fastapi_maintenance")
    await here.enable()
    server.do("HDEL", STATE, "document")
    server.do("HSET", STATE, "stamp", "another", *(("document", document) if document else ()))
    before = server.do("INFO", "commandstats")["cmdstat_evalsha"]["calls"]
    for maintenance in (here, fresh):
        with pytest.raises(BackendError, match="the document cannot be read"):
            await maintenance.backend.read_state()
    assert server.do("INFO", "commandstats")["cmdstat_evalsha"]["calls"] < before + 10
    assert (await here.status()).active


async def test_a_document_that_has_lost_its_stamp_is_one(server, make):
    """A document whose name was deleted by hand counts for those who know it and for newcomers, and can be changed."""
    here, fresh = make(), make(prefix="fastapi_maintenance")
    await here.enable()
    server.do("HDEL", STATE, "stamp")
    assert (await here.backend.read_state()).switch is not None
    assert (await fresh.backend.read_state()).switch is not None
    assert not (await here.disable()).active


async def test_an_answer_that_is_none_breaks_the_contact_off_and_is_got_over(between):
    """Nonsense in place of an answer is an outage like any other, and ends with it."""
    here = between.make(lease=0.6)
    await here.enable()
    between.answers[LOOK.sha] = None
    await until(lambda: here.last_known_mode() and here.snapshot.stale is not None)
    del between.answers[LOOK.sha]
    await until(lambda: here.last_known_mode() and here.snapshot.stale is None)


async def test_a_deaf_subscription_is_noticed(between, server):
    """Pushes that come no more break the contact off, though scripts are answered: another subscription is made."""
    proxy = Proxy(server.port)
    between.news_port = proxy.port
    here = between.make(lease=1.5)
    try:
        await here.enable()
        proxy.open.clear()
        await until(lambda: here.last_known_mode() and here.snapshot.stale is not None)
        proxy.open.set()
        await until(lambda: here.last_known_mode() and here.snapshot.stale is None)
    finally:
        proxy.close()


async def test_who_begins_while_others_subscribe_hears_what_is_published(between, server):
    """An object that is used first while another one's subscription is under way has one of its own, too."""
    reached, go = threading.Event(), threading.Event()

    class Late:
        def __init__(self, news):
            self.news = news

        async def subscribe(self, *channels):
            reached.set()
            while not go.is_set():
                await asyncio.sleep(0.001)
            await self.news.subscribe(*channels)

        def __getattr__(self, name):
            return getattr(self.news, name)

    between.subscribed = Late
    first, second = (RedisBackend(client_factory=between.connect, scope=scope) for scope in ("first", "second"))
    between.made += [first, second]
    first._fleet.begin()
    await until(reached.is_set)
    second._fleet.begin()
    go.set()
    await until(lambda: first.heard and second.heard)
    await until(lambda: len(server.do("PUBSUB", "CHANNELS")) == 2)


async def test_with_a_short_lease_the_store_is_tried_again_in_time(between):
    """Whoever waits for its server is back before a drain relies on all having been heard: 0.4 leases."""
    tries = []

    def fail():
        tries.append(time.monotonic())
        raise ConnectionError

    backend = RedisBackend(client_factory=fail, lease=0.6)
    between.made.append(backend)
    backend._fleet.begin()
    with anyio.fail_after(8):
        await until(lambda: len(tries) > 20)


async def test_a_cancellation_that_is_lost_keeps_no_contact_away(between, server):
    """When the library loses the cancellation of a read, the contact that was broken off is made anew all the same."""
    subscriptions = []

    def subscribed(news):
        subscriptions.append(Stubborn(news))
        return subscriptions[-1]

    between.subscribed = subscribed
    here = between.make()
    await here.enable()
    between.answers[LOOK.sha] = None
    server.do("PUBLISH", NEWS, "")
    await until(lambda: subscriptions[0].went_on)
    del between.answers[LOOK.sha]
    with anyio.fail_after(5):
        assert (await here.backend.read_state()).switch is not None


# Changes


async def test_a_connection_that_comes_while_others_are_closed_is_closed_as_well(server):
    """A question that was connecting when the contact broke off leaves no connection behind."""
    from redis.asyncio.retry import Retry  # noqa: PLC0415 - the module is skipped where redis-py is not installed
    from redis.backoff import NoBackoff  # noqa: PLC0415 - as above

    redis, made, free = library(), [], threading.Event()
    free.set()

    class Slow(redis.Connection):
        async def connect(self):
            if self not in made:
                made.append(self)
                while not free.is_set():
                    await asyncio.sleep(0.001)
            await super().connect()

    def connect():
        options = {"port": server.port, "retry": Retry(NoBackoff(), 0)}
        return redis.Redis.from_pool(redis.ConnectionPool(connection_class=Slow, **options))

    backend = RedisBackend(client_factory=connect)
    await backend.read_state()
    first, still = list(made), threading.Event()
    free.clear()
    backend._fleet._link.soon(still.wait)
    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            # So many at the same time need connections that are not there yet.
            group.start_soon(backend.read_state)
        await anyio.lowlevel.checkpoint()
        still.set()
        await until(lambda: len(made) > len(first))
        server.do("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: not any(each.is_connected for each in first))
        free.set()
    close([backend])
    assert not any(each.is_connected for each in made)


async def test_who_waited_for_a_turn_asks_in_the_next_session(make, server):
    """A question that waits for its turn while the contact breaks off is not asked in a session that others close."""
    backend = make().backend
    await backend.read_state()
    link = backend._fleet._link
    turns = link._turns

    def in_the_thread(coroutine):
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, link._loop))

    for _ in range(AT_ONCE):
        await in_the_thread(turns.acquire())
    asked = in_the_thread(link.script(LOOK, backend._fleet._keys, []))
    server.do("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: link._turns is not turns and link._contact.is_set())
    assert not asked.done()
    for _ in range(AT_ONCE):
        link.soon(turns.release)
    with pytest.raises(OutOfContact):
        await asked
    await backend.read_state()


async def test_a_change_that_changes_nothing_is_not_stored(server, make):
    """An edit that gives back what it was given writes nothing, and gives it."""
    state = await make().backend.change_state(lambda state: state)
    assert state is OPEN
    assert server.do("EXISTS", STATE) == 0


async def test_a_change_always_has_a_later_revision(make):
    """A document whose maker forgot to count is stored with the next revision, so that others hear of it."""
    here, other = make(), make()
    await here.enable()
    await here.disable()
    await other.status()
    made = OPEN.model_copy(update={"switch": Switch(since=utcnow(), message="made anew")})
    assert (await here.backend.change_state(lambda _: made)).revision == 3
    await until(lambda: other.backend.peek_state().switch is not None)


async def test_a_change_that_others_always_overtake_says_so(server, make):
    """A change gives up when its time is over and somebody else was faster each time."""
    here = make()
    await here.enable()
    here.backend._fleet._terms = here.backend._fleet._terms.__class__(30, 60, 0.2)
    stamps = iter(range(10**6))

    def overtaken(state):
        server.do("HSET", STATE, "stamp", f"another {next(stamps)}")
        return state.switched(utcnow(), on=False)

    with pytest.raises(BackendError, match="others changed it all the time; try again"):
        await here.backend.change_state(overtaken)
    assert server.do("HGET", STATE, "revision") == "1"


async def test_it_is_a_true_false_store_as_well(make):
    """The older package's two methods read and write the switch."""
    backend = make().backend
    assert not await backend.get_value()
    await backend.set_value(True)
    assert await backend.get_value()
    await backend.set_value(False)
    assert not await backend.get_value()


# Holds


async def test_a_hold_that_the_store_has_dropped_is_written_again(server, make):
    """A hold that Redis no longer lists begins again with its next renewal, before its owner relies on it no more."""
    here, other = make(lease=SHORT), make(lease=SHORT)
    async with here.on() as hold:
        assert server.do("ZREM", HOLDS, hold.id) == 1
        await until(lambda: server.do("ZSCORE", HOLDS, hold.id))
        assert not hold.lost
        assert [held.id for held in (await other.status()).holds] == [hold.id]
    assert server.do("ZCARD", HOLDS) == 0


@pytest.mark.parametrize("script", [LOOK, CHANGE], ids=["asked for", "written"])
async def test_a_hold_that_ends_while_it_is_written_again_stays_ended(between, server, script):
    """A hold that the store had dropped and whose block ends meanwhile is not begun again."""
    # A longer lease: a hold that is lost by the clock meanwhile is not written again at all.
    here = between.make(lease=2 * LEASE)
    async with contextlib.AsyncExitStack() as stack:
        async with here.on() as hold:
            server.do("ZREM", HOLDS, hold.id)
            async with between.held_back(VOUCH) as renewed:
                await until(renewed.reached.is_set)
                late = await stack.enter_async_context(between.held_back(script, before=True))
            await until(late.reached.is_set)
        late.go.set()
        await until(late.gone.is_set)
        between.seen.clear()
        server.do("PUBLISH", NEWS, "")
        await until(lambda: LOOK.sha in between.seen)
    assert (await here.backend.read_state()).holds == ()
    assert server.do("ZCARD", HOLDS) == 0


async def test_a_hold_is_lost_by_the_clock_while_its_thread_stands_still(between):
    """A body learns that the lease has run out although the thread that talks to Redis could not tell it."""
    here = between.make(lease=SHORT)
    still = threading.Event()
    async with here.on() as hold:
        assert not hold.lost
        here.backend._fleet._link.soon(still.wait)
        try:
            await until(lambda: hold.lost)
        finally:
            still.set()
    assert hold.lost


def test_who_watches_a_hold_that_is_lost_already_is_told_at_once():
    """A hold may be lost between its beginning and the first look at it."""
    held, told = Held(Hold(id="h", since=utcnow()), 0.0), []
    assert held.check()
    held.tell(lambda: told.append("lost"))
    assert told == ["lost"]


def test_a_hold_that_is_not_held_is_not_watched(make):
    """To watch a hold that has ended calls nobody, and is no error."""
    backend = make().backend
    backend.watch_hold("ended", lambda: pytest.fail("it was lost"))
    assert not backend.heard


async def test_a_hold_that_is_lost_while_it_drains_is_an_error(between, make, server):
    """When the holder is cut off while it waits for the others, it says that the hold was lost; the body never runs."""
    proxy = Proxy(server.port)
    between.port = between.news_port = proxy.port
    here, there = between.make(lease=3, timeout=3), make(lease=3)
    in_flight = there.snapshot.in_flight

    async def cut_off():
        # A renewal comes at once, and then rarely; who counts the workers asks again and again.
        await until(lambda: between.seen.count(VOUCH.sha) >= 10)
        proxy.open.clear()

    try:
        async with there.lifespan(), anyio.create_task_group() as tasks:
            assert in_flight.enter("request")
            tasks.start_soon(cut_off)
            with pytest.raises(BackendError, match="was lost while it drained"):
                await here.on(drain=20).__aenter__()
            in_flight.leave("request")
    finally:
        proxy.close()


# Workers


async def test_the_last_request_that_leaves_is_told_at_once(make, server):
    """While a hold closes, the fleet hears that nothing runs any more long before the next beat would tell it."""
    here, there = make(lease=60), make(lease=60)
    in_flight = there.snapshot.in_flight

    def idle():
        return [ack.split()[1] for ack in server.do("HVALS", ACKS)]

    async with there.lifespan():
        assert in_flight.enter("request")
        async with here.on():
            await until(lambda: idle() == ["0"])
            in_flight.leave("request")
            with anyio.fail_after(5):
                await until(lambda: idle() == ["1"])


async def test_a_worker_that_is_busy_says_no_goodbye(make, server):
    """A lifespan that ends while a request still runs leaves the worker in the register, so that a drain waits."""
    maintenance = make()
    async with maintenance.lifespan():
        assert maintenance.snapshot.in_flight.enter("request")
    assert server.do("ZCARD", WORKERS) == 1
    maintenance.snapshot.in_flight.leave("request")
    maintenance.snapshot.in_flight.part()
    assert server.do("ZCARD", WORKERS) == 0


async def test_who_comes_back_while_it_leaves_is_not_struck_off(between, server):
    """A request that comes while the goodbye waits for a beat makes it a worker again, and the goodbye is not said."""
    maintenance = between.make()
    in_flight = maintenance.snapshot.in_flight
    async with maintenance.lifespan():
        async with anyio.create_task_group() as tasks, between.held_back(BEAT) as late:
            server.do("PUBLISH", NEWS, "")
            await until(late.reached.is_set)
            tasks.start_soon(anyio.to_thread.run_sync, in_flight.part)
            await until(lambda: not in_flight.joined)
            in_flight.join()
            late.go.set()
        assert server.do("ZCARD", WORKERS) == 1
        await in_flight.wait_ready(5)
        assert in_flight.enter("request")
        in_flight.leave("request")


async def test_a_beat_that_came_after_the_goodbye_keeps_nobody_out(make, server):
    """A late beat that registered a worker again after its goodbye is overtaken by those of its next life."""
    maintenance = make()
    async with maintenance.lifespan():
        (worker,) = await maintenance.workers()
    server.do("HSET", RECORDS, worker.id, "9 {}")
    async with maintenance.lifespan():
        await until(lambda: server.do("HGET", RECORDS, worker.id) != "9 {}")
        await until(lambda: maintenance.snapshot.in_flight.ready)
        assert [listed.id for listed in await maintenance.workers()] == [worker.id]


async def test_a_drain_names_the_worker_that_says_nothing(make, server):
    """When the time is over and a worker has not heard of the hold, the error names it: it may be cut off."""
    proxy = Proxy(server.port)
    here = make(lease=60)
    there = RedisBackend(server.url(lease=60).replace(str(server.port), str(proxy.port)))
    try:
        async with Maintenance(backend=there).lifespan():
            proxy.open.clear()
            with pytest.raises(DrainIncomplete, match="no answer from") as caught:
                await here.on(drain=0.3).__aenter__()
            proxy.open.set()
    finally:
        there.close()
        proxy.close()
    assert len(caught.value.missing) == 1


# Beginning and ending


async def test_an_object_that_was_closed_begins_again_with_its_next_use(make):
    """Closing before the first use, or twice, is no error, and a later use works."""
    maintenance = make(lease=SHORT)
    maintenance.backend.close()
    assert (await maintenance.enable()).active
    maintenance.backend.close()
    maintenance.backend.close()
    assert (await maintenance.backend.read_state()).switch is not None
    assert not (await maintenance.disable()).active


def test_a_link_that_does_not_talk_does_nothing_for_anybody():
    """Before its first listener and after its last one, what is to be done in the thread is not done, or an error."""
    link = Link(library().Redis, 1.0, Explainer("Redis", ()))
    link.soon(lambda: pytest.fail("it was called"))
    with pytest.raises(OutOfContact, match="it is closed"):
        link.submit(lambda: pytest.fail("it was called"), 1.0)
    with pytest.raises(OutOfContact, match="no answer in time"):
        anyio.run(link.script, LOOK, (), ())


async def test_the_thread_of_a_closed_object_ends_and_no_goodbye_is_waited_for(make):
    """Closing in a lifespan ends the thread; the lifespan then ends without a goodbye, and at once."""
    maintenance = make(lease=SHORT)
    async with maintenance.lifespan():
        link = maintenance.backend._fleet._link
        maintenance.backend.close()
        await until(lambda: link._loop is None)
        began = time.monotonic()
    assert time.monotonic() - began < 0.9


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_who_was_closed_is_a_worker_again_with_the_next_request(make, server, busy):
    """Closing strikes it off unless requests run; the next request is decided by what Redis says then."""
    here, other = make(), make()
    in_flight = here.snapshot.in_flight
    client = TestClient(served := FastAPI(dependencies=[Depends(here.guard)]))
    served.get("/")(lambda: "hello")
    assert await anyio.to_thread.run_sync(lambda: client.get("/").status_code) == 200
    if busy:
        assert in_flight.enter("request")
    here.backend.close()
    assert server.do("ZCARD", WORKERS) == busy
    in_flight.leave("request")
    await other.enable()
    assert await anyio.to_thread.run_sync(lambda: client.get("/").status_code) == 503
    assert server.do("ZCARD", WORKERS) == 1


@pytest.mark.parametrize(
    ("worker", "record"), [("host:1:id", "1 nonsense"), ("host:1:id", "1 []"), ("nonsense", "1 {}")]
)
async def test_a_list_of_workers_that_is_damaged_is_an_error_of_the_backend(make, server, worker, record):
    """Who asks for the workers, or drains, is told; nothing else comes out."""
    here = make()
    async with here.lifespan():
        server.do("ZADD", WORKERS, 10**14, worker)
        server.do("HSET", RECORDS, worker, record)
        with pytest.raises(BackendError, match="the list of workers cannot be read"):
            await here.workers()
        with pytest.raises(BackendError, match="the list of workers cannot be read"):
            await here.on(drain=20).__aenter__()
        assert (await here.backend.read_state()).holds == ()


async def test_the_clock_of_a_hold_ends_with_it(make):
    """Until its lease is over it would else keep the object, and with it the thread, that nobody has any more."""
    here = make(lease=60)
    async with here.on() as hold:
        held = here.backend._fleet._held[hold.id]
    await until(lambda: held.timer is not None and held.timer.cancelled())


async def test_closing_while_somebody_waits_is_told(server, make):
    """Who waits for a change while the object is closed gets an error that says so."""
    maintenance = make(lease=SHORT)
    await maintenance.enable()
    server.pause()
    errors = []

    async def disable():
        try:
            await maintenance.disable()
        except BackendError as error:
            errors.append(str(error))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(disable)
            await anyio.wait_all_tasks_blocked()
            maintenance.backend.close()
    server.resume()
    assert [error for error in errors if "it was closed" in error]


def test_what_a_fork_makes_of_a_child(make, monkeypatch):
    """A child is another worker, has heard nothing yet and has nothing in flight; it begins with its own thread."""
    monkeypatch.setattr("fastapi_maintenance.forks._Following.followers", WeakSet())
    maintenance = make()
    in_flight = maintenance.snapshot.in_flight

    async def serve():
        async with maintenance.lifespan():
            assert in_flight.enter("request")
            return [(worker.id, worker.in_flight) for worker in await maintenance.workers()]

    ((parent, _),) = anyio.run(serve)
    maintenance.backend.close()
    _wait_for_its_end(maintenance)
    _Following.tell()
    assert not maintenance.backend.heard
    assert (in_flight.operations(), in_flight.joined, in_flight.ready) == ((), False, False)
    listed = dict(anyio.run(serve))
    assert len(listed) == 2
    assert parent in listed
    in_flight.leave("request")


def _wait_for_its_end(maintenance):
    async def ended():
        await until(lambda: maintenance.backend._fleet._link._loop is None)

    anyio.run(ended)


async def test_the_thread_leaves_the_random_numbers_of_others_alone(between):
    """What others draw from the global generator is the same with a thread that pauses for random times beside them."""
    here = between.make(lease=0.6)
    await here.enable()
    before = random.getstate()
    for _ in range(3):
        between.seen.clear()
        await until(lambda: LOOK.sha in between.seen)
    assert random.getstate() == before
