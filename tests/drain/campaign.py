"""One campaign: a server under load, holders that drain it, faults, and what the records say of it all."""

import asyncio
import itertools
import os
import random
import signal
import socket
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from statistics import median

import websockets
from websockets.asyncio.client import connect

from tests.drain.record import REQUESTS, WINDOWS, note_kill, overlaps, spans
from tests.machines import in_memory
from tests.servers import PATIENCE, ROOT

HOST = "127.0.0.1"
APP = "tests.drain.served:app"
PYTHON = (sys.executable, "-m")
GUNICORN = (*PYTHON, "gunicorn", APP, "-k", "uvicorn_worker.UvicornWorker", "-b", f"{HOST}:{{port}}", "-w", "{workers}")
SERVERS = {
    "uvicorn": (*PYTHON, "uvicorn", APP, "--host", HOST, "--port", "{port}", "--workers", "{workers}"),
    "gunicorn": GUNICORN,
    "gunicorn-preload": (*GUNICORN, "--preload"),
    "granian": (
        *(*PYTHON, "granian", APP, "--interface", "asgi", "--host", HOST, "--port", "{port}"),
        *("--workers", "{workers}", "--respawn-failed-workers"),
    ),
    "hypercorn": (*PYTHON, "hypercorn", APP, "-b", f"{HOST}:{{port}}", "-w", "{workers}"),
}
KINDS = ["async", "sync", "stream", "events", "background", "failing", "websocket"]
CLIENTS = 24
LONGEST = 60.0
"""Milliseconds that a request takes at most, by itself, where nothing is broken on purpose."""

AT_MOST = 300.0
"""Seconds in which a campaign has to see all that it is to see."""

REFUSED_PAUSE = 0.01
GONE = (OSError, EOFError, ValueError, IndexError, websockets.WebSocketException)
"""What a client sees of a worker that was killed."""


@dataclass(frozen=True)
class Plan:
    """What a campaign does.

    Attributes:
        server: Which server, by its name.
        workers: How many workers.
        gates: `middleware`, `route`, `guard`, or `all` of them.
        windows: How many windows each holder holds at least; half as many are asked for while a request runs.
        control: How the protocol is broken on purpose, or `none`.
        holders: Who holds: `script`, `admin` (an endpoint that is always open).
        at_start: How many windows each worker holds as it starts.
        faults: What happens meanwhile, again and again.
        every: Seconds between two faults.
    """

    server: str
    workers: int = 2
    gates: str = "all"
    windows: int = 20
    control: str = "none"
    holders: tuple[str, ...] = ("script", "script", "admin")
    at_start: int = 1
    faults: tuple[str, ...] = ()
    every: float = 0.7

    @property
    def contested(self):
        """How many windows are to be asked for while a request runs: others tell nothing."""
        return self.windows // 2

    @property
    def longest(self):
        """Milliseconds that a request takes at most: in a control so many that it outlasts the way into a window.

        Else a slow machine, on which a holder gets in no faster, would not see what is broken.
        """
        return LONGEST if self.control == "none" else 10 * LONGEST

    def __str__(self):
        control = "" if self.control == "none" else f"-{self.control}"
        faults = f"-{len(self.faults)}-faults" if self.faults else ""
        return f"{self.server}-x{self.workers}-{self.gates}{control}{faults}"


@dataclass
class Seen:
    """What came of a campaign.

    Attributes:
        windows: The windows, by their beginning.
        requests: The requests.
        overlaps: The pairs of both that ran at the same time.
        answers: How many answers clients had, by status; 0 stands for none.
        faults: How often each fault happened.
        log: What the server wrote.
    """

    windows: list
    requests: list
    overlaps: list
    answers: dict
    faults: dict
    log: str = field(repr=False)

    @property
    def violated(self):
        """How many windows had a request in them."""
        return len({window for window, _ in self.overlaps})

    @property
    def contested(self):
        """How many windows were asked for while a request ran."""
        asked = [span._replace(begin=span.asked) for span in self.windows]
        return len({window for window, _ in overlaps(asked, self.requests)})

    def __str__(self):
        entering = sorted((span.begin - span.asked) / 1e6 for span in self.windows)
        longest = max((span.end - span.begin) / 1e6 for span in self.requests if span.end < inf)
        parts = [
            f"{len(self.windows)} windows, {self.contested} asked for while requests ran",
            f"{len(self.requests)} requests in {len({span.pid for span in self.requests})} processes",
            f"{len(self.overlaps)} overlaps in {self.violated} windows",
            f"entering p50 {median(entering):.0f} p99 {entering[-1 - len(entering) // 100]:.0f} ms",
            f"longest entering {entering[-1]:.0f} ms",
            f"longest request {longest:.0f} ms",
            f"answers {dict(sorted(self.answers.items()))}",
            f"faults {self.faults}",
        ]
        return "; ".join(parts)


