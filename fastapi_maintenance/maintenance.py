"""The `Maintenance` object, the default one, the route class, and which object serves a request."""

import inspect
import logging
import secrets
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from functools import cache, cached_property
from typing import Any, ClassVar

from fastapi import Depends
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from fastapi_maintenance.asgi import path_of
from fastapi_maintenance.audit import record, whoami
from fastapi_maintenance.backends import EnvVarBackend
from fastapi_maintenance.exemptions import ExemptHandler
from fastapi_maintenance.gate import Gate, current_owner
from fastapi_maintenance.holds import Drain, HoldContext, hold_template
from fastapi_maintenance.inflight import NOTES, InFlight, Passage, Worker, noted
from fastapi_maintenance.marks import Mark, mark_of
from fastapi_maintenance.openapi import describe, refusal_response
from fastapi_maintenance.refusal import ResponseHandler, answer_of, own_handler, prepare_to_raise
from fastapi_maintenance.routing import operations_of
from fastapi_maintenance.settings import (
    DEFAULT_SCOPE,
    PREFIX,
    MaintenanceSettings,
    backend_from_url,
    mode_variable,
)
from fastapi_maintenance.snapshot import snapshot_of
from fastapi_maintenance.state import (
    OPEN,
    MaintenanceState,
    MaintenanceStatus,
    Mode,
    Window,
    checked_message,
    not_over,
    planned_window,
    utcnow,
)
from fastapi_maintenance.tasks import in_thread, to_the_end
from fastapi_maintenance.telemetry import Telemetry

logger = logging.getLogger("fastapi_maintenance")

_STACK = "fastapi_middleware_astack"
"""Key of the ASGI scope for what FastAPI leaves with the request.

A passage of the guard ends there, behind everything that dependencies have opened: a session may commit only as it is
closed. Where it is absent nobody could tell of the end.
"""

PROBES = frozenset({"/health", "/healthz", "/livez", "/readyz", "/ready", "/live"})
"""Paths at which a service is commonly probed."""


