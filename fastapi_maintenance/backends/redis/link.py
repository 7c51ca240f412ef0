"""One thread for each store: all talking to Redis happens in its event loop, so that no request ever does."""

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread

from fastapi_maintenance.backends.redis.clients import close, subscription
from fastapi_maintenance.backends.redis.reasons import Explainer, Reason, only_refuses
from fastapi_maintenance.backends.redis.scripts import Script
from fastapi_maintenance.forks import follow_forks

logger = logging.getLogger("fastapi_maintenance")

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds before the store is tried again, the first time and at most; a random part is taken off."""

AT_ONCE = 4
"""Scripts that are under way at the same time: each has a connection of its own, and there may be many scopes."""

_AGAIN = 0.1
"""Seconds after which a task that was cancelled and goes on is cancelled again."""

_GRACE = 1.3
"""How much longer than redis-py, which closes a connection that is too slow, the thread waits."""

CHANCE = random.SystemRandom()
"""Not the global one, which tests of users set and watch, and which a thread must not move."""


class OutOfContact(Exception):
    """The store does not answer; the message says why, without credentials."""


class Refused(Exception):
    """The store answers, but does not do what it is asked; the message says why, without credentials."""


class Listener(Protocol):
    """Who is told what the store says."""

    @property
    def channel(self) -> str:
        """Where news of it are published."""
        ...

    async def attend(self) -> None:
        """Talk to the store as long as there is contact."""
        ...

    def hear(self, news: bytes) -> None:
        """Take what was published."""
        ...

    def lose_contact(self, reason: str) -> None:
        """Take note that the store does not answer."""
        ...


class Link:
    """The thread that talks to one store, for all who listen to it. It starts when it is needed.

    Args:
        connect: Makes a client.
        timeout: Seconds that an answer may take.
        explainer: Tells people what went wrong.
    """

    def __init__(self, connect: Callable[[], Any], timeout: float, explainer: Explainer) -> None:
        self._connect = connect
        self._timeout = timeout
        self._explained = explainer.explain
        # Replaced whole, so that it can be gone through in another thread.
        self._listeners: frozenset[Listener] = frozenset()
        self._lock = threading.RLock()
        self._abandoned: list[object] = []
        self._begin()
        follow_forks(self)

    def _begin(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None
        self._reason = self._explained(TimeoutError())
        self._contact = asyncio.Event()
        self._changed = asyncio.Event()
        self._turns = asyncio.Semaphore(AT_ONCE)

    def after_fork(self) -> None:
        """Begin anew: the thread is the parent's, and so are the connections, which must not be closed here."""
        self._abandoned += [self._loop, self._client, self._contact, self._changed, self._turns]
        self._lock = threading.RLock()
        self._begin()

    # From any thread

    def add(self, listener: Listener) -> None:
        """Talk to the store for `listener` from now on."""
        with self._lock:
            self._listeners |= {listener}
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._changed.set)
                return
            self._begin()
            loop = self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._main, args=(loop,), name="fastapi-maintenance-redis", daemon=True).start()

    def remove(self, listener: Listener) -> None:
        """Talk for it no more; the thread ends with the last one. The collector may call this within `add`."""
        with self._lock:
            self._listeners -= {listener}
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._changed.set)

    def soon(self, function: Callable[[], object]) -> None:
        """Call `function` in the thread."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function)

    def submit(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> "Future[T]":
        """Run `work` in the thread, `seconds` at most.

        Raises:
            OutOfContact: From the future: it did not come to an end in time.
        """
        with self._lock:
            if self._loop is None:
                raise OutOfContact("it is closed")
            return asyncio.run_coroutine_threadsafe(self._bounded(work, seconds), self._loop)

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        """Run `work` in the thread and wait for it, on any event loop.

        Raises:
            OutOfContact: It did not come to an end in time.
            Refused: The store did not do what it was asked.
        """
        future = self.submit(work, seconds)
        try:
            # A limiter of its own: the application's threads may all be busy.
            return await anyio.to_thread.run_sync(
                future.result, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
            )
        except CancelledError:
            raise OutOfContact("it was closed") from None
        finally:
            future.cancel()

    # In the thread

    async def _bounded(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        """Try again whenever there is contact, for whatever is asked may be asked twice."""
        failed: OutOfContact | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await self._made_contact()
                    try:
                        return await work()
                    except OutOfContact as error:
                        failed = error
        except TimeoutError:
            silent = self._explained(TimeoutError()) if self._contact.is_set() else self._reason
            raise failed or OutOfContact(silent.text) from None

    async def _made_contact(self) -> None:
        while not self._contact.is_set():
            if self._reason.lasts:
                raise Refused(self._reason.text)
            await self._contact.wait()

    async def script(self, script: Script, keys: Sequence[str], arguments: Sequence[str]) -> Any:
        """Run a script.

        Raises:
            OutOfContact: There was no answer.
            Refused: The store refused.
        """
        turns = self._turns
        async with turns:
            # Who waited while the contact broke off asks in the next session.
            if turns is not self._turns:
                raise OutOfContact(self._reason.text)
            return await self._run_script(script, keys, arguments)

    async def _run_script(self, script: Script, keys: Sequence[str], arguments: Sequence[str]) -> Any:
        client = self._client
        if client is None:
            raise OutOfContact(self._reason.text)
        try:
            async with asyncio.timeout(_GRACE * self._timeout):
                try:
                    return await client.evalsha(script.sha, len(keys), *keys, *arguments)
                except Exception as error:
                    if type(error).__name__ != "NoScriptError":
                        raise
                return await client.eval(script.source, len(keys), *keys, *arguments)
        except Exception as error:  # noqa: BLE001 - as above
            reason = self._explained(error)
            if only_refuses(error):
                raise Refused(reason.text) from None
            self._break_off(client, reason)
            raise OutOfContact(reason.text) from None

    def _break_off(self, client: object, reason: Reason) -> None:
        if client is self._client and self._contact.is_set():
            self._contact.clear()
            self._changed.set()
            self._lose_contact(reason)

    def _lose_contact(self, reason: Reason) -> None:
        self._reason = reason
        if reason.lasts:
            # Who waits for contact is told that it is in vain.
            self._contact.set()
            self._contact.clear()
        for listener in self._listeners:
            listener.lose_contact(reason.text)

    def _main(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.run_until_complete(self._serve())
        finally:
            loop.run_until_complete(_ended(asyncio.all_tasks(loop)))
            loop.run_until_complete(loop.shutdown_asyncgens())
            # Closed connections let go of their sockets in the next turn of the loop.
            loop.run_until_complete(asyncio.sleep(0.01))
            loop.close()

    async def _serve(self) -> None:
        clock, pause = asyncio.get_running_loop().time, FIRST_PAUSE
        # Who listens next does not wait until the last connection is closed.
        closing: set[asyncio.Task[None]] = set()
        while self._goes_on():
            began = clock()
            await self._session(closing)
            # A server that hangs up at once, or refuses all, is not asked in haste.
            if clock() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            if self._listeners:
                # Who drains after a restart waits for a part of a lease until all were heard again.
                await asyncio.sleep(min(pause, self._timeout) * CHANCE.uniform(0.5, 1))
                pause = min(2 * pause, LONGEST_PAUSE)
        if closing:
            await asyncio.wait(closing)

    def _goes_on(self) -> bool:
        """Tell whether anybody listens; nobody can begin to while this says no."""
        with self._lock:
            if not self._listeners:
                self._loop = None
            return self._loop is not None

    async def _session(self, closing: set[asyncio.Task[None]]) -> None:
        """Talk until the contact breaks or nobody listens; what is to be closed then goes to `closing`."""
        client: Any = None
        news: Any = None
        tasks: dict[object, asyncio.Task[None]] = {}
        try:
            client = self._connect()
            self._changed.clear()
            async with asyncio.timeout(_GRACE * self._timeout):
                # Whoever begins to listen meanwhile is not among them.
                channels = {listener.channel for listener in self._listeners}
                news = await subscription(client, next(iter(channels)))
                await news.subscribe(*channels)
            self._client = client
            self._contact.set()
            tasks[news] = asyncio.create_task(self._listen(client, news))
            await self._attend(news, channels, tasks)
        except Exception as error:  # noqa: BLE001 - whatever the library raises
            self._lose_contact(self._explained(error))
        finally:
            self._client = None
            self._contact.clear()
            turns, self._turns = self._turns, asyncio.Semaphore(AT_ONCE)
            await _ended(tasks.values())
            last = asyncio.create_task(self._close(turns, news, client))
            closing.add(last)
            last.add_done_callback(closing.discard)

    async def _attend(self, news: Any, subscribed: set[str], tasks: dict[object, asyncio.Task[None]]) -> None:
        while self._contact.is_set() and self._listeners:
            for listener in self._listeners - tasks.keys():
                if listener.channel not in subscribed:
                    subscribed.add(listener.channel)
                    await asyncio.wait_for(news.subscribe(listener.channel), self._timeout)
                tasks[listener] = asyncio.create_task(self._attend_to(listener))
            for gone in tasks.keys() - self._listeners - {news}:
                await _ended([tasks.pop(gone)])
            await self._changed.wait()
            self._changed.clear()

    async def _attend_to(self, listener: Listener) -> None:
        client = self._client
        try:
            await listener.attend()
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not go unnoticed
            self._break_off(client, self._explained(error))

    async def _close(self, turns: asyncio.Semaphore, *opened: Any) -> None:
        """Close what a session has opened, and again when its scripts have ended: one may have been connecting."""
        await self._close_each(opened)
        for _ in range(AT_ONCE):
            await turns.acquire()
        await self._close_each(opened)

    async def _close_each(self, opened: Iterable[Any]) -> None:
        for each in opened:
            with suppress(Exception):
                async with asyncio.timeout(self._timeout):
                    await close(each)

    async def _listen(self, client: Any, news: Any) -> None:
        """Hear what is published; a subscription that does not even answer a ping breaks the contact off."""
        try:
            while True:
                # What confirms a subscription is an answer, too; to be told of none would look like silence.
                message = await news.get_message(timeout=self._timeout)
                if message is None:
                    await news.ping()
                    message = await news.get_message(timeout=self._timeout)
                self._tell(message)
        except Exception as error:  # noqa: BLE001 - whatever the library raises
            self._break_off(client, self._explained(error))

    def _tell(self, message: dict[str, Any] | None) -> None:
        if message is None:
            raise TimeoutError
        channel = message.get("channel") or b""
        name = channel.decode() if isinstance(channel, bytes) else channel
        for listener in self._listeners:
            if listener.channel == name and message["type"] == "message":
                listener.hear(message["data"])


async def _ended(tasks: Collection[asyncio.Task[None]]) -> None:
    """End tasks. A cancellation can get lost on its way through the library, so it is repeated until they have."""
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_AGAIN)
