"""Type tests: what mypy and pyright must accept, and what they must refuse. Checked, never run."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, assert_type

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, Response

from fastapi_maintenance import (
    Maintenance,
    MaintenanceModeMiddleware,
    MaintenanceRoute,
    MaintenanceSettings,
    MaintenanceStatus,
    force_maintenance_mode_off,
    force_maintenance_mode_on,
    get_maintenance,
    get_maintenance_mode,
    maintenance_mode_on,
    set_maintenance_mode,
)
from fastapi_maintenance.backends import (
    BaseStateBackend,
    EnvVarBackend,
    HoldStore,
    LocalFileBackend,
    MemoryBackend,
    StateFeed,
    StatePeek,
    StateReader,
    StateStore,
)

maintenance = Maintenance()
app = FastAPI(dependencies=[Depends(maintenance.guard), Depends(maintenance.guard_unless(lambda: True))])
router = APIRouter(route_class=MaintenanceRoute)
bound = APIRouter(route_class=maintenance.route_class)


@force_maintenance_mode_off
async def marked(number: int) -> str:
    """Keep its signature."""
    return str(number)


@force_maintenance_mode_on
def marked_too(number: int, *, name: str = "") -> str:
    """Keep its signature."""
    return f"{number}{name}"


assert_type(marked_too(1, name=""), str)

force_maintenance_mode_on(1)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


async def handler(now: Annotated[MaintenanceStatus, Depends(maintenance.status)]) -> bool:
    """Get the status."""
    assert_type(now.until, datetime | None)
    assert_type(now.retry_after, int | None)
    return bool(now)


async def operate() -> None:
    """Use what operators use."""
    assert_type(await maintenance.enable(message="", until=datetime.now(UTC) + timedelta(hours=1)), MaintenanceStatus)
    assert_type(await maintenance.disable(by="me"), MaintenanceStatus)
    await maintenance.enable(retry_after="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with maintenance.on(message="", on_failure="keep") as hold:
        assert_type(hold.id, str)
        assert_type(hold.lost, bool)
    window = await maintenance.schedule(datetime.now(UTC), datetime.now(UTC) + timedelta(hours=1))
    assert_type(window.id, str)
    assert_type(await maintenance.unschedule(window.id), MaintenanceStatus)
    assert_type(await get_maintenance_mode(), bool)
    await set_maintenance_mode(value=True, backend=MemoryBackend())
    await set_maintenance_mode("on")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(get_maintenance(), Maintenance)


@maintenance.on()
async def held(number: int) -> str:
    """Keep its parameters and its result."""
    return str(number)


@maintenance_mode_on()
async def held_too() -> None:
    """Keep its result."""


async def call_held() -> None:
    """Call what is held."""
    assert_type(await marked(1), str)
    assert_type(await held(1), str)
    await marked("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await held("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@maintenance.on()  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def not_async() -> int:
    """Cannot be held."""
    return 1


class Flag(BaseStateBackend):
    """A user's store."""

    async def get_value(self) -> bool:
        """Tell."""
        return False

    async def set_value(self, value: bool) -> None:
        """Store."""


def is_exempt(request: Request) -> bool:
    """Exempt nobody."""
    return not request.headers


async def answer(request: Request, status: MaintenanceStatus) -> Response:
    """Answer with a page."""
    return HTMLResponse(f"{request.url} {status.message}", status_code=503)


def plain_answer(request: Request) -> Response:
    """Answer with a page."""
    return HTMLResponse(str(request.url), status_code=503)


Maintenance(MaintenanceSettings(retry_after=30), backend=Flag(), exempt_handler=is_exempt, response_handler=answer)
Maintenance(backend=MemoryBackend(), response_handler=plain_answer)
Maintenance(exempt_handler=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
app.add_middleware(MaintenanceModeMiddleware, backend=Flag(), enable_maintenance=True)
app.add_middleware(MaintenanceModeMiddleware, enabled=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

readers: list[StateReader] = [EnvVarBackend(), LocalFileBackend("state"), MemoryBackend()]
stores: list[StateStore] = [LocalFileBackend("state"), MemoryBackend()]
near: list[StatePeek] = [EnvVarBackend(), LocalFileBackend("state"), MemoryBackend()]
holding: HoldStore = MemoryBackend()
not_a_store: StateStore = EnvVarBackend()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
not_a_feed: StateFeed = MemoryBackend()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
