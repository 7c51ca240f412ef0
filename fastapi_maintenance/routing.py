"""Which operation a request is for, and which operations have a mark.

The only module that reads private names of FastAPI, each with a default, in `_match_leaf` and `_low_priority`.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import fastapi.routing
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Match, Mount, Route, Router, WebSocketRoute
from starlette.types import Scope

from fastapi_maintenance.asgi import copied, route_path
from fastapi_maintenance.marks import Marks, mark_of

_iter_route_contexts = getattr(fastapi.routing, "iter_route_contexts", None)
"""There from FastAPI 0.137.2."""

# Each route is asked, and Python looks up a member of an enumeration anew each time.
_FULL, _PARTIAL = Match.FULL, Match.PARTIAL

_DOCS = ("docs_url", "redoc_url", "openapi_url", "swagger_ui_oauth2_redirect_url")
_WRAPPERS = 64
"""Middleware objects to look through; more is a loop."""


class Operation:
    """What answers a request.

    Attributes:
        endpoint: The function, or the mounted application; `None` for `app.frontend()`.
        path: Its path with placeholders, below the application that answers.
        docs: Whether it is a documentation endpoint of the application that answers.
    """

    def __init__(self, endpoint: object, path: str | None = None, *, docs: bool = False) -> None:
        self.endpoint = endpoint
        self.path = path
        self.docs = docs


def routed(app: object) -> Any | None:
    """Give the application or router that stands behind middleware objects, `None` if it cannot be found."""
    for _ in range(_WRAPPERS):
        if app is None or isinstance(app, (Router, Starlette)):
            return app
        app = getattr(app, "app", None)
    return None


def operation_of(router: Any, scope: Scope) -> Operation | None:
    """Find the operation that `router` (or an application) runs for `scope`, asking its routes as the router does.

    Returns:
        `None` where the framework has an answer of its own: 404, 405, a redirect to the path with or without slash.
    """
    scope = _seen_by(router, scope)
    partly = False
    for route in router.routes:
        if hasattr(route, "effective_candidates"):
            match, leaf = _match_included(route, scope)
        else:
            match, child = route.matches(scope)
            leaf = _Leaf(route, route, child) if match is _FULL else None
        if leaf is not None:
            return _descend(router, leaf, scope)
        if match is _PARTIAL:
            partly = True
    if partly or _redirects(router, scope):
        return None
    return next((op for route in _low_priority(router) if (op := _frontend(route, scope))), None)


def _seen_by(router: Any, scope: Scope) -> Scope:
    """Give a copy of `scope` as the routes of `router` see it: an application puts its `root_path` there."""
    scope = copied(scope)
    root_path = getattr(router, "root_path", "")
    if root_path and scope.get("app") is not router:
        scope["root_path"] = root_path
    return scope


class _Leaf:
    """A route that matched.

    Attributes:
        route: The route as it was written.
        shown: The route as it is included.
        child: What it adds to the scope.
    """

    def __init__(self, route: BaseRoute, shown: Any, child: Scope) -> None:
        self.route = route
        self.shown = shown
        self.child = child


def _match_included(included: Any, scope: Scope) -> tuple[Match, _Leaf | None]:
    """Match an included router (there are none before FastAPI 0.137), which tells only that it matches; find the route.

    So that no route is matched twice, it is asked itself only where its router has a `matches()` of its own.
    """
    router: Any = included.original_router
    if getattr(router.matches, "__func__", None) is APIRouter.matches:
        return _match_below(included, scope)
    match = included.matches(scope)[0]
    if match is not _FULL:
        return match, None
    return match, _match_below(included, scope)[1] or _Leaf(included, included, {})


def _match_below(included: Any, scope: Scope) -> tuple[Match, _Leaf | None]:
    """Match the routes in an included router: the first that matches wholly, else whether some do partly."""
    partly = False
    for below in included.effective_candidates():
        if hasattr(below, "effective_candidates"):
            match, leaf = _match_included(below, scope)
        else:
            match, child = _match_leaf(below.original_route, below, scope)
            leaf = _Leaf(below.original_route, below, child) if match is _FULL else None
        if leaf is not None:
            return match, leaf
        if match is _PARTIAL:
            partly = True
    return (_PARTIAL if partly else Match.NONE), None


def _descend(router: Any, leaf: _Leaf, scope: Scope) -> Operation | None:
    """Go from a route that matched to the operation: into a mount, a host."""
    endpoint = leaf.child.get("endpoint")
    inner = None if isinstance(leaf.route, APIRoute) else routed(endpoint)
    if inner is not None:
        return operation_of(inner, {**scope, **leaf.child})
    return Operation(endpoint, getattr(leaf.shown, "path_format", None), docs=_is_docs(router, leaf.route, scope))


def _is_docs(app: Any, route: BaseRoute, scope: Scope) -> bool:
    """Tell whether a plain route of `app` is one of its documentation endpoints; exact, never a prefix."""
    if type(route) is not Route or getattr(route.endpoint, "__module__", "") != FastAPI.__module__:
        return False
    path = route_path(scope)
    return any(path == getattr(app, name, None) for name in _DOCS)


def operations_of(app: Any) -> Iterator[tuple[BaseRoute, Any]]:
    """Give each operation of `app` itself: the route as it was written, and as it is included."""
    for route in app.routes:
        for original, context in _leaves(route):
            if isinstance(original, Route):
                yield original, context


def _leaves(route: Any) -> Iterator[tuple[BaseRoute, Any]]:
    """Give each route below an included router with what matches it there; the route itself where it is none."""
    if _iter_route_contexts is not None:
        for context in _iter_route_contexts([route]):
            yield context.original_route, context
    elif hasattr(route, "effective_route_contexts"):  # pragma: no cover - FastAPI 0.137.0 and 0.137.1
        for context in route.effective_route_contexts():
            yield context.original_route, context
    else:  # pragma: no cover - before FastAPI 0.137
        yield route, route


def _match_leaf(original: BaseRoute, context: Any, scope: Scope) -> tuple[Match, Scope]:
    """Match one route of an included router, honouring a route class with `matches()` of its own."""
    effective = getattr(context, "_route_context", None if context is original else context)
    if effective is not None and isinstance(original, APIRoute) and type(original).matches is not APIRoute.matches:
        given = {**scope.get("fastapi", {}), "effective_route_context": effective}
        return original.matches({**scope, "fastapi": given})
    match: tuple[Match, Scope] = (context if effective is None else effective).matches(scope)
    return match


def _low_priority(router: Any) -> Iterator[Any]:
    """Give the routes that are asked last: `app.frontend()`, of included routers, too."""
    router = getattr(router, "router", router)
    yield from getattr(router, "_low_priority_routes", ())
    for route in router.routes:
        included = getattr(route, "effective_low_priority_routes", None)
        if included is not None:
            yield from included()


def _frontend(route: Any, scope: Scope) -> Operation | None:
    match, child = route.matches(scope)
    return Operation(child.get("endpoint")) if match is _FULL else None


def _redirects(router: Any, scope: Scope) -> bool:
    """Tell whether the router answers with a redirect to the path with or without the last slash."""
    router = getattr(router, "router", router)
    path = route_path(scope)
    if path == "/" or not getattr(router, "redirect_slashes", False):
        return False
    other = scope["path"].rstrip("/") if path.endswith("/") else scope["path"] + "/"
    redirected = {**scope, "path": other}
    return any(route.matches(redirected)[0] is not Match.NONE for route in router.routes)


class Marked:
    """Where an application has operations with a mark, so that an open gate need not ask all routes.

    Nor all that have one: a path that is none of theirs is known by one look, however many there are. Rebuilt when a
    mark was set or a router has grown or shrunk.
    """

    def __init__(self, router: Any) -> None:
        self._router = router
        self._marks = -1
        self._routers: list[tuple[Any, _Routes]] = []
        self._suspects: list[tuple[BaseRoute, Any]] = []
        self._paths: re.Pattern[str] | None = None

    def may_match(self, scope: Scope) -> bool:
        """Tell whether `scope` may be for an operation with a mark."""
        if self._marks != Marks.count or any(routes.changed(router) for router, routes in self._routers):
            self._build()
        if not self._suspects:
            return False
        scope = _seen_by(self._router, scope)
        if self._paths is not None and not self._paths.match(route_path(scope)):
            return False
        return any(_match_leaf(original, context, scope)[0] is _FULL for original, context in self._suspects)

    def _build(self) -> None:
        marks = Marks.count
        self._routers = []
        self._suspects = [
            (route, context) for route, context in self._walk(self._router) if self._holds_one(route, set())
        ]
        self._paths = _paths_of(self._suspects)
        # Last: where this failed, the next request builds anew.
        self._marks = marks

    def _walk(self, router: Any) -> Iterator[tuple[BaseRoute, Any]]:
        """Give all routes with what matches them, and remember the lists that may change."""
        self._remember(router)
        for route in router.routes:
            yield from _leaves(route)

    def _remember(self, router: Any) -> None:
        self._routers.append((router, _Routes(router)))
        for route in router.routes:
            included = getattr(route, "original_router", None)
            if included is not None:
                self._remember(included)

    def _holds_one(self, route: BaseRoute, seen: set[int]) -> bool:
        """Tell whether an operation with a mark is here, or anywhere below a mount or a host.

        Args:
            route: Where to look.
            seen: The `id` of each application that was looked through on the way: they may mount one another.
        """
        endpoint = getattr(route, "endpoint", None) or getattr(route, "app", None)
        if mark_of(endpoint) is not None:
            return True
        inner = None if isinstance(route, APIRoute) else routed(getattr(route, "app", None))
        if inner is None or id(inner) in seen:
            return False
        seen.add(id(inner))
        return any(self._holds_one(below, seen) for below, _ in self._walk(inner))


def _paths_of(suspects: Iterable[tuple[BaseRoute, Any]]) -> re.Pattern[str] | None:
    """Give one pattern for the paths of all these routes, `None` where one of them goes by more than its own."""
    paths: list[str] = []
    for original, context in suspects:
        own: re.Pattern[str] | None = getattr(context, "path_regex", None)
        if own is None or getattr(type(original), "matches", None) not in _BY_PATH:
            return None
        path, names = _NAMED.subn("(?:", own.pattern)
        # Of a convertor's own pattern nothing is known: it may have groups, and flags, that would mean something else.
        if not names == len(own.groupindex) == own.groups or own.flags != re.UNICODE:
            return None
        paths.append(f"(?:{path.removeprefix('^')})")
    try:
        return re.compile("|".join(paths))
    except re.error:
        # A convertor's pattern refers to another parameter, by a name or number that is gone.
        return None


_BY_PATH = {each.matches for each in (APIRoute, APIWebSocketRoute, Route, WebSocketRoute, Mount)}
_NAMED = re.compile(r"\(\?P<\w+>")


class _Routes:
    """A router's list of routes as it was: kept, for the `id` of what is gone may be given to something new."""

    def __init__(self, router: Any) -> None:
        self.listed = router.routes
        self.length = len(self.listed)
        self.last = self.listed[-1] if self.listed else None

    def changed(self, router: Any) -> bool:
        """Tell whether it is another list now, or has grown, shrunk or got another end."""
        routes = router.routes
        return (
            routes is not self.listed or len(routes) != self.length or (routes[-1] if routes else None) is not self.last
        )
