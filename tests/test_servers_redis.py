"""Real servers over a real Redis: a hold in a third process closes every worker of two servers."""

import subprocess
import sys
from functools import partial

from tests import servers
from tests.redis_servers import needs_redis, redis_server
from tests.servers import asked, environment, needs_servers, serving, until

pytestmark = [needs_servers, needs_redis]

FLEET = """
from fastapi import Depends, FastAPI
from fastapi_maintenance import Maintenance

maintenance = Maintenance()
app = FastAPI(dependencies=[Depends(maintenance.guard)], lifespan=maintenance.lifespan)


@app.get("/")
async def hello():
    return "hello"
"""

HOLDER = """
import asyncio, sys
from fastapi_maintenance import Maintenance

async def hold():
    maintenance = Maintenance()
    async with maintenance.on(drain=30, min_workers=4):
        print(len(await maintenance.workers()), "workers", flush=True)
        sys.stdin.readline()

asyncio.run(hold())
"""


def test_two_servers_of_two_workers_each_close_for_a_third_process(tmp_path, monkeypatch):
    """Over Redis a hold in one process closes every worker of two servers, and they open when it ends."""
    with redis_server(tmp_path) as redis:
        monkeypatch.setattr(servers, "environment", partial(environment, FASTAPI_MAINTENANCE_BACKEND=redis.url()))
        folders = [tmp_path / name for name in ("one", "two")]
        for folder in folders:
            folder.mkdir()
        with serving(folders[0]) as first, serving(folders[1]) as second:
            ports = [start(FLEET, "--workers", "2", workers=2) for start in (first, second)]
            holder = subprocess.Popen(  # noqa: S603 - our own
                [sys.executable, "-c", HOLDER],
                env=environment(FASTAPI_MAINTENANCE_BACKEND=redis.url()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert holder.stdout.readline() == "4 workers\n"
            assert {asked(port, "/")[0] for port in ports for _ in range(20)} == {503}
            holder.communicate("\n", timeout=servers.PATIENCE)
            until(lambda: {asked(port, "/")[0] for port in ports for _ in range(20)} == {200})
