"""The operators' command: what it does, what it says, and how it ends."""

import importlib.util
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.middleware.gzip import GZipMiddleware
from typer.testing import CliRunner

from fastapi_maintenance import (
    BackendError,
    Maintenance,
    MaintenanceModeMiddleware,
    MaintenanceRoute,
    __main__,
    get_maintenance,
)
from fastapi_maintenance.backends import BaseStateBackend, LocalFileBackend, MemoryBackend
from fastapi_maintenance.cli import _instant, _Progress, app
from fastapi_maintenance.errors import DrainIncomplete
from fastapi_maintenance.holds import ActiveHold
from fastapi_maintenance.inflight import Worker
from fastapi_maintenance.lookup import maintenance_named
from fastapi_maintenance.running import _is_in_foreground
from tests.servers import environment, until

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


@pytest.fixture(autouse=True)
def _in_a_directory(tmp_path, monkeypatch):
    """Be in an empty directory, as an operator whose environment names a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTAPI_MAINTENANCE_BACKEND", "file:state")
    monkeypatch.setattr(sys, "path", sys.path[:])


@pytest.fixture
def busy():
    """Be a worker with a request in flight, until the test calls this, or ends."""
    backend, request = LocalFileBackend("state"), object()
    backend.in_flight.attach()
    backend.in_flight.enter(request)
    yield lambda: backend.in_flight.leave(request)
    backend.in_flight.leave(request)
    backend.in_flight.detach()


@pytest.fixture
def worker():
    """Be a worker without requests."""
    backend = LocalFileBackend("state")
    backend.in_flight.attach()
    yield
    backend.in_flight.detach()


def call(*args):
    """Type a command; give its exit code, stdout and stderr."""
    done = CliRunner().invoke(app, [*args])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.stdout, done.stderr


def state():
    """Read what the file says, as another process does."""
    return LocalFileBackend("state").peek_state()


def script(text):
    """Give a command that runs Python."""
    return [sys.executable, "-c", text]


def soon(condition, action):
    """Do something in a thread when something is so."""
    threading.Thread(target=lambda: until(condition) and action()).start()


def kill(number):
    """Give what sends a signal to this process."""
    return lambda: os.kill(os.getpid(), number)


# status, on, off


def test_status_of_an_open_service():
    """Open: exit code 0, and where the state is; reading creates nothing."""
    code, out, err = call("status")
    assert (code, out.splitlines()[0], err) == (0, "open", "")
    assert f"file:{Path.cwd() / 'state'}, revision 0" in out
    assert not list(Path.cwd().iterdir())


def test_on_says_all_and_status_repeats_it():
    """What is asked for is stored, and status tells it with exit code 3."""
    code, out, err = call(
        "on", "--message", "Back soon.", "--for", "1h30m", "--mode", "read_only", "--retry-after", "7", "--by", "me"
    )
    assert (code, err) == (0, "")
    assert "closed (read_only)" in out
    switch = state().switch
    assert (switch.message, switch.mode, switch.retry_after, switch.by) == ("Back soon.", "read_only", 7, "me")
    assert abs(switch.until - datetime.now(UTC) - timedelta(minutes=90)) < timedelta(minutes=1)
    again = call("status")
    assert (again[0], again[1]) == (3, out)
    assert "Back soon." in out
    assert "the switch by me, since" in out


@pytest.mark.parametrize("verb", ["status", "on", "off"])
def test_json(verb):
    """One JSON object on stdout: the status, where the state is, and what keeps it closed."""
    call("on", "--by", "me")
    code, out, _ = call(verb, "--json")
    answer = json.loads(out)
    assert code == {"status": 3, "on": 0, "off": 0}[verb]
    assert (answer["active"], answer["scope"]) == (verb != "off", "default")
    assert answer["backend"] == f"file:{Path.cwd() / 'state'}"
    assert (answer["workers"], answer["busy"]) == (0, 0)
    assert [cause["kind"] for cause in answer["closed_by"]] == ["switch"] * (verb != "off")


def test_off_opens():
    """Off turns the switch off: exit code 0."""
    call("on")
    assert call("off", "--by", "me") == (0, "open\n", "")
    assert call("status")[0] == 0


def test_off_says_who_still_keeps_it_closed():
    """A hold that is alive and a window stay: exit code 3, and each is named with its owner."""

    async def off_meanwhile():
        maintenance = Maintenance()
        now = datetime.now(UTC)
        window = await maintenance.schedule(now - timedelta(hours=1), now + timedelta(hours=1), by="planner")
        await maintenance.schedule(now + timedelta(hours=3), now + timedelta(hours=4))
        async with maintenance.on(by="migrator") as hold:
            code, out, _ = await anyio.to_thread.run_sync(call, "off")
        return code, out, f"window {window.id} by planner", f"hold {hold.id} by migrator"

    code, out, window, hold = anyio.run(off_meanwhile)
    assert (code, out.splitlines()[0]) == (3, "still closed (full)")
    assert window in out
    assert hold in out
    assert re.search(r"next +window", out)


def test_status_of_a_draining_hold_and_its_workers(busy):
    """While a hold drains: closing, how many of how many workers are busy, by pid, and the list of them."""

    async def status_meanwhile():
        with anyio.move_on_after(30) as draining:
            async with anyio.create_task_group() as group:
                group.start_soon(Maintenance().on(drain=30).__aenter__)
                while not state().holds:
                    await anyio.sleep(0.01)
                seen = await anyio.to_thread.run_sync(call, "status", "--workers")
                as_json = await anyio.to_thread.run_sync(call, "status", "--workers", "--json")
                group.cancel_scope.cancel()
        assert not draining.cancelled_caught
        return seen, json.loads(as_json[1])

    (code, out, _), answer = anyio.run(status_meanwhile)
    assert (code, out.splitlines()[0]) == (3, "closing (full)")
    assert f"1 attached, 1 busy (pid {os.getpid()})" in out
    assert ", draining" in out
    assert f"busy id={os.getpid()} pid={os.getpid()}" in out
    assert [(one["pid"], one["busy"]) for one in answer["attached"]] == [(os.getpid(), True)]
    assert (answer["phase"], answer["workers"], answer["busy"]) == ("closing", 1, 1)


def test_a_worker_with_all_that_is_known_of_it(monkeypatch):
    """Host, version, requests in flight and last beat are listed where the backend knows them."""
    beat = datetime(2030, 1, 1, tzinfo=UTC)

    async def workers(self):
        return (Worker("w1", 7, busy=False, host="web-1", in_flight=0, version="9.9", last_beat=beat),)

    monkeypatch.setattr(Maintenance, "workers", workers)
    out = call("status", "--workers")[1].splitlines()[-1].strip()
    assert out.startswith("idle id=w1 pid=7 host=web-1 in_flight=0 version=9.9 last_beat=20")
    assert json.loads(call("status", "--workers", "--json")[1])["attached"][0]["last_beat"] == "2030-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2030-01-31T15:30Z", datetime(2030, 1, 31, 15, 30, tzinfo=UTC)),
        ("2030-01-31T15:30+02:00", datetime(2030, 1, 31, 13, 30, tzinfo=UTC)),
        ("2030-01-31 15:30", datetime(2030, 1, 31, 15, 30).astimezone()),
    ],
)
def test_until_a_time(text, expected):
    """A time with a zone is that instant, one without is local."""
    assert call("on", "--until", text)[0] == 0
    assert state().switch.until == expected


@pytest.mark.parametrize("ahead", [-2, 2], ids=["past", "ahead"])
def test_until_a_time_of_day(ahead):
    """A time of day means the next one: today's, or tomorrow's where that is over."""
    meant = (datetime.now().astimezone() + timedelta(minutes=ahead)).replace(second=0, microsecond=0)
    assert call("on", "--until", f"{meant:%H:%M}")[0] == 0
    end = state().switch.until.astimezone()
    assert (end.hour, end.minute) == (meant.hour, meant.minute)
    assert timedelta() < end - datetime.now(UTC) <= timedelta(hours=25)


@posix
@pytest.mark.parametrize(
    ("now", "end"),
    [
        ("2030-10-27T00:20:00Z", "2030-10-27T00:30:00Z"),
        ("2030-10-27T00:40:00Z", "2030-10-27T01:30:00Z"),
        ("2030-10-27T01:40:00Z", "2030-10-28T01:30:00Z"),
        ("2030-03-31T00:40:00Z", "2030-03-31T01:30:00Z"),
    ],
    ids=["before both", "between", "after both", "skipped"],
)
def test_until_a_time_of_day_as_clocks_change(monkeypatch, now, end):
    """2:30 is the next one where it comes twice, and half an hour after the change where it does not come."""

    class At(datetime):
        @classmethod
        def now(cls, tz=None):
            local = datetime.fromisoformat(now).astimezone(tz)
            return local if tz else local.replace(tzinfo=None)

    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    monkeypatch.setattr("fastapi_maintenance.cli.datetime", At)
    monkeypatch.setattr("fastapi_maintenance.cli.utcnow", lambda: At.now(UTC))
    try:
        found = _instant("2:30")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found == datetime.fromisoformat(end)


@pytest.mark.parametrize(
    ("args", "right"),
    [
        (["on", "--for", "soon"], "write 90s, 30m, 2h, 1h30m or 1d"),
        (["on", "--for", "30"], "write 90s, 30m, 2h, 1h30m or 1d"),
        (["on", "--for", "0m"], "write 90s, 30m, 2h, 1h30m or 1d"),
        (["on", "--for", "9999999999d"], "write 90s, 30m, 2h, 1h30m or 1d"),
        (["on", "--for", "9" * 5000 + "d"], "is too long; write 90s, 30m, 2h, 1h30m or 1d"),
        (["on", "--until", "noon"], "write 15:30, 2030-01-31T15:30 or 2030-01-31T15:30Z"),
        (["on", "--until", "29:71"], "write 15:30, 2030-01-31T15:30 or 2030-01-31T15:30Z"),
        (["on", "--until", "2001-01-01"], "give a time after"),
        (["on", "--until", "15:30", "--for", "1h"], "give one of them"),
        (["on", "--mode", "half"], "use one of 'full', 'read_only'"),
        (["on", "--retry-after", "0"], "must be at least 1 second"),
        (["on", "--message", "a\x07"], "only line feeds and tabs are allowed"),
        (["run", "--drain", "-1", "--", "true"], "drain must be seconds, 0 or more"),
        (["run", "--drain", "1", "--no-drain", "--", "true"], "give one of them"),
        (["run", "--on-failure", "stay", "--", "true"], "use 'lift' or 'keep'"),
        (["run", "--min-workers", "-1", "--", "true"], "0 or more"),
        (["run"], "Missing argument"),
        (["status", "--scope", "Not one"], "is no scope name"),
        (["on", "--scope", ""], "is no scope name"),
        (["status", "--app", "nowhere"], "write module:attribute, like main:app"),
        (["halt"], "No such command"),
    ],
)
def test_wrong_use(args, right):
    """Wrong use ends with 2, says what would be right, and changes nothing."""
    code, out, err = call(*args)
    assert (code, out) == (2, "")
    assert right in " ".join(err.split())
    assert not list(Path.cwd().iterdir())


def test_wrong_use_in_json():
    """An error is a JSON object, too."""
    code, out, err = call("on", "--for", "soon", "--json")
    assert (code, err) == (2, "")
    assert json.loads(out) == {
        "error": "ValueError",
        "reason": "--for 'soon' is no duration; write 90s, 30m, 2h, 1h30m or 1d",
    }


@pytest.mark.parametrize("kind", ["env", "memory"])
@pytest.mark.parametrize("args", [["on"], ["off"], ["run", "--", "true"], ["run", "--no-drain", "--", "true"]])
def test_a_state_that_lives_in_the_service(monkeypatch, kind, args):
    """With the environment or memory nothing can be changed from here: 2, and what to set instead."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_BACKEND", kind)
    code, _, err = call(*args)
    assert code == 2
    assert "this command cannot reach the service; set FASTAPI_MAINTENANCE_BACKEND=file:PATH" in err


