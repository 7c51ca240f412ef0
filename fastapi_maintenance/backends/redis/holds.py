"""How long a hold of this process can be relied on."""

import math
import time
from collections.abc import Callable
from typing import TypeAlias

from fastapi_maintenance.state import Hold

Lost: TypeAlias = Callable[[], None]


class Held:
    """A hold of this process, and until when it is sure of it.

    Attributes:
        hold: The hold.
        drained: Whether it is sure that nothing is running, too.
        lost: Whether it was sure once, and is no more.
    """

    def __init__(self, hold: Hold, until: float) -> None:
        self.hold = hold
        self.drained = False
        self.lost = False
        self._until = until
        self._promised = math.inf
        self._renew_at = 0.0
        self._tell: list[Lost] = []

    @property
    def until(self) -> float:
        """The monotonic instant at which it is lost."""
        return min(self._until, self._promised)

    def due(self) -> bool:
        """Tell whether it is time to renew it."""
        return time.monotonic() >= self._renew_at

    def renew(self, until: float, pause: float) -> None:
        """Be sure of the lease until then, and renew it after `pause` seconds."""
        self._until = until
        self._renew_at = time.monotonic() + pause / 2

    def rely(self, until: float) -> None:
        """Be sure until then that all workers refuse."""
        self.drained = True
        self._promised = until

    def tell(self, lost: Lost) -> None:
        """Call `lost` when it is lost."""
        self._tell.append(lost)

    def check(self) -> bool:
        """Tell whether it is lost, by the clock alone."""
        if not self.lost and time.monotonic() >= self.until:
            self.lost = True
            for tell in self._tell:
                tell()
        return self.lost
