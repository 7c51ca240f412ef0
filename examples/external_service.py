"""The switch lives in another service: a backend over an HTTP API.

`GET {url}/maintenance` gives `{"active": true}` or `{"active": false}`, `PUT` with the same body changes it. The other
service is asked once a second in the background, never by a request; while it is down the last known state holds.

    pip install httpx
    MAINTENANCE_API=http://127.0.0.1:9000 uvicorn examples.external_service:app
"""

import os

import httpx
from fastapi import Depends, FastAPI

from fastapi_maintenance import Maintenance, force_maintenance_mode_off, set_maintenance_mode
from fastapi_maintenance.backends import BaseStateBackend


class ApiBackend(BaseStateBackend):
    """Keeps one truth value in an HTTP service.

    Args:
        url: Where the service is.
    """

    def __init__(self, url: str) -> None:
        self._url = f"{url}/maintenance"

    async def get_value(self) -> bool:
        """Ask the service; an error status is a failure, never "off"."""
        async with httpx.AsyncClient() as client:
            response = await client.get(self._url)
        response.raise_for_status()
        return self._str_to_bool(str(response.json()["active"]))

    async def set_value(self, value: bool) -> None:  # noqa: FBT001 - the base class's signature
        """Tell the service."""
        async with httpx.AsyncClient() as client:
            response = await client.put(self._url, json={"active": value})
        response.raise_for_status()


maintenance = Maintenance(backend=ApiBackend(os.environ.get("MAINTENANCE_API", "http://127.0.0.1:9000")))
app = FastAPI(dependencies=[Depends(maintenance.guard)], lifespan=maintenance.lifespan)


@app.get("/hello")
async def hello() -> dict[str, str]:
    return {"message": "Hello"}


# A real service protects this one.
@app.put("/maintenance", status_code=204)
@force_maintenance_mode_off
async def switch(*, active: bool) -> None:
    await set_maintenance_mode(active)
