"""Redis URLs: what each spelling means, what is wrong with one, and how to speak of it without its credentials."""

import importlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

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
        scheme: How to speak to it.
        netloc: Credentials, hosts and ports, as they were written.
        servers: Names and ports.
        path: What stands behind them.
        query: What is said to redis-py.
        options: What is said of the backend itself.
    """

    scheme: str
    netloc: str = field(repr=False)
    servers: tuple[tuple[str | None, int | None], ...]
    path: str
    query: tuple[tuple[str, str], ...] = field(repr=False)
    options: dict[str, str] = field(repr=False)

    @property
    def credentials(self) -> str:
        """What stands before the hosts, with its `@`."""
        return self.netloc.removesuffix(self._hosts)

    @property
    def _hosts(self) -> str:
        return self.netloc.rpartition("@")[2]

    @property
    def name(self) -> str:
        """How people may be told of it, without credentials."""
        return f"{self.scheme}://{self._hosts}{self.path}"

    @property
    def url(self) -> str:
        """The URL for redis-py, without what is said of the backend itself."""
        return f"{self.scheme}://{self.netloc}{self.path}?{urlencode(self.query)}"

    @property
    def service(self) -> str:
        """What the sentinels call it."""
        return self.path.strip("/").partition("/")[0]

    @property
    def database(self) -> str:
        """Its number, empty where none is said."""
        path = self.path.strip("/")
        return path.partition("/")[2] if self.scheme in SENTINEL else path

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown, the longest first."""
        user, _, password = self.credentials.removesuffix("@").partition(":")
        said = [password, *(value for key, value in self.query if "password" in key or "username" in key)]
        # Shorter names are words.
        said += [user] if len(user) > 3 else []  # noqa: PLR2004 - as said
        found = {text for each in said if each for text in (each, unquote(each))}
        return tuple(sorted(found, key=len, reverse=True))


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
        hosts = [urlsplit(f"//{host}") for host in parts.netloc.rpartition("@")[2].split(",")]
        servers = tuple((host.hostname, host.port) for host in hosts)
    except ValueError:
        raise WrongUrl(wrong("it cannot be read")) from None
    rest = tuple((key, value) for key, value in query if key not in OWN_OPTIONS)
    own = {key: value for key, value in query if key in OWN_OPTIONS}
    target = Target(parts.scheme, parts.netloc, servers, parts.path, rest, own)
    problem = _problem(target, parts)
    if problem is not None:
        raise WrongUrl(wrong(problem))
    return target


def _problem(target: Target, parts: SplitResult) -> str | None:
    """Tell what is wrong with what was read, if anything."""
    scheme, database = target.scheme, target.database
    named = all(name for name, _ in target.servers)
    problems = {
        "a # in a password is written %23": bool(parts.fragment),
        # What looks like a port and options is a password then.
        "a ? in a password is written %3F, an @ in the query %40": "@" in parts.query and not target.credentials,
        "its scheme is unknown": scheme not in SCHEMES,
        "its host is missing": scheme != "unix" and not named,
        "its host or port is wrong": (scheme == "unix" and named) or any(port == 0 for _, port in target.servers),
        "several hosts are sentinels or a cluster": scheme in PLAIN and len(target.servers) > 1,
        "the name of the sentinels' service is missing": scheme in SENTINEL and not target.service,
        "the database must be a number": scheme != "unix" and not (database == "" or database.isdecimal()),
        "a cluster has no database but 0": scheme in CLUSTER and bool(database.strip("0")),
    }
    return next((problem for problem, found in problems.items() if found), None)


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
