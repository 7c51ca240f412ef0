"""A pretended migration: each step tells how many requests are running meanwhile.

Start a service, run this while it is closed, and ask the service for something meanwhile:

    export FASTAPI_MAINTENANCE_BACKEND=file:maintenance.state
    uvicorn examples.quickstart:app --workers 2
    fastapi-maintenance run --drain 10 --message "Back in a moment." -- python examples/migrate.py
"""

import anyio

from fastapi_maintenance import Maintenance

STEPS = ("copy the table", "fill the new column", "drop the old one")


async def migrate() -> None:
    """Go through the steps, a second each."""
    maintenance = Maintenance()
    for step in STEPS:
        workers = await maintenance.workers()
        status = await maintenance.status()
        busy = sum(worker.busy for worker in workers)
        print(f"{step}: the service is {status.phase}, {busy} of {len(workers)} workers run a request", flush=True)
        await anyio.sleep(1)


if __name__ == "__main__":  # pragma: no cover - a script
    anyio.run(migrate)
