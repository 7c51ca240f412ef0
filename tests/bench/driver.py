"""Environments, and the processes that measure in them."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from subjects import OLDER, WAYGATE, Subject, free_port

HERE = Path(__file__).parent
SERVER = "uvicorn[standard]"
WAITED = 180.0
"""Seconds after which a server that does not start is an error."""
PEERS = {OLDER: ["fastapi-maintenance==0.0.5", SERVER], WAYGATE: ["waygate[all]==0.2.0", SERVER]}
"""What is installed for each peer; waygate cannot be imported without its extras."""


def environment(folder: Path, name: str, requirements: list[str]) -> str:
    """Make a virtual environment, unless it is there, and give its Python."""
    place, receipt = folder / name, json.dumps([sys.version, requirements])
    python, done = place / "bin" / "python", place / "requirements"
    if done.exists() and done.read_text() == receipt:
        return str(python)
    shutil.rmtree(place, ignore_errors=True)
    uv = shutil.which("uv")
    if uv is None:
        _run(sys.executable, "-m", "venv", str(place))
        _run(str(python), "-m", "pip", "install", "-q", *requirements)
    else:
        _run(uv, "venv", "-q", "-p", sys.executable, str(place))
        _run(uv, "pip", "install", "-q", "-p", str(python), *requirements)
    done.write_text(receipt)
    return str(python)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=600)


class Worker:
    """A process that measures; questions go to it and answers come back, one at a time.

    Args:
        python: The interpreter of its environment.
        before: What to put before the command: valgrind, say.
        hashes: The seed of its hashes; of the same one all dictionaries are the same.
    """

    def __init__(self, python: str, *before: str, hashes: int = 0) -> None:
        # The folder of this file is where it finds its modules; the project's own folder would hide what is installed.
        self._process = subprocess.Popen(
            [*before, python, str(HERE / "worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(PYTHONHASHSEED=str(hashes)),
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(
        self, question: str, *, subjects: list[Subject] | None = None, subject: Subject | None = None, **more: Any
    ) -> Any:
        """Give the answer to one question."""
        asked: dict[str, Any] = {"do": question, **more}
        if subjects is not None:
            asked["subjects"] = [asdict(each) for each in subjects]
        if subject is not None:
            asked["subject"] = asdict(subject)
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with {self._process.wait()} while it was asked: {question}")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def worker(python: str, *before: str, hashes: int = 0) -> Iterator[Worker]:
    """Give a worker that ends with the block."""
    process = Worker(python, *before, hashes=hashes)
    try:
        yield process
    finally:
        process.close()


def clean_environment(**more: str) -> dict[str, str]:
    """Give the environment without settings of ours; unless told otherwise, all hashes are the same."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTAPI_MAINTENANCE_")}
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
        kept.pop(name, None)
    return {**kept, "PYTHONHASHSEED": "0", **more}


@contextmanager
def redis_server() -> Iterator[str | None]:
    """Give the URL of a Redis server of our own, `None` where none is installed."""
    command = shutil.which("redis-server")
    if command is None:
        yield None
        return
    port = free_port()
    with TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [command, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            end = time.monotonic() + WAITED
            # Whoever asked before it listens would be measured while it misses Redis.
            while not _listens(port):
                if time.monotonic() > end:
                    raise TimeoutError(f"redis-server did not start within {WAITED:g} s")
                time.sleep(0.01)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Server:
    """A real uvicorn that serves one subject.

    Args:
        python: The interpreter of its environment.
        subject: What it serves.
        folder: Where state files go.
        workers: How many processes serve.
    """

    def __init__(self, python: str, subject: Subject, folder: Path, workers: int = 1) -> None:
        self.port = free_port()
        self.folder = folder
        command = [python, "-m", "uvicorn", "served:app", "--app-dir", str(HERE), "--host", "127.0.0.1"]
        options = ["--port", str(self.port), "--workers", str(workers), "--no-access-log", "--backlog", "16384"]
        self._log = (folder / f"{self.port}.log").open("w+")
        self._process = subprocess.Popen(
            [*command, *options],
            stdout=self._log,
            stderr=self._log,
            cwd=folder,
            env=clean_environment(BENCH_SUBJECT=subject.to_json(), BENCH_FOLDER=str(folder)),
        )
        self._workers = workers

    def started(self) -> bool:
        """Tell whether all its processes serve."""
        text = Path(self._log.name).read_text()
        if self._process.poll() is not None:
            raise RuntimeError(text)
        return text.count("startup complete") == self._workers

    @property
    def pids(self) -> list[int]:
        """Its process, and all that it started."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        below = children.read_text().split() if children.exists() else []
        return [self._process.pid, *map(int, below)]

    @property
    def memory(self) -> int:
        """Bytes that its processes have for themselves, 0 where the system does not tell."""
        return sum(map(own_memory, self.pids))

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
        self._log.close()


def own_memory(pid: int) -> int:
    """Give the bytes that a process shares with nobody (`smaps_rollup` of Linux), 0 where that is unknown."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return sum(int(kib) * 1024 for kib in re.findall(r"Private_\w+:\s+(\d+) kB", text))
    return 0
