"""The built-in backends, what an own one has to be, and what all of them promise alike."""

import logging
from datetime import UTC, datetime, timedelta

import pytest

from fastapi_maintenance import BackendError, BackendReadOnlyError, Maintenance, MaintenanceState, set_maintenance_mode
from fastapi_maintenance.backends import (
    BaseStateBackend,
    EnvVarBackend,
    HoldStore,
    LocalFileBackend,
    MemoryBackend,
    StateFeed,
    StatePeek,
    StateReader,
    StateStore,
)

VARIABLE = "FASTAPI_MAINTENANCE_MODE"


class FlagBackend(BaseStateBackend):
    """A true/false store that does not call `super().__init__()`."""

    def __init__(self):
        self.value = False

    async def get_value(self):
        return self.value

    async def set_value(self, value):
        self.value = value


class DocumentBackend:
    """A store of documents that knows nothing of this package's base classes."""

    def __init__(self):
        self.document = "{}"

    async def read_state(self):
        return MaintenanceState.from_json(self.document)

    async def change_state(self, edit):
        self.document = edit(await self.read_state()).to_json()
        return await self.read_state()


STORES = {
    "memory": lambda path: MemoryBackend(),
    "file": lambda path: LocalFileBackend(path / "state"),
    "flag": lambda path: FlagBackend(),
    "document": lambda path: DocumentBackend(),
}


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    """Give a fresh backend of each kind that can be written."""
    return STORES[request.param](tmp_path)


# What all stores promise


@pytest.mark.anyio
async def test_a_store_begins_open_and_goes_on_and_off(store):
    """A fresh store is open, `enable()` closes it and `disable()` opens it again."""
    maintenance = Maintenance(backend=store)
    seen = [(await maintenance.status()).active]
    seen.append((await maintenance.enable()).active)
    seen.append((await maintenance.status()).active)
    seen.append((await maintenance.disable()).active)
    seen.append((await maintenance.status()).active)
    assert seen == [False, True, True, False, False]


@pytest.mark.anyio
async def test_the_revision_grows_with_each_change(store):
    """Each change gives a higher revision than the one before."""
    maintenance = Maintenance(backend=store)
    revisions = [(await change()).revision for change in (maintenance.enable, maintenance.disable, maintenance.enable)]
    assert revisions == sorted(set(revisions))


@pytest.mark.anyio
async def test_two_objects_on_one_backend_object_agree_at_once(store):
    """What one object changes through a backend object, the other sees at its next look."""
    one, other = Maintenance(backend=store), Maintenance(backend=store)
    await other.status()
    await one.enable()
    closed = await other.status()
    await other.disable()
    assert (closed.active, (await one.status()).active) == (True, False)


@pytest.mark.anyio
async def test_a_refused_argument_changes_nothing(store):
    """A wrong argument is an error before anything is stored."""
    maintenance = Maintenance(backend=store)
    before = await maintenance.status()
    with pytest.raises(ValueError, match="in the past"):
        await maintenance.enable(until=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(LookupError, match="no window 'x'"):
        await maintenance.unschedule("x")
    assert await maintenance.status() == before


@pytest.mark.anyio
async def test_the_functional_api_takes_any_store(store):
    """`set_maintenance_mode(value, backend)` writes what a reader of the same backend sees."""
    await set_maintenance_mode(True, store)
    assert (await Maintenance(backend=store).status()).active


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["memory", "file", "document"])
async def test_a_store_of_states_keeps_all_that_is_said(name, tmp_path):
    """Message, end, mode, windows and unknown fields come back as they were stored."""
    store = STORES[name](tmp_path)
    maintenance = Maintenance(backend=store)
    soon = datetime.now(UTC) + timedelta(hours=1)
    await maintenance.enable(message="Umzug ✓", retry_after=7, mode="read_only", by="me")
    window = await maintenance.schedule(soon, soon + timedelta(hours=1))
    await store.change_state(lambda state: state.model_copy(update={"region": "eu"}))
    state = await store.read_state()
    assert (state.switch.message, state.switch.retry_after, state.switch.mode) == ("Umzug ✓", 7, "read_only")
    assert (state.windows, state.model_extra) == ((window,), {"region": "eu"})


