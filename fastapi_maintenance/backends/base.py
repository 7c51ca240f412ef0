"""What a backend can be: one protocol per capability, and a base class for a true/false store."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Protocol, TypeAlias, runtime_checkable

from fastapi_maintenance.inflight import InFlight
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
class StateLink(StatePeek, Protocol):
    """A distant store that is near for requests: a thread talks to it, and they look at what it heard last.

    `peek_state` raises while there is no contact.
    """

    @property
    def heard(self) -> bool:
        """Whether the first contact was made, or failed."""
        ...

    async def first_contact(self, seconds: float) -> None:
        """Wait until `heard`, at most `seconds`."""
        ...

    def remembered_state(self) -> MaintenanceState | None:
        """Give what is known without contact, `None` when what closed it cannot be vouched for any more."""
        ...

    def remembered_rest(self) -> MaintenanceState:
        """Give what is known in any case."""
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


@runtime_checkable
class LeasedHolds(HoldStore, Protocol):
    """A store whose holds must be renewed, so that they can be lost."""

    def watch_hold(self, hold_id: str, lost: Callable[[], None]) -> None:
        """Call `lost` once, in any thread, when the store can no longer vouch for the hold."""
        ...

    def hold_lost(self, hold_id: str) -> bool:
        """Tell, by the clock alone and in any thread, whether that is so now; a hold that has ended is not lost."""
        ...


@runtime_checkable
class InheritableHolds(HoldStore, Protocol):
    """A store whose holds live as long as a process has their file descriptors."""

    def hold_descriptors(self, hold_id: str) -> tuple[int, ...]:
        """Give the descriptors to hand to a child process that is to keep the hold alive; none if it is not held."""
        ...


@runtime_checkable
class DrainStore(StateReader, Protocol):
    """A store behind which requests are counted, so that a hold can wait until nobody is running."""

    @property
    def in_flight(self) -> InFlight:
        """Who is running, as far as this store reaches: the process, the machine, the fleet."""
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
