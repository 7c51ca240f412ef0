"""`fastapi-maintenance run` against a real server: alone while it runs, and nothing left behind by any signal."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.servers import PATIENCE, asked, environment, needs_servers, until

pytestmark = needs_servers

SERVED = """
from pathlib import Path

import anyio
from fastapi import Depends, FastAPI
from fastapi_maintenance import Maintenance

maintenance = Maintenance()
app = FastAPI(dependencies=[Depends(maintenance.guard)], lifespan=maintenance.lifespan)


@app.get("/slow")
async def slow():
    Path("slow.running").touch()
    while not Path("slow.done").exists():
        await anyio.sleep(0.01)
    return "slow"


@app.get("/")
async def quick():
    return "quick"
"""

WAITS = """
import os, sys, time
open("command.running", "w").close()
while not os.path.exists("command.done"):
    time.sleep(0.01)
print(sys.stdin.read(), end="")
raise SystemExit(int(sys.argv[1]))
"""

COUNTS = """
import signal, sys, time

def got(number, frame):
    with open("got", "a") as file:
        file.write(signal.Signals(number).name[3])
    if number == signal.SIGTERM:
        sys.exit(0)

signal.signal(signal.SIGINT, got)
signal.signal(signal.SIGTERM, got)
open("command.running", "w").close()
while True:
    time.sleep(0.01)
"""

IN_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""

IGNORING = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""

RUN = [sys.executable, "-m", "fastapi_maintenance", "run", "--json"]


@pytest.fixture
def start(tmp_path):
    """Give a function that starts `run`; what still runs is killed with the test."""
    started = []

    def start(*args, launcher=(), **options):
        command = [*launcher, *RUN, *args]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment(), **{**pipes, **options}))  # noqa: S603 - our own
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


def script(text, *args):
    """Give a command that runs Python."""
    return ["--", sys.executable, "-c", text, *args]


def test_requests_in_flight_end_and_the_command_runs_alone(serve, start, tmp_path):
    """Who is in flight ends well, who comes meanwhile gets 503, then the command runs; it is open when that ends."""
    port = serve(SERVED, "--workers", "2", workers=2)
    told = tmp_path / "told"
    with ThreadPoolExecutor(1) as pool, told.open("wb") as stderr:
        slow = pool.submit(asked, port, "/slow")
        until((tmp_path / "slow.running").exists)
        run = start("--drain", "30", *script(WAITS, "7"), stderr=stderr)
        # Nobody else asks before it has counted.
        until(lambda: b"\n" in told.read_bytes())
        until(lambda: (tmp_path / "state").exists() and b'"closing"' in (tmp_path / "state").read_bytes())
        meanwhile = asked(port, "/")[0]
        begun_before = (tmp_path / "command.running").exists()
        (tmp_path / "slow.done").touch()
        ended = slow.result(PATIENCE)
    until((tmp_path / "command.running").exists)
    closed = [asked(port, "/")[0] for _ in range(4)]
    (tmp_path / "command.done").touch()
    out, _ = run.communicate(b"from stdin", PATIENCE)
    assert (meanwhile, begun_before, ended[:2], closed) == (503, False, (200, '"slow"'), [503] * 4)
    assert (run.returncode, out, asked(port, "/")[0]) == (7, b"from stdin", 200)
    steps = [json.loads(line) for line in told.read_bytes().splitlines()]
    assert steps[0]["event"] == "draining"
    assert (steps[0]["busy"], steps[0]["workers"]) == (1, 2)


def test_a_signal_while_it_drains(serve, start, tmp_path):
    """Each signal takes the hold back and ends it with 128 + n, SIGKILL too; the command never starts."""
    port = serve(SERVED)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(asked, port, "/slow")
        until((tmp_path / "slow.running").exists)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
            run = start(*script(WAITS, "0"))
            until(lambda: asked(port, "/")[0] == 503)
            run.send_signal(number)
            expected = -number if number == signal.SIGKILL else 128 + number
            assert run.wait(PATIENCE) == expected
            until(lambda: asked(port, "/")[0] == 200)
        (tmp_path / "slow.done").touch()
        assert slow.result(PATIENCE)[0] == 200
    assert not (tmp_path / "command.running").exists()


def test_a_signal_while_the_command_runs(serve, start, tmp_path):
    """The command gets it, is waited for, and then it is open."""
    port = serve(SERVED)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        run = start(*script("import time\nopen('command.running', 'w')\nwhile True: time.sleep(0.01)"))
        until((tmp_path / "command.running").exists)
        (tmp_path / "command.running").unlink()
        assert asked(port, "/")[0] == 503
        run.send_signal(number)
        assert (run.wait(PATIENCE), asked(port, "/")[0]) == (128 + number, 200)


def test_run_killed_while_the_command_runs(serve, start, tmp_path):
    """It stays closed until the command ends, and is open then."""
    port = serve(SERVED)
    run = start(*script(WAITS, "0"))
    until((tmp_path / "command.running").exists)
    run.kill()
    run.wait(PATIENCE)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        assert asked(port, "/")[0] == 503
    run.stdin.close()
    (tmp_path / "command.done").touch()
    until(lambda: asked(port, "/")[0] == 200)


def test_ctrl_c_on_a_terminal_comes_once(serve, start, tmp_path):
    """The terminal sends it to the command as well, so `run` does not; what another process sends is passed on."""
    serve(SERVED)
    ours, theirs = os.openpty()
    run = start(*script(COUNTS), launcher=[sys.executable, "-c", IN_A_TERMINAL], stdin=theirs)
    until((tmp_path / "command.running").exists)
    os.write(ours, b"\x03")
    until((tmp_path / "got").exists)
    run.send_signal(signal.SIGTERM)
    assert (run.wait(PATIENCE), (tmp_path / "got").read_text()) == (0, "IT")
    os.close(ours)
    os.close(theirs)


def test_a_command_never_takes_its_success_from_a_parent_that_ignores_children(serve, start):
    """Started with SIGCHLD ignored, `run` still knows how the command ended."""
    serve(SERVED)
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    run = start(*script("raise SystemExit(5)"), launcher=[sys.executable, "-c", ignoring])
    assert run.wait(PATIENCE) == 5
