"""Running a command while it is closed: its own input, output and signals, and open again when it ends."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Generator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from fastapi_maintenance.errors import BackendError, MaintenanceError
from fastapi_maintenance.holds import ActiveHold, HoldContext
from fastapi_maintenance.inflight import places
from fastapi_maintenance.maintenance import Maintenance

UNSURE = 76
"""Exit code of a command that succeeded while the hold was lost, or after which the hold could not be ended."""

CANNOT_RUN, NOT_FOUND, SIGNALLED = 126, 127, 128
"""Exit codes as shells give them; a signal's number is added to the last one."""

SIGNALS = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")
"""What breaks off a drain, and is passed on to a command that runs."""

TYPED = ("SIGINT", "SIGQUIT")
"""What a terminal sends to all processes in its foreground."""

_LOOK = 0.1
"""Seconds between two looks at who is still busy."""


class Report(Protocol):
    """Tells a person, or a program, how far it is."""

    def __call__(self, event: str, /, **data: Any) -> None:
        """Tell of an event; it must not raise.

        Args:
            event: `draining`, `broken_off`, `closed`, `started`, `not_started`, `not_passed_on`, `lost`, `ended` or
                `not_reopened`.
            data: What belongs to it.
        """
        ...


class _CommandFailed(Exception):
    """Tells the hold that its block failed."""


class Run:
    """One command under one hold.

    Args:
        maintenance: What to close.
        context: The hold, from `maintenance.on()`.
        command: The program and its arguments.
        report: Told of each step.
    """

    def __init__(self, maintenance: Maintenance, context: HoldContext, command: Sequence[str], report: Report) -> None:
        self._maintenance = maintenance
        self._context = context
        self._command = list(command)
        self._report = report
        self._entering = anyio.CancelScope()
        self._draining, self._over = True, False
        self._broken_off_by: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._code: int | None = None

    async def to_its_end(self) -> int:
        """Close, run the command, open again; in the main thread, on asyncio.

        Returns:
            The exit code for a shell.

        Raises:
            MaintenanceError: It could not be closed or drained; the command was not started.
        """
        if shutil.which(self._command[0]) is None:
            # Nobody is turned away for a command that does not exist.
            return self._not_started(CANNOT_RUN if _exists(self._command[0]) else NOT_FOUND)
        # Who is born with SIGCHLD ignored never learns how a child ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        failure: MaintenanceError | None = None
        code = 0
        with self._hearing():
            async with anyio.create_task_group() as group:
                try:
                    code = await self._held(group)
                except MaintenanceError as error:
                    failure = error
        if failure is not None:
            raise failure
        return code

    # Closed

    async def _held(self, group: TaskGroup) -> int:
        try:
            async with AsyncExitStack() as stack:
                hold = await self._enter(stack, group)
                if self._broken_off_by is not None or hold is None:
                    return SIGNALLED + (self._broken_off_by or 0)
                group.start_soon(self._watch, hold)
                return await self._ran(hold)
        except _CommandFailed:
            pass
        except BackendError as error:
            if self._code is None:
                raise
            self._report("not_reopened", reason=str(error))
        finally:
            self._over = True
        return self._code or UNSURE

    async def _enter(self, stack: AsyncExitStack, group: TaskGroup) -> ActiveHold | None:
        """Close and drain; `None` when a signal broke that off."""
        hold = None
        group.start_soon(self._tell_who_is_busy)
        try:
            with self._entering:
                hold = await stack.enter_async_context(self._context)
        finally:
            self._draining = False
        return hold

    async def _tell_who_is_busy(self) -> None:
        told: tuple[list[int], list[str]] | None = None
        while self._draining:
            with suppress(BackendError):
                workers = await self._maintenance.workers()
                busy = places(worker for worker in workers if worker.busy)
                if busy[0] and busy != told:
                    self._report("draining", busy=len(busy[0]), workers=len(workers), pids=busy[0], hosts=busy[1])
                    told = busy
            await anyio.sleep(_LOOK)

    async def _watch(self, hold: ActiveHold) -> None:
        """Tell when the hold is lost, while the command runs."""
        while not (hold.lost or self._over):  # noqa: ASYNC110 - it ends with either
            await anyio.sleep(_LOOK)
        if hold.lost:
            self._report("lost", hold=hold.id)

    async def _ran(self, hold: ActiveHold) -> int:
        """Run the command to its end, whatever becomes of the hold.

        Raises:
            _CommandFailed: It did not end with 0.
        """
        self._report("closed", hold=hold.id)
        try:
            # It keeps the hold alive when this process is killed.
            self._process = subprocess.Popen(self._command, pass_fds=hold.descriptors)  # noqa: ASYNC220, S603 - it is what the user runs
        except OSError as error:
            return self._not_started(NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN, error)
        self._report("started", pid=self._process.pid)
        ended = await anyio.to_thread.run_sync(self._process.wait)
        self._code = SIGNALLED - ended if ended < 0 else ended
        self._report("ended", code=self._code)
        if self._code != 0:
            raise _CommandFailed
        return UNSURE if hold.lost else 0

    def _not_started(self, code: int, error: OSError | None = None) -> int:
        reasons = {NOT_FOUND: "command not found", CANNOT_RUN: "it cannot be executed"}
        self._report("not_started", program=self._command[0], reason=reasons[code] if error is None else str(error))
        return code

    # Signals

    @contextmanager
    def _hearing(self) -> Generator[None]:
        """Listen to signals; what was ignored at the start, as by nohup, stays ignored here and in the command."""
        known = [signal.Signals[name] for name in SIGNALS]
        heard = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
        loop = asyncio.get_running_loop()
        for number in heard:
            loop.add_signal_handler(number, self._hear, number)
        try:
            yield
        finally:
            for number in heard:
                loop.remove_signal_handler(number)

    def _hear(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._pass_on(self._process, number)
        else:
            self._broken_off_by = self._broken_off_by or number
            self._report("broken_off", signal=number.name)
            self._entering.cancel()

    def _pass_on(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Give a signal to the command, unless the terminal has done so already."""
        if number.name not in TYPED or not _is_in_foreground():
            try:
                process.send_signal(number)
            except PermissionError as error:
                # A command that changed its user, as sudo does.
                self._report("not_passed_on", signal=number.name, reason=str(error))


def _exists(program: str) -> bool:
    # A bare name is looked for on the path only, whatever lies in this directory.
    return Path(program).name != program and Path(program).exists()


def _is_in_foreground() -> bool:
    """Tell whether this process and its command are what the terminal sends its signals to."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
