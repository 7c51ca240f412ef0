"""The document a backend remembers, and what it means at an instant. No I/O; the clock is an argument."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self, TypeAlias, cast, get_args

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

Mode: TypeAlias = Literal["full", "read_only"]
"""What a closed gate refuses: everything (`full`) or writes and websockets (`read_only`)."""

Phase: TypeAlias = Literal["open", "scheduled", "closing", "closed"]
"""`open`, `scheduled` (open, a window is ahead), `closing` (a hold is draining) or `closed`."""

OnFailure: TypeAlias = Literal["lift", "keep"]
"""What becomes of a hold whose body raised: `lift` ends it, `keep` leaves it closed until `disable()`."""

MODES: tuple[Mode, ...] = get_args(Mode)
"""From the strictest to the mildest."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "QUERY"})
"""Methods that `read_only` lets pass (RFC 9110 section 9.2.1, and QUERY)."""

SCHEMA = 1
"""The version of the document that this package writes, and the newest that it reads."""

MESSAGE_LIMIT = 2048
"""Bytes (UTF-8) that a message may have."""

FORGET_WINDOW_AFTER = timedelta(days=1)

_WORDS: dict[str, Mode | None] = {
    **dict.fromkeys(("1", "true", "t", "yes", "y", "on", "full"), "full"),
    **dict.fromkeys(("0", "false", "f", "no", "n", "off", ""), None),
    "read_only": "read_only",
}


def utcnow() -> datetime:
    """Give the present; what the state is asked with outside of tests."""
    return datetime.now(UTC)


def mode_of_word(word: str) -> Mode | None:
    """Read what a person writes into a variable or a file: a mode when it means closed, `None` when open.

    Args:
        word: `1 true t yes y on full`, `0 false f no n off`, nothing, or `read_only`; any case, blanks around it.

    Raises:
        ValueError: The word is none of these.
    """
    try:
        return _WORDS[word.strip().lower()]
    except KeyError:
        raise ValueError(f"{word[:40]!r} is not a maintenance mode: write 1 (on), 0 (off) or read_only") from None


def utc(value: datetime, name: str = "time") -> datetime:
    """Give `value` in UTC; `ValueError` naming `name` when it carries no time zone."""
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise ValueError(
            f"{name} has no time zone: {value.isoformat()}; write datetime.now(UTC) + timedelta(...), or add tzinfo"
        )
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{name} lies outside of what UTC can say: {value.isoformat()}") from None


def checked_mode(mode: str) -> Mode:
    """Give `mode` back, or a `ValueError` that lists the known modes."""
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}: use one of {', '.join(map(repr, MODES))}")
    return mode


def checked_message(message: str | None, name: str = "message") -> str | None:
    """Give `message` back, or an error: at most 2 KiB of text, of the control characters only line feeds and tabs."""
    if message is None:
        return None
    if not isinstance(message, str):
        raise TypeError(f"{name} must be a string, not {type(message).__name__}")
    try:
        size = len(message.encode())
    except UnicodeEncodeError:
        raise ValueError(
            f"{name} has a lone surrogate, which no answer could carry; decode its source with errors='replace'"
        ) from None
    if size > MESSAGE_LIMIT:
        raise ValueError(f"{name} has {size} bytes, at most {MESSAGE_LIMIT} are allowed")
    for position, character in enumerate(message):
        if (character < " " and character not in "\n\t") or "\x7f" <= character <= "\x9f":
            raise ValueError(
                f"{name} has the control character {character!r} at {position}; only line feeds and tabs are allowed"
            )
    return message


def checked_retry_after(retry_after: int | None) -> int | None:
    """Give `retry_after` back, or an error: whole seconds, at least 1."""
    if retry_after is None:
        return None
    if not isinstance(retry_after, int) or isinstance(retry_after, bool):
        raise TypeError(f"retry_after must be whole seconds, not {retry_after!r}")
    if retry_after < 1:
        raise ValueError(f"retry_after must be at least 1 second, not {retry_after}")
    return retry_after


