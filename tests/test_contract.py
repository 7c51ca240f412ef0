"""The contract of backends, on each backend there is; and broken stores, each of which it catches."""

import functools
import re
import runpy
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from unittest import SkipTest

import anyio
import pytest
from anyio.lowlevel import checkpoint
from fastapi.testclient import TestClient

from fastapi_maintenance import BackendError, Maintenance, MaintenanceState, testing
from fastapi_maintenance.backends import BaseStateBackend, EnvVarBackend, LocalFileBackend, MemoryBackend
from fastapi_maintenance.state import OPEN
from fastapi_maintenance.testing import BackendContract

ROOT = Path(__file__).parent.parent
TESTS = sorted(name for name in vars(BackendContract) if name.startswith("test_"))


class Store:
    """What two objects share, as two processes do."""

    def __init__(self):
        self.on = False
        self.full = False
        self.lock = threading.Lock()
        self.document = "{}"
        self.state = OPEN


class Flag(BaseStateBackend):
    """A true/false store."""

    def __init__(self, store=None):
        self.store = store or Store()

    async def get_value(self):
        await checkpoint()
        return self.store.on

    async def set_value(self, value):
        await checkpoint()
        if self.store.full:
            raise OSError("disk full")
        self.store.on = value


class Document:
    """A store of documents that replaces only what it read, and tells of changes."""

    def __init__(self, store=None):
        self.store = store or Store()

    async def read_state(self):
        await checkpoint()
        return MaintenanceState.from_json(self.store.document)

    async def change_state(self, edit):
        while True:
            before = self.store.document
            state = edit(MaintenanceState.from_json(before))
            await checkpoint()
            if self.store.full:
                raise BackendError("Document", "disk full")
            if self.store.document is before:
                self.store.document = state.to_json()
                return state

    async def watch_state(self):
        while True:
            yield await self.read_state()


class Carrier(MemoryBackend):
    """A store that carries holds."""

    def __init__(self, store=None):
        super().__init__()
        self.store = store or Store()

    def peek_state(self):
        return self.store.state

    async def read_state(self):
        return self.store.state

    async def change_state(self, edit):
        with self.store.lock:
            state = edit(self.store.state)
            if self.store.full:
                raise BackendError("Carrier", "disk full")
            self.store.state = state
            return state


class OnStore(BackendContract):
    """Makes backends of one kind on one store each."""

    kind = None

    def make_backend(self):
        return self.kind()

    def other(self, backend):
        return type(backend)(backend.store)

    @contextmanager
    def failing_writes(self, backend):
        backend.store.full = True
        yield
        backend.store.full = False


class TestEnvironment(BackendContract):
    """The environment, which can only be read."""

    def make_backend(self):
        return EnvVarBackend()


class TestMemory(BackendContract):
    """Memory, which no other process sees."""

    def make_backend(self):
        return MemoryBackend()


class TestFile(BackendContract):
    """The file, for all processes of a machine."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path_factory, monkeypatch):
        self.directory, self.patch = tmp_path_factory.mktemp, monkeypatch

    def make_backend(self):
        return LocalFileBackend(self.directory("store") / "state")

    def other(self, backend):
        return LocalFileBackend(backend.file_path)

    @contextmanager
    def failing_writes(self, backend):
        def full(source, target):
            raise OSError(28, "No space left on device")

        with self.patch.context() as patch:
            patch.setattr("os.replace", full)
            yield


class TestFlag(OnStore):
    """A user's true/false store."""

    kind = Flag


class TestDocument(OnStore):
    """A user's store of documents."""

    kind = Document


class TestExample(BackendContract):
    """The example that the README points to."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path_factory):
        self.directory = tmp_path_factory.mktemp
        self.backend = runpy.run_path(str(ROOT / "examples" / "own_backend.py"))["SqliteBackend"]

    def make_backend(self):
        return self.backend(str(self.directory("store") / "maintenance.db"))

    def other(self, backend):
        return type(backend)(str(backend._path))

    @contextmanager
    def failing_writes(self, backend):
        path, backend._path = backend._path, backend._path / "no directory"
        yield
        backend._path = path


def test_the_example_closes_its_app(tmp_path, monkeypatch):
    """The example's app is refused while another object on its database is on, and reading creates no database."""
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(ROOT / "examples" / "own_backend.py"))
    client = TestClient(example["app"])
    assert (client.get("/").json(), list(tmp_path.iterdir())) == ({"message": "Hello"}, [])
    operator = Maintenance(backend=example["SqliteBackend"]("maintenance.db"))
    anyio.run(functools.partial(operator.enable, message="Back at noon."))
    again = TestClient(runpy.run_path(str(ROOT / "examples" / "own_backend.py"))["app"]).get("/")
    assert (again.status_code, again.json()["detail"]) == (503, "Back at noon.")


# The contract catches what is broken