@pytest.mark.parametrize("kind", [None, "memory"])
def test_status_of_a_state_that_lives_in_the_service(monkeypatch, kind):
    """Where nothing here tells of the service, status cannot tell: 2, not "open"."""
    monkeypatch.delenv("FASTAPI_MAINTENANCE_BACKEND")
    if kind:
        monkeypatch.setenv("FASTAPI_MAINTENANCE_BACKEND", kind)
    code, out, err = call("status")
    assert (code, out) == (2, "")
    assert "set FASTAPI_MAINTENANCE_BACKEND=file:PATH" in err


@pytest.mark.parametrize(("mode", "code"), [("0", 0), ("1", 3)])
def test_status_of_the_environment(monkeypatch, mode, code):
    """Where this environment has the mode, status tells it, and that the service has an environment of its own."""
    monkeypatch.delenv("FASTAPI_MAINTENANCE_BACKEND")
    monkeypatch.setenv("FASTAPI_MAINTENANCE_MODE", mode)
    told = call("status")
    assert told[0] == code
    assert "an environment of its own" in told[2]
    assert "attached" not in told[1]


def test_a_state_that_cannot_be_read():
    """A file that cannot be understood: status cannot tell (2), a change fails (1), and nothing is written over it."""
    Path("state").write_text("rubbish")
    assert [call("status")[0], call("on")[0], call("off")[0]] == [2, 1, 1]
    assert "is not a maintenance mode" in call("status")[2]
    assert Path("state").read_text() == "rubbish"


