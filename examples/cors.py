"""A browser of another origin can read the refusal, and its preflight is answered while the service is closed.

The order of the two `add_middleware` calls does not matter. `expose_headers` lets scripts see when to come back.

    FASTAPI_MAINTENANCE_MODE=1 uvicorn examples.cors:app
"""

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from fastapi_maintenance import MaintenanceModeMiddleware

app = FastAPI()
app.add_middleware(
    CORSMiddleware,
    allow_origins=["https://shop.example"],
    allow_methods=["GET", "POST"],
    expose_headers=["Retry-After"],
)
app.add_middleware(MaintenanceModeMiddleware)


@app.post("/orders")
async def order() -> dict[str, str]:
    return {"ordered": "tea"}
