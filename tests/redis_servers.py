"""Real Redis servers: how tests start them on free ports, and what they do to them."""

import contextlib
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.servers import PATIENCE

redis = pytest.importorskip("redis", reason="needs redis-py")


def needs(program, package):
    """Give the mark of a test that needs a program."""
    missing = shutil.which(program) is None
    return pytest.mark.skipif(missing, reason=f"needs {program} (Debian: apt-get install {package})")


needs_redis = needs("redis-server", "redis-server")
needs_cluster = needs("redis-cli", "redis-tools")
needs_valkey = needs("valkey-server", "valkey-server")

LEASE = 3.0
"""Seconds; long enough for a busy machine."""

SHORT = 1.5
"""Seconds; for what waits until a lease has ended."""


def free_port():
    """Give a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def url_of(base, **query):
    """Give a URL with what the query says, and our lease."""
    return f"{base}?{urlencode({'lease': LEASE, **query})}"


class Server:
    """A redis-server (or valkey-server) of our own, with an append-only log in its directory.

    Args:
        directory: Where it writes.
        options: More of its command line.
        program: Which one.
        client_options: What clients have to know of it.
    """

    def __init__(self, directory: Path, *options, program="redis-server", **client_options):
        self.directory, self.options, self.port = directory, options, free_port()
        self.program, self.client_options = shutil.which(program), client_options
        self.process = None

    def url(self, **query):
        """Give the URL for the backend."""
        return url_of(f"redis://127.0.0.1:{self.port}/0", **query)

    def command(self):
        """Give the command line; the last one of two options that are the same counts."""
        # A replica need not wait for others.
        plain = ("--save", "", "--repl-diskless-sync-delay", "0")
        return [self.program, *self.where(), *plain, *self.more()]

    def where(self):
        """Give the part of it that says where it is."""
        return ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory))

    def more(self):
        """Give the options."""
        return [option.format(port=self.port) for option in self.options]

    def start(self):
        """Start it, again on the same port and the same log."""
        with (self.directory / "redis.log").open("a") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log)  # noqa: S603 - our own
        eventually(self.answers)

    def client(self):
        """Give a client."""
        return redis.Redis(**{"port": self.port, "decode_responses": True, **self.client_options})

    def answers(self):
        """Tell whether it is up."""
        with contextlib.suppress(redis.exceptions.ConnectionError), self.client() as client:
            return client.ping()

    def do(self, *command):
        """Run one command."""
        with self.client() as client:
            return client.execute_command(*command)

    def send(self, number):
        """Send the process a signal."""
        self.process.send_signal(number)

    def pause(self):
        """Stop it without ending it."""
        self.send(signal.SIGSTOP)

    def resume(self):
        """Let it go on."""
        self.send(signal.SIGCONT)

    def kill(self):
        """End it at once."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def drop_connections(self):
        """Kill all connections but the one that asks."""
        self.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        self.do("CLIENT", "KILL", "TYPE", "pubsub")


class Proxy:
    """Passes bytes on to a port, until it is told to pass none."""

    def __init__(self, target):
        self.target, self.open = target, threading.Event()
        self.open.set()
        self.sockets = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client):
        # Where nobody is behind, the client is hung up on.
        connected = contextlib.suppress(OSError)
        with connected, client, socket.create_connection(("127.0.0.1", self.target)) as server:
            self.sockets += [client, server]
            threading.Thread(target=self._pass, args=(server, client), daemon=True).start()
            self._pass(client, server)

    def _pass(self, source, sink):
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(65536):
                self.open.wait()
                sink.sendall(data)

    def close(self):
        """Accept nobody any more."""
        self.open.set()
        for opened in (self.listener, *self.sockets):
            # Whoever reads from it wakes up.
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()


def redis_server(directory, *options, **more):
    """Start a server of our own for the time of a block."""
    return running(Server(directory, *options, **more))


@contextlib.contextmanager
def running(server):
    """Start a server for the time of a block."""
    try:
        server.start()
        yield server
    finally:
        server.resume()
        server.kill()


class Sentinel(Server):
    """A sentinel of our own; the configuration that it writes again is in its directory."""

    def command(self):
        """Give the command line."""
        return [self.program, self.directory / "sentinel.conf", "--sentinel", *self.where(), *self.more()]


class Together:
    """Servers that belong together.

    Args:
        directory: Where they write, each in a directory of its own.
        stack: What ends them.
    """

    def __init__(self, directory: Path, stack: contextlib.ExitStack):
        self._directory, self._stack = directory, stack

    def _folder(self, name):
        folder = self._directory / name
        folder.mkdir()
        return folder

    def _started(self, name, *options):
        return self._stack.enter_context(redis_server(self._folder(name), *options))


