"""The document and what it means at an instant."""

import json
import math
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastapi_maintenance.state import (
    FORGET_WINDOW_AFTER,
    MESSAGE_LIMIT,
    MODES,
    OPEN,
    Hold,
    MaintenanceState,
    MaintenanceStatus,
    Switch,
    Window,
    checked_message,
    checked_mode,
    checked_retry_after,
    mode_of_word,
    planned_window,
    utc,
    utcnow,
)

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
FAR = "2026-01-01T00:00:00Z"

examples = settings(deadline=None, max_examples=200, database=None, derandomize=True)

# Many instants coincide, so that boundaries do; a few lie anywhere.
near = st.integers(0, 12).map(lambda n: NOON + n * SECOND) | st.integers(0, 12).map(
    lambda n: NOON + n * timedelta(microseconds=500_001)
)
anywhere = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - the zone is given beside
instants = near | anywhere
modes = st.sampled_from(MODES)
texts = st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))

switches = st.builds(
    Switch,
    since=instants,
    message=texts,
    retry_after=st.none() | st.integers(1, 9999),
    until=st.none() | instants,
    mode=modes,
    by=texts,
)
windows = st.tuples(instants, instants, texts, modes).filter(lambda drawn: drawn[0] != drawn[1])


def a_window(start, end, **more):
    """Make a window; its id does not matter."""
    return Window(id="w", start=start, end=end, **more)


window_lists = st.lists(
    windows.map(lambda drawn: a_window(min(drawn[:2]), max(drawn[:2]), message=drawn[2], mode=drawn[3])), max_size=5
).map(tuple)
holds = st.builds(
    Hold,
    id=st.sampled_from("abc"),
    since=instants,
    message=texts,
    mode=modes,
    on_failure=st.sampled_from(["lift", "keep"]),
    phase=st.sampled_from(["closing", "closed", "orphan"]),
)
states = st.builds(
    MaintenanceState,
    revision=st.integers(0, 10**12),
    switch=st.none() | switches,
    windows=window_lists,
    holds=st.just(()) | st.lists(holds, max_size=3).map(tuple),
)


def closing(state, now):
    """Give all that closes at `now`, by the words of the contract."""
    on = [state.switch] if state.switch and (state.switch.until is None or now < state.switch.until) else []
    return [*on, *state.holds, *(window for window in state.windows if window.start <= now < window.end)]


def boundaries(state):
    """Give all instants at which something begins or ends by the clock."""
    ends = [state.switch.until] if state.switch and state.switch.until else []
    return sorted([*ends, *(instant for window in state.windows for instant in (window.start, window.end))])


# What is true at an instant


@examples
@given(states, instants, zones)
def test_the_answer_depends_on_nothing_but_state_and_instant(state, now, zone):
    """The same state at the same instant, named in any time zone, gives the same status and stays as it was."""
    before = state.model_copy(deep=True)
    status = state.at(now, message="m", retry_after=7)
    assert state.at(now, message="m", retry_after=7) == status
    assert before.at(now.astimezone(zone), message="m", retry_after=7) == status
    assert state == before


@examples
@given(states, instants)
def test_it_is_active_exactly_while_something_closes(state, now):
    """The status is active when the switch, a hold or a window closes at this instant, and only then."""
    status = state.at(now)
    assert status.active is bool(closing(state, now))
    assert bool(status) is status.active


@examples
@given(window_lists, instants)
def test_windows_close_inside_and_nowhere_else(planned, now):
    """A window in the future does not close, one that ended does not either; its start does, its end does not."""
    state = MaintenanceState(windows=planned)
    assert state.at(now).active is any(window.start <= now and window.end > now for window in planned)
    assert all(not MaintenanceState(windows=(window,)).at(window.end).active for window in planned)
    assert all(MaintenanceState(windows=(window,)).at(window.start).active for window in planned)


@examples
@given(states, instants)
def test_the_strictest_mode_wins(state, now):
    """The mode is `full` when anything active says so, `read_only` when all that is active does, `None` while open."""
    found = {cause.mode for cause in closing(state, now)}
    assert state.at(now).mode == ("full" if "full" in found else "read_only" if found else None)


@examples
@given(states, instants)
def test_until_is_the_first_instant_at_which_it_is_not_active(state, now):
    """`until` is the first boundary after now at which nothing closes, `None` while open or without such a one."""
    active = bool(closing(state, now))
    later = [instant for instant in boundaries(state) if instant > now and not closing(state, instant)]
    assert state.at(now).until == (later[0] if active and later else None)


