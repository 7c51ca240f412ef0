"""Redis URLs: what each spelling means, what is wrong with one, and how to speak of it without its credentials."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

PLAIN = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}
SENTINEL = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
CLUSTER = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
SCHEMES = frozenset({*PLAIN, *SENTINEL, *CLUSTER})

OWN_OPTIONS = frozenset({"prefix", "lease", "forget"})
"""What the query of a URL may say about the backend itself; the rest is for redis-py."""

INSTALL = 'the Redis backend needs redis-py: pip install "fastapi-maintenance[redis]"'


class WrongUrl(ValueError):
    """A URL that cannot be used; the message never repeats it, for it may hold a password."""


@dataclass(frozen=True)
class Target:
    """Where a store is.

    Attributes:
        name: How people may be told of it, without credentials.
        options: What the URL says about the backend itself.
        secrets: What must not be shown.
        url: The URL for redis-py, without our own options.
    """

    name: str
    url: str = field(repr=False)
    options: dict[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)


def is_redis_url(url: str) -> bool:
    """Tell whether a backend's URL is meant for Redis."""
    return url.partition(":")[0].lower() in SCHEMES


def target_of(url: str) -> Target:
    """Read a URL.

    Raises:
        WrongUrl: It is malformed; the message does not repeat it.
    """
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        scheme, password, user = parts.scheme, parts.password, parts.username
        hosts = parts.netloc.rpartition("@")[2]
        ports = [urlsplit(f"//{host}").port for host in hosts.split(",")]
    except ValueError:
        raise WrongUrl(_wrong("it cannot be read")) from None
    if scheme not in SCHEMES or parts.fragment:
        raise WrongUrl(_wrong("a # in a password is written %23" if parts.fragment else "its scheme is unknown"))
    if 0 in ports or (scheme == "unix") is bool(hosts):
        raise WrongUrl(_wrong("its host is missing" if not hosts else "its host or port is wrong"))
    path = parts.path.strip("/")
    if scheme in SENTINEL and not path.split("/")[0]:
        raise WrongUrl(_wrong("the name of the sentinels' service is missing"))
    database = path.partition("/")[2] if scheme in SENTINEL else path
    if scheme != "unix" and not (database == "" or database.isdecimal()):
        raise WrongUrl(_wrong("the database must be a number"))
    bare = urlunsplit((scheme, hosts, parts.path, "", ""))
    rest = [(key, value) for key, value in query if key not in OWN_OPTIONS]
    kept = [value for key, value in query if "password" in key or "username" in key]
    secrets = {text for given in (password, *kept) if given for text in (given, unquote(given))}
    return Target(
        bare,
        urlunsplit((scheme, parts.netloc, parts.path, urlencode(rest), "")),
        {key: value for key, value in query if key in OWN_OPTIONS},
        tuple(sorted(secrets, key=len, reverse=True)) + ((user,) if user and len(user) > 3 else ()),  # noqa: PLR2004 - shorter ones are words
    )


def _wrong(problem: str) -> str:
    return (
        f"the Redis URL is malformed, {problem}: write redis://[[user]:password@]host[:port][/database], rediss:// for "
        "TLS, redis+sentinel://host,host/service or redis+cluster://host. It is not repeated here, for it may hold a "
        "password; a character like / or @ in one is percent-encoded"
    )


def hidden(text: str, secrets: tuple[str, ...]) -> str:
    """Give `text` without the secrets."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def library() -> Any:
    """Give redis-py's asyncio side.

    Raises:
        ImportError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module("redis.asyncio")
    except ImportError as error:
        raise ImportError(INSTALL) from error


def factory_of(target: Target, timeout: float) -> Callable[[], Any]:
    """Give a function that makes a client for a target.

    Args:
        target: Where the store is.
        timeout: Seconds that a connection may take.

    Raises:
        ImportError: redis-py is not installed.
        WrongUrl: redis-py does not take the URL; the message does not repeat it.
    """
    redis = library()
    scheme = target.url.partition(":")[0]
    common: dict[str, Any] = {"socket_timeout": timeout}
    if scheme != "unix":
        common |= {"socket_connect_timeout": timeout, "socket_keepalive": True}

    def connect() -> Any:
        if scheme in SENTINEL:
            return _sentinel(target, common)
        if scheme in CLUSTER:
            return redis.RedisCluster.from_url(target.url.replace(scheme, CLUSTER[scheme], 1), **common)
        once = importlib.import_module("redis.asyncio.retry").Retry(
            importlib.import_module("redis.backoff").NoBackoff(), 0
        )
        return redis.from_url(target.url.replace(scheme, PLAIN[scheme], 1), retry=once, **common)

    try:
        client = connect()
        if scheme in PLAIN:
            client.connection_pool.make_connection()
    except Exception:  # noqa: BLE001 - whatever redis-py says of it may repeat it
        raise WrongUrl(_wrong("redis-py does not take it")) from None
    return connect


def _sentinel(target: Target, common: dict[str, Any]) -> Any:
    parts = urlsplit(target.url)
    service, _, database = parts.path.strip("/").partition("/")
    pairs = [urlsplit(f"//{host}") for host in parts.netloc.rpartition("@")[2].split(",")]
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    secure: dict[str, Any] = {"ssl": True} if SENTINEL[parts.scheme] == "rediss" else {}
    sentinels = {key.removeprefix("sentinel_"): value for key, value in query.items() if key.startswith("sentinel_")}
    others = {key: value for key, value in query.items() if not key.startswith("sentinel_")}
    manager = importlib.import_module("redis.asyncio.sentinel").Sentinel(
        [(pair.hostname, pair.port or 26379) for pair in pairs],
        sentinel_kwargs={**common, **secure, **sentinels},
        **common,
        **secure,
    )
    return manager.master_for(
        service,
        db=int(database or 0),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        **others,
    )
