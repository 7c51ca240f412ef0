"""Redis behind sentinels, in a cluster, over TLS, on a socket, and Valkey; errors that say what to do."""

import contextlib
import itertools
import re
import socket
import ssl
import threading
from contextlib import asynccontextmanager
from types import SimpleNamespace

import anyio
import pytest
import trustme

from fastapi_maintenance import BackendError, Maintenance
from fastapi_maintenance.backends import RedisBackend
from fastapi_maintenance.backends.redis.clients import factory_of
from fastapi_maintenance.backends.redis.link import Link, OutOfContact
from fastapi_maintenance.backends.redis.reasons import Explainer, only_refuses
from fastapi_maintenance.backends.redis.urls import target_of
from tests.redis_servers import (
    Cluster,
    Sentinel,
    Sentinels,
    Server,
    eventually,
    free_port,
    needs_cluster,
    needs_redis,
    needs_valkey,
    redis,
    redis_server,
    running,
    url_of,
)
from tests.servers import ROOT
from tests.test_redis_backend import ACL
from tests.waiting import PATIENCE, until

pytestmark = [needs_redis, pytest.mark.anyio]

STATE = "{fastapi_maintenance:default}:state"
CLUSTER_ACL = "+cluster|slots +command"
SECRET = "s3cr3t"  # noqa: S105 - a test's
numbers = itertools.count()


@pytest.fixture
def anyio_backend():
    """Run on one event loop: the thread that talks to Redis has its own."""
    return "asyncio"


@pytest.fixture
def make():
    """Give a function that makes an object on a URL; the threads end with the test."""
    made = []

    def maintenance(url, timeout=PATIENCE):
        made.append(RedisBackend(url, timeout=timeout))
        return Maintenance(backend=made[-1])

    yield maintenance
    for backend in made:
        backend.close()


@pytest.fixture(scope="module")
def lasting():
    """Give what ends the servers of this module."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def plain(tmp_path_factory, lasting):
    """Give a server with a password, users of few rights, and a socket."""
    folder = tmp_path_factory.mktemp("plain")
    options = ("--requirepass", SECRET, "--unixsocket", str(folder / "socket"))
    server = lasting.enter_context(redis_server(folder, *options, password=SECRET))
    for user, *rights in (
        ("mute", "~*", "&*", "+ping", "+subscribe"),
        ("scripts", "~*", "&*", "+ping", "+subscribe", "+eval", "+evalsha"),
        ("elsewhere", "~other*", "&*", "+@all"),
        ("deaf", "~*", "+@all"),
        ("cluster", *ACL.split()),
    ):
        server.do("ACL", "SETUSER", user, "on", f">{SECRET}", *rights)
    return server


@pytest.fixture(scope="module")
def open_to_all(tmp_path_factory, lasting):
    """Give a server without a password."""
    return lasting.enter_context(redis_server(tmp_path_factory.mktemp("open")))


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory, lasting):
    """Give a primary with its replica and sentinels."""
    return Sentinels(tmp_path_factory.mktemp("sentinels"), lasting)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, lasting):
    """Give a cluster."""
    return Cluster(tmp_path_factory.mktemp("cluster"), lasting)


class Certificates:
    """A private authority in a directory, and what it has signed.

    Attributes:
        ca: The authority.
        other: Another one.
        client: Key and certificate of a client.
    """

    def __init__(self, folder):
        self._folder, self._authority = folder, trustme.CA()
        self.ca, self.other = folder / "ca", folder / "other"
        self._authority.cert_pem.write_to_path(self.ca)
        trustme.CA().cert_pem.write_to_path(self.other)
        self.client = self.signed("client")

    def signed(self, name):
        """Give key and certificate for a name, in one file."""
        path = self._folder / name
        self._authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(path)
        return path

    def options(self, name="127.0.0.1"):
        """Give the command line of a server that proves to have this name, and what its clients have to know."""
        mine = self.signed(name)
        files = ("--tls-cert-file", str(mine), "--tls-key-file", str(mine), "--tls-ca-cert-file", str(self.ca))
        known = {"ssl_ca_certs": self.ca, "ssl_certfile": self.client, "ssl_keyfile": self.client}
        options = ("--port", "0", "--tls-port", "{port}", "--tls-auth-clients", "no", *files)
        return options, {"ssl": True, "ssl_check_hostname": False, **known}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Give certificates."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls(tmp_path_factory, lasting, certificates):
    """Give a server that speaks TLS."""
    options, known = certificates.options()
    return lasting.enter_context(redis_server(tmp_path_factory.mktemp("tls"), *options, **known))


@pytest.fixture(scope="module")
def asking(tmp_path_factory, lasting, certificates):
    """Give a server that asks its clients for certificates."""
    options, known = certificates.options()
    options = (*options, "--tls-auth-clients", "yes")
    return lasting.enter_context(redis_server(tmp_path_factory.mktemp("asking"), *options, **known))


@pytest.fixture(scope="module")
def misnamed(tmp_path_factory, lasting, certificates):
    """Give a server whose certificate is another's."""
    options, known = certificates.options("elsewhere.example")
    return lasting.enter_context(redis_server(tmp_path_factory.mktemp("misnamed"), *options, **known))