class Hanging(BaseStateBackend):
    async def get_value(self):
        await anyio.sleep_forever()

    async def set_value(self, value): ...


def test_a_store_that_hangs(monkeypatch):
    """A store that does not answer is waited for with a bound: 2."""
    monkeypatch.setattr("fastapi_maintenance.cli.ASK_TIMEOUT", 0.01)
    monkeypatch.setenv("FASTAPI_MAINTENANCE_BACKEND", "tests.test_cli:Hanging")
    code, _, err = call("status")
    assert (code, "no answer within 0.01 s" in err) == (2, True)
    assert anyio.run(cancelled, Hanging().get_value)


async def cancelled(function):
    """Tell whether a function is still waiting after a moment."""
    with anyio.move_on_after(0.01) as scope:
        await function()
    return scope.cancelled_caught


class Flag(BaseStateBackend):
    value = False

    async def get_value(self):
        return self.value

    async def set_value(self, value):
        self.value = value


flag = Flag()


@posix
def test_a_true_false_store(monkeypatch, capfd):
    """It is turned on and off; draining it is refused with 75, and the way out works."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_BACKEND", "tests.test_cli:flag")
    assert call("on")[:1] == (0,)
    assert flag.value
    assert call("off")[:2] == (0, "open\n")
    code, _, err = call("run", "--", *script("print('never')"))
    assert (code, "--no-drain only closes" in err) == (75, True)
    assert call("run", "--no-drain", "--", *script("print('ran')"))[0] == 0
    assert capfd.readouterr().out == "ran\n"


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colour_only_on_a_terminal(monkeypatch, capsys, no_color, coloured):
    """The word is coloured where a terminal shows it, unless NO_COLOR says no."""
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" not in call("status")[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        app(["status"])
    assert capsys.readouterr().out.startswith("\x1b[32mopen\x1b[0m\n" if coloured else "open\n")


@posix
@pytest.mark.parametrize(("terminal", "ending"), [("stdout", "open\n"), ("stderr", "\x1b[32mopen\x1b[0m\n")])
def test_colour_only_where_the_answer_goes(worker, monkeypatch, capsys, terminal, ending):
    """`run` answers on stderr, so no colour gets into its log because stdout is a terminal."""
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(getattr(sys, terminal), "isatty", lambda: True)
    with pytest.raises(SystemExit):
        app(["run", "--", *script("")])
    assert capsys.readouterr().err.endswith(f"The command ended with 0.\n{ending}")


def test_a_document_does_not_steer_the_terminal():
    """Control characters in a document written by hand are shown, not sent; other scripts and line feeds stay."""
    switch = {"since": "2020-01-01T00:00:00Z", "message": "zur\u00fcck\n\x1b[2J", "by": "me\x9b1m"}
    Path("state").write_text(json.dumps({"schema": 1, "revision": 1, "switch": switch}))
    _, out, _ = call("status")
    assert "  message  zur\u00fcck\n\\x1b[2J\n" in out
    assert "by me\\x9b1m, since" in out
    assert json.loads(call("status", "--json")[1])["message"] == switch["message"]


# Which object


def test_a_scope():
    """Another scope is another switch, beside the file."""
    assert call("on", "--scope", "billing")[0] == 0
    assert [call("status")[0], call("status", "--scope", "billing")[0]] == [0, 3]
    assert Path("state.billing").exists()


def test_a_current_directory_that_is_gone(tmp_path, monkeypatch):
    """It is not needed where the state's path is absolute."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_BACKEND", f"file:{tmp_path / 'state'}")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert call("on")[0] == 0
    assert call("status")[0] == 3


