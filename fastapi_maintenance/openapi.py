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
_NAME = "MaintenanceProblem"
_PROBLEM: dict[str, Any] = {
    "title": _NAME,
    "type": "object",
    "description": "Problem details (RFC 9457) of a refusal.",
    "properties": _MEMBERS,
    "required": [name for name in _MEMBERS if name != "applied"],
}
_TEXT: dict[str, Any] = {"schema": {"type": "string"}}


def refusal_response(*, always: bool = False, problem: dict[str, Any] = _PROBLEM) -> dict[str, Any]:
    """Give the response object of a refusal: a literal schema, for a model costs each route 75 µs at import.

    Args:
        always: Whether the operation is forced on.
        problem: The schema of the problem, or a reference to it.
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
            "application/json": {"schema": problem},
            "application/problem+json": {"schema": problem},
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
            covered = list(operations())
            problem = _component(schema) if covered else {}
            for route, path in covered:
                _tell(schema.get("paths", {}).get(path, {}), route, code, problem)
        return schema

    app.openapi = openapi


def _component(schema: dict[str, Any]) -> dict[str, Any]:
    """Give a reference to the problem among the components, so that generated clients have one type for it."""
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    if schemas.setdefault(_NAME, deepcopy(_PROBLEM)) != _PROBLEM:
        # The application has something else of that name.
        return _PROBLEM
    return {"$ref": f"#/components/schemas/{_NAME}"}


def _tell(path_item: dict[str, Any], route: Any, code: str, problem: dict[str, Any]) -> None:
    mark = mark_of(route.endpoint)
    if mark is Mark.FORCED_OFF:
        return
    always = mark is Mark.FORCED_ON
    by_itself = refusal_response(always=always)
    for method in route.methods or ():
        operation = path_item.get(method.lower())
        if operation is None:
            continue
        responses = operation.setdefault("responses", {})
        if responses.get(code, by_itself) == by_itself:
            # Whoever extends the description must not change that of other operations.
            responses[code] = deepcopy(refusal_response(always=always, problem=problem))
