"""The functional API, for people who come from the older package of this name.

It acts on the object whose gate the current request or lifespan came through, else on the default object.
"""

import inspect
import logging
from collections.abc import Callable
from typing import Any

from fastapi_maintenance.audit import record, whoami
from fastapi_maintenance.backends import EnvVarBackend, MemoryBackend, file_backend, redis_backend
from fastapi_maintenance.errors import BackendReadOnlyError
from fastapi_maintenance.holds import HoldContext, hold_template
from fastapi_maintenance.maintenance import current_maintenance, get_maintenance, set_default_backend
from fastapi_maintenance.snapshot import Snapshot, assumed, repeatable, snapshot_of
from fastapi_maintenance.state import utcnow

logger = logging.getLogger("fastapi_maintenance")

_KINDS: dict[str, Callable[[], Callable[..., object]]] = {
    "env": lambda: EnvVarBackend,
    "file": file_backend,
    "memory": lambda: MemoryBackend,
    "redis": redis_backend,
}


def configure_backend(backend_type: str, **options: Any) -> None:
    """Set the backend of the default object.

    Args:
        backend_type: `env`, `file`, `memory` or `redis`.
        **options: What the backend takes: `var_name` for `env`, `file_path` for `file`, `url` and more for `redis`.

    Raises:
        ValueError: The backend is unknown.
        TypeError: The backend does not take these options.
        BackendError: The backend cannot be made.
    """
    if not isinstance(backend_type, str) or backend_type not in _KINDS:
        raise ValueError(f"unknown backend {repeatable(backend_type)}: use one of {', '.join(map(repr, _KINDS))}")
    make = _KINDS[backend_type]()
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise TypeError(f"backend {backend_type!r} takes {inspect.signature(make)}: {error}") from None
    set_default_backend(make(**options))


async def get_maintenance_mode(backend: object | None = None) -> bool:
    """Tell whether maintenance is on.

    Args:
        backend: Ask this one instead.
    """
    if backend is None:
        return (await current_maintenance().status()).active
    settings, snapshot = get_maintenance().settings, snapshot_of(backend)
    await snapshot.first_look(settings.read_timeout)
    state = snapshot.look(settings.refresh_interval, settings.read_timeout)
    return (state or snapshot.assume(assumed(settings.on_backend_error, utcnow()))).at(utcnow()).active


async def set_maintenance_mode(value: bool, backend: object | None = None) -> None:  # noqa: FBT001 - the older signature
    """Turn the switch on or off; on a read-only backend log a warning and change nothing.

    Args:
        value: `True` for on.
        backend: Change this one instead.

    Raises:
        TypeError: `value` is not a bool.
        BackendError: It could not be stored.
    """
    if not isinstance(value, bool):
        raise TypeError(f"value must be True or False, not {value!r}")
    try:
        await _snapshot(backend).holds.switch(lambda state: state.switched(utcnow(), on=value), on=value)
        record(
            "enabled" if value else "disabled",
            scope=_scope(backend),
            by=whoami(),
            why=None,
            revision=_snapshot(backend).revision,
        )
    except BackendReadOnlyError as error:
        logger.warning("Maintenance mode was not changed. %s", error)


def maintenance_mode_on(backend: object | None = None) -> HoldContext:
    """Keep it closed for the time of a block (`async with`), or of each call of an `async def` (as a decorator).

    Args:
        backend: Use this one instead.
    """
    return HoldContext(lambda: (_snapshot(backend).holds, _scope(backend)), hold_template())


def _scope(backend: object | None) -> str:
    return current_maintenance().scope if backend is None else type(backend).__name__


def _snapshot(backend: object | None) -> Snapshot:
    return current_maintenance().snapshot if backend is None else snapshot_of(backend)
