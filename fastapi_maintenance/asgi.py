"""What is read of an ASGI scope."""

from collections.abc import Iterable

from starlette.requests import HTTPConnection, Request
from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """Give the path that routes are matched with: `path` less `root_path`, on a segment boundary."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and (path == root or path.startswith(f"{root}/")):
        return path[len(root) :]
    return path


def path_of(scope: Scope) -> str | None:
    """Give the path, with placeholders, of the route that was chosen; `None` where there is none."""
    context = scope.get("fastapi", {}).get("effective_route_context")
    path = getattr(context, "path_format", None) or getattr(scope.get("route"), "path_format", None)
    return path or None


def headers_of(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Give the headers; where they can be read only once they are kept, as Starlette's own `Headers` does."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    if not isinstance(headers, list):
        headers = scope["headers"] = list(headers)
    return headers


def copied(scope: Scope) -> Scope:
    """Give a copy for somebody who writes into it; what reads its headers leaves those of `scope` alone."""
    return {**scope, "headers": headers_of(scope)}


def connection(scope: Scope) -> HTTPConnection:
    """Give the request, for a websocket the connection, without a way to read its body."""
    return Request(scope) if scope["type"] == "http" else HTTPConnection(scope)
