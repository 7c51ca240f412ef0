"""A small load generator: keep-alive connections to the loopback, each asks again as soon as it is answered.

It is bounded by its connections and its seconds, checks every answer, and counts those that never came.
"""

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

REQUEST = b"GET /r/42 HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\nUser-Agent: bench\r\n\r\n"
PATIENCE = 30.0
"""Seconds after which a request that was not answered is lost."""
AT_ONCE = 500
"""Connections that are opened at the same time."""


@dataclass
class Result:
    """What came of it.

    Attributes:
        seconds: How long it took.
        latencies: Of each answered request, in milliseconds.
        statuses: How many answers had which status.
        lost: Requests that were never answered.
        wrong: Answers that were not what had to come then.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    wrong: int = 0


Check = Callable[[float, float, int, bytes], bool]
"""Gets when a request was sent and answered, and the answer's status and body; tells whether it is right."""


class _Client(asyncio.Protocol):
    def __init__(self, result: Result, check: Check) -> None:
        self._result = result
        self._check = check
        self._data = b""
        self._sent = 0.0
        self._until = 0.0
        self.asking = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.asking:
            self._result.lost += 1
        self._end()

    def ask(self, until: float) -> None:
        """Ask, and again until that time is over."""
        self._until = until
        self.asking = True
        self._sent = time.monotonic()
        self._transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        now = time.monotonic()
        status = int(head[9:12])
        result = self._result
        result.latencies.append((now - self._sent) * 1000)
        result.statuses[status] += 1
        result.wrong += not self._check(self._sent, now, status, body)
        self._data = b""
        self.asking = False
        if now < self._until:
            self.ask(self._until)
        else:
            self._end()

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def close(self) -> None:
        self._transport.close()


def allow_many_files() -> None:
    """Raise the limit of open files as far as the system lets us."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def load(port: int, connections: int, seconds: float, check: Check) -> Result:
    """Keep `connections` requests under way for `seconds`; with 0 seconds each connection asks once."""
    result = Result()
    clients: list[_Client] = []
    loop = asyncio.get_running_loop()
    for begin in range(0, connections, AT_ONCE):
        opening = [
            loop.create_connection(lambda: _Client(result, check), "127.0.0.1", port)
            for _ in range(min(AT_ONCE, connections - begin))
        ]
        clients += [client for _, client in await asyncio.gather(*opening)]
    begun = time.monotonic()
    for client in clients:
        client.ask(begun + seconds)
    await asyncio.wait([client.done for client in clients], timeout=seconds + PATIENCE)
    result.seconds = time.monotonic() - begun
    for client in clients:
        client.close()
    await asyncio.sleep(0)
    result.latencies.sort()
    return result


def expecting(status: int) -> Check:
    """Give a check that wants this status, and the small answer where it is 200."""
    return lambda _sent, _answered, got, body: got == status and (status != 200 or b"a small answer" in body)
