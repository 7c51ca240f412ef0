"""What the OpenAPI description says of a refusal."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

from fastapi_maintenance.marks import Mark, mark_of

_MEMBERS: dict[str, Any] = {
    "type": {"type": "string", "format": "uri-reference"},
    "title": {"type": "string"},
    "status": {"type": "integer"},
    "detail": {"type": "string", "description": "What to tell people."},
    "mode": {"type": "string", "enum": ["full", "read_only"]},
    "retry_after": {"type": ["integer", "null"], "minimum": 1, "description": "Whole seconds, as in `Retry-After`."},
    "until": {"type": ["string", "null"], "format": "date-time", "description": "When it is expected to end."},
    "applied": {"type": "boolean", "description": "`false` when no code of the application has run."},
}
_PROBLEM: dict[str, Any] = {
    "title": "MaintenanceProblem",
    "type": "object",
    "description": "Problem details (RFC 9457) of a refusal.",
    "properties": _MEMBERS,
    "required": [name for name in _MEMBERS if name != "applied"],
}
_TEXT: dict[str, Any] = {"schema": {"type": "string"}}


def refusal_response(*, always: bool = False) -> dict[str, Any]:
    """Give the response object of a refusal: a literal schema, for a model costs each route 75 µs at import.

    Args:
        always: Whether the operation is forced on.
    """
    return {
        "description": "Always closed for maintenance" if always else "Closed for maintenance",
        "headers": {
            "Retry-After": {
                "description": "Whole seconds after which to come back (RFC 9110 section 10.2.3).",
                "schema": {"type": "integer", "minimum": 1},
            },
            "Maintenance": {"description": "The mode.", "schema": {"type": "string", "enum": ["full", "read_only"]}},
        },
        "content": {
            "application/json": {"schema": _PROBLEM},
            "application/problem+json": {"schema": _PROBLEM},
            "text/html": _TEXT,
            "text/plain": _TEXT,
        },
    }


def describe(app: Any, operations: Callable[[], Iterator[tuple[Any, str]]], code: str) -> None:
    """Make the OpenAPI description of `app` tell of refusals.

    Args:
        app: The application; its `openapi` is wrapped, as FastAPI documents for extending it.
        operations: Gives the routes that a gate covers, each with its path.
        code: The status code of a refusal.
    """
    original = app.openapi
    told: list[Any] = [None]

    def openapi() -> dict[str, Any]:
        schema: dict[str, Any] = original()
        # FastAPI makes a new object when routes have changed.
        if told[0] is not schema:
            told[0] = schema
            for route, path in operations():
                _tell(schema.get("paths", {}).get(path, {}), route, code)
        return schema

    app.openapi = openapi


def _tell(path_item: dict[str, Any], route: Any, code: str) -> None:
    mark = mark_of(route.endpoint)
    if mark is Mark.FORCED_OFF:
        return
    for method in route.methods or ():
        operation = path_item.get(method.lower())
        if operation is not None:
            # Whoever extends the description must not change that of other operations.
            response = deepcopy(refusal_response(always=mark is Mark.FORCED_ON))
            operation.setdefault("responses", {}).setdefault(code, response)
