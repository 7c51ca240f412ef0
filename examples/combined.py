"""Middleware, handlers and a context manager together: a search service that closes while its index is built anew.

`POST /admin/reindex` is always open and closes everything else while it works. Monitoring agents are let through, all
others get an answer in the service's own form.

    uvicorn examples.combined:app

With several workers, keep the state where all of them see it: `FASTAPI_MAINTENANCE_BACKEND=file:maintenance.state`
(and the index, which is in the memory of one process here).
"""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from fastapi_maintenance import (
    MaintenanceModeMiddleware,
    MaintenanceStatus,
    force_maintenance_mode_off,
    maintenance_mode_on,
)

DOCUMENTS = {"tea": "Boil water, then wait.", "biscuits": "Buy them, then wait for the tea."}
MONITORS = ("uptime-check/", "synthetic/")

index: dict[str, set[str]] = {}


def is_monitor(request: Request) -> bool:
    """Let monitoring agents through. Anybody can claim to be one; where that matters, use `exempt_ips` instead."""
    return request.headers.get("User-Agent", "").startswith(MONITORS)


async def closed(request: Request, status: MaintenanceStatus) -> JSONResponse:
    """Answer in the form that clients of this service know."""
    error = {"code": "reindexing", "path": request.url.path, "message": status.message}
    return JSONResponse({"error": error}, 503, {"Retry-After": str(status.retry_after or 60)})


app = FastAPI()
app.add_middleware(MaintenanceModeMiddleware, exempt_handler=is_monitor, response_handler=closed)


async def build_index() -> None:
    """Note for each word in which documents it is."""
    index.clear()
    for title, text in DOCUMENTS.items():
        for word in text.lower().replace(",", "").replace(".", "").split():
            index.setdefault(word, set()).add(title)


@app.get("/search")
async def search(word: str) -> list[str]:
    return sorted(index.get(word, ()))


@app.post("/admin/reindex")
@force_maintenance_mode_off
async def reindex() -> dict[str, int]:
    async with maintenance_mode_on():
        await build_index()
    return {"words": len(index)}