def test_an_application_in_the_current_directory():
    """`--app` finds a module of the directory that the command is typed in."""
    Path("shop_of_test.py").write_text(
        "from fastapi import Depends, FastAPI\n"
        "from fastapi_maintenance import Maintenance, MaintenanceSettings\n"
        "maintenance = Maintenance(MaintenanceSettings(backend='file:own'))\n"
        "app = FastAPI(dependencies=[Depends(maintenance.guard)])\n"
    )
    assert call("on", "--app", "shop_of_test:app")[0] == 0
    assert call("status", "--app", "shop_of_test:maintenance")[0] == 3
    assert (Path("own").exists(), Path("state").exists()) == (True, False)
    assert "no scope 'billing', only: default" in call("status", "--app", "shop_of_test:app", "--scope", "billing")[2]
    del sys.modules["shop_of_test"]


def routed(maintenance, *, bound=True):
    router = APIRouter(route_class=maintenance.route_class if bound else MaintenanceRoute)
    router.add_api_route("/", lambda: "served")
    shop = FastAPI()
    shop.include_router(router)
    return shop


def guarded_below(maintenance):
    router = APIRouter(dependencies=[Depends(maintenance.guard_unless(lambda: False))])
    router.add_api_route("/", lambda: "served")
    shop = FastAPI()
    shop.include_router(router)
    return shop


