"""Where the state is kept: the built-in backends, and what an own one has to be."""

from fastapi_maintenance.backends.base import (
    BaseStateBackend,
    Edit,
    HoldStore,
    StateFeed,
    StatePeek,
    StateReader,
    StateStore,
)
from fastapi_maintenance.backends.env import EnvVarBackend
from fastapi_maintenance.backends.file import LocalFileBackend
from fastapi_maintenance.backends.memory import MemoryBackend

__all__ = [
    "BaseStateBackend",
    "Edit",
    "EnvVarBackend",
    "HoldStore",
    "LocalFileBackend",
    "MemoryBackend",
    "StateFeed",
    "StatePeek",
    "StateReader",
    "StateStore",
]