@asynccontextmanager
async def worker(maintenance):
    """Be a worker, as a lifespan makes one."""
    async with maintenance.lifespan():
        yield maintenance.snapshot.in_flight


def stale(maintenance):
    """Tell for how long the store was not heard."""
    maintenance.last_known_mode()
    return maintenance.snapshot.stale


def follows(primary):
    """Tell whether the replica of a primary has all of it."""
    told = primary.do("INFO", "replication")
    return told["slave0"]["offset"] == told["master_repl_offset"]


async def does_everything(make, url):
    """Look at the state, the push, the lease and the drain."""
    here, there = make(url), make(url)
    async with worker(there) as in_flight:
        pushes = there.backend._fleet._pushes
        await here.enable(message="kept")
        await until(lambda: there.last_known_mode() == "full" and there.backend._fleet._pushes > pushes)
        assert (await there.status()).message == "kept"
        await here.disable()
        await until(lambda: in_flight.enter("request"))
        in_flight.leave("request")
        async with here.on(drain=PATIENCE) as hold:
            assert not in_flight.enter("another")
            assert [held.id for held in (await there.status()).holds] == [hold.id]
            assert len(await here.workers()) == 1
        await until(lambda: there.last_known_mode() is None)


# Where the state can be


@pytest.mark.parametrize("program", ["redis-server", pytest.param("valkey-server", marks=needs_valkey)])
async def test_every_server_does_everything(make, tmp_path, program):
    """State, push, lease and drain are the same on Redis and on Valkey."""
    with redis_server(tmp_path, program=program) as server:
        await does_everything(make, server.url())


@pytest.mark.parametrize(
    "how",
    ["socket", "sentinels", *(pytest.param(how, marks=needs_cluster) for how in ("cluster", "cluster and a user"))],
)
async def test_every_way_to_a_server_does_everything(make, request, how):
    """State, push, lease and drain are the same on a socket, behind sentinels and in a cluster."""
    prefix = f"p{next(numbers)}"
    if how == "socket":
        plain = request.getfixturevalue("plain")
        url = url_of(f"unix://:{SECRET}@{plain.directory}/socket", prefix=prefix)
    elif how == "sentinels":
        url = request.getfixturevalue("sentinels").url(prefix=prefix)
    else:
        cluster = request.getfixturevalue("cluster")
        url = cluster.url(prefix=prefix)
        if "user" in how:
            for node in cluster.nodes:
                rights = ACL.replace("fastapi_maintenance", prefix).split() + CLUSTER_ACL.split()
                node.do("ACL", "SETUSER", "gate", "on", f">{SECRET}", *rights)
            url = url.replace("//", f"//gate:{SECRET}@")
    await does_everything(make, url)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tls", {"ssl_ca_certs": "ca"}),
        ("tls", {"ssl_cert_reqs": "none"}),
        ("misnamed", {"ssl_ca_certs": "ca", "ssl_check_hostname": "false"}),
        ("asking", {"ssl_ca_certs": "ca", "ssl_certfile": "client", "ssl_keyfile": "client"}),
    ],
)
async def test_tls_as_redis_py_spells_it(make, request, certificates, name, options):
    """A private authority, a client's certificate, a name that is not looked at: the query says it."""
    query = {key: getattr(certificates, value, value) for key, value in options.items()}
    server = request.getfixturevalue(name)
    status = await make(url_of(f"rediss://127.0.0.1:{server.port}/0", **query)).enable()
    assert server.do("HGET", STATE, "revision") == str(status.revision)


