"""Who changed what: one line in the log for each change of state, and `by` in the document."""

import asyncio
import logging
import os
import pwd
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from fastapi_maintenance import (
    BackendError,
    BackendReadOnlyError,
    Maintenance,
    maintenance_mode_on,
    set_maintenance_mode,
)
from fastapi_maintenance.audit import whoami
from fastapi_maintenance.backends import BaseStateBackend, EnvVarBackend, LocalFileBackend, MemoryBackend

ROOT = Path(__file__).parents[1]
ME = f"{pwd.getpwuid(os.geteuid()).pw_name}@{socket.gethostname()}:{os.getpid()}"
NOW = datetime.now(UTC)
AN_HOUR = timedelta(hours=1)


class Flag(BaseStateBackend):
    """A true/false store; `fails` makes each change fail."""

    value = False
    fails = False

    async def get_value(self):
        return self.value

    async def set_value(self, value):
        if self.fails:
            raise OSError("no route")
        self.value = value


class Carrier(MemoryBackend):
    """A store that carries holds; `fails` makes each change fail."""

    fails = False

    async def change_state(self, edit):
        if self.fails:
            raise OSError("no route")
        return await super().change_state(edit)


KINDS = {
    "memory": lambda path: MemoryBackend(),
    "file": lambda path: LocalFileBackend(path / "state"),
    "flag": lambda path: Flag(),
    "env": lambda path: EnvVarBackend(),
}
DOCUMENTS = ["memory", "file"]
STORES = [*DOCUMENTS, "flag"]


@pytest.fixture
def lines(caplog):
    """Give what was logged of changes, each as (what, scope, by, why, revision)."""
    caplog.set_level(logging.DEBUG, "fastapi_maintenance")

    def told():
        records = [record for record in caplog.records if record.levelno == logging.INFO]
        return [(r.what, r.scope, r.by, r.why, r.revision) for r in records]

    return told


async def revision(maintenance):
    """Give the revision that stands now."""
    return (await maintenance.status()).revision


# One line for each change


@pytest.mark.anyio
@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("by", [None, "ops"])
async def test_the_switch(kind, by, lines, tmp_path):
    """`enable()` and `disable()` are one line each, by this process unless somebody is named."""
    maintenance = Maintenance(backend=KINDS[kind](tmp_path), scope="billing")
    expected = []
    for change, what in [(maintenance.enable, "enabled"), (maintenance.disable, "disabled")] * 2:
        await change(by=by)
        expected.append((what, "billing", by or ME, None, await revision(maintenance)))
    assert lines() == expected
    assert len({line[-1] for line in expected}) == 4


