"""Endpoints that decide for themselves: always open, or always closed.

`/health`, `/status` and `/admin/users` answer whatever the state is; the dependency of the admin endpoint still has its
say. `/beta` is not ready for anybody yet. Only `/articles` follows the switch.

    ADMIN_TOKEN=secret FASTAPI_MAINTENANCE_MODE=1 uvicorn examples.decorators:app
"""

import os
import secrets
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, status

from fastapi_maintenance import (
    Maintenance,
    MaintenanceStatus,
    force_maintenance_mode_off,
    force_maintenance_mode_on,
)

maintenance = Maintenance()
app = FastAPI(dependencies=[Depends(maintenance.guard)])


async def current_admin(admin_token: Annotated[str, Header()] = "") -> str:
    """Give the name of the administrator who asks; nobody is one while `ADMIN_TOKEN` is not set."""
    expected = os.environ.get("ADMIN_TOKEN", "")
    if not expected or not secrets.compare_digest(admin_token.encode(), expected.encode()):
        raise HTTPException(status.HTTP_403_FORBIDDEN, "administrators only")
    return "admin"


@app.get("/articles")
async def articles() -> list[str]:
    return ["How to make tea"]


@app.get("/health")
@force_maintenance_mode_off
async def health() -> dict[str, str]:
    return {"health": "good"}


@app.get("/status")
@force_maintenance_mode_off
async def show_status(now: Annotated[MaintenanceStatus, Depends(maintenance.status)]) -> dict[str, bool]:
    return {"maintenance": now.active}


@app.get("/admin/users")
@force_maintenance_mode_off
async def users(admin: Annotated[str, Depends(current_admin)]) -> list[str]:
    return [admin]


@app.get("/beta")
@force_maintenance_mode_on
async def beta() -> dict[str, str]:
    return {"feature": "teleport"}