def wrapped(**options):
    shop = FastAPI()
    shop.add_middleware(MaintenanceModeMiddleware, **options)
    shop.add_middleware(GZipMiddleware)
    return shop


def mounting(below):
    shop = FastAPI()
    shop.mount("/below", below)
    return shop


def below_itself(shop):
    shop.mount("/again", shop)
    return shop


@pytest.mark.parametrize(
    "make",
    [
        lambda m: m,
        lambda m: FastAPI(dependencies=[Depends(m.guard)]),
        guarded_below,
        routed,
        lambda m: wrapped(maintenance=m),
        lambda m: wrapped(backend=m.backend),
        lambda m: mounting(routed(m)),
        lambda m: mounting(wrapped(backend=m.backend)),
        lambda m: below_itself(wrapped(maintenance=m)),
    ],
    ids=[
        "itself",
        "guard",
        "router",
        "route class",
        "middleware",
        "backend",
        "mounted",
        "backend of a mounted",
        "loop",
    ],
)
def test_the_object_that_serves_an_application(monkeypatch, make):
    """It is found by its guard, its route class, its middleware, or that one's backend, in mounted ones, too."""
    maintenance = Maintenance(backend=MemoryBackend())
    monkeypatch.setattr("tests.test_cli.flag", make(maintenance))
    found = anyio.run(maintenance_named, "tests.test_cli:flag")
    assert found.snapshot is maintenance.snapshot


@pytest.mark.parametrize("gate", ["middleware", "route class"])
@pytest.mark.parametrize("overridden", [False, True])
def test_the_default_object_serves_an_application(monkeypatch, gate, overridden):
    """A gate that is bound to no object serves the default one, or what overrides it."""
    shop = wrapped() if gate == "middleware" else routed(None, bound=False)
    other = Maintenance(backend=MemoryBackend())
    if overridden:
        shop.dependency_overrides[get_maintenance] = lambda: other
    monkeypatch.setattr("tests.test_cli.flag", shop)
    assert anyio.run(maintenance_named, "tests.test_cli:flag") is (other if overridden else get_maintenance())


def test_several_objects_serve_an_application(monkeypatch):
    """Where several serve it, the scope chooses; without one the error names the scopes."""
    first, second = Maintenance(scope="first"), Maintenance(scope="second")
    shop = FastAPI(dependencies=[Depends(first.guard)])
    shop.add_middleware(MaintenanceModeMiddleware, maintenance=second)
    monkeypatch.setattr("tests.test_cli.flag", shop)
    code, _, err = call("status", "--app", "tests.test_cli:flag")
    assert (code, "(scopes: first, second); choose with --scope" in err) == (2, True)
    assert call("on", "--app", "tests.test_cli:flag", "--scope", "second")[0] == 0
    assert (Path("state.first").exists(), Path("state.second").exists()) == (False, True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tests.test_cli", "write module:attribute"),
        ("tests.test_nowhere:app", "No module named"),
        ("tests.test_cli:nothing", "has no attribute 'nothing'"),
        ("tests.test_cli:script", "is a function, neither a Maintenance nor an application"),
        ("tests.test_cli:app.bare", "no gate stands in"),
    ],
)
def test_a_name_that_is_none(monkeypatch, name, said):
    """An error says why the name is of no use, and what would be."""
    monkeypatch.setattr(app, "bare", FastAPI(), raising=False)
    code, _, err = call("status", "--app", name)
    assert (code, said in err, "like main:" in err) == (2, True, True)


@pytest.mark.parametrize("verb", [["status"], ["run", "--", "true"]])
def test_a_module_that_ends_the_process(verb):
    """A module that calls `sys.exit(0)` as it is imported never passes for an answer, or for a command that ran."""
    Path("ends_of_test.py").write_text("raise SystemExit(0)")
    code, _, err = call(verb[0], "--app", "ends_of_test:app", *verb[1:])
    assert (code, "ends_of_test:app cannot be imported: SystemExit: 0" in err) == (2, True)


