"""Real Redis servers: how tests start them on free ports, and what they do to them."""

import contextlib
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.servers import PATIENCE, until

redis = pytest.importorskip("redis", reason="needs redis-py")
needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None,
    reason="needs redis-server (Debian: apt-get install redis-server)",
)

LEASE = 3.0
"""Seconds; short, so that what a lease ends does not take long, and long enough for a busy machine."""


def free_port():
    """Give a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A redis-server of our own, with an append-only log in its directory."""

    def __init__(self, directory: Path, *options):
        self.directory, self.options, self.port = directory, options, free_port()
        self.process = None
        self.start()

    def url(self, **query):
        """Give the URL for the backend."""
        pairs = "&".join(f"{key}={value}" for key, value in {"lease": LEASE, **query}.items())
        return f"redis://127.0.0.1:{self.port}/0?{pairs}"

    def start(self):
        """Start it, again on the same port and the same log."""
        base = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", "")
        with (self.directory / "redis.log").open("a") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own
                [shutil.which("redis-server"), *base, *self.options], stdout=log, stderr=log
            )
        until(self.answers)

    def client(self):
        """Give a client."""
        return redis.Redis(port=self.port, decode_responses=True)

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


@contextlib.contextmanager
def redis_server(directory, *options):
    """Start a server for the time of a block."""
    server = Server(directory, *options)
    try:
        yield server
    finally:
        server.resume()
        server.kill()


def eventually(condition, seconds=PATIENCE):
    """Wait until `condition` gives something, and give that."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)
    return found
