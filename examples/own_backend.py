"""A backend of your own: the whole document in SQLite, for all processes that open the same database.

Two methods are enough for messages, windows and the switch. What they promise is tested with
`fastapi_maintenance.testing.BackendContract`.

    uvicorn examples.own_backend:app
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI

from fastapi_maintenance import Maintenance, MaintenanceState
from fastapi_maintenance.backends import Edit

CREATE = "CREATE TABLE IF NOT EXISTS maintenance (id INTEGER PRIMARY KEY CHECK (id = 1), document TEXT NOT NULL)"
EXISTS = "SELECT 1 FROM sqlite_master WHERE name = 'maintenance'"
SELECT = "SELECT document FROM maintenance"
REPLACE = "INSERT OR REPLACE INTO maintenance VALUES (1, ?)"


class SqliteBackend:
    """Keeps the document in one row; the transaction begins with the write lock, so no change is lost.

    Args:
        path: The database; made at the first change.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path).absolute()

    async def read_state(self) -> MaintenanceState:
        """Give what is stored. Any exception means that the last known state holds."""
        return await run_sync(self._read)

    async def change_state(self, edit: Edit) -> MaintenanceState:
        """Store the change; when this raises, nothing was stored."""
        return await run_sync(self._change, edit)

    def _read(self) -> MaintenanceState:
        if not self._path.exists():
            return MaintenanceState()
        with closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True)) as database:
            return _stored(database)

    def _change(self, edit: Edit) -> MaintenanceState:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute(CREATE)
            state = edit(_stored(database))
            database.execute(REPLACE, [state.to_json()])
            database.execute("COMMIT")
        return state


def _stored(database: sqlite3.Connection) -> MaintenanceState:
    row = database.execute(SELECT).fetchone() if database.execute(EXISTS).fetchone() else None
    return MaintenanceState() if row is None else MaintenanceState.from_json(row[0])


maintenance = Maintenance(backend=SqliteBackend("maintenance.db"))
app = FastAPI(dependencies=[Depends(maintenance.guard)], lifespan=maintenance.lifespan)


@app.get("/")
async def hello() -> dict[str, str]:
    return {"message": "Hello"}
