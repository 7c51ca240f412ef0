"""How long a hold of this process can be relied on."""

import math
import time
from asyncio import TimerHandle
from collections.abc import Callable
from typing import TypeAlias

from fastapi_maintenance.state import Hold

Lost: TypeAlias = Callable[[], None]

_LONGEST_PAUSE = 0.25
"""Seconds between two counts of the fleet at most, so that a slow answer does not use up the time of a drain."""


class Held:
    """A hold of this process, and until when it is sure of it.

    Attributes:
        hold: The hold.
        drained: Whether it is sure that nothing is running, too.
        lost: Whether it was sure once, and is no more.
        young: Whether the store was emptied or replaced so recently that it may not know all workers again.
        timer: When it is looked at next.
    """

    def __init__(self, hold: Hold, until: float) -> None:
        self.hold = hold
        self.drained = False
        self.lost = False
        self.young = False
        self.timer: TimerHandle | None = None
        self._until = until
        self._promised = math.inf
        self._register = ""
        self._lasting = False
        self._renew_at = self._count_at = 0.0
        self._tell: list[Lost] = []

    @property
    def until(self) -> float:
        """The monotonic instant at which it is lost."""
        return min(self._until, self._promised)

    def due_in(self) -> float:
        """Give the seconds until it is time to renew it; none are left when it is late."""
        return max(0.0, self._renew_at - time.monotonic())

    def renew(self, until: float, pause: float) -> None:
        """Be sure of the lease until then, and renew it after `pause` seconds."""
        self._until = until
        self._renew_at = time.monotonic() + pause

    def rely(self, until: float, register: str, *, lasting: bool) -> None:
        """Be sure until then that all workers refuse.

        Args:
            until: A monotonic instant.
            register: Names the register of workers that was counted. In one that began after the drain a worker may be
                missing that is cut off; unless it stays closed by itself, it cannot be relied on.
            lasting: Whether all that were counted stay closed without contact.
        """
        if not self.drained or register == self._register or self._lasting:
            self.drained = True
            self._promised = until
            self._register = register
            self._lasting = lasting

    def may_count(self) -> bool:
        """Tell whether the fleet may be counted again."""
        return time.monotonic() >= self._count_at

    def counted(self, seconds: float) -> None:
        """Take note of what a count took: a large fleet is counted for a tenth of the time."""
        self._count_at = time.monotonic() + min(9 * seconds, _LONGEST_PAUSE)

    def tell(self, lost: Lost) -> None:
        """Call `lost` when it is lost, at once when it is so already."""
        self._tell.append(lost)
        if self.lost:
            lost()

    def check(self) -> bool:
        """Tell whether it is lost, by the clock alone."""
        if not self.lost and time.monotonic() >= self.until:
            self.lost = True
            for tell in self._tell:
                tell()
        return self.lost
