"""Ending what is open when a gate closes: websockets and event streams, after a time of grace. Nothing else."""

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from math import inf
from uuid import uuid4

import anyio
from anyio.lowlevel import RunVar
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_maintenance.gate import Gate
from fastapi_maintenance.tasks import spawn

logger = logging.getLogger("fastapi_maintenance")

SERVICE_RESTART = 1012
"""Close code "Service Restart" (IANA WebSocket Close Code Number registry)."""

EVENT_STREAM = b"text/event-stream"

LOOK_EVERY = 0.25
"""Seconds between two looks at the state while a stream is open."""

STALLED = 1.0
"""Seconds after the grace for which a message that is on its way is waited for."""


class Streams:
    """The open websockets and event streams of one middleware.

    Args:
        grace: Seconds that they may go on after the gate has closed.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        # Under older anyio, variables of one name are one variable.
        self._here: RunVar[_Here | None] = RunVar(f"fastapi_maintenance_streams_{uuid4()}", default=None)

    async def run(
        self,
        app: ASGIApp,
        scope: Scope,
        receive: Receive,
        send: Send,
        gate: Gate,
        refused: Callable[[], Awaitable[bool]],
    ) -> None:
        """Run `app` for one connection, until it ends or has to.

        Args:
            app: The application.
            scope: The ASGI scope.
            receive: The ASGI receive channel.
            send: The ASGI send channel.
            gate: The gate that has let the connection through.
            refused: Tells, once that is closed, whether the connection would be refused now.
        """
        here = self._here.get()
        if here is None:
            here = _Here(self._grace)
            self._here.set(here)
        connection = _Connection(here, gate, scope, receive, send, refused)
        try:
            with connection.cancel:
                await app(scope, connection.receive, connection.send)
            if connection.cancel.cancel_called and connection in here.open:
                here.cut = True
                await connection.end()
        finally:
            here.open.discard(connection)


class _Here:
    """What is open in one event loop, and the one task that watches it."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.open: set[_Connection] = set()
        self.cut = False
        self.tasks: set[asyncio.Task[None]] = set()
        self._watched = False

    def join(self, connection: "_Connection") -> None:
        """Watch a connection that has become a stream."""
        self.open.add(connection)
        if not self._watched:
            self._watched = True
            spawn(self._watch, self.tasks)

    async def _watch(self) -> None:
        """Look at the state while anything is open, once for all that share a gate and a method."""
        try:
            while self.open:
                now = anyio.current_time()
                places = {connection.place for connection in self.open}
                closed = {(gate, method) for gate, method in places if gate.is_closed_to(method)}
                for connection in tuple(self.open):
                    connection.look(now, closed=connection.place in closed)
                await anyio.sleep(LOOK_EVERY)
                self._collect()
        finally:
            self._watched = False

    def _collect(self) -> None:
        """Have Python collect what was cut: nobody closes a sync generator, so its `finally` block runs only then."""
        if self.cut:
            self.cut = False
            gc.collect()


class _Connection:
    """One connection; it is among the open ones from when it has become a stream until its end."""

    def __init__(
        self,
        here: _Here,
        gate: Gate,
        scope: Scope,
        receive: Receive,
        send: Send,
        refused: Callable[[], Awaitable[bool]],
    ) -> None:
        self.cancel = anyio.CancelScope()
        self.place: tuple[Gate, str | None] = (gate, scope.get("method"))
        self._here = here
        self._receive = receive
        self._send = send
        self._refused = refused
        self._websocket = scope["type"] == "websocket"
        self._sending: set[anyio.CancelScope] = set()
        self._closed_at: float | None = None
        self._deadline = inf

    async def receive(self) -> Message:
        """Give the next message; a client that has gone leaves nothing to end."""
        message = await self._receive()
        if message["type"] in {"websocket.disconnect", "http.disconnect"}:
            self._here.open.discard(self)
        return message

    async def send(self, message: Message) -> None:
        """Pass a message on, and learn from it whether this is a stream, and whether it is over.

        A stream is cut between two messages: there a generator runs its `finally` block as it is cancelled, while one
        that waits for its consumer would have to be collected first.
        """
        if self not in self._here.open:
            await self._send(message)
            if _is_stream(message):
                self._here.join(self)
            return
        with anyio.CancelScope(shield=True) as shield:
            if _is_last(message):
                # An end of the application's own, perhaps in a `finally` block, is never cut short.
                self._here.open.discard(self)
                await self._send(message)
                return
            self._sending.add(shield)
            try:
                await self._send(message)
            finally:
                self._sending.discard(shield)

    def look(self, now: float, *, closed: bool) -> None:
        """End the connection when it has been refused for the time of grace, a client that takes no message later."""
        if not closed:
            self._closed_at, self._deadline = None, inf
        elif self._closed_at is None:
            self._closed_at = now
            spawn(partial(self._judge, now), self._here.tasks)
        elif now >= self._deadline:
            self.cancel.cancel()
            for shield in self._sending if now >= self._deadline + STALLED else ():
                shield.shield = False

    async def _judge(self, closed_at: float) -> None:
        """Ask, once for each time that the gate closes, whether mark and exemptions let this connection go on."""
        try:
            refused = await self._refused()
        except Exception:
            logger.exception("It cannot be told whether a stream is to end, so it goes on")
            return
        if refused and self._closed_at == closed_at:
            self._deadline = closed_at + self._here.grace

    async def end(self) -> None:
        """Tell the client that it is over."""
        with suppress(OSError):  # it may have gone
            if self._websocket:
                await self._send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": "service restart"})
            else:
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _is_stream(message: Message) -> bool:
    """Tell whether a stream begins: an accepted websocket, or an event stream whose length is not told."""
    if message["type"] != "http.response.start":
        return bool(message["type"] == "websocket.accept")
    headers = {name.lower(): value for name, value in message.get("headers", ())}
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return bool(media_type == EVENT_STREAM) and b"content-length" not in headers


def _is_last(message: Message) -> bool:
    if message["type"] == "http.response.body":
        return not message.get("more_body", False)
    return bool(message["type"] == "websocket.close")