class Sentinels(Together):
    """A primary, a replica, and three sentinels that watch them."""

    SERVICE = "gate"

    def __init__(self, *where):
        super().__init__(*where)
        self.primary = self._started("primary")
        self.replica = self._started("replica", "--replicaof", f"127.0.0.1 {self.primary.port}")
        watched = (
            f"sentinel monitor {self.SERVICE} 127.0.0.1 {self.primary.port} 2",
            f"sentinel down-after-milliseconds {self.SERVICE} 500",
            f"sentinel failover-timeout {self.SERVICE} 2000",
        )
        self.sentinels = [self._sentinel(f"sentinel{n}", watched) for n in range(3)]
        eventually(lambda: all(map(self._knows_all, self.sentinels)))

    def _sentinel(self, name, watched):
        folder = self._folder(name)
        (folder / "sentinel.conf").write_text("\n".join(watched))
        return self._stack.enter_context(running(Sentinel(folder)))

    def _knows_all(self, sentinel):
        with sentinel.client() as client:
            known = client.sentinel_masters()[self.SERVICE]
        return known["num-slaves"] == 1 and known["num-other-sentinels"] == len(self.sentinels) - 1

    def url(self, service=SERVICE, **query):
        """Give the URL for the backend."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return url_of(f"redis+sentinel://{hosts}/{service}", **query)


class Cluster(Together):
    """Three primaries that share the slots, and a replica of the one that has ours."""

    OURS = "{fastapi_maintenance:default}:state"

    def __init__(self, *where):
        super().__init__(*where)
        self.nodes, buses = [], []
        for name in ("first", "second", "third", "replica"):
            # The port of the bus would else be the other one and 10000, which may be too much.
            buses.append(str(free_port()))
            options = ("--cluster-enabled", "yes", "--cluster-port", buses[-1], "--cluster-node-timeout", "500")
            self.nodes.append(self._started(name, *options, "--appendonly", "yes"))
        *primaries, self.replica = self.nodes
        self.cli("--cluster", "create", *map(self._address, primaries), "--cluster-yes")
        eventually(lambda: all("cluster_state:ok" in str(node.do("CLUSTER", "INFO")) for node in primaries))
        owner = self.owner()
        self.replica.do("CLUSTER", "MEET", "127.0.0.1", owner.port, buses[self.nodes.index(owner)])
        name = owner.do("CLUSTER", "MYID")
        eventually(lambda: name in str(self.replica.do("CLUSTER", "NODES")))
        self.replica.do("CLUSTER", "REPLICATE", name)
        eventually(lambda: self.replica.do("INFO", "replication").get("master_link_status") == "up")

    @staticmethod
    def _address(node):
        return f"127.0.0.1:{node.port}"

    def cli(self, *command):
        """Run redis-cli."""
        subprocess.run([shutil.which("redis-cli"), *command], check=True, capture_output=True, timeout=PATIENCE)  # noqa: S603 - our own

    def owner(self):
        """Give the node that has our keys."""
        return next(node for node in self.nodes if self._owns(node))

    def another(self):
        """Give a primary that does not have them."""
        owner = self.owner()
        return next(node for node in self.nodes if node is not owner and self._leads(node))

    @staticmethod
    def _leads(node):
        return node.do("INFO", "replication")["role"] == "master"

    def _owns(self, node):
        try:
            node.do("HLEN", self.OURS)
        except redis.exceptions.RedisError:
            return False
        return self._leads(node)

    def move_ours(self, other):
        """Have another primary take over the slot of our keys, while the cluster is in use."""
        owner, slot = self.owner(), other.do("CLUSTER", "KEYSLOT", self.OURS)
        other.do("CLUSTER", "SETSLOT", slot, "IMPORTING", owner.do("CLUSTER", "MYID"))
        owner.do("CLUSTER", "SETSLOT", slot, "MIGRATING", other.do("CLUSTER", "MYID"))
        while keys := owner.do("CLUSTER", "GETKEYSINSLOT", slot, 100):
            owner.do("MIGRATE", "127.0.0.1", other.port, "", 0, 5000, "KEYS", *keys)
        for node in (other, owner):
            node.do("CLUSTER", "SETSLOT", slot, "NODE", other.do("CLUSTER", "MYID"))

    def url(self, **query):
        """Give the URL for the backend."""
        return url_of(f"redis+cluster://{','.join(map(self._address, self.nodes))}", **query)


def close(backends):
    """Close backends, and wait until their threads let go of all: what they still do would be another test's."""
    loops = [backend._fleet._link._loop for backend in backends]
    for backend in backends:
        backend.close()
    eventually(lambda: all(loop is None or loop.is_closed() for loop in loops))


def eventually(condition, seconds=PATIENCE):
    """Wait until `condition` gives something, and give that."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)
    return found
