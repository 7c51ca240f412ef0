"""Which `Maintenance` an operator means by the name of an object or of an application."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

from fastapi_maintenance.maintenance import Maintenance, MaintenanceRoute, get_maintenance, overridden, owner_of_guard
from fastapi_maintenance.routing import operations_of


async def maintenance_named(name: str, scope: str | None = None) -> Maintenance:
    """Give the object that `module:attribute` names, or the one whose gate stands in the application it names.

    Args:
        name: What to import, as uvicorn is told it.
        scope: Which one, where an application has several.

    Raises:
        ValueError: It cannot be imported, is neither of the two, or it cannot be told which one is meant.
    """
    found = _imported(name)
    if isinstance(found, Maintenance):
        known = [found]
    elif hasattr(found, "user_middleware") and hasattr(found, "router"):
        known = await _serving(found, set())
    else:
        raise ValueError(
            f"{name} is a {type(found).__name__}, neither a Maintenance nor an application; "
            "name one of these, like main:maintenance or main:app"
        )
    return _the_one(name, known, scope)


def _the_one(name: str, known: list[Maintenance], scope: str | None) -> Maintenance:
    if not known:
        raise ValueError(f"no gate stands in {name}: name its Maintenance object instead, like main:maintenance")
    scopes = ", ".join(sorted({maintenance.scope for maintenance in known}))
    meant = [maintenance for maintenance in known if scope in {None, maintenance.scope}]
    if not meant:
        raise ValueError(f"{name} has no scope {scope!r}, only: {scopes}")
    if len(meant) > 1:
        raise ValueError(
            f"{len(meant)} objects serve {name} (scopes: {scopes}); choose with --scope, or name one of the objects, "
            "like main:maintenance"
        )
    return meant[0]


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"{name!r} names no object: write module:attribute, like main:app")
    try:
        # What a module prints as it is imported is no answer.
        with redirect_stdout(sys.stderr):
            found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{name} cannot be imported: {type(error).__name__}: {error}; write module:attribute, like main:app"
        ) from error
    return found


async def _serving(app: Any, seen: set[int]) -> list[Maintenance]:
    """Give the objects whose gates stand in `app` and in what is mounted below it, one for each backend.

    Args:
        app: The application.
        seen: The `id` of each application that was looked through: they may mount one another.
    """
    seen.add(id(app))
    bound = [*_of_middleware(app), *_of_routes(app)]
    known = {id(owner.snapshot): owner for owner in bound if owner is not None}
    # A gate that is bound to no object serves the one that a gate around it serves, else the app's default object.
    if None in bound and not known:
        default = await overridden(app) or get_maintenance()
        known[id(default.snapshot)] = default
    for mounted in [route.app for route in app.routes if hasattr(getattr(route, "app", None), "user_middleware")]:
        for owner in [] if id(mounted) in seen else await _serving(mounted, seen):
            known.setdefault(id(owner.snapshot), owner)
    return list(known.values())


def _of_middleware(app: Any) -> Iterator[Maintenance | None]:
    for entry in app.user_middleware:
        if getattr(entry.cls, "covers_everything", False):
            backend = entry.kwargs.get("backend")
            yield entry.kwargs.get("maintenance") if backend is None else Maintenance(backend=backend)


def _of_routes(app: Any) -> Iterator[Maintenance | None]:
    for depends in getattr(app.router, "dependencies", ()):
        yield from _bound(owner_of_guard(depends.dependency))
    for original, context in operations_of(app):
        if isinstance(original, MaintenanceRoute):
            owner = original.maintenance
            yield owner if isinstance(owner, Maintenance) else None
        yield from _of_dependant(getattr(context, "dependant", None))


def _of_dependant(dependant: Any) -> Iterator[Maintenance]:
    for below in getattr(dependant, "dependencies", ()):
        yield from _bound(owner_of_guard(below.call))
        yield from _of_dependant(below)


def _bound(owner: Maintenance | None) -> Iterator[Maintenance]:
    if owner is not None:
        yield owner