def test_what_a_module_prints_is_no_answer():
    """What the imported module prints goes to stderr, so that programs can read the answer."""
    Path("talks_of_test.py").write_text(
        "from fastapi_maintenance import Maintenance\nprint('hello')\nmaintenance = Maintenance()"
    )
    code, out, err = call("status", "--json", "--app", "talks_of_test:maintenance")
    assert (code, json.loads(out)["active"], err) == (0, False, "hello\n")


# run


@posix
def test_run_closes_runs_and_opens(worker, capfd):
    """The command runs while it is closed, with its arguments as they are; it is open afterwards."""
    look = "import sys; from fastapi_maintenance.backends import LocalFileBackend as B; s = B('state').peek_state(); "
    code, out, err = call(
        "run", "--message", "Hi", "--by", "me", *script(look + "print(s.holds, *sys.argv[1:])"), "--drain"
    )
    assert (code, out) == (0, "")
    seen = capfd.readouterr().out
    assert "message='Hi', mode='full', by='me', on_failure='lift', phase='closed'" in seen
    assert seen.endswith("--drain\n")
    assert err.startswith("Closed. Running: ")
    assert err.endswith("The command ended with 0.\nopen\n")
    assert state().holds == ()


@posix
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (script("raise SystemExit(7)"), 7),
        (script("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), 128 + signal.SIGKILL),
        (["./nowhere"], 127),
        (["no-such-command-of-anybody"], 127),
        (["not-executable"], 127),
        ([""], 127),
        (["./not-executable"], 126),
        (["./no-program"], 126),
        (["./no-interpreter"], 127),
    ],
)
def test_exit_codes_are_those_of_shells(worker, command, code):
    """The command's own code, 128 + signal, 126 and 127; and it is open again."""
    for name, text, mode in (
        ("not-executable", "", 0o600),
        ("no-program", "\0", 0o700),
        ("no-interpreter", "#!/nowhere/at/all\n", 0o700),
    ):
        Path(name).write_text(text)
        Path(name).chmod(mode)
    assert call("run", "--", *command)[0] == code
    assert state().active_causes(datetime.now(UTC)) == []


@posix
def test_who_is_busy_is_told_and_75(busy):
    """Requests that do not end: who is busy, 75, the command never started, and it is open again."""
    code, _, err = call("run", "--drain", "0.3", "--", *script("open('ran', 'w')"))
    assert code == 75
    assert f"Closing: 1 of 1 workers busy (pid {os.getpid()})\n" in err
    assert f"1 of 1 workers still busy (pid {os.getpid()}) after 0.3 s" in err
    assert "--drain SECONDS" in err
    assert (Path("ran").exists(), state().holds) == (False, ())


@posix
def test_no_workers_is_75():
    """Nobody attached is no proof that nobody runs: 75, and the way out."""
    code, _, err = call("run", "--", "true")
    assert (code, "--min-workers 0" in err) == (75, True)
    assert call("run", "--min-workers", "0", "--", "true")[0] == 0


@posix
def test_an_unanswered_drain_is_75(worker, monkeypatch):
    """An error that the command line has no words of its own for is told as it is."""

    async def incomplete(self, hold_id):
        raise DrainIncomplete(["web-1:7"])

    monkeypatch.setattr("fastapi_maintenance.backends.slots.MachineInFlight.drained", incomplete)
    code, _, err = call("run", "--", "true")
    assert (code, "no answer from web-1:7" in err) == (75, True)


@posix
def test_steps_in_json(busy, monkeypatch):
    """One JSON object a line on stderr; stdout is the command's."""
    asked, workers = [], Maintenance.workers

    async def noted(self):
        asked.append(True)
        return await workers(self)

    monkeypatch.setattr(Maintenance, "workers", noted)
    soon(lambda: len(asked) > 1 and state().holds, busy)
    code, out, err = call("run", "--json", "--", "true")
    steps = [json.loads(line) for line in err.splitlines()]
    assert (code, out) == (0, "")
    assert [step.get("event") for step in steps] == ["draining", "closed", "started", "ended", None]
    assert steps[0] == {"event": "draining", "busy": 1, "workers": 1, "pids": [os.getpid()], "hosts": []}
    assert steps[-1]["phase"] == "open"


