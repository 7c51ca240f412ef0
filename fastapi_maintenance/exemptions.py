"""Reasons to let a request through while it is closed. Asked only when the answer would be a refusal."""

import hmac
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, TypeAlias

from starlette.types import Scope

from fastapi_maintenance.asgi import connection, headers_of, route_path
from fastapi_maintenance.settings import MaintenanceSettings

logger = logging.getLogger("fastapi_maintenance")

_KNOWN_CLIENTS = 1024
"""Addresses of clients that are remembered with what came of them."""

_LONGEST = 64
"""Characters of an address: IPv6 has 45 at most, and the name of an interface (15 on Linux) after them."""

ExemptHandler: TypeAlias = Callable[[Any], bool | Awaitable[bool]]
"""Gets the request (for a websocket the connection) without its body; `True` lets it through."""


class Exemptions:
    """All reasons of one gate.

    Args:
        settings: Paths, networks, the secret, and whether docs are exempt.
        handler: The user's own reason, sync or async.
    """

    def __init__(self, settings: MaintenanceSettings, handler: ExemptHandler | None) -> None:
        if handler is not None and not callable(handler):
            raise TypeError(f"exempt_handler must be callable, not {type(handler).__name__}")
        self._docs = settings.exempt_docs
        self._paths = _Paths(settings.exempt_paths)
        self._networks = _Networks(settings.exempt_ips)
        secret = settings.bypass_secret
        self._secret = None if secret is None else secret.get_secret_value().encode()
        self._header = settings.bypass_header.lower().encode()
        self._handler = handler
        lists = settings.exempt_paths or settings.exempt_ips
        self.given = bool(lists) or self._secret is not None or handler is not None
        """Whether anything but documentation may be exempt."""

    async def cover(self, scope: Scope, docs: bool) -> bool:  # noqa: FBT001 - what the route is
        """Tell whether the request is exempt; `docs` says that its route is a documentation endpoint."""
        return (
            (docs and self._docs)
            or self._covers(scope)
            or (self._handler is not None and await self._ask(self._handler, scope))
        )

    def may_cover(self, scope: Scope) -> bool:
        """Tell, without waiting, whether `cover` may be true, apart from docs: the user's own reason is not asked."""
        return self._handler is not None or self._covers(scope)

    def _covers(self, scope: Scope) -> bool:
        """Tell whether the settings exempt the request."""
        return (
            route_path(scope) in self._paths
            or (self._networks.given and self._client(scope.get("client")))
            or (self._secret is not None and self._bypass(self._secret, headers_of(scope)))
        )

    def covers_path(self, path: str) -> bool:
        """Tell whether a path is exempt for all."""
        return path in self._paths

    def _client(self, client: tuple[str, int] | None) -> bool:
        host = client[0] if client else None
        # Behind a proxy that is trusted it is whatever the client wrote, of any length.
        return isinstance(host, str) and len(host) <= _LONGEST and self._networks.cover(host)

    def _bypass(self, secret: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        return any(name == self._header and hmac.compare_digest(value, secret) for name, value in headers)

    async def _ask(self, handler: ExemptHandler, scope: Scope) -> bool:
        try:
            answer = handler(connection(scope))
            if inspect.isawaitable(answer):
                answer = await answer
        except Exception:
            logger.exception("exempt_handler %s raised, so it exempts nobody", name_of(handler))
            return False
        if answer is None or isinstance(answer, bool):
            return bool(answer)
        # Neither the answer nor a partial's arguments: both may hold a client's secret.
        logger.error(
            "exempt_handler %s gave a %s, so it exempts nobody; it must give True or False",
            name_of(handler),
            type(answer).__name__,
        )
        return False


def name_of(handler: object) -> str:
    """Name a handler for people, without what it carries."""
    while isinstance(handler, partial):
        handler = handler.func
    return getattr(handler, "__qualname__", None) or type(handler).__qualname__


class _Paths:
    """Exempt paths; thousands are asked as fast as a few, for what stands above others is found by its length."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._exact = frozenset(path for path in paths if not path.endswith("/*"))
        self._above = frozenset(path.removesuffix("/*") for path in paths if path.endswith("/*"))
        self._lengths = sorted({len(path) for path in self._above})

    def __contains__(self, path: str) -> bool:
        if path in self._exact:
            return True
        for length in self._lengths:
            if path[:length] in self._above and path[length : length + 1] in {"", "/"}:
                # Whatever is served below may resolve dots, so a path that has them is never exempt by its beginning.
                return _is_plain(path)
        return False


class _Networks:
    """Exempt networks; thousands are asked as fast as a few, for each is found by the bits that it leaves out."""

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        self._known: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            left_out = network.max_prefixlen - network.prefixlen
            same = self._known.setdefault((network.version, left_out), set())
            same.add(int(network.network_address) >> left_out)
        self.given = bool(self._known)
        self.cover = lru_cache(_KNOWN_CLIENTS)(self._cover)
        """Tells whether an address, as a server writes it, is in one of them; a name is in none."""

    def _cover(self, host: str) -> bool:
        try:
            address = ip_address(host)
        except ValueError:
            return False
        # An IPv6 address may stand for one of IPv4.
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return address in self or (mapped is not None and mapped in self)

    def __contains__(self, address: IPv4Address | IPv6Address) -> bool:
        number, its = int(address), address.version
        return any(version == its and number >> left_out in same for (version, left_out), same in self._known.items())


def _is_plain(path: str) -> bool:
    return "\\" not in path and not any(segment in {".", ".."} for segment in path.split("/"))
