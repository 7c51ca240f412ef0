"""The decorators: each leaves a mark on an endpoint, which the gates read at request time."""

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

_ATTRIBUTE = "__fastapi_maintenance_mark__"
_DEPTH = 32
"""Wrappers to look through; more is a loop."""


class Mark(Enum):
    """A route override."""

    FORCED_ON = "force_maintenance_mode_on"
    FORCED_OFF = "force_maintenance_mode_off"


class Marks:
    """The marks of this process.

    Attributes:
        count: How many were ever set: a gate looks at no route while it is 0, and anew when it has grown.
    """

    count = 0


def force_maintenance_mode_on(endpoint: F, /) -> F:
    """Mark an endpoint as always closed, whatever the state, under every gate that covers it.

    Above or below the route decorator; `endpoint` itself comes back.

    Raises:
        TypeError: The mark cannot be put on this object, or it already carries the opposite one.
    """
    return _set(endpoint, Mark.FORCED_ON)


def force_maintenance_mode_off(endpoint: F, /) -> F:
    """Mark an endpoint as always open, whatever the state, under every gate that covers it.

    Above or below the route decorator; `endpoint` itself comes back.

    Raises:
        TypeError: The mark cannot be put on this object, or it already carries the opposite one.
    """
    return _set(endpoint, Mark.FORCED_OFF)


def mark_of(endpoint: object) -> Mark | None:
    """Find the mark of `endpoint`, also through `functools.partial`, `functools.wraps` and a class's `__call__`."""
    for _ in range(_DEPTH):
        mark = getattr(endpoint, _ATTRIBUTE, None)
        if isinstance(mark, Mark):
            return mark
        mark = getattr(getattr(type(endpoint), "__call__", None), _ATTRIBUTE, None)  # noqa: B004 - its mark
        if isinstance(mark, Mark):
            return mark
        endpoint = endpoint.func if isinstance(endpoint, partial) else getattr(endpoint, "__wrapped__", None)
        if endpoint is None:
            return None
    return None


def _set(endpoint: F, mark: Mark) -> F:
    name = getattr(endpoint, "__qualname__", None) or repr(endpoint)
    target: Any = endpoint
    if isinstance(target, (staticmethod, classmethod)):
        target = cast("Any", target).__func__
    if not callable(target):
        raise TypeError(f"@{mark.value} goes on an endpoint (a function), not on {name}")
    if mark_of(target) not in {None, mark}:
        other = Mark.FORCED_OFF if mark is Mark.FORCED_ON else Mark.FORCED_ON
        raise TypeError(f"{name} is already marked @{other.value}; remove one of the two decorators")
    try:
        setattr(target, _ATTRIBUTE, mark)
    except (AttributeError, TypeError):
        raise TypeError(
            f"@{mark.value} cannot be put on {name}, a {type(target).__name__}: "
            "mark the function where it is defined (for a method, in the class body), or wrap it in a function"
        ) from None
    Marks.count += 1
    return endpoint