@examples
@given(states, instants)
def test_it_is_active_up_to_until(state, now):
    """From now to `until` it is active at every boundary and just before the end, and at `until` it is not."""
    end = state.at(now).until or now
    between = [instant for instant in [*boundaries(state), end - timedelta(microseconds=1)] if now <= instant < end]
    assert all(state.at(instant).active for instant in between)
    assert end == now or not state.at(end).active


@examples
@given(states, instants, st.none() | st.integers(1, 9999))
def test_retry_after_is_right_to_the_second(state, now, default):
    """It is the time left, rounded up; without a known end the switch's own figure, else the given one."""
    status = state.at(now, retry_after=default)
    own = state.switch.retry_after if state.switch in closing(state, now) and state.switch else None
    if status.until is None:
        assert status.retry_after == ((own or default) if status.active else None)
    else:
        left = status.until - now
        assert (status.retry_after - 1) * SECOND < left <= status.retry_after * SECOND
        assert status.retry_after >= 1


@examples
@given(states, instants)
def test_next_change_is_the_first_boundary_ahead(state, now):
    """`next_change` is the first boundary after now; up to there the clock changes neither mode nor `until`."""
    ahead = [instant for instant in boundaries(state) if instant > now]
    change = state.next_change(now)
    assert change == (ahead[0] if ahead else None)
    last = now if change is None else change - timedelta(microseconds=1)
    assert (state.at(last).mode, state.at(last).until) == (state.at(now).mode, state.at(now).until)


@examples
@given(states, instants)
def test_the_rest_of_the_status_follows_what_is_active(state, now):
    """Phase, since, message, holds, revision and the next window tell what is active and what is ahead."""
    causes, status = closing(state, now), state.at(now, message="default")
    ahead = sorted((window for window in state.windows if window.start > now), key=lambda window: window.start)
    assert status.next_window == (ahead[0] if ahead else None)
    assert status.revision == state.revision
    assert status.stale is None
    draining = any(hold.phase == "closing" for hold in state.holds)
    quiet = "scheduled" if ahead else "open"
    assert status.phase == (("closing" if draining else "closed") if causes else quiet)
    assert status.since == min((getattr(c, "since", None) or c.start for c in causes), default=None)
    assert status.holds == state.holds
    said = {cause.message for cause in causes} - {None}
    assert status.message in ((said or {"default"}) if causes else {None})


def test_the_strictest_message_goes_first():
    """The message is that of the strictest mode; within one mode switch, then holds, then windows speak."""
    mild = Switch(since=NOON, message="switch", mode="read_only")
    window = a_window(NOON, NOON + HOUR, message="window")
    hold = Hold(id="h", since=NOON, message="hold")
    assert MaintenanceState(switch=mild, windows=(window,)).at(NOON).message == "window"
    assert MaintenanceState(switch=mild, windows=(window,), holds=(hold,)).at(NOON).message == "hold"
    full = mild.model_copy(update={"mode": "full"})
    assert MaintenanceState(switch=full, windows=(window,), holds=(hold,)).at(NOON).message == "switch"


@pytest.mark.parametrize(
    ("left", "seconds"),
    [
        (timedelta(microseconds=1), 1),
        (SECOND, 1),
        (SECOND + timedelta(microseconds=1), 2),
        (HOUR - timedelta(microseconds=1), 3600),
        (timedelta(days=365 * 400, microseconds=1), 365 * 400 * 86400 + 1),
    ],
)
def test_the_time_left_is_rounded_up(left, seconds):
    """A part of a second counts as a whole one, even centuries ahead."""
    assert OPEN.with_switch(NOON, until=NOON + left).at(NOON).retry_after == seconds


def test_windows_without_a_gap_are_one_closure():
    """`until` goes through windows that touch or overlap, and stops at the first gap."""
    chain = [(2, 3), (0, 1), (1, 2), (5, 6)]
    state = MaintenanceState(windows=tuple(a_window(NOON + a * HOUR, NOON + b * HOUR) for a, b in chain))
    assert state.at(NOON).until == NOON + 3 * HOUR


def test_a_status_is_frozen():
    """A status cannot be changed."""
    with pytest.raises(AttributeError):
        MaintenanceStatus().active = True


def test_the_clock_gives_utc():
    """`utcnow` gives the present with the time zone UTC."""
    assert utcnow().tzinfo is UTC


# Changes