@pytest.mark.anyio
@pytest.mark.parametrize("said", [{"message": "x"}, {"mode": "read_only"}, {"retry_after": 9}], ids=str)
async def test_a_true_false_store_refuses_what_it_cannot_carry(said):
    """More than on or off is an error that names the store, and the store keeps its value."""
    store = FlagBackend()
    maintenance = Maintenance(backend=store)
    with pytest.raises(BackendError, match="FlagBackend: it stores only true or false"):
        await maintenance.enable(**said)
    assert not store.value
    assert not await maintenance.status()


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["memory", "file", "flag"])
@pytest.mark.parametrize("value", [True, False])
async def test_get_value_gives_what_set_value_set(name, value, tmp_path):
    """The built-in backends offer the two methods of the older package, too."""
    store = STORES[name](tmp_path)
    await store.set_value(not value)
    await store.set_value(value)
    assert await store.get_value() is value


# The environment


@pytest.mark.parametrize(
    ("word", "mode"),
    [
        *((word, "full") for word in ("1", "true", "t", "yes", "y", "on", "TRUE", " On\n")),
        *((word, None) for word in ("0", "false", "f", "no", "n", "off", "", "OFF")),
        ("read_only", "read_only"),
        ("Read_Only", "read_only"),
    ],
)
def test_the_environment_is_read_live(monkeypatch, word, mode):
    """Each word of the variable means a mode, in any case, from the next look on."""
    backend = EnvVarBackend()
    monkeypatch.setenv(VARIABLE, word)
    switch = backend.peek_state().switch
    assert (switch and switch.mode) == mode


def test_a_dictionary_in_place_of_the_environment_is_read_live(monkeypatch):
    """A backend made before or after `os.environ` was replaced by a plain dictionary sees what stands there."""
    before = EnvVarBackend()
    monkeypatch.setattr("os.environ", {VARIABLE: "1"})
    assert all(backend.peek_state().switch for backend in (before, EnvVarBackend()))


def test_a_backend_made_under_a_dictionary_sees_the_environment_afterwards(monkeypatch):
    """A backend made while a plain dictionary stood in for `os.environ` is closed by the variable once it is back."""
    monkeypatch.setenv(VARIABLE, "1")
    with monkeypatch.context() as patched:
        patched.setattr("os.environ", {})
        backend = EnvVarBackend()
        assert backend.peek_state().switch is None
    assert backend.peek_state().switch is not None


@pytest.mark.anyio
async def test_the_environment_keeps_one_state_object_while_it_says_the_same(monkeypatch):
    """Another word for the same mode gives the same object; a new mode gives a higher revision."""
    backend = EnvVarBackend("MY_SWITCH")
    monkeypatch.setenv("MY_SWITCH", "1")
    first = await backend.read_state()
    monkeypatch.setenv("MY_SWITCH", "yes")
    assert await backend.read_state() is first
    assert await backend.get_value() is True
    monkeypatch.delenv("MY_SWITCH")
    assert (await backend.read_state()).revision == first.revision + 1
    assert await backend.get_value() is False


def test_a_wrong_variable_stops_the_start(monkeypatch):
    """A value that means nothing is a `ValueError` that names the variable and what would be right."""
    monkeypatch.setenv("MY_SWITCH", "maybe")
    with pytest.raises(ValueError, match="MY_SWITCH: 'maybe' is not a maintenance mode: write 1"):
        EnvVarBackend("MY_SWITCH")


