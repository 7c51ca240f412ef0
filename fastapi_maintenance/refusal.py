"""What a closed gate answers."""

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from random import randint
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from fastapi_maintenance.asgi import connection, headers_of
from fastapi_maintenance.errors import MaintenanceActive
from fastapi_maintenance.exemptions import name_of
from fastapi_maintenance.negotiation import preferred
from fastapi_maintenance.settings import MaintenanceSettings
from fastapi_maintenance.state import MaintenanceStatus, utcnow

if TYPE_CHECKING:
    from fastapi_maintenance.page import Page

logger = logging.getLogger("fastapi_maintenance")

ResponseHandler: TypeAlias = Callable[..., Response | Awaitable[Response]]
"""Gets the request, and the status when it has a second positional parameter without a default."""

GateName: TypeAlias = Literal["route", "middleware", "guard"]
"""Which gate refuses."""

_FORMS = ("application/json", "application/problem+json", "text/html", "text/plain")
_EVENT_STREAM = "text/event-stream"
_RECONNECT_AFTER = 30
_KNOWN_REQUESTS = 64
"""Requests, by all that their answer depends on, that are remembered while a status holds."""

_SHORT = 256
"""Bytes of an `Accept` that is worth remembering: a browser's has about 130."""

_KNOWN_CODES = frozenset(HTTPStatus)

DENIAL_EXTENSION = "websocket.http.response"
TRY_AGAIN_LATER = 1013
"""Close code "Try Again Later" (IANA WebSocket Close Code Number registry)."""


class _Shared(Response):
    """An answer that is made once and sent many times."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Send it, each time with headers of its own: somebody on its way may write into them."""
        headers = list(self.raw_headers)
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})

    def copy(self) -> Response:
        """Give the same answer for one request."""
        own = Response(self.body, self.status_code, media_type=self.media_type)
        own.raw_headers = list(self.raw_headers)
        return own


class Refusal:
    """What a closed gate says to a request, and to others that it says the same to.

    Attributes:
        status: The status at the moment of the refusal.
        response: What is sent when no handler of the application answers.
        detail: What to tell people.
    """

    def __init__(self, status: MaintenanceStatus, response: Response, detail: str) -> None:
        self.status = status
        self.response = response
        self.detail = detail

    def error(self) -> MaintenanceActive:
        """Give it as an exception: what is raised, and what handlers of the application get."""
        response = self.response.copy() if isinstance(self.response, _Shared) else self.response
        return MaintenanceActive(self.status, response, self.detail)

    def without_body(self) -> "Refusal":
        """Give the same with the headers alone; a handler may give one response many times, so that is left alone."""
        bare = Response(status_code=self.response.status_code, background=self.response.background)
        bare.raw_headers = list(self.response.raw_headers)
        return Refusal(self.status, bare, self.detail)


class _Made:
    """The built-in answers of a gate while one status holds; what says the same is not made again.

    Attributes:
        status: It.
        by_form: The answers, by media type and `applied`.
        by_request: The same, by all that is known before one is looked for: `Accept`, method, and the gate.
    """

    def __init__(self, status: MaintenanceStatus | None) -> None:
        self.status = status
        self.by_form: dict[tuple[str, bool | None], Refusal] = {}
        self.by_request: dict[tuple[bytes, str | None, GateName], Refusal] = {}

    def remember(self, request: tuple[bytes, str | None, GateName], refusal: Refusal) -> None:
        """Keep what a request was answered, unless it is a rare one."""
        if len(self.by_request) < _KNOWN_REQUESTS and len(request[0]) <= _SHORT:
            self.by_request[request] = refusal