@examples
@given(states, instants, holds, windows)
def test_each_change_makes_the_revision_one_higher(state, now, hold, drawn):
    """Every change gives a new state whose revision is one higher, and leaves the old one as it was."""
    before = state.model_copy(deep=True)
    window = Window(id="new", start=min(drawn[:2]), end=max(drawn[:2]))
    planned = state.with_window(window)
    changed = [
        state.with_switch(now),
        state.without_switch(),
        state.with_given_switch(None),
        state.switched(now, on=True),
        state.switched(now, on=False),
        planned,
        state.with_hold(hold),
        state.without_hold(hold.id),
    ]
    assert {other.revision for other in changed} == {state.revision + 1}
    assert planned.without_window("new").revision == state.revision + 2
    assert state == before


@examples
@given(states, instants)
def test_since_stays_while_the_switch_is_on(state, now):
    """Turning on a switch that is on keeps its `since`; one that is off or past its `until` begins now."""
    was_on = state.switch is not None and state.switch in closing(state, now)
    assert state.with_switch(now).switch.since == (state.switch.since if was_on else now)


@examples
@given(states)
def test_turning_off_ends_orphans_and_no_live_hold(state):
    """`without_switch` takes the switch and the orphans; live holds and windows stay."""
    after = state.without_switch()
    assert after.switch is None
    assert after.holds == tuple(hold for hold in state.holds if hold.phase != "orphan")
    assert after.windows == state.windows


@examples
@given(states, instants)
def test_only_windows_that_ended_more_than_a_day_ago_are_forgotten(state, now):
    """`without_past` drops windows that ended more than a day before, and is no change by itself."""
    after = state.without_past(now)
    assert after.windows == tuple(window for window in state.windows if now - window.end <= FORGET_WINDOW_AFTER)
    assert after.revision == state.revision
    assert after.model_copy(update={"windows": state.windows}) == state
    assert (after is state) is (after.windows == state.windows)


@pytest.mark.parametrize(("age", "kept"), [(timedelta(0), True), (SECOND, False)])
def test_a_window_is_kept_for_a_whole_day(age, kept):
    """A window that ended exactly a day ago is still there, a second later it is not."""
    state = MaintenanceState(windows=(a_window(NOON - HOUR, NOON),))
    assert bool(state.without_past(NOON + timedelta(days=1) + age).windows) is kept


def test_a_switch_says_what_it_was_given():
    """All arguments of `with_switch` are in the switch, times in UTC."""
    zone = timezone(timedelta(hours=2))
    until = NOON + HOUR
    state = OPEN.with_switch(
        NOON.astimezone(zone), message="m", retry_after=5, until=until.astimezone(zone), mode="read_only", by="ada"
    )
    assert state.switch == Switch(since=NOON, message="m", retry_after=5, until=until, mode="read_only", by="ada")
    assert state.switch.since.tzinfo is UTC
    assert state.switch.until.tzinfo is UTC


def test_switched_tells_on_or_off():
    """`switched` turns the switch on with nothing else to say, or off."""
    on = OPEN.switched(NOON, on=True)
    assert on.switch == Switch(since=NOON)
    assert on.switched(NOON, on=False).switch is None


def test_a_switch_can_be_put_back():
    """`with_given_switch` stores the switch as it was."""
    switch = Switch(since=NOON, message="before")
    assert OPEN.with_given_switch(switch).switch is switch


def test_holds_are_known_by_their_id():
    """A hold with a known id replaces the old one, ending it takes it away, ending one that is gone changes nothing."""
    first, again = Hold(id="h", since=NOON), Hold(id="h", since=NOON, phase="orphan")
    state = OPEN.with_hold(Hold(id="other", since=NOON)).with_hold(first).with_hold(again)
    assert [hold.phase for hold in state.holds] == ["closed", "orphan"]
    assert [hold.id for hold in state.without_hold("h").holds] == ["other"]
    assert state.without_hold("gone").holds == state.holds


@pytest.mark.parametrize(
    ("state", "known"),
    [(OPEN, "none"), (OPEN.with_window(a_window(NOON, NOON + HOUR)), "'w'")],
)
def test_dropping_an_unknown_window_names_the_known_ones(state, known):
    """`without_window` with an id that is not there is a `LookupError` that lists those that are."""
    with pytest.raises(LookupError, match=f"no window 'x'; planned are: {known}$"):
        state.without_window("x")


