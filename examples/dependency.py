"""Guard, route class and status of one object, side by side.

The guard covers every operation of the app, websockets too. The route class refuses earlier, before the body of an
import is read. A handler that asks for the status can tell people what is going on.

    FASTAPI_MAINTENANCE_MODE=1 uvicorn examples.dependency:app
"""

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, WebSocket

from fastapi_maintenance import Maintenance, MaintenanceRoute, MaintenanceStatus, force_maintenance_mode_off

maintenance = Maintenance()
app = FastAPI(dependencies=[Depends(maintenance.guard)])
imports = APIRouter(prefix="/imports", route_class=MaintenanceRoute)


@app.get("/orders")
async def orders() -> list[str]:
    return ["tea", "biscuits"]


@app.websocket("/orders/live")
async def live_orders(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json({"ordered": "tea"})
    await websocket.close()


@imports.post("")
async def import_orders(orders: list[str]) -> dict[str, int]:
    return {"imported": len(orders)}


@app.get("/banner")
@force_maintenance_mode_off
async def banner(status: Annotated[MaintenanceStatus, Depends(maintenance.status)]) -> dict[str, str | None]:
    return {"banner": status.message}


app.include_router(imports)
