"""Redis URLs: what each spelling means, what is wrong with one, and how to speak of it without its credentials."""

import importlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

PLAIN = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}
SENTINEL = frozenset({"redis+sentinel", "rediss+sentinel"})
CLUSTER = frozenset({"redis+cluster", "rediss+cluster"})
SCHEMES = SENTINEL | CLUSTER | PLAIN.keys()
SECURE = frozenset({"rediss", "valkeys", "rediss+sentinel", "rediss+cluster"})

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
        servers = [urlsplit(f"//{host}") for host in hosts.split(",")]
        ports, named = [server.port for server in servers], all(server.hostname for server in servers)
    except ValueError:
        raise WrongUrl(wrong("it cannot be read")) from None
    if scheme not in SCHEMES or parts.fragment:
        raise WrongUrl(wrong("a # in a password is written %23" if parts.fragment else "its scheme is unknown"))
    if 0 in ports or (scheme == "unix") is named:
        raise WrongUrl(wrong("its host or port is wrong" if named else "its host is missing"))
    if len(servers) > 1 and scheme in PLAIN:
        raise WrongUrl(wrong("several hosts are sentinels or a cluster"))
    path = parts.path.strip("/")
    if scheme in SENTINEL and not path.split("/")[0]:
        raise WrongUrl(wrong("the name of the sentinels' service is missing"))
    database = path.partition("/")[2] if scheme in SENTINEL else path
    if scheme != "unix" and not (database == "" or database.isdecimal()):
        raise WrongUrl(wrong("the database must be a number"))
    if scheme in CLUSTER and database.strip("0"):
        raise WrongUrl(wrong("a cluster has no database but 0"))
    rest = [(key, value) for key, value in query if key not in OWN_OPTIONS]
    kept = [value for key, value in query if "password" in key or "username" in key]
    secrets = {text for given in (password, *kept) if given for text in (given, unquote(given))}
    return Target(
        f"{scheme}://{hosts}{parts.path}",
        f"{scheme}://{parts.netloc}{parts.path}?{urlencode(rest)}",
        {key: value for key, value in query if key in OWN_OPTIONS},
        tuple(sorted(secrets, key=len, reverse=True)) + ((user,) if user and len(user) > 3 else ()),  # noqa: PLR2004 - shorter ones are words
    )


def wrong(problem: str) -> str:
    """Say what is wrong with a URL, and how one is written."""
    return (
        f"the Redis URL is malformed, {problem}: write redis://[[user]:password@]host[:port][/database], rediss:// for "
        "TLS, redis+sentinel://host,host/service or redis+cluster://host,host. It is not repeated here, for it may "
        "hold a password; a character like / or @ in one is percent-encoded"
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