def test_a_window_can_be_dropped():
    """`without_window` takes the window of this id and no other."""
    one, two = (Window(id=name, start=NOON, end=NOON + HOUR) for name in "ab")
    assert OPEN.with_window(one).with_window(two).without_window("a").windows == (two,)


def test_a_planned_window_has_its_times_in_utc():
    """`planned_window` gives a window with all it was given, times in UTC."""
    zone = timezone(timedelta(hours=-7))
    window = planned_window(
        "id", NOON.astimezone(zone), (NOON + HOUR).astimezone(zone), message="m", mode="read_only", by="ada"
    )
    assert window == Window(id="id", start=NOON, end=NOON + HOUR, message="m", mode="read_only", by="ada")
    assert window.start.tzinfo is UTC


# Wrong arguments


class Nowhere(tzinfo):
    """A time zone that does not know its offset."""

    def utcoffset(self, _when):
        """Give nothing."""


NAIVE = [datetime(2026, 6, 1, 12), datetime(2026, 6, 1, 12, tzinfo=Nowhere())]  # noqa: DTZ001 - what is tested


@pytest.mark.parametrize("naive", NAIVE)
@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("now", OPEN.at),
        ("now", OPEN.with_switch),
        ("until", lambda time: OPEN.with_switch(NOON, until=time)),
        ("start", lambda time: planned_window("w", time, NOON, message=None, mode="full", by=None)),
        ("end", lambda time: planned_window("w", NOON, time, message=None, mode="full", by=None)),
        ("time", utc),
    ],
)
def test_a_time_without_a_zone_is_an_error(name, use, naive):
    """A naive datetime is a `ValueError` that names the argument and says how to write it."""
    with pytest.raises(ValueError, match=rf"^{name} has no time zone: 2026-06-01T12:00:00; write datetime.now\(UTC\)"):
        use(naive)


@pytest.mark.parametrize("wrong", [None, "2026-06-01", 1.5, date(2026, 6, 1)])
def test_a_time_has_to_be_a_datetime(wrong):
    """Anything but a datetime is a `TypeError`."""
    with pytest.raises(TypeError, match=f"^end must be a datetime, not {type(wrong).__name__}$"):
        utc(wrong, "end")


@pytest.mark.parametrize(
    "beyond",
    [
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
    ],
)
def test_a_time_that_utc_cannot_say_is_an_error(beyond):
    """An instant before the year 1 or after 9999 in UTC is a `ValueError`, in a document as well."""
    with pytest.raises(ValueError, match=r"^until lies outside of what UTC can say"):
        OPEN.with_switch(NOON, until=beyond)
    with pytest.raises(ValueError, match=r"^switch\.since: .*outside"):
        MaintenanceState.from_json(json.dumps({"switch": {"since": beyond.isoformat()}}))


@pytest.mark.parametrize("until", [NOON, NOON - SECOND])
def test_until_has_to_come(until):
    """An `until` that is now or past is a `ValueError`."""
    with pytest.raises(ValueError, match=r"^until \(2026-.* is in the past"):
        OPEN.with_switch(NOON, until=until)


@pytest.mark.parametrize("end", [NOON, NOON - SECOND])
def test_a_window_has_to_end_after_its_start(end):
    """An `end` that is not after its `start` is a `ValueError` that names both."""
    with pytest.raises(ValueError, match=r"^a window's end \(2026-.*\) must come after its start \(2026-"):
        planned_window("w", NOON, end, message=None, mode="full", by=None)


@pytest.mark.parametrize("mode", ["", "FULL", "half", "pause", None, 1, []])
def test_an_unknown_mode_is_an_error(mode):
    """A mode that is not known is a `ValueError` that lists those that are, for switch and windows."""
    for use in (
        checked_mode,
        lambda mode: OPEN.with_switch(NOON, mode=mode),
        lambda mode: planned_window("w", NOON, NOON + HOUR, message=None, mode=mode, by=None),
    ):
        with pytest.raises(ValueError, match=r"^unknown mode .*: use one of 'full', 'read_only'$"):
            use(mode)


