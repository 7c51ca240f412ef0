"""The middleware: the same decision, for what dependency injection cannot reach."""

import copy
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_maintenance.asgi import copied
from fastapi_maintenance.exemptions import ExemptHandler
from fastapi_maintenance.gate import Gate
from fastapi_maintenance.inflight import Passage
from fastapi_maintenance.maintenance import Maintenance, get_maintenance, overridden
from fastapi_maintenance.marks import Marks, mark_of
from fastapi_maintenance.refusal import Refusal, ResponseHandler, answer_of, deny, own_handler
from fastapi_maintenance.routing import Marked, Operation, operation_of, routed
from fastapi_maintenance.tasks import in_thread, to_the_end

if TYPE_CHECKING:
    from fastapi_maintenance.streams import Streams


class MaintenanceModeMiddleware:
    """Refuses requests while it is closed, for mounts, static files and plain Starlette routes as well.

    Without `maintenance` and `backend` it serves the default object; handlers given to it replace that object's, for
    this middleware only. With `backend` it has an object of its own.

    Args:
        app: The ASGI application.
        maintenance: The object to serve; nothing else can be given with it.
        enable_maintenance: `True` or `False` stands in for switch and windows; marks, exemptions and holds stay.
        backend: Where the state is kept.
        exempt_handler: Gets the request without its body; `True` lets it through. Sync or async.
        response_handler: Gets the request, and the status if it takes two arguments; gives the response. Sync or async.
        close_streams_after: Seconds after which, when the gate closes, open websockets are closed with 1012 and event
            streams (known by their content type) are ended; their `finally` blocks run. Forced-off and exempt ones go
            on, and nothing else is cut. Left out, all go on. It may stand beside `maintenance`.

    Raises:
        ValueError: `close_streams_after` is no number of seconds.
        TypeError: The arguments do not go together, or one has a wrong type.
    """

    covers_everything = True

    def __init__(
        self,
        app: ASGIApp,
        *,
        maintenance: Maintenance | None = None,
        enable_maintenance: bool | None = None,
        backend: object | None = None,
        exempt_handler: ExemptHandler | None = None,
        response_handler: ResponseHandler | None = None,
        close_streams_after: float | None = None,
    ) -> None:
        if maintenance is not None and not isinstance(maintenance, Maintenance):
            raise TypeError(f"maintenance must be a Maintenance, not {type(maintenance).__name__}")
        others = (enable_maintenance, backend, exempt_handler, response_handler)
        if maintenance is not None and any(other is not None for other in others):
            raise TypeError(
                "maintenance= brings its own backend and handlers; give them to Maintenance(...), or leave it out"
            )
        if enable_maintenance is not None and not isinstance(enable_maintenance, bool):
            raise TypeError(f"enable_maintenance must be True, False or None, not {enable_maintenance!r}")
        for name, handler in (("exempt_handler", exempt_handler), ("response_handler", response_handler)):
            if handler is not None and not callable(handler):
                raise TypeError(f"{name} must be callable, not {type(handler).__name__}")
        if close_streams_after is not None and not (_is_number(close_streams_after) and close_streams_after >= 0):
            raise ValueError(f"close_streams_after must be seconds, 0 or more, not {close_streams_after!r}")
        self.app = app
        self._streams = None if close_streams_after is None else _streams(close_streams_after)
        self._maintenance = maintenance
        self._backend = backend
        self._handlers = (exempt_handler, response_handler)
        self._enabled = enable_maintenance
        self._gate: Gate | None = None
        self._bound: Gate | None = None
        self._inner = routed(app)
        self._marked = Marked(self._inner) if self._inner is not None else None
        self._cors: list[CORSMiddleware] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        gate = self._bound or await self._find_gate(scope)
        passage = None if Marks.count and self._may_be_marked(scope) else gate.admit_if_open(scope)
        if passage is None:
            with Passage(gate.owner, scope, None) as passage:
                if await self._lets_through(gate, passage, scope, receive, send):
                    await self._run(gate, passage, scope, receive, send)
            return
        try:
            if self._streams is None:
                await self.app(scope, receive, send)
            else:
                await self._run(gate, passage, scope, receive, send)
        finally:
            passage.leave()

    def _may_be_marked(self, scope: Scope) -> bool:
        if self._marked is None:
            # A middleware hides what it wraps, so only a request tells which application is behind.
            router = self._router(scope)
            if router is None:
                return True
            self._marked = Marked(router)
        return self._marked.may_match(scope)

    async def _lets_through(self, gate: Gate, passage: Passage, scope: Scope, receive: Receive, send: Send) -> bool:
        """Let a request through, or refuse it; the long way, for all that an open state does not decide."""
        operation = self._operation(scope)
        if operation is None:
            # Not noted as decided: where this middleware was mistaken, another gate is to ask.
            return True
        endpoint, docs = operation.endpoint, operation.docs
        refusal = None if docs else gate.refuse_again(scope, endpoint, "middleware")
        if refusal is None:
            refusal = await gate.check(passage, scope, endpoint, "middleware", docs=docs)
        if refusal is None:
            return True
        gate.report(refusal, scope, "middleware", operation.path)
        await self._refuse(refusal, scope, receive, send)
        return False

    async def _run(self, gate: Gate, passage: Passage, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and end its streams when the gate closes to what it was open to."""
        if self._streams is not None and gate.admitted(passage, scope):
            # Routing writes into the scope, so the question is asked with what it was before.
            refused = partial(self._would_refuse, gate, copied(scope))
            await self._streams.run(self.app, scope, receive, send, gate, refused)
        else:
            await self.app(scope, receive, send)

    async def _would_refuse(self, gate: Gate, scope: Scope) -> bool:
        operation = self._operation(scope)
        return operation is not None and await gate.would_refuse(scope, operation.endpoint, docs=operation.docs)

    def _operation(self, scope: Scope) -> Operation | None:
        router = self._router(scope)
        if router is None:
            return Operation(self.app if mark_of(self.app) else scope.get("endpoint"))
        return operation_of(router, scope)

    async def _refuse(self, refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        handler = own_handler(self._application(scope), refusal)
        response = refusal.response if handler is None else await answer_of(handler, refusal, scope)
        if scope["type"] == "websocket":
            await deny(scope, send, response)
            return
        if self._cors is None:
            self._cors = self._cors_inside(scope)
        answer: ASGIApp = response
        for cors in reversed(self._cors):
            outer = copy.copy(cors)
            outer.app = answer
            answer = outer
        await answer(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at the backend before the first request; a wrong environment stops the start."""
        try:
            maintenance = await self._find_maintenance(scope)
            # Its page is read now, not at the first request.
            self._gate = self._gate_for(maintenance)
        except Exception as error:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            raise
        application = self._application(scope)
        if application is not None:
            maintenance.warn_of_probes(application, everything=True)

        async def send_after_goodbye(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                # Afterwards the server may stop the event loop.
                await to_the_end(lambda: in_thread(maintenance.snapshot.in_flight.part))
            await send(message)

        async with maintenance.lifespan():
            await self.app(scope, receive, send_after_goodbye)

    # Which object

    async def _find_maintenance(self, scope: Scope) -> Maintenance:
        """Give this middleware's own object, else the one that serves this application now."""
        if self._backend is not None and self._maintenance is None:
            exempt_handler, response_handler = self._handlers
            self._maintenance = Maintenance(
                backend=self._backend, exempt_handler=exempt_handler, response_handler=response_handler
            )
        return self._maintenance or await overridden(self._application(scope)) or get_maintenance()

    async def _find_gate(self, scope: Scope) -> Gate:
        maintenance = await self._find_maintenance(scope)
        if self._gate is None or self._gate.owner is not maintenance:
            self._gate = self._gate_for(maintenance)
        if self._maintenance is not None:
            # An object of its own stays.
            self._bound = self._gate
        return self._gate

    def _gate_for(self, maintenance: Maintenance) -> Gate:
        exempt_handler, response_handler = self._handlers
        if exempt_handler is None and response_handler is None and self._enabled is None:
            return maintenance.gate
        return Gate(
            maintenance,
            exempt_handler or maintenance.exempt_handler,
            response_handler or maintenance.response_handler,
            enabled=self._enabled,
        )

    # Which application

    def _router(self, scope: Scope) -> Any | None:
        """Give the application whose routes are behind this middleware, else their router."""
        app = scope.get("app")
        if self._inner is None:
            # Below a mount or in a route, "app" is what is around this middleware.
            return app if routed(scope.get("endpoint", app)) is app else None
        return app if getattr(app, "router", None) is self._inner else self._inner

    def _application(self, scope: Scope) -> Any | None:
        router = self._router(scope)
        return router if hasattr(router, "exception_handlers") else scope.get("app")

    def _cors_inside(self, scope: Scope) -> list[CORSMiddleware]:
        """Give the CORS middleware behind this one, outermost first: their headers belong on a refusal, too."""
        found: list[CORSMiddleware] = []
        node: Any = self.app
        while node is not None and node is not self._inner:
            if isinstance(node, CORSMiddleware):
                found.append(node)
            node = getattr(node, "app", None)
        listed = getattr(node if node is not None else scope.get("app"), "user_middleware", [])
        if node is None:
            # A middleware hides what it wraps, so the application's list tells what comes after this one.
            own = next((i for i, entry in enumerate(listed) if entry.cls is type(self)), len(listed))
            listed = listed[own + 1 :]
            found = [] if listed else found
        return found + [
            entry.cls(self.app, *entry.args, **entry.kwargs)
            for entry in listed
            if isinstance(entry.cls, type) and issubclass(entry.cls, CORSMiddleware)
        ]


def _streams(seconds: float) -> "Streams":
    from fastapi_maintenance.streams import Streams  # noqa: PLC0415 - most do without

    return Streams(seconds)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
