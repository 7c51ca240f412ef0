"""What is compared: one workload, by itself and behind each gate in turn.

Runs in the environment of the package that it measures, so the packages are imported where they are needed.
"""

import json
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import least
from fastapi import APIRouter, Depends, FastAPI

OURS = "this"
OLDER = "fastapi-maintenance"
WAYGATE = "waygate"
BARE = "bare"
GATES = ("middleware", "route class", "guard")
REFUSALS = ("fixed refusal", "least refusal")
DEFAULT_OBJECT = "default object"
"""The backend of an unbound route class: memory, in the default object."""

MANY = 1000
"""Routes from which on it takes seconds to build an application."""


@dataclass(frozen=True)
class Subject:
    """One application to measure.

    Attributes:
        package: Whose gate it is, `bare` for none.
        gate: `middleware`, `route class`, `unbound route class`, `guard`; of the bare ones `none`, `empty middleware`,
            `empty route class`, `empty dependency`, `fixed refusal`, and `least` before `middleware`, `route class`,
            `guard`, `refusal`.
        backend: `environment`, `memory`, `file`, `redis`, `slow store`, or the default object's.
        closed: Whether it refuses.
        routes: How many operations the application has.
        included: Whether they are in an included router.
        first: Whether the one that is asked is the first, not the last.
        forced_on: How many of the others are marked forced on.
        forced_off: How many are marked forced off.
        windows: How many windows are planned; all in the future, where it is not closed.
        holds: How many holds keep it closed.
        exempt: How many networks, and how many paths, are exempt; none of them is the one that asks.
        waits: Whether the operation waits until it is told to go on.
        redis: The URL of a Redis server.
    """

    package: str = BARE
    gate: str = "none"
    backend: str = ""
    closed: bool = False
    routes: int = 20
    included: bool = False
    first: bool = False
    forced_on: int = 0
    forced_off: int = 0
    windows: int = 0
    holds: int = 0
    exempt: int = 0
    waits: bool = False
    redis: str = ""

    @property
    def base(self) -> "Subject":
        """The bare application with the same routes."""
        return Subject(routes=self.routes, included=self.included, first=self.first, waits=self.waits)

    @property
    def label(self) -> str:
        """Name it for people."""
        return " ".join(filter(None, (self.package if self.package != OURS else "", self.gate, self.backend)))

    @property
    def behind(self) -> str:
        """Say what it stands before, and what is configured."""
        told = [f"{self.routes} {'included' if self.included else 'direct'}"]
        if self.forced_on or self.forced_off:
            told.append(f"{self.forced_on}+{self.forced_off} marks")
        if self.exempt:
            told.append(f"{self.exempt} exempt")
        return " ".join(told)

    @property
    def status(self) -> int:
        """What it has to answer."""
        return 503 if self.closed else 200

    def to_json(self) -> str:
        """Write it for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Subject":
        """Read it."""
        return cls(**json.loads(text))


async def _nothing() -> None: ...


@dataclass
class Built:
    """A subject's application.

    Attributes:
        app: It.
        before: What to do before it is measured each time.
        maintenance: Our object, where it is ours.
        gates: What a waiting operation waits for.
    """

    app: Any
    before: Callable[[], Awaitable[None]] = _nothing
    maintenance: Any = None
    gates: dict[str, Any] = field(default_factory=dict)


_numbers = count()


async def build(subject: Subject, folder: Path) -> Built:
    """Make the application of a subject; what it stores goes to `folder`."""
    if subject.package == OURS:
        return await _ours(subject, folder)
    if subject.package == OLDER:
        return await _older(subject, folder)
    if subject.package == WAYGATE:
        return await _waygate(subject)
    return _bare(subject, folder)


def _bare(subject: Subject, folder: Path) -> Built:
    path = folder / f"{os.getpid()}-{next(_numbers)}.least" if subject.backend == "file" else None
    known = least.Known(subject.backend, path)
    dependency = {"empty dependency": lambda _: least.empty_dependency, "least guard": least.guard}.get(subject.gate)
    route_class = {
        "empty route class": lambda _: least.EmptyRoute,
        "least route class": least.route_class,
        "fixed refusal": least.fixed_refusal,
        "least refusal": least.refusal,
    }.get(subject.gate)
    app = FastAPI(dependencies=[] if dependency is None else [Depends(dependency(known))])
    if subject.gate == "empty middleware":
        app.add_middleware(least.EmptyMiddleware)
    elif subject.gate == "least middleware":
        app.add_middleware(least.middleware, known=known)
    return _with_routes(subject, app, None if route_class is None else route_class(known))


# The workload


def _with_routes(subject: Subject, app: FastAPI, route_class: Any = None) -> Built:
    gates: dict[str, Any] = {}
    if subject.included:
        router = APIRouter(**({} if route_class is None else {"route_class": route_class}))
    else:
        router = app.router
        if route_class is not None:
            router.route_class = route_class
    if subject.first:
        router.add_api_route("/r/{id}", _operation(subject, gates))
    _others(subject, router)
    if not subject.first:
        router.add_api_route("/r/{id}", _operation(subject, gates))
    if subject.included:
        app.include_router(router)
    return Built(app, gates=gates)


def _operation(subject: Subject, gates: dict[str, Any]) -> Callable[..., Any]:
    async def read(id: int) -> dict[str, Any]:  # noqa: A002 - the name in the path
        return {"id": id, "name": "a small answer"}

    async def wait(id: int) -> dict[str, Any]:  # noqa: A002 - as above
        gates["waiting"] = gates.get("waiting", 0) + 1
        await gates["go"].wait()
        return {"id": id, "name": "a small answer"}

    return wait if subject.waits else read


def _others(subject: Subject, router: Any) -> None:
    marks: list[Callable[..., Any]] = []
    if subject.forced_on or subject.forced_off:
        from fastapi_maintenance import force_maintenance_mode_off, force_maintenance_mode_on  # noqa: PLC0415

        marks = [force_maintenance_mode_on] * subject.forced_on + [force_maintenance_mode_off] * subject.forced_off
    for number in range(subject.routes - 1):
        other = _operation(subject, {})
        router.add_api_route(f"/r{number}/{{id}}", marks[number](other) if number < len(marks) else other)


# This package


async def _ours(subject: Subject, folder: Path) -> Built:
    from fastapi_maintenance import (  # noqa: PLC0415 - another package has this name elsewhere
        Maintenance,
        MaintenanceModeMiddleware,
        MaintenanceRoute,
        MaintenanceSettings,
        set_maintenance_mode,
    )

    if subject.backend == DEFAULT_OBJECT:
        # One for the process, so it is turned before each look.
        os.environ["FASTAPI_MAINTENANCE_BACKEND"] = "memory"
        built = _with_routes(subject, FastAPI(), MaintenanceRoute)
        built.before = partial(set_maintenance_mode, subject.closed)
        return built
    settings = MaintenanceSettings(
        exempt_ips=tuple(f"10.{n >> 8 & 255}.{n & 255}.0/24" for n in range(subject.exempt)),
        exempt_paths=tuple(f"/exempt{n}/*" if n % 2 else f"/exempt{n}" for n in range(subject.exempt)),
    )
    maintenance = Maintenance(settings, backend=await _backend(subject, folder))
    await _filled(subject, maintenance)
    if subject.gate == "guard":
        built = _with_routes(subject, FastAPI(dependencies=[Depends(maintenance.guard)]))
    elif subject.gate == "route class":
        built = _with_routes(subject, FastAPI(), maintenance.route_class)
    else:
        built = _with_routes(subject, FastAPI())
        built.app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    built.maintenance = maintenance
    return built


async def _backend(subject: Subject, folder: Path) -> Any:
    from fastapi_maintenance.backends import EnvVarBackend, LocalFileBackend, MemoryBackend  # noqa: PLC0415

    if subject.backend == "environment":
        name = f"BENCH_MODE_{next(_numbers)}"
        if subject.closed:
            # While it is open it is not set, as mostly.
            os.environ[name] = "1"
        return EnvVarBackend(name)
    if subject.backend == "memory":
        return MemoryBackend()
    if subject.backend == "file":
        return LocalFileBackend(folder / f"{os.getpid()}-{next(_numbers)}.state")
    if subject.backend == "redis":
        from fastapi_maintenance.backends import RedisBackend  # noqa: PLC0415 - optional

        return RedisBackend(f"{subject.redis}?prefix=bench-{os.getpid()}-{next(_numbers)}")
    return _slow_store(closed=subject.closed)


def _slow_store(*, closed: bool) -> Any:
    import anyio  # noqa: PLC0415 - what a user's store imports

    from fastapi_maintenance.backends import BaseStateBackend  # noqa: PLC0415 - as above

    class SlowStore(BaseStateBackend):
        value = closed

        async def get_value(self) -> bool:
            await anyio.sleep(0.05)
            return self.value

        async def set_value(self, value: bool) -> None:
            self.value = value

    return SlowStore()


async def _filled(subject: Subject, maintenance: Any) -> None:
    """Store what the subject says."""
    from fastapi_maintenance.state import MaintenanceState  # noqa: PLC0415

    now = datetime.now(UTC)
    windows = [
        {"id": f"w{n}", "start": now + timedelta(days=n + 1), "end": now + timedelta(days=n + 1, hours=1)}
        for n in range(subject.windows)
    ]
    if windows:
        planned = MaintenanceState.model_validate({"windows": windows})
        await maintenance.snapshot.change(lambda _: planned)
    for _ in range(subject.holds):
        # Not left before the process ends.
        await maintenance.on().__aenter__()
    if subject.backend == "file" and not subject.closed:
        await maintenance.disable()
    if subject.closed and not subject.holds and subject.backend in {"memory", "file", "redis"}:
        await maintenance.enable()
    if subject.backend == "slow store":
        await maintenance.status()


# Others


async def _older(subject: Subject, folder: Path) -> Built:
    from fastapi_maintenance import MaintenanceModeMiddleware  # noqa: PLC0415 - the published one
    from fastapi_maintenance.backends import EnvVarBackend, LocalFileBackend  # noqa: PLC0415 - as above

    value = "1" if subject.closed else "0"
    if subject.backend == "environment":
        name = f"BENCH_MODE_{next(_numbers)}"
        os.environ[name] = value
        backend: Any = EnvVarBackend(name)
    else:
        path = folder / f"{os.getpid()}-{next(_numbers)}.state"
        path.write_text(value)
        backend = LocalFileBackend(str(path))
    built = _with_routes(subject, FastAPI())
    built.app.add_middleware(MaintenanceModeMiddleware, backend=backend)
    return built


async def _waygate(subject: Subject) -> Built:
    from waygate import make_engine  # noqa: PLC0415 - in its own environment
    from waygate.fastapi import WaygateMiddleware  # noqa: PLC0415 - as above

    engine = make_engine()
    if subject.closed:
        await engine.enable_global_maintenance(reason="a benchmark")
    built = _with_routes(subject, FastAPI())
    built.app.add_middleware(WaygateMiddleware, engine=engine)
    return built


# What is compared by default


def gates() -> list[Subject]:
    """Give our gates on each backend that needs no server, and the empty ones to compare with."""
    ours = [
        Subject(OURS, gate, backend) for gate in GATES for backend in ("environment", "memory", "file", "slow store")
    ]
    stores = ("memory", "file") if least.has_range_locks() else ("memory",)
    return [
        Subject(gate="empty middleware"),
        Subject(gate="empty route class"),
        Subject(gate="empty dependency"),
        *(Subject(gate=f"least {gate}", backend=s) for gate in GATES for s in (*stores, "environment", "slow store")),
        Subject(gate="least route class", backend=DEFAULT_OBJECT),
        *(Subject(gate=gate, backend=store, closed=True) for gate in REFUSALS for store in stores),
        *ours,
        Subject(OURS, "unbound route class", DEFAULT_OBJECT),
    ]


def peers() -> list[Subject]:
    """Give the other packages that do something like it for FastAPI."""
    return [
        Subject(OLDER, "middleware", "environment"),
        Subject(OLDER, "middleware", "file"),
        Subject(WAYGATE, "middleware", "memory"),
    ]


def on_redis(url: str) -> list[Subject]:
    """Give our gates on a Redis server, and the least that one has to do."""
    ours = [Subject(OURS, gate, "redis", redis=url) for gate in GATES]
    return [*ours, *(Subject(gate=f"least {gate}", backend="redis") for gate in GATES)]


def has_redis() -> bool:
    """Tell whether this version of the package has a backend for Redis, and its client is installed."""
    with suppress(ImportError):
        import redis  # noqa: F401, PLC0415 - optional

        from fastapi_maintenance.backends import RedisBackend  # noqa: F401, PLC0415 - as above

        return True
    return False


def in_each_state(subjects: list[Subject]) -> list[Subject]:
    """Give each open and closed, with 20 and 1000 routes, direct and included; the empty gates only where they are.

    Behind other routes than 20 direct ones it is our gates alone, in memory and on a file.
    """
    return [
        replace(subject, closed=closed, routes=routes, included=included)
        for routes, included in ((20, False), (20, True), (1000, False), (1000, True))
        for closed in (False, True)
        for subject in subjects
        if (subject.closed is closed if subject.package == BARE else True)
        and ((routes == 20 and not included) or _is_for_all_routes(subject))
    ]


def _is_for_all_routes(subject: Subject) -> bool:
    """Tell whether a subject is one of the few that are asked behind other routes, too, or what those need beside."""
    if subject.package not in {OURS, BARE} or subject.gate == "empty middleware":
        return False
    return subject.backend in {"", "memory", "file", DEFAULT_OBJECT}


def free_port() -> int:
    """Give a port of the loopback that nobody uses."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
