"""The contract of stores, on Redis: what every backend does, on asyncio and on trio."""

from contextlib import contextmanager
from itertools import count

import pytest

from fastapi_maintenance.backends import RedisBackend
from fastapi_maintenance.testing import BackendContract
from tests.redis_servers import needs_redis, needs_valkey, redis_server

pytestmark = needs_redis


@pytest.fixture(scope="module", params=["redis-server", pytest.param("valkey-server", marks=needs_valkey)])
def server(tmp_path_factory, request):
    """Give a server for all tests; each store has a prefix of its own."""
    with redis_server(tmp_path_factory.mktemp("redis"), program=request.param) as running:
        yield running


class TestRedis(BackendContract):
    """Redis, for all machines of a fleet."""

    numbers = count()

    @pytest.fixture(autouse=True)
    def _server(self, server):
        self.server = server

    def make_backend(self):
        self.prefix = f"p{next(self.numbers)}"
        return RedisBackend(self.server.url(prefix=self.prefix))

    def other(self, backend):
        return RedisBackend(self.server.url(prefix=self.prefix))

    @contextmanager
    def failing_writes(self, backend):
        self.server.do("CONFIG", "SET", "maxmemory", "1")
        try:
            yield
        finally:
            self.server.do("CONFIG", "SET", "maxmemory", "0")

    async def close(self, backend):
        backend.close()
