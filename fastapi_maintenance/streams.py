"""Ending what is open when a gate closes: websockets and event streams, after a time of grace. Nothing else."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
from anyio.lowlevel import RunVar
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_maintenance.tasks import spawn

SERVICE_RESTART = 1012
"""Close code "Service Restart" (IANA WebSocket Close Code Number registry)."""

EVENT_STREAM = b"text/event-stream"

LOOK_EVERY = 0.25
"""Seconds between two looks at the state while a stream is open."""


def may_stream(scope: Scope) -> bool:
    """Tell whether a connection is a websocket, or asks for an event stream."""
    if scope["type"] == "websocket":
        return True
    return any(name == b"accept" and EVENT_STREAM in value.lower() for name, value in scope["headers"])


class _Connection:
    """One open websocket or event stream."""

    def __init__(self, scope: Scope, send: Send, closed: Callable[[], bool]) -> None:
        self.cancel = anyio.CancelScope()
        self._closed = closed
        self._deadline: float | None = None
        self._websocket = scope["type"] == "websocket"
        self._send = send
        self._streams = self._websocket
        self._done = False

    async def send(self, message: Message) -> None:
        """Pass a message on, and learn from it what there is to end."""
        kind = message["type"]
        if kind == "http.response.start":
            types = [value for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
            self._streams = any(value.lower().startswith(EVENT_STREAM) for value in types)
        elif kind == "http.response.body":
            self._done = not message.get("more_body", False)
        elif kind in {"websocket.close", "websocket.http.response.start"}:
            self._done = True
        await self._send(message)

    def look(self, now: float, grace: float) -> None:
        """End the connection when its gate has been closed for `grace` seconds."""
        if not self._closed():
            self._deadline = None
        elif self._deadline is None:
            self._deadline = now + grace
        if self._deadline is not None and now >= self._deadline and self._streams and not self._done:
            self.cancel.cancel()

    async def end(self) -> None:
        """Tell the client that it is over."""
        if self._websocket:
            await self._send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": "service restart"})
        else:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


@dataclass
class _Open:
    """What is open in one event loop."""

    connections: set[_Connection] = field(default_factory=set[_Connection])
    watched: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])


class Streams:
    """The open websockets and event streams of one middleware.

    Args:
        grace: Seconds that they may go on after the gate has closed.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._here: RunVar[_Open | None] = RunVar("fastapi_maintenance_streams", default=None)

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, closed: Callable[[], bool]) -> None:
        """Run `app` for one connection, until it ends or has to.

        Args:
            app: The application.
            scope: The ASGI scope.
            receive: The ASGI receive channel.
            send: The ASGI send channel.
            closed: Tells, without waiting, whether the gate is closed for this connection.
        """
        here = self._here.get()
        if here is None:
            here = _Open()
            self._here.set(here)
        connection = _Connection(scope, send, closed)
        here.connections.add(connection)
        if not here.watched:
            here.watched = True
            spawn(lambda: self._watch(here), here.tasks)
        try:
            with connection.cancel:
                await app(scope, receive, connection.send)
            if connection.cancel.cancelled_caught:
                await connection.end()
        finally:
            here.connections.discard(connection)

    async def _watch(self, here: _Open) -> None:
        """Look at the state while anything is open."""
        try:
            while here.connections:
                now = time.monotonic()
                for connection in tuple(here.connections):
                    connection.look(now, self._grace)
                await anyio.sleep(LOOK_EVERY)
        finally:
            here.watched = False