def explain(error: ValidationError) -> str:
    """Say in one line what a document or a setting has wrong, without repeating its contents."""
    problems = (
        f"{'.'.join(map(str, problem['loc'])) or 'document'}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    )
    return "; ".join(problems)


Instant = Annotated[AwareDatetime, AfterValidator(utc)]


class _Part(BaseModel):
    """A part of the document. Fields it does not know are kept and written back."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)


class Switch(_Part):
    """The manual switch while it is on."""

    since: Instant
    message: str | None = None
    retry_after: int | None = Field(default=None, ge=1)
    until: Instant | None = None
    mode: Mode = "full"
    by: str | None = None

    def is_on(self, now: datetime) -> bool:
        """Whether the switch has not yet come to its `until`."""
        return self.until is None or now < self.until

    @property
    def bare(self) -> bool:
        """Whether it says nothing but "on", so that `1` tells it whole."""
        said = self.model_dump(exclude={"since"}, exclude_none=True)
        return said == {"mode": "full"} and not self.model_extra


class Window(_Part):
    """A planned closure: `start` inclusive, `end` exclusive."""

    id: str
    start: Instant
    end: Instant
    message: str | None = None
    mode: Mode = "full"
    by: str | None = None

    @model_validator(mode="after")
    def _ends_after_its_start(self) -> Self:
        if self.end <= self.start:
            raise ValueError(
                f"a window's end ({self.end.isoformat()}) must come after its start ({self.start.isoformat()})"
            )
        return self

    def covers(self, now: datetime) -> bool:
        """Whether `now` lies inside."""
        return self.start <= now < self.end


class Hold(_Part):
    """One running claim "keep it closed"; an `orphan` is one whose owner failed and asked to keep it."""

    id: str
    since: Instant
    message: str | None = None
    mode: Mode = "full"
    by: str | None = None
    on_failure: OnFailure = "lift"
    phase: Literal["closing", "closed", "orphan"] = "closed"


Cause: TypeAlias = Switch | Hold | Window


@dataclass(frozen=True, slots=True)
class MaintenanceStatus:
    """What is true at one instant. `bool(status)` is `status.active`.

    Attributes:
        active: Whether maintenance is on.
        mode: The strictest mode of all that is active; `None` while open.
        phase: `open`, `scheduled`, `closing` while a hold drains, or `closed`.
        message: What to tell people, `None` while open.
        since: When the earliest of what is active began (UTC).
        until: The first instant at which it is not active if nothing changes (UTC), `None` if unknown.
        retry_after: Whole seconds after which a client may come back, `None` while open or if there is nothing to say.
        next_window: The next window that has not begun.
        holds: The holds that keep it closed.
        revision: The state's revision.
        stale: Seconds since it was first found that the backend cannot be asked, `None` when it can.
        busy: How many workers still run an admitted request while a hold drains (`closing`), else `None`.
        workers: How many workers there are while a hold drains, else `None`.
    """

    active: bool = False
    mode: Mode | None = None
    phase: Phase = "open"
    message: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    retry_after: int | None = None
    next_window: Window | None = None
    holds: tuple[Hold, ...] = ()
    revision: int = 0
    stale: float | None = None
    busy: int | None = None
    workers: int | None = None

    def __bool__(self) -> bool:
        """Whether maintenance is on."""
        return self.active


class MaintenanceState(_Part):
    """All that a backend remembers: one switch, any number of windows and holds. A change gives a new one."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    revision: int = Field(default=0, ge=0)
    switch: Switch | None = None
    windows: tuple[Window, ...] = ()
    holds: tuple[Hold, ...] = ()

    @classmethod
    def from_json(cls, raw: str | bytes) -> Self:
        """Read a document.

        Raises:
            ValueError: It is not JSON, not an object, breaks a rule, or was written by a newer version.
        """
        document: Any = from_json(raw if isinstance(raw, bytes) else raw.encode(), allow_inf_nan=False)
        if not isinstance(document, dict):
            raise ValueError(f"the document must be a JSON object, not {type(document).__name__}")  # noqa: TRY004 - a broken document is one kind of error
        version = cast("dict[str, object]", document).get("schema", SCHEMA)
        if isinstance(version, int) and version > SCHEMA:
            raise ValueError(
                f"written by a newer version (schema {version}, this one reads up to {SCHEMA}); upgrade this process"
            )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ValueError(explain(error)) from None

    def to_json(self) -> str:
        """Write the document, indented for people who edit it by hand."""
        return self.model_dump_json(indent=2, by_alias=True)

    @property
    def word(self) -> str | None:
        """`0` or `1` when that tells the state whole (all but revision and since), else `None`."""
        if self.windows or self.holds or self.model_extra:
            return None
        if self.switch is None:
            return "0"
        return "1" if self.switch.bare else None

    # What it means

    def active_causes(self, now: datetime) -> list[Cause]:
        """All that keeps it closed at `now`, the strictest mode first, then switch, holds, windows."""
        causes: list[Cause] = [self.switch] if self.switch is not None and self.switch.is_on(now) else []
        causes += self.holds
        causes += [window for window in self.windows if window.covers(now)]
        causes.sort(key=lambda cause: MODES.index(cause.mode))
        return causes

    def at(self, now: datetime, *, message: str | None = None, retry_after: int | None = None) -> MaintenanceStatus:
        """Tell what is true at `now`; a pure function.

        Args:
            now: The instant, with a time zone.
            message: What to say where nothing that is active has a message.
            retry_after: Seconds to name where the end is unknown and the switch names none.

        Raises:
            ValueError: `now` has no time zone.
        """
        now = utc(now, "now")
        ahead = min((w for w in self.windows if w.start > now), key=lambda window: window.start, default=None)
        causes = self.active_causes(now)
        if not causes:
            return MaintenanceStatus(phase="scheduled" if ahead else "open", next_window=ahead, revision=self.revision)
        until = self._end(causes)
        if until is not None:
            retry_after = -((now - until) // timedelta(seconds=1))
        elif self.switch in causes and self.switch is not None and self.switch.retry_after is not None:
            retry_after = self.switch.retry_after
        return MaintenanceStatus(
            active=True,
            mode=causes[0].mode,
            phase="closing" if any(hold.phase == "closing" for hold in self.holds) else "closed",
            message=next((cause.message for cause in causes if cause.message is not None), message),
            since=min(cause.start if isinstance(cause, Window) else cause.since for cause in causes),
            until=until,
            retry_after=retry_after,
            next_window=ahead,
            holds=self.holds,
            revision=self.revision,
        )

    def _end(self, causes: Iterable[Cause]) -> datetime | None:
        """When `causes`, and the windows that follow without a gap, are over; `None` if one has no known end."""
        end: datetime | None = None
        for cause in causes:
            over = None if isinstance(cause, Hold) else cause.end if isinstance(cause, Window) else cause.until
            if over is None:
                return None
            end = over if end is None else max(end, over)
        for window in sorted(self.windows, key=lambda window: window.start):
            if end is not None and window.start <= end < window.end:
                end = window.end
        return end

    def next_change(self, now: datetime) -> datetime | None:
        """Give the first instant after `now` at which `at` may answer otherwise by the clock alone."""
        instants = [instant for window in self.windows for instant in (window.start, window.end)]
        if self.switch is not None and self.switch.until is not None:
            instants.append(self.switch.until)
        return min((instant for instant in instants if instant > now), default=None)

    # Changes

    def _changed(self, **update: Any) -> Self:
        return self.model_copy(update={"revision": self.revision + 1, **update})

    def with_switch(
        self,
        now: datetime,
        *,
        message: str | None = None,
        retry_after: int | None = None,
        until: datetime | None = None,
        mode: str = "full",
        by: str | None = None,
    ) -> Self:
        """Turn the switch on, or say it anew; `since` stays when it was on.

        Raises:
            ValueError: `until` is naive or not after `now`, or another argument breaks a rule.
            TypeError: An argument has a wrong type.
        """
        now = utc(now, "now")
        if until is not None:
            until = not_over(utc(until, "until"), "until", now)
        since = self.switch.since if self.switch is not None and self.switch.is_on(now) else now
        switch = Switch(
            since=since,
            message=checked_message(message),
            retry_after=checked_retry_after(retry_after),
            until=until,
            mode=checked_mode(mode),
            by=checked_message(by, "by"),
        )
        return self._changed(switch=switch)

    def without_switch(self) -> Self:
        """Turn the switch off and end orphans. Live holds stay."""
        return self._changed(switch=None, holds=tuple(hold for hold in self.holds if hold.phase != "orphan"))

    def with_given_switch(self, switch: Switch | None) -> Self:
        """Put back a switch as it was."""
        return self._changed(switch=switch)

    def switched(self, now: datetime, *, on: bool) -> Self:
        """Turn the switch on with nothing else to say, or off; what a true/false store can be told."""
        return self.with_switch(now) if on else self.without_switch()

    def with_window(self, window: Window) -> Self:
        """Plan a window."""
        return self._changed(windows=(*self.windows, window))

    def without_window(self, window_id: str) -> Self:
        """Drop the window `window_id`.

        Raises:
            LookupError: There is none.
        """
        kept = tuple(window for window in self.windows if window.id != window_id)
        if len(kept) == len(self.windows):
            known = ", ".join(repr(window.id) for window in self.windows) or "none"
            raise LookupError(f"no window {window_id!r}; planned are: {known}")
        return self._changed(windows=kept)

    def with_hold(self, hold: Hold) -> Self:
        """Add `hold`, or replace the one of the same id."""
        return self._changed(holds=(*(known for known in self.holds if known.id != hold.id), hold))

    def without_hold(self, hold_id: str) -> Self:
        """End the hold `hold_id`; nothing happens when it is gone."""
        return self._changed(holds=tuple(hold for hold in self.holds if hold.id != hold_id))

    def with_drained(self, hold_id: str) -> Self:
        """Say that the hold `hold_id` is not draining any more; no change where there is none."""
        holds = tuple(
            hold.model_copy(update={"phase": "closed"}) if hold.id == hold_id else hold for hold in self.holds
        )
        return self if holds == self.holds else self._changed(holds=holds)

    def with_orphan(self, hold: Hold) -> Self:
        """Leave `hold` closed without an owner, until the switch is turned off."""
        return self.with_hold(hold.model_copy(update={"phase": "orphan"}))

    def with_live_holds(self, alive: Collection[str]) -> Self:
        """Give the state after the death of all owners but those of `alive`; no change of its own."""
        holds = tuple(
            hold if hold.phase == "orphan" or hold.id in alive else hold.model_copy(update={"phase": "orphan"})
            for hold in self.holds
            if hold.phase == "orphan" or hold.id in alive or hold.on_failure == "keep"
        )
        return self if holds == self.holds else self.model_copy(update={"holds": holds})

    def with_unlisted(self, hold: Hold) -> Self:
        """Give the state with a hold that the document does not list; no change of its own."""
        return self.model_copy(update={"holds": (*self.holds, hold)})

    def without_unlisted(self, hold_id: str) -> Self:
        """Take back `with_unlisted`; no change of its own."""
        kept = tuple(hold for hold in self.holds if hold.id != hold_id)
        return self if kept == self.holds else self.model_copy(update={"holds": kept})

    def without_past(self, now: datetime) -> Self:
        """Forget windows that ended more than a day before `now`; no change of its own."""
        kept = tuple(window for window in self.windows if now - window.end <= FORGET_WINDOW_AFTER)
        return self if len(kept) == len(self.windows) else self.model_copy(update={"windows": kept})


OPEN = MaintenanceState.model_construct()  # validates nothing, so that importing builds no validators
"""The state of a store that has never been written."""


def not_over(moment: datetime, name: str, now: datetime) -> datetime:
    """Give a time that is still to come.

    Raises:
        ValueError: It is over; the error has its name.
    """
    if moment <= now:
        raise ValueError(f"{name} ({moment.isoformat()}) is in the past; give a time after {now.isoformat()}")
    return moment


def planned_window(
    window_id: str, start: datetime, end: datetime, *, message: str | None, mode: str, by: str | None
) -> Window:
    """Make a window from what a person gave.

    Raises:
        ValueError: A time is naive, `end` is not after `start`, or another argument breaks a rule.
        TypeError: An argument has a wrong type.
    """
    start, end = utc(start, "start"), utc(end, "end")
    try:
        return Window(
            id=window_id,
            start=start,
            end=end,
            message=checked_message(message),
            mode=checked_mode(mode),
            by=checked_message(by, "by"),
        )
    except ValidationError as error:
        raise ValueError(explain(error).removeprefix("document: ")) from None