@pytest.mark.parametrize("name", ["message", "by"])
@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("x" * (MESSAGE_LIMIT + 1), ValueError, "has 2049 bytes, at most 2048"),
        ("é" * (MESSAGE_LIMIT // 2) + "x", ValueError, "has 2049 bytes"),
        ("a\0", ValueError, r"has the control character '\\x00' at 1"),
        ("\r\n", ValueError, r"has the control character '\\r' at 0"),
        ("\x7f", ValueError, "has the control character"),
        ("ab\x9b", ValueError, "has the control character .* at 2"),
        ("\ud800", ValueError, "has a lone surrogate"),
        (b"bytes", TypeError, "must be a string, not bytes"),
        (5, TypeError, "must be a string, not int"),
        (["m"], TypeError, "must be a string, not list"),
    ],
)
def test_a_wrong_text_is_an_error(name, text, error, says):
    """A text that is too long, has control characters or lone surrogates, or is no string, is an error by its name."""
    for use in (
        lambda **texts: OPEN.with_switch(NOON, **texts),
        lambda **texts: planned_window("w", NOON, NOON + HOUR, mode="full", **({"message": None, "by": None} | texts)),
    ):
        with pytest.raises(error, match=f"^{name} {says}"):
            use(**{name: text})


@pytest.mark.parametrize(
    "message", [None, "", "line\nfeed\ttab", "x" * MESSAGE_LIMIT, "é" * (MESSAGE_LIMIT // 2), "✓\xa0"]
)
def test_a_right_message_is_taken_as_it_is(message):
    """A message of at most 2 KiB of text with line feeds and tabs comes back as it is."""
    assert checked_message(message) is message
    assert OPEN.with_switch(NOON, message=message).switch.message == message


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), (60.0, TypeError), (True, TypeError), ("60", TypeError)],
)
def test_a_wrong_retry_after_is_an_error(seconds, error):
    """`retry_after` that is no whole number, or less than 1, is an error that shows it."""
    with pytest.raises(error, match=rf"^retry_after must be .* not {seconds!r}$"):
        OPEN.with_switch(NOON, retry_after=seconds)


@pytest.mark.parametrize("seconds", [None, 1, 86400])
def test_a_right_retry_after_is_taken(seconds):
    """`retry_after` of whole seconds, or none, comes back as it is."""
    assert checked_retry_after(seconds) is seconds


# Words


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ("1 true t yes y on full TRUE On FULL", "full"),
        ("0 false f no n off OFF No", None),
        ("read_only READ_ONLY", "read_only"),
    ],
)
def test_words_of_people_are_understood(words, mode):
    """Each known word, in any case and with blanks around it, means its mode."""
    assert {mode_of_word(word) for word in words.split()} == {mode}
    assert {mode_of_word(f" {word}\n") for word in words.split()} == {mode}


@pytest.mark.parametrize("nothing", ["", " ", "\n"])
def test_nothing_means_open(nothing):
    """An empty word means open."""
    assert mode_of_word(nothing) is None


@pytest.mark.parametrize("word", ["maybe", "2", "read-only", "tru", "1 1", "x" * 1000])
def test_an_unknown_word_is_an_error(word):
    """Any other word is a `ValueError` that shows its beginning and what would be right."""
    with pytest.raises(
        ValueError, match=r"is not a maintenance mode: write 1 \(on\), 0 \(off\) or read_only$"
    ) as caught:
        mode_of_word(word)
    assert str(caught.value).startswith(repr(word[:40]))


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ({}, "0"),
        ({"revision": 9}, "0"),
        ({"switch": {"since": FAR}}, "1"),
        ({"switch": {"since": FAR, "message": "m"}}, None),
        ({"switch": {"since": FAR, "message": ""}}, None),
        ({"switch": {"since": FAR, "retry_after": 5}}, None),
        ({"switch": {"since": FAR, "until": FAR}}, None),
        ({"switch": {"since": FAR, "mode": "read_only"}}, None),
        ({"switch": {"since": FAR, "by": "ada"}}, None),
        ({"switch": {"since": FAR, "unknown": None}}, None),
        ({"unknown": None}, None),
        ({"windows": [{"id": "w", "start": FAR, "end": "2027-01-01T00:00:00Z"}]}, None),
        ({"holds": [{"id": "h", "since": FAR}]}, None),
    ],
)
def test_a_word_stands_for_a_state_that_has_nothing_else_to_say(document, word):
    """`word` is `0` or `1` when that tells all but revision and since, else `None`."""
    assert MaintenanceState.from_json(json.dumps(document)).word == word


# The document

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def unknown_fields(model):
    """Give fields that `model` does not know."""
    known = {field.alias or name for name, field in model.model_fields.items()}
    return st.dictionaries(st.text().filter(lambda name: name not in known), json_values, max_size=3)