class Campaign:
    """A campaign while it runs.

    Attributes:
        stopped: Seconds for which a holder is stopped, at least and at most.
    """

    stopped = (0.05, 0.4)

    def __init__(self, plan, directory, port):
        self.plan = plan
        self.directory = directory
        self.port = port
        self.answers = {}
        self.faults = dict.fromkeys(plan.faults, 0)
        self.scripts = set()
        self.over = False
        self.chance = random.Random(port)  # noqa: S311 - no secret

    def environment(self):
        """Give the environment of all processes."""
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FASTAPI_MAINTENANCE_BACKEND": f"file:{self.directory / 'state'}",
            "DRAIN_RECORDS": str(self.directory),
            "DRAIN_GATES": self.plan.gates,
            "DRAIN_CONTROL": self.plan.control,
            "DRAIN_AT_START": str(self.plan.at_start),
        }

    # The server

    @asynccontextmanager
    async def server(self):
        """Serve for the time of the block, with all workers there."""
        command = [part.format(port=self.port, workers=self.plan.workers) for part in SERVERS[self.plan.server]]
        with (self.directory / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command, env=self.environment(), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
            try:
                await self.all_workers()
                yield
            finally:
                await self.stop(process)

    async def all_workers(self):
        """Wait until each worker has answered."""
        pids, end = set(), time.monotonic() + PATIENCE
        while len(pids) < self.plan.workers:
            assert time.monotonic() < end, (self.directory / "log").read_text()
            pids |= await self.pid()
            await asyncio.sleep(0.01)

    async def stop(self, process):
        """End the server with all its workers, even where one of them is stopped."""
        process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    # Clients

    async def ask(self, method, target):
        """Ask over a connection of its own; give status and body, 0 where there is no answer."""
        status, body = 0, b""
        with suppress(*GONE):
            reader, writer = await asyncio.open_connection(HOST, self.port)
            try:
                writer.write(f"{method} {target} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
                head, _, body = (await asyncio.wait_for(reader.read(), PATIENCE)).partition(b"\r\n\r\n")
                status = int(head.split(b" ", 2)[1])
            finally:
                writer.close()
        return status, body

    async def leave_early(self, target):
        """Ask, and go away before the answer."""
        with suppress(*GONE):
            _, writer = await asyncio.open_connection(HOST, self.port)
            try:
                writer.write(f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                await asyncio.sleep(0.003)
            finally:
                writer.close()
        return 0, b""

    async def talk(self, target):
        """Ask over a websocket; give a status."""
        status = 0
        with suppress(*GONE):
            try:
                async with connect(f"ws://{HOST}:{self.port}{target}", open_timeout=PATIENCE) as websocket:
                    await websocket.send("work")
                    await websocket.recv()
                    status = 101
            except websockets.InvalidStatus as refused:
                status = refused.response.status_code
        return status, b""

    async def client(self):
        """Ask for this and that, again and again."""
        # A route class covers no websockets.
        kinds = KINDS[: len(KINDS) - (self.plan.gates == "route")]
        while not self.over:
            kind = self.chance.choice(kinds)
            target = f"/{kind}?ms={self.chance.uniform(2, self.plan.longest):.1f}"
            early, spoken = self.chance.random() < 0.05, kind == "websocket"
            way = self.leave_early if early else self.talk if spoken else partial(self.ask, "GET")
            status, _ = await way(target)
            self.answers[status] = self.answers.get(status, 0) + 1
            await asyncio.sleep(REFUSED_PAUSE if status == 503 else 0)

    async def pid(self):
        """Give the process of the worker that answers, in a set; nothing where there is no answer."""
        status, body = await self.ask("GET", "/pid")
        return {int(body)} if status == 200 else set()

    # Holders

    async def script(self, windows):
        """Hold from a process of its own."""
        process = await asyncio.create_subprocess_exec(
            *(*PYTHON, "tests.drain.hold", str(windows)),
            env=self.environment(),
            cwd=ROOT,
            stdout=asyncio.subprocess.DEVNULL,
        )
        self.scripts.add(process)
        await process.wait()
        self.scripts.discard(process)
        assert process.returncode in {0, -signal.SIGKILL}

    async def admin(self, windows):
        """Hold inside a worker."""
        await self.ask("POST", f"/hold?windows={windows}")

    async def hold(self, how):
        """Hold in turns, so that a holder that is killed is not missed for long, until all that is planned was seen."""
        held, end = 0, time.monotonic() + AT_MOST
        while held < self.plan.windows or not (self.seen_enough() or time.monotonic() > end):
            await getattr(self, how)(min(10, self.plan.windows))
            held += 10

    def seen_enough(self):
        """Tell whether each fault has happened, and that there were windows enough, whoever was killed in his."""
        seen = self.seen()
        return (
            all(self.faults.values())
            and len(seen.windows) >= self.plan.windows
            and seen.contested >= self.plan.contested
        )

    # Faults

    async def kill_worker(self):
        """Kill the worker that answers."""
        for pid in await self.pid():
            self.kill(pid)

    async def stop_worker(self):
        """Stop the worker that answers, for a while."""
        for pid in await self.pid():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(self.chance.uniform(0.05, 0.4))
                os.kill(pid, signal.SIGCONT)

    async def kill_holder(self):
        """Kill a holder that is a process of its own."""
        for process in list(self.scripts)[:1]:
            self.kill(process.pid)

    async def stop_holder(self):
        """Stop a holder that is a process of its own, for a while."""
        for process in list(self.scripts)[:1]:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(self.chance.uniform(*self.stopped))
                process.send_signal(signal.SIGCONT)

    async def rubbish(self):
        """Write over the state by hand."""
        (self.directory / "state").write_bytes(self.chance.choice([b"", b"{", b"\xff\xfe", b"maybe"]))
        await asyncio.sleep(0.05)
        (self.directory / "state").write_bytes(b"0")

    def kill(self, pid):
        """Kill, and note it."""
        note_kill(self.directory, pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    async def chaos(self):
        """Let the faults happen, in turns."""
        for fault in itertools.cycle(self.plan.faults):
            await asyncio.sleep(self.plan.every)
            if self.over:
                break
            await getattr(self, fault)()
            self.faults[fault] += 1

    # All of it

    async def run(self):
        """Run it, and give what was seen."""
        async with self.server(), asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self.client())
            group.create_task(self.chaos())
            try:
                await asyncio.gather(*map(self.hold, self.plan.holders))
            finally:
                self.over = True
                ended = [(self.kill(process.pid), process.wait()) for process in self.scripts]
                await asyncio.gather(*(wait for _, wait in ended))
        return self.seen()

    def seen(self):
        """Give what was seen until now."""
        windows, requests = spans(self.directory, WINDOWS), spans(self.directory, REQUESTS)
        log = (self.directory / "log").read_text(errors="replace")
        return Seen(windows, requests, overlaps(windows, requests), self.answers, self.faults, log)


def nothing_ran(seen, plan):
    """Assert that no request ran in a window, though enough were asked for while requests ran."""
    assert seen.overlaps == [], seen.overlaps
    assert len(seen.windows) >= plan.windows, seen
    assert seen.contested >= plan.contested, seen
    assert seen.answers[200] > seen.contested, seen
    assert seen.answers[503] > 0, seen
    assert all(seen.faults.values()), seen


@contextmanager
def place():
    """Give a directory of its own, where nothing is slow to sync, and a free port."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    with in_memory("drain-") as directory:
        yield Path(directory), port


def run(plan):
    """Run a campaign."""
    with place() as (directory, port):
        seen = asyncio.run(Campaign(plan, directory, port).run())
    print(f"{plan}: {seen}")  # noqa: T201 - figures, for those who run it with -s
    return seen
