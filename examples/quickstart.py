"""A service whose maintenance is switched on and off with curl; the state is kept in a file.

Start it from the root of the project:

    uvicorn examples.quickstart:app

and try it from another terminal:

    curl -i localhost:8000/
    curl -X PUT localhost:8000/maintenance
    curl -i localhost:8000/
    curl localhost:8000/maintenance
    curl -X DELETE localhost:8000/maintenance

The file is `maintenance.state` in the directory of the start, unless `FASTAPI_MAINTENANCE_BACKEND=file:/some/path` says
otherwise. It outlives a restart, all workers of the machine share it, and `echo 1 > maintenance.state` switches, too.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI

from fastapi_maintenance import Maintenance, MaintenanceSettings, MaintenanceStatus, force_maintenance_mode_off


class Settings(MaintenanceSettings):
    """What the environment says, with a backend that can be written where it says nothing."""

    backend: str = "file:maintenance.state"


maintenance = Maintenance(Settings())
app = FastAPI(dependencies=[Depends(maintenance.guard)], lifespan=maintenance.lifespan)

# A real service protects these three: APIRouter(dependencies=[Depends(current_admin)]).
admin = APIRouter(prefix="/maintenance")


@app.get("/")
async def hello() -> dict[str, str]:
    return {"message": "Hello"}


@admin.get("")
@force_maintenance_mode_off
async def show(status: Annotated[MaintenanceStatus, Depends(maintenance.status)]) -> MaintenanceStatus:
    return status


@admin.put("")
@force_maintenance_mode_off
async def close() -> MaintenanceStatus:
    return await maintenance.enable(by="quickstart")


@admin.delete("")
@force_maintenance_mode_off
async def reopen() -> MaintenanceStatus:
    return await maintenance.disable(by="quickstart")


app.include_router(admin)