@pytest.mark.parametrize("how", ["sentinel", "cluster"])
async def test_sentinels_and_clusters_over_tls(make, tls, certificates, tmp_path, how):
    """The sentinels, and the nodes of a cluster, are spoken to with the same options as the server of the state."""
    options, known = certificates.options()
    if how == "sentinel":
        names = [option.removeprefix("--") for option in options[::2]]
        lines = [f"{name} {value}" for name, value in zip(names, options[1::2], strict=True) if name != "tls-port"]
        watched = f"sentinel monitor gate 127.0.0.1 {tls.port} 1"
        (tmp_path / "sentinel.conf").write_text("\n".join([*lines, "tls-replication yes", watched]))
        server = Sentinel(tmp_path, "--tls-port", "{port}", "--port", "0", **known)
    else:
        bus = ("--tls-cluster", "yes", "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
        server = Server(tmp_path, *options, *bus, **known)
    with running(server):
        if how == "cluster":
            server.do("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            eventually(lambda: "ok" in str(server.do("CLUSTER", "INFO")).partition("cluster_state")[2][:6])
        service = "/gate" if how == "sentinel" else ""
        url = f"rediss+{how}://127.0.0.1:{server.port}{service}"
        # With a longer lease an answer may take longer: a busy machine opens encrypted connections slowly.
        await does_everything(make, url_of(url, ssl_ca_certs=certificates.ca, prefix=how, lease=10))


# When they fail over


async def test_a_failover_of_the_sentinels(make, tmp_path):
    """When the primary is killed, what is known holds, nobody comes in unseen, and it comes back by itself."""
    with contextlib.ExitStack() as stack:
        sentinels = Sentinels(tmp_path, stack)
        here, there = (make(sentinels.url(lease=5)) for _ in range(2))
        patient = make(sentinels.url(lease=60, prefix="patient"))
        async with worker(there) as in_flight, patient.on() as kept:
            await here.enable(message="kept")
            async with here.on(drain=PATIENCE) as hold:
                written = sentinels.primary.do("HGET", STATE, "revision")
                await until(lambda: sentinels.replica.do("HGET", STATE, "revision") == written)
                sentinels.primary.kill()
                await until(lambda: stale(there) is not None)
                with anyio.fail_after(PATIENCE):
                    while stale(there) is not None:
                        assert there.last_known_mode() == "full"
                        assert hold.lost or not in_flight.enter("request")
                        await anyio.sleep(0.005)
                assert hold.lost or hold.id in {held.id for held in (await here.status()).holds}
            assert (await there.status()).message == "kept"
            assert [held.id for held in (await patient.backend.read_state()).holds] == [kept.id]
            assert not kept.lost
            await here.disable()
            await until(lambda: in_flight.enter("request"))
            in_flight.leave("request")
        assert sentinels.replica.do("INFO", "replication")["role"] == "master"


@needs_cluster
async def test_a_slot_that_is_moved(make, cluster):
    """When our keys move to another node, changes, pushes and a hold go on."""
    here, there = (make(cluster.url(lease=10)) for _ in range(2))
    async with worker(there) as in_flight, here.on(drain=PATIENCE) as hold:
        owner = cluster.owner()
        cluster.move_ours(cluster.another())
        pushes = there.backend._fleet._pushes
        await here.enable(message="moved")
        await until(lambda: there.backend._fleet._pushes > pushes)
        assert not in_flight.enter("request")
        assert not hold.lost
        assert (await there.status()).message == "moved"
        await here.disable()
        cluster.move_ours(owner)


@needs_cluster
async def test_a_killed_node_of_a_cluster(make, cluster):
    """When the node with our keys is killed, what is known holds until its replica has taken over."""
    here, there = (make(cluster.url(lease=10)) for _ in range(2))
    async with worker(there):
        await here.enable(message="kept")
        await until(lambda: there.last_known_mode() == "full")
        owner = cluster.owner()
        await until(lambda: follows(owner))
        owner.kill()
        await until(lambda: stale(there) is not None)
        with anyio.fail_after(PATIENCE):
            while stale(there) is not None:
                assert there.last_known_mode() == "full"
                await anyio.sleep(0.005)
        pushes = there.backend._fleet._pushes
        await here.enable(message="again")
        await until(lambda: there.backend._fleet._pushes > pushes)
        assert (await there.status()).message == "again"
        assert cluster.owner() is not owner
        owner.start()
        await here.disable()


# Errors


@pytest.fixture
def stranger():
    """Give the port of something that speaks HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(65536)
                        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield SimpleNamespace(port=listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


AT_ONCE = [
    ("plain", "redis://:wr0ng@{}/0", "does not accept this user and password"),
    ("plain", "redis://joe:wr0ng@{}/0", "does not accept this user and password"),
    ("plain", "redis://{}/0", "does not accept this user and password"),
    ("plain", "redis://mute:s3cr3t@{}/0", "does not permit it .*'evalsha'"),
    ("plain", "redis://scripts:s3cr3t@{}/0", "does not permit it .*command"),
    ("plain", "redis://elsewhere:s3cr3t@{}/0", "does not permit it .*key"),
    ("plain", "redis://deaf:s3cr3t@{}/0", "does not permit it .*channel"),
    ("open_to_all", "redis://{}/99", "has no database of this number"),
    ("open_to_all", "redis+cluster://{}", "is no cluster: leave [+]cluster out"),
    ("open_to_all", "redis+sentinel://{}/gate", "is no sentinel: name the port of one"),
    ("another", "redis://{}", "is a node of a cluster: write redis[+]cluster://"),
    ("sentinel", "redis://{}", "does not know the command EVALSHA: it must be Redis 6"),
    ("stranger", "redis://{}", "answers, but not as Redis does: check the port"),
    ("tls", "rediss://{}", "certificate that is not accepted .self.signed.*: name its authority with ssl_ca_certs"),
    ("tls", "rediss://{}?ssl_ca_certs=OTHER", "certificate that is not accepted"),
    ("tls", "rediss://{}?ssl_ca_certs=/missing", "needs a file that is missing: check ssl_ca_certs"),
    ("misnamed", "rediss://{}?ssl_ca_certs=CA", "certificate that is not accepted .*127.0.0.1"),
]
"""Server, URL, and what is said of what no waiting mends."""

IN_TIME = [
    (None, "redis://127.0.0.1:1", "has nobody listening: check host and port"),
    (None, "redis+cluster://127.0.0.1:1", "has nobody listening: check host and port"),
    (None, "redis://no-such-host.invalid", "has a host whose name is not known"),
    (None, "unix:///nowhere/socket", "unix:///nowhere/socket has no socket at this path"),
    (None, "redis+sentinel://127.0.0.1:1/gate", "has sentinels that do not answer"),
    ("sentinel", "redis+sentinel://{}/nobody", "know no primary nobody that is up: check the name of the service"),
    ("replica", "redis://{}", "is a replica, which takes no changes: name the primary"),
    ("tls", "redis://{}", "hung up: .*TLS is rediss://"),
    ("open_to_all", "rediss://{}", "gave no answer in time: .*TLS is rediss://"),
    ("asking", "rediss://{}?ssl_ca_certs=CA", "certificate"),
]
"""Server, URL, and what is said of what may end by itself."""


@pytest.fixture
def replica(tmp_path, open_to_all):
    """Give a replica."""
    with redis_server(tmp_path, "--replicaof", f"127.0.0.1 {open_to_all.port}") as server:
        yield server


@pytest.fixture
def sentinel(sentinels):
    """Give one of the sentinels."""
    return sentinels.sentinels[0]


@pytest.fixture
def another(cluster):
    """Give a node of the cluster that does not have our keys."""
    return cluster.another()


@pytest.mark.parametrize(
    ("name", "url", "said", "at_once"),
    [
        pytest.param(*case, at_once, marks=[needs_cluster] * (case[0] == "another"))
        for cases, at_once in ((AT_ONCE, True), (IN_TIME, False))
        for case in cases
    ],
)
async def test_what_is_wrong_is_said_with_what_to_do(make, request, certificates, name, url, said, at_once):
    """An error names the store and what to do; what no waiting mends is told at once, and no password ever."""
    port = request.getfixturevalue(name).port if name else 0
    url = url.format(f"127.0.0.1:{port}").replace("OTHER", str(certificates.other)).replace("CA", str(certificates.ca))
    maintenance = make(url, timeout=60 if at_once else 0.5)
    with anyio.fail_after(PATIENCE), pytest.raises(BackendError, match=said) as caught:
        await maintenance.enable()
    text = str(caught.value)
    assert text.startswith(f"RedisBackend: {url.partition(':')[0]}://")
    assert not {SECRET, "wr0ng", "user_script", "script", "Error"} & set(re.findall(r"\w+", text))


async def test_a_value_that_is_not_ours(make, open_to_all):
    """A key of another type is named by what to do, and never written over."""
    open_to_all.do("SET", "{strange:default}:state", "mine")
    maintenance = make(open_to_all.url(prefix="strange"))
    with pytest.raises(BackendError, match=r"has another value under one of our keys \(WRONGTYPE\): choose another"):
        await maintenance.enable()
    assert open_to_all.do("GET", "{strange:default}:state") == "mine"


async def test_no_memory(make, tmp_path):
    """A server that is full is told of as such."""
    with redis_server(tmp_path, "--maxmemory", "1") as server, pytest.raises(BackendError, match="is out of memory"):
        await make(server.url()).enable()


async def test_what_is_told_at_once_is_tried_again(make, plain):
    """With a wrong password everybody who asks is told at once; when it was put right, the same object works."""
    plain.do("ACL", "SETUSER", "late", "on", ">another", "~*", "&*", "+@all")
    maintenance = make(f"redis://late:{SECRET}@127.0.0.1:{plain.port}/0?prefix=late", timeout=60)
    for ask in (maintenance.backend.read_state, maintenance.enable, maintenance.backend.read_state):
        with anyio.fail_after(PATIENCE), pytest.raises(BackendError, match="does not accept this user"):
            await ask()
    plain.do("ACL", "SETUSER", "late", f">{SECRET}")
    with anyio.fail_after(PATIENCE):
        while stale(maintenance) is not None or not maintenance.backend.heard:
            await anyio.sleep(0.01)
    assert (await maintenance.enable()).active


async def test_who_refuses_all_is_not_asked_in_haste(make, plain):
    """A server that lets us in and then refuses is tried again ever more slowly, although it answered."""
    maintenance = make(f"redis://deaf:{SECRET}@127.0.0.1:{plain.port}/0?prefix=deaf")
    before = plain.do("INFO", "stats")["total_connections_received"]
    maintenance.backend._fleet.begin()
    await anyio.sleep(1.5)
    assert 0 < plain.do("INFO", "stats")["total_connections_received"] - before < 30


def test_the_command_says_at_once_what_is_wrong(monkeypatch, plain):
    """`fastapi-maintenance status` with a wrong password says so, and not that there was no answer."""
    pytest.importorskip("typer", reason="needs typer")
    from typer.testing import CliRunner  # noqa: PLC0415 - it may not be installed

    from fastapi_maintenance.cli import app  # noqa: PLC0415 - as above

    monkeypatch.setenv("FASTAPI_MAINTENANCE_BACKEND", f"redis://:wr0ng@127.0.0.1:{plain.port}/0")
    done = CliRunner().invoke(app, ["status"])
    assert done.exit_code == 2
    assert "does not accept this user and password: check both" in done.stderr


def raised(*errors):
    """Give the first of some errors, each of which came from the next."""
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


@pytest.mark.parametrize(
    ("error", "said", "lasts"),
    [
        (
            redis.ResponseError("Error running script (call to f_12ab): @user_script:33: @user_script: 33: Odd thing"),
            "rediss://host failed: ResponseError: Odd thing",
            False,
        ),
        (
            redis.ResponseError("Odd thing script: 7eb0d4fc53cc4624ddb2cb0a78576531d31241df, on @user_script:33."),
            "rediss://host failed: ResponseError: Odd thing.",
            False,
        ),
        (redis.ResponseError("MOVED 13774 10.0.0.1:6379"), "is a node of a cluster", True),
        (redis.ResponseError("Write commands not allowed after non deterministic commands"), "must be Redis 6", True),
        (redis.ResponseError("READONLY You can't write against a read only replica."), "is a replica", False),
        (redis.exceptions.ClusterDownError("The cluster is down"), "look at CLUSTER INFO", False),
        (redis.AuthenticationError("AUTH <password> called without any password configured"), "leave it out", True),
        (
            redis.sentinel.MasterNotFoundError("No master found for 'gate' : s - AuthenticationError('no')"),
            "has sentinels that do not accept us: check sentinel_username=",
            True,
        ),
        (
            raised(redis.ConnectionError("Error"), PermissionError(13, "denied")),
            "may not be reached by this user",
            False,
        ),
        (raised(redis.ConnectionError("Error"), ssl.SSLError(1, "WRONG_VERSION_NUMBER")), "speak this TLS", True),
        (
            raised(redis.ConnectionError("Error"), ssl.SSLError(1, "tlsv13 alert certificate required")),
            "does not accept this client's certificate: name one with ssl_certfile=",
            True,
        ),
        (redis.ConnectionError("max number of clients reached"), "raise its maxclients", False),
        (ValueError("it holds s3cr3t"), r"failed: ValueError: it holds \*\*\*", False),
    ],
)
def test_what_few_servers_say_is_explained(error, said, lasts):
    """What older servers and libraries say is told in the same words, without Redis' noise and without secrets."""
    reason = Explainer("rediss://host", (SECRET,)).explain(error)
    assert re.search(said, reason.text)
    assert reason.lasts is lasts


@pytest.mark.parametrize(
    ("error", "refuses"),
    [
        (redis.ResponseError("Odd thing"), True),
        (redis.exceptions.NoPermissionError("no permissions"), True),
        (redis.exceptions.MovedError("1 127.0.0.1:1"), True),
        (redis.ReadOnlyError("You can't write against a read only replica."), False),
        (redis.ResponseError("READONLY You can't write against a read only replica."), False),
        (redis.exceptions.ClusterDownError("The cluster is down"), False),
        (redis.exceptions.TryAgainError("Multiple keys request during rehashing of slot"), False),
        (redis.ConnectionError("Connection closed by server."), False),
        (TimeoutError(), False),
    ],
)
def test_another_server_is_asked_where_that_may_help(error, refuses):
    """A refusal is told to who asked; where another server may do it, or none was heard, it is tried once more."""
    assert only_refuses(error) is refuses


async def test_the_last_failure_is_told():
    """Who runs out of time is told what went wrong the last time, even where there is contact again at that moment."""
    link = Link(lambda: None, 1.0, Explainer("redis://host", ()))
    link._contact.set()

    async def fails():
        await anyio.sleep(0.001)
        raise OutOfContact("it is a replica")

    with pytest.raises(OutOfContact, match="it is a replica"):
        await link._bounded(fails, 0.1)


# URLs


def test_what_a_url_says_reaches_the_sentinels_and_their_primary():
    """Credentials and options are the primary's, those with `sentinel_` the sentinels', and TLS is both's."""
    url = "rediss+sentinel://u:p%2F@a,b:1/gate/3?max_connections=7&ssl_cert_reqs=none&sentinel_password=q"
    client = factory_of(target_of(url), 2.0)()
    pool = client.connection_pool
    assert (pool.service_name, pool.max_connections) == ("gate", 7)
    kept = pool.connection_kwargs
    assert [kept[key] for key in ("username", "password", "db", "ssl_cert_reqs")] == ["u", "p/", 3, "none"]
    asked = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"], one["password"], one["ssl_cert_reqs"]) for one in asked] == [
        ("a", 26379, "q", "none"),
        ("b", 1, "q", "none"),
    ]


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://host/1",
        "redis+cluster://host,/0",
        "redis+sentinel://host/gate?sentinel_nonsense=1",
        "redis://one,two/0",
        "redis://host/x",
        "redis://host/0#x",
        "redis:///0",
        "http://host",
    ],
)
def test_what_cannot_be_is_said_when_it_is_made(url):
    """What no cluster has, or no client of sentinels, no host or too many, are errors at construction."""
    with pytest.raises(ValueError, match="the Redis URL is malformed"):
        RedisBackend(url)


def test_a_whole_cluster_can_be_named():
    """Several nodes can be named, so that it does not matter which of them is there."""
    client = factory_of(target_of("rediss+cluster://:p@a,b:1"), 2.0)()
    assert {node.name for node in client.nodes_manager.startup_nodes.values()} == {"a:6379", "b:1"}


def test_the_acl_of_the_readme_is_the_one_that_is_tested():
    """The README lists what a user needs in a cluster."""
    assert f"`{CLUSTER_ACL}`" in (ROOT / "README.md").read_text()