class Refusals:
    """Makes the refusals of one gate.

    Args:
        settings: Message, `Retry-After` and status code.
        handler: The user's own answer, sync or async.
    """

    def __init__(self, settings: MaintenanceSettings, handler: ResponseHandler | None) -> None:
        if handler is not None and not callable(handler):
            raise TypeError(f"response_handler must be callable, not {type(handler).__name__}")
        self._settings = settings
        # Not at the first refusal: what is installed may be replaced while it is closed.
        with settings.naming("page_template"):
            self._page = _page(settings.page_template)
        self._handler = handler
        self._takes_status = handler is not None and _takes_two(handler)
        self._made = _Made(None)

    def again(self, scope: Scope, status: MaintenanceStatus, gate: GateName) -> Refusal | None:
        """Give the refusal that such a request got with the same `status` object, `None` where none did."""
        made = self._made
        return made.by_request.get((_accept(scope), scope.get("method"), gate)) if made.status is status else None

    async def make(self, scope: Scope, status: MaintenanceStatus, gate: GateName, *, again: bool = True) -> Refusal:
        """Make the refusal of one request.

        Args:
            scope: The ASGI scope.
            status: The status; where it is not active (a route forced on) the settings fill in.
            gate: Which one refuses.
            again: Whether such a request is refused as long as the status holds.
        """
        settings = self._settings
        # No code of the application has run before the others; for a guard, which is a dependency, nobody can say.
        applied = None if gate == "guard" else False
        if not status.active:
            status = replace(
                status,
                active=True,
                mode="full",
                phase="closed",
                message=settings.message,
                retry_after=settings.retry_after,
            )
        if settings.retry_after_jitter and status.retry_after is not None:
            later = randint(0, settings.retry_after_jitter)  # noqa: S311 - spreads clients, guards nothing
            status = replace(status, retry_after=status.retry_after + later)
        method = scope.get("method")
        streams = settings.event_streams == "retry" and method == "GET"
        accept = _accept(scope)
        form = preferred(accept.decode("latin-1"), (*_FORMS, _EVENT_STREAM) if streams else _FORMS)
        own = None
        if form == _EVENT_STREAM:
            own = _try_again(status)
        elif self._handler is not None:
            own = await self._ask(self._handler, scope, status)
        if own is not None:
            refusal = Refusal(status, _marked(own, status), status.message or settings.message)
        elif form == "text/html":
            # The page tells the time.
            refusal = self._make(form, status, applied=applied)
        else:
            made = self._made
            if made.status is not status:
                made = _Made(status)
            if again:
                self._made = made
            refusal = made.by_form.get((form, applied)) or self._make(form, status, applied=applied)
            made.by_form[form, applied] = refusal
            if again and self._handler is None and method != "HEAD":
                made.remember((accept, method, gate), refusal)
        return refusal if method != "HEAD" else refusal.without_body()

    def _make(self, form: str, status: MaintenanceStatus, *, applied: bool | None) -> Refusal:
        code = self._settings.status_code
        message = _sendable(status.message or self._settings.message)
        headers = {"Vary": "Accept", **_marks(status)}
        if status.retry_after is not None:
            headers["Retry-After"] = str(status.retry_after)
        if form == "text/html":
            page = self._page
            if page.content_security_policy is not None:
                headers["Content-Security-Policy"] = page.content_security_policy
            body: str | bytes = page.render(status, message, utcnow())
        elif form == "text/plain":
            body = _plain(message, status)
        else:
            body = bytes(JSONResponse(_members(message, status, code, applied)).body)
        response = _Shared(body, code, headers, media_type=form)
        return Refusal(status, response, status.message or self._settings.message)

    async def _ask(self, handler: ResponseHandler, scope: Scope, status: MaintenanceStatus) -> Response | None:
        request = connection(scope)
        try:
            answer = handler(request, status) if self._takes_status else handler(request)
            if inspect.isawaitable(answer):
                answer = await answer
        except Exception:
            logger.exception("response_handler %s raised; the built-in answer is sent", name_of(handler))
            return None
        if isinstance(answer, Response):
            return answer
        logger.error(
            "response_handler %s gave a %s; it must give a Response. The built-in answer is sent",
            name_of(handler),
            type(answer).__name__,
        )
        return None


def _page(template: Path | None) -> "Page":
    from fastapi_maintenance.page import Page  # noqa: PLC0415 - for who has a gate

    return Page(template)


def _members(message: str, status: MaintenanceStatus, code: int, applied: bool | None) -> dict[str, object]:  # noqa: FBT001 - a member
    """Give the members of problem details (RFC 9457 section 3.1) and our own."""
    members: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(code).phrase if code in _KNOWN_CODES else "Closed for maintenance",
        "status": code,
        "detail": message,
        "mode": status.mode,
        "retry_after": status.retry_after,
        "until": None if status.until is None else status.until.isoformat().replace("+00:00", "Z"),
    }
    return members if applied is None else {**members, "applied": applied}


def _marks(status: MaintenanceStatus) -> dict[str, str]:
    """Give the headers that every refusal has."""
    return {"Cache-Control": "no-store", "Maintenance": status.mode or "full"}


def _marked(own: Response, status: MaintenanceStatus) -> Response:
    """Give the user's answer with the headers that every refusal has."""
    for name, value in _marks(status).items():
        own.headers.setdefault(name, value)
    return own


def _plain(message: str, status: MaintenanceStatus) -> str:
    lines = [message]
    if status.until is not None:
        lines.append(f"Expected end: {status.until:%Y-%m-%d %H:%M} UTC")
    if status.retry_after is not None:
        lines.append(f"Try again in {status.retry_after} s")
    return "\n".join(lines) + "\n"


def _try_again(status: MaintenanceStatus) -> Response:
    """Give an event stream that ends at once and tells an `EventSource` when to connect again (HTML section 9.2)."""
    after = status.retry_after if status.retry_after is not None else _RECONNECT_AFTER
    return Response(f"retry: {after * 1000}\n\n", media_type=_EVENT_STREAM, headers={"Vary": "Accept"})


