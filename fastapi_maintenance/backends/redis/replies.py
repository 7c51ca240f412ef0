"""What the store says, and what is made of it."""

import importlib.metadata
import json
import math
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from fastapi_maintenance.backends.redis.link import Refused
from fastapi_maintenance.inflight import Worker
from fastapi_maintenance.state import OPEN, MaintenanceState


class Reply(NamedTuple):
    """What the store says of the state."""

    done: bool
    now: int
    era: str
    line: str
    revision: int
    stamp: str
    document: str
    leases: dict[str, int]

    @classmethod
    def of(cls, raw: list[Any]) -> "Reply":
        """Read what a script gave.

        Raises:
            Refused: Somebody else has written there what is no state.
        """
        try:
            done, now, era, line, revision, stamp, document = (text_of(part) for part in raw[:7])
            names = [text_of(part) for part in raw[7]]
            leases = {name: int(left) for name, left in zip(names[::2], names[1::2], strict=True)}
            return cls(done == "1", int(now), era, line, int(revision), stamp, document, leases)
        except ValueError as error:
            raise Refused(f"the state cannot be read: {error}") from None


class Known(NamedTuple):
    """A document, as it was written.

    Attributes:
        line: The line of revisions that it belongs to; empty for a store without one.
        stamp: Names the write.
        state: The document.
    """

    line: str
    stamp: str
    state: MaintenanceState


class Found(NamedTuple):
    """What is to be changed: the document, which holds are alive, and the state that this means."""

    known: Known
    alive: frozenset[str]
    state: MaintenanceState


@dataclass(frozen=True, slots=True)  # faster to look into than a tuple with names, and each request does
class View:
    """What requests go by.

    Attributes:
        state: The state, with the holds that are alive.
        end: The monotonic instant until which that is vouched for; without holds for ever.
        rest: The state without its live holds: what is known beyond that instant.
    """

    state: MaintenanceState
    end: float
    rest: MaintenanceState


class Contact(NamedTuple):
    """The last reply: the store's clock, its era, and when it was received by ours."""

    now: int
    era: str
    received: float


NOTHING = Known("", "", OPEN)
NEVER = Contact(-1, "", -math.inf)


class Member(NamedTuple):
    """A worker as the store lists it.

    Attributes:
        worker: What it says of itself.
        refuses: The holds because of which it has promised to refuse.
        idle: Whether it has promised that nothing is in flight.
    """

    worker: Worker
    refuses: frozenset[str]
    idle: bool

    @classmethod
    def of(cls, worker: str, left: str, record: str, ack: str, begun: datetime) -> "Member":
        """Read what the census gave.

        Args:
            worker: Its id.
            left: Milliseconds until its lease ends.
            record: The number of its last beat and what it said of itself.
            ack: What it has promised.
            begun: When a lease that ends now began.
        """
        host, pid = process_of(worker)
        said = json.loads(record.partition(" ")[2] or "{}")
        _, idle, refuses = ack.split(" ") if ack else ("", "0", "")
        running = int(said.get("in_flight", 0))
        beat = begun + timedelta(milliseconds=int(left))
        status = Worker(worker, pid, running > 0, host, running, said.get("version"), beat)
        return cls(status, frozenset(refuses.split(",")), idle == "1")


def new_worker_id() -> str:
    """Name this process among all of the fleet, those that had its number before as well."""
    return f"{socket.gethostname()}:{os.getpid()}:{new_token()}"


def process_of(worker: str) -> tuple[str, int]:
    """Give host and process id of a worker.

    Raises:
        ValueError: Somebody else has listed what is no worker.
    """
    try:
        host, pid, _ = worker.rsplit(":", 2)
        return host, int(pid)
    except ValueError:
        raise ValueError(f"{worker!r} is no worker") from None


def name_of(worker: str) -> str:
    """Name a worker for people."""
    return "{} (pid {})".format(*process_of(worker))


def record_of(running: int) -> str:
    """Give what a worker says of itself."""
    return json.dumps({"version": _version(), "in_flight": running})


@cache
def _version() -> str | None:
    """Give the version that is installed; a program that was bundled without metadata does not know it."""
    try:
        return importlib.metadata.version("fastapi-maintenance")
    except importlib.metadata.PackageNotFoundError:
        return None


def new_token() -> str:
    """Name a write, a line of revisions or an era."""
    return secrets.token_hex(8)


def text_of(value: object) -> str:
    """Read a string, whether or not the client decodes."""
    return value.decode() if isinstance(value, bytes) else str(value)
