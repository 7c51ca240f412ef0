"""The state in the memory of one process: for tests, and for a service of one worker."""

import threading

from fastapi_maintenance.backends.base import BaseStateBackend, Edit
from fastapi_maintenance.inflight import InFlight
from fastapi_maintenance.state import OPEN, Hold, MaintenanceState, utcnow


class MemoryBackend(BaseStateBackend):
    """Keep the state in this object. Other processes, other workers of the same server too, do not see it.

    Attributes:
        in_flight: The requests that are running in this process behind gates of this object.
    """

    def __init__(self) -> None:
        self.in_flight = InFlight()
        self._state = OPEN
        self._lock = threading.Lock()

    def peek_state(self) -> MaintenanceState:
        """Give the state."""
        return self._state

    async def read_state(self) -> MaintenanceState:
        """Give the state."""
        return self._state

    async def change_state(self, edit: Edit) -> MaintenanceState:
        """Change the state; what is stored now comes back."""
        with self._lock:
            self._state = edit(self._state)
            return self._state

    async def take_hold(self, hold: Hold) -> None:
        """Begin `hold`."""
        await self.change_state(lambda state: state.with_hold(hold))

    async def end_hold(self, hold: Hold, *, failed: bool) -> None:
        """End `hold`, or leave an orphan."""
        if failed and hold.on_failure == "keep":
            await self.change_state(lambda state: state.with_orphan(hold))
        else:
            await self.change_state(lambda state: state.without_hold(hold.id))

    async def get_value(self) -> bool:
        """Tell whether maintenance is on now."""
        return self._state.at(utcnow()).active

    async def set_value(self, value: bool) -> None:  # noqa: FBT001 - the older package's signature
        """Turn the switch on or off."""
        await self.change_state(lambda state: state.switched(utcnow(), on=value))
