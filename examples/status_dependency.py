"""No gate at all: handlers get the status and do what is right for them.

`/articles` stays readable and shows a banner, `/checkout` refuses in its own words while it is closed.

    FASTAPI_MAINTENANCE_MODE=1 uvicorn examples.status_dependency:app
"""

from typing import Annotated, TypeAlias

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel

from fastapi_maintenance import Maintenance, MaintenanceStatus

maintenance = Maintenance()
app = FastAPI()

Status: TypeAlias = Annotated[MaintenanceStatus, Depends(maintenance.status)]


class Articles(BaseModel):
    """What there is to read."""

    titles: list[str]
    banner: str | None


async def payments_are_up(status: Status) -> None:
    """Refuse while it is closed."""
    if status:
        headers = {"Retry-After": str(status.retry_after)} if status.retry_after is not None else None
        raise HTTPException(503, "Nothing was charged. Your basket is kept.", headers)


@app.get("/articles")
async def articles(status: Status) -> Articles:
    return Articles(titles=["How to make tea"], banner=status.message)


@app.post("/checkout", dependencies=[Depends(payments_are_up)])
async def checkout() -> dict[str, str]:
    return {"paid": "yes"}
