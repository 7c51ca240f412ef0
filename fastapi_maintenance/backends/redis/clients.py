"""Clients of redis-py: how they are made, hear what is published, and are closed, whatever stands behind a URL."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from fastapi_maintenance.backends.redis.urls import CLUSTER, PLAIN, SECURE, SENTINEL, Target, WrongUrl, library, wrong

SENTINEL_PORT, PORT = 26379, 6379


def factory_of(target: Target, timeout: float) -> Callable[[], Any]:
    """Give a function that makes a client for a target.

    Args:
        target: Where the store is.
        timeout: Seconds that a connection may take.

    Raises:
        ImportError: redis-py is not installed.
        WrongUrl: redis-py does not take the URL; the message does not repeat it.
    """
    scheme = target.url.partition(":")[0]
    make = _sentinel if scheme in SENTINEL else _cluster if scheme in CLUSTER else _plain
    secure = scheme in SECURE
    library()

    def connect() -> Any:
        # The link tries again by itself.
        once = _part("retry").Retry(importlib.import_module("redis.backoff").NoBackoff(), 0)
        common: dict[str, Any] = {"socket_timeout": timeout, "retry": once}
        if scheme != "unix":
            common |= {"socket_connect_timeout": timeout, "socket_keepalive": True}
        if secure:
            # Before its release 6 redis-py did not look whose certificate it is.
            common |= {"ssl_check_hostname": "ssl_cert_reqs=none" not in target.url}
        return make(target.url, common)

    try:
        client = connect()
        if scheme not in CLUSTER:
            client.connection_pool.make_connection()
    except Exception:  # noqa: BLE001 - whatever redis-py says of it may repeat it
        raise WrongUrl(wrong("redis-py does not take it")) from None
    return connect


async def subscription(client: Any, channel: str) -> Any:
    """Give what can listen to `channel` and others.

    In a cluster each node hears of everything. The one that has the keys is listened to, so that there is contact with
    both or none; through a connection of its own, for before its release 8 redis-py had no other way.
    """
    if not hasattr(client, "get_node_from_key"):
        return client.pubsub()
    await client.initialize()
    node, redis = client.get_node_from_key(channel), library()
    pool = redis.ConnectionPool(connection_class=node.connection_class, **node.connection_kwargs)
    return redis.Redis(connection_pool=pool).pubsub()


async def close(opened: Any) -> None:
    """Close a client or a subscription, with the connections to the sentinels that found its server."""
    await opened.aclose()
    manager = getattr(getattr(opened, "connection_pool", None), "sentinel_manager", None)
    for sentinel in getattr(manager, "sentinels", ()):
        await sentinel.aclose()


def _part(name: str) -> Any:
    return importlib.import_module(f"redis.asyncio.{name}")


def _plain(url: str, common: dict[str, Any]) -> Any:
    scheme = url.partition(":")[0]
    return library().from_url(url.replace(scheme, PLAIN[scheme], 1), **common)


def _cluster(url: str, common: dict[str, Any]) -> Any:
    read, part = _Read.of(url), _part("cluster")
    nodes = [part.ClusterNode(host, port or PORT) for host, port in read.hosts]
    return part.RedisCluster(startup_nodes=nodes, **common | read.options(read.query))


def _sentinel(url: str, common: dict[str, Any]) -> Any:
    read = _Read.of(url)
    service, _, database = read.path.partition("/")
    ours = [(key, value) for key, value in read.query if not key.startswith("sentinel_")]
    # What says how to check a certificate is true of the sentinels, too.
    theirs = [(key, value) for key, value in ours if key.startswith("ssl_")]
    theirs += [(key.removeprefix("sentinel_"), value) for key, value in read.query if key.startswith("sentinel_")]
    manager = _part("sentinel").Sentinel(
        [(host, port or SENTINEL_PORT) for host, port in read.hosts],
        sentinel_kwargs=common | read._replace(credentials="").options(theirs),
    )
    return manager.master_for(service, **common | read.options(ours, database))


class _Read(NamedTuple):
    """The parts of a URL that redis-py does not know.

    Attributes:
        secure: Whether it means TLS.
        credentials: What stands before the hosts.
        hosts: Names and ports.
        path: What stands behind them.
        query: The options.
    """

    secure: bool
    credentials: str
    hosts: list[tuple[str | None, int | None]]
    path: str
    query: list[tuple[str, str]]

    @classmethod
    def of(cls, url: str) -> "_Read":
        """Read a URL."""
        parts = urlsplit(url)
        credentials, at, hosts = parts.netloc.rpartition("@")
        servers = [urlsplit(f"//{host}") for host in hosts.split(",")]
        named = [(server.hostname, server.port) for server in servers]
        query = parse_qsl(parts.query, keep_blank_values=True)
        return cls(parts.scheme in SECURE, credentials + at, named, parts.path.strip("/"), query)

    def options(self, query: list[tuple[str, str]], database: str = "") -> dict[str, Any]:
        """Give the arguments of a client, as redis-py reads them from a URL of its own."""
        url = f"redis://{self.credentials}host/{database}?{urlencode(query)}"
        said = _part("connection").parse_url(url)
        return {key: value for key, value in said.items() if key != "host"} | {"ssl": self.secure}
