"""What the gates are compared with: empty ones, and the least that does what a gate has to, each in one function.

None of these decides anything, so no gate that counts its requests, or refuses them properly, can cost less.
"""

import os
import struct
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, Token
from pathlib import Path
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


async def empty_dependency() -> None:
    """Do nothing."""


class _Note:
    token: Token[object]


_current: ContextVar[object] = ContextVar("least")
_running: set[object] = set()


def middleware(app: App, path: Path | None) -> App:
    """Give a middleware that counts a request while it is under way, and makes it the current one.

    Args:
        app: What is called.
        path: A file to look at, and to lock meanwhile.
    """
    return _counting(app, *_opened(path))


def _counting(app: App, place: str | None, descriptor: int) -> App:
    async def call(scope: Any, receive: Any, send: Any) -> None:
        request = scope["a note"] = _Note()
        token = _current.set(request)
        _running.add(request)
        if place is not None:
            os.fstat(descriptor)
            fcntl(descriptor, F_OFD_SETLK, LOCK)
            os.lstat(place)
        try:
            await app(scope, receive, send)
        finally:
            _running.discard(request)
            if place is not None:
                fcntl(descriptor, F_OFD_SETLK, UNLOCK)
            _current.reset(token)

    return call


def route_class(path: Path | None) -> type[APIRoute]:
    """Give a route class that does the same around each operation."""
    opened = _opened(path)

    class LeastRoute(APIRoute):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.handle = _counting(super().handle, *opened)  # type: ignore[method-assign]

    return LeastRoute


def guard(path: Path | None) -> Callable[..., Any]:
    """Give a dependency that does the same, until the end of the request."""
    place, descriptor = _opened(path)

    class Counted(_Note):
        def __exit__(self, *_: object) -> None:
            _running.discard(self)
            if place is not None:
                fcntl(descriptor, F_OFD_SETLK, UNLOCK)
            _current.reset(self.token)

    async def least(request: Request) -> None:
        scope = request.scope
        counted = scope["a note"] = Counted()
        counted.token = _current.set(counted)
        _running.add(counted)
        if place is not None:
            os.fstat(descriptor)
            fcntl(descriptor, F_OFD_SETLK, LOCK)
            os.lstat(place)
        scope["fastapi_middleware_astack"].push(counted)

    return least


_BODY = b'{"detail":"Service temporarily unavailable due to maintenance"}'
_HEADERS = [(b"content-length", b"%d" % len(_BODY)), (b"content-type", b"application/json")]


def fixed_refusal(path: Path | None) -> type[APIRoute]:
    """Give a route class that refuses with bytes that are always the same.

    Args:
        path: A file to look at first.
    """
    place, _ = _opened(path)

    class FixedRoute(APIRoute):
        async def handle(self, scope: Any, receive: Any, send: Any) -> None:
            if place is not None:
                os.lstat(place)
            await send({"type": "http.response.start", "status": 503, "headers": list(_HEADERS)})
            await send({"type": "http.response.body", "body": _BODY})

    return FixedRoute


def refusal(path: Path | None) -> type[APIRoute]:
    """Give one that refuses in the form that `Accept` asks for, as the current request, and tells OpenTelemetry."""
    place, _ = _opened(path)
    answers = {b"application/json": _BODY}
    # FastAPI itself imports it, or nobody is told.
    context, metrics = (sys.modules.get(f"opentelemetry.{name}") for name in ("context", "metrics"))
    counter = None if metrics is None else metrics.get_meter("bench").create_counter("refusals")

    class RefusingRoute(APIRoute):
        async def handle(self, scope: Any, receive: Any, send: Any) -> None:
            token = _current.set(_Note())
            try:
                if place is not None:
                    os.lstat(place)
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


def _opened(path: Path | None) -> tuple[str | None, int]:
    """Give the place of a file, and a descriptor for its lock; neither without a path."""
    return (None, -1) if path is None else (str(path), os.open(path, os.O_RDWR | os.O_CREAT))