@posix
def test_progress_is_written_over_on_a_terminal(busy, monkeypatch, capsys):
    """On a terminal the line on who is busy gives way to the next one."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        app(["run", "--drain", "0.2", "--", "true"])
    err = capsys.readouterr().err
    assert err.startswith(f"\r\x1b[KClosing: 1 of 1 workers busy (pid {os.getpid()})")
    assert err.count("\n") == 1


@posix
@pytest.mark.parametrize(("on_failure", "code"), [("lift", 0), ("keep", 3)])
def test_a_command_that_fails(worker, on_failure, code):
    """With `keep` it stays closed until `off`, and it says so; without, it is open again."""
    done, _, err = call("run", "--on-failure", on_failure, "--", *script("raise SystemExit(5)"))
    assert done == 5
    assert call("status")[0] == code
    assert ("failed and kept: `off` ends it" in err) is (on_failure == "keep")
    assert call("off")[:2] == (0, "open\n")


@posix
def test_a_command_that_succeeds_is_not_kept(worker):
    """`keep` is for failures alone."""
    assert call("run", "--on-failure", "keep", "--", "true")[0] == 0
    assert call("status")[0] == 0


@posix
def test_it_says_that_it_is_still_closed(worker):
    """When the command has ended and the switch is on, it says so."""
    call("on", "--by", "somebody")
    code, _, err = call("run", "--", "true")
    assert (code, "still closed (full)" in err, "the switch by somebody" in err) == (0, True, True)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_breaks_off_the_drain(busy, number):
    """The hold is taken back, the command never starts, and the exit code is 128 + signal."""
    soon(lambda: state().holds, kill(number))
    code, _, err = call("run", "--", *script("open('ran', 'w')"))
    assert (code, f"{number.name}: the command was not started." in err) == (128 + number, True)
    assert (Path("ran").exists(), state().holds) == (False, ())


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_goes_to_the_command(worker, number):
    """While the command runs it gets the signal, is waited for, and then it is open."""
    command = (
        "import signal, sys, time\n"
        "got = lambda number, frame: (open('got', 'w').write(str(number)), sys.exit(9))\n"
        f"signal.signal({int(number)}, got)\n"
        "open('ready', 'w')\n"
        "while True: time.sleep(0.01)"
    )
    soon(Path("ready").exists, kill(number))
    assert call("run", "--", *script(command))[0] == 9
    assert Path("got").read_text() == str(int(number))
    assert state().holds == ()


@posix
def test_a_signal_that_the_command_may_not_be_sent(worker, monkeypatch):
    """A command of another user cannot be sent signals: that is told, and the command is waited for."""
    monkeypatch.setattr(
        subprocess.Popen, "send_signal", Mock(side_effect=PermissionError(1, "Operation not permitted"))
    )
    soon(Path("ready").exists, lambda: (kill(signal.SIGTERM)(), Path("done").touch()))
    command = "import os, time\nopen('ready', 'w')\nwhile not os.path.exists('done'): time.sleep(0.01)"
    code, _, err = call("run", "--", *script(command))
    assert (code, "SIGTERM could not be passed on to the command: [Errno 1]" in err) == (0, True)


@posix
@pytest.mark.parametrize(("in_foreground", "got"), [(True, "T"), (False, "IT")])
def test_what_the_terminal_sends_is_not_sent_again(worker, monkeypatch, in_foreground, got):
    """In the foreground of a terminal the command has Ctrl-C from there; else it is passed on."""
    monkeypatch.setattr("fastapi_maintenance.running._is_in_foreground", lambda: in_foreground)
    command = (
        "import signal, sys, time\n"
        "def got(number, frame):\n"
        "    open('got', 'a').write(signal.Signals(number).name[3])\n"
        "    if number == signal.SIGTERM: sys.exit(0)\n"
        "signal.signal(signal.SIGINT, got)\n"
        "signal.signal(signal.SIGTERM, got)\n"
        "open('ready', 'w')\n"
        "while True: time.sleep(0.01)"
    )

    def send():
        until(Path("ready").exists)
        os.kill(os.getpid(), signal.SIGINT)
        assert in_foreground or until(Path("got").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    assert call("run", "--", *script(command))[0] == 0
    thread.join()
    assert Path("got").read_text() == got


@posix
@pytest.mark.parametrize(
    ("terminal", "group", "foreground"),
    [("/nowhere", 0, False), (os.devnull, 0, True), (os.devnull, 1, False), (os.devnull, None, False)],
    ids=["no terminal", "foreground", "background", "hung up"],
)
def test_who_the_terminal_sends_its_signals_to(monkeypatch, terminal, group, foreground):
    """This process is in the foreground where the terminal says that its group is."""
    opened = os.open

    def group_of(descriptor):
        return os.ttyname(descriptor) if group is None else os.getpgrp() + group

    monkeypatch.setattr(os, "open", lambda path, flags: opened(terminal, flags))
    monkeypatch.setattr(os, "tcgetpgrp", group_of)
    assert _is_in_foreground() is foreground


@posix
def test_a_hold_that_is_lost(worker, monkeypatch):
    """It is told at once, the command is waited for, and 76 says that it was not sure to be alone."""
    taken = []

    def made(self, *args):
        ActiveHold_init(self, *args)
        taken.append(self)

    ActiveHold_init = ActiveHold.__init__  # noqa: N806 - what was there
    monkeypatch.setattr(ActiveHold, "__init__", made)
    soon(Path("ready").exists, lambda: taken[0].lose())  # noqa: PLW0108 - not taken yet
    told = "import os, time\nopen('ready', 'w')\nwhile not os.path.exists('told'): time.sleep(0.01)"
    report = _Progress.__call__

    def noted(self, event, /, **data):
        report(self, event, **data)
        Path("told" if event == "lost" else "another").touch()

    monkeypatch.setattr(_Progress, "__call__", noted)
    code, _, err = call("run", "--", *script(told))
    assert (code, "The hold is lost" in err) == (76, True)


@posix
@pytest.mark.parametrize(("command", "code"), [("pass", 76), ("raise SystemExit(4)", 4)])
def test_a_hold_that_cannot_be_ended(worker, monkeypatch, command, code):
    """A command that succeeded ends with 76, one that failed with its own code."""

    async def broken(self, hold, *, failed):
        raise BackendError("store", "gone")

    monkeypatch.setattr("fastapi_maintenance.holds.Holder.end", broken)
    done, _, err = call("run", "--", *script(command))
    assert done == code
    assert ("It could not be opened again: store: gone" in err) is (code == 76)


@posix
def test_a_hold_that_cannot_be_taken(worker, monkeypatch):
    """A store that fails before the command starts: 75, in the store's words."""
    Path("state").write_text("rubbish")
    code, _, err = call("run", "--", *script("open('ran', 'w')"))
    assert (code, "is not a maintenance mode" in err, Path("ran").exists()) == (75, True, False)