@pytest.mark.anyio
@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize("by", [None, "ops"])
async def test_windows(kind, by, lines, tmp_path):
    """`schedule()` and `unschedule()` are one line each, with the window's id."""
    maintenance = Maintenance(backend=KINDS[kind](tmp_path), scope="billing")
    window = await maintenance.schedule(NOW, NOW + AN_HOUR, message="moving", by=by)
    planned = await revision(maintenance)
    await maintenance.unschedule(window.id)
    assert lines() == [
        (f"window {window.id} scheduled", "billing", by or ME, "moving", planned),
        (f"window {window.id} unscheduled", "billing", ME, None, await revision(maintenance)),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", [None, "ops"])
@pytest.mark.parametrize("on_failure", ["lift", "keep"])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("decorated", [False, True])
async def test_a_hold(kind, by, on_failure, fails, decorated, lines, tmp_path):
    """A hold is one line as it begins and one as it ends, which tells if it is kept, as a block and as a decorator."""
    maintenance = Maintenance(backend=KINDS[kind](tmp_path), scope="billing")
    hold = maintenance.on(message="moving", by=by, on_failure=on_failure)
    await maintenance.status()
    seen = []

    async def body():
        status = await maintenance.status()
        seen.append((status.holds[0].id, status.revision))
        if fails:
            raise KeyError

    async def block():
        async with hold:
            await body()

    try:
        await (hold(body) if decorated else block)()
    except KeyError:
        assert fails
    ((name, during),) = seen
    ended = "failed, kept closed" if fails and on_failure == "keep" else "ended"
    assert lines() == [
        (f"hold {name} begun", "billing", by or ME, "moving", during),
        (f"hold {name} {ended}", "billing", by or ME, "moving", await revision(maintenance)),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("given", [False, True])
async def test_the_functional_setter(kind, given, lines, tmp_path, monkeypatch):
    """`set_maintenance_mode()` is one line, under the default object's scope or the name of the given backend."""
    maintenance = Maintenance(backend=KINDS[kind](tmp_path))
    monkeypatch.setattr("fastapi_maintenance.maintenance._default.maintenance", maintenance)
    expected = []
    for value, what in [(True, "enabled"), (False, "disabled")]:
        await set_maintenance_mode(value, maintenance.backend if given else None)
        scope = type(maintenance.backend).__name__ if given else "default"
        expected.append((what, scope, ME, None, await revision(maintenance)))
    assert lines() == expected


@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("decorated", [False, True])
async def test_the_functional_hold(kind, given, decorated, lines, tmp_path, monkeypatch):
    """`maintenance_mode_on()` is one line as it begins and one as it ends, as a block and as a decorator."""
    maintenance = Maintenance(backend=KINDS[kind](tmp_path))
    monkeypatch.setattr("fastapi_maintenance.maintenance._default.maintenance", maintenance)
    hold = maintenance_mode_on(maintenance.backend if given else None)

    async def body():
        return (await maintenance.status()).holds[0].id

    async def block():
        async with hold:
            return await body()

    name = await (hold(body) if decorated else block)()
    scope = type(maintenance.backend).__name__ if given else "default"
    assert [line[:4] for line in lines()] == [(f"hold {name} {what}", scope, ME, None) for what in ("begun", "ended")]


@pytest.mark.anyio
async def test_the_line_is_for_people_too(lines, caplog):
    """The line reads as text, from this package's logger."""
    await Maintenance(backend=MemoryBackend()).enable(message="moving", by="ops")
    (record,) = caplog.records
    assert record.getMessage() == "Maintenance enabled: scope=default by=ops revision=1 why='moving'"
    assert (record.name, record.levelname, len(lines())) == ("fastapi_maintenance", "INFO", 1)


# In the document


@pytest.mark.anyio
@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize(("by", "expected"), [(None, ME), ("", ME), ("ops", "ops")], ids=["left out", "empty", "given"])
async def test_the_document_says_who(kind, by, expected, tmp_path):
    """Switch, window and hold carry `by`: user@host:pid unless somebody is named."""
    maintenance = Maintenance(backend=KINDS[kind](tmp_path))
    await maintenance.enable(by=by)
    await maintenance.schedule(NOW, NOW + AN_HOUR, by=by)
    async with maintenance.on(by=by):
        state = maintenance.backend.peek_state()
        assert [part.by for part in (state.switch, *state.windows, *state.holds)] == [expected] * 3


@pytest.mark.anyio
async def test_the_file_says_who(tmp_path):
    """What `enable()` writes into a file names who did it, so that the next reader knows."""
    path = tmp_path / "state"
    await Maintenance(backend=LocalFileBackend(path)).enable()
    again = LocalFileBackend(path).peek_state()
    assert (again.switch.by, f'"by": "{ME}"' in path.read_text()) == (ME, True)


@pytest.mark.anyio
@pytest.mark.parametrize("by", [None, "ops"])
async def test_a_true_false_store_has_no_room_for_who(by, lines):
    """On a true/false store `by` goes to the log alone, and is no reason to refuse the change."""
    flag = Flag()
    maintenance = Maintenance(backend=flag)
    await maintenance.enable(by=by)
    on = flag.value
    async with maintenance.on(by=by):
        pass
    await maintenance.disable(by=by)
    assert (on, flag.value, [line[2] for line in lines()]) == (True, False, [by or ME] * 4)


# No line where nothing changed

CHANGES = {
    "enable": lambda m: m.enable(),
    "disable": lambda m: m.disable(),
    "schedule": lambda m: m.schedule(NOW, NOW + AN_HOUR),
    "unschedule": lambda m: m.unschedule("w"),
    "setter": lambda m: set_maintenance_mode(True, m.backend),
    "hold": lambda m: m.on().__aenter__(),
    "functional hold": lambda m: maintenance_mode_on(m.backend).__aenter__(),
}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Flag, Carrier])
@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_that_fails_is_not_logged_as_one(kind, change, lines):
    """When the store fails, the caller hears of it and the log does not tell of a change."""
    maintenance = Maintenance(backend=kind())
    maintenance.backend.fails = True
    with pytest.raises((BackendError, LookupError)):
        await CHANGES[change](maintenance)
    assert lines() == []


@pytest.mark.anyio
@pytest.mark.parametrize("change", ["enable", "disable", "schedule", "unschedule"])
async def test_a_read_only_backend_changes_nothing(change, lines):
    """On the environment a change raises and is not logged."""
    with pytest.raises(BackendReadOnlyError):
        await CHANGES[change](Maintenance())
    assert lines() == []


@pytest.mark.anyio
async def test_the_setter_on_a_read_only_backend_changes_nothing(lines, caplog):
    """`set_maintenance_mode()` on the environment is one warning and no line of a change."""
    await set_maintenance_mode(True)
    assert (lines(), [record.levelname for record in caplog.records]) == ([], ["WARNING"])


@pytest.mark.anyio
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.enable(message="bell\a"),
        lambda m: m.enable(by="bell\a"),
        lambda m: m.disable(by="bell\a"),
        lambda m: m.schedule(NOW, NOW),
        lambda m: m.schedule(NOW, NOW + AN_HOUR, by="x" * 2049),
        lambda m: m.unschedule("none"),
    ],
    ids=["message", "by", "by of disable", "window", "by of a window", "unknown window"],
)
async def test_a_refused_argument_is_no_change(change, lines):
    """A wrong argument is an error, `by` included, and is not logged."""
    maintenance = Maintenance(backend=MemoryBackend())
    with pytest.raises((ValueError, LookupError)):
        await change(maintenance)
    assert (lines(), await revision(maintenance)) == ([], 0)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Flag, Carrier])
