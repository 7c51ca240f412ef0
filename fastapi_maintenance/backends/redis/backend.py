"""Redis (or Valkey) as a backend: one state for a fleet of machines, pushed in milliseconds, drained everywhere."""

import hashlib
import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import anyio.to_thread

from fastapi_maintenance.backends.base import BaseStateBackend, Edit
from fastapi_maintenance.backends.redis.clients import factory_of
from fastapi_maintenance.backends.redis.fleet import Fleet, Terms
from fastapi_maintenance.backends.redis.link import Link
from fastapi_maintenance.backends.redis.reasons import Explainer
from fastapi_maintenance.backends.redis.urls import Target, target_of
from fastapi_maintenance.errors import BackendError
from fastapi_maintenance.state import Hold, MaintenanceState, utcnow
from fastapi_maintenance.tasks import to_the_end

PREFIX = "fastapi_maintenance"


class _Links:
    """The threads of this process, so that all who use one store share a connection."""

    known: "WeakValueDictionary[object, Link]" = WeakValueDictionary()  # noqa: RUF012 - shared on purpose
    lock = threading.Lock()


class RedisBackend(BaseStateBackend):
    """Keep the state in Redis, for all machines that use the same URL.

    A thread of its own talks to Redis; requests look at what it heard last and never wait for it. It begins when it is
    needed: with a lifespan, the first request, or the first change.

    Args:
        url: `redis://[[user]:password@]host[:port][/database]`; `rediss://` for TLS and `valkey://`, `valkeys://` with
            what redis-py takes in the query, `unix://`; `redis+sentinel://host,host/service[/database]`,
            `redis+cluster://host,host`. `prefix`, `lease` and `forget` may stand in its query, too.
        client_factory: Makes a client of `redis.asyncio`, in place of a URL; called for each new connection.
        prefix: What the keys begin with.
        scope: An independent switch under the same prefix.
        lease: Seconds for which a worker or a hold counts as alive after it was heard last; the same for all.
        forget: Seconds after which a worker that ended without a goodbye no longer keeps others from draining.
        timeout: Seconds that a change may take while Redis does not answer.

    Attributes:
        in_flight: The requests that are running in the fleet behind gates of this state.
        place: Where it is, for people: the URL without credentials and options.

    Raises:
        ValueError: The URL is malformed (the error does not repeat it), or an argument is out of range.
        TypeError: There is neither a URL nor a factory, or both.
        BackendError: redis-py is not installed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        client_factory: Callable[[], Any] | None = None,
        prefix: str | None = None,
        scope: str = "default",
        lease: float | None = None,
        forget: float | None = None,
        timeout: float = 5.0,
    ) -> None:
        target = None if url is None else target_of(url)
        source = target or client_factory
        if source is None or (target is not None and client_factory is not None):
            raise TypeError("RedisBackend takes a URL, or client_factory=; one of them")
        said = {} if target is None else target.options
        prefix = said.get("prefix", PREFIX) if prefix is None else prefix
        if not prefix or set(prefix) & set("{}, \n*?[]"):
            raise ValueError("prefix must be a name without blanks, commas, braces and wildcards")
        terms = Terms(_seconds("lease", lease, said, 30.0), _seconds("forget", forget, said, 60.0), timeout)
        self.place = "Redis" if target is None else target.name
        link = _link(source, min(5.0, terms.lease / 6))
        self._fleet = Fleet(link, f"{{{prefix}:{scope}}}", terms, type(self).__name__)
        self.in_flight = self._fleet.in_flight
        self._close = weakref.finalize(self, self._fleet.close)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.place!r})"

    def close(self) -> None:
        """Talk to Redis no more, when this object is not needed any longer; it begins again with the next use.

        Says goodbye to the fleet, unless requests still run; waits for it, a second at most.
        """
        self.in_flight.pause()
        self._fleet.close()

    # What requests look at

    def peek_state(self) -> MaintenanceState:
        """Give what was heard last.

        Raises:
            BackendError: There is no contact now.
        """
        # Each request comes here, and one function around another costs it as much as what they do.
        fleet = self._fleet
        view = fleet.view
        if fleet.trouble is None and (view.end == math.inf or time.monotonic() < view.end):
            return view.state
        raise fleet.silence()

    @property
    def heard(self) -> bool:
        """Whether the first contact was made, or failed."""
        return self._fleet.heard

    async def first_contact(self, seconds: float) -> None:
        """Wait until Redis was heard, at most `seconds`."""
        await anyio.to_thread.run_sync(
            self._fleet.wait_heard, seconds, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
        )

    def remembered_state(self) -> MaintenanceState | None:
        """Give what is known without contact, `None` when a hold closed it and its lease may have ended."""
        return self._fleet.remembered()

    def remembered_rest(self) -> MaintenanceState:
        """Give what is known beside the holds."""
        return self._fleet.view.rest

    # Asking and changing

    async def read_state(self) -> MaintenanceState:
        """Ask Redis now.

        Raises:
            BackendError: It does not answer.
        """
        return await self._fleet.read()

    async def change_state(self, edit: Edit) -> MaintenanceState:
        """Change the state; what is stored now comes back.

        Raises:
            BackendError: Redis did not answer in time, or refused.
        """
        return await self._fleet.change(edit)

    async def take_hold(self, hold: Hold) -> None:
        """Begin `hold`, and renew its lease in the background.

        Raises:
            BackendError: It could not be stored; it has not begun, or ends with its first lease. Where it was stored
                and only the answer was lost, one with `on_failure="keep"` stays until `disable()`.
        """
        await to_the_end(lambda: self._fleet.take(hold))

    async def end_hold(self, hold: Hold, *, failed: bool) -> None:
        """End `hold`, or leave an orphan.

        Raises:
            BackendError: It could not be stored; the hold ends with its lease, one with `on_failure="keep"` stays
                until `disable()`.
        """
        await to_the_end(lambda: self._fleet.end(hold, failed=failed))

    def watch_hold(self, hold_id: str, lost: Callable[[], None]) -> None:
        """Call `lost`, in the background thread, when Redis can no longer vouch for the hold."""
        self._fleet.watch(hold_id, lost)

    def hold_lost(self, hold_id: str) -> bool:
        """Tell by the clock whether Redis can no longer vouch for a hold that has not ended."""
        return self._fleet.lost(hold_id)

    async def get_value(self) -> bool:
        """Tell whether maintenance is on now."""
        return (await self.read_state()).at(utcnow()).active

    async def set_value(self, value: bool) -> None:  # noqa: FBT001 - the older package's signature
        """Turn the switch on or off."""
        await self.change_state(lambda state: state.switched(utcnow(), on=value))


def _seconds(name: str, given: float | None, said: dict[str, str], default: float) -> float:
    try:
        value = float(said.get(name, default)) if given is None else given
    except ValueError:
        value = math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.1 <= value <= 86400:  # noqa: PLR2004
        raise ValueError(f"{name} of the Redis backend must be seconds, 0.1 to 86400 (in its URL: ?{name}={default:g})")
    return float(value)


def _link(source: Target | Callable[[], Any], timeout: float) -> Link:
    """Give the link to a store, the same one to all who name it in the same way."""
    key: object = source
    if isinstance(source, Target):
        key = (hashlib.sha256(source.url.encode()).digest(), timeout)
    with _Links.lock:
        link = _Links.known.get(key)
        if link is None:
            link = _Links.known[key] = _new_link(source, timeout)
        return link


def _new_link(source: Target | Callable[[], Any], timeout: float) -> Link:
    if not isinstance(source, Target):
        return Link(source, timeout, Explainer("Redis", ()))
    try:
        connect = factory_of(source, timeout)
    except ImportError as error:
        raise BackendError("RedisBackend", str(error)) from None
    return Link(connect, timeout, Explainer(source.name, source.secrets))
