"""Campaigns on Redis: the servers talk to it through a proxy, the holders directly, and both lose it now and then."""

import asyncio
import threading

from tests.drain.campaign import HOST, Campaign, place
from tests.redis_servers import LEASE, Proxy, eventually, redis_server

STATE = "{fastapi_maintenance:default}:state"


class FleetCampaign(Campaign):
    """A campaign whose state is in Redis."""

    stopped = (0.1 * LEASE, 1.7 * LEASE)

    def __init__(self, plan, directory, port, redis, replica):
        super().__init__(plan, directory, port)
        self.redis, self.replica, self.proxy = redis, replica, Proxy(redis.port)
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
        """Wait until each worker has answered; who comes later talks to Redis directly, if that stays where it is."""
        await super().all_workers()
        if "fail_over" not in self.plan.faults:
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

    async def fail_over(self):
        """Promote the replica before it has the last writes, and kill the primary, which comes back as the replica."""
        await self.in_thread(self.lag, self.promote, lambda: follow(self.replica, self.redis))

    def lag(self):
        """Let the replica miss a change."""
        self.replica.do("REPLICAOF", "NO", "ONE")
        missed = self.redis.do("HGET", STATE, "revision")
        eventually(lambda: self.redis.do("HGET", STATE, "revision") != missed)

    def promote(self):
        """Let the replica take the place of the primary, which is killed, and comes back."""
        self.proxy.target = self.replica.port
        self.redis.kill()
        self.redis, self.replica = self.replica, self.redis
        self.replica.start()

    async def cut_off(self):
        """Let the servers send and receive nothing for a while, without closing a connection."""
        await self.in_thread(self.proxy.open.clear, self.proxy.open.set)

    async def cut_off_for_long(self):
        """Let the servers send and receive nothing for longer than a lease."""
        self.proxy.open.clear()
        await asyncio.sleep(1.7 * LEASE)
        self.proxy.open.set()


def follow(replica, primary):
    """Let a server be the replica of another one, and wait until it has everything."""
    replica.do("REPLICAOF", HOST, str(primary.port))
    eventually(lambda: replica.do("INFO", "replication")["master_link_status"] == "up")


def run_on_redis(plan):
    """Run a campaign with a Redis of its own, and a replica of that."""
    options = ("--appendonly", "yes", "--repl-diskless-sync-delay", "0")
    with place() as (directory, port):
        folder = directory / "replica"
        folder.mkdir()
        with redis_server(directory, *options) as redis, redis_server(folder, *options) as replica:
            campaign = FleetCampaign(plan, directory, port, redis, replica)
            try:
                follow(replica, redis)
                seen = asyncio.run(campaign.run())
            finally:
                campaign.proxy.close()
    print(f"redis {plan}: {seen}", threading.active_count())  # noqa: T201 - figures, for those who run it with -s
    return seen