def _accept(scope: Scope) -> bytes:
    headers = headers_of(scope)
    try:
        once: dict[bytes, bytes] = dict(headers)
    except TypeError:  # names that cannot be hashed
        once = {}
    if len(once) == len(headers):
        return bytes(once.get(b"accept", b""))
    return b",".join([value for name, value in headers if name == b"accept"])


def _sendable(message: str) -> str:
    """Replace lone surrogates, which only a document written by hand can have and no answer can carry."""
    return message.encode("utf-8", "replace").decode()


def _takes_two(handler: ResponseHandler) -> bool:
    """Tell whether the second positional parameter must be given."""
    try:
        parameters = inspect.signature(handler).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    return len(positional) > 1 and positional[1].default is inspect.Parameter.empty


# Sending


def prepare_to_raise(refusal: MaintenanceActive, scope: Scope) -> None:
    """Make the application answer `refusal` when it is raised, with no wiring by the user.

    A handler that the application registered for `MaintenanceActive` goes first, then one for the status code. The
    dictionaries are those of its `ExceptionMiddleware`; without one the error renders as any `HTTPException` does.
    """
    registered = scope.get("starlette.exception_handlers")
    if registered is None:
        return
    by_class, by_status = registered
    chosen = by_class.setdefault(MaintenanceActive, render)
    if chosen is not render and not isinstance(chosen, _Refusing):
        by_class[MaintenanceActive] = chosen = _Refusing(chosen, chosen)
    other = by_status.get(refusal.status_code)
    if other is not None and not isinstance(other, _Refusing):
        by_status[refusal.status_code] = _Refusing(other if chosen is render else chosen, other)


async def render(conn: HTTPConnection, refusal: MaintenanceActive) -> Response | None:
    """Answer as the refusal says; the exception handler that is used where the application has none."""
    if isinstance(conn, WebSocket):
        await deny(conn.scope, conn.send, refusal.response)
        return None
    return refusal.response


class _Refusing:
    """Has the exception handler `chosen` answer refusals, over websockets too, and leaves other errors to `other`."""

    def __init__(self, chosen: Any, other: Any) -> None:
        self._chosen = chosen
        self._other = other

    async def __call__(self, conn: HTTPConnection, error: Exception) -> Response | None:
        if not isinstance(error, MaintenanceActive):
            return await _call(self._other, conn, error)
        answer = await _asked(self._chosen, conn, error)
        if not isinstance(conn, WebSocket):
            return answer or error.response
        if answer is not None:
            await deny(conn.scope, conn.send, answer)
        return None


def own_handler(app: object, refusal: Refusal) -> Any | None:
    """Give an application's own handler for `MaintenanceActive`, else for the status code; `None` where it has none.

    For a gate outside of the application's own exception handling.
    """
    registered: Mapping[Any, Any] = getattr(app, "exception_handlers", {})
    return registered.get(MaintenanceActive) or registered.get(refusal.response.status_code)


async def answer_of(handler: Any, refusal: Refusal, scope: Scope) -> Response:
    """Give what the application's own handler makes of `refusal`."""
    return await _asked(handler, connection(scope), refusal.error()) or refusal.response


async def _asked(handler: Any, conn: HTTPConnection, refusal: MaintenanceActive) -> Response | None:
    """Give what an exception handler answers, `None` for nothing; one that raises or gives nonsense is logged."""
    try:
        answer = await _call(handler, conn, refusal)
    except Exception:
        logger.exception("exception handler %s raised; the refusal is sent as it stands", name_of(handler))
        return refusal.response
    if answer is None or isinstance(answer, Response):
        return answer
    logger.error(
        "exception handler %s gave a %s, not a Response; the refusal is sent as it stands",
        name_of(handler),
        type(answer).__name__,
    )
    return refusal.response


async def _call(handler: Any, conn: HTTPConnection, error: Exception) -> Response | None:
    """Call an exception handler as Starlette does: a sync one in a thread."""
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__):
        answer: Response | None = await handler(conn, error)
    else:
        answer = await run_in_threadpool(handler, conn, error)
    return answer


async def deny(scope: Scope, send: Send, app: ASGIApp) -> None:
    """Answer a websocket handshake with what `app` (a response) answers to HTTP, or with close 1013.

    One body in one message: some servers lose a streamed denial.
    """
    if DENIAL_EXTENSION not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": "maintenance"})
        return
    start: Message = {}
    body = bytearray()

    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError  # pragma: no cover - never reached

    async def collect(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            body.extend(message.get("body", b""))

    await app({**scope, "type": "http", "method": "GET", "extensions": {}}, receive, collect)
    headers = [(k, v) for k, v in start["headers"] if k.lower() not in {b"content-length", b"transfer-encoding"}]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": f"{DENIAL_EXTENSION}.start", "status": start["status"], "headers": headers})
    await send({"type": f"{DENIAL_EXTENSION}.body", "body": bytes(body)})