@posix
def test_a_store_that_does_not_tell_who_is_busy(busy, monkeypatch):
    """Who is busy is only a courtesy: where it cannot be told, the drain goes on."""
    asked = []

    async def failing(self):
        asked.append(True)
        raise BackendError("store", "gone")

    monkeypatch.setattr(Maintenance, "workers", failing)
    soon(lambda: asked and state().holds, busy)
    assert call("run", "--", *script("open('ran', 'w')"))[0] == 0
    assert Path("ran").exists()


# How it starts


def test_the_module_is_the_command(monkeypatch, capsys):
    """`python -m fastapi_maintenance` is the same command."""
    monkeypatch.setattr(sys, "argv", ["-m", "status"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(__main__.__file__, run_name="__main__")
    assert (ended.value.code, capsys.readouterr().out.splitlines()[0]) == (0, "open")


@posix
def test_closed_standard_streams(worker):
    """With stdin, stdout and stderr closed, the command runs, and its exit code is told."""
    Path("command").write_text("#!/bin/sh\n: > ran\nexit 7\n")
    Path("command").chmod(0o700)
    closing = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    run = [sys.executable, "-m", "fastapi_maintenance", "run", "--", "./command"]
    ended = subprocess.run([*closing, *run], env=environment(), check=False)  # noqa: S603 - our own
    assert (ended.returncode, Path("ran").exists()) == (7, True)


def test_a_closed_stream_is_opened(monkeypatch):
    """What the interpreter found closed leads nowhere; the others stay as they are."""
    stdin, stderr = sys.stdin, sys.stderr
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "argv", ["fastapi-maintenance", "status"])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    with sys.stdout as opened:
        assert (ended.value.code, opened.name, sys.stdin, sys.stderr) == (0, os.devnull, stdin, stderr)


def test_without_typer_it_says_how_to_get_it(monkeypatch):
    """Where typer is not installed, one line says what to install, and the exit code is 1."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 'fastapi-maintenance needs typer: pip install "fastapi-maintenance[cli]"'


@pytest.mark.parametrize("verb", [[], ["status"], ["on"], ["off"], ["run"]])
def test_help_documents_the_exit_codes(verb):
    """Each verb's help tells its exit codes."""
    code, out, _ = call(*verb, "--help")
    assert (code, "Usage: fastapi-maintenance" in out.replace("root", "fastapi-maintenance")) == (0, True)
    assert ("Exit code" in out) is bool(verb)