@pytest.mark.anyio
async def test_a_variable_that_became_unreadable_keeps_the_last_known_state(monkeypatch, caplog):
    """The last known state holds, one warning says so, and one info tells of the end."""
    caplog.set_level(logging.INFO, "fastapi_maintenance")
    monkeypatch.setenv(VARIABLE, "1")
    maintenance = Maintenance()
    await maintenance.status()
    monkeypatch.setenv(VARIABLE, "maybe")
    broken = [await maintenance.status() for _ in range(3)]
    monkeypatch.setenv(VARIABLE, "0")
    mended = [await maintenance.status() for _ in range(2)]
    assert all(status.active and status.stale is not None for status in broken)
    assert not any(status.active or status.stale is not None for status in mended)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.anyio
async def test_the_environment_cannot_be_changed(caplog):
    """`enable()`, `disable()` and `schedule()` raise; the older `set_value()` logs a warning and changes nothing."""
    backend = EnvVarBackend()
    maintenance = Maintenance(backend=backend)
    soon = datetime.now(UTC) + timedelta(hours=1)
    for change in (maintenance.enable, maintenance.disable, lambda: maintenance.schedule(soon, soon + timedelta(1))):
        with pytest.raises(BackendReadOnlyError, match="the environment can only be set before the start"):
            await change()
    await backend.set_value(True)
    assert not await maintenance.status()
    assert "Cannot change FASTAPI_MAINTENANCE_MODE" in caplog.text


# Memory


@pytest.mark.anyio
async def test_memory_is_per_object():
    """Two memory backends never touch each other."""
    one, other = MemoryBackend(), MemoryBackend()
    await Maintenance(backend=one).enable()
    assert (one.peek_state().switch is None, other.peek_state().switch is None) == (False, True)


# The base class and the protocols


@pytest.mark.parametrize(("value", "text"), [(True, "1"), (False, "0")])
def test_bool_to_str_writes_1_or_0(value, text):
    """The helper writes `1` or `0`."""
    assert BaseStateBackend._bool_to_str(value) == text


@pytest.mark.parametrize("value", ["true", None, 2, []])
def test_bool_to_str_refuses_anything_else(value):
    """What is neither true nor false is a `ValueError`, never a guess."""
    with pytest.raises(ValueError, match="must be true or false"):
        BaseStateBackend._bool_to_str(value)


@pytest.mark.parametrize(("text", "value"), [("1", True), ("YES", True), ("0\n", False), ("off", False), ("", False)])
def test_str_to_bool_reads_the_known_words(text, value):
    """The helper reads the words of the environment, in any case, blanks around them."""
    assert FlagBackend()._str_to_bool(text) is value


def test_str_to_bool_refuses_unknown_words():
    """A word that means nothing is a `ValueError`."""
    with pytest.raises(ValueError, match="'perhaps' is not a maintenance mode"):
        FlagBackend()._str_to_bool("perhaps")


def test_the_base_class_wants_both_methods():
    """A subclass without `get_value` and `set_value` cannot be made."""
    with pytest.raises(TypeError, match="get_value"):
        type("Half", (BaseStateBackend,), {})()


@pytest.mark.parametrize(
    ("make", "protocols"),
    [
        (lambda path: EnvVarBackend(), {StateReader, StatePeek}),
        (STORES["memory"], {StateReader, StatePeek, StateStore, HoldStore}),
        (STORES["file"], {StateReader, StatePeek, StateStore, HoldStore}),
        (STORES["flag"], set()),
        (STORES["document"], {StateReader, StateStore}),
    ],
    ids=["env", *STORES],
)
def test_each_backend_has_the_capabilities_of_its_protocols(make, protocols, tmp_path):
    """A backend satisfies one protocol per capability, and no other."""
    backend = make(tmp_path)
    known = {StateReader, StateStore, StateFeed, StatePeek, HoldStore}
    assert {protocol for protocol in known if isinstance(backend, protocol)} == protocols


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: EnvVarBackend("X"), "EnvVarBackend('X')"),
        (lambda path: LocalFileBackend(path / "s"), "LocalFileBackend('{path}/s')"),
    ],
    ids=["env", "file"],
)
def test_a_repr_shows_how_it_was_made(make, text, tmp_path):
    """The repr names variable or path."""
    assert repr(make(tmp_path)) == text.format(path=tmp_path)
