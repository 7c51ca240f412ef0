"""The environment as a backend: read live, never written."""

import logging
import os
from typing import Any

from fastapi_maintenance.backends.base import BaseStateBackend
from fastapi_maintenance.errors import BackendError
from fastapi_maintenance.inflight import InFlight
from fastapi_maintenance.state import OPEN, MaintenanceState, Mode, Switch, mode_of_word, utcnow

logger = logging.getLogger("fastapi_maintenance")

DEFAULT_VARIABLE = "FASTAPI_MAINTENANCE_MODE"


class EnvVarBackend(BaseStateBackend):
    """Read the state from an environment variable of this process. It cannot be changed by `enable()` or `disable()`.

    Args:
        var_name: The variable; `FASTAPI_MAINTENANCE_MODE` when left out.

    Attributes:
        in_flight: The requests that are running in this process behind gates of this object.

    Raises:
        ValueError: The variable holds something that is not a mode.
    """

    READ_ONLY = (
        "the environment can only be set before the start; to switch at run time, keep the state in a file "
        "(FASTAPI_MAINTENANCE_BACKEND=file:PATH)"
    )

    def __init__(self, var_name: str | None = None) -> None:
        self.var_name = var_name or DEFAULT_VARIABLE
        self.in_flight = InFlight()
        # Not asked of `os.environ`: a test may have a plain dictionary in its place, and only for now.
        self._key = self.var_name.upper() if os.name == "nt" else os.fsencode(self.var_name)
        self._raw: object = None
        self._state = OPEN
        try:
            self.peek_state()
        except BackendError as error:
            raise ValueError(str(error)) from None

    def __repr__(self) -> str:
        return f"EnvVarBackend({self.var_name!r})"

    def peek_state(self) -> MaintenanceState:
        """Give what the variable says now; `BackendError` when it says nothing known."""
        environ: Any = os.environ
        try:
            # As `os.environ` stores it: on its own way to the answer "not set" it raises two exceptions, which takes
            # twenty times longer, and each request asks (issue 7).
            stored: object = environ._data.get(self._key)  # noqa: SLF001
        except AttributeError:  # a plain dictionary in its place
            stored = environ.get(self.var_name)
        # By identity, which is quicker for each request: what was set anew to the same is read again.
        if stored is not self._raw:
            self._read(stored)
        return self._state

    def _read(self, stored: object) -> None:
        try:
            mode = mode_of_word(os.environ.get(self.var_name, ""))
        except ValueError as error:
            raise BackendError(f"environment variable {self.var_name}", str(error)) from None
        self._state = self._next(mode)
        self._raw = stored

    def _next(self, mode: Mode | None) -> MaintenanceState:
        if mode == (self._state.switch and self._state.switch.mode):
            return self._state
        switch = None if mode is None else Switch(since=utcnow(), mode=mode)
        return MaintenanceState(revision=self._state.revision + 1, switch=switch)

    async def read_state(self) -> MaintenanceState:
        """Give what the variable says now."""
        return self.peek_state()

    async def get_value(self) -> bool:
        """Tell whether the variable closes."""
        return self.peek_state().switch is not None

    async def set_value(self, value: bool) -> None:  # noqa: ARG002, FBT001 - the older package's signature
        """Log a warning: the environment is read-only."""
        logger.warning(
            "Cannot change %s: the environment is read-only while the process runs. Set the variable before the "
            "start, or use another backend (FASTAPI_MAINTENANCE_BACKEND=file:PATH)",
            self.var_name,
        )
