"""What the gates are compared with: empty ones, and the least that does what a gate has to, each in one function.

Each knows one state, has no way for anything else, and calls nothing of its own but what asks its store, or which
object is meant; one that refuses asks no store but a file. So a gate that does it properly costs more.
"""

import math
import os
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, Token
from operator import attrgetter
from pathlib import Path
from threading import RLock
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute

try:
    from fcntl import F_OFD_SETLK, F_UNLCK, F_WRLCK, fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]
else:
    LOCK, UNLOCK = (struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 1, 0) for kind in (F_WRLCK, F_UNLCK))

App = Callable[[Any, Any, Any], Awaitable[None]]


def has_range_locks() -> bool:
    """Tell whether this system has the locks that the file backend uses on Linux."""
    return fcntl is not None


class EmptyMiddleware:
    """Passes everything on."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass it on."""
        await self.app(scope, receive, send)


class EmptyRoute(APIRoute):
    """Passes everything on."""

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass it on."""
        await super().handle(scope, receive, send)


async def empty_dependency() -> None:
    """Do nothing."""


class _Note:
    owner: object
    scope: Any
    verdict: object
    token: Token[object]


class Known:
    """What a gate looks at: how much is marked, what is stored, what is open whatever the time is, and holds.

    Args:
        store: Which kind of store, as a `Subject` names it.
        path: A file to look at, and to lock while a request is under way.
    """

    def __init__(self, store: str, path: Path | None) -> None:
        self.marks = 0
        self.changed: Callable[[Any], bool] | None = {
            "environment": self._variable_changed,
            "slow store": self._is_old,
            "redis": self._contact_is_lost,
            "default object": self._another_is_meant,
        }.get(store)
        self.variable, self.value = f"BENCH_LEAST_{id(self)}".encode(), None
        self.asked_at, self.refresh_interval = time.monotonic(), math.inf
        self.trouble, self.end = None, math.inf
        self.stored = self.open = object()
        self.holds: tuple[object, ...] = ()
        self.place: Any = None if path is None else str(path)
        self.descriptor: Any = None if path is None else os.open(path, os.O_RDWR | os.O_CREAT)
        self.looked: Any = None if path is None else _identity(os.lstat(path))

    def _variable_changed(self, _: Any) -> bool:
        environ: Any = os.environ
        return environ._data.get(self.variable) is not self.value

    def _is_old(self, _: Any) -> bool:
        return time.monotonic() - self.asked_at >= self.refresh_interval

    def _contact_is_lost(self, _: Any) -> bool:
        return self.trouble is not None or self.end != math.inf

    def _another_is_meant(self, scope: Any) -> bool:
        app = scope["app"]
        return empty_dependency in app.dependency_overrides or bool(app.router.dependencies)


_OPEN = object()
_NOTE = "a note"
_identity = attrgetter("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
_current: ContextVar[object] = ContextVar("least")
_running: set[object] = set()
_turn = RLock()


def middleware(app: App, known: Known) -> App:
    """Give a middleware that counts a request while it is under way, makes it the current one, and looks at the state.

    Args:
        app: What is called.
        known: What it looks at.
    """

    async def call(scope: Any, receive: Any, send: Any) -> None:
        if known.marks or _NOTE in scope:
            raise NotImplementedError
        request = _Note()
        request.owner = known
        request.scope = scope
        request.token = _current.set(request)
        if known.place is None:
            _running.add(request)
        else:
            with _turn:
                _running.add(request)
                if not os.fstat(known.descriptor).st_nlink:
                    raise NotImplementedError
                fcntl(known.descriptor, F_OFD_SETLK, LOCK)
            if _identity(os.lstat(known.place)) != known.looked:
                raise NotImplementedError
        if (known.changed is not None and known.changed(scope)) or known.stored is not known.open or known.holds:
            raise NotImplementedError
        request.verdict = _OPEN
        scope[_NOTE] = request
        try:
            await app(scope, receive, send)
        finally:
            if known.place is None:
                _running.discard(request)
            else:
                with _turn:
                    _running.discard(request)
                    if not _running:
                        fcntl(known.descriptor, F_OFD_SETLK, UNLOCK)
            request.scope = request.verdict = None
            _current.reset(request.token)

    return call


def route_class(known: Known) -> type[APIRoute]:
    """Give a route class that does the same around each operation."""

    class LeastRoute(APIRoute):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.handle = middleware(super().handle, known)  # type: ignore[method-assign]

    return LeastRoute


def guard(known: Known) -> Callable[..., Any]:
    """Give a dependency that does the same, until the end of the request."""

    class Counted(_Note):
        def __exit__(self, *_: object) -> None:
            if known.place is None:
                _running.discard(self)
            else:
                with _turn:
                    _running.discard(self)
                    if not _running:
                        fcntl(known.descriptor, F_OFD_SETLK, UNLOCK)
            self.scope = self.verdict = None
            _current.reset(self.token)

    async def least(request: Request) -> None:
        scope = request.scope
        if known.marks or _NOTE in scope:
            raise NotImplementedError
        counted = Counted()
        counted.owner = known
        counted.scope = scope
        counted.token = _current.set(counted)
        if known.place is None:
            _running.add(counted)
        else:
            with _turn:
                _running.add(counted)
                if not os.fstat(known.descriptor).st_nlink:
                    raise NotImplementedError
                fcntl(known.descriptor, F_OFD_SETLK, LOCK)
            if _identity(os.lstat(known.place)) != known.looked:
                raise NotImplementedError
        if (known.changed is not None and known.changed(scope)) or known.stored is not known.open or known.holds:
            raise NotImplementedError
        counted.verdict = _OPEN
        scope[_NOTE] = counted
        scope["fastapi_middleware_astack"].push(counted)

    return least


_BODY = b'{"detail":"Service temporarily unavailable due to maintenance"}'
_HEADERS = [(b"content-length", b"%d" % len(_BODY)), (b"content-type", b"application/json")]


def fixed_refusal(known: Known) -> type[APIRoute]:
    """Give a route class that refuses with bytes that are always the same, after a look at the file if there is one."""

    class FixedRoute(APIRoute):
        async def handle(self, scope: Any, receive: Any, send: Any) -> None:
            if known.place is not None:
                os.lstat(known.place)
            await send({"type": "http.response.start", "status": 503, "headers": list(_HEADERS)})
            await send({"type": "http.response.body", "body": _BODY})

    return FixedRoute


def refusal(known: Known) -> type[APIRoute]:
    """Give one that refuses in the form that `Accept` asks for, as the current request, and tells OpenTelemetry."""
    answers = {b"application/json": _BODY}
    # FastAPI itself imports it, or nobody is told.
    context, metrics = (sys.modules.get(f"opentelemetry.{name}") for name in ("context", "metrics"))
    counter = None if metrics is None else metrics.get_meter("bench").create_counter("refusals")

    class RefusingRoute(APIRoute):
        async def handle(self, scope: Any, receive: Any, send: Any) -> None:
            token = _current.set(_Note())
            try:
                if known.place is not None:
                    os.lstat(known.place)
                body = answers.get(dict(scope["headers"]).get(b"accept", b""), _BODY)
                if context is not None:
                    # Without one there is no current span to tell.
                    context.get_current()
                if counter is not None:
                    counter.add(1, {"http.route": self.path_format})
                await send({"type": "http.response.start", "status": 503, "headers": list(_HEADERS)})
                await send({"type": "http.response.body", "body": body})
            finally:
                _current.reset(token)

    return RefusingRoute
