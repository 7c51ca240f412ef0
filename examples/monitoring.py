"""A status endpoint for monitors, open whatever the state is: a planned closure is no outage.

    FASTAPI_MAINTENANCE_MODE=1 uvicorn examples.monitoring:app

`curl localhost:8000/status` then reports `maintenance`, and without the variable `operational`.
"""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import Depends, FastAPI
from pydantic import BaseModel

from fastapi_maintenance import Maintenance, MaintenanceStatus, force_maintenance_mode_off

maintenance = Maintenance()
app = FastAPI(dependencies=[Depends(maintenance.guard)])


class Report(BaseModel):
    """What a monitor wants to know."""

    status: Literal["operational", "maintenance"]
    message: str | None
    since: datetime | None
    until: datetime | None


@app.get("/status")
@force_maintenance_mode_off
async def report(now: Annotated[MaintenanceStatus, Depends(maintenance.status)]) -> Report:
    return Report(
        status="maintenance" if now else "operational",
        message=now.message or "All is well",
        since=now.since,
        until=now.until,
    )


@app.get("/articles")
async def articles() -> list[str]:
    return ["How to make tea"]
