"""Tasks that do not end with the one that wants them, on asyncio and on trio."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from math import inf
from typing import Any, TypeVar
from uuid import uuid4

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

T = TypeVar("T")

_TURN = 0.002
"""Seconds between two tries to get a turn, across event loops."""


def spawn(function: Callable[[], Coroutine[Any, Any, None]], alive: set[asyncio.Task[None]]) -> None:
    """Run `function` in the background of this event loop, outside of any request's context.

    `alive` holds the task while it runs, which an asyncio loop itself does not.
    """
    loop = _asyncio_loop()
    if loop is None:
        import trio  # noqa: PLC0415 - only where trio runs already

        trio.lowlevel.spawn_system_task(function)
    else:
        task = loop.create_task(function(), context=contextvars.Context())
        alive.add(task)
        task.add_done_callback(alive.discard)


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """Run `function` in a thread, now: those that sync endpoints wait for may all be busy."""
    return await anyio.to_thread.run_sync(function, *args, limiter=anyio.CapacityLimiter(1))


def in_this_loop(function: Callable[[], object]) -> Callable[[], None]:
    """Give what calls `function` soon in the event loop that runs now, from any thread; in vain when that has ended."""
    loop = _asyncio_loop()
    if loop is None:
        import trio  # noqa: PLC0415 - only where trio runs already

        soon: Callable[[Callable[[], object]], object] = trio.lowlevel.current_trio_token().run_sync_soon
        ended: type[Exception] = trio.RunFinishedError
    else:
        soon, ended = loop.call_soon_threadsafe, RuntimeError

    def call() -> None:
        with suppress(ended):
            soon(function)

    return call


class Turns:
    """Lets one task at a time in, of all event loops of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Under older anyio, variables of one name are one variable.
        self._here: RunVar[anyio.Lock | None] = RunVar(f"turns {uuid4()}", default=None)

    @asynccontextmanager
    async def one(self, patience: float = inf) -> AsyncGenerator[bool]:
        """Wait for a turn, which lasts as long as the block, at most `patience` seconds; give whether it is one."""
        here = self._here.get()
        if here is None:
            here = anyio.Lock()
            self._here.set(here)
        first = taken = False
        try:
            with anyio.move_on_after(patience):
                # In one event loop they queue; no event spans several.
                await here.acquire()
                first = True
                while not self._lock.acquire(blocking=False):  # noqa: ASYNC110 - as said
                    await anyio.sleep(_TURN)
                taken = True
            yield taken
        finally:
            if taken:
                self._lock.release()
            if first:
                here.release()


async def to_the_end(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `function` to its end even when this task is cancelled; the cancellation comes out afterwards.

    A shield of anyio alone does not keep off `task.cancel()`, which `asyncio.timeout` and asyncio's groups use.
    """
    loop = _asyncio_loop()
    result: list[T] = []
    with anyio.CancelScope(shield=True):
        result.append(await (function() if loop is None else _in_own_task(loop, function)))
    return result[0]


async def _in_own_task(loop: asyncio.AbstractEventLoop, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    begun = False

    async def run() -> T:
        nonlocal begun
        begun = True
        return await function()

    task = loop.create_task(run())
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
        if task.cancelled() and not begun:
            # An event loop that ends cancels all its tasks, this one before its first step.
            task = loop.create_task(run())
    if cancelled is not None:
        raise cancelled from task.exception()
    return task.result()


def _asyncio_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
