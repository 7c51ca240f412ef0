"""Why a store did not do what it was asked: told to people, with what to do, and without its inner names."""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from fastapi_maintenance.backends.redis.urls import hidden


class Reason(NamedTuple):
    """What went wrong.

    Attributes:
        text: It for people, without credentials.
        lasts: Whether waiting does not mend it.
    """

    text: str
    lasts: bool


class _Meaning(NamedTuple):
    """What an error means. The first one counts whose pattern is in the error, or in one that it came from."""

    pattern: str
    text: str
    lasts: bool = False


_TLS = "TLS is rediss://, all else redis://"
_MEANINGS = (
    _Meaning(
        r"certificate verify failed: ([^(\n]+?)\.? ?\(",
        "has a certificate that is not accepted ({0}): name its authority with ssl_ca_certs=FILE in the URL, and the "
        "host as the certificate does",
        lasts=True,
    ),
    _Meaning(
        r"alert (?:certificate|handshake|bad|unknown|access)",
        "does not accept this client's certificate: name one with ssl_certfile=FILE and ssl_keyfile=FILE in the URL",
        lasts=True,
    ),
    _Meaning(
        r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|UNSUPPORTED_PROTOCOL",
        f"does not speak this TLS: check the scheme ({_TLS}) and the port",
        lasts=True,
    ),
    _Meaning(
        r"No master found for .*AuthenticationError",
        "has sentinels that do not accept us: check sentinel_username= and sentinel_password= in the URL",
        lasts=True,
    ),
    _Meaning(
        r"No master found for '(.*)' :",
        "has sentinels that do not answer, and those that do know no primary {0} that is up: check their hosts and "
        "ports, and whether they run",
    ),
    _Meaning(
        r"No master found for '(.*)'",
        "has sentinels that know no primary {0} that is up: check the name of the service; a failover takes a moment",
    ),
    _Meaning(
        r"unknown command .?SENTINEL",
        "is no sentinel: name the port of one (26379), or leave +sentinel and the service out of the URL",
        lasts=True,
    ),
    _Meaning(
        r"AuthenticationError: AUTH .*without any password",
        "asks for no password: leave it out of the URL, or set one there",
        lasts=True,
    ),
    _Meaning(
        r"AuthenticationError|AuthorizationError|unauthenticated",
        "does not accept this user and password: check both in the URL; a character like / or @ is percent-encoded",
        lasts=True,
    ),
    _Meaning(
        r"NoPermissionError: (.*)|(?:ACL failure in script:|The user executing the script) (.*)",
        "does not permit it ({0}): the README lists the commands, keys and channels that the user needs",
        lasts=True,
    ),
    _Meaning(
        r"cluster support disabled|Cluster mode is not enabled",
        "is no cluster: leave +cluster out of the URL",
        lasts=True,
    ),
    _Meaning(
        r"MOVED|MovedError",
        "is a node of a cluster: write redis+cluster:// (with TLS rediss+cluster://) in the URL",
        lasts=True,
    ),
    _Meaning(
        r"ClusterDownError|CLUSTERDOWN|TryAgainError|not covered",
        "is a cluster that has nobody for our keys now: look at CLUSTER INFO if that does not end",
    ),
    _Meaning(
        r"WRONGTYPE",
        "has another value under one of our keys (WRONGTYPE): choose another prefix= in the URL, or remove that value",
        lasts=True,
    ),
    _Meaning(
        r"max number of clients|MaxConnectionsError|Too many connections",
        "has no room for another connection: raise its maxclients, or max_connections= in the URL",
    ),
    _Meaning(r"OutOfMemoryError|OOM ", "is out of memory: make room there, or raise its maxmemory"),
    _Meaning(
        r"ReadOnlyError|READONLY",
        "is a replica, which takes no changes: name the primary in the URL, or redis+sentinel://host/service",
    ),
    _Meaning(
        r"unknown command .?(\w+)|Write (commands) not allowed",
        "does not know the command {0}: it must be Redis 6, Valkey 7 or newer, no sentinel, and its commands "
        "must have their own names",
        lasts=True,
    ),
    _Meaning(
        r"DB index is out of range|invalid DB index",
        "has no database of this number: check the end of the URL",
        lasts=True,
    ),
    _Meaning(
        r"InvalidResponse|InvalidData|Protocol Error",
        f"answers, but not as Redis does: check the port and the scheme ({_TLS}) in the URL",
        lasts=True,
    ),
    _Meaning(r"gaierror", "has a host whose name is not known: check it in the URL, and the name service"),
    _Meaning(r"ConnectionRefusedError", "has nobody listening: check host and port in the URL, and whether it runs"),
    _Meaning(
        r"connecting to (?:unix socket: )?/[\s\S]*FileNotFoundError",
        "has no socket at this path: check it, and whether the server runs",
    ),
    _Meaning(
        r"FileNotFoundError",
        "needs a file that is missing: check ssl_ca_certs=, ssl_certfile= and ssl_keyfile= in the URL",
        lasts=True,
    ),
    _Meaning(r"PermissionError", "may not be reached by this user: check who may open it"),
    _Meaning(
        r"ConnectionResetError|BrokenPipeError|IncompleteRead|closed by server|Connection lost",
        f"hung up: look at its log; if it always does, check the scheme ({_TLS}), and whether it asks for a "
        "certificate (ssl_certfile=)",
    ),
    _Meaning(
        r"Timeout",
        "gave no answer in time: check host and port, whether it is overloaded, and whether a firewall is in between; "
        + _TLS,
    ),
)
_NOISE = re.compile(r"Error running script \(call to \w+\): |@user_script: ?\d+: | script: \w{40}, on @user_script:\d+")


@dataclass(frozen=True)
class Explainer:
    """Tells what an error of a store means.

    Attributes:
        name: The store, for people.
        secrets: What must not be shown.
    """

    name: str
    secrets: tuple[str, ...] = field(repr=False)

    def explain(self, error: BaseException) -> Reason:
        """Tell what an error means, and what to do."""
        shown = _NOISE.sub("", "\n".join(f"{type(each).__name__}: {each}" for each in _origins(error)))
        for meaning in _MEANINGS:
            found = re.search(meaning.pattern, shown)
            if found is not None:
                return self._reason(meaning, *filter(None, found.groups()))
        return Reason(hidden(f"{self.name} failed: {shown.splitlines()[0]}", self.secrets), lasts=False)

    def _reason(self, meaning: _Meaning, *found: str) -> Reason:
        text = meaning.text.format(*found)
        return Reason(hidden(f"{self.name} {text}", self.secrets), meaning.lasts)


def only_refuses(error: BaseException) -> bool:
    """Tell whether the server answered, and is one that may do what it was asked."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    elsewhere = {"ReadOnlyError", "ClusterDownError", "TryAgainError"}
    return "ResponseError" in kinds and not kinds & elsewhere and "READONLY" not in str(error)


def _origins(error: BaseException | None) -> list[BaseException]:
    """Give an error and those that it came from."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
