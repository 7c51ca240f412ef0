"""Clients of redis-py: how they are made, hear what is published, and are closed, whatever stands behind a URL."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

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
    make = _sentinel if target.scheme in SENTINEL else _cluster if target.scheme in CLUSTER else _plain
    library()

    def connect() -> Any:
        # The link tries again by itself.
        once = _part("retry").Retry(importlib.import_module("redis.backoff").NoBackoff(), 0)
        common: dict[str, Any] = {"socket_timeout": timeout, "retry": once}
        if target.scheme != "unix":
            common |= {"socket_connect_timeout": timeout, "socket_keepalive": True}
        if target.scheme in SECURE:
            # Before its release 6 redis-py did not look whose certificate it is.
            common |= {"ssl_check_hostname": ("ssl_cert_reqs", "none") not in target.query}
        return make(target, common)

    try:
        client = connect()
        if target.scheme not in CLUSTER:
            client.connection_pool.make_connection()
    except Exception:  # noqa: BLE001 - whatever redis-py says of it may repeat it
        query = f" (in its query: {', '.join(key for key, _ in target.query)})" if target.query else ""
        raise WrongUrl(wrong(f"redis-py does not take it{query}")) from None
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


def _plain(target: Target, common: dict[str, Any]) -> Any:
    return library().from_url(target.url.replace(target.scheme, PLAIN[target.scheme], 1), **common)


def _cluster(target: Target, common: dict[str, Any]) -> Any:
    part = _part("cluster")
    nodes = [part.ClusterNode(host, port or PORT) for host, port in target.servers]
    return part.RedisCluster(startup_nodes=nodes, **common | _options(target, target.credentials, target.query))


def _sentinel(target: Target, common: dict[str, Any]) -> Any:
    ours = [(key, value) for key, value in target.query if not key.startswith("sentinel_")]
    # What says how to check a certificate is true of the sentinels, too.
    theirs = [(key, value) for key, value in ours if key.startswith("ssl_")]
    theirs += [(key.removeprefix("sentinel_"), value) for key, value in target.query if key.startswith("sentinel_")]
    manager = _part("sentinel").Sentinel(
        [(host, port or SENTINEL_PORT) for host, port in target.servers],
        sentinel_kwargs=common | _options(target, "", theirs),
    )
    options = _options(target, target.credentials, ours, target.database)
    return manager.master_for(target.service, **common | options)


def _options(target: Target, credentials: str, query: Sequence[tuple[str, str]], database: str = "") -> dict[str, Any]:
    """Give the arguments of a client, as redis-py reads them from a URL of its own."""
    said = _part("connection").parse_url(f"redis://{credentials}host/{database}?{urlencode(query)}")
    return {key: value for key, value in said.items() if key != "host"} | {"ssl": target.scheme in SECURE}