@examples
@given(states)
def test_a_document_is_read_as_it_was_written(state):
    """Writing a state and reading it gives an equal one, from text and from bytes."""
    written = state.to_json()
    assert MaintenanceState.from_json(written) == state
    assert MaintenanceState.from_json(written.encode()) == state
    assert json.loads(written)["schema"] == 1


@examples
@given(states, st.data())
def test_unknown_fields_survive(state, data):
    """Fields that this version does not know are kept in every part, also through changes of other parts."""
    document = json.loads(state.to_json())
    for model, part in [
        (MaintenanceState, document),
        (Switch, document["switch"] or {}),
        *((Window, window) for window in document["windows"]),
        *((Hold, hold) for hold in document["holds"]),
    ]:
        part.update(data.draw(unknown_fields(model)))
    read = MaintenanceState.from_json(json.dumps(document))
    assert json.loads(read.to_json()) == document
    changed = read.with_hold(Hold(id="new", since=NOON)).without_hold("new")
    assert json.loads(changed.to_json()) == document | {"revision": state.revision + 2}


def test_what_is_missing_has_its_default():
    """An empty object is the state of a store that was never written."""
    assert MaintenanceState.from_json("{}") == OPEN


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("", "EOF"),
        ("rubbish", "expected"),
        (b"\xff\xfe\x00", "expected"),
        (b'{"x": "\xff"}', "unicode"),
        ("\ud800", "surrogates"),
        ('{"x": "\\ud800"}', "hex escape"),
        ('{"switch": null', "EOF"),
        ("{} {}", "trailing"),
        ('{"x": ' + "[" * 100_000, "recursion limit"),
        ('{"x": NaN}', "expected value"),
        ('{"x": -Infinity}', "expected|number"),
        ("[]", "must be a JSON object, not list"),
        ("null", "must be a JSON object, not NoneType"),
        ('"1"', "must be a JSON object, not str"),
        ('{"schema": 2}', r"written by a newer version \(schema 2, this one reads up to 1\); upgrade"),
        ('{"schema": 0}', "^schema: "),
        ('{"schema": "1"}', "^schema: "),
        ('{"revision": -1}', "^revision: "),
        ('{"revision": "x"}', "^revision: "),
        ('{"revision": NaN}', "expected value"),
        ('{"revision": null}', "^revision: "),
        ('{"switch": []}', "^switch: "),
        ('{"switch": true}', "^switch: "),
        ('{"switch": {}}', r"^switch\.since: Field required"),
        ('{"switch": {"since": "2026-01-01T00:00:00"}}', r"^switch\.since: .*timezone"),
        (f'{{"switch": {{"since": "{FAR}", "mode": "half"}}}}', r"^switch\.mode: .*'full' or 'read_only'"),
        (f'{{"switch": {{"since": "{FAR}", "retry_after": 0}}}}', r"^switch\.retry_after: "),
        ('{"windows": {}}', "^windows: "),
        (f'{{"windows": [{{"id": "w", "start": "{FAR}", "end": "{FAR}"}}]}}', r"^windows\.0: a window's end"),
        ('{"holds": [{"id": 1}]}', r"^holds\.0\.id: .*; holds\.0\.since: "),
        (f'{{"holds": [{{"id": "h", "since": "{FAR}", "phase": "x"}}]}}', r"^holds\.0\.phase: "),
    ],
)
def test_a_broken_document_is_an_error(raw, says):
    """What is no JSON object, breaks a rule or is newer is a `ValueError` that says where and why."""
    with pytest.raises(ValueError, match=says):
        MaintenanceState.from_json(raw)


def test_an_error_does_not_repeat_the_document():
    """The error for a wrong value tells the field, not what somebody wrote there."""
    with pytest.raises(ValueError, match=r"^switch\.since: ") as caught:
        MaintenanceState.from_json('{"switch": {"since": "hunter2"}}')
    assert "hunter2" not in str(caught.value)


def test_deep_but_possible_nesting_survives():
    """Unknown values nested as deep as JSON can be read here are written back."""
    deep = "[" * 150 + "]" * 150
    state = MaintenanceState.from_json(f'{{"x": {deep}}}')
    assert json.loads(state.to_json())["x"] == json.loads(deep)


def test_numbers_of_any_size_survive():
    """Large whole numbers and small fractions in unknown fields are written back as they are."""
    numbers = [2**200, -(2**63), 1e-300, math.pi]
    assert json.loads(MaintenanceState.from_json(json.dumps({"x": numbers})).to_json())["x"] == numbers
