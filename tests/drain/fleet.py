"""Campaigns on Redis: the servers talk to it through a proxy, the holders directly, and both lose it now and then."""

import asyncio
import shutil
import socket
import tempfile
import threading
from pathlib import Path

from tests.drain.campaign import HOST, Campaign
from tests.redis_servers import LEASE, Proxy, redis_server


class FleetCampaign(Campaign):
    """A campaign whose state is in Redis."""

    def __init__(self, plan, directory, port, redis):
        super().__init__(plan, directory, port)
        self.redis, self.proxy = redis, Proxy(redis.port)
        self.url = redis.url(forget=1).replace(str(redis.port), str(self.proxy.port))

    def environment(self):
        """Give the environment of all processes."""
        return {
            **super().environment(),
            "FASTAPI_MAINTENANCE_BACKEND": self.url,
            "FASTAPI_MAINTENANCE_ON_BACKEND_ERROR": "closed",
            "DRAIN_LONGEST_WINDOW": "0.05",
        }

    async def all_workers(self):
        """Wait until each worker has answered; who comes later talks to Redis directly."""
        await super().all_workers()
        self.url = self.redis.url(forget=1)

    # Faults

    async def in_thread(self, *steps):
        """Do one after another, with a little time between."""
        for step in steps:
            await asyncio.to_thread(step)
            await asyncio.sleep(self.chance.uniform(0.05, 0.5))

    async def kill_redis(self):
        """Kill it, and start it again from its log."""
        await self.in_thread(self.redis.kill, self.redis.start)

    async def pause_redis(self):
        """Stop it for a while."""
        await self.in_thread(self.redis.pause, self.redis.resume)

    async def empty_redis(self):
        """Delete everything."""
        await self.in_thread(lambda: self.redis.do("FLUSHALL"))

    async def drop_connections(self):
        """Kill all connections."""
        await self.in_thread(self.redis.drop_connections)

    async def cut_off(self):
        """Let the servers send and receive nothing for a while, without closing a connection."""
        await self.in_thread(self.proxy.open.clear, self.proxy.open.set)

    async def cut_off_for_long(self):
        """Let the servers send and receive nothing for longer than a lease."""
        self.proxy.open.clear()
        await asyncio.sleep(1.7 * LEASE)
        self.proxy.open.set()


def run_on_redis(plan):
    """Run a campaign in a directory of its own, with a Redis of its own."""
    memory = Path("/dev/shm")  # noqa: S108 - tests only
    directory = Path(tempfile.mkdtemp(prefix="drain-", dir=memory if memory.is_dir() else None))
    try:
        with socket.socket() as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        with redis_server(directory, "--appendonly", "yes") as redis:
            campaign = FleetCampaign(plan, directory, port, redis)
            try:
                seen = asyncio.run(campaign.run())
            finally:
                campaign.proxy.close()
    finally:
        shutil.rmtree(directory)
    print(f"redis {plan}: {seen}", threading.active_count())  # noqa: T201 - figures, for those who run it with -s
    return seen
