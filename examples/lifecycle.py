"""Open at start-up, closed from shutdown on.

A start clears what a crash or the last shutdown left behind; a shutdown closes, so that whoever shares the state file
(a proxy, the next release) keeps people out until a start opens again. That fits a service of one process: with more,
the first one to stop would close for those that still run.

    uvicorn examples.lifecycle:app
    uvicorn --factory examples.lifecycle:app_with_events
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware, set_maintenance_mode
from fastapi_maintenance.backends import LocalFileBackend

maintenance = Maintenance(backend=LocalFileBackend("maintenance.state"))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Begin and end with the application."""
    async with maintenance.lifespan(app):
        await maintenance.disable(by="start-up")
        yield
        await maintenance.enable(message="Restarting, back in a moment", retry_after=10, by="shutdown")


app = FastAPI(lifespan=lifespan, dependencies=[Depends(maintenance.guard)])


@app.get("/hello")
async def hello() -> dict[str, str]:
    return {"message": "Hello"}


def app_with_events() -> FastAPI:
    """Do the same with `on_event`, which FastAPI deprecates but older programs still use."""
    app = FastAPI()
    app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    app.get("/hello")(hello)

    @app.on_event("startup")  # pyright: ignore[reportDeprecated]
    async def open_up() -> None:
        await set_maintenance_mode(False)

    @app.on_event("shutdown")  # pyright: ignore[reportDeprecated]
    async def close() -> None:
        await set_maintenance_mode(True)

    return app