@pytest.mark.parametrize("body", [None, KeyError])
async def test_a_hold_that_could_not_be_taken_back_has_not_ended(kind, body, lines, caplog):
    """When the store fails on leaving, the log has one error and no line that says it ended."""
    maintenance = Maintenance(backend=kind())
    hold = maintenance.on()
    entered = await hold.__aenter__()
    maintenance.backend.fails = True
    leaving = hold.__aexit__(body, body and body(), None)
    if body is None:
        with pytest.raises(BackendError):
            await leaving
    else:
        await leaving
    assert [line[0] for line in lines()] == [f"hold {entered.id} begun"]
    assert [record.levelname for record in caplog.records][-1] == "ERROR"


def test_a_hold_that_ended_while_its_task_was_cancelled_is_told(lines):
    """A cancellation that comes in while the hold is taken back does not take the line away."""

    class Slow(MemoryBackend):
        async def end_hold(self, hold, *, failed):
            leaving.set()
            await release.wait()
            await super().end_hold(hold, failed=failed)

    async def held():
        async with maintenance.on():
            pass

    async def main():
        task = asyncio.ensure_future(held())
        await leaving.wait()
        task.cancel()
        await asyncio.sleep(0)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await maintenance.status()

    leaving, release = asyncio.Event(), asyncio.Event()
    maintenance = Maintenance(backend=Slow())
    status = asyncio.run(main())
    assert (status.active, [line[0].split()[-1] for line in lines()]) == (False, ["begun", "ended"])


@pytest.mark.anyio
async def test_a_hold_that_was_cancelled_on_entering_never_began(lines):
    """Who is cancelled while the store is told has no hold, and the log tells of none."""

    class Hanging(MemoryBackend):
        async def take_hold(self, hold):
            await anyio.sleep_forever()

    maintenance = Maintenance(backend=Hanging())
    with anyio.move_on_after(0.01) as scope:
        await maintenance.on().__aenter__()
    assert (scope.cancelled_caught, lines()) == (True, [])


# Nobody writes a line of his own

FORGED = [
    "fine\nMaintenance disabled: scope=default by=root@db:1 revision=9 why=None",
    "fine\n\nMaintenance disabled",
    "tab\tand\u2028line separator",
    "\u202ereversed",
]


@pytest.mark.anyio
@pytest.mark.parametrize("text", FORGED)
@pytest.mark.parametrize(
    "change",
    [
        lambda m, text: m.enable(message=text, by=text),
        lambda m, text: m.disable(by=text),
        lambda m, text: m.schedule(NOW, NOW + AN_HOUR, message=text, by=text),
        lambda m, text: m.on(message=text, by=text).__aenter__(),
    ],
    ids=["enable", "disable", "schedule", "hold"],
)
async def test_no_text_can_forge_a_line(change, text, lines, caplog):
    """Line feeds and other marks of a message or a name stay inside the line, escaped; the fields keep them."""
    await change(Maintenance(backend=MemoryBackend()), text)
    (line,) = caplog.messages
    assert line.isprintable()
    assert lines()[0][2] == text


@pytest.mark.anyio
async def test_no_window_of_a_file_can_forge_a_line(tmp_path, lines, caplog):
    """The id of a window that somebody wrote by hand stays inside the line."""
    (tmp_path / "state").write_text(
        '{"windows": [{"id": "a\\nb", "start": "2026-01-01T00:00:00Z", "end": "9999-01-01T00:00:00Z"}]}'
    )
    await Maintenance(backend=LocalFileBackend(tmp_path / "state")).unschedule("a\nb")
    assert [line.isprintable() for line in caplog.messages] == [True]
    assert lines()[0][0] == "window a\nb unscheduled"


# Who this is

FORK = """
import os, anyio
from fastapi_maintenance import Maintenance
from fastapi_maintenance.backends import MemoryBackend

async def enabled():
    maintenance = Maintenance(backend=MemoryBackend())
    await maintenance.enable()
    named = maintenance.backend.peek_state().switch.by.rpartition(":")[2]
    os.write(1, f"{os.getpid()} {named}\\n".encode())

anyio.run(enabled)
child = os.fork()
anyio.run(enabled)
if child:
    os.waitpid(child, 0)
"""


def test_a_forked_process_names_itself():
    """After a fork `by` has the pid of the child, though the parent was named before."""
    done = subprocess.run(  # noqa: S603 - this program
        [sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    pids = [line.split() for line in done.stdout.splitlines()]
    assert [pid for pid, _ in pids] == [named for _, named in pids]
    assert (len(pids), len({pid for pid, _ in pids})) == (3, 2)


def test_a_process_that_changed_its_user_names_the_new_one(monkeypatch):
    """A server that gave up root is named by the user it is now, by number where that has no name."""
    before = whoami()
    rest = ME.partition("@")[2]
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_001)
    assert (before, whoami()) == (ME, f"4000000001@{rest}")