class LosesUpdates(Document):
    """Writes what it read before, whatever came in between."""

    async def change_state(self, edit):
        state = edit(await self.read_state())
        await checkpoint()
        self.store.document = state.to_json()
        return state


class LosesUpdatesOfProcesses(Document):
    """Has a lock for its own tasks, none for another process."""

    async def change_state(self, edit):
        self.store.document = (state := edit(await self.read_state())).to_json()
        return state

    async def read_state(self):
        return MaintenanceState.from_json(self.store.document)


class Torn(Document):
    """Is empty for a moment while it writes."""

    async def change_state(self, edit):
        state = edit(MaintenanceState.from_json(self.store.document))
        self.store.document = "{}"
        await checkpoint()
        self.store.document = state.to_json()
        return state


class TornFlag(Flag):
    """Is off for a moment while it is told anything."""

    async def set_value(self, value):
        self.store.on = False
        await checkpoint()
        self.store.on = value


class Unreadable(Document):
    """Cannot be read for a moment while it writes."""

    async def change_state(self, edit):
        state = edit(MaintenanceState.from_json(self.store.document))
        self.store.document = "{"
        with anyio.CancelScope(shield=True):
            await checkpoint()
        self.store.document = state.to_json()
        return state


class Nonsense(Flag):
    """Answers a word, which is true."""

    async def get_value(self):
        return "off"


class NoState(Document):
    """Answers the document as it is."""

    async def read_state(self):
        return self.store.document


class Forgets(Document):
    """Keeps only what it knows."""

    async def change_state(self, edit):
        def known(state):
            said = edit(state).model_dump(include={"revision", "switch", "windows", "holds"})
            return MaintenanceState.model_validate(said)

        return await super().change_state(known)


class Cuts(Document):
    """Keeps ten characters of a message."""

    async def change_state(self, edit):
        def cut(state):
            state = edit(state)
            short = state.switch and state.switch.model_copy(update={"message": (state.switch.message or "")[:10]})
            return state.with_given_switch(short)

        return await super().change_state(cut)


class Begins(Document):
    """Begins closed."""

    async def read_state(self):
        state = await super().read_state()
        return state if state.revision else state.switched(testing.utcnow(), on=True)


class CountsReads(Document):
    """Writes when it is read."""

    async def read_state(self):
        return await self.change_state(lambda state: state.with_given_switch(state.switch))


class Deaf(Document):
    """Keeps what it read first."""

    first = None

    async def read_state(self):
        self.first = self.first or await super().read_state()
        return self.first


class StandsStill(Document):
    """Never changes its revision."""

    async def change_state(self, edit):
        return await super().change_state(lambda state: edit(state).model_copy(update={"revision": state.revision}))


class WritesFirst(Document):
    """Says that it failed, after it has written."""

    async def change_state(self, edit):
        self.store.full = False
        await super().change_state(edit)
        raise BackendError("WritesFirst", "disk full")


class Swallows(Document):
    """Says nothing of what failed."""

    async def change_state(self, edit):
        try:
            return await super().change_state(edit)
        except (ArithmeticError, BackendError):
            return await self.read_state()


class Silent(Document):
    """Tells only what it was when it was asked first."""

    async def watch_state(self):
        yield await self.read_state()


class Locked(Document):
    """Stays locked when a change is cancelled."""

    locked = False

    async def change_state(self, edit):
        if self.locked:
            raise BackendError("Locked", "locked")
        self.locked = True
        state = await super().change_state(edit)
        self.locked = False
        return state


class Believes(Document):
    """Believes that it has stored."""

    async def change_state(self, edit):
        return edit(await self.read_state())


class OneWindow(Document):
    """Keeps the first window."""

    async def change_state(self, edit):
        def first(state):
            state = edit(state)
            return state.model_copy(update={"windows": state.windows[:1]})

        return await super().change_state(first)


class Peeks(Carrier):
    """Shows another state than it gives."""

    def peek_state(self):
        return OPEN


class EndsAll(Carrier):
    """Ends all holds with one."""

    async def end_hold(self, hold, *, failed):
        await self.change_state(lambda state: state.model_copy(update={"holds": ()}).without_hold(hold.id))


class EndsTheSwitch(Carrier):
    """Turns the switch off with the end of a hold."""

    async def end_hold(self, hold, *, failed):
        await super().end_hold(hold, failed=failed)
        await self.change_state(lambda state: state.with_given_switch(None))


class EndsNone(Carrier):
    """Never ends a hold."""

    async def end_hold(self, hold, *, failed):
        await checkpoint()


class EndsOrphans(Carrier):
    """Ends a hold that failed, whatever it asked for."""

    async def end_hold(self, hold, *, failed):
        await super().end_hold(hold, failed=False)


class OffEndsHolds(Carrier):
    """Ends live holds when it is turned off."""

    async def change_state(self, edit):
        def off(state):
            after = edit(state)
            return after if after.switch or not state.switch else after.model_copy(update={"holds": ()})

        return await super().change_state(off)


