"""What a backend can be: one protocol per capability, and a base class for a true/false store."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Protocol, TypeAlias, runtime_checkable

from fastapi_maintenance.state import Hold, MaintenanceState, mode_of_word

Edit: TypeAlias = Callable[[MaintenanceState], MaintenanceState]
"""A change of the state, without effects of its own: it may be called again on a newer state."""


@runtime_checkable
class StateReader(Protocol):
    """A store that can be asked for the state."""

    async def read_state(self) -> MaintenanceState:
        """Give what is stored; an open state when nothing is.

        Any exception is a failure of the backend: requests are then decided from the last known state.
        """
        ...


@runtime_checkable
class StateStore(StateReader, Protocol):
    """A store that can be changed, too."""

    async def change_state(self, edit: Edit) -> MaintenanceState:
        """Store `edit(what is stored)` so that no other change is lost, and give what is stored now.

        Raises:
            BackendError: It could not be stored; the old state is intact.
        """
        ...


@runtime_checkable
class StateFeed(StateReader, Protocol):
    """A store that tells of changes by itself. It is listened to while the application's lifespan runs."""

    def watch_state(self) -> AsyncIterator[MaintenanceState]:
        """Give each new state as it comes, for ever. When it ends or raises it is asked again after a pause."""
        ...


@runtime_checkable
class StatePeek(StateReader, Protocol):
    """A store so near that each request looks at it: in the process, or one system call away."""

    def peek_state(self) -> MaintenanceState:
        """Give the state at once, the same object while nothing changed.

        Raises:
            BackendError: It cannot be read now.
        """
        ...


@runtime_checkable
class HoldStore(StateStore, Protocol):
    """A store in which a hold lives exactly as long as its owner."""

    async def take_hold(self, hold: Hold) -> None:
        """Begin `hold`; when this raises, it has not begun."""
        ...

    async def end_hold(self, hold: Hold, *, failed: bool) -> None:
        """End `hold`; when its body `failed` and `hold.on_failure` is `keep`, leave an orphan."""
        ...


class BaseStateBackend(ABC):
    """Base class for a store of one truth value: two methods, and it is a backend.

    It is asked every `refresh_interval` in the background, never by a request. A subclass need not call
    `super().__init__()`.
    """

    @abstractmethod
    async def get_value(self) -> bool:
        """Tell whether maintenance is on: `True` or `False`, nothing else."""

    @abstractmethod
    async def set_value(self, value: bool) -> None:  # noqa: FBT001 - the older package's signature
        """Store whether maintenance is on."""

    @staticmethod
    def _bool_to_str(value: bool) -> str:  # noqa: FBT001 - the older package's signature
        """Give `1` or `0`; `ValueError` for anything that is neither true nor false."""
        if value not in (True, False):
            raise ValueError(f"state value must be true or false, not {value!r}")
        return str(int(value))

    @staticmethod
    def _str_to_bool(value: str) -> bool:
        """Read `1 true t yes y on`, `0 false f no n off` or nothing, in any case; `ValueError` otherwise."""
        return mode_of_word(value) is not None