class Maintenance:
    """The maintenance mode of a service, or of a part of it.

    Args:
        settings: How it is configured; read from the environment when left out.
        backend: Where the state is kept; made from `settings.backend` when left out.
        exempt_handler: Gets the request without its body; `True` lets it through. Sync or async.
        response_handler: Gets the request, and the status if it takes two arguments; gives the response of a refusal.
            Sync or async.
        scope: A name for an independent switch; it changes the variables that are read and where the state is kept.

    Raises:
        ValueError: The environment, a setting or the scope's name is wrong.
        TypeError: `backend` is no backend, or a handler cannot be called.
        BackendError: The backend cannot be made.
    """

    def __init__(
        self,
        settings: MaintenanceSettings | None = None,
        *,
        backend: object | None = None,
        exempt_handler: ExemptHandler | None = None,
        response_handler: ResponseHandler | None = None,
        scope: str = DEFAULT_SCOPE,
    ) -> None:
        if settings is not None and not isinstance(settings, MaintenanceSettings):
            raise TypeError(
                f"settings must be a MaintenanceSettings, not {type(settings).__name__}; a backend goes to backend="
            )
        self.scope = scope
        self.settings = MaintenanceSettings.for_scope(scope) if settings is None else settings.with_state_of(scope)
        self.exempt_handler = exempt_handler
        self.response_handler = response_handler
        self.use_backend(_backend_of(self.settings, scope) if backend is None else backend)
        self.gate = Gate(self, exempt_handler, response_handler)
        self.telemetry = Telemetry(scope, self.last_known_mode)
        self._warned: set[str] = set()

    def use_backend(self, backend: object) -> None:
        """Keep the state in `backend` from now on.

        Raises:
            TypeError: It is no backend.
        """
        self.snapshot = snapshot_of(backend)
        self.snapshot.refresh_every(self.settings.refresh_interval)
        self.snapshot.in_flight.assumes(self.settings.on_backend_error)
        self.backend = backend
        if not isinstance(backend, EnvVarBackend) or backend.var_name != mode_variable(self.scope):
            _warn_of_idle_variable(self.scope, backend)

    def __repr__(self) -> str:
        return f"Maintenance(scope={self.scope!r}, backend={self.snapshot.name})"

    # For applications

    @cached_property
    def guard(self) -> Callable[[HTTPConnection], Awaitable[None]]:
        """Refuse a request while it is closed; a dependency for HTTP and websockets: `Depends(maintenance.guard)`.

        It raises `MaintenanceActive`.
        """
        gate = self.gate

        # A function, for of a method FastAPI asks more at each request.
        async def guard(connection: HTTPConnection) -> None:
            scope = connection.scope
            stack = scope.get(_STACK)
            if stack is not None:
                passage = gate.admit_if_open(scope, scope.get("endpoint"))
                if passage is not None:
                    stack.push(passage)
                    return
            await self._check(scope, exempt=False)

        vars(guard)["maintenance"] = self
        return guard

    def guard_unless(self, exempt: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
        """Give a guard that first solves `Depends(exempt)` and lets the request through when that is true.

        Args:
            exempt: A dependency. It runs on every request, so it gives a false value rather than raising.
        """
        if not callable(exempt):
            raise TypeError(f"guard_unless takes a dependency, a callable, not {type(exempt).__name__}")

        async def guard(connection: HTTPConnection, reason: Any = Depends(exempt)) -> None:  # noqa: B008 - FastAPI's way
            await self._check(connection.scope, exempt=bool(reason))

        vars(guard)["maintenance"] = self
        return guard

    async def _check(self, scope: Scope, *, exempt: bool) -> None:
        stack, passage = scope.get(_STACK), None
        if stack is not None:
            passage = Passage(self, scope, None)
            stack.push(passage)
        endpoint = scope.get("endpoint")
        refusal = None if exempt else self.gate.refuse_again(scope, endpoint, "guard")
        if refusal is None:
            refusal = await self.gate.check(passage, scope, endpoint, "guard", exempt=exempt)
        if refusal is not None:
            self.gate.report(refusal, scope, "guard", path_of(scope))
            error = refusal.error()
            prepare_to_raise(error, scope)
            raise error

    async def status(self) -> MaintenanceStatus:
        """Give what is true now; a plain coroutine and a dependency: `Depends(maintenance.status)`."""
        return await self.gate.status()

    @property
    def responses(self) -> dict[int | str, dict[str, Any]]:
        """The refusal for OpenAPI: `APIRouter(responses=maintenance.responses)`; `describe(app)` needs no list."""
        return {self.settings.status_code: refusal_response()}

    def describe(self, app: Any) -> None:
        """Make the OpenAPI description of `app` tell of the refusal, for each operation behind a gate of this object.

        Routes of the route class tell by themselves. Operations that are forced off have no refusal, and a response
        that a route itself describes for the same code stays.

        Args:
            app: The FastAPI application; each mounted one has a description of its own.
        """
        describe(app, lambda: self._covered(app), str(self.settings.status_code))

    def warn_of_probes(self, app: Any, *, everything: bool = False) -> None:
        """Warn of health probes of `app` that would be refused: a restart loop, or a service out of rotation.

        Args:
            app: The application.
            everything: Whether a gate stands before the whole application.
        """
        for route, path in self._covered(app, everything=everything):
            stays_open = mark_of(route.endpoint) is Mark.FORCED_OFF or self.gate.exempts_path(path)
            asked = route.methods is None or "GET" in route.methods
            if path in PROBES and asked and not stays_open and path not in self._warned:
                self._warned.add(path)
                logger.warning(
                    "The probe %s is refused during maintenance: mark it @force_maintenance_mode_off, or add it to "
                    "%sEXEMPT_PATHS",
                    path,
                    PREFIX,
                    extra={"path": path, "scope": self.scope},
                )

    def _covered(self, app: Any, *, everything: bool = False) -> Iterator[tuple[Any, str]]:
        """Give the operations of `app` that a gate of this object covers, as included, each with its path."""
        everything = everything or any(
            getattr(entry.cls, "covers_everything", False)
            and entry.kwargs.get("backend") is None
            and self._serves(app, entry.kwargs.get("maintenance"), None)
            for entry in app.user_middleware
        )
        for original, context in operations_of(app):
            if (
                everything
                or (isinstance(original, MaintenanceRoute) and self._serves(app, original.maintenance, _guarding(app)))
                or self._guards(getattr(context, "dependant", None))
            ):
                yield context, context.path_format

    def _serves(self, app: Any, bound: object, guarding: object) -> bool:
        """Tell whether a gate serves this object, as far as it can be known before a request.

        Args:
            app: The application.
            bound: The object that the gate is bound to.
            guarding: The object that an unbound one serves before the default object.
        """
        if bound is None and get_maintenance in getattr(app, "dependency_overrides", {}):
            return True
        return (bound or guarding or _default.maintenance) is self

    def _guards(self, dependant: Any) -> bool:
        return dependant is not None and any(
            owner_of_guard(below.call) is self or self._guards(below) for below in dependant.dependencies
        )

    def last_known_mode(self) -> Mode | None:
        """Give the mode while active, as it was known last, without waiting; for code that is not async."""
        return self.gate.last_known_mode()

    @cached_property
    def route_class(self) -> type["MaintenanceRoute"]:
        """A `MaintenanceRoute` that serves this object: `APIRouter(route_class=maintenance.route_class)`."""

        class BoundMaintenanceRoute(MaintenanceRoute):
            maintenance = self
            bound = self.gate
            refusal_code = self.settings.status_code

        return BoundMaintenanceRoute

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncGenerator[None]:
        """Ask a distant backend before the first request and ever after, and listen to one that tells. Optional.

        `FastAPI(lifespan=maintenance.lifespan)`, or `async with maintenance.lifespan(app):` inside one of your own.
        """
        self.telemetry.begin()
        if app is not None:
            self.warn_of_probes(app)
        with Passage(self, {}, None):
            await self.snapshot.first_look(self.settings.read_timeout)
            watching = self.snapshot.watching(self.settings.refresh_interval, self.settings.read_timeout)
            async with watching, _attached(self.snapshot.in_flight):
                yield

    # For operators

    async def workers(self) -> tuple[Worker, ...]:
        """Give the processes that serve requests behind gates of this object's backend, as far as the backend reaches.

        Raises:
            BackendError: It cannot be told now.
        """
        return await self.snapshot.in_flight.workers()

    async def enable(
        self,
        *,
        message: str | None = None,
        retry_after: int | None = None,
        until: datetime | None = None,
        mode: str = "full",
        by: str | None = None,
    ) -> MaintenanceStatus:
        """Turn the switch on, or say it anew.

        Args:
            message: What to tell people, at most 2 KiB.
            retry_after: Whole seconds after which clients may come back, where the end is unknown.
            until: When it ends by itself, with a time zone.
            mode: `full` or `read_only`.
            by: Who did it; user@host:pid when left out.

        Returns:
            The new status.

        Raises:
            ValueError: An argument breaks a rule.
            TypeError: An argument has a wrong type.
            BackendReadOnlyError: The backend can only be read.
            BackendError: It could not be stored.
        """
        by = by or whoami()

        def on(state: MaintenanceState) -> MaintenanceState:
            return state.with_switch(utcnow(), message=message, retry_after=retry_after, until=until, mode=mode, by=by)

        on(OPEN)
        await self.snapshot.holds.switch(on, on=True)
        return await self._recorded("enabled", by, message)

    async def disable(self, *, by: str | None = None) -> MaintenanceStatus:
        """Turn the switch off and end orphans. Live holds stay; `status.holds` tells who still keeps it closed.

        Args:
            by: Who did it, for the log.

        Returns:
            The new status.

        Raises:
            ValueError: `by` breaks a rule.
            TypeError: `by` is no string.
            BackendReadOnlyError: The backend can only be read.
            BackendError: It could not be stored.
        """
        by = checked_message(by, "by") or whoami()
        await self.snapshot.holds.switch(MaintenanceState.without_switch, on=False)
        return await self._recorded("disabled", by, None)

    async def schedule(
        self,
        start: datetime,
        end: datetime,
        *,
        message: str | None = None,
        mode: str = "full",
        by: str | None = None,
    ) -> Window:
        """Plan a window: closed from `start` (inclusive) to `end` (exclusive).

        Args:
            start: With a time zone.
            end: With a time zone, after `start`, in the future.
            message: What to tell people, at most 2 KiB.
            mode: `full` or `read_only`.
            by: Who did it.

        Returns:
            The window; its `id` is for `unschedule`.

        Raises:
            ValueError: An argument breaks a rule.
            TypeError: An argument has a wrong type.
            BackendReadOnlyError: The backend can only be read.
            BackendError: It could not be stored.
        """
        by = by or whoami()
        window = planned_window(secrets.token_hex(4), start, end, message=message, mode=mode, by=by)
        not_over(window.end, "end", utcnow())
        await self.snapshot.change(lambda state: state.with_window(window))
        await self._recorded(f"window {window.id} scheduled", by, message)
        return window

    async def unschedule(self, window_id: str) -> MaintenanceStatus:
        """Drop a planned window, or end one that is running.

        Returns:
            The new status.

        Raises:
            LookupError: There is none of this id.
            BackendReadOnlyError: The backend can only be read.
            BackendError: It could not be stored.
        """
        await self.snapshot.change(lambda state: state.without_window(window_id))
        return await self._recorded(f"window {window_id} unscheduled", whoami(), None)

    async def _recorded(self, what: str, by: str, why: str | None) -> MaintenanceStatus:
        status = await self.status()
        record(what, scope=self.scope, by=by, why=why, revision=status.revision)
        return status

    def on(
        self,
        *,
        message: str | None = None,
        mode: str = "full",
        drain: float | None = None,
        min_workers: int = 1,
        on_failure: str = "lift",
        by: str | None = None,
    ) -> HoldContext:
        """Keep it closed for the time of a block (`async with`), or of each call of an `async def` (as a decorator).

        Holds overlap: it stays closed until the last one ends, and then is what it was before.

        Args:
            message: What to tell people, at most 2 KiB.
            mode: `full` or `read_only`.
            drain: Seconds to wait until no admitted request is running and none can start, as far as the backend
                reaches: process (memory, environment), machine (file) or fleet (Redis). 0: one try. Left out: no wait.
            min_workers: How many workers a drain must find; 0 before the service starts.
            on_failure: `lift`: it ends with the block, whatever happens. `keep`: when the block raises, it stays
                closed until `disable()`.
            by: Who did it.

        Raises:
            ValueError: An argument breaks a rule.
            BackendError: On entering, when it could not be stored. The block has not run then, nor after these:
            DrainUnsupported: The backend or the platform cannot promise that nobody is running.
            DrainWouldDeadlock: The request that asks is counted itself; mark its route forced off.
            NoWorkers: Fewer than `min_workers` are attached.
            DrainTimeout: Requests were still running after `drain` seconds.
            DrainIncomplete: A worker did not answer.
        """
        template = hold_template(message=message, mode=mode, on_failure=on_failure, by=by)
        return HoldContext(
            lambda: (self.snapshot.holds, self.scope), template, Drain.asked(drain, min_workers, template.mode)
        )


@asynccontextmanager
async def _attached(in_flight: InFlight) -> AsyncGenerator[None]:
    """Be a worker for the time of the block; to come and to go may take a moment, which must not block the loop."""
    await in_thread(in_flight.attach)
    try:
        yield
    finally:
        await to_the_end(lambda: in_thread(in_flight.detach))


def _warn_of_idle_variable(scope: str, backend: object) -> None:
    variable = mode_variable(scope)
    try:
        idle = EnvVarBackend(variable).peek_state().switch is not None
    except ValueError:
        idle = True
    if idle:
        logger.warning(
            "%s is set but closes nothing: the state is kept in %s. Unset it, or use the env backend",
            variable,
            type(backend).__name__,
        )


class MaintenanceRoute(APIRoute):
    """`APIRouter(route_class=MaintenanceRoute)`: refuses before the body is read and before any dependency runs.

    It serves, the first that exists: what `app.dependency_overrides[get_maintenance]` gives, the object whose gate this
    request already came through, the object whose guard stands in the app's dependencies, the default object. 405 stays
    405.
    """

    # FastAPI asks each included route, several times a request, whether it is an `APIRoute`, which takes longer with
    # each class between the two (issue 7): so there is none.

    maintenance: ClassVar[Maintenance | None] = None
    """The object that the class is bound to."""

    bound: ClassVar[Gate | None] = None
    """Its gate."""

    refusal_code: ClassVar[int] = 503

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.bound is None and _default.maintenance is None:
            _check_environment()

    @property
    def responses(self) -> dict[int | str, dict[str, Any]]:
        """The responses for OpenAPI, asked late: a mark may be put on above the route decorator."""
        mark, code = mark_of(getattr(self, "endpoint", None)), self.refusal_code
        if mark is Mark.FORCED_OFF or code in self._responses or str(code) in self._responses:
            return self._responses
        return {code: refusal_response(always=mark is Mark.FORCED_ON), **self._responses}

    @responses.setter
    def responses(  # pyright: ignore[reportIncompatibleVariableOverride] - asked late
        self, responses: dict[int | str, dict[str, Any]]
    ) -> None:
        # Before FastAPI 0.137 an included route gets what the original one told when it was included.
        told = responses.get(self.refusal_code)
        ours = told is not None and told in (refusal_response(), refusal_response(always=True))
        self._responses = {k: v for k, v in responses.items() if v is not told} if ours else responses

    def gate(self, scope: Scope) -> Gate | Awaitable[Gate]:
        """Give the gate of the object that serves this request; an override may take its time."""
        app: Any = scope.get("app")
        try:
            overriding = get_maintenance in app.dependency_overrides
            # Mostly nothing but the default object can be meant, and that is known without asking further.
            default = not (overriding or app.router.dependencies or NOTES in scope)
        except AttributeError:  # no FastAPI application is around
            overriding = default = False
        if default:
            return (_default.maintenance or get_maintenance()).gate
        return _overriding_gate(app, scope) if overriding else _unbound_gate(app, scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or run the operation."""
        methods = self.methods
        if methods is None or scope["method"] not in methods:
            await super().handle(scope, receive, send)
            return
        gate = type(self).bound
        if gate is None:
            found = self.gate(scope)
            gate = found if isinstance(found, Gate) else await found
        passage = gate.admit_if_open(scope, self.endpoint)
        if passage is not None:
            try:
                await super().handle(scope, receive, send)
            finally:
                passage.leave()
            return
        passage = Passage(gate.owner, scope, None)
        try:
            refusal = gate.refuse_again(scope, self.endpoint, "route") or await gate.check(
                passage, scope, self.endpoint, "route"
            )
            if refusal is None:
                await super().handle(scope, receive, send)
                return
            gate.report(refusal, scope, "route", path_of(scope))
            handler = own_handler(scope.get("app"), refusal)
            response = refusal.response if handler is None else await answer_of(handler, refusal, scope)
            await response(scope, receive, send)
        finally:
            passage.leave()


def _unbound_gate(app: Any, scope: Scope) -> Gate:
    passed = _passed(scope) if NOTES in scope else None
    return (passed or _guarding(app) or get_maintenance()).gate


async def _overriding_gate(app: Any, scope: Scope) -> Gate:
    given = await overridden(app)
    return _unbound_gate(app, scope) if given is None else given.gate


@cache
def _check_environment() -> None:
    """Stop the start where the environment is wrong, whichever object there will be: the first request is too late.

    Not where only the default object could not be made: it may never be, or its directory come with the lifespan.
    """
    if MaintenanceSettings().backend == "env":
        EnvVarBackend(mode_variable(DEFAULT_SCOPE))


def _backend_of(settings: MaintenanceSettings, scope: str) -> object:
    """Give the backend that is configured; errors name the variable."""
    if settings.backend == "env":
        # What is wrong there is the mode, and says so.
        return backend_from_url("env", scope)
    with settings.naming("backend"):
        backend = backend_from_url(settings.backend, scope)
        snapshot_of(backend)
        return backend


class _Default:
    """What stands behind `get_maintenance()`."""

    def __init__(self) -> None:
        self.maintenance: Maintenance | None = None
        self.lock = threading.RLock()


_default = _Default()


def get_maintenance() -> Maintenance:
    """Give the default object, made from the environment at first use; also a dependency, to be overridden in tests.

    Raises:
        ValueError: The environment is wrong.
        BackendError: The backend cannot be made.
    """
    maintenance = _default.maintenance
    if maintenance is None:
        with _default.lock:
            # Somebody else may have made it while this one waited.
            maintenance = _default.maintenance = _default.maintenance or Maintenance()
    return maintenance


def set_default_backend(backend: object) -> None:
    """Make the default object keep its state in `backend`."""
    with _default.lock:
        if _default.maintenance is None:
            _default.maintenance = Maintenance(backend=backend)
        else:
            _default.maintenance.use_backend(backend)


def current_maintenance() -> Maintenance:
    """Give the object whose gate the current request or lifespan came through, else the default object."""
    owner = current_owner()
    return owner if isinstance(owner, Maintenance) else get_maintenance()


async def overridden(app: object) -> Maintenance | None:
    """Give what `app.dependency_overrides[get_maintenance]` gives, `None` where there is no override.

    Raises:
        TypeError: It gives no `Maintenance`.
    """
    override = getattr(app, "dependency_overrides", {}).get(get_maintenance)
    if override is None:
        return None
    given = override()
    if inspect.isawaitable(given):
        given = await given
    if not isinstance(given, Maintenance):
        raise TypeError(
            f"dependency_overrides[get_maintenance] gave a {type(given).__name__}; it must give a Maintenance"
        )
    return given


def _passed(scope: Scope) -> Maintenance | None:
    """Give the object whose gate a request has come through."""
    return next((passage.owner for passage in noted(scope) if isinstance(passage.owner, Maintenance)), None)


def _guarding(app: Any) -> Maintenance | None:
    """Give the object whose guard stands in the dependencies of `app`."""
    for depends in getattr(getattr(app, "router", None), "dependencies", ()):
        owner = owner_of_guard(depends.dependency)
        if owner is not None:
            return owner
    return None


def owner_of_guard(dependency: Any) -> Maintenance | None:
    """Give the object whose guard a dependency is."""
    owner = getattr(dependency, "maintenance", None)
    return owner if isinstance(owner, Maintenance) else None