class HoldsSecretly(Carrier):
    """Carries no hold to others."""

    async def take_hold(self, hold):
        public, self.store = self.store, Store()
        self.store.state = public.state.with_hold(hold)


class Hides(Carrier):
    """Names no holds."""

    def peek_state(self):
        state = self.store.state
        return state.switched(testing.utcnow(), on=True).model_copy(update={"holds": ()}) if state.holds else state


BROKEN = [
    (LosesUpdates, "changes_at_once_lose_nothing"),
    (LosesUpdatesOfProcesses, "a_change_by_another_process_in_between_is_not_lost"),
    (Torn, "a_reader_sees_the_old_or_the_new_state"),
    (TornFlag, "a_reader_sees_the_old_or_the_new_state"),
    (Unreadable, "a_reader_sees_the_old_or_the_new_state"),
    (Nonsense, "an_empty_store_is_open"),
    (NoState, "an_empty_store_is_open"),
    (Begins, "an_empty_store_is_open"),
    (Forgets, "unknown_fields_are_kept"),
    (Cuts, "what_was_said_is_kept"),
    (CountsReads, "reading_changes_nothing"),
    (Peeks, "reading_changes_nothing"),
    (Deaf, "the_switch_is_seen_by_others"),
    (StandsStill, "the_revision_grows"),
    (WritesFirst, "a_failed_write_leaves_the_old_state"),
    (Swallows, "a_failed_write_leaves_the_old_state"),
    (Silent, "a_feed_tells_of_changes"),
    (Locked, "a_cancelled_change_is_whole_or_nothing"),
    (EndsAll, "holds_overlap"),
    (EndsTheSwitch, "the_switch_and_holds_are_independent"),
    (OffEndsHolds, "the_switch_and_holds_are_independent"),
    (EndsNone, "a_hold_closes_for_the_time_of_its_block"),
    (EndsOrphans, "a_failed_hold_can_keep_it_closed"),
    (HoldsSecretly, "a_hold_is_seen_by_others"),
    (Hides, "a_hold_closes_for_the_time_of_its_block"),
    (Believes, "the_switch_is_seen_at_once"),
    (OneWindow, "windows_are_kept_and_dropped"),
    (Swallows, "a_change_that_raises_leaves_the_old_state"),
    (EndsNone, "cancelled_holds_leave_nothing"),
    (EndsNone, "an_error_of_the_body_comes_out"),
]


def contract(kind):
    """Give the contract for stores of `kind`."""
    return type("Contract", (OnStore,), {"kind": kind})()


@pytest.fixture
def impatient(monkeypatch):
    """Wait only a moment for what does not come."""
    monkeypatch.setattr(testing, "PATIENCE", 0.3)


@pytest.mark.parametrize("kind", [Flag, Document, Carrier])
@pytest.mark.parametrize("name", TESTS)
def test_a_store_without_a_mistake_passes(name, kind):
    """What the broken stores are made of passes, or is skipped with a reason."""
    reason = ""
    try:
        getattr(contract(kind), name)()
    except SkipTest as skipped:
        reason = str(skipped)
    assert re.fullmatch(r"|it .+", reason)


@pytest.mark.parametrize(("kind", "name"), BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_store_is_caught(kind, name, impatient):
    """The contract finds each mistake, says what is wrong, and on which event loop."""
    with pytest.raises((AssertionError, BackendError)) as caught:
        getattr(contract(kind), f"test_{name}")()
    assert caught.value.__notes__ == ["on asyncio"]


def test_other_must_be_another_object():
    """A contract whose `other()` gives the same object shows nothing, and says so."""
    suite = type("Same", (TestDocument,), {"other": lambda self, backend: backend})()
    with pytest.raises(AssertionError, match="other\\(\\) gave the same object"):
        suite.test_the_switch_is_seen_by_others()


def test_a_contract_needs_a_backend():
    """A contract that cannot make a backend says what to define."""
    with pytest.raises(NotImplementedError, match="Contract must define make_backend"):
        type("Contract", (BackendContract,), {})().test_an_empty_store_is_open()


def test_backends_are_closed_on_the_event_loops_there_are():
    """Each check ends with `close()` for each object it made, and a loop that is not installed is left out."""
    closed = []

    async def close(self, backend):
        closed.append(type(backend).__name__)

    suite = type("Closing", (TestDocument,), {"close": close, "event_loops": ("asyncio", "no_such_loop")})()
    suite.test_the_switch_is_seen_by_others()
    suite.test_an_empty_store_is_open()
    assert closed == ["Document"] * 3


def test_the_contract_needs_no_pytest():
    """Neither the package nor its `testing` imports pytest."""
    code = "import sys, fastapi_maintenance.testing; print({'pytest', 'trio'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT)  # noqa: S603 - our own interpreter
    assert run.stdout.strip() == "set()"
