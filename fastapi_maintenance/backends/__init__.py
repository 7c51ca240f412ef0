"""Where the state is kept: the built-in backends, and what an own one has to be."""

from typing import TYPE_CHECKING, Any

from fastapi_maintenance.backends.base import (
    BaseStateBackend,
    Edit,
    HoldStore,
    LeasedHolds,
    StateFeed,
    StateLink,
    StatePeek,
    StateReader,
    StateStore,
)
from fastapi_maintenance.backends.env import EnvVarBackend
from fastapi_maintenance.backends.memory import MemoryBackend

if TYPE_CHECKING:
    from fastapi_maintenance.backends.file import LocalFileBackend
    from fastapi_maintenance.backends.redis.backend import RedisBackend

__all__ = [
    "BaseStateBackend",
    "Edit",
    "EnvVarBackend",
    "HoldStore",
    "LeasedHolds",
    "LocalFileBackend",
    "MemoryBackend",
    "RedisBackend",
    "StateFeed",
    "StateLink",
    "StatePeek",
    "StateReader",
    "StateStore",
]


def file_backend() -> "type[LocalFileBackend]":
    """Give `LocalFileBackend`, imported at its first use."""
    from fastapi_maintenance.backends.file import LocalFileBackend  # noqa: PLC0415 - with the locks of a machine

    return LocalFileBackend


def redis_backend() -> "type[RedisBackend]":
    """Give `RedisBackend`, imported at its first use."""
    from fastapi_maintenance.backends.redis.backend import RedisBackend  # noqa: PLC0415 - most do without

    return RedisBackend


def __getattr__(name: str) -> Any:
    if name == "LocalFileBackend":
        return file_backend()
    if name == "RedisBackend":
        return redis_backend()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
